"""Results: what a tool gives back, or raises, becomes text of bounded length.

A tool is somebody else's code, and its values are objects that may do anything when they are
written down. What is written of them has an end, and says where it was cut. Only the standard
library is imported here, since the process in which tools run starts with this file.

Chapter 02.
"""

import json
import types

MAX_RESULT = 400_000  # characters: some 100,000 tokens, more than a third of K2's context
MAX_ERROR = 10_000
ROOM = 200  # characters around what an exception says, so that it is cut, and counted, once
UNFINISHED = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)


def as_text(value):
    """Write what a tool returns: text as it is, all else as JSON, or as Python would print it.

    Of more than MAX_RESULT characters the first are kept, and a sentence says so.
    Raises: TypeError for a generator or a coroutine; whatever the value raises
    """
    if isinstance(value, UNFINISHED):
        raise TypeError(f"expected a tool to return its result, found a {type(value).__name__}, "
                        "which is work still to be done")
    if not isinstance(value, str):
        try:
            return _json(value)
        except (TypeError, ValueError, RecursionError):
            value = str(value)
    # The plain text also of a class that is derived from str, and may have its own ways.
    return cut(str.__str__(value), MAX_RESULT)


def _json(value):
    """Write JSON as far as there is room: a small object may have no end of text in it."""
    pieces, n = [], 0
    for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        pieces.append(piece)
        n += len(piece)
        if n > MAX_RESULT:
            return _first("".join(pieces), MAX_RESULT, "more")
    return "".join(pieces)


def cut(text, limit):
    """Return a text, or its first characters and a sentence that says how many there were."""
    return text if len(text) <= limit else _first(text, limit, f"{len(text):,}")


def _first(text, limit, there_were):
    return f"{text[:limit]}\n[The first {limit:,} characters; there were {there_were}.]"


def described(error):
    """Say what kind of exception it is and what it says, if that can be said."""
    try:
        return cut(f"{type(error).__name__}: {str.__str__(str(error))}", MAX_ERROR - ROOM)
    except BaseException:  # somebody else's __str__, which may raise anything
        return f"{type(error).__name__}: what it says cannot be written"
