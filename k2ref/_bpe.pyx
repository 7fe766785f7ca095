# cython: boundscheck=False, wraparound=False
"""The compiled twin of tokenizer.py: the same split and the same merges, fast.

Three things make it fast, and each has its plain twin, to which property tests hold it equal:

    split   (PATTERN.findall)   every character becomes the set of pattern classes it is in, one bit
                                each, so the pattern's alternatives are walks over one byte array
    find    (the ranks dict)    a hash table from bytes to id, with no Python object per look-up
    merge   (tokenizer.merge)   a tournament over the pairs: its root is the lowest rank, leftmost
                                first, and a merge replays three matches of it, so that a pre-token
                                of n bytes costs n log n even when it is 25,000 times one letter

A hand-written splitter is where others went wrong (llama.cpp#14654), so this one has no table of
its own: `classes` comes from the `regex` package, set by set, as PATTERN names them, and the tests
compare the walks with PATTERN on every short string over those sets.

Chapter 01.
"""

import numpy as np

from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.string cimport memcmp

# The bits of `classes`, in the order of tokenizer.SETS.
cdef enum:
    HAN = 1
    UPPER = 2
    LOWER = 4
    NUMBER = 8
    LEAD = 16
    SYMBOL = 32
    NEWLINE = 64
    SPACE = 128

cdef Py_ssize_t FAIL = -1
cdef uint64_t NO_PAIR = <uint64_t>-1  # loses against every pair of the tournament


# ---- split: each function takes a position in the text and returns where its match ends, or FAIL.
# `sets` holds the classes of the text's characters and then a zero, which ends every run.

cdef inline Py_ssize_t run(const uint8_t *sets, Py_ssize_t i, uint8_t wanted) noexcept nogil:
    while sets[i] & wanted:
        i += 1
    return i


cdef Py_ssize_t lower_word(const uint8_t *sets, Py_ssize_t i) noexcept nogil:
    """UPPER* LOWER+"""
    cdef Py_ssize_t end = run(sets, i, UPPER)
    # UPPER* takes all it can, then gives back (marks are in both sets) until LOWER+ can begin.
    while not sets[end] & LOWER:
        if end == i:
            return FAIL
        end -= 1
    return run(sets, end, LOWER)


cdef Py_ssize_t upper_word(const uint8_t *sets, Py_ssize_t i) noexcept nogil:
    """UPPER+ LOWER*"""
    cdef Py_ssize_t end = run(sets, i, UPPER)
    return FAIL if end == i else run(sets, end, LOWER)


cdef Py_ssize_t word(const uint8_t *sets, Py_ssize_t i) noexcept nogil:
    """LEAD? UPPER* LOWER+ | LEAD? UPPER+ LOWER*"""
    cdef bint lead = sets[i] & LEAD
    cdef Py_ssize_t end = lower_word(sets, i + 1) if lead else FAIL
    if end == FAIL:
        end = lower_word(sets, i)
    if end == FAIL and lead:
        end = upper_word(sets, i + 1)
    if end == FAIL:
        end = upper_word(sets, i)
    return end


cdef Py_ssize_t contraction(str text, Py_ssize_t i):
    """(?i:'s|'t|'re|'ve|'m|'ll|'d)? : never fails, may be empty."""
    cdef Py_ssize_t left = len(text) - i
    if left < 2 or text[i] != u"'":
        return i
    if text[i + 1] in u"sStTmMdD\u017f":  # U+017F, the long s, is an s whose case does not matter
        return i + 2
    if left > 2 and text[i + 1] in u"rRvV" and text[i + 2] in u"eE":
        return i + 3
    if left > 2 and text[i + 1] in u"lL" and text[i + 2] in u"lL":
        return i + 3
    return i


cdef Py_ssize_t white(const uint8_t *sets, Py_ssize_t i) noexcept nogil:
    r"""\s*[\r\n]+ | \s+(?!\S) | \s+"""
    cdef Py_ssize_t end = run(sets, i, SPACE), newline = end
    while newline > i and not sets[newline - 1] & NEWLINE:
        newline -= 1
    if newline > i:
        return newline
    # The last space before a word is left for the word, unless it is all there is.
    return end if sets[end] == 0 or end == i + 1 else end - 1


