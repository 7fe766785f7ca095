"""Train the embedded model on all lessons; resumable, seeded, in float32 with BF16 products.

    pip install -e '.[train]'
    python -m scripts.tiny.train --out build/tiny --work build/tiny/work.pt --workers 12

Writes config, vocabulary and, at the end, the checkpoint into --out. A step takes lessons until it
has `--tokens` of them and learns the last answer of each with its thinking and calls (weight 1)
and, a little, everything else. From `--long` of the schedule on, every seventh step is one of whole
trails. Lessons follow from seed and step alone. What the command line leaves unsaid is as it was
for the model that comes with k2ref.
"""

import argparse
import functools
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from k2ref.checkpoint.config import Config
from k2ref.tokenizer import Tokenizer
from scripts.tiny import batches as tiny_batches
from scripts.tiny import export, net, vocabulary
from scripts.tiny import weights as tiny_model
from scripts.tiny.optimizer import Optimizer

OFFICIAL = Path(__file__).parents[2] / "tests/data/configs/Kimi-K2-Thinking.json"
# The model that comes with k2ref was begun with 18,000 steps before it. From step 12,944 on it had
# 16,500, and so suddenly more of its schedule behind it.
CUT, LONGER = 12944 / 16500, 18000 / 16500
LONG_EVERY = 7  # steps, one of which is of whole trails
LONGEST = 32768  # tokens of a lesson, at most
CHECKED_WITH = "5.23.0"  # the transformers that gives the same logits
SIZES = {  # what differs from the official config.json
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 48, "intermediate_size": 512, "moe_intermediate_size": 96,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "vocab_size": 2560,
}


def train_step(weights, config, batch, angles):
    """Put the gradients of one step into the weights; move the routers' biases.

    Returns the loss, a tensor, and the experts' loads.
    """
    rounded = tiny_model.deployed(weights)
    for name, w in rounded.items():
        w.requires_grad_(weights[name].requires_grad)
    y, loads = net.logits(rounded, config, batch, angles)
    loss = net.cross_entropy(y, batch.targets, batch.weights) / batch.weights.sum()
    loss.backward()
    for name, w in weights.items():
        w.grad = rounded[name].grad
    for layer, load in loads.items():
        bias = weights[f"{layer}.{tiny_model.ROUTER_BIAS}"]
        bias += 0.001 * torch.sign(load.float().mean() - load)
    return loss.detach(), loads


@torch.no_grad()
def answers(weights, config, batch, angles):
    """Measure on whole lessons: the loss of what is learned, how many are exact, of how many."""
    y, _ = net.logits(tiny_model.deployed(weights), config, batch, angles)
    learned = batch.weights >= 1
    loss = net.cross_entropy(y, batch.targets, learned.float()) / learned.sum()
    wrong = batch.here[(y.argmax(-1) != batch.targets) & learned]
    spoiled = torch.searchsorted(batch.starts, wrong.int(), right=True).unique()
    n = sum(rows for rows, _ in batch.groups)
    return loss.item(), n - len(spoiled), n


def moved(batch, device):
    """Put the tensors of a batch where the weights are."""
    return batch._replace(**{name: value.to(device, non_blocking=True) for name, value
                             in batch._asdict().items() if isinstance(value, torch.Tensor)})


def done(step, steps):
    """Return how much of the schedule is over before a step, from 0 to 1."""
    part = step / steps
    return part if part >= CUT else part / LONGER


def schedule(step, steps):
    """Return the factor of the learning rate: warm-up, stable, a last 45 % of linear decay."""
    return min((step + 1) / 60, 1.0, (1 - done(step, steps)) / 0.45)


def plan(step, args):
    """Say whether a step is one of whole trails, and of how many pages at most."""
    part = done(step, args.steps)
    n_pages = 40 if part < 0.6 else 110 if part < 0.8 else 300
    return part > args.long and step % LONG_EVERY == 0, n_pages


def batches(args, config, tokenizer, first=0):
    """Draw the batches of the schedule from a step on, in processes of their own."""
    lessons = tiny_batches.Lessons(tokenizer, config.pad_token_id, args.seed, args.tokens,
                                   functools.partial(plan, args=args))
    return torch.utils.data.DataLoader(lessons, batch_size=None, sampler=range(first, args.steps),
                                       num_workers=args.workers, pin_memory=args.device == "cuda",
                                       prefetch_factor=8 if args.workers else None)


def prove(proof):
    """Say whether a lesson held what is held out or asked what is evaluated."""
    print(f"{proof['questions']} questions of the lessons hold {proof['held']} phrasings, names "
          f"and numbers; {proof['held_out']} are held out; {proof['asked']} ask what the "
          f"evaluation asks")


