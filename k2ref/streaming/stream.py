"""Streaming: a checkpoint larger than memory, from disk, to the same bits.

A token is multiplied by all dense weights and by 8 of each layer's 384 experts. So the dense
weights are read once, ahead, and stay; experts are read the moment the router has chosen them,
while the shared expert and those that are in memory are computed; and where a budget is set, the
experts that were not used for longest make room. The next layer's experts are not guessed: that was
tried, and read more than it saved.

This file says which bytes of the checkpoint belong together and what fits; `residency.py` brings
them and lets them go, `pages.py` speaks with the system, `meter.py` counts.

What was measured: docs/streaming-notes.md

Chapter 15.
"""

import threading
from contextlib import contextmanager

import numpy as np

from k2ref.streaming import memory as system
from k2ref.streaming.meter import Meter
from k2ref.streaming.pages import PAGE
from k2ref.streaming.residency import Extent, Residency, Unit

STREAM_FROM = 1 << 30  # smaller checkpoints are simply mapped, unless a budget is asked for
SHARE = 0.9  # of the available memory, where no budget is given
OWN = 300 << 20  # what the process needs for itself, where the system does not say
SLACK = 16 << 20  # for what a pass takes beyond the estimate
HEAD_PIECE = 64 << 20  # lm_head is kept, or read and used, in pieces of about this size
MOST_TOKENS = 2048  # in a chunk: beyond that, most experts are read once per chunk anyway
LEAST_TOKENS = 16
SUFFIXES = (".weight_packed", ".weight_scale", ".weight_shape", ".weight", ".weight_scale_inv")
MATRICES = ("gate_proj", "up_proj", "down_proj")


