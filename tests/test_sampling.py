"""Sampling: the distribution, its filters and limits, and the draw."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from k2ref.sampling import (
    Settings,
    log_probabilities,
    penalize_repetition,
    pick,
    probabilities,
    sample,
)

EPS = np.finfo(np.float64).eps

logit = st.floats(-40, 40, width=32)
# Rounding to halves makes equal logits common, which is where filters go wrong.
row = st.lists(logit | logit.map(lambda v: round(2 * v) / 2), min_size=1, max_size=40)
rows = row.map(lambda values: np.array(values, np.float32))
temperatures = st.floats(0.05, 5)
shares = st.floats(0.01, 1)


def ranked(logits):
    """The ids from the largest logit down, equals by id: the plain twin of the argsort."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


@given(rows, temperatures, st.none() | st.integers(0, 50), st.none() | shares, st.none() | shares)
def test_probabilities_sum_to_one_and_keep_the_likeliest(logits, temperature, k, top_p, min_p):
    p = probabilities(logits, temperature, k, top_p, min_p)
    assert p.shape == logits.shape and p.dtype == np.float64
    assert (p >= 0).all()
    # Each of n quotients is off by at most half an ulp, and so is each of n additions.
    assert abs(p.sum() - 1) <= 2 * p.size * EPS
    assert p[np.argmax(logits)] == p.max() > 0


@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 0.5}])
def test_of_two_that_exp_makes_equal_the_larger_logit_stays(limits):
    assert probabilities([-1e-21, 0.0], **limits).tolist() == [0, 1]


@given(rows, temperatures)
def test_probabilities_are_the_softmax(logits, temperature):
    weights = [math.exp((float(x) - float(logits.max())) / temperature) for x in logits]
    expected = np.array(weights) / math.fsum(weights)
    assert np.allclose(probabilities(logits, temperature), expected, rtol=1e-12, atol=0)


def test_probabilities_do_not_change_their_input():
    logits = np.array([1.0, 2.0, 3.0])
    probabilities(logits, 0.5, top_k=2, top_p=0.9, min_p=0.1)
    assert logits.tolist() == [1.0, 2.0, 3.0]


@given(rows, st.integers(-64, 64))
def test_shifting_all_logits_changes_nothing(logits, shift):
    # Quarters shift without rounding, so the same bits are due.
    logits = np.round(logits * 4) / 4
    a = probabilities(logits, 0.7, top_k=5, top_p=0.9, min_p=0.05)
    b = probabilities(logits + shift, 0.7, top_k=5, top_p=0.9, min_p=0.05)
    assert (a == b).all()


@given(rows, st.integers(1, 50))
def test_top_k_keeps_the_k_likeliest_and_their_ratios(logits, k):
    full, p = probabilities(logits), probabilities(logits, top_k=k)
    expected = ranked(logits)[:k]
    assert np.flatnonzero(p).tolist() == sorted(i for i in expected if full[i] > 0)
    assert np.allclose(p[expected], full[expected] / full[expected].sum(), rtol=1e-12, atol=0)


@given(rows, shares)
def test_top_p_is_the_smallest_set_that_reaches_the_mass(logits, top_p):
    full, p = probabilities(logits), probabilities(logits, top_p=top_p)
    order, n = ranked(logits), int(np.count_nonzero(p))
    assert sorted(order[:n]) == np.flatnonzero(p).tolist()
    # In exact arithmetic, but for the rounding of the sums: at most n ulps of 1.
    slack = Fraction(len(full) * EPS)
    mass = [Fraction(full[i]) for i in order]
    total = sum(mass)
    assert sum(mass[:n]) >= Fraction(top_p) * total - slack
    assert n == 1 or sum(mass[: n - 1]) < Fraction(top_p) * total + slack


