"""The reply: the ids that the model writes become thinking, content and tool calls, as they come.

What a well-behaved reply looks like (the last line only if it calls tools):

    <think>thinking</think>content
    <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}
    <|tool_call_end|><|tool_calls_section_end|>

Models also forget markers and repeat them, so `ReplyParser` is a small machine whose every state
has an answer to every marker. A marker is known by its id, so content may quote one in ordinary
text; only a marker that the vocabulary lacks is looked for in the text. There is one logic: `parse`
is the stream, collected.

    START --<think>--> THINKING --</think>--> CONTENT      where text goes
    START ---text--->  HELD -----</think>--> CONTENT       in a style that thinks
    SECTION --begin--> ID --argument--> ARGUMENTS --end--> SECTION

A model that thinks may forget its first word, <think>. What it writes is then known to be thinking
only at </think>, and events cannot be taken back: so text that begins without <think> is held until
</think>, a call or the end says what it is, and meanwhile only shown (`Held`). That costs such a
reply its streaming, whole answers without any thinking among them, which these models hardly ever
write; all others lose nothing.

Chapter 02.
"""

import re

from k2ref.checkpoint.styles import style_for
from k2ref.conversation.events import (
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Held,
    Reply,
    Thinking,
    ToolCall,
    collect,
    infer_name,
    name_of,
)
from k2ref.tokenizer import Decoder

__all__ = ["CallArguments", "CallBegin", "CallEnd", "Content", "Reply", "ReplyParser", "Thinking",
           "ToolCall", "collect", "parse"]

THINK, END_THINK = "<think>", "</think>"
SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
# Trap: models also write the section's markers in the singular, which no vocabulary has.
# https://github.com/ggml-org/llama.cpp/pull/17376
ONE_BEGIN, ONE_END = "<|tool_call_section_begin|>", "<|tool_call_section_end|>"
CALL_MARKERS = (SECTION_BEGIN, SECTION_END, CALL_BEGIN, ARGUMENT_BEGIN, CALL_END)
# A reply ends here, also where the model forgot to end it and opens the next turn.
ENDS = {"<|im_end|>", "[EOS]", "[EOT]", "<|im_user|>", "<|im_assistant|>", "<|im_system|>"}

STATES = START, HELD, THINKING, CONTENT, SECTION, ID, ARGUMENTS, END = (
    "start", "held", "thinking", "content", "section", "id", "arguments", "end")
JSON_SPACE = " \t\r\n"


def parse(tokenizer, ids, in_thinking=None, tools=None):
    """Split the ids of a reply into a `Reply`; see `ReplyParser` for the options."""
    parser = ReplyParser(tokenizer, in_thinking, tools)
    events = [event for id in ids for event in parser.feed(id)]
    return collect(events + parser.finish())


