"""The recording: what `--trace` and `--show` keep of one question and its answer.

The model that is asked is the same one, with a trace that records every pass. Files are written
when the answer is over, also when it was cut short, whole or not at all.

Chapter 16.
"""

import dataclasses
import json
from collections import ChainMap
from pathlib import Path

from k2ref import ops, trace
from k2ref.doors.atomic import replacing
from k2ref.generation import default_settings, default_stop_ids
from k2ref.show.page import RECORDED, page
from k2ref.streaming import memory


class Recording:
    """The passes of a model, kept for a trace file, a page, or both; `model` is the one to ask.

    `only` are patterns of the names that the trace file is to hold. `begin`, `wrote` and `end` are
    told what happens, as a `Stopwatch` is; `say` is called with a sentence for the user; `about`
    is written into the files, as is all that the recording knows itself.
    Raises: ValueError for a pattern that fits no name.
    """

    def __init__(self, model, trace_file=None, only=(), page_file=None, n_new=None, settings=None,
                 say=print, **about):
        names = trace.stages(model.config)
        for pattern in only:
            if not any(trace.Trace(pattern).wants(name) for name in names):
                raise ValueError(f"--trace-only {pattern}: no stage has such a name; there are "
                                 f"{', '.join(list(names)[:3])} ... {list(names)[-1]}")
        self.only = list(only) or ["*"]
        self.trace_file, self.page_file, self.say = trace_file, page_file, say
        self.n_new, self._about = n_new or 0, about
        self.settings = {**default_settings(model), **(settings or {})}
        self.trace = trace.Trace((self.only if trace_file else []) + (
            list(RECORDED) if page_file else []))
        self.model = dataclasses.replace(model, trace=self.trace)
        self.replies = []  # [tokens of the prompt, ids written, reason to end]

    def begin(self, n_prompt):
        """Note that a prompt is to be read; before the first, say what recording it takes.

        Raises: ValueError where that is more memory than there is.
        """
        self.replies.append([n_prompt, [], "interruption"])
        if len(self.replies) > 1:
            return
        per_token = self.trace.n_bytes_per_token(self.model.config)
        n_bytes, available = per_token * (n_prompt + self.n_new), memory.available()
        what = f"recording takes {memory.size(per_token)} of memory for each token"
        if available is not None and n_bytes > available:
            raise ValueError(f"{what}, {memory.size(n_bytes)} for {n_prompt + self.n_new} tokens, "
                             f"and {memory.size(available)} are available; record less with "
                             "--trace-only, or ask for less with --max-tokens")
        self.say(f"{what}, {memory.size(per_token * n_prompt)} for the prompt of {n_prompt}")

    def wrote(self, token):
        """Note that a token is written."""
        self.replies[-1][1].append(int(token))

    def end(self, reason):
        """Note that the reply has ended, and why."""
        self.replies[-1][2] = reason

    def save(self):
        """Write the files, if anything was recorded.

        Raises: OSError
        """
        if not self.trace.n_tokens:
            return
        about = self.about()
        if self.trace_file:
            self.trace.save(self.trace_file, about, self.only)
            self._report(self.trace_file)
        if self.page_file:
            context = self.trace.context(about)
            about["stages"] = json.loads(str(context[trace.ABOUT]))["stages"]
            text = page(self.model, ChainMap(context, self.trace), about)
            with replacing(self.page_file) as file:
                file.write(text.encode())
            self._report(self.page_file)

    def about(self):
        """Return what is known of the run besides the arrays, as JSON can hold it."""
        return {
            **self._about, "kernels": ops.kernels_name(),
            "config": dataclasses.asdict(self.model.config), "settings": self.settings,
            "stop_ids": sorted(default_stop_ids(self.model)), "replies": self.replies,
            "only": self.only,
        }  # fmt: skip

    def _report(self, file):
        n_bytes = Path(file).stat().st_size
        self.say(f"{file}: {self.trace.n_tokens} tokens, {memory.size(n_bytes)}")
