"""Schemas: what a function's hints declare, and which arguments they accept."""

from __future__ import annotations

import enum
import functools
import json
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.tools.schema import MAX_NESTED, ArgumentError, ToolError, check, declaration, of_hint


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", *, near: float | None = None,
            tags: list[str] = (), limits: dict[str, float] | None = None, more: Any = None):
    """Say how the weather
    will be.

    Takes time.

    city: where
    days (int): how many, at most 7
    :param unit: of degrees
    """


def test_a_function_is_declared_as_k2_knows_it():
    assert declaration(weather) == {"type": "function", "function": {
        "name": "weather", "description": "Say how the weather will be.",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "where"},
            "days": {"type": "integer", "description": "how many, at most 7"},
            "unit": {"enum": ["C", "F"], "description": "of degrees"},
            "near": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "limits": {"anyOf": [{"type": "object", "additionalProperties": {"type": "number"}},
                                 {"type": "null"}]},
            "more": {}}}}}


def test_what_a_function_lacks_is_left_out():
    def now():
        pass

    assert declaration(now) == {"type": "function", "function": {
        "name": "now", "parameters": {"type": "object", "properties": {}}}}


def no_hint(a): ...
def many(*a: int): ...
def named(**a: int): ...
def positional(a: int, /): ...
def odd(a: set[int]): ...
def keys(a: dict[int, str]): ...
def unknown(a: Nonsense): ...  # noqa: F821
async def later(a: int): ...
def pieces(a: int): yield a
async def later_pieces(a: int): yield a
def fails(a: 1 / 0): ...
def grammar(a: "1 +"): ...  # noqa: F722
def attribute(a: json.nonsense): ...
def instance(a: [int]): ...  # a list, which is not hashable
def number(a: 3): ...
def raw(a: Literal[b"x"]): ...
def member(a: Literal[Colour.RED]): ...
def large(a: Literal[LARGE]): ...
def recursive(a: Recursive): ...
def evil(a: Evil): ...


class Colour(enum.IntEnum):
    RED = 1


class EvilKind(type):
    def __repr__(cls):
        raise RuntimeError("no")


class Evil(metaclass=EvilKind):
    pass


def default(a: int = Evil, /): ...


class Nameless:
    def __call__(self, a: int): ...


LARGE = 10**5000
Recursive = dict[str, "Recursive"]
Deep = list[int]
for _ in range(MAX_NESTED + 1):
    Deep = list[Deep]


@pytest.mark.parametrize("function, said", [
    (no_hint, "tool no_hint: parameter a: expected a type hint, found none"),
    (many, "parameter a: expected one that can be given by name"),
    (named, "parameter a: expected one that can be given by name"),
    (positional, "parameter a: expected one that can be given by name"),
    (odd, r"parameter a: expected a type hint of str, int.* found set\[int\]"),
    (keys, "parameter a: expected a type hint of"),
    (unknown, "tool unknown: its parameters cannot be read .*Nonsense"),
    (later, "tool later: expected a plain function, found an async one"),
    (3, "tool 3: "),
    (pieces, "tool pieces: expected a plain function, found a generator"),
    (later_pieces, "tool later_pieces: expected a plain function, found an async generator"),
    (functools.partial(later, a=1), "expected a plain function, found an async one"),
    (fails, "tool fails: its parameters cannot be read .*ZeroDivisionError"),
    (grammar, "tool grammar: its parameters cannot be read .*SyntaxError"),
    (attribute, "tool attribute: its parameters cannot be read .*nonsense"),
    (instance, "tool instance: (parameter a: expected a type hint of|its parameters)"),
    (number, "tool number: (parameter a: expected a type hint of|its parameters)"),
    (raw, "parameter a: expected a type hint of"),
    (member, "parameter a: expected a type hint of"),
    (large, "parameter a: expected a type hint of"),
    (recursive, "parameter a: expected a type hint of"),
    (evil, "parameter a: expected a type hint of .* found a EvilKind"),
    (default, "parameter a: expected one that can be given by name"),
    (Nameless(), "tool .*Nameless.*: its parameters cannot be read"),
    (functools.partial(weather, city="x"), "tool .*: its parameters cannot be read"),
    (lambda: 3, "tool '<lambda>': expected a function whose name is at most 64 letters"),
    (len, "tool len: "), (print, "tool print: "), (json, "tool json: "),
    (type("Long", (), {"__name__": "x" * 10**6, "__call__": lambda self: 1})(), "tool 'x"),
])
def test_a_function_that_cannot_be_declared_is_refused(function, said):
    with pytest.raises(ToolError, match=said) as caught:
        declaration(function)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "\x1b[2J", "x" * 65, "a:b", "<|im_end|>",
                                  "\ud800"])
