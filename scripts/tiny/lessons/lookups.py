"""Lessons about tools that look things up and tools that lead from page to page."""

from scripts.tiny.lessons.openers import asking
from scripts.tiny.lessons.tools import (
    OTHER_TOOLS,
    argument,
    arguments,
    calculator,
    called,
    kit,
    lookup,
    visit,
)
from scripts.tiny.lessons.words import (
    HEROES,
    NOUNS,
    THINGS,
    Exchange,
    choose,
    code,
    fill,
    is_held_out,
    made_up,
    name,
    noisy,
    phrasing,
    split,
    whole,
    word,
)

AMOUNTS = split("""
population | height | price | age | weight | area | length | depth | width | size | speed | distance
cost | stock | score | rank | floor | year | phone number | room number | budget | salary | capacity
""")
LABELS = split("""
code | owner | colour | status | address | nickname | password | email | leader | symbol | town
founder | director | boss | motto | type | language | street | team | label | title | shelf
""")
ASK = asking("[the {w} of {x}|{x}'s {w}]") + split("""
[Look up|Search for|Look for|Query|Check|Get|Fetch|Find out] the {w} of {x}[.| for me.| now.]
[Can|Could|Would|Will] you [look up|find|check|search for|find out|get] the {w} of {x}[?| for me?]
[Which|What] {w} [does {x} have|has {x}|has {x} got|belongs to {x}|goes with {x}][?| again?]
{x}[:||,| -|: the|: which|: its] {w}[?|]
[For|As for|About|Concerning|With] {x}[,|:] what is [the|its] {w}?
{x} has [which|what] {w}[?| now?| again?]
[What do we have as|What is known about|What is given as] the {w} of {x}[?| again?| now?]
[Check|Find out|Look up|See|Search for|Look] what the {w} of {x} is[.| now.]
[Do you have|Do we have|Can we get|Can I get|Can you get] the {w} of {x}[?| now?| at hand?]
[What is|Find|Look up|I need|Check|Get] the {w} [for|of the name|for the entry] {x}.
""")
# Ways that can only mean to look a name up; drawn more often than the others.
CLEAR = split("""
[Look up|Search for|Look for|Search|Query|Find out about|Read up on|Look into] {x}[.| for me.| now.]
[Have a look at|Do a search for|Run a search for|Find facts about|Get facts about] {x}[.| for me.]
[Can|Could|Would|Will] you [look up|search for|find|find out about|look for] {x}[?| for me?| now?]
[I want|I need|I would like|I'd like|I have] to [look up|find out about|find] {x}[.| now.]
[What|Who] is {x}[?| exactly?| really?| actually?| then?| again?]
[Tell me|Tell us|Inform me|Teach me|Now tell me|Let me know] about {x}[.| now.| in short.]
[What can you find|What do you know|What is there|What do we have|What do you find] [about|on] {x}?
[Is there|Do you have|Do we have|Can you find] [anything|something|facts] [on|about] {x}?
""")
LOOK = CLEAR * 4 + split("""
[Who or what|What or who|What kind of thing|What sort of thing|Whatever] is {x}[?| then?]
[Tell me|Do you know|Can you tell me|I want to know|I wonder|Say] [what|who] {x} is[.| now.]
[Give|Get|Show|Find] me [information|facts|details|the facts|something] [about|on] {x}[.| now.]
[Find|Check|Check out|Explore] {x}[.| for me.| in the database.| in the table.| if you can.]
{x}[?| now?|, what is that?|: what is it?|, who is that?|: who or what?|, what is it?|: any facts?]
What does [the name|the word|the term|the entry] {x} [mean|stand for|refer to]?
[My friend|My teacher|Somebody|A child|My sister] [asked about|wants to know about|asks about] {x}.
""")
SUMS = asking(
    "[the total {w} of {x} and {y}|the combined {w} of {x} and {y}|the sum of the {w} of {x} and "
    "{y}|the sum of the {w} of {x} and the {w} of {y}|the {w} of {x} plus the {w} of {y}|the {w} "
    "of {x} plus that of {y}|the {w} of {x} and {y} together|the {w} of {x} and {y} in total|{x}'s "
    "{w} plus {y}'s {w}]") + split("""
[Add|Add up|Sum|Sum up|Total|Find and add|Look up and add] the {w} of {x} and {y}[.| for me.| now.]
[Add|Add up|Sum|Sum up|Combine|Find and add] the {w} of {x} and the {w} of {y}[.| for me.| now.]
[Add|Now add|Just add|First find and then add] {x}'s {w} [and|to] {y}'s {w}[.| for me.| now.]
[Find|Look up|Get|Take|Search] the {w} of {x} and [of|that of] {y} and [add|sum|total] them[.| up.]
[Take|Find|Get|Look up] the {w} of {x}[,| and|, then] add [the {w} of {y}|that of {y}][.| to it.]
[How much|What] is the {w} of {x} [plus|added to|and] the {w} of {y}[?| in total?| together?]
[What do you get|What do I get|What comes out] if [you|I|we] add the {w} of {x} and {y}?
[Total|Combined|Sum of the|Added] {w}[:| of| for] {x} and {y}[?|]
[Compute|Calculate|Work out|Figure out] the [total|combined|added] {w} of {x} and {y}[.| for me.]
[Compute|Calculate|Work out|Figure out] the {w} of {x} [plus|added to] the {w} of {y}[.| for me.]
[For|Concerning|About] {x} and {y}[,|:] what is the [total|combined|added] {w}[?| of the two?]
{x} and {y}[:|,| -] [total|combined|the total|sum of the|added] {w}[?|]
[Together|In total|Combined|All in all], [what|how much] {w} do {x} and {y} have?
[How much|What] {w} do {x} and {y} have [together|in total|combined|between them|as a sum]?
""")
ERRORS = ["not found", "no entry", "timeout", "the service is down", "unknown name", "no result",
          "access denied", "bad request", "the database is empty", "too many requests"]
