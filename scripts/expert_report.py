"""Report how a text uses the experts: load, reuse, what a cache would hit, what could be guessed.

    python scripts/expert_report.py README.md --max-tokens 500
    python scripts/expert_report.py book.txt --model /data/Kimi-K2-Thinking --json report.json

The text is read once, streamed where the checkpoint is large. A token that is read chooses the
experts that it chooses when the model writes it, to the bit, so this is a report of decoding too.
docs/expert-report.md says what each number means. Exit status: 0, or 2 for what cannot be read.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import k2ref
from k2ref import moe, ops
from k2ref.trace import Trace

NEVER = -1  # the distance of what was not used before
GUESSES = ("before", "shared", "after")
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)  # the last distance of each line of the reuse table
PARTS = 8  # lines of the cache table: an eighth of the experts, two eighths, ...
SEEN = re.compile(r"layers\.(\d+)\.(mid|h|moe\.chosen|out)")


class Watcher(Trace):
    """Keep each layer's choices, and hold them against guesses made one layer earlier.

    A guess is what the next layer's router makes of the residual as it is: "before" this layer's
    experts, with only the "shared" one added, and "after" the layer.
    """

    def __init__(self, model):
        super().__init__("layers.*")
        self.model, self.pieces, self.right = model, {}, {}
        self._guesses, self._mid = {}, None

    def record_all(self, prefix, **arrays):
        """Look at what a pass records, and keep the choices alone."""
        for name, array in arrays.items():
            if found := SEEN.fullmatch(prefix + name):
                self._see(int(found[1]), found[2], array)

    @property
    def chosen(self):
        """The experts chosen: dict of layer -> (T, K)."""
        return {i: np.concatenate(pieces) for i, pieces in self.pieces.items()}

    def _see(self, i, what, array):
        layers = self.model.layers
        if what == "moe.chosen":
            self.pieces.setdefault(i, []).append(np.array(array))
            for kind in GUESSES:
                guess = self._guesses.pop((i, kind), None)
                if guess is not None:
                    right = np.count_nonzero(guess[:, :, None] == array[:, None, :])
                    self.right[i, kind] = self.right.get((i, kind), 0) + right
        elif i + 1 < len(layers) and _has_experts(layers[i]) and _has_experts(layers[i + 1]):
            if what == "mid":
                self._mid = array
                self._guess(i + 1, "before", array)
            elif what == "h":
                shared = moe.mlp(array, layers[i].mlp.shared, self.model.threads)
                self._guess(i + 1, "shared", self._mid + shared)
            else:
                self._guess(i + 1, "after", array)

    def _guess(self, i, kind, x):
        layer, config, threads = self.model.layers[i], self.model.config, self.model.threads
        h = ops.rms_norm(x, layer.post_attention_layernorm, config.rms_norm_eps)
        guess, _ = moe.route(h, layer.mlp.gate, layer.mlp.bias, config, threads)
        self._guesses[i, kind] = guess


def _has_experts(layer):
    return isinstance(layer.mlp, moe.Moe)


def watch(model, ids):
    """Read the ids through the model; return the Watcher."""
    watcher, cache = Watcher(model), k2ref.KVCache(model.config, len(ids))
    with tqdm(total=len(ids), unit=" tokens", disable=None, leave=False) as bar:  # on a terminal
        for start in range(0, len(ids), model.chunk):
            piece = ids[start:start + model.chunk]
            k2ref.forward(model, piece, cache, trace=watcher, last_only=True)
            bar.update(len(piece))
    return watcher


def load_of(chosen, E):
    """Count how often each expert was chosen, and say how uneven that is.

    (T, K) -> a dict
    """
    counts = np.bincount(chosen.ravel(), minlength=E)
    share = counts[counts > 0] / counts.sum()
    return {"counts": counts.tolist(), "max_over_mean": float(counts.max() / counts.mean()),
            "entropy_bits": float(-(share * np.log2(share)).sum()),
            "unused": int((counts == 0).sum())}


def token_distances(chosen, E):
    """Return how many tokens ago each chosen expert was chosen before, or NEVER.

    (T, K) -> (T, K)
    """
    last, distances = np.full(E, NEVER), np.empty(chosen.shape, np.int64)
    for t, experts in enumerate(chosen):
        distances[t] = np.where(last[experts] == NEVER, NEVER, t - last[experts])
        last[experts] = t
    return distances


def stack_distances(accesses, n):
    """Return how many others of n things were used since each access's thing was used, or NEVER.

    (N,) -> (N,)

    A least-recently-used cache of s things hits where that is below s, for every s: one pass gives
    the hits of all sizes (Mattson and others, 1970).
    """
    last, distances = np.full(n, NEVER), np.empty(len(accesses), np.int64)
    for at, thing in enumerate(accesses):
        since = last[thing]
        distances[at] = NEVER if since == NEVER else np.count_nonzero(last > since)
        last[thing] = at
    return distances


def hits_by_size(distances, n):
    """Count the hits of a least-recently-used cache of 0, 1, ... n things: (N,) -> (n + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(distances[distances >= 0], minlength=n))])


def caches(chosen, E):
    """Count hits by size, with a cache for each layer, and with one that all layers share.

    {layer: (T, K)} -> (E + 1,), (layers E + 1,)
    """
    layers = sorted(chosen)
    apart = sum(hits_by_size(stack_distances(chosen[i].ravel(), E), E) for i in layers)
    # As decoding goes: token by token, all layers of each.
    together = np.stack([chosen[i] + at * E for at, i in enumerate(layers)], axis=1).ravel()
    n = len(layers) * E
    return apart, hits_by_size(stack_distances(together, n), n)


