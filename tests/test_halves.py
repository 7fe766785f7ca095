"""The two halves of the tests: each run of a whole half says how long it will take."""

import re
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest

SETTINGS = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
DEFAULT = re.search(r"^addopts = .*-m '([^']+)'\"$", SETTINGS, re.M)[1]


class Asked(SimpleNamespace):
    """A command line: its markers, and what else it chooses by; and what earlier runs took."""

    def getoption(self, name):
        return getattr(self, name)


def said(markexpr, took=None, file_or_dir=(), keyword=""):
    asked = Asked(markexpr=markexpr, file_or_dir=file_or_dir, keyword=keyword)
    if took:
        asked.cache = SimpleNamespace(get=lambda key, _: took if key.endswith(markexpr) else None)
    return conftest.pytest_report_collectionfinish(asked, [None] * 9)


@pytest.mark.parametrize("half", [DEFAULT, "thorough"])
def test_a_whole_half_says_how_long_it_will_take(half):
    assert said(half).startswith(f"9 tests, about {conftest.SECONDS[half]} s on two cores")
    assert said(half, took=321).startswith("9 tests, about 321 s, as the last time here")
    assert said(half).endswith("pytest -m thorough") == (half == DEFAULT)


def test_a_part_says_nothing():
    assert said(DEFAULT, file_or_dir=["tests/test_moe.py"]) == said(DEFAULT, keyword="moe") == []
    assert said("oracle") == []
