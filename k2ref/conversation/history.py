"""The history of a conversation, made ready to be rendered: ids, and what a prompt leaves out.

A conversation is a list of OpenAI message dicts and keeps everything. What the model is shown of it
may be less, and is always a new list: the functions here change no message.

Chapter 02.
"""

MAX_NAME = 100  # characters in an id; what a model writes as a name may have no end
HIDDEN = "[This result is hidden to save room. Call the tool again if it is needed.]"


def message_of(reply):
    """Write a `Reply` as an OpenAI message; what it lacks is left out, but for the content.

    A call that was cut off says so: `"complete": False`. Nobody may run it.
    """
    message = {"role": "assistant", "content": reply.content}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function",
             "function": {"name": call.name, "arguments": call.arguments},
             **({} if call.complete else {"complete": False})}
            for call in reply.tool_calls]
    return message


def rename_calls(messages):
    """Give every call the id functions.NAME:IDX, counted over the conversation, and its result too.

    The template prints ids as they are, and in the prompt they are all that names a function. The
    official API renames them in the same way. A call without a name keeps its id, and is counted.

    Source: Kimi-K2-Thinking docs/tool_call_guidance.md; K2-Vendor-Verifier, README.
    """
    # Trap: a model copies the ids it sees, wrong ones too, and then goes on counting from them.
    # https://github.com/MoonshotAI/K2-Vendor-Verifier
    renamed, waiting, n_calls = [], {}, 0
    for message in messages:
        if _calls_of(message):
            calls, waiting = [], {}  # ids may come again in a later turn
            for call in message["tool_calls"]:
                calls.append(_renamed(call, n_calls))
                waiting.setdefault(call.get("id"), []).append(calls[-1].get("id"))
                n_calls += 1
            message = {**message, "tool_calls": calls}
        elif is_result(message) and waiting.get(message.get("tool_call_id")):
            message = {**message, "tool_call_id": waiting[message["tool_call_id"]].pop(0)}
        renamed.append(message)
    return renamed


def keep_turns(messages, n):
    """Leave out all turns of tool calls, with their results, but the last n.

    Raises: ValueError if n is not positive.
    """
    if n < 1:
        raise ValueError(f"keep_turns: expected at least 1 turn to keep, found {n}")
    starts = [i for i, message in enumerate(messages) if _calls_of(message)]
    kept_from = starts[-n] if len(starts) > n else 0
    kept, dropping = [], False
    for i, message in enumerate(messages):
        dropping = i < kept_from and (bool(_calls_of(message)) or dropping and is_result(message))
        if not dropping:
            kept.append(message)
    return kept


def hide_results(messages, n):
    """Put a note in place of the first n tool results.

    Source: the model card of Kimi-K2-Thinking, evaluation with tools: when the context is full,
    earlier tool outputs are hidden.
    """
    shown = []
    for message in messages:
        if n > 0 and is_result(message):
            message, n = {**message, "content": HIDDEN}, n - 1
        shown.append(message)
    return shown


def is_result(message):
    """Tell whether a message is the result of a tool."""
    return isinstance(message, dict) and message.get("role") == "tool"


def is_complete(call):
    """Tell whether the model wrote a call to its end."""
    return call.get("complete", True) is True


def unanswered(messages):
    """Return the index of the last user message if no final answer follows it, else None."""
    for i in reversed(range(len(messages))):
        role = messages[i].get("role")
        if role == "user":
            return i
        if role == "assistant" and not messages[i].get("tool_calls"):
            return None
    return None


def _calls_of(message):
    """Return the calls of a message that are well formed; what is not, the template refuses."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    good = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    return calls if good and message.get("role") == "assistant" else []


def _renamed(call, index):
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not name or not isinstance(name, str):
        return call
    return {**call, "id": f"functions.{name[:MAX_NAME]}:{index}"}
