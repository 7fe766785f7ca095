"""Comparing two numbers: digit by digit, as one reads them."""

from tiny_sums import fill, pair_key
from tiny_words import Exchange, choose, is_held_out, noisy, numbers, split, whole

LARGER = split("""
Which is larger, {a} or {b}? | What is larger: {a} or {b}? | Which is bigger, {a} or {b}?
Is {a} larger than {b}? | Which number is larger, {a} or {b}? | Compare {a} and {b}.
{a} or {b}: which is larger?
Which is more, {a} or {b}? | Is {a} more than {b}? | What is the larger of {a} and {b}?
Is {a} bigger than {b}?
Tell me the larger of {a} and {b}. | Find the larger number: {a}, {b} | max of {a} and {b}
Which of {a} and {b} is larger? | Which one is bigger: {a} or {b}? | {a}, {b}: the bigger one?
Is {a} greater than {b}?
Which of the two is greater, {a} or {b}? | Pick the larger: {a} or {b} | Larger number: {a} or {b}?
""")
SMALLER = split("""
Which is smaller, {a} or {b}? | What is smaller: {a} or {b}? | Which is less, {a} or {b}?
Which number is smaller, {a} or {b}? | {a} or {b}: which is smaller?
What is the smaller of {a} and {b}?
Tell me the smaller of {a} and {b}. | Find the smaller number: {a}, {b} | min of {a} and {b}
Which of {a} and {b} is smaller? | Pick the smaller: {a} or {b} | Is {a} smaller than {b}?
Is {a} less than {b}?
""")


def compare(rng, held_out=False):
    """Ask which of two numbers is larger or smaller; compared digit by digit."""
    larger = rng.random() < 0.6
    template = choose(rng, "compare it", LARGER if larger else SMALLER, held_out)
    while True:
        a, b = numbers(rng, held_out, 4)
        if rng.random() < 0.6:
            b = whole(rng, len(str(a)))
            if rng.random() < 0.4:  # alike at the front
                cut = rng.randrange(len(str(a)))
                b = int(str(a)[:cut] + str(b)[cut:])
        if a != b and is_held_out(*pair_key(a, b)) == held_out:
            break
    x, y = str(a), str(b)
    if len(x) != len(y):
        sign = "more" if len(x) > len(y) else "less"
        think = f"{a} has {len(x)} digits, {b} has {len(y)}. {len(x)} is {sign} than {len(y)}"
    else:
        think = f"Both have {len(x)} digits"
        for i, j in zip(x, y, strict=True):
            sign = "=" if i == j else "<" if i < j else ">"
            think += f", {i} {sign} {j}"
            if i != j:
                break
    best = max(a, b) if larger else min(a, b)
    word = "larger" if larger else "smaller"
    think += f". So {a} {'>' if a > b else '<'} {b}."
    content = f"{best} is {word}."
    if template.startswith("Is "):
        content = ("Yes, " if best == a else "No, ") + content
    return Exchange(fill(noisy(rng, template), a=a, b=b), think, content,
                    held=[("compare it", template), pair_key(a, b)])
