"""Write down what the embedded model answers: golden answers for the tests.

    python -m scripts.tiny.answers            rewrite tests/data/tiny_golden.json

Greedy, through the agent and the demonstration tools, as `python -m k2ref` does it. A case is a
list of questions of one conversation; kept are the model's messages, thinking and calls included.
"""

import json
import sys
from pathlib import Path

import k2ref
from k2ref.tools.demonstration import DEMONSTRATION

GOLDEN = Path(__file__).parents[2] / "tests/data/tiny_golden.json"
CASES = [  # (tools, questions)
    (["calculator"], ["What is 4821 * 377?"]),
    (["calculator"], ["What is 120 + 35?", "Now times 3."]),
    (["lookup"], ["Look up iron."]),
    ([], ["What is 37 + 58?"]),
    ([], ["What is the capital of France?", "And of Spain?"]),
    ([], ["Hello!"]),
    ([], ["Who are you?"]),
    ([], ["What is quantum physics?"]),
    ([], ["Tell me a story about a fox."]),
]


def play(model, tools, questions):
    """Ask the questions of one conversation; return the messages that the model wrote."""
    agent = k2ref.Agent(model, [DEMONSTRATION[name] for name in tools], max_steps=5,
                        temperature=0, max_new_tokens=400)
    for question in questions:
        for _ in agent.run(question):
            pass
    return [message for message in agent.messages if message["role"] == "assistant"]


def main():
    """Play all cases and write them down."""
    model = k2ref.load(threads=1)
    found = [{"tools": tools, "questions": questions, "written": play(model, tools, questions)}
             for tools, questions in CASES]
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
