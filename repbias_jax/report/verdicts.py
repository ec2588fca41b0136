"""A figure of all parts of an experiment's claims: the value of every seed, the interval, and the margin.

It is drawn from `claims.csv` and `claim_values.csv` alone, so that it can be drawn of any run that was reported.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from repbias_jax.report import figures as draw
from repbias_jax.report import tables
from repbias_jax.report.figures import FLOOR, STYLES, Axes, Drawn

NAME = "verdicts"
CAPTION = (
    "The statistic of every part of the claims that has an interval, in units of its margin: the smallest effect that "
    "matters is 1 (dashed). What lies to the right of 0 supports the claim; parts that claim little or no effect, marked "
    "=, support it between -1 and 1. A dot is a seed that passed, or a seed's pseudo-value where a statistic is one of "
    "pairs of networks; marks are means with 95 % intervals. The scale is linear up to 1 and logarithmic beyond."
)


def drawn(rows: Sequence[Mapping[str, Any]], values: pd.DataFrame) -> Drawn | None:
    """Returns the figure for the parts that are measured; None if there is none.

    Args:
      rows: of `claims.csv`, as text; those of runs that were judged by earlier rules have no side, and are left out.
      values: `claim_values.csv`.
    """
    needed = ("side", "margin", "effect", "ci_low")  # of one seed there is no interval
    parts = [row for row in rows if row["exploratory"] == "False" and all(row[name] for name in needed)]
    if not parts:
        return None
    figure, panels = draw.grid(1, 1, 8.0, 1.1 + 0.34 * len(parts))
    (axes,) = panels[0]
    axes.set_xscale("symlog", linthresh=1.0)
    axes.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
    for place, row in enumerate(parts):
        own = values[(values["id"] == row["id"]) & (values["column"] == row["column"]) & values["passed"]]
        _part(axes, place, row, own["value"].to_numpy(float))
    axes.axvline(0, **FLOOR)
    for side in (-1, 1):
        axes.axvline(side, linestyle=(0, (4, 3)), label="margin" if side > 0 else None, **FLOOR)
    axes.set_yticks(range(len(parts)), [f"{row['id']}{'' if int(row['side']) else ' ='}" for row in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    verdicts = axes.secondary_yaxis("right")
    verdicts.set_yticks(range(len(parts)), [tables.verdict_text(row) for row in parts])
    verdicts.tick_params(length=0, labelsize=draw.FONT["font.size"])
    verdicts.spines["right"].set_visible(False)
    draw.label(axes, "", "effect / margin; to the right: as claimed", "")
    return Drawn(NAME, draw.finish(figure), CAPTION)


def _part(axes: Axes, place: int, row: Mapping[str, Any], seeds: np.ndarray) -> None:
    """Draws one part. Args: place, from the top; row, of `claims.csv`; seeds, the values behind it."""
    unit = float(row["margin"]) / (int(row["side"]) or 1)
    mean = float(row["effect"]) / unit
    low, high = sorted(float(row[name]) / unit for name in ("ci_low", "ci_high"))
    name = {"label": "seeds"} if place == 0 else {}
    spread = np.linspace(-0.22, 0.22, len(seeds)) if len(seeds) > 1 else np.zeros(len(seeds))
    axes.plot(seeds / unit, place + spread, ".", color=STYLES[0]["color"], alpha=0.4, markersize=3, **name)
    name = {"label": "mean with 95 % interval"} if place == 0 else {}
    ends = [[mean - low], [high - mean]]
    axes.errorbar([mean], [place], xerr=ends, color=STYLES[1]["color"], marker="s", markersize=4, capsize=3, **name)