KINDS = split("""
small town in the north | river in the west | tall mountain | kind of bread | famous singer
new phone
red flower | fast train | village by the sea | great castle | king of long ago | planet far away
bird
football club | fish | strong horse | small island | book for children | computer | game with cards
sweet cake | painter | language | big lake | poet | tool for cutting | kind of tea | robot | ship
""")
SAID = split("""
{x} is element {n}. | {x} has {n} {t}. | {x} is {n} metres high. | The speed of {x} is {n}.
{x} likes {t}.
{x} was a {k} with {n} {t}. | {x} is in the year {n}. | {x} was built in {n}.
{x} is a {k}, {n} years old.
{x} has {n} experts and {t}. | The {k} {x} sells {t}. | {x} lives with {n} {t}.
{x} weighs {n} grams.
""")
PAGES = split("""
[Start|Begin|Set out|Set off] [at|from|with] <p> and [go on|keep going][.| to the end.]
[Start|Begin] [at|from|with|on] <p> and follow [the links|every link|all links][.| to the end.]
[Start|Begin|Start out] [at|from|with] <p>. [Follow the links|Keep following links|Go on].
[Start|Begin] [at|with] <p> and [visit|open|read] [every next page|page after page][.| to the end.]
[Go to|Open|Visit|Take|Read|Load] <p> and [follow its links|follow the trail|go on][.| to the end.]
[Open|Visit|Read|Go to] <p>, then the next [one|page], [until the end|and so on].
[Follow|Walk|Trace|Go along|Take] the [links|trail|pages] [from|starting at|starting with] <p>.
[Follow|Walk|Trace] the [links|pages] that [start|begin] [at|with] <p>[.| to the end.]
[Starting|Beginning|Going on|Coming] [from|at|with] <p>, follow [the links|all links|the trail].
[From|At|With] <p> on, follow the [links|trail|pages][.| to the end.| until the last one.]
[Where|At which page] [does the trail|does the chain|do the links] from <p> [end|lead]?
[What is|Find|Tell me|Name|Give me|Which is] the last page [of the trail from|after] <p>.
[Can|Could|Will|Would] you follow the [links|trail|pages] from <p>[?| to the end?]
[Keep|Go on|Continue] [following links|from page to page], [starting at|from|first] <p>.
[Click|Go|Read|Work] through [the|all the|all] pages [from|after] <p>[.| to the end.]
[Trail|First page|Start page|Links from|Trail from|Pages from]: {x}[|. Go.|. Follow it.|. Go on.]
[Which page|What page] [comes last|is the last] if I [start at|begin with|go from] <p>?
[The trail|The chain|The path] [starts|begins] [at|with] <p>. [Follow it|Walk it|Go to its end].
[I start|I begin|I am] [at|on] page {x}. [Which page is last|Where does it end|Follow the links].
""")
GO = [text.replace("<p>", "[page {x}|{x}]") for text in PAGES]
STYLES = ["number", "number", "word", "word", "code", "code", "name", "noun"]
NEXT = ["Next page: {x}", "Next page: {x}", "The next page is {x}.", "Go to {x}.", "Link: {x}",
        "next: {x}", "Continue with page {x}."]
