"""Traces: what is recorded, in which order, how it is kept, and where two of them part."""

import dataclasses
import json
import os

import numpy as np
import pytest
from conftest import assert_same
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref import trace
from k2ref.doors.atomic import require_file
from k2ref.trace import Trace, first_difference
from scripts.checkpoints.small import LAYOUTS

IDS = [5, 3, 200, 7]
ATTENTION = ["h", "q_nope", "q_rope", "c_kv", "k_rope", "heads", "out"]
CONTEXT = ["ids", "position", "time_s", "about"]


def test_forward_records_the_way_through_the_model(path, tiny_model):
    recorded = Trace()
    k2ref.forward(tiny_model(), IDS, trace=recorded)
    expected = ["embed"]
    for i in range(3):
        expected += [f"layers.{i}.attn.{name}" for name in ATTENTION]
        expected += [f"layers.{i}.mid", f"layers.{i}.h"]
        mlp = ("moe.chosen", "moe.mix", "moe.out") if i >= 1 else ("mlp.out",)  # 0 is dense
        expected += [f"layers.{i}.{name}" for name in mlp]
        expected.append(f"layers.{i}.out")
    assert list(recorded.arrays) == [*expected, "norm", "logits"]
    assert {len(array) for array in recorded.arrays.values()} == {len(IDS)}


def test_only_records_what_was_asked_for(tiny_model):
    recorded = Trace(only="layers.1.moe.*")
    k2ref.forward(tiny_model(), IDS, trace=recorded)
    assert list(recorded.arrays) == [f"layers.1.moe.{name}" for name in ("chosen", "mix", "out")]


