"""The model: 61 times attention and experts around one residual stream, then the logits.

`load` binds every weight of a checkpoint once, as views into its memory map, and `forward` is
everything between token ids and logits. There is no batch axis: one sequence of T tokens.

Chapter 11.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from k2ref import attention as attn
from k2ref import moe as experts
from k2ref import ops
from k2ref.attention import KVCache
from k2ref.checkpoint.companions import read_small_files
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint
from k2ref.quant import bf16_to_f32
from k2ref.rope import cos_sin
from k2ref.streaming.pages import File
from k2ref.streaming.stream import STREAM_FROM, Stream
from k2ref.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent / "tiny"
CHUNK = 512  # tokens that go through the layers together; bounds memory, changes no bit


@dataclass(frozen=True)
class Layer:
    """Hold one block: two norms (D,), attention, and a dense MLP or a mixture of experts."""

    input_layernorm: np.ndarray
    attention: attn.AttentionWeights
    post_attention_layernorm: np.ndarray
    mlp: experts.Mlp | experts.Moe


@dataclass(frozen=True)
class Model:
    """A checkpoint bound to its configuration and tokenizer: what `load` returns."""

    config: Config
    tokenizer: Tokenizer | None
    embed_tokens: object  # (W, D)
    layers: list
    norm: np.ndarray  # (D,)
    lm_head: object  # (W, D)
    checkpoint: Checkpoint
    threads: int
    generation_defaults: dict = field(default_factory=dict)  # generation_config.json
    files: list = field(default_factory=list)  # pages.File of each shard
    stream: Stream | None = None  # None: the files are mapped, and the system does what it likes
    trace: object = None  # a trace.Trace that records every pass; `dataclasses.replace` sets it

    @property
    def chunk(self):
        """Tokens that go through the layers together; a prompt is best read in such pieces."""
        return self.stream.chunk if self.stream else CHUNK

    def bytes_per_token(self):
        """Count the bytes of weights that one decoded token reads, chosen experts included."""
        return self.config.n_bytes_per_token


def load(path=None, threads=None, memory=None, lock=False, on_progress=None, style=None):
    """Open a checkpoint directory as downloaded from the hub; without a path, the embedded model.

    str or Path, int, int, bool, callable, str -> Model

    `threads` defaults to the physical cores. A directory without `tiktoken.model` gives a model
    whose `tokenizer` is None. A small checkpoint is mapped, not read. Of a large one, or with a
    budget of `memory` bytes, the dense weights are read here, `on_progress(done, total)` counting
    bytes, and experts when they are chosen (stream.py); `lock` asks the system to keep what is
    read here, whatever others need. `style` is that of its conversations, by default what the
    files say (styles.py).
    Raises: ConfigError, CheckpointError, TokenizerError; ValueError for threads, K2REF_KERNELS, or
    a budget that is too small; ChatError for a style that is none.
    """
    path = EMBEDDED if path is None else Path(path)
    threads = ops.n_threads(threads)
    ops.kernels_name()  # refuses a K2REF_KERNELS that this machine cannot run
    config = Config.from_dir(path)
    tokenizer, defaults = read_small_files(path, config, style)
    checkpoint = Checkpoint.open(path, config)
    files = [File(shard) for shard in checkpoint.shards]
    stream = None
    if memory is not None or sum(len(file.bytes) for file in files) >= STREAM_FROM:
        stream = Stream(checkpoint, config, files, memory, lock)
    W, D = config.vocab_size, config.hidden_size
    model = Model(
        config=config,
        tokenizer=tokenizer,
        files=files,
        stream=stream,
        embed_tokens=checkpoint.weight("model.embed_tokens", (W, D)),
        layers=[bind_layer(checkpoint, config, i) for i in range(config.num_hidden_layers)],
        norm=checkpoint.vector("model.norm.weight", (D,)),
        lm_head=checkpoint.weight("lm_head", (W, D)),
        checkpoint=checkpoint,
        threads=threads,
        generation_defaults=defaults,
    )
    if stream:
        stream.read_dense(model.lm_head, on_progress)
    return model


def bind_layer(checkpoint, config, i):
    """Find layer i's weights; views, no copies.

    Raises: CheckpointError
    """
    at, D = f"model.layers.{i}.", (config.hidden_size,)
    if config.is_moe_layer(i):
        mlp = experts.bind_moe(checkpoint, config, at + "mlp.")
    else:
        mlp = experts.bind_mlp(checkpoint, config, at + "mlp.", config.intermediate_size)
    return Layer(checkpoint.vector(at + "input_layernorm.weight", D),
                 attn.bind(checkpoint, config, at + "self_attn."),
                 checkpoint.vector(at + "post_attention_layernorm.weight", D), mlp)


def embed(model, ids):
    """Look up each token's row of the embedding matrix.

    (T,) -> (T, D)
    """
    w = model.embed_tokens
    data, scale = w.arrays
    if scale is not None:
        return np.concatenate([w.rows(i, i + 1).dequantize() for i in ids])
    return bf16_to_f32(data[ids]) if data.dtype == np.uint16 else data[ids]


def block(x, layer, cache, i, cos, sin, config, threads=None, trace=None, stream=None):
    """Run layer i: x + attention(norm(x)), then the same with the MLP or the experts.

    (T, D) -> (T, D)

    Source: modeling_deepseek.py, DeepseekV3DecoderLayer.
    """
    h = ops.rms_norm(x, layer.input_layernorm, config.rms_norm_eps)
    x = x + attn.attention(h, layer.attention, cache, i, cos, sin, config, threads, trace)
    h = ops.rms_norm(x, layer.post_attention_layernorm, config.rms_norm_eps)
    if trace is not None:
        trace.record_all(f"layers.{i}.", mid=x, h=h)
    if isinstance(layer.mlp, experts.Moe):
        y = experts.moe(h, layer.mlp, i, config, threads, trace, stream)
    else:
        y = experts.mlp(h, layer.mlp, threads)
        if trace is not None:
            trace.record(f"layers.{i}.mlp.out", y)
    x = x + y
    if trace is not None:
        trace.record(f"layers.{i}.out", x)
    return x


def forward(model, ids, cache=None, trace=None, last_only=False):
    """Compute the logits that follow each token, given the tokens in the cache before it.

    (T,) -> (T, W)

    float32. The cache, if given, is extended by the T tokens, or left as it was if anything fails.
    `last_only` gives the last row alone, (1, W); it is NaN if anything before it is not finite. The
    bits of a row do not depend on how the tokens were cut into calls, on the cache, or on the
    number of threads. A `trace`, by default the model's, records the intermediates (trace.py), and
    none of a pass that fails.
    Raises: ValueError for ids that are not in the vocabulary or do not fit the context.
    """
    ids = _check_ids(ids, model.config)
    cache = KVCache(model.config, max(1, len(ids))) if cache is None else cache
    limit = min(model.config.max_position_embeddings, cache.capacity)
    if cache.length + len(ids) > limit:
        raise ValueError(f"the context of {limit} tokens is too short for {len(ids)} tokens after "
                         f"the {cache.length} in the cache; shorten the prompt")
    before, trace = cache.length, model.trace if trace is None else trace
    if trace is not None:
        trace.begin(ids, before)
    try:
        with model.stream.forward_pass(len(ids)) if model.stream else nullcontext():
            logits = _logits(model, ids, cache, trace, last_only)
        if trace is not None and model.stream:
            model.stream.meter.passes[-1].trace(trace)
        for file in model.files:  # weights that changed meanwhile make no logits
            file.check()
    except BaseException:
        if trace is not None:
            trace.rewind()
        cache.truncate(before)
        raise
    return logits


def _logits(model, ids, cache, trace, last_only):
    """Send the ids through the model, a chunk at a time: (T,) -> (T, W)."""
    rows, chunk = [], model.chunk
    every = not last_only or (trace is not None and trace.wants("norm", "logits"))
    lost = False  # numbers that are not finite, in a row of which nothing would be seen
    for start in range(0, len(ids), chunk):
        x = _layers(model, ids[start:start + chunk], cache, trace)
        rows = [*rows, x] if every else [x[-1:]]
        lost = lost or (last_only and not np.isfinite(x[:-1]).all())
    if not rows:
        return np.empty((0, model.config.vocab_size), np.float32)
    x = ops.rms_norm(np.concatenate(rows), model.norm, model.config.rms_norm_eps)
    linear = model.stream.logits if model.stream else ops.linear
    logits = linear(x, model.lm_head, model.threads)
    if trace is not None:
        trace.record_all("", norm=x, logits=logits)
    if last_only:
        return np.full_like(logits[-1:], np.nan) if lost else logits[-1:]
    return logits


def _layers(model, ids, cache, trace):
    """Send one chunk through all layers: (T,) -> (T, D), and move the cache on."""
    if model.stream:
        model.stream.fetch_rows(model.embed_tokens, ids)
    x = embed(model, ids)
    cos, sin = cos_sin(model.config, np.arange(cache.length, cache.length + len(ids)))
    if trace is not None:
        trace.record("embed", x)
    for i, layer in enumerate(model.layers):
        if model.stream:
            model.stream.enter(i)
        x = block(x, layer, cache, i, cos, sin, model.config, model.threads, trace, model.stream)
    cache.length += len(ids)
    return x


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
