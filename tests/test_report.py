"""Figures that can be read, a page that holds, names that cannot do harm."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from looks import assert_readable, texts
from matplotlib.colors import to_rgb
from PIL import Image

import repbias_jax
from experiments.claims import complexity
from repbias_jax.config import Experiment
from repbias_jax.report import figures, page, tables, verdicts

matplotlib.use("agg")


@pytest.fixture(scope="module")
def results(smoke):
    return repbias_jax.load(smoke)


@pytest.fixture(scope="module")
def drawn(results):
    return {d.name: d for d in complexity.figures(results)}


def test_all_figures_are_drawn(drawn):
    assert sorted(drawn) == ["along", "gap", "layers", "parts", "rungs", "walsh"]
    assert all(len(d.caption) > 80 for d in drawn.values())


@pytest.mark.parametrize("name", ["along", "gap", "layers", "parts", "rungs", "walsh"])
def test_no_text_is_clipped_or_overlaps(drawn, name):
    assert_readable(drawn[name].figure)


def test_the_check_for_clipped_text_can_fail():
    figure, _ = figures.grid(1, 1)
    figure.text(0.95, 0.5, "a long text at the edge", in_layout=False)
    width, _ = figure.canvas.get_width_height()
    assert any(box.x1 > width + 1 for _, box in texts(figure))


@pytest.mark.parametrize("name", ["along", "gap", "layers", "parts", "rungs", "walsh"])
def test_axes_have_labels_units_and_floors(drawn, name):
    for axes in drawn[name].figure.axes:
        assert axes.get_xlabel()
        assert re.search(r"\(.+\)", axes.get_ylabel()), "the unit stands in parentheses"
        if "accuracy" in axes.get_ylabel():
            continue
        nulls = [line for line in axes.lines if line.get_gid() == "null"]
        assert len(nulls) == 1
        labels = axes.get_legend_handles_labels()[1]
        assert any("untrained" in text for text in labels)
        assert any("twin" in text for text in labels)
        assert any("null" in text for text in labels)


def test_styles_differ_in_grey():
    shades = [np.dot(to_rgb(style["color"]), (0.299, 0.587, 0.114)) for style in figures.STYLES]
    for i, a in enumerate(figures.STYLES):
        for j, b in enumerate(figures.STYLES[:i]):
            assert a["marker"] != b["marker"]
            assert a["linestyle"] != b["linestyle"]
            assert abs(shades[i] - shades[j]) > 0.01
        assert figures.STYLES[0]["color"] != figures.STYLES[1]["color"]


def test_pictures_on_disk_hold_ink(smoke):
    for path in (smoke / "figures").glob("*.png"):
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 300
        assert 0.005 < (picture < 128).mean() < 0.5
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (border > 250).all(), f"{path.name} touches its border"
    assert sorted(p.stem for p in (smoke / "figures").glob("*.pdf")) == sorted(
        p.stem for p in (smoke / "figures").glob("*.png")
    )


def test_figures_show_the_numbers_of_the_results(drawn, results):
    axes = drawn["gap"].figure.axes[0]
    means = [np.asarray(c.lines[0].get_ydata(), float) for c in axes.containers]
    for feature, shown in zip(("parity1", "parity4"), means, strict=True):
        expected = [results.values(s, "r2", feature).mean() for s in ("sgd.joint", "sgd.squared")]
        np.testing.assert_allclose(shown, expected, rtol=1e-5)


def test_page_is_whole_and_self_contained(smoke):
    text = (smoke / "report.html").read_text()
    assert "<script" not in text
    assert "Content-Security-Policy" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    for word in (
        "C01",
        "C04b",
        "not measured",
        "Runs left out",
        "worst class not over",
        "training.epochs",
        "jax",
        "commit",
    ):
        assert word in text, word
    assert text.count("<figure>") == len(list((smoke / "figures").glob("*.png")))
    assert text.count("<figcaption>") == text.count("<figure>")
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()


NASTY = "<img src=x onerror=alert(1)> $$\\alpha$ =cmd|' /C calc'!A1 ../../etc"


def test_names_from_outside_do_no_harm(results, tmp_path):
    """Markup, TeX and paths in a title, a feature and a verdict reach page and figure as plain text."""
    figure, ((axes,),) = figures.grid(1, 1)
    figures.dots(axes, [0], pd.DataFrame([[0.1, 0.2]]), NASTY, figures.STYLES[0])
    figures.label(axes, NASTY[:20], "$$x", "y (share)")
    saved = figures.save(tmp_path / "figures", [figures.Drawn("named", figures.finish(figure), NASTY)])
    experiment = Experiment(NASTY, NASTY, complexity.EXPERIMENT.config, (), conditions=(("sgd", ()),))
    row = dict.fromkeys(tables.CLAIM_COLUMNS, NASTY) | {"column": "sgd", "exploratory": False, "effect": 1.0, "ci_low": 0.0}
    row |= {"ci_high": 2.0, "second_effect": 1.0, "second_low": 0.0, "second_high": 2.0}
    page.write(tmp_path, experiment, [row], saved, results)
    text = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_printed_table():
    row = dict.fromkeys(tables.CLAIM_COLUMNS, "") | {
        "id": "C01", "column": "sgd", "claim": "a | b", "statistic": "s", "effect": 0.3, "ci_low": 0.2, "ci_high": 0.4,
        "runs": 15, "left_out": 1, "verdict": "reproduced", "exploratory": False,
    }  # fmt: skip
    other = row | {"column": "adam", "exploratory": True}
    lines = tables.claims_lines([row, other])
    assert lines[1].split("  ")[0].strip() == "C01"
    assert "+0.300 [+0.200, +0.400]" in lines[1]
    assert lines[2].endswith("reproduced (exploratory)")
    assert tables.effect_text(row | {"effect": float("nan")}) == "-"


def test_claims_file_reads_back(smoke):
    rows = tables.read_claims(smoke)
    assert tuple(rows[0]) == tables.CLAIM_COLUMNS
    assert tables.read_claims(Path("nowhere")) == []


def test_every_table_wraps_and_sits_in_a_scroll_container():
    """Columns shrink by wrapping, so that none runs out of the page; what still would can be scrolled to."""
    folder = Path(page.__file__).parent
    style = re.search(r"<style>(.*?)</style>", (folder / "layout.html").read_text(), re.S)[1]
    rules = dict(re.findall(r"([^{}]+)\{([^{}]*)\}", style.replace("\n", "")))
    assert "overflow-x:auto" in rules[".wide"]
    assert "overflow-wrap:break-word" in rules["th,td"]
    assert "overflow-wrap:anywhere" in rules[".names th,.names td"]
    assert not re.search(r"white-space:\s*nowrap", style)
    for width in re.findall(r"min-width:([^;}]*)", style):  # none is wider than its share of a narrow page
        assert width.startswith("min(") or width.endswith("em"), width
        assert not width.endswith("rem"), width
    assert "@media(max-width" in style
    for name in ("page", "card", "external_page"):
        text = (folder / f"{name}.html").read_text()
        assert len(re.findall(r"<table", text)) == len(re.findall(r'<div class="wide[^"]*"><table', text)) > 0, name
    for name in ("page", "card"):
        assert '<td class="note">{{ row.note }}</td>' in (folder / f"{name}.html").read_text()


def row_of(id_, side, effect, **more):
    ends = {"effect": effect, "ci_low": effect - 0.01, "ci_high": effect + 0.02} if effect is not None else {}
    own = {"id": id_, "column": "base", "exploratory": "False", "side": side, "margin": 0.05, "verdict": "reproduced"}
    return dict.fromkeys(tables.CLAIM_COLUMNS, "") | {name: str(value) for name, value in (own | ends | more).items()}


def test_verdicts_are_drawn_in_units_of_their_margin():
    """Negative sides are turned around; parts without an effect, of other conditions or of earlier rules are left out."""
    rows = [
        row_of("C91", "", None), row_of("C91a", 1, 0.1), row_of("C91b", -1, -0.2, margin=0.1), row_of("C92", 0, 0.01),
        row_of("C93", 1, None), row_of("C94", 1, 0.1, exploratory="True"), row_of("C95", "", 0.1),
        row_of("C96", 1, 0.1, ci_low="", ci_high=""),
    ]  # fmt: skip
    every = [(id_, value, seed) for id_, value in (("C91a", 0.15), ("C91b", 0.3), ("C92", -0.05)) for seed in range(4)]
    values = pd.DataFrame(every, columns=["id", "value", "seed"]).assign(column="base", passed=lambda own: own["seed"] < 3)
    found = verdicts.drawn(rows, values)
    assert_readable(found.figure)
    (axes,) = found.figure.axes[:1]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["C91a", "C91b", "C92 ="]
    seeds = [line.get_xdata() for line in axes.lines if line.get_marker() == "."]
    assert [list(x) for x in seeds] == [pytest.approx([x] * 3) for x in (3.0, -3.0, -1.0)]  # the last seed did not pass
    means, ends = zip(*((c[0].get_xdata()[0], c[2][0].get_segments()[0][:, 0]) for c in axes.containers), strict=True)
    assert means == pytest.approx((2.0, 2.0, 0.2))
    assert [sorted(x) for x in ends] == [pytest.approx(x) for x in ([1.8, 2.4], [1.8, 2.1], [0.0, 0.6])]
    assert verdicts.drawn([rows[0], *rows[4:]], values) is None
