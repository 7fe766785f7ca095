"""Lessons as ids with a weight for each target, packed into the batch of a step.

The last answer of a lesson is learned, with its thinking and calls (weight 1), and a little of
everything else.
"""

from collections import Counter
from typing import NamedTuple

import torch

from k2ref.conversation import template
from scripts.tiny import evaluate
from scripts.tiny.lessons import lessons

REST = 0.1  # the weight of what is not the last answer
THINNED = 4  # of it one token in so many is taken, with so many times the weight
LENGTH = 16  # lessons are filled up to a multiple of this: few lengths, many lessons of each


class Encoder:
    """Turn lessons into ids with the weight of each as a target."""

    def __init__(self, tokenizer):
        self.tokenizer, self.id = tokenizer, tokenizer.special_id

    def reply(self, message):
        """Encode what the model writes: thinking, content, calls."""
        text, out = self.tokenizer.encode, [self.id("<think>")]
        out += text(message["reasoning_content"]) + [self.id("</think>")]
        out += text(message["content"]) if message["content"] else []
        if message.get("tool_calls"):
            out.append(self.id("<|tool_calls_section_begin|>"))
            for call in message["tool_calls"]:
                out += [self.id("<|tool_call_begin|>"), *text(call["id"]),
                        self.id("<|tool_call_argument_begin|>"),
                        *text(call["function"]["arguments"]), self.id("<|tool_call_end|>")]
            out.append(self.id("<|tool_calls_section_end|>"))
        return [*out, self.id("<|im_end|>")]

    def encode(self, messages, tools, rng, skip=0):
        """Return the ids of a lesson and their weights; the prompt is what `render` gives.

        Earlier answers of the prompt have lost their thinking: those are never learned, nor the
        first `skip` calls, which no one could have foretold.
        """
        prompt = list(template.render(self.tokenizer, messages[:-1], tools or None,
                                  style="k2-thinking"))
        reply = self.reply(messages[-1])
        weights = [REST * THINNED * (rng.random() < 1 / THINNED) for _ in prompt]
        roles = [m for m in messages[:-1] if m["role"] == "assistant"]
        answered = max((i for i, m in enumerate(roles) if not m.get("tool_calls")), default=-1)
        end, start, n = self.id("<|im_end|>"), self.id("<|im_assistant|>"), -1
        inside = False
        for at, id in enumerate(prompt):
            if id == start:
                n, inside = n + 1, True
                opened = at
            if inside and at > opened + 2:  # after <|im_assistant|>assistant<|im_middle|>
                weights[at] = 1.0 if n > answered and skip <= n < len(roles) else 0.0
            if id == end:
                inside = False
        return prompt + reply, weights + [1.0] * len(reply)


def documents(encoder, seed, step, n_tokens, is_long, n_pages, seen=None, asked=()):
    """Draw and encode the lessons of one step: a list of (ids, weights).

    The exchanges in them are added to `seen`, for the proof. A conversation that holds a question
    of `asked` is left out: noise can make one phrasing of another.
    """
    rng, out, n = lessons.seeded(seed, step), [], 0
    while n < n_tokens:
        skip = 0
        if is_long:
            drawn = lessons.long_trail(rng, rng.randint(n_pages // 2, n_pages))
        elif rng.random() < 0.1:
            drawn = lessons.window(rng)
            skip = 1
        else:
            drawn = lessons.lesson(rng)
        messages, tools, exchanges = drawn
        if any(exchange.question in asked for exchange in exchanges):
            continue
        if seen is not None:
            seen += exchanges
        out.append(encoder.encode(messages, tools, rng, skip))
        n += len(out[-1][0])
    return out


class Batch(NamedTuple):
    """Hold the lessons of a step, one behind the other, sorted by length; N tokens in all.

    Every lesson is filled up to a multiple of `LENGTH`; what fills up is never learned. `groups`
    says how they lie: (lessons, length) of each length.
    """

    ids: torch.Tensor  # (N,)
    positions: torch.Tensor  # (N,), from 0 in each lesson
    starts: torch.Tensor  # where each lesson begins, and where the last ends; int32
    here: torch.Tensor  # (n,), the places whose next token is learned
    targets: torch.Tensor  # (n,)
    weights: torch.Tensor  # (n,)
    groups: list
    n_tokens: int  # without what fills up
    proof: dict  # Trap: a Counter would come out of a DataLoader with its counts doubled, twice


def up_to(n, size):
    """Round up to a multiple."""
    return -(-n // size) * size


def packed(docs, pad, proof=()):
    """Pack documents, a list of (ids, weights), into a batch."""
    docs = sorted(docs, key=lambda doc: up_to(len(doc[0]) - 1, LENGTH))
    ids, positions, targets, weights, starts = [], [], [], [], [0]
    for doc, weight in docs:
        n = len(doc) - 1
        fill = up_to(n, LENGTH) - n
        ids += doc[:-1] + [pad] * fill
        targets += doc[1:] + [pad] * fill
        weights += weight[1:] + [0.0] * fill
        positions += range(n + fill)
        starts.append(len(ids))
    weights = torch.tensor(weights)
    here = weights.nonzero()[:, 0]
    sizes = Counter(b - a for a, b in zip(starts, starts[1:], strict=False))
    return Batch(torch.tensor(ids), torch.tensor(positions),
                 torch.tensor(starts, dtype=torch.int32), here, torch.tensor(targets)[here],
                 weights[here], [(n, length) for length, n in sizes.items()],
                 sum(len(doc) for doc, _ in docs), dict(proof))


def proof_of(exchanges, asked):
    """Count what exchanges hold of the split, what of it is held out, and what is evaluated."""
    held, bad = lessons.held_out(exchanges)
    return {"questions": len(exchanges), "held": len(held), "held_out": len(bad),
            "asked": sum(exchange.question in asked for exchange in exchanges)}


class Lessons(torch.utils.data.Dataset):
    """The batches of a schedule by step, drawn where they are asked for, in any process."""

    def __init__(self, tokenizer, pad, seed, n_tokens, plan):
        self.encoder, self.pad, self.seed = Encoder(tokenizer), pad, seed
        self.n_tokens, self.plan, self.asked = n_tokens, plan, evaluate.questions()

    def __getitem__(self, step):
        seen = []
        docs = documents(self.encoder, self.seed, step, self.n_tokens, *self.plan(step), seen,
                         self.asked)
        return packed(docs, self.pad, proof_of(seen, self.asked))
