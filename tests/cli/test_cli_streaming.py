"""The command on a checkpoint that is streamed, planned or inspected."""

import io
import re
import time

import pytest
from command_line import run

import k2ref
from k2ref.cli import main as cli
from k2ref.cli import terminal
from k2ref.cli.main import main
from k2ref.planning import rates
from k2ref.streaming import memory, stream
from k2ref.streaming.pages import File
from k2ref.trace import Trace
from scripts.checkpoints.small import write_checkpoint

SUM = "37+58="


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def process_of_a_fixed_size(monkeypatch):
    """Let the process itself count for what it is thought to, so that a budget leaves room."""
    monkeypatch.setattr(memory, "own", lambda: stream.OWN)


BUDGET = ["--memory", f"{(stream.OWN + (1 << 26)) / 1e9}"]


@pytest.fixture(scope="module")
def answer():
    return run("--greedy", SUM)[0]


def test_the_answer_is_the_same_with_a_budget(answer, capsys):
    assert main(["--greedy", *BUDGET, SUM]) == 0
    assert capsys.readouterr() == (answer, "")


def test_stats_tell_what_was_streamed(answer, capsys):
    assert main(["--greedy", "--stats", *BUDGET, SUM]) == 0
    out, err = capsys.readouterr()
    total, last = err.splitlines()[-2:]
    assert out == answer
    amount = r"[\d.]+ GB \([\d.]+ a token\)"
    traffic = (rf"(\d+) tokens: {amount} wanted, {amount} in memory(, {amount} read from disk)? at "
               r"[\d.]+ GB/s, [\d.]+ of [\d.]+ s waited")
    n_tokens = re.fullmatch("streamed " + traffic, total)[1]
    assert re.fullmatch("  last   " + traffic, last)[1] == "1"
    counts = [int(re.search(rf"{what} +(\d+) tokens", err)[1]) for what in ("prompt", "reply")]
    assert int(n_tokens) == sum(counts)


def test_stats_without_a_stream_do_not_speak_of_one(capsys):
    assert main(["--greedy", "--stats", "--max-tokens", "2", SUM]) == 0
    assert "streamed" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "x", "nan", "inf", "", "1e400"])
def test_a_budget_that_is_no_number_of_gigabytes(text, capsys):
    assert main(["--memory", text, SUM]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"--memory: expected a number of gigabytes > 0, found {text!r}" in err


def test_a_budget_that_is_too_small_is_one_sentence(capsys):
    assert main(["--memory", "0.001", SUM]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "memory: expected at least" in err and "found 0.0 GB; give more" in err


@pytest.mark.parametrize("agrees", [True, False])
def test_lock_is_refused_with_a_note_and_goes_on(answer, capsys, monkeypatch, agrees):
    calls = []
    monkeypatch.setattr(File, "lock", lambda self, *place: calls.append(place) or agrees)
    assert main(["--greedy", "--lock", *BUDGET, SUM]) == 0
    out, err = capsys.readouterr()
    assert out == answer and calls
    assert err == "" if agrees else err.count("\n") == 1 and "ulimit -l" in err


def wait_for(screen, pattern):
    """Wait until the screen has shown what is expected, or for a minute."""
    end = time.monotonic() + 60
    while not re.search(pattern, screen.getvalue()) and time.monotonic() < end:
        time.sleep(0.01)


def test_loading_shows_a_bar_in_bytes(monkeypatch):
    monkeypatch.setattr(terminal, "WAIT_S", 0.0)
    screen = Screen()
    monkeypatch.setattr(cli.sys, "stderr", screen)
    assert main(["--greedy", "--max-tokens", "1", *BUDGET, SUM]) == 0
    assert re.search(r"loading the model: .*\d+k/[\d.]+M .*B/s\]", screen.getvalue())


def test_reading_the_prompt_shows_the_layer_and_the_disk(monkeypatch):
    monkeypatch.setattr(terminal, "WAIT_S", 0.0)
    monkeypatch.setattr(terminal, "REDRAW_S", 0.01)
    counted = memory.read_from_disk() is not None
    disk = r", [\d.]+ GB from disk at [\d.]+ GB/s" if counted else ""
    screen, pattern = Screen(), r"reading the prompt: .*layer \d/4" + disk
    monkeypatch.setattr(cli.sys, "stderr", screen)
    enter = stream.Stream.enter

    def slowly(self, i):
        enter(self, i)
        if i == 2 and "reading the prompt" in screen.getvalue():
            wait_for(screen, pattern)

    monkeypatch.setattr(stream.Stream, "enter", slowly)
    assert main(["--greedy", "--max-tokens", "1", *BUDGET, SUM]) == 0
    assert re.search(pattern, screen.getvalue())


def test_the_status_of_a_stream_at_rest_and_at_work(tmp_path, monkeypatch):
    model = k2ref.load(write_checkpoint(tmp_path), threads=1, memory=stream.OWN + (1 << 30))
    assert model.stream.status() == "layer 1/3"
    counts = iter([10_000_000_000, 10_500_000_000, 11_000_000_000, 12_000_000_000])
    monkeypatch.setattr(memory, "read_from_disk", lambda: next(counts))
    with model.stream.forward_pass(1, Trace()):
        model.stream.enter(1)
        assert model.stream.status().startswith("layer 2/3, 0.5 GB from disk at ")
    assert model.stream.status() == "layer 2/3"


def test_plan_is_a_report_and_reads_no_weights(capsys, monkeypatch, tmp_path):
    config = write_checkpoint(tmp_path) / "config.json"
    for file in tmp_path.iterdir():
        if file != config:
            file.unlink()
    asked = []
    speed = rates.Rates(6e10, {"bf16": 5e10, "int4": 4e10}, None, 1e-4, 3)
    monkeypatch.setattr(rates, "measure", lambda *args: asked.append(args) or speed)
    args = ["--plan", "--model", str(tmp_path), "--memory", "1.5", "--threads", "3"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"{tmp_path}\nthe plan for 1.50 GB of memory")
    assert "tokens/s" in out and "KV cache in float32" in out
    assert asked == [(tmp_path, 3, ["bf16", "int4"])]
    assert main([*args, "--cache", "bf16"]) == 0
    assert "KV cache in bf16" in capsys.readouterr().out
    monkeypatch.setenv("K2REF_MODEL", str(tmp_path / "nowhere"))
    assert main(["--plan"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_inspect_is_a_report(capsys, tmp_path):
    path = write_checkpoint(tmp_path)
    assert main(["--inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "nothing is missing, nothing is extra" in out
    (path / "model-00002-of-000002.safetensors").unlink()
    assert main(["--inspect", str(path)]) == 2
    assert "amiss: 1 files that cannot be used" in capsys.readouterr().out
    assert main(["--inspect", str(path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "nowhere" in err


def test_help_names_these_options(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--memory GB", "--lock", "--plan", "--inspect DIR"):
        assert option in out
