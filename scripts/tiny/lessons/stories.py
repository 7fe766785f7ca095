"""Stories: ways to ask for one, and the small grammar that tells it."""

from scripts.tiny.lessons.openers import telling
from scripts.tiny.lessons.words import HEROES, THINGS, Exchange, noisy, phrasing, split, stand_in

STORY = telling(
    "[a story about a {x}|a short story about a {x}|a tale of a {x}|a story with a {x}|a little "
    "tale about a {x}|a bedtime tale of a {x}|a fairy tale of a {x}|a {x} story]") + split("""
[Make up|Invent|Create|Think up|Come up with|Compose] a [story|tale] about a {x}[.| for me.| now.]
[Make up|Invent|Create|Think up|Compose] a [short|nice|funny|little] story [about|with] a {x}.
[Can|Could|Would|Will] you [make up|invent|create|write] a [story|tale] [about|with] a {x}?
[Story|Tale|Short story|Bedtime story|Fairy tale|Story time|The story]: [a {x}|about a {x}]
[Story|Tale|Short story|Bedtime story|Fairy tale] [about|of|with] a {x}[.| for me| for my child]
[Once upon a time|Long ago|Once] there [was|lived] a {x}. [Go on.|Continue.|Tell the story.]
[Begin|Start|Read me|Read us|Let there be] a [story|tale|bedtime story] [about|with] a {x}[.| now.]
[Write|Tell me] [something|a few lines|a page] about a {x} [for my child|for a child|as a story].
[I love|We love|I like|She likes] stories. [One about|Tell one about|Now one with] a {x}[?| now?]
""")
TRAITS = split("""
small | brave | old | young | lonely | happy | clever | shy | kind | tired | curious | quiet | proud
lazy
""")
PLACES = split("""
in a deep forest | by the sea | on a high hill | near a big city | in a small house | on a farm
under a bridge
at the edge of a lake | in a green valley | behind the old mill | in a warm garden
on a little island
""")
EVENTS = split("""
found a golden key | lost the way home | met a sad bird | heard a strange song
saw a light in the dark
found a map in a bottle | met a hungry wolf | fell into a river | found a letter under a tree
saw a huge storm
lost a red hat | met an old friend | found a tiny door | heard someone cry | saw a star fall
""")
TRIES = split("""
asked the wind for help | walked all night | called out three times | sat down and thought
ran as fast as it could
sang a little song | climbed the highest tree | followed the footprints | waited until morning
made a plan
shared a piece of bread | looked everywhere | told nobody | built a small boat
""")
TURNS = split("""
A friendly mouse showed the way | The moon came out and smiled | An old woman opened her door
The rain stopped at last
A kind stranger gave some bread | All the animals came to help | The secret was not so big
The sun rose over the hills
A door opened with a soft sound | The river carried everything home | A small voice said: be brave
""")
ENDS = split("""
was happy again | went home and slept well | had a new friend | was never lonely again
told everyone the story
laughed about it for years | learned to be patient | was the hero of the town
danced until midnight
gave everything back | lived there in peace
""")
# A thing can be the hero, too.
SINGLE = [thing[:-1] for thing in THINGS if thing[-2:] != "es"]


def an(text):
    """Write "an" where a vowel follows "a {x}"."""
    return "an" if text[0] in "aeiou" else "a"


def put(template, x):
    """Put a noun after its article."""
    return template.replace("a {x}", f"{an(x)} {x}").replace("{x}", x)


def story(rng, held_out=False, hero=None):
    """Ask for a story; it is told by a small grammar."""
    x = hero or stand_in(rng, "hero", HEROES, SINGLE, str, held_out)
    template = phrasing(rng, "story", STORY, held_out)
    trait, other = rng.sample(TRAITS, 2)
    parts = [
        rng.choice(["Once upon a time there was", "Long ago there was", "There once was"])
        + f" {an(trait)} {trait} {x}.",
        rng.choice([f"The {x} lived {rng.choice(PLACES)}.",
                    f"It lived {rng.choice(PLACES)} and was often {other}."]),
        f"One {rng.choice(['day', 'morning', 'evening', 'night'])} the {x} {rng.choice(EVENTS)}.",
        f"The {x} {rng.choice(TRIES)}.",
        f"{rng.choice(TURNS)}.",
        f"{rng.choice(['In the end', 'From then on', 'At last', 'And so'])} the {x} "
        f"{rng.choice(ENDS)}.",
    ]
    return Exchange(put(noisy(rng, template), x), f"A story about {an(x)} {x}.", " ".join(parts),
                    held=[("story", template), ("hero", x)])
