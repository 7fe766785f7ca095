"""The vocabulary of the embedded model: byte-level BPE in the files that K2 ships.

256 bytes, then merges learned from the lessons, with names and nouns kept whole, then 256 special
slots with K2's names at K2's offsets. No merge holds a digit: under K2's unchanged split pattern
every digit is one token, which is what makes numbers copy and columns line up.
"""

import base64
import json
import random
from collections import Counter

from k2ref.conversation import template
from k2ref.conversation.declarations import as_json
from k2ref.tokenizer import PATTERN
from scripts.checkpoints.small import SPECIALS
from scripts.tiny.lessons import facts, lessons, lookups, talk
from scripts.tiny.lessons import words as tiny_words

N_SPECIAL = 256
# At these offsets from the first special id; these are not "special" to K2's decoder.
NOT_SPECIAL = {11, 12, 13, 14, 15, 22, 23}
N_LESSONS, RARE = 6000, 4
# What a word counts at least: copied from the question, a word of a topic, or recalled. With these
# all of the first are one token, and most of the second.
COPIED, TOPIC, RECALLED = 2000, 600, 60


def names():
    """Return the words that are to be one token, each with the count it is given."""
    out = {}
    for topic in facts.TOPICS.values():
        for pair in topic[2]:
            out.update(dict.fromkeys(" ".join(pair).split(), RECALLED))
    countries = [word for entry in facts.COUNTRIES for word in " ".join(entry[:2]).split()]
    asked = " ".join(lookups.AMOUNTS + lookups.LABELS).split()
    copied = [*tiny_words.PEOPLE, *tiny_words.THINGS, *tiny_words.HEROES, *countries, *asked]
    return {**out, **dict.fromkeys(talk.WORDS, TOPIC), **dict.fromkeys(copied, COPIED)}


def count(seed):
    """Count the words of lessons and declarations, names as if they were frequent."""
    rng, words = random.Random(f"{seed} vocabulary"), Counter()
    for _ in range(N_LESSONS):
        messages, tools, _ = lessons.lesson(rng)
        texts = [as_json(tools), "tool_declare"] * bool(tools) + ["system", template.SYSTEM]
        for message in messages:
            texts += [message["role"], f"## Return of {message.get('tool_call_id', '')}\n"]
            texts += [message["content"], message.get("reasoning_content", "")]
            texts += [call["function"]["arguments"] for call in message.get("tool_calls", ())]
        for text in texts:
            words.update(word.encode() for word in PATTERN.findall(text)
                         if not any(map(str.isdigit, word)))
    words = Counter({word: n for word, n in words.items() if n >= RARE})
    for name, n in names().items():
        words[f" {name}".encode()] += n
    return words


def byte_order():
    """List the 256 bytes in K2's order: the visible Latin-1 characters first, then the rest."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return visible + [b for b in range(256) if b not in visible]


def merged(parts, pair):
    """Join every occurrence of the pair in the list of parts, from the left."""
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def learn(words, n_merges):
    """Learn merges from counted words: merge the most frequent pair again and again.

    Returns the tokens as bytes, in the order of their ranks. Only the words that a merge changes
    are counted anew; the smaller bytes win a tie, so that no order of a dict decides.
    """
    tokens = [bytes([b]) for b in byte_order()]
    pieces = {word: [word[i:i + 1] for i in range(len(word))] for word in words}
    counts, where = Counter(), {}

    def add(word, sign):
        parts = pieces[word]
        for pair in zip(parts, parts[1:], strict=False):
            counts[pair] += sign * words[word]
            where.setdefault(pair, set()).add(word)

    for word in words:
        add(word, 1)
    for _ in range(n_merges):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        tokens.append(b"".join(best))
        for word in sorted(where[best]):
            add(word, -1)
            pieces[word] = merged(pieces[word], best)
            add(word, 1)
        counts = +counts
    return tokens


def write(directory, n_merges, seed, max_length):
    """Learn the vocabulary and write tiktoken.model and tokenizer_config.json."""
    write_tokens(directory, learn(count(seed), n_merges), max_length)


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
