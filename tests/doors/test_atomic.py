"""Files whole or not at all: several writers, left-overs of the dead, and what is not theirs."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from k2ref.doors import atomic
from k2ref.doors.atomic import replacing

posix = pytest.mark.skipif(os.name != "posix", reason="locks and rights of POSIX")
ROOT = Path(__file__).parents[2]
NOBODY = 999_999_999  # more than any system numbers its processes to


def write(path, content=b"new"):
    with replacing(path) as file:
        file.write(content)


WRITER = """
import sys
from k2ref.doors.atomic import replacing
path, letter, n = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
for _ in range(n):
    with replacing(path) as file:
        for _ in range(8):
            file.write(letter * 20_000)
"""


@pytest.mark.parametrize("n", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_writers_of_one_file_do_not_disturb_each_other(tmp_path, n):
    """Also one whose file's name begins like the other's; what is there is always one's whole."""
    path, near = tmp_path / "work", tmp_path / "work.1"
    near.write_bytes(b"")
    write(path, b"a" * 160_000)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(at), letter, str(n)], cwd=ROOT,
                                stderr=subprocess.PIPE)
               for at, letter in ((path, "a"), (path, "b"), (path, "c"), (near, "d"))]
    while any(writer.poll() is None for writer in writers):
        found = path.read_bytes()
        assert len(found) == 160_000 and len(set(found)) == 1
    assert [writer.communicate()[1] for writer in writers] == [b""] * 4
    assert near.read_bytes() == b"d" * 160_000
    assert sorted(os.listdir(tmp_path)) == ["work", "work.1"]


def test_writers_in_one_process_do_not_disturb_each_other(tmp_path):
    failures = []

    def keep_writing(letter):
        try:
            for _ in range(50):
                write(tmp_path / "s", letter * 10_000)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_writing, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and len(set((tmp_path / "s").read_bytes())) == 1
    assert os.listdir(tmp_path) == ["s"]


@posix
def test_what_is_not_surely_a_left_over_stays(tmp_path):
    """A directory, a link, a running process, other endings, and files of somebody's own."""
    stays = ["s.notes.partial", "s.partial", f"s.{NOBODY}.partial.txt", f"s.x.{NOBODY}.partial",
             f"s.{os.getpid()}.partial", f"s.{os.getppid()}.0123abcd.partial",
             f"t.{NOBODY}.partial", f"s.{NOBODY}.zzzzzzzz.partial", f"sx{NOBODY}.partial"]
    for name in stays:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "s.dir.partial").mkdir()
    (tmp_path / f"s.{NOBODY - 1}.partial").mkdir()
    (tmp_path / f"s.{NOBODY - 2}.partial").symlink_to(tmp_path / "s.notes.partial")
    before = set(os.listdir(tmp_path))
    for gone in (f"s.{NOBODY}.partial", f"s.{NOBODY}.0123abcd.partial"):
        (tmp_path / gone).write_bytes(b"half")
    write(tmp_path / "s")
    assert set(os.listdir(tmp_path)) == before | {"s"}


@posix
def test_a_file_that_somebody_holds_is_no_left_over(tmp_path):
    """In another container the same number is another process: the lock tells."""
    import fcntl

    held = tmp_path / f"s.{NOBODY}.0123abcd.partial"
    with open(held, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write(tmp_path / "s")
        assert held.exists()
    write(tmp_path / "s")
    assert not held.exists()


@posix
def test_a_writer_holds_its_file(tmp_path):
    import fcntl

    with replacing(tmp_path / "s"):
        [partial] = tmp_path.iterdir()
        with open(partial, "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@posix
def test_rights_stay_and_new_files_have_the_usual_ones(tmp_path):
    def rights(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    (tmp_path / "usual").write_bytes(b"")
    write(tmp_path / "s")
    assert rights("s") == rights("usual")
    (tmp_path / "s").chmod(0o600)
    write(tmp_path / "s")
    assert rights("s") == 0o600


def test_without_locks_left_overs_stay_and_files_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    (tmp_path / f"s.{NOBODY}.partial").write_bytes(b"half")
    write(tmp_path / "s")
    assert sorted(os.listdir(tmp_path)) == ["s", f"s.{NOBODY}.partial"]


ENDLESS = WRITER.replace("range(n)", "iter(int, 1)")


@posix
@pytest.mark.slow
def test_kills_at_random_moments_leave_a_whole_file(tmp_path):
    import random

    path, chance = tmp_path / "s", random.Random(1)
    write(path, b"a" * 160_000)
    for i in range(40):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path), "ab"[i % 2], "0"],
                                   cwd=ROOT)
        time.sleep(0.3 + chance.random())
        process.kill()
        process.wait(60)
        found = path.read_bytes()
        assert len(found) == 160_000 and len(set(found)) == 1
    write(path)
    assert os.listdir(tmp_path) == ["s"]
