"""Figures and a page for activations that were computed elsewhere: one panel per site, one line per feature."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repbias_jax import store
from repbias_jax.report import figures as draw
from repbias_jax.report import page
from repbias_jax.report.figures import FLOOR, STYLES, Drawn

ACROSS = 3  # maximum number of panels in a row
LONGEST = 22  # maximum number of characters of a name in a figure
LINES = len(STYLES)  # how many lines of features can be told apart
CAPTIONS = {
    "variance": "Share of variance explained by each feature. Alone: r2 of the feature by itself, scored on examples "
    "that were not used for fitting. Unique: how much the joint r2 of all features falls without this feature; the "
    "distance between alone and unique is what it shares with other features. If balanced: the r2 that the same code "
    "of a binary feature would have at prevalence 1/2. Grey: the central 95 % when the feature's values are "
    "permuted. Bars: 95 % intervals over examples for the value expected with unlimited examples; they include the "
    "measured value and do not cover variation between training runs.",
    "readouts": "Balanced accuracy of readouts, with 95 % intervals over the scored examples. Hollow marks: the same "
    "procedure on permuted labels. Dotted line: the accuracy from which a feature counts as decodable. For a "
    "continuous feature the readout predicts whether it is above its median. High accuracy with little variance "
    "explained is not a contradiction, since a readout can amplify small differences.",
    "components": "Share of each principal component that a feature explains, with 95 % intervals over examples (the "
    "components are kept fixed). Bars: each component's share of the total variance. If there are more than six "
    "features, the figure shows the six that explain most of the first two components.",
    "units": "Left: share of the varying units for which the feature explains more than 0.1 of the unit's own "
    "variance. Right: participation ratio, the share of units over which the feature's code is spread (1: evenly "
    "over all D units; 1 / D: one unit). Hollow marks: the level expected for permuted values or pure noise.",
    "similarity": "Correlation between the distances of activations and the distances of the feature (1 between "
    "classes and 0 within; for a continuous feature, the absolute difference), with 95 % intervals over examples. "
    "Grey: the central 95 % when the feature's values are permuted over examples.",
}
SHOWN = (  # columns of the table on the page: heading, metric, at, whether the interval is shown
    ("r2", "r2", "", True), ("r2 if balanced", "r2_balanced", "", True), ("unique r2", "unique_r2", "", True),
    ("shared r2", "shared_r2", "", True), ("linear readout", "decode", "", True),
    ("permuted", "decode_shuffled", "", False),
    ("kernel readout", "decode_nonlinear", "", True), ("permuted", "decode_nonlinear_shuffled", "", False),
    ("r2 of top 2 components", "top_r2", "2", True), ("selective units", "selective_share", "", True),
    ("participation", "participation", "", True), ("RSA", "rsa", "", True),
)  # fmt: skip


class Numbers:
    """Rows of `external.probe`, by name."""

    def __init__(self, rows: pd.DataFrame):
        keys = ["site", "metric", "feature", "at"]
        self.values = rows[rows["other"] == ""].set_index(keys)["value"].to_dict()
        self.sites = [site for site in dict.fromkeys(rows["site"]) if site]
        self.features = list(rows[rows["metric"] == "distinct"]["feature"])

    def defined(self) -> "Numbers":
        """Returns the same numbers, limited to the sites and features with something to draw."""
        chosen, there = copy.copy(self), [k for k, v in self.values.items() if k[1] == "r2" and np.isfinite(v)]
        chosen.sites = [site for site in self.sites if any(site == k[0] for k in there)]
        chosen.features = [feature for feature in self.features if any(feature == k[2] for k in there)]
        return chosen

    def of(self, site: str, metric: str, feature: str = "", at: str = "") -> float:
        """Returns one number; NaN if there is none."""
        return self.values.get((site, metric, feature, at), np.nan)

    def with_interval(self, site: str, metric: str, features: Sequence[str], at: str = "") -> np.ndarray:
        """Returns value, lower and upper end by feature, `[3, F]`."""
        names = (metric, f"{metric}_low", f"{metric}_high")
        return np.array([[self.of(site, name, feature, at) for feature in features] for name in names])


def write(
    folder: Path,
    rows: pd.DataFrame,
    title: str,
    text: Mapping[str, Sequence[Any]],
    record: Mapping[str, Any],
    decodable: float,
) -> list[str]:
    """Writes `figures/` and `report.html`; returns their names within the folder.

    Args:
      folder: to write to.
      rows: of `external.probe`.
      title: of the page.
      text: texts of the page: `inputs`, `notes` and `dissociated` are lists of sentences; `features` has table rows of
        name, kind and classes.
      record: versions.
      decodable: balanced accuracy from which a feature counts as decodable.
    """
    numbers = Numbers(rows)
    drawn = draw.save(folder / "figures", list(figures(numbers, decodable)))
    missing = rows[rows["reason"] != ""][["site", "metric", "feature", "at", "reason"]]
    html = page.render(
        "external_page.html",
        title=title,
        figures=[page.figure(folder, item) for item in drawn],
        headings=[heading for heading, *_ in SHOWN],
        tables=[(site, [(f, cells(numbers, site, f)) for f in numbers.features]) for site in numbers.sites],
        joint=[(site, interval(numbers.with_interval(site, "joint_r2", [""])[:, 0])) for site in numbers.sites],
        missing=missing.drop_duplicates().to_numpy().tolist(),
        record=sorted(record.items()),
        **text,
    )
    store.write_bytes(folder / "report.html", html.encode())
    return ["report.html", *(f"figures/{item.name}.png" for item in drawn)]


def cells(numbers: Numbers, site: str, feature: str) -> list[str]:
    """Returns a row of the page's table."""
    found = [numbers.with_interval(site, metric, [feature], at)[:, 0] for _, metric, at, _ in SHOWN]
    return [interval(own if wide else own[:1]) for own, (*_, wide) in zip(found, SHOWN, strict=True)]


