"""Damaged files for `run.py`: checkpoints and tokenizers, and what k2ref must make of them.

A case is a base and steps. A step changes a directory `{name: content}`, where the content is bytes
or a `Special` that no honest checkpoint holds. What is read as JSON is changed as JSON, so that the
change reaches the checks behind the parser.
"""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

import k2ref
from k2ref.checkpoint import inspection
from k2ref.trace import Trace
from scripts.checkpoints import small
from scripts.checks.fuzz.damage import OWN, Failure, Kind, damage_bytes, damage_json, sentence

GOLDEN = Path(__file__).parents[3] / "tests/data/golden"
CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
VOCABULARY, SPECIALS = "tiktoken.model", "tokenizer_config.json"
JSON_FILES = (CONFIG, CONFIG, CONFIG, GENERATION, INDEX, SPECIALS)

SIZES = (0, 1, 7, 8, 9, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
CONTENTS = (
    b"", b"\0" * 4096, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    b"<!DOCTYPE html>\n<html><title>404</title></html>\n", b"[[],[]," * 400_000, b"\xff\xfe{}",
)  # fmt: skip
WORDS = (0x7FC0, 0x7F80, 0xFF80, 0x7F7F, 0x0001, 0)  # in bf16: NaN, inf, -inf, largest, smallest


class Special(NamedTuple):
    """Stand for what is in a directory and is no regular file of the size it seems to have."""

    kind: str
    about: object = None

    def make(self, path):
        if self.kind == "fifo":
            os.mkfifo(path)
        elif self.kind == "link":
            os.symlink(self.about, path)
        elif self.kind == "directory":
            path.mkdir()
        else:
            with open(path, "wb") as file:
                file.truncate(self.about)


SPECIAL = (Special("fifo"), Special("directory"), Special("sparse", 1_200_000_000),
           *(Special("link", to) for to in ("/dev/zero", "loop", "/etc/passwd", ".", CONFIG)))


def _content(files, name):
    """Return the bytes of a file, or none if it is not there or no file."""
    content = files.get(name, b"")
    return content if isinstance(content, bytes) else b""


def _shard(files, rng):
    names = sorted(name for name in files if name.endswith(".safetensors"))
    return rng.choice(names) if names else "model.safetensors"


def _parts(files, name):
    """Split a safetensors file into its header and its data."""
    data = _content(files, name)
    n = int.from_bytes(data[:8], "little")
    return data[8:8 + n], data[8 + n:]


def _joined(header, data):
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def field(files, rng):
    """Change a field of a JSON file."""
    name = rng.choice(JSON_FILES)
    files[name] = damage_json(_content(files, name), rng)


def header(files, rng):
    """Change something in a shard's header, and its length with it."""
    name = _shard(files, rng)
    text, data = _parts(files, name)
    files[name] = _joined(damage_json(text, rng), data)


def length(files, rng):
    """Change the length of a shard's header."""
    name = _shard(files, rng)
    files[name] = rng.choice(SIZES).to_bytes(8, "little") + _content(files, name)[8:]


def weights(files, rng):
    """Fill a tensor with words that no training leaves behind, whole or in one place."""
    name = _shard(files, rng)
    text, data = _parts(files, name)
    try:
        stored = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
        start, stop = stored[rng.choice(sorted(stored))]["data_offsets"]
        data, n = bytearray(data), (stop - start) // 2
        words = np.frombuffer(data, "<u2", n, start)
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return
    if n:
        start, n = rng.randrange(n), rng.choice((1, 1, 2, 64, n))
        here = words[start:start + n]
        here[:] = rng.choice((np.frombuffer(rng.randbytes(here.nbytes), "<u2"), *WORDS))
    files[name] = _joined(text, bytes(data))


def whole(files, rng):
    """Put something else in the place of a file, or take it away."""
    name = rng.choice(sorted(files) or [CONFIG])
    action = rng.choice(("special", "content", "remove", "swap", "copy"))
    if action == "special":
        files[name] = rng.choice(SPECIAL)
    elif action == "content":
        files[name] = rng.choice(CONTENTS)
    elif action == "remove":
        files.pop(name, None)
    else:
        other = rng.choice(sorted(files) or [CONFIG])
        files[other if action == "copy" else name], files[other] = (
            files.get(name, b""), files.get(name if action == "swap" else other, b""))


def some_bytes(files, rng):
    """Change bytes of any file."""
    name = rng.choice(sorted(files) or [CONFIG])
    files[name] = damage_bytes(_content(files, name), rng)


def line(files, rng):
    """Change a line of a vocabulary: its rank, its token, its place."""
    lines = _content(files, VOCABULARY).split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    token, _, rank = lines[i].partition(b" ")
    lines[i] = rng.choice((
        b"", token, lines[j], (b"YWFh" * 9999 + b" 1\n") * 2, rank + b" " + token,
        token + b"  " + rank, token + b"\r " + rank, token[:-1] + b" " + rank,
        b"==== " + rank, token + b"\xef\xbc\x91 " + rank,
        *(token + b" " + n for n in (b"-1", b"0", b"1e3", b"0x1", b"1_0", b"9" * 5000, b"9" * 18)),
    ))  # fmt: skip
    files[VOCABULARY] = b"\n".join(lines)


def names(files, rng):
    """Change the names of the control tokens."""
    files[SPECIALS] = damage_json(_content(files, SPECIALS), rng)


# Trials.

@functools.cache
def directories():
    """Make the directories to begin with: every layout, with and without a tokenizer and shards."""
    found = {path.name: path for path in sorted(GOLDEN.iterdir()) if path.is_dir()}
    with tempfile.TemporaryDirectory() as parent:
        for i, layout in enumerate(small.LAYOUTS):
            config = small.tiny_config(layout)
            config.get("text_config", config).update(num_hidden_layers=2, n_routed_experts=4)
            config.get("text_config", config).update(n_group=2 if config.get("n_group") == 4 else 1)
            path = Path(parent, layout)
            small.write_checkpoint(path, config, i, layout, 1 + i % 2, tokenizer=True)
            found[f"new-{layout}"] = path
        found["vocabulary"] = Path(k2ref.__file__).parent / "tiny"
        return {name: {file.name: file.read_bytes() for file in sorted(path.iterdir())
                       if file.suffix in (".json", ".safetensors", ".model")}
                for name, path in found.items()}


def begin(base):
    return dict(directories()[base])


def begin_tokenizer(base):
    return {name: directories()[base][name] for name in (VOCABULARY, SPECIALS)}


def write(files, where):
    """Make the directory of a case."""
    where.mkdir(exist_ok=True)
    for name, content in files.items():
        path = where / name
        content.make(path) if isinstance(content, Special) else path.write_bytes(content)


def load(files, where):
    """Load a checkpoint, inspect it, and compute with it: both must say the same of it."""
    write(files, where)
    try:
        sound = inspection.inspect(where).is_sound
        inspection.report(where)
    except OWN as error:
        sentence(error)
        sound = False
    try:
        model = k2ref.load(where, threads=1)
    except OWN as error:
        sentence(error)
        if sound:
            raise Failure("wrong", "what inspect calls sound is refused", error) from error
        return "refused"
    if not sound:
        raise Failure("wrong", "what load takes is amiss for inspect")
    return compute(model)


def compute(model, n=6):
    """Let a model write three tokens: every number behind them is finite, or they are refused."""
    ids, written = [i % model.config.vocab_size for i in range(n)], []
    trace, cache = Trace(), k2ref.KVCache(model.config)
    for token in k2ref.generate(model, ids, max_new_tokens=3, seed=0, stop_ids=[]):
        written.append(token)
    logits = k2ref.forward(model, ids + written[:-1], cache, trace)
    if not np.isfinite(logits[n - 1:]).all():
        raise Failure("silent NaN", "logits from which a token was drawn")
    for name, array in trace.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array[n - 1:]).all():
            raise Failure("silent NaN", "intermediates behind finite logits", name)
    return "works"


def tokenize(files, where):
    """Load a tokenizer; what it encodes it must decode, and the same twice."""
    write(files, where)
    tokenizer = k2ref.Tokenizer.from_dir(where)
    for text in ("", "What is 37+58?", "城 e\u0301 \ud83d\ude00 \0", "<|im_end|>", " \n" * 99):
        for special in (False, True):
            ids = tokenizer.encode(text, allow_special=special)
            back = text.encode("utf-16", "surrogatepass").decode("utf-16")
            if tokenizer.decode(ids) != back:
                raise Failure("wrong", "a text that does not come back", repr(text))
    tokenizer.decode(range(tokenizer.n_vocab))
    return "works"


ON_FILES = {"bytes": some_bytes, "whole": whole}
KINDS = {
    "checkpoint": Kind(tuple(f"new-{layout}" for layout in small.LAYOUTS) + tuple(
        sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())),
        {"field": field, "header": header, "length": length, "weights": weights, **ON_FILES},
        begin, load, most=3),
    "tokenizer": Kind(("new-thinking", "vocabulary"),
                      {"line": line, "names": names, **ON_FILES}, begin_tokenizer, tokenize),
}
