"""The options of the command: their names, what they take, what `--help` says of them.

A mistake is one sentence. Groups are what a reader of `--help` looks for: what is asked, how the
answer is chosen, how it runs, and what can be looked at without asking anything.

Chapter 00.
"""

import argparse
import math
import threading

from k2ref.cache import CACHE_DTYPES
from k2ref.checkpoint.styles import STYLES
from k2ref.doors.atomic import require_file
from k2ref.doors.intake import quoted
from k2ref.doors.screen import say
from k2ref.ops import MOST_THREADS
from k2ref.sampling import Settings
from k2ref.tools.agent import MAX_STEPS
from k2ref.tools.demonstration import DEMONSTRATION
from k2ref.tools.toolbox import TIMEOUT_S

MOST_NUMBER = 2 ** 1000
MOST_GIGABYTES = 1e9  # of memory; no machine has a billion

HELP = """\
examples:
  python -m k2ref "What is 37+58?"
  python -m k2ref                                    (on a terminal: a conversation)
  python -m k2ref --tools calculator --session sums.k2ref "What is 4821 * 377?"
  python -m k2ref --model /data/Kimi-K2-Thinking --stats "Why is the sky blue?"
  python -m k2ref --trace sum.npz --show sum.html "What is 37+58?"
  python -m k2ref --plan --model /data/Kimi-K2-Thinking --memory 256
  echo "Tell me a story" | python -m k2ref --hide-thinking > story.txt

The settings that are not given are the checkpoint's own (generation_config.json), else what the
model card recommends. Thinking is dim on a terminal; in a pipe, a file, or with NO_COLOR set, it
stands between the lines <think> and </think>. The line end of a piped prompt is dropped, except
with --raw. A prompt that begins with a dash goes after --.

A file of tools is a Python program, and it is run, with all that you may do on this machine; its
functions with type hints and docstrings are what the model may call. Read it first. It runs in a
process of its own, which is ended when a call takes too long or you interrupt it.

exit status: 0 after an answer, 2 after a mistake in options, directory or checkpoint, 130 after
Ctrl-C, 143 after a request to terminate, 129 when the terminal was closed, 141 when nobody reads
the output any more. Ctrl-C once more while the conversation is kept waits, a third one does not.
"""


class UsageError(ValueError):
    """A command line that asks for something that cannot be done."""


class Parser(argparse.ArgumentParser):
    """A parser of options; a mistake is one sentence, without the usage in front of it."""

    color = False  # of Python 3.14: the help is the same everywhere

    def print_help(self, file=None):
        """Show the help where all else is shown."""
        say(self.format_help().rstrip("\n"))

    def error(self, message):
        raise UsageError(f"{message} (--help lists the options)")


