"""Principal components and single units (claims C19, C20, C21).

Claim: the easy feature dominates the top principal components and survives when only few are kept; its code over single
  units is dense where that of the hard feature is sparse.
Paper: Lampinen, Chan and Hermann 2024 (principal components, units), and its follow-up; statistics and sizes are ours.

  python -m experiments.run --experiment=components --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=components --workdir=DIR --preset=quick    SGD only, shorter

One setting, joint: identity (easy) and parity-4 (hard) in the base network, at the end of training, penultimate layer.
  C19   share of the top 2 components that easy explains minus the share that hard explains. Second measure: the log ratio.
  C20   area under the curve of accuracy against the number of components kept, from 1 to all, easy minus hard. The
        network's own readout gives both outputs. Second measure: the area over log2 of the number of components.
  C21   a: share of living units with r2 over 0.1, easy minus hard. b: participation ratio of the difference vector divided
        by the number of living units, easy minus hard. Second measure of b: the log of their ratio.

C19 and C20 follow nearly mechanically from the gap at the same site (C01), and C21 follows in part.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/components/`.
Expected from the paper: easy above hard in all of them.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, PRESETS
from repbias_jax.config import Config, Experiment
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.probes.components import SHOWN, TOP
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

EASY, HARD = "parity1", "parity4"

EXPERIMENT = Experiment(
    name="components",
    title="Principal components and single units: where the easy and the hard feature are",
    config=Config(BinaryOptions(), MLPOptions()),
    settings=(("joint", ()),),
    conditions=CONDITIONS,
    probes=("variance", "components", "truncation", "units"),
    presets=PRESETS,
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C19 to C21."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _dominates(results: Results, joint: str) -> tuple[Part, ...]:
    text = f"share of the top {TOP} components explained, r2({EASY}) - r2({HARD})"
    part = _minus(results, joint, "", text, "top_r2", 0.02, at=str(TOP))
    ratio, floored = contrasts.log_ratio(results, joint, EASY, HARD, "top_r2", at=str(TOP))
    return (dataclasses.replace(part, secondary=ratio, secondary_statistic=contrasts.LOG_RATIO, floored=floored),)


def _survives(results: Results, joint: str) -> tuple[Part, ...]:
    text = f"area under accuracy against the number of components kept, {EASY} - {HARD}"
    easy, hard = contrasts.pair(results, joint, "kept_area_log2", EASY, HARD)
    part, name = _minus(results, joint, "", text, "kept_area", 0.05), "area over log2 of the number kept"
    return (dataclasses.replace(part, secondary=easy - hard, secondary_statistic=name),)


def _dense(results: Results, joint: str) -> tuple[Part, ...]:
    shares = f"share of living units with r2 over .1, {EASY} - {HARD}"
    ratio = f"participation ratio of the difference vector over living units, {EASY} - {HARD}"
    return (
        _minus(results, joint, "a", shares, "selective_share", 0.05),
        _minus(results, joint, "b", ratio, "participation", 0.05, lambda e, h: np.log(e / h), "log ratio"),
    )


def _minus(
    results: Results, joint: str, label: str, text: str, metric: str, sesoi: float,
    second: Callable[[pd.Series, pd.Series], pd.Series] | None = None, name: str = "", **more: str,
) -> Part:  # fmt: skip
    """Returns a part: a measure of easy minus that of hard; `second` computes its second measure from the two."""
    easy, hard = contrasts.pair(results, joint, metric, EASY, HARD, **more)
    return Part(
        label, text, easy - hard, contrasts.at_end(results, joint, (EASY, HARD)), +1, sesoi,
        secondary=None if second is None else second(easy, hard), secondary_statistic=name,
        accuracy=contrasts.accuracy_gap(results, joint, EASY, HARD),
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C19": ("Easy dominates the top principal components", "easy dominates", ("joint",), _dominates, "P, F"),
    "C20": ("Of k components kept, easy survives at smaller k", "easy survives longer", ("joint",), _survives, "P"),
    "C21": ("Single units: easy is dense, hard is sparse", "easy dense, hard sparse", ("joint",), _dense, "P, F"),
}


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions that were run."""
    settings = contrasts.run_in(results, "joint")
    drawn = (
        ("plane", _draw_plane(results, settings)),
        ("shares", contrasts.by_condition(results, settings, _draw_shares)),
        ("truncation", contrasts.by_condition(results, settings, _draw_truncation)),
        ("units", _draw_units(results, settings)),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


NOTES = {
    "C19": "follows nearly mechanically from C01",
    "C20": "follows nearly mechanically from C01",
    "C21": "follows in part from C01",
}  # on the score card
FIGURES = {"C19": "shares", "C20": "truncation", "C21": "units"}  # the figure that shows a claim
CAPTIONS = {
    "plane": "Probe examples of the first seed's network (if it diverged, of the next one's) on its first two principal "
    "components (penultimate layer), marked by the value of the easy feature (left) and of the hard feature (right). "
    "Both axes have the same scale.",
    "shares": "How much of each principal component the two features explain, and which share of the total variance "
    "the component holds (grey steps). Each dot is a seed; marks are means over seeds with 95 % intervals.",
    "truncation": "Accuracy of the network's own readout when only the first k principal components are kept and the "
    "others are set to their mean. Bands are 95 % intervals over seeds.",
    "units": "Single units by layer. Top: share of living units with r2 over 0.1 for the feature. Middle: the share "
    "of living units over which the difference vector is spread. Bottom: sparsity of the units, whatever they "
    "respond to, and the share of units that live. Dots are all seeds; grey marks are floors.",
}


def _draw_plane(results: Results, settings: list[str]) -> Figure | None:
    found = {s: first for s in settings if (first := _first_finite(results, s))}
    if not found:
        return None
    figure, panels = draw.grid(len(found), 2, 3.6, 3.4)
    for row, (setting, (seed, places, factors)) in zip(panels, found.items(), strict=True):
        for axes, feature in zip(row, (EASY, HARD), strict=True):
            for value, style in enumerate(STYLES[:2]):
                chosen = places[factors[feature][-len(places) :] == value]
                axes.plot(
                    *chosen.T, **style | {"linestyle": "none"}, markersize=2.5, alpha=0.5, label=f"feature is {value}"
                )
            axes.set_aspect("equal", adjustable="datalim")
            title = f"{feature}, {setting.split('.')[0]}, seed {seed}"
            draw.label(axes, title, "first component (activation units)", "second component (activation units)")
    return draw.finish(figure)


def _first_finite(results: Results, setting: str) -> tuple[int, np.ndarray, dict[str, np.ndarray]] | None:
    """Returns the first seed whose activations and their squares are finite, its `_places`, and the factors, if any."""
    for seed, phi, factors in results.activations(setting):
        if np.square(phi[-1], dtype=float).sum() < np.finfo(np.float32).max:
            return seed, _places(phi[-1]), factors
    return None


def _places(phi: np.ndarray) -> np.ndarray:
    """Returns the examples of the second half on the top principal components of the first half. Args: phi: `[N, D]`."""
    half = len(phi) // 2
    fit, score = (phi[s] - phi[:half].mean(0) for s in (slice(half), slice(half, None)))
    return score @ np.linalg.eigh(fit.T @ fit)[1][:, : -TOP - 1 : -1]


def _draw_shares(axes: Axes, results: Results, setting: str) -> None:
    x = np.arange(1, 1 + min(SHOWN, len(results.table(setting, "component_share")["at"].unique())))
    held = [results.values(setting, "component_share", at=str(k)).mean() for k in x]
    axes.step(x, held, where="mid", color="0.6", linewidth=1.2, label="share of all variance that it holds")
    for feature, style, shift, marks in ((EASY, STYLES[0], -0.1, ("x", "d")), (HARD, STYLES[1], 0.1, ("+", "p"))):
        r2 = _by_component(results, setting, feature, x)
        draw.dots(axes, x, r2, feature, style | {"linestyle": "none"}, shift=shift)
        start = _by_component(results, setting, feature, x, step=0).mean(axis=1)
        draw.floor(axes, x, start, f"{feature}, untrained", marks[0])
        unused = _by_component(results, setting, f"twin_{feature}", x).mean(axis=1)
        draw.floor(axes, x, unused, f"unused twin of {feature}", marks[1])
    axes.axhline(results.values(setting, "null", EASY).mean(), linestyle=(0, (1, 2)), label="null level", **draw.FLOOR)
    axes.set_xticks(x)
    title = f"{setting} ({contrasts.passing(results, [setting])})"
    draw.label(axes, title, "principal component", "share of the component, r2")


def _by_component(results: Results, setting: str, feature: str, x: np.ndarray, **more: int) -> pd.DataFrame:
    return pd.DataFrame({k: results.values(setting, "component_r2", feature, at=str(k), **more) for k in x}).T


def _draw_truncation(axes: Axes, results: Results, setting: str) -> None:
    axes.set_xscale("log", base=2)  # before drawing, since a panel without values has no scale to change
    for feature, style in ((EASY, STYLES[0]), (HARD, STYLES[1])):
        table = results.table(setting, "kept_accuracy", feature)
        curve = table.assign(k=table["at"].astype(int)).pivot(index="k", columns="seed", values="value")
        draw.band(axes, curve, feature, style, marks=len(curve), within=draw.SHARE)
    axes.axhline(0.5, linestyle=(0, (1, 2)), label="chance", **draw.FLOOR)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(top=1.03)
    title = f"{setting} ({contrasts.passing(results, [setting])})"
    draw.label(axes, title, "components kept, k", "balanced accuracy of the\nnetwork's own readout (share)")


def _draw_units(results: Results, settings: list[str]) -> Figure | None:
    if not settings:
        return None
    figure, panels = draw.grid(3, len(settings), 4.4, 2.7)
    rows = (
        ("selective_share", "selective units\n(share of living units)"),
        ("participation", "participation ratio\n(share of living units)"),
    )
    for column, setting in zip(panels.T, settings, strict=True):
        hidden = contrasts.hidden(results, setting)
        title, x_label = f"{setting} ({contrasts.passing(results, [setting])})", "hidden layer, from the input on"
        for axes, (metric, y_label) in zip(column, rows, strict=False):
            contrasts.layers(axes, results, setting, EASY, HARD, hidden, metric)
            draw.label(axes, title, x_label, y_label)
        for (metric, name), style in zip(
            (("sparsity", "lifetime sparsity"), ("living_share", "living units")), STYLES[2:], strict=False
        ):
            draw.dots(column[2], range(len(hidden)), contrasts.by_layer(results, setting, metric, "", hidden), name, style)
            start = contrasts.by_layer(results, setting, metric, "", hidden, step=0).mean(axis=1)
            draw.floor(column[2], range(len(hidden)), start, f"{name}, untrained", style["marker"])
        draw.label(column[2], title, x_label, "sparsity; living units\n(share)")
        for axes in column:
            axes.set_xticks(range(len(hidden)), [str(i + 1) for i in range(len(hidden))])
    return draw.finish(figure)
