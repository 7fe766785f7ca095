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
import math
import re
import types
import typing

NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null",
         list: "array", dict: "object"}  # fmt: skip
HINTS = "str, int, float, bool, None, Any, list, dict, Literal, and unions of these"
# A line about a parameter: `name: text`, also `name (str): text` and `:param name: text`.
ABOUT = r"^\s*(?::param )?{}(?: *\(.*?\))?: *(\S.*)$"


class ToolError(ValueError):
    """Say what is wrong with a tool: a function that cannot be declared, a file without any."""


class ArgumentError(ValueError):
    """Say what is wrong with the arguments of a call: where, what was expected, what was found."""


def declaration(function):
    """Declare a Python function as an OpenAI tool, from its name, type hints and docstring.

    The description is the docstring's first paragraph; a later line `name: text` describes that
    parameter. A parameter with a default is optional.
    Raises: ToolError for a parameter without a type hint, or with one that JSON has no name for.
    """
    name = getattr(function, "__name__", repr(function))
    if inspect.iscoroutinefunction(function):
        raise ToolError(f"tool {name}: expected a plain function, found an async one")
    try:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise ToolError(f"tool {name}: its parameters cannot be read ({error})") from None
    properties, required = {}, []
    text = inspect.getdoc(function) or ""
    for parameter in parameters:
        where = f"tool {name}: parameter {parameter.name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(f"{where}: expected one that can be given by name, found {parameter}")
        if parameter.name not in hints:
            raise ToolError(f"{where}: expected a type hint, found none")
        schema = of_hint(hints[parameter.name], where)
        if about := re.search(ABOUT.format(parameter.name), text, re.M):
            schema = {**schema, "description": about[1]}
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    function = {"name": name, "description": " ".join(text.split("\n\n")[0].split()),
                "parameters": {"type": "object", "properties": properties, "required": required}}
    if not function["description"]:
        del function["description"]
    if not required:
        del function["parameters"]["required"]
    return {"type": "function", "function": function}


def of_hint(hint, where):
    """Write a type hint as a JSON schema.

    Raises: ToolError
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return {}
    if hint in NAMES:
        return {"type": NAMES[hint]}
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [of_hint(one, where) for one in inner]}
    if origin is list:
        return {"type": "array", "items": of_hint(inner[0], where)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": of_hint(inner[1], where)}
    raise ToolError(f"{where}: expected a type hint of {HINTS}, found {hint}")


def check(value, schema, where="arguments"):
    """Hold a value that was read from JSON to a schema, and return it as the function wants it.

    Known keywords: type, enum, const, anyOf, properties, required, additionalProperties, items.
    A whole number such as 3.0 is an integer, as JSON Schema has it, and becomes one.
    Raises: ArgumentError
    """
    if schema is False:
        raise ArgumentError(f"{where}: expected nothing, found {_show(value)}")
    if schema is True or not schema:
        return value
    if "anyOf" in schema:
        return _any_of(value, schema["anyOf"], where)
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and not any(_same(value, one) for one in allowed):
        choices = " or ".join(map(_show, allowed))
        raise ArgumentError(f"{where}: expected {choices}, found {_show(value)}")
    names = schema.get("type", [])
    names = names if isinstance(names, list) else [names]
    if names and not any(_is(value, name) for name in names):
        raise ArgumentError(f"{where}: expected {' or '.join(names)}, found {_show(value)}")
    if isinstance(value, dict):
        return _members(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        return [check(one, schema["items"], f"{where}[{i}]") for i, one in enumerate(value)]
    return int(value) if isinstance(value, float) and names == ["integer"] else value


def _members(value, schema, where):
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            raise ArgumentError(f"{where}: expected {name!r}, which is required, found "
                                f"{', '.join(map(repr, value)) or 'nothing'}")
    for name in value:
        if name not in properties and extra is False:
            known = ", ".join(map(repr, properties)) or "nothing"
            raise ArgumentError(f"{where}: expected {known}, found {name!r}")
    return {name: check(one, properties.get(name, extra), f"{where}.{name}")
            for name, one in value.items()}


def _any_of(value, choices, where):
    complaints = []
    for choice in choices:
        try:
            return check(value, choice, where)
        except ArgumentError as error:
            complaints.append(str(error).removeprefix(f"{where}: "))
    raise ArgumentError(f"{where}: {'; or '.join(complaints)}")


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


def _show(value):
    return f"{value!r:.60}"
