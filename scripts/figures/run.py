"""Pictures of a forward pass: the residual, positions, attention, the router, logits, a bug.

Each function takes a `Theme` and a `Run` of make_figures.py and returns a matplotlib figure.
"""

import math
import re
from unittest import mock

import numpy as np
from matplotlib.patches import Rectangle

import k2ref
from k2ref import moe, ops, rope
from k2ref.checkpoint.config import Config

MONO = {"family": "monospace", "fontsize": 7}
COLUMN = 12.5  # pixels that a token takes at least, so that its name can be read
# The stages whose values first-difference compares, of all that a trace may hold.
STAGE = re.compile(r"embed$|norm$|logits$|layers\.\d+\.(mid|h|out|mlp\.out|moe\.(mix|out)|"
                   r"attn\.(h|q_nope|q_rope|c_kv|k_rope|heads|out))$")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(n):
    """Write 10 to the n."""
    return "10" + str(n).translate(SUPERSCRIPT)


def token_ticks(t, ax, run, ids):
    """Write the tokens upright below an axis that has one unit for each."""
    ax.set_xticks(range(len(ids)), [run.word(id, 16) for id in ids], rotation=90,
                  rotation_mode="anchor", ha="right", va="center", color=t.ink, **MONO)
    ax.tick_params(axis="x", length=2)


def mark_answer(t, ax, run, label=True):
    """Draw the line between prompt and answer."""
    at = len(run.prompt) - 0.5
    ax.axvline(at, color=t.line, linewidth=0.8, linestyle=(0, (3, 3)))
    if label:
        answer = "answer" if ax.get_xlim()[1] > len(run.ids) - 1 else "answer, its beginning"
        for text, align, shift in (("prompt", "right", -5), (answer, "left", 5)):
            ax.annotate(text, (at, 1), (shift, 4), xycoords=ax.get_xaxis_transform(),
                        textcoords="offset points", ha=align, color=t.mid, fontsize=8)


def shown(run, width):
    """Take the tokens for which there is room: the prompt and the beginning of the answer."""
    return run.ids[:max(len(run.prompt) + 1, int(width / COLUMN))]


def residual(t, run):
    """Draw the norm of the residual stream by token, a line for each layer."""
    width = 612
    ids = shown(run, width)
    figure = t.figure(364)
    ax = t.axes(figure, 56, 26, width, 236, yscale="log", xlim=(-0.5, len(ids) - 0.5))
    n_layers = run.config.num_hidden_layers
    norms = [np.linalg.norm(run.residual(i)[:len(ids)], axis=1) for i in range(-1, n_layers)]
    places = spread([math.log10(norm[-1]) for norm in norms],
                    0.07 * math.log10(np.max(norms) / np.min(norms)))
    for i, (norm, place) in enumerate(zip(norms, places, strict=True)):
        last = i == n_layers
        colour = t.accent if last else t.mid
        ax.plot(norm, color=colour, linewidth=1.6 if last else 1, marker="o",
                markersize=2.6, clip_on=False)
        name = f"after layer {i - 1}" if i else "embedding"
        ax.text(len(ids) + 0.1, 10**place, name, color=colour, va="center", fontsize=8.5)
    low, high = np.min(norms), np.max(norms)
    marks = [m * 10.0**e for e in range(-4, 6) for m in (1, 2, 5)]
    marks = [mark for mark in marks if low * 0.8 <= mark <= high * 1.2]
    ax.set_ylim(low * 0.85, high * 1.15)
    ax.set_yticks(marks, [f"{mark:g}" for mark in marks])
    ax.set_ylabel("norm of the residual, logarithmic")
    token_ticks(t, ax, run, ids)
    mark_answer(t, ax, run)
    return figure


def spread(values, gap):
    """Move values apart until neighbours differ by the gap, so that labels do not overlap."""
    order, places = np.argsort(values, kind="stable"), np.array(values, float)
    for _ in range(100):
        for a, b in zip(order[:-1], order[1:], strict=True):
            if (lack := gap - (places[b] - places[a])) > 1e-9:
                places[a] -= lack / 2
                places[b] += lack / 2
    return places


