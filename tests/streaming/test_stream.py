"""Streaming: the same bits at every budget, the budget kept, the system's numbers understood."""

import copy
import dataclasses
import errno
import mmap
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from conftest import assert_same
from hypothesis import given
from hypothesis import strategies as st
from strategies import partitions

import k2ref
from k2ref import moe
from k2ref.checkpoint.config import Config
from k2ref.checkpoint.weights import Checkpoint
from k2ref.streaming import memory, pages, stream
from k2ref.streaming.meter import Meter
from k2ref.streaming.pages import PAGE, File
from k2ref.streaming.residency import Extent
from k2ref.trace import Trace
from scripts.checkpoints.small import LAYOUTS, tiny_config, write_checkpoint

N = 24
IDS = np.random.default_rng(5).integers(0, 512, N)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux does and tells this")


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    """Write each layout once; give its directory and the logits of the model simply mapped."""
    made = {}

    def make(layout):
        if layout not in made:
            path = write_checkpoint(tmp_path_factory.mktemp(layout), layout=layout)
            made[layout] = path, k2ref.forward(k2ref.load(path, threads=1), IDS)
        return made[layout]

    return make


OWN = memory.own  # the real one


@pytest.fixture(autouse=True)
def process_of_a_fixed_size(monkeypatch):
    """Let the process itself count for a gigabyte, so that a budget leaves the same room always."""
    monkeypatch.setattr(memory, "own", lambda: 1 << 30)
    monkeypatch.setattr(stream, "SLACK", 0)


def load_with(path, room, **options):
    """Load with `room` bytes above what the process itself counts for."""
    return k2ref.load(path, threads=1, memory=(1 << 30) + room, **options)


@cache
def least_room(path):
    """Find the least room that is accepted for a small checkpoint, to 16 KB."""
    for room in range(0, 1 << 22, 1 << 14):
        try:
            load_with(path, room)
            return room
        except ValueError as error:
            assert "memory: expected at least" in str(error)
    raise AssertionError("no budget is enough")


