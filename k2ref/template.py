"""The chat template: messages and tools become the ids of a prompt.

A conversation is a row of turns, each opened and closed by control tokens:

    <|im_user|>user<|im_middle|>What is 1+1?<|im_end|><|im_assistant|>assistant<|im_middle|>

The last three words are the generation prompt: the model continues there, and `reply.py` reads what
it writes. The checkpoints of the family differ in a few points, and a style names each variant:

    k2-instruct   a default system message; no thinking
    k2-thinking   the same; a reply is <think>thinking</think>content
    k2.5          no default system message; the prompt opens <think>, or opens and closes it
    k2.6          the same; thinking of earlier turns can be kept (K2.7 Code: keep it always)

The official code renders one string and parses control tokens out of it. Here a control token is
only ever written as its id, and text in between is encoded in one piece, as the reference does, but
as ordinary text: whatever a user, a tool or a name says, it cannot open or close a turn.

Chapter 02.
"""

import json

from k2ref.declarations import as_json, as_typescript

STYLES = ("k2-instruct", "k2-thinking", "k2.5", "k2.6")
SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
DECLARATIONS = ("json", "typescript")
OPENERS = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}  # all other roles: <|im_system|>


class ChatError(ValueError):
    """Say what is wrong with a message, a tool or a way to render them."""


def style_of(config, tokenizer):
    """Name the chat style of a checkpoint by its configuration and its tokenizer.

    No file of a checkpoint names it, so it follows from what the official files differ in:
    - K2.5 and later are nested (their tensors have a prefix). K2.5 ends a reply with [EOS], K2.6
      and K2.7 Code with <|im_end|>.
    - Of the flat ones Base, Instruct and Instruct 0905 end with [EOS]. K2 Thinking ends with
      <|im_end|>, as Moonlight does, which does not think: K2 Thinking has INT4 experts or, should
      someone have converted them, still <think> in its vocabulary.
    """
    ends_turn = config.eos_token_id == tokenizer.special_id("<|im_end|>")
    if config.tensor_prefix:
        return "k2.6" if ends_turn else "k2.5"
    is_int4 = (config.quantization_config or {}).get("quant_method") == "compressed-tensors"
    thinks = is_int4 or tokenizer.special_id("<think>") is not None
    return "k2-thinking" if ends_turn and thinks else "k2-instruct"


def render(tokenizer, messages, tools=None, add_generation_prompt=True, style=None, *,
           thinking=True, preserve_thinking=False, declare="json"):
    """Turn OpenAI-style messages and tools into the ids of a prompt.

    `style` is by default the checkpoint's own (`tokenizer.style`), else "k2-thinking".
    `thinking=False` (k2.5, k2.6) asks for an answer at once; `preserve_thinking` (k2.6) keeps the
    thinking of all turns. `declare` is how tools are written: the templates alone say "json"; the
    official tokenizers of k2.5 and later say "typescript", with JSON for what has no such spelling.

    Otherwise thinking is kept only after the last answer, that is, the last assistant message
    without tool calls: through a row of tool calls the model sees why it made them, and once it has
    answered nobody pays for those tokens again.

    Source: chat_template.jinja of Kimi-K2-Instruct-0905, Kimi-K2-Thinking, Kimi-K2.5, Kimi-K2.6.
    Raises: ChatError naming the message and field, or the control token that the tokenizer lacks.
    """
    if style is None:
        style = getattr(tokenizer, "style", None) or "k2-thinking"
    _check_options(style, thinking, preserve_thinking, declare)
    _check_messages(messages)
    prompt = _Prompt(tokenizer)
    if tools:
        prompt.open("system", "tool_declare")
        prompt.text(_declaration(tools, declare))
        prompt.control("<|im_end|>")
    if style in ("k2-instruct", "k2-thinking") and (
            not messages or messages[0]["role"] != "system"):
        prompt.open("system", "system")
        prompt.text(SYSTEM)
        prompt.control("<|im_end|>")
    answers = [i for i, message in enumerate(messages)
               if message["role"] == "assistant" and not message.get("tool_calls")]
    last_answer = answers[-1] if answers else -1
    for i, message in enumerate(messages):
        keep = preserve_thinking or (thinking and i > last_answer)
        _write_message(prompt, message, f"messages[{i}]", style, keep)
    if add_generation_prompt:
        prompt.open("assistant", "assistant")
        if style in ("k2.5", "k2.6"):
            prompt.control("<think>")
            if not thinking:
                prompt.control("</think>")
    return prompt.finish()


