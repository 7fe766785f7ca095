"""One run through the model: what a forward pass needs besides mathematics.

The mathematics (model.py, attention.py, moe.py) takes a `Run` and asks it for the numbers of the
model, the cache and the angles of the present tokens; it tells it what to record. Where nothing is
recorded, `Silent` stands for the trace, and where all weights are mapped, `Mapped` stands for the
stream, so the mathematics never asks whether there is one.

Chapter 11.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from k2ref.cache import KVCache
from k2ref.checkpoint.config import Config
from k2ref.rope import cos_sin

CHUNK = 512  # tokens that go through the layers together; bounds memory, changes no bit


class Silent:
    """A trace that records nothing."""

    def begin(self, ids, position):
        """Ignore that a pass begins."""

    def record(self, name, array):
        """Ignore an array."""

    def record_all(self, prefix, **arrays):
        """Ignore several arrays."""

    def rewind(self):
        """Ignore that a pass has failed."""

    def wants(self, *names):
        """Say that no name is recorded."""
        return False


class Mapped:
    """The weights of a model whose files are mapped: all of them are ready at any time."""

    @property
    def chunk(self):
        """Tokens that go through the layers together."""
        return CHUNK

    @contextmanager
    def forward_pass(self, n_tokens, trace):
        """Let a pass begin at once."""
        yield

    def fetch_rows(self, ids):
        """Read nothing: the rows of these ids are there."""

    def enter(self, i):
        """Read nothing: the weights of layer i are there."""

    def arrivals(self, i, chosen):
        """Name no order: all experts are there at once."""

    def pieces_of_head(self):
        """Give the rows of lm_head in one piece, from the first to the end."""
        return [(0, None)]


@dataclass
class Run:
    """The state of one forward pass: what it is of, and where it stands.

    `cos` and `sin` (T, R/2) are the angles of the present tokens, `i` is the present layer.
    """

    config: Config
    cache: KVCache
    threads: int | None = None
    trace: object = field(default_factory=Silent)
    weights: object = field(default_factory=Mapped)
    last_only: bool = False
    ids: np.ndarray = ()
    i: int | None = None
    cos: np.ndarray | None = None
    sin: np.ndarray | None = None
    _rows: list = field(default_factory=list, init=False)  # those that logits are computed of
    _lost: bool = field(default=False, init=False)  # whether another row was not finite

    def chunks(self):
        """Yield the ids in pieces of a chunk, and move the cache on behind each."""
        chunk = self.weights.chunk
        for start in range(0, len(self.ids), chunk):
            ids = self.ids[start:start + chunk]
            self.weights.fetch_rows(ids)
            self.stand_before(len(ids))
            yield ids
            self.cache.length += len(ids)

    def stand_before(self, n_tokens, i=None):
        """Take the angles of the next tokens after those in the cache, and layer i as present."""
        positions = np.arange(self.cache.length, self.cache.length + n_tokens)
        self.cos, self.sin = cos_sin(self.config, positions)
        self.i = i

    def through(self, layers):
        """Yield each layer once its weights are ready."""
        for self.i, layer in enumerate(layers):
            self.weights.enter(self.i)
            yield layer
        self.i = None

    def record(self, part="", **arrays):
        """Record intermediates of the present layer, or outside the layers of the model."""
        layer = "" if self.i is None else f"layers.{self.i}."
        self.trace.record_all(layer + part, **arrays)

    def arrivals(self, chosen):
        """Give the experts that the tokens chose in lists, each once it is in memory, or None."""
        return self.weights.arrivals(self.i, chosen)

    def keep(self, x):
        """Keep the rows of a chunk that logits are computed of: all, or the last one."""
        every = not self.last_only or self.trace.wants("norm", "logits")
        self._rows = [*self._rows, x] if every else [x[-1:]]
        self._lost = self._lost or (self.last_only and not np.isfinite(x[:-1]).all())

    def kept(self):
        """Return the rows that were kept: (T, D)."""
        return np.concatenate([np.empty((0, self.config.hidden_size), np.float32), *self._rows])

    def answer(self, logits):
        """Return what was asked for: all rows, or the last, NaN if a row before it was lost."""
        if not self.last_only:
            return logits
        return np.full_like(logits[-1:], np.nan) if self._lost else logits[-1:]


@contextmanager
def running(model, ids, cache, trace, last_only):
    """Check what a pass is given, let it have its turn, and take back what a failed one did.

    Raises: ValueError
    """
    ids = _check_ids(ids, model.config)
    cache = KVCache(model.config, max(1, len(ids))) if cache is None else cache
    limit = min(model.config.max_position_embeddings, cache.capacity)
    if cache.length + len(ids) > limit:
        raise ValueError(f"the context of {limit} tokens is too short for {len(ids)} tokens after "
                         f"the {cache.length} in the cache; shorten the prompt")
    trace = model.trace if trace is None else trace
    trace = Silent() if trace is None or not len(ids) else trace
    weights, before = model.stream or Mapped(), cache.length
    trace.begin(ids, before)
    try:
        with weights.forward_pass(len(ids), trace):
            yield Run(model.config, cache, model.threads, trace, weights, last_only, ids)
        for file in model.files:  # weights that changed meanwhile make no logits
            file.check()
    except BaseException:
        trace.rewind()
        cache.truncate(before)
        raise


def _check_ids(ids, config):
    ids = np.asarray(ids)
    if ids.size == 0:
        ids = ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids: expected a 1-d sequence of whole numbers, found {ids.ndim}-d "
                         f"{ids.dtype}")
    if ids.size and not (0 <= ids.min() and ids.max() < config.vocab_size):
        raise ValueError(f"ids: expected 0 to {config.vocab_size - 1}, found {ids.min()} to "
                         f"{ids.max()}")
    return ids
