"""Run a checkpoint under memory budgets, cold, beside the plan, and under pressure.

A part of bench_stream.py.
"""

import hashlib
import mmap
import subprocess
import sys
import time
from itertools import chain
from statistics import median

import numpy as np

import k2ref
from k2ref.planning import disk, plan, rates
from k2ref.streaming import memory

MOST_WOKEN = 12e9  # bytes
SETTLE_S = 2  # until a host begins to take memory that was given back
SETTLE_S_PER_BYTE = 2e-9  # and until it has all of it, but for a gigabyte or so
THRASH = """
import os, sys
while True:
    for path in sys.argv[1:]:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 23): pass
"""


def wake(n_bytes):
    """Touch that much free memory, so that the first to use it does not wait for the host.

    See `disk.Idle`. After some seconds without use it is the host's again.
    """
    n_bytes = int(min(n_bytes, MOST_WOKEN, memory.available() / 2))
    np.empty(n_bytes, np.uint8)[::mmap.PAGESIZE] = 1


def settle(n_bytes):
    """Wait until the host of a virtual machine has that much memory that was given back."""
    time.sleep(SETTLE_S + SETTLE_S_PER_BYTE * n_bytes)


def give_back(files):
    """Take files out of memory, and wait until it is idle."""
    n_bytes = sum(file.in_memory(0, len(file.bytes)) for file in files)
    for file in files:
        file.let_go(0, len(file.bytes))
    settle(n_bytes)


def decode(model, ids):
    """Decode these tokens one at a time; return the seconds of each and a digest of all logits."""
    cache, digest, times = k2ref.KVCache(model.config, len(ids)), hashlib.sha256(), []
    for i in ids:
        start_s = time.perf_counter()
        digest.update(k2ref.forward(model, [i], cache).tobytes())
        times.append(time.perf_counter() - start_s)
    return times, digest.hexdigest()[:16]


def at_budgets(path, model, ids, budgets, n_tokens):
    """Decode under each budget, from a cold start, beside what the plan says; then `ids`, for bits.

    Each budget has tokens of its own, since what was read a moment ago may be quicker to be had:
    below a virtual machine's disk there are caches, too.
    """
    rows, digests = {}, set()
    for seed, gigabytes in enumerate([None, *sorted(budgets, reverse=True)]):
        name = f"memory_{gigabytes:.3g}_GB" if gigabytes else "memory_default"
        tokens = np.random.default_rng(100 + seed).integers(0, model.config.vocab_size, n_tokens)
        try:
            found, streamed = cold_run(path, model, tokens, gigabytes and gigabytes * 1e9)
        except ValueError as error:  # less than a layer
            rows[name] = str(error)
            continue
        rows |= {f"{name}_{what}": value for what, value in found.items()}
        digests.add(decode(streamed, ids)[1])
        del streamed  # what is mapped cannot be dropped
    return rows | {"same_bits_at_every_budget": len(digests) == 1, "bits": min(digests, default="")}


def cold_run(path, model, ids, budget):
    """Plan, load and decode with nothing in memory; watch what is there after every token.

    Before the plan and before the run there is a rest, as between two commands of a user: memory
    that one gave back a moment ago would be quick for the other. Returns rows and the model.
    """
    give_back(model.files)
    formats, here = {*chain(*plan.by_format(model.config))}, disk.in_page_cache(path, model.config)
    speed = rates.measure(path, model.threads, formats)
    settle((disk.GROWN + disk.SLOW) * disk.ROUND * disk.PIECE)
    before, start_s = memory.read_from_disk(), time.perf_counter()
    own = k2ref.load(path, model.threads, memory=budget)
    load_s, load_read = time.perf_counter() - start_s, memory.read_from_disk() - before
    made = plan.make(own.config, own.stream.memory, speed, len(ids), here=here)
    most, cache = 0, k2ref.KVCache(own.config, len(ids))
    for i in ids:
        k2ref.forward(own, [i], cache)
        most = max(most, in_use(own))
    passes, half, n = list(own.stream.meter.passes), len(ids) // 2, len(ids)
    late, planned_s = passes[half:], [made.token_s(k) for k in range(n)]
    time_s = [p.time_s for p in passes]
    rows = {
        "most_GB": most / 1e9, "budget_GB": own.stream.memory / 1e9,
        "load_s": load_s, "load_read_over_kept": load_read / own.stream.kept_bytes,
        "first_s": time_s[0], "s_per_token": median(p.time_s for p in late),
        "read_GB_per_token": sum(p.read for p in late) / len(late) / 1e9,
        "planned_GB_per_token": sum(map(made.from_disk, range(half, n))) / len(late) / 1e9,
        "read_over_missed": sum(p.read for p in passes[1:]) / max(
            1, sum(p.missed for p in passes[1:])),
        "planned_disk_GB/s": speed.disk and speed.disk / 1e9,
        "planned_idle_read_s/GB": speed.idle.read_s * 1e9,
        "planned_idle_touch_s/GB": speed.idle.touch_s * 1e9,
        "planned_ready_GB": speed.idle.ready / 1e9,
        "disk_GB/s": own.stream.meter.total.rate / 1e9}
    if None not in planned_s:
        rows |= {"over_planned": sum(time_s) / sum(planned_s),
                 "over_planned_first_half": sum(time_s[:half]) / sum(planned_s[:half]),
                 "over_planned_second_half": sum(time_s[half:]) / sum(planned_s[half:]),
                 "read_over_planned": sum(p.read for p in passes) / sum(map(made.from_disk,
                                                                            range(n))),
                 "load_over_planned": load_s / max(1e-9, made.ahead_s)}
    return rows, own


def in_use(model):
    """Count what the process holds and what the page cache holds of the checkpoint."""
    return memory.own() + sum(file.in_memory(0, len(file.bytes)) for file in model.files)


def soak(path, model, ids, gigabytes, time_s):
    """Decode the same tokens again and again while another process fills the page cache."""
    digests = {decode(model, ids)[1]}  # without a budget
    for file in model.files:
        file.let_go(0, len(file.bytes))
    streamed = k2ref.load(path, model.threads, memory=gigabytes * 1e9)
    files = [str(file.path) for file in model.files]
    other = subprocess.Popen([sys.executable, "-c", THRASH, *files])
    own, start_s = [], time.perf_counter()
    try:
        while time.perf_counter() - start_s < time_s:
            digests.add(decode(streamed, ids)[1])
            own.append(memory.own())
    finally:
        other.kill()
        other.wait()
    total, half = streamed.stream.meter.total, len(own) // 2
    return {"soak_rounds": len(own), "soak_minutes": (time.perf_counter() - start_s) / 60,
            "soak_same_bits": len(digests) == 1,
            "soak_own_memory_GB": max(own) / 1e9,
            "soak_own_memory_grew_MB": (max(own[half:]) - max(own[:half + 1])) / 1e6,
            "soak_s_per_token": total.time_s / total.tokens,
            "soak_read_over_missed": total.read / total.missed, "soak_pages_lost": total.lost}
