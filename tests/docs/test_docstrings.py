"""Docstrings: every public name has one, and their shapes are those of a real forward pass."""

import functools
import importlib
import inspect
import pkgutil
import re
import sys

import numpy as np
import pytest
from conftest import COMPILED, choose_path

import k2ref
from k2ref import attention, cache, loading, model, moe, ops, quant, rope, run, sampling
from scripts.checkpoints.small import tiny_config, write_checkpoint

MODULES = (quant, ops, rope, cache, attention, moe, run, model, loading, sampling,
           sys.modules["k2ref.generation"])
# A shape line stands alone: items, an arrow, items.
SHAPE_LINE = re.compile(r"^ *((?:[(\[.]|[A-Za-z ]+,).*)?-> (.+)$")
ITEM = re.compile(r"\[.*?\]|\([^)]*\)|[^,\s][^,]*")
# In these modules the letters are the sizes of the model; elsewhere they bind call by call.
OF_THE_MODEL = {"k2ref.attention", "k2ref.moe", "k2ref.model", "k2ref.sampling", "k2ref.rope",
                "k2ref.cache", "k2ref.run", "k2ref.loading"}
T = 7
SIZES = {  # no two letters alike, and C + R a multiple of 16, for a cache row is padded to that
    "hidden_size": 64, "num_attention_heads": 3, "num_key_value_heads": 3, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 16, "v_head_dim": 20, "q_lora_rank": 24, "kv_lora_rank": 32,
    "n_routed_experts": 36, "num_experts_per_tok": 5,
}  # fmt: skip


# They take or give no single arrays: settings, weights by name, lists of products, tokens.
WITHOUT_ARRAYS = {
    "kernels_name", "missing_kernels", "default_threads", "n_threads", "linear_many",
    "bind_attention", "bind_mlp", "bind_moe", "bind_layer", "default_settings",
    "default_stop_ids", "generate",
    "require_memory", "row_width", "bytes_per_token", "running", "check_settings", "whole",
    "not_done",
}  # fmt: skip


def shape_line(function):
    """Return the two sides of the shape line of a docstring, or None."""
    for line in (function.__doc__ or "").splitlines()[1:]:
        if match := SHAPE_LINE.match(line):
            return tuple([item.strip() for item in ITEM.findall(side or "")]
                         for side in match.groups())
    return None


def size_of(expression, letters):
    """Evaluate an axis such as `C+R` or `I/8`; None while one of its letters is not bound."""
    if set(re.findall(r"[A-Za-z_]+", expression)) - set(letters):
        return None
    assert re.fullmatch(r"[\w+*/]+", expression), expression
    return eval(expression.replace("/", "//"), {}, letters)


def check_shape(item, shape, letters):
    """Hold a shape against an item such as `(T, ..., R/2)`, binding letters that are new."""
    axes = [axis.strip() for axis in item.strip("()").split(",") if axis.strip()]
    if "..." in axes:
        rest = axes.index("...")
        n_rest = len(shape) - len(axes) + 1
        bound = letters.setdefault("...", shape[rest : rest + n_rest])
        assert n_rest >= 0 and shape[rest : rest + n_rest] == bound, (item, shape, letters)
        axes[rest : rest + 1] = [str(n) for n in bound]
    assert len(axes) == len(shape), (item, shape)
    for axis, size in zip(axes, shape, strict=True):
        if size_of(axis, letters) is None:
            letter, _, divisor = axis.partition("/")
            letters[letter] = size * int(divisor or 1)
        assert size_of(axis, letters) == size, f"{item}: {axis} is {size}, with {letters}"


def is_shape(item):
    """Say whether an item is about an array, or a list of them, not about a type."""
    return item.startswith(("(", "[")) and not re.search(r"\b[a-z]{2}", item)


