"""Feed k2ref damaged and hostile input, each case in a process of its own, and count how it ends.

    python -m scripts.checks.fuzz.run --seed 1 --cases 10000 [--kind checkpoint ...] [--keep DIR]
    python -m scripts.checks.fuzz.run --seed 1 --case 4711  one case again, and all that it says
    python -m scripts.checks.fuzz.run --again DIR/NAME/case.json  a case that was kept

Seed and number make a case: a base, and up to a few steps of damage. k2ref is imported once, and
for each case the process is forked before any kernel has run, since threads do not survive a fork.
A case may work, or be refused in a clean sentence by k2ref's own errors. All else is a failure:

    silent NaN   a token was drawn although a number behind it was not finite
    wrong        what must always hold did not: the trial says what
    exception    any other than k2ref's own
    memory       more than 1 GB, or a MemoryError
    hang         more than 5 seconds
    signal       the process crashed

Of each kind of failure (the same end, exception and innermost function) the smallest input is kept:
steps are left out as long as it fails in the same way. The exit status is 1 if anything failed.
"""

import argparse
import contextlib
import faulthandler
import gc
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from scripts.checks.fuzz import files, talk, use
from scripts.checks.fuzz.damage import PACKAGE, End, judge

KINDS = {**files.KINDS, **talk.KINDS, **use.KINDS}
SHARES = {"checkpoint": 8}  # of all cases, in proportion to 2 for each other kind
GOOD = ("works", "refused")
BAD = ("silent NaN", "wrong", "exception", "memory", "hang", "signal")
HANG_S, MEMORY = 5.0, 1 << 30
LOOK_MS = 20  # how often the memory of a case is looked at


class Case(NamedTuple):
    """Say what happens in a case: steps are (name, seed), so that each can be left out."""

    kind: str
    base: str
    steps: tuple[tuple[str, int], ...] = ()


def draw(seed, number, kinds=tuple(KINDS)):
    """Make case `number` of a seed."""
    rng = random.Random(f"{seed} {number}")
    [name] = rng.choices(kinds, [SHARES.get(kind, 2) for kind in kinds])
    kind = KINDS[name]
    n_steps = min(rng.randint(1, kind.most), rng.randint(1, kind.most))  # one is often the hardest
    steps = [(rng.choice(sorted(kind.steps)), rng.getrandbits(32)) for _ in range(n_steps)]
    return Case(name, rng.choice(kind.bases), tuple(steps))


def run(case, where):
    """Make the damage and hold k2ref to an answer: return "works" or "refused"."""
    kind = KINDS[case.kind]
    state = kind.begin(case.base)
    for name, seed in case.steps:
        kind.steps[name](state, random.Random(seed))
    return kind.trial(state, where)


# One case in a process of its own.

def isolated(work, where, hang_s=HANG_S, n_bytes=MEMORY):
    """Fork, call `work(where)` in the child, and return its `End`; what it prints is in a file."""
    where.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        _child(work, where, write)
    os.close(write)
    start = time.monotonic()
    try:
        text, outcome = _watch(pid, read, start + hang_s, n_bytes)
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # and what the case itself has started
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    peak, time_s = usage.ru_maxrss * 1024, time.monotonic() - start
    if text.endswith(b"\n"):
        end = End(*json.loads(text))
    elif outcome:
        end = End(outcome, frame=_last_frame(where))
    else:
        by = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"
        end = End("signal", by, _last_frame(where))
    if peak > n_bytes and end.outcome in GOOD:
        end = end._replace(outcome="memory")
    return end._replace(n_bytes=peak, time_s=time_s)


def _child(work, where, write):
    """Do the work and write how it ended, as a line of JSON; never return."""
    try:
        os.setsid()
        out = os.open(where.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        faulthandler.enable(out)
        try:
            end = End(work(where))
        except BaseException as error:
            end = judge(error)
        os.write(write, (json.dumps(end) + "\n").encode())
    finally:
        os._exit(0)


def _last_frame(where):
    """Find k2ref's innermost function in what faulthandler wrote."""
    text = where.with_suffix(".out").read_text(errors="replace")
    found = re.search(rf'File "{re.escape(PACKAGE)}([\w/.]+)", line \d+ in (\S+)', text)
    return f"{found[1]}:{found[2]}" if found else ""


def _watch(pid, read, deadline, n_bytes):
    """Wait for the line of a child; return it, and "hang" or "memory" if it has to be ended."""
    text, outcome, poll = b"", None, select.poll()
    poll.register(read, select.POLLIN)
    while not text.endswith(b"\n"):
        if poll.poll(LOOK_MS):
            piece = os.read(read, 1 << 16)
            if not piece:
                break
            text += piece
        elif os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) or outcome:
            if not poll.poll(0):  # else it wrote between the two looks
                break
        else:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            outcome = ("memory" if pages * os.sysconf("SC_PAGE_SIZE") > n_bytes
                       else "hang" if time.monotonic() > deadline else None)
            if outcome:
                os.kill(pid, signal.SIGABRT)  # faulthandler then writes where it is
    return text, outcome


