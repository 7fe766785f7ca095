"""How people ask for sums: patterns (see `tiny_words.variants`) for one step, chains, follow-ups.

In a pattern, {x} is an expression, {a} and {b} are its numbers; {p}, {q}, {s} are steps as orders
("add 5"), {P}, {Q}, {S} the same at the beginning of a sentence, {u}, {v}, {w} steps as words
between numbers ("plus 5").
"""

from scripts.tiny.lessons.words import split, variants

ME = "[| for me| please|, please| now]"
GET = "[what do I get|what is it|what is the result|what comes out|how much is it|what do you get]"
DOES = "[| is what| makes what| gives what| equals what|, please|, how much is it]?"
WHAT = "[What is|What's|How much is|So what is|Now what is|And what is]"
FIND = "[Find|Tell me|Give me|Compute|Calculate|Work out|Show me|I need|I want|Figure out]"
CAN = "[Can you|Could you|Please|Would you|I want to|Can we|Let us|I need to|Let's|Help me to]"
IF = "[If|When] [I|you|we]"
DO_I = "[What|How much] do [I|you|we] get [if|when] [I|you|we]"
FRAMES = split("""
{x}[| =|=| =?| = ?|?] | {x} [is how much|makes what|equals what|gives what|is what|please][|?]
[What is|What's|How much is|So what is|And what is|Now what is|What exactly is] {x}[| now| then]?
[What is|What's|How much is|Well, what is] {x}[ exactly| please|, please| as a number| for you]?
[Calculate|Compute|Work out|Solve|Find|Evaluate|Figure out|Do|Try] {x}[| for me| please| now].
[Tell me|Give me|Show me|Say|Determine|Check|Get] {x}[| please|, please| now| quickly].
[Calculate|Compute|Work out|Solve|Find|Evaluate|Do|Sum to do|To solve]: {x}[| please| now| =]
[Can|Could|Would|Will] you [calculate|compute|work out|solve|find|do] {x}[| for me| please]?
[Can|Could|Would|Will] you [tell me|evaluate|figure out|check] {x}[| please|, please| now]?
[Tell me|Say|Let me know|Show me] [what|how much] {x} [is|makes|equals|gives|comes to|would be].
[I need|I want|I'd like|I would like|I am looking for] [|the result of |the value of ]{x}[| now].
[Give me|Find|Tell me|Show me|Compute] the [result of|value of|answer to|outcome of] {x}[| now].
[My homework asks for|They ask for|My teacher asks for|The exercise asks for] [|the value of ]{x}.
[I need|I want|I would like|I'd like|Help me] to [calculate|compute|work out|find] {x}[| now].
[I need|I want|I would like|I'd like] to [know|find out|hear] [what|how much] {x} [is|makes|gives].
[Do you know|Can you tell me|Could you tell me] [what|how much] {x} [is|makes|equals|gives]?
[Can you say|Can you work out|Would you tell me|Can you find out] [what|how much] {x} [is|makes]?
[What|How much] [does|will|would] {x} [make|give|equal|come to|amount to][| then| please]?
[What|How much|What number|How many] [would|will|might] {x} be[| then| exactly]?
[What do I get for|What do you get for|What comes out of|What will we get for] {x}[| please| then]?
[What is|What's|Do you know|Can you find] the [result of|value of|answer to] {x}[| please| then]?
[What number|How many|How much|What] is {x}[| then| please| altogether| actually]?
[The result|The value|Result|Value|The outcome] of {x}[|, please| please| now| is what]?
[The answer to|Answer to|Quick answer to|An answer for|The answer for] {x}[|, please| now| is what]?
[Help me with|I need help with|Please help with|Let us do|Let's do|I cannot do] {x}[| please| now].
[Can|Could|Would] you [help me with|help with|do|try] {x}[| please| now| for me]?
[The exercise|My homework|The question|The next one|My sum|Number one] is {x}[| today| now].
[If|When] [I|you|we] [type|enter|compute|calculate|work out] {x}, [what do I get|what comes out]?
{x}: [what is it|what is that|what does it make|how much is it|how much is that|what is the result]?
{x}, [what is it|what is that|how much is that|can you do it|do you know it|please solve it]?
""")
FORMS = {
    "+": ["{a} + {b}", "{a} + {b}", "{a}+{b}", "{a} plus {b}"],
    "-": ["{a} - {b}", "{a} - {b}", "{a}-{b}", "{a} minus {b}"],
    "*": ["{a} * {b}", "{a} x {b}", "{a}*{b}", "{a} times {b}", "{a} × {b}"],
    "/": ["{a} / {b}", "{a} / {b}", "{a}/{b}", "{a} divided by {b}", "{a} ÷ {b}"],
}
OWN = {
    "+": split(f"""
[Add|Sum|Total|Add up|Sum up|Please add] {{a}} and {{b}}{ME}. | {CAN} add {{a}} [and|to] {{b}}{ME}
{WHAT} the [sum|total] of {{a}} and {{b}}[| then| please]? | Add {{a}} to {{b}}{ME}.
{FIND} the [sum|total] of {{a}} and {{b}}{ME}. | The [sum|total] of {{a}} and {{b}}{DOES}
{IF} add {{a}} [and|to] {{b}}, {GET}? | {DO_I} add {{a}} [and|to] {{b}}?
{IF} put {{a}} and {{b}} together, {GET}? | {DO_I} put {{a}} and {{b}} together?
[What|How much] [do|will|would] {{a}} and {{b}} [make|give|come to|add up to][| together| in all]?
How much [are|is] {{a}} and {{b}} [together|in total|in all|added up|combined|added together]{ME}?
[Take|Start with|Begin with] {{a}} and add {{b}}[| to it| more| on top][| please].
[Put|Count|Bring] {{a}} and {{b}} together{ME}. | [Add|Put] {{b}} [more |]on top of {{a}}{ME}.
{CAN} add {{b}} [more |]to {{a}}{ME} | [Increase|Raise|Please increase] {{a}} by {{b}}{ME}.
{WHAT} {{a}} [increased by|raised by|together with|added to|and] {{b}}[| then| please]?
{WHAT} {{b}} more than {{a}}[| then| please]? | {FIND} {{b}} more than {{a}}{ME}.
{{a}} [and then|added to|increased by|and another|together with] {{b}}{DOES}
"""),
    "-": split(f"""
[Subtract|Take|Deduct|Remove|Please subtract|Please take] {{b}} from {{a}}{ME}.
{CAN} [subtract|take|deduct|remove] {{b}} from {{a}}{ME} | {CAN} take {{b}} away from {{a}}{ME}
[Take|Please take|Now take|First take|Just take] {{b}} away from {{a}}{ME}.
{{a}} [take away|less|reduced by|decreased by|lowered by] {{b}}{DOES}
{WHAT} {{a}} [less|take away|reduced by|decreased by|lowered by] {{b}}[| then| please]?
{FIND} {{a}} [less|take away|reduced by|decreased by] {{b}}{ME}.
{WHAT} the difference [between|of] {{a}} and {{b}}[| then| please]?
{FIND} the difference [between|of] {{a}} and {{b}}{ME}. | The difference of {{a}} and {{b}}{DOES}
[What|How much] [is left|remains] [if|when] [I|you|we] [take|subtract|remove] {{b}} from {{a}}?
[What|How much] [is left|remains] of {{a}} [after taking|if you take|when I take] {{b}} [away|off]?
{CAN} [reduce|lower|decrease] {{a}} by {{b}}{ME} | [Reduce|Lower|Decrease] {{a}} by {{b}}{ME}.
{IF} [subtract|take|deduct|remove] {{b}} from {{a}}, {GET}?
{DO_I} [subtract|take|deduct|remove] {{b}} from {{a}}?
{WHAT} {{b}} less than {{a}}[| then| please]? | {FIND} {{b}} less than {{a}}{ME}.
{{b}} [subtracted|taken|deducted|taken away] from {{a}}{DOES}
[Take|Start with|Begin with] {{a}} and [subtract|take away|remove|take off] {{b}}[| please].
"""),
    "*": split(f"""
[Multiply|Please multiply|Now multiply|Just multiply] {{a}} [by|and|with] {{b}}{ME}.
{CAN} multiply {{a}} [by|and|with] {{b}}{ME} | {{a}} multiplied [by|with] {{b}}{DOES}
{WHAT} {{a}} multiplied [by|with] {{b}}[| then| please]? | {FIND} {{a}} multiplied [by|with] {{b}}.
{WHAT} the product of {{a}} and {{b}}[| then| please]? | {FIND} the product of {{a}} and {{b}}{ME}.
The product of {{a}} and {{b}}{DOES} | {IF} multiply {{a}} [by|and|with] {{b}}, {GET}?
{DO_I} multiply {{a}} [by|and|with] {{b}}?
[Take|Start with|Begin with] {{a}} and multiply [it by|it with|that by|by] {{b}}[| please].
[What|How much] [do|would|will] {{a}} [lots|groups|sets|rows] of {{b}} [make|give|come to]?
{WHAT} {{a}} [lots|groups|sets|rows] of {{b}}[| then| please]?
"""),
    "/": split(f"""
[Divide|Please divide|Now divide|Just divide] {{a}} by {{b}}{ME}. | {CAN} divide {{a}} by {{b}}{ME}
{{a}} [divided by|over|split by|shared by] {{b}}{DOES}
{WHAT} {{a}} [divided by|over|split by] {{b}}[| then| please]?
{FIND} {{a}} [divided by|over|split by] {{b}}{ME}.
[Split|Divide|Cut|Break] {{a}} into {{b}} [equal|even] [parts|pieces|groups][| please| for me].
{CAN} [split|divide|cut] {{a}} into {{b}} [equal|even] [parts|pieces]{ME}
[Share|Split|Divide] {{a}} [among|between] {{b}}[| equally| fairly| evenly][| please].
How [often|many times] [does|will|can] {{b}} [go|fit] into {{a}}[| then| please]?
{IF} divide {{a}} by {{b}}, {GET}? | {DO_I} divide {{a}} by {{b}}?
{WHAT} the quotient of {{a}} and {{b}}[| then| please]?
{FIND} the quotient of {{a}} and {{b}}{ME}.
[Take|Start with|Begin with] {{a}} and divide [it by|that by|by] {{b}}[| please].
"""),
}
DO = {op: [text for pattern in split(patterns) for text in variants(pattern)]
      for op, patterns in {
    "+": "add {c}[|||| to it| to that| more| on top] | [add another|increase it by] {c}",
    "-": "[subtract|subtract|take away|deduct|remove] {c} | take {c} [away|off] "
         "| subtract {c} from [it|that] | reduce it by {c}",
    "*": "multiply [by|by|it by|that by|the result by|with|it with] {c}",
    "/": "divide [by|by|it by|that by|the result by] {c} | split it into {c} equal parts",
}.items()}
WORDS = {"+": ["plus {c}", "plus {c}", "plus another {c}"],
         "-": ["minus {c}", "minus {c}", "less {c}"],
         "*": ["times {c}", "times {c}", "multiplied by {c}"], "/": ["divided by {c}"]}