def test_a_name_that_cannot_stand_in_an_id_is_refused(name):
    def tool():
        """Do."""

    tool.__name__ = name
    with pytest.raises(ToolError, match="expected a function whose name is at most") as caught:
        declaration(tool)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "x" * 64, "get-weather", "math.add", "größe", "查询", "_a1"])
def test_a_name_of_letters_digits_and_a_few_signs_is_one(name):
    def tool():
        """Do."""

    tool.__name__ = name
    assert declaration(tool)["function"]["name"] == name


def test_what_wraps_a_function_or_belongs_to_an_object_is_declared_like_it():
    @functools.wraps(weather)
    def wrapper(*args, **kwargs):
        return weather(*args, **kwargs)

    class Station:
        def near(self, city: str):
            """Say where."""

        @classmethod
        def far(cls, city: str):
            """Say where."""

        @staticmethod
        def any(city: str):
            """Say where."""

    assert declaration(wrapper) == declaration(weather)
    assert declaration(functools.lru_cache(weather)) == declaration(weather)
    for method in (Station().near, Station.far, Station.any):
        declared = declaration(method)["function"]
        assert declared["parameters"]["properties"] == {"city": {"type": "string"}}
        assert declared["description"] == "Say where."


def test_hints_nested_too_deep_are_refused():
    with pytest.raises(ToolError, match="expected a type hint of at most 100 levels, found more"):
        of_hint(Deep, "here")
    assert of_hint(list[int], "here", MAX_NESTED - 1)


def test_a_declaration_longer_than_any_prompt_is_refused():
    def tool(a: Literal[tuple(map(str, range(200_000)))]): ...

    tool.__annotations__ = {"a": Literal[tuple(map(str, range(200_000)))]}
    with pytest.raises(ToolError, match="a declaration of at most 1000000 characters, found"):
        declaration(tool)


def test_a_docstring_may_hold_anything():
    def tool(a: int, b: Annotated[int, "ignored"] = 1):
        pass

    tool.__doc__ = "Do\x00 \x1b[2J it.\n\na: \ud800\n" + "\n" * 100_000 + "  b: more"
    declared = declaration(tool)["function"]
    assert declared["description"] == "Do\x00 \x1b[2J it."
    assert [one["description"] for one in declared["parameters"]["properties"].values()] == [
        "\ud800", "more"]


SCHEMA = declaration(weather)["function"]["parameters"]


@pytest.mark.parametrize("value, schema, said", [
    ({}, SCHEMA, "arguments: expected 'city', which is required, found nothing"),
    ({"town": "x"}, SCHEMA, "'city', which is required, found 'town'"),
    ([], SCHEMA, r"arguments: expected object, found \[\]"),
    ({"city": 3}, SCHEMA, r"arguments\.city: expected string, found 3"),
    ({"city": "x", "days": "2"}, SCHEMA, r"arguments\.days: expected integer, found '2'"),
    ({"city": "x", "days": 2.5}, SCHEMA, r"expected integer, found 2\.5"),
    ({"city": "x", "days": True}, SCHEMA, "expected integer, found True"),
    ({"city": "x", "unit": "K"}, SCHEMA, r"arguments\.unit: expected 'C' or 'F', found 'K'"),
    ({"city": "x", "near": "y"}, SCHEMA, r"near: expected number, found 'y'; or expected null"),
    ({"city": "x", "near": False}, SCHEMA, "near: expected number, found False"),
    ({"city": "x", "tags": ["a", 1]}, SCHEMA, r"tags\[1\]: expected string, found 1"),
    ({"city": "x", "limits": {"a": "b"}}, SCHEMA, r"limits.*\.a: expected number, found 'b'"),
    ({"x": 1}, {"additionalProperties": False}, "expected nothing, found 'x'"),
    (1, False, "expected nothing, found 1"),
    (1, {"const": True}, "expected True, found 1"),
    (1, {"type": ["string", "null"]}, "expected string or null, found 1"),
    (float("inf"), {"type": "integer"}, "expected integer, found inf"),
])
def test_what_does_not_fit_is_one_sentence(value, schema, said):
    with pytest.raises(ArgumentError, match=said) as caught:
        check(value, schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value, schema", [
    (1, {}), (1, True), (None, {"type": ["string", "null"]}), ({"a": 1}, {}), (2, {"const": 2}),
    ({"city": "x", "more": [{}]}, SCHEMA), ({"city": "x", "near": None}, SCHEMA),
])
def test_what_fits_is_returned(value, schema):
    assert check(value, schema) == value


