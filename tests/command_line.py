"""Run the command as a user does: in a process of its own, with a known environment."""

import os
import subprocess
import sys


def environment(**changes):
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "K2REF_MODEL", "TERM")}
    return {**env, "TERM": "xterm", **changes}


def command(*args):
    return [sys.executable, "-m", "k2ref", *args]


def run(*args, stdin=None, **changes):
    """Run the command in a process of its own, with pipes; check that it went well."""
    done = subprocess.run(command(*args), input=stdin, capture_output=True, timeout=300,
                          env=environment(**changes))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def line(text):
    """The text as the command prints it: the last line is ended."""
    return text if text.endswith("\n") or not text else text + "\n"
