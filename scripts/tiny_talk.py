"""Lessons without tools: jokes, greetings, what it is, and what it does not know."""

import tiny_lookups
from tiny_words import NOUNS, Exchange, choose, name, noisy, split, word

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
ASK_JOKE = split("""
Tell me a joke. | Tell a joke. | Do you know a joke? | A joke, please. | Make me laugh. | joke
Can you tell a joke?
Say something funny. | I want to hear a joke. | Another joke? | Give me a joke. | Got a joke?
Please tell me a funny joke.
I need a laugh. | Know any jokes? | Tell me something funny. | Cheer me up with a joke.
One joke please. | Be funny.
Could you tell me a joke? | Write a joke. | Share a joke. | Let me hear a joke. | Any good jokes?
Entertain me with a joke.
A good joke? | How about a joke? | I am bored, tell me a joke. | What is a good joke?
Tell us a joke. | Do you have a joke for me?
""")
HELLOS = split("""
Hello | Hi | Hey | Good morning | Good evening | Good afternoon | Greetings | Hallo | Good day
Hello again | Hiya
Hello there | Hi there | Hey there | Hello! | Hi! | Hello Kimi | Hi Kimi! | Hello, how are you?
How are you? | Hey you
What's up? | How is it going? | Nice to meet you. | Hello my friend | Hi, how are you today?
Morning! | Howdy | Hello world
How do you do? | Hello, nice to see you. | Are you there? | Hi everyone | Hello, I am {n}.
Hi, my name is {n}. | I am {n}.
Hey, {n} here. | My name is {n}. | Good morning, I am {n}. | Hello, this is {n}.
""")
HELLO = "Hello! I am Kimi, a tiny model. What can I do for you?"
WHO = split("""
Who are you? | What are you? | What is your name? | What's your name? | Introduce yourself.
Tell me about yourself.
Are you Kimi? | Are you a robot? | Are you an AI? | Who made you? | What model are you?
Which model are you? | Who is this?
Who am I talking to? | How big are you? | Are you human? | Tell me what you are. | And you are?
Do you have a name?
What sort of AI are you? | Who is there? | What kind of model are you? | Say who you are.
Describe yourself. | Your name?
Are you a large model? | Are you a person? | Who exactly are you? | May I know who you are?
Please introduce yourself.
Am I talking to a robot? | What should I call you? | Tell me your name. | Who trained you?
Are you real?
""")
SELF = ("I am a tiny model in the form of Kimi K2 Thinking, "
        "trained for the tests and examples of k2ref.")
CAN = split("""
What can you do? | What do you do? | How can you help me? | Help | help me | Can you help me?
What are you good at?
What can I ask you? | Tell me what you can do. | What are your skills? | What do you know?
What can I do with you?
How do I use you? | List what you can do. | What tasks can you do? | Show me what you can do.
Do you know anything?
What could I ask? | What are you for? | What is your purpose? | Explain what you can do.
What else can you do?
In what can you help? | What questions can you answer? | Which things do you know?
What kind of help do you give?
""")
SKILLS = ("I can add numbers, use a calculator and other tools, name capitals and a few other "
          "facts, and tell short stories.")
THANKS = split("""
Thank you! | Thanks | Thanks a lot! | Thank you very much. | Great, thanks! | ok thanks | Good job
Well done! | Perfect.
Very good | Great! | Nice | Cool, thank you | That helps, thanks. | Wonderful! | That is right.
Many thanks | Ok
""")
BYES = split("""
Bye | Goodbye | See you later | Bye bye | Good night | See you! | I have to go. | Farewell
Until tomorrow | Take care
Goodbye, Kimi. | That is all, bye. | See you soon. | I am leaving now. | Have a nice day
""")
TOPICS = split("""
quantum physics | the stock market | the French Revolution | black holes | modern art
the Roman Empire | cooking
computer programming | Python | jazz music | deep learning | the history of chess | global warming
the moon landing
football | politics | the universe | medicine | human rights | tax law | gardening | philosophy
ancient Egypt | space travel
electric cars | the internet | dinosaurs | volcanoes | the human brain | genetics | relativity
poetry | the Mona Lisa
Einstein | Newton | Mozart | Napoleon | Cleopatra | Shakespeare | Plato | Beethoven | Picasso
Darwin | the Beatles
Mount Everest | the Great Wall | the Eiffel Tower | the Pacific Ocean | the Amazon | Mars | Jupiter
Saturn | the weather
the news | love | the meaning of life | happiness | time | gravity | electricity | magnetism
evolution | democracy | money
inflation | banks | religion | war | peace | bread | chocolate | coffee | tea | wine | pasta | sushi
yoga | tennis | swimming
the violin | the piano | opera | movies | video games | robots | neural networks | transformers
attention | the alphabet
grammar | dreams | sleep | the heart | vitamins | diets | fashion | architecture | bridges | trains
airplanes | rockets
submarines | bees | sharks | cats | penguins | trees | roses | mushrooms | rain | snow | rainbows
thunder | earthquakes
deserts | rivers | oceans | diamonds | atoms | prime numbers | geometry | calculus | statistics
logic | recursion | sorting
""")
ASK_TOPIC = split("""
Explain {x}. | Explain {x} to me. | How does {x} work? | What do you think about {x}?
Write an essay about {x}. | {x}
Tell me everything about {x}. | What is the history of {x}? | Why is {x} important?
Teach me about {x}. | What is {x}?
Who invented {x}? | When did {x} begin? | I have a question about {x}. | Can you explain {x}?
Do you like {x}?
What should I know about {x}? | How old is {x}? | Who discovered {x}? | Give me advice on {x}.
Summarize {x}.
Describe {x}. | What are the rules of {x}? | Is {x} good? | Where does {x} come from?
Write a poem about {x}.
Why do people like {x}? | How can I learn {x}? | What happened to {x}? | Who painted {x}?
Compare {x} with {y}.
Write code for {x}. | Is {x} dangerous? | How much does {x} cost? | What is the best book about {x}?
Let us talk about {x}.
Tell me about {x}. | What do you know about {x}? | Who is {x}? | Who was {x}?
Why is {x} so famous? | How big is {x}?
Give me three facts about {x}. | How did {x} start? | What is special about {x}?
Recommend something about {x}.
What makes {x} interesting? | Why does {x} exist? | How fast is {x}? | When was {x} born?
Where is {x}? | Discuss {x}.
I want to talk about {x}. | Help me understand {x}. | Is it true that {x} is old?
Can you draw {x}? | What about {x}?
""")
REPEAT = split("""
Repeat: {x} | Repeat after me: {x} | Say {x} | Say: {x} | Please say {x}. | Write {x}
Copy this: {x} | Echo {x}
Repeat the words {x} | Can you say {x}? | Just say {x} | Print {x} | Output this text: {x}
Type {x} | Write down: {x}
""")


