"""Files in memory: the few things that are asked of the operating system about a mapped file.

A map is memory that the system fills from the file when it is touched, a little at a time, which
reads a disk at a fraction of its speed. `File` asks for whole ranges instead, waits for them, and
lets them go:

    ask      start reading; returns while the disk works    madvise WILLNEED, F_RDADVISE
    fetch    ask, and return when all of it is in memory    madvise POPULATE_READ, else pread
    let_go   give the memory back                           madvise and posix_fadvise DONTNEED
    check    has anybody written to the file since?         fstat

Every request is a wish: where a system or a file system does not know it, the map still reads what
is touched, only slower. Linux does all of it, macOS most, others none.

A map that `use_large_pages` prepared is read in pages of 2 MB instead of 4 KB, where the system and
the file system have them. A disk that is asked for a megabyte in 256 scattered pieces gives half of
what it gives for one piece, and half of the work for the processor goes with it.

Chapter 15.
"""

import ctypes
import faulthandler
import mmap
import os
import sys
import weakref
from contextlib import suppress

import numpy as np

from k2ref.checkpoint.shards import CheckpointError
from k2ref.doors.screen import line

try:
    from k2ref.streaming import _faults
except ImportError:
    _faults = None

PAGE = mmap.PAGESIZE
LINUX, MACOS = sys.platform == "linux", sys.platform == "darwin"
# <sys/mman.h>; POPULATE_READ since Linux 5.14
RANDOM, WILLNEED, DONTNEED, HUGEPAGE, POPULATE_READ = 1, 3, 4, 14, 22
F_RDADVISE = 44  # <sys/fcntl.h> of macOS
CACHESTAT = 451  # the system call's number on every architecture but alpha; since Linux 6.5
# A request for more than the device's read-ahead is cut short without a word, so a large one is
# made in pieces of what the device takes, and these are the least and the most they may be.
LEAST_ASKED, MOST_ASKED = 128 << 10, 1 << 20
LARGE_PAGE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
MOST_LARGE_PAGE = 4 << 20  # bytes: with larger ones, an expert would be little but edges

_libc = ctypes.CDLL(None, use_errno=True) if LINUX or MACOS else None


def _call(name, *arguments):
    """Call a function of the C library without the interpreter lock; return its errno, or 0."""
    if _libc is None:
        return -1
    function = getattr(_libc, name)
    function.restype = ctypes.c_int
    return ctypes.get_errno() if function(*arguments) < 0 else 0


def _address(n):
    return ctypes.c_void_p(n)


def _size(n):
    return ctypes.c_size_t(n)