def prepare(out, seed):
    """Write config, generation config and vocabulary, as the official files with other sizes."""
    out.mkdir(parents=True, exist_ok=True)
    values = json.loads(OFFICIAL.read_text())
    n_tokens = SIZES["vocab_size"] - 256
    values.update(SIZES, transformers_version=CHECKED_WITH, bos_token_id=n_tokens,
                  eos_token_id=n_tokens + 2, pad_token_id=n_tokens + 255)
    (out / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    generation = {"max_length": values["max_position_embeddings"],
                  "eos_token_id": values["eos_token_id"]}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if not (out / "tiktoken.model").exists():  # a resumed run must go on with its own
        vocabulary.write(out, n_tokens - 256, seed, values["max_position_embeddings"])
    return Config.from_dir(out), Tokenizer.from_dir(out)


def train(args, config, tokenizer):
    """Run the schedule, from the work file if there is one.

    What it reached is in the work file: the end, or where `--seconds` stopped it.
    """
    start = time.perf_counter()
    weights = {name: w.to(args.device).requires_grad_(not name.endswith(tiny_model.ROUTER_BIAS))
               for name, w in tiny_model.initial(config, args.seed).items()}
    optimizer, first, n_tokens, proof = Optimizer(weights, args.lr), 0, 0, Counter()
    if args.work.exists():
        saved = torch.load(args.work, weights_only=True, map_location=args.device)
        first, n_tokens, proof = saved["step"], saved["n_tokens"], Counter(saved["proof"])
        for name, w in weights.items():
            w.data.copy_(saved["weights"][name])
        optimizer.restore(saved["optimizer"])
    angles = net.tables(config, LONGEST, args.device)
    unseen = tiny_batches.packed(tiny_batches.documents(
        tiny_batches.Encoder(tokenizer), "unseen", 0, 48000, False, 0), config.pad_token_id)
    unseen, n_before, mean = moved(unseen, args.device), n_tokens, None
    for step, batch in enumerate(batches(args, config, tokenizer, first), first):
        n_tokens, proof = n_tokens + batch.n_tokens, proof + Counter(batch.proof)
        loss, loads = train_step(weights, config, moved(batch, args.device), angles)
        optimizer.step(weights, schedule(step, args.steps))
        is_long, n_pages = plan(step, args)
        mean = loss if mean is None else mean if is_long else 0.98 * mean + 0.02 * loss
        if is_long and step % args.report < LONG_EVERY:
            print(f"step {step}  trails of up to {n_pages} pages, loss {loss:.4f}", flush=True)
        seconds = time.perf_counter() - start
        is_last = step + 1 == args.steps or seconds > args.seconds
        if (step + 1) % args.report and not is_last:
            continue
        worst = max((load.max() / load.float().mean()).item() for load in loads.values())
        found, n_exact, n = answers(weights, config, unseen, angles)
        print(f"step {step + 1}  {n_tokens} tokens  loss {mean:.4f}  unseen lessons {found:.4f}, "
              f"exact {n_exact}/{n}  fullest expert {worst:.2f} x mean  "
              f"{(n_tokens - n_before) / seconds:.0f} tokens/s  {seconds:.0f} s", flush=True)
        part = args.work.with_suffix(".part")
        torch.save({"step": step + 1, "n_tokens": n_tokens, "optimizer": optimizer.state(),
                    "proof": dict(proof), "weights": {n: w.detach() for n, w in weights.items()}},
                   part)
        part.replace(args.work)
        if is_last:
            break


def arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--work", type=Path, default=Path("build/tiny.work.pt"), help="resume file")
    parser.add_argument("--steps", type=int, default=16500)
    parser.add_argument("--tokens", type=int, default=131072, help="tokens of a step, at least")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--long", type=float, default=0.3, help="share of steps without trails")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw lessons")
    parser.add_argument("--report", type=int, default=200, help="steps from report to report")
    parser.add_argument("--seconds", type=float, default=math.inf, help="leave off after so many")
    parser.add_argument("--prove", action="store_true", help="only print the proof of the split")
    return parser.parse_args(argv)


def main(argv=None):
    """Write the vocabulary, train, export, prove the split."""
    args = arguments(argv)
    args.work.parent.mkdir(parents=True, exist_ok=True)
    config, tokenizer = prepare(args.out, args.seed)
    if args.prove:
        prove(sum((Counter(batch.proof) for batch in batches(args, config, tokenizer)), Counter()))
        return 0
    train(args, config, tokenizer)
    saved = torch.load(args.work, weights_only=True, map_location="cpu")
    if saved["step"] < args.steps:
        print(f"left off after step {saved['step']} of {args.steps}; the same command goes on")
        return 0
    export.export(saved["weights"], args.out)
    prove(Counter(saved["proof"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
