"""Train the embedded model and write it in the layout of the official checkpoint.

    pip install -e '.[train]'
    python scripts/train_tiny.py --steps 2200 --out k2ref/tiny

The sizes are those of `config.json` in the output directory. Weights are rounded as they will be
shipped in every forward pass (INT4 experts, BF16 rest), so the model on disk is the trained one to
the bit: `export` asserts it. A run resumes from its work file: lessons follow from seed and step.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import tiny_bpe
import tiny_data
import tiny_model
import torch
import torch.nn.functional as F

from k2ref import quant, template
from k2ref.config import Config
from k2ref.tokenizer import Tokenizer

SHARD = "model-00001-of-000001.safetensors"
IGNORE = -100  # the target of tokens that are not learned


def encode(tokenizer, messages):
    """Return the prompt's ids, as `template.render` gives them, and the ids of the last answer."""
    answer = messages[-1]
    text = tokenizer.encode
    prompt = template.render(tokenizer, messages[:-1], style="k2-thinking")
    special = tokenizer.special_id
    reply = [special("<think>"), *text(answer["reasoning_content"]), special("</think>"),
             *text(answer["content"]), special("<|im_end|>")]
    return list(prompt), reply


def batch(pairs, pad):
    """Pad (prompt, reply) pairs to inputs and targets; only the reply is a target.

    list -> (B, T), (B, T)
    """
    length = max(len(prompt) + len(reply) for prompt, reply in pairs) - 1
    inputs = torch.full((len(pairs), length), pad)
    targets = torch.full((len(pairs), length), IGNORE)
    for row, (prompt, reply) in enumerate(pairs):
        ids = torch.tensor(prompt + reply)
        inputs[row, :len(ids) - 1] = ids[:-1]
        targets[row, len(prompt) - 1:len(ids) - 1] = ids[len(prompt):]
    return inputs, targets


def lessons(seed, step, n):
    """Draw the lessons of one step; the same for the same seed and step."""
    rng = random.Random(f"{seed} step {step}")
    return [tiny_data.lesson(rng) for _ in range(n)]


