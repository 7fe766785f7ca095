"""Tools: every way a call can go, and what the model is told of it."""

import itertools
import json
import math
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.conversation.events import ToolResult
from k2ref.tools.results import MAX_ERROR, MAX_RESULT
from k2ref.tools.schema import ToolError
from k2ref.tools.toolbox import FAILURES, MAX_DIGITS, Toolbox, as_text, load_tools


def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


def fail(kind: str) -> str:
    """Fail in a way of your choice."""
    if kind == "exit":
        raise SystemExit(3)
    if kind == "surrogate":
        return "\ud800"
    raise KeyError(kind)


def wait(time_s: float) -> str:
    """Wait."""
    time.sleep(time_s)
    return "done"


@pytest.fixture
def toolbox():
    return Toolbox([add, fail, wait], timeout_s=5)


def test_a_call_gives_its_result(toolbox):
    assert toolbox.call("i", "add", '{"a": 2, "b": 3}') == ToolResult("i", "add", "5")
    assert toolbox.call("i", "add", ' {"a": 2.0} ') == ToolResult("i", "add", "3")


@pytest.mark.parametrize("name, arguments, failure, said", [
    ("sub", "{}", "unknown tool", "there is no tool 'sub'; the tools are: add, fail, wait"),
    ("", "{}", "unknown tool", "there is no tool ''"),
    ("add", '{"a": ', "broken JSON", "the arguments are no JSON (Expecting value"),
    ("add", "a = 2", "broken JSON", "the arguments are no JSON"),
    ("add", '{"a": NaN}', "broken JSON", "NaN is not JSON"),
    ("add", "[" * 100_000, "broken JSON", "the arguments are no JSON"),
    ("add", "", "wrong arguments", "expected 'a', which is required, found nothing"),
    ("add", "[2]", "wrong arguments", "arguments: expected object, found [2]"),
    ("add", '{"a": "2"}', "wrong arguments", "arguments.a: expected integer, found '2'"),
    ("add", '{"a": 2, "c": 3}', "wrong arguments", "expected 'a', 'b', found 'c'"),
    ("add", '{"a": 1, "a": 2}', "broken JSON", "each name once, found 'a' 2 times"),
    ("add", '{"a": 1e999}', "broken JSON", "expected numbers of at most 1.8e308, found 1e999"),
    ("add", '{"a": -1e999}', "broken JSON", "expected numbers of at most 1.8e308, found -1e999"),
    ("add", f'{{"a": {"1" * 5000}}}', "broken JSON", "at most 4300 digits, found 5000"),
    ("add", '{"a": "\\', "broken JSON", "the arguments are no JSON"),
    ("fail", '{"kind": "x"}', "tool error", "KeyError: 'x'"),
    ("fail", '{"kind": "exit"}', "tool error", "SystemExit: 3"),
])
def test_what_goes_wrong_is_a_result_that_says_so(toolbox, name, arguments, failure, said):
    result = toolbox.call("i", name, arguments)
    assert (result.id, result.name, result.failure) == ("i", name, failure)
    assert result.content.startswith("Error: ") and said in result.content
    assert failure in FAILURES


def nested(n, closed=True):
    return "[" * n + "]" * n * closed


@pytest.mark.parametrize("n", [101, 500, 994, 10_000, 1_000_000])
@pytest.mark.parametrize("around", ['{"a": %s}', "%s", '{"x": "]", "a": %s}', '{"\\\\": %s}'])
def test_arguments_nested_deep_are_refused_at_any_depth(toolbox, n, around):
    for closed in (True, False):
        result = toolbox.call("i", "add", around % nested(n, closed))
        assert (result.failure, result.content) == (
            "broken JSON", "Error: the arguments are no JSON (expected at most 100 levels of lists "
            "and objects)")


def test_arguments_may_be_nested_a_hundred_deep_and_brackets_in_strings_do_not_count():
    def depth(value: list) -> int:
        """Count the levels."""
        return 1 + depth(value[0]) if value and isinstance(value[0], list) else 1

    box = Toolbox([depth])
    assert box.call("i", "depth", f'{{"value": {nested(99)}}}').content == "99"
    text = json.dumps({"value": ["[{" * 500 + '"\\' * 9]})
    assert box.call("i", "depth", text).content == "1"


LONG = '"' + "x" * 500_000 + '": 1'