class _Prompt:
    """Collect ids: control tokens as they are, the text between two of them in one piece.

    One piece, because two neighbouring texts encoded apart may give other ids than together.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
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
        self.control(OPENERS.get(role, "<|im_system|>"))
        self.text(name)
        self.control("<|im_middle|>")

    def finish(self):
        """Encode the text so far and return all ids."""
        # Trap: the official tokenizer turns "<|im_end|>" in a user's text into the control token.
        text = "".join(self.pending)
        self.ids += self.tokenizer.encode(text, allow_special=False) if text else []
        self.pending = []
        return self.ids


def _write_message(prompt, message, where, style, keep_thinking):
    role = message["role"]
    prompt.open(role, _string(message, "name", where) or role)
    if role == "tool":
        if message.get("tool_call_id") is None:
            raise ChatError(f"{where} has role 'tool' but no tool_call_id; expected the id of the "
                            "call that it answers")
        prompt.text(f"## Return of {_string(message, 'tool_call_id', where)}\n")
    if role == "assistant" and style != "k2-instruct":
        prompt.control("<think>")
        # Trap: a reasoning_content of None is printed by the templates as the word "None".
        newer = style == "k2.6" and message.get("reasoning") is not None
        text = _string(message, "reasoning" if newer else "reasoning_content", where)
        prompt.text(text if keep_thinking else "")
        prompt.control("</think>")
    prompt.text(_content(message.get("content"), where))
    if role == "assistant" and message.get("tool_calls"):
        _write_tool_calls(prompt, message["tool_calls"], where)
    prompt.control("<|im_end|>")


def _write_tool_calls(prompt, calls, where):
    if not isinstance(calls, list):
        raise ChatError(f"{where}.tool_calls: expected a list of dicts, found {calls!r:.80}")
    prompt.control("<|tool_calls_section_begin|>")
    for i, call in enumerate(calls):
        here = f"{where}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str):
            raise ChatError(f"{here}: expected a dict with an id (a string, as in "
                            f"'functions.search:0') and a function (a dict), found {call!r:.80}")
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = _dumps(json.dumps, arguments, f"{here}.function.arguments",
                               ensure_ascii=False)
        elif not isinstance(arguments, str):
            raise ChatError(f"{here}.function.arguments: expected a string of JSON or a dict, "
                            f"found {arguments!r:.80}")
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
                        f"{content!r:.80}")
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ChatError(f"{where}.content[{i}]: expected a part like {{'type': 'text', 'text': "
                            f"'...'}} (images and video are not supported), found {part!r:.80}")
    return "".join(part["text"] for part in content)


def _string(message, name, where):
    """Return a field that may be missing or None, which count as empty."""
    value = message.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ChatError(f"{where}.{name}: expected a string, found {value!r:.80}")
    return value


def _declaration(tools, declare):
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ChatError("tools: expected a list of dicts like {'type': 'function', 'function': "
                        f"{{...}}}}, found {tools!r:.80}")
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
                        f"'...'}}, found {messages!r:.80}")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or not role:
            raise ChatError(f"messages[{i}]: expected a dict with a role ('user', 'assistant', "
                            f"'system' or 'tool'), found {message!r:.80}")


def _check_options(style, thinking, preserve_thinking, declare):
    if style not in STYLES:
        raise ChatError(f"style: expected one of {', '.join(STYLES)}, found {style!r}")
    if declare not in DECLARATIONS:
        raise ChatError(f"declare: expected one of {', '.join(DECLARATIONS)}, found {declare!r}")
    if not thinking and style == "k2-thinking":
        raise ChatError("thinking=False: k2-thinking always thinks; use style k2.5, k2.6 or "
                        "k2-instruct with their checkpoints")
    if preserve_thinking and style != "k2.6":
        raise ChatError(f"preserve_thinking: expected style k2.6, found {style}, whose template "
                        "drops the thinking before the last answer")
