"""Run the same ids through transformers and k2ref, and print layer by layer how far they are apart.

    python scripts/compare_transformers.py k2ref/tiny --text "What is 2 + 2?"
    python scripts/compare_transformers.py /data/Kimi-K2-Thinking --layers 1 --ids 1,2,3

transformers computes in float32 on dequantised weights (oracle.py), so both round, and only round.
`--layers N` runs the first N layers, then norm and lm_head: a layer of K2 Thinking takes 70 GB in
float32. Needs the `oracle` extra. Exit status: 0 where all is within the tolerance, 1 where it is
not, 2 where there is nothing to compare.
"""

import argparse
import dataclasses
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

import k2ref
from k2ref import moe, ops
from k2ref.streaming import memory
from k2ref.trace import Trace

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the rooms of scripts/
from scripts import compare_traces  # noqa: E402

U = 2.0**-24  # the unit roundoff of float32
SUMS_PER_LAYER = 8  # one after another: q_a, q_b, scores, values, o, gate or up, down, the mixture
ROOM = 16  # what is rounded are the terms, and a row's largest value may be as much smaller
N_RANDOM = 64
TEXT = "What is 2 + 2? And which experts answer that?"


class Decision(NamedTuple):
    """Say how the routers of one layer agree: where they differ, and how close any was."""

    layer: int
    differ: list  # (token, k2ref's experts, transformers' experts, why, whether that is excused)
    margins: np.ndarray  # (T,) what the closest loser was short of, in scores + bias


def tolerance(config, n_layers, n_tokens):
    """Return what two float32 engines may differ by, relative to the largest value of a row.

    Each rounding is off by up to U, and those in a sum of n terms add up like a random walk, to
    sqrt(n) U; most sums run over the hidden size. The two engines' errors are independent, which
    gives sqrt(2 n) U, and so are those of the sums that a token passes, SUMS_PER_LAYER in a layer.
    A proof would have n in place of sqrt(n) and allow more than bf16 needs. Besides, transformers
    rounds RoPE's frequencies and angles to float32, each by up to U of an angle of up to n_tokens
    radians, for query and key. What was measured is below half of this.
    """
    sums = ROOM * U * math.sqrt(2 * config.hidden_size * SUMS_PER_LAYER * n_layers)
    return sums + 2 * 2 * U * n_tokens


def dump(model, ids):
    """Run transformers' DeepseekV3ForCausalLM; return its intermediates under k2ref's names."""
    import torch

    config, found, hooks, rotated = model.config, {}, [], []

    def keep(name, module, pick=lambda x, y: y[0]):
        def hook(module, inputs, output):
            array = pick(inputs[0] if inputs else None, output).detach().cpu()
            found[name] = (array.float() if array.is_floating_point() else array).numpy()

        hooks.append(module.register_forward_hook(hook))

    def heads(x):  # the batch's only sequence, (T, H * ...) -> (T, H, ...)
        return x[0].unflatten(-1, (config.num_attention_heads, -1))

    keep("embed", model.model.embed_tokens)
    for i, layer in enumerate(model.model.layers):
        at, attention = f"layers.{i}.", layer.self_attn
        q = attention.q_b_proj if config.q_lora_rank else attention.q_proj
        keep(at + "attn.h", layer.input_layernorm)
        keep(at + "attn.q_nope", q, lambda x, y: heads(y)[..., : config.qk_nope_head_dim])
        keep(at + "attn.c_kv", attention.kv_a_layernorm)
        keep(at + "attn.heads", attention.o_proj, lambda x, y: heads(x))
        keep(at + "attn.out", attention.o_proj)
        keep(at + "mid", layer.post_attention_layernorm, lambda x, y: x[0])
        keep(at + "h", layer.post_attention_layernorm)
        if hasattr(layer.mlp, "gate"):
            keep(at + "moe.chosen", layer.mlp.gate, lambda x, y: y[2])
            keep(at + "moe.mix", layer.mlp.gate, lambda x, y: y[1])
            keep(at + "moe.out", layer.mlp)
        else:
            keep(at + "mlp.out", layer.mlp)
        keep(at + "out", layer)
    keep("norm", model.model.norm)
    keep("logits", model.lm_head)

    # No module rotates: the function that does is wrapped, and called once a layer, in order.
    source = sys.modules[type(model).__module__]
    rotate = source.apply_rotary_pos_emb_interleave

    def rotate_and_keep(*args, **options):
        rotated.append(rotate(*args, **options))
        return rotated[-1]

    source.apply_rotary_pos_emb_interleave = rotate_and_keep
    try:
        with torch.no_grad():
            model(torch.tensor(ids)[None])
    finally:
        source.apply_rotary_pos_emb_interleave = rotate
        for hook in hooks:
            hook.remove()
    for i, (q, k) in enumerate(rotated):  # (1, H, T, R) and (1, 1, T, R)
        found[f"layers.{i}.attn.q_rope"] = q[0].transpose(0, 1).float().cpu().numpy()
        found[f"layers.{i}.attn.k_rope"] = k[0, 0].float().cpu().numpy()
    return found