@pytest.mark.parametrize("layout", LAYOUTS)
@given(extra=st.integers(0, 1 << 20), data=st.data())
def test_the_bits_are_the_same_at_every_budget(checkpoint_of, layout, extra, data):
    path, expected = checkpoint_of(layout)
    room = least_room(path)
    model = load_with(path, room + extra)
    cache, got = k2ref.KVCache(model.config, N), []
    for n in data.draw(partitions(N)):
        got.append(k2ref.forward(model, IDS[cache.length:cache.length + n], cache))
    assert_same(np.concatenate(got), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_of_a_program_that_streams_streams_too(checkpoint_of):
    path, expected = checkpoint_of("thinking")
    model = load_with(path, least_room(path))
    before = k2ref.forward(model, IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of it
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(k2ref.forward(model, IDS), before) else 1)
    assert_same(k2ref.forward(model, IDS), expected)
    assert_same(before, expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_weights_that_do_not_fit_pass_through(checkpoint_of, layout):
    path, expected = checkpoint_of(layout)
    room = least_room(path)
    model = load_with(path, room)
    assert room > 0
    dense = {*model.stream.layers, *(unit for *_, unit in model.stream.head)}
    assert model.stream.kept < dense
    assert_same(k2ref.forward(model, IDS), expected)


def test_dense_weights_are_all_kept_where_they_fit(checkpoint_of):
    path, _ = checkpoint_of("thinking")
    seen = []
    model = load_with(path, 1 << 30, on_progress=lambda *now: seen.append(now))
    assert model.stream.kept == {*model.stream.layers, *(unit for *_, unit in model.stream.head)}
    assert seen[-1] == (model.stream.kept_bytes, model.stream.kept_bytes)
    kinds = model.config.n_bytes_by_kind
    bias = 4 * sum(layer.mlp.bias.size for layer in model.layers[1:])
    matrices = sum(kinds.values()) - kinds["norms"] - bias  # vectors are copied, not kept
    dense = matrices - kinds["embedding"] - kinds["experts"]
    assert dense <= model.stream.kept_bytes <= dense + PAGE * len(kinds) * len(model.layers)


def test_what_is_in_memory_is_not_read_again(checkpoint_of):
    path, _ = checkpoint_of("thinking")
    model = load_with(path, 1 << 30)
    k2ref.forward(model, IDS)
    k2ref.forward(model, IDS)
    first, second = model.stream.meter.passes
    units = [*model.stream.experts.values(), *model.stream.rows.values()]
    assert len(model.stream.rows) == len(set(IDS))
    assert first.wanted == second.wanted == sum(unit.n_bytes for unit in units)
    assert first.hits == 0 and (second.hits == second.wanted or first.lost)


def test_a_prompt_reads_each_expert_once_per_chunk(checkpoint_of, monkeypatch):
    path, expected = checkpoint_of("thinking")
    model, asked = load_with(path, 1 << 22), []
    bring = model.stream.residency.bring
    monkeypatch.setattr(model.stream.residency, "bring", lambda u: asked.extend(u) or bring(u))
    assert model.stream.chunk >= N
    assert_same(k2ref.forward(model, IDS), expected)
    experts = [unit for unit in asked if unit in model.stream.experts.values()]
    assert len(set(experts)) == len(experts) == len(model.stream.experts) > 3


def test_a_chunk_grows_with_the_memory_within_bounds(checkpoint_of):
    path, _ = checkpoint_of("thinking")
    chunks = [load_with(path, room).chunk for room in (1 << 21, 1 << 24, 1 << 26, 1 << 40)]
    assert chunks == sorted(chunks) and chunks[0] < chunks[2]
    assert chunks[0] >= stream.LEAST_TOKENS and chunks[-1] == stream.MOST_TOKENS


@given(seed=st.integers(0, 2**32))
def test_experts_may_arrive_in_any_order(tiny_model, seed):
    model, rng = tiny_model(), np.random.default_rng(seed)
    layer, config = model.layers[1].mlp, model.config
    h = rng.standard_normal((5, config.hidden_size)).astype(np.float32)
    chosen, mix = moe.route(h, layer.gate, layer.bias, config, 1)
    expected = moe.mixture(h, layer, chosen, mix, 1)
    used = rng.permutation(np.unique(chosen))
    groups = np.split(used, np.sort(rng.integers(0, len(used) + 1, 3)))
    assert_same(moe.mixture(h, layer, chosen, mix, 1, iter(groups)), expected)


def test_a_trace_records_what_each_token_took(checkpoint_of):
    path, _ = checkpoint_of("thinking")
    model, trace = load_with(path, 1 << 22), Trace("stream.*")
    cache = k2ref.KVCache(model.config, N)
    for start, stop in ((0, 20), (20, 21), (21, N)):
        k2ref.forward(model, IDS[start:stop], cache, trace)
    names = [f"stream.{name}" for name in ("wanted", "hits", "read", "wait_s", "time_s")]
    assert list(trace.arrays) == names
    assert all(array.shape == (N,) for array in trace.arrays.values())
    total = model.stream.meter.total
    assert total.tokens == N and total.hits > 0
    assert trace.arrays["stream.wanted"].sum() == pytest.approx(total.wanted)
    assert trace.arrays["stream.hits"].sum() == pytest.approx(total.hits)
    assert (trace.arrays["stream.wanted"][:20] == trace.arrays["stream.wanted"][0]).all()
    mapped = Trace("stream.*")
    k2ref.forward(k2ref.load(path, threads=1), IDS, trace=mapped)
    assert mapped.arrays == {}


def test_a_pass_that_fails_leaves_nothing_under_way(checkpoint_of, monkeypatch):
    path, expected = checkpoint_of("thinking")
    model = load_with(path, 1 << 30)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moe, "mlps", fail)
        patch.setattr(File, "fetch", lambda self, *place: time.sleep(0.01))
        with pytest.raises(KeyboardInterrupt) as caught:
            k2ref.forward(model, IDS)
        residency = model.stream.residency
        assert caught.tb and residency.pool._work_queue.empty()  # and its frames are still held
        assert residency.held == sum(unit.n_bytes for unit in residency.recent)
    residency.doubt()
    assert (k2ref.forward(model, IDS) == expected).all()


def test_a_long_prompt_is_read_in_the_streams_chunks(checkpoint_of, monkeypatch):
    path, _ = checkpoint_of("thinking")
    model, sizes = load_with(path, 1 << 40), []
    ids, begin = [1] * 1500, Meter.begin
    monkeypatch.setattr(Meter, "begin", lambda self, n: sizes.append(n) or begin(self, n))
    next(k2ref.generate(model, ids, max_new_tokens=1, stop_ids=[]))
    assert sizes == [1500]  # in one, where a mapped model would take three


def test_passes_of_one_model_take_turns(checkpoint_of):
    path, expected = checkpoint_of("thinking")
    room = least_room(path)
    model = load_with(path, room)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: k2ref.forward(model, IDS), range(6)))
    for logits in found:
        assert_same(logits, expected)
    assert len(model.stream.meter.passes) == 6


