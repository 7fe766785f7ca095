"""The lessons of the embedded model: the split holds, conversations are whole, batches exact."""

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.conversation import history
from k2ref.tools import demonstration, schema
from scripts.tiny import evaluate
from scripts.tiny.lessons import (
    columns,
    comparisons,
    lessons,
    lookups,
    phrases,
    problems,
    stories,
    sums,
    talk,
)
from scripts.tiny.lessons import facts as tiny_facts
from scripts.tiny.lessons import tools as tiny_tools
from scripts.tiny.lessons import words as tiny_words

SEEDS = st.integers(0, 2**32)
INTENTS = list(lessons.INTENTS)
PHRASINGS = {
    **tiny_facts.PHRASINGS, "again": tiny_facts.AGAIN, "ask": lookups.ASK,
    "look up": lookups.LOOK, "lookups": lookups.SUMS, "go": lookups.GO,
    "story": stories.STORY, "joke": talk.ASK_JOKE, "hello": talk.HELLOS,
    "thanks": talk.THANKS, "bye": talk.BYES, "who": talk.WHO, "can": talk.CAN,
    "unknown": talk.ASK_TOPIC, "repeat": talk.REPEAT,
}

SUMS = {  # kind: the lists that one phrasing is drawn from
    "sum": [phrases.FRAMES, *phrases.OWN.values()],
    "chain": list(phrases.CHAINS.values()), "now": [phrases.NOW],
    "compare it": [comparisons.LARGER, comparisons.SMALLER],
}
SUM_INTENTS = [sums.one_step, sums.word_problem, sums.chain, sums.columns,
               sums.no_calculator, comparisons.compare]


def name_of(intent):
    return intent.__name__


@pytest.mark.parametrize("intent", INTENTS, ids=name_of)
@given(seed=SEEDS, held_out=st.booleans())
def test_an_exchange_holds_only_its_side_of_the_split(intent, seed, held_out):
    exchange = intent(random.Random(seed), held_out)
    assert exchange.held
    for kind, text in exchange.held:
        if kind not in lessons.UNSPLIT:
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
    for draw in (lessons.lesson, lessons.window):
        assert lessons.held_out(draw(rng)[2])[1] == []


def test_held_out_finds_what_is_held_out():
    exchange = sums.one_step(random.Random(0), held_out=True)
    held, bad = lessons.held_out([exchange])
    assert bad == held and len(held) == 2


@pytest.mark.thorough
def test_no_question_of_the_evaluation_is_in_20000_lessons():
    asked, rng = evaluate.questions(50), random.Random("lessons")
    assert len(asked) > 800
    for _ in range(20_000):
        for exchange in lessons.lesson(rng)[2]:
            assert exchange.question not in asked


@given(SEEDS)
def test_every_call_is_to_a_declared_tool_and_fits_its_schema(seed):
    messages, tools, _ = lessons.lesson(random.Random(seed))
    declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    assert len(declared) == len(tools)
    for message in messages:
        for call in message.get("tool_calls", ()):
            arguments = json.loads(call["function"]["arguments"])
            schema.check(arguments, declared[call["function"]["name"]])


@given(SEEDS)
def test_ids_of_a_lesson_are_those_that_the_official_api_gives(seed):
    messages, _, _ = lessons.lesson(random.Random(seed))
    assert history.rename_calls(messages) == messages


@given(SEEDS)
def test_ids_of_a_window_count_on(seed):
    messages, _, _ = lessons.window(random.Random(seed))
    ids = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    counts = [int(id.rsplit(":", 1)[1]) for id in ids]
    assert counts == list(range(counts[0], counts[0] + len(ids)))


def test_the_tools_of_the_demonstration_are_among_those_of_the_lessons():
    rng = random.Random(0)
    for function, draw in ((demonstration.calculator, tiny_tools.calculator),
                           (demonstration.lookup, tiny_tools.lookup)):
        assert schema.declaration(function) in [draw(rng) for _ in range(50)]


@given(SEEDS)
def test_calculations_are_those_of_the_demonstration(seed):
    exchange = sums.chain(random.Random(seed))
    for call in exchange.calls:
        assert demonstration.calculator(tiny_tools.argument(call)) == call[3]
    assert exchange.content == f"The result is {exchange.calls[-1][3]}."


