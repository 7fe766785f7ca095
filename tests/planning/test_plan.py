"""The plan: bytes that add up, rates that are rates, and what it says of a machine."""

import dataclasses
import json
import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref.cache import CACHE_DTYPES
from k2ref.checkpoint.config import Config
from k2ref.planning import disk, plan, rates
from k2ref.streaming import memory, stream
from scripts.checkpoints.small import LAYOUTS, tiny_config, write_checkpoint

OFFICIAL = Path(__file__).parents[1] / "data" / "configs" / "Kimi-K2-Thinking.json"
K2 = Config.from_dict(json.loads(OFFICIAL.read_text(encoding="utf-8")))
BYTE_RATES = {"bf16": 50e9, "int4": 40e9, "fp8": 45e9}


def rates_of(disk=5e9, layer_s=1e-4):
    return rates.Rates(memory=60e9, kernels=BYTE_RATES, disk=disk, layer_s=layer_s, threads=8)


def test_the_official_checkpoint_weighs_what_is_known_of_it():
    dense, experts = plan.by_format(K2)
    assert experts == {"int4": 570_761_441_280}
    assert sum(dense.values()) + sum(experts.values()) + 2 * 163840 * 7168 == K2.n_weight_bytes
    made = plan.make(K2, 1024e9, rates_of())
    assert made.chosen == 11_890_863_360 and made.beside == 8 * 24_772_632
    assert made.dense + made.chosen + 2 * 7168 == K2.n_bytes_per_token
    assert made.from_disk() == 0 and made.share == 1 and made.limit() == "memory"
    expected_s = made.dense / 50e9 + made.chosen / 40e9 + 61 * 1e-4
    assert made.token_s() == made.memory_s == pytest.approx(expected_s, rel=1e-12)


def test_a_budget_for_a_part_of_the_experts():
    full = plan.make(K2, 1024e9, rates_of())
    budget = stream.OWN + full.cache + full.dense + full.experts // 4
    made = plan.make(K2, budget, rates_of())
    assert made.dense_kept == made.dense and made.share == 0.25
    assert made.from_disk() == 0.75 * made.chosen and made.limit() == "disk"
    dense_s, expert_s = made.dense / 50e9 + 61 * 1e-4, made.chosen / 40e9
    read_s = 0.75 * made.chosen / 5e9  # while 4 of 8 experts are multiplied
    assert made.token_s() == pytest.approx(dense_s + read_s + expert_s / 2, rel=1e-12)
    quick = plan.make(K2, budget, rates_of(disk=100e9))
    read_s = 0.75 * made.chosen / 100e9  # the first 4; the others come while those are multiplied
    assert quick.token_s() == pytest.approx(dense_s + read_s / 2 + expert_s, rel=1e-12)


def test_experts_come_from_disk_when_they_are_first_chosen():
    """Against a simulation: even choices, the least recently used experts go."""
    rng, E, K, n_runs = np.random.default_rng(3), K2.n_routed_experts, K2.num_experts_per_tok, 40
    full = plan.make(K2, 1024e9, rates_of())
    for share in (0.1, 0.5, 1.0):
        budget = stream.OWN + full.cache + full.dense + int(share * full.experts) + 1
        made, missed = plan.make(K2, budget, rates_of()), np.zeros(300)
        for _ in range(n_runs):
            held = OrderedDict()
            for n_before in range(len(missed)):
                for e in rng.permutation(E)[:K]:
                    missed[n_before] += e not in held
                    held[e] = held.pop(e, None)
                while len(held) > share * E:
                    held.popitem(last=False)
        for n_before in (0, 1, 10, 30, 100, 290):
            found = missed[n_before:n_before + 10].sum() / (10 * n_runs * K)
            expected = np.mean([made.missed(n) for n in range(n_before, n_before + 10)])
            assert abs(found - expected) < 0.05, (share, n_before)
        assert made.from_disk(0) == made.chosen == full.from_disk(0)
        assert made.missed() == pytest.approx(1 - share, abs=1e-6)


