"""Variance explained by how often a feature is present or its label is trained (claim C08).

Claim: of two equally complex features the more prevalent is represented more strongly.
Paper: Lampinen, Chan and Hermann 2024 (feature prevalence); ladder, exposure and all sizes are ours.

  python -m experiments.run --experiment=prevalence --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=prevalence --workdir=DIR --preset=quick    SGD only, three rungs and one exposure

One model is trained on two xor features. The first is present in half of the examples. The second, equally complex one is
present in a share p of them (`p50` to `p02`), or in half of them but with a label that enters the loss in only a share e of
the examples (`e50`, `e25`, `e10`). Labels are drawn first, and inputs uniformly given the labels. All settings have the
same number of updates.

Representations are measured on the crossed probe set, where every combination is equally frequent and prevalence alone does
not change r2. On a natural probe set (`n25`, `n05`: the networks of `p25` and `p05`, bit-identical where lanes agree) r2
contains a factor p(1-p), whatever the network does. The figure compares it with the prediction from the crossed set,
assuming that the feature's variance shrinks by 4 p(1-p) and everything else stays the same.

With 8,192 examples, as in the other experiments, 164 examples have the rarest feature, and at most 7 of 8 networks learn
it, however long they are trained. With 16,384 examples all networks learn it in the same number of updates
(`results/prevalence/tried.csv`). With a label in 5 % of 8,192 examples only half of the networks learned the feature, so
the lowest exposure is 10 %.

Settings: p50, p25, p10, p05, p02; e50, e25, e10; n25, n05.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/prevalence/`.
Expected from the paper: the gap grows with rarity.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, SEEDS_OF_MAP, SMOKE
from repbias_jax.config import Config, Experiment, Preset, Training
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.probes.balance import natural_r2
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

FREQUENT, RARE = "parity2_1", "parity2_2"
PREVALENCES = {"p50": 0.5, "p25": 0.25, "p10": 0.1, "p05": 0.05, "p02": 0.02}
EXPOSURES = {"e50": 0.5, "e25": 0.25, "e10": 0.1}
NATURAL = {"n25": 0.25, "n05": 0.05}

EXPERIMENT = Experiment(
    name="prevalence",
    title="Frequent against rare features: does prevalence decide what fills the representation?",
    config=Config(
        BinaryOptions(features=("parity2", "parity2"), num_train=16384), MLPOptions(), training=Training(epochs=80)
    ),
    settings=(
        *((name, (("task.prevalence", (0.5, p)),)) for name, p in PREVALENCES.items()),
        *((name, (("task.exposure", (1.0, e)),)) for name, e in EXPOSURES.items()),
        *((name, (("task.prevalence", (0.5, p)), ("keep.probe_set", "natural"))) for name, p in NATURAL.items()),
    ),
    seed_caps=tuple((name, SEEDS_OF_MAP) for name in (*EXPOSURES, *NATURAL)),
    conditions=CONDITIONS,
    probes=("variance", "partition"),
    presets=(
        ("full", Preset(16)),
        (
            "quick",
            Preset(
                12,
                settings=("p50", "p25", "p10", "e25"),
                conditions=("sgd",),
                overrides=(("training.epochs", 24),),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                conditions=("sgd",),
                overrides=(*SMOKE, ("task.num_probe", 128)),
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C08, over the rungs that were run; with fewer than two it has no parts and is not measured."""
    run = {f"{condition}.{name}": p for name, p in PREVALENCES.items() if results.has(f"{condition}.{name}")}
    text, paper, _, parts, source = CLAIMS["C08"]
    return [Claim("C08", text, paper, parts(results, run) if len(run) > 1 else (), source)]


def _rarer(results: Results, rungs: Mapping[str, float]) -> tuple[Part, ...]:
    """Returns the part of C08, the slope over `rungs`: prevalences by full name of the setting."""
    gaps, ratios, floored, accuracy = contrasts.gaps(results, list(rungs), FREQUENT, RARE)
    passed = contrasts.all_at_end(results, list(rungs))
    rarity = -np.log(list(rungs.values()))
    statistic = "slope of r2(frequent) - r2(rare), on the crossed set, over -log prevalence of the rare one (natural log)"
    slopes = [contrasts.slope(values, rarity) for values in (gaps, ratios)]
    part = Part(
        "", statistic, slopes[0], passed, +1, 0.02, secondary=slopes[1],
        secondary_statistic=f"slope of {contrasts.LOG_RATIO}", floored=floored.sum(axis=1), accuracy=accuracy.mean(axis=1),
    )  # fmt: skip
    return (part,)


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C08": (
        "The more prevalent feature is represented more strongly", "the more prevalent", tuple(PREVALENCES), _rarer, "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions and settings that were run."""
    conditions = contrasts.conditions(results, "p50")
    drawn = [
        ("ladder", contrasts.by_condition(results, conditions, _draw_ladder)),
        ("exposure", contrasts.by_condition(results, conditions, _draw_exposure)),
        ("natural", contrasts.by_condition(results, [c for c in conditions if _natural(results, c)], _draw_natural)),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if isinstance(figure, Figure)]


