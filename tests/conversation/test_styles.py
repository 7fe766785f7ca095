"""The style of a checkpoint: what tells the family apart, and what is said where nothing does."""

import json
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_template import small_tokenizer

import k2ref
from k2ref.checkpoint import styles
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.styles import STYLES, style_for, style_of
from k2ref.cli.main import main
from scripts.checkpoints.small import write_checkpoint

DATA = Path(__file__).parents[1] / "data"
THINK = {"<|im_end|>": 163586, "<think>": 163606}


def official(name, flat=False, **changed):
    """An official configuration, or the language model's part of it as a file of its own."""
    values = json.loads((DATA / "configs" / f"{name}.json").read_text())
    return Config.from_dict({**(values["text_config"] if flat else values), **changed})


def told(config, path=None, ids=THINK):
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        style = style_of(config, SimpleNamespace(special_id=ids.get), path)
    return style, [str(remark.message) for remark in remarks]


@pytest.mark.parametrize("name, thinks, style", [
    ("Kimi-K2-Base", False, "k2-instruct"), ("Kimi-K2-Instruct", False, "k2-instruct"),
    ("Kimi-K2-Instruct-0905", False, "k2-instruct"), ("Kimi-K2-Thinking", True, "k2-thinking"),
    ("Kimi-K2-Thinking", False, "k2-thinking"), ("Kimi-K2.5", True, "k2.5"),
])
def test_style_of_the_official_configurations(name, thinks, style):
    ids = THINK if thinks else {"<|im_end|>": 163586}
    assert told(official(name), ids=ids) == (style, [])


def test_k2_6_and_k2_7_code_have_one_configuration_and_that_is_said():
    for name in ("Kimi-K2.6", "Kimi-K2.7-Code"):
        style, (remark,) = told(official(name))
        assert style == "k2.6" and "leave open whether it is k2.6 or k2.7-code" in remark
        assert "--style" in remark and "\n" not in remark


@pytest.mark.parametrize("name, style", [
    ("Kimi-K2.5", "k2.5"), ("Kimi-K2.6", "k2.6 or k2.7-code"),
    ("Kimi-K2.7-Code", "k2.6 or k2.7-code")])
def test_the_language_model_alone_is_not_taken_for_k2_thinking(name, style):
    """Trap: flat, INT4 and ended by <|im_end|> as K2 Thinking is, but for its beta_fast of 32."""
    assert told(official(name, flat=True)) == (style, [])


@pytest.mark.parametrize("thinks, style", [(False, "k2-instruct"), (True, "k2-thinking")])
def test_style_of_a_model_without_quantization_depends_on_its_vocabulary(thinks, style):
    tokenizer = small_tokenizer(without=() if thinks else ("<think>", "</think>"))
    config = official("Kimi-K2-Thinking", quantization_config=None,
                      eos_token_id=tokenizer.special_id("<|im_end|>"))
    assert style_of(config, tokenizer) == style


@pytest.mark.parametrize("ids", [{"<|im_end|>": 163586}, THINK])
@pytest.mark.parametrize("end", [163585, 163586])
def test_moonlight_is_known_by_its_one_query_projection(ids, end):
    config = official("Kimi-K2-Instruct", q_lora_rank=None, quantization_config=None,
                      rope_scaling=None, eos_token_id=end)
    assert told(config, ids=ids) == ("moonlight", [])


# Files that tell. The texts have what the official ones are known to have, and are not theirs.

TEMPLATES = {
    "k2-instruct": "tools You are Kimi, an AI assistant created by Moonshot AI.",
    "k2-thinking": "tools You are Kimi, an AI assistant created by Moonshot AI. <think></think>",
    "k2.5": "{{ tools_ts_str }} {% if thinking is false %}<think></think>{% else %}<think>",
    "k2.6": "{{ tools_ts_str }} {% if thinking is false %}<think></think>{% else %}<think>{% endif"
            " %}{% if preserve_thinking %}",
    "k2.7-code": "{{ tools_ts_str }}{{ reasoning_content }}<think>",
    "moonlight": "{{ message['role'] }}<|im_middle|>",
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name, flat", [("Kimi-K2.6", False), ("Kimi-K2.6", True),
                                        ("Kimi-K2-Thinking", False)])
