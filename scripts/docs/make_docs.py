"""Run the blocks of docs/*.md and fill in what they print and quote.

    python -m scripts.docs.make_docs  rewrite outputs and quotes of all pages
    python -m scripts.docs.make_docs docs/09-router.md  of these pages only
    python -m scripts.docs.make_docs --check [PAGES]  change nothing, fail if a page is out of date

Each fault is a line `docs/NAME.md:LINE: what is wrong`. `blocks.py` says what a page may hold,
`links.py` checks its links and pictures.
"""

import argparse
import os
import sys
from pathlib import Path

from scripts.docs import blocks, links

DOCS = blocks.ROOT / "docs"


def faults_of(path, rewrite=False):
    """List a page's faults, in the order of its lines; those that rewriting cured are left out."""
    text = path.read_text(encoding="utf-8")
    correct, faults = blocks.examine(text, path.name)
    if rewrite:
        faults = [fault for fault in faults if not fault.fixable]
        if correct != text:
            path.write_text(correct, encoding="utf-8")
    linked = [blocks.Fault(*fault) for fault in links.faults_of(path)]
    return sorted(faults + linked)


def main():
    """Rewrite the pages, or with --check compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    parser.add_argument("pages", nargs="*", type=Path, help="pages; by default all of docs/")
    arguments = parser.parse_args()
    found = []
    for path in arguments.pages or sorted(DOCS.glob("*.md")):
        name = os.path.relpath(path)
        for fault in faults_of(path.resolve(), rewrite=not arguments.check):
            print(f"{name}:{fault.line}: {fault.message}", flush=True)
            found.append(fault)
    if not arguments.pages:
        for name in links.unreachable(DOCS):
            print(f"docs/index.md:1: no way leads from here to {name}")
            found.append(name)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
