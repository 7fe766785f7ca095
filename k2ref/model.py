"""The model: 61 times attention and experts around one residual stream, then the logits.

`forward` is everything between token ids and logits. There is no batch axis: one sequence of T
tokens. What a forward pass needs besides mathematics (the cache, the trace, weights that come from
disk) is its `Run` (run.py).

Chapter 11.
"""

from dataclasses import dataclass, field

import numpy as np

from k2ref import ops
from k2ref.attention import AttentionWeights, attention
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint
from k2ref.moe import Mlp, Moe, mlp, moe
from k2ref.quant import Weight
from k2ref.run import Mapped, running
from k2ref.streaming.stream import Stream
from k2ref.tokenizer import Tokenizer
from k2ref.trace import Trace


@dataclass(frozen=True)
class Layer:
    """One block: two norms (D,), attention, and a dense MLP or a mixture of experts."""

    input_layernorm: np.ndarray
    attention: AttentionWeights
    post_attention_layernorm: np.ndarray
    mlp: Mlp | Moe


@dataclass(frozen=True)
class Model:
    """A checkpoint bound to its configuration and tokenizer: what `load` returns."""

    config: Config
    tokenizer: Tokenizer | None
    embed_tokens: Weight  # (W, D)
    layers: list[Layer]
    norm: np.ndarray  # (D,)
    lm_head: Weight  # (W, D)
    checkpoint: Checkpoint
    threads: int
    generation_defaults: dict = field(default_factory=dict)  # generation_config.json
    files: list = field(default_factory=list)  # pages.File of each shard
    stream: Stream | None = None  # None: the files are mapped, and the system does what it likes
    trace: Trace | None = None  # records every pass; `dataclasses.replace` sets it

    @property
    def chunk(self):
        """Tokens that go through the layers together; a prompt is best read in such pieces."""
        return (self.stream or Mapped()).chunk


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
    with running(model, ids, cache, trace, last_only) as run:
        for chunk in run.chunks():
            x = embed(model, chunk)
            run.record(embed=x)
            for layer in run.through(model.layers):
                x = block(x, layer, run)
            run.keep(x)
        x = ops.rms_norm(run.kept(), model.norm, run.config.rms_norm_eps)
        logits = unembed(x, model.lm_head, run)
        run.record(norm=x, logits=logits)
        return run.answer(logits)


def embed(model, ids):
    """Look up each token's row of the embedding matrix.

    (T,) -> (T, D)
    """
    return model.embed_tokens.take(ids)


def block(x, layer, run):
    """Run one layer: x + attention(norm(x)), then the same with the MLP or the experts.

    (T, D) -> (T, D)

    Source: modeling_deepseek.py, DeepseekV3DecoderLayer.
    """
    h = ops.rms_norm(x, layer.input_layernorm, run.config.rms_norm_eps)
    x = x + attention(h, layer.attention, run)
    h = ops.rms_norm(x, layer.post_attention_layernorm, run.config.rms_norm_eps)
    run.record(mid=x, h=h)
    x = x + feed_forward(h, layer.mlp, run)
    run.record(out=x)
    return x


def feed_forward(h, w, run):
    """Run the mixture of experts of a layer, or the MLP of one that is dense.

    (T, D) -> (T, D)
    """
    if isinstance(w, Moe):
        return moe(h, w, run)
    y = mlp(h, w, run.threads)
    run.record("mlp.", out=y)
    return y


def unembed(x, lm_head, run):
    """Multiply by lm_head, by pieces of its rows in the order in which they are in memory.

    (T, D), (W, D) -> (T, W)
    """
    y = np.empty((len(x), lm_head.shape[0]), np.float32)
    for start, stop in run.weights.pieces_of_head():
        if stop is None:  # all rows at once
            return ops.linear(x, lm_head, run.threads)
        y[:, start:stop] = ops.linear(x, lm_head.rows(start, stop), run.threads)
    return y