def test_several_patterns_may_be_asked_for(tiny_model):
    recorded = Trace(only=["layers.1.moe.mix", "*.c_kv", "norm"])
    assert recorded.wants("norm") and recorded.wants("logits", "norm")
    assert not recorded.wants("logits", "layers.1.moe.out")
    k2ref.forward(tiny_model(), IDS, trace=recorded)
    assert list(recorded.arrays) == ["layers.0.attn.c_kv", "layers.1.attn.c_kv",
                                     "layers.1.moe.mix", "layers.2.attn.c_kv", "norm"]
    assert (recorded["norm"] == recorded.arrays["norm"]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stages_lists_what_is_recorded(tiny_model, layout):
    m, recorded = tiny_model(layout), Trace()
    k2ref.forward(m, IDS, trace=recorded)
    listed = trace.stages(m.config)
    assert list(recorded.arrays) == list(listed)
    assert {name: (array.shape[1:], array.dtype) for name, array in recorded.arrays.items()} == \
           listed


@pytest.mark.parametrize("only", ["*", "layers.1.*", ["*.chosen", "embed"], "nothing"])
def test_the_bytes_of_a_token_are_known_beforehand(tiny_model, only):
    m, recorded = tiny_model(), Trace(only)
    k2ref.forward(m, IDS, trace=recorded)
    n_bytes = sum(array.nbytes for array in recorded.arrays.values())
    assert recorded.n_bytes_per_token(m.config) * len(IDS) == n_bytes


def test_the_new_stages_are_what_they_say(path, tiny_model):
    m, recorded = tiny_model(), Trace()
    k2ref.forward(m, IDS, trace=recorded)
    a = recorded.arrays
    for i, mlp in ((0, "mlp"), (1, "moe")):
        x = a["embed"] if i == 0 else a[f"layers.{i - 1}.out"]
        layer, eps = m.layers[i], m.config.rms_norm_eps
        assert (a[f"layers.{i}.attn.h"] == k2ref.ops.rms_norm(x, layer.input_layernorm, eps)).all()
        mid = a[f"layers.{i}.mid"]
        assert (mid == x + a[f"layers.{i}.attn.out"]).all()
        h = k2ref.ops.rms_norm(mid, layer.post_attention_layernorm, eps)
        assert (a[f"layers.{i}.h"] == h).all()
        assert (a[f"layers.{i}.out"] == mid + a[f"layers.{i}.{mlp}.out"]).all()


def test_a_model_with_a_trace_records_every_pass(path, tiny_model):
    recorded, alone = Trace(), Trace()
    m = dataclasses.replace(tiny_model(), trace=recorded)
    tokens = list(k2ref.generate(m, IDS, 3, temperature=0, stop_ids=[]))
    read = [*IDS, *tokens[:-1]]  # the last token is written and not read
    k2ref.forward(tiny_model(), read, trace=alone)
    for name, array in alone.arrays.items():
        assert_same(recorded[name], array)
    context = recorded.context()
    assert context["ids"].tolist() == read
    assert context["position"].tolist() == list(range(len(read)))
    assert recorded.n_tokens == len(read)


def test_the_last_logits_are_given_and_all_are_recorded(path, tiny_model):
    recorded, few = Trace(), Trace("layers.*")
    expected = k2ref.forward(tiny_model(), IDS)
    last = k2ref.forward(tiny_model(), IDS, last_only=True, trace=recorded)
    assert last.shape == (1, 512)
    assert_same(last[0], expected[-1])
    assert_same(recorded["logits"], expected)
    assert_same(k2ref.forward(tiny_model(), IDS, last_only=True, trace=few)[0], expected[-1])


def test_a_pass_that_fails_is_not_recorded(tiny_model, monkeypatch):
    m, recorded = tiny_model(), Trace()
    cache = k2ref.KVCache(m.config, 8)
    k2ref.forward(m, IDS[:2], cache, trace=recorded)
    before, block = recorded.arrays, k2ref.model.block

    def fail(x, layer, run):
        if run.i == 2:
            raise KeyboardInterrupt
        return block(x, layer, run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(k2ref.model, "block", fail)
        k2ref.forward(m, IDS[2:], cache, trace=recorded)
    assert recorded.n_tokens == 2 and first_difference(before, recorded.arrays) is None
    k2ref.forward(m, IDS[2:], cache, trace=recorded)
    assert recorded.n_tokens == 4 and {len(a) for a in recorded.arrays.values()} == {4}


def test_seconds_are_kept_by_stage_and_shared_by_the_tokens_of_a_pass(tiny_model):
    m, recorded = tiny_model(), Trace("norm")  # whatever else is recorded
    cache = k2ref.KVCache(m.config, 8)
    k2ref.forward(m, IDS[:3], cache, trace=recorded)
    k2ref.forward(m, IDS[3:], cache, trace=recorded)
    context = recorded.context()
    stages = json.loads(str(context["about"]))["stages"]
    assert stages == ["embed", "layers.0.attn", "layers.0", "layers.0.mlp",
                      "layers.1.attn", "layers.1", "layers.1.moe",
                      "layers.2.attn", "layers.2", "layers.2.moe", "logits"]
    time_s = context["time_s"]
    assert time_s.shape == (4, len(stages)) and (time_s > 0).all() and time_s.sum() < 60
    assert (time_s[:3] == time_s[0]).all() and (time_s[3] != time_s[0]).any()


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
    assert list(found) == [*CONTEXT, *recorded.arrays]
    assert found["ids"].tolist() == IDS and found["position"].tolist() == [0, 1, 2, 3]
    for name, array in recorded.arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_save_joins_the_pieces_and_takes_what_fits_the_pattern(tmp_path, tiny_model):
    recorded, cache = Trace(), k2ref.KVCache(tiny_model().config, 8)
    for id in IDS:
        k2ref.forward(tiny_model(), [id], cache, trace=recorded)
    recorded.save(tmp_path / "a.npz", {"why": "\u03c0"}, only=["*.moe.*", "logits"])
    found = trace.load(tmp_path / "a.npz")
    names = [f"layers.{i}.moe.{name}" for i in (1, 2) for name in ("chosen", "mix", "out")]
    assert list(found) == [*CONTEXT, *names, "logits"]
    assert all(np.array_equal(found[name], recorded[name]) for name in [*names, "logits"])
    assert json.loads(str(found["about"]))["why"] == "\u03c0"


def test_an_empty_trace_is_a_file_too(tmp_path):
    Trace().save(tmp_path / "a.npz")
    found = trace.load(tmp_path / "a.npz")
    assert list(found) == CONTEXT and found["ids"].shape == (0,)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file, recorded = tmp_path / "a.npz", Trace()
    file.write_bytes(b"what was here before")
    recorded.record("x", np.zeros((1, 2)))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as error:
        patch.setattr(trace, "_write_array", full)
        recorded.save(file)
    assert error.value.filename == str(file)
    assert os.listdir(tmp_path) == ["a.npz"] and file.read_bytes() == b"what was here before"
    recorded.save(file)
    assert os.listdir(tmp_path) == ["a.npz"] and trace.load(file)["x"].shape == (1, 2)


def test_a_link_is_followed_and_a_device_left_alone(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    Trace().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").exists()
    for place in (os.devnull, tmp_path):
        with pytest.raises(OSError, match="expected the name of a file"):
            require_file(place)
    require_file(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


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


def test_a_difference_says_in_a_line_where_and_by_how_much():
    found = first_difference(*traces(y=((2, 0, 1), 3.5)))
    assert str(found) == "y, token 2, element 0, 1: 1 against 3.5, 2.5 apart"
    assert found.gap == 2.5
    found = first_difference({"x": np.zeros(3)}, {"x": np.array([0, 1e-7, 0])})
    assert str(found) == "x, token 1: 0 against 1e-07, 1e-07 apart"


def test_what_was_measured_is_no_difference():
    a, b = traces()
    a |= {"time_s": np.ones((3, 2)), "about": np.array("{}"), "ids": np.array([1, 2, 3])}
    b |= {"stream.read": np.zeros(3), "about": np.array("other"), "ids": np.array([1, 2, 3])}
    assert first_difference(a, b) is None
    b["ids"] = np.array([1, 9, 3])
    assert first_difference(a, b).name == "ids"
    del b["ids"]  # another engine need not write them
    assert first_difference(a, b) is first_difference(b, a) is None


def test_traces_of_other_names_or_shapes_cannot_be_compared():
    a, b = traces()
    with pytest.raises(ValueError, match=r"different names: \['y'\]"):
        first_difference(a, {name: b[name] for name in ("x", "chosen")})
    b["x"] = b["x"][:2]
    with pytest.raises(ValueError, match=r"x: one trace holds shape \(3, 2\), the other \(2, 2\)"):
        first_difference(a, b)
