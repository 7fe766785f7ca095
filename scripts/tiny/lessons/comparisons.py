"""Comparing two numbers: digit by digit, as one reads them."""

from scripts.tiny.lessons.sums import pair_key
from scripts.tiny.lessons.words import (
    Exchange,
    choose,
    fill,
    is_held_out,
    noisy,
    numbers,
    split,
    whole,
)

BIG = "[larger|bigger|greater|more|higher]"
SMALL = "[smaller|less|lower]"
TWO = "[{a} or {b}|{a} and {b}]"
LARGER = split(f"""
[Which|Which one|Which number|What|Which of them|Which of the two] is {BIG}[,|:| -] {{a}} or {{b}}?
[Which|What|Tell me which|Say which|Which one] of {{a}} and {{b}} is {BIG}[?|, please.]
[Is|Is the number|Is number] {{a}} {BIG} than {{b}}?
[Is it true that|Is it so that|Is it right that] {{a}} is {BIG} than {{b}}?
{{a}} or {{b}}[: which|, which|: what|; which one|, what] is {BIG}[?| please?]
[Compare|Please compare|Can you compare|Now compare|Compare the numbers] {TWO}[.| please.| for me.]
[Compare|Please compare|Compare these|I want to compare|Compare the two numbers]: {TWO}[| please]
[Compare|Please compare|Could you compare|Let us compare] {{a}} [with|to|against] {{b}}.
[What is|Tell me|Give me|Find|Say|Pick] the [larger|bigger|greater|higher] of {{a}} and {{b}}.
[What is|Tell me|Find|Pick|Choose] the [larger|bigger|greater] [one|number][:|,| -] {TWO}
[max|maximum|the maximum|the max|larger number|bigger number] of {{a}} and {{b}}[| please|, please]
[Larger|Bigger|Greater|The larger|The bigger] [one|number]: {TWO}[?| please]
[Do you know|Tell me|Can you say|Can you tell me|Say] [which|what] is {BIG}[,|:] {{a}} or {{b}}?
""")
SMALLER = split(f"""
[Which|Which one|Which number|What|Which of the two] is {SMALL}[,|:| -] {{a}} or {{b}}?
[Which|What|Tell me which|Say which|Which one] of {{a}} and {{b}} is {SMALL}[?|, please.]
[Is|Is the number|Is number] {{a}} {SMALL} than {{b}}?
[Is it true that|Is it so that|Is it right that] {{a}} is {SMALL} than {{b}}?
{{a}} or {{b}}[: which|, which|: what|; which one|, what] is {SMALL}[?| please?]
[What is|Tell me|Give me|Find|Say|Pick|Show me] the [smaller|lower|lesser] of {{a}} and {{b}}.
[What is|Tell me|Find|Pick|Choose] the [smaller|lower|lesser] [one|number][:|,| -] {TWO}
[min|minimum|the minimum|the min|smaller number|lower number] of {{a}} and {{b}}[| please|, please]
[Smaller|Lower|Lesser|The smaller|The lower] [one|number]: {TWO}[?| please]
[Do you know|Tell me|Can you say|Can you tell me|Say] [which|what] is {SMALL}[,|:] {{a}} or {{b}}?
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
    best, word = (max(a, b), "larger") if larger else (min(a, b), "smaller")
    content = f"{best} is {word}."
    if template.startswith("Is "):
        content = ("Yes, " if best == a else "No, ") + content
    think = f"Compare {a} and {b}. {digits(a, b)}. The {word} is {best}."
    return Exchange(fill(noisy(rng, template), a=a, b=b), think, content,
                    held=[("compare it", template), pair_key(a, b)])


def digits(a, b):
    """Say how the two compare: by their lengths, else by the first digits that differ."""
    x, y = str(a), str(b)
    if len(x) != len(y):
        sign = "more" if len(x) > len(y) else "less"
        seen = f"{a} has {len(x)} digits, {b} has {len(y)}. {len(x)} is {sign} than {len(y)}"
    else:
        same = next(i for i in range(len(x)) if x[i] != y[i])
        pairs = [f"{i} = {j}" for i, j in zip(x[:same], y[:same], strict=True)]
        pairs.append(f"{x[same]} {'<' if x[same] < y[same] else '>'} {y[same]}")
        seen = f"Both have {len(x)} digits: {', '.join(pairs)}"
    return f"{seen}. So {a} {'>' if a > b else '<'} {b}"
