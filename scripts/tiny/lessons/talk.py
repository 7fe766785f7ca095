"""Lessons without tools: jokes, greetings, what it is, and what it does not know."""

from scripts.tiny.lessons import lookups
from scripts.tiny.lessons.openers import telling
from scripts.tiny.lessons.words import (
    HEROES,
    NOUNS,
    Exchange,
    choose,
    is_held_out,
    name,
    noisy,
    phrasing,
    split,
    word,
)

JOKES = split("""
Why did the chicken cross the road? To get to the other side.
What is brown and sticky? A stick.
Why do bees hum? Because they do not know the words.
What has four legs and cannot walk? A table.
Why was six afraid of seven? Because seven ate nine.
What do you call a fish with no eyes? A fsh.
Why did the book look sad? It had too many problems.
What gets wet while it dries? A towel.
Why do birds fly south? Because it is too far to walk.
What has hands but cannot clap? A clock.
""")
ASK_JOKE = telling("[a joke|a good joke|a funny joke|one joke|another joke|jokes]") + split("""
[Say|Tell me|Tell us|Write|Do you know] something [funny|really funny|to laugh about][.| now.]
[Make me|Make us|Let me|Let us] [laugh|laugh a little|laugh out loud|smile][.| now.| with a joke.]
[I am|I'm|We are] [bored|sad|so bored|tired], [tell me a joke|make me laugh|cheer me up][.| now.]
[Cheer me up|Entertain me|Amuse me|Surprise me|Entertain us] with [a joke|some joke|jokes][.| now.]
[Know|Got|Have] [any|some|a few] [jokes|good jokes|funny jokes][?| for me?| for us?]
[I need|I want|I could use] [a laugh|a good laugh|to laugh|something funny|some fun][.| now.]
[Be|Now be|Can you be|Could you be|Try to be] funny[.| for me.| for once.]
""")
HELLOS = split("""
[Hello|Hi|Hey|Hiya|Hallo|Howdy][| there| Kimi| again| you| my friend| everyone| friend]
[Good morning|Good evening|Good afternoon|Good day|Greetings][| Kimi| to you| my friend| again]
[Hello|Hallo|Good morning|Good day], [how are you|how is it going|how do you do][| today]?
[How are you|How is it going|How are things|How do you do|How do you feel][| today| this morning]?
[Hello|Hallo|Good morning|Good day], [I am|my name is|this is|I'm] {n}.
[I am|My name is|I'm|This is|They call me|You can call me] {n}[.|, hello.|, nice to meet you.]
[Nice|Glad|Good|Happy|Pleased] to [meet|see] you[.| Kimi.| today.| again.]
[Hello|Hallo|Good morning|Good day], [nice|good|glad] to [meet|see] you[.| again.]
[Are you there|Are you awake|Is anybody there|Anybody there|Anyone there|Can you hear me][?| now?]
[What's|What is] [up|new|going on|happening][?| today?| there?]
[Morning|Evening|Afternoon|Welcome|Salutations|Hey ho|Yo][| everyone| Kimi| all]
""")
HELLO = "Hello! I am Kimi, a tiny model. What can I do for you?"
WHO = split("""
[Who|What] are you[?| exactly?| really?| anyway?| then?| actually?| in short?]
[So|And|But|Tell me,|Say,|First,] [who|what] are you[?| exactly?| really?]
[What is|What's|Tell me|Say|Give me|May I know|I want to know|Do you know] your name[?| again?]
[Do you have|Have you got|Did they give you] [a name|any name|a real name][?| at all?]
[What|How] [should|can|may|do|shall] I call you[?| then?| now?]
[Introduce|Describe|Present|Explain] yourself[.| to me.| in short.| to us.| in a sentence.]
[Tell me|Tell us|Say|I want to know|Let me know] [something|more|a bit] about yourself[.| now.]
[Are you|So are you|Tell me, are you|Or are you] [Kimi|a robot|an AI|human|a person|real|alive]?
[Are you|So are you] a [large|small|big|tiny|good|new] [model|language model|program|AI]?
[Who|What company|Which people] [made|trained|built|created|programmed|wrote] you[?| anyway?]
[What|Which|What kind of|What sort of] [model|AI|robot|program|machine] are you[?| exactly?]
[Who|What] am I [talking to|speaking with|chatting with|talking with][?| here?| now?]
[Tell me|Tell us|Say|Explain|Let me know|I wonder|I want to know] [who|what] you are[.| exactly.]
[How big|How large|How small|How old] are you[?| then?| really?| as a model?]
[Am I|Are we] [talking to|speaking with|chatting with] [a robot|a machine|a person|an AI|a human]?
[Who is|Who's] [this|there|speaking|answering][?| now?| here?]
[Your|And your|What about your] [name|identity][?| then?| again?]
""")
SELF = ("I am a tiny model in the form of Kimi K2 Thinking, "
        "trained for the tests and examples of k2ref.")
