"""The house: every file has its place, and imports run one way, between files and between rooms."""

import ast

import pytest

from scripts.docs import house


def test_every_file_has_its_place():
    files = {path for path in house.K2REF.rglob("*.py*") if path.suffix in (".py", ".pyx")}
    files -= {house.path_of(name) for name in (*house.FACE, *house.COMPILED.values())}
    files -= {path for path in files if path.name == "__init__.py"}
    named = [house.path_of(name) for name in house.modules()]
    assert len(named) == len(set(named)) and set(named) == files


@pytest.mark.parametrize("wing", (*house.WINGS, "tiny"))
def test_a_wing_begins_with_a_docstring_and_imports_nothing(wing):
    (only,) = ast.parse(house.path_of(f"{wing}.__init__").read_text(encoding="utf-8")).body
    assert ast.get_docstring(ast.Module([only], [])), wing


def test_files_import_one_way():
    arrows = {name: house.imports_of(name) for name in house.modules()}
    assert sum(map(len, arrows.values())) > 100
    for name in arrows:
        house.reach(arrows, name)


def test_rooms_import_one_way():
    arrows = house.arrows()
    assert len(arrows) <= 10 and arrows["doors"] == set()
    for room in arrows:
        house.reach(arrows, room)


def test_a_circle_is_found():
    with pytest.raises(ValueError, match="a -> b -> a"):
        house.reach({"a": {"b"}, "b": {"a"}}, "a")
