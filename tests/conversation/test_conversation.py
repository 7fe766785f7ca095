"""Conversations: events out of messages, and a cache that is reused to the same bits."""

import sys

import numpy as np
import pytest
from conftest import COMPILED
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import calling, message_call, of_type, script

import k2ref
from k2ref.conversation.chat import Context, chat, prompt_ids
from k2ref.conversation.events import (
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Done,
    Prompt,
    Thinking,
    ToolCall,
    Usage,
    collect,
)
from k2ref.streaming import memory

SUM = [{"role": "user", "content": "37+58="}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {
    "type": "object", "properties": {"x": {}}}}}


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


def test_chat_gives_the_events_of_the_greedy_reply(model):
    events = list(chat(model, SUM, temperature=0))
    ids = k2ref.render(model.tokenizer, SUM)
    tokens = list(k2ref.generate(model, ids, temperature=0))
    expected = k2ref.parse(model.tokenizer, tokens)
    assert events[0] == Prompt(len(ids), 0) and collect(events) == expected
    assert events[-1] == Done("stop", {
        "role": "assistant", "content": expected.content, "reasoning_content": expected.thinking},
        Usage(len(ids), 0, len(tokens)))
    assert {type(event) for event in events} == {Prompt, Thinking, Content, Done}


def test_a_tool_call_comes_piece_by_piece_and_whole(model, monkeypatch):
    script(monkeypatch, model, calling(("functions.f:0", '{"x": 1}'), ("g:7", "{}"), thinking="t"))
    events = list(chat(model, SUM, [TOOL]))
    calls = [ToolCall("functions.f:0", "f", '{"x": 1}'), ToolCall("g:7", "g", "{}")]
    assert of_type(events, ToolCall) == calls
    for call in calls:  # right behind its end
        assert isinstance(events[events.index(call) - 1], CallEnd)
    assert len(of_type(events, CallBegin)) == 2 and of_type(events, CallArguments)
    done = events[-1]
    assert done.finish_reason == "tool_calls"
    assert done.message["tool_calls"] == [message_call("functions.f:0", "f", '{"x": 1}'),
                                          message_call("g:7", "g", "{}")]
    # What came out goes in again.
    prompt_ids(model, [*SUM, done.message])


def test_length_is_the_reason_even_after_a_call(model, monkeypatch):
    script(monkeypatch, model, calling(("functions.f:0", "{}")) + " and so on")
    n = len(model.tokenizer.encode(calling(("functions.f:0", "{}")), allow_special=True))
    done = list(chat(model, SUM, [TOOL], max_new_tokens=n + 1))[-1]
    assert done.finish_reason == "length" and done.usage.completion_tokens == n + 1


CALL = calling(("functions.f:0", '{"x": 1}'))


@pytest.mark.parametrize("cut", ["<|tool_call_end|>", "<|tool_call_argument_begin|>", '"x"', "1}"])
def test_a_call_that_the_limit_cuts_off_is_marked_everywhere(model, monkeypatch, cut):
    """Trap: the arguments may be JSON, or nothing, and the call is still not what was meant."""
    is_whole = cut == "<|tool_call_end|>"
    n = len(model.tokenizer.encode(CALL[:CALL.index(cut) + len(cut)], allow_special=True))
    script(monkeypatch, model, CALL)
    events = list(chat(model, SUM, [TOOL], max_new_tokens=n))
    (call,), (end,), done = of_type(events, ToolCall), of_type(events, CallEnd), events[-1]
    assert call.complete == end.complete == is_whole and call.name == "f"
    assert done.finish_reason == "length"
    assert [c.get("complete", True) for c in done.message["tool_calls"]] == [is_whole]
    prompt_ids(model, [*SUM, done.message])  # what came out goes in again


@pytest.mark.parametrize("end", ["<|tool_calls_section_end|>", "<|im_end|>", "[EOS]", "[EOT]"])
def test_a_call_that_the_model_does_not_close_is_no_reason_to_run_tools(model, monkeypatch, end):
    script(monkeypatch, model, CALL[:CALL.index("<|tool_call_end|>")] + end)
    *_, call, done = chat(model, SUM, [TOOL])
    assert not call.complete and call == ToolCall("functions.f:0", "f", '{"x": 1}')
    assert done.finish_reason == "stop" and not done.message["tool_calls"][0]["complete"]


def test_a_partial_message_is_continued(model, monkeypatch):
    """The reply is what was added; that it has no thinking is known from the prompt."""
    for style, options in (("k2-thinking", {}), ("k2.6", {}), ("k2.6", {"thinking": False})):
        monkeypatch.setattr(model.tokenizer, "style", style)
        script(monkeypatch, model, " is 2</think>.")
        context = Context(model)
        messages = [*SUM, {"role": "assistant", "content": "1+1", "partial": True}]
        *_, done = chat(model, messages, context=context, **options)
        assert done.message == {"role": "assistant", "content": " is 2."}
        assert "<think></think>1+1 is 2</think>." in model.tokenizer.decode(context.ids)


