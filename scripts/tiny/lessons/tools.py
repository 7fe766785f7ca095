"""The tools that lessons declare and call, under many names and with many descriptions."""

import json


def tool(name, description, /, **parameters):
    """Declare a tool; parameters are name=description, all strings, all required."""
    fields = {key: {"type": "string", "description": text} if text else {"type": "string"}
              for key, text in parameters.items()}
    return {"type": "function", "function": {
        "name": name, "description": description,
        "parameters": {"type": "object", "properties": fields, "required": list(parameters)}}}


def called(tool):
    """Return a tool's name and that of its first parameter."""
    function = tool["function"]
    return function["name"], next(iter(function["parameters"]["properties"]))


def calculator(rng):
    """Declare a calculator, mostly as `demonstration.calculator` is declared."""
    if rng.random() < 0.4:
        return tool("calculator", "Evaluate an arithmetic expression.",
                    expression="numbers, + - * / // % ** and parentheses")
    title = rng.choice(["calculator"] * 5 + ["calc", "math", "compute", "evaluate"])
    text = rng.choice(["Compute an expression.", "Evaluate an expression.", "A calculator.",
                       "Do arithmetic.", "Calculate the value of an expression."])
    about = rng.choice(["", "", "what to compute", "an expression such as 2 * 3"])
    return tool(title, text, **{rng.choice(["expression"] * 4 + ["formula", "input"]): about})


def lookup(rng):
    """Declare a lookup tool, mostly as `demonstration.lookup` is declared."""
    if rng.random() < 0.3:
        return tool("lookup", "Look up a fact in a small table.", query="what to look for")
    title = rng.choice(["lookup"] * 3 + ["search", "search", "find", "get_info", "database",
                                         "query"])
    text = rng.choice(["Look something up.", "Look up a fact.", "Search the database.",
                       "Find information.", "Find facts about a name."])
    about = rng.choice(["", "", "what to find", "the name"])
    return tool(title, text, **{rng.choice(["query"] * 4 + ["key", "name", "q"]): about})


def visit(rng):
    """Declare a tool that opens a page."""
    title = rng.choice(["visit"] * 4 + ["open_page", "goto", "browse"])
    text = rng.choice(["Open a page.", "Visit a page.", "Open a page and read it."])
    about = rng.choice(["", "", "the page to open", "its name"])
    return tool(title, text, **{rng.choice(["page"] * 4 + ["id", "link"]): about})


OTHER_TOOLS = [
    tool("get_weather", "Get the weather in a city.", city=""),
    tool("send_email", "Send an email.", to="", text=""),
    tool("translate", "Translate a text.", text="", language=""),
    tool("set_timer", "Set a timer.", minutes=""),
    tool("play_music", "Play a song.", song=""),
    tool("write_file", "Write a file.", path="", text=""),
    tool("book_table", "Book a table in a restaurant.", place="", time=""),
]


def kit(rng, *needed):
    """Return the needed tools among up to two others, in any order."""
    tools = list(needed)
    while rng.random() < 0.3 and len(tools) < len(needed) + 2:
        extra = rng.choice([calculator, lookup, visit, None])
        extra = extra(rng) if extra else rng.choice(OTHER_TOOLS)
        kinds = [kind_of(one) for one in tools]
        if kind_of(extra) not in kinds:
            tools.append(extra)
    rng.shuffle(tools)
    return tools


def kind_of(one):
    """Name the kind of a tool by its description, which no two kinds share."""
    text = one["function"]["description"]
    for kind, words in (("calculator", ("expression", "alculator", "arithmetic")),
                        ("lookup", ("Look", "Search", "Find")), ("visit", ("page",))):
        if any(w in text for w in words):
            return kind
    return one["function"]["name"]


def find_calculator(tools):
    """Return the calculator among the tools; None if there is none."""
    return next((one for one in tools if kind_of(one) == "calculator"), None)


def arguments(value):
    """Write a call's arguments as K2 does: JSON."""
    return json.dumps(value, ensure_ascii=False)


def argument(call):
    """Return the value of a call's first argument."""
    return next(iter(json.loads(call[2]).values()))
