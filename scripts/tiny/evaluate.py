"""Measure the embedded model through k2ref itself: render, generate, parse, answer its calls.

    python -m scripts.tiny.evaluate  # the table, greedy and at temperature 1
    python -m scripts.tiny.evaluate --only trail story -n 20 # some rows, fewer cases
    python -m scripts.tiny.evaluate --card k2ref/tiny/README.md

Every case comes from the held-out side of the split (words.py): no lesson has its phrasing,
its names, its made-up words or its numbers. A case is right only if every call and the answer are,
but where the name of a row says less.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import time
from pathlib import Path

import k2ref
from k2ref.conversation import history
from k2ref.conversation.chat import Context, prompt_ids
from scripts.tiny.lessons import comparisons, facts, lessons, lookups, sums, talk
from scripts.tiny.lessons import stories as tiny_stories

N_TRAILS = 10
KEPT = 3  # turns that the client keeps of a trail


class Player:
    """Let the model answer, and answer its calls as the exchange says; keep count."""

    def __init__(self, model, temperature, show=0):
        self.model, self.temperature, self.show = model, temperature, show
        self.seed = self.n_calls = self.n_ids = 0

    def reply(self, context, messages, tools):
        """Generate one reply to a conversation and parse it."""
        self.seed += 1
        ids = prompt_ids(self.model, messages, tools or None)
        room = {"max_new_tokens": 400, "temperature": self.temperature, "seed": self.seed}
        return k2ref.parse(self.model.tokenizer, list(context.generate(ids, **room)))

    def play(self, exchange, messages=(), keep=None):
        """Return (calls right before the first wrong one, whether the answer is right, it)."""
        messages = [*messages, {"role": "user", "content": exchange.question}]
        context = Context(self.model)
        for n, call in enumerate(exchange.calls):
            view = shown(messages, keep)
            reply = self.reply(context, view, exchange.tools)
            if not same_call(reply, call):
                return n, False, str(reply.tool_calls or reply.content)
            count = sum(len(message.get("tool_calls", ())) for message in view)
            self.n_calls += 1
            self.n_ids += reply.tool_calls[0].id == f"functions.{call[1]}:{count}"
            messages += [
                history.message_of(reply),
                {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "name": call[1],
                 "content": call[3]}]
        reply = self.reply(context, shown(messages, keep), exchange.tools)
        text = reply.content if not reply.tool_calls else str(reply.tool_calls)
        return len(exchange.calls), text == exchange.content, text


def shown(messages, keep):
    """Return what the model is shown: all turns or the last ones, ids counted from its first."""
    return history.rename_calls(history.keep_turns(messages, keep) if keep else messages)


def same_call(reply, call):
    """Say whether the reply is this call and no other; + and * may be turned round."""
    if len(reply.tool_calls) != 1 or reply.tool_calls[0].name != call[1]:
        return False
    try:
        found, wanted = json.loads(reply.tool_calls[0].arguments), json.loads(call[2])
    except ValueError:
        return False
    if found == wanted:
        return True
    key, text = next(iter(wanted.items()))
    a, op, b = (*text.split(" "), "", "")[:3]
    return op in "+*" and found == {key: f"{b} {op} {a}"}


def right_story(exchange, text):
    """Say whether a story is one of the grammar's, about this subject, from beginning to end."""
    x = re.escape(dict(exchange.held)["hero"])

    def one(words):
        return "(?:" + "|".join(map(re.escape, words)) + ")"

    traits, places = one(tiny_stories.TRAITS), one(tiny_stories.PLACES)
    sentences = [
        f"(?:Once upon a time there was|Long ago there was|There once was) an? {traits} {x}",
        f"(?:The {x} lived {places}|It lived {places} and was often {traits})",
        f"One (?:day|morning|evening|night) the {x} {one(tiny_stories.EVENTS)}",
        f"The {x} {one(tiny_stories.TRIES)}",
        one(tiny_stories.TURNS),
        f"(?:In the end|From then on|At last|And so) the {x} {one(tiny_stories.ENDS)}",
    ]
    pattern = r"{}\. {}\. {}\. (?:{}\. )?{}\. {}\.".format(*sentences)
    return re.fullmatch(pattern, text) is not None


