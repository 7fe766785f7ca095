"""Vocabularies for tests and scripts: the real one, rebuilt, and a small one.

The K2 family's `tiktoken.model` is too large to commit. The PyPI package splintr-rs carries all of
its tokens, so `real_directory` writes the file anew, and its sha256 must be the official one's.
"""

import base64
import hashlib
import json
import os
import tempfile
from pathlib import Path

SHA256 = "b6c497a7469b33ced9c38afb1ad6e47f03f5e5dc05f15930799210ec050c5103"
N_TOKENS = 163_584

# Name and offset from the first special id; the official files of the family agree on these.
SPECIAL_TOKENS = {
    "[BOS]": 0, "[EOS]": 1, "<|im_end|>": 2, "<|im_user|>": 3, "<|im_assistant|>": 4,
    "<|start_header_id|>": 6, "<|end_header_id|>": 7, "[EOT]": 9, "<|im_system|>": 10,
    "<|tool_calls_section_begin|>": 11, "<|tool_calls_section_end|>": 12,
    "<|tool_call_begin|>": 13, "<|tool_call_argument_begin|>": 14, "<|tool_call_end|>": 15,
    "<|im_middle|>": 17, "<|media_begin|>": 18, "<|media_content|>": 19, "<|media_end|>": 20,
    "<|media_pad|>": 21, "<think>": 22, "</think>": 23, "[UNK]": 254, "[PAD]": 255,
}
NOT_STRIPPED = ("<|tool_call", "<think>", "</think>")  # "special": false, since they carry meaning

# Two sets of the official pattern; `&&` is intersection to tiktoken's regex engine.
OFFICIAL_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
OFFICIAL_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"

# Few enough to read, enough to merge: a word in steps, Han characters, what crosses pre-tokens.
SMALL_MERGES = (
    "he", "ll", "llo", "hello", "in", " t", "th", " th", "  ", "aa", "aaaa", "12", "123", "34",
    "oW", "中", "中文", "文", "文h", "ß", "'s", "\u0301", "e\u0301", "\r\n", "\n\n")


def small_vocabulary():
    """Return the tokens of a vocabulary that needs no download: all bytes, then a few merges."""
    halves = ["中".encode()[:2], "文".encode()[:2], "👍".encode()[:2]]
    return [bytes([byte]) for byte in range(256)] + halves + [m.encode() for m in SMALL_MERGES]


def real_vocabulary():
    """Return the tokens of the K2 vocabulary in order of rank; ImportError without splintr-rs."""
    from splintr import Tokenizer

    splintr = Tokenizer.from_pretrained("kimi_k2")
    return [bytes(splintr.decode_token_bytes(id)) for id in range(N_TOKENS)]


def write_config(path, first_special):
    """Write a `tokenizer_config.json` with the names of the special ids from `first_special` on."""
    decoder = {
        str(first_special + offset): {
            "content": name, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": not name.startswith(NOT_STRIPPED)}
        for name, offset in SPECIAL_TOKENS.items()}
    config = {"added_tokens_decoder": decoder, "bos_token": "[BOS]", "eos_token": "[EOS]",
              "pad_token": "[PAD]", "unk_token": "[UNK]", "tokenizer_class": "TikTokenTokenizer"}
    write(path / "tokenizer_config.json", json.dumps(config, indent=1).encode())


def write_directory(path, tokens):
    """Write the `tiktoken.model` and `tokenizer_config.json` of a vocabulary and return `path`."""
    path.mkdir(parents=True, exist_ok=True)
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    write(path / "tiktoken.model", b"".join(lines))
    write_config(path, len(tokens))
    return path


def write(path, content):
    """Write a file beside its place and move it there, so that nobody ever reads half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def real_directory(cache=None):
    """Return a directory with the real tokenizer files, writing them if they are not there.

    The default cache is in the temporary directory. Raises ImportError without splintr-rs and
    ValueError if what it holds is not the official vocabulary.
    """
    cache = Path(cache or Path(tempfile.gettempdir()) / f"k2ref-vocabulary-{SHA256[:8]}")
    model = cache / "tiktoken.model"
    if model.exists() and hashlib.sha256(model.read_bytes()).hexdigest() == SHA256:
        write_config(cache, N_TOKENS)
        return cache
    write_directory(cache, real_vocabulary())
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{model}: expected sha256 {SHA256}, found {digest}; "
                         "install splintr-rs==0.22.0")
    return cache


def real_directory_or_skip():
    """Return `real_directory()`, or skip the test that asks where splintr-rs is not installed."""
    import pytest  # here, since scripts use this file without it

    pytest.importorskip("splintr", reason="splintr-rs holds the vocabulary: pip install '.[test]'")
    return real_directory()


def oracle(tokens):
    """Return python tiktoken's encoding with these tokens and the official pattern, as it is.

    Source: tokenization_kimi.py, pat_str.
    """
    import tiktoken

    suffix = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    pattern = "|".join([
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{OFFICIAL_UPPER}*{OFFICIAL_LOWER}+{suffix}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{OFFICIAL_UPPER}+{OFFICIAL_LOWER}*{suffix}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ])
    names = {f"<|reserved_token_{len(tokens) + offset}|>": offset for offset in range(256)}
    by_offset = {offset: name for name, offset in (names | SPECIAL_TOKENS).items()}
    special = {name: len(tokens) + offset for offset, name in by_offset.items()}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("k2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
