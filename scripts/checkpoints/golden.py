"""Write the tests' golden checkpoints: tiny random models, and what transformers makes of them.

    python -m scripts.checkpoints.golden  # writes tests/data/golden (needs the oracle extra)
    python -m scripts.checkpoints.golden --check  # makes them anew and compares

Each directory is a checkpoint in an official layout with a `reference.npz`, described in
tests/data/golden/README.md; `provenance.json` has the versions, the seeds and the sha256 of every
file. A prompt is taken only if no decision in it is close, so that rounding cannot flip one.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from k2ref import quant
from k2ref.checkpoint.config import Config
from scripts.checkpoints.oracle import continue_greedily, reference_model, run
from scripts.checkpoints.small import random_tensors, tiny_config, unused_tensors, write_shards

GOLDEN = Path(__file__).parents[2] / "tests" / "data" / "golden"
PACKAGES = ("torch", "transformers", "compressed-tensors", "safetensors", "numpy")
SIZES = {
    "vocab_size": 128, "bos_token_id": 125, "eos_token_id": 126, "pad_token_id": 127,
    "num_attention_heads": 3, "num_key_value_heads": 3, "qk_rope_head_dim": 16,
}  # fmt: skip
# Directory: layout, seed, what differs from the layout's tiny_config, what is added to the biases.
GOLDENS = {
    "thinking": ("thinking", 1, {}, 0.0),
    "k25": ("k25", 2, {"n_routed_experts": 6}, 0.0),
    # 144 columns are a block of 128 and a part of one.
    "instruct_fp8": ("fp8", 3, {"hidden_size": 144, "num_hidden_layers": 2}, 0.0),
    "moonlight": ("moonlight", 4, {"hidden_size": 40, "moe_intermediate_size": 24}, 0.0),
    # With these biases about half of all scores + bias are negative.
    "deepseek": ("deepseek", 5, {"n_routed_experts": 16, "num_hidden_layers": 2}, -0.5),
}
N_PROMPT = 288  # one key block of attention and a part of the next
POSITIONS = [*range(8), *range(N_PROMPT - 8, N_PROMPT)]
N_GREEDY_PROMPT, N_GREEDY = 40, 24
CLOSEST_CHOICE = 2e-5  # of scores + bias, or of the groups' sums
CLOSEST_LEAD = 4e-4  # of logits: twice the tolerance of the tests


def main():
    """Write the goldens, or with --check compare them with a second making."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    provenance = {"script": "scripts/checkpoints/golden.py", "checkpoints": {}}
    provenance["versions"] = {package: version(package) for package in PACKAGES}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) if check else GOLDEN
        for name in GOLDENS:
            provenance["checkpoints"][name] = make(root, name)
            print(name, {k: v for k, v in provenance["checkpoints"][name].items() if k != "files"})
        if not check:
            text = json.dumps(provenance, indent=1) + "\n"
            (GOLDEN / "provenance.json").write_text(text)
            return 0
        found = [problem for name in GOLDENS for problem in differences(root, name)]
    print("\n".join(found) or "the committed goldens are what this script makes")
    return 1 if found else 0


def make(root, name):
    """Write one checkpoint and its reference; return its provenance."""
    layout, seed, changes, bias = GOLDENS[name]
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    write_checkpoint(directory, layout, seed, changes, bias)
    model = reference_model(directory)
    prompt_seed, ids, margins = find_prompt(model, seed)
    logits, hidden, _ = run(model, ids)
    greedy, _ = continue_greedily(model, ids[:N_GREEDY_PROMPT], N_GREEDY)
    np.savez_compressed(
        directory / "reference.npz", ids=ids, positions=POSITIONS, greedy=greedy,
        logits=logits[POSITIONS], hidden=hidden[:, POSITIONS],
    )  # fmt: skip
    files = {file.name: sha256(file) for file in sorted(directory.iterdir())}
    return {"seed": seed, "prompt_seed": prompt_seed, **margins, "files": files}


