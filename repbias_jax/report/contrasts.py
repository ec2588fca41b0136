"""Contrasts between features, and where they are read: what the claims and figures of several experiments are made of.

Everything is by seed, from `Results`: at the penultimate layer and at the end of training unless said.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repbias_jax.report import figures
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, gate

CONTRAST = "(first - second) / (first + second)"  # of r2, as `contrast` computes it


def claims_of(table: Mapping[str, tuple], results: Results, column: str) -> list[Claim]:
    """Claims in one column of settings; one whose settings were not run has no parts, and is not measured.

    Args:
      table: by id, what is claimed, what its source says of it, the settings it reads, a function
        `(results, *full names) -> parts`, and, if it is said, the source, as in `Claim`.
      results: of the experiment.
      column: of settings.
    """
    made = []
    for id_, (text, paper, settings, parts, *source) in table.items():
        names = [f"{column}.{s}" for s in settings]
        made.append(Claim(id_, text, paper, parts(results, *names) if results.has(*names) else (), *source))
    return made


def at_end(results: Results, setting: str, outputs: Sequence[str]) -> pd.DataFrame:
    """The gate for these outputs at the end of training."""
    return gate(results, [(setting, outputs, [results.last_step(setting)])])


def all_at_end(results: Results, settings: Sequence[str]) -> pd.DataFrame:
    """The gate for every output of these settings at the end of training."""
    return gate(results, [(s, results.outputs(s), [results.last_step(s)]) for s in settings])


def pair(results: Results, setting: str, metric: str, first: str, second: str, **more: Any) -> tuple[pd.Series, pd.Series]:
    """A measure of two features; `more` as in `Results.values`."""
    return results.values(setting, metric, first, **more), results.values(setting, metric, second, **more)


def contrast(first: pd.Series, second: pd.Series) -> pd.Series:
    """(first - second) / (first + second): the same difference as a share of what both explain."""
    return (first - second) / (first + second)


def slope(values: pd.DataFrame, x: np.ndarray) -> pd.Series:
    """Least-squares slope over the columns, which stand at `x`, for each row; NaN where a value is missing."""
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()
    return (values * weights).sum(axis=1, skipna=False)


def accuracy_gap(results: Results, setting: str, first: str, second: str, step: int | None = None) -> pd.Series:
    """Accuracy of one feature minus accuracy of another, on test data: within .01 where they are learned equally well."""
    step = results.last_step(setting) if step is None else step
    one, other = (results.accuracy(setting, feature, "accuracy").loc[step] for feature in (first, second))
    return one - other


def gaps(
    results: Results, settings: Sequence[str], first: str, second: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """r2 of one feature minus r2 of another, the contrast, and the gap in accuracy: a row a seed, a column a setting."""
    pairs = {s: pair(results, s, "r2", first, second) for s in settings}
    apart = pd.DataFrame({s: one - other for s, (one, other) in pairs.items()})
    shares = pd.DataFrame({s: contrast(*found) for s, found in pairs.items()})
    return apart, shares, pd.DataFrame({s: accuracy_gap(results, s, first, second) for s in settings})


def difference(results: Results, setting: str, label: str, name: str, features: tuple[str, str], sesoi: float) -> Part:
    """r2 of one feature minus r2 of another, with the contrast beside it, where both are learned equally well."""
    first, second = pair(results, setting, "r2", *features)
    return Part(
        label, f"r2({features[0]}) - r2({features[1]}), {name}", first - second, at_end(results, setting, features), +1,
        sesoi, secondary=contrast(first, second), secondary_statistic=CONTRAST,
        accuracy=accuracy_gap(results, setting, *features),
    )  # fmt: skip


def curve(results: Results, setting: str, metric: str, feature: str) -> pd.DataFrame:
    """A measure along training: a row a snapshot, a column a seed."""
    return results.table(setting, metric, feature, step="all").pivot(index="step", columns="seed", values="value")


def at_steps(curve: pd.DataFrame, steps: pd.Series) -> pd.Series:
    """Each seed's value at its own step; NaN where there is none."""
    return pd.Series({k: curve.loc[s, k] if s in curve.index else np.nan for k, s in steps.items()}, dtype=float)


