"""Ways to ask that all questions share: openers and endings around what is asked for.

What the noise adds (tiny_words.noisy) does not occur here, so that it cannot turn one phrasing
into another one that is held out.
"""

import re

from scripts.tiny.lessons.words import split

# <the> is what is asked for ("the capital of {k}"), <bare> the same without its article.
ASKING = split("""
[What is|What's] <the>[?| again?| then?| exactly?| really?| actually?| today?]
[So|And|Say,|Tell me,|But|First,|Once more:|Next question:|My question:|Question:] what is <the>?
[Tell me|Tell us|Give me|Name|Say|State|Just name|Just tell me|Now tell me|Now name] <the>[.| now.]
[Tell me|Give me|Name|Find|Show me|Get me|Find me] <the>[.| for me.| if you can.| again.| quickly.]
[Can|Could|Would|Will] you [tell me|name|give me|say|please tell me|quickly name] <the>[?| now?]
[Do you know|Do you happen to know|Do you remember|Do you recall|Would you know] <the>[?| now?]
[Who knows|Does anyone know|Can anyone tell me|Who can tell me|Who remembers|Who can name] <the>?
[I want to know|I need to know|I would like to know|I'd like to know|I must know] <the>[.| now.]
[I need|I want|I am looking for|I'm looking for|I ask for|We need|I am after] <the>[.| today.| now.]
[I forgot|I have forgotten|I cannot remember|I can't remember|I do not know|I don't know] <the>.
[Remind me of|Let me know|Help me find|Teach me|Let us find|Let me hear] <the>[.| again.| now.]
[My friend|My teacher|My son|A child|My sister] [asked for|wants to know|asks for|needs] <the>.
[Do you know|Can you say|Can you tell me|Tell me|I want to know|I wonder|Say] what <the> is[.| now.]
[|Quiz: |Question: |Wanted: |Needed: |Quick: |Asking for |Looking for |Just ]<bare>[?| is|: ?| =]
[|And |So |Then |Again: |Next: |Now |First ]<the>[?| is| is?|, if you know it?| is what?|: ?]
""")
# The same for what somebody is to tell or to write: a story, a joke.
TELLING = split("""
[Tell me|Tell us|Tell|Give me|Write|Write me|Let me hear|Share|Now tell me] <it>[.| now.]
[Tell me|Tell|Write|Give us|Just tell me|Read us] <it>[.| for my son.| for my child.| again.]
[Can|Could|Would|Will] you [tell me|tell|write|give me|tell us|share|please tell] <it>[?| now?]
[I want|I need|I would like|I'd like|I want to hear|I would love|We want|I wish for] <it>[.| now.]
[My son|My daughter|My child|My friend|The baby|Our class] [wants|needs|asks for|would like] <it>.
[Do you know|Do you have|Have you got|Can I have|May I hear|Could we have|Can I get] <it>[?| now?]
[How about|What about|And now|Now|Next,|Time for|Next up:|First] <it>[?| for me?| for us?]
[|Just |Quick: |Wanted: |Only |Needed: ]<it>[.| for me| for us| for my child| now| today]
""")


def asking(noun):
    """Return patterns that ask for what this pattern names, such as `the capital of {k}`."""
    bare = re.sub(r"(^|[\[|])the ", r"\1", noun)
    return [text.replace("<the>", noun).replace("<bare>", bare) for text in ASKING]


def telling(noun):
    """Return patterns that ask to tell or write what this pattern names."""
    return [text.replace("<it>", noun) for text in TELLING]
