"""scripts/expert_report.py: its counts against plain loops, its caches against simulated ones."""

import json
from collections import Counter, OrderedDict
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import k2ref
from k2ref import model as model_module
from k2ref import moe, ops
from k2ref.trace import Trace
from scripts import expert_report
from scripts.checkpoints.small import tiny_config, write_checkpoint

IDS = np.random.default_rng(3).integers(0, 512, 90).tolist()


def simulated_hits(accesses, size):
    """Count the hits of a least-recently-used cache that is really kept."""
    cache, hits = OrderedDict(), 0
    for thing in accesses:
        if thing in cache:
            hits += 1
            cache.move_to_end(thing)
        else:
            cache[thing] = True
            if len(cache) > size:
                cache.popitem(last=False)
    return hits


@st.composite
def choices(draw):
    """What routers choose: {layer: (T, K)}, the experts of a token all different, and E."""
    E = draw(st.integers(1, 12))
    K, T = draw(st.integers(1, E)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(seeds))
    favour = rng.random(E) ** draw(st.sampled_from([0, 1, 8]))  # from even to a few favourites
    layers = range(draw(st.integers(0, 2)), draw(st.integers(3, 5)))
    return {i: np.argsort(rng.random((T, E)) * favour, axis=1)[:, :K] for i in layers}, E


@given(st.lists(st.integers(0, 9), max_size=80))
def test_the_hits_are_those_of_a_simulated_cache_of_each_size(accesses):
    distances = expert_report.stack_distances(np.array(accesses, int), 10)
    hits = expert_report.hits_by_size(distances, 10)
    assert hits.tolist() == [simulated_hits(accesses, size) if size else 0 for size in range(11)]


@given(choices())
def test_caches_are_those_of_layers_and_of_all(chosen_and_E):
    chosen, E = chosen_and_E
    apart, together = expert_report.caches(chosen, E)
    n, T = len(chosen), len(next(iter(chosen.values())))
    for size in range(1, E + 1):
        assert apart[size] == sum(simulated_hits(c.ravel().tolist(), size) for c in chosen.values())
    as_decoded = [(i, e) for t in range(T) for i in chosen for e in chosen[i][t].tolist()]
    for size in range(1, n * E + 1):
        assert together[size] == simulated_hits(as_decoded, size)
    distinct = len(set(as_decoded))
    for curve in (apart, together):
        assert curve[0] == 0 and (np.diff(curve) >= 0).all()
        assert curve[-1] == len(as_decoded) - distinct  # all but the first use of each


@given(choices())
def test_the_load_is_that_of_a_plain_count(chosen_and_E):
    chosen, E = chosen_and_E
    for c in chosen.values():
        found, counted = expert_report.load_of(c, E), Counter(c.ravel().tolist())
        assert found["counts"] == [counted[e] for e in range(E)]
        assert sum(found["counts"]) == c.size and found["unused"] == E - len(counted)
        assert found["max_over_mean"] == pytest.approx(max(counted.values()) * E / c.size)
        entropy = sum(n / c.size * log2(c.size / n) for n in counted.values())
        assert found["entropy_bits"] == pytest.approx(entropy, abs=1e-9)


@given(choices())
def test_token_distances_are_those_of_a_plain_search(chosen_and_E):
    chosen, E = chosen_and_E
    for c in chosen.values():
        found = expert_report.token_distances(c, E)
        for (t, k), distance in np.ndenumerate(found):
            before = [s for s in range(t) if c[t, k] in c[s]]
            assert distance == (t - before[-1] if before else expert_report.NEVER)


@pytest.fixture(scope="module")
def reported(tiny_model):
    return expert_report.report(tiny_model(), IDS)


def test_the_report_is_of_what_the_trace_holds(tiny_model, reported):
    model, recorded = tiny_model(), Trace()
    k2ref.forward(model, IDS, trace=recorded)
    chosen = {i: recorded.arrays[f"layers.{i}.moe.chosen"] for i in (1, 2)}
    T, K, E = len(IDS), 3, 8
    assert (reported["tokens"], reported["experts"], reported["chosen"]) == (T, E, K)
    assert reported["accesses"] == 2 * T * K and list(reported["layers"]) == [1, 2]
    apart, together = expert_report.caches(chosen, E)
    assert reported["hits_a_cache_a_layer"] == apart.tolist()
    assert reported["hits_one_cache"] == together.tolist()
    for i, row in reported["layers"].items():
        assert row["counts"] == np.bincount(chosen[i].ravel(), minlength=E).tolist()
        repeated = [np.isin(chosen[i][t], chosen[i][t - 1]).mean() for t in range(1, T)]
        assert row["repeated"] == pytest.approx(np.mean(repeated))
    assert reported["never_before"] == sum(len(set(c.ravel().tolist())) for c in chosen.values())
    assert sum(reported["token_distances"]) + reported["never_before"] == reported["accesses"]
    expert = model.layers[1].mlp.expert(0)
    parts = (expert.gate_proj, expert.up_proj, expert.down_proj)
    shapes = 3 * 8  # each matrix comes with two int32 that say its shape
    assert reported["expert_bytes"] == sum(w.packed.nbytes + w.scale.nbytes for w in parts) + shapes