def after(rng, first, held_out=True):
    """Draw a follow-up of an exchange of this intent: (exchange, the messages before it)."""
    while True:
        before = first(rng)
        exchange = lessons.follow_up(rng, before, held_out)
        if exchange is not None:
            return exchange, lessons.conversation([before])


def short_columns(rng, held_out):
    """Draw an addition of up to three digits."""
    return sums.columns(rng, held_out, rng.choice([1, 2, 3, 3]))


def capital(rng, held_out):
    """Draw a question for a capital."""
    return facts.fact(rng, held_out, "capital")


SIMPLE = {  # row: (what draws a case, what of it must be right, the target in per cent or None)
    "one-step sums through the calculator: right call": (sums.one_step, "calls", 99),
    "one-step sums through the calculator: right answer": (sums.one_step, "all", 98),
    "word problems: operation and unit": (sums.word_problem, "end", 95),
    "word problems: the name in the answer too": (sums.word_problem, "all", None),
    "two- and three-step chains": (sums.chain, "all", 97),
    "column addition up to 3 digits, no tools": (short_columns, "all", 97),
    "capitals, unseen phrasing": (capital, "all", 97),
    "all facts, unseen phrasing": (facts.fact, "all", 97),
    "lookups of unseen names: right query": (lookups.attribute, "calls", 95),
    "lookups of unseen names: right answer": (lookups.attribute, "all", 95),
    "lookup, lookup, add": (lookups.lookups_and_sum, "all", 93),
    "out of scope: says so, names the topic": (talk.unknown, "all", 90),
    "follow-up: another fact": (lambda r, h: after(r, facts.fact, h), "all", 90),
    "follow-up: now times 3": (lambda r, h: after(r, sums.one_step, h), "all", 90),
    "follow-up: another lookup": (lambda r, h: after(r, lookups.attribute, h), "all", 90),
    "compare two numbers": (comparisons.compare, "all", None),
    "needs a calculator and has none": (sums.no_calculator, "all", None),
    "look up an unseen name": (lookups.look, "all", None),
    "a tool fails": (lookups.error, "all", None),
    "none of its tools fits": (lookups.unfit, "all", None),
    "greetings, thanks, goodbye": (talk.greeting, "all", None),
    "who it is, what it can do": (talk.about, "all", None),
    "repeat unseen words": (talk.repeat, "all", None),
}


def cases(name, n):
    """Draw the cases of a row of `SIMPLE`: (exchange, the messages before it)."""
    rng, draw = random.Random(f"evaluation of {name.split(':')[0]}"), SIMPLE[name][0]
    drawn = [draw(rng, True) for _ in range(n)]
    return [one if isinstance(one, tuple) else (one, ()) for one in drawn]


def questions(n=200):
    """Collect the questions of all rows, for the proof that no lesson asks one of them."""
    return {exchange.question for name in SIMPLE for exchange, _ in cases(name, n)}


def is_enough(what, exchange, text):
    """Say whether an answer that is wrong will do: any to "calls", a wrong first word to "end"."""
    return what == "calls" or what == "end" and text.endswith(exchange.content.partition(" ")[2])


def simple(player, name, n):
    """Measure a row of `SIMPLE`: (right, of, failures)."""
    what, right, wrong = SIMPLE[name][1], 0, []
    for exchange, before in cases(name, n):
        n_calls, is_right, text = player.play(exchange, before)
        ok = n_calls == len(exchange.calls) and (is_right or is_enough(what, exchange, text))
        right += ok
        wrong += [] if ok else [(exchange.question, text)]
    return right, n, wrong


def stories(player, n):
    """Measure stories about held-out subjects."""
    rng, right, wrong = random.Random("stories"), 0, []
    for _ in range(n):
        exchange = tiny_stories.story(rng, True)
        _, _, text = player.play(exchange)
        ok = right_story(exchange, text)
        right += ok
        wrong += [] if ok else [(exchange.question, text)]
    return right, n, wrong


