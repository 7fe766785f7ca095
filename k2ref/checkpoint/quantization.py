"""What `quantization_config` says: which matrices are quantized, and how; all else is refused.

Two methods are read: "compressed-tensors", format "pack-quantized", INT4 in groups of 32, and
DeepSeek's "fp8". A field that asks for something else (a rotation of the weights, quantized
activations, pruned experts) would change numbers without a word, so every field is looked at: what
k2ref does not do is refused by name, and so is a name it does not know, unless its value is null or
empty. The fields are those of compressed-tensors 0.20.1, of older releases and of transformers.

Chapter 03.
"""

import re
from collections.abc import Callable

from k2ref.checkpoint.fields import ConfigError, expect, label
from k2ref.doors.intake import quoted
from k2ref.quant import BLOCK, GROUP

HARMLESS = ...  # in the tables below: says nothing about what a number is, or is looked at apart
FP8 = {
    "quant_method": ("fp8",), "fmt": ("e4m3",), "activation_scheme": ("dynamic",),
    "weight_block_size": ([BLOCK, BLOCK],), "modules_to_not_convert": HARMLESS,
    "scale_fmt": ("ue8m0",),  # the scales are powers of two, in float32 all the same
    "dequantize": (True, False), "version": HARMLESS,
}  # fmt: skip
COMPRESSED_TENSORS = {
    "quant_method": ("compressed-tensors",), "format": ("pack-quantized",), "ignore": HARMLESS,
    "config_groups": HARMLESS, "quantization_status": HARMLESS, "version": HARMLESS,
    "global_compression_ratio": HARMLESS, "run_compressed": (True, False),
    "sparsity_config": HARMLESS, "transform_config": HARMLESS,
}  # fmt: skip
SCHEME = {"targets": (["Linear"],), "format": ("pack-quantized",), "weights": HARMLESS}
WEIGHTS = {
    "num_bits": (4,), "type": ("int",), "symmetric": (True,), "strategy": ("group",),
    "group_size": (GROUP,), "dynamic": (False,),
    "actorder": (False, "weight", "static"),  # the order of calibration, not that of the columns
    "scale_dtype": ("torch.bfloat16", "bfloat16"), "zp_dtype": HARMLESS,  # there is no zero point
    "observer": HARMLESS, "observer_kwargs": HARMLESS,  # how the scales were found
}  # fmt: skip
MOST_NAMES = 100_000  # of modules; 69,120 experts by name have to fit
MOST_PARTS = 2_000  # of names that are to be found within others
# Each pattern is tried on every name. What it may try on one is bounded: the product of the choices
# that each of its parts leaves open, with names of 60 characters, added up over the patterns. A
# pattern costs a try for every CHARS of its characters, too: to compare them takes time as well.
MOST_TRIES, WIDE, NARROW, CHARS = 10_000, 60, 4, 4
ONE = r"\\[dDsSwW]|\\[^0-9A-Za-z]|\[\^?(?:\\[dDsSwW.-]|\w|[.-](?!-))+\]|[^\\()|\[\]{}*+?^$]"
TOKEN = re.compile(
    r"(?P<open>\((?:\?[:=!])?)|(?P<close>\)\??)|(?P<bar>\|)|(?P<anchor>[\^$]|\\[AbBZ])"
    rf"|(?P<one>{ONE})(?P<times>[*+?]\??|\{{\d{{1,2}}(?:,\d{{0,2}})?\}})?"
)


def check_quantization(found: dict | None) -> str | None:
    """Return "int4", "fp8" or None; refuse whatever else `quantization_config` may say.

    Raises: ConfigError
    """
    if found is None:
        return None
    where = "quantization_config."
    method = found.get("quant_method")
    expect(where + "quant_method", method, "compressed-tensors", "fp8")
    if method == "fp8":
        expect(where + "weight_block_size", found.get("weight_block_size"), [BLOCK, BLOCK])
        _check_fields(found, where, FP8)
        return "fp8"
    expect(where + "format", found.get("format"), "pack-quantized")
    expect(where + "kv_cache_scheme", found.get("kv_cache_scheme"), None)  # {} is one of 8 bits
    sparsity, transforms = found.get("sparsity_config"), found.get("transform_config")
    if not _is_nothing(sparsity):  # "dense": as ever, whatever else it says
        _expect_field(sparsity, where + "sparsity_config", "format", "dense")
    if not _is_nothing(transforms) and transforms != {"config_groups": {}}:
        raise _not_done(where + "transform_config", transforms)
    _check_fields(found, where, COMPRESSED_TENSORS)
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ConfigError(f"{where}config_groups: expected one group, found {quoted(groups)}")
    name, group = next(iter(groups.items()))
    where += f"config_groups.{label(name)}."
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ConfigError(f"{where}weights: expected an object, found {quoted(weights)}")
    expect(where + "targets", group.get("targets"), ["Linear"])
    _check_fields(group, where, SCHEME)
    for key in ("num_bits", "type", "symmetric", "strategy", "group_size"):
        expect(f"{where}weights.{key}", weights.get(key), *WEIGHTS[key])
    _check_fields(weights, where + "weights.", WEIGHTS)
    return "int4"