@on_linux
def test_what_the_budget_lets_go_leaves_the_page_cache(checkpoint_of, tmp_path):
    path = write_checkpoint(tmp_path)
    room = least_room(path)
    model = load_with(path, room)
    for file in model.files:
        os.fsync(file.fd)  # what is not written yet cannot be dropped
    k2ref.forward(model, IDS)
    model.stream.residency.fit(0)
    for unit in model.stream.experts.values():
        for file, start, stop in unit.extents:
            whole = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
            assert file.in_memory(*whole) == 0


def test_locked_weights_or_a_note(checkpoint_of, monkeypatch):
    path, expected = checkpoint_of("thinking")
    calls = []
    monkeypatch.setattr(File, "lock", lambda self, *place: calls.append(place) is None)
    assert load_with(path, 1 << 30, lock=True).stream.notes == [] and calls
    monkeypatch.setattr(File, "lock", lambda self, *place: False)
    model = load_with(path, 1 << 30, lock=True)
    assert len(model.stream.notes) == 1 and "ulimit -l" in model.stream.notes[0]
    assert_same(k2ref.forward(model, IDS), expected)


def test_a_large_checkpoint_streams_by_itself(checkpoint_of, monkeypatch):
    path, expected = checkpoint_of("thinking")
    assert k2ref.load(path, threads=1).stream is None
    monkeypatch.setattr("k2ref.loading.STREAM_FROM", 1000)
    model = k2ref.load(path, threads=1)
    assert model.stream.memory <= memory.available() * stream.SHARE * 1.1
    assert_same(k2ref.forward(model, IDS), expected)


def open_files(path):
    return [File(shard) for shard in Checkpoint.open(path, Config.from_dir(path)).shards]


@pytest.mark.parametrize("refused", [(), ("madvise",), ("madvise", "syscall", "mincore")])
def test_a_system_that_refuses_is_only_slower(checkpoint_of, monkeypatch, refused):
    path, expected = checkpoint_of("thinking")
    real = pages._call
    monkeypatch.setattr(pages, "_call", lambda name, *arguments: errno.EINVAL if name in refused
                        else real(name, *arguments))
    assert_same(k2ref.forward(load_with(path, 1 << 30), IDS), expected)
    file = open_files(path)[0]
    file.fetch(10, 20000)
    n_bytes = file.in_memory(10, 20000)
    assert n_bytes is None if "mincore" in refused else n_bytes >= 20000 - PAGE


@on_linux
def test_both_ways_to_count_pages_agree(checkpoint_of, monkeypatch):
    file = open_files(checkpoint_of("thinking")[0])[0]
    file.fetch(0, 50000)
    counted = file.in_memory(3 * PAGE + 5, 50000)
    real = pages._call
    monkeypatch.setattr(pages, "_call", lambda name, *arguments: errno.ENOSYS if name == "syscall"
                        else real(name, *arguments))
    assert file.in_memory(3 * PAGE + 5, 50000) == counted == (-(-50000 // PAGE) - 3) * PAGE
    assert file.in_memory(7, 7) == 0


@given(start=st.integers(0, 1 << 20), n=st.integers(1, 1 << 20), large=st.sampled_from([1, 4, 16]))
def test_what_is_asked_for_and_the_large_pages_make_up_the_range(tiny_model, start, n, large):
    file = copy.copy(tiny_model().files[0])
    large *= PAGE
    for file.large_page in (None, large):
        parts = file._without_large_pages(start, start + n)
        assert parts[0][0] == start and parts[-1][1] == start + n
        assert all(low <= high for low, high in parts)
        if file.large_page is None or len(parts) == 1:
            assert parts == [(start, start + n)]
            assert file.large_page is None or n < 2 * large
        else:
            (_, first), (last, _) = parts
            assert first % large == last % large == 0 and first < last
            assert first - start < large and start + n - last < large


@on_linux
@pytest.mark.parametrize("size", ["4096\n", "2097152\n", "536870912\n", "none\n", None])
def test_large_pages_of_any_size_or_none(tmp_path, monkeypatch, size):
    config = {**tiny_config(), "moe_intermediate_size": 2048}
    path = write_checkpoint(tmp_path, config)
    expected = k2ref.forward(k2ref.load(path, threads=1), IDS)
    if size is not None:
        (tmp_path / "size").write_text(size)
    monkeypatch.setattr(pages, "LARGE_PAGE", tmp_path / "size")
    model = load_with(path, 1 << 30)
    assert (k2ref.forward(model, IDS) == expected).all()
    is_useful = size in ("4096\n", "2097152\n")
    assert {file.large_page for file in model.files} <= {int(size) if is_useful else None, None}
    for unit in (*model.stream.kept, *model.stream.experts.values()):
        for file, start, stop in unit.extents:
            assert file.in_memory(start, stop) >= stop - start
    model.stream.residency.fit(0)
    assert (k2ref.forward(model, IDS) == expected).all()


@given(places=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 1 << 13)), max_size=8))
def test_merged_extents_cover_the_same_bytes(tiny_model, places):
    file = tiny_model().files[0]
    extents = [Extent(file, start, start + n) for start, n in places]
    joined = stream.merged(extents)
    for extent in extents:
        assert any(e.start <= extent.start and extent.stop <= e.stop for e in joined)
    for before, after in zip(joined, joined[1:], strict=False):
        assert after.start - before.stop > PAGE
    assert sum(e.stop - e.start for e in joined) <= sum(n + PAGE for _, n in places)


