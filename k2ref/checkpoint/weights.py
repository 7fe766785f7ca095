"""A checkpoint on disk as the weights of a model: every tensor found, checked, and mapped.

The files are read in place: `weight` returns views into the memory map, and nothing is loaded until
it is multiplied by. All names, dtypes and shapes are held to the configuration when the checkpoint
is opened; the views themselves are made when asked for, as 69,000 expert matrices would take time
and memory that a prompt never needs. `layout.py` says what is expected, `shards.py` what is there.

Chapter 03.
"""

import mmap
import re
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np

from k2ref import quant
from k2ref.checkpoint import layout
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.shards import (
    CheckpointError,
    Shard,
    Stored,
    collector_paused,
    mismatch,
    open_shards,
)
from k2ref.doors.intake import quoted

NUMPY_DTYPE = {
    "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"), "F8_E4M3": np.dtype("u1"),
    "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
}  # fmt: skip
# Reading the numbers in a `weight_shape` brings in a page of the disk. A small checkpoint has all
# of them read when it is opened; the official ones, with 69,120, when each weight is first used.
MAX_SHAPES_READ_AT_OPEN = 4096
# A list of what is missing may be as long as all that an official checkpoint has, 69,608 matrices
# and vectors, and not much longer.
MOST_MISSING = 80_000


class Fault(NamedTuple):
    """A difference between a stored tensor and the one that the configuration asks for."""

    kind: str  # "missing", "wrong" or "extra"
    name: str
    shard: int | None  # the file it is in
    expected: str
    found: str

    def error(self, path, shards) -> CheckpointError:
        """Word it as an error."""
        where = path if self.shard is None else shards[self.shard].path
        return mismatch(f"{where}: tensor {quoted(self.name)}", self.expected, self.found)


class Checkpoint:
    """The tensors of one model by name, as views into its files.

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
        if not faults:
            faults = wrong_shapes(shards, bound)
        if faults:
            raise faults[0].error(path, shards)
        return cls(shards, bound)

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
            raise mismatch(f"tensor {quoted(name)}", f"shape {shape}", f"{values.shape}")
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
            raise mismatch(f"tensor {quoted(name)}", f"shape {shape}", f"{weight.shape}")
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
                f"tensor {quoted(name)}: expected one of the open checkpoint's {len(self.tensors)} "
                "tensors, found none of this name"
            ) from None
        return np.ndarray(shape, NUMPY_DTYPE[dtype], self.shards[shard].map, start)

    def _check_shape(self, name: str, shape: tuple[int, int]):
        fault = _wrong_shape(self.shards, self.tensors, name, shape)
        if fault is not None:
            raise fault.error(None, self.shards)


def wrong_shapes(shards: list[Shard], bound: dict[str, Stored | None]) -> list[Fault]:
    """Hold the numbers in the `weight_shape` tensors to the shapes of what is packed."""
    ending = ".weight_shape"
    packed = (name[: -len(ending)] for name, stored in bound.items()
              if stored is not None and name.endswith(ending))  # fmt: skip
    names = list(islice(packed, MAX_SHAPES_READ_AT_OPEN + 1))  # and not all of 69,120
    if len(names) > MAX_SHAPES_READ_AT_OPEN:
        return []
    # A page that is touched brings in its surroundings, with 8 MB of read-ahead the whole file.
    _advise(shards, "MADV_RANDOM")
    found = []
    for name in names:
        words = bound[name + ".weight_packed"]
        if words is not None and len(words.shape) == 2:  # else that is the fault
            found.append(_wrong_shape(shards, bound, name, (words.shape[0], words.shape[1] * 8)))
    _advise(shards, "MADV_NORMAL")
    return [fault for fault in found if fault is not None]


def _advise(shards: list[Shard], name: str):
    for shard in shards:
        if hasattr(mmap, name):  # not on Windows
            shard.map.madvise(getattr(mmap, name))


def _wrong_shape(shards, tensors, name: str, shape: tuple[int, int]) -> Fault | None:
    name += ".weight_shape"
    shard, dtype, n, start, stop = tensors[name]
    if n != (2,) or dtype not in ("I32", "I64"):
        return None  # `compare` has said so
    found = np.ndarray((2,), NUMPY_DTYPE[dtype], shards[shard].map, start).tolist()
    if found == list(shape):
        return None
    return Fault("wrong", name, shard, str(list(shape)), str(found))


def _require_as_many(config: Config, n_found: int):
    """Refuse a model of far more tensors than there are, before their names are made.

    Raises: CheckpointError
    """
    n_moe = max(0, config.num_hidden_layers - config.first_k_dense_replace)
    n_expected = 8 * config.num_hidden_layers
    n_expected += 3 * config.n_routed_experts * (n_moe // config.moe_layer_freq)
    if n_expected > n_found + MOST_MISSING:
        raise mismatch(
            "the checkpoint",
            f"at least {n_expected} tensors, as config.json says ({config.num_hidden_layers} "
            f"num_hidden_layers, {config.n_routed_experts} n_routed_experts)",
            f"{n_found} in its files",
        )


def compare(config: Config, found: dict[str, Stored]) -> tuple[dict[str, Stored], list[Fault]]:
    """Pair the tensors that are there with those the model needs; list what does not fit.

    Keys of the result are flat names, those of `found` names as they are in the files. Where a
    tensor is missing, the result has None.
    """
    _require_as_many(config, len(found))
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
    is_unused = unused_finder(config, left)
    for name in sorted(left):
        if not is_unused(name):
            expected = "only tensors of the model that config.json describes"
            if (_layer(name, config) or 0) >= config.num_hidden_layers:
                last = config.num_hidden_layers - 1
                expected = (f"layers 0 to {last}, as num_hidden_layers says, or a layer that "
                            "predicts further tokens, which has an eh_proj")
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


def unused_finder(config: Config, names) -> Callable[[str], bool]:
    """Return the function that says of one of these names whether k2ref leaves the tensor alone.

    The official files carry more than the language model; `names` are those that it has no use for.
    """
    # Layers of multi-token prediction follow the last one; what shows them is that they project
    # embeddings and hidden state together. Some config.json do not count them.
    first = config.num_hidden_layers
    beyond = set(range(first, first + config.num_nextn_predict_layers))
    beyond |= {_layer(name, config) for name in names if name.endswith(".eh_proj.weight")}

    def is_unused(name: str) -> bool:
        if name.startswith(("vision_tower.", "mm_projector.")):
            return True
        # Trap: a stale buffer of the wrong size (Megatron-Bridge#1861); rope.py computes its own.
        if name.endswith(".rotary_emb.inv_freq"):
            return True
        layer = _layer(name, config)
        return layer is not None and layer >= first and layer in beyond

    return is_unused


def _layer(name: str, config: Config) -> int | None:
    """Return the number of the layer that a tensor's full name puts it in."""
    found = re.match(re.escape(config.tensor_prefix) + r"model\.layers\.(\d{1,9})\.", name)
    return int(found[1]) if found else None