cdef Py_ssize_t pre_token(str text, const uint8_t *sets, Py_ssize_t i):
    """PATTERN at position i: its alternatives in their order, the first that matches."""
    cdef Py_ssize_t end
    if sets[i] & HAN:
        return run(sets, i, HAN)
    end = word(sets, i)
    if end != FAIL:
        return contraction(text, end)
    if sets[i] & NUMBER:
        end = i + 1
        while end < i + 3 and sets[end] & NUMBER:
            end += 1
        return end
    cdef Py_ssize_t symbols = i + 1 if text[i] == u" " else i
    end = run(sets, symbols, SYMBOL)
    if end > symbols:
        return run(sets, end, NEWLINE)
    return white(sets, i)


# ---- merge

cdef class Parts:
    """One pre-token on its way from bytes to tokens, cut into parts named by their first byte."""

    cdef const uint8_t *bytes
    cdef Py_ssize_t n
    cdef int32_t[::1] after  # where the next part starts
    cdef int32_t[::1] before  # where the previous part starts
    cdef uint64_t[::1] tree  # the tournament: leaf n + i is the pair that starts at i, 1 the root

    def __init__(self, Py_ssize_t most_bytes):
        self.after = np.empty(most_bytes, np.int32)
        self.before = np.empty(most_bytes, np.int32)
        self.tree = np.empty(2 * most_bytes, np.uint64)

    cdef inline void enter(self, Py_ssize_t i, uint64_t pair) noexcept nogil:
        """Set the pair that starts at i and play its matches again, as far up as winners change."""
        cdef uint64_t *tree = &self.tree[0]
        cdef uint64_t winner
        i += self.n
        tree[i] = pair
        while i > 1:
            winner = min(tree[i], tree[i ^ 1])
            i >>= 1
            if tree[i] == winner:
                return
            tree[i] = winner


cdef inline uint64_t fnv(const uint8_t *token, Py_ssize_t n) noexcept nogil:
    """FNV-1a with its halves folded, since the table takes the slot from the lowest bits."""
    cdef uint64_t digest = 0xCBF29CE484222325u
    for i in range(n):
        digest = (digest ^ token[i]) * 0x100000001B3u
    return digest ^ (digest >> 32)