def check_value(item, value, letters):
    """Hold one argument or result against one item of a shape line."""
    if item.startswith("["):
        inner = ITEM.findall(item[1:-1])[0]
        for element in value:
            element = element[0] if isinstance(element, tuple) else element
            check_shape(inner, element.shape, {k: n for k, n in letters.items() if k != "T_e"})
    elif is_shape(item):
        check_shape(item, np.shape(value) or getattr(value, "shape", ()), letters)
    else:
        assert is_a(item, value), (item, value)


def fits(item, value):
    """Say whether an argument is one that the item can be about."""
    if item.startswith("["):
        return isinstance(value, list)
    if item == "()":
        return isinstance(value, (int, float, np.number))
    if is_shape(item):
        return bool(getattr(value, "shape", ())) or isinstance(value, (list, tuple))
    return is_a(item, value)


def is_a(names, value):
    """Say whether a value is of a type named as in `str or Path`."""
    types = {base.__name__.removesuffix("Type") for base in type(value).__mro__}
    return bool(types & set(names.split()))


def check_call(function, sides, sizes, args, kwargs, result):
    """Hold one call of a function against its shape line."""
    letters = dict(sizes) if function.__module__ in OF_THE_MODEL else {}
    values = list(inspect.signature(function).bind(*args, **kwargs).arguments.values())
    for item in sides[0]:
        if item == "...":  # and others
            break
        found = next((i for i, value in enumerate(values) if fits(item, value)), None)
        if found is None:  # what is no array may be left to its default
            assert not is_shape(item), f"{function.__name__}: no argument for {item}"
            continue
        check_value(item, values[found], letters)
        values = values[found + 1 :]
    results = result if len(sides[1]) > 1 else (result,)
    for item, value in zip(sides[1], results, strict=True):
        check_value(item, value, letters)


def functions_with_shapes():
    """List (owner, name, function, sides) of all functions and methods that have a shape line."""
    for module in MODULES:
        classes = [c for c in vars(module).values()
                   if inspect.isclass(c) and c.__module__ == module.__name__]
        for owner in (module, *classes):
            for name, function in list(vars(owner).items()):
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    if sides := shape_line(function):
                        yield owner, name, function, sides


@pytest.fixture
def seen(monkeypatch):
    """Check every call of a function with a shape line; give the names of those called.

    `seen.sizes` are the sizes of the model's axes.
    """
    called = Seen()

    def checked(function, sides):
        @functools.wraps(function)
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if not kwargs.get("last_only"):  # of forward: it gives fewer rows, and says so
                check_call(function, sides, called.sizes, args, kwargs, result)
            called.add(function.__qualname__)
            return result

        return call

    for owner, name, function, sides in functions_with_shapes():
        wrapper = checked(function, sides)
        monkeypatch.setattr(owner, name, wrapper)
        for module in list(sys.modules.values()):  # others may have imported it by name
            if getattr(module, "__name__", "").startswith("k2ref"):
                if vars(module).get(name) is function:
                    monkeypatch.setattr(module, name, wrapper)
    return called


class Seen(set):
    sizes = {}


def run_everything(seen, directory, layout):
    """Write, load and run a model of the layout, so that its functions are called."""
    values = {**tiny_config(layout), **SIZES}
    m = loading.load(write_checkpoint(directory, values, layout=layout), threads=1)
    c = m.config
    seen.sizes = {
        "D": c.hidden_size, "H": c.num_attention_heads, "N": c.qk_nope_head_dim,
        "R": c.qk_rope_head_dim, "V": c.v_head_dim, "Q": c.q_lora_rank, "C": c.kv_lora_rank,
        "E": c.n_routed_experts, "K": c.num_experts_per_tok, "W": c.vocab_size,
    }  # fmt: skip
    recorded = k2ref.trace.Trace()
    model.forward(m, list(range(T)), trace=recorded)
    list(k2ref.generate(m, range(T), max_new_tokens=2, temperature=0.8, top_k=9, top_p=0.9,
                        min_p=0.01, repetition_penalty=1.1, logprobs=2, stop_ids=[]))
    list(k2ref.generate(m, range(T), max_new_tokens=2, temperature=0, stop_ids=[]))
    parts = [recorded.arrays[f"layers.1.attn.{n}"] for n in ("q_nope", "q_rope", "c_kv", "k_rope")]
    attention.attend_expanded(*parts, m.layers[1].attention, c.softmax_scale)
    routed = [recorded.arrays[f"layers.1.moe.{n}"] for n in ("chosen", "mix")]
    moe.mixture_by_token(recorded.arrays["layers.1.h"], m.layers[1].mlp, *routed)
    m.layers[1].mlp.expert(0).gate_proj.take(np.arange(3))
    ops.silu(recorded.arrays["norm"])


