"""What happens in a conversation: the events of a stream, and the `Reply` that they add up to.

    Prompt                                    a prompt is about to be read
    Thinking, Content, Held                   pieces of text, as they are written
    CallBegin, CallArguments, CallEnd         a tool call, as it is written
    ToolCall                                  the same call, whole
    Done                                      the reply is over: why, and what it was in all
    ToolResult, Hidden, Ended                 what an agent does between and after the replies

`reply.py` makes those of the text, `chat.py` those around a reply, `agent.py` the last.

Chapter 02.
"""

import json
import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Thinking:
    """A piece of the thinking."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Held:
    """Text that may be thinking or answer; it comes again as what it is.

    Whoever collects a reply can pass it over: it is for those who watch.
    """

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The beginning of the call with this index in the reply: its id and its function."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """The end of a call: the model closed it, or else it is cut off and must not be run."""

    index: int
    complete: bool = True


@dataclass(frozen=True)
class ToolCall:
    """One call; `arguments` is the JSON as the model wrote it, which may be broken.

    A call that is not `complete` was cut off, by the token limit or the end of the reply: whatever
    there is of its arguments, it must not be run. Two calls that say the same are equal all the
    same.
    """

    id: str
    name: str  # "" if the model left it out and it could not be inferred
    arguments: str
    complete: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Prompt:
    """A prompt of so many tokens that is to be read, and how many of them the cache has."""

    n_tokens: int
    n_cached: int = 0


@dataclass(frozen=True)
class Usage:
    """The tokens, counted as the OpenAI API does: `cached_tokens` are among `prompt_tokens`."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Done:
    """The end of a reply; `message` is the whole of it, as an OpenAI dict."""

    finish_reason: str  # "stop", "length" or "tool_calls"
    message: dict
    usage: Usage


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool; `failure` says what went wrong, if anything did."""

    id: str  # of the call, functions.NAME:IDX
    name: str
    content: str
    failure: str | None = None


@dataclass(frozen=True)
class Hidden:
    """The first n of all tool results, which the prompt has no room for any more."""

    n: int
    n_results: int


@dataclass(frozen=True)
class Ended:
    """The end of the work of an agent, after how many steps with tools, and why."""

    reason: str  # that of the last reply, or "max_steps"
    n_steps: int


@dataclass(frozen=True)
class Reply:
    """A whole reply; what it lacks is empty."""

    thinking: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


def collect(events):
    """Put the events of a reply together into a `Reply`."""
    text = {Thinking: [], Content: []}
    begun, pieces, complete = [], [], set()
    for event in events:
        if isinstance(event, CallBegin):
            begun.append(event)
            pieces.append([])
        elif isinstance(event, CallArguments):
            pieces[event.index].append(event.text)
        elif isinstance(event, CallEnd) and event.complete:
            complete.add(event.index)
        elif type(event) in text:
            text[type(event)].append(event.text)
    calls = [ToolCall(call.id, call.name, "".join(pieces[i]), i in complete)
             for i, call in enumerate(begun)]
    return Reply("".join(text[Thinking]), "".join(text[Content]), calls)


def name_of(id, tools=None):
    """Name the tool that the id of a call spells, "" if it is nothing but a counter.

    An id is functions.NAME:IDX, but models also write functionsNAMEIDX, functions_NAME_IDX, NAME or
    IDX alone. Where the tools are known, the readings of an id are what is left without "functions"
    and a separator, and without a counter and a separator. The id means the tool that it spells in
    full, else the only one among its readings. An id that has letters but means no tool keeps its
    own name, as functions.delete_file:0 or call_5 do, and there is no such tool: it is never
    another one that would be run.
    """
    # Trap: strict patterns for the id lose calls to tools with a dash or a dot in their name, and
    # those without "functions.". https://blog.vllm.ai/2025/10/28/Kimi-K2-Accuracy.html
    stem = id.removeprefix("functions.")
    name = COUNTER.sub("", stem)
    known = {function["name"] for function in _functions(tools)}
    if not known:
        return "" if stem.isdecimal() else name
    # Trap: neither the dot nor the colon is sure to be there (sglang#21377, exo#2281).
    left = id.removeprefix("functions")
    spelled = [id] if left == id else [id, left, *([left[1:]] if left[:1] in SEPARATORS else [])]
    for whole in (name, *spelled):
        if whole in known:
            return whole
    fitting = [tool for tool in known if any(
        text.startswith(tool) and COUNTED.fullmatch(text, len(tool)) for text in spelled)]
    if len(fitting) == 1:
        return fitting[0]
    # Trap: some ids are a counter and name nothing (vllm#46127): the arguments must tell. One that
    # has a name of its own, such as call_5 (sglang#25358), names no tool, and none is guessed.
    return "" if BARE.fullmatch(id) else name


COUNTER = re.compile(r":[0-9]+\Z")
COUNTED = re.compile(r"[._:/-]?[0-9]+")
SEPARATORS = ("", ".", "_", ":", "-", "/")
BARE = re.compile(r"(functions)?[\W_\d]*")


def _functions(tools):
    found = [tool.get("function") for tool in tools or [] if isinstance(tool, dict)]
    return [function for function in found if isinstance(function, dict)
            and isinstance(function.get("name"), str) and function["name"]]


def infer_name(tools, arguments):
    """Guess which tool takes these arguments: the only one there is, or the only one they fit.

    Returns "" where that is not certain: a guess would run the wrong tool.
    Source: vLLM tests/tool_parsers/test_kimi_k2_tool_parser.py, the bare counter cases.
    """
    functions = _functions(tools)
    if len(functions) > 1:
        try:
            keys = json.loads(arguments).keys()
        except (AttributeError, RecursionError, ValueError):
            return ""
        functions = [function for function in functions if _takes(function, keys)]
    return functions[0]["name"] if len(functions) == 1 else ""


def _takes(function, keys):
    schema = function.get("parameters") or {}
    try:
        return set(schema.get("required", ())) <= keys <= schema.get("properties", {}).keys()
    except (AttributeError, TypeError):
        return False  # a schema that is none