def test_tools_name_the_calls_of_a_bare_counter(model, monkeypatch):
    script(monkeypatch, model, calling(("0", '{"x": 1}')))
    assert of_type(chat(model, SUM, [TOOL]), ToolCall) == [ToolCall("0", "f", '{"x": 1}')]


def test_every_token_is_told(model):
    told = []
    done = list(chat(model, SUM, temperature=0, max_new_tokens=9, on_token=told.append))[-1]
    assert done.usage.completion_tokens == 9 == len(told)
    ids = k2ref.render(model.tokenizer, SUM)
    assert told == list(k2ref.generate(model, ids, 9, temperature=0))


def test_the_ids_of_other_apis_are_renamed(model):
    messages = [*SUM, {"role": "assistant", "content": "",
                       "tool_calls": [message_call("call_abc", "f", "{}")]},
                {"role": "tool", "tool_call_id": "call_abc", "content": "1"}]
    context = Context(model)
    list(chat(model, messages, [TOOL], context=context, max_new_tokens=1))
    text = model.tokenizer.decode(context.ids)
    assert "call_abc" not in text and text.count("functions.f:0") == 2


@pytest.mark.parametrize("style, spelling", [
    ("k2-thinking", '"name":"f"'), ("k2.6", "type f = (_: {")])
def test_tools_are_spelled_as_the_style_has_them(model, monkeypatch, style, spelling):
    monkeypatch.setattr(model.tokenizer, "style", style)
    assert spelling in model.tokenizer.decode(prompt_ids(model, SUM, [TOOL]))


def test_a_newer_style_may_answer_without_thinking(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "style", "k2.6")
    script(monkeypatch, model, "now", "hm</think>now")
    for thinking, expected in ((False, "now"), (True, "now")):
        done = list(chat(model, SUM, thinking=thinking))[-1]
        assert done.message["content"] == expected
        assert done.message.get("reasoning_content") == ("hm" if thinking else None)


def test_an_answer_at_once_is_sampled_with_its_own_settings(model, monkeypatch):
    used = []
    scripted = script(monkeypatch, model)

    def sample(logits, rng, seen, n_top, **settings):
        used.append(settings)
        return scripted.sample(logits, rng)

    monkeypatch.setattr(sys.modules["k2ref.generation"], "sample", sample)
    monkeypatch.setattr(model.tokenizer, "style", "k2.6")
    for options in ({}, {"thinking": False}, {"thinking": False, "temperature": 0.2, "top_p": 0.5},
                    {"thinking": False, "temperature": None}):
        scripted.say_instead("")
        list(chat(model, SUM, **options))
    assert [(s["temperature"], s["top_p"]) for s in used] == [
        (1.0, 0.95), (0.6, 0.95), (0.2, 0.5), (0.6, 0.95)]


@pytest.mark.parametrize("options, said", [
    ({"thinking": "no"}, "thinking: expected True or False"), ({"thinking": 0}, "thinking: expec"),
    ({"preserve_thinking": 1}, "preserve_thinking: expected True or False"),
    ({"thinking": False}, "k2-thinking always thinks"),
    ({"preserve_thinking": True}, "expected style k2.6, found k2-thinking")])
def test_a_mode_that_there_is_not_is_refused_when_chat_is_called(model, options, said):
    with pytest.raises(k2ref.ChatError, match=said):
        chat(model, SUM, **options)


@pytest.mark.parametrize("arguments, error", [
    (("hello",), "messages: expected a list"), ((["hello"],), "expected a dict with a role"),
    ((SUM, "tools"), "tools: expected a list of dicts")])
def test_mistakes_are_found_when_chat_is_called(model, arguments, error):
    with pytest.raises(k2ref.ChatError, match=error):
        chat(model, *arguments)
    with pytest.raises(ValueError, match="top_p"):
        chat(model, SUM, top_p=0)


# The cache between two prompts.

def same_rows(context):
    """The rows of a context's cache and of one that reads its ids afresh."""
    fresh = k2ref.KVCache(context.model.config, max(1, len(context.ids)), context.cache.dtype)
    k2ref.forward(context.model, context.ids, fresh)
    n = context.cache.length
    return all(np.array_equal(a[:n], b[:n])
               for a, b in zip(context.cache.rows, fresh.rows, strict=True))


exact = pytest.mark.skipif(not COMPILED, reason="NumPy promises only to be near")


