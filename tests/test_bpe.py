"""Splitting, merging and slicing: the plain functions, their compiled twins, and tiktoken."""

import itertools
import random
import sys

import pytest
import regex
import tiktoken
import vocabulary
from hypothesis import given
from hypothesis import strategies as st

from k2ref import tokenizer
from k2ref.tokenizer import PATTERN, SETS, classes, merge, slices

compiled_only = pytest.mark.skipif(tokenizer.bpe is None, reason="k2ref._bpe is not in use here")

BYTES = [bytes([byte]) for byte in range(256)]
# A character of each combination of the pattern's sets, and one more that the pattern names.
KINDS = "Aa\u02b0\u03011!\n\t中\u3007\u2e80 '"


# ---- the pattern

@pytest.mark.parametrize("members, official", list(zip(SETS, [
    r"\p{Han}", vocabulary.OFFICIAL_UPPER, vocabulary.OFFICIAL_LOWER, r"\p{N}",
    r"[^\r\n\p{L}\p{N}]", r"[^\s\p{L}\p{N}]", r"[\r\n]", r"\s"], strict=True)))
def test_sets_of_the_pattern_hold_what_they_hold_in_tiktoken(members, official):
    # One of the two tables may be newer. U+0295 changed category.
    characters = "".join(chr(c) for c in range(sys.maxunicode + 1)
                         if not 0xD800 <= c < 0xE000 and c != 0x295)
    known = "".join(regex.findall(r"\P{Cn}", tiktoken_finds(r"\P{Cn}", characters)))
    assert len(known) > 250_000
    found = tiktoken_finds(official, known)
    assert set(regex.findall(members, known, regex.VERSION1)) ^ set(found) == set()


def tiktoken_finds(pattern, text):
    """What a pattern matches in a text, as tiktoken has it: the rest is dropped."""
    ranks = {token: rank for rank, token in enumerate(BYTES)}
    encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding.decode(encoding.encode_ordinary(text))


def test_every_short_text_splits_as_in_tiktoken():
    # With every text a token, every pre-token is one id, and the ids tell where a text was split.
    texts = ["".join(text) for n in range(1, 5) for text in itertools.product(KINDS, repeat=n)]
    tokens = BYTES + [text.encode() for text in texts if len(text.encode()) > 1]
    encoding = vocabulary.oracle(tokens)
    for text in texts:
        pre_tokens = map(encoding.decode_single_token_bytes, encoding.encode_ordinary(text))
        assert [piece.encode() for piece in PATTERN.findall(text)] == list(pre_tokens)


def test_pre_tokens_together_are_the_text():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert sum(map(len, PATTERN.findall(everything))) == len(everything)


@pytest.mark.parametrize("text, pre_tokens", [
    ("Hello  World\n", ["Hello", " ", " World", "\n"]),
    ("don'T we'LL x'\u017f", ["don'T", " we'LL", " x'\u017f"]),
    ("12345", ["123", "45"]),
    ("a \n\n b", ["a", " \n\n", " b"]),
    ("!?\n(x)", ["!?\n", "(x", ")"]),
    ("ab汉cd", ["ab", "汉", "cd"]),
    ("々〇中〡", ["々〇中〡"]),  # Han by script, though a letter and a number by category
    ("x 〡", ["x", " ", "〡"]),
])
def test_pattern_literals(text, pre_tokens):
    assert PATTERN.findall(text) == pre_tokens
    if tokenizer.bpe:
        assert compiled(BYTES).split(text) == pre_tokens


def test_trap_marks_belong_to_words():
    # llama.cpp#14654: without \p{M} the vowel signs and accents would be symbols between letters.
    assert PATTERN.findall("नमस्ते e\u0301tude") == ["नमस्ते", " e\u0301tude"]
    assert PATTERN.findall("E\u0301Tude E\u0301T") == ["E\u0301Tude", " E\u0301", "T"]


def test_trap_camel_case_splits():
    # llama.cpp#14654: any run of letters was one word.
    assert PATTERN.findall("HelloWorld fooBAR") == ["Hello", "World", " foo", "BAR"]


# ---- the compiled splitter

def compiled(tokens):
    return tokenizer.bpe.Encoder(tokens, classes())


def test_classes_are_the_sets_of_the_pattern():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    for bit, members in enumerate(SETS):
        found = {match.start() for match in regex.finditer(f"(?V1){members}", everything)}
        assert found ^ set((classes() >> bit & 1).nonzero()[0].tolist()) == set()


