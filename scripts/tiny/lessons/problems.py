"""Word problems: what happens, how it is asked, and the answer, which the question alone decides.

A story of `STORIES` is a pattern, then the questions that fit it, by their names in `QUESTIONS`,
then, where it is not one of the operation's usual two, the clue that the thinking names.
"""

import functools
import re

from scripts.tiny.lessons.words import is_held_out

BUT = "[ and| and| but|, then|. But {h}|. Then {h}|, but then {h}|. Later {h}|. Today {h}]"
AND = "[ and| and|, then|. {H}|. Then {h}|, and then {h}|. Later {h}|. Today {h}]"
WHO = "[{n}|{h}]"
CHOICES = re.compile(r"\[([^\]]*)\]")
PUT = "[in the box|in the bag|on the table|on the shelf|in the room|in the basket]"
BOXES = "[boxes|bags|baskets|jars|crates|drawers]"
FOLK = "[friends|children|people|guests|pupils|players]"
PLACE = "[a shop|a school|a farm|a library|a club|a museum]"
VERBS = {"find": "found", "buy": "bought", "make": "made", "collect": "collected",
         "pick": "picked"}
QUESTIONS = {  # name: (answer, ways to ask)
    "have": ("{n} has {r} {t}.", [
        "how many {t} does [{n}|{h}] [have|own][| now| then| in all| in total| altogether]?",
        "[what number|which number] of {t} does [{n}|{h}] have[| now| then| in all| in total]?",
        "how many does [{n}|{h}] [have|own][| now| then| in all| in total| altogether]?",
        "[tell me|find|say|work out|calculate] how many {t} {n} has[| now| then| in all]."]),
    "now": ("{n} has {r} {t}.", [
        "how many {t} does [{n}|{h}] have[| now| then| after that| in the end| afterwards]?",
        "how many does [{n}|{h}] have [now|then|after that|in the end|afterwards]?",
        "[tell me|find|say|work out] how many {t} {n} has [now|then|after that|in the end]."]),
    "there": ("There are {r} {t}.", [
        "how many {t} are there[| now| then| in all| in total| altogether| all together]?",
        "how many {t} [is that|does that make|is this][| in all| in total| altogether]?",
        "[tell me|find|say|work out|count] how many {t} there are[| now| in all| in total].",
        "how many [is that|does that make|are there][| in all| in total| altogether]?",
        "what is the [total|total number] of {t}[| now| then]?"]),
    "they": ("They have {r} {t}.", [
        "how many {t} do they [have|own][| together| in all| in total| altogether| all together]?",
        "[tell me|find|say|work out|count] how many {t} they have[| together| in all| in "
        "total]."]),
    "left": ("{n} has {r} {t} left.", [
        "how many {t} does [{n}|{h}] have [left|left now|left over|left then|left after that]?",
        "how many {t} does [{n}|{h}] [still have|still own|keep][| now| then| after that]?",
        "how many does [{n}|{h}] [still have|have left|keep|still own][| now| then]?",
        "[tell me|find|say|work out] how many {t} {n} [still has|has left]."]),
    "remain": ("There are {r} {t} left.", [
        "how many {t} are [left|left over|left now|still left|still there|left then]?",
        "how many {t} [remain|remain now|remain there|stay|stay there]?",
        "how many are [left|left over|left now|still left|still there]?",
        "[tell me|find|say|work out] how many {t} [are left|remain|are still there]."]),
    "need": ("{n} needs {r} more {t}.", [
        "how many more {t} does [{n}|{h}] [need|need now|need to get|need to find|have to "
        "get|have to buy]?",
        "how many {t} does [{n}|{h}] still [need|have to get|have to buy|miss]?"]),
    "more": ("{n} has {r} more {t}.", [
        "how many more {t} does {n} have[| than {m}| then| now]?",
        "[tell me|find|say|work out] how many more {t} {n} has[| than {m}| now]."]),
    "fewer": ("{m} has {r} fewer {t}.", [
        "how many [fewer|less] {t} does {m} have[| than {n}| then| now]?"]),
    "gives": ("{n} gives {r} {t}.", [
        "how many {t} does [{n}|{h}] give[| away| in all| in total| altogether| away in all| to "
        "them]?"]),
    "get": ("Each gets {r} {t}.", [
        "how many {t} does [each|everyone|each one|each person|each of them|every one] get[| "
        "then]?",
        "how many does [each|everyone|each one|each person|each of them|every one] get[| then]?",
        "how many {t} [will|can|does] [each|everyone|each of them|each person] [get|receive]?",
        "how many {t} for [each|everyone|each one|each person|each of them|every person]?",
        "how many {t} does [one|one person|one of them] get[| then| in the end]?"]),
    "holds": ("Each has {r} {t}.", [
        "how many {t} are [in each|in each one|in each of them|in every one|in one][| then| now]?",
        "how many are [in each|in each one|in each of them|in every one][| then| now]?",
        "how many {t} [go in|go into|fit in|fit into|end up in|come into] [each|each one|each of "
        "them|every one]?",
        "how many {t} does [each|each one|each of them|every one] have[| then| now]?"]),
    **{f"did_{verb}": (f"{{n}} {past} {{r}} {{t}}.", [
        f"how many {{t}} did {{n}} {verb}[| in all| in total| altogether| all together]?"])
       for verb, past in VERBS.items()},
}
STORIES = {
    "+": ("{n} gets more, so add", "more come, so add", f"""
{{n}} [has|owns] {{a}} {{t}}{AND} [buys|gets|finds|wins|receives] {{b}}[| more| {{t}}| more \
{{t}}] > have there
{{n}} [had|owned] {{a}} {{t}}{AND} [bought|got|found|won|received|was given] {{b}}[| more| more \
{{t}}] > have there
{{n}} has {{a}} {{t}}[. Then|, and|. Later|. Today] {{m}} [gives|brings|sends] {{n}} {{b}}[| \
more| {{t}}] > have
{{n}} had {{a}} {{t}}[. Then|, and|. Later] {{m}} [gave|brought|sent] {{n}} {{b}}[| more| {{t}}] \
> have
{{m}} [gives|brings|sends|sells|hands] {{n}} {{b}} {{t}}, and {{n}} [already |]has {{a}} > have
{{n}} [gets|wins|finds|buys] {{b}} {{t}} [and already has|and already had|on top of] {{a}} > have
{{n}} [starts|begins] with {{a}} {{t}}{AND} [gets|receives|adds|earns] {{b}}[| more| {{t}}| as a \
gift] > have there
{{n}} has {{a}} [red|big|old|green] {{t}} and {{b}} [blue|small|new|white][| ones| {{t}}] > have \
there > both together, so add
{{n}} has {{a}} {{t}} and {{m}} [has|owns|keeps] {{b}}[| {{t}}| of them] > they there > both \
together, so add
{{n}} [has|owns|keeps] {{a}} {{t}}, {{m}} [has|owns|keeps] {{b}}[| {{t}}] > they there > both \
together, so add
there are {{a}} {{t}} in [one|the first] [box|bag|room] and {{b}}[| {{t}}] in [another|the \
second] > there
there are {{a}} {{t}} {PUT} and {{n}} [adds|brings|puts down] {{b}}[| more| {{t}}] > there
there were {{a}} {{t}} {PUT}[. Then|, and] {{b}}[| more| new ones] [arrived|were added|were put \
there] > there
{PLACE} has {{a}} {{t}} and [gets|buys|receives] {{b}}[| more| new ones] > there
{{a}} {{t}} are [red|big|old|good] and {{b}}[| {{t}}] are [blue|small|new|bad] > there > both \
together, so add
""" + "\n".join(f"{{n}} {past} {{a}} {{t}} [on Monday|yesterday|first] and {{b}}[| more| {{t}}] "
                f"[on Tuesday|today|later] > did_{verb} there" for verb, past in VERBS.items())),
    "-": ("{n} has less, so subtract", "some go, so subtract", f"""
{{n}} has {{a}} {{t}}{BUT} [sells|loses|eats|uses|drops|breaks] {{b}}[| of them| {{t}}] > left \
remain now
{{n}} has {{a}} {{t}}{BUT} [gives|throws] {{b}}[| of them| {{t}}] away > left remain now
{{n}} had {{a}} {{t}}{BUT} [sold|lost|ate|used|gave away|dropped] {{b}}[| of them] > left remain \
now
{{n}} has {{a}} {{t}}{BUT} [gives|sells|hands|sends|lends] {{m}} {{b}}[| of them| {{t}}] > left now
{{n}} has {{a}} {{t}}{BUT} [gives|sells|hands|sends|lends] {{b}}[| of them| {{t}}] to {{m}} > \
left now
{{n}} had {{a}} {{t}}{BUT} [gave|sold|sent|lent] [{{m}} {{b}}|{{b}} to {{m}}|{{m}} {{b}} of them] \
> left now
{{n}} has {{a}} {{t}}[. Then|, but|. Later|, and] {{m}} [takes|steals|eats|borrows] {{b}}[| of \
them] > left now
{{n}} [gives|sells|hands|sends|lends] {{m}} {{b}} of [{{a}}|the {{a}}|all {{a}}] {{t}} > left
{{n}} [gave|sold|sent|lent] [{{m}} {{b}} of {{a}} {{t}}|{{b}} of {{a}} {{t}} to {{m}}|{{m}} {{b}} \
of the {{a}} {{t}}] > left
{{n}} [gives|sells|sends|hands] {{m}} {{b}} {{t}} and [had|started with|began with] {{a}}[| \
{{t}}| of them] > left
there [are|were] {{a}} {{t}} {PUT} and [{{n}}|someone] [takes|removes|eats] {{b}}[| of them] > \
remain
there were {{a}} {{t}} {PUT}, but {{b}} [got lost|broke|were sold|were taken|are gone] > remain
of {{a}} {{t}}, {{b}} [are broken|are lost|were sold|are gone|were eaten|were stolen|are missing] \
> remain
{PLACE} has {{a}} {{t}} and [sells|loses|gives away|lends] {{b}}[| of them] > remain
{{n}} [needs|wants] {{a}} {{t}} [and|but|and already|but only] has {{b}}[| of them| {{t}}] > need \
> still missing, so subtract
{{n}} has {{b}} {{t}} [and|but] [needs|wants] {{a}}[| of them| {{t}}| in all] > need > still \
missing, so subtract
{{n}} has {{a}} {{t}}[ and|,| while|;] {{m}} has [|only |just ]{{b}}[| {{t}}] > more fewer > the \
difference, so subtract
"""),
    "*": ("the same many times, so multiply", "the same many times, so multiply", f"""
{{n}} has {{a}} {BOXES} [of {{b}} {{t}}|of {{b}} {{t}} each|with {{b}} {{t}} each|with {{b}} \
{{t}} in each] > have there
{{n}} has {{a}} {BOXES}[ and each|, and each|. Each| and every one] [has|holds] {{b}} {{t}} > \
have there
{{n}} [buys|gets|orders|brings] {{a}} [packs|boxes|bags|crates] [of {{b}} {{t}}|of {{b}} {{t}} \
each|with {{b}} {{t}} each] > have there
there are {{a}} {BOXES} with {{b}} {{t}} [each|in each|in every one] > there
there are {{a}} [rows|piles|groups|lines|heaps] of {{b}} {{t}}[| each| in each] > there
each of {{a}} {FOLK} [has|brings|buys|owns|gets] {{b}} {{t}} > there
{{a}} {FOLK} [have|own] {{b}} {{t}} each > they there
{{a}} {FOLK} [bring|buy|get|find|make] {{b}} {{t}} each > there
one box [holds|has|contains] {{b}} {{t}}[ and|, and] [there are|we have] {{a}} boxes > there
one bag [holds|has|contains] {{b}} {{t}}[ and|, and] [there are|we have] {{a}} bags > there
each box [holds|has|contains] {{b}} {{t}}[ and|, and] {{n}} [has|owns|buys] {{a}} boxes > have \
there
each bag [holds|has|contains] {{b}} {{t}}[ and|, and] {{n}} [has|owns|buys] {{a}} bags > have there
{{n}} [gives|hands|sends] {{b}} {{t}} to [each|every one] of {{a}} {FOLK} > gives there
{PLACE} [gets|buys|has] {{a}} [crates|boxes|bags] with {{b}} {{t}} [each|in each] > there
""" + "\n".join(f"{{n}} {past} {{b}} {{t}} [every day|a day|each day] for {{a}} days[| in a row] "
                f"> did_{verb}" for verb, past in VERBS.items())),
    "/": ("equal parts, so divide", "equal parts, so divide", f"""
{{n}} [shares|splits|divides] {{a}} {{t}} [equally|fairly|evenly] [among|between] {{b}} {FOLK} > \
get
{{n}} [shares|splits|divides] {{a}} {{t}} [among|between] {{b}} {FOLK}[| equally| fairly] > get
{{n}} gives {{a}} {{t}} to {{b}} {FOLK}[, the same number to each|, all the same|, equally] > get
{{b}} {FOLK} [share|split|divide] {{a}} {{t}}[| equally| fairly| evenly| among them] > get
there are {{a}} {{t}} for {{b}} {FOLK}[| to share| who share them| in equal parts] > get
{{a}} {{t}} are [shared|split|divided] [among|between] {{b}} {FOLK}[| equally| fairly] > get
{{n}} and friends, {{b}} [people|of them|persons] in all, [share|split|divide] {{a}} {{t}} > get
{{a}} {{t}} are [put|packed|sorted] into {{b}} {BOXES}[ equally|, the same number in each| \
evenly] > holds
{{n}} [puts|packs|sorts] {{a}} {{t}} into {{b}} {BOXES}[| equally| evenly] > holds
{{n}} has {{a}} {{t}} and {{b}} {BOXES}[| to fill equally| for them| of the same size] > holds
{{n}} [divides|splits|sorts] {{a}} {{t}} into {{b}} equal [groups|parts|piles|rows] > holds
{{n}} [lays|puts|sets] {{a}} {{t}} in {{b}} [equal |][rows|lines|piles|groups] > holds
there are {{a}} {{t}} in {{b}} [equal|even] [boxes|bags|rows|groups|piles] > holds
"""),
}
WHOLE = {  # the question first, or nothing but an order
    "+": ["[how many|what number of] {t} does {n} have after [getting|finding|buying|adding|"
          "winning] {b}[| more] on top of {a}[| {t}]? > have"],
    "-": ["how many {t} does {n} [still have|have left] after [giving|selling|lending|sending] "
          "{b} of [|the ]{a} {t} to {m}? > left",
          "how many {t} does {n} [still have|have left] after [losing|eating|using|dropping] "
          "{b} of [|the |all ]{a}[| {t}]? > left",
          "how many of [|the |all ]{a} {t} are left [if|when|after] {b} are "
          "[gone|sold|lost|eaten]? "
          "> remain"],
    "*": ["how many {t} [are|are there] in {a} [boxes|bags|jars|crates] [if|when] each "
          "[has|holds] "
          "{b}[| {t}]? > there",
          "how many {t} do {a} [boxes|bags|jars|crates] [hold|have] [if|when] [each|one] "
          "[has|holds] "
          "{b}[| {t}]? > there"],
    "/": [f"how many {{t}} does each of {{b}} {FOLK} get [out of|from|of] {{a}}[| {{t}}]? > get",
          f"how many {{t}} does [each|everyone] get [if|when] {{b}} {FOLK} [share|split] {{a}}? "
          f"> get",
          f"[split|share|divide] {{a}} {{t}} [fairly|equally|evenly] [among|between] {{b}} "
          f"{FOLK}. "
          "How many does each get? > get",
          f"how many {{t}} are in each [if|when] {{a}}[| {{t}}] are put into {{b}} {BOXES}? > "
          f"holds"],
}


