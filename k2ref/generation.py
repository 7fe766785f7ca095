"""Generation: read the prompt, then write one token after another until a stop rule holds.

Reading (prefill) and writing (decode) are the same `forward`; the first has many tokens at once and
the second one. What this file adds is the loop, the defaults and the reasons to end:

    "stop"    the model wrote one of the stop ids
    "length"  `max_new_tokens` were written, or the context is full

Chapter 13.
"""

import operator

import numpy as np

from k2ref.cache import KVCache
from k2ref.checkpoint.styles import STYLES
from k2ref.doors.intake import quoted
from k2ref.model import forward
from k2ref.sampling import Settings, check_finite, sample

# How the family's tokenizers name the tokens that end a turn.
STOP_NAMES = ("<|im_end|>", "[EOS]", "[EOT]")


class Token(int):
    """A token id with its log-probability: `token == id`, `token.logprob`.

    `logprob` is the natural logarithm of the probability that the model gave the token, before
    temperature and filters; `top` is [(id, logprob), ...] of the likeliest, if they were asked for.
    """

    def __new__(cls, id, logprob=None, top=()):
        token = super().__new__(cls, id)
        token.logprob = logprob
        token.top = list(top)
        return token


def default_settings(model, thinking=True):
    """Collect the sampling settings that this checkpoint wants: a dict of fields of `Settings`.

    The checkpoint's generation_config.json decides; what it does not say is the recommendation of
    the model card; the rest is off. For answers without thinking the model card comes first, as
    generation_config.json speaks of the others.
    """
    style = STYLES.get(getattr(model.tokenizer, "style", None))
    settings = {"temperature": 1.0, **(style.settings if style else {})}
    for name in Settings.__dataclass_fields__:
        if model.generation_defaults.get(name) is not None:
            settings[name] = model.generation_defaults[name]
    return settings if thinking or not style else {**settings, **style.settings_instant}


def default_stop_ids(model):
    """Collect the ids that end a reply: those of the checkpoint's files and those of known names.

    Returns a frozenset. The union matters: the files of one checkpoint disagree (generation_config
    says <|im_end|>, tokenizer_config says [EOS]), and a model trained on both may write either.
    """
    # Trap: the configured end id alone lets a reply run on past the tokenizer's own.
    # https://github.com/Blaizzy/mlx-vlm/pull/2112, FareedKhan-dev/kimi-k3-in-c#53
    found = set()
    for declared in (model.generation_defaults.get("eos_token_id"), model.config.eos_token_id):
        if declared is not None:
            found.update(declared if isinstance(declared, (list, tuple)) else [declared])
    if model.tokenizer is not None:
        found.update(model.tokenizer.special_id(name) for name in STOP_NAMES)
    return frozenset(int(i) for i in found - {None})


def generate(model, ids, max_new_tokens=None, temperature=None, top_p=None, top_k=None, min_p=None,
             repetition_penalty=None, seed=None, stop_ids=None, cache=None, logprobs=0,
             on_prefill=None, cache_dtype="float32", before=(), thinking=True):
    """Write the reply to a prompt: return an iterator of `Token`s that computes them as it goes.

    Arguments are checked now, the first token is computed when it is asked for. A setting that is
    None is the checkpoint's own (`default_settings`, `default_stop_ids`); `max_new_tokens` None
    is the rest of the context; `seed` None draws a fresh one; `stop_ids=[]` never stops early.
    The stop id itself is not yielded. The iterator's return value (`StopIteration.value`, or
    `reason = yield from ...`) is "stop" or "length".

    With a `cache`, `ids` are the tokens that FOLLOW what it holds: nothing is compared or skipped,
    the prompt of a second turn is only its new part. Afterwards the cache holds the prompt and
    all tokens yielded, the last one only if the reply ended with "stop". The repetition penalty
    looks at `before` (tokens that the cache holds), `ids` and the reply. Without a `cache` one of
    `cache_dtype` ("float32" or "bf16") is made, for the prompt and `max_new_tokens`.

    `logprobs` is the number of likeliest alternatives in `Token.top`; `on_prefill(done, total)`
    is called after each piece of the prompt. After a prompt with thinking=False, say it here, too:
    answers without thinking have settings of their own.
    Raises: ValueError for an empty prompt, an id outside the vocabulary, a setting that makes no
    sense, a prompt that leaves no room in the context, or a cache too large for the memory.
    """
    settings, stop_ids, rng = check_settings(
        model, max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop_ids,
        logprobs, thinking)
    ids = _checked_ids("the prompt", ids, model.config.vocab_size)
    if not ids:
        raise ValueError("the prompt is empty; give at least one token id")
    room = _room(model.config, cache, len(ids))
    if max_new_tokens is not None:
        room = min(room, max_new_tokens)
    if cache is None:
        # A reply may end long before the context does: what is not asked for need not fit.
        expected = len(ids) if max_new_tokens is None else len(ids) + room
        cache = KVCache(model.config, len(ids) + room, cache_dtype, expected)

    def choose(logits, seen):
        return sample(logits, rng, seen, logprobs, **settings)

    return _tokens(model, ids, cache, choose, stop_ids, room, on_prefill, list(before))


