"""The command: what it prints in a pipe, what its options do, and how it takes mistakes."""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from command_line import command, environment, line, run

import k2ref
from k2ref.cli.main import main

SUM = "37+58="
TINY = Path(k2ref.__file__).parent / "tiny"
SHARD = next(TINY.glob("*.safetensors")).name


@pytest.fixture(scope="module")
def model():
    return k2ref.load()


@pytest.fixture(scope="module")
def answered(model):
    """The library's own greedy answer to SUM."""
    ids = k2ref.render(model.tokenizer, [{"role": "user", "content": SUM}])
    return k2ref.parse(model.tokenizer, list(k2ref.generate(model, ids, temperature=0)))


@pytest.fixture(scope="module")
def plain_output():
    return run("--greedy", SUM)


def test_a_pipe_gets_the_thinking_and_the_answer_and_no_escapes(plain_output, answered):
    out, err = plain_output
    assert out == f"<think>\n{answered.thinking}\n</think>\n\n{answered.content}\n"
    assert answered.thinking and answered.content and "\x1b" not in out and err == ""


def test_the_prompt_may_come_through_a_pipe(plain_output):
    assert run("--greedy", stdin=SUM.encode() + b"\n") == plain_output


def test_hide_thinking_shows_the_answer_only(answered, capsys):
    assert main(["--greedy", "--hide-thinking", SUM]) == 0
    assert capsys.readouterr() == (answered.content + "\n", "")


def test_max_tokens_counts_the_thinking(model, capsys):
    assert main(["--greedy", "--max-tokens", "4", SUM]) == 0
    ids = k2ref.render(model.tokenizer, [{"role": "user", "content": SUM}])
    reply = k2ref.parse(model.tokenizer, list(k2ref.generate(model, ids, 4, temperature=0)))
    assert capsys.readouterr().out == f"<think>\n{reply.thinking}\n"


def test_raw_continues_the_text_as_it_is(model, capsys):
    text = "<|im_user|>user<|im_middle|>3+4=<|im_end|><|im_assistant|>assistant<|im_middle|>"
    assert main(["--raw", "--greedy", "--max-tokens", "9", text]) == 0
    ids = model.tokenizer.encode(text, allow_special=True)
    assert ids[0] == model.tokenizer.special_id("<|im_user|>")
    expected = model.tokenizer.decode(list(k2ref.generate(model, ids, 9, temperature=0)))
    assert capsys.readouterr().out == line(expected)


def test_a_system_message_is_part_of_the_prompt(model, capsys):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SUM}]
    ids = k2ref.render(model.tokenizer, messages)
    assert main(["--greedy", "--stats", "--max-tokens", "1", "--system", "Be brief.", SUM]) == 0
    assert f"prompt   {len(ids)} tokens, " in capsys.readouterr().err


@pytest.mark.parametrize("options", [
    ["--temperature", "2"], ["--top-p", "0.9"], ["--top-k", "7"], ["--min-p", "0.1"],
])
def test_settings_and_seed_reach_the_sampler(model, capsys, options):
    name, value = options[0].removeprefix("--").replace("-", "_"), float(options[1])
    settings = {"temperature": 2.0, name: int(value) if name == "top_k" else value}
    temperature = [] if name == "temperature" else ["--temperature", "2"]
    ids = model.tokenizer.encode("1+")
    expected = list(k2ref.generate(model, ids, 12, seed=5, **settings))
    args = ["--raw", "--seed", "5", "--max-tokens", "12", *temperature, *options, "1+"]
    assert main(args) == 0
    assert capsys.readouterr().out == line(model.tokenizer.decode(expected))


def test_stats_are_four_lines_on_standard_error(model, capsys):
    assert main(["--greedy", "--stats", "--threads", "1", SUM]) == 0
    out, err = capsys.readouterr()
    assert "tokens/s" not in out
    prompt, reply, weights, memory = err.splitlines()
    assert re.fullmatch(r"prompt   \d+ tokens, [\d.]+ tokens/s", prompt)
    assert re.fullmatch(r"reply    \d+ tokens, [\d.]+ tokens/s, ended by stop", reply)
    assert weights == (f"weights  {model.config.n_bytes_per_token / 1e6:.1f} MB read for each "
                       "token of the reply")
    assert re.match(r"memory   [\d.]+ [MG]B at most", memory)


def test_version_names_the_kernels_in_use(capsys):
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out == f"k2ref {k2ref.__version__} (kernels: {k2ref.ops.kernels_name()})\n"
    assert run("--version", K2REF_KERNELS="numpy")[0].endswith("(kernels: numpy)\n")