@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_template_says_most(tmp_path, style, name, flat, place):
    text = TEMPLATES[style]
    text = json.dumps({"chat_template": text}) if place.endswith("json") else text
    (tmp_path / place).write_text(text)
    if style == "k2.7-code" and name == "Kimi-K2-Thinking":
        style = "k2.7-code or k2.5"  # there is nothing in it that says which
    assert told(official(name, flat), tmp_path) == (style, [])


def test_what_a_template_lacks_makes_no_other_model_of_k2_5(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["k2.7-code"])
    assert told(official("Kimi-K2.5"), tmp_path) == ("k2.5", [])


def test_an_older_template_of_k2_thinking_has_no_system_message(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("tools <think></think>")
    assert told(official("Kimi-K2-Thinking"), tmp_path) == ("k2-thinking", [])


def test_the_template_of_k2_7_code_is_known_by_its_digest(tmp_path, monkeypatch):
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["k2.6"])
    digest = "1f7bcf2ef5dcd5bbdcbd1b64bd6fa6cf7ab5d52c9a3d2f6e4be9a6f6ab0dc18f"
    assert told(official("Kimi-K2.7-Code"), tmp_path)[0] == "k2.6"
    monkeypatch.setattr(styles, "hashlib", SimpleNamespace(
        sha256=lambda data: SimpleNamespace(hexdigest=lambda: digest)))
    monkeypatch.setattr(styles, "K27_TEMPLATE", digest)
    assert told(official("Kimi-K2.7-Code"), tmp_path) == ("k2.7-code", [])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("text", ["It always thinks.", "Reasoning is preserved, always."])
def test_the_tokenizer_s_code_of_k2_7_code_says_that_it_always_thinks(tmp_path, flat, text):
    (tmp_path / "tokenization_kimi.py").write_text(f'"""{text}"""')
    assert told(official("Kimi-K2.7-Code", flat), tmp_path) == ("k2.7-code", [])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name, style", [
    ("Kimi-K2.6", "k2.6"), ("kimi-k2_7-code", "k2.7-code"), ("Kimi-K2p6-text", "k2.6"),
    ("models--moonshotai--Kimi-K2.7-Code/snapshots/0123", "k2.7-code")])
def test_a_name_settles_what_is_left(tmp_path, name, style, flat):
    path = tmp_path / name
    path.mkdir(parents=True)
    assert told(official("Kimi-K2.6", flat), path) == (style, [])
    assert told(official("Kimi-K2-Thinking"), path) == ("k2-thinking", [])  # and no more than that
    (path / "config.json").write_text('{"_name_or_path": "moonshotai/Kimi-K2.6"}')
    assert told(official("Kimi-K2.6", True), path)[0] == (
        style if style == "k2.6" else "k2.6 or k2.7-code")


def test_files_that_are_none_tell_nothing(tmp_path):
    """A pipe is not waited for, a huge file not read, and rubbish is no template."""
    for name in ("chat_template.jinja", "tokenization_kimi.py", "config.json"):
        os.mkfifo(tmp_path / name)
    expected = ("k2.6 or k2.7-code", [])
    for text in ("[1]", '{"chat_template": [1]}', "{", "[" * 100_000, '"x"', ""):
        (tmp_path / "tokenizer_config.json").write_text(text)
        assert told(official("Kimi-K2.6", True), tmp_path) == expected
    (tmp_path / "chat_template.jinja").unlink()
    with open(tmp_path / "chat_template.jinja", "wb") as file:
        file.write(b"<think>")
        file.truncate(1 << 34)
    assert told(official("Kimi-K2.6", True), tmp_path) == expected


# A checkpoint that is loaded.

def write(tmp_path, layout, **changed):
    """A checkpoint of random weights whose tokenizer has single bytes."""
    write_checkpoint(tmp_path, layout=layout, tokenizer=True)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **changed}))


HELLO = [{"role": "user", "content": "hello"}]


def test_moonlight_is_given_its_own_system_message(tmp_path):
    write(tmp_path, "moonlight")
    model = k2ref.load(tmp_path)
    text = model.tokenizer.decode(k2ref.render(model.tokenizer, HELLO))
    assert text.startswith("<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>")
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(k2ref.ChatError, match="the template of moonlight declares none"):
        k2ref.chat(model, HELLO, [tool])