@pytest.mark.parametrize("name, arguments", [
    ("x" * 1_000_000, "{}"), ("\x1b[2J\ud800" * 100_000, "{}"), ("add", "x" * 1_000_000),
    ("add", json.dumps({"x" * 1_000_000: 1})), ("add", json.dumps({"a": "x" * 1_000_000})),
    ("add", json.dumps({"a": ["x" * 1000] * 1000})), ("add", '{"a": %s}' % ("9" * 1_000_000)),
    ("add", '{"a": 1%s}' % ("0" * 1_000_000 + ".5")),
    ("add", json.dumps({f"name {i}": 1 for i in range(100_000)})),
    ("add", f"{{{LONG}, {LONG}}}"),
], ids=map(str, itertools.count()))
def test_what_the_model_wrote_is_not_repeated_at_length(toolbox, name, arguments):
    content = toolbox.call("i", name, arguments).content
    assert content.startswith("Error: ") and len(content) < 2500
    assert content.isprintable()  # no control character, no half of a character


def test_the_list_of_tools_is_bounded_too():
    tools = []
    for i in range(500):
        def tool() -> str:
            """Do."""

        tool.__name__ = f"tool_{i}"
        tools.append(tool)
    assert len(Toolbox(tools).call("i", "x", "{}").content) < 1500


json_like = st.text(st.sampled_from('{}[]":,\\ab01eE+-. ntr\ud800\x00'), max_size=40)


@given(st.sampled_from(["add", "fail", "echo"]) | st.text(), json_like | st.text())
def test_any_text_is_a_name_and_arguments(name, arguments):
    def echo(x: dict = None) -> dict:
        """Give back."""
        return x

    result = Toolbox([add, fail, echo]).call("i", name, arguments)
    assert result.failure in (None, *FAILURES) and result.content.encode()


@given(st.dictionaries(st.text(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))))
def test_any_json_reaches_the_function(x):
    def echo(x: dict) -> str:
        """Keep it."""
        seen.append(x)

    seen = []
    assert Toolbox([echo]).call("i", "echo", json.dumps({"x": x})).failure is None
    assert seen == [x]


def test_a_number_may_have_as_many_digits_as_python_reads(toolbox):
    arguments = f'{{"a": -{"1" * (MAX_DIGITS - 1)}, "b": {"1" * (MAX_DIGITS - 1)}}}'
    assert toolbox.call("i", "add", arguments).content == "0"


class Evil(Exception):
    """Fail to be written."""

    def __str__(self):
        raise KeyboardInterrupt("no")

    __repr__ = __str__


class OddText(str):
    """Be text with ways of its own."""

    def __getitem__(self, key):
        raise ValueError

    __str__ = __len__ = __repr__ = __getitem__


def raises(error):
    raise error


def recurse():
    return recurse()


async def later():
    """Not be awaited."""


def unawaited():
    work = later()
    work.close()
    return work


@pytest.mark.parametrize("do, said", [
    (lambda: raises(Evil()), "Error: Evil: what it says cannot be written"),
    (lambda: Evil(), "Error: KeyboardInterrupt: no"),
    (lambda: raises(KeyboardInterrupt()), "Error: KeyboardInterrupt: "),
    (lambda: raises(GeneratorExit()), "Error: GeneratorExit: "),
    (lambda: raises(MemoryError()), "Error: MemoryError: "),
    (lambda: recurse(), "Error: RecursionError: maximum recursion depth exceeded"),
    (lambda: raises(ValueError("y" * 10**6)), "Error: ValueError: yyy"),
    (lambda: raises(ValueError("\ud800")), "Error: ValueError: \ufffd"),
    (lambda: (i for i in range(3)), "Error: TypeError: expected a tool to return its result, found "
     "a generator"),
    (unawaited, "Error: TypeError: expected a tool to return its result, found a coroutine"),
])
def test_a_tool_that_fails_in_any_way_is_a_tool_error(do, said):
    def tool() -> str:
        """Fail."""
        return do()

    result = Toolbox([tool], timeout_s=60).call("i", "tool", "{}")
    assert result.failure == "tool error" and result.content.startswith(said)
    assert len(result.content) <= MAX_ERROR


def test_a_long_error_is_cut_once_and_counted_whole():
    def tool() -> str:
        """Fail."""
        raise ValueError("y" * 10**6)

    content = Toolbox([tool]).call("i", "tool", "{}").content
    assert content.endswith("y\n[The first 9,800 characters; there were 1,000,012.]")


