"""Lessons as ids with a weight for each target, in groups of similar length.

The last answer of a lesson is learned, with its thinking and calls (weight 1), and a little of
everything else.
"""

import tiny_data
import tiny_net
import torch

from k2ref import template

REST = 0.1  # the weight of what is not the last answer
THINNED = 4  # of it one token in so many is taken, with so many times the weight
GROUP = 4096  # padded tokens of a group at most, unless one row is longer


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


def documents(encoder, seed, step, n_tokens, is_long, n_pages, seen=None):
    """Draw and encode the lessons of one step: a list of (ids, weights).

    The exchanges in them are added to `seen`, for the proof.
    """
    rng, out, n = tiny_data.seeded(seed, step), [], 0
    while n < n_tokens:
        skip = 0
        if is_long:
            drawn = tiny_data.long_trail(rng, rng.randint(n_pages // 2, n_pages))
        elif rng.random() < 0.08:
            drawn = tiny_data.window(rng)
            skip = 1
        else:
            drawn = tiny_data.lesson(rng)
        messages, tools, exchanges = drawn
        if seen is not None:
            seen += exchanges
        out.append(encoder.encode(messages, tools, rng, skip))
        n += len(out[-1][0])
    return out


def grouped(docs, pad):
    """Pad documents of similar length to groups: inputs, targets, weights of each group.

    list of (ids, weights) -> list of (B, T), list of (B, T), list of (B, T)
    """
    docs = sorted(docs, key=lambda doc: len(doc[0]))
    groups = [[]]
    for doc in docs:
        n, rows = len(doc[0]), groups[-1]
        if rows and ((len(rows) + 1) * n > GROUP or n > len(rows[0][0]) * 1.3):
            groups.append([])
        groups[-1].append(doc)
    inputs, targets, weights = [], [], []
    for rows in groups:
        length = tiny_net.up_to(max(len(ids) for ids, _ in rows) - 1, tiny_net.LENGTH)
        x = torch.full((len(rows), length), pad)
        y, w = torch.full_like(x, pad), torch.zeros(len(rows), length)
        for row, (ids, weight) in enumerate(rows):
            x[row, :len(ids) - 1] = torch.tensor(ids[:-1])
            y[row, :len(ids) - 1] = torch.tensor(ids[1:])
            w[row, :len(ids) - 1] = torch.tensor(weight[1:])
        inputs.append(x)
        targets.append(y)
        weights.append(w)
    return inputs, targets, weights
