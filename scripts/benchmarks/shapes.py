"""What bench.py measures: products at the shapes of Kimi K2 Thinking, on made-up numbers.

Weights come from a pool that is larger than any cache, so they are read from memory. A row prepares
its work when its turn comes and lets go of it afterwards.
"""

import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import k2ref
from k2ref import attention, moe, ops, quant
from k2ref.checkpoint.config import Config
from k2ref.model import Layer, Model
from k2ref.run import Run
from k2ref.tokenizer import Tokenizer

K2 = dict(
    hidden_size=7168, num_hidden_layers=7, num_attention_heads=64, q_lora_rank=1536,
    kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    intermediate_size=18432, moe_intermediate_size=2048, n_routed_experts=48, n_shared_experts=1,
    num_experts_per_tok=8, n_group=1, topk_group=1, norm_topk_prob=True,
    routed_scaling_factor=2.827, first_k_dense_replace=1, rms_norm_eps=1e-5, rope_theta=50000.0,
    max_position_embeddings=262144, vocab_size=163840,
)
D, F = K2["hidden_size"], K2["moe_intermediate_size"]
POOL_BYTES = 6 << 30
ROOT = Path(__file__).parents[2]


class Row(NamedTuple):
    """Name a measurement: its unit says which limit it is compared with."""

    name: str
    unit: str  # "GB/s": read bandwidth; "GFLOP/s": multiply-adds; others stand alone
    target: str
    prepare: object  # threads -> (work, bytes or operations in one call of it)