@given(SEEDS)
def test_one_step_gives_the_result_of_the_calculator(seed):
    exchange = sums.one_step(random.Random(seed))
    (call,) = exchange.calls
    assert exchange.content == f"{tiny_tools.argument(call)} = {call[3]}"
    assert demonstration.calculator(tiny_tools.argument(call)) == call[3]


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_solve_writes_the_sum_and_is_told_apart_by_the_pair_alone(a, b):
    thinking, content = columns.solve(a, b)
    assert content == f"{a} + {b} = {a + b}"
    assert int(re.search(r"write (\d+)$", thinking)[1]) == a + b
    first, padded, named, *_ = thinking.split("\n")
    assert first == f"{a} + {b}: {len(str(a))} and {len(str(b))} digits"
    x, y = padded.split(" + ")
    assert len(x) == len(y) and (int(x), int(y)) == (a, b)
    assert re.findall(r"\w+ (\d) \+ (\d)", named) == list(zip(x, y, strict=True))
    assert columns.is_held_out(a, b) == columns.is_held_out(b, a)


@given(SEEDS, st.booleans())
def test_columns_draws_its_pair_from_the_wanted_side(seed, held_out):
    exchange = sums.columns(random.Random(seed), held_out)
    a, b = map(int, re.match(r"(\d+) \+ (\d+)", exchange.thinking).groups())
    assert columns.is_held_out(a, b) == held_out
    assert exchange.content == f"{a} + {b} = {a + b}"


@given(SEEDS, st.sampled_from(sorted(PHRASINGS)))
def test_loosely_changes_small_words_only_and_never_into_a_held_out_phrasing(seed, kind):
    rng = random.Random(seed)
    template = tiny_words.choose(rng, kind, PHRASINGS[kind])
    text = tiny_words.loosely(rng, kind, template)
    assert not tiny_words.is_held_out(kind, text)
    free = tiny_words.SMALL | set(" ".join(tiny_words.FILLERS).split())
    before, after = ([word for word in x.lower().split() if word not in free]
                     for x in (template, text))
    assert before == after


@given(SEEDS, st.sampled_from(sorted(PHRASINGS)))
def test_a_phrasing_of_a_test_stands_in_the_patterns_as_it_is(seed, kind):
    text = tiny_words.phrasing(random.Random(seed), kind, PHRASINGS[kind], held_out=True)
    assert tiny_words.is_held_out(kind, text)
    assert any(text in tiny_words.variants(pattern) for pattern in PHRASINGS[kind])


@given(SEEDS, st.booleans())
def test_a_person_may_be_anybody_in_a_lesson_and_is_of_the_list_in_a_test(seed, held_out):
    rng = random.Random(seed)
    people = [sums.person(rng, held_out) for _ in range(30)]
    assert all(tiny_words.is_held_out("person", one) == held_out for one in people)
    assert (set(people) <= set(tiny_words.PEOPLE)) == held_out


@given(SEEDS, st.booleans())
def test_a_chain_quotes_the_steps_of_its_question_in_order(seed, held_out):
    exchange = sums.chain(random.Random(seed), held_out)
    place, question = 0, exchange.question.lower()
    for thinking, *_ in exchange.calls:
        phrase = re.search(r" (?:First|Next) (.*):", thinking)[1]
        place = question.index(phrase, place) + len(phrase)


@given(SEEDS, st.booleans())
def test_a_word_problem_is_answered_as_its_question_is_put(seed, held_out):
    exchange = sums.word_problem(random.Random(seed), held_out)
    (call,) = exchange.calls
    result = tiny_tools.argument(call)
    assert demonstration.calculator(result) == call[3]
    assert f" {call[3]} " in exchange.content
    asked = exchange.question.lower()
    if re.search(r"how many [a-z ]*(left|remain|still)", asked) and "more" not in exchange.content:
        assert "left" in exchange.content or "needs" in exchange.content
    assert exchange.content.startswith("Each ") == (" / " in result)


@pytest.mark.parametrize("kind", SUMS)
def test_sums_are_asked_for_in_hundreds_of_ways_on_both_sides(kind):
    for patterns in SUMS[kind]:
        texts = {text for pattern in patterns for text in tiny_words.variants(pattern)}
        n_held_out = sum(tiny_words.is_held_out(kind, text) for text in texts)
        assert n_held_out >= 30 and len(texts) - n_held_out >= 250
        assert not [text for text in texts if re.search(r"[][|<>]|  |[^=] [?.,]", text)]
        for pattern in patterns:
            assert len(tiny_words.variants(pattern)) >= 3, pattern


@pytest.mark.parametrize("op", "+-*/")
def test_problems_have_many_variants_on_both_sides(op):
    rng = random.Random(op)
    drawn = {held_out: {problems.problem(rng, op, held_out)[0] for _ in range(2000)}
             for held_out in (False, True)}
    assert min(map(len, drawn.values())) > 1000 and len(problems.patterns(op)) >= 100
    both = drawn[True] | drawn[False]
    assert not [text for text in both if re.search(r"[][|<>]|  | [?.,]", text)]