def test_guesses_are_those_of_the_next_router(tiny_model, reported):
    model, recorded = tiny_model(), Trace()
    k2ref.forward(model, IDS, trace=recorded)
    arrays, layer, here = recorded.arrays, model.layers[2], model.layers[1]
    shared = moe.mlp(arrays["layers.1.h"], here.mlp.shared, 1)
    seen = {"before": arrays["layers.1.mid"], "shared": arrays["layers.1.mid"] + shared,
            "after": arrays["layers.1.out"]}  # fmt: skip
    assert reported["layers"][1]["guessed"] == dict.fromkeys(seen)  # layer 0 has no experts
    for kind, x in seen.items():
        scores = ops.linear(ops.rms_norm(x, layer.post_attention_layernorm, 1e-5), layer.mlp.gate)
        choice = 1 / (1 + np.exp(-scores.astype(np.float64))) + layer.mlp.bias
        guess = np.argsort(-choice, axis=1)[:, :3]
        right = np.mean([np.isin(guess[t], arrays["layers.2.moe.chosen"][t])
                         for t in range(len(IDS))])
        assert reported["layers"][2]["guessed"][kind] == pytest.approx(right)


def test_a_router_that_sees_what_was_guessed_from_is_guessed_right(tiny_model):
    """Were the next layer's attention to add nothing, the guess after this one would be certain."""
    model, attention = tiny_model(), model_module.attention
    watcher = expert_report.Watcher(model)
    try:
        model_module.attention = lambda h, *_: np.zeros_like(h)
        k2ref.forward(model, IDS, trace=watcher)
    finally:
        model_module.attention = attention
    assert watcher.right[2, "after"] == 3 * len(IDS) > watcher.right[2, "before"]


def test_the_report_does_not_depend_on_pieces_or_streaming(monkeypatch, tmp_path, tiny_model):
    if ops.kernels is None:
        pytest.skip("NumPy's products round by shape")
    path = write_checkpoint(tmp_path)
    whole = expert_report.report(k2ref.load(path, threads=1), IDS)
    streamed = k2ref.load(path, threads=1, memory=10**9)
    assert streamed.stream and expert_report.report(streamed, IDS) == whole
    monkeypatch.setattr("k2ref.run.CHUNK", 7)
    assert expert_report.report(k2ref.load(path, threads=1), IDS) == whole


def test_layers_without_neighbours_are_not_guessed(tmp_path):
    config = {**tiny_config(), "num_hidden_layers": 2}
    found = expert_report.report(k2ref.load(write_checkpoint(tmp_path, config), threads=1), IDS[:1])
    assert found["layers"][1]["repeated"] is None
    assert found["layers"][1]["guessed"]["after"] is None
    table = "\n".join(expert_report.lines(found))
    assert "1 tokens, 1 layers of 8 experts" in table and " - " in table


def test_the_command_prints_what_it_writes(capsys, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "report.json"
    text.write_text("What is 12 + 34? It is 46, and the next one is 47.\n" * 4, encoding="utf-8")
    arguments = [str(text), "--max-tokens", "40", "--json", str(out), "--threads", "1"]
    assert expert_report.main(arguments) == 0
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    layers = {int(i): row for i, row in found["layers"].items()}
    assert printed.splitlines() == list(expert_report.lines(found | {"layers": layers}))
    assert found["tokens"] == 40 and printed.startswith("40 tokens, ")
    rows = [line.split() for line in printed.splitlines()]
    assert [row[0] for row in rows if row and row[0] in map(str, layers)][:len(layers)] == \
           [str(i) for i in layers]
    K, E = found["chosen"], found["experts"]
    assert f"{100 * K / E:.1f}%" in next(line for line in printed.splitlines() if "chance" in line)
    shares = [float(row[-1][:-1]) for row in rows if len(row) in (2, 3, 4) and row[-1][-1:] == "%"]
    assert sum(shares) == pytest.approx(100, abs=1)  # of the reuse table, and no other
    for row in layers.values():
        assert sum(row["counts"]) == 40 * K


def refused(capsys, *arguments):
    assert expert_report.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("expert_report: ") and err.count("\n") == 1
    return err


def test_what_cannot_be_reported_gives_status_2(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello", encoding="utf-8")
    empty, other = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("")
    other.write_bytes(b"caf\xe9")
    assert "none.txt" in refused(capsys, tmp_path / "none.txt")
    assert "nothing to read" in refused(capsys, empty)
    assert "utf-8" in refused(capsys, other)
    assert "found 0" in refused(capsys, text, "--max-tokens", "0")
    assert "nowhere" in refused(capsys, text, "--model", tmp_path / "nowhere")
    dense = tmp_path / "dense"
    dense.mkdir()
    write_checkpoint(dense, {**tiny_config(), "first_k_dense_replace": 3})
    model = k2ref.load(dense, threads=1)
    with pytest.raises(ValueError, match="no layer with experts"):
        expert_report.report(model, IDS)
    (dense / "tiktoken.model").unlink(missing_ok=True)
    assert "no tokenizer" in refused(capsys, text, "--model", dense)
