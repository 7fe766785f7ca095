"""JSON schemas of tools: made from a function's type hints and docstring, and held to arguments.

    def lookup(query: str, year: int = 2024) -> str:
        '''Look something up.

        query: what to look for
        '''

becomes the declaration that K2 was trained on, and `check` holds the arguments that it writes to
the same schema before anything is called.

Chapter 02.
"""

import inspect
import json
import math
import re
import sys
import types
import typing

from k2ref.doors.intake import quoted

NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null",
         list: "array", dict: "object"}  # fmt: skip
HINTS = "str, int, float, bool, None, Any, list, dict, Literal, and unions of these"
# A line about a parameter: `name: text`, also `name (str): text` and `:param name: text`.
ABOUT = r"^[ \t]*(?::param )?{}(?: *\(.*?\))?: *(\S.*)$"
NAME = re.compile(r"[\w.-]{1,64}")  # of a tool: it stands in the id of a call, functions.NAME:IDX
MAX_NESTED = 100  # levels of lists and objects in arguments, and of types in a hint
MAX_DECLARATION = 1_000_000  # characters of JSON: as many as the whole context can hold
MAX_LISTED, MAX_WAY = 8, 300  # quotations in a list, characters of a way into the arguments


class ToolError(ValueError):
    """A fault of a tool: a function that cannot be declared, a file without any."""


class ArgumentError(ValueError):
    """A fault of the arguments of a call: where, what was expected, what was found."""


def declaration(function):
    """Declare a Python function as an OpenAI tool, from its name, type hints and docstring.

    The description is the docstring's first paragraph; a later line `name: text` describes that
    parameter. A parameter with a default is optional.
    Raises: ToolError for a parameter without a type hint, or with one that JSON has no name for.
    """
    name = getattr(function, "__name__", None)
    name = name if isinstance(name, str) else quoted(function)
    shown = name if NAME.fullmatch(name) else quoted(name)
    for is_other, kind in ((inspect.iscoroutinefunction, "an async one"),
                           (inspect.isgeneratorfunction, "a generator"),
                           (inspect.isasyncgenfunction, "an async generator")):
        if is_other(function):
            raise ToolError(f"tool {shown}: expected a plain function, found {kind}")
    try:
        hints = _hints_of(function)
        parameters = inspect.signature(function).parameters.values()
        text = inspect.getdoc(function) or ""
    except Exception as error:  # a hint may be any expression, and is evaluated only now
        raise ToolError(f"tool {shown}: its parameters cannot be read "
                        f"({type(error).__name__}: {_plain(error)})") from None
    properties, required = {}, []
    for parameter in parameters:
        where = f"tool {shown}: parameter {parameter.name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(f"{where}: expected one that can be given by name, found "
                            f"{_plain(parameter)}")
        if parameter.name not in hints:
            raise ToolError(f"{where}: expected a type hint, found none")
        schema = of_hint(hints[parameter.name], where)
        if about := re.search(ABOUT.format(parameter.name), text, re.M):
            schema = {**schema, "description": about[1]}
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    if shown is not name:
        raise ToolError(f"tool {shown}: expected a function whose name is at most 64 letters, "
                        f"digits, _, - and ., found {quoted(name)}")
    function = {"name": name, "description": " ".join(text.split("\n\n")[0].split()),
                "parameters": {"type": "object", "properties": properties, "required": required}}
    if not function["description"]:
        del function["description"]
    if not required:
        del function["parameters"]["required"]
    declared = {"type": "function", "function": function}
    if (n_chars := len(json.dumps(declared))) > MAX_DECLARATION:
        raise ToolError(f"tool {shown}: expected a declaration of at most {MAX_DECLARATION} "
                        f"characters, found {n_chars}")
    return declared


def _hints_of(function):
    """Evaluate the type hints of a function, the same in every Python."""
    # Of others 3.14 says that there are no hints; what wraps a function has the second one there.
    if not (hasattr(function, "__annotations__") or hasattr(function, "__annotate__")):
        raise TypeError("it has no type hints of its own")
    if sys.version_info < (3, 11) and hasattr(function, "__code__"):
        # Python 3.10 takes `a: int = None` for `a: int | None = None`, but not of what has no code.
        function = types.SimpleNamespace(__annotations__=function.__annotations__,
                                         __globals__=inspect.unwrap(function).__globals__)
    return typing.get_type_hints(function)


