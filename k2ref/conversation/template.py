"""The chat template: messages and tools become the ids of a prompt.

A conversation is a row of turns, each opened and closed by control tokens:

    <|im_user|>user<|im_middle|>What is 1+1?<|im_end|><|im_assistant|>assistant<|im_middle|>

The last three words are the generation prompt: the model continues there, and `reply.py` reads what
it writes. The checkpoints of the family differ in a few points, which `styles.py` lists.

The official code renders one string and parses control tokens out of it. Here a control token is
only ever written as its id, and text in between is encoded in one piece, as the reference does, but
as ordinary text: whatever a user, a tool or a name says, it cannot open or close a turn.

Chapter 02.
"""

import json

from k2ref.checkpoint.styles import STYLES, ChatError, style_for, style_of
from k2ref.conversation.declarations import as_json, as_typescript
from k2ref.doors.intake import quoted

__all__ = ["STYLES", "ChatError", "check_options", "is_partial", "render", "style_of"]

DECLARATIONS = ("json", "typescript")
OPENERS = {"user": "<|im_user|>", "assistant": "<|im_assistant|>", "system": "<|im_system|>"}
# Fields of messages that would change the prompt and that no template reads, with what to do.
UNREAD = {
    "prefix": "to continue a message, give it 'partial': True",
    "function_call": "write it as one of tool_calls",
    "refusal": "put its text into content",
    "audio": "only text is supported",
    "tools": "tools are declared for the whole conversation",
}


def render(tokenizer, messages, tools=None, add_generation_prompt=True, style=None, *,
           thinking=True, preserve_thinking=False, declare="json"):
    """Turn OpenAI-style messages and tools into the ids of a prompt.

    `style` is by default the checkpoint's own (`tokenizer.style`), else "k2-thinking".
    `thinking=False` (k2.5, k2.6) asks for an answer at once; `preserve_thinking` (k2.6) keeps the
    thinking of all turns, which k2.7-code always does. `declare` is how tools are written: the
    templates alone say "json"; the official tokenizers of k2.5 and later say "typescript", with
    JSON for what has no such spelling. Moonlight's template writes neither tools nor names.

    Otherwise thinking is kept only after the last answer, that is, the last assistant message
    without tool calls: through a row of tool calls the model sees why it made them, and once it has
    answered nobody pays for those tokens again.

    A last message of the assistant with `"partial": True` is left open for the model to continue.

    Source: chat_template.jinja of Kimi-K2-Instruct-0905, Kimi-K2-Thinking, Kimi-K2.5, Kimi-K2.6;
    tokenizer_config.json of Moonlight-16B-A3B-Instruct; Kimi API, Partial Mode.
    Raises: ChatError naming the message and field, or the control token that the tokenizer lacks;
    TokenizerError for a model without a tokenizer.
    """
    style = style_for(tokenizer, style)
    check_options(style, thinking, preserve_thinking, declare, add_generation_prompt)
    _check_messages(messages)
    prompt = _Prompt(tokenizer, style)
    declaration = _declaration(tools, declare) if tools else ""
    if declaration and not style.plain:
        prompt.open("system", "tool_declare")
        prompt.text(declaration)
        prompt.control("<|im_end|>")
    if style.system and (messages[0]["role"] != "system" if messages else not style.plain):
        prompt.open("system", "system")
        prompt.text(style.system)
        prompt.control("<|im_end|>")
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"
               and not message.get("tool_calls") and not message.get("partial")]
    last_answer = answers[-1] if answers else -1
    for i, message in enumerate(messages):
        keep = preserve_thinking or style.keeps == "always" or (thinking and i > last_answer)
        _write_message(prompt, message, f"messages[{i}]", keep)
    if add_generation_prompt and not is_partial(messages):
        prompt.open("assistant", "assistant")
        if style.opens:
            prompt.control("<think>")
            if not thinking:
                prompt.control("</think>")
    return prompt.finish()


def is_partial(messages):
    """Tell whether the last message is one that the model is to continue."""
    return bool(messages) and messages[-1].get("partial") is True


class _Prompt:
    """The ids of a prompt: control tokens as they are, the text between two of them in one piece.

    One piece, because two neighbouring texts encoded apart may give other ids than together.
    """

    def __init__(self, tokenizer, style):
        self.tokenizer, self.style = tokenizer, style
        self.ids = []
        self.pending = []

    def text(self, text):
        """Add text that holds no control tokens, whatever it looks like."""
        self.pending.append(text)

    def control(self, name):
        """Add a control token."""
        id = self.tokenizer.special_id(name)
        if id is not None:
            self.finish()
            self.ids.append(id)
        elif name in ("<think>", "</think>"):
            self.text(name)  # some vocabularies of the family spell these two in ordinary tokens
        else:
            raise ChatError(f"the tokenizer has no control token {name}, which a conversation "
                            "needs; use the tokenizer_config.json of a K2 checkpoint")

    def open(self, role, name):
        """Begin a turn."""
        if role in OPENERS or not self.style.plain:
            self.control(OPENERS.get(role, "<|im_system|>"))
        self.text(role if self.style.plain else name)
        self.control("<|im_middle|>")

    def finish(self):
        """Encode the text so far and return all ids."""
        # Trap: the official tokenizer turns "<|im_end|>" in a user's text into the control token.
        text = "".join(self.pending)
        self.ids += self.tokenizer.encode(text, allow_special=False) if text else []
        self.pending = []
        return self.ids