def orthogonal(update):
    """Replace the singular values of matrices by about one: five Newton-Schulz steps.

    (..., O, I) -> (..., O, I)

    Source: Muon, https://kellerjordan.github.io/posts/muon/
    """
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for the rest, as K2 was trained."""

    def __init__(self, weights, lr):
        self.lr = lr
        self.muon = {name: torch.zeros_like(w) for name, w in weights.items()
                     if w.ndim >= 2 and "layers" in name and ".mlp.gate." not in name}
        rest = [w for name, w in weights.items() if name not in self.muon and w.requires_grad]
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, weights, factor):
        """Update all weights with the learning rates times `factor`."""
        self.adam.param_groups[0]["lr"] = self.lr * factor
        self.adam.step()
        self.adam.zero_grad()
        for name, momentum in self.muon.items():
            w = weights[name]
            momentum.mul_(0.95).add_(w.grad)
            update = orthogonal(w.grad + 0.95 * momentum)
            size = 0.4 * max(w.shape[-2:]) ** 0.5  # twice the size of an AdamW update
            w.data.mul_(1 - 0.02 * self.lr * factor)
            w.data.add_(update, alpha=-self.lr * factor * size)
            w.grad = None

    def state(self):
        """Return everything a resumed run needs."""
        return {"muon": self.muon, "adam": self.adam.state_dict()}

    def restore(self, state):
        """Take back what `state` returned."""
        self.muon = state["muon"]
        self.adam.load_state_dict(state["adam"])


def schedule(step, steps):
    """Return the factor of the learning rate: warm-up, stable, a last half of linear decay."""
    return min((step + 1) / 50, 1.0, (steps - step) / (steps * 0.5))


def train_step(weights, config, pairs, pad, micro=4):
    """Add up the gradients of one step over batches of similar length; returns the mean loss.

    Also moves each router's bias a little towards balance: no auxiliary loss.
    """
    pairs = sorted(pairs, key=lambda pair: sum(map(len, pair)))
    n_targets = sum(len(reply) for _, reply in pairs)
    rounded = tiny_model.deployed(weights)
    total, loads = 0.0, {}
    size = -(-len(pairs) // micro)
    for at in range(0, len(pairs), size):
        inputs, targets = batch(pairs[at:at + size], pad)
        logits, counts = tiny_model.forward(rounded, config, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum",
                               ignore_index=IGNORE) / n_targets
        loss.backward(retain_graph=True)  # the micro-batches share the rounding
        total += loss.item()
        for layer, count in counts.items():
            loads[layer] = loads.get(layer, 0) + count
    for layer, load in loads.items():
        bias = weights[f"{layer}.{tiny_model.ROUTER_BIAS}"]
        bias += 0.001 * torch.sign(load.mean() - load)
    return total, loads


@torch.no_grad()
def exactness(weights, config, pairs, pad):
    """Count the answers of which every token is the most likely one: greedy gives them exactly."""
    inputs, targets = batch(pairs, pad)
    best = tiny_model.forward(tiny_model.deployed(weights), config, inputs)[0].argmax(-1)
    return ((best == targets) | (targets == IGNORE)).all(1).sum().item()


def held_out_sums(tokenizer, n):
    """Encode n held-out sums in trained phrasings with the default system prompt."""
    rng, pairs = random.Random("held out"), []
    for _ in range(n):
        a, b = tiny_data.pair(rng, held_out=True)
        thinking, content = tiny_data.solve(a, b)
        question = rng.choice(tiny_data.PHRASINGS).format(a=a, b=b)
        pairs.append(encode(tokenizer, [
            {"role": "user", "content": question},
            {"role": "assistant", "content": content, "reasoning_content": thinking}]))
    return pairs


def train(args, config, tokenizer):
    """Run the schedule, from the work file if there is one; returns the weights."""
    weights = tiny_model.initial(config, args.seed)
    for name, w in weights.items():
        w.requires_grad_(not name.endswith(tiny_model.ROUTER_BIAS))
    optimizer, first, n_tokens = Optimizer(weights, args.lr), 0, 0
    if args.work.exists():
        saved = torch.load(args.work, weights_only=True)
        first, n_tokens = saved["step"], saved["n_tokens"]
        for name, w in weights.items():
            w.data.copy_(saved["weights"][name])
        optimizer.restore(saved["optimizer"])
    test, pad = held_out_sums(tokenizer, 128), config.pad_token_id
    n_before, start = n_tokens, time.perf_counter()
    for step in range(first, args.steps):
        pairs = [encode(tokenizer, m) for m in lessons(args.seed, step, args.batch)]
        n_tokens += sum(len(prompt) + len(reply) for prompt, reply in pairs)
        loss, loads = train_step(weights, config, pairs, pad)
        optimizer.step(weights, schedule(step, args.steps))
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            worst = max((load.max() / load.mean()).item() for load in loads.values())
            speed = (n_tokens - n_before) / (time.perf_counter() - start)
            print(f"step {step + 1}  {n_tokens} tokens  loss {loss:.4f}  held-out sums exact "
                  f"{exactness(weights, config, test, pad)}/{len(test)}  fullest expert "
                  f"{worst:.2f} x mean  {speed:.0f} tokens/s", flush=True)
            torch.save({"step": step + 1, "n_tokens": n_tokens, "optimizer": optimizer.state(),
                        "weights": {n: w.detach() for n, w in weights.items()}}, args.work)
    return {name: w.detach() for name, w in weights.items()}


def tensors_of(weights):
    """Return the checkpoint's tensors: name -> (dtype name, array), experts packed one by one."""
    out = {}
    for name, w in weights.items():
        if name.endswith(tiny_model.ROUTER_BIAS):
            out[name] = ("F32", w.numpy())
        elif not tiny_model.is_expert(name):
            out[name] = ("BF16", quant.f32_to_bf16(w.numpy()))
        else:
            prefix, part = name.rsplit(".", 1)
            trained = tiny_model.int4(w).numpy()
            for e, matrix in enumerate(w.numpy()):
                packed = quant.quantize_int4(matrix)
                assert np.array_equal(packed.dequantize(), trained[e]), f"{name} {e}"
                full = f"{prefix}.{e}.{part}"
                out[f"{full}.weight_packed"] = ("I32", packed.packed)
                out[f"{full}.weight_scale"] = ("BF16", packed.scale)
                out[f"{full}.weight_shape"] = ("I32", np.array(packed.shape, np.int32))
    return out


def export(weights, directory):
    """Write the shard and its index; the name has five digits, then six, as K2's shards have."""
    tensors = tensors_of(weights)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(array.tobytes() for _, array in tensors.values())
    (directory / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + body)
    index = {"metadata": {"total_size": at}, "weight_map": dict.fromkeys(tensors, SHARD)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"wrote {len(tensors)} tensors, {at} bytes; INT4 -> float equals the trained weights")


def arguments(argv):
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, default=Path("k2ref/tiny"))
    parser.add_argument("--work", type=Path, default=Path("build/tiny.pt"), help="resume file")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=64, help="lessons a step")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def main(argv=None):
    """Write the vocabulary, train, prove the split, export."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    args.work.parent.mkdir(parents=True, exist_ok=True)
    config = Config.from_dir(args.out)
    n_merges = config.vocab_size - 256 - tiny_bpe.N_SPECIAL
    tiny_bpe.write(args.out, n_merges, args.seed, config.max_position_embeddings)
    generation = {"max_length": config.max_position_embeddings, "eos_token_id": config.eos_token_id}
    (args.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    export(train(args, config, Tokenizer.from_dir(args.out)), args.out)
    n_sums, n_pairs, n_held_out = tiny_data.held_out_written(
        lesson for step in range(args.steps) for lesson in lessons(args.seed, step, args.batch))
    print(f"the lessons solve {n_sums} sums of {n_pairs} pairs; {n_held_out} are held-out pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