def report(model, ids):
    """Read the ids and return all that is found, as JSON has it.

    Raises: ValueError where no layer has experts.
    """
    config = model.config
    E, K, T = config.n_routed_experts, config.num_experts_per_tok, len(ids)
    watcher = watch(model, ids)
    chosen = watcher.chosen
    if not chosen:
        raise ValueError("the model has no layer with experts")
    layers, distances = {}, {i: token_distances(c, E) for i, c in chosen.items()}
    for i, c in chosen.items():
        guessed = {kind: watcher.right[i, kind] / (T * K) if (i, kind) in watcher.right else None
                   for kind in GUESSES}
        repeated = float((distances[i][1:] == 1).mean()) if T > 1 else None
        layers[i] = load_of(c, E) | {"repeated": repeated, "guessed": guessed}
    apart, together = caches(chosen, E)
    past = np.concatenate([d.ravel() for d in distances.values()])
    n_bytes = config.n_bytes_by_kind["experts"] // (E * len(chosen))
    return {
        "tokens": T, "experts": E, "chosen": K, "expert_bytes": n_bytes, "layers": layers,
        "accesses": T * K * len(chosen), "never_before": int((past == NEVER).sum()),
        "token_distances": np.bincount(past[past >= 0], minlength=1).tolist(),
        "hits_a_cache_a_layer": apart.tolist(), "hits_one_cache": together.tolist(),
    }


def lines(found):
    """Yield the tables of a report."""
    E, K = found["experts"], found["chosen"]
    yield (f"{found['tokens']} tokens, {len(found['layers'])} layers of {E} experts, "
           f"{K} chosen for a token")
    yield ""
    yield (f"{'layer':>7}  {'max/mean':>8}  {'entropy':>8}  {'unused':>6}  {'repeated':>8}  "
           f"guessed:{'before':>8}  {'shared':>8}  {'after':>8}")
    rows = list(found["layers"].values())
    for i, row in found["layers"].items():
        yield _layer_line(f"{i:>7}", [row])
    yield _layer_line(f"{'mean':>7}", rows)
    yield f"{'chance':>7}  {'':8}  {np.log2(E):8.2f}  {'':6}  {_percent(K / E)}  " + "  ".join(
        [" " * 8 + _percent(K / E), _percent(K / E), _percent(K / E)])
    yield ""
    yield "tokens since an expert was chosen before in its layer, share of all choices"
    past, first = np.array(found["token_distances"]), 1
    for last in TOKENS:
        name = f"{last}" if first == last else f"{first} to {last}"
        yield f"{name:>12}  {_percent(past[first:last + 1].sum() / found['accesses'])}"
        first = last + 1
    yield f"{'more':>12}  {_percent(past[first:].sum() / found['accesses'])}"
    yield f"{'never before':>12}  {_percent(found['never_before'] / found['accesses'])}"
    yield ""
    yield "what least-recently-used caches hit, and what is read for a token"
    yield f"{'experts':>9}  {'memory':>9}  a cache a layer             one for all layers"
    n, tokens, size = len(rows), found["tokens"], found["expert_bytes"]
    for s in sorted({max(1, round(E * part / PARTS)) for part in range(1, PARTS + 1)}):
        cells = []
        for hits in (found["hits_a_cache_a_layer"][s], found["hits_one_cache"][s * n]):
            read = (found["accesses"] - hits) * size / tokens
            cells.append(f"{_percent(hits / found['accesses'])}  {_bytes(read):>9} read")
        yield f"{s * n:9}  {_bytes(s * n * size):>9}  {'   '.join(cells)}"


def _layer_line(name, rows):
    """Write one line of the first table: a layer's row, or the mean of several."""
    def mean(values):
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else None

    guessed = [_percent(mean([row["guessed"][kind] for row in rows])) for kind in GUESSES]
    return (f"{name}  {mean([row['max_over_mean'] for row in rows]):8.2f}  "
            f"{mean([row['entropy_bits'] for row in rows]):8.2f}  "
            f"{mean([row['unused'] for row in rows]):6.4g}  "
            f"{_percent(mean([row['repeated'] for row in rows]))}  "
            f"{' ' * 8}{'  '.join(guessed)}")


def _percent(share):
    return f"{'-':>8}" if share is None else f"{100 * share:7.1f}%"


def _bytes(n):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


def main(argv=None):
    """Print the tables of one text; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", metavar="TEXTFILE")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint (default: the embedded one)")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="read no more than N tokens")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write everything to this file")
    parser.add_argument("--memory", metavar="GB", type=float, help="the budget, as for k2ref")
    parser.add_argument("--threads", metavar="N", type=int)
    args = parser.parse_args(argv)
    try:
        text = Path(args.text).read_text(encoding="utf-8")
        model = k2ref.load(args.model, args.threads, args.memory and int(args.memory * 1e9))
        if model.tokenizer is None:
            raise ValueError(f"{args.model}: it has no tokenizer (tiktoken.model)")
        if args.max_tokens is not None and args.max_tokens < 1:
            raise ValueError(f"--max-tokens: expected 1 or more, found {args.max_tokens}")
        ids = model.tokenizer.encode(text, allow_special=False)[:args.max_tokens]
        if not ids:
            raise ValueError(f"{args.text}: there is nothing to read")
        found = report(model, ids)
        if args.json:
            args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"expert_report: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
