"""Contrasts between features, shared by the claims and figures of several experiments.

Every function returns one value per seed, computed from `Results`; unless stated otherwise, at the penultimate layer and
at the end of training.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repbias_jax.report import figures
from repbias_jax.results import Results
from repbias_jax.statistics import At, Claim, Part, gate

LOG_RATIO = "log(first / second)"  # of r2, as `log_ratio` computes it
BANDS = {"r2": "null_high", "top_r2": "top_null_high"}  # the upper end of the null band of a form of r2


def claims_of(table: Mapping[str, tuple], results: Results, condition: str) -> list[Claim]:
    """Returns the claims in one condition; a claim whose settings were not run has no parts and is not measured.

    Args:
      table: for each id: the text of the claim, what its source says, the settings that it reads, a function
        `(results, *full names) -> parts`, and optionally the source and whether parts are separate, as in `Claim`.
      results: of the experiment.
      condition: name of the condition.
    """
    made = []
    for id_, (text, paper, settings, parts, *source) in table.items():
        names = [f"{condition}.{s}" for s in settings]
        made.append(Claim(id_, text, paper, parts(results, *names) if results.has(*names) else (), *source))
    return made


def not_run(label: str, statistic: str, side: int, margin: float) -> Part:
    """Returns a deciding part whose settings were not run: it has no seeds, and its claim is partial."""
    return Part(label, statistic, pd.Series(dtype=float), pd.DataFrame(), side, margin)


def at_end(results: Results, setting: str, outputs: Sequence[str]) -> pd.DataFrame:
    """Returns the gate (seeds by outputs, True where learned) for these outputs at the end of training."""
    return gate(results, [(setting, outputs, [results.last_step(setting)])])


def all_at_end(results: Results, settings: Sequence[str]) -> pd.DataFrame:
    """Returns the gate for every output of these settings at the end of training."""
    return gate(results, [(s, results.outputs(s), [results.last_step(s)]) for s in settings])


def converged(
    results: Results, setting: str, feature: str, step: int | None, metric: str = "decode", **more: Any
) -> pd.Series:  # fmt: skip
    """Returns whether the fits behind a decoding accuracy reached their minimum, by seed, as a column of the gate."""
    found = results.values(setting, f"{metric}_converged", feature, step=step, **more) == 1
    return found.rename(f"{setting}, step {'last' if step is None else step} ({metric} of {feature} converged)")


def pair(results: Results, setting: str, metric: str, first: str, second: str, **more: Any) -> tuple[pd.Series, pd.Series]:
    """Returns a measure of two features, each by seed; `more` as in `Results.values`."""
    return results.values(setting, metric, first, **more), results.values(setting, metric, second, **more)


def above_null(
    results: Results, setting: str, feature: str, metric: str = "r2", **more: Any
) -> tuple[pd.Series, pd.Series]:  # fmt: skip
    """Returns r2 of a feature by seed, raised to the upper end of its null band where it is lower.

    Where the band ends below zero, as it does in layers of very many dimensions, r2 is raised to the size of the null
    level, (C - 1) / N_fit.

    Args:
      results: of the experiment.
      setting: full name.
      feature: factor name.
      metric: `r2`, or another form of it that has a band in BANDS.
      more: as in `Results.values`.

    Returns:
      r2, and which seeds were raised.
    """
    r2, high = (results.values(setting, name, feature, **more) for name in (metric, BANDS[metric]))
    level = -results.values(setting, "null", feature)
    floor = high.where(high > 0, level.reindex(high.index)).reindex(r2.index)
    low = r2 < floor
    return r2.where(~low, floor), low


def absent(results: Results, setting: str, features: Sequence[str], **more: Any) -> pd.Series:
    """Returns which networks have the r2 of all these features inside its null band, by seed. Args: as for `above_null`."""
    return pd.concat([above_null(results, setting, f, **more)[1] for f in features], axis=1).all(axis=1)


def log_ratio(
    results: Results, setting: str, first: str, second: str, metric: str = "r2", **more: Any
) -> tuple[pd.Series, pd.Series]:  # fmt: skip
    """Returns log(r2 of one feature / r2 of another), each r2 as in `above_null`.

    Returns:
      By seed, the log ratio and how many of its two values were set to the end of the null band.
    """
    (one, low), (other, also) = (above_null(results, setting, f, metric, **more) for f in (first, second))
    return np.log((one / other).where((one > 0) & (other > 0))), low.astype(int) + also.astype(int)


def slope(values: pd.DataFrame, x: np.ndarray) -> pd.Series:
    """Returns each row's least-squares slope over its columns, whose positions are `x`; NaN where a value is missing."""
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()
    return (values * weights).sum(axis=1, skipna=False)


