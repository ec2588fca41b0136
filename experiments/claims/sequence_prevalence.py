"""Prevalence and exposure of two equal features of a string (claim C15).

Claim: of two equally complex features of a string the more prevalent one is represented more strongly.
Paper: Lampinen, Chan and Hermann 2024 (prevalence in Transformers); tasks, statistics, sizes and controls are ours.

  python -m experiments.run --experiment=sequence_prevalence --workdir=DIR                 full: 48 seeds in both orders
  python -m experiments.run --experiment=sequence_prevalence --workdir=DIR --preset=quick  12 seeds, shorter

A Transformer (encoder-decoder) reads 12 binary tokens and writes the values of two xor features, in one of two orders. The
first is present in half of the 32,768 training examples. The second, equally complex one is present in a share of them
(`p50`, `p05`), or in half of them but with a label that enters the loss in only a tenth of the examples (`e10`). Every seed
trains both orders, and where the tokens of each feature stand is drawn once per seed.

Representations are measured on the crossed set, at the output of the encoder averaged over the tokens of the string.

  C15   mean over both orders of the gap r2(frequent) - r2(rare), minus that at prevalence 1/2
    a   at prevalence 0.05
    b   at exposure 0.1
        Second measure: the log ratio, with the same differences.

On the natural set (`n05`: the networks of `p05`) the same code has a smaller r2, because a rare feature varies less:
r2 q / (1 - r2 + r2 q) with q = 4 p(1-p). The figure has this prediction from the crossed set.

Settings: p50_0, p50_1, p05_0, p05_1, e10_0, e10_1, n05_0, n05_1: both orders of each.

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/sequence_prevalence/`.
Expected from the paper: the gap is larger for the rare feature.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.claims import orders
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Preset, Training
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.models.transformer import TransformerOptions
from repbias_jax.probes.balance import natural_r2
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

FREQUENT, RARE = "parity2_1", "parity2_2"
SEEDS, NATURAL = 48, 12
MARGIN = 0.02

EXPERIMENT = Experiment(
    name="sequence_prevalence",
    title="Frequent against rare features of a string",
    config=Config(
        SequenceOptions(
            features=("parity2", "parity2"), length=12, order="listed", num_train=32768, num_test=512, num_probe=1024
        ),
        TransformerOptions(),
        Optimizer("adam", 1e-3),
        Training(batch_size=64, epochs=5, observe_every=512),
        Keep(views=("layers", "flat")),
    ),
    settings=(
        *orders.settings("p50", (("task.prevalence", (0.5, 0.5)),), orders.BOTH),
        *orders.settings("p05", (("task.prevalence", (0.5, 0.05)),), orders.BOTH),
        *orders.settings("e10", (("task.exposure", (1.0, 0.1)),), orders.BOTH),
        *orders.settings("n05", (("task.prevalence", (0.5, 0.05)), ("keep.probe_set", "natural")), orders.BOTH),
    ),
    seed_caps=tuple((name, NATURAL) for name in orders.names("n05", 2)),
    probes=("variance",),
    num_seeds=SEEDS,
    verdict_seed=orders.FIRST_SEED + 400,
    presets=(
        ("full", Preset(SEEDS)),
        (
            "quick",
            Preset(12, settings=(*orders.names("p50", 2), *orders.names("p05", 2)), overrides=(("training.epochs", 2),)),
        ),
        ("smoke", Preset(2, overrides=orders.SMOKE)),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C15."""
    text, paper, _, source = CLAIMS["C15"]
    even = orders.run(results, condition, "p50", 2)
    parts = [
        _part(results, even, rows, label, name)
        for label, kind, name in (("a", "p05", "prevalence .05"), ("b", "e10", "exposure .1"))
        if even and (rows := orders.run(results, condition, kind, 2))
    ]
    return [Claim("C15", text, paper, tuple(parts), source)]


