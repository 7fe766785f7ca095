"""Pictures of tokens and words: the way of a prompt, the template, what layers and knobs would say.

Each function takes a `Theme` and a `Run` of make_figures.py and returns a matplotlib figure.
"""

import dataclasses
import json
import math

import numpy as np

import k2ref
from k2ref import ops
from k2ref.sampling import probabilities
from k2ref.tokenizer import PATTERN, merge

CHAR = 6.5  # pixels of a character of the monospaced font at 8 points, a little more than it takes
MONO = {"family": "monospace", "fontsize": 8}
SMALL = {"family": "monospace", "fontsize": 7}


def flow(t, ax, items, x, y, right):
    """Set boxes like words in a paragraph; return the bottom of the last line.

    An item is (text, id, fill, edge, ink): the id is written below the text.
    """
    at = x
    for text, id, fill, edge, ink in items:
        width = max(len(text), len(str(id))) * CHAR + 7
        if at + width > right:
            at, y = x, y + 36
        t.box(ax, at, y, width, 31, fill, edge)
        ax.text(at + width / 2, y + 13, text, ha="center", color=ink, **MONO)
        ax.text(at + width / 2, y + 26, id, ha="center", color=t.mid, **SMALL)
        at += width + 3
    return y + 31


def prompt_to_answer(t, run):
    """Follow the prompt through the machine, each step with its size here and in full."""
    c, f = run.config, run.full
    figure, ax = t.canvas(420)
    p = probabilities(run.arrays["logits"][len(run.prompt) - 1])
    best = int(np.argmax(p))
    n, ids = len(run.prompt), " ".join(map(str, run.prompt))
    rows = [
        ("text", f"“{run.question}”", "", ""),
        ("render, encode", ids if len(ids) < 46 else ids[:45].rsplit(" ", 1)[0] + " …",
         f"{n} ids", ""),
        ("embed", "each id becomes a row of numbers", f"{n} × {c.hidden_size}",
         f"{n} × {f.hidden_size:,}"),
        ("attention", "each row takes from the rows before it", f"{c.num_attention_heads} heads",
         f"{f.num_attention_heads} heads"),
        ("experts", "a router picks a few for each row (first layer: one MLP)",
         f"{c.num_experts_per_tok} of {c.n_routed_experts}",
         f"{f.num_experts_per_tok} of {f.n_routed_experts}"),
        ("norm, lm_head", "the last row becomes a logit for each id", f"{c.vocab_size:,} logits",
         f"{f.vocab_size:,} logits"),
        ("sample", f"likeliest here: {run.word(best, 14)}, probability {p[best]:.3f}", "1 id",
         "1 id"),
        ("decode", "“" + cut(run.tokenizer.decode(run.reply).replace("\n", " "), 46) + "”",
         f"{len(run.reply)} ids in all", ""),
    ]
    for x, title in ((548, "embedded model"), (664, "K2 Thinking")):
        ax.text(x, 22, title, color=t.mid, fontsize=8)
    ax.plot([50, 50, 740, 740, 50], [172, 259, 259, 172, 172], color=t.line, linewidth=0.8,
            linestyle=(0, (3, 3)))  # around a layer
    ax.text(548, 219, f"{c.num_hidden_layers} layers of both", fontsize=8.5, weight="bold")
    ax.text(664, 219, f"{f.num_hidden_layers} layers", color=t.mid, fontsize=8.5, weight="bold")
    for i, (name, what, here, full) in enumerate(rows):
        y = 36 + 48 * i
        t.box(ax, 62, y, 118, 28, t.soft if i in (0, len(rows) - 1) else t.faint)
        ax.text(121, y + 18, name, ha="center", weight="bold")
        ax.text(194, y + 18, what, **(MONO if i == 1 else {"fontsize": 8.5}))
        ax.text(548, y + 18, here, fontsize=8.5)
        ax.text(664, y + 18, full, color=t.mid, fontsize=8.5)
        if i + 1 < len(rows):
            t.arrow(ax, (121, y + 29), (121, y + 47))
    top, bottom = 36 + 48 * 2 + 14, 36 + 48 * 6 + 14
    ax.plot([62, 34, 34], [bottom, bottom, top], color=t.accent, linewidth=1)
    t.arrow(ax, (34, top), (61, top), t.accent)
    ax.text(25, (top + bottom) / 2, "the new id goes the same way", rotation=90,
            rotation_mode="anchor", ha="center", color=t.accent, fontsize=8.5)
    return figure


def cut(text, most):
    """Shorten a text that is too long, with an ellipsis."""
    return text if len(text) <= most else text[:most - 1] + "…"


