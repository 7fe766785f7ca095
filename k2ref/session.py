"""Sessions: a conversation and its cache in one file, whole or not at all.

    k2ref session 1 <bytes of the header> <its CRC-32>
    {"checkpoint": ..., "ids": [...], "messages": [...], "rows_crc32": [...], ...}      the header
    rows of the cache, layer after layer, as they lie in memory

A cache is hours of work on a large model, so it is written to a second file beside the first, which
takes its name only when all of it is on the disk; and read back no slower than the disk gives it.
It fits one checkpoint and one set of kernels: from others come other bits.

Chapter 13.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from k2ref import ops
from k2ref.attention import CACHE_DTYPES, require_memory
from k2ref.conversation import Context

MAGIC, VERSION = b"k2ref session ", 1
FIRST_LINE = MAGIC + b"%d %012d %08x\n"
ALIGN = 4096  # the header is padded with spaces, so that the rows begin at a page
N_READERS = 4  # one reader waits for the disk while another computes its checksum
SAMPLED_FROM, N_SAMPLES = 64 << 20, 16  # a shard larger than this is known by samples of a page
PAGE = 4096


class SessionError(ValueError):
    """Say why a file is no session of this checkpoint: file, what was expected, what was found."""


def fingerprint(model):
    """Return what tells this checkpoint from all others, as hexadecimal digits.

    It is a SHA-256 of the configuration and the shards: of a small shard all bytes, of a large one
    its size and pages from everywhere in it, as reading 594 GB would take an hour.
    """
    digest = hashlib.sha256(repr(dataclasses.asdict(model.config)).encode())
    for shard in model.checkpoint.shards:
        size = len(shard.map)
        digest.update(f" {size} ".encode())
        if size <= SAMPLED_FROM:
            digest.update(shard.map)
            continue
        for i in range(N_SAMPLES):
            start = (size - PAGE) * i // (N_SAMPLES - 1)
            digest.update(shard.map[start : start + PAGE])
    return digest.hexdigest()


def save(path, context, **state):
    """Write the cache of a context, and what JSON can hold of the conversation, to a file.

    The file is replaced at once or stays as it was. One that is no session of this checkpoint is
    never replaced.
    Raises: SessionError for such a file; OSError where it cannot be written.
    """
    path = Path(path)
    made_for = fingerprint(context.model)
    if os.path.lexists(path):
        _read_header(path, made_for)
    cache, n = context.cache, context.cache.length
    rows = [memoryview(layer[:n]).cast("B") if n else b"" for layer in cache.rows]
    with ThreadPoolExecutor(N_READERS) as pool:
        checksums = list(pool.map(zlib.crc32, rows))
    header = json.dumps({
        "checkpoint": made_for, "kernels": ops.kernels_name(), "dtype": cache.dtype,
        "ids": [int(i) for i in context.ids], "rows_crc32": checksums, **state}).encode()
    header += b" " * (-(len(FIRST_LINE % (VERSION, 0, 0)) + len(header)) % ALIGN)
    first = FIRST_LINE % (VERSION, len(header), zlib.crc32(header))
    _write_whole(path, [first, header, *rows])


def _write_whole(path, pieces):
    """Write a file so that its name always stands for the whole old or the whole new content."""
    path = path.resolve()  # of a link the target is replaced, not the link
    for left in path.parent.iterdir():  # by a process that was killed
        if left.name.startswith(f"{path.name}.") and left.name.endswith(".partial"):
            left.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "xb", buffering=0) as file:
            for piece in pieces:
                piece = memoryview(piece)
                while piece:
                    piece = piece[file.write(piece):]
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write that fails does not know what it wrote
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory):
    """Make the new name last; some systems cannot, and it would last a moment later anyway."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path, model):
    """Read a session: return its `Context`, its state as a dict, and a remark or None.

    If it was made by other kernels, the conversation is kept and the cache is not: mixed bits would
    be those of no run.
    Raises: SessionError for a file that is damaged, of another checkpoint or of a newer version;
    OSError where it cannot be read; ValueError if it needs more memory than there is.
    """
    path = Path(path)
    header, start = _read_header(path, fingerprint(model))
    ids, dtype = header.pop("ids"), header.pop("dtype")
    checksums, kernels = header.pop("rows_crc32"), header.pop("kernels")
    context = Context(model, dtype)
    n_bytes = len(ids) * context.cache.rows[0].strides[0]
    found = path.stat().st_size - start
    if found != n_bytes * len(context.cache.rows) or len(checksums) != len(context.cache.rows):
        raise _damaged(path, f"{n_bytes * len(context.cache.rows)} bytes of cache", str(found))
    if kernels != ops.kernels_name():
        return context, header, (f"{path}: the cache was made with the {kernels} kernels and will "
                                 f"be computed again with {ops.kernels_name()}")
    require_memory(model.config, len(ids), dtype)

    def read(i):
        rows = memoryview(context.cache.rows[i][: len(ids)]).cast("B")
        _read_into(path, start + i * n_bytes, rows)
        if zlib.crc32(rows) != checksums[i]:
            raise _damaged(path, f"the checksum {checksums[i]:08x} for layer {i}", "another one")

    if ids:
        with ThreadPoolExecutor(N_READERS) as pool:
            list(pool.map(read, range(len(checksums))))
    context.restore(ids)
    return context, header, None


def _read_into(path, start, buffer):
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while buffer:
            n = file.readinto(buffer)
            if not n:
                raise _damaged(path, f"{len(buffer)} more bytes", "its end")
            buffer = buffer[n:]


def _read_header(path, made_for):
    """Read and check what stands before the rows: the header as a dict, and where the rows begin.

    Raises: SessionError
    """
    with open(path, "rb") as file:
        first = file.readline(80)
        if not first.startswith(MAGIC):
            raise SessionError(f"{path}: expected a session, found a file that begins with "
                               f"{first[:20]!r}; give the name of a session or a new name")
        version, *rest = first[len(MAGIC):].split()
        if not version.isdigit() or int(version) < 1:
            raise _damaged(path, "a version", repr(version))
        if int(version) > VERSION:
            raise SessionError(f"{path}: expected a session of version {VERSION}, found version "
                               f"{int(version)}; use a newer k2ref, or another file")
        try:
            n_header, checksum = int(rest[0]), int(rest[1], 16)
        except (ValueError, IndexError):
            raise _damaged(path, "the length and checksum of a header", repr(first)) from None
        text = file.read(min(n_header, os.fstat(file.fileno()).st_size))
    if first != FIRST_LINE % (VERSION, len(text), zlib.crc32(text)):
        raise _damaged(path, f"a header of {n_header} bytes with checksum {checksum:08x}",
                       f"{len(text)} bytes with {zlib.crc32(text):08x}")
    header = json.loads(text)
    if header.pop("checkpoint") != made_for:
        raise SessionError(f"{path}: expected a session of this checkpoint, found one of another; "
                           "give the --model that it was made with, or another file")
    if header["dtype"] not in CACHE_DTYPES:
        raise _damaged(path, f"a cache of {' or '.join(CACHE_DTYPES)}", repr(header["dtype"]))
    return header, len(first) + n_header


def _damaged(path, expected, found):
    return SessionError(f"{path}: the session is damaged: expected {expected}, found {found}; it "
                        "was left as it is")