def check_settings(model, max_new_tokens=None, temperature=None, top_p=None, top_k=None, min_p=None,
                   repetition_penalty=None, seed=None, stop_ids=None, logprobs=0, thinking=True):
    """Refuse settings that make no sense; return those of the sampling, the stop ids, the chance.

    They are a dict of fields of `Settings`, a frozenset, and a `np.random.Generator`.
    Raises: ValueError
    """
    if not isinstance(thinking, bool):
        raise ValueError(f"thinking: expected True or False, found {quoted(thinking)}")
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
             "repetition_penalty": repetition_penalty}
    given = {name: value for name, value in given.items() if value is not None}
    settings = {**default_settings(model, thinking), **given}
    Settings(**settings)
    vocabulary = model.config.vocab_size
    if max_new_tokens is not None:
        whole("max_new_tokens", max_new_tokens, 1)
    whole("logprobs", logprobs, 0, vocabulary)
    stop_ids = default_stop_ids(model) if stop_ids is None else stop_ids
    stop_ids = frozenset(_checked_ids("stop_ids", stop_ids, vocabulary))
    rng = np.random.Generator(np.random.PCG64(None if seed is None else whole("seed", seed, 0)))
    return settings, stop_ids, rng


def prefill(model, ids, cache, on_prefill=None):
    """Read the prompt into the cache in pieces; return the logits after its last token.

    (T,) -> (W,)

    Output float32. `on_prefill(done, total)` is called after each piece.
    Raises: ValueError where a number on the way is not finite.
    """
    chunk = model.chunk  # larger pieces read each expert's weights fewer times
    for start in range(0, len(ids), chunk):
        piece = ids[start:start + chunk]
        logits = _next_logits(model, piece, cache)
        if on_prefill is not None:
            on_prefill(start + len(piece), len(ids))
    return logits


def _next_logits(model, ids, cache):
    """Read tokens into the cache and return the logits after the last: (T,) -> (W,).

    What is not finite anywhere on the way makes them so (`forward`); then the cache is left as it
    was, for tokens that look back at such rows would be worth nothing.
    """
    before = cache.length
    logits = forward(model, ids, cache, last_only=True)[-1]
    if not np.isfinite(logits).all():
        cache.truncate(before)
        check_finite(logits)
    return logits


def _tokens(model, ids, cache, choose, stop_ids, room, on_prefill, before):
    logits = prefill(model, ids, cache, on_prefill)
    seen = before + ids
    full = len(seen) + room
    while True:
        choice = choose(logits, seen)
        if choice.id in stop_ids:
            return "stop"
        yield Token(*choice)
        seen.append(choice.id)
        if len(seen) == full:
            return "length"
        logits = _next_logits(model, [choice.id], cache)


def _room(config, cache, n_prompt):
    """Count the tokens that may still be written when the prompt is in the cache."""
    limit, name, held = config.max_position_embeddings, "max_position_embeddings", ""
    if cache is not None and cache.capacity < limit:
        limit, name = cache.capacity, "the cache's capacity"
    if cache is not None and cache.length:
        held = f" after {cache.length} in the cache"
    room = limit - n_prompt - (cache.length if cache is not None else 0)
    if room < 1:
        raise ValueError(f"the prompt of {n_prompt} tokens{held} leaves no room for an answer in "
                         f"the context of {limit} ({name}); shorten it")
    return room


def _checked_ids(what, ids, vocabulary):
    return [whole(f"an id of {what}", i, 0, vocabulary - 1) for i in ids]


def whole(name, value, low, high=None):
    """Return the value as an int, if it is a whole number in the range, ends included."""
    expected = f"a whole number >= {low}" + ("" if high is None else f" and <= {high}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {expected}, found {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {expected}, found {number}")
    return number
