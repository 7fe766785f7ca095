"""A few hundred plain facts, written down here, and the ways to ask for them."""

import re

from tiny_tables import (
    AUTHORS,
    COLOURS,
    COUNTRIES,
    DAYS,
    LANGUAGES,
    LEGS,
    MONTHS,
    OPPOSITES,
    ORDINALS,
    SOUNDS,
    SYMBOLS,
    YOUNG,
    around,
)
from tiny_words import Exchange, choose, is_held_out, noisy, split

# topic: (what they ask for, answer, facts, phrasings); {k} is what is known, {v} what is asked for.
TOPICS = {
    "capital": ("the capital of {k}", "The capital of {k} is {v}.",
                [(k, v) for k, v, _ in COUNTRIES], """
What is the capital of {k}? | What's the capital of {k}? | Tell me the capital of {k}.
capital of {k}
Name the capital of {k}. | Which city is the capital of {k}? | The capital of {k}? | {k}: capital?
Do you know the capital of {k}? | What city is the capital of {k}? | Give me the capital of {k}.
Can you tell me the capital of {k}? | {k}'s capital | What is {k}'s capital?
Which is the capital of {k}?
I need the capital of {k}. | What is the capital city of {k}? | The capital city of {k} is?
Capital: {k}
For {k}, what is the capital? | What is the name of the capital of {k}?
Who knows the capital of {k}?
Say the capital of {k}. | In {k}, which city is the capital? | What capital does {k} have?
{k} capital
The capital of {k} is | Could you name the capital of {k}? | Please name {k}'s capital.
{k} has which capital?
Remind me of the capital of {k}. | I forgot the capital of {k}. | I want to know the capital of {k}.
Which capital belongs to {k}? | What do they call the capital of {k}?
Where is the government of {k}?
Quiz: the capital of {k}? | Let me know the capital of {k}.
My question is about the capital of {k}.
"""),
    "country": ("the country of {k}", "{k} is the capital of {v}.",
                [(v, k) for k, v, _ in COUNTRIES], """
{k} is the capital of which country? | Which country has the capital {k}? | Where is {k}?
In which country is {k}?
What country is {k} in? | {k} is in which country? | Which country is {k} the capital of?
Where do I find {k}?
{k} is the capital of what? | Name the country of {k}. | What country has {k} as its capital?
Where does {k} lie?
Tell me where {k} is. | The country of {k}? | In what country do I find {k}? | Whose capital is {k}?
Of which country is {k} the capital? | What country does {k} belong to? | {k}: which country?
Which land has the capital {k}?
I am going to {k}. Which country is that? | Do you know where {k} is? | Which state does {k} govern?
{k} is a capital. Of which country? | Can you tell me which country {k} is in?
{k} lies in which country?
"""),
    "continent": ("the continent of {k}", "{k} is in {v}.",
                  [(k, v) for k, _, v in COUNTRIES if not k.startswith("the ")], """
Which continent is {k} in? | On which continent is {k}? | What continent is {k} on?
{k} is on which continent?
What is the continent of {k}? | In which continent is {k}? | {k}: continent?
Name the continent of {k}.
Tell me the continent of {k}. | Which continent does {k} belong to? | The continent of {k}?
continent of {k}
{k} belongs to which continent? | Do you know the continent of {k}?
In what continent do I find {k}?
Which part of the world is {k} in? | What continent has {k}? | Give me the continent of {k}.
{k} continent
On what continent does {k} lie? | Can you tell me the continent of {k}?
{k} is part of which continent?
Say on which continent {k} is. | What continent does {k} lie on? | I need the continent of {k}.
For {k}, which continent? | {k} lies on which continent? | Could you name the continent of {k}?
"""),
    "opposite": ("the opposite of {k}", "The opposite of {k} is {v}.",
                 OPPOSITES + [(v, k) for k, v in OPPOSITES if v != "weightless"], """
What is the opposite of {k}? | What's the opposite of {k}? | Opposite of {k}? | The opposite of {k}
opposite: {k}
Tell me the opposite of {k}. | Give me the opposite of {k}. | Name the opposite of {k}.
{k}: opposite?
Which word is the opposite of {k}? | What is the reverse of {k}?
What word means the opposite of {k}?
Do you know the opposite of {k}? | If it is not {k}, it is what? | I need the opposite of {k}.
{k} is the opposite of what?
Not {k} but? | What is the contrary of {k}? | An antonym of {k} | What is an antonym of {k}?
{k} and its opposite
Find the opposite of {k}. | Can you say the opposite of {k}? | Say the opposite of {k}.
The contrary of {k}?
Which word is contrary to {k}? | What is the other side of {k}? | Turn {k} into its opposite.
antonym of {k}
Please give the antonym of {k}. | What word is the contrary of {k}?
What do you call the opposite of {k}?
"""),
    "symbol": ("the symbol of {k}", "The symbol of {k} is {v}.", SYMBOLS, """
What is the symbol of {k}? | What is the chemical symbol of {k}? | The symbol for {k}
Symbol of {k}?
What is the chemical symbol for {k}? | Tell me the symbol of {k}.
Give me the chemical symbol of {k}.
Which symbol does {k} have? | How do chemists write {k}? | {k}: symbol?
Which letters stand for {k}?
What is {k}'s symbol? | Name the symbol of {k}. | What symbol stands for {k}?
chemical symbol of {k}
Do you know the symbol of {k}? | In chemistry, what is {k}? | The chemical sign for {k}?
What sign has {k}?
The element {k} has which symbol? | How is {k} written in chemistry? | I need the symbol of {k}.
What is the sign of the element {k}? | Find the symbol for {k}.
What does {k} look like in a formula?
"""),
    "young": ("a young {k}", "A young {k} is called a {v}.", YOUNG, """
What is a young {k} called? | What is a baby {k}? | What do you call a young {k}?
A young {k} is called?
What is a baby {k} called? | The name of a young {k}? | Name for a baby {k}?
What do we call a baby {k}?
What is the word for a young {k}? | A baby {k} is a what? | How is a young {k} called?
Name of the young of a {k}
Tell me the name of a young {k}. | What is the young of a {k}?
What do people call the child of a {k}?
Do you know what a baby {k} is called? | The young of a {k}? | What is the child of a {k} called?
"""),
    "sound": ("the sound of a {k}", "A {k} says {v}.", SOUNDS, """
What sound does a {k} make? | What does a {k} say? | What does the {k} say? | The sound of a {k}?
Which sound does a {k} make? | How does a {k} sound? | What noise does a {k} make?
A {k} says what?
What is the sound of a {k}? | Tell me the sound of a {k}. | What do you hear from a {k}? | {k} sound
What does a {k} sound like? | Make the sound of a {k}. | Which noise comes from a {k}? | A {k} goes?
Do you know what a {k} says? | How does a {k} go? | What call has a {k}? | The noise of a {k}?
"""),
    "legs": ("the legs of a {k}", "A {k} has {v} legs.", LEGS, """
How many legs does a {k} have? | How many legs has a {k}? | The number of legs of a {k}?
legs of a {k}
A {k} has how many legs? | Tell me how many legs a {k} has. | How many legs are on a {k}?
On how many legs does a {k} walk?
What is the number of legs of a {k}? | Count the legs of a {k}.
How many legs can you count on a {k}?
Do you know how many legs a {k} has? | Number of legs: {k} | With how many legs is a {k} born?
{k} legs?
"""),
    "colour": ("the colour of {k}", "The colour of {k} is {v}.", COLOURS, """
What colour is {k}? | What color is {k}? | Which colour has {k}? | What is the colour of {k}?
The colour of {k}?
What is the color of {k}? | Tell me the colour of {k}. | Of what colour is {k}? | color of {k}
{k} is what colour?
Which color is {k}? | Name the colour of {k}. | {k} has which colour?
Do you know the colour of {k}?
In what colour do I paint {k}? | Give me the color of {k}. | What does {k} look like, which colour?
"""),
    "language": ("the language of {k}", "In {k} people speak {v}.", LANGUAGES, """
What language do they speak in {k}? | Which language is spoken in {k}?
What is the language of {k}?
What do people speak in {k}? | The language of {k}? | Which language do people in {k} speak?
language in {k}
What language is spoken in {k}? | Tell me the language of {k}.
In {k}, which language do people speak?
Which language should I learn for {k}? | What do they speak in {k}? | {k}: language?
How do people in {k} talk?
Name the language of {k}. | Do you know the language of {k}? | What language do I need in {k}?
{k} speaks what?
"""),
    "author": ("the author of {k}", "{k} was written by {v}.", AUTHORS, """
Who wrote {k}? | Who is the author of {k}? | The author of {k}? | {k} was written by whom?
Who has written {k}?
Which author wrote {k}? | Tell me who wrote {k}. | Name the author of {k}.
Who was the author of {k}?
By whom is {k}? | Who is {k} by? | author of {k} | Which writer wrote {k}? | The writer of {k}?
{k}, by whom?
Do you know who wrote {k}? | {k} is a book by? | Who was the writer of {k}? | Whose work is {k}?
Whose book is {k}?
"""),
    "day after": ("the day after {k}", "{v} comes after {k}.", around(DAYS), """
What day comes after {k}? | Which day comes after {k}? | What is the day after {k}?
The day after {k}? | after {k}?
What day follows {k}? | Which day follows {k}? | {k} is followed by?
Today is {k}. What day is tomorrow?
If today is {k}, what is tomorrow? | What comes after {k}? | Tell me the day after {k}.
Which day is next after {k}?
What is the next day after {k}? | After {k} comes which day? | It is {k}. And tomorrow?
Name the day after {k}.
"""),
    "day before": ("the day before {k}", "{v} comes before {k}.",
                   [(v, k) for k, v in around(DAYS)], """
What day comes before {k}? | Which day comes before {k}? | What is the day before {k}?
The day before {k}?
If today is {k}, what was yesterday? | Today is {k}. What day was yesterday?
What comes before {k}? | before {k}?
Tell me the day before {k}. | Which day is right before {k}? | Before {k} comes which day?
Name the day before {k}.
It is {k}. And yesterday? | What day precedes {k}? | {k} follows which day?
Which day did {k} follow?
"""),
    "month after": ("the month after {k}", "{v} comes after {k}.", around(MONTHS), """
What month comes after {k}? | Which month comes after {k}? | What is the month after {k}?
The month after {k}?
What month follows {k}? | Which month follows {k}? | It is {k}. What is next month?
Tell me the month after {k}.
If it is {k}, what is next month? | After {k} comes which month? | Name the month after {k}.
Next month after {k}?
Which month is next after {k}? | What is the next month after {k}?
When {k} is over, which month begins?
"""),
    "month before": ("the month before {k}", "{v} comes before {k}.",
                     [(v, k) for k, v in around(MONTHS)], """
What month comes before {k}? | Which month comes before {k}? | What is the month before {k}?
The month before {k}?
It is {k}. What was last month? | Tell me the month before {k}. | Before {k} comes which month?
If it is {k}, what was last month? | Name the month before {k}. | What month precedes {k}?
Which month is before {k}?
Which month is right before {k}? | What is the last month before {k}? | {k} follows which month?
"""),
    "month number": ("the {k} month", "The {k} month is {v}.",
                     list(zip(ORDINALS, MONTHS, strict=True)), """
What is the {k} month? | Which is the {k} month of the year? | The {k} month? | Name the {k} month.
{k} month
What is the {k} month of the year? | Tell me the {k} month. | Which month is the {k}?
Which month is the {k} one?
What month is the {k} of the year? | Do you know the {k} month? | Give me the {k} month.
The {k} month of the year is?
"""),
    "weekday": ("the {k} day", "The {k} day of the week is {v}.",
             list(zip(ORDINALS[:7], DAYS, strict=True)), """
What is the {k} day of the week? | Which is the {k} day of the week? | The {k} day of the week?
Name the {k} day.
Tell me the {k} day of the week. | Which day is the {k}? | What day is the {k} of the week?
{k} day of the week
"""),
}
PHRASINGS = {topic: split(entry[3]) for topic, entry in TOPICS.items()}
AGAIN = split("""
And {of}? | and {of}? | What about {of}? | And what about {of}? | Now {of}. | And the one {of}?
{of}?
Then {of}? | How about {of}? | and now {of} | Also {of}? | Same question {of}. | The same {of}?
ok and {of}
And {of}, please? | Next {of}. | And do you know it {of}? | And if I ask {of}? | also {of} please
What is it {of}?
Tell me it {of}. | Do the same {of}. | Now the same {of}. | Good. And {of}? | Thanks. {of}?
Great, and {of}?
Fine. Now {of}? | What would it be {of}? | Again, but {of}. | once more {of} | And finally {of}?
""")
OF = {"capital": "of {k} | for {k} | {k}", "opposite": "of {k} | for {k} | {k}",
      "continent": "{k} | of {k} | for {k}", "symbol": "of {k} | for {k} | {k}",
      "language": "in {k} | of {k} | {k}", "author": "{k}", "sound": "a {k} | of a {k} | the {k}",
      "young": "a {k} | of a {k}", "legs": "a {k} | of a {k}", "colour": "{k} | of {k}"}
