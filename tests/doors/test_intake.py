"""Whatever lies in the place of a small file is read within bounds, or refused in one sentence."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref.checkpoint.shards import INDEX
from k2ref.doors import intake
from scripts.checkpoints.small import write_checkpoint

SMALL_FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tiktoken.model",
               INDEX]  # fmt: skip
SHARD = "model-00001-of-000002.safetensors"


class Refused(ValueError):
    """The caller's own error."""


def parse(text):
    return intake.parse_json(text, "it", Refused)


def refusal(text):
    with pytest.raises(Refused) as error:
        parse(text)
    message = str(error.value)
    assert message.startswith("it: expected ") and "found" in message
    assert message.isprintable() and len(message) < 400
    return message


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("sound"), tokenizer=True)
    (path / "generation_config.json").write_text("{}")
    k2ref.load(path)  # it is sound
    return path


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's address is at most 107 bytes
        server.bind(path.name)
        os.chdir(here)


def zeros(path):
    with open(path, "wb") as file:
        file.truncate(1_200_000_000)  # a hole: it takes no disk


def brackets(path):
    path.write_bytes(b"[" + b"[]," * 20_000_000 + b"[]]")


STRANGE = {
    pipe: "a regular file, found a pipe", device: "found a ", listening: "found a socket",
    os.mkdir: "a regular file, found a directory", zeros: "expected ", brackets: "expected ",
}  # fmt: skip
LIMITED = """
import resource, sys, time
import k2ref
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for directory in sys.argv[1:]:
    begin = time.process_time()
    try:
        k2ref.load(directory)
    except ValueError as error:
        print(type(error).__name__, time.process_time() - begin < 5, error)
"""


@pytest.mark.parametrize("make", STRANGE)
def test_what_is_no_small_regular_file_is_refused(sound, tmp_path, make):
    """Each file in its turn, in a child of 2 GB of address space, which is ended where it hangs."""
    names = [*SMALL_FILES, SHARD]
    for name in names:
        shutil.copytree(sound, tmp_path / name)
        (tmp_path / name / name).unlink()
        make(tmp_path / name / name)
    command = [sys.executable, "-c", LIMITED, *(tmp_path / name for name in names)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    for name, line in zip(names, child.stdout.splitlines(), strict=True):
        error, is_quick, said = line.split(" ", 2)
        assert error in ("ConfigError", "TokenizerError", "CheckpointError")
        assert STRANGE[make] in said and name in said and len(said) < 500
        assert is_quick == "True"


def test_a_size_limit_is_in_the_message(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345678")
    assert intake.read_bytes(file, 8, Refused) == b"12345678"
    with pytest.raises(Refused, match="at most 7 bytes, found 8"):
        intake.read_bytes(file, 7, Refused)


def test_a_file_that_grows_while_it_is_read_is_bounded(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"1")

    def status(fd, real=os.fstat):
        found = real(fd)
        file.write_bytes(b"1" * 5_000_000)
        return found

    monkeypatch.setattr(os, "fstat", status)
    with pytest.raises(Refused, match="at most 3000000 bytes"):
        intake.read_bytes(file, 3_000_000, Refused)


def test_a_file_that_becomes_a_pipe_before_it_is_opened_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda path, real=os.stat: real(__file__))
    with pytest.raises(Refused, match="found a pipe"):
        intake.read_bytes(tmp_path / "pipe", 8, Refused)


def test_links_to_files_are_files_and_dangling_ones_are_named(tmp_path):
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(Refused, match="link: expected a file, found none to read"):
        intake.read_text(tmp_path / "link", 8, Refused)
    (tmp_path / "file").write_text("ä")
    assert intake.read_text(tmp_path / "link", 8, Refused) == "ä"


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "", "x" * 5000])
def test_names_that_no_file_can_have_are_refused(path):
    with pytest.raises(Refused, match="found none to read"):
        intake.read_bytes(path, 8, Refused)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "nothing"), (b" \n", "nothing"), (b"\0" * 99, "zeros"), (b"{", "JSONDecodeError"),
        ("\ufeff{}".encode(), "byte order mark"), ("{}".encode("utf-16"), "byte order mark"),
        (b'{"a": "\xe9"}', "0xe9 at byte 7"), ('"\ud800"', "0xed at byte 1"),
        (b'{"a": NaN}', "found NaN"), (b"[-Infinity]", "found -Infinity"), (b"1e999", "1e999"),
        (b"[" * 10**5, "64 levels"), (b'{"a":' * 65 + b"1" + b"}" * 65, "64 levels"),
        (b"[" + b"0," * 3_000_001 + b"0]", "brackets and commas"), (b'"' * 6_000_001, "quotes"),
        (b'["' + rb"\\" * 1_500_001 + b'"]', "escapes"),
        (b'{"a": 1, "a": 2}', "'a' 2 times"), (b'[[{"b": {"c": 1, "c": 2}}]]', "'c' 2 times"),
        (b'{"a": 1, "\\u0061": 2}', "'a' 2 times"), (b"9" * 5000, "4300"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "HTML"), (b"\n<html>\xff", "HTML"),
    ],
)  # fmt: skip
def test_what_is_no_sound_json_is_refused(text, words):
    assert words in refusal(text)


@pytest.mark.parametrize("text", [b"[" * 64 + b"]" * 64, b'{"a":' * 64 + b"1" + b"}" * 64])
def test_as_many_levels_as_allowed_are_read(text):
    assert parse(text) == json.loads(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4) | st.text('[]{}",\\:', max_size=40),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text('a[{"\\:é', max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(values, st.booleans(), st.sampled_from([0, 1, 30, 60, 61, 62, 63, 64]), st.booleans())
def test_sound_json_is_read_as_pythons_own_reads_it(value, ascii, depth, is_list):
    """Brackets, quotes and colons in strings are no structure."""
    for level in range(depth):
        value = ["{[", value] if is_list or level % 2 else {"[": value}
    try:
        text = json.dumps(value, ensure_ascii=ascii).encode()
    except UnicodeEncodeError:  # a lone surrogate, which is no UTF-8
        return
    if levels(value) <= 64:
        assert parse(text) == value
    else:
        assert "64 levels" in refusal(text)


def levels(value):
    if not isinstance(value, (list, dict)):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, inner), default=0)


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_bytes_are_parsed_or_refused(text):
    try:
        parse(text)
    except Refused as error:
        assert str(error).isprintable()


@given(st.recursive(st.text() | st.integers() | st.floats(), st.lists) | st.just(10**5000))
def test_what_is_quoted_is_short_and_printable(value):
    assert len(intake.quoted(value)) <= 200 and intake.quoted(value).isprintable()


def test_a_list_without_end_is_quoted():
    endless = []
    endless.append(endless)
    assert len(intake.quoted({"a": endless, "b": "\x1b[31m\u202e" * 10**6})) <= 200


@pytest.mark.thorough
def test_the_largest_text_that_is_parsed_takes_less_than_a_gigabyte():
    """Other kinds of text take less for each bracket, comma or string."""
    child = subprocess.run([sys.executable, "-c", WORST], capture_output=True, text=True,
                           timeout=60)
    assert int(child.stdout) < 1e9, child.stderr


WORST = """
import resource
from k2ref.doors import intake
text = b"{" + b",".join(b'"%07d":{}' % i for i in range(999_000)) + b"}"
intake.parse_json(text, "it", ValueError)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
