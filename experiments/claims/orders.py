"""Output orders that are balanced over positions, and measures by output position, shared by the experiments on sequences.

The four orders of `SQUARE` are a Williams square: every output stands at every position once, and every ordered pair of
outputs is adjacent once. Each seed trains one network in each of the four orders, after relabelling the outputs at random,
so a square is the unit of replication.

Source: Williams 1949.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from repbias_jax.config import Overrides
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes
from repbias_jax.results import MASTERY, Results

SQUARE = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))
BOTH = ((0, 1), (1, 0))
LINEAR = np.array([-9, -3, 3, 9]) / 10  # the fitted change from the first to the last of four positions
FIRST_SEED = 20_000  # of the runs that give the verdicts on sequences
# Smoke runs have one size, so that experiments share compiled programs.
SMOKE: Overrides = (
    ("model.width", 16), ("model.heads", 2), ("model.layers", 1), ("model.expand", 2), ("task.num_train", 128),
    ("task.num_test", 64), ("task.num_probe", 512), ("training.batch_size", 16), ("training.epochs", 1),
    ("training.observe_every", 4), ("keep.every", 0),
)  # fmt: skip


def settings(name: str, changes: Overrides, rows: Sequence[tuple[int, ...]] = SQUARE) -> tuple[tuple[str, Overrides], ...]:
    """Returns a setting for each order, `name_0`, `name_1`, ..., with further changes."""
    return tuple((f"{name}_{i}", (("task.output_order", row), *changes)) for i, row in enumerate(rows))


def names(name: str, count: int = len(SQUARE)) -> tuple[str, ...]:
    """Returns the names of the settings that `settings` makes."""
    return tuple(f"{name}_{i}" for i in range(count))


def by_position(results: Results, setting: str, metric: str = "r2", twins: bool = False, **more: Any) -> pd.DataFrame:
    """Returns a measure of the feature at each output position, or of its unused twin, `[seed, position]`.

    Args:
      results: of the experiment.
      setting: full name.
      metric: such as `r2`.
      twins: whether the measure is that of each feature's unused twin; no rows if the setting has none.
      more: as in `Results.values`.
    """
    order, unused = order_of(results, setting), results.twins(setting)
    found = pd.DataFrame(
        {f: results.values(setting, metric, unused.get(f, "") if twins else f, **more) for f in results.outputs(setting)}
    )
    return placed(found, order)


def order_of(results: Results, setting: str) -> pd.DataFrame:
    """Returns the feature at each output position, `[seed, position]`; where each example has its order, the listed one."""
    if results.settings.loc[setting, "task.order"] != "example":
        return results.order(setting)
    seeds = results.values(setting, "r2", results.outputs(setting)[0]).index
    outputs = results.outputs(setting)
    row = ast.literal_eval(str(results.settings.loc[setting, "task.output_order"])) or range(len(outputs))
    return pd.DataFrame([[outputs[i] for i in row]] * len(seeds), index=seeds)


def placed(by_feature: pd.DataFrame, order: pd.DataFrame) -> pd.DataFrame:
    """Returns values `[seed, feature]` by output position, `[seed, position]`. Args: order, the feature at each one."""
    seeds = by_feature.index.intersection(order.index)
    values, place = by_feature.loc[seeds], order.loc[seeds]
    columns = by_feature.columns.get_indexer(place.to_numpy().reshape(-1)).reshape(place.shape)
    return pd.DataFrame(np.take_along_axis(values.to_numpy(float), columns, axis=1), index=seeds)


def shares(values: pd.DataFrame) -> pd.DataFrame:
    """Returns each r2 as a share of their sum over outputs, `[seed, position]`."""
    return values.div(values.sum(axis=1, skipna=False), axis=0)


def slope(values: pd.DataFrame) -> pd.Series:
    """Returns the fitted change from the first to the last of four positions, by seed."""
    return (values * LINEAR).sum(axis=1, skipna=False)


def over(rows: Sequence[pd.Series]) -> pd.Series:
    """Returns the mean over the runs of a square, by seed; NaN if any has no value."""
    return pd.concat(list(rows), axis=1).mean(axis=1, skipna=False)


def over_frames(rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Returns the mean over the runs of a square, `[seed, position]`; NaN if any of them has no value."""
    return sum(rows) / len(rows)


