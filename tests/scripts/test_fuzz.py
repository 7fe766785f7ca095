"""The fuzzer can fail: planted faults are counted as what they are, and a seed means its cases."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import k2ref
from k2ref.conversation import history
from scripts.checkpoints.small import tiny_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
fuzz = (pytest.importorskip("scripts.checks.fuzz.run") if sys.platform == "linux" else None)
ROOT = Path(__file__).parents[2]


def swell(where):
    bytearray(2 << 30)


def pass_by(where):
    """Let a ValueError that k2ref does not raise come out of a function of k2ref."""
    code = compile("def careless(): int('x')", fuzz.PACKAGE + "made_up.py", "exec")
    names = {}
    exec(code, names)
    names["careless"]()


def say(text):
    def refuse(where):
        raise k2ref.ChatError(text)

    return refuse


PLANTED = {
    "an accident": (lambda where: {}["key"], "exception", "KeyError", ""),
    "an accident within k2ref": (pass_by, "exception", "ValueError", "made_up.py:careless"),
    "an exit": (lambda where: sys.exit(0), "exception", "SystemExit", ""),
    "the process is gone": (lambda where: os._exit(0), "signal", "exit", ""),
    "a crash": (lambda where: os.kill(os.getpid(), signal.SIGSEGV), "signal", "SIGSEGV", ""),
    "a hang": (lambda where: time.sleep(60), "hang", "", ""),
    "2 GB": (swell, "memory", "", ""),
    "no memory": (lambda where: np.ones(1 << 50), "memory", "MemoryError", ""),
    "escapes in a message": (say("\x1b[31mred"), "wrong",
                             "a message with control characters or lines", ""),
    "two lines": (say("a\nb"), "wrong", "a message with control characters or lines", ""),
    "a message of no end": (say("a" * 9999), "wrong", "a message of no or too many characters", ""),
    "an error of k2ref": (say("messages[0]: expected a dict"), "refused", "ChatError", ""),
    "a ValueError of k2ref": (lambda where: history.keep_turns([], 0), "refused", "ValueError",
                              "history.py:keep_turns"),
    "nothing": (lambda where: "works", "works", "", ""),
}


@pytest.mark.parametrize("name", PLANTED)
def test_an_end_is_counted_as_what_it_is(name, tmp_path):
    work, *expected = PLANTED[name]
    end = fuzz.isolated(work, tmp_path / "case", hang_s=0.3 if name == "a hang" else 60)
    assert list(end[:3]) == expected, end
    assert end.time_s < 30


@pytest.mark.parametrize("logits, traced, expected", [
    (np.nan, 1.0, "logits from which a token was drawn"),
    (np.inf, 1.0, "logits from which a token was drawn"),
    (1.0, np.nan, "intermediates behind finite logits"), (1.0, 1.0, "")])
def test_a_number_that_is_not_finite_is_not_silent(monkeypatch, tmp_path, logits, traced, expected):
    def forward(model, ids, cache, trace):
        trace.begin(ids, 0)
        trace.record("embed", np.full((len(ids), 4), traced, np.float32))
        return np.full((len(ids), 4), logits, np.float32)

    monkeypatch.setattr(k2ref, "forward", forward)
    monkeypatch.setattr(k2ref, "generate", lambda model, ids, **_: iter([1, 2, 3]))
    model = SimpleNamespace(config=k2ref.Config.from_dict(tiny_config()))
    end = fuzz.isolated(lambda where: fuzz.files.compute(model), tmp_path / "case")
    assert (end.outcome, end.type) == (("silent NaN", expected) if expected else ("works", ""))


def test_a_failure_is_made_small_kept_and_fails_again(monkeypatch, tmp_path, capsys):
    def fatal(state, rng):
        state["fatal"] = True

    def trial(state, where):
        if "fatal" in state:
            raise KeyError(where)
        return "works"

    steps = {"fatal": fatal, "idle": lambda state, rng: None}
    kind = fuzz.files.Kind(("base",), steps, lambda base: {}, trial, most=6)
    monkeypatch.setitem(fuzz.KINDS, "planted", kind)
    try:
        assert fuzz.main(["--kind", "planted", "--cases", "20", "--keep", str(tmp_path / "kept"),
                          "--record", str(tmp_path / "record.json")])
        [kept] = (tmp_path / "kept").glob("*/case.json")
        assert [name for name, _ in json.loads(kept.read_text())[2]] == ["fatal"]
        counts = json.loads((tmp_path / "record.json").read_text())["counts"]["planted"]
        assert counts["exception"] > 0 and counts["works"] > 0 and sum(counts.values()) == 20
        capsys.readouterr()
        assert fuzz.main(["--kind", "planted", "--again", str(kept)])
        assert "KeyError" in capsys.readouterr().out
    finally:
        gc.unfreeze()


def test_a_base_that_does_not_work_is_no_base(monkeypatch):
    def trial(state, where):
        raise KeyError

    kind = fuzz.files.Kind(("base",), {}, lambda base: {}, trial)
    monkeypatch.setitem(fuzz.KINDS, "planted", kind)
    try:
        with pytest.raises(SystemExit, match="undamaged"):
            fuzz.main(["--kind", "planted", "--cases", "0"])
    finally:
        gc.unfreeze()


def test_a_seed_means_its_cases_and_their_damage(tmp_path):
    """Two processes with other hash seeds draw the same cases, and damage the same bytes."""
    program = (
        "import hashlib, random, sys; sys.path.insert(0, sys.argv[1])\n"
        "from scripts.checks.fuzz import run as fuzz\n"
        "digest = hashlib.sha256()\n"
        "for number in range(150):\n"
        "    case = fuzz.draw(1, number, ('checkpoint', 'tokenizer', 'tool'))\n"
        "    state = fuzz.KINDS[case.kind].begin(case.base)\n"
        "    for name, seed in case.steps:\n"
        "        fuzz.KINDS[case.kind].steps[name](state, random.Random(seed))\n"
        "    digest.update(repr((case, state)).encode())\n"
        "print(digest.hexdigest(), len({fuzz.draw(1, n) for n in range(150)}))\n")
    said = {subprocess.run([sys.executable, "-c", program, str(ROOT)], check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
                           text=True).stdout for seed in ("1", "2")}
    assert len(said) == 1 and said.pop().split()[1] == "150"
    assert fuzz.draw(1, 7) != fuzz.draw(2, 7)


def test_a_short_run_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "scripts.checks.fuzz.run", "--seed", "7",
                           "--cases", "25"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2].split()[0] == "all"


def test_the_recorded_run_is_of_todays_cases_and_found_nothing():
    record = json.loads((ROOT / "docs/data/fuzz.json").read_text())
    assert record["cases"] >= 10_000 and record["kinds"] == list(fuzz.KINDS)
    digest = hashlib.sha256()
    for number in range(record["cases"]):
        digest.update(repr(fuzz.draw(record["seed"], number)).encode())
    assert digest.hexdigest() == record["drawn"], "record the run again, as chapter 16 says"
    assert sum(sum(counts.values()) for counts in record["counts"].values()) == record["cases"]
    assert not any(counts.get(end) for counts in record["counts"].values() for end in fuzz.BAD)
