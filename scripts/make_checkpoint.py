"""Write a synthetic checkpoint in the official layout, at any size.

    python scripts/make_checkpoint.py OUT --config config.json --layers 4    # about 30 GB for K2
    python scripts/make_checkpoint.py OUT --config config.json --sparse      # all of it, as holes

The files are those of the hub: one shard a layer and one for what is outside the layers, an index
in shuffled order, and, where CONFIG has none beside it, a vocabulary that needs no download. The
weights are random, such that activations neither vanish nor overflow in any depth. With `--sparse`
the data are holes in the files, which read as zeros and take no disk, except for the `weight_shape`
tensors and the parts that `--fill` names: a rehearsal at full size on any machine.
"""

import argparse
import base64
import errno
import itertools
import json
import math
import os
import random
import shutil
import string
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from k2ref.checkpoint import layout
from k2ref.checkpoint.config import STALE_INV_FREQ, Config
from k2ref.checkpoint.shards import INDEX
from k2ref.checkpoint.weights import Checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the rooms of scripts/
from scripts.checkpoints.noise import Noise  # noqa: E402

TINY = Path(layout.__file__).parents[1] / "tiny"
TOKENIZER_FILES = ("tiktoken.model", "tokenizer_config.json")
N_SPECIAL = 256  # ids behind the vocabulary
KINDS = ("embedding", "norms", "attention", "router", "shared_experts", "experts", "dense_mlp",
         "lm_head")


class Stored(NamedTuple):
    """Describe one array to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    tensor: layout.Tensor  # the one that it is, or is a part of
    suffix: str

    @property
    def n_bytes(self):
        return math.prod(self.shape) * layout.BYTES_OF[self.dtype]


def main(argv=None):
    """Write what the command line asks for; return the exit status."""
    args = _parser().parse_args(argv)
    try:
        values = read_config(args.config, args.layers, args.experts)
        vocabulary = Path(args.config).parent
        start_s = time.perf_counter()
        n_written = write(args.out, values, args.seed, args.sparse, args.fill, vocabulary)
    except (ValueError, OSError) as error:
        print(f"make_checkpoint: {_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    time_s = time.perf_counter() - start_s
    print(f"{args.out}: {n_written / 1e9:.1f} GB written in {time_s:.1f} s, "
          f"{n_written / time_s / 1e9:.2f} GB/s")
    return 0


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("out", metavar="OUT", type=Path, help="a directory that does not exist")
    parser.add_argument("--config", required=True, help="the config.json to follow")
    parser.add_argument("--layers", type=int, help="num_hidden_layers in its place")
    parser.add_argument("--experts", type=int, help="n_routed_experts in its place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparse", action="store_true", help="holes in place of the data")
    parser.add_argument("--fill", nargs="*", choices=KINDS, default=["norms"], metavar="KIND",
                        help="with --sparse, the parts to write nevertheless (default: norms; "
                        f"of {', '.join(KINDS)})")
    return parser


def _words(error):
    if not isinstance(error, OSError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename}: expected room on the disk, found it full; nothing was left there"
    return f"{error.filename}: {error.strerror}"


def read_config(path, layers=None, experts=None):
    """Read a config.json and change its size; return its dictionary.

    Raises: OSError; ConfigError or another ValueError if the result is not a model
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        Config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    text = values.get("text_config", values)
    if layers is not None:
        text["num_hidden_layers"] = layers
        text["first_k_dense_replace"] = min(text["first_k_dense_replace"], layers)
    if experts is not None:
        text["n_routed_experts"] = experts
        text["num_experts_per_tok"] = min(text["num_experts_per_tok"], experts)
    Config.from_dict(values)
    return values


def write(out, values, seed=0, sparse=False, fill=("norms",), vocabulary=None):
    """Write the checkpoint of a config.json dictionary; return the bytes that were written.

    All is written under another name beside `out` and renamed at the end, so that `out` is whole
    or not there. The files of a tokenizer are copied from `vocabulary` if they are there.
    Raises: ValueError; OSError, with nothing left behind
    """
    out = Path(out)
    if os.path.lexists(out):
        raise ValueError(f"{out}: expected a directory that does not exist, found one; remove it")
    config = Config.from_dict(values)
    shards = list_shards(config)
    keep = (lambda s: s.tensor.kind in fill or s.suffix == ".weight_shape") if sparse else None
    n_needed = sum(s.n_bytes for _, s in _all(shards) if keep is None or keep(s))
    out.parent.mkdir(parents=True, exist_ok=True)
    n_free = shutil.disk_usage(out.parent).free
    if n_free < n_needed:
        raise ValueError(f"{out}: expected {n_needed / 1e9:.1f} GB of room on the disk, found "
                         f"{n_free / 1e9:.1f}; use --layers, --experts or --sparse")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        with tqdm(total=n_needed, unit="B", unit_scale=True, disable=None) as bar:
            noise = Noise(seed)
            for name, stored in shards.items():
                write_shard(partial / name, stored, noise, keep, bar.update)
        write_index(partial / INDEX, shards, seed)
        write_json(partial / "config.json", values)
        write_json(partial / "generation_config.json", {
            "max_length": config.max_position_embeddings, "eos_token_id": config.eos_token_id})
        write_vocabulary(partial, config, vocabulary)
        Checkpoint.open(partial, config).close()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return n_needed