def slope_of_shares(results: Results, rows: Sequence[str], **more: Any) -> pd.Series:
    """Returns, for each square, the mean over its runs of the change of the shares of r2 from first to last position."""
    return over([slope(shares(by_position(results, setting, **more))) for setting in rows])


def absent(results: Results, rows: Sequence[str]) -> pd.Series:
    """Returns which networks of these settings have every output's r2 inside its null band, by setting and seed."""
    return pd.concat({setting: contrasts.absent(results, setting, results.outputs(setting)) for setting in rows})


def run(results: Results, condition: str, name: str, count: int = len(SQUARE)) -> list[str]:
    """Returns the full names of the settings of all orders; empty if one of them was not run."""
    found = [f"{condition}.{setting}" for setting in names(name, count)]
    return found if results.has(*found) else []


def draw_positions(axes: Axes, results: Results, rows: Sequence[str], title: str, **more: Any) -> None:
    """Draws r2 by output position: a dot for each square, the mean with its interval, and all floors."""
    x = np.arange(len(results.outputs(rows[0])))

    def mean(**which: Any) -> pd.DataFrame:
        """r2 by position, the mean over the runs of a square, `[position, seed]`."""
        return over_frames([by_position(results, setting, **{**more, **which}) for setting in rows]).T

    draw.dots(axes, x, mean(), "feature at this position", STYLES[0])
    draw.floor(axes, x, mean(step=0).mean(axis=1), "untrained", "x")
    draw.floor(axes, x, mean(twins=True).mean(axis=1), "unused twin", "d")
    draw.null(axes, {metric: mean(metric=metric).mean(axis=1).mean() for metric in draw.NULL})
    contrasts.at_levels(axes, [str(i + 1) for i in x])
    draw.label(axes, f"{title}\n({contrasts.passing(results, rows)})", "output position", draw.VARIANCE)


def draw_levels(
    axes: Axes, results: Results, levels: Mapping[str, Sequence[str]], features: Mapping[str, Sequence[str]]
) -> None:  # fmt: skip
    """Draws r2 of groups of features over levels, each the mean over some settings of a seed, with all floors.

    Args:
      axes: to draw on.
      results: of the experiment.
      levels: the settings that are averaged, by name of the level.
      features: the features that are averaged, by name of the group; a setting has some of them.
    """
    _draw_groups(axes, results, {level: (rows, {}) for level, rows in levels.items()}, features)


def _draw_layers(axes: Axes, results: Results, rows: Sequence[str], features: Mapping[str, Sequence[str]]) -> None:
    """Draws r2 of groups of features over the views that claims may read. Args: rows, the settings that are averaged."""
    sites = results.sites(rows[0])
    _draw_groups(axes, results, {site.replace("_", "\n", 1): (rows, {"site": site}) for site in sites}, features)


Panels = Mapping[str, tuple[Sequence[str], Mapping[str, Sequence[str]]]]  # by title: settings, and groups of features


def layers_figure(results: Results, panels: Panels, columns: int = 4) -> Any:
    """Returns a figure by layer, or None without panels. Args: panels, whose settings are averaged; columns, at most."""
    if not panels:
        return None
    figure, places = _places(panels, columns, 4.4, 3.8, one_scale=True)
    for (axes,), (title, (rows, features)) in zip(places, panels.items(), strict=True):
        _draw_layers(axes, results, rows, features)
        draw.label(axes, f"{title}\n({contrasts.passing(results, rows)})", "layer", draw.VARIANCE)
    return draw.finish(figure)