def trails(player, n_pages, styles, keep, n_runs, enough=None):
    """Measure trails of held-out pages: (runs with enough right calls, runs, how far each got)."""
    rng, right, reached = random.Random(f"trails {n_pages} {styles}"), 0, []
    for run in range(n_runs):
        exchange = lookups.trail(rng, True, n_pages, styles[run % len(styles)])
        n_calls, is_right, text = player.play(exchange, keep=keep)
        done = n_calls >= enough if enough else n_calls == n_pages and is_right
        right += done
        reached.append(("page " + exchange.question, f"{n_calls} right, then {text}"))
    return right, n_runs, reached


TRAILS = {
    "trail of 300 numbered pages, 3 turns kept": (300, ("number",), KEPT, None),
    "trail of 110 numbered pages, full history, 100 calls": (110, ("number",), None, 100),
    "trail of 30 pages named by words or codes, 3 turns kept": (30, ("word", "code"), KEPT, None),
    "trail of 30 pages named by words or codes, full history": (30, ("word", "code"), None, None),
}


def measure(model, temperature, n, show, only, n_runs=N_TRAILS):
    """Yield rows: (name, right, of, target in per cent); say on stderr what was wrong."""
    player = Player(model, temperature)

    def told(name, target, found):
        right, of, wrong = found
        print(f"{name}: {right}/{of}", file=sys.stderr, flush=True)
        for question, text in wrong[:show]:
            print(f"    {question!r} -> {text!r:.300}", file=sys.stderr)
        return name, right, of, target

    def wanted(name):
        return not only or any(word in name for word in only)

    for name in filter(wanted, SIMPLE):
        yield told(name, SIMPLE[name][2], simple(player, name, n))
    if wanted("story about an unseen subject"):
        yield told("story about an unseen subject", 98, stories(player, n // 2))
    for name in filter(wanted, TRAILS):
        target = 100 if TRAILS[name][0] == 300 else 90
        yield told(name, target, trails(player, *TRAILS[name][:3], n_runs, TRAILS[name][3]))
    yield told("ids functions.NAME:IDX of all calls above", 100,
               (player.n_ids, player.n_calls, []))


def table(model, temperatures, n, show, only, n_runs):
    """Return the table as Markdown."""
    columns = [list(measure(model, t, n, show, only, n_runs)) for t in temperatures]
    lines = ["| | target | " + " | ".join(f"temperature {t:g}" if t else "greedy"
                                           for t in temperatures) + " |",
             "|---|---|" + "---|" * len(columns)]
    for row in zip(*columns, strict=True):
        name, _, _, target = row[0]
        cells = [f"{right} of {of}" for _, right, of, _ in row]
        lines.append(f"| {name} | {f'{target} %' if target else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    replaced = re.sub(pattern, lambda m: f"{m[1]}{text}\n{m[2]}", before, flags=re.DOTALL)
    path.write_text(replaced, encoding="utf-8")


def main(argv=None):
    """Print the table as Markdown; with --card, write it into the card."""
    parser = argparse.ArgumentParser(description="Measure the embedded model through k2ref.")
    parser.add_argument("--model", help="a checkpoint (default: the embedded one)")
    parser.add_argument("--temperature", type=float, action="append", help="default: 0 and 1")
    parser.add_argument("-n", type=int, default=100, help="cases of a row")
    parser.add_argument("--runs", type=int, default=N_TRAILS, help="trails of a row")
    parser.add_argument("--show", type=int, default=3, help="failures to print of a row")
    parser.add_argument("--only", nargs="+", help="only rows whose name has one of these words")
    parser.add_argument("--card", type=Path, help="write table and hashes into this card")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    model = k2ref.load(args.model, threads=1)  # matrices this small are not worth sharing out
    text = table(model, args.temperature or [0.0, 1.0], args.n, args.show, args.only, args.runs)
    print(text)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    if args.card:
        write_between(args.card, "table", text)
        write_between(args.card, "sha256", hashes(args.card.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