def write_system(root, groups, free_kb=1000, **limits):
    """Make a false /proc and /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable: {free_kb} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for place, text in limits.items():
        file = root / "cgroup" / place.replace("__", "/")
        name = "memory.limit_in_bytes" if place.startswith("memory") else "memory.max"
        file.mkdir(parents=True, exist_ok=True)
        (file / name).write_text(text)
    return memory.available(root / "proc", root / "cgroup")


@pytest.mark.parametrize("groups, place, stat, expected", [
    ("0::/a\n", "a", "anon 300000\nactive_file 150000\ninactive_file 50000\n", 300000),
    ("4:memory:/a\n", "memory/a", "total_active_file 150000\nactive_file 1\n"
     "total_inactive_file 50000\ninactive_file 1\n", 300000),
    ("0::/a\n", "a", None, 100000),  # nothing said about files: all that is used may be needed
    ("0::/a\n", "a", "active_file 900000\n", 600000),
])
def test_what_others_in_a_container_use_does_not_count_twice(
        tmp_path, groups, place, stat, expected):
    home = tmp_path / "cgroup" / place
    home.mkdir(parents=True)
    name = "memory.usage_in_bytes" if place.startswith("memory") else "memory.current"
    (home / name).write_text("500000\n")
    if stat:
        (home / "memory.stat").write_text(stat)
    limits = {place.replace("/", "__"): "600000\n"}
    assert write_system(tmp_path, groups, **limits) == expected


@pytest.mark.parametrize("groups, limits, expected", [
    ("0::/a/b\n", {"a": "600000\n", "a__b": "max\n"}, 600000),  # a group above has the limit
    ("0::/a/b\n", {"a": "900000\n", "a__b": "500000\n"}, 500000),
    ("0::/\n", {"": "400000\n"}, 400000),  # a container sees its own group as the root
    ("5:cpu:/a\n4:cpuacct,memory:/a\n", {"memory__a": "300000\n"}, 300000),
    ("4:memory:/hosts/path\n", {"memory": "200000\n"}, 200000),
    ("4:memory:/a\n0::/\n", {"memory__a": str((1 << 63) - 4096)}, 1000 << 10),
    ("0::/a\n", {"a": "99999999999\n"}, 1000 << 10),  # more than the machine has
    ("0::/a\n", {}, 1000 << 10),
])  # fmt: skip
def test_a_containers_limit_counts(tmp_path, groups, limits, expected):
    assert write_system(tmp_path, groups, **limits) == expected


def test_the_systems_own_numbers():
    assert memory.available() > 1 << 20
    held = OWN()
    fresh = mmap.mmap(-1, 1 << 25, mmap.MAP_PRIVATE)  # the heap may have pages left to give
    ballast = np.frombuffer(fresh, np.uint8)
    ballast[:] = 1
    if held is not None:
        assert OWN() > held + (1 << 24)
    assert ballast.all() and memory.disk_faults() >= 0
    assert memory.read_from_disk() is None or memory.read_from_disk() >= 0


def test_a_plain_copy_of_a_streamed_model_gives_the_same(checkpoint_of):
    path, expected = checkpoint_of("thinking")
    model = load_with(path, 1 << 30)
    plain = dataclasses.replace(model, stream=None)
    assert_same(k2ref.forward(plain, IDS), expected)
    assert not model.stream.meter.passes
