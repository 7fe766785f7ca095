"""The kernels' doors: what they refuse, which path runs, and who their twins are."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import COMPILED
from strategies import matrix

from k2ref import ops


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
    y.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        kernels.linear([(np.ones((2, 64), np.float32), matrix("F32", 64, 64, 0), y, False)], 1)


def test_every_kernel_names_its_twin(kernels):
    for name, twin in {"linear": "ops.linear_numpy", "attend": "attention.attend_numpy",
                       "silu_mul": "ops.silu", "rms_norm": "ops.rms_norm_numpy"}.items():
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


def test_default_threads_is_at_least_one():
    assert ops.default_threads() >= 1