def test_a_whole_number_written_as_3_0_is_an_integer():
    found = check({"city": "x", "days": 3.0}, SCHEMA)
    assert found == {"city": "x", "days": 3} and type(found["days"]) is int
    assert type(check(3.0, {"type": "number"})) is float


NESTS = {"type": "array"}
NESTS["items"] = NESTS


@pytest.mark.parametrize("n", [MAX_NESTED + 2, 994, 100_000])
@pytest.mark.parametrize("schema", [NESTS, {"anyOf": [NESTS]}, {"type": "string"}, False])
def test_a_value_nested_too_deep_is_refused_at_any_depth(n, schema):
    value = []
    for _ in range(n):
        value = [value]
    with pytest.raises(ArgumentError) as caught:
        check(value, schema)
    assert len(str(caught.value)) < 600
    while value:  # taken apart from outside, as not every Python does that without recursion
        value = value[0]


def test_a_value_may_be_nested_a_hundred_deep():
    value = []
    for _ in range(MAX_NESTED):
        value = [value]
    assert check(value, NESTS) == value


@pytest.mark.parametrize("value, schema", [
    ({"x" * 10**6: 1}, {"additionalProperties": {"type": "string"}}),
    ({"\x1b[2J\ud800": 1}, {"additionalProperties": {"type": "string"}}),
    ({f"{i}": 1 for i in range(10**5)}, {"required": ["a"]}),
    ("x", {"enum": [str(i) for i in range(10**5)]}),
    ("x" * 10**6, {"enum": ["y" * 10**6] * 3}),
    ("x", {"anyOf": [{"const": i} for i in range(1000)]}),
    ({"a": 1}, {"properties": {f"{i}": {} for i in range(1000)}, "additionalProperties": False}),
])
def test_what_is_said_of_arguments_is_short_and_can_be_printed(value, schema):
    with pytest.raises(ArgumentError) as caught:
        check(value, schema)
    assert len(str(caught.value)) < 2500 and str(caught.value).isprintable()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=3), max_leaves=6)


def schema_of(value):
    """The narrowest schema that this checker knows for a value."""
    if isinstance(value, dict):
        return {"type": "object", "required": list(value), "additionalProperties": False,
                "properties": {name: schema_of(one) for name, one in value.items()}}
    if isinstance(value, list):
        return {"type": "array", "items": {"anyOf": [schema_of(one) for one in value] or [{}]}}
    return {"enum": [value]}


@given(values, values)
def test_a_value_fits_its_own_schema_and_another_does_only_if_it_is_alike(value, other):
    assert check(value, schema_of(value)) == value
    if json.dumps(value, sort_keys=True) != json.dumps(other, sort_keys=True):
        try:
            fits = check(other, {"enum": [value]}) == value
        except ArgumentError:
            fits = False
        # As numbers 1 and 1.0 are the same in JSON, anywhere in a value.
        assert not fits or other == value


def documented(a: Optional[int]):  # noqa: UP045  the older spelling is a hint, too
    """Do."""


def test_optional_is_a_union_with_null():
    properties = declaration(documented)["function"]["parameters"]["properties"]
    assert properties == {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}


def test_a_default_of_none_does_not_change_a_hint():
    def tool(a: int = None, b: Any = None, c: Optional[str] = None):  # noqa: UP045
        """Do."""

    @functools.wraps(tool)
    def wrapper(*args, **kwargs): ...

    class Thing:
        def tool(self, a: int = None, b: Any = None, c: str | None = None):
            """Do."""

    for function in (tool, wrapper, Thing().tool):
        assert declaration(function)["function"]["parameters"]["properties"] == {
            "a": {"type": "integer"}, "b": {},
            "c": {"anyOf": [{"type": "string"}, {"type": "null"}]}}