@exact
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_conversation_has_the_bits_of_fresh_starts(model, dtype):
    """Three turns; from the second on the template drops the thinking of the turn before."""
    context, messages = Context(model, dtype), []
    for question in ("37+58=", "What is 12 + 345?", "and 1+1"):
        messages.append({"role": "user", "content": question})
        logprobs = []
        events = list(chat(model, messages, context=context, temperature=0, logprobs=1,
                           on_token=lambda token, logprobs=logprobs: logprobs.append(token)))
        fresh = []
        again = list(chat(model, messages, temperature=0, cache_dtype=dtype, logprobs=1,
                          on_token=fresh.append))
        assert logprobs == fresh
        assert [t.logprob for t in logprobs] == [t.logprob for t in fresh]
        assert events[1:-1] == again[1:-1] and events[-1].message == again[-1].message
        assert events[-1].usage.cached_tokens == events[0].n_cached
        assert len(messages) == 1 or events[0].n_cached > 20
        messages.append(events[-1].message)
        assert same_rows(context)


ids_lists = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@settings(max_examples=15)
@given(st.lists(ids_lists, min_size=1, max_size=5))
def test_any_row_of_prompts_leaves_the_cache_of_the_last(model, prompts):
    context = Context(model, capacity=64)
    for ids in prompts:
        n = context.n_shared(ids)
        assert n < len(ids) and context.ids[:n] == ids[:n]
        assert n == len(ids) - 1 or n == len(context.ids) or context.ids[n] != ids[n]
        tokens = list(context.generate(ids, 3, temperature=0, stop_ids=[]))
        assert tokens == list(k2ref.generate(model, ids, 3, temperature=0, stop_ids=[]))
        assert context.ids == [*ids, *tokens[:-1]]  # the last one was not read
    assert not COMPILED or same_rows(context)


def test_the_repetition_penalty_sees_what_the_cache_holds(model):
    context, ids = Context(model), k2ref.render(model.tokenizer, SUM)
    plain = list(k2ref.generate(model, ids, 30, temperature=0))
    expected = list(k2ref.generate(model, ids, 30, temperature=0, repetition_penalty=9.0))
    assert set(plain) & set(ids) and expected != plain  # it says again what the prompt says
    for _ in range(2):
        found = list(context.generate(ids, 30, temperature=0, repetition_penalty=9.0))
        assert found == expected


def test_an_interrupted_prompt_is_gone_on_with(model, monkeypatch):
    monkeypatch.setattr("k2ref.run.CHUNK", 7)
    context, ids = Context(model), k2ref.render(model.tokenizer, SUM)

    def interrupt(done, total):
        if done >= 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(context.generate(ids, 5, temperature=0, on_prefill=interrupt))
    assert context.ids == ids[:14]
    told = []
    found = list(context.generate(ids, 5, temperature=0,
                                  on_prefill=lambda done, total: told.append((done, total))))
    assert found == list(k2ref.generate(model, ids, 5, temperature=0))
    assert told[-1] == (len(ids) - 14, len(ids) - 14)


def test_an_abandoned_reply_leaves_a_context_that_knows_what_it_holds(model):
    context, ids = Context(model), k2ref.render(model.tokenizer, SUM)
    tokens = context.generate(ids, temperature=0)
    got = [next(tokens) for _ in range(5)]
    tokens.close()
    assert context.ids == [*ids, *got[:4]]
    assert context.n_shared([*ids, *got, 1]) == len(ids) + 4


def test_a_refused_setting_leaves_the_context_usable(model):
    context, ids = Context(model), k2ref.render(model.tokenizer, SUM)
    list(context.generate(ids, 3, temperature=0))
    with pytest.raises(ValueError, match="top_p"):
        context.generate(ids[:5], 3, top_p=0)
    assert context.ids == ids[:context.cache.length]


def test_a_conversation_that_needs_more_memory_than_there_is_is_refused(model, monkeypatch):
    context, ids = Context(model), k2ref.render(model.tokenizer, SUM)
    list(context.generate(ids, 5, temperature=0))
    per_token = sum(rows.strides[0] for rows in context.cache.rows)
    monkeypatch.setattr(memory, "available", lambda: 20 * per_token)
    list(context.generate(ids, 5, temperature=0))  # there is memory for these already
    with pytest.raises(ValueError, match=r"KVCache: \d+ tokens in float32 take"):
        context.generate([*ids, *ids], 5)


def test_the_cache_grows_without_moving(model):
    context = Context(model)
    places = [rows.ctypes.data for rows in context.cache.rows]
    ids = k2ref.render(model.tokenizer, SUM)
    for n in (1, 5, 20):
        list(context.generate(ids * n, 2, temperature=0, stop_ids=[]))
    assert [rows.ctypes.data for rows in context.cache.rows] == places
    assert context.limit == model.config.max_position_embeddings