def tokens(t, run):
    """Split sentences into pre-tokens, and those into tokens with ids."""
    samples = [run.question, "365 + 1234 = 1599", "getHTTPResponse(0x1F)", "naïve 日本 🙂"]
    figure, ax = t.canvas(88 * len(samples) - 4)
    for row, text in enumerate(samples):
        top, at, fill = 16 + 88 * row, 16, None
        ax.text(16, top + 4, text, weight="bold")
        for piece in PATTERN.findall(text):
            start, fill = at, t.faint if fill == t.soft else t.soft
            for id in merge(piece.encode(), run.tokenizer.ranks):
                word = run.word(id)
                width = max(len(word), len(str(id))) * CHAR + 7
                flow(t, ax, [(word, id, fill, "none", t.ink)], at, top + 23, 2000)
                at += width + 2
            ax.plot([start, at - 2], [top + 17] * 2, color=t.accent, linewidth=1.2)
            at += 6
    ax.text(744, 37, "line: a piece of the split", ha="right", color=t.accent, fontsize=8.5)
    ax.text(744, 59, "box: a token and its id", ha="right", color=t.mid, fontsize=8.5)
    ax.text(744, 16 + 88 * 3 + 43, "bytes, where a token is part of a character", ha="right",
            color=t.mid, fontsize=8.5)
    return figure


def chat(t, run):
    """Show a conversation with a tool call as the ids that the model reads."""
    tool = {"type": "function", "function": {"name": "lookup", "description": "Look it up.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string"}}}}}
    call = {"id": "functions.lookup:0", "type": "function",
            "function": {"name": "lookup", "arguments": json.dumps({"key": "France"})}}
    messages = [
        {"role": "user", "content": run.question},
        {"role": "assistant", "content": "", "reasoning_content": "I look it up.",
         "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Paris"},
    ]
    turns, end = [[]], run.tokenizer.special_id("<|im_end|>")
    for id in k2ref.render(run.tokenizer, messages, [tool]):
        turns[-1].append(id)
        if id == end:
            turns.append([])
    styles = {"tools": (t.faint, "none"), "system": (t.faint, "none"), "user": (t.soft, "none"),
              "assistant": (t.soft, t.accent), "tool": (t.faint, t.mid)}
    names, height = ["tools", "system", "user", "assistant", "tool", "assistant"], 1000
    controls = set(run.tokenizer.special_tokens.values())
    for _ in range(2):  # once to measure, once on paper of that height
        figure, ax = t.canvas(height)
        y = 14
        for name, turn in zip(names, turns, strict=True):
            ax.text(16, y + 19, name, weight="bold", color=t.accent if name == "assistant"
                    else t.ink)
            items = [(run.word(id), id, *(("none", "none", t.mid) if id in controls else
                                          (*styles[name], t.ink))) for id in turn]
            y = flow(t, ax, items, 96, y, 746) + 16
        ax.text(96, y + 4, "without colour: control tokens, which no text can spell", color=t.mid,
                fontsize=8.5)
        height = y + 16
    return figure


def logit_lens(t, run):
    """Ask each layer's residual for its next token: final norm and lm_head on all of them."""
    n, first = 10, len(run.prompt) - 1
    rows = range(first, min(first + n, len(run.ids)))
    n_layers, left, top, cell = run.config.num_hidden_layers, 106, 50, 64
    figure, ax = t.canvas(top + 40 * (n_layers + 1) + 30)
    for k, at in enumerate(rows):
        ax.text(left + cell * (k + 0.5), 38, run.word(run.ids[at], 9), ha="center",
                family="monospace", fontsize=7.5, color=t.mid)
    ax.text(left, 18, "token read", color=t.mid, fontsize=8.5)
    for i in range(-1, n_layers):
        y = top + 40 * (n_layers - 1 - i)
        last = i == n_layers - 1
        name = f"after layer {i}" if i >= 0 else "embedding"
        ax.text(left - 10, y + 22, name, ha="right", weight="bold" if last else "normal")
        x = ops.rms_norm(run.residual(i)[rows.start:rows.stop], run.model.norm,
                         run.config.rms_norm_eps)
        for k, logits in enumerate(ops.linear(x, run.model.lm_head, 1)):
            p = probabilities(logits)
            best = int(np.argmax(p))
            same = best == int(np.argmax(run.arrays["logits"][rows[k]]))
            t.box(ax, left + cell * k + 1, y, cell - 2, 36, t.soft if same else t.faint)
            middle = left + cell * (k + 0.5)
            ax.text(middle, y + 16, run.word(best, 9), ha="center", family="monospace",
                    fontsize=7.5, color=t.ink)
            ax.text(middle, y + 29, f"{p[best]:.2f}", ha="center", fontsize=7, color=t.mid)
    ax.text(left, top + 40 * (n_layers + 1) + 16, "likeliest next token and its probability; in "
            "colour where it is already the model's", color=t.mid, fontsize=8.5)
    return figure


