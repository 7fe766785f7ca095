"""The command: `python -m k2ref "prompt"` streams an answer; what is wrong is one sentence.

This file knows the order of the work and the ways to end; asking and showing is in `dialogue.py`,
how a reply looks in `terminal.py`. What can be wrong is looked at before the checkpoint is opened,
as far as possible.

Chapter 00.
"""

import errno
import os
import signal
import sys
import warnings
from pathlib import Path

from k2ref import __version__, ops
from k2ref.checkpoint import inspection
from k2ref.cli import options
from k2ref.cli.dialogue import Dialogue
from k2ref.cli.options import UsageError
from k2ref.cli.terminal import Printer, Stopwatch, progress, streamed
from k2ref.doors import endings
from k2ref.doors.atomic import require_file
from k2ref.doors.screen import let_go, note, report, say
from k2ref.generation import default_settings, generate
from k2ref.loading import load
from k2ref.planning import plan
from k2ref.show.recording import Recording
from k2ref.tokenizer import Decoder, TokenizerError
from k2ref.tools.agent import Agent
from k2ref.tools.toolbox import load_tools

MOST_PROMPT = 16_000_000  # bytes; 262,144 tokens of text are about one million
# What a write may fail with; all files but the standard output are named in their errors.
UNNAMED = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EBADF, errno.EDQUOT)
LARGE_CACHE = 1e9  # bytes: a cache that may become larger is announced


def main(argv=None):
    """Run the command with these arguments, by default the program's; return its exit status."""
    try:
        with endings.unwinding():
            status = _status(argv)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except endings.Terminated as end:
        status = 128 + end.number
    # What a stream that failed still holds is thrown away, or Python would complain at exit.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            let_go(stream)
    return status


def _status(argv):
    """Do the work; tell what is wrong in a sentence, and with a number."""
    try:
        _take_streams()
        status = _run(options.parser().parse_args(argv))
        sys.stdout.flush()
        return status
    except SystemExit as done:  # --help
        return done.code
    except BrokenPipeError:
        return 128 + 13  # SIGPIPE, which Windows does not name
    except OSError as error:
        name = error.filename or ("the standard output" if error.errno in UNNAMED else None)
        where = f"{name}: " if name else ""
        return _complain(f"{where}{error.strerror or error}")
    except (ValueError, MemoryError) as error:
        return _complain(str(error) or "not enough memory")


def _take_streams():
    """See that there is somewhere to write to; what is opened later must not take that place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by whoever started this
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        raise UsageError("the standard output is closed, so nothing could be shown; to throw it "
                         f"away, send it to {os.devnull}")
    if hasattr(sys.stdout, "reconfigure"):  # a stdout that cannot say a character says "?"
        sys.stdout.reconfigure(errors="replace")


def _run(args):
    if args.version:
        say(f"k2ref {__version__} (kernels: {ops.kernels_name()})")
        return 0
    path = args.model if args.model is not None else os.environ.get("K2REF_MODEL") or None
    if args.inspect is not None:
        with warnings.catch_warnings(record=True) as remarks:
            found = inspection.inspect(args.inspect)
        for remark in remarks:
            note(str(remark.message))
        say(inspection.describe(found))
        return 0 if found.is_sound else 2
    if args.plan:
        say(plan.report(path, args.memory, args.threads, args.cache or "float32"))
        return 0
    if args.raw and (args.system is not None or args.hide_thinking or args.tools or args.session
                     or args.transcript or args.no_thinking or args.preserve_thinking):
        raise UsageError("--raw uses no chat template, so --system, --hide-thinking, --tools, "
                         "--session, --transcript, --no-thinking and --preserve-thinking do not "
                         "go with it")
    prompt = _prompt(args)
    options.check_text("--system", args.system or "")
    options.check_recording(args, prompt)
    settings = options.settings(args)
    functions = load_tools(args.tools)

    ops.kernels_name()  # a K2REF_KERNELS that this machine cannot run is refused here
    if ops.missing_kernels():
        note(ops.missing_kernels())
    with warnings.catch_warnings(record=True) as remarks, progress(
            sys.stderr, "loading the model", unit="B") as update:
        model = load(path, args.threads, args.memory, args.lock, update, args.style)
    for remark in remarks:
        note(str(remark.message))
    for remark in model.stream.notes if model.stream else ():
        note(remark)
    if model.tokenizer is None:
        raise TokenizerError(f"{path}: there is no tiktoken.model, which turns text into tokens; "
                             "download it from the checkpoint's page")
    recording = _recording(model, prompt, args, settings)
    model = recording.model if recording else model
    most, context = args.max_tokens, model.config.max_position_embeddings
    settings.update(max_new_tokens=most and min(most, context), seed=args.seed)
    try:
        if args.raw:
            _continue_text(model, prompt, args, settings, recording)
        elif prompt is None:
            _dialogue(model, functions, args, settings, None).talk()
        else:
            _dialogue(model, functions, args, settings, recording).ask(prompt)
    finally:
        if recording:
            with endings.signals.held():
                recording.save()
    return 0


def _recording(model, prompt, args, settings):
    """Set up what --trace and --show ask for, or None."""
    if args.trace is None and args.show is None:
        return None
    name = args.model if args.model is not None else os.environ.get("K2REF_MODEL")
    return Recording(
        model, args.trace, args.trace_only, args.show, args.max_tokens,
        {**default_settings(model, not args.no_thinking), **settings}, note,
        k2ref=__version__, asked=prompt, seed=args.seed,
        checkpoint=Path(name).resolve().name if name else "the embedded model")


def _dialogue(model, functions, args, settings, recording):
    """Set up the conversation that the options ask for, or go on with the session's."""
    agent = Agent(model, functions, max_steps=args.max_steps, keep_turns=args.keep_turns,
                  timeout_s=args.tool_timeout, cache_dtype=args.cache,
                  thinking=not args.no_thinking, preserve_thinking=args.preserve_thinking,
                  **settings)
    dialogue = Dialogue(agent, args.hide_thinking, args.stats, args.session,
                        announce=lambda n: _announce_cache(model.config, n, args),
                        recording=recording)
    if args.session and os.path.lexists(args.session):
        dialogue.load(args.session)
        dtype = agent.context.cache.dtype
        if args.cache not in (None, dtype):
            raise UsageError(f"--cache {args.cache}: the cache in {args.session} is {dtype}; leave "
                             "the option out, or begin another session")
    if args.session:
        require_file(args.session)
    if args.system is not None:
        agent.set_system(args.system)
    if args.transcript:
        dialogue.record(args.transcript)
    return dialogue


