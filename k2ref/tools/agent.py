"""The agent: a model that calls tools, reads what they give, and goes on until it can answer.

    agent = k2ref.Agent(model, [calculator])
    for event in agent.run("What is 4821 * 377?"):
        print(event)

A step is a reply that calls tools, and the results of its calls. The history keeps all of it, in
OpenAI form; the prompt of each step is made of it anew, and only what is new in it is read.
Thinking is in the prompt until there is an answer, and not afterwards, as the template says.

Chapter 02.
"""

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from k2ref.checkpoint.styles import ChatError
from k2ref.conversation import chat as conversation
from k2ref.conversation import history
from k2ref.conversation.chat import Context, prompt_ids, reply
from k2ref.conversation.events import Content, Done, Ended, Held, Hidden, Thinking, ToolResult
from k2ref.conversation.template import is_partial
from k2ref.doors.atomic import replacing, require_file
from k2ref.generation import check_settings, whole
from k2ref.tools.toolbox import TIMEOUT_S, Toolbox

MAX_STEPS = 300  # the model card speaks of two to three hundred calls in a row
# A step is left an eighth of the context to write in: 32,768 tokens of K2 Thinking's 262,144. Its
# published runs allow 24,000 a step in search and 48,000 elsewhere.
SHARE_TO_WRITE = 8
BEGUN = "Error: the user interrupted this call while it ran; it may have done its work, or a part."
CUT_OFF = ("Error: not run, the call was cut off before its end; write it again, whole, and "
           "shorter if it was too long.")


