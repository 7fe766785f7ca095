"""Run the blocks of a page of docs/, and look up what it quotes.

    ```pycon      typed at Python's prompt: all blocks of a page share one namespace
    ```console    `$ command` and what it prints; `python` is the Python that runs this
    ```python     after `<!-- source: moe.py choose -->`: that function, without its docstring
    ```c          after `<!-- source: kernels/linear.h "first" .. "last" -->`: the lines from one
                  that contains the first text to the next one that contains the last
    ```python     after `<!-- mine: tests/test_moe.py -->`: the answer of an exercise, which
                  tests/docs/test_docs.py runs; after `<!-- not run: why -->`: neither

`examine` returns the page as it should be and a fault for every place where it is not. Pages run in
a directory of links to what is at the top of the repository, so that what they write goes with it.
"""

import ast
import contextlib
import doctest
import io
import linecache
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"<!-- (source|mine|not run): (.+) -->")
RANGE = re.compile(r'"(.+)" \.\. "(.+)"')
MUST_BE_MARKED = ("python", "py", "c", "cython")  # code that nobody runs is code that rots
RAISED = "Traceback (most recent call last):\n    ...\n"


class Fence(NamedTuple):
    """A block of a page: the lines `start` to `stop`, counted from 0, without its fences."""

    language: str
    start: int
    stop: int
    marker: str  # "source", "mine", "not run", or "" for none
    about: str  # what the marker says


class Fault(NamedTuple):
    """What is wrong with a line of a page, counted from 1; `fixable`: rewriting sets it right."""

    line: int
    message: str
    fixable: bool = False


def fences(lines):
    """List the fenced blocks of a page."""
    found, opened = [], None
    for number, line in enumerate(lines):
        if opened is None:
            if fence := re.match(r"\s*(```+)\s*([\w-]*)", line):
                opened = number, fence[1], fence[2]
        elif line.strip() == opened[1]:
            marker = MARKER.fullmatch(lines[opened[0] - 1]) if opened[0] else None
            kind, about = marker.groups() if marker else ("", "")
            found.append(Fence(opened[2], opened[0] + 1, number, kind, about))
            opened = None
    if opened:
        found.append(Fence(opened[2], opened[0] + 1, len(lines), "", ""))
    return found


def examine(text, name="page.md"):
    """Run and look up all that a page shows; return the page as it should be, and its faults."""
    lines = text.splitlines()
    faults, changes = [], []  # a change: the lines from .. to, and what should stand there
    with playground() as here, np.printoptions():
        console, typed = Console(here), Typed(name)
        for fence in fences(lines):
            block = lines[fence.start:fence.stop]
            if fence.stop == len(lines):
                faults.append(Fault(fence.start, "this block has no end"))
            elif fence.language in ("pycon", "console"):
                if lines[fence.start - 1][0].isspace():
                    faults.append(Fault(fence.start, "a block that runs must not be indented"))
                run = typed.run if fence.language == "pycon" else console.run
                run(block, fence.start, faults, changes)
            elif fence.marker == "source":
                quote(fence, block, faults, changes)
            elif fence.language in MUST_BE_MARKED and not fence.marker:
                faults.append(Fault(fence.start, "this code is neither run (pycon) nor quoted "
                                                 "(<!-- source: ... -->)"))
    for start, stop, new in sorted(changes, reverse=True):
        lines[start:stop] = new
    return "\n".join(lines) + "\n", sorted(faults)


def compare(start, said, found, what, faults, changes):
    """Note where the lines that a page has from `start` on are not those that were found."""
    if said == found:
        return
    pairs = zip(said, found, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(said), len(found)))
    line = start + same if same < len(said) else start + len(said) - 1
    here, there = (repr(x[same]) if same < len(x) else "nothing more" for x in (said, found))
    faults.append(Fault(line + 1, f"the page says {here}, {what} {there}", True))
    changes.append((start, start + len(said), found))