CAN = split("""
[What|And what|So what|Tell me, what] can you do[?| for me?| for us?| here?| exactly?]
[What else|What other things|What more|Which things|How much] can you do[?| for me?| here?]
[What|And what|So what] do you [do|do here|do all day|offer|support][?| exactly?]
[How|In what|With what|In which way] can you [help|assist][ me| us|]?
[Help|Help me|I need help|Help us|Some help][| now| here]
[Can|Could|Will|Would] you help[ me| us| me a little|][?| now?]
[What|Which things] are you [good at|able to do|made for|useful for|here for][?| exactly?]
[What|And what|So what] are you [for|there for|good for|trained to do|able to do][?| exactly?]
[What|Which questions|What things] [can|could|may|should] I ask[ you|][?| here?]
[Tell me|Show me|List|Explain|Say|I want to know|Let me know] what you can do[.| for me.| here.]
[What|Which] [skills|abilities|talents|functions] [do you have|have you got|are yours]?
[What are|Tell me|List|Name|Show me] your [skills|abilities|talents|strengths|functions][.| here.]
[What|How much|What things|Which facts|Which things] do you know[?| anyway?]
[What can I do|What can I use you for|How do I use you|How can I use you][?| here?]
[What|Which] [tasks|jobs|kinds of tasks|questions] can you [do|solve|answer|handle]?
[What kind of|What sort of|Which|What] help do you [give|offer|have|provide]?
[What is|What's|Tell me|Explain] your [purpose|job|task|use][.| here.]
[Do|Can] you [know anything|do anything|do anything useful|know things|solve problems][?| for me?]
""")
SKILLS = ("I can add numbers, use a calculator and other tools, name capitals and a few other "
          "facts, and tell short stories.")