# Many cases.

class Fuzzer:
    """Run cases, count how they end, and keep the smallest input of each kind of failure."""

    def __init__(self, keep=None):
        self.keep = keep
        self.counts = {}  # kind: Counter of outcomes
        self.kept = {}  # (kind, outcome, type, frame): Case
        self.most = Counter()  # seconds and bytes of the longest and the largest
        self._home = tempfile.TemporaryDirectory(prefix="fuzz-")

    def prepare(self, kinds):
        """Make what the cases begin with, and see that it works as long as nothing is damaged."""
        for kind in kinds:
            for base in KINDS[kind].bases:
                KINDS[kind].begin(base)
        gc.collect()
        gc.freeze()  # the children would copy what the collector touches
        for kind in kinds:
            for base in KINDS[kind].bases:
                end = self.end_of(Case(kind, base))
                if end.outcome != "works":
                    raise SystemExit(f"{kind}, {base}, undamaged: {end}\n{end.message}")

    def end_of(self, case):
        """Run a case and return its end; the directory is new and goes away again."""
        where = Path(self._home.name, "case")
        shutil.rmtree(where, ignore_errors=True)
        return isolated(lambda where: run(case, where), where)

    def count(self, case):
        """Run a case; a failure of a kind that was not seen is made small and kept."""
        end = self.end_of(case)
        self.counts.setdefault(case.kind, Counter())[end.outcome] += 1
        self.most["n_bytes"] = max(self.most["n_bytes"], end.n_bytes)
        self.most["longest_s"] = max(self.most["longest_s"], round(end.time_s, 1))
        key = (case.kind, *end[:3])
        if end.outcome in BAD:
            known = self.kept.get(key)
            if known is None or len(known.steps) > 1:
                small = self.smaller(case, key)
                if known is None or len(small.steps) < len(known.steps):
                    self.kept[key] = small
                    self._keep(small, key)
        return end

    def smaller(self, case, key):
        """Leave out every step without which it fails in the same way."""
        for step in case.steps:
            fewer = case._replace(steps=tuple(s for s in case.steps if s is not step))
            if (case.kind, *self.end_of(fewer)[:3]) == key:
                case = fewer
        return case

    def _keep(self, case, key):
        if self.keep is None:
            return
        end = self.end_of(case)
        home = Path(self.keep, re.sub(r"[^\w.]+", "-", "-".join(filter(None, key)))[:120])
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "case.json").write_text(json.dumps(case))
        (home / "end.txt").write_text(
            f"python -m scripts.checks.fuzz.run --again {home}/case.json\n{case}\n{end.message}\n")
        where = Path(self._home.name, "case")
        for file in where.iterdir() if where.is_dir() else ():
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 1 << 24:
                shutil.copy(file, home)

    def table(self):
        """Write the counts, a row for each kind."""
        rows = [["", *GOOD, *BAD]]
        for kind, counts in [*sorted(self.counts.items()), ("all", sum(
                self.counts.values(), Counter()))]:
            rows.append([kind, *(str(counts[outcome]) for outcome in GOOD + BAD)])
        return "\n".join("".join(f"{cell:>11}" for cell in row) for row in rows)


def main(argv=None):
    """Run the cases that the command line asks for; return 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--case", type=int, help="run this one alone, and say all of it")
    parser.add_argument("--again", metavar="FILE", help="run a case that was kept")
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be given again")
    parser.add_argument("--keep", metavar="DIR", help="where the smallest inputs go")
    parser.add_argument("--record", metavar="FILE", help="write the counts as JSON")
    args = parser.parse_args(argv)
    kinds = tuple(args.kind or KINDS)
    fuzzer = Fuzzer(args.keep)
    fuzzer.prepare(kinds)
    if args.again or args.case is not None:
        case = draw(args.seed, args.case, kinds) if not args.again else Case(
            *json.loads(Path(args.again).read_text()))
        end = fuzzer.end_of(case)
        print(case, end, end.message, sep="\n")
        return end.outcome in BAD
    start, digest = time.monotonic(), hashlib.sha256()
    for number in tqdm(range(args.cases), disable=None):
        case = draw(args.seed, number, kinds)
        digest.update(repr(case).encode())
        end = fuzzer.count(case)
        if end.outcome in BAD:
            tqdm.write(f"case {number}, {case.kind}: {' '.join(end[:3])}")
    time_s = time.monotonic() - start
    print(fuzzer.table())
    print(f"{args.cases} cases in {time_s:.0f} s, longest {fuzzer.most['longest_s']:.1f} s, "
          f"largest {fuzzer.most['n_bytes'] / 1e6:.0f} MB")
    for key, case in fuzzer.kept.items():
        print(*key, case, sep=" | ")
    if args.record:
        Path(args.record).write_text(json.dumps({
            "seed": args.seed, "cases": args.cases, "kinds": kinds, "drawn": digest.hexdigest(),
            "counts": fuzzer.counts, "time_s": round(time_s), **fuzzer.most}, indent=1) + "\n")
    return bool(fuzzer.kept)


if __name__ == "__main__":
    sys.exit(main())
