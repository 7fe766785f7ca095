"""The vocabulary of the embedded model: byte-level BPE in the files that K2 ships.

256 bytes, then merges learned from the lessons, then 256 special slots with K2's names at K2's
offsets. No merge holds a digit: under K2's unchanged split pattern every digit is one token, which
is what makes numbers copy and columns line up.
"""

import base64
import json
import random
from collections import Counter

import tiny_data

from k2ref.tokenizer import PATTERN

N_SPECIAL = 256
# Offsets from the first special id; the tool and thinking tokens are not "special" to K2's decoder.
SPECIALS = {
    0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>",
    6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "[EOT]", 10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>", 12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>", 14: "<|tool_call_argument_begin|>", 15: "<|tool_call_end|>",
    17: "<|im_middle|>", 18: "<|media_begin|>", 19: "<|media_content|>", 20: "<|media_end|>",
    21: "<|media_pad|>", 22: "<think>", 23: "</think>", 254: "[UNK]", 255: "[PAD]",
}
NOT_SPECIAL = {11, 12, 13, 14, 15, 22, 23}


def byte_order():
    """List the 256 bytes in K2's order: the visible Latin-1 characters first, then the rest."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return visible + [b for b in range(256) if b not in visible]


def learn(words, n_merges):
    """Learn merges from counted words: merge the most frequent pair again and again.

    Returns the tokens as bytes, in the order of their ranks.
    """
    tokens = [bytes([b]) for b in byte_order()]
    pieces = {word: [word[i:i + 1] for i in range(len(word))] for word in words}
    for _ in range(n_merges):
        pairs = Counter()
        for word, parts in pieces.items():
            for left, right in zip(parts, parts[1:], strict=False):
                pairs[left, right] += words[word]
        # The smaller bytes win a tie, so that the result does not depend on the order of a dict.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(b"".join(best))
        for word, parts in pieces.items():
            pieces[word] = merged(parts, best)
    return tokens


def merged(parts, pair):
    """Join every occurrence of the pair in the list of parts, from the left."""
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def write(directory, n_merges, seed, max_length):
    """Learn the vocabulary from lessons and write tiktoken.model and tokenizer_config.json."""
    rng, words = random.Random(f"{seed} vocabulary"), Counter()
    for _ in range(4000):
        for message in tiny_data.lesson(rng):
            for text in message.values():
                words.update(word.encode() for word in PATTERN.findall(text)
                             if not any(map(str.isdigit, word)))
    write_tokens(directory, learn(words, n_merges), max_length)


def write_tokens(directory, tokens, max_length):
    """Write tokens, in the order of their ranks, and the special slots after them."""
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    (directory / "tiktoken.model").write_bytes(b"".join(lines))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {str(len(tokens) + at): {"content": name, **flags, "special": at not in NOT_SPECIAL}
             for at, name in SPECIALS.items()}
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("BOS", "EOS", "PAD", "UNK")}
    settings = {"added_tokens_decoder": added, **names, "clean_up_tokenization_spaces": False,
                "model_max_length": max_length, "tokenizer_class": "TikTokenTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
