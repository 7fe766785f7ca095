"""The plan: bytes that add up, rates that are rates, and what it says of a machine."""

import dataclasses
import json
import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from checkpoints import LAYOUTS, tiny_config, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

import k2ref
from k2ref import attention, memory, plan, rates, stream
from k2ref.config import Config
from k2ref.pages import File
from k2ref.shards import open_shards

OFFICIAL = Path(__file__).parent / "data" / "configs" / "Kimi-K2-Thinking.json"
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
    dense_s = made.dense / 50e9 + 61 * 1e-4
    assert made.token_s() == pytest.approx(dense_s + 0.75 * made.chosen / 5e9, rel=1e-12)


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
    slow = dataclasses.replace(rates_of(), fresh_read_s=1e-9, fresh_s=2e-9)
    full, plain = (plan.make(K2, 1024e9, speed) for speed in (slow, rates_of()))
    more_s = 3e-9 * full.chosen + 2e-9 * full.dense
    assert full.token_s(0) - plain.token_s(0) == pytest.approx(more_s)
    assert full.token_s(5) - plain.token_s(5) == pytest.approx(3e-9 * full.from_disk(5))
    assert full.token_s() == plain.token_s()
    assert plain.ahead_s == full.dense / 5e9
    assert full.ahead_s - plain.ahead_s == pytest.approx(1e-9 * full.dense)
    assert full.prompt_s(32) == pytest.approx(full.of_prompt(32) * (1 / 5e9 + 3e-9)
                                              + 2e-9 * full.dense)
    small = plan.make(K2, 64e9, slow)  # is full after some tokens: then others' places are taken
    n_full = next(n for n in range(1000) if 1 - small.unseen(n) >= small.share)
    assert small.grown(n_full - 1) == small.from_disk(n_full - 1) and small.grown(n_full) == 0
    assert small.token_s(n_full) == plan.make(K2, 64e9, rates_of()).token_s(n_full)


def test_what_the_page_cache_has_is_not_read(tmp_path):
    path = write_checkpoint(tmp_path, {**tiny_config(), "moe_intermediate_size": 512})
    config = Config.from_dir(path)
    kinds = config.n_bytes_by_kind
    files = [File(shard) for shard in open_shards(path)[0]]
    for file in files:
        file.fetch(0, len(file.bytes))
    if files[0].in_memory(0, len(files[0].bytes)) is None:
        pytest.skip("this system does not tell what is in memory")
    dense, experts = rates.in_page_cache(path, config)
    assert dense == sum(kinds.values()) - kinds["experts"] - kinds["embedding"]
    assert 0 <= kinds["experts"] - experts < 1 << 16  # edges of pages
    (path / "model-00002-of-000002.safetensors").unlink()
    assert rates.in_page_cache(path, config) == (0, 0)


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
@pytest.mark.parametrize("dtype", attention.CACHE_DTYPES)
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
    monkeypatch.setattr(rates, "in_page_cache", lambda *_: (0, 0))
    assert re.search(r"\n  0 +[\d.]+ MB +not known   disk\n", plan.report(None, int(1e9)))


def test_the_report_counts_what_is_in_memory(measured, monkeypatch):
    monkeypatch.setattr(rates, "in_page_cache", lambda *_: (10**5, 0))
    assert "in memory from before: 0.1 MB of the dense weights, nothing of the experts" in \
        plan.report(None, int(1e9))
    experts = k2ref.load().config.n_bytes_by_kind["experts"]
    monkeypatch.setattr(rates, "in_page_cache", lambda *_: (10**5, experts))
    text = plan.report(None, int(1e9))
    assert "\n  many " in text and "\n  0 " not in text  # nothing changes, so one line says it


def test_the_report_tells_of_slow_first_touches(monkeypatch):
    slow = dataclasses.replace(rates_of(), fresh_read_s=3e-10, fresh_s=2e-9)
    monkeypatch.setattr(rates, "measure", lambda *_: slow)
    text = plan.report(None, int(1e9))
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
    monkeypatch.setattr(rates, "PIECE", 1 << 20)
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(3 << 23))
    found = rates.measure(tmp_path, 2, ("bf16", "int4", "fp8"))
    assert found.threads == 2 and found.kernels.keys() == {"bf16", "int4", "fp8"}
    for rate in (found.memory, *found.kernels.values(), found.disk, found.layer_s):
        assert 0 < rate < 1e15
    none = rates.measure(None, 1, ())
    assert (none.disk, none.fresh_read_s, none.fresh_s) == (None, 0, 0)


