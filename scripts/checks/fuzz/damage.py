"""What the kinds of `run.py` have in common: how a case is described, judged, and damaged.

Damage is drawn from a seed and does not look at what it hits: a value in nested lists and dicts,
the same in a JSON text, where it may be written as no Python value can be, or bytes.
"""

import dis
import json
import linecache
import os
import traceback
import unicodedata
from pathlib import Path
from typing import NamedTuple

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # before numpy starts what no fork keeps
    os.environ.setdefault(name, "1")

import k2ref  # noqa: E402
from k2ref.cli.options import UsageError  # noqa: E402

OWN = (k2ref.ConfigError, k2ref.CheckpointError, k2ref.TokenizerError, k2ref.ChatError,
       k2ref.SessionError, k2ref.ToolError, UsageError)
MAX_SENTENCE = 2000  # characters of a message; a line that is longer is not read
# What a field may hold, as it is written in a file. None of it is short of a story.
LITERALS = (
    "null", "true", "false", "0", "-1", "1", "2", "3", "-0.0", "1.5", "1e5", "100000", "4294967296",
    "9007199254740992", "9223372036854775807", "18446744073709551616", "1e-300", "1e160", "1e308",
    "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "[]", "{}", "[[2]]", "[null]", '{"a":{}}',
    '""', '"x"', '"4"', '"\\u001b]0;x\\u0007\\u202e"', '"\\ud800"', '"a\\nb"', "9" * 400,
    "9" * 5000, "[" * 900 + "]" * 900, "[" * 100_000, '"' + "A" * 100_000 + '"', '["re:(a+)+$"]',
    '["re:(.*.*)*x", "re:("]', '[{"role":"user","content":5}]', '[{"role":"assistant"}]',
)  # fmt: skip
NAMES = (
    "transform_config", "sparsity_config", "format", "output_activations", "input_activations",
    "zero_point", "text_config", "rope_parameters", "partial", "eos_token_id", "__metadata__",
    "n_hidden", "tool_calls", "messages", "weight_map", "\x1b[31m", "\u202e", "\ud800", "",
    "a" * 9999,
)  # fmt: skip
MARK = "\0mark"
PACKAGE = str(Path(k2ref.__file__).parent) + os.sep


class Failure(Exception):
    """Say that a case came to a bad end without an exception: how, and what was seen."""

    def __init__(self, outcome, what, detail=""):
        super().__init__(f"{what}: {detail}" if detail else what)
        self.outcome, self.what = outcome, what


class Kind(NamedTuple):
    """Describe a kind of case: what it may begin with, what may happen to it, and the trial."""

    bases: tuple[str, ...]
    steps: dict  # name: function(state, rng)
    begin: object  # base -> state
    trial: object  # (state, where) -> "works" or "refused"
    most: int = 4  # steps in a case


def is_clean(text):
    """Tell whether a terminal shows a text as it is: nothing obeyed, nothing turned round."""
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
                   or unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "LRI", "RLI",
                                                       "FSI") for c in text)


def sentence(text):
    """Hold a message to being one line of bounded length that can be printed."""
    text = str(text)
    if not text or len(text) > MAX_SENTENCE:
        raise Failure("wrong", "a message of no or too many characters",
                      f"{len(text)}, {text!r:.99}")
    if not is_clean(text):
        raise Failure("wrong", "a message with control characters or lines", f"{text!r:.300}")


class End(NamedTuple):
    """Say how a case ended; the first three tell one kind of failure from another."""

    outcome: str
    type: str = ""
    frame: str = ""  # the innermost function of k2ref
    message: str = ""
    n_bytes: int = 0
    time_s: float = 0.0