def test_a_style_that_is_left_open_is_asked_for_when_it_is_needed(tmp_path):
    write(tmp_path, "thinking", rope_scaling={
        "type": "yarn", "factor": 64.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096})
    model = k2ref.load(tmp_path)
    assert len(k2ref.forward(model, [1, 2])) == 2  # numbers need no style
    for use in (lambda: k2ref.render(model.tokenizer, HELLO), lambda: k2ref.chat(model, HELLO),
                lambda: k2ref.Agent(model), lambda: k2ref.parse(model.tokenizer, [1])):
        with pytest.raises(k2ref.ChatError, match="leave open whether it is k2.6 or k2.7-code"):
            use()
    assert k2ref.render(model.tokenizer, HELLO, style="k2.6")
    assert k2ref.load(tmp_path, style="k2.7-code").tokenizer.style == "k2.7-code"
    with pytest.raises(k2ref.ChatError, match="style: expected one of .*, found 'k3'"):
        k2ref.load(tmp_path, style="k3")


def test_a_model_without_tokenizer_files_says_so_wherever_text_is_needed(tmp_path):
    write_checkpoint(tmp_path, layout="thinking")
    model = k2ref.load(tmp_path)
    assert model.tokenizer is None and list(k2ref.generate(model, [1], 2, stop_ids=[]))
    for use in (lambda: k2ref.render(model.tokenizer, HELLO), lambda: k2ref.chat(model, HELLO),
                lambda: k2ref.Agent(model), lambda: k2ref.parse(model.tokenizer, [1]),
                lambda: k2ref.ReplyParser(model.tokenizer)):
        with pytest.raises(k2ref.TokenizerError, match="has no tokenizer: .* tiktoken.model") as e:
            use()
        assert "\n" not in str(e.value)


def test_style_for_is_by_default_the_tokenizer_s():
    tokenizer = small_tokenizer()
    assert style_for(tokenizer) is STYLES["k2-thinking"]
    tokenizer.style = "moonlight"
    assert style_for(tokenizer) is STYLES["moonlight"]
    assert style_for(tokenizer, "k2.5") is STYLES["k2.5"]


# The command.

@pytest.mark.parametrize("options, out", [
    ([], "<think>\n"), (["--no-thinking"], ""), (["--preserve-thinking"], "<think>\n")])
def test_the_command_asks_for_a_mode(capsys, options, out):
    assert main(["--style", "k2.6", "--greedy", "--max-tokens", "3", *options, "37+58="]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(out) and ("<think>" in shown) == bool(out)


@pytest.mark.parametrize("options, said", [
    (["--no-thinking"], "thinking=False: k2-thinking always thinks"),
    (["--preserve-thinking"], "preserve_thinking: expected style k2.6, found k2-thinking"),
    (["--style", "k2.7-code", "--no-thinking"], "thinking=False: k2.7-code always thinks"),
    (["--style", "moonlight", "--tools", "calculator"], "tools: the template of moonlight"),
    (["--style", "k3"], "--style: invalid choice: 'k3'"),
    (["--raw", "--no-thinking"], "--raw uses no chat template"),
    (["--raw", "--preserve-thinking"], "--raw uses no chat template"),
])
def test_the_command_refuses_a_mode_that_there_is_not(capsys, options, said):
    assert main([*options, "hi"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_the_command_says_what_it_took_a_checkpoint_for(tmp_path, capsys):
    write(tmp_path, "k25")  # ended by <|im_end|>, and nothing else tells
    options = ["--model", str(tmp_path), "--max-tokens", "2"]
    assert main([*options, "hi"]) == 0
    assert capsys.readouterr().err.startswith(
        "k2ref: the files of the checkpoint leave open whether it is k2.6 or k2.7-code; it is ")
    assert main([*options, "--style", "k2.7-code", "hi"]) == 0
    assert capsys.readouterr().err == ""


def test_a_page_of_an_answer_at_once_names_its_settings(tmp_path, capsys):
    page = tmp_path / "run.html"
    for options, is_instant in ((["--no-thinking"], True), ([], False)):
        assert main(["--style", "k2.6", "--max-tokens", "2", "--show", str(page), *options,
                     "hi"]) == 0
        said = re.search(r"temperature\W+0\.6\b", page.read_text(encoding="utf-8"))
        assert bool(said) == is_instant