def test_shape_lines_hold_on_a_real_forward_pass(seen, tmp_path, monkeypatch):
    assert len({*SIZES.values(), 512, T}) == len(SIZES) + 1  # but for the two counts of heads
    for layout in ("thinking", "deepseek"):
        for path in (*COMPILED[:1], "numpy"):
            with monkeypatch.context() as patch:
                choose_path(path, patch)
                run_everything(seen, tmp_path / layout / path, layout)
    all_of_them = {function.__qualname__ for _, _, function, _ in functions_with_shapes()}
    assert all_of_them - seen == set()


def modules():
    """Import every module of the package; compiled ones only where they are built."""
    for found in pkgutil.walk_packages(k2ref.__path__, "k2ref."):
        if found.name in ("k2ref.tiny", "k2ref.__main__") or "._" in found.name:
            continue
        yield importlib.import_module(found.name)


def public_names():
    """List (qualified name, object, whether it is a function) of all public names and methods."""
    for module in modules():
        yield module.__name__, module, False
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{module.__name__}.{name}", value, inspect.isfunction(value)
            if inspect.isclass(value):
                yield from public_methods(f"{module.__name__}.{name}", value)


def public_methods(name, cls):
    """List a class's own methods and properties, those that override an inherited one aside."""
    for method, value in vars(cls).items():
        value = getattr(value, "__func__", value)  # of a class method
        is_property = isinstance(value, (property, functools.cached_property))
        inherited = any(hasattr(base, method) for base in cls.__mro__[1:])
        if not method.startswith("_") and not inherited:
            if inspect.isfunction(value) or is_property:
                yield f"{name}.{method}", value, not is_property


NAMES = {name: (value, is_function) for name, value, is_function in public_names()}


def test_the_search_for_public_names_finds_them():
    for name in k2ref.__all__:
        value = getattr(k2ref, name)
        assert inspect.ismodule(value) or any(value is found for found, _ in NAMES.values()), name
    config = "k2ref.checkpoint.config"
    assert {"k2ref.cache.KVCache.truncate", "k2ref.quant.Weight.n_bytes", config,
            f"{config}.Config.n_parameters", f"{config}.Config.from_dict"} <= NAMES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_is_in_one_sentence(name):
    value, is_function = NAMES[name]
    assert value.__doc__, f"{name} has no docstring"
    first = inspect.cleandoc(value.__doc__).split("\n\n")[0]
    assert first.endswith(".") and (first[0].isupper() or first.startswith("k2ref")), first
    if is_function:  # "Return", not "Returns" or "The ..."
        word = first.split()[0]
        assert not re.search(r"[^s]s$", word) and word not in ("The", "A", "An", "This"), first
    elif inspect.isclass(value):  # a class is a thing, not a command to do something
        articles = "A An The One Two Some Several All"
        assert first.split()[0] in articles.split() + ["Text"], first


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_functions_over_arrays_give_their_shapes(module):
    missing = set()
    for name, function in vars(module).items():
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            if not name.startswith("_") and shape_line(function) is None:
                missing.add(name)
    assert missing <= WITHOUT_ARRAYS, f"no shape line: {missing - WITHOUT_ARRAYS}"