def _all(shards):
    """List all arrays with the name of their file."""
    return [(name, s) for name, stored in shards.items() for s in stored]


def list_shards(config):
    """List the arrays of each file, `{file name: [Stored, ...]}`: a shard a layer, and one more."""
    format_of = layout.format_finder(config.quantization_config, config.tensor_prefix)
    n_shards = config.num_hidden_layers + 1
    # Five digits, then six: that is how the official files are named.
    names = [f"model-{i + 1:05d}-of-{n_shards:06d}.safetensors" for i in range(n_shards)]
    shards = {name: [] for name in names}
    for tensor in layout.tensors(config):
        words = tensor.name.split(".")
        shard = shards[names[int(words[2]) if "layers" in words else -1]]
        for suffix, dtypes, shape in layout.stored_parts(tensor.shape, format_of(tensor)):
            name = config.tensor_prefix + tensor.name + suffix
            shard.append(Stored(name, dtypes[0], shape, tensor, suffix))
    n_stale = STALE_INV_FREQ.get(config.transformers_version)
    if n_stale is not None and config.model_type == "kimi_k2":
        for i in range(config.num_hidden_layers):
            name = f"model.layers.{i}.self_attn.rotary_emb.inv_freq"
            tensor = layout.Tensor(name, (n_stale,), "norms")
            shards[names[i]].append(Stored(name, "BF16", (n_stale,), tensor, ""))
    return shards


def write_shard(path, stored, noise, keep=None, on_bytes=lambda n: None):
    """Write one safetensors file; with `keep`, only the data for which it says so."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for s in stored:
        if start % layout.BYTES_OF[s.dtype]:
            raise ValueError(f"{s.name}: expected arrays before it of even sizes, so that it is "
                             f"aligned, found it at byte {start}; change the sizes in the config")
        offsets = [start, start + s.n_bytes]
        header[s.name] = {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + start)
            for s in stored:
                if keep is not None and not keep(s):
                    file.seek(s.n_bytes, os.SEEK_CUR)
                    continue
                for piece in noise.pieces(s):
                    file.write(piece)
                    on_bytes(len(piece))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_index(path, shards, seed):
    """Write the index, in an order that says nothing, as that of the official one."""
    weight_map = [(s.name, shard) for shard, s in _all(shards)]
    random.Random(seed).shuffle(weight_map)
    index = {"metadata": {"total_size": sum(s.n_bytes for _, s in _all(shards))},
             "weight_map": dict(weight_map)}
    write_json(path, index)


def write_json(path, values):
    """Write a JSON file as the official ones are: indented by 2."""
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def write_vocabulary(out, config, vocabulary=None):
    """Copy a tokenizer's files, or make a vocabulary of as many ids as the model has.

    It is the embedded model's, filled up with rows of letters; the control tokens come last.
    """
    if vocabulary is not None and all((vocabulary / name).exists() for name in TOKENIZER_FILES):
        for name in TOKENIZER_FILES:
            shutil.copyfile(vocabulary / name, out / name)
        return
    n_tokens = config.vocab_size - N_SPECIAL
    if n_tokens < 256:
        raise ValueError(f"vocab_size: expected 512 or more for bytes and control tokens, found "
                         f"{config.vocab_size}")
    lines = (TINY / "tiktoken.model").read_bytes().splitlines()
    tokens = dict.fromkeys(base64.b64decode(line.split()[0]) for line in lines)
    n_known = len(tokens)
    letters = string.ascii_lowercase.encode()
    words = (bytes(w) for n in itertools.count(2) for w in itertools.product(letters, repeat=n))
    while len(tokens) < n_tokens:
        tokens[next(words)] = None
    lines = [b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens)]
    (out / "tiktoken.model").write_bytes(b"".join(lines[:n_tokens]))
    names = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    names["added_tokens_decoder"] = {
        str(int(id) - n_known + n_tokens): entry
        for id, entry in names["added_tokens_decoder"].items()}
    write_json(out / "tokenizer_config.json", names)


if __name__ == "__main__":
    sys.exit(main())