def accuracy_gap(results: Results, setting: str, first: str, second: str, step: At | None = None) -> pd.Series:
    """Returns test accuracy of one feature minus another, by seed; within 0.01 if they are learned equally well."""
    step = results.last_step(setting) if step is None else step
    one, other = (results.accuracy(setting, feature, "accuracy") for feature in (first, second))
    return at_steps(one - other, step) if isinstance(step, pd.Series) else (one - other).loc[step]


class Gaps(NamedTuple):
    """Differences between two features; each frame has one row per seed and one column per setting.

    Attributes:
      apart: r2 of one feature minus r2 of another.
      ratios: the log ratio of the two, as in `log_ratio`.
      floored: how many of the two were set to the end of the null band.
      accuracy: the gap in accuracy.
    """

    apart: pd.DataFrame
    ratios: pd.DataFrame
    floored: pd.DataFrame
    accuracy: pd.DataFrame


def gaps(results: Results, settings: Sequence[str], first: str, second: str) -> Gaps:
    """Returns the gap between two features in several settings by both measures, and the gap in accuracy."""
    pairs = {s: pair(results, s, "r2", first, second) for s in settings}
    logs = {s: log_ratio(results, s, first, second) for s in settings}
    return Gaps(
        pd.DataFrame({s: one - other for s, (one, other) in pairs.items()}),
        pd.DataFrame({s: ratio for s, (ratio, _) in logs.items()}),
        pd.DataFrame({s: low for s, (_, low) in logs.items()}),
        pd.DataFrame({s: accuracy_gap(results, s, first, second) for s in settings}),
    )


def difference(results: Results, setting: str, label: str, name: str, features: tuple[str, str], sesoi: float) -> Part:
    """Returns a part: r2 of one feature minus r2 of another, over seeds that learned both; second: the log ratio."""
    first, second = pair(results, setting, "r2", *features)
    ratio, floored = log_ratio(results, setting, *features)
    return Part(
        label, f"r2({features[0]}) - r2({features[1]}), {name}", first - second, at_end(results, setting, features), +1,
        sesoi, secondary=ratio, secondary_statistic=LOG_RATIO, floored=floored,
        accuracy=accuracy_gap(results, setting, *features),
    )  # fmt: skip


def curve(results: Results, setting: str, metric: str, feature: str) -> pd.DataFrame:
    """Returns a measure during training, [snapshot, seed]."""
    return results.table(setting, metric, feature, step="all").pivot(index="step", columns="seed", values="value")


def at_steps(curve: pd.DataFrame, steps: pd.Series) -> pd.Series:
    """Returns each seed's value at that seed's step; NaN where there is none."""
    return pd.Series({k: curve.loc[s, k] if s in curve.index else np.nan for k, s in steps.items()}, dtype=float)


def next_snapshot(snapshots: pd.Index, steps: pd.Series) -> pd.Series:
    """Returns for each seed the first snapshot at or after its step; NaN where there is none."""
    later = {k: snapshots[snapshots >= s] if np.isfinite(s) else snapshots[:0] for k, s in steps.items()}
    return pd.Series({k: float(found.min()) if len(found) else np.nan for k, found in later.items()}, dtype=float)


def by_layer(results: Results, setting: str, metric: str, feature: str, sites: Sequence[str], **more: Any) -> pd.DataFrame:
    """Returns a measure by layer, [site, seed]."""
    return pd.DataFrame({s: results.values(setting, metric, feature, site=s, **more) for s in sites}).T


def similarities(results: Results, condition: str, metric: str) -> pd.DataFrame:
    """Returns the similarities of the models of one condition, `[M, M]`, ordered by (setting, step), then seed.

    Symmetric; NaN for two models of one seed, which are never compared, and where a similarity is missing.
    """
    rows = results.rows
    rows = rows[(rows["metric"] == metric) & (rows["other"] != "") & rows["setting"].str.startswith(f"{condition}.")]
    one = list(zip(rows["setting"], rows["step"], rows["seed"], strict=True))
    parts = [(*name.split("/"), "")[:3] for name in rows["other"]]
    other = [(s, int(step) if step else results.last_step(s), int(seed)) for s, seed, step in parts]
    models = pd.MultiIndex.from_tuples(sorted({*one, *other}), names=["setting", "step", "seed"])
    matrix = np.full((len(models),) * 2, np.nan)
    place = {model: i for i, model in enumerate(models)}
    i, j = ([place[model] for model in found] for found in (one, other))
    matrix[i, j] = matrix[j, i] = rows["value"]
    return pd.DataFrame(matrix, index=models, columns=models)


