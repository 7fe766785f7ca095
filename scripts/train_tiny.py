"""Train the embedded model on all lessons; resumable, seeded, in float32 with BF16 products.

    pip install -e '.[train]'
    python scripts/train_tiny.py --out build/tiny --work build/tiny/work.pt

Writes config, vocabulary and, at the end, the checkpoint into --out. A step takes lessons until it
has `--tokens` of them, groups them by length and learns the last answer of each with its thinking
and calls (weight 1) and, a little, everything else. From `--long` of the schedule on, every tenth
step is one of whole trails. Lessons follow from seed and step alone.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import eval_tiny
import tiny_batches
import tiny_data
import tiny_export
import tiny_model
import tiny_net
import tiny_vocabulary
import torch
from tiny_optimizer import Optimizer

from k2ref.config import Config
from k2ref.tokenizer import Tokenizer

OFFICIAL = Path(__file__).parents[1] / "tests/data/configs/Kimi-K2-Thinking.json"
CHECKED_WITH = "5.23.0"  # the transformers that gives the same logits
SIZES = {  # what differs from the official config.json
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 48, "intermediate_size": 512, "moe_intermediate_size": 96,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "vocab_size": 2560,
}


def train_step(weights, config, docs, pad, worker=0, n_workers=1):
    """Add up the gradients of one step; move the routers' biases; return the loss and the loads.

    Each of several workers takes its share of the lessons; all end with the same sums.
    """
    total = sum(sum(weight[1:]) for _, weight in docs)
    share = sorted(docs, key=lambda doc: len(doc[0]))[worker::n_workers]
    share = share or [([pad, pad], [0.0, 0.0])]  # one lesson was the whole step: nothing to add
    inputs, targets, masses = tiny_batches.grouped(share, pad)
    loss, loads = tiny_net.loss(tiny_model.deployed(weights), config, inputs, targets, masses)
    (loss / total).backward()
    learned = [w.grad for w in weights.values() if w.grad is not None]
    parts = [loss.detach()[None], *loads.values(), *(grad.flatten() for grad in learned)]
    if n_workers > 1:
        sums = torch.cat([part.float() for part in parts])
        torch.distributed.all_reduce(sums)
        parts = sums.split([len(part) for part in parts])
        for grad, part in zip(learned, parts[1 + len(loads):], strict=True):
            grad.copy_(part.view_as(grad))
    loads = dict(zip(loads, parts[1:], strict=False))
    for layer, load in loads.items():
        bias = weights[f"{layer}.{tiny_model.ROUTER_BIAS}"]
        bias += 0.001 * torch.sign(load.float().mean() - load)
    return parts[0].item() / total, loads


@torch.no_grad()
def answers(weights, config, docs, pad):
    """Measure on whole lessons: the loss of what is learned and how many are exact throughout."""
    inputs, targets, masses = tiny_batches.grouped(docs, pad)
    rounded = tiny_model.deployed(weights)
    x, _ = tiny_net.hidden(rounded, config, inputs)
    logits = tiny_net.FLATTER * tiny_net.linear(x, rounded["lm_head.weight"]).float()
    here = torch.cat([mass.flatten() for mass in masses]) >= 1
    y = torch.cat([part.flatten() for part in targets])
    logits = logits[:len(y)]  # without what fills up the step
    loss = torch.nn.functional.cross_entropy(logits[here], y[here]).item()
    wrong, at, n_exact = (logits.argmax(-1) != y) & here, 0, 0
    for group in inputs:
        rows = wrong[at:at + group.numel()].view(group.shape)
        n_exact += (~rows.any(1)).sum().item()
        at += group.numel()
    return loss, n_exact


def schedule(step, steps):
    """Return the factor of the learning rate: warm-up, stable, a last 45 % of linear decay."""
    return min((step + 1) / 60, 1.0, (steps - step) / (steps * 0.45))


def plan(step, args):
    """Say whether a step is one of whole trails, and of how many pages at most."""
    done = step / args.steps
    return done > args.long and step % 10 == 0, 40 if done < 0.7 else 110 if done < 0.93 else 300


def prove(args, tokenizer):
    """Draw all lessons again; say whether one holds what is held out or asks what is evaluated."""
    encoder, asked = tiny_batches.Encoder(tokenizer), eval_tiny.questions()
    n = n_held = n_asked = n_questions = 0
    for step in range(args.steps):
        seen = []
        tiny_batches.documents(encoder, args.seed, step, args.tokens, *plan(step, args), seen)
        held, bad = tiny_data.held_out(seen)
        n, n_held, n_questions = n + len(held), n_held + len(bad), n_questions + len(seen)
        n_asked += sum(exchange.question in asked for exchange in seen)
    print(f"{n_questions} questions of the lessons hold {n} phrasings, names and numbers; {n_held} "
          f"are held out; {n_asked} are among the {len(asked)} questions of the evaluation")


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
        tiny_vocabulary.write(out, n_tokens - 256, seed, values["max_position_embeddings"])
    return Config.from_dir(out), Tokenizer.from_dir(out)


def train(args, config, tokenizer, worker=0):
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
    encoder, pad = tiny_batches.Encoder(tokenizer), config.pad_token_id
    test = tiny_batches.documents(encoder, "unseen", 0, 24000, False, 0)
    n_before, start, mean = n_tokens, time.perf_counter(), None
    for step in range(first, args.steps):
        is_long, n_pages = plan(step, args)
        docs = tiny_batches.documents(encoder, args.seed, step, args.tokens, is_long, n_pages)
        n_tokens += sum(len(ids) for ids, _ in docs)
        loss, loads = train_step(weights, config, docs, pad, worker, args.workers)
        optimizer.step(weights, schedule(step, args.steps))
        if worker:
            continue
        mean = loss if mean is None else mean if is_long else 0.95 * mean + 0.05 * loss
        if is_long and step % 50 == 0:
            print(f"step {step}  trails of up to {n_pages} pages, loss {loss:.4f}", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            worst = max((load.max() / load.float().mean()).item() for load in loads.values())
            speed = (n_tokens - n_before) / (time.perf_counter() - start)
            unseen, n_exact = answers(weights, config, test, pad)
            print(f"step {step + 1}  {n_tokens} tokens  loss {mean:.4f}  unseen lessons "
                  f"{unseen:.4f}, exact {n_exact}/{len(test)}  fullest expert {worst:.2f} x mean  "
                  f"{speed:.0f} tokens/s", flush=True)
            part = args.work.with_suffix(".part")
            torch.save({"step": step + 1, "n_tokens": n_tokens, "optimizer": optimizer.state(),
                        "weights": {n: w.detach() for n, w in weights.items()}}, part)
            part.replace(args.work)
    return {name: w.detach() for name, w in weights.items()}


def share_training(worker, args):
    """Train as one of several processes, each on one core."""
    torch.set_num_threads(args.threads)
    torch.distributed.init_process_group("gloo", f"file://{meeting(args).resolve()}",
                                         rank=worker, world_size=args.workers)
    train(args, Config.from_dir(args.out), Tokenizer.from_dir(args.out), worker)
    torch.distributed.destroy_process_group()


def meeting(args):
    """Name the file through which the workers find each other."""
    return args.work.with_suffix(".workers")


def trained(args, config, tokenizer):
    """Train here, or in several processes; returns the weights."""
    if args.workers > 1:
        meeting(args).unlink(missing_ok=True)
        torch.multiprocessing.spawn(share_training, (args,), args.workers)
    return train(args, config, tokenizer)


def arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--work", type=Path, default=Path("build/tiny.work.pt"), help="resume file")
    parser.add_argument("--steps", type=int, default=5090)
    parser.add_argument("--tokens", type=int, default=8000, help="tokens of a step, at least")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--long", type=float, default=0.55, help="share of steps without trails")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that share each step")
    parser.add_argument("--prove", action="store_true", help="only print the proof of the split")
    parser.add_argument("--export", action="store_true", help="only write the work file's weights")
    return parser.parse_args(argv)


def main(argv=None):
    """Write the vocabulary, train, export, prove the split."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    args.work.parent.mkdir(parents=True, exist_ok=True)
    config, tokenizer = prepare(args.out, args.seed)
    if args.export:
        weights = torch.load(args.work, weights_only=True)["weights"]
        tiny_export.export(weights, args.out)
        return 0
    if args.prove:
        prove(args, tokenizer)
        return 0
    tiny_export.export(trained(args, config, tokenizer), args.out)
    prove(args, tokenizer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