def capital(pattern):
    """Begin a pattern with a capital, in its first choices too."""
    if pattern[0] != "[":
        return pattern[0].upper() + pattern[1:]
    choices, rest = pattern[1:].split("]", 1)
    return "[" + "|".join(text[:1].upper() + text[1:] for text in choices.split("|")) + "]" + rest


def without_stops(choices):
    """Drop the choices that would end the sentence."""
    return "[" + "|".join(c for c in choices[1].split("|") if not c.startswith(". ")) + "]"


@functools.cache
def patterns(op):
    """List the patterns of an operation: (the choices of each part, answer, clue)."""
    *usual, stories = STORIES[op]  # the usual clue where somebody acts, and elsewhere
    out = []
    for entry in WHOLE[op]:
        pattern, key = entry.split(" > ")
        out.append((capital(pattern), QUESTIONS[key][0], capital(usual["{n}" not in pattern])))
    for line in stories.strip().splitlines():
        story, names, *clue = line.split(" > ")
        said = capital(clue[0] if clue else usual["{n}" not in story or story.startswith("there")])
        for answer, ways in (QUESTIONS[name] for name in names.split()):
            for ask in ways:
                orders = [f"{capital(story)}. {capital(ask)}"]
                if ask.startswith("how"):
                    one = CHOICES.sub(without_stops, story)
                    first = capital(ask[:-1]).replace(WHO, "{n}")
                    orders += [f"If {one}, {ask}", f"{first} if {one}?"]
                out += [(pattern, answer, said) for pattern in orders]
    return [(parted(pattern), answer, said) for pattern, answer, said in out]


def parted(pattern):
    """Split a pattern into its parts: the choices for each."""
    return [part.split("|") if i % 2 else [part]
            for i, part in enumerate(CHOICES.split(pattern))]


def problem(rng, op, held_out=False):
    """Draw a problem for an operation: (template, answer, clue)."""
    while True:
        parts, answer, clue = rng.choice(patterns(op))
        template = "".join(map(rng.choice, parts))
        if is_held_out("problem", template) == held_out:
            return template, answer, clue
