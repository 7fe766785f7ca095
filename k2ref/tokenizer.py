"""Text to ids and back: byte-level BPE as K2 does it.

A text becomes ids in four steps, and each is a function below:

    slices      very long texts are cut, where the official tokenizer cuts them
    specials    control tokens such as <|im_end|>, only where the caller asks for them
    PATTERN     the rest is split into pre-tokens: words, up to three digits, runs of Han, ...
    merge       a pre-token starts as single bytes, and neighbours merge, the lowest rank first

The ids of the vocabulary are its ranks, so `tiktoken.model` is all there is to read, with the
names of the control tokens in `tokenizer_config.json`. `_bpe.pyx` does splitting and merging again,
compiled; the functions here say what it must return.

Chapter 01.
"""

import base64
import codecs
import functools
import heapq
import os
import re
from pathlib import Path

import numpy as np
import regex

from k2ref.doors import intake
from k2ref.doors.intake import quoted

bpe = None
if os.environ.get("K2REF_KERNELS") != "numpy":
    try:
        from k2ref import _bpe as bpe
    except ImportError:
        pass  # not compiled on this machine: the plain functions below do it all

N_SPECIAL, MOST_NAME = 256, 1000  # control tokens after the vocabulary; characters of a name
MAX_CHARS, MAX_RUN = 400_000, 25_000
AGAIN, OF_THIS = "download the file again", "use the file of this tiktoken.model"
EXPECTED = "a file of the tokenizer"

# The character sets of the split pattern. Letters without case are in UPPER and in LOWER.
HAN = r"\p{Han}"
# Trap: marks, too, are in both, or accents and vowel signs are torn from their letters; and UPPER
# against LOWER is what splits HelloWorld (llama.cpp#14654: its K2 splitter has neither).
UPPER = r"[[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]--\p{Han}]"
LOWER = r"[[\p{Ll}\p{Lm}\p{Lo}\p{M}]--\p{Han}]"
NUMBER = r"\p{N}"
LEAD = r"[^\r\n\p{L}\p{N}]"  # what may stand before a word: mostly the space
SYMBOL = r"[^\s\p{L}\p{N}]"
NEWLINE, SPACE = r"[\r\n]", r"\s"
SETS = (HAN, UPPER, LOWER, NUMBER, LEAD, SYMBOL, NEWLINE, SPACE)
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = regex.compile("|".join((
    f"{HAN}+",
    f"{LEAD}?{UPPER}*{LOWER}+{CONTRACTION}",
    f"{LEAD}?{UPPER}+{LOWER}*{CONTRACTION}",
    f"{NUMBER}{{1,3}}",
    f" ?{SYMBOL}+{NEWLINE}*",
    f"{SPACE}*{NEWLINE}+",
    rf"{SPACE}+(?!\S)",
    f"{SPACE}+",
)), regex.VERSION1)  # version 1 has set difference; tiktoken's engine writes it as &&[^\p{Han}]


class TokenizerError(ValueError):
    """A fault of a vocabulary, a special token or an id."""


