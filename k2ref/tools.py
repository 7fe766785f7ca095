"""Tools: Python functions that a model may call, and what it is told when a call goes wrong.

A model writes the name of a function and its arguments as JSON. Between that and the call stand the
checks: is there such a tool, is it JSON, does it fit the schema. Whatever goes wrong, there or in
the function, becomes the result of the call, in words from which the model can learn, and is one of
the FAILURES.

Chapter 02.
"""

import importlib.util
import inspect
import json
import queue
import threading
from pathlib import Path

from k2ref.demonstration import DEMONSTRATION
from k2ref.events import ToolResult
from k2ref.schema import ArgumentError, ToolError, check, declaration
from k2ref.tokenizer import without_surrogates

FAILURES = ("unknown tool", "broken JSON", "wrong arguments", "tool error", "time-out")
TIMEOUT_S = 60.0


class Toolbox:
    """Hold the functions that may be called, by name, and the `declarations` of them.

    Raises: ToolError for a function that cannot be declared, or two of one name.
    """

    def __init__(self, functions=(), timeout_s=TIMEOUT_S):
        self.functions = {}
        self.declarations = []
        self.timeout_s = timeout_s
        self._schemas = {}
        for function in functions:
            declared = declaration(function)
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
            known = ", ".join(self.functions) or "none"
            return _failed(call_id, name, "unknown tool", f"there is no tool {name!r}; the tools "
                           f"are: {known}")
        try:
            # A model that has nothing to say to a function may say nothing at all.
            values = json.loads(arguments or "{}", parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            return _failed(call_id, name, "broken JSON", f"the arguments are no JSON ({error})")
        try:
            values = check(values, self._schemas[name])
        except ArgumentError as error:
            return _failed(call_id, name, "wrong arguments", str(error))
        return self._run(call_id, name, values)

    def _run(self, call_id, name, values):
        """Run the function in a thread, as nothing else can be left waiting.

        One that does not end in time goes on behind our back: Python cannot stop it.
        """
        answer = queue.SimpleQueue()

        def run():
            try:
                answer.put((None, as_text(self.functions[name](**values))))
            except BaseException as error:  # a tool that calls exit() must not end the program
                answer.put(("tool error", f"{type(error).__name__}: {error}"))

        threading.Thread(target=run, name=f"tool {name}", daemon=True).start()
        try:
            failure, text = answer.get(timeout=self.timeout_s)
        except queue.Empty:
            failure, text = "time-out", f"no result after {self.timeout_s:g} s"
        if failure:
            return _failed(call_id, name, failure, text)
        return ToolResult(call_id, name, text)


def as_text(value):
    """Write what a tool returns: text as it is, all else as JSON, or as Python would print it."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            value = str(value)
    return without_surrogates(value)


def _failed(call_id, name, failure, text):
    return ToolResult(call_id, name, without_surrogates(f"Error: {text}"), failure)


def _refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def load_tools(sources):
    """Collect functions from names of demonstration tools and from Python files, which are run.

    Of a file, all functions are taken that are defined in it and whose names do not begin with _.
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
            functions += _functions_of(Path(source))
    return functions


def _functions_of(path):
    if not path.is_file():
        raise ToolError(f"{path}: expected a Python file with tools, found none")
    spec = importlib.util.spec_from_file_location(f"tools_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code can fail in every way
        raise ToolError(f"{path}: running it failed ({type(error).__name__}: {error})") from error
    found = [value for name, value in vars(module).items() if inspect.isfunction(value)
             and value.__module__ == module.__name__ and not name.startswith("_")]
    if not found:
        raise ToolError(f"{path}: expected functions with type hints and docstrings, found none")
    return found
