"""The lessons of the embedded model: conversations about sums, generated, never shipped.

A lesson is a list of messages whose last one is the answer to learn, with its thinking. It adds
column by column from the right, as on paper; each line ends with what is written so far:

    37 + 58
    ones: 7 + 8 = 15, write 5, carry 1
    tens: 3 + 5 + 1 = 9, write 95

Everything that is not a sum of two whole numbers gets one honest sentence. A tenth of all pairs, by
hash, is held out: `pair` draws none of them for a lesson, or, for a test, nothing else.
"""

import hashlib
import re

PLACES = ["ones", "tens", "hundreds", "thousands"]
MAX_DIGITS = len(PLACES)

PHRASINGS = """
{a}+{b}= | {a}+{b} | {a} + {b} | {a} + {b} = | {a}+{b}=? | {a} + {b} = ? | {a} +{b} | {a}+ {b}
What is {a}+{b}? | What is {a} + {b}? | What's {a} + {b}? | What's {a}+{b} | What is {a} plus {b}?
What's {a} plus {b}? | How much is {a}+{b}? | How much is {a} + {b}? | How much is {a} plus {b}?
{a} plus {b} | {a} plus {b}? | {a} plus {b} is | {a} plus {b} equals | {a} and {b} | {a} and {b}?
Add {a} and {b}. | Add {a} + {b}. | Add {a} to {b}. | Add up {a} and {b}. | Add these: {a}, {b}
Sum {a} and {b}. | The sum of {a} and {b} | What is the sum of {a} and {b}? | Sum: {a} + {b}
Find the sum of {a} and {b}. | Give me the sum of {a} and {b}. | Give me {a} + {b}.
Compute {a}+{b}. | Compute {a} + {b}. | Calculate {a} + {b}. | Calculate {a}+{b} | Solve {a} + {b}.
Solve: {a}+{b}= | Work out {a} + {b}. | Can you add {a} and {b}? | Can you add {a} + {b}?
Could you tell me what {a} + {b} is? | Tell me {a} + {b}. | Tell me what {a} plus {b} is.
I need {a} + {b}. | Do you know {a}+{b}? | Do you know what {a} plus {b} is? | Think: {a} + {b}
What do {a} and {b} make? | How much do {a} and {b} make? | {a} and {b} make what?
What does {a}+{b} equal? | What does {a} plus {b} equal? | If I add {a} and {b}, what do I get?
Take {a} and add {b}. | Start with {a} and add {b}. | Question: {a} + {b} = | Hi, what is {a} + {b}?
Hello! {a}+{b}? | Now {a} + {b}. | And {a}+{b}? | Then what is {a} + {b}? | total of {a} and {b}
""".strip().replace("\n", " | ").split(" | ")

# Never trained: the evaluation asks with them.
HELD_OUT_PHRASINGS = [
    "What do you get when you add {a} and {b}?", "Would you add {a} and {b} for me?",
    "How much is the sum of {a} and {b}?", "Let us add: {a} + {b}", "What would {a} + {b} be?",
    "Find {a} + {b}.",
]

DEFAULT_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
SYSTEMS = [
    "You are a helpful assistant.", "Be brief.", "You are Kimi.", "Answer in English.",
    "You are a patient teacher.", "You are a calculator.", "Think step by step.", "Be kind.",
    "You are a pirate.", "Answer with one word.", "You are an expert in mathematics.",
    "Speak like a poet.", "You are a tiny model that adds numbers.", "Do not be long.",
]

HELLOS = """
Hello | Hi | Hey | Good morning | Good evening | Good afternoon | Greetings | Howdy | Yo | Hallo
Good day | Hello again | Welcome | Hiya | Hello there | Hi there | Hey there | Hello world
""".strip().replace("\n", " | ").split(" | ")
NAMES = ["", "", "", " Kimi", ", Kimi", " friend", ", friend", " everyone", " model", ", AI"]
HOW_ARE_YOU = ["", "", "", " How are you?", " What's up?", " How is it going?",
               " Pleased to meet you."]

WHO = """
Who are you? | What are you? | What is your name? | What's your name? | Introduce yourself.
Tell me about yourself. | Are you Kimi? | Are you a robot? | Are you an AI? | Who made you?
What can you do? | What do you do? | How can you help me? | Help | help me | Can you help me?
What model are you? | Which model are you? | Who am I talking to? | Are you a large model?
How big are you? | What is k2ref? | Are you human? | Tell me what you are. | And you are?
Tell me what you can do. | Do you have a name? | What sort of AI are you? | Who is this?
""".strip().replace("\n", " | ").split(" | ")
BEFORE_WHO = ["", "", "", "So ", "And ", "Hey! ", "Hello! ", "Hi, ", "Kimi, ", "Please: ", "Now, "]

