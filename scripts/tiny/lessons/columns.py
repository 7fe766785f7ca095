"""Addition column by column from the right, as on paper; a line ends with what is written so far:

    37 + 158: 2 and 3 digits
    037 + 158
    hundreds 0 + 1, tens 3 + 5, ones 7 + 8
    ones: 7 + 8 = 15, write 5, carry 1
    tens: 3 + 5 + 1 = 9, write 95
    hundreds: 0 + 1 = 1, write 195

Equal lengths and named pairs let a column be copied, not counted off from the right.

A tenth of all pairs, by hash, is held out: `pair` draws none of them for a lesson, or, for a test,
nothing else.
"""

import hashlib

PLACES = ["ones", "tens", "hundreds", "thousands"]
MAX_DIGITS = len(PLACES)


def is_held_out(a, b):
    """Say whether the pair, in either order, belongs to the tenth that no lesson may hold."""
    digest = hashlib.sha256(f"{min(a, b)}+{max(a, b)}".encode()).digest()
    return digest[0] < 26


def number(rng, n_digits):
    """Draw a whole number of exactly so many digits; sometimes all 0 and 9, where carries run."""
    digits = rng.choices("09" if rng.random() < 0.1 else "0123456789", k=n_digits)
    if n_digits > 1 and digits[0] == "0":
        digits[0] = rng.choice("123456789")
    return int("".join(digits))


def pair(rng, held_out=False, n_digits=None):
    """Draw two numbers, the longer of `n_digits`, from the wanted side of the split."""
    while True:
        lengths = [n_digits or n for n in rng.choices([1, 2, 3, 4], [2, 3, 4, 4], k=2)]
        if n_digits:
            lengths[0] = rng.choice([n_digits, rng.randint(1, n_digits)])
        rng.shuffle(lengths)
        numbers = [number(rng, n) for n in lengths]
        if is_held_out(*numbers) == held_out:
            return tuple(numbers)


def solve(a, b):
    """Return the thinking and the answer that the model is to give for a + b."""
    n, m = len(str(a)), len(str(b))
    columns = max(n, m)
    x, y = f"{a:0{columns}}", f"{b:0{columns}}"
    named = [f"{name} {i} + {j}" for name, i, j in zip(PLACES[columns - 1::-1], x, y, strict=True)]
    lines = [f"{a} + {b}: {n} and {m} digits", f"{x} + {y}", ", ".join(named)]
    written, carry = "", 0
    for place, name in enumerate(PLACES[:columns]):
        digits = [a // 10**place % 10, b // 10**place % 10] + [1] * carry
        total = sum(digits)
        carry, written = total // 10, f"{total % 10}{written}"
        line = f"{name}: {' + '.join(map(str, digits))} = {total}, write {written}"
        lines.append(line + (", carry 1" if carry else ""))
    if carry:
        lines.append(f"carry 1 in front, write 1{written}")
    return "\n".join(lines), f"{a} + {b} = {a + b}"
