"""The lessons of the embedded model: conversations of all kinds, generated, never shipped.

An intent (`tiny_sums`, `tiny_facts`, `tiny_lookups`, `tiny_talk` ...) gives one exchange; here
exchanges become conversations with a system prompt, earlier turns, and calls whose ids count over
the conversation.
"""

import random

from scripts.tiny.lessons import comparisons, facts, lookups, stories, sums, talk
from scripts.tiny.lessons.tools import (
    OTHER_TOOLS,
    argument,
    arguments,
    calculator,
    called,
    find_calculator,
    lookup,
)
from scripts.tiny.lessons.words import SYSTEMS, Exchange, is_held_out, made_up, noisy, phrasing

INTENTS = {  # how often each is drawn
    sums.one_step: 9, sums.word_problem: 16, sums.chain: 13, sums.columns: 9,
    sums.no_calculator: 4, comparisons.compare: 5, facts.fact: 26,
    lookups.attribute: 9, lookups.look: 5, lookups.error: 2,
    lookups.lookups_and_sum: 5, lookups.unfit: 4, lookups.trail: 5,
    stories.story: 6, talk.joke: 1, talk.greeting: 5, talk.about: 4,
    talk.unknown: 12, talk.repeat: 10,
}
UNSPLIT = {"topic"}  # topics are also put together of words from the right side


def same_again(rng, before, held_out=False):
    """Ask for the same attribute of another name: "and of Belrit?"."""
    _, w, tool = before.then
    after = lookups.attribute(rng, held_out, what=w, template="{x}")
    template = phrasing(rng, "again", facts.AGAIN, held_out)
    title, key = called(tool)
    query = argument(after.calls[0])
    x = query.removeprefix(f"{w} of ")
    thinking, _, _, shown = after.calls[0]
    thinking = f"I do not know {x}. I can use {title}."
    of = rng.choice([f"of {x}", f"for {x}", x])
    after.question = noisy(rng, template).replace("{of}", of).replace("{x}", x)
    after.calls = [(thinking, title, arguments({key: query}), shown)]
    after.tools, after.then = before.tools, before.then
    after.held = [("again", template)] + made_up(x)
    return after


def follow_up(rng, before, held_out=False):
    """Draw an exchange that needs the one before it; None where nothing follows from that."""
    kind = before.then[0] if before.then else None
    if kind == "fact" and before.then[1] in facts.OF:
        return facts.again(rng, before, held_out)
    if kind == "number" and before.then[1].lstrip("-").isdigit() and len(before.then[1]) < 8:
        return sums.further(rng, before, held_out)
    if kind == "attribute":
        return same_again(rng, before, held_out)
    return None


def draw(rng):
    """Draw one exchange of any intent."""
    return rng.choices(list(INTENTS), list(INTENTS.values()))[0](rng)


def conversation(exchanges, system=None, first_id=0, named=False):
    """Write exchanges as messages; ids count the calls of the whole conversation.

    Some clients put the name of the function into its result (`named`), some do not.
    """
    messages, n_calls = ([{"role": "system", "content": system}] if system else []), first_id
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        for thinking, name, args, result in exchange.calls:
            call_id = f"functions.{name}:{n_calls}"
            n_calls += 1
            messages += [
                {"role": "assistant", "content": "", "reasoning_content": thinking, "tool_calls": [
                    {"id": call_id, "type": "function",
                     "function": {"name": name, "arguments": args}}]},
                {"role": "tool", **({"name": name} if named else {}), "tool_call_id": call_id,
                 "content": result}]
        messages.append({"role": "assistant", "content": exchange.content,
                         "reasoning_content": exchange.thinking})
    return messages


def same_tools(exchanges):
    """Say whether the exchanges can share one list of tools: all calls to the first one's."""
    declared = [{t["function"]["name"] for t in e.tools} for e in exchanges]
    return all(names == declared[0] for names in declared)


def system(rng):
    """Draw a system prompt, mostly none, so that the template's default stands."""
    return rng.choice(SYSTEMS) if rng.random() < 0.12 else None


def lesson(rng):
    """Draw a conversation: (messages, tools, the exchanges in it)."""
    first = draw(rng)
    exchanges = [first]
    if rng.random() < 0.3:
        follow = follow_up(rng, first)
        if follow is not None:
            exchanges.append(follow)
            if rng.random() < 0.3:
                follow = follow_up(rng, follow)
                exchanges += [follow] if follow is not None else []
    elif not first.tools and rng.random() < 0.12:
        second = draw(rng)
        if not second.tools:
            exchanges.append(second)
    elif first.tools and rng.random() < 0.2:
        exchanges = [earlier(rng, first), *exchanges]
    tools = first.tools
    if not tools and first.held and rng.random() < 0.25 and is_talk(exchanges):
        tools = rng.choice([[calculator(rng)], [lookup(rng)], [calculator(rng), lookup(rng)],
                            rng.sample(OTHER_TOOLS, 2)]) if not is_topic(exchanges) else []
    return conversation(exchanges, system(rng), 0, rng.random() < 0.6), tools, exchanges


def earlier(rng, first):
    """Make an exchange that uses the tools of `first`, to stand before it, or small talk."""
    calc = find_calculator(first.tools)
    if calc is None or rng.random() < 0.3:
        return talk.greeting(rng)
    before = sums.one_step(rng)
    title, key = called(calc)
    value = argument(before.calls[0])
    before.calls = [(before.calls[0][0], title, arguments({key: value}), before.calls[0][3])]
    return before


def is_talk(exchanges):
    """Say whether the answers need no tool, whatever tools there are."""
    kinds = {"story", "joke", "hello", "thanks", "bye", "who", "can", *facts.TOPICS, "repeat",
             "compare it"}
    return all(exchange.held[0][0] in kinds for exchange in exchanges)


def is_topic(exchanges):
    """Say whether an exchange is about something unknown, where a lookup tool would help."""
    return any(exchange.held[0][0] == "unknown" for exchange in exchanges)


def window(rng, held_out=False):
    """Draw a late part of a long trail: the question and the last turns; as `lesson`.

    Half of the clients number the calls that are left anew, as the official API does.
    """
    style = rng.choice(["number", "word", "code"] * 3 + ["noun"])
    kept = rng.choice([1, 2, 3, 3, 3, 4, 5, 6, 8])
    first = lookups.page(rng, style, held_out)
    found = lookups.trail(rng, held_out, kept + 2, style, first)
    before, after, question = found.calls[1:], found.content, found.question
    count = 0 if rng.random() < 0.5 else rng.randint(1, 420)
    ends = rng.random() < 0.3
    calls = before if ends else before[:-1]
    late = Exchange(question, found.thinking, after, calls, found.tools)
    messages = conversation([late], system(rng), count, rng.random() < 0.6)
    return (messages if ends else messages[:-2]), found.tools, [found]


def long_trail(rng, n_pages):
    """Draw a whole trail from its beginning, with all its history."""
    style = rng.choice(["number"] * 5 + lookups.STYLES)
    found = lookups.trail(rng, n_pages=n_pages, style=style)
    return conversation([found], system(rng), 0, rng.random() < 0.6), found.tools, [found]


def held_out(exchanges):
    """List what of exchanges the split speaks of, and what of it is held out."""
    held = [entry for exchange in exchanges for entry in exchange.held]
    return held, [entry for entry in held if entry[0] not in UNSPLIT and is_held_out(*entry)]


def seeded(seed, step):
    """Return the random numbers of one step."""
    return random.Random(f"{seed} step {step}")
