"""Pictures of files, bytes and times: the checkpoint, INT4, what is kept, moved, and how fast.

Each function takes a `Theme` and a `Run` of make_figures.py and returns a matplotlib figure.
"""

import json

import numpy as np
from matplotlib.patches import Polygon

from k2ref import quant

MONO = {"family": "monospace", "fontsize": 8}
KINDS = {
    "experts": "routed experts", "attention": "attention", "shared_experts": "shared experts",
    "lm_head": "lm_head", "dense_mlp": "dense MLP", "router": "router", "norms": "norms",
    "embedding": "embedding",
}  # fmt: skip


def number_of_bytes(n):
    """Write bytes with a unit, three digits or so."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:,.{0 if n / size >= 100 else 1}f} {unit}"
    return f"{n} bytes"


def checkpoint(t, run):
    """Compare the bytes of each part: the embedded model and the full one."""
    figure, ax = t.canvas(282)
    for x, title, config in ((130, "embedded model", run.config), (450, "K2 Thinking", run.full)):
        kinds, total = config.n_bytes_by_kind, config.n_weight_bytes
        ax.text(x, 24, f"{title}, {number_of_bytes(total)}", weight="bold")
        for i, (kind, name) in enumerate(KINDS.items()):
            y, part = 40 + 30 * i, kinds[kind] / total
            t.box(ax, x, y, max(180 * part, 0.7), 18, t.accent if kind == "experts" else t.line)
            ax.text(x + 180 * part + 8, y + 13, number_of_bytes(kinds[kind]), fontsize=8.5)
            ax.text(x + 180 * part + 64, y + 13, f"{part:.1%}" if part > 0.0005 else "<0.1%",
                    fontsize=8.5, color=t.mid)
            if config is run.config:
                ax.text(x - 10, y + 13, name, ha="right")
    return figure


def nibbles(t, run):
    """Take one word of the checkpoint apart: which four bits are which column."""
    layer = run.config.first_k_dense_replace
    w = run.model.layers[layer].mlp.expert(0).gate_proj
    word = int(w.packed[0, 0]) & 0xFFFFFFFF
    scale = float(quant.bf16_to_f32(w.scale[:1, :1])[0, 0])
    codes = quant.unpack_int4(w.packed[:1, :1])[0]
    figure, ax = t.canvas(312)
    left, cell = 96, 20
    ax.text(left, 24, f"layers.{layer}.mlp.experts.0.gate_proj.weight_packed[0, 0]", **MONO)
    ax.text(744, 24, f"{word:#010x}", ha="right", **MONO)
    for name, y in (("byte in file", 62), ("bit", 88), ("", 108), ("nibble", 152),
                    ("− 8", 178), ("× scale", 204), ("column", 240)):
        ax.text(left - 12, y, name, ha="right", color=t.mid)
    for i in range(4):  # little-endian: the lowest byte comes first in the file
        x = left + (3 - i) * 8 * cell
        ax.plot([x + 2, x + 8 * cell - 2], [68, 68], color=t.line, linewidth=0.8)
        ax.text(x + 4 * cell, 62, i, ha="center", color=t.mid)
    for j in range(8):
        x = left + (7 - j) * 4 * cell
        middle = x + 2 * cell
        t.box(ax, x + 1, 94, 4 * cell - 2, 28, t.soft if j == 0 else t.faint)
        for b in range(4):
            at = x + (3 - b) * cell + cell / 2
            ax.text(at, 88, 4 * j + b, ha="center", color=t.mid, fontsize=7)
            ax.text(at, 113, word >> (4 * j + b) & 1, ha="center", family="monospace", fontsize=9)
        t.arrow(ax, (middle, 124), (middle, 138), t.line)
        ax.text(middle, 152, word >> 4 * j & 15, ha="center", family="monospace", fontsize=9)
        ax.text(middle, 178, f"{codes[j]:d}".replace("-", "−"), ha="center", family="monospace",
                fontsize=9)
        ax.text(middle, 204, f"{codes[j] * scale:.4f}".replace("-", "−"), ha="center", **MONO)
        ax.text(middle, 240, j, ha="center", weight="bold", color=t.accent if j == 0 else t.ink,
                fontsize=10)
    ax.text(left, 272, "column 8k + j of a row is nibble j of word k, the lowest bits first",
            color=t.mid)
    ax.text(left, 292, f"scale of columns 0 to {quant.GROUP - 1}: {scale:.6f} (bf16)", color=t.mid)
    return figure


def int4_error(t, run):
    """Round a BF16 matrix to INT4 and show what each weight loses, in steps of its group."""
    w = run.model.layers[0].attention.o_proj.dequantize()
    rounded = quant.quantize_int4(w)
    step = np.repeat(quant.bf16_to_f32(rounded.scale), quant.GROUP, axis=1)
    value, error = (w / step).ravel(), ((rounded.dequantize() - w) / step).ravel()
    figure = t.figure(318)
    ax = t.axes(figure, 62, 52, 360, 216, xlim=(-7.4, 7.4), ylim=(-0.55, 0.55))
    some = slice(None, None, max(1, len(value) // 700))
    ax.scatter(value[some], error[some], s=5, color=t.accent, linewidths=0, clip_on=False)
    ax.set(xlabel="weight, in steps of its group", xticks=range(-7, 8), yticks=[-0.5, 0, 0.5],
           ylabel="rounded minus weight, in steps")
    rms = float(np.sqrt(np.mean(error.astype(np.float64) ** 2)))
    relative = np.linalg.norm(rounded.dequantize() - w) / np.linalg.norm(w)
    t.note(ax, -46, -36, f"layers.0.self_attn.o_proj, {w.size:,} weights; a step is the largest of "
           f"{quant.GROUP} neighbours, divided by 7")
    side = t.axes(figure, 436, 52, 84, 216, ylim=(-0.55, 0.55))
    counts, edges = np.histogram(np.clip(error, -0.5, 0.5), 20, (-0.5, 0.5))
    side.barh(edges[:-1] + 0.025, counts / counts.sum() * 100, height=0.042, color=t.line)
    side.set(xlabel="% of weights", yticks=[])
    t.note(side, 0, -8, f"rms {rms:.3f} steps", color=t.accent)
    codes = t.axes(figure, 572, 52, 172, 216, xlim=(-8.6, 7.6))
    counts = np.bincount(quant.unpack_int4(rounded.packed).ravel() + 8, minlength=16)
    codes.bar(range(-8, 8), counts / counts.sum() * 100, color=t.line, width=0.8)
    codes.set(xlabel="code", xticks=range(-8, 8, 3), ylabel="% of weights")
    t.note(codes, 0, -8, f"error {relative:.1%} of the weights", color=t.accent)
    return figure


def cache(t, run):
    """Count the numbers that one token leaves in the cache of one layer."""
    f = run.full
    keys, values = f.num_attention_heads * f.qk_head_dim, f.num_attention_heads * f.v_head_dim
    latent, rope = f.kv_lora_rank, f.qk_rope_head_dim
    figure, ax = t.canvas(232)
    left, per = 24, 712 / (keys + values)
    ax.text(left, 26, f"all keys and values: {keys + values:,} numbers", weight="bold")
    t.box(ax, left, 38, keys * per - 1, 44, t.line)
    t.box(ax, left + keys * per, 38, values * per, 44, t.faint)
    ax.text(left, 100, f"keys, {f.num_attention_heads} heads × ({f.qk_nope_head_dim} + "
            f"{f.qk_rope_head_dim} rotated) = {keys:,}", color=t.mid)
    ax.text(left + keys * per, 100, f"values, {f.num_attention_heads} heads × {f.v_head_dim} = "
            f"{values:,}", color=t.mid)
    ax.text(left, 140, f"the latent and one rotated key: {latent + rope} numbers", weight="bold",
            color=t.accent)
    t.box(ax, left, 152, latent * per - 1, 44, t.accent)
    t.box(ax, left + latent * per, 152, rope * per, 44, t.soft, t.accent)
    ax.text(left + (latent + rope) * per + 12, 170, f"{latent} + {rope}, shared by all heads: "
            f"{(keys + values) / (latent + rope):.1f} times less", color=t.mid)
    context = f.max_position_embeddings
    dense = 4 * f.num_hidden_layers * context * (keys + values)
    ax.text(left + (latent + rope) * per + 12, 188, f"in float32, {f.num_hidden_layers} layers and "
            f"{context:,} tokens: {f.kv_bytes_per_token(4) * context / 1e9:.1f} GB, not "
            f"{dense / 1e9:,.0f} GB", color=t.mid)
    ax.text(left, 220, "bars to scale: numbers of one token in one layer, K2 Thinking",
            color=t.mid, fontsize=8)
    return figure


def moved(t, run):
    """Show where the bytes lie, and which of them one token reads; full size."""
    f = run.full
    lie = {kind: f.n_bytes_by_kind[kind] for kind in KINDS}
    read = dict(lie, experts=lie["experts"] * f.num_experts_per_tok // f.n_routed_experts)
    read["embedding"] //= f.vocab_size
    assert sum(read.values()) == f.n_bytes_per_token
    figure, ax = t.canvas(294)
    left, width, ends = 24, 712, {}
    for y, bytes_of in ((44, lie), (150, read)):
        at, total = left, sum(bytes_of.values())
        for kind, n in bytes_of.items():
            stop = at + width * n / total
            t.box(ax, at, y, stop - at - (1 if stop - at > 3 else 0), 40,
                  t.accent if kind == "experts" else t.line)
            ends[kind] = ends.get(kind, ()) + (at, stop)
            at = stop
    (a, b, c, d), right, rest = ends["experts"], left + width, sum(lie.values()) - lie["experts"]
    for corners, fill in (([(a, 86), (b, 86), (d, 148), (c, 148)], t.soft),
                          ([(b + 1, 86), (right, 86), (right, 148), (d + 1, 148)], t.faint)):
        ax.add_patch(Polygon(corners, facecolor=fill, linewidth=0))
    ax.text(left, 32, f"in the checkpoint: {(rest + lie['experts']) / 1e9:.1f} GB", weight="bold")
    ax.text(left + 8, 108, f"routed experts (INT4), {lie['experts'] / 1e9:.1f} GB: of each layer's "
            f"{f.n_routed_experts}, a token reads {f.num_experts_per_tok}", fontsize=8.5)
    ax.text(right - 8, 140, f"the rest, {rest / 1e9:.1f} GB: all, but of the embedding one row",
            ha="right", fontsize=8.5)
    n = sum(read.values())
    ax.text(left, 212, f"read for one token: {n / 1e9:.1f} GB", weight="bold")
    shown = [kind for kind in KINDS if read[kind] / n > 0.05]
    for kind in shown:
        ax.text(ends[kind][2], 234, KINDS[kind], fontsize=8.5)
        ax.text(ends[kind][2], 250, f"{read[kind] / 1e9:.1f} GB", color=t.mid, fontsize=8.5)
    small = [f"{KINDS[kind]} {number_of_bytes(read[kind])}" for kind in KINDS if kind not in shown]
    ax.text(right, 280, f"and at the right end: {', '.join(small)}", color=t.mid, fontsize=8.5,
            ha="right")
    return figure


def ladder(t, run):
    """Show how fast one INT4 product reads its weights, from NumPy to the last kernel."""
    found = json.loads(run.ladder.read_text(encoding="utf-8"))
    I, O = run.full.hidden_size, run.full.moe_intermediate_size
    n_bytes = O * I // 2 + O * I // quant.GROUP * 2
    rates = {name: n_bytes / time / 1e9 for name, time in found["results"].items()}
    # A loop that does nothing but read, if it was measured, is the limit (make_ladder.py).
    limits = [rates.pop(name) for name in list(rates) if name.startswith("only reading")]
    height, last = 92 + 34 * len(rates), len(rates) - 1
    figure = t.figure(height)
    ax = t.axes(figure, 216, 40, 340, height - 92, ylim=(last + 0.5, -0.5),
                xlim=(0, max(*rates.values(), *limits) * 1.02))
    ax.barh(range(len(rates)), rates.values(), height=0.5,
            color=[t.accent if i == last else t.line for i in range(len(rates))])
    for i, (name, rate) in enumerate(rates.items()):
        time = found["results"][name] * 1e6
        style = {"color": t.accent if i == last else t.ink}
        t.note(ax, 424, 34 * i + 21, f"{rate:.1f} GB/s", ha="right", **style)
        t.note(ax, 528, 34 * i + 21, f"{time:,.0f} µs", ha="right", **style)
    for limit in limits:
        ax.axvline(limit, color=t.mid, linewidth=1, linestyle=(0, (3, 3)))
        ax.annotate(f"only reading: {limit:.1f}", (limit, 1), (-4, 3), ha="right", color=t.mid,
                    xycoords=ax.get_xaxis_transform(), textcoords="offset points", fontsize=8.5)
    ax.set(yticks=range(len(rates)), yticklabels=rates, xlabel="GB of weights a second")
    ax.tick_params(axis="y", length=0, labelcolor=t.ink)
    t.note(ax, -208, -26, f"a {O:,} × {I:,} INT4 matrix times one vector, on "
           f"{found['machine']['processor']}")
    return figure


PICTURES = {
    "checkpoint": checkpoint, "nibbles": nibbles, "int4-error": int4_error, "cache": cache,
    "bytes": moved, "ladder": ladder,
}  # fmt: skip
