"""The agent: the loop of calls and results, with a model that says what the test wrote for it."""

import itertools
import json
import signal
import sys
import threading
import time
from collections import Counter

import pytest
from scripted import answer, calling, calls_of, message_call, of_type, script

import k2ref
from k2ref.checkpoint.styles import ChatError
from k2ref.conversation import history
from k2ref.conversation.events import (
    CallBegin,
    Content,
    Done,
    Ended,
    Held,
    Hidden,
    Prompt,
    Reply,
    ToolCall,
    ToolResult,
    infer_name,
)
from k2ref.conversation.history import HIDDEN
from k2ref.tools import agent as agent_module
from k2ref.tools.agent import Agent, Transcript
from k2ref.tools.demonstration import calculator
from k2ref.tools.toolbox import FAILURES


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def fail() -> str:
    """Fail."""
    raise RuntimeError("no luck")


def sleep() -> str:
    """Sleep."""
    time.sleep(30)


def echo(text: str) -> str:
    """Give the text back."""
    return text


@pytest.fixture(scope="module")
def model():
    return k2ref.load(threads=1)


@pytest.fixture
def prompts(monkeypatch):
    """The texts of all prompts that the model was shown."""
    seen = []

    def noted(model, *args):
        ids = prompt_ids(model, *args)
        seen.append(model.tokenizer.decode(ids))
        return ids

    prompt_ids = agent_module.prompt_ids
    monkeypatch.setattr(agent_module, "prompt_ids", noted)
    return seen


def test_a_call_its_result_and_the_answer(model, monkeypatch, prompts):
    script(monkeypatch, model,
           calling(("functions.calculator:0", '{"expression": "4821 * 377"}'), thinking="hm"),
           answer("1817517.", thinking="good"))
    agent = Agent(model, [calculator])
    events = list(agent.run("What is 4821 * 377?"))
    assert calls_of(events) == [ToolCall("functions.calculator:0", "calculator",
                                         '{"expression": "4821 * 377"}')]
    assert of_type(events, ToolResult) == [
        ToolResult("functions.calculator:0", "calculator", "1817517")]
    assert [event.finish_reason for event in of_type(events, Done)] == ["tool_calls", "stop"]
    assert events[-1] == Ended("stop", 1)
    assert agent.messages == [
        {"role": "user", "content": "What is 4821 * 377?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [
            message_call("functions.calculator:0", "calculator",
                         '{"expression": "4821 * 377"}')]},
        {"role": "tool", "tool_call_id": "functions.calculator:0", "name": "calculator",
         "content": "1817517"},
        {"role": "assistant", "content": "1817517.", "reasoning_content": "good"}]
    assert "<|im_system|>tool_declare<|im_middle|>" in prompts[0]
    assert prompts[1].startswith(prompts[0]) and "<think>hm</think>" in prompts[1]
    assert ("<|im_system|>calculator<|im_middle|>## Return of functions.calculator:0\n1817517"
            "<|im_end|>") in prompts[1]
    # The first prompt and the first reply are in the cache when the second prompt is read.
    first, second = of_type(events, Prompt)
    assert first.n_cached == 0 and second.n_cached >= first.n_tokens


def test_thinking_is_kept_in_the_loop_and_dropped_after_the_answer(model, monkeypatch, prompts):
    call = calling(("functions.add:0", '{"a": 1, "b": 2}'), thinking="first")
    script(monkeypatch, model, call, call.replace("first", "second"), answer("3", "third"),
           answer("bye"))
    agent = Agent(model, [add])
    list(agent.run("add"))
    assert "<think>first</think>" in prompts[2] and "<think>second</think>" in prompts[2]
    list(agent.run("thanks"))
    assert "first" not in prompts[3] and prompts[3].count("<think></think>") == 3
    assert [m.get("reasoning_content") for m in agent.messages if m["role"] == "assistant"] == [
        "first", "second", "third", None]


def test_several_calls_in_one_turn_are_run_in_order(model, monkeypatch, prompts):
    script(monkeypatch, model,
           calling(("functions.add:0", '{"a": 1, "b": 2}'), ("functions.echo:1", '{"text": "x"}'),
                   ("functions.add:2", '{"a": 3, "b": 4}')), answer("done"))
    events = list(Agent(model, [add, echo]).run("go"))
    assert [(result.id, result.content) for result in of_type(events, ToolResult)] == [
        ("functions.add:0", "3"), ("functions.echo:1", "x"), ("functions.add:2", "7")]
    assert prompts[1].index("add:2\n7") > prompts[1].index("echo:1\nx")


