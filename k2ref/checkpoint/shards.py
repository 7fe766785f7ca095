"""Safetensors files: where each tensor's bytes lie, and the memory map they are read through.

A safetensors file is eight bytes with the header's length, the header, and the tensors' data. The
header is a JSON object `{name: {"dtype", "shape", "data_offsets"}}`. A checkpoint is one such file,
or many with a `model.safetensors.index.json` that says which tensor is in which.

Every header is checked once, here, because a wrong offset would read other tensors' bytes as
weights. A full-size checkpoint has 208,276 tensors, so each is one small tuple, and what can be
looked up is not computed again. Only JSON is parsed; nothing in a checkpoint is ever executed.

Source: https://github.com/huggingface/safetensors, README, "Format".

Chapter 03.
"""

import gc
import math
import mmap
import os
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from k2ref.doors import intake
from k2ref.doors.intake import quoted

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


class CheckpointError(ValueError):
    """A fault of the files of a checkpoint: file, tensor, expected, found."""


class Stored(NamedTuple):
    """The place of one tensor: the number of the shard, and byte offsets in its file."""

    shard: int
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Shard(NamedTuple):
    """One open file: its path, and its bytes as a read-only memory map.

    The map is never closed by hand: an array made on it keeps the object alive but does not stop
    `close`, after which reading the array would crash. Python unmaps it with its last reference.
    """

    path: Path
    map: mmap.mmap


def mismatch(where, expected, found) -> CheckpointError:
    """Word the error for something that is not as it should be."""
    return CheckpointError(f"{where}: expected {expected}, found {found}")


@contextmanager
def collector_paused():
    """Keep the garbage collector from looking, over and over, through what is only being built.

    A full-size checkpoint makes a million objects in a second, none of them in a cycle; the
    collector would take half as long again. It is put back as it was.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def open_shards(directory) -> tuple[list[Shard], dict[str, Stored]]:
    """Map the safetensors files of a directory and list the tensors in them.

    Raises: CheckpointError for whatever is missing, malformed or contradictory
    """
    files, weight_map = list_files(directory)
    shards: list[Shard] = []
    tensors: dict[str, Stored] = {}
    for number, (name, said) in enumerate(files.items()):
        shard, header = open_shard(directory, name, number)
        if weight_map is not None:
            _compare_with_index(shard.path, header, said, weight_map)
        shards.append(shard)
        tensors.update(header)
    if weight_map is not None and len(tensors) < len(weight_map):
        raise not_in_shards(directory, weight_map, tensors)
    return shards, tensors


def list_files(directory) -> tuple[dict[str, list[str]], dict[str, str] | None]:
    """Return `{file: its tensors by the index}`, and the index's `{tensor: file}` if there is one.

    Raises: CheckpointError
    """
    directory = Path(directory)
    if os.path.lexists(directory / INDEX):
        return _read_index(directory)
    if not os.path.lexists(directory / SINGLE):
        raise mismatch(directory, f"{INDEX} or {SINGLE}", "neither")
    return {SINGLE: []}, None


def open_shard(directory, name: str, number: int) -> tuple[Shard, dict[str, Stored]]:
    """Map one file and read its header: {name: Stored}.

    Raises: CheckpointError
    """
    shard, text = _map(Path(directory), name)
    return shard, _read_header(shard, number, text)


def not_in_shards(directory, weight_map: dict[str, str], tensors) -> CheckpointError:
    """Word the error for a tensor that only the index knows."""
    missing = next(tensor for tensor in weight_map if tensor not in tensors)
    path = Path(directory) / weight_map[missing]
    return mismatch(f"{path}: tensor {quoted(missing)}", f"it here, as {INDEX} says", "none")


def _read_index(directory: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return `{shard: its tensors}`, sorted, and the index's `{tensor: shard}` as it is written."""
    # Trap: names are never made up from a pattern: the official ones end in a total of six digits.
    path = directory / INDEX
    real = _inside(directory, INDEX)
    index = _object(path, intake.read_bytes(real, intake.MOST_JSON, CheckpointError, shown=path))
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise mismatch(path, "an object `weight_map`", quoted(weight_map))
    if set(map(type, weight_map.values())) != {str}:
        raise mismatch(path, "a file name for each tensor", "a value that is not a string")
    files = defaultdict(list)
    for tensor, name in weight_map.items():
        files[name].append(tensor)
    for name in files:
        is_plain = name.isprintable() and len(name) < 256 and not set(name) & set("/\\")
        if not is_plain or name in ("", ".", ".."):
            raise mismatch(path, "names of files in the directory", quoted(name))
    return {name: files[name] for name in sorted(files)}, weight_map


def _inside(directory: Path, name: str) -> Path:
    """Return the real path of a file of the checkpoint, which must not lead out of it.

    The hub's cache keeps the files in `models--X/blobs` and links to them from
    `models--X/snapshots/REVISION`: such links, within one model, are as good as the directory.
    """
    path = directory / name
    try:
        home, real = Path(os.path.realpath(directory)), Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        raise mismatch(path, "a file", f"none ({found})") from error
    in_cache = home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"
    if real.parent != home and not in_cache:
        raise mismatch(path, "a file inside the checkpoint's directory", f"a link to {real}")
    return real