def test_a_call_that_no_thread_can_be_had_for_is_a_tool_error(toolbox, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start",
                        lambda self: raises(RuntimeError("can't start new thread")))
    result = toolbox.call("i", "add", '{"a": 1}')
    assert (result.failure, result.content) == (
        "tool error", "Error: RuntimeError: can't start new thread")


@pytest.mark.parametrize("timeout_s", [-1, math.nan, "5", [], -math.inf])
def test_a_time_out_that_is_none_is_refused(timeout_s):
    with pytest.raises(ToolError, match="timeout_s: expected a number of seconds >= 0, or None"):
        Toolbox([add], timeout_s)


@pytest.mark.parametrize("timeout_s", [None, math.inf, 1e300, 60])
def test_a_time_out_may_be_long_or_none(timeout_s):
    assert Toolbox([add], timeout_s).call("i", "add", '{"a": 1}').content == "2"


def test_a_tool_that_takes_too_long_is_left_behind():
    ended = threading.Event()

    def hang() -> str:
        """Hang."""
        ended.wait(60)
        return "late"

    result = Toolbox([hang], timeout_s=0.05).call("i", "hang", "{}")
    ended.set()
    assert (result.failure, result.content) == ("time-out", "Error: no result after 0.05 s")


def test_results_are_text():
    assert as_text("as it is") == "as it is"
    assert as_text({"a": [1, None, "城"]}) == '{"a": [1, null, "城"]}'
    assert as_text(None) == "null"
    assert as_text({1}) == "{1}"
    assert as_text(OddText("x")) == "x" and type(as_text(OddText("x"))) is str


@pytest.mark.parametrize("make, there_were", [
    (lambda: "x" * 1_000_000, "1,000,000"), (lambda: OddText("x" * 1_000_000), "1,000,000"),
    (lambda: ["x" * 1_000_000], "more"), (lambda: list(range(1_000_000)), "more"),
    (lambda: set(range(200_000)), f"{len(str(set(range(200_000)))):,}"),
])
def test_long_results_are_cut_and_say_so(make, there_were):
    value = make()

    def tool() -> str:
        """Give much."""
        return value

    content = Toolbox([tool], timeout_s=60).call("i", "tool", "{}").content
    assert content == as_text(value)
    assert content[MAX_RESULT:] == f"\n[The first 400,000 characters; there were {there_were}.]"


def test_a_small_object_with_no_end_of_text_is_cut():
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    assert len(as_text(value)) < MAX_RESULT + 100
    value.append(value)  # and one that holds itself is written as Python does
    assert len(as_text({"a": [1]})) == 10


def test_half_a_character_becomes_the_replacement_character(toolbox):
    assert toolbox.call("i", "fail", '{"kind": "surrogate"}').content == "\ufffd"
    assert toolbox.call("i", "\ud800", "{}").content.encode()


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ToolError, match="tool add: expected one function of that name"):
        Toolbox([add, add])


# From names and files.

def test_tools_are_loaded_by_name_and_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from math import sqrt\nfrom json import loads\n\n"
                    "def double(x: float) -> float:\n    'Double.'\n    return _twice(x)\n\n"
                    "def _twice(x):\n    return 2 * x\n")
    functions = load_tools(["calculator", str(file), "lookup"])
    assert [f.__name__ for f in functions] == ["calculator", "double", "lookup"]
    assert Toolbox(functions).call("i", "double", '{"x": 2}').content == "4"


@pytest.mark.parametrize("source, said", [
    ("nonsense", "--tools nonsense: expected calculator or lookup, or a file that ends in .py"),
    ("nowhere.py", "nowhere.py: expected a Python file with tools, found none"),
])
def test_a_source_that_is_none_is_refused(source, said):
    with pytest.raises(ToolError, match=said):
        load_tools([source])


@pytest.mark.parametrize("text, said", [
    ("x = 1", "expected functions with type hints and docstrings, found none"),
    ("def f(:", r"running it failed \(SyntaxError"),
    ("1 / 0", r"running it failed \(ZeroDivisionError: division by zero"),
])
def test_a_file_that_is_no_tools_is_refused(tmp_path, text, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ToolError, match=said):
        load_tools([str(file)])