def yarn(t, run):
    """Draw the frequency of each rotary pair of K2 Thinking: as it is, plain, and interpolated."""
    f = run.full
    scaling = f.rope_scaling
    ours, pairs = rope.inv_freq(f), np.arange(f.qk_rope_head_dim // 2)
    plain = f.rope_theta ** (-pairs / len(pairs))
    figure = t.figure(380)
    ax = t.axes(figure, 64, 16, 520, 306, yscale="log", xlim=(-0.7, len(pairs) - 0.3))
    ax.plot(pairs, plain, color=t.mid, linewidth=1)
    ax.plot(pairs, plain / scaling.factor, color=t.mid, linewidth=1, linestyle=(0, (4, 3)))
    ax.plot(pairs, ours, color=t.accent, linewidth=0, marker="o", markersize=4.5)
    turn = 2 * math.pi / scaling.original_max_position_embeddings
    ax.axhline(turn, color=t.line, linewidth=0.8, linestyle=(0, (1, 2)))
    end, low = len(pairs) - 0.1, math.floor(math.log10(ours.min()))
    ax.text(end, plain[-1], "plain RoPE", color=t.mid, va="center")
    ax.text(end, ours[-1], "K2 Thinking (YaRN)", color=t.accent, va="bottom", weight="bold")
    ax.text(end, ours[-1] / 1.25, f"all pairs divided by {scaling.factor:g}\n(linear "
            "interpolation)", color=t.mid, va="top")
    ax.text(end, turn, f"one turn in {scaling.original_max_position_embeddings:,}\ntokens",
            color=t.mid, va="center")
    ax.set(xlabel=f"pair of rotated channels, 0 to {pairs[-1]}", xticks=[*pairs[::4], pairs[-1]],
           ylabel="radians per token, logarithmic")
    marks = range(low, 1)
    ax.set_yticks([10.0**mark for mark in marks], [power_of_ten(mark) for mark in marks])
    return figure


def attention_weights(run, i, n):
    """Compute what each of the first n tokens takes from each before it in layer i: (H, n, n)."""
    q_nope, q_rope, c_kv, k_rope = (run.arrays[f"layers.{i}.attn.{name}"][:n] for name in
                                    ("q_nope", "q_rope", "c_kv", "k_rope"))
    w, weights = run.model.layers[i].attention, []
    for h in range(run.config.num_attention_heads):
        k_nope = c_kv @ w.W_UK[h].dequantize().T
        scores = run.config.softmax_scale * (q_nope[:, h] @ k_nope.T + q_rope[:, h] @ k_rope.T)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf).astype(np.float32)
        weights.append(ops.softmax(scores))
        v = c_kv @ w.W_UV[h].dequantize().T
        heads = run.arrays[f"layers.{i}.attn.heads"][:n, h]
        assert np.abs(weights[-1] @ v - heads).max() < 1e-3 * np.abs(heads).max()
    return np.array(weights)