def write_checkpoint(directory, layout, seed, changes, bias):
    """Write config.json and two shards, with `bias` added to e_score_correction_bias."""
    values = tiny_config(layout)
    values.get("text_config", values).update({**SIZES, **changes})
    config = Config.from_dict(values)
    tensors = random_tensors(config, seed, "I64" if layout == "k25" else "I32")
    for name, (dtype, array) in tensors.items():
        if name.endswith("e_score_correction_bias"):
            tensors[name] = dtype, array + np.float32(bias)
        elif name.endswith(("q_a_proj.weight", "kv_a_proj_with_mqa.weight")) and dtype == "BF16":
            # Small latents, so that the eps of their norms shows: 1e-5 for 1e-6 is half a percent.
            is_q = name.endswith("q_a_proj.weight")
            weights = quant.bf16_to_f32(array)
            weights[: config.q_lora_rank if is_q else config.kv_lora_rank] /= 32
            tensors[name] = dtype, quant.f32_to_bf16(weights)
    tensors.update(unused_tensors(config, layout))
    (directory / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    write_shards(directory, tensors, 2, seed)


def find_prompt(model, seed):
    """Draw random prompts until one has no close decision: (its seed, ids, the margins)."""
    for prompt_seed in range(1000 * seed, 1000 * seed + 1000):
        rng = np.random.default_rng(prompt_seed)
        ids = rng.integers(0, model.config.vocab_size, N_PROMPT)
        choice = closest_choice(model, run(model, ids)[2])
        if choice < CLOSEST_CHOICE:
            continue
        greedy, lead = continue_greedily(model, ids[:N_GREEDY_PROMPT], N_GREEDY)
        choice = min(choice, closest_choice(model, run(model, greedy)[2]))
        if choice >= CLOSEST_CHOICE and lead >= CLOSEST_LEAD:
            return prompt_seed, ids, {"closest_choice": choice, "closest_lead": lead}
    raise SystemExit("no prompt without a close decision among 1,000")


def closest_choice(model, router_logits):
    """Return by how little any token's choice of groups or experts is decided."""
    config, closest = model.config, float("inf")
    moe_layers = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    for mlp, logits in zip(moe_layers, router_logits, strict=True):
        choice = 1 / (1 + np.exp(-logits.astype(np.float64)))
        choice += mlp.gate.e_score_correction_bias.numpy()
        if config.n_group > 1:
            groups = choice.reshape(len(choice), config.n_group, -1)
            sums = np.sort(groups)[..., -2:].sum(axis=-1)
            ranked = np.sort(sums)[:, ::-1]
            last, next_ = ranked[:, config.topk_group - 1], ranked[:, config.topk_group]
            closest = min(closest, (last - next_).min())
            # The other groups' experts count as 0.0 in the official code and as -inf in
            # transformers: the same only while all that are chosen lie above 0.
            kept = sums >= last[:, None]
            choice = np.where(kept[..., None], groups, 0.0).reshape(choice.shape)
        ranked = np.sort(choice)[:, ::-1]
        k = config.num_experts_per_tok
        closest = min(closest, (ranked[:, k - 1] - ranked[:, k]).min())
    return float(closest)


def differences(root, name):
    """Compare one committed checkpoint with a new one: a list of sentences."""
    recorded = json.loads((GOLDEN / "provenance.json").read_text())["checkpoints"][name]["files"]
    for file in sorted(set(recorded) | {file.name for file in (root / name).iterdir()}):
        committed, new = GOLDEN / name / file, root / name / file
        if not committed.exists() or sha256(committed) != recorded.get(file):
            yield f"{name}/{file}: the committed file is not the one in provenance.json"
        elif file != "reference.npz" and (not new.exists() or sha256(new) != recorded[file]):
            yield f"{name}/{file}: this script now makes another file"
    with np.load(GOLDEN / name / "reference.npz") as a, np.load(root / name / "reference.npz") as b:
        for key in a.files:
            # Another machine's matrix product may round otherwise; ids must be the same.
            same = np.allclose(a[key], b[key], rtol=0, atol=1e-5 if a[key].dtype.kind == "f" else 0)
            if not same:
                yield f"{name}/reference.npz: {key} differs"


def sha256(file):
    """Return the hexadecimal sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
