"""The README shows what the source is and what the program prints, now."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from k2ref import ops

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_parts_are_up_to_date():
    check = [sys.executable, "-m", "scripts.docs.make_readme", "--check"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr + f" (kernels: {ops.kernels_name()})"


@pytest.mark.parametrize("number", range(README.count("```python")))
def test_the_python_examples_run(number):
    exec(re.findall(r"```python\n(.*?)```", README, re.S)[number], {"__name__": "example"})


def test_a_file_is_one_room():
    files = [path for room in ("k2ref", "scripts") for kind in ("py", "pyx", "h")
             for path in (ROOT / room).rglob(f"*.{kind}")]
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 100
    assert {name: n for name, n in lengths.items() if n > 300} == {}
