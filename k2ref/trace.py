"""Named intermediates of a forward pass: record them, save them, and find the first difference.

    python -m k2ref "prompt" --trace a.npz                 the command records prompt and reply
    trace = Trace(only="layers.3.*")                       and so does a program
    forward(model, ids, trace=trace)
    trace.save("b.npz")
    print(first_difference(load("a.npz"), load("b.npz"), rtol=1e-4))

Names follow the way through the model: embed, layers.0.attn.h, ..., layers.0.out, norm, logits;
STAGES is the list. Row t of each array belongs to token t. A file also holds `ids` and `position`
of the tokens, the seconds `time_s` of each stage, and in `about` what else is needed to read it, as
JSON. What two engines disagree on first is where the bug is.

Chapter 16.
"""

import json
import time
import zipfile
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from k2ref.doors.atomic import replacing

# Name, axes of one token's row, and what it is; a name with {i} stands in each layer that has it.
STAGES = (
    ("embed", "D", "the token's row of the embedding matrix: the residual at the start"),
    ("layers.{i}.attn.h", "D", "the residual normalised: what attention reads"),
    ("layers.{i}.attn.q_nope", "H N", "queries, the part without position"),
    ("layers.{i}.attn.q_rope", "H R", "queries, the part with position, rotated"),
    ("layers.{i}.attn.c_kv", "C", "the latent that the cache keeps, normalised"),
    ("layers.{i}.attn.k_rope", "R", "the key with position that all heads share, rotated"),
    ("layers.{i}.attn.heads", "H V", "what each head brings back"),
    ("layers.{i}.attn.out", "D", "o_proj of the heads: what attention adds to the residual"),
    ("layers.{i}.mid", "D", "the residual after attention"),
    ("layers.{i}.h", "D", "the same normalised: what the MLP or the experts read"),
    ("layers.{i}.mlp.out", "D", "what a dense layer's MLP adds to the residual"),
    ("layers.{i}.moe.chosen", "K", "the experts chosen, best first (int64)"),
    ("layers.{i}.moe.mix", "K", "their weights"),
    ("layers.{i}.moe.out", "D", "what chosen and shared experts add to the residual"),
    ("layers.{i}.out", "D", "the residual after the layer"),
    ("norm", "D", "the last residual normalised"),
    ("logits", "W", "a number for each token of the vocabulary"),
)
AXES = {"D": "hidden_size", "H": "num_attention_heads", "N": "qk_nope_head_dim",
        "R": "qk_rope_head_dim", "C": "kv_lora_rank", "V": "v_head_dim",
        "K": "num_experts_per_tok", "W": "vocab_size"}  # fmt: skip
TOKENS = ("ids", "position")  # which tokens the rows belong to
MEASURED = ("stream.", "time_s")  # bytes and seconds: names that begin so differ in every run
ABOUT = "about"


def stages(config):
    """List what a pass records of each token: dict of name -> (shape, dtype), in order.

    A streamed model records five numbers more, `stream.wanted` to `stream.time_s` (meter.py).
    """
    found = {}

    def add(name, axes, i=None):
        shape = tuple(getattr(config, AXES[axis]) for axis in axes.split())
        dtype = np.int64 if name.endswith(".chosen") else np.float32
        found[name.format(i=i)] = shape, np.dtype(dtype)

    in_layers = [stage for stage in STAGES if "{i}" in stage[0]]
    add(*STAGES[0][:2])
    for i in range(config.num_hidden_layers):
        absent = ".mlp." if config.is_moe_layer(i) else ".moe."
        for name, axes, _ in in_layers:
            if absent not in name:
                add(name, axes, i)
    for name, axes, _ in STAGES[-2:]:
        add(name, axes)
    return found


class Difference(NamedTuple):
    """The place where two traces part: array, token, element, and both values."""

    name: str
    token: int
    element: tuple[int, ...]
    a: float
    b: float

    @property
    def gap(self):
        """Return how far apart the two values are."""
        return abs(self.a - self.b)

    def __str__(self):
        element = f", element {', '.join(map(str, self.element))}" if self.element else ""
        values = f"{self.a:.9g} against {self.b:.9g}"
        return f"{self.name}, token {self.token}{element}: {values}, {self.gap:.3g} apart"


