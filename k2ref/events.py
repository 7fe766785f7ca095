"""What happens in a conversation: the events of a stream, and the `Reply` that they add up to.

    Prompt                                    a prompt is about to be read
    Thinking, Content                         pieces of text, as they are written
    CallBegin, CallArguments, CallEnd         a tool call, as it is written
    ToolCall                                  the same call, whole
    Done                                      the reply is over: why, and what it was in all
    ToolResult, Hidden, Ended                 what an agent does between and after the replies

`reply.py` makes those of the text, `conversation.py` those around a reply, `agent.py` the last.

Chapter 02.
"""

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Thinking:
    """Carry a piece of the thinking."""

    text: str


@dataclass(frozen=True)
class Content:
    """Carry a piece of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """Announce the call with this index in the reply, its id and the name of its function."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """Carry a piece of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """Say that a call is complete, or that the reply ended within it."""

    index: int


@dataclass(frozen=True)
class ToolCall:
    """Hold one call; `arguments` is the JSON as the model wrote it, which may be broken."""

    id: str
    name: str  # "" if the model left it out and it could not be inferred
    arguments: str


@dataclass(frozen=True)
class Prompt:
    """Say that a prompt of so many tokens is to be read, and how many of them the cache has."""

    n_tokens: int
    n_cached: int = 0


@dataclass(frozen=True)
class Usage:
    """Count tokens as the OpenAI API does: `cached_tokens` are a part of `prompt_tokens`."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Done:
    """Say that a reply is over; `message` is the whole of it, as an OpenAI dict."""

    finish_reason: str  # "stop", "length" or "tool_calls"
    message: dict
    usage: Usage


@dataclass(frozen=True)
class ToolResult:
    """Carry what a tool gave back; `failure` says what went wrong, if anything did."""

    id: str  # of the call, functions.NAME:IDX
    name: str
    content: str
    failure: str | None = None


@dataclass(frozen=True)
class Hidden:
    """Say that the first n of all tool results are no longer in the prompt: it had no room."""

    n: int
    n_results: int


@dataclass(frozen=True)
class Ended:
    """Say that an agent has finished, after how many steps with tools, and why."""

    reason: str  # that of the last reply, or "max_steps"
    n_steps: int


@dataclass(frozen=True)
class Reply:
    """Hold a whole reply; what it lacks is empty."""

    thinking: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


def collect(events):
    """Put the events of a reply together into a `Reply`."""
    text = {Thinking: [], Content: []}
    calls = []
    for event in events:
        if isinstance(event, CallBegin):
            calls.append((event.id, event.name, []))
        elif isinstance(event, CallArguments):
            calls[event.index][2].append(event.text)
        elif type(event) in text:
            text[type(event)].append(event.text)
    return Reply("".join(text[Thinking]), "".join(text[Content]),
                 [ToolCall(id, name, "".join(pieces)) for id, name, pieces in calls])


def infer_name(tools, arguments):
    """Guess which tool takes these arguments: the only one there is, or the only one they fit.

    Returns "" where that is not certain: a guess would run the wrong tool.
    Source: vLLM tests/tool_parsers/test_kimi_k2_tool_parser.py, the bare counter cases.
    """
    functions = [tool.get("function", {}) for tool in tools or []]
    if len(functions) > 1:
        try:
            keys = json.loads(arguments).keys()
        except (AttributeError, RecursionError, ValueError):
            return ""
        functions = [function for function in functions
                     if _takes(function.get("parameters") or {}, keys)]
    return functions[0].get("name", "") if len(functions) == 1 else ""


def _takes(schema, keys):
    return set(schema.get("required", ())) <= keys <= schema.get("properties", {}).keys()
