"""Two tools for demonstration: a calculator that computes and does nothing else, and a small table.

    python -m k2ref --tools calculator "What is 4821 * 377?"

Chapter 02.
"""

import ast
import math
import operator
import re

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
          ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
          ast.Pow: operator.pow}  # fmt: skip
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}
SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "^": "**"})
MAX_CHARS, MAX_BITS = 1000, 10_000
KNOWN = "numbers, + - * / // % ** and parentheses"


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    expression: numbers, + - * / // % ** and parentheses
    """
    if len(expression) > MAX_CHARS:
        raise ValueError(f"expected at most {MAX_CHARS} characters, found {len(expression)}")
    words = re.sub(r"(?<=\d),(?=\d{3}\b)", "", expression.translate(SIGNS))  # 1,234 is a number
    # Letters are those of 1e3 and 0xff. No word of Python is made of them: about some, its parser
    # would have more to say than yes or no, and say it on the terminal.
    if strange := re.search(r"[^0-9a-fA-FxXoO_.+*/%() \t\r\n-]", words.strip()):
        raise ValueError(f"expected {KNOWN}, found {strange[0]!r}")
    try:
        value = _value(ast.parse(words.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError(f"expected {KNOWN}, found {expression!r:.60}, which is not complete or "
                         "not in order") from None
    except (RecursionError, MemoryError):  # the parser's and ours
        raise ValueError("the expression is nested too deep") from None
    # Twelve digits, so that 0.1 + 0.2 is 0.3.
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node):
    """Compute a parsed expression; nothing but numbers and their operations is known here."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _number(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        a, b = _value(node.left), _value(node.right)
        try:
            if isinstance(node.op, ast.Pow) and math.log2(abs(a) + 1) * abs(b) > MAX_BITS:
                raise ValueError("the result is too large")
            return _number(BINARY[type(node.op)](a, b))
        except OverflowError:
            raise ValueError("the result is too large") from None
        except ZeroDivisionError:
            raise ValueError("division by zero") from None
    raise ValueError(f"expected {KNOWN}, found {ast.unparse(node)!r:.60}")


def _number(value):
    """Return a number, if it is one and not too large to go on with."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("the result is too large")
    if isinstance(value, complex) or isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the result is no number")
    return value


TABLE = {
    "hydrogen": "Hydrogen is element 1.", "helium": "Helium is element 2.",
    "carbon": "Carbon is element 6.", "oxygen": "Oxygen is element 8.",
    "iron": "Iron is element 26.", "gold": "Gold is element 79.",
    "speed of light": "The speed of light is 299792458 metres per second.",
    "everest": "Mount Everest is 8849 metres high.",
    "kimi k2 thinking": "Kimi K2 Thinking has 384 experts a layer, of which 8 are chosen.",
}  # fmt: skip


def lookup(query: str) -> str:
    """Look up a fact in a small table.

    query: what to look for
    """
    words = query.lower().strip(" .?!")
    found = [text for key, text in TABLE.items() if key in words or words and words in key]
    return " ".join(found) or f"Nothing is known about {query:.200}."


DEMONSTRATION = {"calculator": calculator, "lookup": lookup}
