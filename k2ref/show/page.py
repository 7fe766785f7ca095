"""The page that shows a run: every token, how it was chosen, and what the layers did with it.

    python -m k2ref "prompt" --show out.html

`collect` takes from a trace what the page needs, within a budget of bytes, and says what it left
out; `page` puts it into one HTML file that loads nothing from anywhere.

Chapter 16.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np

from k2ref.show.readings import (
    attention_weights,
    bytes_of_stages,
    choice,
    final_rows,
    lens,
    sections,
    strongest,
    word,
)

# A star also stands for dots, so the residual's names are spelled out by digits.
RECORDED = ("embed", "layers.*.attn.q_*", "layers.*.attn.c_kv", "layers.*.attn.k_rope",
            "layers.*.moe.chosen", "layers.*.moe.mix", "layers.[0-9].out",
            "layers.[0-9][0-9].out", "layers.[0-9][0-9][0-9].out", "logits")  # fmt: skip
BUDGET = 4_500_000  # characters of data: what a phone still opens at once
FOR_ATTENTION = 0.4  # of the budget, at least
MOST_ASKED = 300  # characters of the prompt that stand above it all
MOST_TOKENS = 4000  # that a browser lays out without a pause
LENS_WORK = 1e13  # multiplications, so that no page takes longer than minutes
N_TOP, N_LENS = 8, 5  # alternatives of a token; words of a layer's guess
N_KEYS, FEW_KEYS = 64, 4  # earlier tokens that a head is seen to look at, at most and at least
CODE, SCRIPTS = Path(__file__).parent / "assets", ("data.js", "panels.js", "maps.js")


def page(model, arrays, about):
    """Return the page of a run, as text.

    `arrays` are those of a trace (RECORDED, `ids`, `position`, `time_s`). `about` says what was
    asked of which `checkpoint`, the `k2ref` and `kernels` that ran, the `stages` timed, the
    `settings` of sampling, the `stop_ids`, and `replies`, each as [tokens of the prompt, ids
    written, reason to end].
    """
    def text(name):
        return (CODE / name).read_text(encoding="utf-8")

    data = json.dumps(collect(model, arrays, about), separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # what the model says must not end the element that holds it
        data = data.replace(character, f"\\u{ord(character):04x}")
    parts = {"title": html.escape(about["asked"][:80]), "data": data, "css": text("page.css"),
             "js": "\n".join(map(text, SCRIPTS))}  # fmt: skip
    parts |= {f"{name}_hash": _sha256(parts[name]) for name in ("css", "js")}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], text("page.html"))


def _sha256(text):
    """Return the name by which a Content-Security-Policy allows an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def pack(arrays, dtype):
    """Write an array, or several as one, for the page: dtype, shape, and the bytes in base64."""
    array = np.ascontiguousarray(arrays, np.dtype(dtype).newbyteorder("<"))
    return [dtype, list(array.shape), base64.b64encode(array.tobytes()).decode()]


def collect(model, arrays, about):
    """Take what the page shows from the arrays of a run: a dict that JSON can hold."""
    config, rows = model.config, final_rows(arrays["position"])
    first, lenses = _affordable(config, len(rows), len(about["stages"]))
    shown = rows[first:]
    said, likely = _tokens(model, arrays, about, rows, first)
    guessed, guesses = _residual(model, arrays, shown, lenses)
    used = {*said["tokens"], *likely.flat, *guesses.flat} - {None}
    data = {
        **_facts(about, arrays, rows), **said, **guessed, **_experts(config, arrays, shown),
        "first": first, "words": {int(id): word(model.tokenizer, id) for id in sorted(used)},
        "stages": about["stages"], "time_s": pack(arrays["time_s"][shown], "f4"),
        "bytes": bytes_of_stages(config), "kv_bytes": config.kv_bytes_per_token(4),
    }  # fmt: skip
    room = max(0, BUDGET - len(json.dumps(data))) * 3 // 4  # base64 takes four for three
    data["attention"] = _attention(model, arrays, rows, first, room)
    data["notes"] = _left_out(data, len(rows), config.num_hidden_layers)
    return data