def interval(values: np.ndarray) -> str:
    """Returns `0.312 [0.280, 0.344]`; a number alone if no ends are given; empty if the value is not finite."""
    if not np.isfinite(values[0]):
        return ""
    first, *ends = [f"{round(float(value), 3) + 0.0:.3f}" for value in values]  # no -0.000
    return first + (f" [{', '.join(ends)}]" if ends else "")


def figures(numbers: Numbers, decodable: float) -> Iterator[Drawn]:
    """Yields all figures; none if no site has something to draw."""
    numbers = numbers.defined()
    if not numbers.sites:
        return

    def with_threshold(axes: Axes, numbers: Numbers, site: str) -> None:
        _readouts(axes, numbers, site, decodable)

    panels: dict[str, Callable[[Axes, Numbers, str], None]] = {
        "variance": _variance, "readouts": with_threshold, "components": _components, "similarity": _similarity,
    }  # fmt: skip
    for name, panel in panels.items():
        yield Drawn(name, _by_site(numbers, panel), CAPTIONS[name])
    yield Drawn("units", _units(numbers), CAPTIONS["units"])


def _by_site(numbers: Numbers, panel: Callable[[Axes, Numbers, str], None]) -> Figure:
    across = min(ACROSS, math.ceil(math.sqrt(len(numbers.sites))))
    figure, panels = draw.grid(math.ceil(len(numbers.sites) / across), across, 5.2, _height(numbers))
    for axes, site in zip(panels.flat, numbers.sites, strict=False):
        panel(axes, numbers, site)
    for axes in panels.flat[len(numbers.sites) :]:
        axes.remove()
    _align(figure.axes)
    return draw.finish(figure)


def _align(panels: Sequence[Axes]) -> None:
    """Sets the same horizontal axis for all sites, with a margin on both sides."""
    low, high = min(axes.get_xlim()[0] for axes in panels), max(axes.get_xlim()[1] for axes in panels)
    for axes in panels:
        axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))


def _height(numbers: Numbers) -> float:
    return max(2.6, 1.6 + 0.34 * len(numbers.features))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "\u2026"


def _lines(axes: Axes, numbers: Numbers) -> np.ndarray:
    """Sets one line per feature, the first on top; returns the vertical positions of the lines."""
    y = np.arange(len(numbers.features))[::-1].astype(float)
    axes.set_yticks(y, [_short(name) for name in numbers.features])
    axes.set_ylim(-0.6, len(y) - 0.4)
    axes.grid(axis="y", color="0.93", zorder=0)
    return y


def _marks(axes: Axes, y: np.ndarray, found: np.ndarray, name: str, style: Mapping[str, Any]) -> None:
    """Draws values with their intervals. Args: found `[3, F]`, from `Numbers.with_interval`."""
    if np.isfinite(found[0]).any():
        ends = np.array([found[0] - found[1], found[2] - found[0]])  # an interval holds its value (`design.interval`)
        own = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        axes.errorbar(found[0], y, xerr=ends, capsize=2, markersize=4.5, linewidth=1.2, label=name, **own)