class Agent:
    """A conversation with a model, its tools and its cache; without tools, a plain chat.

    `tools` are Python functions with type hints and docstrings (schema.py). `messages` is the
    history so far. `keep_turns` shows the model only the last turns of tool calls. `failures`
    counts what went wrong, by kind. `settings` are those of `chat`, `thinking` and
    `preserve_thinking` among them; a seed is moved on with every reply, or all would draw the same
    numbers. All of it is checked now.
    Raises: ToolError for a function that cannot be declared; ChatError for a history that is not
    well formed, or a mode that the checkpoint does not have; ValueError or TypeError for a setting
    that makes no sense; TokenizerError for a model without a tokenizer.
    """

    def __init__(self, model, tools=(), messages=(), *, max_steps=MAX_STEPS, keep_turns=None,
                 timeout_s=TIMEOUT_S, context=None, n_hidden=0, thinking=True,
                 preserve_thinking=False, cache_dtype=None, **settings):
        self.model = model
        self.toolbox = Toolbox(tools, timeout_s)
        self.messages = history.rename_calls(messages)
        self.max_steps = whole("max_steps", max_steps, 0)
        self.keep_turns = keep_turns if keep_turns is None else whole("keep_turns", keep_turns, 1)
        self.n_hidden = whole("n_hidden", n_hidden, 0)  # of the tool results, the oldest
        self.thinking, self.preserve_thinking = thinking, preserve_thinking
        conversation.prompt_ids(model, self.messages, self.toolbox.declarations, thinking,
                                preserve_thinking)
        if is_partial(self.messages):
            raise ChatError("messages: expected turns that have ended, found a last one that is "
                            "partial; an agent goes on with a new one, `chat` with that one")
        shown = {"on_token", "on_prefill"}
        check_settings(model, thinking=thinking, **{
            name: value for name, value in settings.items() if name not in shown})
        self.seed = settings.pop("seed", None)
        self.settings = settings
        if context and cache_dtype not in (None, context.cache.dtype):
            raise ValueError(f"cache_dtype: the context has {context.cache.dtype}, found "
                             f"{cache_dtype!r}; leave one of the two out")
        self.context = context or Context(model, cache_dtype or "float32")
        self.failures = Counter()

    def run(self, prompt=None, on_prefill=None, on_token=None):
        """Answer a prompt: yield typed events, the last one `Ended`.

        `on_prefill(done, total)` and `on_token(token)` are called during this answer; without
        them, those that the agent was made with.
        Without a prompt, or with the one that was last asked and not answered to the end, the work
        goes on where it was left. However this ends, the history is whole: a call that was not run
        has a result that says so, and what was said of an answer is kept.
        Raises: what `chat` raises; then a prompt that was not read leaves no trace.
        """
        asked = history.unanswered(self.messages)
        is_new = prompt is not None and (
            asked is None or self.messages[asked].get("content") != prompt)
        if is_new:
            self.messages.append({"role": "user", "content": prompt})
        try:
            yield from self._steps({"on_prefill": on_prefill, "on_token": on_token})
        except Exception:
            if is_new and self.messages[-1]["role"] == "user":
                self.messages.pop()
            raise
        finally:
            self._complete()

    def _steps(self, observers):
        was_cut_off = False
        for n_steps in range(self.max_steps + 1):
            ids = yield from self._prompt()
            done = yield from self._reply(ids, observers)
            calls = self.messages[-1].get("tool_calls", [])
            if not calls or not self.toolbox.functions:
                yield Ended(done.finish_reason, n_steps)
                return
            may_run = n_steps < self.max_steps
            yield from self._run_calls(calls, may_run)
            # Trap: a model that is told so may write the same again, and again (mastra#15717).
            is_cut_off = done.finish_reason == "length" and not history.is_complete(calls[-1])
            if is_cut_off and was_cut_off:
                yield Ended("length", n_steps + may_run)
                return
            was_cut_off = is_cut_off
        yield Ended("max_steps", self.max_steps)

    def view(self):
        """Return the messages as the model is shown them."""
        shown = history.hide_results(self.messages, self.n_hidden)
        return shown if self.keep_turns is None else history.keep_turns(shown, self.keep_turns)

    def _prompt(self):
        """Render the view; where it is too long, hide the older half of the results still shown.

        Half and not one, since all that follows the first hidden result has to be read again.
        """
        limit = self.context.limit
        room = min(self.settings.get("max_new_tokens") or limit, limit // SHARE_TO_WRITE)
        n_results = sum(map(history.is_result, self.messages))
        self.n_hidden = min(self.n_hidden, n_results)
        while True:
            ids = self._render()
            if len(ids) + room <= limit or self.n_hidden == n_results:
                return ids
            self.n_hidden += (n_results - self.n_hidden + 1) // 2
            yield Hidden(self.n_hidden, n_results)

    def _render(self):
        return prompt_ids(self.model, self.view(), self.toolbox.declarations, self.thinking,
                          self.preserve_thinking)

    def _reply(self, ids, observers):
        told = {name: observer for name, observer in observers.items() if observer}
        settings = {**self.settings, **told}
        if self.seed is not None:
            n_replies = sum(message["role"] == "assistant" for message in self.messages)
            settings["seed"] = self.seed + n_replies
        said, held, done, before = [], [], None, self.messages
        try:
            for event in reply(self.model, ids, self.toolbox.declarations, self.context,
                               thinking=self.thinking, **settings):
                if isinstance(event, Thinking | Content):
                    held = []  # for it comes again, as this event
                if isinstance(event, Content | Held):
                    (said if isinstance(event, Content) else held).append(event.text)
                if isinstance(event, Done):
                    done = event
                    self.messages = history.rename_calls([*self.messages, event.message])
                yield event
        finally:
            if (said or held) and self.messages is before:  # interrupted
                self.messages.append({"role": "assistant", "content": "".join(said + held)})
        return done

    def _run_calls(self, calls, may_run):
        results, self.toolbox.begun = [], None
        try:
            for call in calls:
                name, arguments = call["function"]["name"], call["function"]["arguments"]
                if not may_run:
                    break
                results.append(self.toolbox.call(call["id"], name, arguments)
                               if history.is_complete(call)
                               else ToolResult(call["id"], name, CUT_OFF, "cut off"))
                if results[-1].failure:
                    self.failures[results[-1].failure] += 1
                yield results[-1]
        finally:
            self._keep(calls, results, may_run)

    def _keep(self, calls, results, may_run=True):
        """Put the results of a reply's calls into the history, also of those that were not run."""
        why = (f"Error: not run, the limit of {self.max_steps} steps is reached." if not may_run
               else "Error: not run, the user interrupted.")
        for call in calls[len(results):]:
            said = BEGUN if may_run and call["id"] == self.toolbox.begun else why
            results.append(ToolResult(call["id"], call["function"]["name"], said, "not run"))
        self.messages += [{"role": "tool", "tool_call_id": result.id, "name": result.name,
                           "content": result.content} for result in results]

    def _complete(self):
        """Give results to the calls of a last reply that was interrupted before any was run."""
        calls = self.messages[-1].get("tool_calls") if self.messages else None
        if calls and self.toolbox.functions:
            self._keep(calls, [])

    def undo(self):
        """Forget the last question and all that followed; return it, or None if there is none."""
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not users:
            return None
        question = self.messages[users[-1]].get("content") or ""
        self.messages = self.messages[: users[-1]]
        return question

    def set_system(self, text):
        """Put a system message first, in place of the one that is there; None leaves none."""
        if self.messages and self.messages[0]["role"] == "system":
            self.messages = self.messages[1:]
        if text is not None:
            self.messages = [{"role": "system", "content": text}, *self.messages]


class Transcript:
    """A file of a conversation that grows: an OpenAI message a line, JSON Lines.

    New lines are added, whole or not at all; a history that was changed takes the place of the
    file. To a pipe or a device all is written one after the other.
    """

    def __init__(self, path):
        self.path, self.file, self.written = Path(path), None, []
        self.is_stream = self.path.exists() and not self.path.is_file()
        if self.is_stream:
            self.file = open(path, "ab", buffering=0)
        else:
            require_file(path)

    def follow(self, messages):
        """Add what is new; where the history was changed, write all of it again."""
        grows = self.written == messages[: len(self.written)]
        # Half a surrogate pair is no UTF-8, but its escape is JSON.
        data = b"".join(
            json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
            for message in (messages[len(self.written):] if grows else messages))
        if self.is_stream or grows and self.file:
            self._add(data)
        else:
            with replacing(self.path) as file:
                file.write(data)
            if self.file:
                self.file.close()
            self.file = open(self.path, "ab", buffering=0)
        self.written = list(messages)

    def _add(self, data):
        n_before = os.fstat(self.file.fileno()).st_size
        try:
            while data:
                data = data[self.file.write(data):]
        except BaseException:
            with suppress(OSError):  # half a line is none; of a pipe nothing can be taken back
                os.ftruncate(self.file.fileno(), n_before)
            raise