def _affordable(config, n_tokens, n_stages):
    """Say from which token on there is room, and after which layers there is time for a lens.

    The layers are counted from 1; 0 is the embedding.
    """
    n_layers, K = config.num_hidden_layers, config.num_experts_per_tok
    per_lens = n_tokens * config.vocab_size * config.hidden_size
    lenses = spread(n_layers + 1, max(1, LENS_WORK / per_lens))
    n_bytes = (N_TOP * 12 + 32 + (n_layers + 1 + n_stages) * 4 + n_layers * K * 6
               + len(lenses) * N_LENS * 6)  # of a token
    room = int((1 - FOR_ATTENTION) * BUDGET * 3 / 4 / n_bytes)
    return max(0, n_tokens - max(1, min(room, MOST_TOKENS))), lenses


def _facts(about, arrays, rows):
    """Say what was asked, and in a few words what ran, and how fast."""
    time_s, settings = arrays["time_s"][rows].sum(axis=-1), about["settings"]
    by_model, asked = _written(about, len(rows)), about["asked"]
    halves = (("read", time_s[~by_model]), ("written", time_s[by_model]))
    temperature = settings.get("temperature")
    others = [f"{name} {value:g}" for name, value in settings.items()
              if name != "temperature" and value is not None]
    chance = ["greedy"] if temperature == 0 else [f"temperature {temperature:g}", *others]
    speeds = [f"{len(half)} tokens {what}, {len(half) / half.sum():,.0f}/s"
              for what, half in halves if len(half)]
    return {"asked": asked if len(asked) <= MOST_ASKED else f"{asked[:MOST_ASKED]} ...",
            "facts": [about["checkpoint"], *speeds, ", ".join(chance),
                      f"k2ref {about['k2ref']}, {about['kernels']} kernels"]}


def _written(about, n):
    """Mark the tokens, of n, that the model wrote."""
    marks = np.zeros(n, bool)
    for start, drawn, _ in about["replies"]:
        marks[start : start + len(drawn)] = True
    return marks


def _tokens(model, arrays, about, rows, first):
    """Say what the tokens are and how each was chosen, and give the ids that were likely.

    The last is what followed the last that was read, or the end.
    """
    ids, all_logits = arrays["ids"][rows].tolist(), arrays["logits"]
    written = _written(about, len(rows) + 1)
    n_prompt, drawn, reason = about["replies"][-1]
    # The last id written was not read, if nothing followed it; a stop id is not written at all.
    is_pending = len(drawn) > len(ids) - n_prompt >= 0
    ids.append(drawn[-1] if is_pending else None)
    found = []
    for i in range(first, len(ids)):
        chosen = [ids[i]] if ids[i] is not None else sorted(about["stop_ids"])
        if i == 0 or (ids[i] is None and reason not in ("stop", "tool_calls")):
            chosen = []  # nothing was computed before the first token, or nothing was chosen
        logits = all_logits[rows[i - 1]] if i else np.zeros(model.config.vocab_size)
        drawn_from = about["settings"] if written[i] or ids[i] is None else {}
        settings = drawn_from if drawn_from.get("temperature") else None  # greedy draws nothing
        found.append(choice(logits, chosen, N_TOP, ids[:i], settings))
    columns = {"top": "u4", "top_p": "f4", "p": "f4", "rank": "u4", "q": "f4", "top_q": "f4"}
    labels = sections(model.tokenizer, ids[:-1] + ids[-1:] * is_pending, written)
    return {
        "tokens": ids[first:], "reason": reason, "stop_ids": sorted(about["stop_ids"]),
        "sections": [[label, max(0, start - first), by_model]
                     for (label, start, by_model), (_, stop, _)
                     in zip(labels, [*labels[1:], (None, len(ids), None)], strict=True)
                     if stop > first],
        **{name: pack([one[name] for one in found], dtype) for name, dtype in columns.items()},
    }, np.array([one["top"] for one in found])


