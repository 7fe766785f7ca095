"""The dialogue: ask the agent, show what happens, keep it in files; on a terminal, again and again.

One question from the command line and a conversation on a terminal are the same here. Whatever ends
an answer, Ctrl-C or a mistake, what was said and computed so far is kept.

Chapter 00.
"""

import sys
from contextlib import ExitStack, closing

from k2ref.cli.options import UsageError, check_text
from k2ref.cli.terminal import Printer, Stopwatch, progress, streamed
from k2ref.conversation import session
from k2ref.conversation.events import Done, Ended, Hidden, Prompt
from k2ref.doors.endings import signals
from k2ref.doors.screen import note, report, say
from k2ref.tools.agent import Transcript

HELP = """\
/help            this list
/system [TEXT]   show the system message, or set it
/tools           list the tools, and what went wrong with them
/stats           say how fast the last answer was, and how full the context is
/save FILE       keep the conversation and its cache in a file
/load FILE       go on with the one in a file
/retry           ask the last question again
/undo            forget the last question and its answer
/quit            leave, as Ctrl-D does
Ctrl-C stops an answer. A question that begins with / is asked as //."""


class Dialogue:
    """A dialogue with an agent: it puts questions and shows what the agent does.

    `session` is the file to keep it in; `announce(n_tokens)` is called before the first prompt is
    read; a `recording` is told what happens.
    """

    def __init__(self, agent, hide_thinking=False, stats=False, session=None, announce=None,
                 recording=None):
        self.agent = agent
        self.hide_thinking, self.stats, self.announce = hide_thinking, stats, announce
        self.session, self.transcript, self.recording = session, None, recording
        self.watch = self._update = None
        self._is_kept = True

    def ask(self, question=None):
        """Ask, show the answer as it comes, and keep it, also when it is cut short.

        Raises: what the agent and the files raise, KeyboardInterrupt among it.
        """
        if question is not None:
            check_text("the question", question)
        self.watch, self._is_kept = Stopwatch(), False
        printer = Printer(sys.stdout, self.hide_thinking)
        try:
            # Closed and not left to the collector, as an agent that is interrupted while its events
            # are shown has a history to complete before that is kept.
            with ExitStack() as bar, closing(self.agent.run(
                    question, self._read, self._wrote)) as run:
                for event in self._noted(run, bar):
                    printer.show([event])
            printer.close()
        finally:
            # Nobody may read what is still to be shown, so what was said is kept first; and again,
            # if the first of all signals comes now.
            try:
                self.keep()
            finally:
                self.keep()
                printer.close()
                if self.stats and self.watch.n_begun:
                    report(self.watch.report(self.agent.model))

    def _noted(self, run, bar):
        """Pass on the agent's events, with a bar while a prompt is read and notes where needed."""
        for event in run:
            if isinstance(event, Prompt):
                if self.announce:
                    self.announce(event.n_tokens)
                    self.announce = None
                if self.recording:
                    self.recording.begin(event.n_tokens)
                self.watch.begin(event.n_cached)
                bar.close()
                self._update = bar.enter_context(progress(
                    sys.stderr, "reading the prompt", event.n_tokens - event.n_cached,
                    note=streamed(self.agent.model)))
            elif isinstance(event, Done):
                self.watch.end(event.finish_reason)
                if self.recording:
                    self.recording.end(event.finish_reason)
                self._follow()
            elif isinstance(event, Hidden):
                note(f"the context is full: the first {event.n} of {event.n_results} tool results "
                     "are hidden from the model")
            elif isinstance(event, Ended) and event.reason == "max_steps":
                note(f"stopped after {event.n_steps} steps with tools (see --max-steps)")
            yield event

    def _read(self, done, total):
        self.watch.read(done)
        self._update(done)

    def _wrote(self, token):
        self.watch.wrote(token)
        if self.recording:
            self.recording.wrote(token)

    def record(self, path):
        """Record the conversation in a file from now on, what is there of it first."""
        self.transcript = Transcript(path)
        self._follow()

    def keep(self):
        """Write session and transcript, if there is anything new. Signals wait meanwhile."""
        with signals.held():
            try:
                self._follow()
            finally:
                if self.session and not self._is_kept:
                    self._save(self.session)
            self._is_kept = True

    def _follow(self):
        if self.transcript:
            self.transcript.follow(self.agent.messages)

    def _save(self, path):
        session.save(path, self.agent.context, messages=self.agent.messages,
                     n_hidden=self.agent.n_hidden)

    def load(self, path):
        """Go on with the conversation in a file.

        Raises: what `session.load` raises; then nothing has changed.
        """
        context, state, remark = session.load(path, self.agent.model)
        if "messages" not in state:
            raise session.SessionError(f"{path}: expected the messages of a conversation, found "
                                       "none; give another file")
        self.agent.context = context
        self.agent.messages, self.agent.n_hidden = state["messages"], state.get("n_hidden", 0)
        if remark:
            note(remark)

    def talk(self):
        """Hold a conversation on the terminal until somebody leaves."""
        _edit_lines()
        n = len(self.agent.messages)
        note("a conversation" + (f" of {n} messages" if n else "") + "; /help lists the commands, "
             "Ctrl-D leaves")
        try:
            while self._turn():
                pass
        finally:
            self.keep()

    def _turn(self):
        """Take one line and do what it says; return whether to go on."""
        try:
            line = input("> ").strip()
        except EOFError:
            say()
            return False
        except KeyboardInterrupt:
            signals.go_on()
            say()
            return True
        try:
            if line.startswith("/") and not line.startswith("//"):
                return self._command(*line[1:].partition(" ")[::2])
            if line:
                self.ask(line.removeprefix("/"))
        except KeyboardInterrupt:
            signals.go_on()
            note("stopped")
        except BrokenPipeError:
            raise
        except (ValueError, OSError, MemoryError) as error:
            note(str(error) or "not enough memory")
        return True

    def _command(self, name, rest):
        rest = rest.strip()
        if name == "quit":
            return False
        known = {"help": self._help, "system": self._system, "tools": self._tools,
                 "stats": self._stats, "save": self._save_as, "load": self._load_from,
                 "retry": self._retry, "undo": self._undo}
        if name not in known:
            raise UsageError(f"there is no command /{name}; /help lists them")
        known[name](rest)
        return True

    def _help(self, _):
        say(HELP)

    def _system(self, text):
        if text:
            check_text("the system message", text)
            self.agent.set_system(text)
            self._is_kept = False
        first = self.agent.messages[:1]
        is_set = first and first[0]["role"] == "system"
        say(text_of(first[0]) if is_set else "(the checkpoint's own)")

    def _tools(self, _):
        for tool in self.agent.toolbox.declarations:
            function = tool["function"]
            say(f"{function['name']}({', '.join(function['parameters']['properties'])}): "
                  f"{function.get('description', '')}")
        if not self.agent.toolbox.declarations:
            say("(none; --tools gives some)")
        for failure, n in self.agent.failures.items():
            say(f"{failure}: {n}")

    def _stats(self, _):
        if self.watch and self.watch.n_begun:
            say(self.watch.report(self.agent.model))
        context = self.agent.context
        say(f"context  {context.cache.length} of {context.limit} tokens, {context.cache.dtype}")

    def _save_as(self, path):
        if not path and not self.session:
            raise UsageError("/save needs the name of a file")
        self._save(path or self.session)
        say(f"saved {self.agent.context.cache.length} tokens")

    def _load_from(self, path):
        if not path:
            raise UsageError("/load needs the name of a file")
        self.load(path)
        self._is_kept = False
        say(f"loaded {len(self.agent.messages)} messages, "
              f"{self.agent.context.cache.length} tokens")

    def _retry(self, _):
        question = self._take_back()
        if question is None:
            raise UsageError("there is no question to ask again")
        if self.agent.seed is not None:
            self.agent.seed += 1  # or the answer would be the same
        self.ask(question)

    def _take_back(self):
        """Forget the last question; return its text, or None if there is none."""
        question = self.agent.undo()
        return question and text_of({"content": question})

    def _undo(self, _):
        question = self._take_back()
        if question is None:
            raise UsageError("there is nothing to undo")
        self._is_kept = False
        say(f"forgotten: {question}")


def text_of(message):
    """Return what a message says; a session that another program wrote may say it in parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _edit_lines():
    """Let the arrow keys edit a line and bring back earlier ones, where Python can do it."""
    try:
        import readline  # noqa: F401  `input` uses it once it is there
    except ImportError:  # Windows has its own
        pass