def _announce_cache(config, n_prompt, args):
    """Say what a large cache may come to take, before any of it is taken."""
    context, dtype = config.max_position_embeddings, args.cache or "float32"
    n_tokens = min(context, n_prompt + (args.max_tokens or context))
    n_bytes = n_tokens * config.kv_bytes_per_token(2 if dtype == "bf16" else 4)
    if n_bytes >= LARGE_CACHE:
        note(f"the KV cache takes {n_bytes / 1e9:.1f} GB in {dtype} when all {n_tokens} tokens are "
             "in it (see --max-tokens and --cache)")


def _continue_text(model, prompt, args, settings, recording):
    """Continue a text as it is; also when it is cut short, show all that came."""
    ids = model.tokenizer.encode(prompt, allow_special=True)
    _announce_cache(model.config, len(ids), args)
    printer, watch = Printer(sys.stdout), Stopwatch()
    if recording:
        recording.begin(len(ids))
    decoder = Decoder(model.tokenizer)
    with progress(sys.stderr, "reading the prompt", len(ids), note=streamed(model)) as update:

        def on_prefill(done, total):
            watch.read(done)
            update(done)

        tokens = generate(model, ids, on_prefill=on_prefill, cache_dtype=args.cache or "float32",
                          **settings)
        watch.begin()
        try:
            while True:
                token = next(tokens)
                watch.wrote(token)
                if recording:
                    recording.wrote(token)
                printer.write(decoder.feed(token))
        except StopIteration as end:
            watch.end(end.value)
            if recording:
                recording.end(end.value)
        finally:
            printer.write(decoder.flush())
            printer.close()
            if args.stats:
                report(watch.report(model))


def _prompt(args):
    """Take the prompt from the command line, or from what is piped in; None on a terminal."""
    if args.prompt is not None:
        prompt = args.prompt
    elif sys.stdin is None or sys.stdin.isatty():
        if sys.stdin and sys.stdout.isatty() and not args.raw:
            return None
        raise UsageError('there is no prompt; give one: python -m k2ref "What is 37+58?"')
    else:
        data = sys.stdin.buffer.read(MOST_PROMPT + 1)
        if len(data) > MOST_PROMPT:
            raise UsageError(f"the prompt has more than {MOST_PROMPT:,} bytes, which no context "
                             "holds; shorten it")
        prompt = data.decode("utf-8", "surrogateescape")
        prompt = prompt if args.raw else prompt.removesuffix("\n").removesuffix("\r")
    if not prompt:
        raise UsageError("the prompt is empty")
    options.check_text("the prompt", prompt)
    return prompt


def _complain(message):
    note(message)
    return 2
