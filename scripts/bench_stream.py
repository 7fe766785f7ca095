"""Measure streaming: what the disk gives, what a budget costs, what the machinery costs.

    python scripts/make_checkpoint.py /data/k4 --config CONFIG.json --layers 4
    python scripts/bench_stream.py /data/k4

Prints a table, then one line of JSON. Every rate stands beside a sequential read of the same files
made in the same minute, and each figure is a median, since disks are shared. Caches are dropped
file by file, which needs no rights. `--quick` does less of everything, `--only` some of it, and
`--soak 30` adds half an hour at the smallest budget while another process fills the page cache.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np

import k2ref
from k2ref import loading, moe, ops
from k2ref.streaming import memory
from k2ref.streaming.meter import Meter
from k2ref.streaming.residency import Residency
from k2ref.trace import Trace

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the rooms of scripts/
from scripts.benchmarks.budgets import at_budgets, decode, soak, wake  # noqa: E402

BLOCK = 8 << 20
PAIR = 4e9  # bytes: more than two tokens read
SHARES = (0.4, 0.27, 0.13)  # of the checkpoint, where no budgets are given: 12, 8, 4 GB of 30
PARTS = "reading", "cold", "resident", "guesses", "budgets"


def main():
    """Run the measurements that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", metavar="DIR")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS)
    parser.add_argument("--threads", metavar="N", type=int)
    parser.add_argument("--memory", metavar="GB", type=float, nargs="*", help="budgets to compare")
    parser.add_argument("--soak", metavar="MINUTES", type=float, default=0)
    args = parser.parse_args()
    rounds, n_tokens = (7, 4) if args.quick else (25, 16)

    model = k2ref.load(args.checkpoint, args.threads, memory=1 << 50)
    plain = mapped(args.checkpoint, model.threads)
    n_bytes = sum(len(file.bytes) for file in model.files)
    shares = SHARES[1:2] if args.quick else SHARES
    budgets = args.memory or [share * n_bytes / 1e9 for share in shares]
    ids = np.random.default_rng(7).integers(0, model.config.vocab_size, n_tokens)
    rows = {"checkpoint_GB": n_bytes / 1e9, "dense_GB": model.stream.kept_bytes / 1e9,
            "kernels": ops.kernels_name(), "threads": model.threads}
    if "reading" in args.only:
        rows |= reading(model, plain, rounds)
    if "cold" in args.only:
        rows |= decode_cold(model, plain, ids)
    if "resident" in args.only:
        rows |= machinery(model, plain, ids, rounds)
    if "guesses" in args.only:
        rows |= guesses(model, ids)
    del plain  # what is mapped cannot be dropped
    if "budgets" in args.only:
        n_more = (2 if args.quick else 4) * n_tokens
        rows |= at_budgets(args.checkpoint, model, ids[:4], budgets, n_more)
    if args.soak:
        rows |= soak(args.checkpoint, model, ids, min(budgets), args.soak * 60)
    for name, value in rows.items():
        print(f"{name:42s} {value:.4g}" if isinstance(value, float) else f"{name:42s} {value}")
    print(json.dumps(rows))


def mapped(path, threads):
    """Load a checkpoint simply mapped, however large it is."""
    before, loading.STREAM_FROM = loading.STREAM_FROM, 1 << 60
    try:
        return k2ref.load(path, threads)
    finally:
        loading.STREAM_FROM = before


def drop(model, plain):
    """Drop all that the page cache has of a checkpoint but the dense weights."""
    kept = {e for unit in model.stream.kept for e in unit.extents}
    for file, same in zip(model.files, plain.files, strict=True):
        cuts = sorted((e.start, e.stop) for e in kept if e.file is file)
        edges = [0, *chain(*cuts), len(file.bytes)]
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            same.let_go(start, stop)  # a page leaves the cache when nobody maps it
            file.let_go(start, stop)
    model.stream.residency.doubt()


def sequential(file, start, stop):
    """Read a cold stretch of a file as a program that only reads would."""
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = memoryview(bytearray(BLOCK))
    for at in range(start, stop, BLOCK):
        os.preadv(file.fd, [buffer[:stop - at]], at)
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_NORMAL)


def by_stream(units):
    """Read experts as the streamer does."""
    for _ in Residency(Meter(), room=1 << 50).bring(units):
        pass


def by_mmap(units):
    """Read experts by touching their pages."""
    for file, start, stop in (extent for unit in units for extent in unit.extents):
        file.bytes[start:stop:4096].max()


def by_pread(units):
    """Read experts into a buffer, one after another."""
    buffer = memoryview(bytearray(BLOCK))
    for file, start, stop in (extent for unit in units for extent in unit.extents):
        for at in range(start, stop, BLOCK):
            os.preadv(file.fd, [buffer[:stop - at]], at)


