"""The vocabulary of the embedded model: merges learned from lessons, names and nouns kept whole."""

import random
from collections import Counter

import tiny_bpe
import tiny_facts
import tiny_lessons
import tiny_words

from k2ref import template
from k2ref.declarations import as_json
from k2ref.tokenizer import PATTERN

N_LESSONS, RARE = 6000, 4
COPIED, RECALLED = 700, 60  # what a name counts at least: copied from the question, or recalled


def names():
    """Return the words that are to be one token, each with the count it is given."""
    out = {}
    for topic in tiny_facts.TOPICS.values():
        for pair in topic[2]:
            out.update(dict.fromkeys(" ".join(pair).split(), RECALLED))
    countries = [word for entry in tiny_facts.COUNTRIES for word in " ".join(entry[:2]).split()]
    copied = [*tiny_words.PEOPLE, *tiny_words.THINGS, *tiny_words.HEROES, *countries]
    return {**out, **dict.fromkeys(copied, COPIED)}


def count(seed):
    """Count the words of lessons and declarations, names as if they were frequent."""
    rng, words = random.Random(f"{seed} vocabulary"), Counter()
    for _ in range(N_LESSONS):
        messages, tools, _ = tiny_lessons.lesson(rng)
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


def learn(words, n_merges):
    """Learn merges as `tiny_bpe.learn` does, but recount only the words that a merge changes."""
    tokens = [bytes([b]) for b in tiny_bpe.byte_order()]
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
            pieces[word] = tiny_bpe.merged(pieces[word], best)
            add(word, 1)
        counts = +counts
    return tokens


def write(directory, n_merges, seed, max_length):
    """Learn the vocabulary and write tiktoken.model and tokenizer_config.json."""
    tiny_bpe.write_tokens(directory, learn(count(seed), n_merges), max_length)