@compiled_only
def test_split_equals_the_pattern_on_every_short_text():
    assert {classes()[ord(c)] for c in KINDS} == set(classes())
    split = compiled(BYTES).split
    for kinds, longest in ((KINDS, 4), ("Aa\u0301 !", 6)):  # longer ones of what words are made of
        for length in range(longest + 1):
            for text in map("".join, itertools.product(kinds, repeat=length)):
                assert split(text) == PATTERN.findall(text)


@compiled_only
@given(text=st.text(KINDS + "stredvlm") | st.text())
def test_split_equals_the_pattern(text):
    assert compiled(BYTES).split(text) == PATTERN.findall(text)


@compiled_only
def test_split_knows_every_letter_that_folds_to_a_contraction():
    letters = [chr(c) for c in range(sys.maxunicode + 1)
               if set(chr(c).casefold() + chr(c).lower()) & set("strevmld")]
    assert "\u017f" in letters  # the long s
    split = compiled(BYTES).split
    for first, second in itertools.product(letters, [*"strevmldSTREVMLD", "\u017f", ""]):
        text = f"a'{first}{second}b"
        assert split(text) == PATTERN.findall(text)


# ---- merging

# Ranks that no training would give, over two letters, so that ties and overlaps abound.
WORDS = ["".join(word).encode() for n in (2, 3, 4) for word in itertools.product("ab", repeat=n)]
vocabularies = st.lists(st.sampled_from(WORDS), unique=True, min_size=8, max_size=20).map(
    lambda merged: BYTES + merged)
pieces = st.text("ab", min_size=3, max_size=40).map(str.encode)


@given(tokens=vocabularies, piece=pieces)
def test_merge_equals_tiktoken(tokens, piece):
    ids = vocabulary.oracle(tokens).encode_ordinary(piece.decode())
    assert merge(piece, {token: rank for rank, token in enumerate(tokens)}) == ids
    if tokenizer.bpe:
        assert compiled(tokens).merge(piece) == ids


@compiled_only
@given(tokens=vocabularies, piece=st.text("abc", max_size=3000).map(str.encode))
def test_compiled_merge_equals_plain_merge(tokens, piece):
    ranks = {token: rank for rank, token in enumerate(tokens)}
    assert compiled(tokens).merge(piece) == merge(piece, ranks)


@compiled_only
def test_compiled_merge_equals_plain_merge_where_pairs_overlap_most():
    # Hypothesis prefers simple vocabularies; the faults of a queue need crowded ones.
    choose = random.Random(0)
    for _ in range(300):
        tokens = BYTES + choose.sample(WORDS, 16)
        piece = "".join(choose.choices("ab", k=choose.randint(3, 30))).encode()
        ranks = {token: rank for rank, token in enumerate(tokens)}
        assert compiled(tokens).merge(piece) == merge(piece, ranks)


@pytest.mark.parametrize("letters", ["a", "hello", "中文"])
def test_merge_of_very_long_runs(letters):
    # 25,000 characters are the longest pre-token there is; a quadratic merge would not end here.
    text = "".join(random.Random(1).choices(letters, k=25_000))
    tokens = vocabulary.small_vocabulary()
    ids = vocabulary.oracle(tokens).encode_ordinary(text)
    assert merge(text.encode(), {token: rank for rank, token in enumerate(tokens)}) == ids
    if tokenizer.bpe:
        assert compiled(tokens).merge(text.encode()) == ids


# ---- slices

def test_slices_literals():
    assert list(slices("")) == []
    assert list(slices("a" * 25_000 + " b")) == ["a" * 25_000 + " b"]
    assert list(slices("x " + "a" * 50_001)) == ["x " + "a" * 25_000, "a" * 25_000, "a"]
    assert list(slices(" " * 25_003 + "x")) == [" " * 25_000, "   x"]
    # str.isspace decides what is whitespace; to the pattern's \s U+001C would be a symbol.
    assert list(slices("\x1c " * 12_501)) == ["\x1c " * 12_500, "\x1c "]
    assert list(map(len, slices("ab " * 133_334))) == [400_000, 2]


@given(text=st.text("ab \n\x1c\u3000"), max_chars=st.integers(1, 30), max_run=st.integers(1, 8))
def test_slices_cut_only_where_they_must(text, max_chars, max_run):
    cuts, run = [], 0
    for i, character in enumerate(text):
        same = i % max_chars and character.isspace() == text[i - 1].isspace()
        run = run + 1 if same and run < max_run else 1
        if i and (i % max_chars == 0 or same and run == 1):
            cuts.append(i)
    parts = list(slices(text, max_chars, max_run))
    assert parts == [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if text]
