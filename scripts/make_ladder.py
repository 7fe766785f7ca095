"""Fill in the ladder of docs/14-kernels.md from what `bench.py --ladder` measured.

    python scripts/bench.py --ladder | tail -n 1 > docs/data/ladder.json
    python scripts/make_ladder.py            rewrite the table
    python scripts/make_ladder.py --check    fail if it is not what the file says

The table stands between `<!-- ladder -->` and `<!-- end -->`. A result whose name begins with
"only reading" is the limit that the others are compared with: the time in which a loop that does
nothing else reads as many bytes.
"""

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from k2ref.config import Config  # noqa: E402
from k2ref.layout import n_bytes, stored_parts  # noqa: E402

PAGE, DATA = ROOT / "docs/14-kernels.md", ROOT / "docs/data/ladder.json"
CONFIG = ROOT / "tests/data/configs/Kimi-K2-Thinking.json"
PART = re.compile(r"(<!-- ladder -->\n).*?(<!-- end -->)", re.S)
LIMIT = "only reading"


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


def main():
    """Rewrite the page's table, or with --check compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    check = parser.parse_args().check
    try:
        measured = json.loads(DATA.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        print(f"{DATA.relative_to(ROOT)}: expected the last line of bench.py --ladder, in JSON",
              file=sys.stderr)
        return 1
    page = PAGE.read_text(encoding="utf-8")
    if len(PART.findall(page)) != 1:
        print(f"{PAGE.relative_to(ROOT)}: expected one part named ladder", file=sys.stderr)
        return 1
    text = table(measured)
    filled = PART.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)
    if check and filled != page:
        print(f"{PAGE.relative_to(ROOT)}: the ladder is out of date: run "
              "python scripts/make_ladder.py", file=sys.stderr)
        return 1
    PAGE.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