def slices(text, max_chars=MAX_CHARS, max_run=MAX_RUN):
    """Cut a text every `max_chars`, and inside runs of (non-)whitespace longer than `max_run`.

    A cut can change the ids around it, so it must fall where the official tokenizer's falls.
    Source: tokenization_kimi.py, encode and _split_whitespaces_or_nonwhitespaces.
    """
    half = max(1, max_run // 2)
    for start in range(0, len(text), max_chars):
        chunk, cut = text[start:start + max_chars], 0
        # Long runs are rare and looking at every run is slow. A run that is too long fills at
        # least one of these blocks, and a block it fills splits into fewer than two words.
        blocks = (chunk[i:i + half] for i in range(0, len(chunk) - half + 1, half))
        if any(len(block.split(maxsplit=1)) < 2 for block in blocks):
            for run in re.finditer(r"\s+|\S+", chunk):  # re's \s is str.isspace; regex's is not
                for end in range(run.start() + max_run, run.end(), max_run):
                    yield chunk[cut:end]
                    cut = end
        yield chunk[cut:]


def without_surrogates(text):
    """Join surrogate pairs and replace lone ones by U+FFFD, as tiktoken's Encoding.encode does."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def merge(piece, ranks):
    """Return the ids of one pre-token: itself if it is a token, else its bytes, merged.

    Merging takes the neighbours whose concatenation has the lowest rank, the leftmost of equals,
    until no two neighbours form a token. The heap holds every pair that was ever a candidate; one
    whose parts have merged with others since no longer has the end it had, and is passed over.
    """
    if piece in ranks:
        return [ranks[piece]]
    after = list(range(1, len(piece) + 1))  # where the part that starts at i ends; None: gone
    before = list(range(-1, len(piece) - 1))  # where the part before it starts
    heap = []

    def offer(first):
        if first >= 0 and after[first] < len(piece):
            end = after[after[first]]
            rank = ranks.get(piece[first:end])
            if rank is not None:
                heapq.heappush(heap, (rank, first, end))

    for first in range(len(piece)):
        offer(first)
    while heap:
        _, first, end = heapq.heappop(heap)
        second = after[first]
        if second is None or second == len(piece) or after[second] != end:
            continue
        after[first], after[second] = end, None
        if end < len(piece):
            before[end] = first
        offer(first)
        offer(before[first])
    return [ranks[piece[first:end]] for first, end in enumerate(after) if end is not None]


@functools.cache
def classes():
    """Return for every code point the sets of the pattern it is in, bit b of a uint8 for SETS[b].

    It is all that the compiled splitter knows of Unicode, taken from the `regex` package so that
    both splitters always know the same.
    """
    table = np.zeros(0x110000, np.uint8)
    # No character of planes 4 to 16 is a letter, number or space, and none but the first of plane
    # 14 a mark, so the rest are as the last of plane 3, which is unassigned for ever.
    for start, stop in ((0, 0x40000), (0xE0000, 0xE1000)):
        characters = "".join(map(chr, range(start, stop)))
        for bit, members in enumerate(SETS):
            for run in regex.finditer(f"{members}+", characters, regex.VERSION1):
                table[start + run.start():start + run.end()] |= 1 << bit
    table[0x40000:0xE0000] = table[0xE1000:] = table[0x3FFFF]
    return table


def read_vocabulary(path):
    """Read the tokens of a `tiktoken.model`, in order of rank: lines of base64, a space, a rank.

    Raises: TokenizerError for a line that is none, a token or rank that occurs twice or is missing.
    """
    tokens, ranks = {}, {}
    data = intake.read_bytes(path, intake.MOST_VOCABULARY, TokenizerError, EXPECTED)
    if data and (instead := intake.stand_in(data)):
        raise TokenizerError(f"{path}: expected a vocabulary, found {instead}")
    for number, line in enumerate(data.splitlines(), 1):
        try:
            encoded, rank = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(rank)
        except ValueError:
            raise TokenizerError(f"{path}, line {number}: expected base64, a space and a rank, "
                                 f"found {line[:60]!r}; {AGAIN}") from None
        if rank in tokens or token in ranks:
            raise TokenizerError(f"{path}, line {number}: expected a new token and a new rank, "
                                 f"found {quoted(token)} and {quoted(rank)}, one of them not new; "
                                 f"{AGAIN}")
        tokens[rank], ranks[token] = token, rank
    missing = [f"rank {rank}" for rank in range(len(tokens)) if rank not in tokens]
    missing += [f"byte {byte:#04x}" for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(f"{path}: expected ranks 0 to {len(tokens) - 1} and all 256 single "
                             f"bytes, found no {missing[0]}; {AGAIN}")
    return [tokens[rank] for rank in range(len(tokens))]


def read_special_tokens(path, first):
    """Read the control tokens' names from a `tokenizer_config.json`, for ids from `first` on.

    All N_SPECIAL ids have a name: those that the file leaves out are `<|reserved_token_{id}|>`.
    Raises: TokenizerError for a file without `added_tokens_decoder`, an id outside the range, a
    name that is empty or occurs twice.
    """
    found = intake.read_json(path, intake.MOST_CONFIG, TokenizerError, EXPECTED)
    try:
        named = found["added_tokens_decoder"]
        named = {int(id): token["content"] for id, token in named.items()}
        "".join(named.values()).encode()  # every name is a string, and one that has a UTF-8 form
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{path}: expected JSON whose added_tokens_decoder gives ids their "
                             f"content, found none ({quoted(error)}); {AGAIN}") from None
    special_tokens = {}
    ids = range(first, first + N_SPECIAL)
    for id in sorted({*ids, *named}):
        name = named.get(id, f"<|reserved_token_{id}|>")
        if id not in ids or not 0 < len(name) <= MOST_NAME or name in special_tokens:
            raise TokenizerError(f"{path}: expected names of {N_SPECIAL} control tokens, {first} "
                                 f"to {ids[-1]}, short, no two alike, found {quoted(name)} for "
                                 f"{quoted(id)}, one of {len(named)} names; {OF_THIS}")
        special_tokens[name] = id
    return special_tokens


class Tokenizer:
    """The way from text to ids and back, with the vocabulary of one checkpoint.

    `vocabulary` is the tokens' bytes in order of rank, all single bytes among them, and
    `special_tokens` maps at least one name to the ids that follow.
    """

    def __init__(self, vocabulary, special_tokens):
        self.ranks = {token: rank for rank, token in enumerate(vocabulary)}
        self.special_tokens = special_tokens
        self.style = None  # the family's chat style, set by whoever knows the checkpoint
        by_id = sorted(special_tokens, key=special_tokens.get)
        self._bytes = [*vocabulary, *map(str.encode, by_id)]
        longest_first = sorted(by_id, key=len, reverse=True)  # should one name begin with another
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._compiled = bpe and bpe.Encoder(vocabulary, classes())

    @classmethod
    def from_dir(cls, path):
        """Read the tokenizer of a checkpoint directory.

        Raises: TokenizerError for a missing or malformed file.
        """
        vocabulary = read_vocabulary(Path(path) / "tiktoken.model")
        names = read_special_tokens(Path(path) / "tokenizer_config.json", len(vocabulary))
        return cls(vocabulary, names)

    @property
    def n_vocab(self):
        """Return how many ids there are, control tokens included."""
        return len(self._bytes)

    def special_id(self, name):
        """Return the id of a control token by its name, None if there is none."""
        return self.special_tokens.get(name)

    def encode(self, text, allow_special=False):
        """Return the ids of a text; control tokens come from it only if `allow_special`."""
        # Trap: parsing control tokens out of any text, the official default, lets whoever writes
        # <|im_end|> end the turn (huggingface/tokenizers#1850).
        ids = []
        for part in slices(text):
            part = without_surrogates(part)
            # Of a split by a pattern with one group, every second piece is the group's.
            pieces = self._special.split(part) if allow_special else [part]
            for i, piece in enumerate(pieces):
                ids += [self.special_tokens[piece]] if i % 2 else self._encode_ordinary(piece)
        return ids

    def _encode_ordinary(self, text):
        if self._compiled:
            return self._compiled.encode(text)
        return [id for piece in PATTERN.findall(text) for id in merge(piece.encode(), self.ranks)]

    def id_to_bytes(self, id):
        """Return the bytes an id stands for; a control token's are its name.

        Raises: TokenizerError for an id that is none.
        """
        if not 0 <= id < len(self._bytes):
            raise TokenizerError(f"id {id} is not in the vocabulary, 0 to {self.n_vocab - 1}")
        return self._bytes[id]

    def decode_bytes(self, ids):
        """Return the bytes of a sequence of ids."""
        return b"".join(map(self.id_to_bytes, ids))

    def decode(self, ids):
        """Return the text of a sequence of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")


class Decoder:
    """A decoder of ids that come one by one, which never gives half a character.

    All that `feed` and then `flush` return, put together, is what `decode` returns for all ids.
    """

    def __init__(self, tokenizer):
        if tokenizer is None:
            raise TokenizerError("there is no tokenizer to decode with: tiktoken.model is missing")
        self._id_to_bytes = tokenizer.id_to_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, id):
        """Take one id and return the text that is now complete."""
        return self._utf8.decode(self._id_to_bytes(id))

    def flush(self):
        """Return U+FFFD for a character that is still incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)
