"""What the tests share: hypothesis, how long they take, kernel paths, tiny models, `--mine`."""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

STARTED = time.monotonic()
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for scripts/: the checkpoint writer and the oracle

import k2ref  # noqa: E402
from k2ref import ops  # noqa: E402
from scripts.checkpoints import small  # noqa: E402

settings.register_profile(
    "k2ref",
    deadline=None,  # no timing decides a test
    max_examples=int(os.environ.get("K2REF_EXAMPLES", "10")),  # CI tries more
    print_blob=True,
    derandomize="CI" in os.environ,  # what lands is judged by what it changed, not by luck
    # A fixture here chooses a kernel path or a model: the same for all examples of one test.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("k2ref")


# About what a run of each half took on two cores, one of them busy: 157 s, and 181 with 3.15.
SECONDS = {"not slow and not thorough": 160, "thorough": 180}
REST = "; the rest of the tests, which CI runs too: pytest -m thorough"


def pytest_report_collectionfinish(config, items):
    """Say how long a run of a whole half will take: as long as the last one here, if there was one.

    This and not pytest_report_header, which the option -q leaves out.
    """
    chosen = config.getoption("markexpr")
    if not items or not is_whole(config) or chosen not in SECONDS:
        return []
    last = hasattr(config, "cache") and config.cache.get(f"k2ref/{chosen}", None)
    said = f"{last} s, as the last time here" if last else f"{SECONDS[chosen]} s on two cores"
    return f"{len(items)} tests, about {said}{'' if chosen == 'thorough' else REST}"


def pytest_sessionfinish(session, exitstatus):
    config = session.config  # without a cache under -p no:cacheprovider
    if exitstatus == 0 and is_whole(config) and session.items and hasattr(config, "cache"):
        last = round(time.monotonic() - STARTED)
        config.cache.set(f"k2ref/{config.getoption('markexpr')}", last)


def is_whole(config):
    """Say whether the command line asks for all that its markers leave, by no name or word."""
    return not (config.getoption("file_or_dir") or config.getoption("keyword"))


def pytest_addoption(parser):
    parser.addoption("--mine", metavar="FILE", help="run the tests with the functions of this file "
                     "in the place of k2ref's functions of the same names")


def pytest_configure(config):
    """Put the functions of `--mine FILE` in place, before any test module imports k2ref's."""
    file = config.getoption("--mine")
    if file:
        config.mine = put_in_place(file)


def pytest_terminal_summary(terminalreporter, config):
    for name in getattr(config, "mine", []):
        terminalreporter.write_line(f"mine: {name}")


def put_in_place(file):
    """Replace k2ref's public functions by those of a file; list what was replaced.

    Raises: pytest.UsageError, which pytest prints as one line
    """
    try:
        spec = importlib.util.spec_from_file_location("mine", file)
        if spec is None:
            raise ImportError("its name does not end in .py")
        mine = sys.modules["mine"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mine)
    except Exception as error:  # whatever is wrong with the file, it is the file's
        raise pytest.UsageError(f"--mine {file}: {type(error).__name__}: {error}") from None
    names = [info.name for info in pkgutil.walk_packages(k2ref.__path__, "k2ref.")]
    rooms = [importlib.import_module(name) for name in names if "._" not in name]
    replaced = []
    for name, function in inspect.getmembers(mine, inspect.isfunction):
        if name.startswith("_") or function.__module__ != "mine":
            continue
        holders = [room for room in [k2ref, *rooms] if is_own_function(vars(room).get(name))]
        homes = {vars(room)[name].__module__: vars(room)[name] for room in holders}
        if len(homes) > 1:  # the parameters tell which of them is meant
            homes = {home: f for home, f in homes.items() if parameters(f) == parameters(function)}
            if len(homes) != 1:
                raise pytest.UsageError(f"--mine {file}: {len(homes)} of the functions of k2ref "
                                        f"called {name} take {parameters(function)}, expected one")
            holders = [room for room in holders if vars(room)[name].__module__ in homes]
        for room in holders:
            setattr(room, name, function)
        replaced += [f"{name} of {home}" for home in homes]
    if not replaced:
        raise pytest.UsageError(f"--mine {file}: expected a function with the name of one in "
                                "k2ref, found none")
    return replaced


def parameters(function):
    return list(inspect.signature(function).parameters)


def is_own_function(value):
    """Say whether this is a function of k2ref, a cached one included, and no class."""
    return (callable(value) and not isinstance(value, type)
            and str(getattr(value, "__module__", "")).startswith("k2ref."))


def kernel_paths():
    """Name the paths that this machine can run, the one in use first; empty without kernels."""
    if ops.kernels is None:
        return []
    in_use = ops.kernels.path_name()
    found = [in_use]
    for name in ("amx", "vnni", "avx512", "avx2", "neon", "portable"):
        try:
            ops.kernels.use_path(name)
        except ValueError:
            continue
        if name not in found:
            found.append(name)
    ops.kernels.use_path(in_use)
    return found


COMPILED = kernel_paths()
# The default half of the tests runs on the path in use and on NumPy.
PARAMS = [*COMPILED[:1], *(pytest.param(name, marks=pytest.mark.thorough) for name in COMPILED[1:])]


def choose_path(name, monkeypatch):
    """Run on the compiled path of this name, or on NumPy, until monkeypatch is undone."""
    if name == "numpy":
        monkeypatch.setattr(ops, "kernels", None)
        return name
    if name is None:
        pytest.skip("the kernels are not compiled, or K2REF_KERNELS=numpy")
    ops.kernels.use_path(name)
    return name


@pytest.fixture(params=[*PARAMS, "numpy"])
def path(request, monkeypatch):
    """Run a test on every kernel path of this machine and on NumPy."""
    yield choose_path(request.param, monkeypatch)
    if COMPILED:
        monkeypatch.undo()
        ops.kernels.use_path(COMPILED[0])


@pytest.fixture(params=PARAMS or [None])
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
        return k2ref.load(small.write_checkpoint(directory, layout=layout), threads=1)

    return make


def assert_same(found, expected):
    """The same bits; on NumPy, whose products round by shape, as close as the goldens demand."""
    if ops.kernels is None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)
    else:
        assert (found == expected).all()
