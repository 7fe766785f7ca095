"""A file whole or not at all: what is written takes its name when all of it is on the disk.

A full disk, Ctrl-C or a kill in the middle leaves the old content. Two that write the same file at
the same time do not disturb each other: each writes a file of its own, and the last one that ends
gives the content. What a killed process left is removed by the next one, and nothing else is.

Chapter 13.
"""

import os
import re
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where left-overs stay
    fcntl = None


@contextmanager
def replacing(path):
    """Open a file that takes this name when all of it is written, and else leaves no trace.

    Raises: OSError
    """
    path = Path(os.path.realpath(path))  # of a link the target is replaced, not the link
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise OSError(f"{path}: expected the name of a file, found that of a directory or device")
    _clear(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            with suppress(OSError):  # some file systems have no locks
                _lock(file)
            yield file
            file.flush()
            with suppress(OSError):  # a file that only its owner may read stays so
                os.chmod(partial, stat.S_IMODE(os.stat(path).st_mode))
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # not that of the second file, which nobody asked for
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def require_file(path):
    """Refuse a file that could not be written in the end, before anything is computed for it.

    Raises: OSError
    """
    with suppress(_Enough), replacing(path):
        raise _Enough


class _Enough(Exception):
    """The end of a trial."""


def _lock(file):
    """Lock a file until it is closed or its process ends. Raises: OSError"""
    if fcntl is None:
        raise OSError("there are no locks")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _clear(path):
    """Remove what killed processes left of this file."""
    ours = re.compile(re.escape(path.name) + r"\.(\d{1,9})(\.[0-9a-f]{8})?\.partial")
    with suppress(OSError):  # of a directory that may not be listed, or is not there
        for left in path.parent.iterdir():
            found = ours.fullmatch(left.name)
            if found and stat.S_ISREG(left.lstat().st_mode) and _is_over(left, int(found[1])):
                left.unlink(missing_ok=True)


def _is_over(left, pid):
    """Say whether the process that wrote this is gone: none has its number, nor its lock.

    Both, as numbers come again, and in another container or on another machine mean another one.
    """
    try:
        with open(left, "rb") as file:
            _lock(file)
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _sync_directory(directory):
    """Make the new name last; some systems cannot, and it would last a moment later anyway."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
