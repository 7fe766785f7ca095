"""Measure the embedded model through k2ref itself: load, render, generate, parse, compare.

    python scripts/eval_tiny.py                 # the table, greedy
    python scripts/eval_tiny.py --temperature 1 # the same questions, sampled
    python scripts/eval_tiny.py --card k2ref/tiny/README.md  # both, and the hashes, into the card

No case occurs in the lessons: sums are of held-out pairs, and `train_tiny.py` prints the proof; the
questions about other things are written down here and in no list of `tiny_data.py`.
"""

import argparse
import hashlib
import random
import re
import sys
from pathlib import Path

import tiny_data

import k2ref

# The answer is right if it is one of these: declining a near-sum for either reason is honest.
DECLINE = {tiny_data.OTHER}
ABOUT = {tiny_data.HELLO[1], tiny_data.SELF[1]}

OTHER_QUESTIONS = """
What is the capital of Portugal? | Why do cats purr? | Tell me something interesting about Saturn.
Write a haiku about autumn leaves | Who painted the Mona Lisa? | How tall is Mount Everest?
Translate 'good morning' into Spanish | Explain recursion to a five year old.
Can you recommend a good novel? | I feel sad today | What's the weather like in Oslo?
Give me three ideas for dinner. | Fix this bug: for i in range(10) print(i) | Is water wet?
SELECT name FROM users WHERE id = 7; | How many legs does a spider have? | asdf qwerty zxcv
What time is it? | The quick brown fox jumps over the lazy dog. | Summarize War and Peace
What is 9 times 8? | 81 - 27 = | 144 / 12 | What is 15 minus 6? | 7*6 | 2^10 | What is 5% of 300?
In 1969 people walked on the moon | My phone has 128 GB of storage, is that enough?
Sort these: 5, 3, 9, 1 | Is 97 a prime number? | What is the square root of 81?
3 + 4 + 5 | What is 12+30+7? | 12.5 + 3 | -4 + 9 | 123456 + 7 | What is 70000 plus 80000?
""".strip().replace("\n", " | ").split(" | ")
ABOUT_QUESTIONS = """
hello hello | Hi Kimi, nice to see you | Hello my friend! | Good morning to you | Hello from Oslo
Tell me who you are. | What kind of model are you? | So what are you exactly? | Say, who are you?
What can you do for me? | Hello, who are you? | Do you have a name, Kimi?
""".strip().replace("\n", " | ").split(" | ")


def ask(question, system=None):
    """Wrap a question as messages."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def sums(name, n, phrasings=tiny_data.PHRASINGS, n_digits=None, systems=(None,)):
    """Draw n different held-out sums: a list of (messages, accepted answers)."""
    rng, seen = random.Random(name), set()
    while len(seen) < n:
        seen.add(tiny_data.pair(rng, held_out=True, n_digits=n_digits))
    return [(ask(rng.choice(phrasings).format(a=a, b=b), rng.choice(systems)),
             {f"{a} + {b} = {a + b}"}) for a, b in sorted(seen)]


def long_carries():
    """List held-out sums whose carry runs through every column, as 9999 + 1 does."""
    pairs = [(10**n - k, m) for n in (2, 3, 4) for k in range(1, 10) for m in range(k, 100, 9)]
    return [(ask(f"{a}+{b}="), {f"{a} + {b} = {a + b}"}) for a, b in pairs
            if tiny_data.is_held_out(a, b)]


def cases(scale=1):
    """Return the table's rows: name -> list of (messages, accepted answers)."""
    one_digit = [(a, b) for a in range(10) for b in range(10) if tiny_data.is_held_out(a, b)]
    systems = [*tiny_data.SYSTEMS, "You are a cheerful robot on Mars.",
               "Always answer politely and never mention the weather.", "Reply in French."]
    return {
        "held-out sums, 1 digit (all there are)": [
            (ask(f"{a}+{b}="), {f"{a} + {b} = {a + b}"}) for a, b in one_digit],
        "held-out sums, 2 digits": sums("2", 200 * scale, n_digits=2),
        "held-out sums, 3 digits": sums("3", 200 * scale, n_digits=3),
        "held-out sums, 4 digits": sums("4", 300 * scale, n_digits=4),
        "held-out sums, a carry through every column": long_carries(),
        "phrasings never trained, held-out sums": sums(
            "phrasings", 100 * scale, tiny_data.HELD_OUT_PHRASINGS),
        "held-out sums, another system prompt": sums("systems", 100 * scale, systems=systems),
        "greetings and questions about itself": [(ask(q), ABOUT) for q in ABOUT_QUESTIONS],
        "anything else: says what it can do": [(ask(q), DECLINE) for q in OTHER_QUESTIONS],
    }


