"""A model that says what a test has written for it: only the draw of the next token is replaced.

Prompts are rendered, read into a real cache, replies stop at the real stop ids, are parsed, and go
through the real loop. In `tests/tools/test_trail.py` the embedded model does it without a script.
"""

import itertools
import sys

from k2ref.conversation.events import ToolCall
from k2ref.sampling import Choice

GENERATE = sys.modules["k2ref.generation"]  # `k2ref.generate` is the function of that name


class Script:
    """Hold the replies to come, as texts with control tokens in them."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = iter(())

    def say(self, *replies):
        """Let these replies come next, each ended by <|im_end|>."""
        self.ids = itertools.chain(self.ids, *(self.encode(reply) for reply in replies))

    def say_instead(self, *replies):
        """Drop what was to come."""
        self.ids = iter(())
        self.say(*replies)

    def encode(self, reply):
        yield from self.tokenizer.encode(reply + "<|im_end|>", allow_special=True)

    def sample(self, logits, rng, seen=(), n_top=0, **settings):
        return Choice(next(self.ids), 0.0, [])


def script(monkeypatch, model, *replies):
    """Make the model say these replies, one after another."""
    scripted = Script(model.tokenizer)
    scripted.say(*replies)
    monkeypatch.setattr(GENERATE, "sample", scripted.sample)
    return scripted


def calling(*calls, thinking="", content=""):
    """A reply that makes calls: ids and arguments as texts."""
    text = "".join(f"<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}"
                   "<|tool_call_end|>" for id, arguments in calls)
    return (f"<think>{thinking}</think>{content}<|tool_calls_section_begin|>{text}"
            "<|tool_calls_section_end|>")


def answer(content, thinking=""):
    return f"<think>{thinking}</think>{content}"


def message_call(id, name, arguments):
    """A call as it stands in a message."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def of_type(events, *kinds):
    return [event for event in events if isinstance(event, kinds)]


def calls_of(events):
    return of_type(events, ToolCall)
