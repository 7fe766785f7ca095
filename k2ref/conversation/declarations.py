"""Tools as the model reads them: JSON for K2 and K2 Thinking, TypeScript for K2.5 and later.

A tool arrives as an OpenAI dict with a JSON schema for its parameters. The older checkpoints were
trained on that very dict, compact and with sorted keys. From K2.5 on the official tokenizer spells
the schema as a TypeScript type, which is shorter and closer to code the model has read:

    // Look up the weather
    type get_weather = (_: {
      // City name
      city: string,
      unit?: "celsius" | "fahrenheit"
    }) => any;

Chapter 02.
"""

import json

INDENT = "  "
LIMITS = {  # the constraints that get a comment, by the type they belong to
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
UNION = {  # how a list of types is spelled; alone, most types keep their JSON name
    "string": "string", "number": "number", "integer": "number", "boolean": "boolean",
    "null": "null", "object": "{}", "array": "Array<any>",
}
PYTHON_TYPES = {"string": str, "number": (int, float), "integer": int, "boolean": bool}


def as_json(tools):
    """Write the tools as compact JSON, keys sorted at every depth, non-ASCII characters kept.

    Source: tokenization_kimi.py, deep_sort_dict; chat_template.jinja, tool_declare.
    Raises: TypeError, ValueError or RecursionError for tools that JSON cannot hold.
    """
    return json.dumps(tools, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def as_typescript(tools):
    """Write the tools as a TypeScript namespace; None where a schema has no such spelling.

    The official tokenizer falls back to JSON for any schema that it cannot spell, and for a list
    without functions; so must the caller.
    Source: Kimi-K2.5 tool_declaration_ts.py, encode_tools_to_typescript_style.
    Raises: what `as_json` raises.
    """
    tools = json.loads(as_json(tools))  # a copy with sorted keys
    try:
        functions = [_function(tool["function"]) for tool in tools
                     if tool.get("type") == "function" and tool.get("function")]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None  # the schema is not of the shape that the code below takes for granted
    if not functions:
        return None
    return "\n".join(["# Tools\n", "## functions", "namespace functions {", *functions, "}\n"])


def _function(function):
    """Write one function: the interfaces it refers to, its description, its type."""
    types = _Types()
    parameters = function.get("parameters") or {}
    fields, rest = types.members(parameters, INDENT)
    interfaces, argument = [], _braces([*sorted(fields), *rest], "")
    if types.recursive:
        # The fields of this one keep the order of the schema, and extra properties are not said.
        interfaces.append(f"interface parameters {_braces(fields, '')}")
        argument = "parameters"
    for name, schema in list(types.definitions.items()):
        type_ = types.spell(schema, "")
        interfaces.append(f"{_description(schema, '')}interface {name} {type_}")
    return "\n".join([
        *interfaces,
        f"{_description(function, '')}type {function.get('name', 'function')} = "
        f"(_: {argument}) => any;",
    ])


class _Types:
    """A speller of the schemas of one function, with the `$defs` and self references it met."""

    def __init__(self):
        self.definitions = {}
        self.recursive = False

    def spell(self, schema, indent):
        """Write a schema as a type; lines after the first begin with `indent` or deeper."""
        if isinstance(schema, bool):
            return "any" if schema else "null"
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "anyOf" in schema:
            return " | ".join(self.spell(choice, indent) for choice in schema["anyOf"])
        if "enum" in schema:
            return _enum(schema)
        if schema == {}:
            return "any"
        kind = schema["type"]
        if isinstance(kind, list):
            return " | ".join(UNION[one] for one in kind)
        if kind == "object":
            fields, rest = self.members(schema, indent + INDENT)
            return _braces([*sorted(fields), *rest], indent)
        if kind == "array":
            return self._array(schema.get("items"), indent)
        return "number" if kind == "integer" else "" + kind

    def members(self, schema, indent):
        """Write an object's fields, each as (optional, name, text), and its extra properties.

        Sorting the fields puts required before optional ones, each group by name.
        """
        self.definitions.update(schema.get("$defs") or {})
        rest = []
        extra = schema.get("additionalProperties")
        if extra is not None:
            type_ = "never" if extra is False else self.spell(extra, indent)
            rest = [(True, None, f"{indent}[k: string]: {type_}")]
        fields = []
        properties = schema.get("properties", {})
        optional = set(properties) - set(schema.get("required", []))
        for name, value in properties.items():
            mark = "?" if name in optional else ""
            text = f"{_comments(value, indent)}{_default(value, indent)}{indent}{name}{mark}: "
            fields.append((name in optional, name, text + self.spell(value, indent)))
        return fields, rest

    def _array(self, items, indent):
        if not items:
            return "Array<any>"
        comments = _comments(items, indent + INDENT)
        if not comments:
            return f"Array<{self.spell(items, indent)}>"
        type_ = self.spell(items, indent + INDENT)
        return f"Array<\n{comments}{indent}{INDENT}{type_}\n{indent}>"

    def _reference(self, reference):
        if reference == "#":
            self.recursive = True
            return "parameters"
        name = reference.rsplit("/", 1)[-1]
        if not reference.startswith("#/$defs/") or name not in self.definitions:
            raise ValueError(f"{reference!r} refers to nothing in this schema")
        return name


def _braces(members, indent):
    if not members:
        return "{}"
    return "{\n" + ",\n".join(text for _, _, text in members) + f"\n{indent}}}"


def _enum(schema):
    """Write the values of an enum, which must be of its declared type where it has one."""
    kind = schema.get("type")
    if isinstance(kind, list):  # one type, or one type and null
        if len(kind) not in (1, 2) or (len(kind) == 2 and "null" not in kind):
            raise ValueError(f"an enum of {kind} has no spelling")
        kind = next((one for one in kind if one != "null"), "null")
    for value in schema["enum"]:
        if value is not None and not isinstance(value, PYTHON_TYPES.get(kind, object)):
            raise ValueError(f"{value!r} is not a {kind}")
    return " | ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in schema["enum"])


def _comments(schema, indent):
    """Write the lines over a field: its description, then its limits."""
    if isinstance(schema, bool):
        return ""
    plain = not {"$ref", "anyOf", "enum"} & set(schema) and isinstance(schema.get("type"), str)
    names = LIMITS.get(schema["type"], ()) if plain else ()
    limits = ", ".join(f"{name}: {schema[name]}" for name in names if name in schema)
    return _description(schema, indent) + (f"{indent}// {limits}\n" if limits else "")


def _description(schema, indent):
    lines = (schema.get("description") or "").split("\n")
    if lines == [""]:
        return ""
    return "".join(f"{indent}// {line}\n" if line else "\n" for line in lines)


def _default(schema, indent):
    value = None if isinstance(schema, bool) else schema.get("default")
    if value is None:
        return ""
    # Numbers and truth values are in Python's spelling, True and not true; the rest is JSON.
    text = repr(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False)
    return f"{indent}// Default: {text}\n"
