"""RoPE and YaRN against the numbers of the official code, and what a rotation must keep."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref import rope
from k2ref.checkpoint.config import Config
from scripts.checkpoints.small import tiny_config

CONFIGS = Path(__file__).parent / "data" / "configs"
U = 2.0**-24  # the unit roundoff of float32
# One output is a*cos - b*sin: each product carries the rounding of cos or sin and its own, the
# difference one more, so it is off by at most 3U(|a| + |b|), and the whole vector by 6U of its
# length (|a| + |b| is at most sqrt(2) times the pair's length, and a pair has two outputs). Angles
# are float64: their error, 262,143 * 2**-52, does not show beside U. One hundredth is for squares
# of U.
ROTATION_ERROR = 6.06 * U

positions = st.integers(0, 262_143)
seeds = st.integers(0, 2**32 - 1)


def official(name: str) -> Config:
    return Config.from_dict(json.loads((CONFIGS / f"{name}.json").read_text()))


THINKING = official("Kimi-K2-Thinking")


def rotated(config, x, position):
    return rope.rotate(x[None], *rope.cos_sin(config, [position]))[0]


def random_heads(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Kimi-K2-Thinking", {
            0: 1.0, 1: 0.713111085, 18: 0.00227420376, 19: 0.00162175991, 20: 1.80702339e-05,
            31: 4.38220646e-07,
        }),
        ("Kimi-K2.5", {
            8: 0.0668740305, 9: 0.043776656, 18: 4.08645987e-4, 19: 1.58374991e-4,
            20: 1.80702339e-05,
        }),
        ("Kimi-K2-Instruct", {20: 3.61404677e-05}),
    ],
)  # fmt: skip
def test_inv_freq_of_the_official_configs(name, expected):
    found = rope.inv_freq(official(name))
    assert found.dtype == np.float64 and found.shape == (32,)
    for pair, value in expected.items():  # the literals have 8 digits or more
        assert found[pair] == pytest.approx(value, rel=5e-8)


def test_inv_freq_without_yarn_is_a_geometric_series():
    config = Config.from_dict(tiny_config("moonlight"))
    expected = [config.rope_theta ** (-2 * j / 8) for j in range(4)]
    np.testing.assert_allclose(rope.inv_freq(config), expected, rtol=1e-15)


def test_inv_freq_when_the_corners_coincide():
    values = tiny_config()
    values["rope_scaling"].update(original_max_position_embeddings=6)
    config = Config.from_dict(values)
    assert config.yarn_corners == (0, 0)  # no pair turns once in 6 positions
    fast = np.array([config.rope_theta ** (-2 * j / 8) for j in range(4)])
    np.testing.assert_allclose(rope.inv_freq(config), fast / [1, 64, 64, 64], rtol=1e-15)


def test_trap_beta_fast_is_read_from_the_config():
    thinking, k25 = rope.inv_freq(THINKING), rope.inv_freq(official("Kimi-K2.5"))
    same = thinking == k25  # they part only between K2.5's corners, 8 and 20
    assert same.tolist() == [pair <= 8 or pair >= 20 for pair in range(32)]


def test_trap_pairs_are_neighbours_not_halves(path):
    cos = np.array([[0.0, 1.0]], np.float32)  # the first pair by a quarter turn, the second not
    sin = np.array([[1.0, 0.0]], np.float32)
    x = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    # (1, 2) -> (-2, 1) and (3, 4) -> (3, 4): all first components, then all second ones.
    assert rope.rotate(x, cos, sin).tolist() == [[-2.0, 3.0, 1.0, 4.0]]


def test_rotate_uses_each_tokens_angle_for_all_its_heads(path):
    cos, sin = rope.cos_sin(THINKING, [5, 262_143])
    x = random_heads(0, 2, 3, 64)
    y = rope.rotate(x, cos, sin)
    assert y.shape == x.shape and y.dtype == np.float32
    for t in range(2):
        for h in range(3):
            one = rope.rotate(x[t : t + 1, h], cos[t : t + 1], sin[t : t + 1])
            assert (y[t, h] == one[0]).all()


@given(seeds, st.lists(positions, max_size=5), st.integers(1, 4), st.integers(0, 3))
def test_rotate_is_its_numpy_twin(kernels, seed, at, H, skipped):
    cos, sin = rope.cos_sin(THINKING, at)
    x = random_heads(seed, len(at), H, 64 + skipped)[..., skipped:]
    for part in (x, x[:, -1]):
        y, twin = rope.rotate(part, cos, sin), rope.rotate_numpy(part, cos, sin)
        assert y.shape == twin.shape and y.dtype == twin.dtype
        # A processor may round once in a multiply-add where NumPy rounds twice.
        size = np.abs(part).sum(axis=-1, keepdims=True)
        assert (np.abs(y - twin) <= 4 * U * size).all()


def test_position_zero_turns_nothing():
    x = random_heads(1, 64)
    y = rotated(THINKING, x, 0)
    assert (y == np.concatenate([x[0::2], x[1::2]])).all()


def test_angles_are_exact_at_the_last_position():
    cos, sin = rope.cos_sin(THINKING, [262_143])
    assert cos.dtype == sin.dtype == np.float32
    angles = [262_143 * f for f in rope.inv_freq(THINKING).tolist()]
    # One rounding of the result, and the angle's, at most 262,143 * 2**-52 radians.
    np.testing.assert_allclose(cos[0], [math.cos(a) for a in angles], rtol=U, atol=6e-11)
    np.testing.assert_allclose(sin[0], [math.sin(a) for a in angles], rtol=U, atol=6e-11)
    in_float32 = np.float32(262_143) * rope.inv_freq(THINKING).astype(np.float32)
    assert np.abs(np.cos(in_float32) - cos[0]).max() > 1e-3  # what float32 angles would cost


# position, pair, angle, its cosine and sine: computed with 50 digits (mpmath) from the official
# configuration. Pairs 0 to 19 turn as they did in training, those from 20 on 64 times slower.
ANGLES = [
    (4095, 0, 4095.0, -0.0659759965581, -0.997821210377),
    (4095, 1, 2920.1898927143616015, 0.0794374188106, -0.996839854988),
    (4095, 19, 6.6411068237348243173, 0.936626997732, 0.350328227693),
    (4095, 20, 0.073997607688899616019, 0.997263426079, 0.0739300953918),
    (4095, 31, 0.0017945135436480267191, 0.999998389861, 0.00179451258051),
    (4096, 0, 4096.0, 0.803990613486, -0.594641987608),
    (4096, 1, 2920.9030037992735335, 0.712203532552, -0.70197302528),
    (4096, 19, 6.6427285836429402695, 0.936057617994, 0.351846750441),
    (4096, 20, 0.074015677922767479173, 0.997262089982, 0.0739481161631),
    (4096, 31, 0.0017949517642936062128, 0.999998389075, 0.00179495080045),
    (131072, 0, 131072.0, 0.0420908152503, -0.999113788951),
    (131072, 1, 93468.896121576753074, 0.973325175088, 0.22942995345),
    (131072, 19, 212.56731467657408862, 0.488011904761, -0.872836972642),
    (131072, 20, 2.3685016935285593335, -0.715755517349, 0.698350942854),
    (131072, 31, 0.057438456457395398811, 0.998350865334, 0.0574068784014),
    (262143, 0, 262143.0, -0.609161490569, 0.793046201938),
    (262143, 1, 186937.07913206859422, 0.968880959321, -0.24752714329),
    (262143, 19, 425.13300759324006129, -0.525069665282, -0.851059249759),
    (262143, 20, 4.7369853168232508039, 0.0245938564659, -0.999697525367),
    (262143, 31, 0.11487647469414521813, 0.993408950855, 0.114623978124),
]


@pytest.mark.parametrize("position, pair, angle, cosine, sine", ANGLES)
def test_angles_at_far_positions_are_the_literal_ones(position, pair, angle, cosine, sine):
    # float64: the power, the division by 64 and the product round, each by half an ulp or two.
    relative = 4 * 2.0**-52
    assert abs(position * rope.inv_freq(THINKING)[pair] - angle) <= relative * angle
    cos, sin = rope.cos_sin(THINKING, [position])
    # Then one rounding to float32.
    assert abs(cos[0, pair] - cosine) <= U * abs(cosine) + relative * angle + 1e-12
    assert abs(sin[0, pair] - sine) <= U * abs(sine) + relative * angle + 1e-12


def test_cos_and_sin_carry_mscale():
    values = tiny_config()
    values["rope_scaling"]["mscale"] = 0.5
    config = Config.from_dict(values)
    cos, _ = rope.cos_sin(config, [0])
    assert config.rope_mscale != 1
    assert (cos == np.float32(config.rope_mscale)).all()


@given(seeds, positions)
def test_rotation_keeps_the_length(seed, position):
    x = random_heads(seed, 64)
    before = np.linalg.norm(x.astype(np.float64))
    after = np.linalg.norm(rotated(THINKING, x, position).astype(np.float64))
    assert abs(after - before) <= ROTATION_ERROR * before


@given(seeds, positions, positions, positions)
def test_scores_depend_on_the_distance_only(seed, query_at, key_at, shift):
    shift = min(shift, 262_143 - max(query_at, key_at))
    q, k = random_heads(seed, 2, 64)

    def score(distance):
        q_rope = rotated(THINKING, q, query_at + distance)
        k_rope = rotated(THINKING, k, key_at + distance)
        return q_rope.astype(np.float64) @ k_rope.astype(np.float64)

    # Two scores, each with the error of a rotated query and of a rotated key.
    bound = 4 * ROTATION_ERROR * np.linalg.norm(q) * np.linalg.norm(k)
    assert abs(score(0) - score(shift)) <= bound