@given(share=st.floats(0, 1), here=st.floats(0, 1), n=st.integers(0, 2000))
def test_the_first_tokens_and_the_many(share, here, n):
    full = plan.make(K2, 1024e9, rates_of())
    budget = stream.OWN + full.cache + full.dense + full.beside + share * full.experts
    in_cache = int(here * full.dense), int(here * full.experts)
    cold = plan.make(K2, budget, rates_of())
    warm = plan.make(K2, budget, rates_of(), here=in_cache)
    assert warm.missed(n) <= cold.missed(n) + 1e-12 and warm.ahead <= cold.ahead
    assert 0 <= warm.missed(n) <= 1 and cold.missed(n) >= cold.missed(n + 1) - 1e-12
    assert cold.missed(n) >= cold.missed() - 1e-12 and cold.token_s(n) >= cold.token_s() - 1e-9
    assert warm.of_prompt(n) <= cold.of_prompt(n) <= cold.of_prompt(n + 1) <= cold.experts
    assert warm.missed(10**5) == pytest.approx(warm.missed(), abs=1e-9)
    if here == 1:
        assert warm.missed(0) == 0 == warm.ahead == warm.of_prompt(n)


def test_memory_that_is_slow_at_first_counts_where_the_weights_grow():
    slow = dataclasses.replace(rates_of(), idle=disk.Idle(1e-9, 2e-9, 10**9))
    full, plain = (plan.make(K2, 1024e9, speed) for speed in (slow, rates_of()))
    wake_s = 2e-9 * (full.dense - 10**9)
    for n, dense_s in ((0, full.dense_s + wake_s), (5, full.dense_s)):
        read_s, multiply_s = 1.2e-9 * full.from_disk(n), full.expert_s + 2e-9 * full.from_disk(n)
        assert full.token_s(n) == pytest.approx(dense_s + read_s / 2 + multiply_s)
    assert full.token_s() == plain.token_s()
    assert plain.ahead_s == full.dense / 5e9
    assert full.ahead_s - plain.ahead_s == pytest.approx(1e-9 * full.dense)
    assert full.prompt_s(32) == pytest.approx(2e-9 * full.of_prompt(32) + wake_s)
    assert plain.prompt_s(32) == plain.of_prompt(32) / 5e9
    small = plan.make(K2, 64e9, slow)  # is full after some tokens: then others' places are taken
    n_full = next(n for n in range(1000) if 1 - small.unseen(n) >= small.share)
    assert small.grown(n_full - 1) == small.from_disk(n_full - 1) and small.grown(n_full) == 0
    assert small.token_s(n_full) == plan.make(K2, 64e9, rates_of()).token_s(n_full)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_byte_of_a_layout_is_dense_expert_or_embedding(layout):
    config = Config.from_dict(tiny_config(layout))
    dense, experts = plan.by_format(config)
    kinds = config.n_bytes_by_kind
    assert sum(experts.values()) == kinds["experts"]
    assert sum(dense.values()) == sum(kinds.values()) - kinds["experts"] - kinds["embedding"]


budgets = st.integers(0, 1 << 41)


@given(budgets, budgets, st.sampled_from([1e8, 1e9, 6e9, 1e12]))
def test_more_memory_is_never_worse(a, b, disk):
    less, more = (plan.make(K2, n, rates_of(disk)) for n in sorted((a, b)))
    for made in (less, more):
        assert 0 <= made.dense_kept <= made.dense and 0 <= made.share <= 1
        assert made.dense_kept + made.share * made.experts <= made.room + 1
        assert 0 <= made.from_disk() <= made.dense + made.chosen
        assert made.token_s() >= made.memory_s
        assert made.limit() in ("memory", "disk")
    assert less.from_disk() >= more.from_disk() and less.token_s() >= more.token_s()


