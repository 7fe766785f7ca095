"""Checks of values that were read from JSON, before anything is computed from them.

`config.py` declares what a field is by its type (`int`, `float | None`, ...); this file holds the
values to that and says in one sentence what was wrong.

Chapter 03.
"""

import dataclasses
import re
import typing

from k2ref.doors.intake import quoted

# Every number is more than zero, except that these may be zero.
MAY_BE_ZERO = {
    "first_k_dense_replace", "num_nextn_predict_layers", "mscale", "mscale_all_dim",
}  # fmt: skip
INT_LIMIT = 2**63  # JSON has no largest integer; arithmetic has
# Beyond these no model is: a count of that size is refused before anything is made that many times,
# and with numbers in this range nothing that is computed from them overflows.
MOST_OF = {
    "num_hidden_layers": 4096, "n_routed_experts": 2**16, "n_shared_experts": 2**10,
    "num_nextn_predict_layers": 4096, "max_position_embeddings": 2**26, "vocab_size": 2**24,
    "factor": 1e6, "mscale": 100.0, "mscale_all_dim": 100.0, "routed_scaling_factor": 1e6,
    "rms_norm_eps": 1.0, "latent_norm_eps": 1.0,
}  # fmt: skip
MOST_INT, LEAST_FLOAT, MOST_FLOAT = 2**24, 1e-30, 1e12
MOST_TOKEN_IDS = 256  # that end a reply: more than there are control tokens is a mistake


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
        if name.endswith("_token_id"):
            continue  # Config holds those to its vocabulary
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
        is_float = type(value) is float
        least = LEAST_FLOAT if is_float else 1
        most = MOST_OF.get(name, MOST_FLOAT if is_float else MOST_INT)
        if not (least <= value <= most or (value == 0 and name in MAY_BE_ZERO)):
            or_zero = "0, or " if name in MAY_BE_ZERO else ""
            raise ConfigError(
                f"{where}{name}: expected a number, {or_zero}{least} to {most}, found "
                f"{quoted(value)}"
            )


def check_token_ids(name: str, found, n_vocab: int, many: bool = False):
    """Hold the id of a token, or with `many` a list of them, to the vocabulary; null is none.

    Returns the id, a tuple for a list, or None.
    Source: transformers' GenerationConfig, where only `eos_token_id` may be a list.
    Raises: ConfigError
    """
    ids = found if many and isinstance(found, (list, tuple)) else [found]
    if found is not None and not all(type(i) is int and 0 <= i < n_vocab for i in ids):
        what = "the id of a token, or a list of them," if many else "the id of a token,"
        raise ConfigError(f"{name}: expected {what} less than vocab_size ({n_vocab}), found "
                          f"{quoted(found)}")
    if len(ids) > MOST_TOKEN_IDS:
        raise ConfigError(f"{name}: expected at most {MOST_TOKEN_IDS} ids, found {len(ids)}")
    return found if ids is not found else tuple(ids)


def _type_name(declared) -> str:
    names = [t.__name__ for t in typing.get_args(declared) or (declared,)]
    return " or ".join(names).replace("NoneType", "null")
