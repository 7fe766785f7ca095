"""Draw the pictures of the documentation from real runs, each for light and for dark pages.

    python -m scripts.figures.make_figures [NAME ...]  write docs/figures/NAME.svg, NAME-dark.svg
    python -m scripts.figures.make_figures --check [NAME ...]  draw them again, compare

The runs are those of the embedded model on one prompt, the sizes those of the official config.json.
Another processor rounds differently, so pictures are compared as numbers with a tolerance and text,
not as bytes: lengths may differ by a fraction of a point, a printed decimal by one in its last
digit, whole numbers and words not at all. What is drawn is in text.py (tokens and words),
bytes.py (files, bytes, times) and run.py (what happens in a forward pass); this
file has the paper, the pens and the comparison.
"""

import argparse
import functools
import json
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import k2ref
from k2ref.checkpoint.config import Config
from scripts.figures import bytes as figures_bytes
from scripts.figures import run as figures_run
from scripts.figures import text as figures_text

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
LADDER = ROOT / "docs" / "data" / "ladder.json"
PICTURES = {**figures_text.PICTURES, **figures_bytes.PICTURES, **figures_run.PICTURES}
QUESTION = "What is the capital of France?"
MAX_REPLY = 200  # tokens, should a model not know where to stop
WIDTH = 760  # pixels of 1/96 inch, of which a point has 4/3
POINT = 0.75
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
LENGTH_TOLERANCE = 0.1  # points
COLOUR_TOLERANCE = 3  # of 255