CAPTIONS = {
    "ladder": "Share of the penultimate layer's variance explained by a feature that is present in half of the "
    "training examples, and by an equally complex feature that is present in fewer. Measured on the crossed probe "
    "set, where all combinations are equally frequent. Each dot is a seed; marks are means over seeds with 95 % "
    "intervals. Where the lines separate, prevalence decides. Grey marks are floors.",
    "exposure": "The same when both features are present in half of the examples, but the label of the second one "
    "enters the loss in only a share of them.",
    "natural": "Variance explained by the rare feature on the crossed and on the natural probe set. On the natural "
    "set r2 contains the factor p(1-p) of the prevalence p; hollow marks show what the results on the crossed set "
    "predict for it.",
}


def _draw_pair(axes: Axes, results: Results, condition: str, rungs: dict[str, float], title: str, x_label: str) -> None:
    """Draws the frequent and the rare feature over a ladder, whose levels are equally spaced."""
    own = {f"{value:g}": f"{condition}.{name}" for name, value in rungs.items() if results.has(f"{condition}.{name}")}
    contrasts.levels(axes, results, own, FREQUENT, RARE, ("the frequent feature", "its equal"))
    draw.label(axes, f"{title}, {condition} ({contrasts.passing(results, list(own.values()))})", x_label, draw.VARIANCE)


def _draw_ladder(axes: Axes, results: Results, condition: str) -> None:
    _draw_pair(axes, results, condition, PREVALENCES, "Prevalence", "share of training examples with its equal present")


def _draw_exposure(axes: Axes, results: Results, condition: str) -> None:
    rungs = {"p50": 1.0, **EXPOSURES}
    _draw_pair(axes, results, condition, rungs, "Exposure", "share of training examples in which its label is seen")


def _natural(results: Results, condition: str) -> dict[str, float]:
    return {name: p for name, p in NATURAL.items() if results.has(f"{condition}.{name}", f"{condition}.{_crossed(name)}")}


def _crossed(name: str) -> str:
    """Returns the name of the setting that has the same networks on the crossed set."""
    return name.replace("n", "p")


def _draw_natural(axes: Axes, results: Results, condition: str) -> None:
    rungs = _natural(results, condition)
    x = np.arange(len(rungs))
    crossed = pd.DataFrame({name: results.values(f"{condition}.{_crossed(name)}", "r2", RARE) for name in rungs}).T
    natural = pd.DataFrame({name: results.values(f"{condition}.{name}", "r2", RARE) for name in rungs}).T
    draw.dots(axes, list(x), crossed, "crossed set", STYLES[1] | {"linestyle": "none"}, shift=-0.15)
    draw.dots(axes, list(x), natural, "natural set", STYLES[2] | {"linestyle": "none"}, shift=0.15)
    same = crossed[natural.columns.intersection(crossed.columns)]  # predicted from the same networks
    predicted = natural_r2(same.mean(axis=1).to_numpy(), np.array(list(rungs.values())))
    draw.floor(axes, x + 0.3, predicted, "natural set, predicted", "o")
    start = [results.values(f"{condition}.{name}", "r2", RARE, step=0).mean() for name in rungs]
    draw.floor(axes, x + 0.35, start, "untrained network", "x")
    unused = [results.values(f"{condition}.{name}", "r2", f"twin_{RARE}").mean() for name in rungs]
    draw.floor(axes, x + 0.4, unused, "unused twin", "d")
    contrasts.null_band(axes, results, f"{condition}.{next(iter(rungs))}", RARE)
    axes.set_xlim(-0.6, len(rungs) - 0.4)
    axes.set_xticks(x, [f"{p:g}" for p in rungs.values()])
    draw.label(axes, f"Crossed and natural, {condition}", "share of training examples with it present", draw.VARIANCE)
