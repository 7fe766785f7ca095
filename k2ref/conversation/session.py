"""Sessions: a conversation and its cache in one file, whole or not at all.

    k2ref session 1 <bytes of the header> <its CRC-32>
    {"checkpoint": ..., "ids": [...], "messages": [...], "rows_crc32": [...], ...}      the header
    rows of the cache, layer after layer, as they lie in memory

A cache is hours of work on a large model, so it is written to a second file beside the first, which
takes its name only when all of it is on the disk; and read back no slower than the disk gives it.
It fits one checkpoint and one set of kernels: from others come other bits.

Chapter 13.
"""

import dataclasses
import hashlib
import json
import os
import re
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from k2ref import ops
from k2ref.cache import CACHE_DTYPES, require_memory
from k2ref.conversation.chat import Context, prompt_ids
from k2ref.conversation.template import ChatError
from k2ref.doors import intake
from k2ref.doors.atomic import replacing
from k2ref.tokenizer import TokenizerError

MAGIC, VERSION = b"k2ref session ", 1
FIRST_LINE = MAGIC + b"%d %012d %08x\n"
ALIGN = 4096  # the header is padded with spaces, so that the rows begin at a page
N_READERS = 4  # one reader waits for the disk while another computes its checksum
SAMPLED_FROM, N_SAMPLES = 64 << 20, 16  # a shard larger than this is known by samples of a page
PAGE = 4096
MOST_HEADER = intake.MOST_JSON
QUESTION = {"role": "user", "content": ""}