def _write_message(prompt, message, where, keep_thinking):
    role, style = message["role"], prompt.style
    prompt.open(role, _string(message, "name", where) or role)
    if role == "tool":
        if message.get("tool_call_id") is None:
            raise ChatError(f"{where} has role 'tool' but no tool_call_id; expected the id of the "
                            "call that it answers")
        returned = f"## Return of {_string(message, 'tool_call_id', where)}\n"
        prompt.text("" if style.plain else returned)
    if role == "assistant" and style.thinks:
        prompt.control("<think>")
        # Trap: a reasoning_content of None is printed by the templates as the word "None".
        given = [name for name in style.reasoning if message.get(name) is not None]
        text = _string(message, given[0], where) if given else ""
        prompt.text(text if keep_thinking else "")
        prompt.control("</think>")
    prompt.text(_content(message.get("content"), where))
    if role == "assistant" and message.get("tool_calls") and not style.plain:
        _write_tool_calls(prompt, message["tool_calls"], where)
    if not message.get("partial"):
        prompt.control("<|im_end|>")


def _write_tool_calls(prompt, calls, where):
    if not isinstance(calls, list):
        raise ChatError(f"{where}.tool_calls: expected a list of dicts, found {quoted(calls)}")
    prompt.control("<|tool_calls_section_begin|>")
    for i, call in enumerate(calls):
        here = f"{where}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str):
            raise ChatError(f"{here}: expected a dict with an id (a string, as in "
                            f"'functions.search:0') and a function (a dict), found {quoted(call)}")
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = _dumps(json.dumps, arguments, f"{here}.function.arguments",
                               ensure_ascii=False)
        elif not isinstance(arguments, str):
            raise ChatError(f"{here}.function.arguments: expected a string of JSON or a dict, "
                            f"found {quoted(arguments)}")
        prompt.control("<|tool_call_begin|>")
        # The id is the only place where the prompt names the function.
        prompt.text(call["id"])
        prompt.control("<|tool_call_argument_begin|>")
        prompt.text(arguments)
        prompt.control("<|tool_call_end|>")
    prompt.control("<|tool_calls_section_end|>")


def _content(content, where):
    """Join the text of a message's content: a string, a list of text parts, or None."""
    # Trap: servers that make '' a list of parts printed the list itself into the prompt.
    # https://blog.vllm.ai/2025/10/28/Kimi-K2-Accuracy.html
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ChatError(f"{where}.content: expected a string, a list of parts or None, found "
                        f"{quoted(content)}")
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ChatError(f"{where}.content[{i}]: expected a part like {{'type': 'text', 'text': "
                            f"'...'}} (images and video are not supported), found {quoted(part)}")
    return "".join(part["text"] for part in content)


def _string(message, name, where):
    """Return a field that may be missing or None, which count as empty."""
    value = message.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ChatError(f"{where}.{name}: expected a string, found {quoted(value)}")
    return value


def _declaration(tools, declare):
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ChatError("tools: expected a list of dicts like {'type': 'function', 'function': "
                        f"{{...}}}}, found {quoted(tools)}")
    text = _dumps(as_typescript, tools, "tools") if declare == "typescript" else None
    return text or _dumps(as_json, tools, "tools")


def _dumps(write, value, where, **options):
    try:
        return write(value, **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(f"{where}: expected what JSON can hold, found something else "
                        f"({error})") from None


def _check_messages(messages):
    if not isinstance(messages, list):
        raise ChatError("messages: expected a list of dicts like {'role': 'user', 'content': "
                        f"'...'}}, found {quoted(messages)}")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or not role:
            raise ChatError(f"messages[{i}]: expected a dict with a role ('user', 'assistant', "
                            f"'system' or 'tool'), found {quoted(message)}")
        _check_fields(message, f"messages[{i}]", is_last=i == len(messages) - 1)


def _check_fields(message, where, is_last):
    """Refuse what would change the prompt if anything read it; unknown fields are left alone."""
    role, partial = message["role"], message.get("partial")
    for name, advice in UNREAD.items():
        if message.get(name):
            raise ChatError(f"{where}.{name}: no template reads it; {advice}, or leave it out")
    if role == "function":
        raise ChatError(f"{where}: no template knows the role 'function'; use the role 'tool' with "
                        "the tool_call_id of the call")
    if message.get("tool_calls") and role != "assistant":
        raise ChatError(f"{where}.tool_calls: expected them in a message of the assistant, found "
                        f"the role {quoted(role)}")
    if partial is not None and not isinstance(partial, bool):
        raise ChatError(f"{where}.partial: expected True or False, found {quoted(partial)}")
    # Trap: a message to be continued that is closed like any other is answered, not continued.
    if partial and not (is_last and role == "assistant" and not message.get("tool_calls")):
        raise ChatError(f"{where}.partial: expected it in the last message, of the assistant and "
                        "without tool_calls, which the model is to continue; found it elsewhere")


def check_options(style, thinking, preserve_thinking, declare="json", add_generation_prompt=True):
    """Refuse what a style does not have.

    Raises: ChatError
    """
    for name, value in (("thinking", thinking), ("preserve_thinking", preserve_thinking),
                        ("add_generation_prompt", add_generation_prompt)):
        if not isinstance(value, bool):
            raise ChatError(f"{name}: expected True or False, found {quoted(value)}")
    if declare not in DECLARATIONS:
        raise ChatError(f"declare: expected one of {', '.join(DECLARATIONS)}, found "
                        f"{quoted(declare)}")
    if not thinking and style.thinks and not style.instant:
        raise ChatError(f"thinking=False: {style.name} always thinks; use style k2.5, k2.6 or "
                        "k2-instruct with their checkpoints")
    if preserve_thinking and style.keeps == "never":
        raise ChatError(f"preserve_thinking: expected style k2.6, found {style.name}, whose "
                        "template drops the thinking before the last answer")
