"""The lessons of the embedded model: the split holds, conversations are whole, batches exact."""

import json
import random
import re

import eval_tiny
import pytest
import tiny_columns
import tiny_compare
import tiny_data
import tiny_facts
import tiny_lookups
import tiny_stories
import tiny_sums
import tiny_words
from hypothesis import given
from hypothesis import strategies as st

from k2ref import demonstration, history, schema

SEEDS = st.integers(0, 2**32)
INTENTS = list(tiny_data.INTENTS)


def name_of(intent):
    return intent.__name__


@pytest.mark.parametrize("intent", INTENTS, ids=name_of)
@given(seed=SEEDS, held_out=st.booleans())
def test_an_exchange_holds_only_its_side_of_the_split(intent, seed, held_out):
    exchange = intent(random.Random(seed), held_out)
    assert exchange.held
    for kind, text in exchange.held:
        if kind not in tiny_data.UNSPLIT:
            assert tiny_words.is_held_out(kind, text) == held_out, (kind, text)


@pytest.mark.parametrize("intent", INTENTS, ids=name_of)
@given(seed=SEEDS)
def test_no_placeholder_is_left(intent, seed):
    exchange = intent(random.Random(seed))
    texts = [exchange.question, exchange.thinking, exchange.content]
    texts += [call[0] for call in exchange.calls] + [call[3] for call in exchange.calls]
    assert not [text for text in texts if "{" in text or "§" in text or not text.strip()]


@given(SEEDS)
def test_no_lesson_holds_anything_held_out(seed):
    rng = random.Random(seed)
    for draw in (tiny_data.lesson, tiny_data.window):
        assert tiny_data.held_out(draw(rng)[2])[1] == []


def test_held_out_finds_what_is_held_out():
    exchange = tiny_sums.one_step(random.Random(0), held_out=True)
    held, bad = tiny_data.held_out([exchange])
    assert bad == held and len(held) == 2


def test_no_question_of_the_evaluation_is_in_20000_lessons():
    asked, rng = eval_tiny.questions(50), random.Random("lessons")
    assert len(asked) > 800
    for _ in range(20_000):
        for exchange in tiny_data.lesson(rng)[2]:
            assert exchange.question not in asked


@given(SEEDS)
def test_every_call_is_to_a_declared_tool_and_fits_its_schema(seed):
    messages, tools, _ = tiny_data.lesson(random.Random(seed))
    declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    assert len(declared) == len(tools)
    for message in messages:
        for call in message.get("tool_calls", ()):
            arguments = json.loads(call["function"]["arguments"])
            schema.check(arguments, declared[call["function"]["name"]])


@given(SEEDS)
def test_ids_of_a_lesson_are_those_that_the_official_api_gives(seed):
    messages, _, _ = tiny_data.lesson(random.Random(seed))
    assert history.rename_calls(messages) == messages


@given(SEEDS)
def test_ids_of_a_window_count_on(seed):
    messages, _, _ = tiny_data.window(random.Random(seed))
    ids = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    counts = [int(id.rsplit(":", 1)[1]) for id in ids]
    assert counts == list(range(counts[0], counts[0] + len(ids)))


def test_the_tools_of_the_demonstration_are_among_those_of_the_lessons():
    rng = random.Random(0)
    for function, draw in ((demonstration.calculator, tiny_words.calculator),
                           (demonstration.lookup, tiny_words.lookup)):
        assert schema.declaration(function) in [draw(rng) for _ in range(50)]


@given(SEEDS)
def test_calculations_are_those_of_the_demonstration(seed):
    exchange = tiny_sums.chain(random.Random(seed))
    for call in exchange.calls:
        assert demonstration.calculator(tiny_words.argument(call)) == call[3]
    assert exchange.content == f"The result is {exchange.calls[-1][3]}."


