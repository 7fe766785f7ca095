"""The pictures of the documentation are what model and configuration give now; see make_figures."""

import re

import pytest

pytest.importorskip("matplotlib", reason="drawn with matplotlib: pip install -e '.[docs]'")
from scripts.figures import make_figures  # noqa: E402

MOST_BYTES = 1_500_000  # of all pictures together
FILES = [f"{name}{theme.suffix}.svg" for name in make_figures.PICTURES if name != "ladder"
         for theme in (make_figures.LIGHT, make_figures.DARK)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draw one picture, to be spoiled in copies."""
    directory = tmp_path_factory.mktemp("figures")
    assert make_figures.draw(directory, ["yarn"]) == ["yarn"]
    return {file.name: file.read_text(encoding="utf-8") for file in directory.iterdir()}


def spoiled(directory, drawn, change):
    """Write the pictures, one of them changed."""
    for name, svg in drawn.items():
        other = change(svg) if name == "yarn-dark.svg" else svg
        assert name != "yarn-dark.svg" or other != svg
        (directory / name).write_text(other, encoding="utf-8")
    return directory


def moved(svg, by):
    """Move the first label by so many points."""
    return re.sub(r'(<text [^>]*\bx=")([\d.]+)', lambda m: f"{m[1]}{float(m[2]) + by:.2f}", svg,
                  count=1)


def test_pictures_are_up_to_date():
    assert make_figures.check(make_figures.FIGURES) == []


@pytest.mark.parametrize("name", FILES)
def test_a_picture_is_light_and_depends_on_no_font(name):
    svg = (make_figures.FIGURES / name).read_text(encoding="utf-8")
    assert 'width="760"' in svg and "<text" in svg
    assert not re.search(r"DejaVu|<image|<metadata|\d{4}-\d\d-\d\dT", svg)


def test_all_pictures_together_are_small():
    sizes = [file.stat().st_size for file in make_figures.FIGURES.glob("*.svg")]
    assert len(sizes) >= len(FILES) and sum(sizes) < MOST_BYTES


@pytest.mark.parametrize("change", [
    lambda svg: svg.replace("4,096", "4,097"),  # a printed number
    lambda svg: svg.replace("plain RoPE", "plain rope"),
    lambda svg: moved(svg, 0.5),
    lambda svg: svg.replace(make_figures.DARK.accent, make_figures.DARK.line),
    lambda svg: svg.replace("</svg>", "<g/></svg>"),
    lambda svg: svg.partition("<text")[0],
], ids=["number", "word", "place", "colour", "more", "less"])
def test_a_change_is_noticed(drawn, change, tmp_path):
    faults = make_figures.check(spoiled(tmp_path, drawn, change), ["yarn"])
    assert len(faults) == 1 and faults[0].startswith("yarn-dark.svg")


def test_a_rounding_is_none(drawn, tmp_path):
    change = spoiled(tmp_path, drawn, lambda svg: moved(svg, 0.05))
    assert make_figures.check(change, ["yarn"]) == []


@pytest.mark.parametrize("found, expected, same", [
    ("rms 0.284", "rms 0.285", True), ("rms 0.284", "rms 0.286", False),
    ("0.28", "0.284", False), ("id 17", "id 18", False), ("1.00 is", "1.00 was", False),
    ("−0.28", "0.28", False), ("-0.28", "-0.29", True),
])
def test_the_last_decimal_of_a_text_may_differ(found, expected, same):
    pictures = (f'<text x="1">{text}</text>' for text in (found, expected))
    assert (make_figures.differences(*pictures) is None) == same


def test_the_command_names_what_is_out_of_date(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_figures, "FIGURES",
                        spoiled(tmp_path, drawn, lambda svg: svg.replace("4,096", "4,095")))
    assert make_figures.main(["--check", "yarn"]) == 1
    assert "docs/figures/yarn-dark.svg" in capsys.readouterr().err
    (tmp_path / "yarn-dark.svg").unlink()
    assert make_figures.main(["--check", "yarn"]) == 1
    assert "yarn-dark.svg is missing" in capsys.readouterr().err
    assert make_figures.main(["yarn"]) == 0 and make_figures.main(["--check", "yarn"]) == 0


def test_a_picture_that_nothing_draws_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(make_figures, "PICTURES", {"yarn": make_figures.PICTURES["yarn"]})
    make_figures.draw(tmp_path)
    assert make_figures.check(tmp_path) == []
    (tmp_path / "old.svg").write_text("<svg/>", encoding="utf-8")
    assert make_figures.check(tmp_path) == ["old.svg is drawn by nothing"]


def test_drawing_again_gives_the_same_bytes(drawn, tmp_path):
    make_figures.draw(tmp_path, ["yarn"])
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == drawn