def test_ids_are_those_of_the_conversation_whatever_the_model_writes(model, monkeypatch, prompts):
    call = '{"a": 1, "b": 2}'
    script(monkeypatch, model, calling(("functions.add:0", call), ("add:0", call)),
           calling(("functions.add:0", call)), answer("3"),
           calling(("17", call)), answer("3"))
    agent = Agent(model, [add])
    events = [*agent.run("add"), *agent.run("again")]
    assert [result.id for result in of_type(events, ToolResult)] == [
        f"functions.add:{i}" for i in range(4)]
    ids = [call["id"] for m in agent.messages for call in m.get("tool_calls", [])]
    assert ids == [f"functions.add:{i}" for i in range(4)]
    assert "begin|>17" not in prompts[-1]


def test_no_tool_is_run_but_the_one_that_is_named(model, monkeypatch, prompts):
    """Trap: a tool that is not there was taken for the one that its arguments fit."""
    run = []

    def read_file(path: str) -> str:
        """Read."""
        run.append(path)
        return "text"

    ids = ["functions.delete_file:0", "functions.delete_file", "functions_delete_file_1",
           "delete_file", "call_5", "chatcmpl-tool-read", "functions.read_file2:0"]
    names = ["delete_file", "delete_file", "functions_delete_file_1", "delete_file", "call_5",
             "chatcmpl-tool-read", "read_file2"]
    script(monkeypatch, model, calling(*((id, '{"path": "/"}') for id in ids)), answer("no"))
    agent = Agent(model, [read_file])
    results = of_type(agent.run("go"), ToolResult)
    assert run == [] and [result.failure for result in results] == ["unknown tool"] * len(ids)
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        call = agent.messages[1]["tool_calls"][i]
        assert call["function"]["name"] == result.name == name
        assert call["id"] == result.id == f"functions.{name}:{i}"
        assert f"there is no tool {name!r}; the tools are: read_file" in result.content
        assert result.content in prompts[-1]
    assert "functions.read_file:" not in prompts[-1]


# Calls that are cut off.

def effects_of(model, monkeypatch, *replies, cut=None, **options):
    """Run a tool with effects and defaults on these replies; the limit ends the one cut off."""
    run = []

    def wipe(path: str = "/") -> str:
        """Wipe."""
        run.append(path)
        return "wiped"

    scripted = script(monkeypatch, model, *replies)
    if cut:
        ids = model.tokenizer.encode(cut, allow_special=True)
        scripted.ids = itertools.chain(ids, scripted.ids)
        options["max_new_tokens"] = len(ids)
    agent = Agent(model, [wipe], **options)
    return run, agent, list(agent.run("go"))


WIPE = calling(("functions.wipe:0", '{"path": "/tmp"}'))