@given(budgets)
def test_dense_weights_come_before_experts(n_bytes):
    made = plan.make(K2, n_bytes, rates_of())
    if made.share * made.experts > made.beside + 1:
        assert made.dense_kept == made.dense


@given(budgets, st.sampled_from([1.0, 2.0, 10.0]))
def test_a_faster_disk_is_never_worse_and_none_is_not_known(n_bytes, factor):
    disks = 1e9, factor * 1e9, None
    slow, fast, none = (plan.make(K2, n_bytes, rates_of(disk)) for disk in disks)
    assert fast.token_s() <= slow.token_s()
    assert (none.token_s() is None) == (none.from_disk() > 0)


@pytest.mark.parametrize("layout", ["thinking", "moonlight"])
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_the_cache_takes_what_the_plan_says(layout, dtype):
    config = Config.from_dict(tiny_config(layout))
    cache = k2ref.KVCache(config, 512, dtype)
    assert plan.kv_bytes(config, 512, dtype) == sum(rows.nbytes for rows in cache.rows)
    made = plan.make(config, 1e9, rates_of(), 512, dtype)
    assert made.cache == plan.kv_bytes(config, 512, dtype)


def test_the_plan_keeps_what_the_streamer_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "own", lambda: stream.OWN)
    path = write_checkpoint(tmp_path)
    model = k2ref.load(path, threads=1, memory=stream.OWN + (1 << 26))
    made = plan.make(model.config, stream.OWN + (1 << 26), rates_of())
    kinds = model.config.n_bytes_by_kind
    bias = 4 * sum(layer.mlp.bias.size for layer in model.layers[1:])
    vectors = kinds["norms"] + bias  # copied, and so not kept; between them lie some odd bytes
    assert abs(model.stream.kept_bytes - (made.dense_kept - vectors)) < 1 << 16
    assert stream.chunk_tokens(model.config, 1 << 40) == stream.MOST_TOKENS
    assert stream.chunk_tokens(model.config, 0) == stream.LEAST_TOKENS


@pytest.fixture
def measured(monkeypatch):
    """Put known rates in the place of measured ones; give what `measure` was asked."""
    asked = []

    def measure(*args):
        asked.append(args)
        kernels = {format: BYTE_RATES[format] for format in args[2]}
        return dataclasses.replace(rates_of(), kernels=kernels)

    monkeypatch.setattr(rates, "measure", measure)
    return asked


def test_the_report_says_what_was_promised(tmp_path, measured):
    (tmp_path / "config.json").write_text(OFFICIAL.read_text(encoding="utf-8"))
    text = plan.report(tmp_path, int(100e9), 8)
    assert measured == [(tmp_path, 8, ["bf16", "int4"])]
    made = plan.make(K2, 100e9, rates_of())
    for expected in (
            "the plan for 100.0 GB of memory", "experts               570.8 GB   13.7%: 78.",
            "attention              12.3 GB   all", "one row for each token",
            "multiplied by 21.1 GB of dense weights and 11.9 GB of experts",
            "memory    60.0 GB/s", "disk      5.00 GB/s",
            f"  0                 11.9 GB{made.token_s(0):11.3g}{1 / made.token_s(0):10.3g}   disk",
            f"{made.from_disk(10) / 1e9:.1f} GB{made.token_s(10):11.3g}",
            f"  many              {made.from_disk() / 1e9:.1f} GB{made.token_s():11.3g}",
            f"reading ahead takes {made.dense / 5e9:.3g} s",
            f"reads {made.of_prompt(32) / 1e9:.1f} GB: {made.prompt_s(32):.3g} s",
            "tokens at a time", "4K tokens 0.58 GB, 32K tokens 4.61 GB, 256K tokens 36.8 GB"):
        assert expected in text, expected
    assert max(map(len, text.splitlines()[1:])) <= 100
    halved = plan.report(tmp_path, int(100e9), 8, "bf16")
    assert "in bf16: 4K tokens 0.29 GB, 32K tokens 2.30 GB, 256K tokens 18.4 GB" in halved


