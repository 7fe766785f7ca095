"""Generation: the loop and its ways to end on a model of paper, then the same on the real one."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import k2ref
from k2ref.checkpoint.styles import STYLES
from k2ref.generation import (
    Token,
    default_settings,
    default_stop_ids,
    generate,
    prefill,
)
from k2ref.run import CHUNK
from k2ref.sampling import Choice, log_probabilities

module = sys.modules["k2ref.generation"]  # `k2ref.generate` is the function of that name
W = 8  # words of the paper model


class PaperModel:
    """Count: the likeliest token after `i` is `i + 1`; it writes down what `forward` was given."""

    def __init__(self, context=100, specials=None, style=None, defaults=None, eos=None,
                 base=0):
        self.config = SimpleNamespace(vocab_size=W, max_position_embeddings=context,
                                      eos_token_id=eos)
        self.tokenizer = SimpleNamespace(special_id=(specials or {}).get, style=style)
        self.generation_defaults = {"temperature": 0.0} if defaults is None else defaults
        self.base = base
        self.chunk = CHUNK
        self.calls = []

    def forward(self, ids, cache, last_only=False):
        self.calls.append(list(ids))
        cache.length += len(ids)
        n_rows = 1 if last_only else len(ids)
        logits = np.full((n_rows, W), self.base, np.float32)
        logits[-1, (ids[-1] + 1) % W] = 5
        return logits


def paper_cache(config=None, capacity=1000, dtype="float32", expected=None, length=0):
    return SimpleNamespace(length=length, capacity=capacity)


@pytest.fixture
def on_paper(monkeypatch):
    """Run the loop on paper: `forward` and the cache count instead of computing."""
    monkeypatch.setattr(module, "forward", lambda model, *a, **k: model.forward(*a, **k))
    monkeypatch.setattr(module, "KVCache", paper_cache)


def ended(tokens):
    """Everything an iterator yields, and its return value."""
    got = []
    while True:
        try:
            got.append(next(tokens))
        except StopIteration as end:
            return got, end.value


def test_stop_ends_without_the_stop_token(on_paper):
    model = PaperModel()
    assert ended(generate(model, [1], stop_ids=[4, 6])) == ([2, 3], "stop")
    # Each yielded token was read, the stop was not.
    assert model.calls == [[1], [2], [3]]


def test_stop_at_once_yields_nothing(on_paper):
    assert ended(generate(PaperModel(), [3], stop_ids=[4])) == ([], "stop")


def test_length_ends_after_max_new_tokens(on_paper):
    model = PaperModel()
    assert ended(generate(model, [0], max_new_tokens=3, stop_ids=[4])) == ([1, 2, 3], "length")
    assert model.calls == [[0], [1], [2]]  # nothing is computed for a token nobody will see


def test_stop_wins_over_length_only_if_it_comes_first(on_paper):
    assert ended(generate(PaperModel(), [0], max_new_tokens=2, stop_ids=[3])) == ([1, 2], "length")
    assert ended(generate(PaperModel(), [0], max_new_tokens=3, stop_ids=[3])) == ([1, 2], "stop")


def test_no_stop_ids_never_stop(on_paper):
    model = PaperModel(specials={"<|im_end|>": 2}, eos=2)
    assert ended(generate(model, [0], max_new_tokens=9, stop_ids=[]))[1] == "length"
    assert ended(generate(model, [0], max_new_tokens=9)) == ([1], "stop")


def test_a_full_context_ends_with_length(on_paper):
    tokens, reason = ended(generate(PaperModel(context=6), [0, 1], stop_ids=[]))
    assert (tokens, reason) == ([2, 3, 4, 5], "length")
    tokens, reason = ended(generate(PaperModel(context=6), [0, 1], 100, stop_ids=[]))
    assert (tokens, reason) == ([2, 3, 4, 5], "length")


@pytest.mark.parametrize("context, cached, n", [(6, 0, 6), (6, 0, 7), (6, 3, 3), (6, 6, 1)])
def test_a_prompt_without_room_is_refused_when_called(on_paper, context, cached, n):
    model, cache = PaperModel(context=context), paper_cache(length=cached)
    with pytest.raises(ValueError, match=rf"prompt of {n} tokens.* context of {context} "):
        generate(model, [1] * n, cache=cache)
    assert model.calls == [] and cache.length == cached


def test_a_cache_with_less_room_than_the_context_is_the_limit(on_paper):
    cache = paper_cache(capacity=4)
    with pytest.raises(ValueError, match=r"context of 4 \(the cache's capacity\)"):
        generate(PaperModel(), [1] * 4, cache=cache)
    assert ended(generate(PaperModel(), [1, 2], stop_ids=[], cache=cache)) == ([3, 4], "length")


@pytest.mark.parametrize("wrong, message", [
    ({"ids": []}, "the prompt is empty"),
    ({"ids": [W]}, f"an id of the prompt must be .* <= {W - 1}, found {W}"),
    ({"ids": [-1]}, "an id of the prompt must be .* found -1"),
    ({"ids": [1.0]}, "an id of the prompt must be .* found 1.0"),
    ({"ids": np.zeros((1, 3), int)}, "an id of the prompt must be"),
    ({"ids": "text"}, "an id of the prompt must be .* found 't'"),
    ({"stop_ids": [99]}, "an id of stop_ids must be"),
    ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, found 0"),
    ({"max_new_tokens": 1.5}, "max_new_tokens must be"),
    ({"seed": -1}, "seed must be a whole number >= 0, found -1"),
    ({"logprobs": W + 1}, f"logprobs must be .* <= {W}"),
    ({"temperature": -1}, "temperature must be"),
    ({"top_p": 0}, "top_p must be"),
    ({"top_k": -1}, "top_k must be"),
    ({"min_p": 2}, "min_p must be"),
    ({"repetition_penalty": 0}, "repetition_penalty must be"),
])
def test_arguments_are_checked_when_called_not_when_iterated(on_paper, wrong, message):
    model = PaperModel()
    with pytest.raises(ValueError, match=message):
        generate(model, **{"ids": [1], **wrong})
    assert model.calls == []


def test_nothing_is_computed_before_the_first_token_is_asked_for(on_paper):
    model = PaperModel()
    tokens = generate(model, [1])
    assert model.calls == []
    assert next(tokens) == 2
    assert model.calls == [[1]]


@given(n=st.integers(1, 3 * CHUNK + 2))
@settings(max_examples=30)
def test_prefill_reads_each_id_once_and_tells(n):
    model, cache, seen = PaperModel(context=n + 1), paper_cache(), []
    ids = [i % W for i in range(n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "forward", lambda model, *a, **k: model.forward(*a, **k))
        logits = prefill(model, ids, cache, lambda done, total: seen.append((done, total)))
    assert logits.shape == (W,) and np.argmax(logits) == (ids[-1] + 1) % W
    assert [i for piece in model.calls for i in piece] == ids
    assert max(map(len, model.calls)) <= CHUNK
    assert [done for done, _ in seen] == np.cumsum([len(c) for c in model.calls]).tolist()
    assert {total for _, total in seen} == {n} and seen[-1][0] == n


def test_a_given_cache_is_extended_by_all_of_ids(on_paper):
    # Never compared with what the cache holds, even where the new ids begin like the old ones.
    model, cache = PaperModel(), paper_cache()
    assert ended(generate(model, [1, 2], stop_ids=[5], cache=cache)) == ([3, 4], "stop")
    assert cache.length == 4
    model.calls.clear()
    tokens, _ = ended(generate(model, [1, 2, 3], max_new_tokens=2, stop_ids=[], cache=cache))
    assert model.calls == [[1, 2, 3], [4]] and tokens == [4, 5]
    assert cache.length == 8  # 4 held, 3 new, and the first of two tokens


def test_a_token_is_its_id(on_paper):
    token = next(generate(PaperModel(), [1], logprobs=3))
    assert isinstance(token, Token) and isinstance(token, int) and token == 2
    assert {2: "two"}[token] == "two" and [2].index(token) == 0 and str(token) == "2"
    # Logits are one 5 and seven 0s.
    total = np.exp(5) + 7
    assert token.logprob == pytest.approx(np.log(np.exp(5) / total), rel=1e-12)
    assert [i for i, _ in token.top] == [2, 0, 1]
    assert token.top[1][1] == pytest.approx(np.log(1 / total), rel=1e-12)
    assert next(generate(PaperModel(), [1])).top == []
    assert Token(3).logprob is None and Token(3).top == []


def test_repetition_penalty_looks_at_prompt_and_reply(on_paper):
    # Favourites have a logit of 5, others 1; a penalty of 10 makes them 0.5 and 0.1 once seen.
    model, prompt = PaperModel(base=1), [2, 5, 5, 5, 5, 1]
    tokens, _ = ended(generate(model, prompt, 7, repetition_penalty=10, stop_ids=[]))
    # 2 and 1 and 5 stand in the prompt, so 0, 3 and 6 come instead; in the end all are seen and
    # the favourite, 0 after 7, wins again.
    assert tokens == [0, 3, 4, 6, 7, 0, 1]
    assert ended(generate(model, prompt, 2, stop_ids=[]))[0] == [2, 3]


def test_default_settings_are_the_checkpoints_then_the_cards():
    assert default_settings(PaperModel(defaults={})) == {"temperature": 1.0}
    for style in STYLES.values():
        expected = {"temperature": 1.0, **style.settings}
        assert default_settings(PaperModel(style=style.name, defaults={})) == expected
    model = PaperModel(style="k2.5", defaults={"temperature": 0.3, "top_k": 40, "max_length": 9,
                                               "min_p": None})
    assert default_settings(model) == {"temperature": 0.3, "top_p": 0.95, "top_k": 40}


@pytest.mark.parametrize("style, thinking, instant", [
    ("k2-instruct", {"temperature": 0.6}, {"temperature": 0.6}),
    ("k2-thinking", {"temperature": 1.0}, {"temperature": 1.0}),
    ("k2.5", {"temperature": 1.0, "top_p": 0.95}, {"temperature": 0.6, "top_p": 0.95}),
    ("k2.6", {"temperature": 1.0, "top_p": 0.95}, {"temperature": 0.6, "top_p": 0.95}),
    ("k2.7-code", {"temperature": 1.0, "top_p": 0.95}, {"temperature": 1.0, "top_p": 0.95}),
    ("moonlight", {"temperature": 1.0}, {"temperature": 1.0}),
])
def test_recommended_settings_of_the_family(style, thinking, instant):
    """Trap: an answer at once was sampled as thinking is."""
    model = PaperModel(style=style, defaults={})
    assert default_settings(model) == thinking
    assert default_settings(model, thinking=False) == instant


def test_the_checkpoint_s_own_settings_are_those_of_thinking(on_paper, monkeypatch):
    model = PaperModel(style="k2.6", defaults={"temperature": 1.0, "top_k": 40})
    used = []
    monkeypatch.setattr(module, "sample", lambda logits, rng, seen, n, **settings: (
        used.append(settings), Choice(3, 0.0, []))[1])
    for options in ({}, {"thinking": False}, {"thinking": False, "temperature": 0.9}):
        list(generate(model, [1], 1, stop_ids=[], **options))
    assert used == [{"temperature": t, "top_p": 0.95, "top_k": 40} for t in (1.0, 0.6, 0.9)]
    with pytest.raises(ValueError, match="thinking: expected True or False, found 'no'"):
        generate(model, [1], thinking="no")


def test_an_argument_wins_over_the_default(on_paper):
    model = PaperModel(defaults={"temperature": 5.0, "top_k": 1})
    assert ended(generate(model, [1], 3, stop_ids=[]))[0] == [2, 3, 4]  # top_k 1
    draws = {ended(generate(model, [1], 1, top_k=0, seed=s, stop_ids=[]))[0][0] for s in range(40)}
    assert len(draws) > 1


@pytest.mark.parametrize("defaults, eos, specials, expected", [
    ({}, None, {}, set()),
    ({"eos_token_id": 3}, None, {}, {3}),
    ({"eos_token_id": [3, 4]}, 5, {}, {3, 4, 5}),
    ({}, None, {"<|im_end|>": 1, "[EOS]": 2, "[EOT]": 6, "[BOS]": 7}, {1, 2, 6}),
    # Trap: FareedKhan-dev/kimi-k3-in-c#53: the files disagree, and the model writes the other one.
    ({"eos_token_id": 1}, 1, {"<|im_end|>": 1, "[EOS]": 2}, {1, 2}),
])
def test_stop_ids_are_the_union_of_all_that_is_declared(defaults, eos, specials, expected):
    # Trap: Blaizzy/mlx-vlm#2112: the configured id replaced the tokenizer's own.
    model = PaperModel(defaults=defaults, eos=eos, specials=specials)
    assert default_stop_ids(model) == expected


# The embedded model.


@pytest.fixture(scope="module")
def model():
    return k2ref.load()


def ask(model, text):
    return k2ref.render(model.tokenizer, [{"role": "user", "content": text}])


def test_greedy_is_the_argmax_of_one_uncached_forward(model):
    ids = ask(model, "37+58=")
    reply, reason = ended(generate(model, ids, temperature=0, logprobs=2))
    assert reason == "stop" and len(reply) > 9
    logits = k2ref.forward(model, ids + reply)[len(ids) - 1 :]
    likeliest = logits.argmax(axis=1).tolist()
    assert likeliest[:-1] == reply
    assert likeliest[-1] in default_stop_ids(model)
    if k2ref.ops.kernels:  # the same bits, cached or not; NumPy promises only to be near
        assert [t.logprob for t in reply] == [
            log_probabilities(row)[t] for row, t in zip(logits, reply, strict=False)]
        assert all(t.top[0] == (t, t.logprob) and len(t.top) == 2 for t in reply)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_the_reply_does_not_depend_on_how_the_prompt_was_cut(model, monkeypatch, chunk):
    ids = ask(model, "12+345=")
    expected = list(generate(model, ids, max_new_tokens=20, temperature=0))
    monkeypatch.setattr("k2ref.run.CHUNK", chunk)
    assert list(generate(model, ids, max_new_tokens=20, temperature=0)) == expected


def test_a_second_turn_needs_only_its_new_ids(model):
    cache = k2ref.KVCache(model.config, 500)
    first = ask(model, "1+2=")
    reply, reason = ended(generate(model, first, temperature=0, cache=cache))
    assert reason == "stop" and cache.length == len(first) + len(reply)
    end = model.tokenizer.special_id("<|im_end|>")
    new = [end, *ask(model, "20+30=")]
    held = list(generate(model, new, 30, temperature=0, cache=cache))
    assert held == list(generate(model, [*first, *reply, *new], 30, temperature=0))


def test_a_seed_repeats_the_reply_and_another_gives_another(model):
    ids = ask(model, "3+4=")
    a, b, c = (list(generate(model, ids, 20, temperature=20.0, seed=s)) for s in (1, 1, 2))
    assert a == b != c


def test_stop_ids_of_the_embedded_model_include_the_end_of_turn(model):
    stop = default_stop_ids(model)
    assert model.tokenizer.special_id("<|im_end|>") in stop
    assert model.tokenizer.special_id("[EOS]") in stop


def test_a_reply_that_is_abandoned_leaves_a_cache_that_can_go_on(model):
    ids, cache = ask(model, "3+4="), k2ref.KVCache(model.config, 200)
    tokens = generate(model, ids, temperature=0, cache=cache)
    got = [next(tokens) for _ in range(5)]
    tokens.close()
    assert cache.length == len(ids) + 4  # the fifth was not read yet
    rest = list(generate(model, got[-1:], temperature=0, cache=cache))
    assert got + rest == list(generate(model, ids, temperature=0))
