"""The router and the experts: who is chosen, by what weight, and that order never matters."""

import dataclasses
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import FORMATS, activations, matrix, n_threads, routings, seeds

from k2ref import moe, ops, quant
from k2ref.run import Run
from k2ref.trace import Trace

U = 2.0**-24  # the unit roundoff of float32


def router(**changes):
    """The router's part of a Config: two of four experts, no groups."""
    values = {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "norm_topk_prob": True,
              "routed_scaling_factor": 2.5, **changes}  # fmt: skip
    return SimpleNamespace(**values)


def row(*values):
    return np.array([values], np.float32)


def choose_slowly(scores, bias, config):
    """Choose as the report says it, one token and one expert at a time: sets of expert ids."""
    per_group = len(bias) // config.n_group
    for score in scores:
        choice = [s + b for s, b in zip(score, bias, strict=True)]  # float32 scalars
        groups = range(config.n_group)

        def best_two(g, choice=choice):
            two = sorted(choice[g * per_group : (g + 1) * per_group])[-2:]
            return two[0] + two[1]

        kept = sorted(groups, key=lambda g: (-best_two(g), g))[: config.topk_group]
        if config.n_group > 1:
            choice = [c if e // per_group in kept else -np.inf for e, c in enumerate(choice)]
        yield sorted(range(len(bias)), key=lambda e: (-choice[e], e))[: config.num_experts_per_tok]


@given(routings())
def test_choose_is_what_the_report_says(routing):
    scores, bias, config = routing
    chosen, mix = moe.choose(scores, bias, config)
    assert chosen.dtype == np.int64 and mix.dtype == np.float32
    assert chosen.tolist() == list(choose_slowly(scores, bias, config))
    for t, experts in enumerate(chosen):
        weights = scores[t, experts].astype(np.float64)
        exact = weights / weights.sum() * config.routed_scaling_factor
        if config.num_experts_per_tok == 1:  # upstream does not normalise a single expert
            exact = weights * config.routed_scaling_factor
        np.testing.assert_allclose(mix[t], exact, rtol=(len(experts) + 4) * U)


@given(routings())
def test_mix_adds_up_to_the_scaling_factor(routing):
    scores, bias, config = routing
    chosen, mix = moe.choose(scores, bias, config)
    if config.num_experts_per_tok > 1:
        total = mix.astype(np.float64).sum(axis=1)
        # K additions, a division, a product, and the factor's own rounding.
        bound = (config.num_experts_per_tok + 4) * U * config.routed_scaling_factor
        assert np.abs(total - config.routed_scaling_factor).max() <= bound


@given(routings())
def test_experts_are_chosen_once_and_best_first(routing):
    scores, bias, config = routing
    chosen, _ = moe.choose(scores, bias, config)
    choice = scores + bias
    for t, experts in enumerate(chosen):
        assert len(set(experts)) == config.num_experts_per_tok
        if config.n_group == 1:
            assert (np.diff(choice[t, experts]) <= 0).all()


def test_trap_bias_steers_the_choice_but_never_the_weights():
    scores = row(0.8, 0.5, 0.4, 0.1)
    plain, mix = moe.choose(scores, np.zeros(4, np.float32), router())
    assert plain.tolist() == [[0, 1]]
    np.testing.assert_allclose(mix, row(0.8, 0.5) / 1.3 * 2.5, rtol=6 * U)
    bias = np.array([0, -9, 0, 5], np.float32)
    steered, mix = moe.choose(scores, bias, router())
    assert steered.tolist() == [[3, 0]]
    np.testing.assert_allclose(mix, row(0.1, 0.8) / 0.9 * 2.5, rtol=6 * U)


@given(routings(), st.sampled_from([-8, 0.5, 4]))
def test_the_same_bias_for_all_changes_nothing(routing, shift):
    scores, bias, config = routing
    config.n_group = config.topk_group = 1  # across groups, dropped experts count as zero
    scores = np.round(scores * 1024) / np.float32(1024)  # so that adding the shift is exact
    config.num_experts_per_tok = min(config.num_experts_per_tok, len(bias))
    shifted = bias + np.float32(shift)
    for a, b in zip(moe.choose(scores, bias, config), moe.choose(scores, shifted, config),
                    strict=True):  # fmt: skip
        assert (a == b).all()


def test_ties_go_to_the_lower_expert():
    chosen, _ = moe.choose(row(0.3, 0.5, 0.5, 0.5), np.zeros(4, np.float32), router())
    assert chosen.tolist() == [[1, 2]]
    config = router(n_group=2, topk_group=1)
    chosen, _ = moe.choose(row(0.2, 0.5, 0.5, 0.2), np.zeros(4, np.float32), config)
    assert chosen.tolist() == [[1, 0]]


def test_groups_are_judged_by_their_two_best():
    config = router(n_group=2, topk_group=1)
    # The best expert of all is in the second group; the best two are in the first.
    scores = row(0.6, 0.5, 0.0, 0.9, 0.1, 0.0)
    chosen, _ = moe.choose(scores, np.zeros(6, np.float32), config)
    assert chosen.tolist() == [[0, 1]]


def test_trap_experts_of_masked_groups_are_never_chosen():
    config = router(n_group=2, topk_group=1, num_experts_per_tok=3)
    scores = row(0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.1, 0.1)
    bias = np.repeat(np.float32([-0.45, -0.9]), 4)
    assert (scores + bias)[0, 2] < 0
    chosen, mix = moe.choose(scores, bias, config)
    assert chosen.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(mix, row(0.6, 0.5, 0.4) * 2.5 / 1.5, rtol=8 * U)


@given(routings(), st.sampled_from([-1e38, -3e38, -np.inf, 3e38, np.inf]), st.data())
def test_no_bias_brings_an_expert_of_a_masked_group_back(routing, extreme, data):
    scores, bias, config = routing
    at = data.draw(st.lists(st.integers(0, len(bias) - 1)))
    bias[at] = extreme
    with np.errstate(over="ignore", invalid="ignore"):
        chosen, _ = moe.choose(scores, bias, config)
    per_group = len(bias) // config.n_group
    for experts in chosen:
        assert len(set(experts.tolist())) == config.num_experts_per_tok
        # Of E / n_group * topk_group experts that may be chosen, all are in topk_group groups.
        if config.n_group > 1:
            assert len({e // per_group for e in experts}) <= config.topk_group


def test_mix_is_left_as_it_is_without_normalisation():
    config = router(norm_topk_prob=False)
    _, mix = moe.choose(row(0.5, 0.25, 0.125, 0), np.zeros(4, np.float32), config)
    assert mix.tolist() == [[1.25, 0.625]]
    _, mix = moe.choose(row(0.5, 0.25), np.zeros(2, np.float32), router(num_experts_per_tok=1))
    assert mix.tolist() == [[1.25]]


def test_scores_of_zero_do_not_divide_by_zero():
    _, mix = moe.choose(row(0, 0, 0), np.zeros(3, np.float32), router())
    assert mix.tolist() == [[0, 0]]


def test_trap_router_scores_are_not_rounded_to_bf16(path):
    # Two experts whose scores differ by 1e-4: the same bf16 number, in which the first would win.
    h, gate = np.eye(2, dtype=np.float32)[:1], np.array([[0.5, 0], [0.5004, 0]], np.float32)
    scores = ops.sigmoid(h @ gate.T)
    assert np.ptp(quant.f32_to_bf16(scores)) == 0
    chosen, _ = moe.route(h, quant.F32(gate), np.zeros(2, np.float32),
                          router(num_experts_per_tok=1), threads=1)
    assert chosen.tolist() == [[1]]


def a_moe(seed, E=7, D=64, F=32, format="Int4", order=None):
    """A mixture of E experts; with `order`, the same experts under other numbers."""
    order = range(E) if order is None else order
    rng = np.random.default_rng(seed)
    gate = rng.standard_normal((E, D), dtype=np.float32) / 8
    bias = rng.standard_normal(E, dtype=np.float32) / 10

    def an_mlp(format, seed, F):
        return moe.Mlp(matrix(format, F, D, seed), matrix(format, F, D, seed + 1),
                       matrix(format, D, F, seed + 2))  # fmt: skip

    return moe.Moe(
        gate=quant.Bf16(quant.f32_to_bf16(gate[list(order)])), bias=bias[list(order)],
        shared=an_mlp("Bf16", seed, 2 * F),
        find_expert=lambda e: an_mlp(format, seed + 10 * order[e], F),
    )  # fmt: skip


def mlp_in_float64(h, w):
    """Return an MLP's result in float64, and the bound for float32.

    A product of n columns is off by (n + 8) U times the sum of its terms' sizes (test_ops.py). silu
    is no steeper than 1.1, and off by 10 U of itself.
    """
    gate, up, down = (m.dequantize().astype(np.float64)
                      for m in (w.gate_proj, w.up_proj, w.down_proj))
    n, size = h.shape[-1] + 8, np.abs(h)
    g, u = h @ gate.T, h @ up.T
    gate_error, up_error = n * U * (size @ np.abs(gate).T), n * U * (size @ np.abs(up).T)
    silu = g / (1 + np.exp(-g.clip(-700)))
    inner = silu * u
    error = 1.1 * gate_error * (np.abs(u) + up_error) + np.abs(silu) * up_error
    error += 11 * U * np.abs(inner)
    n = inner.shape[-1] + 8
    return inner @ down.T, (error + n * U * (np.abs(inner) + error)) @ np.abs(down).T


def assert_within(found, exact, bound):
    assert found.dtype == np.float32 and found.shape == exact.shape
    worst = np.abs(found - exact) - bound
    assert (worst <= 0).all(), f"beyond the bound by {worst.max()}"


@given(seeds, st.integers(1, 5), st.sampled_from(FORMATS), n_threads)
def test_mlp_is_its_formula(path, seed, T, format, threads):
    w = a_moe(seed % 1000, format=format).expert(0)
    h = activations(seed, T, 64) / 30
    assert_within(moe.mlp(h, w, threads), *mlp_in_float64(h.astype(np.float64), w))


@given(seeds, st.integers(1, 9), n_threads)
def test_mixture_is_its_formula(path, seed, T, threads):
    w, config = a_moe(seed % 1000), router(num_experts_per_tok=3)
    h = activations(seed, T, 64) / 30
    wide = h.astype(np.float64)
    chosen, mix = moe.route(h, w.gate, w.bias, config, threads)
    exact, bound = mlp_in_float64(wide, w.shared)
    size = np.abs(exact)
    for t in range(T):
        for k, e in enumerate(chosen[t]):
            y, error = mlp_in_float64(wide[t], w.expert(int(e)))
            exact[t] += mix[t, k] * y
            bound[t] += mix[t, k] * error
            size[t] += mix[t, k] * np.abs(y)
    bound += 5 * U * (size + bound)  # a product, and three experts and the shared one to add
    assert_within(moe.mixture(h, w, chosen, mix, threads), exact, bound)
    assert_within(moe.mixture_by_token(h, w, chosen, mix), exact, bound)


@given(seeds, st.integers(2, 9), n_threads)
def test_a_token_has_the_same_bits_whoever_is_routed_with_it(kernels, seed, T, threads):
    w, config = a_moe(seed % 1000), router(num_experts_per_tok=3)
    h = activations(seed, T, 64) / 30
    together = moe.moe(h, w, Run(config, None, threads))
    for t in range(T):
        assert (moe.moe(h[t : t + 1], w, Run(config, None, 1))[0] == together[t]).all()


@given(seeds, st.permutations(range(7)), st.integers(1, 6))
def test_the_numbers_of_the_experts_do_not_matter(kernels, seed, order, T):
    config = router(num_experts_per_tok=3)
    h = activations(seed, T, 64) / 30
    plain, permuted = a_moe(seed % 1000), a_moe(seed % 1000, order=order)
    chosen, mix = moe.route(h, plain.gate, plain.bias, config, 1)
    chosen_too, mix_too = moe.route(h, permuted.gate, permuted.bias, config, 1)
    assert (np.array(order)[chosen_too] == chosen).all() and (mix_too == mix).all()
    run = Run(config, None, 1)
    y, y_too = moe.moe(h, plain, run), moe.moe(h, permuted, run)
    assert (y_too == y).all()


def test_experts_are_found_when_first_chosen_and_kept():
    asked = []
    plain = a_moe(0)
    w = dataclasses.replace(plain, experts={},
                            find_expert=lambda e: asked.append(e) or plain.find_expert(e))
    h, config = activations(1, 4, 64), router()
    for _ in range(2):
        moe.moe(h, w, Run(config, None, 1))
    chosen, _ = moe.route(h, w.gate, w.bias, config, 1)
    assert sorted(asked) == np.unique(chosen).tolist()


def test_moe_records_what_it_chose():
    trace, w, config = Trace(), a_moe(0), router()
    h = activations(1, 4, 64)
    y = moe.moe(h, w, Run(config, None, 1, trace, i=5))
    chosen, mix = moe.route(h, w.gate, w.bias, config, 1)
    expected = {"layers.5.moe.chosen": chosen, "layers.5.moe.mix": mix, "layers.5.moe.out": y}
    assert list(trace.arrays) == list(expected)
    assert all((trace.arrays[name] == array).all() for name, array in expected.items())


def test_mixture_of_no_tokens_is_empty(path):
    none = np.empty((0, 64), np.float32)
    y = moe.mixture(none, a_moe(0), np.zeros((0, 2), np.int64), none[:, :2], 1)
    assert y.shape == (0, 64) and y.dtype == np.float32


def test_mixture_of_experts_nobody_wants_is_the_shared_one(path):
    w, h = a_moe(0), activations(1, 3, 64) / 30
    chosen, mix = np.zeros((3, 2), np.int64), np.zeros((3, 2), np.float32)
    assert (moe.mixture(h, w, chosen, mix, 1) == moe.mlp(h, w.shared, 1)).all()
