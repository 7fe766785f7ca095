"""Files that change, shrink or fail while they are in use: a sentence, never a wrong number."""

import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same

import k2ref
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint, CheckpointError
from k2ref.streaming import memory, pages
from k2ref.streaming.pages import File
from scripts import make_checkpoint
from scripts.checkpoints.small import tiny_config, write_checkpoint

faults = pytest.importorskip("k2ref.streaming._faults", reason="not compiled")
posix = pytest.mark.skipif(os.name != "posix", reason="files in use cannot be changed here")
IDS = list(range(60))
BEGIN = """
import os, sys, faulthandler, k2ref
from k2ref.streaming import memory
from k2ref.streaming import stream
directory, budget = sys.argv[1], sys.argv[2] == "streamed"
own = memory.own() or stream.OWN
model = k2ref.load(directory, threads=1, memory=own + (1 << 30) if budget else None)
k2ref.forward(model, [1, 2])
shard = model.files[0].path
"""
END = """
print(k2ref.forward(model, range(60)).sum())
"""


@pytest.fixture
def directory(tmp_path):
    return write_checkpoint(tmp_path)


def load(directory, way):
    budget = (memory.own() or 1 << 28) + (1 << 30) if way == "streamed" else None
    return k2ref.load(directory, threads=1, memory=budget)


def run(directory, way, *lines):
    """Run a program that loads, does these lines, and computes; return code and what it said."""
    program = BEGIN + "\n".join(lines) + END
    done = subprocess.run([sys.executable, "-c", program, str(directory), way],
                          capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@posix
@pytest.mark.parametrize("way", ["mapped", "streamed"])
def test_a_file_cut_while_in_use_ends_in_a_sentence(directory, way):
    code, out, err = run(directory, way, "os.truncate(shard, 5000)")
    assert out == "" and "model-00001-of-000002.safetensors: expected" in err
    if "CheckpointError" not in err:  # the page was touched before anybody could look
        assert code == faults.EXIT_STATUS and err.count("\n") == 1
        assert err.startswith("k2ref: ") and "the file was cut" in err


@posix
def test_a_fault_on_somebody_elses_page_is_theirs(directory, tmp_path):
    code, out, err = run(
        directory, "mapped", "import mmap", f"f = open({str(tmp_path / 'other')!r}, 'w+b')",
        "f.truncate(99999); other = mmap.mmap(f.fileno(), 0); f.truncate(0); other[9000]")
    assert out == "" and "k2ref" not in err and code == -signal.SIGBUS


@posix
def test_a_map_that_is_gone_is_no_longer_answered_for(directory):
    code, out, err = run(
        directory, "mapped", "from k2ref.streaming import _faults, pages",
        "for file in model.files:", "    _faults.forget(file.address)", "os.truncate(shard, 5000)")
    assert out == "" and code == -signal.SIGBUS and "k2ref:" not in err


@posix
@pytest.mark.parametrize("way", ["mapped", "streamed"])
def test_a_file_written_to_gives_no_numbers(directory, way):
    model, cache = load(directory, way), None
    cache = k2ref.KVCache(model.config, 100)
    k2ref.forward(model, IDS[:5], cache)
    path = model.files[0].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(1, 1))  # whatever the clock's resolution
    with pytest.raises(CheckpointError, match="expected the file of .* found it written to"):
        k2ref.forward(model, IDS, cache)
    assert cache.length == 5


@posix
@pytest.mark.parametrize("way", ["mapped", "streamed"])
def test_a_file_that_was_replaced_is_read_as_it_was(directory, way):
    model = load(directory, way)
    expected = k2ref.forward(load(directory, "mapped"), IDS)
    path = model.files[0].path
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:100])
    assert_same(k2ref.forward(model, IDS), expected)


def test_a_file_that_changes_while_it_is_opened_is_refused(directory):
    checkpoint = Checkpoint.open(directory, Config.from_dir(directory))
    shard = checkpoint.shards[0]
    content = shard.path.read_bytes()
    if os.name == "posix":
        shard.path.unlink()
        with pytest.raises(CheckpointError, match="expected a readable file"):
            File(shard)
        shard.path.write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=f"found {len(content) - 1} bytes"):
            File(shard)