END = "[.|, please.|. What is the result?|. What do I get?|. What is it now?|. Tell me the result.]"
HEADS = [(head, END) for head in split("""
[Start with|Begin with|Start at|Begin at|Start from] {a}[,| and|, then|;|:]
[Take|Take the number|First take|Let us take] {a}[,| and|, then|;|:]
[With|From|Given|Starting with|Starting from|Beginning with] {a}[,|:]
[I have|I start with|My number is|Here is|We have] {a}[:|;|. Now|, now|. Please]
[Calculate|Compute|Work out|Solve|Work this out|Step by step|Do this]: {a}[,|;|, then]
{a}[,|;|:|, then| and]
[Think of|Pick|Write down|Choose|Enter|Type] {a}[,| and|, then|;]
[Use the calculator|Use a calculator|On the calculator]: {a}[,|;|, then]
""")] + [
    ("[If|When] [I|you|we] [take|start with|begin with] {a}[,| and]",
     ", [what do I get|what is the result|what comes out|what is it]?"),
    ("[What do I get|What comes out|What is the result|How much is it] [if|when] [I|you] "
     "[take|start with] {a}[,| and]", "?")]
JOINTS = ["[, then| and then|, and then|; then|, next]", "[, after that|, and| and|,|;]"]
LAST = "[, then| and then|, and then|, finally|, and finally|, and| and|,|;| and at last]"
SAY = "[Start with|Begin with|Take|I have|My number is|Start at|Here is|Think of|Let x be] {a}"
POINT = "[. Then {q}|. After that, {q}|. Next, {q}|. {Q}|. Now {q}|. And then {q}]"
STOP = "[. Then {s}|. After that, {s}|. Next, {s}|. {S}|. Finally, {s}|. At last, {s}]"
FIRST = ["[. First {p}|. First, {p}|. Now {p}]", "[. {P}|. Then {p}|. Please {p}]"]
ASK = "[What is|What's|How much is|Calculate|Compute|Work out|Solve|Tell me]"
AND = "[, then|, and then| and then|,|, and|; then]"
CHAINS = {
    2: [f"{head} {{p}}{LAST} {{q}}{end}" for head, end in HEADS]
    + [f"{SAY}{first}{POINT}{END}" for first in FIRST]
    + [f"{ASK} {{a}}[|,] {{u}}{AND} {{v}}[|, please| now]",
       f"{{a}}[|,] {{u}}{AND} {{v}}[|, please| =| is what]"],
    3: [f"{head} {{p}}{joint} {{q}}{LAST} {{s}}{end}" for head, end in HEADS for joint in JOINTS]
    + [f"{SAY}{first}{POINT}{STOP}[.|. What is the result?|. What do I get?]" for first in FIRST]
    + [f"{ASK} {{a}}[|,] {{u}}{AND} {{v}}{AND} {{w}}", f"{{a}}[|,] {{u}}{AND} {{v}}{AND} {{w}}"],
}
NOW = split("""
[Now|And|Then|And now|And then|Next|Next,|Now please] {p}[.| please.|, please.| too.]
[Ok, now|Good, now|Great, now|Thanks, now|Then please|So|Also|Finally|After that] {p}[.| please.]
[Now|And|Then|And now|And then|Ok, now|Good, then|Next] {u}[.|?|, please.| please]
{p}[.| please.|, please.| now.| next.| again.| too.| then.|, then what?|, and now?|, ok?]
{u}[.|?|, please.| now.| then.| next.|, and now?|, what is that?|, how much?|, then what?|, ok?]
[Can you|Could you|Can you now|Could you also|Would you then|Can we|Will you please] {p}[| now]?
[Take|Use] [that|the result|this|the number|the last result] and {p}[.| please.]
[What if|What do I get if|How much is it if|What happens if|And if] [I|you|we] [|now |then ]{p}?
[The result|That|The last result|The answer|That number] {u}[|, please| please| now| is what]?
[What is|How much is|What's] [that|the result|it|this] {u}[| now| then| please]?
[With that|From that|From there|With the result|Using that],[| please| now| then] {p}.
[Use the result|Continue|Again|Next step|One more step|Go on]: {p}[.| please.| now.]
[Let us|Let's|Now let us|Then let's|Please] [|also |just |simply ]{p}[.| please.| too.]
[I want to|I would like to|I want you to|I need you to|Go on and] [|now |also |just ]{p}.
""")


def filled(rng, template, steps):
    """Put steps (op, number) into a template: the text, and each step as the text has it."""
    phrases = []
    for (op, c), order, words in zip(steps, "pqs", "uvw", strict=False):
        plain = f"{{{words}}}" in template
        phrase = rng.choice((WORDS if plain else DO)[op]).replace("{c}", str(c))
        for key, text in ((order, phrase), (words, phrase),
                          (order.upper(), phrase[0].upper() + phrase[1:])):
            template = template.replace(f"{{{key}}}", text)
        phrases.append(phrase)
    return template, phrases
