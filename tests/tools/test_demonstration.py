"""The demonstration tools: the calculator gives a number or one sentence, whatever it is given."""

import json
import math
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k2ref.tools.demonstration import calculator, lookup
from k2ref.tools.toolbox import Toolbox


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


@pytest.mark.parametrize("expression, said", [
    ("1(2)", "found '1(2)'"), ('"a" is 1', "found '\"'"), ("'\\d'", 'found "\'"'),
    ("1if 1else 2", "found 'i'"), ("1\0", r"found '\x00'"), ("0_", "not complete or not in order"),
    ("1..real", "found 'r'"), ("0xfor 1", "found 'r'"), ("1 is 1", "found 'i'"),
    ("2**9999 / 3", "the result is too large"), ("2**9999 * 2.5", "the result is too large"),
    ("2**9999 * 2**9999", "the result is too large"), ("1e308 * 10", "the result is no number"),
    ("(-8) ** 0.5 % 2", "the result is no number"), ("1e999 ** 0", "the result is no number"),
    ("0 ** -1", "division by zero"), ("1 % 0", "division by zero"), ("1 // 0.", "division by zero"),
    ("-" * 999 + "1", "the expression is nested too deep"), ("\ud800", r"found '\ud800'"),
    ("9" * 1001, "expected at most 1000 characters, found 1001"),
])
def test_the_calculator_says_why_not(expression, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError) as caught:
            calculator(expression)
    assert said in str(caught.value)


def test_the_calculator_computes_with_whole_numbers_that_no_float_can_be():
    assert calculator("2**3000 + 1") == str(2**3000 + 1)
    assert calculator("10**400 // 10**398") == "100"
    assert calculator("9" * 1000) == "9" * 1000


expressions = st.recursive(
    st.integers(0, 10**12).map(str) | st.floats(0, 1e308).map(repr)
    | st.sampled_from(["0xff", "1_000", "1,234", "1e999", "9" * 400]),
    lambda inner: st.builds("({}{}{})".format, inner, st.sampled_from(
        ["+", "-", "*", "/", "//", "%", "**", "^", " × ", "÷", "<<"]), inner)
    | st.builds("{}{}".format, st.sampled_from(["-", "+", "~", "("]), inner), max_leaves=30)


@example("0**" + "9" * 400)
@given(expressions | st.text() | st.text(st.sampled_from("0123456789.,eExXobBfF_+-*/%() '\"\\^if"))
       | st.builds(lambda n, a, b: a * n + "1" + b * n, st.integers(0, 500),
                   st.sampled_from(["(", "-", "2**", "1-(", "9*"]), st.sampled_from([")", ""])))
def test_the_calculator_gives_a_number_or_one_sentence(expression):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            value = calculator(expression)
        except ValueError as error:
            assert type(error) is ValueError and str(error).isprintable() and len(str(error)) < 200
        else:
            assert math.isfinite(float(value[:300])) and len(value) < 4300


@given(st.integers(-10**9, 10**9), st.integers(-10**9, 10**9), st.sampled_from("+-*"))
def test_the_calculator_agrees_with_python(a, b, sign):
    expected = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert calculator(f"{a} {sign} {b}") == str(expected)


def test_lookup_finds_what_is_in_the_table_and_says_what_is_not():
    assert lookup("What is iron?") == "Iron is element 26."
    assert lookup("Everest") == "Mount Everest is 8849 metres high."
    assert lookup("Zorvia") == "Nothing is known about Zorvia."
    assert lookup("") == "Nothing is known about ."