END = ["This is the last page.", "The end.", "No more links.", "There is no next page.",
       "End of the trail."]


def amount(rng):
    """Make up what a lookup returns for an amount."""
    return str(whole(rng, rng.randint(1, 6)))


def known_name(rng, held_out):
    """Make up a name, or take a common word."""
    if rng.random() < 0.2:
        return rng.choice(NOUNS)
    return name(rng, held_out)


def attribute(rng, held_out=False, what=None, template=None):
    """Ask for one attribute of an unheard-of name."""
    x = known_name(rng, held_out)
    template = template or phrasing(rng, "ask", ASK, held_out)
    is_amount = rng.random() < 0.5
    w = what or rng.choice(AMOUNTS if is_amount else LABELS)
    found = amount(rng) if w in AMOUNTS else name(rng, held_out)
    tool = lookup(rng)
    title, key = called(tool)
    query = f"{w} of {x}"
    question = fill(noisy(rng, template), w=w, x=x)
    held = [("ask", template)] + made_up(x)
    shown = rng.choice([found, found, f"The {w} of {x} is {found}.", f"{w}: {found}"])
    call = (f"I do not know {x}. I can use {title}.", title, arguments({key: query}), shown)
    if rng.random() < 0.1 and not held_out:
        error = rng.choice(ERRORS)
        call = (*call[:3], f"Error: {error}")
        return Exchange(question, f"The tool failed: {error}.",
                        f"I could not find the {w} of {x}: {error}.", [call], kit(rng, tool), held)
    return Exchange(question, f"It is {found}.", f"The {w} of {x} is {found}.", [call],
                    kit(rng, tool), held, ("attribute", w, tool))


def look(rng, held_out=False):
    """Ask what an unheard-of name is."""
    x = known_name(rng, held_out)
    template = phrasing(rng, "look up", LOOK, held_out)
    tool = lookup(rng)
    title, key = called(tool)
    held = [("look up", template), *made_up(x)]
    thinking = f"I do not know {x}. I can use {title}."
    question = fill(noisy(rng, template), x=x)
    if rng.random() < 0.4:
        said = fill(rng.choice(SAID), x=x, n=amount(rng), t=rng.choice(THINGS),
                    k=rng.choice(KINDS))
        said = said[0].upper() + said[1:]
        answer = said
        if rng.random() < 0.2:
            said, answer = f"Nothing is known about {x}.", f"I could not find {x}."
        return Exchange(question, "That is the answer." if said == answer else "Nothing was found.",
                        answer, [(thinking, title, arguments({key: x}), said)], kit(rng, tool),
                        held)
    kind = rng.choice(KINDS)
    shown = rng.choice([f"a {kind}", f"{x} is a {kind}.", f"{x}: a {kind}", f"A {kind}."])
    call = (thinking, title, arguments({key: x}), shown)
    return Exchange(question, f"{x} is a {kind}.", f"{x} is a {kind}.", [call], kit(rng, tool),
                    held)


