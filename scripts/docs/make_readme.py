"""Fill in what README.md shows but nobody should type: outputs, the map of the source, numbers.

    python -m scripts.docs.make_readme            rewrite the generated parts
    python -m scripts.docs.make_readme --check    fail if they are not what they would be

A generated part stands between `<!-- name -->` and `<!-- end -->`. The tables and the graph are of
the source (house.py). The last line of a file's docstring names its chapter; in turn each chapter
in docs/ ends with the files it is about.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys

from k2ref.checkpoint.config import Config
from k2ref.planning import plan
from scripts.docs import house

ROOT = house.ROOT
COMMAND = 'python -m k2ref --greedy --tools calculator "What is 4821 * 377?"'


def chapters_of(name):
    """Return the numbers of a module's chapters, from the last line of its docstring."""
    last = house.docstring(name).split("\n\n")[-1]
    found = re.fullmatch(r"Chapters? (\d\d)(?: and (\d\d))?\.", last)
    if found is None:
        raise SystemExit(f"make_readme.py: {name}: expected a last line 'Chapter NN.' in the "
                         f"docstring, found {last!r}")
    return [number for number in found.groups() if number]


def page_of(number):
    """Return the file of a chapter."""
    (page,) = (ROOT / "docs").glob(f"{number}-*.md")
    return page


def files_of(page):
    """Link the files that a chapter is about."""
    names = [name for name in house.with_compiled(house.modules())
             if page.name[:2] in chapters_of(name)]
    files = [path for name in names for path in (house.path_of(name), *beside(name))]
    return "The source:\n" + ",\n".join(f"[`{path.relative_to(house.K2REF)}`]"
                                         f"(../{path.relative_to(ROOT)})" for path in files) + "."


def beside(name):
    """List what goes with a module and is none: the headers of C, the parts of the page."""
    folder = {"_kernels": "kernels", "show.page": "show/assets"}.get(name)
    found = (house.K2REF / folder).rglob("*.*") if folder else ()
    return sorted(found, key=lambda path: (len(path.parts), path))


def hall():
    """Write the table of the hall, in reading order."""
    rows = ["| file | lines | what it adds | chapter |", "|---|---|---|---|"]
    for name in house.with_compiled(house.HALL):
        path = house.path_of(name)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        pages = ", ".join(f"[{number}](docs/{page_of(number).name})"
                          for number in chapters_of(name))
        rows.append(f"| [`{path.name}`](k2ref/{path.name}) | {lines} | "
                    f"{house.first_sentence(name)} | {pages} |")
    return "\n".join(rows)


def wings():
    """Write the table of the wings."""
    rows = ["| folder | lines | what it is for |", "|---|---|---|"]
    for wing in house.WINGS:
        lines = sum(len(path.read_text(encoding="utf-8").splitlines())
                    for path in (house.K2REF / wing).glob("*.py*"))
        rows.append(f"| [`{wing}/`](k2ref/{wing}/__init__.py) | {lines} | "
                    f"{house.first_sentence(f'{wing}.__init__')} |")
    return "\n".join(rows)


def output_of(command):
    """Run one of the README's commands and show it with what it prints."""
    words = shlex.split(command)
    words[0] = sys.executable
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    run = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return f"```\n$ {command}\n{run.stdout.rstrip()}\n```"


def numbers():
    """Compute what the full checkpoint weighs and moves, from the official config."""
    config = Config.from_dict(_official_config())
    kinds = config.n_bytes_by_kind
    dense = sum(n for kind, n in kinds.items() if kind not in ("experts", "embedding"))
    rows = [
        ("parameters", f"{config.n_parameters:,}"),
        ("payload of the 62 shards", f"{config.n_payload_bytes / 1e9:.1f} GB"),
        ("of these, routed experts (INT4)", f"{kinds['experts'] / 1e9:.1f} GB"),
        ("read for every token: all that is not an expert", f"{dense / 1e9:.1f} GB"),
        ("read for one token in all, 8 experts a layer included",
         f"{config.n_bytes_per_token / 1e9:.1f} GB"),
        ("KV cache for each token (float32)", f"{config.kv_bytes_per_token(4) / 1e3:.1f} kB"),
        ("KV cache of the whole context of 262,144 tokens",
         f"{config.kv_bytes_per_token(4) * config.max_position_embeddings / 1e9:.1f} GB"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _official_config():
    file = ROOT / "tests" / "data" / "configs" / "Kimi-K2-Thinking.json"
    return json.loads(file.read_text(encoding="utf-8"))


PARTS = {
    "answer": lambda: output_of(COMMAND),
    "numbers": numbers,
    "machines": lambda: plan.table(Config.from_dict(_official_config())),
    "hall": hall,
    "wings": wings,
    "diagram": house.diagram,
}


def main():
    """Rewrite README.md, or with --check compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    check = parser.parse_args().check
    parts = {ROOT / "README.md": PARTS}
    for page in sorted((ROOT / "docs").glob("[0-9][0-9]-*.md")):
        parts[page] = {"files": lambda page=page: files_of(page)}
    status = 0
    for path, makers in parts.items():
        before = path.read_text(encoding="utf-8")
        after = filled_in(path.name, before, makers)
        if check and before != after:
            print(f"{path.name} is out of date: run python -m scripts.docs.make_readme",
                  file=sys.stderr)
            status = 1
        elif before != after:
            path.write_text(after, encoding="utf-8")
    return status


def filled_in(file, text, makers):
    """Return a page's text with its generated parts made anew."""
    for name, make in makers.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"{file}: expected one part named {name!r}")
        made = make()
        text = pattern.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
