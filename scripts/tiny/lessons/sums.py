"""Lessons about sums: through a calculator, or column by column in the open without one."""

from scripts.tiny.lessons import columns as tiny_columns
from scripts.tiny.lessons import problems
from scripts.tiny.lessons.phrases import CHAINS, FORMS, FRAMES, NOW, OWN, filled
from scripts.tiny.lessons.tables import COUNTRIES
from scripts.tiny.lessons.tools import arguments, calculator, called, find_calculator, kit
from scripts.tiny.lessons.words import (
    HEROES,
    PEOPLE,
    THINGS,
    Exchange,
    choose,
    fill,
    is_held_out,
    noisy,
    numbers,
    split,
    stand_in,
)

WOMEN = set(split("""
Anna | Lucy | Emma | Mary | Lena | Nina | Sara | Julia | Maria | Rosa | Clara | Eva | Ida | Mia
Alice | Carol | Grace | Kate | Nora | Olga | Sofia | Tina | Wendy | Yuki | Fatima | Lin | Zoe
"""))
NAMES = [name for entry in COUNTRIES for name in entry[:2] if " " not in name]
PLURALS = [f"{hero}s" for hero in HEROES if hero[-1] not in "shxyfz" and " " not in hero]


def person(rng, held_out=False):
    """Draw the name of a person."""
    return stand_in(rng, "person", PEOPLE, NAMES, str.capitalize, held_out)


def thing(rng, held_out=False):
    """Draw what is counted, in the plural."""
    return stand_in(rng, "thing", THINGS, PLURALS, "{}s".format, held_out)


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
            if rng.random() < 0.7:
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


def word_problem(rng, held_out=False, tools=True):
    """Tell a small story whose answer is one operation."""
    op = rng.choice("+-*/" if tools else "++-*/")
    template, answer, clue = problems.problem(rng, op, held_out)
    while True:
        a, b = numbers(rng, held_out, 4 if op in "+-" else 3)
        a, b = a + 2, b + 2
        if op == "-" and a < b:
            a, b = b, a
        a = a * b if op == "/" else a
        if (a != b or op != "-") and (op != "/" or b < 100) and (
                is_held_out(*pair_key(a, b)) == held_out):
            break
    n, m, t = person(rng, held_out), person(rng, held_out), thing(rng, held_out)
    while m == n:
        m = person(rng, held_out)
    while t in template:  # no boxes of boxes
        t = thing(rng, held_out)
    he = "she" if n in WOMEN or n not in PEOPLE and rng.random() < 0.5 else "he"
    values = {"n": n, "m": m, "t": t, "a": a, "b": b, "h": he, "H": he.capitalize()}
    question = fill(noisy(rng, template), **values)
    content = fill(answer, r=result(a, op, b), **values)
    calc = calculator(rng)
    name, key = called(calc)
    held = [("problem", template), pair_key(a, b), ("person", n), ("thing", t)]
    r = result(a, op, b)
    a, b = in_order(template, op, a, b)
    think = f"{fill(clue, n=n)}: {a} {op} {b}."
    if not tools:
        return without_calculator(question, think, a, op, b, content, held)
    call = (think, name, arguments({key: f"{a} {op} {b}"}), r)
    return Exchange(question, f"The result is {r}.", content, [call], kit(rng, calc), held,
                    ("number", r))


def chain(rng, held_out=False):
    """Ask for two or three operations in a row; the thinking quotes the step that is next."""
    n_steps = rng.choice([2, 2, 3])
    template = choose(rng, "chain", CHAINS[n_steps], held_out)
    steps, values, held = [], [], [("chain", template)]
    while len(steps) < n_steps:
        op = rng.choice("++--**/")
        if not values:
            a, b = operands(rng, op, held_out, 4)
            values = [a]
        else:
            left, b = values[-1], rng.choice([rng.randint(2, 9), rng.randint(2, 99),
                                              rng.randint(2, 999) if op in "+-" else 2])
            if op == "/" and rng.random() < 0.9:
                divisors = [d for d in range(2, 13) if left % d == 0]
                b = rng.choice(divisors) if divisors else 0
            if op == "*" and abs(left) > 99999 or b == 0:
                continue
        after = result(values[-1], op, b)
        if "." not in after:
            steps.append((op, b))
            values.append(int(after))
        elif not steps:
            values = []
    held.append(pair_key(values[0], steps[0][1]))
    question, phrases = filled(rng, noisy(rng, template), steps)
    calc = calculator(rng)
    name, key = called(calc)
    calls = []
    for left, (op, b), phrase, after in zip(
            values[:-1], steps, phrases, values[1:], strict=True):
        think = f"Now {left}. Next {phrase}" if calls else f"Start with {left}. First {phrase}"
        calls.append((f"{think}: {left} {op} {b}.", name,
                      arguments({key: f"{left} {op} {b}"}), str(after)))
    return Exchange(question.replace("{a}", str(values[0])),
                    f"No more steps. The result is {values[-1]}.", f"The result is {values[-1]}.",
                    calls, kit(rng, calc), held, ("number", str(values[-1])))


def further(rng, before, held_out=False):
    """Go on with the number of the exchange before: "now times 3"."""
    left = int(before.then[1])
    op = rng.choice("+-**")
    template = choose(rng, "now", NOW, held_out)
    while True:
        b = rng.randrange(2, rng.choice([10, 100]))
        if is_held_out(*pair_key(left, b)) == held_out:
            break
    question, (phrase,) = filled(rng, noisy(rng, template), [(op, b)])
    held = [("now", template), pair_key(left, b)]
    calc = find_calculator(before.tools)
    think = f"Now {left}. Next {phrase}: {left} {op} {b}."
    if calc is None:
        return without_calculator(question, think, left, op, b,
                                  f"{left} {op} {b} = {left + b}", held)
    title, key = called(calc)
    r = result(left, op, b)
    return Exchange(question, f"The result is {r}.", f"{left} {op} {b} = {r}",
                    [(think, title, arguments({key: f"{left} {op} {b}"}), r)], before.tools, held,
                    ("number", r))


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
