"""Words, the split between training and evaluation, and noise: what all lessons share.

The split is by hash: a phrasing, name, made-up word or pair of numbers is held out or it is not,
wherever it would occur. A generator is told which side it draws from; `held_out=True` draws from
the held-out side only, so that nothing an evaluation asks occurs in a lesson.
"""

import functools
import hashlib
import itertools
import re
from dataclasses import dataclass, field


def split(text):
    """Split a table written as `one | two` over several lines."""
    return [part.strip() for line in text.strip().splitlines() for part in line.split(" | ")
            if part.strip()]


def is_held_out(kind, text):
    """Say whether this phrasing, name or word belongs to the eighth that no lesson may hold.

    Capitals and the last mark count for nothing, for the noise changes them.
    """
    text = text.lower().rstrip("?.! ")
    return hashlib.sha256(f"{kind}: {text}".encode()).digest()[0] < 32


def variants(pattern):
    """Write out a pattern: `[What is|What's] {x}[ now|]?` stands for four templates."""
    parts = re.split(r"\[([^\[\]]*)\]", pattern)  # text, choices, text, choices ... text
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return list(dict.fromkeys(map("".join, itertools.product(*choices))))


@functools.cache
def sides(kind, patterns):
    """Split the variants of each pattern: {held out: one list for each pattern that has any}."""
    return {held: [side for side in (
        [text for text in variants(pattern) if is_held_out(kind, text) == held]
        for pattern in patterns) if side] for held in (False, True)}


def choose(rng, kind, options, held_out=False):
    """Draw a pattern, then one of its variants on the wanted side of the split."""
    return rng.choice(rng.choice(sides(kind, tuple(options))[held_out]))


# Small words that a question can do without, and some that may stand anywhere in it.
SMALL = set(split("""
the | a | an | is | of | me | us | you | do | does | can | could | would | will | please | now
then | again | so | what | which | what's | i | we | my | just | tell | give | exactly | really
actually | today | know | to | for | it | that | have | has | quickly | say | want | need | are | be
"""))
FILLERS = split("""
just | then | actually | please | really | maybe | well | um | also | once more | quickly | again
""")


def phrasing(rng, kind, options, held_out=False):
    """Draw a phrasing; two in five of a lesson's have small words more or fewer, as people do."""
    template = choose(rng, kind, options, held_out)
    return template if held_out or rng.random() < 0.6 else loosely(rng, kind, template)


def loosely(rng, kind, template):
    """Leave out small words of a phrasing or put some in; never into a held-out one.

    Where a name goes nothing is put beside it, so that it can be told where the name ends.
    """
    words = template.split(" ")
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.7:
            at = [i for i, word in enumerate(words) if word.lower() in SMALL]
            if at and len(words) > 2:
                del words[rng.choice(at)]
        else:
            at = rng.randrange(len(words))
            if at and not any("{" in word for word in words[at - 1:at + 1]):
                words.insert(at, rng.choice(FILLERS))
    text = " ".join(words)
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    return template if is_held_out(kind, text) else text