def of_hint(hint, where, n_around=0):
    """Write a type hint as a JSON schema; `n_around` counts the hints that it stands in.

    Raises: ToolError
    """
    if n_around > MAX_NESTED:
        raise ToolError(f"{where}: expected a type hint of at most {MAX_NESTED} levels, found more")
    if hint is typing.Any:
        return {}
    for known, name in NAMES.items():
        if hint is known:
            return {"type": name}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal and all(_is_constant(one) for one in inner):
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [of_hint(one, where, n_around + 1) for one in inner]}
    if origin is list:
        return {"type": "array", "items": of_hint(inner[0], where, n_around + 1)}
    if origin is dict and inner[0] is str:
        return {"type": "object",
                "additionalProperties": of_hint(inner[1], where, n_around + 1)}
    raise ToolError(f"{where}: expected a type hint of {HINTS}, found {_plain(hint)}")


def _is_constant(value):
    """Tell whether JSON, and Python's way of writing it, can say a value of a Literal."""
    return value is None or type(value) in (str, bool) or (
        type(value) is int and abs(value) < 10**300)


def check(value, schema, where="arguments", n_around=0):
    """Hold a value that was read from JSON to a schema, and return it as the function wants it.

    Known keywords: type, enum, const, anyOf, properties, required, additionalProperties, items.
    A whole number such as 3.0 is an integer, as JSON Schema has it, and becomes one. `n_around`
    counts the lists and objects that the value stands in.
    Raises: ArgumentError
    """
    if schema is False:
        raise ArgumentError(f"{where}: expected nothing, found {quoted(value)}")
    if schema is True or not schema:
        return value
    if n_around > MAX_NESTED:
        raise ArgumentError(f"{where}: expected at most {MAX_NESTED} levels, found more")
    if "anyOf" in schema:
        return _any_of(value, schema["anyOf"], where, n_around)
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and not any(_same(value, one) for one in allowed):
        raise ArgumentError(f"{where}: expected {_list(allowed, ' or ')}, found {quoted(value)}")
    names = schema.get("type", [])
    names = names if isinstance(names, list) else [names]
    if names and not any(_is(value, name) for name in names):
        raise ArgumentError(f"{where}: expected {' or '.join(names)}, found {quoted(value)}")
    if isinstance(value, dict):
        return _members(value, schema, where, n_around)
    if isinstance(value, list) and "items" in schema:
        return [check(one, schema["items"], _into(where, f"[{i}]"), n_around + 1)
                for i, one in enumerate(value)]
    return int(value) if isinstance(value, float) and names == ["integer"] else value


def _members(value, schema, where, n_around):
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            raise ArgumentError(f"{where}: expected {name!r}, which is required, found "
                                f"{_list(value)}")
    for name in value:
        if name not in properties and extra is False:
            raise ArgumentError(f"{where}: expected {_list(properties)}, found {quoted(name)}")
    return {name: check(one, properties.get(name, extra), _into(where, _step(name)), n_around + 1)
            for name, one in value.items()}


def _any_of(value, choices, where, n_around):
    complaints = []
    for choice in choices:
        try:
            return check(value, choice, where, n_around)
        except ArgumentError as error:
            complaints.append(str(error).removeprefix(f"{where}: "))
    more = f"; or {len(complaints) - MAX_LISTED} more" if len(complaints) > MAX_LISTED else ""
    raise ArgumentError(f"{where}: {'; or '.join(complaints[:MAX_LISTED])}{more}")


def _is(value, name):
    if name == "integer":
        whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
        return whole or isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return any(isinstance(value, kind) for kind, known in NAMES.items() if known == name)


def _same(a, b):
    """Compare as JSON does, where true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _plain(value):
    """Write a part of somebody's function in a line; what cannot be written, by its kind."""
    try:
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[:200])
    except Exception:
        return f"a {type(value).__name__}"


def _list(values, between=", "):
    """Quote some values, and count those that are left out."""
    shown = [quoted(value) for value, _ in zip(values, range(MAX_LISTED), strict=False)]
    more = [f"{len(values) - MAX_LISTED} more"] if len(values) > MAX_LISTED else []
    return between.join(shown + more) or "nothing"


def _into(where, step):
    """Write the way to a part of a value, as far as it can be read."""
    return where if where.endswith("...") else where + (step if len(where) < MAX_WAY else "...")


def _step(name):
    """Write the way into an object: .name where that can be read, else ['na me']."""
    return f".{name}" if name.isidentifier() and len(name) <= 60 else f"[{quoted(name)}]"
