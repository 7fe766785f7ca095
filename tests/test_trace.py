"""Traces: what is recorded, in which order, and where two of them part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref import trace
from k2ref.trace import Trace, first_difference

IDS = [5, 3, 200, 7]
ATTENTION = ["q_nope", "q_rope", "c_kv", "k_rope", "heads", "out"]


def test_forward_records_the_way_through_the_model(path, tiny_model):
    recorded = Trace()
    k2ref.forward(tiny_model(), IDS, trace=recorded)
    expected = ["embed"]
    for i in range(3):
        expected += [f"layers.{i}.attn.{name}" for name in ATTENTION]
        if i >= 1:  # the first layer is dense
            expected += [f"layers.{i}.moe.{name}" for name in ("chosen", "mix", "out")]
        expected.append(f"layers.{i}.out")
    assert list(recorded.arrays) == [*expected, "norm", "logits"]
    assert {len(array) for array in recorded.arrays.values()} == {len(IDS)}


def test_only_records_what_was_asked_for(tiny_model):
    recorded = Trace(only="layers.1.moe.*")
    k2ref.forward(tiny_model(), IDS, trace=recorded)
    assert list(recorded.arrays) == [f"layers.1.moe.{name}" for name in ("chosen", "mix", "out")]


def test_later_tokens_are_appended(kernels, tiny_model):
    m, whole, pieces = tiny_model(), Trace(), Trace()
    k2ref.forward(m, IDS, trace=whole)
    cache = k2ref.KVCache(m.config, len(IDS))
    for start, stop in ((0, 2), (2, 3), (3, 4)):
        k2ref.forward(m, IDS[start:stop], cache, trace=pieces)
    assert first_difference(whole.arrays, pieces.arrays) is None


def test_record_keeps_a_copy():
    recorded, array = Trace(), np.zeros((1, 2))
    recorded.record("x", array)
    array += 1
    assert (recorded.arrays["x"] == 0).all()


def test_load_reads_what_save_wrote(tmp_path, tiny_model):
    recorded = Trace()
    k2ref.forward(tiny_model(), IDS, trace=recorded)
    recorded.save(tmp_path / "trace")  # the name is taken as it is
    found = trace.load(tmp_path / "trace")
    assert list(found) == list(recorded.arrays)
    for name, array in recorded.arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_load_refuses_pickles(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="pickle"):
        trace.load(tmp_path / "a.npz")


def traces(**changes):
    """Two equal traces but for `changes`, `name=(index, value)` in the second."""
    a = {"x": np.ones((3, 2), np.float32), "chosen": np.array([[1, 2], [3, 4]]),
         "y": np.ones((3, 2, 2), np.float32)}  # fmt: skip
    b = {name: array.copy() for name, array in a.items()}
    for name, (index, value) in changes.items():
        b[name][index] = value
    return a, b


def test_equal_traces_do_not_differ():
    assert first_difference(*traces()) is None


@given(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1))
def test_first_difference_says_where(t, i, j):
    found = first_difference(*traces(y=((t, i, j), 3)))
    assert found == ("y", t, (i, j), 1.0, 3.0)
    assert (found.name, found.token, found.element) == ("y", t, (i, j))


def test_first_difference_is_the_first_array_in_order():
    assert first_difference(*traces(y=((0, 0, 0), 2), x=((2, 1), 2))).name == "x"
    assert first_difference(*traces(y=((0, 0, 0), 2), chosen=((1, 0), 9))) == \
           ("chosen", 1, (0,), 3, 9)


def test_first_difference_is_the_first_token_of_an_array():
    a, b = traces(x=((2, 0), 5))
    b["x"][1, 1] = 7
    assert first_difference(a, b) == ("x", 1, (1,), 1.0, 7.0)


@pytest.mark.parametrize(
    ("value", "rtol", "differs"),
    [(1.01, 0.02, False), (1.01, 0.005, True), (np.nan, 1.0, True), (1.5, 0.5, False)],
)
def test_first_difference_allows_rtol(value, rtol, differs):
    assert (first_difference(*traces(x=((0, 0), value)), rtol) is not None) == differs


def test_rtol_is_of_the_largest_of_a_row():
    a, b = traces(x=((0, 0), 1.5))
    for x in (a["x"], b["x"]):
        x[0, 1] = 100
    assert first_difference(a, b, rtol=0.006) is None
    a["x"][0, 1] = b["x"][0, 1] = 1
    a["x"][1, 1] = b["x"][1, 1] = 100  # of another row: no help
    assert first_difference(a, b, rtol=0.006) is not None


def test_rtol_does_not_excuse_integers():
    assert first_difference(*traces(chosen=((0, 0), 2)), rtol=10.0).name == "chosen"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_equals_nan_and_excuses_nobody(value):
    a, b = traces(x=((0, 0), value))
    *where, was, became = first_difference(a, b, rtol=0.1)
    assert where == ["x", 0, (0,)] and was == 1 and np.array_equal(became, value, equal_nan=True)
    a["x"][0, 0] = value
    assert first_difference(a, b) is first_difference(a, b, rtol=0.1) is None
    b["x"][0, 1] = 2
    assert first_difference(a, b, rtol=0.1) == ("x", 0, (1,), 1.0, 2.0)


def test_traces_of_other_names_or_shapes_cannot_be_compared():
    a, b = traces()
    with pytest.raises(ValueError, match=r"different names: \['y'\]"):
        first_difference(a, {name: b[name] for name in ("x", "chosen")})
    b["x"] = b["x"][:2]
    with pytest.raises(ValueError, match=r"x: one trace holds shape \(3, 2\), the other \(2, 2\)"):
        first_difference(a, b)
