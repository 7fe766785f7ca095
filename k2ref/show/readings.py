"""Readings: what a trace tells a person about a run, computed from its arrays.

How each token was chosen, what each layer would have said, which earlier tokens each head looked
at. None of it is recorded on the way: a forward pass does not pay for what nobody looks at.

Chapter 16.
"""

import numpy as np

from k2ref import ops
from k2ref.sampling import log_probabilities, penalize_repetition, probabilities

LENS_ROWS = 32  # tokens whose guesses are computed together, to bound memory
# A turn that is the system's may be a tool's result, and is called as its header says.
ROLES = {"<|im_system|>": None, "<|im_user|>": "user", "<|im_assistant|>": "assistant"}
TEXT, CONTROL, BYTES = range(3)  # what a token is to a reader


def final_rows(position):
    """Choose the rows of a trace that make the run as it ended, one for each position.

    (T,) -> (S,)

    A conversation that goes on from a point within it reads some positions again.
    """
    rows = []
    for row, place in enumerate(position - (position[0] if len(position) else 0)):
        rows[place:] = [row]
    return np.array(rows, np.int64)


def choice(logits, ids, n_top, seen=(), settings=None):
    """Say how a token was chosen: how likely it was, its rank, and the likeliest at its place.

    (W,) -> dict

    `p` and `top_p` are the model's own probabilities; `q` and `top_q` those that the token was
    drawn from, if `settings` of sampling say how, else -1. Of several `ids`, one of which was
    chosen, it is the sum and the best rank; of none, p is -1 and rank 0.
    """
    top = np.argsort(-logits, kind="stable")[:n_top]
    p = np.exp(log_probabilities(logits))
    q = np.full(len(logits), -1.0)
    rank = int((logits > logits[ids].max()).sum()) + 1 if len(ids) else 0
    if settings is not None:
        settings = dict(settings)
        penalty = settings.pop("repetition_penalty", None)
        if penalty is not None:
            logits = penalize_repetition(logits, seen, penalty)
        q = probabilities(logits, **settings)
    return {"p": p[ids].sum() if len(ids) else -1.0, "rank": rank, "top": top, "top_p": p[top],
            "q": q[ids].sum() if len(ids) and settings is not None else -1.0, "top_q": q[top]}


def lens(x, model, n):
    """Read the residual as if it were the last: norm and lm_head, the logit lens.

    (T, D) -> (T, n), (T, n)

    The n likeliest ids of the next token, the likeliest first, and their probabilities.
    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    ids, p = np.empty((len(x), n), np.int64), np.empty((len(x), n))
    for start in range(0, len(x), LENS_ROWS):
        rows = slice(start, start + LENS_ROWS)
        h = ops.rms_norm(x[rows], model.norm, model.config.rms_norm_eps)
        logits = ops.linear(h, model.lm_head, model.threads)
        best = np.argpartition(-logits, n - 1, axis=-1)[:, :n] if n < logits.shape[1] else \
            np.broadcast_to(np.arange(n), logits.shape)
        order = np.argsort(-np.take_along_axis(logits, best, axis=-1), axis=-1, kind="stable")
        ids[rows] = np.take_along_axis(best, order, axis=-1)
        p[rows] = np.take_along_axis(ops.softmax(logits), ids[rows], axis=-1)
    return ids, p


def attention_weights(q_nope, q_rope, c_kv, k_rope, w, h, softmax_scale):
    """Compute what head h of the last T of S tokens takes from each, in the absorbed form.

    (T, H, N), (T, H, R), (S, C), (S, R) -> (T, S)

    Each row sums to one.
    """
    T, S = len(q_nope), len(c_kv)
    q = q_nope[:, h] @ w.W_UK[h].dequantize()  # (T, C)
    scores = np.float32(softmax_scale) * (q @ c_kv.T + q_rope[:, h] @ k_rope.T)
    scores[np.arange(S) > np.arange(S - T, S)[:, None]] = -np.inf
    return ops.softmax(scores)


def strongest(weights, n):
    """Keep the n largest weights of each row, in steps of 1/255, and drop those that become 0.

    (T, S) -> (T,), (M,), (M,)

    How many each row keeps, and one row after another their columns and weights, largest first.
    """
    steps = np.rint(weights * 255).astype(np.uint8)
    columns = np.argsort(-steps.astype(np.int16), axis=-1, kind="stable")[:, :n]
    kept = np.take_along_axis(steps, columns, axis=-1)
    return (kept > 0).sum(axis=-1), columns[kept > 0], kept[kept > 0]


def word(tokenizer, id):
    """Return a token as a reader may see it, and whether it is text, a control token, or bytes."""
    if id >= tokenizer.n_vocab:
        return [f"id {id}", CONTROL]  # a row of lm_head that no token has
    raw = tokenizer.id_to_bytes(id)
    if raw.decode(errors="replace") in tokenizer.special_tokens:
        return [raw.decode(), CONTROL]
    try:
        return [raw.decode(), TEXT]
    except UnicodeDecodeError:  # a part of a character
        return [raw.hex(" "), BYTES]


def sections(tokenizer, ids, written):
    """Say what each token belongs to: a list of [label, first token, whether the model wrote it].

    `written` marks the tokens that the model wrote: of these, thinking, the answer and tool calls
    are told apart, of the rest the roles of the template.
    """
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    found, role, thinks, calls = [], "prompt", False, False
    for i, id in enumerate(ids):
        name = names.get(int(id))
        if name in ROLES:
            role = ROLES[name] or _header(ids[i + 1 :], tokenizer)
        calls = calls or name == "<|tool_calls_section_begin|>"
        opens = thinks or name == "<think>"
        if written[i]:
            label = "tool call" if calls else "thinking" if opens else \
                "continuation" if role == "prompt" else "answer"
        else:
            label = role
        thinks = opens and name != "</think>" and name not in ROLES
        calls = calls and name != "<|tool_calls_section_end|>" and name not in ROLES
        if not found or found[-1][0] != label:
            found.append([label, i, bool(written[i])])
    return found


def _header(ids, tokenizer):
    """Return the name at the beginning of a turn."""
    end = tokenizer.special_id("<|im_middle|>")
    return tokenizer.decode(ids[: ids.index(end)]) if end in ids else "system"


def bytes_of_stages(config):
    """Count the bytes of weights that one token is multiplied by, by stage."""
    kinds, E = config.n_bytes_by_kind, config.n_routed_experts
    return {
        "embed": kinds["embedding"] // config.vocab_size,
        "attn": kinds["attention"],
        "mlp": kinds.get("dense_mlp", 0),
        "moe": kinds.get("router", 0) + kinds.get("shared_experts", 0)
        + kinds.get("experts", 0) * config.num_experts_per_tok // E,
        "rest": kinds["norms"],
        "logits": kinds["lm_head"],
    }
