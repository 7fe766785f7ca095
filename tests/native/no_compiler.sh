#!/usr/bin/env bash
# Install a copy of the tree with a compiler that always fails: pip must succeed with one warning per
# module, and the command must answer on the NumPy path. Argument: an empty place to work in.
set -euo pipefail
place="$1/no-compiler"
mkdir -p "$place"
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$place"
python3 -m venv "$place/venv"
cd "$place"
CC=/bin/false "$place/venv/bin/pip" install -v . >"$place/log" 2>&1 || { tail -30 "$place/log"; exit 1; }
grep 'warning: k2ref' "$place/log"
cd "$place/venv"
bin/python -m k2ref --version | grep -i numpy
bin/python -m k2ref --greedy "What is 37 + 58?"
