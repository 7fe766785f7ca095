"""Sessions: the same bits after a restore, and the old file or the new one, never a mixture."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import COMPILED
from hypothesis import given, settings
from hypothesis import strategies as st

import k2ref
from k2ref.conversation import session
from k2ref.conversation.chat import Context, chat
from k2ref.conversation.session import SessionError, fingerprint, load, save
from k2ref.streaming import memory
from scripts.checkpoints.small import tiny_config, write_checkpoint

posix = pytest.mark.skipif(os.name != "posix", reason="signals and file rights of POSIX")
MESSAGES = [{"role": "user", "content": "37+58="}, {"role": "assistant", "content": "95 城"}]


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


def filled(model, n=40, dtype="float32", start=0):
    """A context that has read n tokens."""
    context, ids = Context(model, dtype), [(7 * i + start) % 90 for i in range(n)]
    if n:
        k2ref.forward(model, ids, context.cache, last_only=True)
    context.restore(ids)
    return context


def assert_same(a, b):
    """Two contexts hold the same ids and the same rows."""
    assert a.ids == b.ids and a.cache.dtype == b.cache.dtype
    assert a.cache.length == b.cache.length == len(a.ids)
    for x, y in zip(a.cache.rows, b.cache.rows, strict=True):
        assert np.array_equal(x[: a.cache.length], y[: a.cache.length])


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_a_session_comes_back_as_it_was(model, tmp_path, n, dtype):
    context = filled(model, n, dtype)
    save(tmp_path / "s", context, messages=MESSAGES, n_hidden=3)
    restored, state, remark = load(tmp_path / "s", model)
    assert_same(restored, context)
    assert state == {"messages": MESSAGES, "n_hidden": 3} and remark is None
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_restored_conversation_goes_on_with_the_same_bits(model, tmp_path):
    def turn(context):
        tokens = []
        messages = [*first, done.message, {"role": "user", "content": "and 1+1"}]
        events = list(chat(model, messages, context=context, temperature=0, on_token=tokens.append))
        return events, tokens, [token.logprob for token in tokens]

    first = [{"role": "user", "content": "37+58="}]
    context = Context(model)
    done = list(chat(model, first, context=context, temperature=0))[-1]
    save(tmp_path / "s", context)
    restored, _, _ = load(tmp_path / "s", model)
    assert turn(restored) == turn(context)
    if COMPILED:
        fresh = turn(Context(model))
        assert fresh[1:] == turn(load(tmp_path / "s", model)[0])[1:]


def test_a_prompt_that_was_interrupted_is_gone_on_with_from_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr("k2ref.run.CHUNK", 8)
    context, ids = Context(model), k2ref.render(model.tokenizer, MESSAGES[:1])

    def interrupt(done, total):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(context.generate(ids, 5, temperature=0, on_prefill=interrupt))
    save(tmp_path / "s", context)
    restored, _, _ = load(tmp_path / "s", model)
    assert restored.ids == ids[:16] and restored.n_shared(ids) == 16
    assert (list(restored.generate(ids, 5, temperature=0))
            == list(k2ref.generate(model, ids, 5, temperature=0)))


# Files that are no session of this checkpoint: one sentence, and left as they are.

@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "s"
    save(path, filled(model, 20), messages=MESSAGES)
    return path


def refused(path, model, *words):
    before = path.read_bytes()
    for use in (lambda: load(path, model), lambda: save(path, filled(model, 3))):
        with pytest.raises(SessionError) as error:
            use()
        message = str(error.value)
        assert all(word in message for word in (str(path), "expected", "found", *words)), message
        assert "\n" not in message and path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"\n", b"hello", b"k2ref sessio", b"\0" * 5000])
def test_a_file_of_something_else(model, tmp_path, content):
    path = tmp_path / "s"
    path.write_bytes(content)
    refused(path, model, "a session", "a new name")


def test_a_newer_version(model, saved):
    saved.write_bytes(saved.read_bytes().replace(b"session 1 ", b"session 2 ", 1))
    refused(saved, model, "version 1", "version 2", "a newer k2ref")


def test_a_session_of_another_checkpoint(model, saved, tmp_path_factory):
    other = k2ref.load(write_checkpoint(tmp_path_factory.mktemp("other")), threads=1)
    refused(saved, other, "this checkpoint", "one of another", "--model")


@pytest.mark.parametrize("cut", [15, 40, 1000, -5000, -1])
def test_a_session_that_was_cut_short(model, saved, cut):
    whole = saved.read_bytes()
    saved.write_bytes(whole[:cut])
    with pytest.raises(SessionError, match="damaged: expected .* found .*left as it is"):
        load(saved, model)


def test_a_session_with_more_behind_it(model, saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(SessionError, match=r"damaged: expected \d+ bytes of cache, found \d+"):
        load(saved, model)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model whose session is small, and the bytes of one."""
    place = tmp_path_factory.mktemp("small")
    values = tiny_config()
    values.update(num_hidden_layers=2)
    model = k2ref.load(write_checkpoint(place / "model", values), threads=1)
    save(place / "s", filled(model, 5), messages=MESSAGES)
    return model, place / "flipped", (place / "s").read_bytes()


