"""A checkpoint on disk as the weights of a model: every tensor found, checked, and mapped.

The files are read in place: `weight` returns views into the memory map, and nothing is loaded until
it is multiplied by. All names, dtypes and shapes are held to the configuration when the checkpoint
is opened; the views themselves are made when asked for, as 69,000 expert matrices would take time
and memory that a prompt never needs. `layout.py` says what is expected, `shards.py` what is there.

Chapter 03.
"""

import mmap
import re
from itertools import islice
from typing import NamedTuple

import numpy as np

from k2ref import layout, quant
from k2ref.config import Config
from k2ref.shards import (
    CheckpointError,
    Shard,
    Stored,
    collector_paused,
    mismatch,
    open_shards,
)

NUMPY_DTYPE = {
    "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"), "F8_E4M3": np.dtype("u1"),
    "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
}  # fmt: skip
# Reading the numbers in a `weight_shape` brings in a page of the disk. A small checkpoint has all
# of them read when it is opened; the official ones, with 69,120, when each weight is first used.
MAX_SHAPES_READ_AT_OPEN = 4096


class Fault(NamedTuple):
    """Say how a stored tensor differs from what the configuration asks for."""

    kind: str  # "missing", "wrong" or "extra"
    name: str
    shard: int | None  # the file it is in
    expected: str
    found: str

    def error(self, path, shards) -> CheckpointError:
        """Word it as an error."""
        where = path if self.shard is None else shards[self.shard].path
        return mismatch(f"{where}: tensor {self.name!r}", self.expected, self.found)


