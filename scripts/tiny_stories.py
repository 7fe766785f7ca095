"""Stories: ways to ask for one, and the small grammar that tells it."""

from tiny_words import HEROES, Exchange, choose, noisy, split

STORY = split("""
Tell me a story about a {x}. | Write a story about a {x}. | Can you tell a story about a {x}?
A story about a {x}
Tell a short story about a {x}. | Write a short story about a {x}. | I want a story about a {x}.
a {x} story
Story about a {x}, please. | Make up a story about a {x}. | Please write a tale about a {x}.
Tell me about a {x} in a story.
Give me a story with a {x}. | Invent a story about a {x}.
I would like to hear a story about a {x}. | A tale of a {x}
Tell us a story of a {x}. | Could you write a story about a {x}?
Once upon a time there was a {x}. Go on.
Tell a bedtime story about a {x}. | Write something about a {x} for my child.
Create a little story about a {x}.
A bedtime story with a {x}, please. | Do you have a story about a {x}?
Let me hear a tale about a {x}.
Write a fairy tale about a {x}. | Story: a {x} | Begin a story about a {x}.
My son wants a story about a {x}.
Tell me a nice story about a {x}. | Please tell a tale of a {x}. | I need a story about a {x}.
A funny story about a {x}?
What about a story with a {x}? | Please invent a tale with a {x} in it.
I love stories. One about a {x}? | Story time: a {x}
Say a story about a {x}. | Come up with a story about a {x}. | How about a story about a {x}?
Let there be a story about a {x}.
Write a few lines about a {x}. | Do tell a story about a {x}. | Read me a story about a {x}.
Think up a story about a {x}.
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


def an(text):
    """Write "an" where a vowel follows "a {x}"."""
    return "an" if text[0] in "aeiou" else "a"


def put(template, x):
    """Put a noun after its article."""
    return template.replace("a {x}", f"{an(x)} {x}").replace("{x}", x)


def story(rng, held_out=False, hero=None):
    """Ask for a story; it is told by a small grammar."""
    x = hero or choose(rng, "hero", HEROES, held_out)
    template = choose(rng, "story", STORY, held_out)
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
    if rng.random() < 0.3:
        del parts[3]
    return Exchange(put(noisy(rng, template), x), f"A story about {an(x)} {x}.", " ".join(parts),
                    held=[("story", template), ("hero", x)])
