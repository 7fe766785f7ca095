"""The house: the files of k2ref, the rooms they stand in, and which imports which.

The hall is `k2ref/*.py`, a wing is a folder. The hall has two floors: what the mathematics stands
on, GROUND, lies below the wings of files and memory, and the rest above them. The docstring of a
wing's `__init__.py` lists its modules in reading order.
"""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
K2REF = ROOT / "k2ref"
GROUND = ("quant", "ops", "tokenizer", "sampling")
HALL = (*GROUND, "rope", "cache", "attention", "moe", "trace", "run", "model", "loading",
        "generation")
WINGS = ("doors", "checkpoint", "streaming", "conversation", "tools", "planning", "show", "cli")
ROOMS = ("doors", "ground floor", "checkpoint", "streaming", "hall", *WINGS[3:])
COMPILED = {"ops": "_kernels", "tokenizer": "_bpe", "streaming.pages": "streaming._faults"}
FACE = ("__init__", "__main__")


def modules():
    """List the dotted names of the modules of k2ref in reading order, without the face."""
    floors = {"ground floor": GROUND, "hall": HALL[len(GROUND):]}
    return [name for room in ROOMS
            for name in floors.get(room) or [f"{room}.{name}" for name in reading_order(room)]]


def with_compiled(names):
    """Put before each module the compiled one that belongs to it."""
    return [one for name in names for one in (COMPILED.get(name), name) if one]


@cache
def reading_order(wing):
    """List the modules of a wing, as its docstring has them."""
    return re.findall(r"^    (\w+) {2,}\S", docstring(f"{wing}.__init__"), re.M)


def path_of(name):
    """Return the file of a module."""
    path = K2REF.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.exists() else path.with_suffix(".pyx")


@cache
def docstring(name):
    """Return the docstring of a module."""
    return re.search(r'"""(.*?)"""', path_of(name).read_text(encoding="utf-8"), re.S)[1].strip()


def first_sentence(name):
    """Return the first paragraph of a module's docstring, in one line."""
    return " ".join(docstring(name).split("\n\n")[0].split()).rstrip(".")


@cache
def imports_of(name):
    """Name the modules of k2ref that a module imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path_of(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "k2ref":
            inside = ".".join(node.module.split(".")[1:])
            for alias in node.names:
                whole = f"{inside}.{alias.name}".lstrip(".")
                found.add(whole if path_of(whole).exists() else inside)
        elif isinstance(node, ast.Import):
            found |= {alias.name[6:] for alias in node.names if alias.name.startswith("k2ref.")}
    return {other for other in found if other and other.rpartition(".")[2][0] != "_"}


def room_of(name):
    """Name the room of a module: its wing, or the floor of the hall."""
    wing = name.rpartition(".")[0]
    return wing or ("ground floor" if name in GROUND else "hall")


def arrows():
    """Give for each room the rooms that it imports from."""
    found = {}
    for name in modules():
        room = found.setdefault(room_of(name), set())
        room |= {room_of(other) for other in imports_of(name)} - {room_of(name)}
    return found


def reach(arrows, room, way=()):
    """Give all rooms below a room.

    Raises: ValueError where the arrows lead back to a room
    """
    if room in way:
        raise ValueError(f"imports run in a circle: {' -> '.join([*way, room])}")
    return arrows[room].union(*(reach(arrows, other, (*way, room)) for other in arrows[room]))


def diagram():
    """Draw the rooms, without the arrows that others already imply."""
    found = arrows()
    label = {"ground floor": ", ".join(GROUND), "hall": ", ".join(HALL[len(GROUND):])}
    lines = []
    for room, below in found.items():
        title = label.get(room, f"{room}/")
        lines.append(f'    {_id(room)}["{title}"]')
        implied = set().union(*(reach(found, other) for other in below))
        lines += [f"    {_id(room)} --> {_id(other)}" for other in found
                  if other in below - implied]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def _id(room):
    return room.replace(" ", "_")
