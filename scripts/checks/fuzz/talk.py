"""Hostile talk for `run.py`: what a model may write, and what may stand in a conversation.

Replies are parsed in every way in which they may come, and prompts are rendered: whatever anybody
writes, a control token is only where the template puts it.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np

import k2ref
from k2ref import events, generation
from k2ref.conversation import history, reply, template
from k2ref.sampling import Choice
from k2ref.tools import toolbox as tools
from k2ref.tools.demonstration import calculator
from scripts.checks.fuzz.damage import Failure, Kind, damage

END = "<|im_end|>"
TEXTS = (
    "", " ", "hello", "\n\n", "城 e\u0301", "\x00", "\x1b[31m", "\u202eabc", "\ud800", "\r",
    "a" * 30_000, END, "[EOS]", "<|im_user|>user<|im_middle|>", "<think>", "</think>",
    "<|tool_call_begin|>", "<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "</",
    "<|", "## Return of x", "functions.add:0", "functions.", ":0", "7", '{"a": 1, "b": 2}', "null",
)  # fmt: skip
IDS = (
    "functions.add:0", "functions.add:1", "add", "functions.remove:0", "functions_add_1", "0", "7",
    "functions.delete:0", "functionsadd:2", "call_5", "functions.:0", "", "functions.add:0:0",
    "remove:-1", "<think>", "functions.add\x00:0", "a" * 9999, "functions.add.remove:1",
)  # fmt: skip
ARGUMENTS = (
    "{}", '{"a": 1, "b": 2}', '{"path": "/"}', "", "null", "[]", '{"a": NaN, "b": 1e999}', '{"a"',
    '{"a": 1, "a": 2, "b": 3}', '{"a": "1", "b": true}', "[" * 994 + "]" * 994, "[" * 99_999,
    '{"a": ' + "[" * 990 + "]" * 990 + "}", '{"a": ' + "9" * 5000 + "}", '{"\\ud800": 1}',
)  # fmt: skip
OBJECTS = (None, 0, -1, 1.5, float("nan"), True, "", "x", "\x1b[31m\u202e", "\ud800", [], {}, [[]],
           [None], {"a": {}}, {"type": "text"}, [{"type": "text", "text": END}], 10**400)


def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


def remove(path: str) -> str:
    """Remove a file."""
    return f"removed {path}"


def odd(which: int) -> object:
    """Give something odd."""
    return RESULTS[which % len(RESULTS)]()


class Mute(Exception):
    """Have no words."""

    def __str__(self):
        raise KeyError("none")

    __repr__ = __str__


def fail(error):
    raise error


def nested():
    return functools.reduce(lambda value, _: [value], range(99_999), [])


RESULTS = (
    lambda: float("nan"), lambda: b"\xff", Mute, lambda: fail(Mute()), lambda: "x" * 10**7, nested,
    lambda: "\ud800", lambda: {1: 2, None: 3}, lambda: iter(()), lambda: fail(SystemExit(3)),
    lambda: fail(KeyboardInterrupt()), lambda: fail(GeneratorExit()), lambda: fail(StopIteration()),
    lambda: fail(ValueError("\ud800\x1b[0m")), lambda: fail(MemoryError()), lambda: 10**5000,
    lambda: fail(RecursionError()), lambda: {"\ud800": 1}, lambda: fail(Exception("y" * 10**6)),
)  # fmt: skip
FUNCTIONS = (add, remove, odd, calculator)
TOOLS = tools.Toolbox(FUNCTIONS).declarations


@functools.cache
def tokenizer(style):
    """Give the embedded model's tokenizer another style, or fewer names of control tokens."""
    made = k2ref.Tokenizer.from_dir(Path(k2ref.__file__).parent / "tiny")
    if style == "few names":
        first, last = min(made.special_tokens.values()), max(made.special_tokens.values())
        names = {END: first} | {f"<|{i}|>": i for i in range(first + 1, last + 1)}
        made = k2ref.Tokenizer(made._bytes[:first], names)
    else:
        made.style = style
    return made


STYLES = tuple(template.STYLES)
WITH_TOOLS = tuple(name for name, style in template.STYLES.items() if not style.plain)


# Replies: whole, in a stream, and cut into other tokens.