def judge(error):
    """Say how a case ended that ended with an exception."""
    frame, is_raised = _innermost(error)
    message = "".join(traceback.format_exception(error))[-3000:]
    if isinstance(error, Failure):
        return End(error.outcome, error.what, _innermost(error.__context__ or error)[0], message)
    if isinstance(error, MemoryError):
        return End("memory", "MemoryError", frame, message)  # NumPy has one of its own
    # A plain ValueError is k2ref's own where k2ref raises it, and an accident where it passes by.
    if isinstance(error, OWN) or type(error) is ValueError and is_raised:
        try:
            sentence(error)
        except Failure as failure:
            return End(failure.outcome, failure.what, frame, message)
        return End("refused", type(error).__name__, frame, str(error))
    return End("exception", type(error).__name__, frame, message)


def _innermost(error):
    """Name the innermost function of k2ref, and tell whether a `raise` of its own ended it."""
    frame, is_raised = "", False
    for one, line in traceback.walk_tb(error.__traceback__):
        code = one.f_code
        is_raised = False
        if code.co_filename.startswith(PACKAGE):
            frame = f"{Path(code.co_filename).name}:{code.co_name}"
            at = error.__traceback__
            while at.tb_frame is not one:
                at = at.tb_next
            is_raised = dis.opname[code.co_code[at.tb_lasti]] == "RAISE_VARARGS"
        elif code.co_filename.endswith(".pyx"):
            frame = f"{Path(code.co_filename).name}:{code.co_name}"
            source = linecache.getline(PACKAGE + Path(code.co_filename).name, line)
            is_raised = source.strip().startswith("raise ")
    return frame, is_raised


def damage(value, rng, hostile, twice=None):
    """Change one place in nested lists and dicts, and return the whole."""
    if not isinstance(value, dict | list) or not value:
        return hostile(rng)
    spot = value
    while True:
        key = rng.choice(list(spot)) if isinstance(spot, dict) else rng.randrange(len(spot))
        if not isinstance(spot[key], dict | list) or not spot[key] or rng.random() < 0.4:
            break
        spot = spot[key]
    action = rng.choice(("put", "put", "put", "near", "remove", "add", "rename", "swap", "twice"))
    if action == "near" and type(spot[key]) in (int, float):
        n = spot[key]
        spot[key] = rng.choice((n + 1, n - 1, 2 * n, -n, n // 2, [n], str(n), bool(n)))
    elif action == "remove":
        del spot[key]
    elif action == "add" and isinstance(spot, list):
        spot.insert(key, rng.choice((spot[key], hostile(rng))))
    elif action == "add":
        spot[rng.choice(NAMES)] = hostile(rng)
    elif action == "rename" and isinstance(spot, dict):
        spot[rng.choice(NAMES)] = spot.pop(key)
    elif action == "swap":
        other = rng.choice(list(spot)) if isinstance(spot, dict) else rng.randrange(len(spot))
        spot[key], spot[other] = spot[other], spot[key]
    elif action == "twice" and isinstance(spot, dict) and twice:
        spot[twice] = spot[key]
        twice.key = key
    else:
        spot[key] = hostile(rng)
    return value


class _Twice(str):
    """Stand for a key that comes a second time."""

    key = ""


def damage_json(text, rng):
    """Change one place in a JSON text; what is no JSON is changed byte by byte."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return damage_bytes(text, rng)
    twice = _Twice("\0twice")
    value = damage(value, rng, lambda rng: MARK, twice)
    text = json.dumps(value)
    for mark, literal in ((MARK, rng.choice(LITERALS)), (twice, json.dumps(twice.key))):
        text = text.replace(json.dumps(mark), literal)
    return text.encode()


def damage_bytes(data, rng):
    """Change bytes: a few of them, or a piece that is lost, repeated, cut off or added."""
    data = bytearray(data)
    a, n = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 100, 4096))
    action = rng.choice(("flip", "write", "lose", "repeat", "cut", "append"))
    if action == "flip" and data:
        for _ in range(min(n, 100)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif action == "write":
        data[a:a + n] = rng.choice((b"\0", b"\xff", b"\x7f", b"\n", b'"', b"[", b"\x1b"))[:1] * n
    elif action == "lose":
        del data[a:a + n]
    elif action == "repeat":
        data[a:a] = data[a:a + n]
    elif action == "cut":
        del data[a:]
    else:
        data += rng.randbytes(n)
    return bytes(data)
