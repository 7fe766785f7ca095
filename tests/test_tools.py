"""Tools: every way a call can go, what the model is told of it, and the two demonstration tools."""

import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ref.demonstration import calculator, lookup
from k2ref.events import ToolResult
from k2ref.schema import ToolError
from k2ref.tools import FAILURES, Toolbox, as_text, load_tools


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
    ("fail", '{"kind": "x"}', "tool error", "KeyError: 'x'"),
    ("fail", '{"kind": "exit"}', "tool error", "SystemExit: 3"),
])
def test_what_goes_wrong_is_a_result_that_says_so(toolbox, name, arguments, failure, said):
    result = toolbox.call("i", name, arguments)
    assert (result.id, result.name, result.failure) == ("i", name, failure)
    assert result.content.startswith("Error: ") and said in result.content
    assert failure in FAILURES


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


# Demonstration tools.

@pytest.mark.parametrize("expression, value", [
    ("4821 * 377", "1817517"), ("17 + 25", "42"), ("10 / 4", "2.5"), ("10 / 5", "2"),
    ("0.1 + 0.2", "0.3"), ("2 ** 10", "1024"), ("2^10", "1024"), ("7 // 2", "3"), ("-7 % 3", "2"),
    ("(1 + 2) * -3", "-9"), ("1,234 + 1,000,000", "1001234"), ("6 × 7 ÷ 2 − 1", "20"), (" 5 ", "5"),
    ("2 ** 200", str(2**200)), ("2 ** -1", "0.5"), ("1e3", "1000"),
    ("-" * 100 + "1", "1"),
])
def test_the_calculator_computes(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize("expression", [
    "", "1 +", "two", "__import__('os')", "().__class__", "[1]", "'a' * 3", "True + 1", "1 < 2",
    "1 if 1 else 2", "x := 1", "lambda: 1", "9 ** 9 ** 9", "2 ** 1e300", "(-8) ** 0.5", "1 / 0",
    "1e308 * 10", "(" * 500, "1 + " * 400 + "1", "1j", "~1", "1 << 1000000",
])
def test_the_calculator_refuses_all_else(expression):
    result = Toolbox([calculator]).call("i", "calculator", json.dumps({"expression": expression}))
    assert result.failure == "tool error", result


@given(st.integers(-10**9, 10**9), st.integers(-10**9, 10**9), st.sampled_from("+-*"))
def test_the_calculator_agrees_with_python(a, b, sign):
    expected = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert calculator(f"{a} {sign} {b}") == str(expected)


def test_lookup_finds_what_is_in_the_table_and_says_what_is_not():
    assert lookup("What is iron?") == "Iron is element 26."
    assert lookup("Everest") == "Mount Everest is 8849 metres high."
    assert lookup("Zorvia") == "Nothing is known about Zorvia."
    assert lookup("") == "Nothing is known about ."
