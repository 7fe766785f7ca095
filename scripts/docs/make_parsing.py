"""Write docs/parsing.md: every reply that the tests of the parser know, and what becomes of it.

    python -m scripts.docs.make_parsing            rewrite it
    python -m scripts.docs.make_parsing --check    fail if it is not what it would be

The table is that of the tests, tests/reply_cases.py, so what it says is tested.
"""

import argparse
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import reply_cases  # noqa: E402

SHORT = {  # the markers take half of a line
    "<|tool_calls_section_begin|>": "\u27e8section\u27e9",
    "<|tool_calls_section_end|>": "\u27e8/section\u27e9",
    "<|tool_call_section_begin|>": "\u27e8one-section\u27e9",
    "<|tool_call_section_end|>": "\u27e8/one-section\u27e9",
    "<|tool_call_argument_begin|>": "\u27e8arguments\u27e9",
    "<|tool_call_begin|>": "\u27e8call\u27e9",
    "<|tool_call_end|>": "\u27e8/call\u27e9",
}
PARTS = {"What the templates teach": reply_cases.TAUGHT, "Ids": reply_cases.IDS,
         "Arguments": reply_cases.ARGUMENTS, "What models get wrong": reply_cases.FAULTS,
         "Thinking without its first word": reply_cases.FORGOTTEN}
BEFORE = {
    "Ids": "What an id names is decided by `name_of` in `k2ref/conversation/events.py`. Where the "
           "tools are known, it understands more spellings, and never takes one tool for another "
           "(`tests/conversation/test_reply.py`, `test_name_of`).",
    "Thinking without its first word":
        "In the style k2-thinking the model writes `<think>` itself, and may forget it. Then all "
        "before `</think>` is thinking, as in vLLM's parser; a stream holds such text back until "
        "it is known what it is.",
}
HEAD = """\
# What models write, and what it means

A reply is thinking, content and tool calls, with markers between them
(`k2ref/conversation/reply.py`). Models forget markers, repeat them and put them where they do not
belong. Each row below is a reply and the parts that it is split into. Each is a test
(`tests/conversation/test_reply.py::test_parse`), run with three vocabularies: all markers have
ids, all but `<think>` and `</think>` do, none has. It is also cut in two at every byte; and as a
property any mixture of markers and text is cut at any set of bytes. The streamed reply is always
the whole one. The last column says where other engines test the same, or decide otherwise. A call
marked ✂ was cut off: the model did not close it, and nobody may run it.

"""


def code(text):
    """Show a text in a table, whatever is in it."""
    for marker, short in SHORT.items():
        text = text.replace(marker, short)
    text = text.replace("\n", "\u23ce").replace(" ", "\u00a0").replace("|", "\\|")
    return f"`{text}`" if text else ""


def row(name, written, reply):
    """Write one case as a row."""
    cut_off = reply_cases.CUT_OFF.get(name, ())
    calls = "<br>".join(f"{code(call.name) or '(no name)'} {code(call.arguments)}"
                        + " ✂" * (i in cut_off) for i, call in enumerate(reply.tool_calls))
    cells = [name, code(written), code(reply.thinking), code(reply.content), calls,
             reply_cases.ELSEWHERE.get(name, "")]
    return "| " + " | ".join(cells) + " |"


def text():
    """Write the whole file."""
    lines = [HEAD + "In the table a line end is \u23ce, and the markers are short:\n",
             "| marker | here |", "|---|---|",
             *(f"| `{marker.replace('|', chr(92) + '|')}` | `{short}` |"
               for marker, short in SHORT.items())]
    for title, cases in PARTS.items():
        lines += ["", f"## {title}", "", *([*textwrap.wrap(BEFORE[title], 100), ""]
                                          if title in BEFORE else []),
                  "| case | the model writes | thinking | content | calls | elsewhere |",
                  "|---|---|---|---|---|---|"]
        lines += [row(name, *case) for name, case in cases.items()]
    return "\n".join(lines) + "\n"


def main():
    """Rewrite docs/parsing.md, or with --check compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    path = ROOT / "docs" / "parsing.md"
    if parser.parse_args().check:
        if path.read_text(encoding="utf-8") == text():
            return 0
        print("docs/parsing.md is out of date: run python -m scripts.docs.make_parsing",
              file=sys.stderr)
        return 1
    path.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