@pytest.mark.parametrize("intent", SUM_INTENTS, ids=name_of)
@given(seed=SEEDS, held_out=st.booleans())
def test_a_question_about_sums_has_no_double_space_and_no_brackets(intent, seed, held_out):
    question = intent(random.Random(seed), held_out).question
    assert not re.search(r"[][{}|]|  | [.,]", question), question


@given(SEEDS)
def test_compare_is_right(seed):
    exchange = comparisons.compare(random.Random(seed))
    x, sign, y = re.search(r"So (\d+) ([<>]) (\d+)\.", exchange.thinking).groups()
    assert (int(x) > int(y)) == (sign == ">") and x != y
    a, b = next(text for kind, text in exchange.held if kind == "pair").split()
    words = exchange.content.removesuffix(".").split()
    found, word = words[-3], words[-1]
    assert int(found) == (max if word == "larger" else min)(int(a), int(b))


@given(SEEDS, st.booleans())
def test_right_story_takes_what_the_grammar_tells_and_no_other_subject(seed, held_out):
    exchange = stories.story(random.Random(seed), held_out)
    subject = dict(exchange.held)["hero"]
    assert evaluate.right_story(exchange, exchange.content)
    assert not evaluate.right_story(exchange, exchange.content.replace(subject, "unicorn"))
    assert not evaluate.right_story(exchange, exchange.content + " And so")


@given(SEEDS, st.integers(1, 12), st.sampled_from(["number", "word", "code", "name", "noun"]))
def test_each_page_of_a_trail_names_the_next(seed, n_pages, style):
    exchange = lookups.trail(random.Random(seed), True, n_pages, style)
    pages = [tiny_tools.argument(call) for call in exchange.calls]
    assert len(pages) == n_pages
    assert pages[0] in exchange.question
    for call, page in zip(exchange.calls, pages[1:], strict=False):
        assert page in call[3]
    assert exchange.content == f"The last page is {pages[-1]}."


def test_there_are_hundreds_of_facts_and_each_is_known_once():
    facts = [fact for topic in tiny_facts.TOPICS.values() for fact in topic[2]]
    assert len(facts) > 500
    for topic, (_, _, known, _, _) in tiny_facts.TOPICS.items():
        assert len({k for k, _ in known}) == len(known), topic


@pytest.mark.parametrize("kind", PHRASINGS)
def test_a_kind_is_asked_for_in_hundreds_of_ways_and_no_construction_is_held_out_whole(kind):
    patterns = set(PHRASINGS[kind])
    texts = {text for pattern in patterns for text in tiny_words.variants(pattern)}
    n_held_out = sum(tiny_words.is_held_out(kind, text) for text in texts)
    assert n_held_out >= 20 and len(texts) - n_held_out >= 150
    assert not [text for text in texts if re.search(r"[][|<>]|  ", text)]
    for pattern in patterns:
        ways = tiny_words.variants(pattern)
        assert not all(tiny_words.is_held_out(kind, text) for text in ways), pattern
        assert len(ways) >= 6, pattern


def test_a_phrasing_means_one_thing_but_for_names_that_a_tool_may_know():
    kinds = {}
    for kind, patterns in PHRASINGS.items():
        for text in {text for pattern in patterns for text in tiny_words.variants(pattern)}:
            kinds.setdefault(text.lower().rstrip("?.! "), set()).add(kind)
    assert {frozenset(found) for found in kinds.values() if len(found) > 1} == {
        frozenset({"unknown", "look up"})}


@given(SEEDS, st.booleans())
def test_what_is_to_be_repeated_ends_the_question_or_stands_before_its_mark(seed, held_out):
    exchange = talk.repeat(random.Random(seed), held_out)
    assert exchange.question.rstrip("?").endswith(" " + exchange.content)


def test_same_call_lets_sums_be_turned_round_and_nothing_else():
    class Call:
        def __init__(self, name, arguments):
            self.name, self.arguments = name, arguments

    class Reply:
        def __init__(self, *calls):
            self.tool_calls = calls

    def same(text, wanted, name="calc"):
        reply = Reply(Call(name, json.dumps({"x": text})))
        return evaluate.same_call(reply, ("", "calc", json.dumps({"x": wanted}), ""))

    assert same("3 + 4", "3 + 4") and same("4 + 3", "3 + 4") and same("4 * 3", "3 * 4")
    assert not same("4 - 3", "3 - 4") and not same("4 + 3", "3 * 4")
    assert not same("3 + 4", "3 + 4", name="compute")
    assert not evaluate.same_call(Reply(), ("", "calc", "{}", ""))
    assert not evaluate.same_call(Reply(Call("calc", "{")), ("", "calc", "{}", ""))
