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


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    expression: numbers, + - * / // % ** and parentheses
    """
    if len(expression) > MAX_CHARS:
        raise ValueError(f"expected at most {MAX_CHARS} characters, found {len(expression)}")
    words = re.sub(r"(?<=\d),(?=\d{3}\b)", "", expression.translate(SIGNS))  # 1,234 is a number
    value = _value(ast.parse(words.strip(), mode="eval").body)
    if isinstance(value, complex) or not math.isfinite(value):
        raise ValueError("the result is no number")
    # Twelve digits, so that 0.1 + 0.2 is 0.3.
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node):
    """Compute a parsed expression; nothing but numbers and their operations is known here."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        a, b = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and _bits(a) * abs(b) > MAX_BITS:
            raise ValueError("the result is too large")
        return BINARY[type(node.op)](a, b)
    raise ValueError(f"expected numbers, + - * / // % ** and parentheses, found "
                     f"{ast.unparse(node)!r:.60}")


def _bits(number):
    return math.log2(abs(number) + 1) if math.isfinite(number) else math.inf


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
    return " ".join(found) or f"Nothing is known about {query}."


DEMONSTRATION = {"calculator": calculator, "lookup": lookup}