def _experts(config, arrays, rows):
    """Say which experts each token got, with which weights, and how often each was chosen."""
    moe = [i for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]
    chosen, E = [arrays[f"layers.{i}.moe.chosen"] for i in moe], config.n_routed_experts
    return {
        "moe": moe, "n_experts": E, "n_run": len(arrays["ids"]),
        "chosen": pack([layer[rows] for layer in chosen], "u2"),
        "mix": pack([arrays[f"layers.{i}.moe.mix"][rows] for i in moe], "f4"),
        "counts": pack([np.bincount(layer.ravel(), minlength=E) for layer in chosen], "u4"),
    }  # fmt: skip


def _residual(model, arrays, rows, lenses):
    """Say how long the residual is after each layer and what it would have said; give those ids."""
    n_layers = model.config.num_hidden_layers
    names = ["embed", *(f"layers.{i}.out" for i in range(n_layers))]
    n_words = min(N_LENS, model.config.vocab_size)
    ids, p = zip(*(lens(arrays[names[i]][rows], model, n_words) for i in lenses), strict=True)
    return {
        "norm": pack([np.linalg.norm(arrays[name][rows], axis=-1) for name in names], "f4"),
        "lens": [i - 1 for i in lenses],  # the embedding counts as layer -1
        "guess": pack(ids, "u4"), "guess_p": pack(np.rint(np.array(p) * 65535), "u2"),
    }, np.unique(ids)


def _attention(model, arrays, rows, first, room):
    """Say what each head, and the mean of all, looked at, in so many bytes."""
    config, n_tokens = model.config, len(rows) - first
    wide = 4 if len(rows) > 65536 else 2  # bytes of a position
    H, L = config.num_attention_heads, config.num_hidden_layers
    n_maps = room // (n_tokens * (1 + FEW_KEYS * (wide + 1)))  # pairs of layer and head
    heads = spread(H, n_maps // L - 1)
    layers = spread(L, max(1, n_maps))
    per_row = room // (n_tokens * len(layers) * (len(heads) + 1)) - 1  # but for the count
    n_keys = max(1, min(N_KEYS, per_row // (wide + 1)))
    counts, columns, weights = [], [], []
    for i in layers:
        at, w, mean, maps = f"layers.{i}.attn.", model.layers[i].attention, 0, {}
        q_nope, q_rope = (arrays[at + name][rows[first:]] for name in ("q_nope", "q_rope"))
        keys = arrays[at + "c_kv"][rows], arrays[at + "k_rope"][rows]
        for h in range(H):
            p = attention_weights(q_nope, q_rope, *keys, w, h, config.softmax_scale)
            mean = mean + p / np.float32(H)
            if h in heads:
                maps[h] = strongest(p, n_keys)
        for n, positions, steps in (strongest(mean, n_keys), *maps.values()):
            counts.append(n)
            columns.append(positions)
            weights.append(steps)
    counts = np.reshape(counts, (len(layers), 1 + len(heads), n_tokens))  # the mean comes first
    return {"layers": layers, "heads": heads, "n_heads": H, "n_keys": n_keys,
            "n": pack(counts, "u1"), "at": pack(np.concatenate(columns), f"u{wide}"),
            "weight": pack(np.concatenate(weights), "u1")}


def spread(n, most):
    """Choose so many of the numbers below n, evenly, the last among them."""
    most = max(0, min(n, int(most)))
    return [n - 1 - n * k // most for k in reversed(range(most))]


def _left_out(data, n_tokens, n_layers):
    """Say in sentences what the page does not show for want of room."""
    notes, attention, H = [], data["attention"], data["attention"]["n_heads"]
    if data["first"]:
        notes.append(f"The first {data['first']:,} of {n_tokens:,} tokens are left out.")
    if len(data["lens"]) < n_layers + 1:
        notes.append(f"The guess for the next token is there for {len(data['lens'])} of "
                     f"{n_layers + 1} places in the residual.")
    if len(attention["layers"]) < n_layers:
        notes.append(f"Attention is there for {len(attention['layers'])} of {n_layers} layers.")
    if len(attention["heads"]) < H:
        kept = f"{len(attention['heads'])} of {H} heads and " if attention["heads"] else ""
        notes.append(f"Attention is there for {kept}the mean of all heads.")
    if attention["n_keys"] < N_KEYS:
        notes.append(f"Of each head's weights the {attention['n_keys']} largest are kept.")
    return notes