def test_an_error_of_the_disk_is_named(directory, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    model = load(directory, "streamed")
    expected = k2ref.forward(load(directory, "mapped"), IDS)
    before = {unit: unit.seen for unit in model.stream.layers}
    with monkeypatch.context() as patch:
        patch.setattr(pages, "_call", lambda *_: errno.EFAULT)
        patch.setattr(pages, "_pread", fail)
        cache = k2ref.KVCache(model.config, 100)
        with pytest.raises(CheckpointError, match="bytes .* to be readable, found .*error"):
            k2ref.forward(model, IDS, cache)
        assert cache.length == 0
    assert {unit: unit.seen for unit in model.stream.layers} == before
    assert_same(k2ref.forward(model, IDS), expected)  # the disk came back


def test_a_file_that_ends_early_is_named(directory, monkeypatch):
    file = File(Checkpoint.open(directory, Config.from_dir(directory)).shards[0])
    monkeypatch.setattr(pages, "_call", lambda *_: errno.EFAULT)
    monkeypatch.setattr(pages, "_pread", lambda *_: 0)
    with pytest.raises(CheckpointError, match="found 0 bytes"):
        file.fetch(0, 100)


@posix
def test_a_read_only_directory_is_enough(directory):
    for path in [*directory.iterdir(), directory]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        logits = k2ref.forward(load(directory, "streamed"), IDS)
    finally:
        directory.chmod(0o755)
    assert np.isfinite(logits).all()


def test_watch_and_forget_many_maps():
    """There are places for 1024 maps, and a place that is given back is used again."""
    gc.collect()  # the models of other tests have their places
    addresses = range(1 << 20, (1 << 20) + 5000 * 4096, 4096)
    taken = [a for a in addresses[:1100] if faults.watch(a, 4096, b"/somewhere")]
    assert len(taken) <= 1024
    for address in taken:
        faults.forget(address)
    again = [a for a in addresses[2000:2010] if faults.watch(a, 4096, b"/elsewhere")]
    assert len(again) == 10
    for address in again:
        faults.forget(address)


def test_a_file_whose_server_is_gone_is_named(directory, monkeypatch):
    file = File(Checkpoint.open(directory, Config.from_dir(directory)).shards[0])

    def fail(fd):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        with pytest.raises(CheckpointError, match="expected the file that was opened, found"):
            file.check()
    file.check()


@posix
def test_a_system_without_positioned_reads_touches_the_pages(directory, monkeypatch):
    expected = k2ref.forward(load(directory, "mapped"), IDS)
    monkeypatch.setattr(pages, "_libc", None)
    for name in ("pread", "preadv", "posix_fadvise"):
        monkeypatch.delattr(os, name, raising=False)
    assert (k2ref.forward(load(directory, "streamed"), IDS) == expected).all()


@posix
def test_a_file_system_that_takes_no_advice_is_only_slower(directory, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    expected = k2ref.forward(load(directory, "mapped"), IDS)
    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    model = load(directory, "streamed")
    assert (k2ref.forward(model, IDS) == expected).all()
    model.stream.residency.fit(0)
    assert (k2ref.forward(model, IDS) == expected).all()


# Real file systems, where this process may mount one.


def do(*command):
    subprocess.run(command, check=True, capture_output=True)


def may_mount():
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    tools = ("mount", "umount", "losetup", "mkfs.ext4", "unshare")
    return all(shutil.which(tool) for tool in tools) and os.path.exists("/dev/loop-control")


mounts = pytest.mark.skipif(not may_mount(), reason="only root may mount file systems")


@contextmanager
def mounted(*command, at):
    """Mount something, or skip the test where that is forbidden even to root."""
    at.mkdir()
    try:
        do(*command, at)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"mount: {error.stderr.decode()}")
    try:
        yield at
    finally:
        gc.collect()  # files in use keep it mounted
        do("umount", "--lazy", at)


@contextmanager
def on_a_small_disk(tmp_path, directory):
    """Put a checkpoint on a disk of its own; give the mount and the file that is the disk."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 24))
    try:
        loop = subprocess.run(["losetup", "--direct-io=on", "-f", "--show", image], check=True,
                              capture_output=True, text=True).stdout.strip()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"losetup: {error.stderr}")
    try:
        do("mkfs.ext4", "-q", loop)
        with mounted("mount", loop, at=tmp_path / "mount") as mount:
            shutil.copytree(directory, mount / "model")
        with mounted("mount", loop, at=tmp_path / "again") as mount:  # nothing is in memory now
            yield mount / "model", image
    finally:
        do("losetup", "-d", loop)


@mounts
@pytest.mark.parametrize("way", ["mapped", "streamed"])
def test_a_disk_that_fails_ends_in_a_sentence(tmp_path_factory, tmp_path, way):
    config = {**tiny_config(), "moe_intermediate_size": 1024}
    directory = write_checkpoint(tmp_path_factory.mktemp("good"), config)
    lines = ["for file in model.files:", "    file.let_go(0, len(file.bytes))",
             "if model.stream:", "    model.stream.residency.doubt()",
             "    model.stream.residency.fit(0)", "os.truncate(sys.argv[3], 1 << 20)"]
    with on_a_small_disk(tmp_path, directory) as (path, image):
        program = BEGIN + "\n".join(lines) + END
        done = subprocess.run([sys.executable, "-c", program, path, way, image],
                              capture_output=True, text=True)
        os.truncate(image, 1 << 24)
    assert done.stdout == "" and ".safetensors: expected" in done.stderr, done.stderr
    if way == "mapped":
        assert done.returncode == faults.EXIT_STATUS and done.stderr.count("\n") == 1
        assert "the disk failed or the file was cut" in done.stderr
    elif done.returncode != faults.EXIT_STATUS:
        assert "CheckpointError" in done.stderr and "Input/output error" in done.stderr


@mounts
def test_an_overlay_gives_the_same_bits_and_is_counted(directory, tmp_path):
    expected = k2ref.forward(load(directory, "mapped"), IDS)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={directory},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    with mounted("mount", "-t", "overlay", "overlay", "-o", options, at=tmp_path / "o") as path:
        model = load(path, "streamed")
        assert (k2ref.forward(model, IDS) == expected).all()
        for unit in model.stream.kept:
            for file, start, stop in unit.extents:
                assert file.in_memory(start, stop) >= stop - start
        model.stream.residency.fit(0)
        assert (k2ref.forward(model, IDS) == expected).all()
        del model, file


@mounts
def test_a_read_only_disk_and_a_full_one_are_named(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config()))
    with mounted("mount", "-t", "tmpfs", "-o", "ro", "none", at=tmp_path / "ro") as mount:
        assert make_checkpoint.main([f"{mount}/out", "--config", str(config)]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    with mounted("mount", "-t", "tmpfs", "-o", "size=200k", "none", at=tmp_path / "s") as mount:
        assert make_checkpoint.main([f"{mount}/out", "--config", str(config)]) == 2
        assert list(mount.iterdir()) == []
    err = capsys.readouterr().err
    assert "room on the disk" in err and err.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="only Linux tells")
def test_two_processes_share_the_pages(tmp_path):
    directory = write_checkpoint(tmp_path, {**tiny_config(), "moe_intermediate_size": 1024})
    program = BEGIN + END + "sys.stdout.flush(); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(directory), "streamed"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert float(other.stdout.readline())  # it has computed, and stays
        model = load(directory, "streamed")
        k2ref.forward(model, range(60))
        maps = Path("/proc/self/smaps").read_text().split("VmFlags")
        other.stdin.close()
    ours = [part for part in maps if str(directory) in part]
    kb = {name: sum(int(n) for part in ours for n in re.findall(rf"^{name}: +(\d+)", part, re.M))
          for name in ("Rss", "Shared_Clean", "Shared_Dirty", "Anonymous")}
    units = [*model.stream.kept, *model.stream.experts.values()]
    held = sum(unit.n_bytes for unit in units if unit.seen == model.stream.residency.epoch)
    assert kb["Anonymous"] == 0 and kb["Rss"] << 10 >= held > 1 << 18
    assert kb["Shared_Clean"] + kb["Shared_Dirty"] >= 0.9 * held / 1024  # dirty: just written