@dataclass(frozen=True)
class Theme:
    """Hold the colours of one background, and make paper of the common width. Units are pixels."""

    suffix: str
    ink: str  # words and numbers
    mid: str  # words that explain
    line: str  # axes
    faint: str  # areas
    accent: str
    soft: str  # the accent as an area behind words

    @property
    def colours(self):
        """The scale of heat maps: from nothing to the accent."""
        return LinearSegmentedColormap.from_list("k2ref", [self.faint, self.accent])

    def settings(self):
        """Say how matplotlib shall draw: thin lines, and text as text."""
        return {
            "svg.fonttype": "none", "svg.hashsalt": "k2ref", "font.size": 9,
            "font.sans-serif": ["DejaVu Sans"], "font.monospace": ["DejaVu Sans Mono"],
            "text.parse_math": False, "text.color": self.ink, "axes.labelcolor": self.mid,
            "axes.edgecolor": self.line, "axes.linewidth": 0.8, "axes.titlesize": 9,
            "axes.titlelocation": "left", "axes.titlecolor": self.ink, "axes.titleweight": "bold",
            "axes.spines.top": False, "axes.spines.right": False, "axes.labelsize": 9,
            "xtick.color": self.line, "ytick.color": self.line, "xtick.labelcolor": self.mid,
            "ytick.labelcolor": self.mid, "xtick.labelsize": 8, "ytick.labelsize": 8,
            "xtick.major.width": 0.8, "ytick.major.width": 0.8, "xtick.major.size": 3,
            "ytick.major.size": 3, "xtick.minor.size": 0, "ytick.minor.size": 0,
        }  # fmt: skip

    def figure(self, height):
        """Make an empty figure."""
        return Figure(figsize=(WIDTH / 96, height / 96))

    def axes(self, figure, x, y, width, height, **options):
        """Put axes on a figure; (x, y) is the upper left corner of the area between them."""
        total = figure.get_figheight() * 96
        place = (x / WIDTH, 1 - (y + height) / total, width / WIDTH, height / total)
        return figure.add_axes(place, facecolor="none", **options)

    def canvas(self, height):
        """Make a figure without axes, to be drawn on in pixels from the upper left corner."""
        figure = self.figure(height)
        ax = self.axes(figure, 0, 0, WIDTH, height, xlim=(0, WIDTH), ylim=(height, 0))
        ax.set_axis_off()
        return figure, ax

    def box(self, ax, x, y, width, height, fill="none", edge="none"):
        """Draw a rectangle from its upper left corner."""
        ax.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=1))

    def arrow(self, ax, start, stop, colour=None):
        """Draw a thin arrow between two points."""
        style = {"arrowstyle": "-|>,head_length=0.35,head_width=0.18", "linewidth": 0.8,
                 "color": colour or self.line, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", stop, start, arrowprops=style)

    def note(self, ax, x, y, text, **options):
        """Write a small remark beside axes, so many pixels from their upper left corner."""
        ax.annotate(text, (0, 1), (x * POINT, -y * POINT), xycoords="axes fraction",
                    textcoords="offset points", annotation_clip=False,
                    **{"color": self.mid, "fontsize": 8.5, **options})


LIGHT = Theme("", "#1f2328", "#5f6872", "#9aa3ad", "#e6e9ed", "#0a5fb4", "#cde2f7")
DARK = Theme("-dark", "#e8eaed", "#a3acb6", "#66707a", "#2b3036", "#6cb6ff", "#1d4268")


class Run:
    """Hold what the pictures show: the model, the prompt, its greedy answer and their trace."""

    def __init__(self):
        self.model = k2ref.load(threads=1)
        self.config, self.tokenizer = self.model.config, self.model.tokenizer
        file = ROOT / "tests" / "data" / "configs" / "Kimi-K2-Thinking.json"
        self.full = Config.from_dict(json.loads(file.read_text(encoding="utf-8")))
        self.question, self.ladder = QUESTION, LADDER
        self.prompt = k2ref.render(self.tokenizer, [{"role": "user", "content": QUESTION}])

    @functools.cached_property
    def reply(self):
        """The ids of the greedy answer."""
        tokens = k2ref.generate(self.model, self.prompt, temperature=0, max_new_tokens=MAX_REPLY)
        return [int(token) for token in tokens]

    @property
    def ids(self):
        """The ids of prompt and answer."""
        return self.prompt + self.reply

    @functools.cached_property
    def arrays(self):
        """The named intermediates of one pass over prompt and answer."""
        trace = k2ref.trace.Trace()
        k2ref.forward(self.model, self.ids, trace=trace)
        return trace.arrays

    def residual(self, i):
        """The residual stream after layer i, -1 for the embedding: (T, D)."""
        return self.arrays["embed" if i < 0 else f"layers.{i}.out"]

    def word(self, id, most=40):
        """Show a token: a space as a dot, parts of characters and controls as bytes, no more
        than so many characters.
        """
        raw = self.tokenizer.id_to_bytes(id)
        try:
            text = raw.decode().replace(" ", "·").replace("\n", "↵")
        except UnicodeDecodeError:
            text = raw.hex(" ")
        text = text if text.isprintable() else raw.hex(" ")
        return text if len(text) <= most else text[:most - 1] + "…"


def tidy(svg):
    """Shorten what matplotlib wrote: generic fonts, two decimals, ids by order, pixels."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"'DejaVu Sans Mono'[^;\"]*", "monospace", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "sans-serif", svg)
    names = list(dict.fromkeys(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg)))
    number_of = {name: str(i) for i, name in enumerate(names)}

    def of_tag(found):
        tag = re.sub(r' id="([^"]+)"', lambda m: f' id="i{number_of[m[1]]}"'
                     if m[1] in number_of else "", found[0])
        tag = re.sub(r'(url\(#|href="#)([^)"]+)', lambda m: f"{m[1]}i{number_of[m[2]]}", tag)
        return re.sub(r"-?\d+\.\d+(?:e-?\d+)?", short, tag)

    def short(found):
        text = f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text

    svg = re.sub(r"<[^!>][^>]*>", of_tag, svg)
    svg = re.sub(r"(width|height)=\"([\d.]+)pt\"", lambda m: f'{m[1]}="{float(m[2]) / POINT:g}"',
                 svg)
    return re.sub(r"\n\s*", "\n", svg)


def draw(directory, names=None):
    """Draw pictures into a directory; return the names of those that there was data for."""
    directory.mkdir(parents=True, exist_ok=True)
    run, drawn = Run(), []
    for name in names or PICTURES:
        if name == "ladder" and not run.ladder.exists():
            print(f"ladder: not drawn, since {LADDER.relative_to(ROOT)} does not exist; make it "
                  "with `python scripts/bench.py --ladder`", file=sys.stderr)
            continue
        for theme in (LIGHT, DARK):
            file = directory / f"{name}{theme.suffix}.svg"
            with matplotlib.rc_context(), warnings.catch_warnings():
                # Matplotlib's own font lacks some characters; it only measures, the reader draws.
                warnings.filterwarnings("ignore", "Glyph")
                matplotlib.rcdefaults()  # whatever a matplotlibrc of this machine says
                matplotlib.rcParams.update(theme.settings())
                figure = PICTURES[name](theme, run)
                figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
            file.write_text(tidy(file.read_text(encoding="utf-8")), encoding="utf-8")
        drawn.append(name)
    return drawn


def differences(found, expected):
    """Say what differs first between two pictures, as far as a reader could see it; else None."""
    a, b = (re.findall(r"<[^>]*>|[^<]+", svg) for svg in (found, expected))
    for x, y in zip(a, b, strict=False):
        if x != y and not (_same_tag(x, y) if x[0] == "<" else _same_text(x, y)):
            return f"found {x.strip()!r:.120}, expected {y.strip()!r:.120}"
    return None if len(a) == len(b) else f"found {len(a)} parts, expected {len(b)}"


COLOUR, NUMBER = r"#[0-9a-f]{6}\b", r"-?\d+(?:\.\d+)?"


def _same_tag(x, y):
    """Compare two tags: everything but colours and lengths must be the same."""
    pattern = f"{COLOUR}|{NUMBER}"
    if re.sub(pattern, "", x) != re.sub(pattern, "", y):
        return False
    for p, q in zip(re.findall(pattern, x), re.findall(pattern, y), strict=True):
        if (p[0] == "#") != (q[0] == "#"):
            return False
        if p[0] == "#":
            p, q = (np.array(list(bytes.fromhex(colour[1:])), int) for colour in (p, q))
            if np.abs(p - q).max() > COLOUR_TOLERANCE:
                return False
        elif abs(float(p) - float(q)) > LENGTH_TOLERANCE:
            return False
    return True


def _same_text(x, y):
    """Compare two texts: a number with decimals may differ by one in the last digit."""
    if re.sub(NUMBER, "", x) != re.sub(NUMBER, "", y):
        return False
    for p, q in zip(re.findall(NUMBER, x), re.findall(NUMBER, y), strict=True):
        decimals = len(p.partition(".")[2])
        if len(q.partition(".")[2]) != decimals:
            return False
        if p != q and (not decimals or abs(float(p) - float(q)) > 1.5 * 10**-decimals):
            return False
    return True


def check(directory, names=None):
    """Draw everything anew and compare; return a line for each picture that is not the same."""
    faults = []
    with tempfile.TemporaryDirectory() as fresh:
        drawn = draw(Path(fresh), names)
        for file in sorted(Path(fresh).iterdir()):
            old = directory / file.name
            if not old.exists():
                faults.append(f"{file.name} is missing")
            elif what := differences(*(f.read_text(encoding="utf-8") for f in (old, file))):
                faults.append(f"{file.name}: {what}")
    if names is None:
        known = {f"{name}{theme.suffix}.svg" for name in PICTURES for theme in (LIGHT, DARK)}
        extra = sorted(file.name for file in directory.glob("*.svg") if file.name not in known)
        faults += [f"{name} is drawn by nothing" for name in extra]
    return faults if drawn else [*faults, "nothing was drawn"]


def main(arguments=None):
    """Draw, or with --check compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - set(PICTURES):
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    names = args.names or None
    if not args.check:
        draw(FIGURES, names)
        return 0
    faults = check(FIGURES, names)
    for fault in faults:
        print(f"docs/figures/{fault}", file=sys.stderr)
    if faults:
        print("run python -m scripts.figures.make_figures", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
