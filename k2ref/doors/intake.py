"""Small files that others wrote, read whole: only regular ones, no larger than they may be.

A checkpoint, a session or a file of tools comes from somewhere else, and may be anything: a pipe
that never says a word, a device that never ends, a page of HTML in the place of a download, JSON of
sixty million brackets. What is read here is bounded before it is read, and what is parsed is
bounded before it is parsed. The caller brings its own class of error, and each message is one
sentence: what, where, expected, found. Shards are not read whole: they are opened here, and mapped.

Chapter 03.
"""

import json
import math
import os
import re
import reprlib
import stat
from collections import Counter

# The most bytes of each kind of file; the official ones have 4 kB, 30 kB, 2.8 MB and 17 MB.
MOST_CONFIG = 16_000_000  # lists of all 69,000 experts by name have been seen in config.json
MOST_VOCABULARY = 16_000_000
# That of the safetensors library for a header: https://github.com/huggingface/safetensors,
# safetensors/src/tensor.rs, MAX_HEADER_SIZE.
MOST_JSON = 100_000_000
MOST_VALUES = 3_000_000  # brackets and commas of one JSON text; of 208,215 tensors: 2.3 million
MOST_NESTED = 64  # a config.json has 6 levels, a session's header with tool calls 10
LEVELS = bytes.maketrans(b"{}", b"[]")  # what nests is counted alike
KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
         stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}  # fmt: skip


def open_file(path, error, expected="a file", shown=None):
    """Open a regular file for reading, unbuffered; messages call it `shown`, else by its path.

    Nothing waits: a pipe without a writer, or a device, is refused and not opened.
    Raises: error
    """
    shown = path if shown is None else shown
    try:
        _refuse_other_kinds(os.stat(path), shown, error)  # to open some devices is to act on them
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        file = open(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)), "rb", buffering=0)
        try:
            _refuse_other_kinds(os.fstat(file.fileno()), shown, error)  # it may have changed since
        except BaseException:
            file.close()
            raise
        return file
    except (OSError, ValueError) as problem:
        if isinstance(problem, error):
            raise
        reason = getattr(problem, "strerror", None) or problem  # a name with a zero is a ValueError
        raise error(f"{shown}: expected {expected}, found none to read ({reason})") from None


def _refuse_other_kinds(status, shown, error):
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise error(f"{shown}: expected a regular file, found {kind}")


def read_bytes(path, most, error, expected="a file", shown=None):
    """Read a regular file of at most `most` bytes, also where it grows meanwhile.

    Raises: error
    """
    shown = path if shown is None else shown
    with open_file(path, error, expected, shown) as file:
        try:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes <= most:
                pieces, n_bytes = [], 0
                while n_bytes <= most and (piece := file.read(min(1 << 20, most + 1 - n_bytes))):
                    pieces.append(piece)
                    n_bytes += len(piece)
        except OSError as problem:
            raise error(f"{shown}: expected {expected}, found none to read "
                        f"({problem.strerror})") from None
    if n_bytes > most:
        raise error(f"{shown}: expected at most {most} bytes, found {n_bytes} or more")
    return b"".join(pieces)


def read_text(path, most, error, expected="a file", shown=None):
    """Read a regular file of UTF-8 text without a byte order mark.

    Raises: error
    """
    shown = path if shown is None else shown
    return _as_text(read_bytes(path, most, error, expected, shown), shown, error)


def read_json(path, most, error, expected="a file", shown=None):
    """Read a regular file of JSON, as `parse_json` does.

    Raises: error
    """
    shown = path if shown is None else shown
    return parse_json(read_bytes(path, most, error, expected, shown), shown, error)


