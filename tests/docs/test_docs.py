"""Every page of docs/ shows what runs, quotes what is there, and links to what exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import put_in_place

from k2ref import ops
from scripts.docs import blocks as doc_blocks
from scripts.docs import links, make_docs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
WIDE = {"parsing.md", "streaming-notes.md", "traps.md"}  # older than the limit of 100 characters
CHAPTERS = [name for name in PAGES if re.match(r"\d\d-", name)]
MUTATED = "05-residual.md"  # runs quickly, and has all that a mutant needs but a command
WORDS = 500, 1200  # of prose, without blocks: what is read in ten minutes with the blocks


def lines_of(name):
    return (DOCS / name).read_text(encoding="utf-8").splitlines()


def prose_of(name):
    return "\n".join(line for _, line in links.prose(lines_of(name)))


compiled_only = pytest.mark.skipif(ops.kernels is None, reason="pages show the compiled kernels: "
                                   "the same bits, and how fast")


@compiled_only
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_running_it_gives(name):
    faults = make_docs.faults_of(DOCS / name)
    assert not faults, "\n".join(f"docs/{name}:{fault.line}: {fault.message}" for fault in faults)


def test_every_page_can_be_reached():
    assert links.unreachable(DOCS) == []


def test_the_contents_name_each_chapter_by_its_title():
    contents = dict(re.findall(r"^\| \[(.+?)\]\((\d\d-[\w-]+\.md)\)", prose_of("index.md"), re.M))
    assert contents == {lines_of(name)[0].removeprefix("# "): name for name in CHAPTERS}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_short(name):
    lines = lines_of(name)
    assert len(lines) <= 300
    long = [f"docs/{name}:{number}: {len(line)} characters" for number, line in
            enumerate(lines, 1) if len(line) > 100 and not line.startswith(("|", "<picture>", "!["))
            and name not in WIDE]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_its_parts(name):
    lines, prose = lines_of(name), prose_of(name)
    blocks = doc_blocks.fences(lines)
    assert lines[0].startswith(f"# {name[:2]} · ")
    assert WORDS[0] <= len(prose.split()) <= WORDS[1], len(prose.split())
    assert 3 <= sum(block.language in ("pycon", "console") for block in blocks) <= 6
    assert any(block.marker == "source" for block in blocks)
    assert "> **Trap.**" in prose
    pictures = re.findall(r'<picture><source media="\(prefers-color-scheme: dark\)" '
                          r'srcset="figures/([\w-]+)-dark\.svg"><img alt="[^"]+" '
                          r'src="figures/([\w-]+)\.svg"></picture>', prose)
    assert pictures and all(dark == light for dark, light in pictures)
    assert "\n## Exercise\n" in prose and '<details markdown="1">' in prose
    following = [*CHAPTERS, r"[\w-]+\.md"][CHAPTERS.index(name) + 1]
    assert re.search(rf"^Next: \[.+\]\({following}\)$", lines[-1]), lines[-1]


def run_pytest(*args):
    """Run pytest as a reader does, with few examples of each property."""
    environment = {**os.environ, "K2REF_EXAMPLES": "5", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
                          cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@compiled_only
@pytest.mark.thorough
@pytest.mark.parametrize("name", CHAPTERS)
def test_an_answer_passes(name, tmp_path):
    lines = lines_of(name)
    answers = [block for block in doc_blocks.fences(lines) if block.marker == "mine"]
    assert answers, "the exercise has no answer"
    for answer in answers:
        file = tmp_path / "mine.py"
        file.write_text("\n".join(lines[answer.start:answer.stop]) + "\n", encoding="utf-8")
        task = "\n".join(lines[:answer.start - 2])
        assert f"pytest {answer.about} --mine " in task, "the exercise does not say what to run"
        status, printed = run_pytest("-x", *shlex.split(answer.about), "--mine", str(file))
        assert status == 0 and "mine: " in printed, printed


def test_an_answer_that_is_wrong_does_not_pass(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def choose(scores, bias, config):\n    return 'no', 'idea'\n")
    status, printed = run_pytest("-x", "tests/test_moe.py", "--mine", str(file))
    assert status == 1 and "mine: choose of k2ref.moe" in printed


@pytest.mark.parametrize(("text", "said"), [
    ("def chose():\n    pass\n", "expected a function with the name of one in k2ref, found none"),
    ("def choose(:\n", "SyntaxError: invalid syntax (mine.py, line 1)"),
    ("def report(x):\n    pass\n", "0 of the functions of k2ref called report take ['x'], expected "
                                  "one"),
    (None, "FileNotFoundError: [Errno 2] No such file or directory: '{file}'"),
])
def test_a_file_that_cannot_be_mine_is_refused_in_a_sentence(text, said, tmp_path):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(pytest.UsageError) as error:  # pytest prints it as one line
        put_in_place(str(file))
    assert str(error.value) == f"--mine {file}: {said.format(file=file)}"


def first_line(lines, languages, markers, wanted):
    """Find the first line of a block of these kinds in which something is found."""
    for block in doc_blocks.fences(lines):
        if block.language in languages and block.marker in markers:
            for i in range(block.start, block.stop):
                if not lines[i].startswith((">>>", "...", "$ ")) and re.search(wanted, lines[i]):
                    return i
    raise AssertionError("the page has no such block")


def change_output(lines):
    i = first_line(lines, ["pycon"], [""], r"\d")
    lines[i] = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), lines[i], count=1)
    return i, "running it prints"


def change_command(lines):
    i = first_line(lines, ["console"], [""], r"\d")
    lines[i] = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), lines[i], count=1)
    return i, "the command prints"


def change_quote(lines):
    i = first_line(lines, ["python", "c"], ["source"], r"\w{4}")
    lines[i] = re.sub(r"\w{4,}", "word", lines[i], count=1)
    return i, " has "


def change_link(lines):
    i = next(i for i, line in enumerate(lines) if line.startswith("Next: "))
    lines[i] = lines[i].replace("](", "](no-")
    return i, "links to no-"


def change_picture(lines):
    i = next(i for i, line in enumerate(lines) if line.startswith("<picture>"))
    lines[i] = lines[i].replace("-dark.svg", "-darker.svg")
    return i, "there is no figures/"


def change_anchor(lines):
    lines.append("[To the end](#exercises)")
    return len(lines) - 1, "links to #exercises"


def check(page, *options):
    command = [sys.executable, "-m", "scripts.docs.make_docs", *options, str(page)]
    done = subprocess.run(command, cwd=page.parent.parent, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(("name", "change"), [
    (MUTATED, change_output), ("03-checkpoint.md", change_command), (MUTATED, change_quote),
    (MUTATED, change_link), (MUTATED, change_picture), (MUTATED, change_anchor)])
def test_a_mutant_is_reported_with_its_line(name, change, tmp_path):
    """One digit, word or link of a page is changed: that line is reported, and no other."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for entry in ROOT.iterdir():  # so that what the page links to is there
        if entry.name != "docs":
            (tmp_path / entry.name).symlink_to(entry)
    for entry in DOCS.iterdir():
        if entry.name != name:
            (docs / entry.name).symlink_to(entry)
    lines = lines_of(name)
    at, said = change(lines)
    page = docs / name
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    status, printed = check(page, "--check")
    assert status == 1
    assert len(printed) == 1, printed
    assert printed[0].startswith(f"docs/{name}:{at + 1}: ") and said in printed[0]
    if change in (change_output, change_command, change_quote):
        assert check(page) == (0, [])  # rewriting cures it
        assert page.read_text(encoding="utf-8").splitlines() == lines_of(name)


BAD = """# Bad

```pycon
>>> 1 / 0
>>> print("a\\n\\nb")
a
b
```

```python
nobody_runs_this()
```

 ```pycon
 >>> 1
 1
 ```

```pycon
1
```

<!-- source: moe.py chose -->
```python
```

<!-- source: kernels/linear.h "nothing has this" .. "end" -->
```c
```

```console
python -V
```
"""


def test_what_a_page_must_not_hold():
    text, faults = doc_blocks.examine(BAD)
    assert [(fault.line, fault.message) for fault in faults] == [
        (4, "raises ZeroDivisionError: division by zero"),
        (7, "the page says 'b', running it prints '<BLANKLINE>'"),
        (10, "this code is neither run (pycon) nor quoted (<!-- source: ... -->)"),
        (14, "a block that runs must not be indented"),
        (19, "this block has nothing to run: no line begins with >>>"),
        (20, "no output of an example: 1"),
        (23, "moe.py: there is no chose"),
        (27, "kernels/linear.h: 0 lines contain 'nothing has this', expected one"),
        (32, "a console block begins with `$ ` and a command"),
    ]
    assert text == BAD.replace("a\nb\n", "a\n<BLANKLINE>\nb\n")