def test_top_p_keeps_the_token_that_crosses_the_line():
    # Trap: Biohub/esm#360. Shares 0.4, 0.3, 0.2, 0.1 and p = 0.8: the third crosses.
    p = probabilities(np.log([0.4, 0.3, 0.2, 0.1]), top_p=0.8)
    assert np.allclose(p, [4 / 9, 3 / 9, 2 / 9, 0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("top_p", [1e-4, 1e-8, 1e-17, 1e-300])
def test_a_tiny_top_p_leaves_one_token(top_p):
    # Trap: ml-explore/mlx-lm#1912: 1 - top_p rounds to 1 and masks everything.
    logits = np.cos(np.arange(4096.0))
    p = probabilities(logits, top_p=top_p)
    assert np.flatnonzero(p).tolist() == [np.argmax(logits)] and p.max() == 1


@given(rows, shares)
def test_min_p_is_a_share_of_the_likeliest(logits, min_p):
    full, p = probabilities(logits), probabilities(logits, min_p=min_p)
    ratio = full / full.max()
    # A quotient that is within rounding of min_p may fall on either side.
    assume((abs(ratio - min_p) > 4 * EPS).all() or min_p == 1)
    assert (p > 0).tolist() == (ratio >= min_p).tolist()


@pytest.mark.parametrize("filters, expected", [
    # After top_k=2 the shares are 4/7 and 3/7, so that 0.5 is reached by the first alone;
    # of all four it would take two.
    ({"top_k": 2, "top_p": 0.5}, [1, 0, 0, 0]),
    ({"top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
    # min_p compares with the likeliest, which no filter changes: 0.3 / 0.4 = 0.75.
    ({"top_k": 3, "min_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
    ({"top_p": 0.9, "min_p": 0.76}, [1, 0, 0, 0]),
])
def test_filters_come_in_the_order_of_transformers(filters, expected):
    p = probabilities(np.log([0.4, 0.3, 0.2, 0.1]), **filters)
    assert np.allclose(p, expected, rtol=1e-12, atol=0)


def test_temperature_comes_before_the_filters():
    # Softmax of (3, 2, 1) / 0.5 has 0.867 on the first; untempered it has 0.665 (llama.cpp#4091).
    assert np.count_nonzero(probabilities([3, 2, 1], temperature=0.5, top_p=0.8)) == 1
    assert np.count_nonzero(probabilities([3, 2, 1], temperature=1.0, top_p=0.8)) == 2


def test_ties_go_to_the_lower_id():
    assert np.flatnonzero(probabilities([1, 5, 5, 5], top_k=2)).tolist() == [1, 2]
    assert np.flatnonzero(probabilities([5, 5, 5, 5], top_p=0.5)).tolist() == [0, 1]
    assert probabilities([1, 5, 5], temperature=0).tolist() == [0, 1, 0]


@given(rows)
def test_off_means_off(logits):
    off = probabilities(logits, 1.0, top_k=0, top_p=1.0, min_p=0.0)
    assert (off == probabilities(logits)).all()
    assert (off == probabilities(logits, top_k=len(logits))).all()


@given(rows)
def test_limits_of_temperature(logits):
    greedy = probabilities(logits, temperature=0)
    assert np.flatnonzero(greedy).tolist() == [np.argmax(logits)] and greedy.max() == 1
    cold = probabilities(logits, temperature=5e-324)
    assert np.allclose(cold, (logits == logits.max()) / (logits == logits.max()).sum(), rtol=EPS)
    hot = probabilities(logits, temperature=1e300)
    assert np.allclose(hot, 1 / len(logits), rtol=4 * len(logits) * EPS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_must_be_finite(bad):
    with pytest.raises(ValueError, match=r"must be finite, found (nan|-?inf) for token 1 \(2 of 4"):
        probabilities([0.0, bad, 1.0, bad])
    with pytest.raises(ValueError, match="finite"):
        sample([0.0, bad], np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(0,), (1, 4), ()])
def test_logits_must_be_one_row(shape):
    with pytest.raises(ValueError, match="one row"):
        probabilities(np.zeros(shape))


@pytest.mark.parametrize("name, value", [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
    ("temperature", "hot"), ("temperature", None),
    ("top_k", -1), ("top_k", 2.5), ("top_k", 2.0),
    ("top_p", 0), ("top_p", 1.01), ("top_p", -1), ("top_p", math.nan),
    ("min_p", -0.01), ("min_p", 1.5), ("min_p", math.nan),
    ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", math.inf),
])
def test_settings_that_make_no_sense_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, found"):
        Settings(**{name: value})
    with pytest.raises(ValueError, match=f"^{name} must be .*, found"):
        sample([0.0, 1.0], np.random.default_rng(0), **{name: value})


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_pick_is_the_inverse_of_the_cumulative_sum(weights, data):
    # Shares of 1/2**k add up without rounding, so the steps are known exactly.
    assume(sum(weights) > 0)
    total = 1 << sum(weights).bit_length()
    weights = [*weights, total - sum(weights)]
    u = data.draw(st.integers(0, total - 1))
    steps = [i for i, w in enumerate(weights) for _ in range(w)]
    p = np.array(weights) / total
    assert pick(p, u / total) == steps[u]
    assert pick(p, np.nextafter((u + 1) / total, 0)) == steps[u]


@given(rows, st.floats(0, 1, exclude_max=True))
def test_pick_never_returns_what_has_no_probability(logits, u):
    p = probabilities(logits, top_k=3)
    assert p[pick(p, u)] > 0


def test_pick_at_the_very_top_of_a_sum_that_rounds_below_one():
    p = np.full(10, 0.1)
    assert np.cumsum(p)[-1] < 1
    assert pick(p, np.nextafter(1, 0)) == 9


@given(rows, st.integers(0, 2**64), temperatures)
def test_one_uniform_number_for_each_token(logits, seed, temperature):
    rng, twin = (np.random.Generator(np.random.PCG64(seed)) for _ in range(2))
    for t in (temperature, 0.0, temperature):
        expected = pick(probabilities(logits, t), twin.random())
        assert sample(logits, rng, temperature=t).id == expected


def test_a_seed_is_these_tokens():
    # The stream of PCG64 is part of the promise: seed 0 begins 0.637, 0.270, 0.041, 0.017.
    rng = np.random.Generator(np.random.PCG64(0))
    logits = np.log(np.full(100, 0.01))
    assert [sample(logits, rng).id for _ in range(4)] == [63, 26, 4, 1]


@given(rows, st.integers(0, 6), shares)
def test_logprobs_are_the_models_own(logits, n_top, top_p):
    settings = {"temperature": 0.3, "top_p": top_p, "repetition_penalty": 1.5}
    choice = sample(logits, np.random.default_rng(1), range(len(logits)), n_top, **settings)
    full = probabilities(logits)
    assert math.isclose(choice.logprob, math.log(full[choice.id]), rel_tol=1e-9, abs_tol=1e-12)
    logprobs = log_probabilities(logits)
    assert choice.top == [(i, logprobs[i]) for i in ranked(logits)[:n_top]]


@given(rows)
def test_log_probabilities_sum_to_one(logits):
    assert abs(np.exp(log_probabilities(logits)).sum() - 1) <= 100 * logits.size * EPS


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    # Trap: huggingface/transformers#2302.
    logits = np.array([3.0, -3.0, 0.0, 3.0, -3.0])
    assert penalize_repetition(logits, [0, 1, 2], 1.5).tolist() == [2.0, -4.5, 0.0, 3.0, -3.0]
    assert logits.tolist() == [3.0, -3.0, 0.0, 3.0, -3.0]


@given(rows, st.floats(1, 3), st.data())
def test_repetition_penalty_only_lowers_what_was_seen_and_only_once(logits, penalty, data):
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1)))
    result = penalize_repetition(logits, seen, penalty)
    unseen = [i for i in range(len(logits)) if i not in seen]
    assert (result[unseen] == logits[unseen]).all()
    assert (result <= logits).all()
    assert (result == penalize_repetition(logits, seen * 3, penalty)).all()
    assert (penalize_repetition(logits, seen, 1.0) == logits).all()


def test_repetition_penalty_holds_for_greedy_too():
    choose = {"temperature": 0.0, "repetition_penalty": 2.0}
    assert sample([1.0, 1.5], np.random.default_rng(0), seen=[1], **choose).id == 0
    assert sample([1.0, 1.5], np.random.default_rng(0), seen=[], **choose).id == 1