def _map(directory: Path, name: str) -> tuple[Shard, bytes]:
    """Map one file; return it with the text of its header.

    The header is read and not looked at through the map: where a page of the map is touched, the
    system reads as much around it as the device takes at once, 8 MB here.
    """
    real = _inside(directory, name)
    path = directory / name
    with intake.open_file(real, CheckpointError, "a shard", shown=path) as file:
        try:
            n_bytes, begin = os.fstat(file.fileno()).st_size, file.read(8)
            if len(begin) < 8:
                raise mismatch(path, "a safetensors file of 8 bytes or more", f"{n_bytes} bytes")
            n_header = int.from_bytes(begin, "little")
            most = min(n_bytes - 8, intake.MOST_JSON)
            if n_header > most:
                if instead := intake.stand_in(begin + file.read(200)):
                    raise mismatch(path, "a safetensors file", instead)
                raise mismatch(path, f"a header of at most {most} bytes", f"one of {n_header}")
            text = file.read(n_header)
            return Shard(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), text
        except OSError as error:
            raise mismatch(path, "a readable file", error.strerror) from error


def _object(path: Path, text: bytes) -> dict:
    """Parse what must be a JSON object."""
    found = intake.parse_json(text, path, CheckpointError)
    if not isinstance(found, dict):
        raise mismatch(path, "a JSON object", quoted(found))
    return found


def _read_header(shard: Shard, number: int, text: bytes) -> dict[str, Stored]:
    """Check one file's header: every byte of the data belongs to exactly one tensor."""
    n_file, data_start = len(shard.map), 8 + len(text)
    new = tuple.__new__  # half the time of a NamedTuple's own; each takes its entry's place
    header = _object(shard.path, text)
    metadata = header.pop("__metadata__", {})
    is_object = isinstance(metadata, dict) and not set(map(type, metadata.values())) - {str}
    if not is_object and metadata is not None:  # null is none, for the safetensors library too
        raise mismatch(f"{shard.path}: __metadata__", "an object of strings", quoted(metadata))
    known, end, is_in_order = {}, 0, True  # few dtypes and shapes come again and again
    for name, entry in header.items():
        try:
            dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if len(entry) != 3:
                raise ValueError
        except (TypeError, KeyError, ValueError):
            where = f"{shard.path}: tensor {quoted(name)}"
            raise mismatch(where, "dtype, shape and two data_offsets", quoted(entry)) from None
        try:
            for size in shape:
                if type(size) is not int:  # Trap: `true` and `1.0` are the same key as 1
                    raise TypeError
            dtype, shape, n_bytes = known[(dtype, type(shape), *shape)]
        except (TypeError, KeyError):
            checked = _check_shape(shard.path, name, dtype, shape)
            dtype, shape, n_bytes = known[(dtype, list, *shape)] = checked
        if type(start) is not int or type(stop) is not int or stop - start != n_bytes:
            where = f"{shard.path}: tensor {quoted(name)}, {dtype} {quoted(list(shape))}"
            raise mismatch(where, f"data_offsets {n_bytes} bytes apart", quoted([start, stop]))
        is_in_order, end = is_in_order and start == end, stop
        header[name] = new(Stored, (number, dtype, shape, data_start + start, data_start + stop))
    if not is_in_order or data_start + end != n_file:
        _check_coverage(shard.path, header, data_start, n_file)
    return header


def _check_shape(path: Path, name: str, dtype, shape) -> tuple[str, tuple[int, ...], int]:
    """Return a tensor's dtype and shape, checked, and its bytes."""
    where = f"{path}: tensor {quoted(name)}"
    if type(dtype) is not str or dtype not in BYTES_OF:
        raise mismatch(where, f"a dtype of {', '.join(BYTES_OF)}", quoted(dtype))
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise mismatch(where, "a shape, a list of sizes", quoted(shape))
    return dtype, tuple(shape), math.prod(shape) * BYTES_OF[dtype]


def _check_coverage(path: Path, tensors: dict[str, Stored], data_start: int, n_file: int):
    """Refuse tensors that overlap, holes between them, and a file that ends elsewhere."""
    end = data_start
    for name, stored in sorted(tensors.items(), key=lambda item: item[1][3:]):
        if stored.start != end:
            what = "overlaps the one before it" if stored.start < end else "leaves a hole before it"
            found = f"{stored.start}: it {what}"
            raise mismatch(f"{path}: tensor {quoted(name)}", f"data at byte {end}", found)
        end = stored.stop
    if end != n_file:
        what = "truncated" if n_file < end else "too long"
        raise mismatch(path, f"a file of {end} bytes, by its header", f"{n_file}: it is {what}")


def _compare_with_index(path: Path, header: dict[str, Stored], said_here: list[str], weight_map):
    """Refuse tensors that the index puts elsewhere, and so any that are there twice."""
    # The index's names are looked for in the header, which is small enough for the caches.
    if len(said_here) == len(header) and all(map(header.__contains__, said_here)):
        return
    for tensor in header:
        said = weight_map.get(tensor)
        if said != path.name:
            expected = f"it in {quoted(said)}, as {INDEX} says" if said else f"it in {INDEX}, too"
            raise mismatch(f"{path}: tensor {quoted(tensor)}", expected, "it here")
