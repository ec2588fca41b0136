"""Drawing helpers for figures: curves and dots over seeds, floors, maps of signed values, legends, and image files.

By convention every panel of variance explained shows three floors: the null band, the untrained network and the unused
twins. Lines differ in dash and marker as well as in color, so they can be told apart in grey.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from scipy import stats

from repbias_jax import store

# Okabe and Ito's colors, dark to light; marker and dash differ too.
STYLES = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "#56B4E9", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#E69F00", "marker": "P", "linestyle": (0, (1, 1))},
)
FLOOR = {"color": "0.35", "linewidth": 1.0}
FONT: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
VARIANCE = "variance explained, r2 (share)"
NULL = ("null_low", "null", "null_high")  # metrics of r2 under permuted labels: lower end, mean, upper end
SHARE = (0.0, 1.0)  # what accuracies and other shares lie between


class Drawn(NamedTuple):
    """A figure, its file's name and how to read it."""

    name: str
    figure: Figure
    caption: str


def grid(
    rows: int, columns: int, width: float = 3.5, height: float = 2.7, *, one_scale: bool = False
) -> tuple[Figure, np.ndarray]:
    """Returns a figure and its panels `[rows, columns]`, without overlaps. Args: one_scale: panels share one y scale."""
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, sharey=one_scale)


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Sets title and axis labels as plain text, since names from outside may contain markup."""
    size = FONT["axes.titlesize"]
    for text in (axes.set_title(title, loc="left", fontsize=size), axes.set_xlabel(x), axes.set_ylabel(y)):
        text.set_parse_math(False)


def band(
    axes: Axes, by_seed: pd.DataFrame, name: str, style: Mapping[str, Any], marks: int = 8,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> None:  # fmt: skip
    """Draws the mean over seeds with its 95 % t interval as a band.

    Args:
      axes: to draw on.
      by_seed: `[x, seed]`.
      name: in the legend.
      style: of STYLES.
      marks: about how many marks the line has.
      within: least and largest possible value, such as (0, 1) of an accuracy; the band ends there.
    """
    mean, k = by_seed.mean(axis=1), by_seed.count(axis=1)
    half = stats.t.ppf(0.975, np.maximum(k - 1, 1)) * by_seed.std(axis=1) / np.sqrt(np.maximum(k, 1))
    every = max(1, len(mean) // marks)
    (line,) = axes.plot(mean.index, mean, markersize=4, markevery=every, linewidth=1.4, label=name, **style)
    low, high = (np.clip(mean + sign * half, *within) for sign in (-1, 1))
    axes.fill_between(mean.index, low, high, color=style["color"], alpha=0.25, linewidth=0)
    line.set_gid(f"mean of {name}")


def dots(axes: Axes, x: ArrayLike, by_seed: pd.DataFrame, name: str, style: Mapping[str, Any], shift: float = 0) -> None:
    """Draws one dot per seed, and the mean with its 95 % t interval. Args: by_seed: [x, seed]."""
    place = np.asarray(x, float) + shift
    mean, k = by_seed.mean(axis=1), np.maximum(by_seed.count(axis=1), 1)
    half = np.nan_to_num(stats.t.ppf(0.975, np.maximum(k - 1, 1)) * by_seed.std(axis=1) / np.sqrt(k))
    spread = 0.05 * np.diff(np.sort(place)).min(initial=1)  # so that dots of neighbours do not overlap
    for i, at in enumerate(place):
        own = by_seed.iloc[i].dropna()  # levels may differ in their seeds
        axes.plot(at + np.linspace(-spread, spread, len(own)), own, ".", color=style["color"], alpha=0.45, markersize=3)
    axes.errorbar(place, mean, half, capsize=2, markersize=5, linewidth=1.4, label=name, **style)


def null(axes: Axes, ends: Mapping[str, float]) -> None:
    """Draws r2 under permuted labels: the central 95 % as a band and the mean as a line. Args: ends, by metric of NULL."""
    low, level, high = (ends[name] for name in NULL)
    axes.axhspan(low, high, color="0.75", alpha=0.6, linewidth=0, zorder=0)
    line = axes.axhline(level, linestyle=(0, (1, 2)), label="null (permuted labels, 95 %)", **FLOOR)
    line.set_gid("null")


def floor(axes: Axes, x: ArrayLike, values: ArrayLike, name: str, marker: str) -> None:
    """Draws a floor, such as the untrained network or the unused twins, as hollow grey marks; no mark without a value."""
    if np.isnan(np.asarray(values, dtype=float)).all():
        return
    axes.plot(
        np.asarray(x),
        np.asarray(values),
        linestyle="none",
        marker=marker,
        markersize=6,
        markerfacecolor="none",
        label=name,
        **FLOOR,
    )


def tile(axes: Axes, place: tuple[int, int], value: float | None, widest: float, count: str) -> None:
    """Draws a cell of a map with its value, orange above zero and purple below; hatched if it has no value.

    Args:
      axes: of the map.
      place: of the cell, in cells.
      value: what is mapped, between -widest and widest.
      widest: the value of the darkest colors.
      count: a second line of text in the cell.
    """
    x, y = place
    color = np.ones(4) if value is None else _signed(widest).to_rgba(np.array([value]))[0]
    look = {"facecolor": color, "edgecolor": "0.65", "hatch": "" if value is not None else "////", "linewidth": 0.8}
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
    ink = "white" if np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.45 else "black"
    text = count if value is None else f"{value:+.2f}\n{count}"
    axes.text(
        x, y, text, ha="center", va="center", color=ink, fontsize=7.5,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def key_of_tiles(figure: Figure, widest: float, name: str) -> Figure:
    """Adds the color bar of a map whose values range from -widest to widest."""
    with matplotlib.rc_context(FONT):
        figure.colorbar(_signed(widest), ax=list(figure.axes), shrink=0.8).set_label(name)
        return figure


def _signed(widest: float) -> ScalarMappable:
    return ScalarMappable(Normalize(-widest, widest), "PuOr_r")


def finish(figure: Figure) -> Figure:
    """Adds one legend below all panels, where it hides no data; returns the figure."""
    named = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    columns = 2 if figure.get_figwidth() < 6 else 4
    found = figure.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=columns, frameon=False, fontsize=7.5
    )
    for text in found.get_texts():
        text.set_parse_math(False)
    return figure


def save(folder: Path, drawn: Sequence[Drawn]) -> list[Drawn]:
    """Writes every figure as PNG and PDF; returns them."""
    for item in drawn:
        for ending in ("png", "pdf"):
            store.write_bytes(folder / f"{item.name}.{ending}", as_bytes(item.figure, ending))
    return list(drawn)


def as_bytes(figure: Figure, ending: str) -> bytes:
    """Returns a figure as a file without a date: the same numbers give the same bytes. Args: ending, `png` or `pdf`."""
    metadata = {"Software": None} if ending == "png" else {"CreationDate": None, "Producer": None, "Creator": None}
    file = io.BytesIO()
    figure.savefig(file, format=ending, metadata=metadata)
    return file.getvalue()
