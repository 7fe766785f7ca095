"""Measure the kernels against what this machine can do at most, in one run.

    python scripts/bench.py [--quick] [--threads N] [--rows NAME ...]
    python scripts/bench.py --ladder            the same product, from NumPy to the last version
    python scripts/bench.py --peer              torch and tiktoken beside k2ref, in alternation
    python scripts/bench.py --against DIR       another built checkout of k2ref, in alternation

Every figure is a ratio: a product that reads each weight once is compared with a loop that only
reads, one that reuses weights with a loop that only multiplies and adds. They are measured in turn,
and the median of the pairwise ratios is printed, since machines are shared and drift. The last line
is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, os.environ.get("K2REF_BENCH_TREE", str(ROOT)))
from k2ref import ops  # noqa: E402, I001  (k2ref of that tree, what is measured of this one)

sys.path.insert(0, str(ROOT))
from scripts.benchmarks import shapes  # noqa: E402

READ_BYTES = 1 << 29
FMA_ROUNDS = 2_000_000


def seconds(work):
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Limits:
    """Measure this machine's read bandwidth and its rate of multiply-adds, when asked."""

    def __init__(self, threads):
        self.threads, self.seen = threads, {"GB/s": [], "GFLOP/s": []}
        self.data = np.ones(READ_BYTES // 8, np.int64)

    def measure(self, unit):
        """Return the rate of a loop that does nothing else, in units of 1e9."""
        start = time.perf_counter()
        if unit == "GB/s":
            n = ops.kernels.read_all(self.data, self.threads)
        else:
            n = 2 * ops.kernels.multiply_adds(FMA_ROUNDS, self.threads)
        rate = n / (time.perf_counter() - start) / 1e9
        self.seen[unit].append(rate)
        return rate


def measure(row, limits, repeats):
    """Alternate a row of the table with its limit; return median rate and median ratio."""
    work, amount = row.prepare(limits.threads)
    work()
    rates, ratios = [], []
    for _ in range(repeats):
        before = limits.measure(row.unit) if row.unit in limits.seen else 1
        rate = amount / seconds(work) / 1e9 if row.unit in limits.seen else amount / seconds(work)
        after = limits.measure(row.unit) if row.unit in limits.seen else 1
        rates.append(rate)
        ratios.append(rate / ((before + after) / 2))
    return statistics.median(rates), statistics.median(ratios)


def describe(threads):
    """Say what was measured on: processor, compiler, path, threads."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": cpu, "compiler": platform.python_compiler(), "threads": threads,
            "kernels": ops.kernels_name(), "openmp": bool(ops.kernels and ops.kernels.has_openmp)}


def table(rows, threads, repeats):
    """Measure all rows, print a table for people, return a dict for machines."""
    limits, results = Limits(threads), {}
    print(f"{'work':46}{'rate':>18}{'of limit':>10}{'target':>9}")
    for row in tqdm(rows, file=sys.stderr, leave=False, disable=not sys.stderr.isatty()):
        rate, ratio = measure(row, limits, repeats)
        of_limit = f"{ratio:.0%}" if row.unit in limits.seen else ""
        print(f"{row.name:46}{rate:10.2f} {row.unit:8}{of_limit:>9}{row.target:>9}", flush=True)
        results[row.name] = {"rate": rate, "unit": row.unit, "of_limit": ratio}
    for unit, rates in limits.seen.items():
        if rates:
            name = "read loop" if unit == "GB/s" else "FMA loop"
            print(f"{name + ' (the limit, median)':46}{statistics.median(rates):10.2f} {unit}")
            results[name] = {"rate": statistics.median(rates), "unit": unit}
    return results


def ladder(threads, repeats):
    """Time one INT4 product (7168 to 2048) on every rung; return seconds by rung."""
    rungs = [("unpack, then multiply in NumPy", None, 1)]
    for path in ("portable", "neon", "avx2", "avx512", "vnni"):
        try:
            ops.kernels.use_path(path)
        except ValueError:
            continue
        rungs.append((f"fused, {path}, one thread", path, 1))
    rungs.append((f"all {threads} threads", rungs[-1][1], threads))
    results, before, limits = {}, None, Limits(threads)
    x, weights = shapes.int4_matrices(16)
    n_bytes = sum(w.n_bytes for w in weights)
    for name, path, n in rungs:
        if path is None:
            def work():
                return [ops.linear_numpy(x, w) for w in weights[:2]]
            share = 2 / len(weights)
        else:
            ops.kernels.use_path(path)
            def work(n=n):
                return ops.linear_many([(x, w) for w in weights], n)
            share = 1
        times = []
        for _ in range(repeats):  # in turn with the limit, which drifts
            times.append(seconds(work) / share)
            limits.measure("GB/s")
        t = statistics.median(times)
        gain = f"{before / t:6.1f} x" if before else ""
        print(f"{name:40}{t / len(weights) * 1e6:10.0f} us a matrix"
              f"{n_bytes / t / 1e9:8.2f} GB/s {gain}")
        results[name], before = t / len(weights), t
    rate = statistics.median(limits.seen["GB/s"]) * 1e9
    limit = f"only reading, all {threads} threads"
    results[limit] = n_bytes / len(weights) / rate
    print(f"{limit:40}{results[limit] * 1e6:10.0f} us a matrix{rate / 1e9:8.2f} GB/s")
    return results


def against(directory, arguments):
    """Run this benchmark on two trees in alternation; print the ratio of each row's rates."""
    def run(tree):
        environment = {**os.environ, "K2REF_BENCH_TREE": str(tree)}
        out = subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True,
                             capture_output=True, text=True).stdout
        return json.loads(out.splitlines()[-1])["results"]
    trees = (ROOT, Path(directory).resolve())
    runs = [(run(trees[0]), run(trees[1])) for _ in range(3)]
    ratios = {}
    for name in runs[0][0].keys() & runs[0][1].keys():
        ratios[name] = statistics.median(a[name]["rate"] / b[name]["rate"] for a, b in runs)
        print(f"{name:46}{ratios[name]:8.2f} x the rate of {directory}")
    return ratios


def main():
    """Measure what the options say; print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--threads", type=int, default=ops.default_threads())
    parser.add_argument("--rows", nargs="+", help="only rows whose names contain one of these")
    parser.add_argument("--repeats", type=int, help="pairs of measurements for each row")
    parser.add_argument("--ladder", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--against", metavar="DIR")
    args = parser.parse_args()
    if ops.kernels is None:
        raise SystemExit("bench.py measures the compiled kernels; they are missing here")
    machine = describe(args.threads)
    print("  ".join(f"{key} {value}" for key, value in machine.items()))
    repeats = args.repeats or (3 if args.quick else 7)
    if args.against:
        options = ["--threads", str(args.threads)] + ["--quick"] * args.quick
        results = against(args.against, options + (["--rows", *args.rows] if args.rows else []))
    elif args.ladder:
        results = ladder(args.threads, repeats)
    else:
        rows = shapes.peers() if args.peer else shapes.rows(args.quick)
        if args.rows:
            rows = [row for row in rows if any(part in row.name for part in args.rows)]
        results = table(rows, args.threads, repeats)
    print(json.dumps({"machine": machine, "results": results}))


if __name__ == "__main__":
    main()