def test_help_names_every_option_and_shows_examples(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for option in ("model", "system", "max-tokens", "temperature", "top-p", "top-k", "min-p",
                   "seed", "greedy", "threads", "hide-thinking", "raw", "stats", "version"):
        assert f"--{option}" in out
    assert "K2REF_MODEL" in out and "\nexamples:\n" in out


def test_help_and_mistakes_read_the_same_with_every_python(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # since 3.14 argparse follows it
    assert main(["--help"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["--cache", "bf15", "hi"]) == 2  # since 3.15 it guesses what was meant
    assert capsys.readouterr().err == ("k2ref: argument --cache: invalid choice: 'bf15' (choose "
                                       "from float32, bf16) (--help lists the options)\n")


def test_the_model_directory_may_come_from_the_environment(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("K2REF_MODEL", str(tmp_path / "nowhere"))
    assert main(["hello"]) == 2
    assert "nowhere" in capsys.readouterr().err
    monkeypatch.setenv("K2REF_MODEL", "")  # empty is unset
    assert main(["--greedy", "--max-tokens", "1", SUM]) == 0


# Mistakes: one line on standard error, status 2, nothing on standard output.


def complaint(capsys, *args):
    """The one line that a wrong use gets."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("k2ref: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("args, expected", [
    (["--nonsense", "x"], "--nonsense"),
    (["--temp", "1", "x"], "--temp"),  # no abbreviations: a script must not change its meaning
    (["--seed"], "--seed"),
    (["--seed", "x", "hi"], "--seed: expected a whole number >= 0, found 'x'"),
    (["--seed", "-1", "hi"], "--seed"),
    (["--max-tokens", "0", "hi"], "--max-tokens: expected a whole number >= 1, found '0'"),
    (["--threads", "0", "hi"], "--threads: expected a whole number >= 1, found '0'"),
    (["--top-k", "1.5", "hi"], "--top-k: expected a whole number >= 0, found '1.5'"),
    (["--temperature", "warm", "hi"], "--temperature: invalid float value: 'warm'"),
    (["--temperature", "-1", "hi"], "temperature must be a number >= 0 (0 is greedy), found -1.0"),
    (["--temperature", "nan", "hi"], "temperature must be"),
    (["--top-p", "0", "hi"], "top_p must be above 0 and at most 1 (1 is off), found 0.0"),
    (["--min-p", "2", "hi"], "min_p must be from 0 (off) to 1, found 2.0"),
    (["--greedy", "--temperature", "1", "hi"], "not allowed with"),
    (["--raw", "--system", "s", "hi"], "--raw uses no chat template"),
    (["--raw", "--hide-thinking", "hi"], "--raw uses no chat template"),
    (["two", "words"], "words"),
    ([""], "the prompt is empty"),
    (["--raw", ""], "the prompt is empty"),
    (["\udcff"], "the prompt is not valid UTF-8 at character 0"),
    (["--system", "ab\udc80", "hi"], "--system is not valid UTF-8 at character 2"),
])
def test_wrong_options_are_one_sentence(capsys, args, expected):
    assert expected in complaint(capsys, *args)


def test_wrong_settings_are_found_before_the_checkpoint_is_opened(capsys, tmp_path):
    line = complaint(capsys, "--model", str(tmp_path / "nowhere"), "--top-p", "0", "hi")
    assert "top_p" in line and "nowhere" not in line


def embedded_copy(tmp_path, without=None, **replaced):
    """A directory with the embedded model's files, one left out or some replaced."""
    for file in TINY.iterdir():
        if file.suffix in (".json", ".safetensors", ".model") and file.name != without:
            stem = "shard" if file.name == SHARD else file.stem
            (tmp_path / file.name).write_bytes(replaced.get(stem, file.read_bytes()))
    return str(tmp_path)


def test_a_directory_that_is_not_there(capsys, tmp_path):
    assert "nowhere" in complaint(capsys, "--model", str(tmp_path / "nowhere"), "hi")


def test_a_file_instead_of_a_directory(capsys, tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUF")
    assert "weights.gguf" in complaint(capsys, "--model", str(path), "hi")


@pytest.mark.parametrize("missing", [
    "config.json", SHARD, "tiktoken.model", "tokenizer_config.json"])
def test_a_checkpoint_with_a_missing_file(capsys, tmp_path, missing):
    path = embedded_copy(tmp_path, without=missing)
    assert missing in complaint(capsys, "--model", path, "hi")


@pytest.mark.parametrize("replaced", [
    {"config": b"{"}, {"config": b"[]"}, {"generation_config": b"nonsense"},
    {"tokenizer_config": b"{"}, {"tiktoken": b"nonsense"}, {"shard": b"short"},
    {"generation_config": b'{"temperature": "hot"}'},
    {"generation_config": b'{"eos_token_id": 99999999}'},
])
def test_a_checkpoint_with_a_damaged_file(capsys, tmp_path, replaced):
    complaint(capsys, "--model", embedded_copy(tmp_path, **replaced), "hi")


def test_a_prompt_that_does_not_fit_the_context(capsys, tmp_path):
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 64
    path = embedded_copy(tmp_path, config=json.dumps(config).encode())
    expected = "leaves no room for an answer in the context of 64 (max_position_embeddings)"
    assert expected in complaint(capsys, "--model", path, "1" * 200)


@pytest.mark.parametrize("stdin, expected", [
    (b"", "the prompt is empty"), (b"\n", "the prompt is empty"),
    (b"ab\xff", "not valid UTF-8 at character 2"),
])
def test_a_wrong_prompt_through_a_pipe(stdin, expected):
    done = subprocess.run(command(), input=stdin, capture_output=True, timeout=300,
                          env=environment())
    assert done.returncode == 2 and done.stdout == b""
    assert expected in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero")
@pytest.mark.parametrize("source, expected", [
    (b"", "the prompt is empty"),
    (b"x y " * 250_000, "leaves no room for an answer in the context of 262144"),
    ("/dev/zero", "the prompt has more than 16,000,000 bytes")])
def test_a_prompt_that_no_context_holds_is_refused_at_once(source, expected):
    with (open(source, "rb") if isinstance(source, str) else tempfile.TemporaryFile()) as file:
        if isinstance(source, bytes):
            file.write(source)
            file.seek(0)
        done = subprocess.run(command("--max-tokens", "3"), stdin=file, capture_output=True,
                              timeout=60, env=environment())
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.count(b"\n") == 1
    assert expected in done.stderr.decode()