def sampling(t, run):
    """Show one distribution of the answer under the knobs of sampling."""
    first = len(run.prompt) - 1
    logits = run.arrays["logits"][first:first + max(1, len(run.reply))]
    # Of all tokens of the answer the one whose second choice was likeliest shows most.
    at = int(np.argmax([np.sort(probabilities(row))[-2] for row in logits]))
    row, n = logits[at], 10
    order = np.argsort(-row, kind="stable")[:n]
    knobs = [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.8},
             {"min_p": 0.2}]
    plain, figure = probabilities(row)[order], t.figure(306)
    after = [probabilities(row, **knob)[order] for knob in knobs]
    limit = min(1.0, math.ceil(np.max(after) * 10) / 10)
    for i, (knob, p) in enumerate(zip(knobs, after, strict=True)):
        ax = t.axes(figure, 100 + 109 * i, 60, 88, 214, ylim=(n - 0.5, -0.5), xlim=(0, limit))
        ax.barh(range(n), plain, color=t.faint, height=0.74)
        ax.barh(range(n), p, color=t.accent if knob else t.mid, height=0.36)
        ax.set_yticks(range(n), [run.word(int(id), 12) for id in order] if not i else [""] * n,
                      color=t.ink, **MONO)
        ax.tick_params(axis="y", length=0)
        ax.set_xticks([0, limit], ["0", f"{limit:g}"])
        name = next((f"{key} {value:g}" for key, value in knob.items()), "as it is")
        t.note(ax, 0, -8, name, color=t.accent if knob else t.ink, weight="bold", fontsize=8)
    before = run.tokenizer.decode(run.ids[:first + 1 + at][-6:]).replace("\n", "↵")
    t.note(figure.axes[0], 0, -38, f"probabilities of the likeliest tokens after “…{before}”; wide "
           "and grey: as it is")
    return figure


def same_bits(t, run):
    """Cut the prompt in several ways; cache and last logits are the same, bit for bit."""
    n, c = len(run.prompt), run.config
    cuts = [("whole", [n], 1), ("in two pieces", [n // 3, n - n // 3], 1),
            ("seven at a time", [7] * (n // 7) + [n % 7] * (n % 7 > 0), 1),
            ("token by token", [1] * n, 1), ("by two threads", [n], 2)]
    ends = []
    for _, pieces, threads in cuts:
        model = dataclasses.replace(run.model, threads=threads)
        cache, at = k2ref.KVCache(c, n), 0
        for size in pieces:
            logits = k2ref.forward(model, run.prompt[at:at + size], cache)
            at += size
        ends.append(np.concatenate([logits[-1], *(rows[:n].ravel() for rows in cache.rows)]))
    # NumPy's products round by shape: what the picture says is said of the kernels.
    if ops.kernels and not all((end == ends[0]).all() for end in ends):
        raise SystemExit("same-bits: the caches or the logits differ")
    figure, ax = t.canvas(40 + 46 * len(cuts))
    cell, left, width = 330 / n, 130, 92
    width_of_row = c.kv_lora_rank + c.qk_rope_head_dim
    columns = [(490, f"cache, {c.num_hidden_layers} × {n} × {width_of_row}"),
               (644, f"last logits, {c.vocab_size:,}")]
    ax.text(left, 24, f"the prompt, {n} tokens, as forward reads it", color=t.mid)
    for x, title in columns:
        ax.text(x + width / 2, 24, title, ha="center", color=t.mid)
    for i, (name, pieces, _) in enumerate(cuts):
        y, at = 40 + 46 * i, left
        ax.text(left - 12, y + 17, name, ha="right")
        for size in pieces:
            t.box(ax, at, y, size * cell - 2, 26, t.faint, t.line)
            if size > 1:
                ax.text(at + size * cell / 2 - 1, y + 17, size, ha="center", fontsize=8.5)
            at += size * cell
        for x, _ in columns:
            t.arrow(ax, (x - 26, y + 13), (x - 4, y + 13))
            t.box(ax, x, y, width, 26, t.soft)
            if i:
                ax.text(x + width / 2, y - 6, "==", ha="center", color=t.accent, weight="bold")
        (grid, _), (row, _) = columns
        ax.hlines(y + 6.5 * np.arange(1, 4), grid, grid + width, color=t.accent, linewidth=0.5)
        ax.vlines(row + 8 * np.arange(1, 12), y, y + 26, color=t.accent, linewidth=0.5)
    return figure


PICTURES = {
    "prompt-to-answer": prompt_to_answer, "tokens": tokens, "chat": chat,
    "logit-lens": logit_lens, "sampling": sampling, "same-bits": same_bits,
}  # fmt: skip