class Stream:
    """The part of one model that is in memory, and the order in which the rest comes.

    `memory` is the budget in bytes for everything: this process's own memory, the caches and
    intermediate results in it, dense weights and experts. None is most of what is available.
    Raises: ValueError for a budget in which one layer cannot be computed.
    """

    def __init__(self, checkpoint, config, files, memory=None, lock=False):
        self.checkpoint, self.config, self.files = checkpoint, config, files
        for file in files:
            file.use_large_pages()
        self._let_go_of_headers()
        self.memory = int(memory or SHARE * (system.available() or 1 << 62))
        self.meter = Meter()
        self.residency = Residency(self.meter)
        self.lock_pages, self.notes = lock, []
        self.one_pass = threading.Lock()
        self.layers = self._dense_units()
        self.experts, self.rows = {}, {}  # (layer, expert) or id -> Unit, made on first use
        self.head = []  # (first row, last row, Unit)
        self.kept, self.passing = set(), None
        self.arriving, self.layer = None, 0

    def read_dense(self, embed_tokens, lm_head, on_progress=None):
        """Read the dense weights that fit, once; `on_progress(done, total)` counts bytes.

        Raises: CheckpointError, and ValueError for a budget that is too small.
        """
        self.embed_tokens, self.head = embed_tokens, self._head_units(lm_head)
        units = [*self.layers, *(unit for *_, unit in self.head)]
        self._choose_kept(units)
        self.residency.keep(self.kept, on_progress)
        if self.lock_pages:
            self._lock()

    @property
    def chunk(self):
        """Tokens that may go through the layers together."""
        return chunk_tokens(self.config, self._free() - self.kept_bytes)

    @property
    def kept_bytes(self):
        """Bytes of the dense weights that stay."""
        return sum(unit.n_bytes for unit in self.kept)

    @contextmanager
    def forward_pass(self, n_tokens, trace):
        """Measure one forward pass, with the budget set for it; passes of one model take turns.

        What a pass that failed had asked for has landed, or was taken back, when this returns.
        """
        with self.one_pass:
            self.meter.begin(n_tokens)
            scratch = scratch_bytes(self.config) * min(n_tokens, self.chunk)
            # A page that two units share is not given back with either of them.
            edges = 2 * PAGE * (len(self.experts) + len(self.rows))
            room = self._free() - self.kept_bytes - scratch - edges
            self.residency.fit(max(0, room))
            faults = self._faults()
            try:
                yield
            finally:
                if self.arriving is not None:
                    self.arriving.close()
                lost = self._faults() - faults
                if lost:  # the system takes pages back: what was in memory may not be any more
                    self.residency.doubt()
                self.meter.end(lost)
            self.meter.passes[-1].trace(trace)

    def enter(self, i):
        """Make layer i's dense weights ready."""
        self.layer = i
        if self.passing is not None:
            self.residency.retire(self.passing)
            self.passing = None
        unit = self.layers[i]
        if unit in self.kept:
            self.residency.keep([unit])  # nothing to do, unless the system took pages back
        else:
            self.passing = unit
            self.residency.fetch([unit])

    def arrivals(self, i, chosen):
        """Yield the experts that layer i's tokens chose in lists, each as soon as it is in memory.

        (T, K) or a list
        Experts are given by number, and the first list holds those that need no reading.
        Raises: CheckpointError for what the disk does not give.
        """
        chosen = np.unique(chosen).tolist()
        units = [self._expert(i, e) for e in chosen]
        number = dict(zip(units, chosen, strict=True))
        self.arriving = self.residency.bring(units)
        for landed in self.arriving:
            yield [number[unit] for unit in landed]

    def fetch_rows(self, ids):
        """Read the rows of the embedding matrix that these ids look up: others are not needed."""
        self.residency.fetch([self._row(int(i)) for i in np.unique(ids)])

    def status(self):
        """Say in a few words what is going on, while it is: for a line that shows progress."""
        layer = f"layer {self.layer + 1}/{len(self.layers)}"
        read, time_s = self.meter.so_far()
        if read is None or not time_s:
            return layer
        return f"{layer}, {read / 1e9:.1f} GB from disk at {read / time_s / 1e9:.2f} GB/s"

    def pieces_of_head(self):
        """Yield (first row, last row) of pieces of lm_head: those that are kept, then the others.

        (0, None) stands for all rows at once.
        Raises: CheckpointError for what the disk does not give.
        """
        loose = {unit: rows for *rows, unit in self.head if unit not in self.kept}
        self.residency.keep(unit for *_, unit in self.head if unit in self.kept)
        if not loose:
            yield 0, None
            return
        yield from ((start, stop) for start, stop, unit in self.head if unit in self.kept)
        self.arriving = self.residency.bring(list(loose))
        for landed in self.arriving:
            for unit in landed:
                yield loose[unit]
                self.residency.retire(unit)

    def _free(self):
        """Count the bytes of the budget that weights and intermediate results may have."""
        return self.memory - (system.own() or OWN) - SLACK

    def _let_go_of_headers(self):
        """Give back what opening has read: the headers, and as much again that was read ahead."""
        begin = {}
        for stored in self.checkpoint.tensors.values():
            begin[stored.shard] = min(stored.start, begin.get(stored.shard, stored.start))
        for shard, start in begin.items():
            self.files[shard].let_go(0, 2 * start)

    def _dense_units(self):
        """Make one Unit of each layer's matrices that every token uses; ask for the vectors.

        Norms and biases are copied when the model is bound, 4 pages each in 300 places: asked for
        together here, they cost one wait instead of 300.
        """
        layers = [[] for _ in range(self.config.num_hidden_layers)]
        for name, stored in self.checkpoint.tensors.items():
            if ".experts." in name or not name.startswith("model."):
                continue
            extent = Extent(self.files[stored.shard], stored.start, stored.stop)
            if len(stored.shape) == 1:
                extent.file.ask(extent.start, extent.stop)
            elif name.startswith("model.layers."):
                layers[int(name.split(".", 3)[2])].append(extent)
        return [Unit(merged(extents)) for extents in layers]

    def _head_units(self, lm_head):
        W = lm_head.shape[0]
        n_pieces = -(-lm_head.n_bytes // HEAD_PIECE)
        cuts = [W * k // n_pieces for k in range(n_pieces + 1)]
        pieces = []
        for start, stop in zip(cuts, cuts[1:], strict=False):
            arrays = lm_head.rows(start, stop).arrays
            extents = [self._extent_of(array) for array in arrays if array is not None]
            pieces.append((start, stop, Unit(merged(extents))))
        return pieces

    def _expert(self, i, e):
        """Return the Unit of an expert: its nine tensors, or three where it is not quantized."""
        if (i, e) not in self.experts:
            tensors = self.checkpoint.tensors
            names = (f"model.layers.{i}.mlp.experts.{e}.{matrix}{suffix}"
                     for matrix in MATRICES for suffix in SUFFIXES)
            found = (tensors[name] for name in names if name in tensors)
            extents = [Extent(self.files[s.shard], s.start, s.stop) for s in found]
            self.experts[i, e] = Unit(merged(extents))
        return self.experts[i, e]

    def _row(self, i):
        """Return the Unit of a row of the embedding matrix."""
        if i not in self.rows:
            arrays = self.embed_tokens.rows(i, i + 1).arrays
            extents = [self._extent_of(array) for array in arrays if array is not None]
            self.rows[i] = Unit(merged(extents))
        return self.rows[i]

    def _extent_of(self, array):
        for file in self.files:
            place = file.range_of(array)
            if place is not None:
                return Extent(file, *place)
        raise ValueError("expected an array of the checkpoint's files, found another")

    def _choose_kept(self, units):
        """Keep all dense units if they fit beside the experts of one token, else as many as do."""
        config = self.config
        moe = [i for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]
        experts = self._expert(moe[0], 0).n_bytes * config.num_experts_per_tok if moe else 0
        room = self._free() - experts - scratch_bytes(config) * LEAST_TOKENS
        kept, loose = sorted(units, key=lambda unit: unit.n_bytes), []
        room -= sum(unit.n_bytes for unit in kept)
        while room < 0 and kept:  # the smallest pass through, and the largest of them needs room
            loose.append(kept.pop(0))
            room += loose[-2].n_bytes if len(loose) > 1 else 0
        if room < 0:
            raise ValueError(f"memory: expected at least {(self.memory - room) / 1e9:.1f} GB, "
                             "what one layer of this checkpoint takes, found "
                             f"{self.memory / 1e9:.1f} GB; give more")
        for unit in reversed(loose[:-1]):
            if unit.n_bytes <= room:
                kept.append(unit)
                room -= unit.n_bytes
        self.kept.update(kept)

    def _faults(self):
        return system.disk_faults() - self.residency.reader_faults

    def _lock(self):
        extents = [extent for unit in self.kept for extent in unit.extents]
        if not all([file.lock(start, stop) for file, start, stop in extents]):
            self.notes.append("the system does not let this process lock its dense weights in "
                              "memory (ulimit -l); they stay as long as nothing else needs room")


def scratch_bytes(config):
    """Estimate the bytes of intermediate results for each token of a chunk."""
    c = config
    D, H, K = c.hidden_size, c.num_attention_heads, c.num_experts_per_tok
    per_head = 3 * (c.kv_lora_rank + c.qk_rope_head_dim) + 2 * (c.qk_head_dim + c.v_head_dim)
    inner = 3 * max(c.intermediate_size, K * c.moe_intermediate_size)
    return 4 * (D * (3 * K + 6) + H * per_head + inner + c.n_routed_experts)


def chunk_tokens(config, room):
    """Count the tokens of a chunk: an eighth of the `room` bytes beside dense weights is theirs."""
    return max(LEAST_TOKENS, min(MOST_TOKENS, int(max(0, room) / 8 / scratch_bytes(config))))


def merged(extents):
    """Join extents between which no whole page lies, in the order of the disk."""
    joined = []
    for extent in sorted(extents, key=lambda e: (str(e.file.path), e.start)):
        last = joined[-1] if joined else None
        if last and last.file is extent.file and extent.start - last.stop <= PAGE:
            joined[-1] = Extent(last.file, last.start, max(last.stop, extent.stop))
        else:
            joined.append(extent)
    return tuple(joined)
