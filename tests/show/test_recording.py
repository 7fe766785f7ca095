"""What the command records of a question and its answer: `--trace`, `--trace-only`, `--show`."""

import json
import os

import pytest

import k2ref
from k2ref import trace
from k2ref.cli import dialogue
from k2ref.cli.main import main
from k2ref.trace import Trace

CONTEXT = ["ids", "position", "time_s", "about"]
SUM = "37+58="


@pytest.fixture(scope="module")
def embedded():
    return k2ref.load(threads=1)


def test_the_command_records_prompt_and_reply(embedded, capsys, tmp_path):
    file = tmp_path / "out"  # the name is taken as it is
    assert main(["--greedy", "--max-tokens", "5", "--trace", str(file), SUM]) == 0
    out, err = capsys.readouterr()
    found = trace.load(file)
    prompt = k2ref.render(embedded.tokenizer, [{"role": "user", "content": SUM}])
    tokens = list(k2ref.generate(embedded, prompt, 5, temperature=0))
    about = json.loads(str(found["about"]))
    (reply,) = about["replies"]
    assert reply[:2] == [len(prompt), tokens]
    assert found["ids"].tolist() == prompt + tokens[:len(found["ids"]) - len(prompt)]
    assert len(found["ids"]) == len(prompt) + len(tokens) - (reply[2] == "length")
    assert about["config"]["hidden_size"] == embedded.config.hidden_size
    assert about["k2ref"] == k2ref.__version__ and about["kernels"] == k2ref.ops.kernels_name()
    whole = Trace()
    k2ref.forward(embedded, found["ids"], trace=whole)
    assert list(found) == [*CONTEXT, *whole.arrays]
    rtol = 0 if k2ref.ops.kernels else 1e-4
    assert trace.first_difference(found, whole.arrays, rtol) is None
    n = Trace().n_bytes_per_token(embedded.config)
    assert err.splitlines()[0] == (
        f"k2ref: recording takes {n / 1000:.1f} kB of memory for each token, "
        f"{n * len(prompt) / 1e6:.1f} MB for the prompt of {len(prompt)}")
    assert err.splitlines()[1].startswith(f"k2ref: {file}: {len(found['ids'])} tokens, ")


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_the_command_records_what_is_asked_for(capsys, tmp_path, raw):
    file = str(tmp_path / "a.npz")
    assert main(["--max-tokens", "3", *raw, "--trace", file, "--trace-only", "layers.3.moe.*",
                 "--trace-only", "embed", SUM]) == 0
    found = trace.load(file)
    assert list(found) == [*CONTEXT, "embed", *(f"layers.3.moe.{n}" for n in
                                                ("chosen", "mix", "out"))]
    assert len(found["embed"]) == len(found["ids"])


def test_an_answer_cut_short_is_recorded_as_far_as_it_came(monkeypatch, capsys, tmp_path):
    wrote = dialogue.Stopwatch.wrote

    def ctrl_c(watch, token):
        wrote(watch, token)
        if watch._n == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(dialogue.Stopwatch, "wrote", ctrl_c)
    file = str(tmp_path / "a.npz")
    assert main(["--temperature", "1e300", "--seed", "1", "--trace", file, SUM]) == 130
    found = trace.load(file)
    (reply,) = json.loads(str(found["about"]))["replies"]
    assert reply[2] == "interruption" and len(found["ids"]) == reply[0] + 2


def complaint(capsys, *args):
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("k2ref: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("option", ["--trace", "--show"])
def test_a_file_that_cannot_be_written_is_found_before_the_model_is_opened(
        capsys, tmp_path, option):
    for file, why in ((tmp_path / "no" / "a", "No such file or directory"),
                      (tmp_path, "expected the name of a file")):
        err = complaint(capsys, "--model", "/nowhere", option, str(file), SUM)
        assert str(file) in err and why in err and "nowhere" not in err


@pytest.mark.parametrize("args, expected", [
    (["--trace-only", "x", SUM], "--trace-only chooses what --trace records"),
    (["--trace", "a", "--show", "a", SUM], "--trace and --show need two files"),
    (["--trace", "a", "--session", "s", SUM], "do not go with --session"),
    (["--show", "a", "--session", "s", SUM], "do not go with --session"),
])
def test_wrong_options_are_one_sentence(capsys, tmp_path, monkeypatch, args, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, *args)
    assert os.listdir(tmp_path) == []


def test_a_pattern_that_fits_nothing_is_refused(capsys, tmp_path):
    err = complaint(capsys, "--trace", str(tmp_path / "a"), "--trace-only", "layer.3.*", SUM)
    assert "--trace-only layer.3.*: no stage has such a name; there are embed, " in err


def test_more_than_the_memory_holds_is_refused_before_it_is_computed(
        monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("k2ref.cache.require_memory", lambda *args: None)
    monkeypatch.setattr("k2ref.streaming.memory.available", lambda: 1_000_000)
    monkeypatch.setattr("k2ref.conversation.chat.require_memory", lambda *args: None)
    file = str(tmp_path / "a.npz")
    err = complaint(capsys, "--max-tokens", "100", "--trace", file, SUM)
    assert "and 1.0 MB are available; record less with --trace-only" in err
    assert main(["--max-tokens", "2", "--trace", file, "--trace-only", "*.chosen", SUM]) == 0


def test_a_conversation_on_a_terminal_is_not_recorded(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "need a prompt" in complaint(capsys, "--trace", str(tmp_path / "a"))