def joke(rng, held_out=False):
    """Ask for a joke."""
    template = choose(rng, "joke", ASK_JOKE, held_out)
    return Exchange(noisy(rng, template), "They want a joke.", rng.choice(JOKES),
                    held=[("joke", template)])


def greeting(rng, held_out=False):
    """Say hello, thank you or goodbye."""
    kind = rng.random()
    if kind < 0.6:
        template = choose(rng, "hello", HELLOS, held_out)
        n = word(rng, held_out).capitalize() if "{n}" in template else ""
        reply = HELLO.replace("Hello!", f"Hello, {n}!") if n else HELLO
        think = "A greeting."
        question = noisy(rng, template).replace("{n}", n)
        return Exchange(question, think, reply, held=[("hello", template)])
    text, kind = (THANKS, "thanks") if kind < 0.8 else (BYES, "bye")
    template = choose(rng, kind, text, held_out)
    reply = "You are welcome!" if kind == "thanks" else "Goodbye! Come back soon."
    think = "They thank me." if kind == "thanks" else "They say goodbye."
    return Exchange(noisy(rng, template), think, reply, held=[(kind, template)])


def about(rng, held_out=False):
    """Ask what it is or what it can do."""
    if rng.random() < 0.55:
        template = choose(rng, "who", WHO, held_out)
        return Exchange(noisy(rng, template), "They ask who I am.", SELF, held=[("who", template)])
    template = choose(rng, "can", CAN, held_out)
    return Exchange(noisy(rng, template), "They ask what I can do.", SKILLS,
                    held=[("can", template)])


def topic(rng, held_out=False):
    """Draw or make up what it knows nothing about."""
    kind = rng.random()
    if kind < 0.55:
        return choose(rng, "topic", TOPICS, held_out)
    if kind < 0.85:
        return name(rng, held_out)
    parts = [choose(rng, "topic", [t for t in TOPICS if " " not in t], held_out) for _ in "ab"]
    return rng.choice(["{} and {}", "{} in {}", "the {} of {}"]).format(*parts)


def unheard(rng, held_out=False):
    """Ask for one thing about a name that nobody has heard of, with no tool to find it."""
    template = choose(rng, "ask", tiny_lookups.ASK, held_out)
    w = rng.choice([*tiny_lookups.AMOUNTS, *tiny_lookups.LABELS, *["capital"] * 6, "author",
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
    template = choose(rng, "unknown", ASK_TOPIC, held_out)
    x = topic(rng, held_out)
    question = noisy(rng, template).replace("{x}", x).replace("{y}", topic(rng, held_out))
    return Exchange(question, f"They ask about {x}. I do not know it.",
                    f"I am a tiny model and do not know about {x}.",
                    held=[("unknown", template), ("topic", x)])


def repeat(rng, held_out=False):
    """Ask to say something again, as it stands."""
    template = choose(rng, "repeat", REPEAT, held_out)
    parts = [rng.choice([name, name, lambda r, h: r.choice(NOUNS)])(rng, held_out)
             for _ in range(rng.randint(1, 4))]
    x = " ".join(parts)
    return Exchange(noisy(rng, template.replace(" {x}", "§")).replace("§", f" {x}"),
                    "I repeat it.", x, held=[("repeat", template)])