class Checkpoint:
    """Give the tensors of one model by name, as views into its files.

    Names are those of a flat checkpoint: without the `language_model.` of nested ones. Views stay
    valid after `close`.
    """

    def __init__(self, shards: list[Shard], tensors: dict[str, Stored]):
        self.shards = shards
        self.tensors = tensors

    @classmethod
    def open(cls, path, config: Config) -> "Checkpoint":
        """Map the safetensors files of a directory and check that they are this model's.

        Raises: CheckpointError naming file and tensor, what was expected and what was found
        """
        with collector_paused():
            shards, found = open_shards(path)
            bound, faults = compare(config, found)
        if faults:
            raise faults[0].error(path, shards)
        self = cls(shards, bound)
        self._check_shapes()
        return self

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors that the model uses, on disk."""
        return sum(stored.stop - stored.start for stored in self.tensors.values())

    def vector(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read a norm's weight or a bias, by its full name, as float32.

        Raises: CheckpointError
        """
        values = self._view(name)
        if values.shape != shape:
            raise mismatch(f"tensor {name!r}", f"shape {shape}", f"{values.shape}")
        is_bf16 = values.dtype == NUMPY_DTYPE["BF16"]
        return quant.bf16_to_f32(values) if is_bf16 else values.astype(np.float32)

    def weight(self, name: str, shape: tuple[int, int]):
        """View a matrix, by its name without ".weight", in the format it is stored in.

        Returns quant.Int4, Fp8, Bf16 or F32.

        Raises: CheckpointError
        """
        if name + ".weight_packed" in self.tensors:
            self._check_shape(name, shape)
            packed, scale = self._view(name + ".weight_packed"), self._view(name + ".weight_scale")
            weight = quant.Int4(packed, scale)
        elif name + ".weight_scale_inv" in self.tensors:
            scale_inv = self._view(name + ".weight_scale_inv")
            weight = quant.Fp8(self._view(name + ".weight"), scale_inv)
        else:
            values = self._view(name + ".weight")
            is_bf16 = values.dtype == NUMPY_DTYPE["BF16"]
            weight = quant.Bf16(values) if is_bf16 else quant.F32(values)
        if weight.shape != shape:
            raise mismatch(f"tensor {name!r}", f"shape {shape}", f"{weight.shape}")
        return weight

    def close(self):
        """Let go of the files; views that are still held keep theirs mapped."""
        self.shards, self.tensors = [], {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _view(self, name: str) -> np.ndarray:
        try:
            shard, dtype, shape, start, _ = self.tensors[name]
        except KeyError:
            raise CheckpointError(
                f"tensor {name!r}: expected one of the open checkpoint's {len(self.tensors)} "
                "tensors, found none of this name"
            ) from None
        return np.ndarray(shape, NUMPY_DTYPE[dtype], self.shards[shard].map, start)

    def _check_shapes(self):
        """Hold the numbers in the `weight_shape` tensors to the shapes of what is packed."""
        ending = ".weight_shape"
        packed = (name[: -len(ending)] for name in self.tensors if name.endswith(ending))
        names = list(islice(packed, MAX_SHAPES_READ_AT_OPEN + 1))  # and not all of 69,120
        if len(names) > MAX_SHAPES_READ_AT_OPEN:
            return
        # A page that is touched brings in its surroundings, with 8 MB of read-ahead the whole file.
        self._advise("MADV_RANDOM")
        for name in names:
            O, n_words = self.tensors[name + ".weight_packed"].shape
            self._check_shape(name, (O, n_words * 8))
        self._advise("MADV_NORMAL")

    def _advise(self, name: str):
        for shard in self.shards:
            if hasattr(mmap, name):  # not on Windows
                shard.map.madvise(getattr(mmap, name))

    def _check_shape(self, name: str, shape: tuple[int, int]):
        found = tuple(self._view(name + ".weight_shape").tolist())
        if found != shape:
            path = self.shards[self.tensors[name + ".weight_shape"].shard].path
            raise mismatch(f"{path}: tensor {name + '.weight_shape'!r}", list(shape), list(found))


def compare(config: Config, found: dict[str, Stored]) -> tuple[dict[str, Stored], list[Fault]]:
    """Pair the tensors that are there with those the model needs; list what does not fit.

    Keys of the result are flat names, those of `found` names as they are in the files. Where a
    tensor is missing, the result has None.
    """
    format_of = layout.format_finder(config.quantization_config, config.tensor_prefix)
    prefix = config.tensor_prefix
    missing, faults, left = [], [], dict(found)
    for tensor in layout.tensors(config):
        format = format_of(tensor)
        for suffix, dtypes, shape in layout.stored_parts(tensor.shape, format):
            name = prefix + tensor.name + suffix
            stored = left.pop(name, None)
            if stored is None:
                missing.append(tensor.name + suffix)
                faults.append(_missing(prefix + tensor.name, suffix, format, found))
                continue
            _, dtype, its_shape, start, _ = stored
            if its_shape != shape or dtype not in dtypes:
                expected = f"{' or '.join(dtypes)} {list(shape)}"
                is_there = f"{dtype} {list(its_shape)}"
                faults.append(Fault("wrong", name, stored.shard, expected, is_there))
            # Safetensors' own writer aligns; the kernels rely on it for what they read in place.
            elif start % 8 and start % layout.BYTES_OF[dtype] and suffix != ".weight_shape":
                expected = f"data at a multiple of {layout.BYTES_OF[dtype]} bytes"
                faults.append(Fault("wrong", name, stored.shard, expected, str(start)))
    for name in sorted(left):
        if not is_unused(name, config):
            expected = "only tensors of the model that config.json describes"
            faults.append(Fault("extra", name, found[name].shard, expected, "this"))
    bound = dict(found)  # a copy, as 208,215 new names one by one take longer, and 20 MB
    for name in left:
        del bound[name]
    if prefix:
        bound = {name.removeprefix(prefix): stored for name, stored in bound.items()}
    bound.update(dict.fromkeys(missing))
    return bound, faults


def _missing(name: str, suffix: str, format: str, found) -> Fault:
    """Word the fault of an absent tensor, which may be there in another format."""
    # Each format's mark is a part that a tensor in the expected one does not have.
    marks = {"int4": ".weight_packed", "fp8": ".weight_scale_inv"}
    if format == "int4":
        marks["plain"] = ".weight"
    for other, mark in marks.items():
        if other != format and name + mark in found:
            expected = f"it {format}, as quantization_config says"
            return Fault("missing", name, None, expected, f"{name + mark!r}, {other}")
    return Fault("missing", name + suffix, None, "it in the files", "none of this name")


def is_unused(name: str, config: Config) -> bool:
    """Say whether a tensor is one that the official files carry and k2ref leaves alone."""
    if name.startswith(("vision_tower.", "mm_projector.")):
        return True
    # Trap: a stale buffer of the wrong size (Megatron-Bridge#1861); rope.py computes its own.
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    # Layers of multi-token prediction follow the last one.
    layer = re.match(re.escape(config.tensor_prefix) + r"model\.layers\.(\d{1,9})\.", name)
    n_beyond = int(layer[1]) - config.num_hidden_layers if layer else -1
    return 0 <= n_beyond < config.num_nextn_predict_layers
