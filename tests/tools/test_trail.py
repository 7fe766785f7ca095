"""Three hundred calls in one run: a trail of linked pages, followed to its end.

`follow` is all that a model needs to be put on the trail. First the replies are written down, so
that the loop is tested whatever the embedded model has learned; then the embedded model is put on
it by the same function and held to the same `check`, without the script.
"""

import random

import pytest
from conftest import COMPILED
from scripted import answer, calling, of_type, script

import k2ref
from k2ref.conversation.events import Done, Ended, Prompt, ToolCall, ToolResult
from k2ref.streaming import memory


def trail(n, seed=0):
    """The names of n linked pages: different numbers of four digits."""
    return [str(page) for page in random.Random(seed).sample(range(1000, 10_000), n)]


def question(pages):
    return f"Start at page {pages[0]} and follow the links to the end."


def visitor(pages):
    """The tool that opens a page of the trail."""
    following = dict(zip(pages, pages[1:], strict=False))

    def visit(page: str) -> str:
        """Open a page."""
        if page not in pages:
            raise KeyError(f"there is no page {page}")
        return (f"The next page is {following[page]}." if page in following
                else "This is the last page.")

    return visit


def follow(model, pages, on_event=lambda event: None, **options):
    """Put a model on the trail; return its agent, and the events of the run."""
    agent, events = k2ref.Agent(model, [visitor(pages)], **options), []
    for event in agent.run(question(pages)):
        events.append(event)
        on_event(event)
    return agent, events


def check(agent, events, pages):
    """Hold a run to what it must be: each page once, in order, ids counted by the conversation."""
    results = of_type(events, ToolResult)
    assert [result.failure for result in results] == [None] * len(pages)
    assert [result.id for result in results] == [f"functions.visit:{i}" for i in range(len(pages))]
    visited = [call["function"]["arguments"] for message in agent.messages
               for call in message.get("tool_calls", [])]
    assert visited == [f'{{"page": "{page}"}}' for page in pages]
    assert not agent.failures and events[-1] == Ended("stop", len(pages))


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


def written(pages):
    """The replies of a model that knows the way but cannot count beyond nine."""
    visits = [calling((f"functions.visit:{i % 10}", f'{{"page": "{page}"}}'),
                      thinking=f"To {page}.") for i, page in enumerate(pages)]
    return [*visits, answer(f"The last page is {pages[-1]}.", "Done.")]


@pytest.mark.parametrize("n", [40, pytest.param(300, marks=pytest.mark.thorough)])
def test_three_hundred_calls_in_one_run(model, monkeypatch, n):
    n = n if COMPILED else 30  # NumPy needs minutes for three hundred
    pages, own = trail(n), []
    script(monkeypatch, model, *written(pages))
    agent, events = follow(
        model, pages, lambda event: isinstance(event, Done) and own.append(memory.own()),
        keep_turns=3)
    check(agent, events, pages)
    assert len(of_type(events, ToolCall)) == n and len(agent.messages) == 2 * n + 2
    assert agent.messages[-1]["content"] == f"The last page is {pages[-1]}."
    # The prompt does not grow, but by the digits of an index: three turns, whichever they are.
    sizes = [event.n_tokens for event in of_type(events, Prompt)]
    assert max(sizes) - sizes[10] < 30
    # Nor does memory: what a run keeps of a step is its messages and events.
    if own[0] is not None:
        assert max(own[n // 6:]) - own[n // 6] < 4 << 20


def test_with_the_whole_history_only_what_is_new_is_read(model, monkeypatch):
    pages = trail(20)
    script(monkeypatch, model, *written(pages))
    agent, events = follow(model, pages)
    check(agent, events, pages)
    prompts = of_type(events, Prompt)
    usages = [event.usage for event in of_type(events, Done)]
    for before, prompt, usage in zip(prompts, prompts[1:], usages, strict=False):
        # Up to the id, where a model that has lost count is put right.
        assert prompt.n_cached > before.n_tokens
        assert prompt.n_tokens - prompt.n_cached < usage.completion_tokens + 60


@pytest.mark.parametrize("n", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_the_embedded_model_follows_the_trail_by_itself(model, n):
    if not COMPILED:
        pytest.skip("NumPy needs minutes")
    pages = trail(n, seed=n)
    agent, events = follow(model, pages, keep_turns=3, temperature=0, max_new_tokens=200)
    check(agent, events, pages)
    assert agent.messages[-1]["content"] == f"The last page is {pages[-1]}."
