"""Lessons about sums: through a calculator, or column by column in the open without one."""

import tiny_columns
from tiny_problems import PROBLEMS, WHY
from tiny_words import (
    PEOPLE,
    THINGS,
    Exchange,
    arguments,
    calculator,
    called,
    choose,
    is_held_out,
    kit,
    noisy,
    numbers,
    split,
)

FRAMES = split("""
{x} | {x}= | {x} = ? | {x} =? | {x}? | What is {x}? | What's {x}? | How much is {x}?
Calculate {x}.
Compute {x}. | Work out {x}. | Solve {x}. | Find {x}. | Evaluate {x}. | Tell me {x}. | Solve: {x}
Tell me what {x} is. | Can you calculate {x}? | Could you compute {x} for me? | I need {x}.
I need to know {x}. | Do you know what {x} is? | Give me the result of {x}. | What does {x} equal?
What does {x} make? | What do I get for {x}? | {x} is how much? | The answer to {x}?
What is the value of {x}? | Result of {x}? | Let me know what {x} is. | My homework asks for {x}.
How many is {x}? | Say what {x} is. | Do you know {x}? | Try {x}. | {x} makes what? | Give me {x}.
Help me with {x}. | What would {x} be? | What is the result of {x}? | Show me {x}.
{x} equals what?
What number is {x}? | Can you do {x}? | Would you work out {x}? | Figure out {x}. | {x} please
I want to know how much {x} is. | So what is {x}? | How much would {x} be? | Check {x} for me.
""")
FORMS = {
    "+": ["{a} + {b}", "{a} + {b}", "{a}+{b}", "{a} plus {b}"],
    "-": ["{a} - {b}", "{a} - {b}", "{a}-{b}", "{a} minus {b}"],
    "*": ["{a} * {b}", "{a} x {b}", "{a}*{b}", "{a} times {b}", "{a} × {b}"],
    "/": ["{a} / {b}", "{a} / {b}", "{a}/{b}", "{a} divided by {b}", "{a} ÷ {b}"],
}
OWN = {
    "+": split("""
Add {a} and {b}. | Add {a} to {b}. | Add up {a} and {b}. | Sum {a} and {b}. | The sum of {a} and {b}
What is the sum of {a} and {b}? | Find the sum of {a} and {b}. | Give me the sum of {a} and {b}.
Can you add {a} and {b}? | Take {a} and add {b}. | What do {a} and {b} make together?
Total {a} and {b}.
If I add {a} and {b}, what do I get? | What is the total of {a} and {b}? | Put {a} and {b} together.
How much are {a} and {b} together? | What do you get when you add {a} and {b}?
Add {b} more to {a}.
"""),
    "-": split("""
Subtract {b} from {a}. | Take {b} from {a}. | Take {b} away from {a}. | {a} take away {b}
{a} less {b} | What is {a} less {b}? | What is left if you take {b} from {a}? | Remove {b} from {a}.
What is the difference between {a} and {b}? | How much is {a} reduced by {b}? | Deduct {b} from {a}.
Can you subtract {b} from {a}? | What remains of {a} after taking {b} away? | Reduce {a} by {b}.
What do I get if I subtract {b} from {a}? | {b} subtracted from {a} | Find {a} with {b} taken away.
"""),
    "*": split("""
Multiply {a} by {b}. | Multiply {a} and {b}. | {a} multiplied by {b} | The product of {a} and {b}
What is the product of {a} and {b}? | Find the product of {a} and {b}.
What is {a} multiplied by {b}?
Can you multiply {a} by {b}? | Multiply {a} with {b}. | How much is {a} multiplied by {b}?
If I multiply {a} by {b}, what do I get? | Take {a} and multiply it by {b}.
{b} lots of {a}, in all?
Give me the product of {a} and {b}. | What do you get when you multiply {a} by {b}?
"""),
    "/": split("""
Divide {a} by {b}. | What is {a} divided by {b}? | {a} over {b} | Can you divide {a} by {b}?
How much is {a} divided by {b}? | Split {a} into {b} equal parts. | Share {a} among {b}.
How often does {b} go into {a}? | If I divide {a} by {b}, what do I get?
Give me {a} divided by {b}.
How many times does {b} fit into {a}? | What do you get when you divide {a} by {b}?
Take {a} and divide it by {b}. | Find the quotient of {a} and {b}. | Cut {a} into {b} equal pieces.
"""),
}
THEN = {
    "+": split("""
add {c} | plus {c} | add another {c} | then add {c} | and {c} more | plus another {c}
"""),
    "-": split("""
subtract {c} | minus {c} | take away {c} | take {c} away | then subtract {c} | less {c}
"""),
    "*": split("""
multiply by {c} | times {c} | multiply the result by {c} | multiply it by {c}
"""),
    "/": split("""
divide by {c} | divided by {c} | divide the result by {c} | divide it by {c}
"""),
}
CHAINS = split("""
Take {a}, {p}, then {q}. | Start with {a}, {p}, then {q}. | {a}, {p}, {q}.
First take {a}, {p}, {q}.
Begin with {a}. Then {p}. Then {q}. | What is {a}, {p}, {q}? | Compute {a}, {p}, and then {q}.
Calculate: {a}, {p}, {q}. | I have {a}. Now {p}, then {q}. | Think of {a}, {p}, {q}. What is it?
If I take {a}, {p}, and {q}, what do I get? | {a} then {p} then {q} | Start from {a}: {p}, {q}.
What do you get from {a} if you {p} and then {q}? | Let x be {a}. {p}, {q}. | With {a}, {p}, {q}.
Please start at {a}, {p} and {q}. | Given {a}: {p}; {q}. | To {a} do this: {p}, {q}. | {a}; {p}; {q}
From {a}, {p}, then finally {q}. | Step by step: {a}, {p}, {q}. | Work this out: {a}, {p}, {q}.
Here is {a}. {p}. {q}. What is the result? | Do this with {a}: {p}, then {q}. | {a} and {p} and {q}
Use the calculator: {a}, {p}, {q}. | How much is {a}, {p}, {q}? | Put in {a}, {p}, {q}, and tell me.
My number is {a}. {p}. {q}. What is my number now? | Solve {a}, {p}, {q}. | Tell me: {a}, {p}, {q}
""")


