"""Fill in the tables of docs/14-kernels.md and kernel-notes.md from what `bench.py` measured.

    python scripts/bench.py --ladder | tail -n 1 > docs/data/ladder.json
    for path in avx512 vnni; do
        K2REF_KERNELS=$path python scripts/bench.py | tail -n 1 > docs/data/rates-$path.json
    done
    python -m scripts.docs.make_ladder            rewrite the tables
    python -m scripts.docs.make_ladder --check    fail if they are not what the files say

They stand between `<!-- ladder -->` or `<!-- rates -->` and `<!-- end -->`. A result of the ladder
whose name begins with "only reading" is the limit that the others are compared with: the time in
which a loop that does nothing else reads as many bytes.
"""

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from k2ref.checkpoint.config import Config  # noqa: E402
from k2ref.checkpoint.layout import n_bytes, stored_parts  # noqa: E402

DOCS, DATA = ROOT / "docs", ROOT / "docs/data"
CONFIG = ROOT / "tests/data/configs/Kimi-K2-Thinking.json"
LIMIT = "only reading"
MACHINES = (("avx512", "vnni"), ("amx",))  # the paths that were measured on one machine


def matrix_bytes():
    """Count the bytes of the matrix that the ladder multiplies by: an expert's gate_proj, INT4."""
    config = Config.from_dict(json.loads(CONFIG.read_text(encoding="utf-8")))
    parts = stored_parts((config.moe_intermediate_size, config.hidden_size), "int4")
    return n_bytes([part for part in parts if not part.suffix.endswith("shape")])


def table(measured):
    """Make the table in Markdown from the last line of `bench.py --ladder`, parsed."""
    seconds, size = measured["results"], matrix_bytes()
    limit = next((s for name, s in seconds.items() if name.startswith(LIMIT)), None)
    head = ["version", "a matrix", "read", "over the row above"]
    head += ["of the limit"] if limit else []
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    before = None
    for name, s in seconds.items():
        is_limit = name.startswith(LIMIT)
        gain = f"{before / s:.1f} x" if before and not is_limit else ""
        cells = [name, f"{s * 1e6:,.0f} us", f"{size / s / 1e9:.2f} GB/s", gain]
        cells += [f"{limit / s:.0%}"] if limit else []
        lines.append(f"| {' | '.join(cells)} |")
        before = s
    machine = measured["machine"]
    where = (f"Measured on {machine['processor']}, compiled with {machine['compiler']}: one token "
             f"times an INT4 matrix of {size / 1e6:.2f} MB, sixteen such matrices in turn.")
    return "\n".join([*lines, "", *textwrap.wrap(where, 100)])


def rates(paths):
    """Make the table of one machine in Markdown: {path: the last line of `bench.py`, parsed}."""
    lines = ["| work |" + "".join(f" {path} | of the limit |" for path in paths),
             "|---|" + "---|---|" * len(paths)]
    *_, last = paths.values()
    for name in last["results"]:
        cells = [name]
        for found in (measured["results"][name] for measured in paths.values()):
            share = found.get("of_limit", 0)
            is_share = found["unit"] in ("GB/s", "GFLOP/s") and share
            cells += [f"{found['rate']:.4g} {found['unit']}", f"{share:.0%}" if is_share else ""]
        lines.append(f"| {' | '.join(cells)} |")
    machine = last["machine"]
    where = (f"Measured on {machine['processor']}, {machine['threads']} threads, compiled with "
             f"{machine['compiler']}. The limit of GB/s is the read loop, that of GFLOP/s the loop "
             "of float32 multiply-adds, measured before and after each row.")
    return "\n".join([*lines, "", *textwrap.wrap(where, 100)])


def tables():
    """Return (page, name of the part, its text) for each table, from the files in docs/data."""
    def measured(name):
        return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    yield DOCS / "14-kernels.md", "ladder", table(measured("ladder"))
    machines = ({path: measured(f"rates-{path}") for path in paths} for paths in MACHINES)
    yield DOCS / "kernel-notes.md", "rates", "\n\n".join(map(rates, machines))


def filled(page, name, text):
    """Return the page with its part of this name replaced."""
    part = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
    before = page.read_text(encoding="utf-8")
    if len(part.findall(before)) != 1:
        raise ValueError(f"{page.relative_to(ROOT)}: expected one part named {name}")
    return part.sub(lambda found: f"{found[1]}{text}\n{found[2]}", before)


def main():
    """Rewrite the tables, or with --check compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    check = parser.parse_args().check
    try:
        pages = [(page, name, filled(page, name, text)) for page, name, text in tables()]
    except (OSError, ValueError) as error:
        print(f"{DATA.relative_to(ROOT)}: expected the last lines of bench.py, in JSON ({error})",
              file=sys.stderr)
        return 1
    for page, name, text in pages:
        if check and page.read_text(encoding="utf-8") != text:
            print(f"{page.relative_to(ROOT)}: the {name} is out of date: run "
                  "python -m scripts.docs.make_ladder", file=sys.stderr)
            return 1
        if not check:
            page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
