"""scripts/compare_traces.py: what it makes of two traces, and of files that are none."""

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import k2ref
from k2ref.quant import f32_to_bf16
from k2ref.trace import Trace, stages
from scripts import compare_traces
from scripts.checkpoints.small import write_checkpoint

IDS = [5, 3, 200, 7, 41, 90]


@pytest.fixture(scope="module")
def recorded(tiny_model):
    trace = Trace()
    k2ref.forward(tiny_model(), IDS, trace=trace)
    return trace.arrays


def saved(path, arrays):
    np.savez(path, **arrays)
    return str(path)


def run(capsys, a, b, *options):
    """Run the command; return its status, its output and its errors."""
    status = compare_traces.main([a, b, *options])
    return (status, *capsys.readouterr())


def changed(arrays, **values):
    """Copy arrays but for `name__with__dots=array`."""
    return {**arrays, **{name.replace("__", "."): array for name, array in values.items()}}


def test_a_trace_equals_itself(capsys, tmp_path, recorded):
    a = saved(tmp_path / "a.npz", recorded)
    status, out, _ = run(capsys, a, a, "--rtol", "0")
    assert status == 0
    table = out.splitlines()[1:-1]
    assert [line.split()[0] for line in table] == list(recorded)
    assert all(line.endswith("same bits") for line in table)
    assert out.splitlines()[-1].startswith("no difference beyond 0 ")


@pytest.mark.parametrize("name", ["embed", "layers.1.attn.q_rope", "layers.2.out", "logits"])
def test_the_first_difference_is_named(capsys, tmp_path, recorded, name):
    other = recorded[name].copy()
    place = (3, *(1 for _ in other.shape[1:]))
    other[place] += 0.5 * np.abs(other[3]).max()
    late = recorded["logits"].copy()
    late[5] = 7
    b = changed(recorded, logits=late)
    b[name] = other if name != "logits" else np.where(late == 7, late, other)
    status, out, _ = run(capsys, saved(tmp_path / "a.npz", recorded), saved(tmp_path / "b.npz", b))
    assert status == 1
    last = out.splitlines()[-1]
    assert last.startswith(f"first difference beyond 0.0001: {name}, token 3, element 1")
    assert "0.5 of the row's largest" in last
    wrong = [line.split()[0] for line in out.splitlines() if "DIFFERS" in line]
    assert wrong == list(dict.fromkeys([name, "logits"]))


def test_the_difference_may_be_as_large_as_rtol(recorded):
    b = changed(recorded, norm=recorded["norm"] * (1 + 1e-3))
    for rtol, verdict in ((2e-3, "ok"), (5e-4, "DIFFERS")):
        found = compare_traces.compare(recorded, b, rtol)
        row = next(row for row in found.rows if row.name == "norm")
        assert row.verdict == verdict and row.worst == pytest.approx(1e-3, rel=0.01)
        assert (found.first is None) == (verdict == "ok")


@given(seeds, st.sampled_from([np.float16, np.float32, np.float64]), st.floats(1e-6, 1e-1))
def test_the_largest_difference_is_that_of_a_plain_loop(seed, dtype, size):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(4, 3, 5)).astype(np.float32)
    b = (a + size * rng.normal(size=a.shape)).astype(dtype)
    expected = max(abs(float(a[t, i, j]) - float(b[t, i, j])) / np.abs(a[t]).max()
                   for t in range(4) for i in range(3) for j in range(5))
    found = compare_traces.compare({"x": a.astype(float)}, {"x": b.astype(float)}, 0.0)
    assert found.rows[0].worst == pytest.approx(expected, rel=1e-6)
    assert (found.first is None) == (expected == 0)


def test_a_dump_of_another_engine_is_understood(capsys, tmp_path, recorded):
    """A batch axis, joined heads, experts in another order, other floats, other order of names."""
    rng = np.random.default_rng(0)
    dump = {}
    for name in reversed(list(recorded)):
        array = recorded[name]
        if name.endswith(("q_nope", "heads")):
            array = array.reshape(len(array), -1)
        dump[name] = array.astype(np.float64)[None] if array.dtype.kind == "f" else array[None]
    for i in (1, 2):
        order = rng.permutation(3)
        for part in ("chosen", "mix"):
            name = f"layers.{i}.moe.{part}"
            dump[name] = recorded[name][:, order].astype(np.float32 if part == "mix" else np.int32)
    dump["other.thing"] = np.zeros(3)
    dump["note"] = np.array('{"engine": "another"}')
    a, b = saved(tmp_path / "a.npz", recorded), saved(tmp_path / "b.npz", dump)
    status, out, _ = run(capsys, a, b, "--rtol", "0")
    assert status == 0 and "not in A: 1 arrays: other.thing" in out
    status, out, _ = run(capsys, b, a, "--rtol", "0")
    assert status == 0
    depths = [int(n) for n in re.findall(r"^layers\.(\d+)", out, re.MULTILINE)]
    assert depths == sorted(depths) and len(depths) == len(recorded) - 3
    assert [line.split()[0] for line in out.splitlines()[1:-2]][::len(recorded) - 1] == \
           ["embed", "logits"]


def test_the_weights_of_reordered_experts_are_compared_with_their_own(recorded):
    b = changed(recorded, layers__1__moe__chosen=recorded["layers.1.moe.chosen"][:, ::-1])
    found = compare_traces.compare(recorded, b)  # the weights were not turned with them
    assert found.first.startswith("layers.1.moe.mix, token 0")