def result(a, op, b):
    """Compute what the calculator returns, as text."""
    if op == "/":
        return f"{a / b:.12g}" if a % b else str(a // b)
    return str(a + b if op == "+" else a - b if op == "-" else a * b)


def operands(rng, op, held_out, most=6):
    """Draw operands that suit the operation."""
    while True:
        a, b = numbers(rng, held_out, most)
        if op == "*" and len(str(a)) + len(str(b)) > 8:
            continue
        if op == "-" and a < b and rng.random() < 0.9:
            a, b = b, a
        if op == "/":
            if b == 0 or b > 999 or a > 9999:
                continue
            if rng.random() < 0.8:
                a *= b
                if is_held_out("pair", f"{min(a, b)} {max(a, b)}") != held_out:
                    continue
        return a, b


def asked(rng, op, held_out):
    """Draw a phrasing for an operation; returns the template and what it holds of the split."""
    own = rng.random() < 0.35
    template = choose(rng, "sum", OWN[op] if own else FRAMES, held_out)
    held = [("sum", template)]
    if not own:
        template = template.replace("{x}", rng.choice(FORMS[op]))
    return template, held


def pair_key(a, b):
    """Name a pair of numbers for the split."""
    return ("pair", f"{min(a, b)} {max(a, b)}")


def one_step(rng, held_out=False):
    """Ask for one operation, with a calculator at hand."""
    op = rng.choice("+-*/")
    template, held = asked(rng, op, held_out)
    a, b = operands(rng, op, held_out)
    calc = calculator(rng)
    name, key = called(calc)
    r = result(a, op, b)
    question = fill(noisy(rng, template), a=a, b=b)
    a, b = in_order(template, op, a, b)
    call = (f"They ask for {a} {op} {b}. I can use {name}.", name,
            arguments({key: f"{a} {op} {b}"}), r)
    return Exchange(question, f"The result is {r}.", f"{a} {op} {b} = {r}", [call],
                    kit(rng, calc), [*held, pair_key(a, b)], ("number", r))


def in_order(template, op, a, b):
    """Return the operands in the order of their mention, where the operation lets them."""
    return (b, a) if op in "+*" and template.find("{b}") < template.find("{a}") else (a, b)


def fill(template, **values):
    """Put values into a template by plain replacement, since the text may hold braces."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def word_problem(rng, held_out=False, tools=True):
    """Tell a small story whose answer is one operation."""
    side = [p for p in PROBLEMS if is_held_out("problem", p[1]) == held_out]
    op = rng.choice([p[0] for p in side] if held_out else "+-*/")
    _, template, answer = rng.choice([p for p in side if p[0] == op])
    while True:
        a, b = numbers(rng, held_out, 4 if op in "+-" else 3)
        a, b = a + 2, b + 2
        if op == "-" and a < b:
            a, b = b, a
        a = a * b if op == "/" else a
        if (op != "/" or b < 100) and is_held_out(*pair_key(a, b)) == held_out:
            break
    n, m = (choose(rng, "person", PEOPLE, held_out) for _ in "nm")
    t, r = choose(rng, "thing", THINGS, held_out), result(a, op, b)
    question = fill(noisy(rng, template), n=n, m=m, t=t, a=a, b=b)
    content = fill(answer, n=n, t=t, r=r)
    calc = calculator(rng)
    name, key = called(calc)
    held = [("problem", template), pair_key(a, b), ("person", n), ("thing", t)]
    a, b = in_order(template, op, a, b)
    think = f"{WHY[op].capitalize()}: {a} {op} {b}."
    if not tools:
        return without_calculator(question, think, a, op, b, content, held)
    call = (think, name, arguments({key: f"{a} {op} {b}"}), r)
    return Exchange(question, f"The result is {r}.", content, [call], kit(rng, calc), held,
                    ("number", r))


def chain(rng, held_out=False):
    """Ask for two or three operations in a row."""
    template = choose(rng, "chain", CHAINS, held_out)
    n_steps = rng.choice([2, 2, 3])
    value, a, calls, phrases, held = None, None, [], [], [("chain", template)]
    calc = calculator(rng)
    name, key = called(calc)
    while len(calls) < n_steps:
        op = rng.choice("++--**/")
        if value is None:
            a, b = operands(rng, op, held_out, 4)
            held.append(pair_key(a, b))
            left = a
        else:
            left, b = int(value), rng.choice([rng.randint(2, 9), rng.randint(2, 99)])
            if op == "/" and rng.random() < 0.9:
                divisors = [d for d in range(2, 13) if left % d == 0]
                b = rng.choice(divisors) if divisors else 0
            if op == "*" and abs(left) > 99999 or b == 0:
                continue
        after = result(left, op, b)
        if "." in after:
            continue
        think = (f"First {left} {op} {b}." if not calls else f"Now {left} {op} {b}.")
        calls.append((think, name, arguments({key: f"{left} {op} {b}"}), after))
        phrases.append(fill(rng.choice(THEN[op]), c=b))
        value = after
    p, q = phrases[0], phrases[1]
    if n_steps == 3:
        q = q + rng.choice([", then ", ", ", " and then ", " and ", ". Then "]) + phrases[2]
    question = fill(noisy(rng, template), a=a, p=p, q=q)
    return Exchange(question, f"That was all. The result is {value}.", f"The result is {value}.",
                    calls, kit(rng, calc), held, ("number", value))


def without_calculator(question, think, a, op, b, content, held):
    """Answer with columns where it is an addition that fits, else say what is missing."""
    if op == "+" and max(a, b) < 10**tiny_columns.MAX_DIGITS:
        thinking = "\n".join([think, tiny_columns.solve(a, b)[0]])
        return Exchange(question, thinking, content, held=held, then=("number", str(a + b)))
    return Exchange(question, f"{think} I have no calculator.",
                    f"I need a calculator for {a} {op} {b}.", held=held)


def columns(rng, held_out=False, n_digits=None):
    """Add in the open, column by column, without tools."""
    template, held = asked(rng, "+", held_out)
    while True:
        a, b = tiny_columns.pair(rng, held_out, n_digits)
        if is_held_out(*pair_key(a, b)) == held_out:
            break
    question = fill(noisy(rng, template), a=a, b=b)
    a, b = in_order(template, "+", a, b)
    thinking, content = tiny_columns.solve(a, b)
    return Exchange(question, thinking, content, held=[*held, pair_key(a, b)],
                    then=("number", str(a + b)))


def no_calculator(rng, held_out=False):
    """Ask for what columns do not do, without tools."""
    if rng.random() < 0.4:
        return word_problem(rng, held_out, tools=False)
    op = rng.choice("-*/")
    template, held = asked(rng, op, held_out)
    a, b = operands(rng, op, held_out)
    question = fill(noisy(rng, template), a=a, b=b)
    a, b = in_order(template, op, a, b)
    return without_calculator(question, f"They ask for {a} {op} {b}.", a, op, b, "",
                              [*held, pair_key(a, b)])
