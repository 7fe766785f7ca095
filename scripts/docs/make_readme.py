"""Fill in what README.md shows but nobody should type: outputs, the map of the source, numbers.

    python -m scripts.docs.make_readme            rewrite the generated parts
    python -m scripts.docs.make_readme --check    fail if they are not what they would be

A generated part stands between `<!-- name -->` and `<!-- end -->`. The map is the import graph:
each file of k2ref in reading order, and a file may import only files above it. The last line of a
file's docstring names its chapter; in turn each chapter in docs/ ends with the files it is about.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from k2ref import plan  # noqa: E402
from k2ref.config import Config  # noqa: E402

# What a reader meets, in the order in which it makes sense; headers of C go with their module.
ORDER = """endings screen intake atomic fields quant quantization layout config shards checkpoint
_bpe tokenizer styles declarations template events reply history _kernels ops sampling memory rope
attention moe trace _faults pages meter residency stream model inspection disk rates plan generate
readings show recording conversation session demonstration schema results toolchild toolprocess
tools agent terminal options dialogue cli""".split()
HEADERS = {"_kernels": ["_lanes.h", "_linear.h", "_attend.h", "_tiles.h", "_terms.h",
                        "_linear_tiles.h", "_attend_tiles.h", "_integers.h",
                        "_integer_tiles.h", "_linear_integers.h", "_paths.h"],
           "show": [f"page/{name}" for name in ("page.html", "page.css", "data.js", "panels.js",
                                                "maps.js")]}
OUTSIDE = {"__init__", "__main__"}
COMMAND = 'python -m k2ref --greedy --tools calculator "What is 4821 * 377?"'


def source_of(name):
    """Return the path of a module's source."""
    path = ROOT / "k2ref" / f"{name}.py"
    return path if path.exists() else path.with_suffix(".pyx")


def imports_of(name):
    """List the modules of k2ref that a module imports, in reading order."""
    text = source_of(name).read_text(encoding="utf-8")
    found = set(re.findall(r"^ *from k2ref\.(\w+) import", text, re.M))
    found |= set(re.findall(r"^ *import k2ref\.(\w+)", text, re.M))
    for line in re.findall(r"^ *from k2ref import ([\w, ]+)", text, re.M):
        found |= {part.split(" as ")[0].strip() for part in line.split(",")}
    return [module for module in ORDER if module in found]


def docstring_of(name):
    """Return the paragraphs of a module's docstring."""
    text = source_of(name).read_text(encoding="utf-8")
    return re.search(r'"""(.*?)"""', text, re.S)[1].strip().split("\n\n")


def first_sentence(name):
    """Return the first paragraph of a module's docstring."""
    return " ".join(docstring_of(name)[0].split()).rstrip(".")


def chapters_of(name):
    """Return the numbers of a module's chapters, from the last line of its docstring."""
    found = re.fullmatch(r"Chapters? (\d\d)(?: and (\d\d))?\.", docstring_of(name)[-1])
    if found is None:
        raise SystemExit(f"make_readme.py: {name}: expected a last line 'Chapter NN.' in the "
                         f"docstring, found {docstring_of(name)[-1]!r}")
    return [number for number in found.groups() if number]


def page_of(number):
    """Return the file of a chapter."""
    (page,) = (ROOT / "docs").glob(f"{number}-*.md")
    return page


def files_of(page):
    """Link the files that a chapter is about."""
    names = [name for name in ORDER if page.name[:2] in chapters_of(name)]
    files = [source_of(name).name for name in names]
    files += [header for name in names for header in HEADERS.get(name, [])]
    return "The source:\n" + ",\n".join(f"[`{file}`](../k2ref/{file})" for file in files) + "."


def source_map():
    """Write the table of files in reading order, and check that imports go upward only."""
    present = {path.stem for path in (ROOT / "k2ref").glob("*.py")} - OUTSIDE
    present |= {path.stem for path in (ROOT / "k2ref").glob("_*.pyx")}
    present |= {path.name for path in (ROOT / "k2ref").glob("*.h")}
    if differ := present ^ {*ORDER, *HEADERS["_kernels"]}:
        raise SystemExit(f"make_readme.py: ORDER, HEADERS and k2ref/ differ in {differ}")
    rows = ["| file | lines | what it adds | chapter | imports |", "|---|---|---|---|---|"]
    for place, name in enumerate(ORDER):
        imported = imports_of(name)
        if late := [other for other in imported if ORDER.index(other) >= place]:
            raise SystemExit(f"make_readme.py: {name} imports {late}, which the reader meets later")
        file = source_of(name)
        lines = len(file.read_text(encoding="utf-8").splitlines())
        links = f"[`{file.name}`](k2ref/{file.name})"
        for header in HEADERS.get(name, []):
            lines += len((ROOT / "k2ref" / header).read_text(encoding="utf-8").splitlines())
            links += f" [`{header}`](k2ref/{header})"
        pages = ", ".join(f"[{number}](docs/{page_of(number).name})"
                          for number in chapters_of(name))
        rows.append(f"| {links} | {lines} | {first_sentence(name)} | {pages} | "
                    f"{', '.join(imported)} |")
    return "\n".join(rows)


def diagram():
    """Draw the import graph without the arrows that others already imply."""
    direct = {name: set(imports_of(name)) for name in ORDER}
    reach = {}
    for name in ORDER:
        reach[name] = direct[name].union(*(reach[other] for other in direct[name]))
    arrows = []
    for name in ORDER:
        implied = set().union(*(reach[other] for other in direct[name]))
        arrows += [f"    {other} --> {name}" for other in ORDER if other in direct[name] - implied]
    return "\n".join(["```mermaid", "graph LR", *arrows, "```"])


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
    "map": source_map,
    "diagram": diagram,
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