def test_another_expert_is_a_difference_whatever_rtol(recorded):
    other = recorded["layers.1.moe.chosen"].copy()
    other[2, 0] = next(e for e in range(8) if e not in other[2])
    found = compare_traces.compare(recorded, changed(recorded, layers__1__moe__chosen=other), 1e9)
    assert found.first.startswith("layers.1.moe.chosen, token 2")


@pytest.mark.parametrize("swapped", [False, True])
def test_experts_written_as_floats_are_still_exact(recorded, swapped):
    name = "layers.1.moe.chosen"
    a, b = {name: recorded[name]}, {name: recorded[name].astype(float)}
    assert compare_traces.compare(a, b, 0.0).first is None
    b[name][2, 0] = 99
    assert compare_traces.compare(*((b, a) if swapped else (a, b)), 1e9).first.startswith(name)


def test_bf16_patterns_are_widened(tmp_path, recorded):
    bits = f32_to_bf16(recorded["norm"])
    a = saved(tmp_path / "a.npz", {"norm": recorded["norm"]})
    b = saved(tmp_path / "b.npz", {"norm": bits.view("V2")})
    found = compare_traces.compare(compare_traces.read(a), compare_traces.read(b), 2.0**-8)
    assert found.first is None and found.rows[0].worst > 2.0**-12


def test_fewer_rows_are_those_of_the_last_tokens(recorded):
    b = {"logits": recorded["logits"][-2:].copy()}
    assert compare_traces.compare(recorded, b).first is None
    b["logits"][0, 3] += 100
    assert "logits, token 4, element 3" in compare_traces.compare(recorded, b).first
    assert compare_traces.compare(b, recorded).first is not None


def test_missing_names_are_said_and_excuse_nothing(capsys, tmp_path, recorded):
    some = {name: recorded[name] for name in ("layers.1.out", "norm")}
    a, b = saved(tmp_path / "a.npz", recorded), saved(tmp_path / "b.npz", some)
    status, out, _ = run(capsys, a, b)
    assert status == 0 and f"not in B: {len(recorded) - 2} arrays: embed" in out
    assert out.splitlines()[-1].endswith("in 2 arrays")
    some["norm"] = some["norm"] + 1
    status, out, _ = run(capsys, a, saved(tmp_path / "b.npz", some))
    assert status == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_equals_itself_only(recorded, value):
    bad = recorded["norm"].copy()
    bad[1, 2] = value
    b = changed(recorded, norm=bad)
    assert "norm, token 1, element 2" in compare_traces.compare(recorded, b, 1.0).first
    assert compare_traces.compare(b, b, 0.0).first is None


def test_another_shape_is_a_difference(recorded):
    found = compare_traces.compare(recorded, {"norm": recorded["norm"][:, :5]})
    assert found.first == f"norm: shape {recorded['norm'].shape} in A, (6, 5) in B"


def test_other_ids_are_the_first_difference(recorded):
    a = {**recorded, "ids": np.array(IDS)}
    b = {**recorded, "ids": np.array([*IDS[:4], 1, 90])}
    assert compare_traces.compare(a, b).first.startswith("ids, token 4: 41 against 1")


def test_what_was_measured_is_not_compared(capsys, tmp_path):
    """Traces as `Trace.save` writes them, one of a streamed model: seconds and bytes differ."""
    directory = tmp_path / "model"
    directory.mkdir()
    write_checkpoint(directory)
    for name, memory in (("a", None), ("b", 10**9)):
        trace = Trace()
        model = k2ref.load(directory, threads=1, memory=memory)
        k2ref.forward(model, IDS, trace=trace)
        trace.save(tmp_path / name, about={"run": name})
    status, out, _ = run(capsys, str(tmp_path / "a"), str(tmp_path / "b"), "--rtol", "0")
    assert status == 0 and "not in" not in out
    names = [line.split()[0] for line in out.splitlines()[1:-1]]
    assert names == ["ids", "position", *stages(model.config)]


def npz_of(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [
    b"", b"PK\x03\x04 and no more", b"text", npz_of({"x": np.ones((2, 3))})[:-40],
    npz_of({"x": np.array([{}], object)}), npz_of({"note": np.array("text only")}), npz_of({}),
])  # fmt: skip
def test_what_is_no_trace_gives_status_2(capsys, tmp_path, recorded, content):
    (tmp_path / "b.npz").write_bytes(content)
    a = saved(tmp_path / "a.npz", recorded)
    status, out, err = run(capsys, a, str(tmp_path / "b.npz"))
    assert status == 2 and not out and "b.npz" in err and err.count("\n") == 1


def test_files_that_are_not_there_or_have_nothing_in_common_give_status_2(
        capsys, tmp_path, recorded):
    a = saved(tmp_path / "a.npz", recorded)
    assert run(capsys, a, str(tmp_path / "none.npz"))[0] == 2
    np.save(tmp_path / "single.npy", np.ones(3))
    assert run(capsys, a, str(tmp_path / "single.npy"))[0] == 2
    status, _, err = run(capsys, a, saved(tmp_path / "b.npz", {"thing": np.ones((2, 2))}))
    assert status == 2 and "no name in common" in err