@settings(max_examples=300)
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(small, data):
    model, path, whole = small
    # Half of them in the header, which is what the code reads in detail.
    end = data.draw(st.sampled_from([60, 600, len(whole)]))
    at = data.draw(st.integers(0, end - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    with pytest.raises(SessionError):
        load(path, model)


def test_a_session_of_other_kernels_keeps_the_words_and_not_the_numbers(model, saved, monkeypatch):
    monkeypatch.setattr(session.ops, "kernels_name", lambda: "abacus")
    context, state, remark = load(saved, model)
    assert context.ids == [] and state["messages"] == MESSAGES
    assert "will be computed again with abacus" in remark


def test_a_session_that_needs_more_memory_than_there_is(model, saved, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(ValueError, match="KVCache: 20 tokens in float32 take"):
        load(saved, model)


def test_a_session_that_is_not_there(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere", model)


def test_the_fingerprint_is_that_of_config_and_weights(tmp_path):
    def of(directory):
        return fingerprint(k2ref.load(directory, threads=1))

    first = write_checkpoint(tmp_path / "a")
    shutil.copytree(first, tmp_path / "moved")
    assert of(first) == of(tmp_path / "moved") == of(first)
    assert of(write_checkpoint(tmp_path / "seed", seed=1)) != of(first)
    config = json.loads((first / "config.json").read_text())
    config["rope_theta"] = 10000.0
    (tmp_path / "moved" / "config.json").write_text(json.dumps(config))
    assert of(tmp_path / "moved") != of(first)


def test_large_shards_are_sampled(tmp_path, monkeypatch):
    directory = write_checkpoint(tmp_path / "a")
    monkeypatch.setattr(session, "SAMPLED_FROM", 0)
    before = fingerprint(k2ref.load(directory, threads=1))
    shard = next(directory.glob("*.safetensors"))
    with open(shard, "r+b") as file:  # the last byte is in a sample
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert fingerprint(k2ref.load(directory, threads=1)) != before


# Right checksums around wrong content: somebody else may have written it.

def written(path, header, rows=b"", **first):
    """Write a session with this header, a dict or bytes; return its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    line = session.FIRST_LINE % (1, first.get("n", len(text)), zlib.crc32(text))
    path.write_bytes(line + text + rows)
    return path.read_bytes()


@pytest.fixture(scope="module")
def forge(model, tmp_path_factory):
    """Give `forge(path, **changes)`: a whole session of five tokens, but for the changes."""
    whole_at = tmp_path_factory.mktemp("whole") / "s"
    save(whole_at, filled(model, 5), messages=MESSAGES)
    whole = whole_at.read_bytes()
    first = len(session.FIRST_LINE % (1, 0, 0))
    n_header = int(whole[:first].split()[3])
    header, rows = json.loads(whole[first:first + n_header]), whole[first + n_header:]

    def make(path, **changes):
        changed = {name: value for name, value in {**header, **changes}.items() if value != GONE}
        return written(path, changed, rows)

    return make


GONE = object()
WRONG = [
    *[{"messages": value} for value in (
        None, [5], {}, "x", 1, [None], [[]], [{}], [{"role": 5}], [{"role": ""}],
        [{"role": "user", "content": 5}], [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": [{"type": "image"}]}], [{"role": "user", "name": 3}],
        [{"role": "tool", "content": "x"}], [{"role": "tool", "tool_call_id": []}],
        [{"role": "assistant", "tool_calls": 5}], [{"role": "assistant", "tool_calls": [5]}],
        [{"role": "assistant", "tool_calls": [{"id": 1, "function": {}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"arguments": 5}}]}],
        [{"role": "assistant", "reasoning_content": 7}],
        [{"role": "assistant", "content": "and", "partial": True}])],
    *[{"n_hidden": value} for value in ("x", -1, True, 1.5, None, [], 1 << 60, 10 ** 4000)],
    *[{"ids": value} for value in (
        None, {}, "12345", [0.5] * 5, [True] * 5, [-1] * 5, [1 << 40] * 5, [None] * 5, [1] * 4,
        [1] * 6, [], [[1]] * 5)],
    *[{"rows_crc32": value} for value in (
        None, {}, [], ["0", "0"], [1.0, 2.0], [True, False], [-1, 0], [1 << 32, 0], [1], [0, 0])],
    *[{"kernels": value} for value in (
        None, 5, [], "", "x" * 21, "a b", "\x1b[2J", "a\nb", "\u202e")],
    *[{"dtype": value} for value in (None, [], {}, "float64", 32, "bf16")],
    *[{"checkpoint": value} for value in (None, 5, [], {}, "", "0" * 64)],
    *[{name: GONE} for name in ("checkpoint", "kernels", "dtype", "ids", "rows_crc32")],
]


def refused_in_one_sentence(path, model):
    before = path.read_bytes()
    for use in (lambda: load(path, model), lambda: save(path, filled(model, 3))):
        with pytest.raises(SessionError) as error:
            use()
        message = str(error.value)
        assert str(path) in message and len(message) < 1000 and message.isprintable(), message
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("changes", WRONG, ids=lambda changes: repr(changes)[:60])
def test_a_right_checksum_does_not_make_content_right(model, forge, tmp_path, changes):
    forge(tmp_path / "s", **changes)
    refused_in_one_sentence(tmp_path / "s", model)


@pytest.mark.parametrize("header", [
    b"", b"null", b"[]", b"5", b"{", b"{}", b"[" * 2000, b'{"a":' * 1000 + b"1" + b"}" * 1000,
    b'{"ids": [], "ids": []}', b'{"x": NaN}', b"\xff", b'"' + b"x" * 1000 + b'"',
    b"9" * 5000])
def test_a_header_that_is_none(model, tmp_path, header):
    written(tmp_path / "s", header)
    refused_in_one_sentence(tmp_path / "s", model)


def test_what_the_words_may_be(model, forge, tmp_path):
    """Sessions without words, with parts, and with names of somebody's own are sessions."""
    for changes in ({"messages": GONE}, {"messages": []}, {"mine": [1, None]}, {"n_hidden": 7},
                    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}):
        forge(tmp_path / "s", **changes)
        restored, state, _ = load(tmp_path / "s", model)
        assert len(restored.ids) == 5
        assert all(state.get(k) == v for k, v in changes.items() if v is not GONE)


@given(st.data())
def test_no_json_in_a_header_is_a_traceback(model, forge, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "s"
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False,
                                                              allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["role", "content", "tool_calls", "id", "function", "arguments",
                             "name", "x"]), inner, max_size=3))
    name = data.draw(st.sampled_from(["messages", "ids", "n_hidden", "rows_crc32", "kernels",
                                      "dtype", "checkpoint"]))
    value = data.draw(st.lists(values, max_size=3) if name == "messages" else values)
    forge(path, **{name: value})
    try:
        _, state, _ = load(path, model)
    except SessionError as error:
        assert "\n" not in str(error)
    else:
        agent = k2ref.Agent(model, messages=state["messages"])
        agent._render()  # so that the next question can be asked


def test_no_conversation_is_saved_that_could_not_be_loaded(model, tmp_path):
    deep = []
    for _ in range(100):
        deep = [deep]
    for state in ({"x": float("nan")}, {"x": deep}):
        with pytest.raises(SessionError, match="expected a JSON text"):
            save(tmp_path / "s", filled(model, 1), **state)
    assert os.listdir(tmp_path) == []


@posix
@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_a_session_that_is_no_file_is_refused_at_once(model, tmp_path, kind):
    path = {"pipe": tmp_path / "s", "directory": tmp_path, "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    for use in (lambda: load(path, model), lambda: save(path, filled(model, 1))):
        with pytest.raises(SessionError, match=f"expected a regular file, found a {kind}"):
            use()


@pytest.mark.parametrize("size", [1, 14, 15, 44, 45, 46, 600, -1])
def test_a_session_that_was_cut_short_is_not_saved_over(model, forge, tmp_path, size):
    path = tmp_path / "s"
    whole = forge(path)
    path.write_bytes(whole[:size])
    refused_in_one_sentence(path, model)


def test_a_session_is_read_from_one_file_whoever_saves_it_meanwhile(model, saved, monkeypatch):
    """What replaces the file while its rows are read is another file."""
    inner = session._read_into

    def replaced(*args):
        save(saved, filled(model, 20, start=1), messages=[])
        return inner(*args)

    monkeypatch.setattr(session, "_read_into", replaced)
    assert_same(load(saved, model)[0], filled(model, 20))


# Interruptions of a save.

def interrupted_save(path, model, **patches):
    """Save with some call of the system failing; the old session must be whole."""
    with pytest.MonkeyPatch.context() as patch:
        for name, replacement in patches.items():
            patch.setattr(session.os, name, replacement)
        with pytest.raises((OSError, KeyboardInterrupt)) as error:
            save(path, filled(model, 50, start=1), messages=[])
    restored, state, _ = load(path, model)
    assert_same(restored, filled(model, 20))
    assert state == {"messages": MESSAGES}
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return error.value


def raising(error):
    def call(*args, **kwargs):
        raise error
    return call


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_save_that_fails_leaves_the_old_session(model, saved, call, kind):
    error = kind(errno.ENOSPC, "No space left on device")
    assert interrupted_save(saved, model, **{call: raising(error)}) is error
    assert not isinstance(error, OSError) or error.filename == str(saved)


def test_a_directory_that_cannot_be_synced_is_no_failure(model, saved, monkeypatch):
    fsync, n_calls = os.fsync, []

    def only_once(handle):
        n_calls.append(handle)
        return fsync(handle) if len(n_calls) == 1 else raising(OSError(errno.EINVAL, "no"))()

    monkeypatch.setattr(session.os, "fsync", only_once)
    save(saved, filled(model, 50), messages=[])
    assert len(n_calls) == 2 and load(saved, model)[1] == {"messages": []}


FULL_DISK = """
import resource, signal, sys
sys.path[:0] = {paths}
import conftest, k2ref, test_session
from k2ref.conversation import session
model = k2ref.load(threads=1)
context = test_session.filled(model, 2000, start=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    session.save({path!r}, context, messages=[])
except OSError as error:
    print(error.strerror)
"""
ROOT = Path(__file__).parents[2]


def child(text, path, **options):
    """Start a process that runs the text with a session's path in it."""
    program = text.format(paths=[str(ROOT), str(ROOT / "tests"), os.path.dirname(__file__)],
                          path=str(path))
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                            **options)


@posix
def test_a_disk_that_is_full_in_the_middle_leaves_the_old_session(model, saved):
    """A limit on the size of files fails a write as a full disk does, after half of it."""
    out, _ = child(FULL_DISK, saved).communicate(timeout=300)
    assert out == "File too large\n"
    restored, state, _ = load(saved, model)
    assert_same(restored, filled(model, 20))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@posix
def test_a_read_only_directory_is_an_error_and_the_session_stays(model):
    """As somebody else than root, whom no right stops."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        path = Path(place) / "s"
        save(path, filled(model, 20), messages=MESSAGES)
        before = path.read_bytes()
        os.chmod(place, 0o555)
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(65534)
            with pytest.raises(PermissionError):
                save(path, filled(model, 3), messages=[])
        finally:
            if is_root:
                os.seteuid(0)
            os.chmod(place, 0o755)
        assert path.read_bytes() == before and os.listdir(place) == ["s"]


ENDLESS = """
import sys
sys.path[:0] = {paths}
import k2ref
from k2ref.conversation import session
model = k2ref.load(threads=1)
contexts = [session.load({path!r}[:-len("alone/s")] + name, model)[0] for name in "01"]
n = 0
while True:
    session.save({path!r}, contexts[n % 2], messages=[], n_hidden=n)
    n += 1
    print(n, flush=True)
"""


@pytest.mark.thorough
@posix
def test_kill_9_during_a_save_leaves_a_whole_session(model, tmp_path):
    expected = [filled(model, n, start=n) for n in (2000, 3000)]
    for i in range(2):
        save(tmp_path / str(i), expected[i], messages=[])
    alone = tmp_path / "alone"
    alone.mkdir()
    path, left_behind = alone / "s", 0
    for i in range(6):
        process = child(ENDLESS, path)
        assert process.stdout.readline() == "1\n"
        time.sleep(0.002 + 0.0037 * i)  # somewhere in one of the saves that follow
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
        restored, state, _ = load(path, model)
        assert_same(restored, expected[state["n_hidden"] % 2])
        left_behind += len(os.listdir(alone)) - 1
    # What a killed process has left is cleared away by the next save.
    (alone / "s.123.partial").write_bytes(b"half")
    save(path, expected[0], messages=[])
    assert os.listdir(alone) == ["s"] and left_behind <= 6


@posix
def test_a_link_stays_a_link(model, saved, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(saved)
    save(link, filled(model, 7), messages=[])
    assert link.is_symlink() and len(load(saved, model)[0].ids) == 7