def _check_fields(found: dict, where: str, known: dict):
    """Refuse what asks for something else, and names that might."""
    for name, value in found.items():
        supported = known.get(name, ())
        if supported is HARMLESS or _is_nothing(value):
            continue
        if not supported:
            raise _not_done(where + label(name), value)
        expect(where + name, value, *supported)


def _is_nothing(value) -> bool:
    return value is None or value == {} or value == []


def _expect_field(found, where: str, name: str, value):
    if not isinstance(found, dict):
        raise _not_done(where, found)
    expect(f"{where}.{name}", found.get(name), value)


def _not_done(where: str, found) -> ConfigError:
    return ConfigError(f"{where}: expected null, as k2ref does nothing of the kind, found "
                       f"{quoted(found)}")


def left_alone(quantization: dict, method: str) -> Callable[[str], bool]:
    """Return the function that says whether a module stays as it is, by its name.

    Raises: ConfigError for what is no list of names, or of patterns in a simple form
    """
    key = "ignore" if method == "int4" else "modules_to_not_convert"
    names = quantization.get(key) or []
    where = f"quantization_config.{key}"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: expected a list of names, found {quoted(names)}")
    if method == "fp8":  # there, a name stands for everything below it, and lm_head is left alone
        parts = list(dict.fromkeys([*names, "lm_head"]))
        _at_most(MOST_PARTS, "names", parts, where)
        return lambda name: any(part in name for part in parts)
    _at_most(MOST_NAMES, "names", names, where)
    # "re:" marks a pattern that must match from the name's start; anything else is a whole name.
    whole = frozenset(names)
    matches = _one_pattern([name[3:] for name in names if name.startswith("re:")], where)
    return lambda name: name in whole or matches(name) is not None


def _at_most(most: int, what: str, found, where: str):
    if len(found) > most:
        raise ConfigError(f"{where}: expected at most {most} {what}, found {len(found)}")


def _one_pattern(patterns: list[str], where: str) -> Callable[[str], object]:
    """Compile patterns that together try no more than MOST_TRIES ways on a name."""
    total = 0
    for pattern in patterns:
        total += len(pattern) // CHARS  # a long one is not even looked at
        total += n_tries(pattern, where) if total <= MOST_TRIES else 0
        if total > MOST_TRIES:
            raise ConfigError(
                f"{where}: expected patterns that try at most {MOST_TRIES} ways to match a name, "
                f"found {quoted(pattern)}; use fewer, shorter ones, or fewer `.*` in one"
            )
    try:
        return re.compile("|".join(f"(?:{p})" for p in patterns) or r"(?!)").match
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{where}: expected regular expressions, found {error}") from error


def n_tries(pattern: str, where: str = "") -> int:
    """Bound the ways in which a pattern of the simple form can be tried on a name.

    The form: characters and sets of them, repeated or not; groups and lookahead, optional at most.
    Nothing that repeats is repeated, so the ways are a product.
    Raises: ConfigError for another form
    """
    tries, at, alternatives = 1, 0, [1]  # of the pattern, then of each group that is open
    while at < len(pattern) and tries <= MOST_TRIES:
        token = TOKEN.match(pattern, at)
        if token is None or len(alternatives) > 20:
            raise ConfigError(f"{where}: expected regular expressions of characters, sets, "
                              f"repeats of these, and groups, found {quoted(pattern)}")
        at = token.end()
        is_last = at == len(pattern) and len(alternatives) == 1  # it fits whatever is left
        if token["open"]:
            alternatives.append(1)
        elif token["bar"]:
            alternatives[-1] += 1
        elif token["close"]:
            n = alternatives.pop() if len(alternatives) > 1 else 1  # `re` refuses one too many
            tries *= n + (token["close"] == ")?")
        elif token["times"] in ("?", "??"):
            tries *= 2
        elif token["times"] and not is_last:
            tries *= NARROW if token["one"] in (r"\d", "[0-9]") else WIDE
    return tries * alternatives[0]