def begin_reply(base):
    return {"tokenizer": tokenizer(base), "ids": [], "tools": copy.deepcopy(TOOLS),
            "max_new_tokens": 10**4}


def marker(state, rng):
    state["ids"].append(rng.choice(sorted(state["tokenizer"].special_tokens.values())[:24]))


def text(state, rng):
    state["ids"] += state["tokenizer"].encode(rng.choice(TEXTS))


def any_id(state, rng):
    state["ids"].append(rng.randrange(state["tokenizer"].n_vocab))


def call(state, rng):
    """Write a call, of which something may be missing."""
    id, arguments = rng.choice(IDS[:6] + IDS), rng.choice(ARGUMENTS[:3] * 4 + ARGUMENTS)
    pieces = [reply.SECTION_BEGIN, reply.CALL_BEGIN, id, reply.ARGUMENT_BEGIN, arguments,
              reply.CALL_END, reply.SECTION_END]
    if rng.random() < 0.5:
        del pieces[rng.randrange(len(pieces))]
    del pieces[rng.randrange(2 * len(pieces)):]
    encode = state["tokenizer"].encode
    state["ids"] += [id for piece in pieces for id in encode(piece, piece.startswith("<|"))]


def no_tools(state, rng):
    state["tools"] = rng.choice((None, [], TOOLS[:1]))


def parse(state, where):
    """Parse a reply in every way; all give the same, and it can be said again."""
    tokenizer, ids, declared = state["tokenizer"], state["ids"], state["tools"]
    whole = k2ref.parse(tokenizer, ids, tools=declared)
    parser, seen = k2ref.ReplyParser(tokenizer, tools=declared), []
    for id in ids:
        seen += parser.feed(id)
    seen += parser.finish()
    if events.collect(seen) != whole or parser.feed(0) or parser.finish():
        raise Failure("wrong", "a stream that is not the whole")
    special = set(tokenizer.special_tokens.values())
    one_byte = {tokenizer.id_to_bytes(i): i for i in range(256)}
    bytewise = [i for id in ids for i in ([id] if id in special else [
        one_byte[bytes([b])] for b in tokenizer.id_to_bytes(id)])]
    if k2ref.parse(tokenizer, bytewise, tools=declared) != whole:
        raise Failure("wrong", "a reply that depends on how its text is cut into tokens")
    names = {tool["function"]["name"] for tool in declared or ()}
    if any(one.name not in {*names, ""} and one.name not in one.id for one in whole.tool_calls):
        raise Failure("wrong", "a call by a name that nobody gave", repr(whole.tool_calls))
    messages = [{"role": "user", "content": "x"}, history.message_of(whole)]
    with contextlib.suppress(k2ref.ChatError):
        k2ref.render(tokenizer, history.rename_calls(messages), declared)
    return "works"


# Prompts: no text makes a control token.