def next_snapshot(snapshots: pd.Index, steps: pd.Series) -> pd.Series:
    """For each seed the first snapshot at or after its step; NaN where there is none."""
    later = {k: snapshots[snapshots >= s] if np.isfinite(s) else snapshots[:0] for k, s in steps.items()}
    return pd.Series({k: float(found.min()) if len(found) else np.nan for k, found in later.items()}, dtype=float)


def by_layer(results: Results, setting: str, metric: str, feature: str, sites: Sequence[str], **more: Any) -> pd.DataFrame:
    """A measure by layer: a row a site, a column a seed."""
    return pd.DataFrame({s: results.values(setting, metric, feature, site=s, **more) for s in sites}).T


def similarities(results: Results, column: str, metric: str) -> pd.DataFrame:
    """How alike the models of one column are, `[M, M]`: rows and columns by (setting, step), then seed.

    Symmetric; NaN for two models of one seed, which are never compared, and where a similarity is missing.
    """
    rows = results.rows
    rows = rows[(rows["metric"] == metric) & (rows["other"] != "") & rows["setting"].str.startswith(f"{column}.")]
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
    """How many of the seeds shown learned every feature they were asked for."""
    passed = [all_at_end(results, [s]).to_numpy() for s in settings]  # each has seeds of its own
    return f"{sum(p.sum() for p in passed)} of {sum(p.size for p in passed)} networks learned all"


def null_band(axes: Axes, results: Results, setting: str, feature: str) -> None:
    """Draws a feature's null band, the mean over seeds of its ends."""
    low, high = (results.values(setting, f"null_{side}", feature).mean() for side in ("low", "high"))
    figures.null(axes, low, high)


def levels(
    axes: Axes, results: Results, settings: Mapping[Any, str], first: str, second: str, names: Sequence[str] = ()
) -> None:  # fmt: skip
    """Draws r2 of two features over the levels of a factor, with all floors.

    Args:
      axes: to draw on.
      results: of the experiment.
      settings: full names by level.
      first: a feature.
      second: another one.
      names: what the legend calls them; their own, if not given.
    """
    x = np.arange(len(settings))
    for feature, name, style, shift, mark, twin in (
        (first, (names or (first,))[0], figures.STYLES[0], -0.06, "x", "d"),
        (second, (names or (second,))[-1], figures.STYLES[1], 0.06, "+", "p"),
    ):
        r2 = pd.DataFrame({s: results.values(s, "r2", feature) for s in settings.values()}).T
        figures.dots(axes, list(x), r2, name, style, shift=shift)
        start = [results.values(s, "r2", feature, step=0).mean() for s in settings.values()]
        figures.floor(axes, x, start, f"{name}, untrained", mark)
        unused = [results.values(s, "r2", results.twins(s).get(feature, "")).mean() for s in settings.values()]
        figures.floor(axes, x, unused, f"unused twin of {name}", twin)
    null_band(axes, results, next(iter(settings.values())), second)
    at_levels(axes, level_names(results, settings, first))


def level_names(results: Results, settings: Mapping[Any, str], feature: str) -> list[str]:
    """The levels of a factor, for the axis; one at which no network has a value says so."""
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
    """A tick for each level of a factor, at 0, 1, 2, ..."""
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), [str(name) for name in names])


def by_column(results: Results, settings: list[str], panel: Callable[[Axes, Results, str], None]) -> Figure | None:
    """One panel for each column of settings, or nothing where none was run."""
    if not settings:
        return None
    figure, panels = figures.grid(1, len(settings), 4.4, 3.7)
    for axes, setting in zip(panels[0], settings, strict=True):
        panel(axes, results, setting)
    return figures.finish(figure)


def run_in(results: Results, setting: str) -> list[str]:
    """Full names of a setting, in every column in which it was run."""
    return [f"{c}.{setting}" for c in columns(results, setting)]


def columns(results: Results, *settings: str) -> list[str]:
    """The columns of settings, in order; of those given, the columns in which all of them were run."""
    return [c for c in dict.fromkeys(results.settings["column"]) if results.has(*(f"{c}.{s}" for s in settings))]


def hidden(results: Results, setting: str) -> list[str]:
    """The sites of the hidden layers, from the input on."""
    return list(results.places(setting)["layers"])