class Trace:
    """The arrays of forward passes by name, in the order in which they were computed.

    `only` is a pattern of names, or several: "layers.3.*", ["*.moe.chosen", "logits"].
    """

    def __init__(self, only="*"):
        self.only = [only] if isinstance(only, str) else list(only)
        self._pieces = {}  # by name, an array for each time it was recorded
        self._passes = []  # of each pass: ids, first position, seconds by stage
        self._since = None  # when the work began that ends with the next record
        self._before = {}  # pieces of each name before the present pass

    def wants(self, *names):
        """Say whether one of these names is recorded."""
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.only)

    def begin(self, ids, position):
        """Note that a pass of these tokens begins, the first of them at this position."""
        self._before = {name: len(pieces) for name, pieces in self._pieces.items()}
        self._passes.append((np.array(ids, np.int64), position, {}))
        self._since = time.perf_counter()

    def rewind(self):
        """Forget the present pass: it failed, and not all of it was recorded."""
        self._passes.pop()
        self._pieces = {name: self._pieces[name][:n] for name, n in self._before.items()}

    def record(self, name, array):
        """Keep a copy of an array (T, ...) under this name; later tokens are appended."""
        self.record_all("", **{name: array})

    def record_all(self, prefix, **arrays):
        """Keep several arrays whose names share a prefix, computed since the last record."""
        now = time.perf_counter()
        if self._since is not None and self._passes:
            name = prefix + list(arrays)[-1]
            stage, seconds = name.rpartition(".")[0] or name, self._passes[-1][2]
            seconds[stage] = seconds.get(stage, 0.0) + now - self._since
        for name, array in arrays.items():
            if self.wants(prefix + name):
                self._pieces.setdefault(prefix + name, []).append(np.array(array))
        self._since = time.perf_counter()  # copying is no part of any stage

    def __getitem__(self, name):
        """Return the recorded array of this name, all tokens joined: (T, ...)."""
        return np.concatenate(self._pieces[name])

    @property
    def arrays(self):
        """The recorded arrays by name, all tokens of each joined: dict of (T, ...)."""
        return {name: self[name] for name in self._pieces}

    @property
    def n_tokens(self):
        """The tokens that were recorded."""
        return sum(len(ids) for ids, _, _ in self._passes)

    def n_bytes_per_token(self, config):
        """Count the bytes that are recorded of each token."""
        return sum(dtype.itemsize * int(np.prod(shape, dtype=np.int64))
                   for name, (shape, dtype) in stages(config).items() if self.wants(name))

    def context(self, about=None):
        """Return what belongs to the arrays: `ids`, `position`, `time_s` (T, stages), `about`.

        A pass's seconds are shared evenly by its tokens; the columns are `about["stages"]`.
        """
        timed = list(dict.fromkeys(stage for _, _, seconds in self._passes for stage in seconds))
        time_s = [np.tile([seconds.get(stage, 0.0) / max(1, len(ids)) for stage in timed],
                          (len(ids), 1)) for ids, _, seconds in self._passes]
        return {
            "ids": np.concatenate([ids for ids, _, _ in self._passes] or [np.empty(0, np.int64)]),
            "position": np.concatenate([np.arange(start, start + len(ids))
                                        for ids, start, _ in self._passes] or [np.empty(0, int)]),
            "time_s": np.concatenate(time_s or [np.empty((0, 0))]),
            ABOUT: np.array(json.dumps({"stages": timed, **(about or {})})),
        }

    def save(self, path, about=None, only="*"):
        """Write a NumPy .npz file, whole or not at all: the arrays, and what belongs to them.

        `about` is what else JSON can hold of the run; `only` chooses names again.
        Raises: OSError
        """
        chosen = Trace(only)
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            pieces = {name: [array] for name, array in self.context(about).items()}
            pieces |= {name: p for name, p in self._pieces.items() if chosen.wants(name)}
            for name, arrays in pieces.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_array(member, arrays)


def _write_array(file, pieces):
    """Write pieces as one array of the .npy format, without joining them in memory."""
    n, rest = sum(len(piece) for piece in pieces if piece.ndim), pieces[0].shape[1:]
    np.lib.format.write_array_header_1_0(file, {
        "descr": np.lib.format.dtype_to_descr(pieces[0].dtype), "fortran_order": False,
        "shape": (n, *rest) if pieces[0].ndim else ()})
    for piece in pieces:
        file.write(piece.tobytes())


def load(path):
    """Read what `Trace.save` wrote, or another engine: dict of arrays, in order."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def first_difference(a, b, rtol=0.0):
    """Return the first Difference between two dicts of arrays, or None if there is none.

    Arrays are compared in a's order, `ids` and `position` only where both have them, what was
    measured not at all. Elements differ when |a - b| > rtol * the largest finite |a| of their row,
    or when only one of them is NaN; integers differ when they are not equal.
    Raises: ValueError when the traces do not hold the same names and shapes.
    """
    a, b = (_comparable(one, other) for one, other in ((a, b), (b, a)))
    if a.keys() != b.keys():
        raise ValueError(f"the traces hold different names: {sorted(a.keys() ^ b.keys())}")
    for name, left in a.items():
        right = b[name]
        if left.shape != right.shape:
            raise ValueError(f"{name}: one trace holds shape {left.shape}, the other {right.shape}")
        if left.dtype.kind == "f":
            size = np.abs(np.where(np.isfinite(left), left, 0))
            size = size.max(axis=tuple(range(1, left.ndim)), keepdims=True, initial=0)
            with np.errstate(invalid="ignore"):  # inf - inf
                near = np.abs(left - right) <= rtol * size
            equal = near | (left == right) | (np.isnan(left) & np.isnan(right))
        else:
            equal = left == right
        if not equal.all():
            token, *element = (int(i) for i in np.argwhere(~equal)[0])
            where = (token, *element)
            return Difference(name, token, tuple(element), left[where].item(), right[where].item())
    return None


def _comparable(arrays, others):
    """Leave out what is no stage of the model: measurements, and what only one of two knows."""
    return {name: array for name, array in arrays.items()
            if name != ABOUT and not name.startswith(MEASURED)
            and (name not in TOKENS or name in others)}
