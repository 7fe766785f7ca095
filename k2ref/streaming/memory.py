"""Memory and disk, as the system counts them for this process.

How much memory may be used (the machine's, or a container's share of it), how much is used apart
from the checkpoint, and what the disk has delivered. Each returns None where nobody counts.

Chapter 15.
"""

import os
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

UNLIMITED = 1 << 60  # container files write "no limit" as a huge number, or as "max"
BLOCK = 512  # bytes in a unit of `ru_inblock`


def available(proc=Path("/proc"), cgroups=Path("/sys/fs/cgroup")):
    """Return the bytes that this process may fill: the machine's, and no more than its container's.

    On Linux that is what is free or can be freed; elsewhere all the memory there is.
    """
    limits = (_free(proc), *_container_limits(proc, cgroups))
    return min((limit for limit in limits if limit is not None), default=None)


def size(n_bytes):
    """Write an amount of bytes as a person reads it."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def _free(proc):
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container_limits(proc, cgroups):
    """List what is free in the control groups that this process is in, and in those above them."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            homes, names = (cgroups, cgroups / "unified"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            homes = (cgroups / "memory",)
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Inside a container the path may be the host's, and only its own root is to be seen.
        steps = [part for part in path.split("/") if part not in ("", "..")]
        for home in homes:
            for depth in range(len(steps) + 1):
                group = home.joinpath(*steps[:depth])
                limit, used = (_read_number(group / name) for name in names)
                if limit is not None and limit < UNLIMITED:
                    yield max(0, limit - max(0, (used or 0) - _of_files(group)))


def _read_number(path):
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _of_files(group):
    """Count what a control group holds of files: it can be freed, and counts as used there."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.split(None, 1) for line in lines)
    names = "inactive_file", "active_file"  # in version 1 with "total_", groups below included
    return sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in names)


def own():
    """Return the bytes that this process has filled itself: all but the pages of files."""
    try:
        _, resident, of_files = Path("/proc/self/statm").read_text().split()[:3]
        return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def read_from_disk():
    """Return the bytes that the disk has delivered for this process; what memory had is not in it.

    Reads count when they are asked for. macOS counts none for files that are mapped.
    """
    if resource is None or sys.platform == "darwin":
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock * BLOCK


def disk_faults(of_thread=False):
    """Count the times this process, or this thread, touched a page that had to come from disk."""
    if resource is None:
        return 0
    thread = getattr(resource, "RUSAGE_THREAD", None)
    if of_thread and thread is None:
        return 0
    return resource.getrusage(thread if of_thread else resource.RUSAGE_SELF).ru_majflt
