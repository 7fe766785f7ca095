"""The screen is the user's: what others wrote is shown there, and never obeyed.

A reply, the name of a tensor, a file or a tool, a session that somebody sent: each may hold control
characters, which move the cursor, rename the window or type for the user, and characters that write
backwards or say what nobody sees. Whatever the command prints that its user did not type comes
through here. It shows

    a picture for each control character (U+241B for the escape), a blank box for those of Latin-1
    a blank box for what turns the direction of other characters round (U+202A-202E, U+2066-2069,
        U+206A-206F), breaks lines unseen (U+2028, U+2029) or annotates (U+FFF9-FFFB)
    a blank box for a tag (U+E0000-E007F), which spells unseen letters, but in the flag of a region
    a byte that is no UTF-8, in a file's name, as \\xNN

and leaves alone what Persian, Hebrew, Hindi or a family of emoji is written with: joiners, marks of
direction (U+200B-200F, U+061C), selectors. A reply in a pipe or a file is left as it is, since a
program reads it; the rest is not.

Chapter 00.
"""

import os
import re
import sys
from contextlib import suppress

MOST_NOTE = 1500  # characters
BOX = 0x25A1
UNSEEN = (*range(0x80, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x2070),
          *range(0xFFF9, 0xFFFC))
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
PICTURES |= {0x7F: 0x2421, ord("\r"): None} | dict.fromkeys(UNSEEN, BOX)
PICTURES |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)  # half a character
PICTURES |= {code: f"\\x{code - 0xDC00:02x}" for code in range(0xDC80, 0xDD00)}
ON_ONE_LINE = PICTURES | {ord(sign): 0x2400 + ord(sign) for sign in "\t\n\r"}
# A region's flag is a black one, at most five tags, and the tag that ends it.
TAGS = re.compile("(\U0001F3F4[\U000E0030-\U000E007A]{0,5}\U000E007F?)|[\U000E0000-\U000E007F]")
FLAG = 7  # characters of the longest one


def shown(text, before="", pictures=PICTURES):
    """Return text as it may be shown, with its lines; `before` is what stands in front of it."""
    before = before[-FLAG:]
    whole = TAGS.sub(lambda found: found[1] or chr(BOX), before + text)
    return whole[len(before):].translate(pictures)


def line(text):
    """Return text, or whatever else has a name, as it may be shown within a line."""
    return shown(str(text), pictures=ON_ONE_LINE)


def say(text=""):
    """Print on standard output, at once.

    Raises: OSError
    """
    print(shown(text), flush=True)


def report(text):
    """Print on standard error. If nobody takes it, the work goes on all the same."""
    try:
        if sys.stderr is not None:  # or it would stand in the answer
            print(shown(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        let_go(sys.stderr)


def note(message):
    """Say something about the work, not part of it, on standard error, in one line."""
    text = line(" ".join(message.split()))
    if len(text) > MOST_NOTE:  # a file's name may be as long as somebody likes
        text = f"{text[:MOST_NOTE // 2]} ... {text[-MOST_NOTE // 2:]}"
    report(f"k2ref: {text}")


def let_go(stream):
    """Throw away what a broken stream still holds: Python would complain of it at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
