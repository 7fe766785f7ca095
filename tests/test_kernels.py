"""The kernels' doors: what they refuse, which path runs, and who their twins are."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import COMPILED
from strategies import FORMATS, activations, matrix

from k2ref import ops, quant


def products_for_the_kernel(x, w):
    return [(x, w, np.empty((len(x), w.shape[0]), np.float32), False)]


def test_kernels_refuse_what_they_cannot_read(kernels):
    w = matrix("Bf16", 5, 64, 0)
    wide = np.ones((2, 128), np.float32)
    with pytest.raises(ValueError, match="contiguous last axis"):
        kernels.linear(products_for_the_kernel(wide[:, ::2], w), 1)
    with pytest.raises(TypeError, match="float32"):
        kernels.linear(products_for_the_kernel(np.ones((2, 64)), w), 1)
    with pytest.raises(ValueError, match=r"shape \(5, 64\)"):
        kernels.linear(products_for_the_kernel(wide, w), 1)
    with pytest.raises(TypeError, match="INT4"):
        y = np.empty((2, 64), np.float32)
        kernels.linear([(np.ones((2, 5), np.float32), matrix("Int4", 5, 64, 0), y, True)], 1)
    with pytest.raises(ValueError, match="one size"):
        kernels.silu_mul(wide, wide[:1], np.empty_like(wide))
    with pytest.raises(ValueError, match="rms_norm"):
        kernels.rms_norm(wide, np.ones(64, np.float32), np.empty_like(wide), 1e-6)
    with pytest.raises(ValueError, match="rotate"):
        kernels.rotate(wide, np.ones((2, 32), np.float32), np.ones((2, 32), np.float32), wide)
    for rows in ([wide[0]], [wide[0], wide[0, 1:]]):
        with pytest.raises(ValueError, match="weighted_sum"):
            kernels.weighted_sum(np.ones((1, 2), np.float32), rows, np.empty_like(wide[:1]))
    y.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        kernels.linear([(np.ones((2, 64), np.float32), matrix("F32", 64, 64, 0), y, False)], 1)


def test_every_kernel_names_its_twin(kernels):
    for name, twin in {"linear": "ops.linear_numpy", "attend": "attention.attend_numpy",
                       "silu_mul": "ops.silu", "rms_norm": "ops.rms_norm_numpy",
                       "rotate": "rope.rotate_numpy",
                       "weighted_sum": "ops.weighted_sum_numpy"}.items():
        assert f"Twin: {twin}" in getattr(kernels, name).__doc__


def test_use_path_chooses_and_refuses(kernels):
    for name in COMPILED:
        kernels.use_path(name)
        assert kernels.path_name() == ops.kernels_name() == name
    with pytest.raises(ValueError, match="K2REF_KERNELS.*'sse9'"):
        kernels.use_path("sse9")
    assert kernels.path_name() == COMPILED[-1]


def kernels_in_a_new_process(wanted):
    code = "from k2ref import ops; print(ops.kernels_name())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "K2REF_KERNELS": wanted})


@pytest.mark.parametrize("wanted", [*COMPILED, "numpy"])
def test_the_environment_chooses_the_kernels(wanted):
    assert kernels_in_a_new_process(wanted).stdout.strip() == wanted


@pytest.mark.skipif(not COMPILED, reason="the kernels are not compiled, or K2REF_KERNELS=numpy")
def test_the_environment_cannot_choose_unknown_kernels():
    assert "no kernels named 'sse9'" in kernels_in_a_new_process("sse9").stderr


SMALL_STACK = """
import threading
import numpy as np
from k2ref import ops, quant

weights = [quant.Int4(np.zeros((64, 128), np.int32), np.zeros((64, 32), np.uint16)),
           quant.Bf16(np.zeros((64, 1024), np.uint16)), quant.F32(np.zeros((64, 1024), np.float32))]
threading.stack_size(128 << 10)
def multiply():
    print([bool((ops.linear(np.ones((64, 1024), np.float32), w, 1) == 0).all()) for w in weights])
thread = threading.Thread(target=multiply)
thread.start()
thread.join()
"""


def test_a_thread_needs_no_large_stack(kernels):
    # As musl's threads have it (Alpine Linux), and the main thread after `ulimit -s 128`.
    env = {**os.environ, "K2REF_KERNELS": kernels.path_name()}
    done = subprocess.run([sys.executable, "-c", SMALL_STACK], capture_output=True, env=env)
    assert (done.returncode, done.stdout.strip()) == (0, b"[True, True, True]"), done.stderr


def test_default_threads_is_at_least_one():
    assert ops.default_threads() >= 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("O, I", [(1, 32), (15, 96), (33, 544), (130, 1056), (17, 4)])
def test_any_number_of_tokens_has_the_bits_of_each(kernels, format, O, I):
    # Tiles hold 16 rows and 16 or 32 tokens, and a block of them is 64: every remainder of those.
    w = matrix(format, O, 32 if format == "Int4" and I < 32 else I, 5)
    x = activations(I, 70, w.shape[1])
    alone = np.stack([ops.linear(x[t], w, threads=1) for t in range(len(x))])
    for T in range(1, len(x) + 1):
        assert (ops.linear(x[:T], w, threads=2) == alone[:T]).all()
        assert (ops.linear(x[-T:], w, threads=1) == alone[-T:]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_tokens_may_lie_apart_and_weights_at_odd_addresses(kernels, format):
    w = matrix(format, 40, 160, 1)
    wide, out = activations(3, 20, 170), np.zeros((20, 50), np.float32)
    kernels.linear([(wide[:, 5:165], w.rows(3, 21), out[:, 7:25], False)], 1)
    assert (out[:, 7:25] == ops.linear(wide[:, 5:165], w)[:, 3:21]).all()
    assert (out[:, :7] == 0).all() and (out[:, 25:] == 0).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("T", [1, 3, 40])
def test_tiny_activations_lose_no_more_than_denormal_numbers(kernels, format, T):
    # Matrix tiles take a denormal number for zero: of each activation what its terms below 2^-126
    # add up to, and of each sum what lies below it. So at most 2^-126 (2 |w| + 2) a product.
    w = matrix(format, 9, 96, 2)
    for power in (-140, -126, -115, -100):
        x = np.ldexp(activations(4, T, 96), power).astype(np.float32)
        big = w.dequantize().astype(np.float64)
        exact, size = x.astype(np.float64) @ big.T, np.abs(x.astype(np.float64)) @ np.abs(big).T
        lost = 2.0**-126 * (2 * np.abs(big).sum(axis=1) + 2 * 96)
        assert (np.abs(ops.linear(x, w) - exact) <= 104 * 2.0**-24 * size + lost).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("T", [1, 2, 40])
def test_infinity_and_nan_stay_in_their_token(kernels, format, T):
    w = matrix(format, 20, 64, 3)
    w = {"Bf16": quant.Bf16(quant.f32_to_bf16(np.ones((20, 64), np.float32)))}.get(format, w)
    x = activations(6, T, 64)
    expected = ops.linear(x, w)
    x[0, 9] = np.inf
    y = ops.linear(x, w)
    assert not np.isfinite(y[0]).any() and (y[1:] == expected[1:]).all()
    assert format != "Bf16" or (y[0] == np.inf).all()
    x[0, 40] = np.nan
    y = ops.linear(x, w)
    assert np.isnan(y[0]).all() and (y[1:] == expected[1:]).all()
