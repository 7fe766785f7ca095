"""The mixture of experts: a router picks 8 of 384 small MLPs for each token.

    scores  = sigmoid(x W_gate^T)                       one per expert, each on its own
    chosen  = the K largest of scores + bias            the bias balances the load: it only chooses
    mix     = scores[chosen] / sum * routed_scaling_factor
    y       = sum_k mix_k expert_k(x) + shared(x)       the shared expert serves every token

An expert is an MLP like that of the dense first layer, narrower: down(silu(gate(x)) * up(x)).

Chapters 09 and 10.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from k2ref import ops
from k2ref.quant import Weight


@dataclass(frozen=True)
class Mlp:
    """The three matrices of an MLP: gate and up (F, D), down (D, F)."""

    gate_proj: Weight
    up_proj: Weight
    down_proj: Weight


@dataclass(frozen=True)
class Moe:
    """One layer's router, shared expert and routed experts (bound when first chosen)."""

    gate: Weight  # (E, D)
    bias: np.ndarray  # (E,) e_score_correction_bias
    shared: Mlp
    find_expert: Callable[[int], Mlp]
    experts: dict = field(default_factory=dict)

    def expert(self, e):
        """Return expert e, bound on its first use."""
        if e not in self.experts:
            self.experts[e] = self.find_expert(e)
        return self.experts[e]


def mlp(h, w, threads=None):
    """Run a gated MLP: down(silu(gate(h)) * up(h)).

    (T, D) -> (T, D)

    Source: modeling_deepseek.py, DeepseekV3MLP.
    """
    return mlps([(h, w)], threads)[0]


def mlps(inputs, threads=None):
    """Run several MLPs, each on its own rows, with one parallel region per stage.

    [(T_e, D), ...] -> [(T_e, D), ...]
    """
    halves = ops.linear_many([(h, m) for h, w in inputs for m in (w.gate_proj, w.up_proj)], threads)
    inner = [ops.silu_mul(gate, up) for gate, up in zip(halves[::2], halves[1::2], strict=True)]
    downs = [w.down_proj for _, w in inputs]
    return ops.linear_many(list(zip(inner, downs, strict=True)), threads)


def route(h, gate, bias, config, threads=None):
    """Choose each token's experts and their weights.

    (T, D), (E, D), (E,) -> (T, K), (T, K)

    chosen int64, best first (ties: the lower id); mix float32.
    Source: modeling_deepseek.py, MoEGate; DeepSeek-V3 report, equations 12 to 16.
    """
    logits = ops.linear(h, gate, threads)
    # Trap: scores stay in float32; rounded to bf16, near-ties flip (sglang#33764).
    chosen, mix = choose(ops.sigmoid(logits), bias, config)
    # An expert of NaN is chosen last, an infinite logit is a score of 0 or 1: neither would show.
    if not math.isfinite(np.vdot(logits, logits) + np.vdot(bias, bias)):
        sound = np.isfinite(logits).all(axis=-1, keepdims=True) & np.isfinite(bias).all()
        mix = np.where(sound, mix, np.float32(np.nan))
    return chosen, mix


def choose(scores, bias, config):
    """Pick the K largest of scores + bias, in the best groups; weigh them by the scores alone.

    (T, E), (E,) -> (T, K), (T, K)
    """
    choice = scores + bias
    best = (-choice).argsort(axis=-1, kind="stable")
    if config.n_group > 1:
        best = _best_groups_first(best, choice, config)
    chosen = best[:, :config.num_experts_per_tok]
    # Trap: the bias must not reach the mixing weights (vllm#12002).
    mix = scores[np.arange(len(scores))[:, None], chosen]
    if config.norm_topk_prob and config.num_experts_per_tok > 1:
        mix = mix / (mix.sum(axis=-1, keepdims=True) + np.float32(1e-20))
    return chosen, mix * np.float32(config.routed_scaling_factor)


def _best_groups_first(best, choice, config):
    """Put the experts of the `topk_group` groups whose two best add up to most before all others.

    (T, E), (T, E) -> (T, E)

    `best` and the result are expert ids. Config sees to it that K experts are among the first.
    """
    # Trap: masked with 0.0, an expert of another group passes those whose bias made them negative
    # (vllm#13474). Kimi's own modeling_deepseek.py still masks so; DeepSeek's inference/model.py,
    # transformers since #45441, vLLM and SGLang mask with -inf. Here masked experts come last.
    T, E = choice.shape
    groups = choice.reshape(T, config.n_group, -1)
    best_two = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
    kept = np.argsort(-best_two, axis=-1, kind="stable")[:, :config.topk_group]
    masked = np.ones((T, config.n_group), bool)
    np.put_along_axis(masked, kept, False, axis=-1)
    masked = np.take_along_axis(masked, best // (E // config.n_group), axis=-1)  # as best is
    return np.take_along_axis(best, masked.argsort(axis=-1, kind="stable"), axis=-1)


def mixture_by_token(h, w, chosen, mix):
    """Add up the chosen experts of each token and the shared expert, one product at a time.

    (T, D), (T, K), (T, K) -> (T, D)

    The plain twin of `mixture`: every token reads its experts' weights for itself.
    Source: modeling_deepseek.py, DeepseekV3MoE.
    """
    y = np.zeros_like(h)
    for t in range(len(h)):
        for k, e in enumerate(chosen[t]):
            y[t] += mix[t, k] * mlp(h[t:t + 1], w.expert(int(e)))[0]
        y[t] += mlp(h[t:t + 1], w.shared)[0]
    return y


def mixture(h, w, chosen, mix, threads=None, arrivals=None):
    """Add up the chosen experts of each token by their weights, then the shared expert.

    (T, D), (T, K), (T, K) -> (T, D)

    Tokens are grouped by expert, so each expert's weights are read once. A token's sum runs over
    its experts in the order of `chosen`, whatever else was routed with it, and whichever expert was
    ready first: `arrivals` yields the experts used, a list at a time; without it, all at once.
    Source: modeling_deepseek.py, DeepseekV3MoE.
    """
    chosen, tokens = chosen.tolist(), {}  # the experts of each token, the tokens of each expert
    for t, experts in enumerate(chosen):
        for e in experts:
            tokens.setdefault(e, []).append(t)
    outputs, shared = {}, None  # of each expert, a row for each of its tokens
    for group in arrivals or [list(tokens)]:
        # One token is given to all as it is: the kernel then puts it in order once for all experts.
        inputs = [(h if len(h) == 1 else h[tokens[e]], w.expert(e)) for e in group]
        if shared is None:  # with the first group: it has nothing to wait for
            *routed, shared = mlps([*inputs, (h, w.shared)], threads)
        else:
            routed = mlps(inputs, threads)
        outputs.update(zip(group, map(iter, routed), strict=True))
    rows = [next(outputs[e]) for experts in chosen for e in experts]
    return ops.weighted_sum(mix, rows, h.shape[1]) + shared


def moe(h, w, run):
    """Run one layer's mixture of experts on normalised activations.

    (T, D) -> (T, D)
    """
    chosen, mix = route(h, w.gate, w.bias, run.config, run.threads)
    y = mixture(h, w, chosen, mix, run.threads, run.arrivals(chosen))
    run.record("moe.", chosen=chosen, mix=mix, out=y)
    return y