def _part(results: Results, even: Sequence[str], rows: Sequence[str], label: str, name: str) -> Part:
    """Returns how much larger the gap is than at prevalence 1/2, the mean over both orders."""
    two = [contrasts.gaps(results, settings, FREQUENT, RARE) for settings in (rows, even)]
    gap, ratio = (two[0][i].mean(axis=1, skipna=False) - two[1][i].mean(axis=1, skipna=False) for i in range(2))
    statistic = f"r2(frequent) - r2(rare) on the crossed set, both orders, {name} minus prevalence .5"
    floored = two[0].floored.sum(axis=1) + two[1].floored.sum(axis=1)
    return Part(
        label, statistic, gap, contrasts.all_at_end(results, [*rows, *even]), +1, MARGIN, secondary=ratio,
        secondary_statistic=f"the same of {contrasts.LOG_RATIO}", floored=floored,
        accuracy=two[0].accuracy.mean(axis=1), absent=orders.absent(results, [*rows, *even]),
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {
    "C15": (
        "The more prevalent feature of a string is represented more strongly", "the more prevalent",
        (*orders.names("p50", 2), *orders.names("p05", 2), *orders.names("e10", 2)), "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    kinds = {kind: rows for kind in LEVELS if (rows := orders.run(results, condition, kind, 2))}
    natural = orders.run(results, condition, "n05", 2)
    panels = {LEVELS[kind]: (rows, GROUPS) for kind, rows in kinds.items()}
    drawn = (
        ("gaps", _draw_gaps(results, kinds)),
        ("orders", _draw_orders(results, kinds)),
        ("layers", orders.layers_figure(results, panels)),
        ("natural", _draw_natural(results, kinds.get("p05", []), natural)),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C15": "gaps"}  # the figure that shows a claim
LEVELS = {"p50": "prevalence 0.5", "p05": "prevalence 0.05", "e10": "exposure 0.1"}
GROUPS = {"frequent feature": (FREQUENT,), "rare feature": (RARE,)}
CAPTIONS = {
    "gaps": "Variance explained by a feature that is present in half of the training examples, and by an equally "
    "complex one that is present in fewer, or whose label enters the loss in fewer. Measured on the crossed probe "
    "set. A dot is a seed, the mean over both output orders; marks are means over seeds with 95 % intervals. Grey "
    "marks are floors.",
    "orders": "The same by output order: which of the two features is reported first.",
    "layers": "The same at every layer of the encoder, averaged over tokens, and for all tokens of its output side "
    "by side.",
    "natural": "Variance explained by the rare feature on the crossed and on the natural probe set; fewer seeds have the "
    "latter. The hollow mark is what the r2 of the crossed set becomes, in the same seeds, at a prevalence p of 0.05: "
    "r2 q / (1 - r2 + r2 q) with q = 4 p(1-p).",
}


def _draw_gaps(results: Results, kinds: dict[str, list[str]]) -> Figure | None:
    if not kinds:
        return None
    figure, panels = draw.grid(1, 1, 5.0, 4.2)
    (axes,) = panels[0]
    orders.draw_levels(axes, results, {LEVELS[kind]: rows for kind, rows in kinds.items()}, GROUPS)
    passed = contrasts.passing(results, [setting for rows in kinds.values() for setting in rows])
    draw.label(axes, f"both orders\n({passed})", "", draw.VARIANCE)
    return draw.finish(figure)


def _draw_orders(results: Results, kinds: dict[str, list[str]]) -> Figure | None:
    if not kinds:
        return None
    figure, panels = draw.grid(1, 2, 4.6, 4.2, one_scale=True)
    for i, (axes, name) in enumerate(zip(panels[0], ("frequent first", "rare first"), strict=True)):
        levels = {LEVELS[kind]: rows[i : i + 1] for kind, rows in kinds.items()}
        orders.draw_levels(axes, results, levels, GROUPS)
        passed = contrasts.passing(results, [setting for rows in levels.values() for setting in rows])
        draw.label(axes, f"{name}\n({passed})", "", draw.VARIANCE)
    return draw.finish(figure)


def _draw_natural(results: Results, crossed: list[str], natural: list[str]) -> Figure | None:
    if not crossed or not natural:
        return None
    figure, panels = draw.grid(1, 1, 4.6, 3.8)
    (axes,) = panels[0]
    orders.draw_levels(axes, results, {"crossed set": crossed, "natural set": natural}, {"the rare feature": (RARE,)})
    seeds = results.values(natural[0], "r2", RARE).index  # the natural set has fewer
    r2 = np.array([results.values(setting, "r2", RARE).reindex(seeds) for setting in crossed])
    predicted = pd.Series(natural_r2(r2, np.full(r2.shape, 0.05)).ravel()).mean()
    axes.plot(
        [1.15], [predicted], "o", markerfacecolor="none", color=STYLES[1]["color"], label="predicted from the crossed set"
    )
    draw.label(axes, f"prevalence 0.05\n(crossed: {contrasts.passing(results, crossed)})", "", draw.VARIANCE)
    return draw.finish(figure)