def attention(t, run):
    """Map the attention of four heads over the prompt: who asks, and whom it takes from."""
    n, layer = len(run.prompt), run.config.num_hidden_layers - 2
    weights = attention_weights(run, layer, n)
    asks, sees = np.tril_indices(n)
    figure, side = t.figure(810), 300
    size = side * 0.75 / n
    for h in range(4):
        x, y = 110 + (side + 24) * (h % 2), 30 + (side + 34) * (h // 2)
        ax = t.axes(figure, x, y, side, side, xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
        ax.scatter(sees, asks, s=(size - 0.5) ** 2, c=weights[h][asks, sees], marker="s",
                   cmap=t.colours, vmin=0, vmax=1, linewidths=0, clip_on=False)
        ax.set_title(f"layer {layer}, head {h}")
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks([])
        words = [run.word(id, 16) for id in run.prompt]
        ax.set_yticks(range(n), words if h % 2 == 0 else [""] * n, color=t.ink, **MONO)
        if h >= 2:
            token_ticks(t, ax, run, run.prompt)
            ax.tick_params(axis="x", length=0)
    ax = t.axes(figure, 330, 776, 200, 10, xlim=(0, 1), ylim=(0, 1), yticks=[])
    ax.bar(np.arange(20) / 20 + 0.025, 1, width=0.05, color=t.colours(np.arange(20) / 19))
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.spines[:].set_visible(False)
    ax.text(-0.03, 0.2, "part that a row takes from a column", ha="right", color=t.mid,
            fontsize=8.5)
    return figure


def routed(run, i):
    """Compute layer i's router on all tokens again: scores (T, E), chosen (T, K), mix (T, K)."""
    layer = run.model.layers[i]
    x = run.residual(i - 1) + run.arrays[f"layers.{i}.attn.out"]
    h = ops.rms_norm(x, layer.post_attention_layernorm, run.config.rms_norm_eps)
    scores = ops.sigmoid(ops.linear(h, layer.mlp.gate, 1))
    chosen, mix = moe.choose(scores, layer.mlp.bias, run.config)
    assert (chosen == run.arrays[f"layers.{i}.moe.chosen"]).all()
    return scores, chosen, mix


def moe_layers(run):
    """List the layers that have experts."""
    return [i for i in range(run.config.num_hidden_layers) if run.config.is_moe_layer(i)]


def router(t, run):
    """Show one token's scores, what the bias adds, who is chosen, and with which weight."""
    K = run.config.num_experts_per_tok
    found = [(i, token) for i in moe_layers(run) for token in range(len(run.prompt))
             if set(np.argsort(-routed(run, i)[0][token], kind="stable")[:K])
             != set(routed(run, i)[1][token])]
    # A token of which the bias changed the choice teaches more; any other will do.
    layer, token = found[0] if found else (moe_layers(run)[0], len(run.prompt) - 1)
    scores, chosen, mix = (array[token] for array in routed(run, layer))
    choice = scores + run.model.layers[layer].mlp.bias
    figure = t.figure(314)
    ax = t.axes(figure, 62, 40, 540, 226, xlim=(-0.6, len(scores) - 0.4))
    low, high = min(0, choice.min()), max(choice.max(), scores.max())
    ax.set_ylim(low - 0.02, high * 1.12)
    for e, (score, with_bias) in enumerate(zip(scores, choice, strict=True)):
        picked = e in chosen
        ax.bar(e, score, width=0.5, color=t.soft if picked else t.faint)
        ax.plot([e - 0.25, e + 0.25], [score] * 2, color=t.mid, linewidth=1)
        ax.plot([e, e], [score, with_bias], color=t.accent if picked else t.mid, linewidth=1)
        ax.plot(e, with_bias, marker="o", markersize=6, color=t.accent if picked else t.mid)
        if picked:
            ax.annotate(f"weight {mix[list(chosen).index(e)]:.2f}", (e, max(score, with_bias)),
                        (0, 8), textcoords="offset points", ha="center", color=t.accent)
    line = np.sort(choice)[-K - 1:][:2].mean()
    ax.axhline(line, color=t.line, linewidth=0.8, linestyle=(0, (3, 3)))
    ax.text(len(scores) - 0.3, line, f"the {K} highest dots\nare chosen", color=t.mid, va="center")
    ax.set(xticks=range(len(scores)), xlabel="expert", ylabel="sigmoid of the router's logit",
           title=f"layer {layer}, token “{run.word(run.prompt[token])}”")
    t.note(ax, 540, -12, "bar: score;  dot: score + bias;  weight: from the scores alone",
           ha="right")
    return figure


def experts(t, run):
    """Show the experts of each token, layer by layer; a larger dot is a larger weight."""
    width, layers, E = 640, moe_layers(run), run.config.n_routed_experts
    ids = shown(run, width)
    row = E * 15 + 26
    figure = t.figure(row * len(layers) + 124)
    for place, i in enumerate(layers):
        ax = t.axes(figure, 92, 46 + row * place, width, E * 15, ylim=(E - 0.5, -0.5),
                    xlim=(-0.5, len(ids) - 0.5))
        chosen, mix = (run.arrays[f"layers.{i}.moe.{name}"][:len(ids)].ravel() for name in
                       ("chosen", "mix"))
        for e in range(0, E, 2):
            ax.add_patch(Rectangle((-0.5, e - 0.5), len(ids), 1, facecolor=t.faint, alpha=0.6))
        at = np.repeat(np.arange(len(ids)), run.config.num_experts_per_tok)
        size = 2 + 6.5 * np.sqrt(mix / run.config.routed_scaling_factor)
        # A dot is a line of no length with round ends: in SVG a tenth of a marker's bytes.
        ax.vlines(at, chosen, chosen, color=t.accent, linewidth=size, capstyle="round")
        ax.set_yticks(range(E), range(E), fontsize=7)
        ax.set_ylabel(f"layer {i}\nexpert")
        ax.tick_params(axis="y", length=0)
        ax.spines[:].set_visible(False)
        ax.set_xticks([])
        mark_answer(t, ax, run, label=place == 0)
    t.note(figure.axes[0], 0, -30, "dot: a chosen expert; its area grows with the expert's weight "
           "for the token")
    token_ticks(t, ax, run, ids)
    ax.tick_params(axis="x", length=0)
    return figure


def first_difference(t, run):
    """Run the prompt again with softmax's YaRN factor left out, and compare stage by stage."""
    plain = property(lambda config: config.qk_head_dim**-0.5)
    good, bad = k2ref.trace.Trace(), k2ref.trace.Trace()
    k2ref.forward(run.model, run.prompt, trace=good)
    with mock.patch.object(Config, "softmax_scale", plain):
        k2ref.forward(run.model, run.prompt, trace=bad)
    good, bad = ({name: array for name, array in trace.arrays.items() if STAGE.match(name)}
                 for trace in (good, bad))
    first, names = k2ref.trace.first_difference(good, bad).name, list(good)
    apart = [np.abs(good[name] - bad[name]).max() / np.abs(good[name]).max() for name in names]
    figure, seen = t.figure(400), [value for value in apart if value]
    low, high = math.floor(math.log10(min(seen))), max(0, math.ceil(math.log10(max(seen))))
    ax = t.axes(figure, 84, 40, 660, 226, xlim=(-0.7, len(names) - 0.3), ylim=(low - 0.9, high))
    ax.axhspan(low - 0.9, low - 0.3, color=t.faint, linewidth=0)
    for k, (name, value) in enumerate(zip(names, apart, strict=True)):
        ax.plot(k, math.log10(value) if value else low - 0.6, marker="o", clip_on=False,
                markersize=7 if name == first else 4.5, color=t.accent if name == first else t.mid)
    k = names.index(first)
    ax.plot([k, k], [low - 0.6, math.log10(apart[k])], color=t.accent, linewidth=0.8)
    ax.text(k + 0.6, low - 0.6, f"first difference: {first}", color=t.accent, weight="bold",
            va="center")
    marks = range(low, high + 1)
    ax.set_yticks([low - 0.6, *marks], ["same bits", *map(power_of_ten, marks)])
    ax.set_ylabel("largest difference / largest value")
    ax.set_xticks(range(len(names)), names, rotation=90, rotation_mode="anchor", ha="right",
                  va="center", color=t.ink, **MONO)
    t.note(ax, 0, -14, "one run as it should be, one with the YaRN factor of softmax left out")
    return figure


PICTURES = {
    "residual": residual, "yarn": yarn, "attention": attention, "router": router,
    "experts": experts, "first-difference": first_difference,
}  # fmt: skip
