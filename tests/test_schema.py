"""Schemas: what a function's hints declare, and which arguments they accept."""

from __future__ import annotations

import json
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.schema import ArgumentError, ToolError, check, declaration


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
])
def test_a_function_that_cannot_be_declared_is_refused(function, said):
    with pytest.raises(ToolError, match=said):
        declaration(function)


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