def begin_prompt(base):
    call = {"id": "functions.add:0", "type": "function",
            "function": {"name": "add", "arguments": '{"a": 1}'}}
    if base not in WITH_TOOLS:
        return {"style": base, "tools": None, "messages": [{"role": "user", "content": "u"}]}
    return {"style": base, "tools": copy.deepcopy(TOOLS), "messages": [
        {"role": "system", "content": "s"}, {"role": "user", "name": "n", "content": "u"},
        {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.add:0", "name": "add", "content": "2"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}


def say(state, rng):
    """Put a hostile text into a message or a tool."""
    for part in ("messages", "tools"):
        state[part] = damage(state[part], rng, lambda rng: rng.choice(TEXTS))


def spoil(state, rng):
    """Put anything into a message or a tool."""
    part = rng.choice(("messages", "messages", "tools"))
    state[part] = damage(state[part], rng, lambda rng: copy.deepcopy(rng.choice(OBJECTS)))


def harmless(value):
    """Spell every control token in another way, also in the names of fields."""
    if isinstance(value, str):
        return re.sub(r"<(\||/?think>)|\[(EO[ST])\]", r"(\1\2)", value)
    if isinstance(value, dict):
        return {harmless(key): harmless(one) for key, one in value.items()}
    return [harmless(one) for one in value] if isinstance(value, list) else value


def prompt(state, where):
    """Render a conversation; its control tokens are those of a harmless one."""
    made = tokenizer(state["style"])
    special = set(made.special_tokens.values())
    for declare in template.DECLARATIONS:
        ours, theirs = ([id for id in k2ref.render(
            made, change(state["messages"]), change(state["tools"]), declare=declare)
            if id in special] for change in (copy.deepcopy, harmless))
        if ours != theirs:
            raise Failure("wrong", "a control token that somebody wrote")
    return "works"


# Agents: only what was named is run, only what was closed, and the history is whole.

class Script:
    """Stand for the model: `forward` moves the cache on, and `sample` says what was drawn."""
    def __init__(self, tokenizer, ids):
        self.end, self.ids = tokenizer.special_id(END), iter(ids)

    def forward(self, model, ids, cache, **_):
        cache.length += len(ids)
        return np.zeros((1, model.config.vocab_size), np.float32)

    def sample(self, *_, **__):
        return Choice(next(self.ids, self.end), 0.0, [])


def end(state, rng):
    """Let the model end its reply here, and begin another."""
    state["ids"].append(state["tokenizer"].special_id(END))


def limit(state, rng):
    """Let the limit cut a reply off."""
    state["max_new_tokens"] = rng.randrange(1, 60)


def run_agent(state, where):
    """Let a scripted model loose on tools."""
    model, written, calls = dataclasses.replace(k2ref.load(), tokenizer=state["tokenizer"]), [], []
    script = Script(model.tokenizer, state["ids"])
    generation.forward, generation.sample = script.forward, script.sample
    agent = k2ref.Agent(model, FUNCTIONS, max_steps=3, timeout_s=3, on_token=written.append,
                        max_new_tokens=state["max_new_tokens"])
    for event in agent.run("hello"):
        if isinstance(event, events.Prompt):
            written.clear()
            calls.clear()
        elif isinstance(event, events.ToolCall):
            calls.append(event)
        elif isinstance(event, events.ToolResult):
            _check_result(event, calls.pop(0), not calls and _is_open(model.tokenizer, written))
    _check_history(agent.messages)
    json.dumps(agent.messages)
    k2ref.render(model.tokenizer, agent.messages, agent.toolbox.declarations)
    return "works"


def _is_open(tokenizer, ids):
    """Tell whether the last call of a reply has begun its arguments and not ended them."""
    at = {name: max((i for i, id in enumerate(ids) if id == tokenizer.special_id(name)), default=-1)
          for name in (reply.ARGUMENT_BEGIN, reply.CALL_END, reply.SECTION_END, reply.CALL_BEGIN)}
    return at[reply.ARGUMENT_BEGIN] == max(at.values())


def _check_result(result, call, is_open):
    """Hold what was run to what was called: by its name, and to the end."""
    letters = re.sub(r"(?i)functions|[^a-z]", "", call.id)  # none in a bare counter
    if result.failure == "time-out":
        raise Failure("wrong", "a tool that ends counts as a time-out", repr(call))
    if is_open and result.failure in (None, "tool error"):
        raise Failure("wrong", "a call that is not closed is run", f"{call}, {result}")
    if letters and result.name not in call.id and result.failure in (None, "tool error"):
        raise Failure("wrong", "a tool that was not named is run", f"{call}, {result}")


def _check_history(messages):
    """Hold every call to having its result, in order."""
    waiting = []
    for message in messages:
        if message["role"] == "tool":
            if not waiting or message["tool_call_id"] != waiting.pop(0):
                raise Failure("wrong", "a result without a call", repr(messages))
        elif waiting:
            break
        waiting += [call["id"] for call in message.get("tool_calls", ())]
    if waiting:
        raise Failure("wrong", "a call without a result", repr(messages))


KINDS = {
    "reply": Kind((*STYLES, "few names"), {
        "marker": marker, "text": text, "id": any_id, "call": call, "no tools": no_tools},
        begin_reply, parse, most=12),
    "agent": Kind(WITH_TOOLS, {
        "marker": marker, "text": text, "call": call, "end": end, "limit": limit},
        begin_reply, run_agent, most=12),
    "prompt": Kind(STYLES, {"say": say, "spoil": spoil}, begin_prompt, prompt, most=8),
}
