"""What the tests share: the hypothesis profile, the kernel paths, tiny models, scripts/."""

import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "scripts"))  # the checkpoint writer and the oracle live there

import checkpoints  # noqa: E402

import k2ref  # noqa: E402
from k2ref import ops  # noqa: E402

settings.register_profile(
    "k2ref",
    deadline=None,  # no timing decides a test
    max_examples=int(os.environ.get("K2REF_EXAMPLES", "25")),
    print_blob=True,
    derandomize="CI" in os.environ,  # what lands is judged by what it changed, not by luck
    # A fixture here chooses a kernel path or a model: the same for all examples of one test.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("k2ref")


def kernel_paths():
    """Name the paths that this machine can run, the one in use first; empty without kernels."""
    if ops.kernels is None:
        return []
    in_use = ops.kernels.path_name()
    found = [in_use]
    for name in ("avx512", "avx2", "neon", "portable"):
        try:
            ops.kernels.use_path(name)
        except ValueError:
            continue
        if name not in found:
            found.append(name)
    ops.kernels.use_path(in_use)
    return found


COMPILED = kernel_paths()


def choose_path(name, monkeypatch):
    """Run on the compiled path of this name, or on NumPy, until monkeypatch is undone."""
    if name == "numpy":
        monkeypatch.setattr(ops, "kernels", None)
        return name
    if name is None:
        pytest.skip("the kernels are not compiled, or K2REF_KERNELS=numpy")
    ops.kernels.use_path(name)
    return name


@pytest.fixture(params=[*COMPILED, "numpy"])
def path(request, monkeypatch):
    """Run a test on every kernel path of this machine and on NumPy."""
    yield choose_path(request.param, monkeypatch)
    if COMPILED:
        monkeypatch.undo()
        ops.kernels.use_path(COMPILED[0])


@pytest.fixture(params=COMPILED or [None])
def kernels(request, monkeypatch):
    """Run a test on every compiled path; it gets the compiled module."""
    choose_path(request.param, monkeypatch)
    yield ops.kernels
    ops.kernels.use_path(COMPILED[0])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Give `tiny_model(layout)`: a random model of a layout, written and loaded once."""

    @cache
    def make(layout="thinking"):
        directory = tmp_path_factory.mktemp(layout)
        return k2ref.load(checkpoints.write_checkpoint(directory, layout=layout), threads=1)

    return make


def assert_same(found, expected):
    """The same bits; on NumPy, whose products round by shape, as close as the goldens demand."""
    if ops.kernels is None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)
    else:
        assert (found == expected).all()
