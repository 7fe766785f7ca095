"""The disk: rounds that are timed as the streamer reads, and what is left in memory after them."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.checkpoint.config import Config
from k2ref.checkpoint.shards import open_shards
from k2ref.planning import disk
from k2ref.streaming.pages import File
from scripts.checkpoints.small import tiny_config, write_checkpoint


@pytest.mark.parametrize("fails_at", ["open", "read"])
def test_a_file_system_without_direct_reads_is_timed_all_the_same(tmp_path, monkeypatch, fails_at):
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        pytest.skip("this system has no direct reads")
    path, opened = tmp_path / "a.safetensors", []
    monkeypatch.setattr(disk, "PIECE", 1 << 20)
    path.write_bytes(os.urandom(disk.PIECE))
    real_open, real_read = os.open, os.preadv

    def open_(file, flags):
        if flags & os.O_DIRECT and fails_at == "open":
            raise OSError(22, "Invalid argument")
        opened.append((real_open(file, flags & ~os.O_DIRECT), flags & os.O_DIRECT))
        return opened[-1][0]

    def read(fd, *rest):
        if opened[-1][1]:
            raise OSError(22, "Invalid argument")
        return real_read(fd, *rest)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", read)
    assert disk._read_uncached(path, 0, bytearray(disk.PIECE)) == disk.PIECE


def test_the_disk_is_timed_as_experts_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SAME_S", 0.8)
    monkeypatch.setattr(disk, "PIECE", piece := 1 << 20)
    path, fetched, let_go = tmp_path / "model.safetensors", [], []
    path.write_bytes(os.urandom((50 << 20) + 5))
    here = drop(path)
    if here(0, 50 << 20) != 0:
        pytest.skip("this system does not drop what it has in memory, or does not tell")
    with open(path, "rb") as file:
        file.seek(7 << 20)
        file.read(piece)
    before = here(0, 50 << 20)
    real_fetch, real_let_go = File.fetch, File.let_go
    monkeypatch.setattr(File, "fetch", lambda self, start, stop: (
        fetched.append((start, stop)), real_fetch(self, start, stop)))
    monkeypatch.setattr(File, "let_go", lambda self, start, stop: (
        let_go.append((start, stop)), real_let_go(self, start, stop)))
    rate, idle, (low, high) = disk.measure(tmp_path, 2)
    assert 0 < low <= rate <= high and 0 <= idle.read_s < 1e-6 and 0 <= idle.touch_s < 1e-6
    assert len(fetched) > disk.ROUND and sorted(fetched) == sorted(set(let_go)) == sorted(let_go)
    assert all(stop - start == piece and start % piece == 0 for start, stop in fetched)
    # What was in memory was not read, and is there still; the rest is not.
    assert not any(start < 8 << 20 and stop > 7 << 20 for start, stop in fetched)
    assert here(0, 50 << 20) == before
    assert [start for start, _ in let_go] != [start for start, _ in fetched]  # three were held


@pytest.mark.parametrize("slow", [False, True])
def test_more_memory_is_filled_where_it_is_slow(tmp_path, monkeypatch, slow):
    for name, value in {"SAME_S": 0.2, "PIECE": 1 << 20, "ROUND": 2, "GROWN": 3, "SLOW": 5}.items():
        monkeypatch.setattr(disk, name, value)
    monkeypatch.setattr(disk.Round, "is_slow", slow)
    for n_pieces, expected in ((40, 8 if slow else 3), (16, 4 if slow else 3), (8, 2), (2, 1)):
        path = tmp_path / "model.safetensors"
        path.write_bytes(os.urandom(n_pieces << 20))
        if drop(path)(0, n_pieces << 20) != 0:
            pytest.skip("this system does not drop what it has in memory, or does not tell")
        grown, same = disk._rounds([path], 2)
        assert len(grown) == expected and 2 * (len(grown) + len(same)) <= n_pieces
        assert all(seconds > 0 for found in grown + same for seconds in found)


def drop(path):
    """Take a file out of the page cache; return a function that counts its bytes there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return disk._opened(path).in_memory


def test_a_disk_whose_files_are_in_memory_is_timed_past_it(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "DIRECT_S", 0.01)
    monkeypatch.setattr(disk, "PIECE", 1 << 20)
    (tmp_path / "model.safetensors").write_bytes(os.urandom(3 << 20))
    monkeypatch.setattr(File, "in_memory", lambda self, start, stop: stop - start)
    monkeypatch.setattr(File, "fetch", None)
    rate, idle, rounds = disk.measure(tmp_path, 2)
    assert rate > 0 and idle == (0, 0, 0) and rounds is None


QUICK = disk.Round(5e-10, 1.2e-11, 1e-11)
MIXED = disk.Round(6e-10, 1.005e-9, 1e-11)
SLOW = disk.Round(9e-10, 2.01e-9, 1e-11)


@given(first=st.lists(st.sampled_from([QUICK, MIXED, SLOW]), max_size=disk.GROWN),
       later=st.lists(st.sampled_from([QUICK, SLOW]), max_size=disk.SLOW),
       same=st.lists(st.sampled_from([QUICK, SLOW]), max_size=4))
def test_rounds_in_idle_memory_are_told_from_others(first, later, same):
    later = later if len(first) == disk.GROWN else []
    grown = first + later
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_files", lambda _: [])
        patch.setattr(disk, "_rounds", lambda *_: (grown, same if grown else []))
        rate, idle, rounds = disk.measure("", 1)
    if not grown:
        assert rate is None and idle == (0, 0, 0) and rounds is None
        return
    read_s = [found.read_s for found in grown]
    read_s = [QUICK.read_s] if QUICK in (same or grown) else read_s
    assert rate == 1 / np.median(read_s) and rounds == (1 / max(read_s), 1 / min(read_s))
    if later.count(SLOW) <= len(later) / 2:
        assert idle == (0, 0, 0)
    else:
        assert idle.read_s == pytest.approx(max(0, SLOW.read_s - 1 / rate))
        assert idle.touch_s == pytest.approx(2e-9)
        n_ready = first.count(QUICK) * (1 - 0.006) + first.count(MIXED) * 0.4975
        assert idle.ready == pytest.approx(n_ready * disk.ROUND * disk.PIECE, abs=1)


def test_holes_and_small_files_are_not_timed(tmp_path):
    (tmp_path / "small.safetensors").write_bytes(bytes(1000))
    with open(tmp_path / "hole.safetensors", "wb") as file:
        file.truncate(1 << 30)
    if (tmp_path / "hole.safetensors").stat().st_blocks == 0:
        assert disk.measure(tmp_path, 1) == (None, (0, 0, 0), None)


def test_what_the_page_cache_has_is_not_read(tmp_path):
    path = write_checkpoint(tmp_path, {**tiny_config(), "moe_intermediate_size": 512})
    config = Config.from_dir(path)
    kinds = config.n_bytes_by_kind
    files = [File(shard) for shard in open_shards(path)[0]]
    for file in files:
        file.fetch(0, len(file.bytes))
    if files[0].in_memory(0, len(files[0].bytes)) is None:
        pytest.skip("this system does not tell what is in memory")
    dense, experts = disk.in_page_cache(path, config)
    assert dense == sum(kinds.values()) - kinds["experts"] - kinds["embedding"]
    assert 0 <= kinds["experts"] - experts < 1 << 16  # edges of pages
    (path / "model-00002-of-000002.safetensors").unlink()
    assert disk.in_page_cache(path, config) == (0, 0)