def reading(model, plain, rounds):
    """Compare ways to read one token's experts of a layer, cold, with a sequential read as long.

    Each round takes other experts, and the four ways in another order.
    """
    config, rng = model.config, np.random.default_rng(1)
    layer = next(i for i in range(config.num_hidden_layers) if config.is_moe_layer(i))
    ways = {"sequential": sequential, "stream": by_stream, "mmap": by_mmap, "pread": by_pread}
    rates, excess = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(rounds):
        for name in rng.permutation(list(ways)):
            chosen = rng.permutation(config.n_routed_experts)[:config.num_experts_per_tok]
            units = [dataclasses.replace(model.stream._expert(layer, e)) for e in chosen]
            n_bytes = sum(unit.n_bytes for unit in units)
            file, start, stop = max(units[0].extents, key=lambda e: e.stop - e.start)
            start = max(0, min(start, len(file.bytes) - n_bytes))
            if name == "mmap":
                twins = dict(zip(model.files, plain.files, strict=True))
                for unit in units:
                    unit.extents = tuple(e._replace(file=twins[e.file]) for e in unit.extents)
            drop(model, plain)
            before, start_s = memory.read_from_disk(), time.perf_counter()
            if name == "sequential":
                sequential(file, start, start + n_bytes)
            else:
                ways[name](units)
            rates[name].append(n_bytes / (time.perf_counter() - start_s))
            excess[name].append((memory.read_from_disk() - before) / n_bytes)
    rows = {f"read_{name}_GB/s": median(found) / 1e9 for name, found in rates.items()}
    rows["stream_share_of_sequential"] = median(rates["stream"]) / median(rates["sequential"])
    return rows | {f"read_over_wanted_{name}": median(excess[name]) for name in excess}


def decode_cold(model, plain, ids):
    """Decode two tokens at a time with no expert in memory, streamed and mapped in alternation."""
    decode(model, ids[:1])  # brings the dense weights back
    model.stream.meter = model.stream.residency.meter = meter = Meter()
    times, digests = {id(model): [], id(plain): []}, {id(model): [], id(plain): []}
    for k in range(0, len(ids), 2):
        wake(PAIR)
        for way in (model, plain) if k % 4 else (plain, model):
            drop(model, plain)
            took_s, digest = decode(way, ids[k:k + 2])
            times[id(way)].append(sum(took_s))
            digests[id(way)].append(digest)
    stream_s, plain_s = times.values()
    ratios = [mapped_s / streamed_s for streamed_s, mapped_s in zip(stream_s, plain_s, strict=True)]
    total = meter.total
    return {"cold_s_per_token_mmap": median(plain_s) / 2,
            "cold_s_per_token_stream": median(stream_s) / 2,
            "cold_mmap_over_stream": median(ratios),
            "cold_rate_GB/s": total.rate / 1e9, "cold_read_over_missed": total.read / total.missed,
            "cold_disk_busy": total.reading_s / total.time_s,
            "cold_same_bits": digests[id(model)] == digests[id(plain)]}


def machinery(model, plain, ids, rounds):
    """Compare streamed and simply mapped decoding of tokens whose experts are all in memory."""
    decode(model, ids[:4])
    decode(plain, ids[:4])
    ratios = []
    for _ in range(rounds):
        stream_s, plain_s = sum(decode(model, ids[:4])[0]), sum(decode(plain, ids[:4])[0])
        ratios.append(stream_s / plain_s)
    own_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        with model.stream.forward_pass(1, Trace()):
            for i in range(model.config.num_hidden_layers):
                model.stream.enter(i)
                if model.config.is_moe_layer(i):
                    chosen = [e for layer, e in model.stream.experts if layer == i]
                    for _ in model.stream.arrivals(i, chosen[:model.config.num_experts_per_tok]):
                        pass
        own_s.append(time.perf_counter() - start_s)
    layers = model.config.num_hidden_layers
    return {"resident_over_mapped": median(ratios), "resident_s_per_token": plain_s / 4,
            "machinery_us_per_layer":
            median(own_s) / layers * 1e6, "machinery_share": median(own_s) / (plain_s / 4)}


def guesses(model, ids):
    """Say how often the next router, applied one layer early, chooses what it will choose."""
    trace, right, first_two = Trace("layers.*"), [], []
    k2ref.forward(model, ids, trace=trace)
    arrays, config = trace.arrays, model.config
    for i in range(1, config.num_hidden_layers):
        if config.is_moe_layer(i):
            layer = model.layers[i]
            h = ops.rms_norm(arrays[f"layers.{i - 1}.out"], layer.post_attention_layernorm,
                             config.rms_norm_eps)
            guessed, _ = moe.route(h, layer.mlp.gate, layer.mlp.bias, config)
            for guess, chosen in zip(guessed, arrays[f"layers.{i}.moe.chosen"], strict=True):
                right.append(np.isin(guess, chosen).mean())
                first_two.append(np.isin(guess[:2], chosen).mean())
    return {"next_layer_guessed": float(np.mean(right)),
            "next_layer_first_two_guessed": float(np.mean(first_two))}


if __name__ == "__main__":
    main()
