"""A few hundred plain facts, written down here, and the ways to ask for them."""

import re

from scripts.tiny.lessons.openers import asking
from scripts.tiny.lessons.tables import (
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
from scripts.tiny.lessons.words import Exchange, noisy, phrasing, split

# topic: (what they ask for, answer, facts, what to ask for, own ways to ask); {k} is what is
# known, {v} what is asked for.
TOPICS = {
    "capital": ("the capital of {k}", "The capital of {k} is {v}.",
                [(k, v) for k, v, _ in COUNTRIES],
                "[the capital of {k}|the capital city of {k}|{k}'s capital]", """
[Which|What] [city|town] is the [capital|capital city] of {k}[?| now?| today?]
[Which|What] [capital|capital city] [does {k} have|has {k}|belongs to {k}|goes with {k}]?
{k}[:||,| -|: the|, the|: name the|: its] [capital|capital city][?|]
[Capital|The capital|Capital city|Capital of|Quiz, capital|Wanted, capital|The capital of]: {k}[?|]
[For|In|As for|About] {k}[,|:] [what|which city|which] is the [capital|capital city]?
{k} has [which|what] [capital|capital city|city as its capital|city as capital|main city]?
[Do you know|Tell me|Can you say|I want to know] which city is the capital of {k}[.| now.]
[Where is|In which city is|What city has|Which city has] the government of {k}[?| now?| today?]
[What|Which] is the [name|city|name of the city] [that is|which is] the capital of {k}?
[What|How] do [you|they|people|we] call the [capital|capital city] of {k}?
"""),
    "country": ("the country of {k}", "{k} is the capital of {v}.",
                [(v, k) for k, v, _ in COUNTRIES],
                "[the country of {k}|the country with the capital {k}|the country whose capital is "
                "{k}]", """
[Which|What] [country|land|state] is {k} [in|the capital of|the capital city of|part of]?
{k} [is|lies|is found|stands] in [which|what] [country|land|state]?
{k} is the [capital|capital city] of [which|what] [country|land|state]?
[In|Of] [which|what] [country|land|state] is {k}[ the capital|]?
In [which|what] [country|land|state] [lies|do I find|can I find|do we find] {k}?
[Which|What] [country|land|state] has [the capital {k}|{k} as its capital|{k} for a capital]?
[Where is|Where's|Where do I find|Where can I find|So where is|And where is] {k}[?| exactly?| then?]
[Tell me|Do you know|Can you say|I want to know|Can you tell me|I wonder] where {k} [is|lies].
[Tell me|Do you know|Can you say|I want to know|I wonder] which country {k} is [in|the capital of].
[Country|Which country|What country|The country|Capital of which country|Where]: {k}[?|]
{k}[:| -|,] [country|which country|what country|where|in which country|the capital of what]?
[Whose capital|Whose capital city|The capital of which country|The capital of what] is {k}[?| now?]
[I am going to|I will visit|We fly to|I live in] {k}. [Which|What] country is [that|it in|this]?
"""),
    "continent": ("the continent of {k}", "{k} is in {v}.",
                  [(k, v) for k, _, v in COUNTRIES if not k.startswith("the ")],
                  "[the continent of {k}|{k}'s continent|the continent that {k} is in]", """
[Which|What] continent [is {k} in|is {k} on|does {k} belong to|is {k} part of|has {k}]?
[In|On] [which|what] continent [is|lies|do I find|can I find|do we find] {k}?
{k} [is|lies] [in|on] [which|what] continent?
{k} [belongs to|is part of|is found on] [which|what] continent[?| again?]
{k}[:||,| -|: which|: what|: the] continent[?|]
[Continent|The continent|Which continent|What continent|Continent of|Quiz, continent]: {k}[?|]
[Tell me|Do you know|Can you say|I want to know|I wonder] [which|what] continent {k} is [in|on].
In [which|what] part of the world [is|lies|do I find|can I find] {k}[?| then?]
[Which|What] part of the world [is {k} in|has {k}|does {k} belong to][?| again?]
[For|As for|About] {k}[,|:] [which|what|what is the] continent?
"""),
    "opposite": ("the opposite of {k}", "The opposite of {k} is {v}.",
                 OPPOSITES + [(v, k) for k, v in OPPOSITES if v != "weightless"],
                 "[the opposite of {k}|the contrary of {k}|the antonym of {k}]", """
[Which|What] word is [the opposite of|the contrary of|contrary to|an antonym of] {k}?
[Which|What] word means the [opposite|contrary|reverse] of {k}[?| again?]
{k}[:| -|: the|, and its|: its| and its] [opposite|antonym|contrary][?|]
[Opposite|The opposite|Opposite of|Antonym|Antonym of|Contrary of|Quiz, opposite]: {k}[?|]
What do [you|we|they|people] call the [opposite|contrary|reverse] of {k}?
{k} is the [opposite|contrary|reverse|antonym] of [what|which word]?
[If it is not|If something is not|When it is not] {k}, [it is what|what is it|then what is it]?
[Turn|Change|Make] {k} into its [opposite|contrary|antonym|reverse].
[What is|What's|Name|Find|Give me] [an antonym of|an antonym for|a word opposite to] {k}[.| now.]
[Not {k}|It is not {k}|Not {k} at all], but [what|the opposite|rather what]?
"""),
    "symbol": ("the symbol of {k}", "The symbol of {k} is {v}.", SYMBOLS,
               "[the symbol of {k}|the symbol for {k}|the chemical symbol of {k}|the chemical "
               "sign for {k}|{k}'s symbol]", """
[Which|What] [symbol|chemical symbol|sign|chemical sign] does {k} have[?| again?]
[Which|What] [symbol|sign|chemical symbol|abbreviation] [stands for|means|is used for] {k}?
How [do chemists|do they|do people|do you|do we] write {k}[ in chemistry| in a formula| in short]?
How is {k} [written|shown|named] in [chemistry|a formula|the periodic table|formulas]?
{k}[:| -|,|: the|: its|: chemical] [symbol|sign][?|]
[Symbol|The symbol|Chemical symbol|Symbol of|Symbol for|Element|Quiz, symbol]: {k}[?|]
[The element|The chemical element|The substance] {k} has [which|what] [symbol|sign|letters]?
[In chemistry|In a formula|In the periodic table|As a symbol], [what|how] is {k}[ written|]?
[Tell me|Do you know|I want to know|Can you say] [how to write|the letters for] {k} in chemistry.
"""),
    "young": ("a young {k}", "A young {k} is called a {v}.", YOUNG,
              "[the name of a young {k}|the name of a baby {k}|the name for a young {k}|the word "
              "for a baby {k}|the word for a young {k}|the young of a {k}]", """
What [is|do you call|do we call|do people call|do they call] a [young|baby|little] {k}[?| then?]
What is [a young|a baby|the young of a|the child of a|the baby of a] {k} called[?| again?]
[What|How] is [the young|the child|the baby|the little one] of a {k} [called|named]?
A [young|baby|little] {k} is [called|a|named] [what|how]?
[Young|Baby|Young of a|Baby of a|A young|A baby] {k}[?|: name?|: what is it called?| is a]
[Tell me|Do you know|I want to know|Can you say|I wonder] what a [young|baby] {k} is called[.| now.]
{k}: [young|baby|child|name of the young|name of the baby|what is the young called][?|]
"""),
    "sound": ("the sound of a {k}", "A {k} says {v}.", SOUNDS,
              "[the sound of a {k}|the noise of a {k}|the sound that a {k} makes|the noise that a "
              "{k} makes|the call of a {k}]", """
[What|Which] [sound|noise|call] does [a|the] {k} make[?| then?| again?]
What does [a|the] {k} [say|sound like][?| then?| again?| when it calls?| all day?]
How does [a|the] {k} [sound|go|call][?| then?| again?]
[A|The] {k} [says|goes|makes|sounds like] [what|what sound|which sound]?
{k}[:|| -|,] [sound|noise|call|what does it say|what sound|which sound|says what][?|]
[Sound|Noise|Sound of|The sound|Animal sound|Which sound|Call]: {k}[?|]
[Make|Do|Say|Imitate|Give me] the [sound|noise|call] of [a|the] {k}[.| now.]
[Tell me|Do you know|I want to know|Can you say|I wonder] what a {k} [says|sounds like].
[What|Which sound|Which noise] [do you hear|do I hear|comes|do we hear] from a {k}?
"""),
    "legs": ("the legs of a {k}", "A {k} has {v} legs.", LEGS,
             "[the number of legs of a {k}|the number of legs that a {k} has|the number of a {k}'s "
             "legs]", """
How many legs [does a {k} have|has a {k}|are on a {k}|does the {k} have|has the {k} got][?| then?]
[A|The|One|Any] {k} has how many legs[?| then?| in all?]
On how many legs does [a|the|any] {k} [walk|stand|go|run][?| about?]
[Tell me|Do you know|I want to know|Can you say|I wonder] how many legs a {k} has[.| in all.]
[Count|Count up|Number|Find] the legs of [a|the|one|any] {k}[.| for me.]
[Legs|Number of legs|How many legs|Leg count|The legs|Legs of a]: {k}[?|]
{k}[:| -|,] [legs|how many legs|number of legs|leg count][?|]
[With|On|Upon] how many legs [is|was] a {k} [born|seen]?
"""),
    "colour": ("the colour of {k}", "The colour of {k} is {v}.", COLOURS,
               "[the colour of {k}|the color of {k}|the usual colour of {k}]", """
[What|Which] [colour|color] [is|has|does] {k}[?| normally?| usually?| mostly?]
Of [what|which] [colour|color] is {k}[?| normally?| usually?| mostly?]
{k} [is|has] [what|which] [colour|color][?| normally?]
{k}[:| -|,|: what|: which|: the] [colour|color][?|]
[Colour|Color|Colour of|Color of|The colour|The color|Which colour|What color]: {k}[?|]
[In|With] [what|which] [colour|color] [do I|should I|do you|would you] [paint|draw] {k}?
[Tell me|Do you know|I want to know|Can you say|I wonder] [what|which] [colour|color] {k} [is|has].
"""),
    "language": ("the language of {k}", "In {k} people speak {v}.", LANGUAGES,
                 "[the language of {k}|the language in {k}|the language spoken in {k}|the language "
                 "that they speak in {k}]", """
[What|Which] language [do they speak|is spoken|do people speak|do we hear|do I need] in {k}[?| now?]
[What|Which language] do [people|they|most people|children] [speak|talk] in {k}[?| today?]
[What|Which] language do [people|most people|the people|children] in {k} speak[?| today?]
In {k}[,| then,|:] [what|which] language [do people speak|is spoken|do they speak]?
{k}[:| -|,|: what|: which|: the] language[?|]
[Language|The language|Which language|What language|Language of|Language in|Spoken]: {k}[?|]
[What|Which] language [should I learn|must I learn|do I learn|should I speak] [for|in] {k}?
[Tell me|Do you know|I want to know|Can you say|I wonder] [what|which language] they speak in {k}.
How do [people|they|most people|children] [in {k} talk|talk in {k}|in {k} speak]?
"""),
    "author": ("the author of {k}", "{k} was written by {v}.", AUTHORS,
               "[the author of {k}|the writer of {k}|{k}'s author]", """
Who [wrote|has written|was it that wrote|is it that wrote|once wrote|really wrote] {k}[?| again?]
Who [is|was] the [author|writer] [of|behind] {k}[?| again?| then?]
[Which|What] [author|writer|person] [wrote|has written|gave us] {k}[?| again?]
[By whom|By which author|By which writer|By what author] [is|was] {k}[ written|]?
{k}[:| -|,] [author|writer|by whom|who wrote it|written by whom|who is the author][?|]
[Author|The author|Writer|Author of|Written by|Who wrote|Book]: {k}[?|]
{k} [was written by|is a book by|is by|is a work of|was made by] [whom|which author|which writer]?
Whose [book|work|story|text] is {k}[?| again?| then?]
[Tell me|Do you know|I want to know|Can you say|I wonder] who wrote {k}[.| again.]
[Who is {k} by|Who was {k} by|Who was {k} written by|Who is it that {k} is by][?| again?]
"""),
    "day after": ("the day after {k}", "{v} comes after {k}.", around(DAYS),
                  "[the day after {k}|the next day after {k}|the day that follows {k}|the day that "
                  "comes after {k}]", """
[What|Which] day [comes after|follows|is after|is next after|comes right after] {k}[?| again?]
[Today is|It is|If today is|If it is|Now it is] {k}, [what|which] day is tomorrow?
[Today is|It is|Now it is|We have] {k}[. And|, and|. Then what is|, what is] tomorrow?
{k} is [followed by|before|right before|just before] [what|which] day[?| of the week?]
After {k} [comes|is|follows] [which|what] day[?| then?]
[Next day|Day after|The next day|The day after|Day following|After]: {k}[?|]
"""),
    "day before": ("the day before {k}", "{v} comes before {k}.",
                   [(v, k) for k, v in around(DAYS)],
                   "[the day before {k}|the last day before {k}|the day that precedes {k}|the day "
                   "that comes before {k}]", """
[What|Which] day [comes before|precedes|is before|is right before|comes just before] {k}[?| again?]
[Today is|It is|If today is|If it is|Now it is] {k}, [what|which] day was yesterday?
[Today is|It is|Now it is|We have] {k}[. And|, and|. Then what was|, what was] yesterday?
{k} [follows|is after|is right after|comes after|is just after] [what|which] day[?| of the week?]
Before {k} [comes|is] [which|what] day[?| then?| again?]
[Day before|The day before|Previous day|The previous day|Day preceding|Before]: {k}[?|]
"""),
    "month after": ("the month after {k}", "{v} comes after {k}.", around(MONTHS),
                    "[the month after {k}|the next month after {k}|the month that follows {k}|the "
                    "month that comes after {k}]", """
[What|Which] month [comes after|follows|is after|is next after|comes right after] {k}[?| again?]
[It is|If it is|Now it is|We have|If we have] {k}, [what|which] month is next?
[It is|If it is|Now it is|We have] {k}, [what is|name|tell me] [next month|the next month]?
{k} is [followed by|before|right before|just before] [what|which] month[?| of the year?]
After {k} [comes|is|follows|begins] [which|what] month[?| then?]
When {k} [is over|ends|has ended|is done], [which|what] month [begins|comes|starts|is next]?
[Next month|Month after|The next month|The month after|Month following]: {k}[?|]
"""),
    "month before": ("the month before {k}", "{v} comes before {k}.",
                     [(v, k) for k, v in around(MONTHS)],
                     "[the month before {k}|the last month before {k}|the month that precedes {k}|"
                     "the month that comes before {k}]", """
[What|Which] month [comes before|precedes|is before|is right before] {k}[?| again?]
[It is|If it is|Now it is|We have] {k}, [what was|name|tell me] [last month|the last month].
[It is|If it is|Now it is|We have] {k}, [which|what] month [was last|was before|just ended]?
{k} [follows|is after|is right after|comes after|is just after] [what|which] month[?| of the year?]
Before {k} [comes|is|was] [which|what] month[?| then?| again?]
[Month before|The month before|Previous month|The previous month|Month preceding]: {k}[?|]
"""),
    "month number": ("the {k} month", "The {k} month is {v}.",
                     list(zip(ORDINALS, MONTHS, strict=True)),
                     "[the {k} month|the {k} month of the year|the {k} month in the year]", """
[Which|What] month [is the {k}|is the {k} one|comes {k}|is {k}|is in {k} place][?| of the year?]
[Which|What] is the {k} month [of the year|in the year|of a year|of twelve][?| again?]
[Of|Among] [the months|the twelve months|all months], [which|what] is the {k}?
[In the year|In a year|Of all months], [which|what] [month is the {k}|is the {k} month]?
[Do you know|Tell me|Can you say|I wonder] which month is the {k}[.| one.| of the year.]
"""),
    "weekday": ("the {k} day", "The {k} day of the week is {v}.",
                list(zip(ORDINALS[:7], DAYS, strict=True)),
                "[the {k} day of the week|the {k} day in the week|the {k} day|the {k} weekday]", """
[Which|What] day [is the {k}|is the {k} one|comes {k}|is {k}|is in {k} place][?| of the week?]
[Which|What] is the {k} day [of the week|in the week|of a week|of seven][?| again?]
[In the week|In a week|Of all days], [which|what] [day is the {k}|is the {k} day]?
[Do you know|Tell me|Can you say|I wonder] which day is the {k}[.| one.| of the week.]
"""),
}
PHRASINGS = {topic: asking(entry[3]) + split(entry[4]) for topic, entry in TOPICS.items()}
# {of} is "of France", "for France" or "France", {x} the name alone.
AGAIN = split("""
[And|Now|Then|Next|Also|And now|And then|Next up|Next:|Now also] {of}[?| too?| again?]
[What about|How about|And what about|And how about|Now what about|So what about] {x}[?| then?| now?]
[Same question|The same|The same question|Again, but|Once more|Same again] [for|with] {x}[?| now?]
[Good|Fine|Great|Thanks|Right|I see|Nice|Very good][.|!] [And|Now|Next|Then] {of}?
[What is it|Tell me it|Do you know it|What would it be|And what is it] for {x}[?| then?| now?]
[Tell me the same|Do the same|Now the same|And the same|I need the same] [for|with] {x}[.| too.]
[And|Also|Then] {of}, [if you can|while we are at it|if you know|to go on|to finish]?
[|ok and |ok, and |and also |or rather |no, |and again |now do ]{of}[?| now?| then?]
[What if it is|And if it is|And if I say|What if I say|Let us take|Now take] {x}[?| then?]
[And for the next one|Next one|Another one|One more|And another]: {x}[?|]
""")
OF = {"capital": "{k} | of {k} | for {k}", "opposite": "{k} | of {k} | for {k}",
      "continent": "{k} | of {k} | for {k}", "symbol": "{k} | of {k} | for {k}",
      "language": "{k} | in {k} | of {k}", "author": "{k}", "sound": "a {k} | of a {k} | the {k}",
      "young": "a {k} | of a {k}", "legs": "a {k} | of a {k}", "colour": "{k} | of {k}"}
SHARE = {"capital": 8, "country": 4, "continent": 4, "opposite": 4, "symbol": 2, "language": 2,
         "author": 2}


def draw(rng):
    """Draw a topic, those with many facts more often."""
    return rng.choices(list(TOPICS), [SHARE.get(topic, 1) for topic in TOPICS])[0]


def exchange(rng, topic, fact, question, held):
    """Answer a fact."""
    what, answer = TOPICS[topic][:2]
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
    template = phrasing(rng, topic, PHRASINGS[topic], held_out)
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
    template = phrasing(rng, "again", AGAIN, held_out)
    known = rng.choice([pair for pair in TOPICS[topic][2] if pair[0] != k])
    ways = [way.replace("{k}", known[0]) for way in split(OF[topic])]
    question = noisy(rng, template).replace("{of}", rng.choice(ways)).replace("{x}", ways[0])
    return exchange(rng, topic, known, question, [("again", template)])