def parse_json(text, shown, error):
    """Parse JSON, bytes or str, in which no name comes twice, no number is infinite or NaN.

    At most MOST_NESTED levels, MOST_VALUES brackets and commas, and as many strings and escapes:
    what Python would make of more takes gigabytes, or more stack than there is.
    Raises: error
    """
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")  # counted and bounded as bytes
    decoded = _as_text(text, shown, error, "a JSON text in UTF-8")
    _bound(text, shown, error)

    def refuse(constant):
        raise error(f"{shown}: expected a JSON text with finite numbers, found {constant[:80]}")

    def finite(digits):
        number = float(digits)
        return number if math.isfinite(number) else refuse(digits)

    def without_duplicates(pairs):
        try:
            return each_once(pairs)
        except ValueError as problem:
            raise error(f"{shown}: {problem}") from None

    strict = {"parse_constant": refuse, "parse_float": finite}
    try:
        found = json.loads(decoded, **strict)
        # Each key is followed by a colon, so where there are no more colons than keys were kept,
        # none came twice. Else there was one, or a colon in a string: look at every key, slowly.
        if text.count(b":") != _count_keys(found):
            found = json.loads(decoded, object_pairs_hook=without_duplicates, **strict)
    except (ValueError, RecursionError) as problem:
        if isinstance(problem, error):
            raise
        instead = stand_in(text) or f"something else ({type(problem).__name__}: {problem})"
        raise error(f"{shown}: expected a JSON text, found {instead}") from None
    return found


def each_once(pairs):
    """Make a dict of the names and values of a JSON object.

    Raises: ValueError if a name comes twice: which of the values was meant, nobody knows
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        [(name, times)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"expected each name once, found {quoted(name)} {times} times")
    return values


def _as_text(data, shown, error, expected="UTF-8 text"):
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise error(f"{shown}: expected {expected} without a byte order mark, found one; "
                    "save it without")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        found = stand_in(data) or f"{data[problem.start]:#04x} at byte {problem.start}"
        raise error(f"{shown}: expected {expected}, found {found}") from None


def _bound(text, shown, error):
    """Refuse JSON of too many values or levels, before any of it is parsed."""
    if text.count(b"[") + text.count(b"{") <= MOST_NESTED and len(text) < MOST_VALUES:
        return
    for what, sign, most in (("quotes", b'"', 2 * MOST_VALUES), ("escapes", b"\\", MOST_VALUES)):
        _limit(what, text.count(sign), most, shown, error)
    # Of what is escaped, no quote ends a string; and what is in strings is no structure.
    left = re.sub(rb"\\.", b"", text, flags=re.S) if b"\\" in text else text
    left = left.translate(LEVELS, bytes(set(range(256)) - set(b'[]{}",')))
    left = re.sub(rb'"[^"]*"', b"", left.replace(b'""', b""))
    _limit("brackets and commas", len(left), MOST_VALUES, shown, error)
    left = left.replace(b",", b"")
    for _ in range(MOST_NESTED):  # each round takes the innermost level away
        left, before = left.replace(b"[]", b""), len(left)
        if len(left) == before:  # what is left does not close, and is not JSON
            break
    n_levels = MOST_NESTED + 1 if len(left) < before and left else left.count(b"[")
    _limit("levels", n_levels, MOST_NESTED, shown, error)


def _limit(what, n, most, shown, error):
    if n > most:
        raise error(f"{shown}: expected a JSON text of at most {most} {what}, found more")


def _count_keys(found):
    """Count the keys of an object and of the objects in it, not those further down."""
    objects = [found, *found.values()] if isinstance(found, dict) else []
    return sum(len(value) for value in objects if type(value) is dict)


def stand_in(data):
    """Say what lies in the place of a file that was not downloaded, and what to do; else None."""
    begin = data[:200].lstrip().lower()
    if begin.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs that stands for it; run git lfs pull, or download it again"
    if begin.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "a page of HTML, such as a login or an error; download it again"
    if not begin.strip(b"\0") and not data.strip(b" \t\r\n\0"):
        return f"{'zeros' if data.strip() else 'nothing'}; download it again"
    return None


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 160  # all names of tensors fit


def quoted(value):
    """Show any value in a message: on one line, in printable characters, cut to a bearable length.

    Also what has no end, such as a list that holds itself.
    """
    try:
        text = _short.repr(value)
    except ValueError:  # Python does not write numbers of more than 4,300 digits
        text = "a number too long to write"
    return text if len(text) <= 200 else f"{text[:197]}..."
