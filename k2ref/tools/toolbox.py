"""Tools: Python functions that a model may call, and what it is told when a call goes wrong.

A model writes the name of a function and its arguments as JSON. Between that and the call stand the
checks: is there such a tool, is it JSON, does it fit the schema. Whatever goes wrong, there or in
the function, becomes the result of the call, in words from which the model can learn, and is one of
the FAILURES.

Chapter 02.
"""

import json
import math
import queue
import re
import threading

from k2ref.conversation.events import ToolResult
from k2ref.doors.intake import each_once, quoted
from k2ref.tokenizer import without_surrogates
from k2ref.tools.demonstration import DEMONSTRATION
from k2ref.tools.process import FileTool, ToolProcess
from k2ref.tools.results import MAX_ERROR, as_text, cut, described
from k2ref.tools.schema import MAX_NESTED, ArgumentError, ToolError, check, declaration

FAILURES = ("unknown tool", "broken JSON", "wrong arguments", "tool error", "time-out")
TIMEOUT_S = 60.0
MAX_KNOWN = 1000  # characters of the names of all tools, in a message
MAX_DIGITS = 4300  # of a whole number: what Python reads without being told otherwise
# Of JSON: its strings, in which a bracket means nothing, and its brackets.
TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[][{}]', re.S)


class Toolbox:
    """The functions that may be called, by name, and their `declarations`.

    A function runs here, in a thread, with all that it refers to; those of a file (`load_tools`)
    run in a process of their own, which is ended when a call takes more than `timeout_s`. What runs
    here cannot be ended: after the time-out the conversation goes on, and so does the function,
    behind our back; one in C code that holds the interpreter lock (a large power, a regular
    expression) keeps even the time-out waiting; one that crashes or calls os._exit ends all.
    `begun` is the id of the last call that came so far as to be run.
    Raises: ToolError for a function that cannot be declared, or two of one name.
    """

    def __init__(self, functions=(), timeout_s=TIMEOUT_S):
        self.functions = {}
        self.declarations = []
        self.timeout_s = _seconds(timeout_s)
        self.begun = None
        self._schemas = {}
        for function in functions:
            declared = (function.declaration if isinstance(function, FileTool)
                        else declaration(function))
            name = declared["function"]["name"]
            if name in self.functions:
                raise ToolError(f"tool {name}: expected one function of that name, found two")
            self.functions[name] = function
            self.declarations.append(declared)
            # Not declared, since it goes without saying, but a function takes nothing else.
            self._schemas[name] = {**declared["function"]["parameters"],
                                   "additionalProperties": False}

    def call(self, call_id, name, arguments):
        """Run a call, with its arguments as the model wrote them; return a `ToolResult`."""
        if name not in self.functions:
            known = cut(", ".join(self.functions) or "none", MAX_KNOWN)
            return _failed(call_id, name, "unknown tool", f"there is no tool {quoted(name)}; the "
                           f"tools are: {known}")
        try:
            # A model that has nothing to say to a function may say nothing at all.
            values = _arguments_of(arguments or "{}")
        except (ValueError, RecursionError) as error:
            return _failed(call_id, name, "broken JSON", f"the arguments are no JSON ({error})")
        try:
            values = check(values, self._schemas[name])
        except ArgumentError as error:
            return _failed(call_id, name, "wrong arguments", str(error))
        self.begun = call_id
        function = self.functions[name]
        run = function.run if isinstance(function, FileTool) else _in_thread(function)
        failure, text = run(values, self.timeout_s)
        if failure:
            return _failed(call_id, name, failure, text)
        return ToolResult(call_id, name, without_surrogates(text))


def _in_thread(function):
    """Make a function that runs this one in a thread, as nothing else can be left waiting."""

    def run(values, timeout_s):
        answer = queue.SimpleQueue()

        def work():
            try:
                answer.put((None, as_text(function(**values))))
            except BaseException as error:  # a tool that calls exit() must not end the program
                answer.put(("tool error", described(error)))

        try:
            threading.Thread(target=work, name=f"tool {function.__name__}", daemon=True).start()
            return answer.get(timeout=min(timeout_s, threading.TIMEOUT_MAX))
        except queue.Empty:
            return "time-out", f"no result after {timeout_s:g} s"
        except RuntimeError as error:  # the system has no thread left
            return "tool error", described(error)

    return run


def _seconds(timeout_s):
    if timeout_s is None:
        return math.inf
    if not isinstance(timeout_s, int | float) or not timeout_s >= 0:
        raise ToolError(f"timeout_s: expected a number of seconds >= 0, or None, found "
                        f"{quoted(timeout_s)}")
    return timeout_s


def _failed(call_id, name, failure, text):
    text = without_surrogates(cut(f"Error: {text}", MAX_ERROR))
    return ToolResult(call_id, name, text, failure)


def _arguments_of(text):
    """Read arguments, as the model wrote them, if they mean one thing only and have an end.

    Raises: ValueError
    """
    n_around = 0
    for token in TOKENS.finditer(text):
        n_around += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if n_around > MAX_NESTED:
            raise ValueError(f"expected at most {MAX_NESTED} levels of lists and objects")
    return json.loads(text, parse_constant=_refuse_constant, parse_int=_whole, parse_float=_finite,
                      object_pairs_hook=each_once)


def _refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def _whole(digits):
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"expected numbers of at most {MAX_DIGITS} digits, found {len(digits)}")
    return int(digits)


def _finite(digits):
    if math.isinf(number := float(digits)):
        raise ValueError(f"expected numbers of at most 1.8e308, found {digits:.60}")
    return number


def load_tools(sources):
    """Collect functions from names of demonstration tools and from Python files, which are run.

    Of a file, all functions are taken that are defined in it and whose names do not begin with _.
    It is run in a process of its own, in which its functions are called, too; what is returned
    stands for them in a `Toolbox`.
    Raises: ToolError for a name that is none, a file that fails or has no function.
    """
    functions = []
    for source in sources:
        if source in DEMONSTRATION:
            functions.append(DEMONSTRATION[source])
        elif not source.endswith(".py"):
            raise ToolError(f"--tools {source}: expected {' or '.join(DEMONSTRATION)}, or a file "
                            "that ends in .py")
        else:
            functions += ToolProcess(source).tools
    return functions