def first_layers(directory, n_layers, scratch):
    """Make a directory of the first layers: links to the shards that hold them, config.json."""
    directory, scratch = Path(directory), Path(scratch)
    values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    values.get("text_config", values)["num_hidden_layers"] = n_layers
    (scratch / "config.json").write_text(json.dumps(values), encoding="utf-8")
    index = directory / "model.safetensors.index.json"
    if index.exists():
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {file for name, file in where.items() if _layer_of(name) < n_layers}
    else:
        names = {file.name for file in directory.glob("*.safetensors")}
    for name in names:
        (scratch / name).symlink_to((directory / name).resolve())
    return scratch


def _layer_of(name):
    parts = name.split(".layers.")
    return int(parts[1].split(".")[0]) if len(parts) == 2 else -1


def decisions(model, arrays, theirs, rtol):
    """Yield a `Decision` for each layer with experts, from k2ref's arrays and transformers'."""
    for i, layer in enumerate(model.layers):
        if not isinstance(layer.mlp, moe.Moe):
            continue
        logits = ops.linear(arrays[f"layers.{i}.h"], layer.mlp.gate, model.threads)
        nearest = margins(ops.sigmoid(logits) + layer.mlp.bias, model.config)
        # Each engine's logits are off by rtol of the largest, a sigmoid is at most 1/4 as steep,
        # and a decision compares two scores.
        limit = rtol * np.abs(logits).max(axis=-1) / 2
        ours, others = (np.sort(side[f"layers.{i}.moe.chosen"]) for side in (arrays, theirs))
        differ = []
        for t in np.nonzero((ours != others).any(axis=-1))[0].tolist():
            why, excused = f"decided by {nearest[t]:.1e}, NOT a matter of rounding", False
            if nearest[t] < limit[t]:
                why, excused = f"decided by {nearest[t]:.1e}, closer than rounding", True
            differ.append((t, ours[t].tolist(), others[t].tolist(), why, excused))
        yield Decision(i, differ, nearest)


def margins(choice, config):
    """Return how near each token's closest decision was, in scores + bias.

    (T, E) -> (T,)

    With groups, the nearest may be a group's.
    """
    T, K = len(choice), config.num_experts_per_tok
    nearest = np.full(T, np.inf)
    if config.topk_group < config.n_group:
        groups = choice.reshape(T, config.n_group, -1)
        sums = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
        ranked = -np.sort(-sums, axis=-1)
        last, first_dropped = ranked[:, config.topk_group - 1], ranked[:, config.topk_group]
        nearest = last - first_dropped
        choice = np.where((sums >= last[:, None])[..., None], groups, -np.inf).reshape(T, -1)
    ranked = -np.sort(-choice, axis=-1)
    if K < choice.shape[1]:
        nearest = np.minimum(nearest, ranked[:, K - 1] - ranked[:, K])
    return nearest