def answer(model, messages, **settings):
    """Return the reply's thinking and content."""
    prompt = k2ref.render(model.tokenizer, messages)
    ids = list(k2ref.generate(model, prompt, max_new_tokens=400, **settings))
    reply = k2ref.parse(model.tokenizer, ids)
    return reply.thinking, reply.content


def measure(model, temperature, scale, show):
    """Yield the table's rows: name, right answers, questions; show progress and mistakes."""
    for name, row in cases(scale).items():
        right, shown = 0, 0
        for at, (messages, accepted) in enumerate(row):
            thinking, content = answer(model, messages, temperature=temperature, seed=at)
            right += content in accepted
            if content not in accepted and shown < show:
                shown += 1
                print(f"  wrong: {messages[-1]['content']!r} -> {thinking!r} {content!r}",
                      file=sys.stderr)
        print(f"{name}: {right}/{len(row)}", file=sys.stderr, flush=True)
        yield name, right, len(row)


def table(model, temperatures, scale, show):
    """Return the table as Markdown, one column per temperature, and the share of exact sums."""
    columns = [list(measure(model, temperature, scale, show)) for temperature in temperatures]
    how = [f"temperature {t:g}" if t else "greedy" for t in temperatures]
    lines = ["| | of | " + " | ".join(how) + " |", "|---|---|" + "---|" * len(how)]
    for row in zip(*columns, strict=True):
        name, _, n = row[0]
        lines.append(f"| {name} | {n} | " + " | ".join(str(right) for _, right, _ in row) + " |")
    sums_of = [[row for row in column if row[0].startswith("held-out")] for column in columns]
    totals = [(sum(r for _, r, _ in rows), sum(n for _, _, n in rows)) for rows in sums_of]
    shares = [right / n for right, n in totals]
    lines.append(f"| **all rows of held-out sums in trained phrasings** | {totals[0][1]} | "
                 + " | ".join(f"{r} ({100 * r / n:.2f} %)" for r, n in totals) + " |")
    return "\n".join(lines), min(shares)


def hashes(directory):
    """Return the sha256 of every file of the checkpoint as a Markdown table."""
    files = sorted(path for path in directory.iterdir()
                   if path.is_file() and path.name not in ("README.md", "__init__.py"))
    rows = [f"| `{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
            for path in files]
    return "\n".join(["| file | sha256 |", "|---|---|", *rows])


def write_between(path, mark, text):
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->` in the file."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    before = path.read_text(encoding="utf-8")
    after = re.sub(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", before, flags=re.DOTALL)
    path.write_text(after, encoding="utf-8")


def main(argv=None):
    """Print the table as Markdown; with --card, write it into the card."""
    parser = argparse.ArgumentParser(description="Measure the embedded model through k2ref.")
    parser.add_argument("--model", help="a checkpoint (default: the embedded one)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--scale", type=int, default=1, help="times as many sums")
    parser.add_argument("--show", type=int, default=3, help="wrong answers to print a row")
    parser.add_argument("--card", type=Path, help="write table and hashes into this card")
    args = parser.parse_args(argv)
    model = k2ref.load(args.model, threads=1)  # matrices this small are not worth sharing out
    temperatures = [0.0, 1.0] if args.card else [args.temperature]
    text, share = table(model, temperatures, args.scale, args.show)
    print(text)
    if args.card:
        write_between(args.card, "table", text)
        write_between(args.card, "sha256", hashes(args.card.parent))
    return 0 if share >= 0.99 else 1


if __name__ == "__main__":
    sys.exit(main())