@functools.lru_cache(1)
def _pool(n_bytes=POOL_BYTES):
    """Fill memory with bf16 numbers of about 0.02; as INT4 words they are as good as random."""
    block = np.random.default_rng(0).standard_normal(1 << 22, np.float32) * np.float32(0.02)
    bits = quant.f32_to_bf16(block)
    pool = np.empty(n_bytes // 2, np.uint16)
    for start in range(0, len(pool), len(bits)):
        pool[start:start + len(bits)] = bits[:len(pool) - start]
    return pool


class Weights:
    """Hand out matrices from the pool, one after another, from the start again when it ends."""

    def __init__(self):
        self.at = 0

    def _take(self, n_bytes):
        n = -(-n_bytes // 128) * 64  # uint16 elements, to whole cache lines
        if self.at + n > len(_pool()):
            self.at = 0
        self.at += n
        return _pool()[self.at - n:self.at - n + n_bytes // 2]

    def bf16(self, O, I):
        return quant.Bf16(self._take(2 * O * I).reshape(O, I))

    def int4(self, O, I):
        packed = self._take(O * I // 2).view(np.int32).reshape(O, I // 8)
        return quant.Int4(packed, self._take(O * I // 16).reshape(O, I // 32))

    def mlp(self, make, width):
        return moe.Mlp(make(width, D), make(width, D), make(D, width))


def random(*shape):
    """Draw activations, float32."""
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def int4_matrices(n):
    """Return one token's activations and n expert matrices of 2048x7168."""
    weights = Weights()
    return random(1, D), [weights.int4(F, D) for _ in range(n)]


def products(format, O, I, T, n):
    """Prepare n products of T tokens with matrices of one shape."""
    def prepare(threads):
        weights = Weights()
        pairs = [(random(T, I), getattr(weights, format)(O, I)) for _ in range(n)]
        pairs = [(pairs[0][0], w) for _, w in pairs]
        amount = sum(w.n_bytes for _, w in pairs) if T == 1 else 2 * T * O * I * n
        return lambda: ops.linear_many(pairs, threads), amount
    return prepare


def moe_layer(T, n_experts=48):
    """Prepare one mixture of experts at full width: router, routed experts, shared expert."""
    def prepare(threads):
        config, weights = Config(**{**K2, "n_routed_experts": n_experts}), Weights()
        w = moe.Moe(weights.bf16(n_experts, D), np.zeros(n_experts, np.float32),
                    weights.mlp(weights.bf16, F), None,
                    {e: weights.mlp(weights.int4, F) for e in range(n_experts)})
        h = random(T, D)
        per_expert = sum(m.n_bytes for m in w.experts[0].__dict__.values())
        dense = sum(m.n_bytes for m in w.shared.__dict__.values()) + w.gate.n_bytes
        flops = 2 * T * (9 * 3 * D * F + n_experts * D)
        amount = 8 * per_expert + dense if T == 1 else flops
        return lambda: moe.moe(h, w, Run(config, None, threads)), amount
    return prepare


def attend(T, S):
    """Prepare the attention of the last T of S tokens, 64 heads, in the latent space."""
    def prepare(threads):
        H, C, R = 64, 512, 64
        q, cache = random(T, H, C + R), random(-(-S // 256) * 256, C + R)
        out = np.empty((T, H, C), np.float32)
        seen = sum(range(S - T + 1, S + 1))
        work = functools.partial(ops.kernels.attend, q, cache, out, S - T, 0.14, threads)
        return work, 2 * H * seen * (2 * C + R)
    return prepare


def k2_layers(threads):
    """Build a model of 7 full-width layers, 1 dense and 6 with 48 experts, over the pool."""
    config, weights = Config(**K2), Weights()
    H, Q, C = 64, config.q_lora_rank, config.kv_lora_rank
    N, R, V = 128, 64, 128
    ones = functools.partial(np.ones, dtype=np.float32)

    def layer(i):
        kv_b = weights.bf16(H * (N + V), C)
        starts = range(0, H * (N + V), N + V)
        attn = attention.AttentionWeights(
            None, weights.bf16(Q, D), ones(Q), weights.bf16(H * (N + R), Q),
            weights.bf16(C + R, D), ones(C), kv_b, weights.bf16(D, H * V),
            [kv_b.rows(r, r + N) for r in starts], [kv_b.rows(r + N, r + N + V) for r in starts])
        if config.is_moe_layer(i):
            mlp = moe.Moe(weights.bf16(48, D), np.zeros(48, np.float32),
                          weights.mlp(weights.bf16, F), None,
                          {e: weights.mlp(weights.int4, F) for e in range(48)})
        else:
            mlp = weights.mlp(weights.bf16, config.intermediate_size)
        return Layer(ones(D), attn, ones(D), mlp)

    W = config.vocab_size
    return Model(config, None, weights.bf16(W, D), [layer(i) for i in range(7)], ones(D),
                 weights.bf16(W, D), None, threads)


def decode(threads):
    """Prepare the greedy decoding of four tokens by the seven layers."""
    model, cache = k2_layers(threads), None

    def work():
        nonlocal cache
        cache = k2ref.KVCache(model.config, 256)
        token = 1
        for _ in range(4):
            token = int(k2ref.forward(model, [token], cache)[-1].argmax())
    return work, 4


def python_share(threads):
    """Prepare the share of Python: time of a token not spent inside the kernels, in percent."""
    model = k2_layers(threads)
    inside = []

    def timed(function):
        def call(*arguments):
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                inside[-1] += time.perf_counter() - start
        return call

    class Timed:
        linear, attend = timed(ops.kernels.linear), timed(ops.kernels.attend)
        silu_mul, rms_norm = timed(ops.kernels.silu_mul), timed(ops.kernels.rms_norm)
        rotate, weighted_sum = timed(ops.kernels.rotate), timed(ops.kernels.weighted_sum)

    shares, kernels = [], ops.kernels
    ops.kernels = Timed
    try:
        cache = k2ref.KVCache(model.config, 256)
        for token in range(6):
            inside.append(0.0)
            start = time.perf_counter()
            k2ref.forward(model, [token], cache)
            shares.append(1 - inside[-1] / (time.perf_counter() - start))
    finally:
        ops.kernels = kernels
    share = 100 * statistics.median(shares)
    return lambda: time.sleep(0.01), share * 0.01


def rows(quick=False):
    """List the measurements of the table; `quick` leaves out the large ones."""
    n = 8 if quick else 48
    everything = [
        Row("INT4 2048x7168, one token", "GB/s", "85%", products("int4", F, D, 1, n)),
        Row("INT4 7168x2048, one token", "GB/s", "85%", products("int4", D, F, 1, n)),
        Row("BF16 1536x7168, one token", "GB/s", "90%", products("bf16", 1536, D, 1, n // 2)),
        Row("BF16 7168x8192, one token", "GB/s", "90%", products("bf16", D, 8192, 1, n // 8)),
        Row("MoE layer, one token", "GB/s", "80%", moe_layer(1, 16 if quick else 48)),
        Row("INT4 2048x7168, 64 tokens", "GFLOP/s", "75%", products("int4", F, D, 64, 2)),
        Row("BF16 2048x7168, 64 tokens", "GFLOP/s", "", products("bf16", F, D, 64, 2)),
        Row("attention, 1 token at 32,768", "GFLOP/s", "70%", attend(1, 32768)),
    ]
    if not quick:
        everything += [
            Row("BF16 163840x7168 (lm_head), one token", "GB/s", "90%",
                products("bf16", 163840, D, 1, 1)),
            Row("MoE layer, 64 tokens over 48 experts", "GFLOP/s", "", moe_layer(64)),
            Row("attention, 1 token at 262,144", "GFLOP/s", "70%", attend(1, 262144)),
            Row("attention, 2,048 tokens over 2,048", "GFLOP/s", "60%", attend(2048, 2048)),
            Row("attention, 256 tokens over 32,768", "GFLOP/s", "60%", attend(256, 32768)),
            Row("7 layers, greedy decode", "token/s", "3.5", decode),
            Row("Python's share of a decoded token", "%", "<= 3", python_share),
        ]
    return everything


def mixed_text(n_bytes=1_000_000):
    """Join this project's prose, its code, and the texts in many scripts of the golden file."""
    cases = json.loads((ROOT / "tests/data/tokenizer_golden.json").read_text("utf-8"))["cases"]
    files = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "k2ref").glob("*.py"))]
    text = "".join(path.read_text("utf-8") for path in files)
    scripts = "\n".join(case["text"] for case in cases)
    return text + scripts * ((n_bytes - len(text.encode())) // len(scripts.encode()))


def encode(make):
    """Prepare the encoding of `mixed_text` by what `make` makes; the vocabulary is K2's."""
    def prepare(threads):
        tokenizer, text = make(), mixed_text()
        some = text[:100_000]  # k2ref cuts long texts as the official tokenizer does
        if tokenizer(some) != encoders()[0]()(some):
            raise SystemExit("bench.py --peer: expected the ids of k2ref, found others")
        return lambda: tokenizer(text), len(text.encode()) / 1e6
    return prepare


@functools.cache
def encoders():
    """Return what makes k2ref's encoder and tiktoken's, with the vocabulary of the tests."""
    sys.path.append(str(ROOT / "tests"))
    import vocabulary

    return (lambda: Tokenizer.from_dir(vocabulary.real_directory()).encode,
            lambda: vocabulary.oracle(vocabulary.real_vocabulary()).encode_ordinary)


def peers():
    """List the same work by k2ref, torch and tiktoken."""
    import torch

    def torch_linear(dtype, T):
        def prepare(threads):
            torch.set_num_threads(threads)
            w = [torch.randn(F, D).to(dtype) for _ in range(16)]
            x = torch.randn(T, D).to(dtype)
            amount = sum(m.numel() * m.element_size() for m in w) if T == 1 else 2 * T * D * F * 16
            return lambda: [torch.nn.functional.linear(x, m) for m in w], amount
        return prepare

    return [
        Row("k2ref BF16 2048x7168, one token", "GB/s", "", products("bf16", F, D, 1, 16)),
        Row("torch bf16 2048x7168, one token", "GB/s", "", torch_linear(torch.bfloat16, 1)),
        Row("torch f32 2048x7168, one token", "GB/s", "", torch_linear(torch.float32, 1)),
        Row("k2ref INT4 2048x7168, 64 tokens", "GFLOP/s", "", products("int4", F, D, 64, 2)),
        Row("torch f32 2048x7168, 64 tokens", "GFLOP/s", "", torch_linear(torch.float32, 64)),
        *(Row(f"{name} encode, mixed text", "MB/s", "", encode(make))
          for name, make in zip(("k2ref", "tiktoken"), encoders(), strict=True)),
    ]