def parser():
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m k2ref", allow_abbrev=False, epilog=HELP, add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Ask a Kimi K2 model and watch it answer.")
    # The same text from every Python: 3.14 would colour the help, 3.15 guess at what was meant.
    parser.color = parser.suggest_on_error = False
    parser.add_argument("prompt", nargs="?", help="what to ask; without it, standard input, or on "
                        "a terminal a conversation")
    group = parser.add_argument_group("what is asked, and of whom")
    group.add_argument("--model", metavar="DIR", help="a checkpoint as downloaded from the hub "
                       "(default: $K2REF_MODEL, else the embedded model)")
    group.add_argument("--system", metavar="TEXT", help="the system message")
    group.add_argument("--style", choices=STYLES, help="how the checkpoint is talked to (default: "
                       "what its files say it is)")
    group.add_argument("--raw", action="store_true", help="no chat template: the prompt is "
                       "continued as it is, and control tokens written in it count")
    group.add_argument("--session", metavar="FILE", help="go on with the conversation in FILE, if "
                       "there is one, and keep it there, with what was computed for it")
    group = parser.add_argument_group("tools")
    group.add_argument("--tools", metavar="FILE.py|NAME", action="append", default=[],
                       help="let the model call the functions of FILE.py, which is run, or a "
                       f"demonstration tool ({' or '.join(DEMONSTRATION)}); may be given again")
    group.add_argument("--max-steps", metavar="N", type=_at_least(1), default=MAX_STEPS,
                       help=f"stop after N replies that call tools (default: {MAX_STEPS})")
    group.add_argument("--keep-turns", metavar="N", type=_at_least(1),
                       help="show the model only its last N turns of tool calls (default: all)")
    group.add_argument("--tool-timeout", metavar="S", type=_seconds, default=TIMEOUT_S,
                       help=f"give up on a call after S seconds (default: {TIMEOUT_S:g})")
    group.add_argument("--transcript", metavar="FILE.jsonl",
                       help="record the conversation, an OpenAI message a line")
    group = parser.add_argument_group("how the answer is chosen")
    group.add_argument("--no-thinking", action="store_true",
                       help="answer at once (K2.5 and K2.6 can)")
    group.add_argument("--preserve-thinking", action="store_true", help="show the model what it "
                       "thought in all earlier turns (K2.6 can, K2.7 Code always does)")
    group.add_argument("--max-tokens", metavar="N", type=_at_least(1),
                       help="stop after N tokens, thinking included (default: the context)")
    chance = group.add_mutually_exclusive_group()
    chance.add_argument("--temperature", metavar="T", type=float, help="0 is greedy")
    chance.add_argument("--greedy", action="store_true", help="always the likeliest token")
    group.add_argument("--top-p", metavar="P", type=float,
                       help="only the likeliest tokens that have P of the probability together")
    group.add_argument("--top-k", metavar="K", type=_at_least(0), help="only the K likeliest")
    group.add_argument("--min-p", metavar="P", type=float,
                       help="only tokens at least P times as likely as the likeliest")
    group.add_argument("--seed", metavar="N", type=_at_least(0),
                       help="repeat the same choices (default: fresh ones)")
    group = parser.add_argument_group("how it runs and what is shown")
    group.add_argument("--threads", metavar="N", type=_at_least(1, MOST_THREADS),
                       help="default: one for each core")
    group.add_argument("--memory", metavar="GB", type=_gigabytes,
                       help="the most memory to use for weights, cache and all (default: most of "
                       "what is free; a checkpoint that is larger is streamed from disk)")
    group.add_argument("--lock", action="store_true",
                       help="ask the system to keep in memory what every token needs")
    group.add_argument("--cache", type=_one_of(CACHE_DTYPES),
                       metavar=f"{{{','.join(CACHE_DTYPES)}}}",
                       help="how numbers of the KV cache are kept (default: float32, or as the "
                       "session has them); bf16 halves its memory")
    group.add_argument("--hide-thinking", action="store_true", help="show the answer only")
    group.add_argument("--stats", action="store_true",
                       help="report speed, weights read and memory on standard error")
    group = parser.add_argument_group("what is kept of the work")
    group.add_argument("--trace", metavar="FILE.npz", help="record what each stage computes for "
                       "each token of prompt and reply")
    group.add_argument("--trace-only", metavar="PATTERN", action="append", default=[],
                       help="record only stages of such names, 'layers.3.*' for one layer; may be "
                       "given again")
    group.add_argument("--show", metavar="FILE.html", help="write a page that shows the run: "
                       "tokens, probabilities, experts, attention")
    group = parser.add_argument_group("instead of an answer")
    group.add_argument("--plan", action="store_true",
                       help="measure this machine and say how fast it will run the model")
    group.add_argument("--inspect", metavar="DIR",
                       help="say what a checkpoint contains, and what is missing or wrong")
    group.add_argument("--version", action="store_true", help="show version and kernels")
    group.add_argument("-h", "--help", action="help", help="show this help")
    return parser


def settings(args):
    """Collect the sampling settings that were given, and refuse bad ones before a long load."""
    given = {"temperature": 0.0 if args.greedy else args.temperature, "top_p": args.top_p,
             "top_k": args.top_k, "min_p": args.min_p}
    given = {name: value for name, value in given.items() if value is not None}
    Settings(**given)
    return given


def check_recording(args, prompt):
    """Refuse what cannot be recorded, before a long load.

    Raises: UsageError; OSError for a file that cannot be written
    """
    if args.trace_only and args.trace is None:
        raise UsageError("--trace-only chooses what --trace records; give --trace FILE.npz, too")
    if args.trace is None and args.show is None:
        return
    if prompt is None or args.session:
        raise UsageError("--trace and --show record one question from its first token on, so they "
                         "need a prompt and do not go with --session")
    if args.trace == args.show:
        raise UsageError("--trace and --show need two files")
    for file in (args.trace, args.show):
        if file is not None:
            require_file(file)


def check_text(what, text):
    """Refuse text that was not UTF-8 when it came in.

    Raises: UsageError
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # Python keeps bytes that are not UTF-8 as surrogates
        raise UsageError(f"{what} is not valid UTF-8 at character {error.start}") from None


def _at_least(low, most=MOST_NUMBER):
    """Make a converter of options to whole numbers from `low` to `most`."""

    def convert(text):
        # Python refuses to read very long numbers, and a longer one is too large in any case.
        n = int(text[:2000]) if text.isdecimal() else None
        if n is not None and low <= n <= most:
            return n
        most_shown = f"2**{most.bit_length() - 1}" if most == MOST_NUMBER else most
        raise _unfit(f"a whole number >= {low}", most_shown, n is not None and n > most, text)

    return convert


def _one_of(names):
    """Make a converter that takes these and no others; argparse's `choices` speak by version."""

    def convert(text):
        if text not in names:
            choices = ", ".join(names)
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {choices})")
        return text

    return convert


def _seconds(text):
    """Convert a number of seconds."""
    return _number(text, "a number of seconds > 0", threading.TIMEOUT_MAX)


def _gigabytes(text):
    """Convert a number of gigabytes to bytes."""
    return int(_number(text, "a number of gigabytes > 0", MOST_GIGABYTES) * 1e9)


def _number(text, what, most):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if 0 < number <= most:
        return number
    raise _unfit(what, f"{most:.3g}", most < number < math.inf, text)


def _unfit(what, most, is_large, text):
    limit = f" and <= {most}" if is_large else ""
    return argparse.ArgumentTypeError(f"expected {what}{limit}, found {quoted(text)}")
