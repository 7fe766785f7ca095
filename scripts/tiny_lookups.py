"""Lessons about tools that look things up and tools that lead from page to page."""

from tiny_words import (
    HEROES,
    NOUNS,
    OTHER_TOOLS,
    THINGS,
    Exchange,
    argument,
    arguments,
    calculator,
    called,
    choose,
    code,
    is_held_out,
    kit,
    lookup,
    made_up,
    name,
    noisy,
    split,
    visit,
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
ASK = split("""
What is the {w} of {x}? | What's the {w} of {x}? | Tell me the {w} of {x}. | Find the {w} of {x}.
Look up the {w} of {x}. | the {w} of {x} | {w} of {x}? | Give me the {w} of {x}.
I need the {w} of {x}.
Do you know the {w} of {x}? | Can you find the {w} of {x}? | Could you look up the {w} of {x}?
Search for the {w} of {x}. | Which {w} does {x} have? | What {w} does {x} have? | What is {x}'s {w}?
{x}: {w}? | Find out the {w} of {x}. | Get the {w} of {x}. | I want to know the {w} of {x}.
Please check the {w} of {x}. | Show me the {w} of {x}. | For {x}, what is the {w}? | {x}'s {w}?
Let me know the {w} of {x}. | Can you tell me the {w} of {x}? | What {w} has {x}?
The {w} of {x}, please.
Look for the {w} of {x}. | Query the {w} of {x}. | Is the {w} of {x} known?
Who knows the {w} of {x}?
What do we have as the {w} of {x}? | Check what the {w} of {x} is. | I forgot the {w} of {x}.
My friend asked for the {w} of {x}. | About {x}: what is the {w}? | Say the {w} of {x}.
{x} has which {w}?
""")
LOOK = split("""
Look up {x}. | Search for {x}. | What is {x}? | Who is {x}? | Find {x}. | Tell me about {x}.
Look for {x}.
Find out about {x}. | Search {x}. | Please look up {x}. | Can you look up {x}?
What do you know about {x}?
Get me information about {x}. | I want to know about {x}. | Could you search for {x}?
Who or what is {x}?
Check {x}. | Give me facts about {x}. | Do a search for {x}. | What can you find on {x}? | {x}?
Do you have something on {x}? | Query {x}. | What does {x} mean? | Show me what you find about {x}.
Have a look at {x}. | Inform me about {x}. | Is there anything on {x}? | Read up on {x}.
Say what {x} is.
""")
SUMS = split("""
What is the {w} of {x} and {y} together? | Add the {w} of {x} and the {w} of {y}.
Sum the {w} of {x} and {y}.
What is the total {w} of {x} and {y}? | How much is the {w} of {x} plus the {w} of {y}?
{w} of {x} plus {w} of {y}?
Find the {w} of {x} and of {y} and add them. | Look up the {w} of {x} and {y} and add them.
Add up the {w} of {x} and {y}.
Give me the sum of the {w} of {x} and the {w} of {y}. | Together, what {w} do {x} and {y} have?
I need the {w} of {x} plus that of {y}. | What do you get if you add the {w} of {x} and {y}?
Compute the {w} of {x} plus the {w} of {y}. | The {w} of {x} and {y} in total?
Total {w}: {x} and {y}
How much {w} do {x} and {y} have together? | What is the {w} of {x} plus the {w} of {y}?
Sum of the {w} of {x} and {y}
Tell me the {w} of {x} and {y}, added. | Combine the {w} of {x} and {y}.
Find the total {w} of {x} and {y}.
Take the {w} of {x}, add the {w} of {y}. | For {x} and {y}, what is the {w} in total?
{x} and {y}: total {w}?
Calculate the total {w} of {x} and {y}. | What is {x}'s {w} plus {y}'s {w}?
The sum of the {w} of {x} and {y}?
Can you add the {w} of {x} and {y}? | I want the {w} of {x} and {y} together.
Work out the {w} of {x} plus {y}.
""")
ERRORS = ["not found", "no entry", "timeout", "the service is down", "unknown name", "no result",
          "access denied", "bad request", "the database is empty", "too many requests"]
KINDS = split("""
small town in the north | river in the west | tall mountain | kind of bread | famous singer
new phone
red flower | fast train | village by the sea | old castle | king of long ago | planet far away
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
GO = split("""
Start at page {x} and follow the links to the end. | Follow the links from page {x}.
Visit page {x} and go on.
Go to page {x} and follow the trail. | Begin at {x} and follow every link.
Follow the trail that starts at {x}.
Open page {x}, then the next, until the end. | Starting from {x}, follow all links.
Where does the trail from {x} end?
Find the last page of the trail from {x}. | Page {x} has a link. Follow it to the end.
Walk the links from {x}.
Please follow the links, starting at {x}. | From page {x} go on until there is no link.
Trace the pages from {x}.
What is the last page after {x}? | Start with {x} and keep going. | Go through all pages from {x}.
Trail: {x}
Take page {x} and follow its links. | Visit {x} and every page after it. | Follow {x} to the end.
Begin with page {x}.
The trail begins at {x}. Follow it. | Read page {x} and the pages that follow.
Where do the links from {x} lead?
Go on from page {x} until the end. | Continue from {x} to the last page.
Keep following links from {x}. | First page: {x}. Go.
Which page comes last if I start at {x}? | Click through the pages from {x}.
Follow the chain of pages from {x}.
""")
NEXT = ["Next page: {x}", "Next page: {x}", "The next page is {x}.", "Go to {x}.", "Link: {x}",
        "next: {x}", "Continue with page {x}."]
END = ["This is the last page.", "The end.", "No more links.", "There is no next page.",
       "End of the trail."]


def amount(rng):
    """Make up what a lookup returns for an amount."""
    return str(whole(rng, rng.randint(1, 6)))


def fill(template, **values):
    """Put values into a template by plain replacement."""
    for key, value in values.items():
        template = template.replace(f"{{{key}}}", str(value))
    return template


def known_name(rng, held_out):
    """Make up a name, or take a common word."""
    if rng.random() < 0.12:
        return rng.choice(NOUNS)
    return name(rng, held_out)


def attribute(rng, held_out=False, what=None, template=None):
    """Ask for one attribute of an unheard-of name."""
    x = known_name(rng, held_out)
    template = template or choose(rng, "ask", ASK, held_out)
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
    template = choose(rng, "look up", LOOK, held_out)
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
    template = choose(rng, "lookups", SUMS, held_out)
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
    style = style or rng.choice(["number", "number", "word", "code", "name", "noun"])
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