THANKS = split("""
[Thank you|Thanks|Many thanks|Thank you so much|Thanks a lot][| Kimi| again| for that| for all]
[Great|Cool|Nice|Perfect|Good], [thanks|thank you|many thanks|thanks a lot][| Kimi| again| for all]
[Good|Great|Nice|Excellent|Very good|Fine] [job|work|answer|reply][.| Kimi.| indeed.]
[Great|Perfect|Wonderful|Very good|Nice|Super|Excellent|Fantastic][.| indeed.| Kimi.]
[That is|That's|This is|This was|That was] [right|great|perfect|good|helpful|nice|correct].
[That helps|That helped|This helps|You helped me][| a lot| very much| me much], [thanks|thank you].
[Well done|Well answered|Nicely done|Well said][| Kimi| indeed| my friend]
[You are|You're] [great|helpful|so kind|kind|very kind|the best|wonderful][.| thanks.| indeed.]
[I thank you|I am grateful|I appreciate it|I like it|I love it|That is all I needed][.| Kimi.]
""")
BYES = split("""
[Bye|Goodbye|Bye bye|Farewell|See you|So long|Good night][| Kimi| now| my friend| then| for now]
[See|Talk to] you [later|soon|tomorrow|again|next time|around|next week][.| Kimi.| then.]
[I have to|I must|I need to|I should] [go|leave|stop|go now|go home][.| Bye.| Goodbye.]
[Until|Till] [tomorrow|next time|later|Monday|next week|we meet again][.| then.| Kimi.]
[Take care|Have a nice day|Have a good day|Have a good night|Have a good evening][| Kimi| now| then]
[That is all|That's all|That was all|I am done|We are done|Enough for today], [bye|goodbye|see you].
[I am|I'm] [leaving|leaving now|off|going|going home|done for today][.|, bye.|, goodbye.]
[Sleep well|Good night and sleep well|Good bye|Bye for now|Catch you later|Later][| Kimi| then]
""")
TOPICS = split("""
quantum physics | the stock market | the French Revolution | black holes | modern art
the Roman Empire | cooking | Python | jazz music | the history of chess | global warming
the moon landing | football | politics | the universe | medicine | gardening | philosophy
space travel | the internet | dinosaurs | volcanoes | the human brain | relativity | poetry
Einstein | Newton | Mozart | Napoleon | Shakespeare | Beethoven | Picasso | Darwin | Mount Everest
the Great Wall | the Eiffel Tower | the Pacific Ocean | the Amazon | Mars | Jupiter | Saturn
the weather | the news | love | the meaning of life | happiness | time | gravity | electricity
evolution | democracy | money | banks | religion | war | peace | bread | chocolate | coffee | tea
wine | pasta | yoga | tennis | swimming | the violin | the piano | opera | movies | video games
robots | the alphabet | grammar | dreams | sleep | the heart | fashion | architecture | bridges
trains | rockets | bees | sharks | cats | trees | roses | rain | snow | deserts | rivers | oceans
diamonds | atoms | prime numbers | geometry | logic
""")
ASK_TOPIC = split("""
[Explain|Describe|Summarize|Discuss|Explore|Outline] {x}[.| to me.| for me.| in short.| briefly.]
[Can|Could|Would|Will] you [explain|describe|summarize|discuss] {x}[?| to me?| for me?| in short?]
[Can|Could|Would|Will] you [tell me about|teach me about|talk about|help me with] {x}[?| now?]
[How|Why] does {x} [work|exist|matter|change][?| exactly?| really?| at all?]
[What|Who] [is|was] {x}[?| exactly?| really?| in short?| anyway?]
What [do you think|do you know|should I know|can you say|can you tell me] about {x}[?| now?]
[Write|Make|Give me] [an essay|a poem|a text|a report] [about|on] {x}[.| for me.| for school.]
[Tell me|Teach me|Tell us|Talk to me] [about|more about|something about|all about] {x}[.| now.]
[Tell me|Teach me|I want to know] everything about {x}[.| now.| in detail.]
[What is|Tell me|Explain|Give me|Summarize] the [history|meaning|idea|purpose] of {x}[.| in short.]
[Why|How] is {x} [important|famous|so famous|special|made|useful][?| today?]
[Who|What] [invented|discovered|created|started|destroyed] {x}[?| first?| really?]
[When|How|Why] did {x} [begin|start|end|happen|appear][?| exactly?| at all?]
Where [does|did] {x} come from[?| really?| exactly?| first?]
[I have|Here is|There is] [a question|one question|something to ask] about {x}[.| now.]
[Do you|Do people|Do you really] [like|love|understand|hate|enjoy] {x}[?| too?| much?]
[How old|How big|How fast|How good|How rare] is {x}[?| really?| today?| exactly?]
[Give me|I need|I want|Share] [advice|tips|facts|three facts|details|a lesson] [about|on] {x}.
[What are|Tell me|Explain|Teach me] the [rules|basics|main ideas|parts|benefits] of {x}[.| now.]
[Is|Was] {x} [good|dangerous|true|hard|interesting|healthy][?| for me?| or not?]
[How can I|How do I|Where can I|Should I|Can I] [learn|study|find|see|understand] {x}[?| at home?]
[Why|When] do people [like|study|need|talk about|love] {x}[?| so much?| today?]
[What happened to|What is special about|What is new about|What makes up] {x}[?| today?]
[Let us|I want to|I would like to|Can we|We should] [talk about|discuss|speak about] {x}[.| now.]
[Help me|Teach me to|I want to|I need to] [understand|learn|study] {x}[.| for school.| today.]
[What is the best|Recommend a|I need a good] [book|film|course|page] [about|on] {x}[.| for me.]
[|Topic: |About |My topic is |Next topic: |Subject: ]{x}[| in short| today|: explain]
""")
REPEAT = split("""
[Repeat|Say|Copy|Echo|Print|Type|Output|Say back|Write back]: {x}
[Repeat|Copy|Echo|Print|Output|Say|Type] [after me|this|the following|these words|exactly]: {x}
[Say|Write|Repeat|Echo|Print|Type|Copy|Just say|Just write|Only say|Now say|Now repeat] {x}
[Can|Could|Would|Will] you [say|repeat|write|echo|type|copy|print] {x}?
[Can|Could|Would|Will] you [say|repeat|write|copy] [this|the following|exactly this|after me]: {x}
[Repeat|Copy|Write|Say|Type|Print|Echo] the [words|text|line] {x}
[Write down|Say again|Say it back|Type out|Read aloud|Read out|Answer with|Reply with]: {x}
[Say|Write|Type|Repeat] [exactly|just|only|simply] {x}
[I want you to|You should|You must|Now you] [say|repeat|write|copy|echo]: {x}
[Your answer is|The words are|Answer only|Reply only with|The text is|Say after me|Now say]: {x}
[Say|Write|Repeat|Copy|Type|Echo] [back to me|it back|once more|for me|again|word by word]: {x}
[Could you|Can you|I want to hear you|I'd like you to|Will you] [repeat|echo|copy|type]: {x}
""")
# The words of all topics, each once: what is asked about must also be something it has copied.
WORDS = list(dict.fromkeys(" ".join(TOPICS).split()))