class SessionError(ValueError):
    """A file that is no session of this checkpoint: file, what was expected, what was found."""


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

    The file is replaced at once or stays as it was. One that is no whole session of this checkpoint
    is never replaced.
    Raises: SessionError for such a file, or a conversation that `load` would refuse; OSError where
    it cannot be written.
    """
    path, made_for = Path(path), fingerprint(context.model)
    if os.path.lexists(path):
        with _open(path) as file:
            _read_header(file, path, made_for, context.model)
    cache, n = context.cache, context.cache.length
    rows = [memoryview(layer[:n]).cast("B") if n else b"" for layer in cache.rows]
    with ThreadPoolExecutor(N_READERS) as pool:
        checksums = list(pool.map(zlib.crc32, rows))
    header = json.dumps({
        "checkpoint": made_for, "kernels": ops.kernels_name(), "dtype": cache.dtype,
        "ids": [int(i) for i in context.ids], "rows_crc32": checksums, **state}).encode()
    if len(header) > MOST_HEADER - ALIGN:
        raise SessionError(f"{path}: expected a conversation of at most {MOST_HEADER} bytes, found "
                           f"{len(header)}; begin another one")
    intake.parse_json(header, path, SessionError)
    header += b" " * (-(len(FIRST_LINE % (VERSION, 0, 0)) + len(header)) % ALIGN)
    with replacing(path) as file:
        for piece in (FIRST_LINE % (VERSION, len(header), zlib.crc32(header)), header, *rows):
            file.write(piece)


def load(path, model):
    """Read a session: return its `Context`, its state as a dict, and a remark or None.

    If it was made by other kernels, the conversation is kept and the cache is not: mixed bits would
    be those of no run.
    Raises: SessionError for a file that is damaged, of another checkpoint or of a newer version, or
    whose words `render` refuses; OSError where it cannot be read; ValueError if it needs more
    memory than there is.
    """
    path = Path(path)
    with _open(path) as file:
        header, start = _read_header(file, path, fingerprint(model), model)
        ids, dtype = header.pop("ids"), header.pop("dtype")
        checksums, kernels = header.pop("rows_crc32"), header.pop("kernels")
        context = Context(model, dtype)
        if kernels != ops.kernels_name():
            return context, header, (f"{path}: the cache was made with the {kernels} kernels and "
                                     f"will be computed again with {ops.kernels_name()}")
        require_memory(model.config, len(ids), dtype)
        n_bytes, turn = len(ids) * context.cache.rows[0].strides[0], threading.Lock()

        def read(i):
            rows = memoryview(context.cache.rows[i][: len(ids)]).cast("B")
            _read_into(file, path, start + i * n_bytes, rows, turn)
            if zlib.crc32(rows) != checksums[i]:
                raise _damaged(path, f"the checksum {checksums[i]:08x} for layer {i}",
                               "another one")

        if ids:
            with ThreadPoolExecutor(N_READERS) as pool:
                list(pool.map(read, range(len(checksums))))
    context.restore(ids)
    return context, header, None


def _open(path):
    """Open a session for reading: one file from the first byte to the last, whoever saves it."""
    os.stat(path)  # one that is not there is an OSError
    return intake.open_file(path, SessionError, "a session")


def _read_into(file, path, start, buffer, turn):
    while buffer:
        with turn:  # a file has one place at which it reads
            file.seek(start)
            n = file.readinto(buffer)
        if not n:
            raise _damaged(path, f"{len(buffer)} more bytes", "its end")
        buffer, start = buffer[n:], start + n


def _read_header(file, path, made_for, model):
    """Read and check what stands before the rows: the header as a dict, and where the rows begin.

    Raises: SessionError
    """
    first = file.read(len(FIRST_LINE % (VERSION, 0, 0)))
    if not first.startswith(MAGIC):
        raise SessionError(f"{path}: expected a session, found a file that begins with "
                           f"{first[:20]!r}; give the name of a session or a new name")
    version, *rest = first[len(MAGIC):].split() or [b""]
    if not version.isdigit() or int(version) < 1:
        raise _damaged(path, "a version", repr(version))
    if int(version) > VERSION:
        raise SessionError(f"{path}: expected a session of version {VERSION}, found version "
                           f"{int(version)}; use a newer k2ref, or another file")
    try:
        n_header, checksum = int(rest[0]), int(rest[1], 16)
    except (ValueError, IndexError):
        raise _damaged(path, "the length and checksum of a header", repr(first)) from None
    if not 0 < n_header <= MOST_HEADER:
        raise _damaged(path, f"a header of 1 to {MOST_HEADER} bytes", str(n_header))
    n_bytes = os.fstat(file.fileno()).st_size
    text = _read_all(file, min(n_header, n_bytes))
    if first != FIRST_LINE % (VERSION, len(text), zlib.crc32(text)):
        raise _damaged(path, f"a header of {n_header} bytes with checksum {checksum:08x}",
                       f"{len(text)} bytes with {zlib.crc32(text):08x}")
    header = intake.parse_json(text, path, SessionError)
    if not isinstance(header, dict):
        raise _damaged(path, "a JSON object", intake.quoted(header))
    if _field(header, "checkpoint", str, "a string", path) != made_for:
        raise SessionError(f"{path}: expected a session of this checkpoint, found one of another; "
                           "give the --model that it was made with, or another file")
    del header["checkpoint"]
    n_expected = _check(header, path, model)
    if n_bytes - len(first) - n_header != n_expected:
        raise _damaged(path, f"{n_expected} bytes of cache",
                       str(n_bytes - len(first) - n_header))
    return header, len(first) + n_header


def _read_all(file, n_bytes):
    pieces = []
    while n_bytes > 0 and (piece := file.read(n_bytes)):
        pieces.append(piece)
        n_bytes -= len(piece)
    return b"".join(pieces)


def _check(header, path, model):
    """Check what a header says, and return how many bytes of cache follow it.

    A right checksum says that nothing was damaged on the way, not who wrote it.
    """
    config = model.config
    if header.get("dtype") not in [*CACHE_DTYPES]:
        raise _damaged(path, f"a cache of {' or '.join(CACHE_DTYPES)}",
                       intake.quoted(header.get("dtype")))
    if not re.fullmatch(r"[a-z0-9]{1,20}", _field(header, "kernels", str, "a string", path)):
        raise _damaged(path, "the name of kernels", intake.quoted(header["kernels"]))
    ids = _numbers(header, "ids", config.vocab_size, path)
    if len(ids) > config.max_position_embeddings:
        raise _damaged(path, f"at most {config.max_position_embeddings} ids", str(len(ids)))
    n_rows = len(_numbers(header, "rows_crc32", 1 << 32, path))
    if n_rows != config.num_hidden_layers:
        raise _damaged(path, f"checksums of {config.num_hidden_layers} layers", str(n_rows))
    if "n_hidden" in header and not 0 <= _field(header, "n_hidden", int, "a whole number",
                                                path) < 1 << 53:
        raise _damaged(path, "a number of hidden results", intake.quoted(header["n_hidden"]))
    if "messages" in header:
        _check_messages(header["messages"], path, model)
    return len(ids) * n_rows * Context(model, header["dtype"]).cache.rows[0].strides[0]


def _check_messages(messages, path, model):
    """Refuse what could not be asked: the template knows. Without a tokenizer nothing can."""
    try:
        if model.tokenizer is not None:
            # A question comes next, so that no last message can be one to be continued.
            prompt_ids(model, [*messages, QUESTION] if isinstance(messages, list) else messages)
    except (ChatError, TokenizerError) as error:
        raise SessionError(f"{path}: the session holds a conversation that cannot be gone on "
                           f"with: {error}") from None


def _field(header, name, kind, what, path):
    value = header.get(name)
    if type(value) is not kind:  # True is no number
        raise _damaged(path, f"{name} to be {what}",
                       intake.quoted(value) if name in header else "none")
    return value


def _numbers(header, name, limit, path):
    """Return a list of whole numbers below a limit."""
    numbers = _field(header, name, list, "a list", path)
    for number in numbers:
        if type(number) is not int or not 0 <= number < limit:
            raise _damaged(path, f"{name} from 0 to {limit - 1}", intake.quoted(number))
    return numbers


def _damaged(path, expected, found):
    return SessionError(f"{path}: the session is damaged: expected {expected}, found {found}; it "
                        "was left as it is")