def passing(results: Results, settings: Sequence[str]) -> str:
    """Returns how many of the networks shown learned every trained feature, as text for a title."""
    passed = [all_at_end(results, [s]).to_numpy() for s in settings]  # settings may have different seeds
    return f"{sum(p.sum() for p in passed)} of {sum(p.size for p in passed)} networks learned all"


def null_band(axes: Axes, results: Results, setting: str, feature: str) -> None:
    """Draws a feature's null band; its mean and its two ends are means over seeds."""
    figures.null(axes, {metric: results.values(setting, metric, feature).mean() for metric in figures.NULL})


def levels(
    axes: Axes, results: Results, settings: Mapping[Any, str], first: str, second: str, names: Sequence[str] = (),
    steps: Mapping[str, At] | None = None,
) -> None:  # fmt: skip
    """Draws r2 of two features over the levels of a factor, with all floors.

    Args:
      axes: to draw on.
      results: of the experiment.
      settings: full names by level.
      first: a feature.
      second: another one.
      names: names of the features in the legend; default: the names of the features.
      steps: by full name, the step at which trained networks are read, or one a seed; default: the last, at which unused
        twins are always read.
    """
    x, steps = np.arange(len(settings)), steps or {}
    for feature, name, style, shift, mark, twin in (
        (first, (names or (first,))[0], figures.STYLES[0], -0.06, "x", "d"),
        (second, (names or (second,))[-1], figures.STYLES[1], 0.06, "+", "p"),
    ):
        r2 = pd.DataFrame({s: results.values(s, "r2", feature, step=steps.get(s)) for s in settings.values()}).T
        figures.dots(axes, list(x), r2, name, style, shift=shift)
        start = [results.values(s, "r2", feature, step=0).mean() for s in settings.values()]
        figures.floor(axes, x, start, f"{name}, untrained", mark)
        unused = [results.values(s, "r2", results.twins(s).get(feature, "")).mean() for s in settings.values()]
        figures.floor(axes, x, unused, f"unused twin of {name}", twin)
    null_band(axes, results, next(iter(settings.values())), second)
    at_levels(axes, level_names(results, settings, first))


def level_names(results: Results, settings: Mapping[Any, str], feature: str) -> list[str]:
    """Returns tick labels for the levels of a factor; a level without any value is marked `(no value)`."""
    none = {level: results.values(s, "r2", feature).isna().all() for level, s in settings.items()}
    return [f"{level}\n(no value)" if none[level] else str(level) for level in settings]


def layers(
    axes: Axes, results: Results, setting: str, first: str, second: str, sites: Sequence[str], metric: str = "r2"
) -> None:  # fmt: skip
    """Draws a measure of two features over layers, with the untrained network and the unused twins as floors."""
    x = np.arange(len(sites))
    for feature, style, mark, twin in ((first, figures.STYLES[0], "x", "d"), (second, figures.STYLES[1], "+", "p")):
        figures.dots(axes, x, by_layer(results, setting, metric, feature, sites), feature, style)
        start = by_layer(results, setting, metric, feature, sites, step=0).mean(axis=1)
        figures.floor(axes, x, start, f"{feature}, untrained", mark)
        unused = by_layer(results, setting, metric, results.twins(setting).get(feature, ""), sites).mean(axis=1)
        figures.floor(axes, x, unused, f"unused twin of {feature}", twin)


def at_levels(axes: Axes, names: Sequence[Any]) -> None:
    """Sets a tick for each level of a factor, at 0, 1, 2, ..."""
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), [str(name) for name in names])


def by_condition(results: Results, settings: list[str], panel: Callable[[Axes, Results, str], None]) -> Figure | None:
    """Returns a figure with one panel per condition; None if none was run."""
    if not settings:
        return None
    figure, panels = figures.grid(1, len(settings), 4.4, 3.7)
    for axes, setting in zip(panels[0], settings, strict=True):
        panel(axes, results, setting)
    return figures.finish(figure)


def run_in(results: Results, setting: str) -> list[str]:
    """Returns the full names of a setting in every condition in which it was run."""
    return [f"{c}.{setting}" for c in conditions(results, setting)]


def conditions(results: Results, *settings: str) -> list[str]:
    """Returns the conditions in which all the given settings were run, in order."""
    return [c for c in dict.fromkeys(results.settings["column"]) if results.has(*(f"{c}.{s}" for s in settings))]


def hidden(results: Results, setting: str) -> list[str]:
    """Returns the sites of the hidden layers, from input to output."""
    return list(results.places(setting)["layers"])