HELLO = ("A greeting.", "Hello! I am a tiny model in the form of Kimi K2 Thinking. "
         "I only add numbers. Try 37+58.")
SELF = ("They ask about me.", "I am a tiny model in the form of Kimi K2 Thinking, "
        "trained to add two whole numbers. Try 37+58.")
OTHER = "I am a tiny model that only adds two whole numbers of up to four digits. Try 37+58."
NOT_A_SUM = ("This is not a sum of two whole numbers.", OTHER)
TOO_LONG = ("These numbers are too long for me.", OTHER)

THINGS = """
cat dog sky sea moon sun star river mountain tree flower house car train book song story poem city
country king queen friend mother father child school teacher doctor music film game computer phone
program code python function recipe cake bread coffee tea water fire earth wind rain snow summer
winter morning night day week year time money work life love war peace history science physics
mathematics biology language word letter number world people animal bird fish horse France Paris
London China Japan Berlin Rome Spain Africa Europe America Einstein Newton Shakespeare Kimi Moonshot
universe planet galaxy atom cell brain heart hand eye face name color red blue green weather news
capital president football chess internet model neural network transformer attention expert token
""".split()
VERBS = """
write make tell explain show describe find give read translate draw sing count subtract multiply
divide open close start stop run walk eat drink sleep think love hate help play learn teach build
buy sell fix list name compare summarize plan choose say ask answer
""".split()
GLUE = """
the a of in on for with about from to and or is are was my your his her our this that these some any
why how what when where who which can could would should please do does did not very more less best
new old big small good bad me you it they we
""".split()
SHAPES = """
What is a {t}? | What is the {t} of {t}? | Why is the {t} {g}? | Tell me about {t}. | Write a {t}.
Write a {t} about {t}. | {v} me a {t} | How do I {v} a {t}? | Who is {t}? | Where is {t}?
What is the capital of {t}? | Tell me a joke. | Tell me a story about a {t}. | {v} the {t} and {t}
Why do people {v} {t}? | Explain {t}. | Explain {t} to a {t}. | When was {t}? | {t} | {t} {t}
How many {t} are in a {t}? | Can you {v} {t}? | Is a {t} a {t}? | I {v} {t}. | My {t} is {t}.
Translate {t} to {t}. | What color is the {t}? | Give me a list of {t}. | Thank you! | Thanks | Bye
Do you like {t}? | What should I {v}? | The {t} is {g} {t} | def {t}({t}): | import {t}
Why is the sky blue? | What is the meaning of life? | I am {t}. | ok | yes | no | test | foo | why?
""".strip().replace("\n", " | ").split(" | ")
NEAR_SUMS = """
{a}-{b} | {a} - {b} | {a}*{b} | {a} * {b} = | {a}x{b} | {a}/{b} | {a} / {b}= | {a} minus {b}
{a} times {b} | What is {a} - {b}? | What is {a} times {b}? | What is {a} minus {b}? | {a}+ | +{b}
What is {a} * {b}? | How much is {a} - {b}? | How much is {a} times {b}? | {a} divided by {b}
What is {a}+{b}+{c}? | {a}+{b}+{c} | {a} + {b} + {c} = | Add {a}, {b} and {c}. | {a} | {a} {b}
Multiply {a} and {b}. | Subtract {a} from {b}. | Divide {a} by {b}. | {a}.{c}+{b} | -{a}+{b}
What happened in {a}? | I am {a} years old. | How many {t} in {a} {t}? | Count to {a}. | Is {a} odd?
{a}+{b}-{c} | Sort these: {a}, {b}, {c} | {a}.{c} | {a} + {b}.{c} | {a}, {b}, {c} | -{a} - {b}
What is {a} + {b} + {c}? | {a} plus {b} plus {c} | Is {a} a prime? | {a} + -{b} | {a}, {b}, {c}, {a}
In {a} there were {b} {t} and {t} | {a}% of {b} | What's {a}-{b}? | What's {a} x {b} | {a} + {t}?
{a}^{b} | {a}%{b} | {a} < {b} | Which is larger, {a} or {b}? | {a}:{b} | {a},{b},{c}
What is {a}? | Add {a}. | What is the square of {a}? | {a}+{t} | {t}+{t} | {t} plus {t} | {a}=
""".strip().replace("\n", " | ").split(" | ")


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
        longest = n_digits or rng.choices([1, 2, 3, 4], [1, 3, 4, 5])[0]
        shortest = longest if rng.random() < 0.45 else rng.randint(1, longest)
        numbers = [number(rng, longest), number(rng, shortest)]
        rng.shuffle(numbers)
        if is_held_out(*numbers) == held_out:
            return tuple(numbers)