def _bands(axes: Axes, y: np.ndarray, found: np.ndarray, name: str) -> None:
    """Draws a grey bar behind each line. Args: found: lower and upper end, `[2, F]`."""
    axes.barh(y, found[1] - found[0], left=found[0], height=0.8, color="0.78", linewidth=0, zorder=0, label=name)


def _variance(axes: Axes, numbers: Numbers, site: str) -> None:
    y, names = _lines(axes, numbers), numbers.features
    _bands(
        axes, y, np.array([[numbers.of(site, f"null_{e}", f) for f in names] for e in ("low", "high")]), "permuted, 95 %"
    )
    for i, (metric, name) in enumerate((("r2", "alone"), ("unique_r2", "unique"), ("r2_balanced", "alone, if balanced"))):
        _marks(axes, y + 0.22 - 0.22 * i, numbers.with_interval(site, metric, names), name, STYLES[i])
    axes.axvline(0, **FLOOR)
    draw.label(
        axes, f"{_short(site)} (all: {interval(numbers.with_interval(site, 'joint_r2', [''])[:, 0])})", draw.VARIANCE, ""
    )


def _readouts(axes: Axes, numbers: Numbers, site: str, decodable: float) -> None:
    y, names = _lines(axes, numbers), numbers.features
    for i, (metric, name) in enumerate((("decode", "linear"), ("decode_nonlinear", "kernel"))):
        place = y + 0.12 - 0.24 * i
        _marks(axes, place, numbers.with_interval(site, metric, names), name, STYLES[i])
        draw.floor(axes, [numbers.of(site, f"{metric}_shuffled", f) for f in names], place, f"{name}, permuted", "os"[i])
    axes.axvline(decodable, linestyle=(0, (1, 2)), label="decodable", **FLOOR)
    axes.set_xlim(-0.03, 1.03)
    draw.label(axes, _short(site), "balanced accuracy (share)", "")


def _similarity(axes: Axes, numbers: Numbers, site: str) -> None:
    y, names = _lines(axes, numbers), numbers.features
    ends = [[numbers.of(site, f"rsa_null_{e}", f) for f in names] for e in ("low", "high")]
    _bands(axes, y, np.array(ends), "permuted, 95 %")
    for i, (metric, name) in enumerate((("rsa", "Pearson"), ("rsa_rank", "Spearman"))):
        _marks(axes, y + 0.12 - 0.24 * i, numbers.with_interval(site, metric, names), name, STYLES[i])
    axes.axvline(0, **FLOOR)
    draw.label(axes, _short(site), "similarity of distances (correlation)", "")


def _components(axes: Axes, numbers: Numbers, site: str) -> None:
    """Draws lines over components, with markers, since there are few components."""
    top = sorted(numbers.features, key=lambda f: -np.nan_to_num(numbers.of(site, "top_r2", f, "2"), nan=-1))[:LINES]
    known = [k for k in range(1, 100) if (site, "component_share", "", str(k)) in numbers.values]
    share = [numbers.of(site, "component_share", at=str(k)) for k in known]
    axes.bar(known, share, color="0.82", width=0.8, zorder=0, label="share of all variance")
    for style, feature in zip(STYLES, sorted(top, key=numbers.features.index), strict=False):
        found = np.array([numbers.with_interval(site, "component_r2", [feature], str(k))[:, 0] for k in known]).T
        if len(known) and np.isfinite(found[0]).any():
            axes.plot(known, found[0], markersize=4, linewidth=1.3, label=_short(feature), **style)
            axes.fill_between(known, found[1], found[2], color=style["color"], alpha=0.18, linewidth=0)
    axes.axhline(0, **FLOOR)
    axes.set_xticks(known)
    draw.label(axes, _short(site), "principal component (rank)", "r2 of component (share)")


def _units(numbers: Numbers) -> Figure:
    figure, panels = draw.grid(len(numbers.sites), 2, 5.2, _height(numbers))
    kinds = (("selective_share", "selective_null", "selective units (share)"),)
    kinds += (("participation", "participation_null", "participation ratio (share of units)"),)
    for row, site in zip(panels, numbers.sites, strict=True):
        for axes, (metric, null, text) in zip(row, kinds, strict=True):
            y = _lines(axes, numbers)
            _marks(axes, y, numbers.with_interval(site, metric, numbers.features), "measured", STYLES[0])
            draw.floor(axes, [numbers.of(site, null, f) for f in numbers.features], y, "permuted values or noise", "o")
            axes.set_xlim(-0.03, 1.03)
            draw.label(axes, _short(site), text, "")
    return draw.finish(figure)