def fill(template, **values):
    """Put values into a template by plain replacement, since the text may hold braces."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


@dataclass
class Exchange:
    """Hold one question, the calls it takes, each (thinking, name, arguments, result), the answer.

    `held` lists everything that the split speaks of, as (kind, text).
    """

    question: str
    thinking: str
    content: str
    calls: list = field(default_factory=list)
    tools: list = field(default_factory=list)
    held: list = field(default_factory=list)
    then: tuple = ()  # what a follow-up may refer to: (what, value, ...)


PEOPLE = split("""
Tom | Anna | Ben | Lucy | Max | Emma | Paul | Mary | Sam | Lena | Jack | Nina | Leo | Sara | Tim
Julia | Peter | Maria | Oscar | Rosa | David | Clara | Adam | Eva | Hugo | Ida | Carl | Mia | Noah
Alice | Bob | Carol | Dan | Frank | Grace | Henry | Kate | Mark | Nora | Olga | Rick | Sofia | Tina
Victor | Wendy | Ali | Yuki | Ravi | Chen | Fatima | Omar | Amir | Lin | Kofi | Zoe | Ivan | Erik
""")
THINGS = split("""
apples | books | coins | pens | cards | stones | eggs | balls | stamps | shells | cookies | flowers
pears | plums | nuts | keys | cups | hats | socks | shoes | toys | dolls | cars | bikes | boxes
bottles | candles | buttons | marbles | stickers | pencils | tickets | letters | photos | maps
oranges | lemons | bananas | grapes | carrots | potatoes | onions | cakes | sweets | cherries
chairs | tables | lamps | plates | spoons | forks | bags | ropes | nails | bricks | leaves | seeds
""")
ANIMALS = split("""
cat | dog | fox | cow | horse | pig | hen | duck | goose | sheep | goat | lion | tiger | bear | wolf
rabbit | mouse | rat | frog | snake | turtle | fish | whale | shark | eagle | owl | crow | parrot
penguin | bee | ant | spider | butterfly | snail | monkey | elephant | giraffe | zebra | camel
deer
kangaroo | panda | koala | crocodile | lizard | dolphin | seal | otter | hedgehog | squirrel | swan
""")
HEROES = ANIMALS + split("""
king | queen | prince | princess | knight | wizard | witch | dragon | giant | robot | pirate
sailor
farmer | baker | doctor | teacher | painter | singer | girl | boy | ghost | cloud | star | tree
river
boat | train | car | moon | stone | flower | snowman | kite | clock | teapot | lamp | mountain
baby
cook | miner | fisherman | tailor | shepherd | hunter | gardener | dancer | clown | monster | fairy
""")
# Each is one token, and a token that no lesson holds cannot be copied. So lookups, trails and
# repetitions name them all; held out are people, things and heroes where a task is about them.
NOUNS = [*THINGS, *HEROES, *PEOPLE]
SYSTEMS = split("""
You are a helpful assistant. | Be brief. | You are Kimi. | Answer in English. | Be kind.
You are a patient teacher. | Think step by step. | You are a friendly helper. | Use the tools.
You are a careful assistant. Use tools when they help. | Keep it short. | You help with everything.
""")


def noisy(rng, template):
    """Ask as people type: politely, in lower case, without the final mark; before names go in."""
    if rng.random() < 0.25:
        template = rng.choice(["Please ", "Hi, ", "Hello! ", "Hey, ", "Kimi, ", "Ok, ", "So, ",
                               "Quick question: ", "One more: ", "Please: ", "Now: ", "Well, "]
                              ) + (template if template[0] == "{" or rng.random() < 0.5
                                   else template[0].lower() + template[1:])
    if rng.random() < 0.15:
        template += rng.choice([" please", " Thanks!", " Thank you.", " pls", " thx", ", please?",
                                " It is for school.", " I need it now."])
    if rng.random() < 0.2:
        template = template.lower()
    if rng.random() < 0.15:
        template = template.rstrip("?.! ")
    elif rng.random() < 0.05:
        template = template.rstrip("?.! ") + rng.choice(["?", "??", "!", " ?", "."])
    return template


def word(rng, held_out=False):
    """Make up a word of one to four syllables."""
    while True:
        n = rng.choices([1, 2, 3, 4], [1, 5, 4, 1])[0]
        text = "".join(
            rng.choice(ONSETS) + rng.choice(["a", "e", "i", "o", "u", "a", "o", "ee", "ai", "y"])
            for _ in range(n)) + rng.choice(["", "", "n", "s", "r", "t", "l", "m", "x", "k", "nd"])
        if len(text) > 3 and is_held_out("word", text) == held_out:
            return text


ONSETS = "b c d f g h j k l m n p q r s t v w x z br cr dr fl gr kl pl sk st tr th sh ch".split()


def name(rng, held_out=False):
    """Make up a name as it is written: a word, two words, mixed case, or a code."""
    kind = rng.random()
    if kind < 0.5:
        return word(rng, held_out).capitalize()
    if kind < 0.62:
        return f"{word(rng, held_out).capitalize()} {word(rng, held_out).capitalize()}"
    if kind < 0.7:
        return word(rng, held_out)
    if kind < 0.78:
        text = word(rng, held_out)
        return "".join(c.upper() if rng.random() < 0.4 else c for c in text)
    if kind < 0.82:
        return word(rng, held_out).upper()
    return code(rng, held_out)


def code(rng, held_out=False):
    """Make up a code: letters, digits, perhaps a dash."""
    while True:
        letters = "abcdefghijklmnopqrstuvwxyz"
        letters = letters.upper() if rng.random() < 0.6 else letters
        head = "".join(rng.choices(letters, k=rng.randint(1, 3)))
        tail = "".join(rng.choices("0123456789", k=rng.randint(1, 4)))
        text = head + rng.choice(["", "-", "-", "_", "."]) + tail
        text += rng.choice(["", "", "", rng.choice(letters)])
        if is_held_out("word", text.lower()) == held_out:
            return text


def made_up(text):
    """List what the split speaks of in a name or in several: made-up words, in lower case."""
    return [("word", part.lower()) for part in text.split() if part not in NOUNS]


def whole(rng, n_digits):
    """Draw a whole number of so many digits."""
    return rng.randrange(10 ** (n_digits - 1) if n_digits > 1 else 0, 10**n_digits)


def stand_in(rng, kind, options, others, made_up, held_out=False):
    """Draw a noun of a kind: of its own list, another word, or a made-up one.

    Held out is only what the list has. A lesson takes any word, so that what is learned is to copy
    the noun and not to choose it from a list.
    """
    while True:
        chance = 0.0 if held_out else rng.random()
        text = (choose(rng, kind, options, held_out) if chance < 0.4
                else rng.choice(others) if chance < 0.7 else made_up(word(rng)))
        if is_held_out(kind, text) == held_out:
            return text


def numbers(rng, held_out=False, most=6):
    """Draw a pair of numbers from the wanted side of the split."""
    while True:
        a, b = (whole(rng, rng.choices(range(1, most + 1), [2, 5, 4, 3, 1, 1][:most])[0])
                for _ in "ab")
        if is_held_out("pair", f"{min(a, b)} {max(a, b)}") == held_out:
            return a, b