@given(SEEDS)
def test_one_step_gives_the_result_of_the_calculator(seed):
    exchange = tiny_sums.one_step(random.Random(seed))
    (call,) = exchange.calls
    assert exchange.content == f"{tiny_words.argument(call)} = {call[3]}"
    assert demonstration.calculator(tiny_words.argument(call)) == call[3]


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_solve_writes_the_sum_and_is_told_apart_by_the_pair_alone(a, b):
    thinking, content = tiny_columns.solve(a, b)
    assert content == f"{a} + {b} = {a + b}"
    assert int(re.search(r"write (\d+)$", thinking)[1]) == a + b
    assert tiny_columns.is_held_out(a, b) == tiny_columns.is_held_out(b, a)


@given(SEEDS, st.booleans())
def test_columns_draws_its_pair_from_the_wanted_side(seed, held_out):
    exchange = tiny_sums.columns(random.Random(seed), held_out)
    a, b = map(int, re.match(r"(\d+) \+ (\d+)", exchange.thinking).groups())
    assert tiny_columns.is_held_out(a, b) == held_out
    assert exchange.content == f"{a} + {b} = {a + b}"


@given(SEEDS)
def test_compare_is_right(seed):
    exchange = tiny_compare.compare(random.Random(seed))
    a, b = next(text for kind, text in exchange.held if kind == "pair").split()
    words = exchange.content.removesuffix(".").split()
    found, word = words[-3], words[-1]
    assert int(found) == (max if word == "larger" else min)(int(a), int(b))


@given(SEEDS, st.booleans())
def test_right_story_takes_what_the_grammar_tells_and_no_other_subject(seed, held_out):
    exchange = tiny_stories.story(random.Random(seed), held_out)
    subject = dict(exchange.held)["hero"]
    assert eval_tiny.right_story(exchange, exchange.content)
    assert not eval_tiny.right_story(exchange, exchange.content.replace(subject, "unicorn"))
    assert not eval_tiny.right_story(exchange, exchange.content + " And so")


@given(SEEDS, st.integers(1, 12), st.sampled_from(["number", "word", "code", "name", "noun"]))
def test_each_page_of_a_trail_names_the_next(seed, n_pages, style):
    exchange = tiny_lookups.trail(random.Random(seed), True, n_pages, style)
    pages = [tiny_words.argument(call) for call in exchange.calls]
    assert len(pages) == n_pages
    assert pages[0] in exchange.question
    for call, page in zip(exchange.calls, pages[1:], strict=False):
        assert page in call[3]
    assert exchange.content == f"The last page is {pages[-1]}."


def test_there_are_hundreds_of_facts_and_each_topic_is_asked_for_in_many_ways():
    facts = [fact for topic in tiny_facts.TOPICS.values() for fact in topic[2]]
    assert len(facts) > 500
    for topic, (_, _, known, _) in tiny_facts.TOPICS.items():
        assert len(tiny_facts.PHRASINGS[topic]) >= 8, topic
        assert len({k for k, _ in known}) == len(known), topic
    assert len(tiny_facts.PHRASINGS["capital"]) >= 30


def test_same_call_lets_sums_be_turned_round_and_nothing_else():
    class Call:
        def __init__(self, name, arguments):
            self.name, self.arguments = name, arguments

    class Reply:
        def __init__(self, *calls):
            self.tool_calls = calls

    def same(text, wanted, name="calc"):
        reply = Reply(Call(name, json.dumps({"x": text})))
        return eval_tiny.same_call(reply, ("", "calc", json.dumps({"x": wanted}), ""))

    assert same("3 + 4", "3 + 4") and same("4 + 3", "3 + 4") and same("4 * 3", "3 * 4")
    assert not same("4 - 3", "3 - 4") and not same("4 + 3", "3 * 4")
    assert not same("3 + 4", "3 + 4", name="compute")
    assert not eval_tiny.same_call(Reply(), ("", "calc", "{}", ""))
    assert not eval_tiny.same_call(Reply(Call("calc", "{")), ("", "calc", "{}", ""))