def along_figure(results: Results, panels: Panels, columns: int = 4) -> Any:
    """Returns a figure along training, or None without panels: accuracy; r2 too where snapshots were kept (`keep.every`).

    Args:
      results: of the experiment.
      panels: the settings that are averaged, and groups of features, by title.
      columns: at most.
    """
    if not panels:
        return None
    kept = any(len(r2) > 2 for rows, _ in panels.values() for r2 in _curves(results, rows[0], results.outputs(rows[0])))
    figure, places = _places(panels, columns, 4.0, 3.2, stacked=1 + kept)
    for (axes, *below), (title, (rows, features)) in zip(places, panels.items(), strict=True):
        for i, (group, own) in enumerate(features.items()):
            each = [results.accuracy(s, f) for s in rows for f in own if f in results.outputs(s)]
            draw.band(axes, sum(each) / len(each), group, STYLES[i], within=draw.SHARE)
        axes.axhline(MASTERY, linestyle=(0, (4, 2)), label=f"learned ({MASTERY:g})", **draw.FLOOR)
        draw.label(axes, f"{title}\n({contrasts.passing(results, rows)})", "step", "accuracy of the worst class")
        for axes in below:
            _draw_curves(axes, results, rows, features)
    return draw.finish(figure)


def _places(panels: Panels, columns: int, width: float, height: float, stacked: int = 1, **more: Any) -> tuple[Any, Any]:
    """Returns a figure and the `stacked` axes of every panel; what is left of the last row stays empty."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = draw.grid(rows * stacked, columns, width, height, **more)
    places = grid.reshape(rows, stacked, columns).transpose(0, 2, 1).reshape(-1, stacked)
    for axes in places[len(panels) :].flat:
        axes.set_axis_off()
    return figure, places[: len(panels)]


def _draw_curves(axes: Axes, results: Results, rows: Sequence[str], features: Mapping[str, Sequence[str]]) -> None:
    """Draws r2 of groups of features along training, with the unused twins at the end and the null band."""
    for i, (group, own) in enumerate(features.items()):
        each = [table for s in rows for table in _curves(results, s, own)]
        draw.band(axes, sum(each) / len(each), group, STYLES[i], within=(-np.inf, 1))
        twins = _mean(results, rows, own, twins=True).mean()
        draw.floor(axes, [results.last_step(rows[0])], [twins], f"unused twin of {group}", "dp"[i])
    every = [name for own in features.values() for name in own]
    draw.null(axes, {metric: _mean(results, rows, every, metric=metric).mean() for metric in draw.NULL})
    draw.label(axes, "", "step", draw.VARIANCE)


def _curves(results: Results, setting: str, features: Sequence[str]) -> list[pd.DataFrame]:
    """Returns r2 along training, `[snapshot, seed]`, of those of the features that a setting has."""
    return [contrasts.curve(results, setting, "r2", f) for f in features if f in results.outputs(setting)]


def _draw_groups(
    axes: Axes, results: Results, levels: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]],
    features: Mapping[str, Sequence[str]],
) -> None:  # fmt: skip
    x = np.arange(len(levels))

    def mean(own: Sequence[str], **which: Any) -> pd.DataFrame:
        return pd.DataFrame({n: _mean(results, rows, own, **{**more, **which}) for n, (rows, more) in levels.items()}).T

    for i, (group, own) in enumerate(features.items()):
        draw.dots(axes, x, mean(own), group, STYLES[i], shift=0.12 * i - 0.06)
        draw.floor(axes, x, mean(own, step=0).mean(axis=1), f"{group}, untrained", "x+"[i])
        draw.floor(axes, x, mean(own, twins=True).mean(axis=1), f"unused twin of {group}", "dp"[i])
    every = [name for own in features.values() for name in own]
    draw.null(axes, {metric: mean(every, metric=metric).mean(axis=1).mean() for metric in draw.NULL})
    contrasts.at_levels(axes, list(levels))


def _mean(
    results: Results, rows: Sequence[str], features: Sequence[str], twins: bool = False, metric: str = "r2", **more: Any
) -> pd.Series:  # fmt: skip
    """Returns the mean of a measure over settings and over those of the features that they have, by seed.

    It is empty for unused twins that a setting does not have.
    """
    each = []
    for setting in rows:
        own = [results.twins(setting).get(f, "") if twins else f for f in features if f in results.outputs(setting)]
        each += [results.values(setting, metric, f, **more) for f in own]
    return over(each)