def report(model, arrays, theirs, rtol, stages=False):
    """Yield the lines of the report (A is k2ref, B is transformers), then the exit status."""
    n_tokens = len(arrays["embed"])
    routers = list(decisions(model, arrays, theirs, rtol))
    n, wrong = n_tokens, False
    for router in routers:
        closest = int(np.argmin(router.margins))
        yield (f"layer {router.layer}: {len(router.differ)} of {n_tokens} tokens routed otherwise, "
               f"closest decision {router.margins[closest]:.1e} (token {closest})")
        for t, ours, others, why, excused in router.differ:
            if t < n:  # the others have seen other experts than their twins, in layers before
                wrong |= not excused
                yield f"  token {t}: experts {ours} in k2ref, {others} in transformers, {why}"
        n = min([n, *(t for t, *_ in router.differ)])
    if n < n_tokens:
        yield f"tokens from {n} on have seen other experts, and are not compared"
    cut = [{name: array[:n] for name, array in side.items()} for side in (arrays, theirs)]
    found = compare_traces.compare(*cut, rtol)
    yield from compare_traces.lines(found, rtol, lambda name: stages or _is_residual(name))
    yield 1 if wrong or found.first is not None or n == 0 else 0


def _is_residual(name):
    return name in ("embed", "norm", "logits") or re.fullmatch(r"layers\.\d+\.out", name)


def choose_ids(model, ids, text):
    """Return the ids to run: those given, those of the text, or some that do for any model.

    Raises: ValueError
    """
    if ids is not None:
        try:
            return [int(i) for i in ids.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"--ids: expected numbers and commas, found {ids!r:.60}") from None
    if model.tokenizer is not None:
        return model.tokenizer.encode(TEXT if text is None else text, allow_special=False)
    if text is not None:
        raise ValueError("the checkpoint has no tokenizer (tiktoken.model): give --ids")
    return np.random.default_rng(0).integers(0, model.config.vocab_size, N_RANDOM).tolist()


def main(argv=None):
    """Print the report; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ids", metavar="1,2,3", help="token ids")
    what.add_argument("--text", metavar="TEXT", help="text, for the checkpoint's tokenizer")
    parser.add_argument("--layers", metavar="N", type=int, help="run the first N layers only")
    parser.add_argument("--stages", action="store_true", help="show all stages, not the residual")
    parser.add_argument("--threads", metavar="N", type=int)
    args = parser.parse_args(argv)
    try:
        for line in _compare(args):
            if isinstance(line, int):
                return line
            print(line, flush=True)
    except (ImportError, OSError, ValueError) as error:
        extra = " (pip install -e '.[oracle]')" if isinstance(error, ImportError) else ""
        print(f"compare_transformers: {error}{extra}", file=sys.stderr)
        return 2


def _compare(args):
    model = k2ref.load(args.checkpoint, args.threads)
    n_layers = model.config.num_hidden_layers if args.layers is None else args.layers
    if not 1 <= n_layers <= model.config.num_hidden_layers:
        raise ValueError(f"--layers: expected 1 to {model.config.num_hidden_layers}, found "
                         f"{n_layers}")
    model = dataclasses.replace(model, layers=model.layers[:n_layers])
    ids = choose_ids(model, args.ids, args.text)
    if not ids:
        raise ValueError("there are no ids to run")
    require_memory(model.config, n_layers)
    trace = Trace()
    k2ref.forward(model, ids, trace=trace)
    from scripts.checkpoints import (
        oracle,  # here, so that what is wrong with the checkpoint is said first
    )

    with tempfile.TemporaryDirectory() as scratch:
        theirs = dump(oracle.reference_model(first_layers(args.checkpoint, n_layers, scratch)), ids)
    rtol = tolerance(model.config, n_layers, len(ids))
    yield f"{len(ids)} tokens, {n_layers} layers, tolerance {rtol:.1e} of a row's largest value"
    yield from report(model, trace.arrays, theirs, rtol, args.stages)


def require_memory(config, n_layers):
    """Refuse what does not fit: transformers' float32 weights, which are there twice for a while.

    Raises: ValueError
    """
    dense = min(config.first_k_dense_replace, n_layers)
    part = dataclasses.replace(config, num_hidden_layers=n_layers, first_k_dense_replace=dense)
    n_bytes, available = 2 * 4 * part.n_parameters, memory.available()
    if available is not None and n_bytes > available:
        raise ValueError(f"{n_layers} layers take {n_bytes / 1e9:.0f} GB in transformers, and "
                         f"{available / 1e9:.0f} GB are available: use fewer --layers")


if __name__ == "__main__":
    sys.exit(main())