@pytest.mark.parametrize("fails_at", ["open", "read"])
def test_a_file_system_without_direct_reads_is_timed_all_the_same(tmp_path, monkeypatch, fails_at):
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        pytest.skip("this system has no direct reads")
    path, opened = tmp_path / "a.safetensors", []
    monkeypatch.setattr(rates, "PIECE", 1 << 20)
    path.write_bytes(os.urandom(rates.PIECE))
    real_open, real_read = os.open, os.preadv

    def open_(file, flags):
        if flags & os.O_DIRECT and fails_at == "open":
            raise OSError(22, "Invalid argument")
        opened.append((real_open(file, flags & ~os.O_DIRECT), flags & os.O_DIRECT))
        return opened[-1][0]

    def read(fd, *rest):
        if opened[-1][1]:
            raise OSError(22, "Invalid argument")
        return real_read(fd, *rest)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", read)
    assert rates._read_uncached(path, 0, bytearray(rates.PIECE)) == rates.PIECE


def test_the_disk_is_timed_as_experts_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "TIME_S", 0.2)
    monkeypatch.setattr(rates, "PIECE", piece := 1 << 20)
    path, fetched, let_go = tmp_path / "model.safetensors", [], []
    path.write_bytes(os.urandom((50 << 20) + 5))
    here = drop(path)
    if here(0, 50 << 20) != 0:
        pytest.skip("this system does not drop what it has in memory, or does not tell")
    with open(path, "rb") as file:
        file.seek(7 << 20)
        file.read(piece)
    before = here(0, 50 << 20)
    real_fetch, real_let_go = File.fetch, File.let_go
    monkeypatch.setattr(File, "fetch", lambda self, start, stop: (
        fetched.append((start, stop)), real_fetch(self, start, stop)))
    monkeypatch.setattr(File, "let_go", lambda self, start, stop: (
        let_go.append((start, stop)), real_let_go(self, start, stop)))
    rate, *fresh = rates.disk(tmp_path, 2)
    assert rate > 0 and all(0 <= more_s < 1e-6 for more_s in fresh)
    assert len(fetched) > rates.ROUND and sorted(fetched) == sorted(set(let_go)) == sorted(let_go)
    assert all(stop - start == piece and start % piece == 0 for start, stop in fetched)
    # What was in memory was not read, and is there still; the rest is not.
    assert not any(start < 8 << 20 and stop > 7 << 20 for start, stop in fetched)
    assert here(0, 50 << 20) == before
    assert [start for start, _ in let_go] != [start for start, _ in fetched]  # two were held


def drop(path):
    """Take a file out of the page cache; return a function that counts its bytes there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return rates._opened(path).in_memory


def test_a_disk_whose_files_are_in_memory_is_timed_past_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "TIME_S", 0.01)
    monkeypatch.setattr(rates, "PIECE", 1 << 20)
    (tmp_path / "model.safetensors").write_bytes(os.urandom(3 << 20))
    monkeypatch.setattr(File, "in_memory", lambda self, start, stop: stop - start)
    monkeypatch.setattr(File, "fetch", None)
    rate, *fresh = rates.disk(tmp_path, 2)
    assert rate > 0 and fresh == [0, 0]


QUICK = rates.Round(5e-10, 1.2e-11, 1e-11)
SLOW = rates.Round(9e-10, 2e-9, 1e-11)


@given(n_quick=st.integers(0, 9), n_slow=st.integers(0, 5), n_mixed=st.integers(0, 3))
def test_rounds_in_idle_memory_are_told_from_others(n_quick, n_slow, n_mixed):
    mixed = rates.Round(7e-10, 5e-10, 1e-11)
    found = n_quick * [QUICK] + n_slow * [SLOW] + n_mixed * [mixed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "_files", lambda _: [])
        patch.setattr(rates, "_rounds", lambda *_: found)
        rate, read_s, touch_s = rates.disk("", 1)
    if not found:
        assert (rate, read_s, touch_s) == (None, 0, 0)
    elif n_quick:
        assert rate == 1 / QUICK.read_s
        slow = SLOW if n_slow else mixed
        expected = (slow.read_s - QUICK.read_s, slow.first_s - slow.again_s)
        assert (read_s, touch_s) == (expected if n_slow + n_mixed > 1 else (0, 0))
    else:  # then there is nothing to tell them from
        assert rate == 1 / np.median([round.read_s for round in found])


def test_holes_and_small_files_are_not_timed(tmp_path):
    (tmp_path / "small.safetensors").write_bytes(bytes(1000))
    with open(tmp_path / "hole.safetensors", "wb") as file:
        file.truncate(1 << 30)
    if (tmp_path / "hole.safetensors").stat().st_blocks == 0:
        assert rates.disk(tmp_path, 1) == (None, 0, 0)