class ReplyParser:
    """A parser of a reply that is being written: `feed` and `finish` return lists of events.

    `in_thinking` says that the prompt has opened <think>; by default it has if that is what the
    tokenizer's style does. False is for a prompt after which there is no thinking: an answer at
    once, or one to be continued. `tools` are only needed to name the calls of models that write
    their ids badly (`name_of`).

    Source: Kimi-K2-Thinking docs/tool_call_guidance.md; for what models get wrong, each at its
    Trap below, the parsers and threads of vLLM, SGLang and llama.cpp.
    """

    def __init__(self, tokenizer, in_thinking=None, tools=None):
        style = style_for(tokenizer)
        is_known = tokenizer.style is not None  # else nobody knows whether it thinks
        self._waits = in_thinking is None and is_known and style.thinks and not style.opens
        if in_thinking is None:
            in_thinking = style.opens
        self._names = {id: name for name, id in tokenizer.special_tokens.items()}
        self._decoder = Decoder(tokenizer)
        self._tools = tools
        self._events = []
        self._state = START
        self._outside = THINKING if in_thinking else CONTENT  # where text goes that is not a call's
        self._is_open = in_thinking  # <think> without </think> so far, even if a call came between
        self._text = ""  # decoded, but it may be the beginning of a marker
        self._held = []  # before <think> blanks are nothing, before content they are content
        self._n_calls = 0
        self._written = _markers_in_text(tokenizer, self._waits)
        self._patterns = {key: _pattern(markers) for key, markers in self._written.items()}

    def feed(self, id):
        """Take one id and return the events that are now certain."""
        marker = self._names.get(id)
        if self._state == END:
            return []
        if marker is None:
            self._read(self._decoder.feed(id))
        else:
            self._read(self._decoder.flush(), last=True)
            self._mark(marker)
        return self._take_events()

    def finish(self):
        """End the reply, however incomplete it is, and return the last events."""
        if self._state != END:
            self._read(self._decoder.flush(), last=True)
            self._end()
        return self._take_events()

    def _take_events(self):
        events, self._events = self._events, []
        return events

    def _read(self, text, last=False):
        """Take text, look for written markers, and hold back what may yet become one."""
        self._text += text
        while found := self._patterns[self._state, self._is_open].search(self._text):
            before, self._text = self._text[:found.start()], self._text[found.end():]
            self._write(before)
            self._mark(found.group().strip())
        text, self._text = self._text, ""
        held = len(text)
        if not last:
            tails = range(max(0, len(text) - len(ONE_BEGIN)), len(text))
            markers = self._written[self._state, self._is_open]
            held = next((i for i in tails if any(m.startswith(text[i:]) for m in markers)), held)
        self._text = text[held:]
        self._write(text[:held])

    def _write(self, text):
        """Put text where the state says that it belongs."""
        if self._state in (START, HELD):
            self._hold(text)
            return
        if self._state == SECTION:
            text = text.lstrip()
            if text and self._outside:
                self._state = self._outside
        if self._state == ID:
            self._id.append(text)
        elif self._state == ARGUMENTS:
            self._write_arguments(text)
        elif text and self._state in (THINKING, CONTENT):
            self._events.append((Thinking if self._state == THINKING else Content)(text))

    def _hold(self, text):
        """Keep text at the start until it is known what it is; blanks may be nothing at all."""
        self._held.append(text)
        if self._state == START and text.strip():
            self._state, text = HELD, "".join(self._held)
        if self._state == HELD and not self._waits:
            self._release(self._outside)
        elif self._state == HELD and text:
            self._events.append(Held(text))

    def _release(self, state):
        """Say of the text that was held, if any, that it belongs where this state puts it."""
        text, self._held = "".join(self._held), []
        self._state = self._outside = state
        self._write(text)

    def _mark(self, marker):
        """Change the state as a marker says; one that makes no sense here is dropped."""
        if marker in ENDS:
            self._end()
        elif marker in (THINK, END_THINK):
            self._mark_thinking(marker)
        elif marker in (SECTION_BEGIN, ONE_BEGIN):
            # Trap: a section may begin inside the thinking, which it ends (vllm#33646).
            self._close()
            # What the vocabulary does not have may be a quotation: then text goes on after it.
            self._outside = None if marker == SECTION_BEGIN else self._outside
            self._state = SECTION
        elif marker in (SECTION_END, ONE_END):
            if self._state in (SECTION, ID, ARGUMENTS):
                self._close()
                self._state = self._outside = self._outside or CONTENT
        elif marker == CALL_BEGIN:
            # Trap: calls come without a section, too (vllm#32216), without an end of the one
            # before, and begun twice before any arguments, where the first is nothing.
            self._close()
            self._outside = self._outside and CONTENT
            self._state, self._id = ID, []
        elif marker == ARGUMENT_BEGIN and self._state == ID:
            self._begin_call()
        elif marker == CALL_END and self._state in (ID, ARGUMENTS):
            # Trap: a call that anything else ends is cut off, and must not be run
            # (ahwurm/localharness#77, 2389-research/tracker#507).
            self._close(is_complete=True)
            self._state = SECTION

    def _mark_thinking(self, marker):
        if self._state == ARGUMENTS:
            self._write(marker)  # the arguments are the model's own, whatever they say
        elif self._state == ID:
            pass
        elif marker == THINK:
            if self._state == HELD:
                self._close()
            self._held, self._is_open = [], True
            self._state = self._outside = THINKING
        elif self._waits and self._state in (START, HELD):
            # Trap: all before a </think> without <think> is thinking (vllm#32216).
            self._release(THINKING)
            self._state = self._outside = CONTENT
        else:
            self._is_open = False
            if self._outside == THINKING:
                self._close()
                self._state = self._outside = CONTENT

    def _close(self, is_complete=False):
        """End what is open: text that was held is text, a call without arguments is nothing."""
        if self._state in (START, HELD):
            self._release(self._outside)
        elif self._state == ARGUMENTS:
            self._end_call(is_complete)

    def _end(self):
        self._close()
        self._state = END

    def _begin_call(self):
        self._id = "".join(self._id).strip()
        self._name = name_of(self._id, self._tools)  # "": announced when the arguments are there
        self._state, self._arguments, self._spaces = ARGUMENTS, [], ""
        if self._name:
            self._events.append(CallBegin(self._n_calls, self._id, self._name))

    def _write_arguments(self, text):
        """Pass arguments on, without the blanks around them."""
        text = self._spaces + text
        text = text if self._arguments else text.lstrip(JSON_SPACE)
        body = text.rstrip(JSON_SPACE)
        self._spaces = text[len(body):]
        if body:
            self._arguments.append(body)
            if self._name:
                self._events.append(CallArguments(self._n_calls, body))

    def _end_call(self, is_complete):
        if not self._name:
            arguments = "".join(self._arguments)
            name = infer_name(self._tools, arguments)
            self._events.append(CallBegin(self._n_calls, self._id, name))
            self._events.append(CallArguments(self._n_calls, arguments))
        self._events.append(CallEnd(self._n_calls, is_complete))
        self._n_calls += 1


def _markers_in_text(tokenizer, waits):
    """List the markers to look for in the text, by state and whether thinking is open.

    They are those without an id, and only where they mean something: an answer may talk about
    <think>, and arguments may hold the singular markers.
    """
    found = {}
    for state in STATES:
        for is_open in (False, True):
            names = [*CALL_MARKERS]
            if state != ARGUMENTS:
                names += [ONE_BEGIN, ONE_END] + [END_THINK] * (is_open or waits and state in (
                    START, HELD)) + [THINK] * (state == START)
            found[state, is_open] = [n for n in names if tokenizer.special_id(n) is None]
    return found


def _pattern(markers):
    # Only at the very start of a reply is a written <think> a marker; blanks may precede it.
    blanks = {THINK: r"\A\s*"}
    return re.compile("|".join(blanks.get(m, "") + re.escape(m) for m in markers) or "(?!)")