def joke(rng, held_out=False):
    """Ask for a joke."""
    template = phrasing(rng, "joke", ASK_JOKE, held_out)
    return Exchange(noisy(rng, template), "They want a joke.", rng.choice(JOKES),
                    held=[("joke", template)])


def greeting(rng, held_out=False):
    """Say hello, thank you or goodbye."""
    kind = rng.random()
    if kind < 0.6:
        template = phrasing(rng, "hello", HELLOS, held_out)
        n = word(rng, held_out).capitalize() if "{n}" in template else ""
        reply = HELLO.replace("Hello!", f"Hello, {n}!") if n else HELLO
        think = "A greeting."
        question = noisy(rng, template).replace("{n}", n)
        return Exchange(question, think, reply, held=[("hello", template)])
    text, kind = (THANKS, "thanks") if kind < 0.8 else (BYES, "bye")
    template = phrasing(rng, kind, text, held_out)
    reply = "You are welcome!" if kind == "thanks" else "Goodbye! Come back soon."
    think = "They thank me." if kind == "thanks" else "They say goodbye."
    return Exchange(noisy(rng, template), think, reply, held=[(kind, template)])


def about(rng, held_out=False):
    """Ask what it is or what it can do."""
    if rng.random() < 0.55:
        template = phrasing(rng, "who", WHO, held_out)
        return Exchange(noisy(rng, template), "They ask who I am.", SELF, held=[("who", template)])
    template = phrasing(rng, "can", CAN, held_out)
    return Exchange(noisy(rng, template), "They ask what I can do.", SKILLS,
                    held=[("can", template)])


def topic(rng, held_out=False):
    """Draw or make up what it knows nothing about.

    Lessons put topics together of any words, so that the topic is copied and not chosen.
    """
    kind = rng.random()
    if kind < 0.4:
        return choose(rng, "topic", TOPICS, held_out)
    if kind < 0.65:
        return name(rng, held_out)
    short = [text for text in TOPICS if " " not in text]
    a, b = ((choose(rng, "topic", short, held_out) if held_out or rng.random() < 0.3
             else rng.choice([*WORDS, *HEROES])) for _ in "ab")
    form = rng.choice(["{} and {}", "{} in {}", "the {} of {}", "the {} {}", "{} {}", "the {1}"])
    text = form.format(a, b)
    return text if is_held_out("topic", text) == held_out else topic(rng, held_out)


def unheard(rng, held_out=False):
    """Ask for one thing about a name that nobody has heard of, with no tool to find it."""
    template = phrasing(rng, "ask", lookups.ASK, held_out)
    w = rng.choice([*lookups.AMOUNTS, *lookups.LABELS, *["capital"] * 6, "author",
                    "author"])
    x = choose(rng, "topic", TOPICS, held_out) if rng.random() < 0.3 else name(rng, held_out)
    question = noisy(rng, template).replace("{w}", w).replace("{x}", x)
    return Exchange(question, f"They ask about the {w} of {x}. I do not know it.",
                    f"I am a tiny model and do not know about the {w} of {x}.",
                    held=[("ask", template)])


def unknown(rng, held_out=False):
    """Ask what it does not know: it says so and names the topic."""
    if rng.random() < 0.2:
        return unheard(rng, held_out)
    template = phrasing(rng, "unknown", ASK_TOPIC, held_out)
    x = topic(rng, held_out)
    question = noisy(rng, template).replace("{x}", x)
    return Exchange(question, f"They ask about {x}. I do not know it.",
                    f"I am a tiny model and do not know about {x}.",
                    held=[("unknown", template), ("topic", x)])


def repeat(rng, held_out=False):
    """Ask to say something again, as it stands."""
    template = choose(rng, "repeat", REPEAT, held_out)
    parts = [name(rng, held_out) if rng.random() < 0.4
             else rng.choice(NOUNS if rng.random() < 0.6 else WORDS)
             for _ in range(rng.randint(1, 6))]
    x = " ".join(parts)
    before, _, after = template.partition(" {x}")  # Trap: no noise behind it, it would be copied
    question = noisy(rng, before + "§").partition("§")[0] + f" {x}{after}"
    return Exchange(question, "I repeat it.", x, held=[("repeat", template)])