@pytest.mark.parametrize("cut", ["<|tool_call_argument_begin|>", '{"path"', '{"path": "/tmp"}'])
def test_a_call_that_the_limit_cuts_off_is_told_and_not_run(model, monkeypatch, prompts, cut):
    """Trap: the tool ran with its defaults."""
    cut = WIPE[:WIPE.index(cut) + len(cut)]
    run, agent, events = effects_of(model, monkeypatch, answer("sorry"), cut=cut)
    assert run == [] and events[-1] == Ended("stop", 1)
    (result,), (call,) = of_type(events, ToolResult), calls_of(events)
    assert result.failure == "cut off" and not call.complete
    assert "not run, the call was cut off before its end" in result.content
    assert result.content in prompts[-1] and agent.failures == Counter({"cut off": 1})
    assert [m["role"] for m in agent.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("end", [
    "<|tool_calls_section_end|>", "<|im_end|>", "[EOS]", "<|im_user|>", "<|tool_call_begin|>",
    "<|tool_calls_section_begin|>"])
def test_a_call_that_the_model_does_not_close_is_not_run(model, monkeypatch, end):
    run, agent, events = effects_of(
        model, monkeypatch, WIPE[:WIPE.index("<|tool_call_end|>")] + end, answer("sorry"))
    assert run == [] and [r.failure for r in of_type(events, ToolResult)] == ["cut off"]
    assert events[-1] == Ended("stop", 1)


def test_the_calls_before_the_one_that_is_cut_off_are_run(model, monkeypatch):
    two = calling(("functions.wipe:0", '{"path": "a"}'), ("functions.wipe:1", '{"path": "b"}'))
    run, agent, events = effects_of(
        model, monkeypatch, two[:two.rindex("<|tool_call_end|>")] + "<|im_end|>", answer("ok"))
    assert run == ["a"]
    assert [r.failure for r in of_type(events, ToolResult)] == [None, "cut off"]


def test_a_model_that_is_cut_off_twice_in_a_row_is_left_alone(model, monkeypatch):
    """Trap: told that the limit cut it off, a model may write the same for ever."""
    kept = list(model.tokenizer.encode(WIPE[:WIPE.index('"/tmp')], allow_special=True))
    scripted = script(monkeypatch, model)
    scripted.ids = itertools.cycle(kept)
    agent = Agent(model, [echo], max_new_tokens=len(kept))
    events = list(agent.run("go"))
    assert events[-1] == Ended("length", 2) and agent.failures == Counter({"cut off": 2})
    assert [m["role"] for m in agent.messages] == ["user"] + ["assistant", "tool"] * 2


def test_a_call_that_is_interrupted_is_not_run_later(model, monkeypatch):
    run = []

    def wipe(path: str = "/") -> str:
        """Wipe."""
        run.append(path)

    script(monkeypatch, model, "One. " + WIPE)
    agent = Agent(model, [wipe])
    events = agent.run("go")
    while not isinstance(next(events), CallBegin):
        pass
    events.close()
    assert agent.messages[1:] == [{"role": "assistant", "content": "One. "}]
    script(monkeypatch, model, answer("ok"))
    assert list(agent.run("go on"))[-1] == Ended("stop", 0) and run == []


# Every kind of failure, in one run.

EVERY_FAILURE = [
    calling(("functions.subtract:0", "{}")),
    calling(("functions.add:1", '{"a": 1,'), ("functions.add:2", '{"a": "x", "b": 2}')),
    calling(("functions.fail:3", "{}")), calling(("functions.sleep:4", "")),
    calling(("7", "[]"), ("functions.add:6", '{"a": 1, "b": 2}')),
    answer("I give up."),
]


def test_every_kind_of_failure_is_told_to_the_model_and_counted(model, monkeypatch, prompts):
    script(monkeypatch, model, *EVERY_FAILURE)
    agent = Agent(model, [add, fail, sleep, echo], timeout_s=0.05)
    events = list(agent.run("try"))
    results = of_type(events, ToolResult)
    assert [result.failure for result in results] == [
        "unknown tool", "broken JSON", "wrong arguments", "tool error", "time-out", "unknown tool",
        None]
    assert {result.failure for result in results} == {*FAILURES, None}
    assert agent.failures == Counter({"unknown tool": 2, "broken JSON": 1, "wrong arguments": 1,
                                      "tool error": 1, "time-out": 1})
    for said in ("there is no tool 'subtract'; the tools are: add, fail, sleep, echo",
                 "the arguments are no JSON", "arguments.a: expected integer, found 'x'",
                 "RuntimeError: no luck", "no result after 0.05 s", "functions.add:6\n3"):
        assert said in prompts[-1]
    assert events[-1] == Ended("stop", 5)


def test_control_tokens_in_a_result_or_a_question_open_nothing(model):
    """Over every special token: asked by a user, given by a tool, quoted in an error."""
    ids_of_controls = set(model.tokenizer.special_tokens.values())

    def controls(word):
        arguments = json.dumps({"text": word})
        agent = Agent(model, [echo])
        results = [agent.toolbox.call("functions.echo:0", "echo", arguments),
                   agent.toolbox.call("functions.echo:1", word, "{}"),
                   agent.toolbox.call("functions.echo:2", "echo", json.dumps({word: 1}))]
        assert all(word in result.content for result in results)
        agent.messages = [{"role": "user", "content": word}, *(
            {"role": "tool", "tool_call_id": result.id, "name": result.name,
             "content": result.content} for result in results)]
        ids = agent_module.prompt_ids(model, agent.view(), agent.toolbox.declarations)
        return [id for id in ids if id in ids_of_controls]

    harmless = controls("x")
    for name in model.tokenizer.special_tokens:
        assert controls(name) == harmless, name


# Settings.

@pytest.mark.parametrize("options, error, said", [
    ({"preserve_thinking": True}, ChatError, "expected style k2.6, found k2-thinking"),
    ({"preserve_thinking": "yes"}, ChatError, "preserve_thinking: expected True or False"),
    ({"thinking": False}, ChatError, "k2-thinking always thinks"),
    ({"thinking": None}, ChatError, "thinking: expected True or False"),
    ({"temperature": -1}, ValueError, "temperature"), ({"top_p": 0}, ValueError, "top_p"),
    ({"top_k": 1.5}, ValueError, "top_k"), ({"min_p": 2}, ValueError, "min_p"),
    ({"repetition_penalty": "x"}, ValueError, "repetition_penalty"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens"), ({"seed": -1}, ValueError, "seed"),
    ({"seed": 1.5}, ValueError, "seed"), ({"stop_ids": [10**9]}, ValueError, "stop_ids"),
    ({"logprobs": -1}, ValueError, "logprobs"), ({"keep_turns": 0}, ValueError, "keep_turns"),
    ({"keep_turns": "2"}, ValueError, "keep_turns"), ({"max_steps": -1}, ValueError, "max_steps"),
    ({"max_steps": None}, ValueError, "max_steps"), ({"n_hidden": "x"}, ValueError, "n_hidden"),
    ({"cache_dtype": "int8"}, ValueError, "int8"), ({"tool_choice": "none"}, TypeError, "tool_cho"),
    ({"cache": None}, TypeError, "cache"), ({"before": ()}, TypeError, "before"),
    ({"in_thinking": True}, TypeError, "in_thinking"), ({"style": "k2.6"}, TypeError, "style"),
    ({"messages": ["hello"]}, ChatError, r"messages\[0\]: expected a dict with a role"),
    ({"messages": "hello"}, ChatError, r"messages\[0\]: expected a dict with a role"),
    ({"messages": [{"role": "assistant", "content": "a", "partial": True}]}, ChatError, "partial"),
])
def test_a_bad_setting_is_refused_when_the_agent_is_made(model, options, error, said):
    """Trap: it raised in the first step, and the question was left in the history."""
    with pytest.raises(error, match=said):
        Agent(model, [add], **options)


def test_the_dtype_of_a_given_context_is_not_another_one(model):
    context = k2ref.Context(model, dtype="bf16")
    assert Agent(model, context=context, cache_dtype="bf16").context is context
    with pytest.raises(ValueError, match="cache_dtype: the context has bf16, found 'float32'"):
        Agent(model, context=context, cache_dtype="float32")


@pytest.mark.parametrize("error", [TypeError("x"), ValueError("x"), MemoryError(), OSError("x")])
def test_whatever_fails_before_anything_is_said_leaves_no_trace(model, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    agent = Agent(model)
    monkeypatch.setattr(agent_module, "reply", fail)
    with pytest.raises(type(error)):
        list(agent.run("hello"))
    assert agent.messages == []


@pytest.mark.parametrize("question", [5, ["a"], [{"type": "image_url"}], {"role": "user"}])
def test_a_question_that_is_no_text_leaves_no_trace(model, question):
    agent = Agent(model)
    with pytest.raises(ChatError, match=r"messages\[0\].content"):
        list(agent.run(question))
    assert agent.messages == []


def test_an_agent_can_preserve_thinking_or_do_without(model, monkeypatch, prompts):
    monkeypatch.setattr(model.tokenizer, "style", "k2.6")
    for options, end, kept in (({"preserve_thinking": True}, "<think>", "<think>hm</think>a"),
                               ({}, "<think>", "<think></think>a"),
                               ({"thinking": False}, "<think></think>", "<think></think>hm")):
        script(monkeypatch, model, "hm</think>a", "hm</think>b")
        agent = Agent(model, **options)
        list(agent.run("one"))
        list(agent.run("two"))
        assert all(prompt.endswith(f"<|im_middle|>{end}") for prompt in prompts[-2:])
        assert kept in prompts[-1]
        assert agent.messages[1] == (
            {"role": "assistant", "content": "hma"} if options.get("thinking") is False
            else {"role": "assistant", "content": "a", "reasoning_content": "hm"})


def test_arguments_nested_deeply_are_told_to_the_model(model, monkeypatch, tmp_path):
    """Trap: they raised RecursionError out of the agent."""
    texts = ["[" * depth + "]" * depth for depth in (100, 900, 994, 1000, 3000)]
    texts += ['{"text": ' + text + "}" for text in texts]
    calls = [ToolCall(id, infer_name([], text) or "echo", text)
             for text in texts for id in ("functions.echo:0", "3")]
    replies = iter([Reply("", "", calls), Reply("", "done")])
    monkeypatch.setattr(agent_module, "reply", lambda *a, **k: iter([
        Done("stop", history.message_of(next(replies)), None)]))
    agent, transcript = Agent(model, [echo, add]), Transcript(tmp_path / "run.jsonl")
    results = []
    for event in agent.run("go"):
        transcript.follow(agent.messages)
        results += [event] if isinstance(event, ToolResult) else []
    transcript.follow(agent.messages)
    assert len(results) == len(calls) and all(result.failure for result in results)
    assert agent.messages[-1]["content"] == "done"


# Limits.

def test_max_steps_ends_the_run_with_a_whole_history(model, monkeypatch):
    call = calling(("functions.add:0", '{"a": 1, "b": 2}'))
    script(monkeypatch, model, call, call, call, answer("3"))
    agent = Agent(model, [add], max_steps=2)
    events = list(agent.run("add"))
    assert events[-1] == Ended("max_steps", 2) and len(of_type(events, ToolResult)) == 2
    assert [m["role"] for m in agent.messages[-2:]] == ["assistant", "tool"]
    assert agent.messages[-1]["content"] == (
        "Error: not run, the limit of 2 steps is reached.")
    assert agent.failures == Counter()
    assert list(agent.run())[-1] == Ended("stop", 0)  # and it can be told to go on


def test_keep_turns_shows_the_last_turns_only(model, monkeypatch, prompts):
    replies = [calling((f"functions.echo:{i}", json.dumps({"text": f"page {i}"})))
               for i in range(5)]
    script(monkeypatch, model, *replies, answer("done"))
    agent = Agent(model, [echo], keep_turns=2)
    list(agent.run("go"))
    shown = [[i for i in range(5) if f"functions.echo:{i}\npage {i}" in prompt]
             for prompt in prompts]
    assert shown == [[], [0], [0, 1], [1, 2], [2, 3], [3, 4]]
    assert all("<|im_user|>user<|im_middle|>go<|im_end|>" in prompt for prompt in prompts)
    assert len(agent.messages) == 12  # the history has all of it


def small_context(model, n, **options):
    return k2ref.Context(model, capacity=n, **options)


def test_when_the_context_is_full_the_oldest_results_are_hidden_and_it_is_said(
        model, monkeypatch, prompts):
    text = "word " * 150

    def page(number: int) -> str:
        """Give a long text."""
        return text

    replies = [calling((f"functions.page:{i}", f'{{"number": {i}}}')) for i in range(8)]
    script(monkeypatch, model, *replies, answer("done"))
    sizes = [event.n_tokens for event in of_type(Agent(model, [page]).run("go"), Prompt)]
    limit = sizes[5] + 120  # five results fit, with room to write
    script(monkeypatch, model, *replies, answer("done"))
    agent = Agent(model, [page], context=small_context(model, limit), max_new_tokens=100)
    events = list(agent.run("go"))
    hidden = of_type(events, Hidden)
    assert hidden == [Hidden(3, 6), Hidden(6, 8)]  # half of the six shown, then of the five
    for event in hidden:  # said before the prompt that it is about
        assert isinstance(events[events.index(event) + 1], Prompt)
    assert prompts[-1].count(HIDDEN) == agent.n_hidden == 6
    assert all(m["content"] == text for m in agent.messages if m["role"] == "tool")
    assert all(event.n_tokens + 100 <= limit for event in of_type(events, Prompt))
    assert events[-1] == Ended("stop", 8)


def test_a_result_that_never_fits_is_hidden_too(model, monkeypatch, prompts):
    script(monkeypatch, model, calling(("functions.big:0", "")), answer("too long"))

    def big() -> str:
        """Give too much."""
        return "word " * 5000

    agent = Agent(model, [big], context=small_context(model, 600), max_new_tokens=50)
    events = list(agent.run("go"))
    assert of_type(events, Hidden) == [Hidden(1, 1)] and HIDDEN in prompts[-1]
    assert events[-1] == Ended("stop", 1)


def test_a_question_that_does_not_fit_is_refused_and_forgotten(model, monkeypatch):
    agent = Agent(model, context=small_context(model, 50))
    with pytest.raises(ValueError, match="leaves no room for an answer in the context of 50"):
        list(agent.run("word " * 100))
    assert agent.messages == []
    script(monkeypatch, model, answer("hi"))
    assert list(agent.run("hello"))[-1] == Ended("stop", 0)


# Interruptions.

def test_what_was_said_before_an_interruption_is_kept(model, monkeypatch):
    script(monkeypatch, model, answer("One two three.", "hm"), answer("Four."))
    agent, said = Agent(model), []
    run = agent.run("count")
    for event in run:
        said += [event.text] if isinstance(event, Content) else []
        if len(said) == 2:
            break
    run.close()
    assert agent.messages == [{"role": "user", "content": "count"},
                              {"role": "assistant", "content": "".join(said)}]
    script(monkeypatch, model, answer("Four."))
    assert list(agent.run("go on"))[-1] == Ended("stop", 0) and len(agent.messages) == 4


def test_what_was_shown_of_an_answer_without_thinking_is_kept_too(model, monkeypatch):
    script(monkeypatch, model, "One two three four five six.")
    agent = Agent(model)
    run, shown = agent.run("count"), []
    while len(shown) < 3:
        event = next(run)
        shown += [event.text] if isinstance(event, Held) else []
    run.close()
    assert agent.messages[1] == {"role": "assistant", "content": "".join(shown)}
    script(monkeypatch, model, "One</think>two")
    list(agent.run("go on"))
    assert agent.messages[-1] == {"role": "assistant", "content": "two", "reasoning_content": "One"}


def test_an_interruption_before_anything_is_said_leaves_the_question(model, monkeypatch):
    script(monkeypatch, model, answer("Hi.", "a long thought"))
    agent = Agent(model)
    run = agent.run("hello")
    for _ in range(3):
        next(run)
    run.close()
    assert agent.messages == [{"role": "user", "content": "hello"}]
    script(monkeypatch, model, answer("Hi."))
    events = list(agent.run("hello"))  # the same question goes on
    assert len(agent.messages) == 2 and events[0].n_cached == events[0].n_tokens - 1


def test_an_interrupted_tool_leaves_a_result_for_every_call(model, monkeypatch, prompts):
    def interrupt() -> str:
        """Be interrupted."""

    call = ("functions.add:0", '{"a": 1, "b": 2}')
    script(monkeypatch, model, calling(call, ("functions.interrupt:1", ""), call))
    agent = Agent(model, [add, interrupt])
    run_tool = agent.toolbox.call

    def ctrl_c(id, name, arguments):
        if name == "interrupt":
            raise KeyboardInterrupt
        return run_tool(id, name, arguments)

    monkeypatch.setattr(agent.toolbox, "call", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        list(agent.run("go"))
    contents = [m["content"] for m in agent.messages if m["role"] == "tool"]
    assert contents == ["3"] + ["Error: not run, the user interrupted."] * 2
    script(monkeypatch, model, answer("ok"))
    assert list(agent.run("go"))[-1] == Ended("stop", 0)  # it goes on where it was
    assert [m["role"] for m in agent.messages].count("user") == 1
    assert prompts[-1].count("## Return of") == 3


def test_a_call_that_was_interrupted_while_it_ran_is_not_said_to_be_not_run(model, monkeypatch):
    began, go_on = threading.Event(), threading.Event()

    def wait() -> str:
        """Wait."""
        began.set()
        go_on.wait(60)

    def interrupt():
        began.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as Ctrl-C does

    call = ("functions.add:0", '{"a": 1, "b": 2}')
    script(monkeypatch, model, calling(call, ("functions.wait:1", ""), call))
    agent = Agent(model, [add, wait])
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(agent.run("go"))
    go_on.set()
    assert [m["content"] for m in agent.messages if m["role"] == "tool"] == [
        "3", agent_module.BEGUN, "Error: not run, the user interrupted."]
    assert agent.undo() == "go"
    script(monkeypatch, model, calling(call, ("functions.wait:1", "")))  # the same ids again
    run = agent.run("go")
    while not isinstance(next(run), ToolResult):
        pass
    run.close()
    assert agent.messages[-1]["content"] == "Error: not run, the user interrupted."


@pytest.mark.thorough
def test_wherever_it_is_interrupted_every_call_has_a_result_and_what_was_said_is_kept(
        model, monkeypatch):
    call = '{"a": 1, "b": 2}'
    replies = [calling(("functions.add:0", call), ("functions.add:1", call), content="I add."),
               calling(("functions.add:2", call), ("nothing:3", ""), thinking="hm"), answer("3")]

    def run_to(n):
        script(monkeypatch, model, *replies)
        agent = Agent(model, [add])
        run = agent.run("go")
        events = [event for _, event in zip(range(n), run, strict=False)]
        run.close()
        return agent.messages, events

    _, events = run_to(1000)
    assert isinstance(events[-1], Ended)
    ends = [n for n, event in enumerate(events, 1)  # of each run of events of one kind
            if type(event) not in map(type, events[n:n + 1])]
    for n in ends:
        messages, events = run_to(n)
        calls = [call["id"] for message in messages for call in message.get("tool_calls", [])]
        results = [message for message in messages if message["role"] == "tool"]
        assert [result["tool_call_id"] for result in results] == calls
        assert len(calls) == len({*calls}) == 2 * sum(
            event.finish_reason == "tool_calls" for event in of_type(events, Done))
        seen = [event.content for event in of_type(events, ToolResult)]
        assert [result["content"] for result in results] == seen + [
            "Error: not run, the user interrupted."] * (len(results) - len(seen))
        said = "".join(event.text for event in of_type(events, Content))
        assert "".join(m["content"] for m in messages if m["role"] == "assistant") == said


# Small things.

def test_without_tools_it_is_a_chat_and_a_call_ends_it(model, monkeypatch):
    script(monkeypatch, model, calling(("functions.f:0", "{}")))
    events = list(Agent(model).run("go"))
    assert events[-1] == Ended("tool_calls", 0) and calls_of(events)
    assert not of_type(events, ToolResult)


def test_a_seed_repeats_a_conversation_and_does_not_repeat_its_draws(model, monkeypatch):
    used = []
    monkeypatch.setattr(sys.modules["k2ref.tools.agent"], "reply",
                        lambda *a, seed=None, **k: used.append(seed) or iter(
                            [Done("stop", {"role": "assistant", "content": "x"}, None)]))
    agent = Agent(model, seed=5)
    for question in "abc":
        list(agent.run(question))
    assert used == [5, 6, 7]
    used.clear()
    list(Agent(model).run("a"))
    assert used == [None]


def test_a_history_may_come_with_the_ids_of_another_api(model):
    messages = [{"role": "assistant", "content": "",
                 "tool_calls": [message_call("call_x", "f", "{}")]},
                {"role": "tool", "tool_call_id": "call_x", "content": "1"}]
    agent = Agent(model, messages=messages)
    assert agent.messages[1]["tool_call_id"] == "functions.f:0"
    assert messages[1]["tool_call_id"] == "call_x"


def test_undo_and_system_messages(model):
    agent = Agent(model)
    assert agent.undo() is None
    agent.set_system("Be brief.")
    agent.messages += [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                       {"role": "user", "content": "c"}]
    agent.set_system("Be long.")
    assert agent.undo() == "c" and agent.undo() == "a"
    assert agent.messages == [{"role": "system", "content": "Be long."}]
    agent.messages.append({"role": "user"})  # as the template has it, nothing was asked
    assert agent.undo() == ""
    agent.set_system("")  # an empty one is not the checkpoint's own
    assert agent.messages == [{"role": "system", "content": ""}]
    agent.set_system(None)
    assert agent.messages == []


def test_tools_that_cannot_be_declared_are_refused(model):
    with pytest.raises(k2ref.ToolError, match="parameter x: expected a type hint"):
        Agent(model, [lambda x: x])


def test_a_transcript_is_the_history_in_json_lines(model, monkeypatch, tmp_path):
    path = tmp_path / "run.jsonl"
    script(monkeypatch, model, calling(("functions.echo:0", '{"text": "城"}')), answer("done"))
    agent, transcript = Agent(model, [echo]), Transcript(path)
    for _ in agent.run("go"):
        transcript.follow(agent.messages)

    def written():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    transcript.follow(agent.messages)
    assert written() == agent.messages and len(agent.messages) == 4
    agent.undo()
    agent.messages.append({"role": "user", "content": "again"})
    transcript.follow(agent.messages)
    assert written() == agent.messages == [{"role": "user", "content": "again"}]