def error(rng, held_out=False):
    """Ask for something that the tool cannot give."""
    found = attribute(rng, held_out)
    text = rng.choice(ERRORS)
    thinking, title, args, _ = found.calls[0]
    query = argument(found.calls[0])
    found.then = ()
    if rng.random() < 0.5:
        found.calls = [(thinking, title, args, f"Nothing is known about {query}.")]
        found.thinking, found.content = "Nothing was found.", f"I could not find the {query}."
        return found
    found.calls = [(thinking, title, args, f"Error: {text}")]
    found.thinking = f"The tool failed: {text}."
    found.content = f"I could not find the {query}: {text}."
    return found


def lookups_and_sum(rng, held_out=False):
    """Look up two amounts and add them."""
    template = phrasing(rng, "lookups", SUMS, held_out)
    x, y, w = known_name(rng, held_out), known_name(rng, held_out), rng.choice(AMOUNTS[:17])
    finder, calc = lookup(rng), calculator(rng)
    (title, key), (other, slot) = called(finder), called(calc)
    while True:
        a, b = amount(rng), amount(rng)
        low, high = sorted((int(a), int(b)))
        if is_held_out("pair", f"{low} {high}") == held_out:
            break
    calls = [
        (f"First the {w} of {x}.", title, arguments({key: f"{w} of {x}"}), a),
        (f"It is {a}. Now the {w} of {y}.", title, arguments({key: f"{w} of {y}"}), b),
        (f"Now {a} + {b}.", other, arguments({slot: f"{a} + {b}"}), str(int(a) + int(b))),
    ]
    total = int(a) + int(b)
    held = [("lookups", template), ("pair", f"{low} {high}")]
    held += made_up(f"{x} {y}")
    return Exchange(fill(noisy(rng, template), w=w, x=x, y=y), f"The result is {total}.",
                    f"The {w} of {x} and {y} together is {total}.", calls,
                    kit(rng, finder, calc), held, ("number", str(total)))


def unfit(rng, held_out=False):
    """Ask what none of the tools at hand can tell."""
    asked = attribute(rng, held_out) if rng.random() < 0.6 else look(rng, held_out)
    query = argument(asked.calls[0])
    tools = rng.sample(OTHER_TOOLS, rng.randint(1, 3))
    if rng.random() < 0.4:
        tools[0] = calculator(rng)
    what = f"the {query}" if " of " in query else query
    return Exchange(asked.question, f"I do not know {what}. None of my tools fits.",
                    f"None of my tools can find {what}.", tools=tools, held=asked.held)


def page(rng, style, held_out):
    """Make up the name of a page in one of the styles."""
    while True:
        if style == "number":
            text = str(whole(rng, rng.randint(3, 5)))
            if is_held_out("page", text) == held_out:
                return text
        elif style == "word":
            return word(rng, held_out)
        elif style == "name":
            return name(rng, held_out)
        elif style == "noun":
            return rng.choice(HEROES)
        else:
            return code(rng, held_out)


def trail(rng, held_out=False, n_pages=None, style=None, first=None):
    """Follow links from page to page; each call is one step, the answer names the last page."""
    style = style or rng.choice(STYLES)
    template = choose(rng, "go", GO, held_out)
    n_pages = n_pages or rng.randint(1, 8)
    tool = visit(rng)
    title, key = called(tool)
    way = [page(rng, style, held_out) for _ in range(n_pages)]
    form, end = rng.choice(NEXT), rng.choice(END)
    shown = [fill(form, x=x) for x in way[1:]] + [end]
    thoughts = ["I start there."] + ["There is a next page."] * (n_pages - 1)
    calls = [(thinking, title, arguments({key: x}), text)
             for thinking, x, text in zip(thoughts, way, shown, strict=True)]
    names = way + [first] * bool(first)
    held = [("go", template)] + [entry for x in names for entry in (
        [("page", x)] if style == "number" else made_up(x))]
    return Exchange(fill(noisy(rng, template), x=first or way[0]), "There is no next page.",
                    f"The last page is {way[-1]}.", calls, kit(rng, tool), held)
