"""Checks of values that were read from JSON, before anything is computed from them.

`config.py` declares what a field is by its type (`int`, `float | None`, ...); this file holds the
values to that and says in one sentence what was wrong.

Chapter 03.
"""

import dataclasses
import math
import re
import typing

from k2ref.intake import quoted

# Every number is more than zero, except that these may be zero.
MAY_BE_ZERO = {
    "first_k_dense_replace", "num_nextn_predict_layers", "bos_token_id", "eos_token_id",
    "pad_token_id", "mscale", "mscale_all_dim",
}  # fmt: skip
INT_LIMIT = 2**63  # JSON has no largest integer; arithmetic has


class ConfigError(ValueError):
    """A config.json that k2ref cannot run: the message names the field."""


def expect(name: str, found, *supported):
    """Refuse a field whose value is none of those supported.

    Raises: ConfigError
    """
    if not any(type(found) is type(value) and found == value for value in supported):
        values = " or ".join(repr(value) for value in supported)
        raise ConfigError(f"{name}: k2ref supports {values}, found {quoted(found)}")


def label(name: str) -> str:
    """Name a field that the file made up: as it is, or quoted if it is long or not plain."""
    return name if re.fullmatch(r"[\w.-]{1,60}", name, re.ASCII) else quoted(name)


def build(cls, values: dict, where: str = ""):
    """Make the dataclass `cls` from those of `values` that it has fields for.

    Raises: ConfigError for a missing field
    """
    fields = dataclasses.fields(cls)
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ConfigError(f"{where}{field.name}: missing; expected {_type_name(field.type)}")
    return cls(**{field.name: values[field.name] for field in fields if field.name in values})


def check_fields(instance, where: str = ""):
    """Hold each field of a frozen dataclass to its declared type and range.

    A whole number given for a float becomes a float: JSON writers drop the `.0`.

    Raises: ConfigError
    """
    for field in dataclasses.fields(instance):
        name, value = field.name, getattr(instance, field.name)
        allowed = typing.get_args(field.type) or (field.type,)
        if float in allowed and type(value) is int and abs(value) < INT_LIMIT:
            value = float(value)
            object.__setattr__(instance, name, value)
        if type(value) not in allowed:
            raise ConfigError(
                f"{where}{name}: expected {_type_name(field.type)}, found {quoted(value)}"
            )
        if type(value) not in (int, float):
            continue
        most = INT_LIMIT if type(value) is int else math.inf
        if not (0 < value < most or (value == 0 and name in MAY_BE_ZERO)):
            least = "0 or more" if name in MAY_BE_ZERO else "more than 0"
            raise ConfigError(f"{where}{name}: expected a number {least}, found {quoted(value)}")


def _type_name(declared) -> str:
    names = [t.__name__ for t in typing.get_args(declared) or (declared,)]
    return " or ".join(names).replace("NoneType", "null")