class File:
    """One mapped file of a checkpoint: where its bytes are in memory, and how to get them.

    Ranges are byte offsets [start, stop) in the file.
    Raises: CheckpointError if the file cannot be opened or is not the one that was mapped.
    """

    def __init__(self, shard):
        self.path = shard.path
        self.bytes = np.frombuffer(shard.map, np.uint8)
        self.address = self.bytes.ctypes.data
        try:
            self.fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise CheckpointError(f"{self.path}: expected a readable file, found "
                                  f"{error.strerror}") from error
        self.close = weakref.finalize(self, _close, self.fd, self.address)
        status = os.fstat(self.fd)
        self.known = status.st_size, status.st_mtime_ns
        self.piece = _read_ahead(status.st_dev)
        self.large_page = None  # bytes
        if status.st_size != len(self.bytes):
            raise self._changed(status.st_size)
        if _faults is not None:
            _faults.watch(self.address, len(self.bytes), line(self.path).encode())
        elif not faulthandler.is_enabled() and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)  # not compiled: Python's own words for a bad page

    def range_of(self, array):
        """Return the range that an array viewing this file covers; None for any other array."""
        start = array.ctypes.data - self.address
        inside = 0 <= start and start + array.nbytes <= len(self.bytes)
        return (start, start + array.nbytes) if inside else None

    def use_large_pages(self):
        """Let what is fetched from now on lie in large pages, if the system has them."""
        n_bytes = _large_page()
        whole = _address(self.address), _size(len(self.bytes))
        # RANDOM: a large page and no more. Without it the next one, of another expert, comes along.
        if n_bytes and not _call("madvise", *whole, HUGEPAGE):
            if not _call("madvise", *whole, RANDOM):
                self.large_page = n_bytes

    def ask(self, start, stop):
        """Start to read the pages of the range that are not in memory, the large ones aside."""
        for low, high in self._without_large_pages(start // PAGE * PAGE, stop):
            for at in range(low, high, self.piece):
                self._ask(at, min(self.piece, high - at))

    def _without_large_pages(self, start, stop):
        """List what remains of a range without the large pages that lie wholly inside it."""
        if self.large_page is None:
            return [(start, stop)]
        first, last = -(-start // self.large_page), stop // self.large_page
        if first >= last:
            return [(start, stop)]
        return [(start, first * self.large_page), (last * self.large_page, stop)]

    def _ask(self, at, n_bytes):
        if not MACOS:
            _call("madvise", _address(self.address + at), _size(n_bytes), WILLNEED)
            return
        import fcntl

        advice = at.to_bytes(8, sys.byteorder) + n_bytes.to_bytes(8, sys.byteorder)
        with suppress(OSError):  # a file system that takes no advice
            fcntl.fcntl(self.fd, F_RDADVISE, advice)

    def fetch(self, start, stop):
        """Read the range and return when every page of it is in memory, and mapped.

        Raises: CheckpointError if the disk does not give it.
        """
        self.ask(start, stop)
        start = start // PAGE * PAGE
        errno = -1
        if LINUX:
            at, n_bytes = _address(self.address + start), _size(stop - start)
            errno = _call("madvise", at, n_bytes, POPULATE_READ)
        if errno:  # an error of the disk, or a system that does not know the request
            self._read_through(start, stop)

    def let_go(self, start, stop):
        """Give back the memory of the pages that lie wholly inside the range."""
        start, stop = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if start < stop:
            # The first undoes our own mapping of the pages, without which the second does nothing.
            _call("madvise", _address(self.address + start), _size(stop - start), DONTNEED)
            if hasattr(os, "posix_fadvise"):
                with suppress(OSError):
                    os.posix_fadvise(self.fd, start, stop - start, os.POSIX_FADV_DONTNEED)

    def lock(self, start, stop):
        """Forbid the system to take these pages; return whether it agreed."""
        start = start // PAGE * PAGE
        return _call("mlock", _address(self.address + start), _size(stop - start)) == 0

    def in_memory(self, start, stop):
        """Count the range's bytes that are in memory, in whole pages; None where nobody tells."""
        if stop <= start:
            return 0
        start = start // PAGE * PAGE
        if LINUX:
            span, counts = (ctypes.c_uint64 * 2)(start, stop - start), (ctypes.c_uint64 * 5)()
            # On an overlay the call succeeds and counts nothing: the pages are another file's.
            if not _call("syscall", CACHESTAT, self.fd, span, counts, 0) and counts[0]:
                return counts[0] * PAGE
        pages = np.zeros(-(-(stop - start) // PAGE), np.uint8)
        at, out = _address(self.address + start), _address(pages.ctypes.data)
        if _call("mincore", at, _size(stop - start), out):
            return None
        return int((pages & 1).sum()) * PAGE

    def check(self):
        """Make sure that the file is as it was when it was opened.

        Raises: CheckpointError
        """
        try:
            status = os.fstat(self.fd)
        except OSError as error:  # of a network file system: the file or the server is gone
            raise CheckpointError(f"{self.path}: expected the file that was opened, found "
                                  f"{error.strerror}; load again") from error
        if (status.st_size, status.st_mtime_ns) != self.known:
            raise self._changed(status.st_size)

    def _changed(self, n_bytes):
        found = "it written to" if n_bytes == len(self.bytes) else f"{n_bytes} bytes"
        return CheckpointError(f"{self.path}: expected the file of {len(self.bytes)} bytes that "
                               f"was opened, found {found}; nothing computed since counts: put "
                               "the file back and load again")

    def _read_through(self, start, stop):
        """Read the range into nowhere, which brings it into memory, or says why it cannot be."""
        self.check()
        if not hasattr(os, "pread"):
            self.bytes[start:stop:PAGE].max()
            return
        scratch = memoryview(bytearray(min(MOST_ASKED, stop - start)))
        at = start
        while at < stop:
            try:
                n_bytes = _pread(self.fd, scratch[:stop - at], at)
            except OSError as error:
                raise CheckpointError(f"{self.path}: expected bytes {at} to {stop} to be readable, "
                                      f"found {error.strerror}; check the disk, or copy the file "
                                      "again") from error
            if n_bytes == 0:
                raise self._changed(at)
            at += n_bytes


def _pread(fd, buffer, at):
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], at)
    return len(os.pread(fd, len(buffer), at))


def _large_page():
    """Find the bytes of a large page; None where there are none, or none of a useful size."""
    try:
        with open(LARGE_PAGE, encoding="ascii") as file:
            n_bytes = int(file.read())
    except (OSError, ValueError):
        return None
    return n_bytes if LINUX and n_bytes <= MOST_LARGE_PAGE else None


def _close(fd, address):
    if _faults is not None:
        _faults.forget(address)
    os.close(fd)


def _read_ahead(device):
    """Find how many bytes the device takes in one request."""
    try:
        name = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        with open(name, encoding="ascii") as file:
            n_bytes = int(file.read()) << 10
    except (OSError, ValueError, AttributeError):
        n_bytes = LEAST_ASKED
    return max(LEAST_ASKED, min(n_bytes, MOST_ASKED)) // PAGE * PAGE