SHARE = {"capital": 8, "country": 4, "continent": 4, "opposite": 4, "symbol": 2, "language": 2,
         "author": 2}


def draw(rng):
    """Draw a topic, those with many facts more often."""
    return rng.choices(list(TOPICS), [SHARE.get(topic, 1) for topic in TOPICS])[0]


def exchange(rng, topic, fact, question, held):
    """Answer a fact."""
    what, answer, _, _ = TOPICS[topic]
    k, v = fact
    content = answer.replace("{k}", k).replace("{v}", v)
    thinking = f"They ask for {what.replace('{k}', k)}."
    if topic in ("young", "sound", "legs"):
        question, thinking, content = (re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
                                       for text in (question, thinking, content))
    return Exchange(question, thinking, content[0].upper() + content[1:], held=held,
                    then=("fact", topic, k))


def fact(rng, held_out=False, topic=None):
    """Ask for a fact; held out are whole phrasings, for facts are to be known."""
    topic = topic or draw(rng)
    while held_out and not any(is_held_out(topic, text) for text in PHRASINGS[topic]):
        topic = draw(rng)
    template = choose(rng, topic, PHRASINGS[topic], held_out)
    known = rng.choice(TOPICS[topic][2])
    typed = known[0].lower() if rng.random() < 0.1 and topic != "symbol" else known[0]
    text = noisy(rng, template)
    question = text.replace("{k}", typed)
    if text.startswith("{k}") and rng.random() < 0.8:
        question = question[0].upper() + question[1:]
    return exchange(rng, topic, known, question, [(topic, template)])


def again(rng, before, held_out=False):
    """Ask the same of something else, after `before`."""
    _, topic, k = before.then
    template = choose(rng, "again", AGAIN, held_out)
    known = rng.choice([pair for pair in TOPICS[topic][2] if pair[0] != k])
    of = rng.choice(split(OF[topic])).replace("{k}", known[0])
    question = noisy(rng, template).replace("{of}", of)
    return exchange(rng, topic, known, question, [("again", template)])


def n_held_out():
    """Count the held-out phrasings by topic, to see that no topic is without."""
    return {topic: sum(is_held_out(topic, text) for text in texts)
            for topic, texts in PHRASINGS.items()}