@contextlib.contextmanager
def playground():
    """Make a directory that looks like the top of the repository the current one, for a while."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory) / "k2ref"
        here.mkdir()
        for entry in ROOT.iterdir():
            if not entry.name.startswith("."):
                (here / entry.name).symlink_to(entry)
        os.chdir(here)
        try:
            yield here
        finally:
            os.chdir(before)


class Typed:
    """Python's prompt: run the examples of `pycon` blocks, one after the other."""

    def __init__(self, name):
        self.name, self.names, self.n_run = name, {"__name__": "page"}, 0

    def run(self, block, start, faults, changes):
        """Run one block's examples, and compare what they print."""
        try:
            parts = doctest.DocTestParser().parse("\n".join(block) + "\n")
        except ValueError as error:
            faults.append(Fault(start, f"doctest cannot read this block: {error}"))
            return
        if not any(isinstance(part, doctest.Example) for part in parts):
            faults.append(Fault(start, "this block has nothing to run: no line begins with >>>"))
        line = start  # the first that doctest has not made a part of an example
        for part in parts:
            if not isinstance(part, doctest.Example):
                if part.strip():
                    faults.append(Fault(line + 1, f"no output of an example: {part.strip():.40}"))
                continue
            first = start + part.lineno + 1
            while first < start + len(block) and block[first - start].startswith("..."):
                first += 1
            said = part.want.splitlines()
            line = first + len(said)
            printed, error = self._one(part.source)
            if error and not part.want.startswith("Traceback"):
                faults.append(Fault(start + part.lineno + 1, f"raises {error.strip()}"))
                continue
            found = (printed + (RAISED + error if error else "")).splitlines()
            found = [line or "<BLANKLINE>" for line in found]
            compare(first, said, found, "running it prints", faults, changes)

    def _one(self, source):
        """Run one example; return what it printed, and how it failed."""
        self.n_run += 1
        file = f"<{self.name} {self.n_run}>"
        linecache.cache[file] = len(source), None, source.splitlines(True), file
        printed, hook = io.StringIO(), sys.displayhook
        sys.displayhook = sys.__displayhook__
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(source, file, "single"), self.names)
        except Exception as error:
            return printed.getvalue(), "".join(traceback.format_exception_only(error))
        finally:
            sys.displayhook = hook
        return printed.getvalue(), ""


class Console:
    """A shell in which `python`, `pytest` and `k2ref` are those of this Python."""

    TIMEOUT_S = 120  # for a machine under load; a page should show nothing that takes 10 s

    def __init__(self, here):
        commands = here.parent / "bin"
        commands.mkdir()
        for name, what in (("python", ""), ("pytest", "-m pytest"), ("k2ref", "-m k2ref")):
            (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what} "$@"\n')
            (commands / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("K2REF_", "PYTEST_", "FORCE_COLOR"))}
        self.environment = {**kept, "PATH": f"{commands}{os.pathsep}{kept['PATH']}", "COLUMNS":
                            "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}

    def run(self, block, start, faults, changes):
        """Run the commands of one block, and compare what they print."""
        begins = [i for i, line in enumerate(block) if line.startswith("$ ")]
        if begins[:1] != [0]:
            faults.append(Fault(start + 1, "a console block begins with `$ ` and a command"))
            return
        for first, stop in zip(begins, [*begins[1:], len(block)], strict=True):
            after = first + 1
            while block[after - 1].endswith("\\") and after < stop:
                after += 1
            command = "\n".join(block[first:after])[2:]
            said = "\n".join(block[after:stop]).rstrip("\n").splitlines()
            try:
                done = subprocess.run(["sh", "-c", command], env=self.environment,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, timeout=self.TIMEOUT_S)
            except subprocess.TimeoutExpired:
                faults.append(Fault(start + first + 1, f"ran for more than {self.TIMEOUT_S} s"))
                continue
            found = done.stdout.decode(errors="replace").rstrip("\n").splitlines()
            what = "the command prints"
            if done.returncode:
                what = f"the command ends with status {done.returncode} and prints"
            compare(start + after, said, found, what, faults, changes)


def quote(fence, block, faults, changes):
    """Compare a block with the source that its marker names."""
    file, _, what = fence.about.partition(" ")
    try:
        inside = ROOT / "k2ref" / file
        path = inside if inside.exists() else ROOT / file
        source = path.read_text(encoding="utf-8")
        limits = RANGE.fullmatch(what)
        found = lines_between(source, *limits.groups()) if limits else definition(source, what)
    except (OSError, LookupError, SyntaxError) as error:
        faults.append(Fault(fence.start - 1, f"{file}: {error}"))
        return
    compare(fence.start, block, found, f"{file} has", faults, changes)


def lines_between(source, first, last):
    """Return the lines from the one that contains `first` to the next that contains `last`."""
    lines = source.splitlines()
    begins = [i for i, line in enumerate(lines) if first in line]
    if len(begins) != 1:
        raise LookupError(f"{len(begins)} lines contain {first!r}, expected one")
    ends = [i for i in range(begins[0], len(lines)) if last in lines[i]]
    if not ends:
        raise LookupError(f"no line from that on contains {last!r}")
    return textwrap.dedent("\n".join(lines[begins[0]:ends[0] + 1])).splitlines()


def definition(source, name):
    """Return the lines of a function, `Class.method`, class or constant, without its docstring."""
    node = ast.parse(source)
    for part in name.split("."):
        node = next((child for child in node.body if part in _names(child)), None)
        if node is None:
            raise LookupError(f"there is no {name}")
    lines = source.splitlines()
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    kept = list(range(first - 1, node.end_lineno))
    if not isinstance(node, ast.Assign | ast.AnnAssign) and ast.get_docstring(node) is not None:
        docstring = node.body[0]
        stop = docstring.end_lineno
        stop += stop < node.end_lineno and not lines[stop].strip()
        kept = [i for i in kept if not docstring.lineno - 1 <= i < stop]
    return textwrap.dedent("\n".join(lines[i] for i in kept)).splitlines()


def _names(node):
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