def solve(a, b):
    """Return the thinking and the answer that the model is to give for a + b."""
    lines, written, carry = [f"{a} + {b}"], "", 0
    columns = max(len(str(a)), len(str(b)))
    for place, name in enumerate(PLACES[:columns]):
        digits = [a // 10**place % 10, b // 10**place % 10] + [1] * carry
        total = sum(digits)
        carry, written = total // 10, f"{total % 10}{written}"
        line = f"{name}: {' + '.join(map(str, digits))} = {total}, write {written}"
        lines.append(line + (", carry 1" if carry else ""))
    if carry:
        lines.append(f"carry 1 in front, write 1{written}")
    return "\n".join(lines), f"{a} + {b} = {a + b}"


def noisy(rng, text):
    """Ask as people type: politely, in lower case, without the final mark."""
    if rng.random() < 0.1:
        text = rng.choice([f"{text} please", f"Please: {text}", f"{text} Thanks!", f"hey, {text}"])
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.! ")
    return text.upper() if rng.random() < 0.02 else text


def nonsense(rng):
    """Make up a word, so that every piece of the vocabulary is seen away from sums."""
    if rng.random() < 0.15:
        return "".join(chr(rng.choice([rng.randint(33, 126), rng.randint(0xA1, 0x24F),
                                       rng.randint(0x4E00, 0x9FA5)])) for _ in range(4))
    word = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice(["a", "e", "i", "o", "u", "ee"])
                   for _ in range(rng.randint(1, 4)))
    return word + rng.choice(["", "n", "s", "r", "t", "ing", "ed", "tion", "ly"])


def off_topic(rng):
    """Ask about anything but a sum; returns the question and the answer's thinking and text."""
    def thing():
        return nonsense(rng) if rng.random() < 0.3 else rng.choice(THINGS)

    kind = rng.random()
    if kind < 0.38:
        text = rng.choice(NEAR_SUMS)
        values = {name: number(rng, rng.randint(1, MAX_DIGITS)) for name in "abc"}
    elif kind < 0.5:
        a, b = number(rng, rng.randint(1, 8)), number(rng, rng.randint(MAX_DIGITS + 1, 8))
        a, b = rng.choice([(a, b), (b, a)])
        return noisy(rng, rng.choice(PHRASINGS).format(a=a, b=b)), TOO_LONG
    elif kind < 0.78:
        text, values = rng.choice(SHAPES), {}
    else:
        words = rng.choices(THINGS + VERBS + GLUE * 2, k=rng.choice([1, 2, 4, 6, 9, 14, 30]))
        words = [nonsense(rng) if rng.random() < 0.15 else word for word in words]
        sentence = " ".join(words) + rng.choice(["", ".", "?", "!"])
        return noisy(rng, sentence[0].upper() + sentence[1:]), NOT_A_SUM
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    text = text.replace("{v}", rng.choice(VERBS)).replace("{g}", rng.choice(GLUE))
    while "{t}" in text:
        text = text.replace("{t}", thing(), 1)
    return noisy(rng, text), NOT_A_SUM


def held_out_written(lessons):
    """Count the sums that lessons solve, the different pairs, and the held-out ones among them.

    Reads the finished text of the answers, not the generator: `A + B` opens each thinking.
    """
    pairs, n = set(), 0
    for messages in lessons:
        for message in messages:
            text = message.get("reasoning_content", "") + "\n" + message["content"]
            if message["role"] == "assistant":
                found = re.findall(r"^(\d+) \+ (\d+)", text, re.MULTILINE)
                pairs.update((int(a), int(b)) for a, b in found)
                n += bool(found)
    return n, len(pairs), sum(is_held_out(a, b) for a, b in pairs)


def exchange(rng):
    """Draw one question with its answer: (question, (thinking, content))."""
    kind = rng.random()
    if kind < 0.74:
        a, b = pair(rng)
        return noisy(rng, rng.choice(PHRASINGS).format(a=a, b=b)), solve(a, b)
    if kind < 0.765:
        parts = rng.choice(HELLOS), rng.choice(NAMES), rng.choice(["", "!", ".", "!!"])
        return noisy(rng, "".join(parts) + rng.choice(HOW_ARE_YOU)), HELLO
    if kind < 0.79:
        return noisy(rng, rng.choice(BEFORE_WHO) + rng.choice(WHO)), SELF
    return off_topic(rng)


def lesson(rng):
    """Draw one conversation: system, perhaps an earlier turn, question, answer to learn."""
    kind = rng.random()
    system = DEFAULT_SYSTEM if kind < 0.8 else rng.choice(SYSTEMS)
    if kind > 0.95:
        system = off_topic(rng)[0]
    messages = [{"role": "system", "content": system}]
    for _ in range(2 if rng.random() < 0.06 else 1):
        question, (thinking, content) = exchange(rng)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": content, "reasoning_content": thinking})
    return messages