cdef class Encoder:
    """Hold a vocabulary and the classes of all code points; split, merge and encode with them."""

    cdef const uint8_t[::1] blob, classes  # all tokens end to end; `tokenizer.classes()`
    cdef int32_t[::1] starts, slots  # where each token starts in the blob; the hash table of ids
    cdef uint8_t[::1] seen  # bit by bit, whether any token has this hash
    cdef Py_ssize_t longest

    def __init__(self, list vocabulary, const uint8_t[::1] classes):
        cdef Py_ssize_t i
        cdef uint64_t digest
        lengths = [len(token) for token in vocabulary]
        self.blob = b"".join(vocabulary)
        self.classes = classes
        self.starts = np.cumsum([0] + lengths).astype(np.int32)
        self.longest = max(lengths)
        # A power of two, so that a mask finds the slot, and at least half empty, so that the walk
        # from a taken slot to the next empty one stays short.
        self.slots = np.full(1 << (2 * len(vocabulary) - 1).bit_length(), -1, np.int32)
        self.seen = np.zeros(self.slots.shape[0], np.uint8)
        for i in range(len(vocabulary)):
            digest = fnv(&self.blob[self.starts[i]], lengths[i])
            self.slots[self.slot(digest, &self.blob[self.starts[i]], lengths[i])] = i
            self.seen[(digest >> 3) & (self.seen.shape[0] - 1)] |= 1 << (digest & 7)

    cdef Py_ssize_t slot(self, uint64_t digest, const uint8_t *token, Py_ssize_t n) noexcept nogil:
        """Return the slot where the token is, or the empty one where it would go."""
        cdef Py_ssize_t mask = self.slots.shape[0] - 1, i = digest & mask
        while self.slots[i] >= 0 and not self.spells(self.slots[i], token, n):
            i = (i + 1) & mask
        return i

    cdef inline bint spells(self, int32_t id, const uint8_t *token, Py_ssize_t n) noexcept nogil:
        cdef int32_t start = self.starts[id]
        return self.starts[id + 1] - start == n and memcmp(&self.blob[start], token, n) == 0

    cdef inline int32_t find(self, const uint8_t *token, Py_ssize_t n) noexcept nogil:
        """Return the token's id, -1 if it is not in the vocabulary."""
        if n > self.longest:
            return -1
        cdef uint64_t digest = fnv(token, n)
        # Most look-ups are of pairs that are no token. These bits stay in the processor's cache,
        # which the table is too large for, and answer most of them.
        if not self.seen[(digest >> 3) & (self.seen.shape[0] - 1)] >> (digest & 7) & 1:
            return -1
        return self.slots[self.slot(digest, token, n)]

    cdef inline uint64_t pair(self, Parts parts, Py_ssize_t i) noexcept nogil:
        """Return the pair that starts at i as a number that sorts by rank, then by position."""
        cdef Py_ssize_t second = parts.after[i]
        cdef int32_t rank = -1
        if second < parts.n:
            rank = self.find(parts.bytes + i, parts.after[second] - i)
        return NO_PAIR if rank < 0 else (<uint64_t>rank << 32) | <uint64_t>i

    cdef Py_ssize_t write(self, Parts parts, int32_t *ids) noexcept nogil:
        """Write the ids of the pre-token and return how many there are."""
        cdef Py_ssize_t i = 0, count = 0
        ids[0] = self.find(parts.bytes, parts.n)
        if ids[0] >= 0:
            return 1
        self.merge_all(parts)
        while i < parts.n:
            ids[count] = self.find(parts.bytes + i, parts.after[i] - i)
            count += 1
            i = parts.after[i]
        return count

    cdef void merge_all(self, Parts parts) noexcept nogil:
        """Cut the pre-token into bytes, then merge the pair of lowest rank until there is none."""
        cdef Py_ssize_t i, second, n = parts.n
        for i in range(n):
            parts.before[i] = i - 1
            parts.after[i] = i + 1
        for i in range(n):
            parts.tree[n + i] = self.pair(parts, i)
        for i in range(n - 1, 0, -1):
            parts.tree[i] = min(parts.tree[2 * i], parts.tree[2 * i + 1])
        while parts.tree[1] != NO_PAIR:
            i = parts.tree[1] & 0xFFFFFFFFu
            second = parts.after[i]
            parts.after[i] = parts.after[second]
            if parts.after[i] < n:
                parts.before[parts.after[i]] = i
            parts.enter(second, NO_PAIR)
            parts.enter(i, self.pair(parts, i))
            if i > 0:
                parts.enter(parts.before[i], self.pair(parts, parts.before[i]))

    def merge(self, bytes piece):
        """Return the ids of one pre-token; the twin of `tokenizer.merge`."""
        if not piece:
            return []
        cdef Parts parts = Parts(len(piece))
        cdef int32_t[::1] ids = np.empty(len(piece), np.int32)
        parts.bytes, parts.n = piece, len(piece)
        return np.asarray(ids)[:self.write(parts, &ids[0])].tolist()

    def split(self, str text):
        """Return the pre-tokens of a text; the twin of `PATTERN.findall`."""
        cdef const uint8_t[::1] sets = self.sets(text)
        cdef Py_ssize_t i = 0, end
        cdef list found = []
        while i < len(text):
            end = pre_token(text, &sets[0], i)
            found.append(text[i:end])
            i = end
        return found

    def encode(self, str text):
        """Return the ids of a text without surrogates: split and merge in one walk."""
        cdef bytes utf8 = text.encode()
        cdef const uint8_t *data = utf8  # ends in a zero byte, as all bytes objects do
        cdef const uint8_t[::1] sets = self.sets(text)
        cdef Parts parts = Parts(len(utf8))
        cdef int32_t[::1] ids = np.empty(len(utf8) + 1, np.int32)
        cdef Py_ssize_t i = 0, end, start = 0, stop = 0, count = 0
        while i < len(text):
            end = pre_token(text, &sets[0], i)
            while i < end:  # a character is one byte and its continuation bytes
                i += 1
                stop += 1
                while data[stop] & 0xC0 == 0x80:
                    stop += 1
            parts.bytes, parts.n = data + start, stop - start
            count += self.write(parts, &ids[count])
            start = stop
        return np.asarray(ids)[:count].tolist()

    cdef sets(self, str text):
        """Return the classes of the text's characters, and a zero after them."""
        cdef uint8_t[::1] sets = np.empty(len(text) + 1, np.uint8)
        cdef Py_UCS4 character
        cdef Py_ssize_t i
        for i, character in enumerate(text):
            sets[i] = self.classes[<Py_ssize_t>character]
        sets[len(text)] = 0
        return sets