def test_the_report_without_a_budget_takes_what_is_available(tmp_path, measured, monkeypatch):
    (tmp_path / "config.json").write_text(OFFICIAL.read_text(encoding="utf-8"))
    monkeypatch.setattr(memory, "available", lambda: 800e9)
    assert "the plan for 720.0 GB of memory (90% of what is available" in plan.report(tmp_path)
    assert "though only 800.0 GB are available now" in plan.report(tmp_path, int(900e9))
    monkeypatch.setattr(memory, "available", lambda: None)
    with pytest.raises(ValueError, match="--memory: expected a number of GB"):
        plan.report(tmp_path)
    assert "the plan for 30.0 GB" in plan.report(tmp_path, int(30e9))


def test_the_report_of_a_model_whose_disk_cannot_be_timed(monkeypatch):
    monkeypatch.setattr(rates, "measure", lambda *_: rates_of(disk=None))
    assert "not measured: there are no files" in plan.report(None, int(1e9))
    small = plan.report(None, stream.OWN + 100_000)
    assert "and what the disk takes" in small and "tokens/s" not in small
    monkeypatch.setattr(disk, "in_page_cache", lambda *_: (0, 0))
    assert re.search(r"\n  0 +[\d.]+ MB +not known   disk\n", plan.report(None, int(1e9)))


def test_the_report_counts_what_is_in_memory(measured, monkeypatch):
    monkeypatch.setattr(disk, "in_page_cache", lambda *_: (10**5, 0))
    assert "in memory from before: 0.1 MB of the dense weights, nothing of the experts" in \
        plan.report(None, int(1e9))
    experts = k2ref.load().config.n_bytes_by_kind["experts"]
    monkeypatch.setattr(disk, "in_page_cache", lambda *_: (10**5, experts))
    text = plan.report(None, int(1e9))
    assert "\n  many " in text and "\n  0 " not in text  # nothing changes, so one line says it


def test_the_report_tells_of_slow_first_touches(monkeypatch):
    slow = dataclasses.replace(rates_of(), idle=disk.Idle(3e-10, 2e-9, 0), rounds=(1e8, 6e9))
    monkeypatch.setattr(rates, "measure", lambda *_: slow)
    text = plan.report(None, int(1e9))
    assert "5.00 GB/s, read as experts are, 0.10 to 6.00 from one time to the other" in text
    assert "memory that lay idle fills at 2.00 GB/s and is first touched at 0.50 GB/s" in text


def test_the_table_of_the_readme():
    rows = plan.table(K2).splitlines()[2:7]
    assert [row.split(" | ")[0] for row in rows] == [f"| {n} GB" for n in plan.MACHINES]
    shares = [int(row.split(" | ")[1].rstrip("%")) for row in rows]
    speeds = [float(row.split(" | ")[4]) for row in rows]
    firsts = {row.split(" | ")[2] for row in rows}
    assert firsts == {"2.1 s"}  # whatever the memory: nothing is in it yet
    assert shares == sorted(shares, reverse=True) and speeds == sorted(speeds, reverse=True)
    assert shares[0] == 100 and "memory" in rows[0] and "disk" in rows[-1]


# The rates.


def test_rates_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "SIZE", 1 << 20)
    monkeypatch.setattr(rates, "TIME_S", 0.01)
    monkeypatch.setattr(disk, "PIECE", 1 << 20)
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(3 << 23))
    found = rates.measure(tmp_path, 2, ("bf16", "int4", "fp8"))
    assert found.threads == 2 and found.kernels.keys() == {"bf16", "int4", "fp8"}
    for rate in (found.memory, *found.kernels.values(), found.disk, found.layer_s):
        assert 0 < rate < 1e15
    none = rates.measure(None, 1, ())
    assert none.disk is None and none.idle == (0, 0, 0)
