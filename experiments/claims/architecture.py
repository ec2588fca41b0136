"""Depth, width and activation function (claims C10, C11).

Claim: the gap between an easy and a hard feature grows with depth; width hardly changes it.
Paper: Lampinen, Chan and Hermann 2024 (architecture); one factor at a time, and all sizes, are ours.

  python -m experiments.run --experiment=architecture --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=architecture --workdir=DIR --preset=quick    SGD only: figures, no verdict

Identity (easy) and parity-4 (hard), in networks that differ in one thing at a time:
  depth1 ... depth6    1 to 6 hidden layers of 128, ReLU
  width64 ... width512 four hidden layers of 64, 128 (that is depth4), 256, 512, ReLU
  leaky, tanh, gelu    four hidden layers of 128 with another activation function

C10 is the slope of the gap at the penultimate layer over depths 2 to 6. C11 is an equivalence: gap(512) - gap(64) lies
within 0.05 of zero.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/architecture/`.
Expected from the paper: the gap grows with depth and not with width.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Callable

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, SEEDS_OF_MAP
from repbias_jax.config import Config, Experiment, Preset
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

EASY, HARD = "parity1", "parity4"
DEPTHS = {f"depth{n}": n for n in range(1, 7)}
DEEP = tuple(name for name, depth in DEPTHS.items() if depth >= 2)
WIDTHS = {"width64": 64, "depth4": 128, "width256": 256, "width512": 512}
ACTIVATIONS = {"depth4": "relu", "leaky": "leaky_relu", "tanh": "tanh", "gelu": "gelu"}
FACTORS = (("hidden layers", DEPTHS), ("units a layer", WIDTHS), ("activation function", ACTIVATIONS))

EXPERIMENT = Experiment(
    name="architecture",
    title="Depth, width and activation function: what the gap depends on",
    config=Config(BinaryOptions(), MLPOptions(widths=(128,) * 4)),
    settings=(
        *((name, (("model.widths", (128,) * depth),)) for name, depth in DEPTHS.items()),
        *((name, (("model.widths", (width,) * 4),)) for name, width in WIDTHS.items() if name not in DEPTHS),
        *((name, (("model.activation", kind),)) for name, kind in ACTIVATIONS.items() if name not in DEPTHS),
    ),
    seed_caps=tuple((name, SEEDS_OF_MAP) for name in ("depth1", "width256", "leaky", "tanh", "gelu")),
    conditions=CONDITIONS,
    probes=("variance",),
    presets=(
        ("full", Preset(16)),
        (
            "quick",
            Preset(
                8,
                settings=("depth2", "depth4", "width64", "gelu"),
                conditions=("sgd",),
                overrides=(("training.epochs", 64),),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                settings=("depth2", "depth3", "depth4", "gelu"),
                conditions=("sgd",),
                overrides=(
                    ("task.num_train", 256),
                    ("task.num_test", 128),
                    ("task.num_probe", 128),
                    ("training.epochs", 8),
                    ("training.observe_every", 8),
                ),
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C10 and C11; a claim whose settings were not run has no parts and is not measured."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _grows(results: Results, *deep: str) -> tuple[Part, ...]:
    depths = np.array([DEPTHS[name] for name in DEEP], float)
    gaps, ratios, floored, accuracy = contrasts.gaps(results, deep, EASY, HARD)
    text = "slope of the gap at the penultimate layer, depth 2 to 6 at width 128, a layer"
    return (
        Part(
            "", text, contrasts.slope(gaps, depths), contrasts.all_at_end(results, deep), +1, 0.02,
            secondary=contrasts.slope(ratios, depths), secondary_statistic=f"slope of {contrasts.LOG_RATIO}",
            floored=floored.sum(axis=1), accuracy=accuracy.mean(axis=1),
        ),
    )  # fmt: skip


def _wide(results: Results, widest: str, narrowest: str) -> tuple[Part, ...]:
    gaps, ratios, floored, accuracy = contrasts.gaps(results, [widest, narrowest], EASY, HARD)
    change, in_logs = (found[widest] - found[narrowest] for found in (gaps, ratios))
    passed = contrasts.all_at_end(results, [widest, narrowest])
    text = "gap(width 512) - gap(width 64), four layers"
    return (
        Part(
            "", text, change, passed, 0, 0.05, secondary=in_logs, secondary_statistic=f"change of {contrasts.LOG_RATIO}",
            floored=floored.sum(axis=1), accuracy=accuracy.mean(axis=1),
        ),
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C10": ("The gap grows with depth", "grows", DEEP, _grows, "P"),
    "C11": ("Width hardly changes it", "hardly", ("width512", "width64"), _wide, "P"),
}


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions and settings that were run."""
    conditions = contrasts.conditions(results)
    drawn = [
        ("factors", _draw_factors(results, conditions)),
        ("gaps", _draw_gaps(results, conditions)),
        ("every_layer", _draw_every_layer(results, conditions[0])),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


CAPTIONS = {
    "factors": "Share of the penultimate layer's variance explained by an easy and a hard feature. Each panel varies "
    "one factor: the number of hidden layers at width 128, the width of four layers, or the activation function. "
    "Each dot is a seed; marks are means over seeds with 95 % intervals. Grey marks are floors.",
    "gaps": "The gap, r2(easy) - r2(hard), at every hidden layer; each panel varies one factor. A line ends at the "
    "penultimate layer, where networks are compared. Lines are means over seeds with 95 % bands. Grey marks are the "
    "gaps of untrained networks and of the unused twins, averaged over all networks of a panel.",
    "every_layer": "Variance explained by easy and hard at every hidden layer, in networks of each depth. The last "
    "mark of a panel is the penultimate layer, where networks are compared.",
}


def _draw_factors(results: Results, conditions: list[str]) -> Figure:
    def panel(axes: Axes, condition: str, name: str, own: dict[object, str]) -> None:
        contrasts.levels(axes, results, own, EASY, HARD)
        draw.label(axes, f"{condition} ({contrasts.passing(results, list(own.values()))})", name, draw.VARIANCE)

    return _by_factor(results, conditions, panel)


def _draw_gaps(results: Results, conditions: list[str]) -> Figure:
    def panel(axes: Axes, condition: str, name: str, own: dict[object, str]) -> None:
        for (level, setting), style in zip(own.items(), STYLES, strict=False):
            draw.band(axes, _gap(results, setting), f"{name}: {level}", style)
        untrained, unused = (
            pd.concat([_gap(results, s, **more) for s in own.values()], axis=1).mean(axis=1)
            for more in ({"step": 0}, {"prefix": "twin_"})
        )
        draw.floor(axes, untrained.index, untrained, "gap, untrained", "x")
        draw.floor(axes, unused.index, unused, "gap, unused twins", "d")
        axes.axhline(0, linestyle=(0, (1, 2)), label="no gap", **draw.FLOOR)
        axes.set_xticks(untrained.index)
        learned = contrasts.passing(results, list(own.values()))
        draw.label(axes, f"{condition} ({learned})", "hidden layer, from the input on", "gap (share of variance)")

    return _by_factor(results, conditions, panel)


def _gap(results: Results, setting: str, prefix: str = "", **more: int) -> pd.DataFrame:
    """Returns the gap by hidden layer, numbered from 1, as `[layer, seed]`."""
    hidden = contrasts.hidden(results, setting)
    easy, hard = (contrasts.by_layer(results, setting, "r2", prefix + feature, hidden, **more) for feature in (EASY, HARD))
    return (easy - hard).set_axis(range(1, len(hidden) + 1))


def _by_factor(
    results: Results, conditions: list[str], panel: Callable[[Axes, str, str, dict[object, str]], None]
) -> Figure:
    """Returns a figure with one panel per condition and factor that has levels."""
    figure, panels = draw.grid(len(conditions), len(FACTORS), 3.6, 3.0, one_scale=True)
    for row, condition in zip(panels, conditions, strict=True):
        for axes, (name, levels) in zip(row, FACTORS, strict=True):
            own = {level: f"{condition}.{s}" for s, level in levels.items() if results.has(f"{condition}.{s}")}
            if own:
                panel(axes, condition, name, own)
            else:
                axes.set_axis_off()
    return draw.finish(figure)


def _draw_every_layer(results: Results, condition: str) -> Figure | None:
    deep = [f"{condition}.{name}" for name in DEPTHS if results.has(f"{condition}.{name}")]
    if not deep:
        return None
    rows = -(-len(deep) // 3)
    figure, panels = draw.grid(rows, min(3, len(deep)), 3.6, 2.8, one_scale=True)
    for axes in list(panels.flat)[len(deep) :]:
        axes.set_axis_off()
    for axes, setting in zip(panels.flat, deep, strict=False):
        hidden = contrasts.hidden(results, setting)
        contrasts.layers(axes, results, setting, EASY, HARD, hidden)
        contrasts.null_band(axes, results, setting, HARD)
        contrasts.at_levels(axes, range(1, len(hidden) + 1))
        draw.label(axes, setting, "hidden layer, from the input on", draw.VARIANCE)
    return draw.finish(figure)
