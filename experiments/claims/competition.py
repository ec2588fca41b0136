"""How a feature's variance changes when the network is also trained on other features (claim C09).

Claim: a feature is represented more strongly alone, or with fewer others.
Paper: Lampinen, Chan and Hermann 2024 (number of features); others, control and all sizes are ours.

  python -m experiments.run --experiment=competition --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=competition --workdir=DIR --preset=quick    SGD only, the easy target: no verdict

A network is trained on a target, easy (identity) or hard (parity-4), alone or together with other features: 1, 2, 4 or 8
identities, 1, 2 or 4 xor features, or 1, 2 or 4 parity-4 features. No output is trained on one further copy of the target,
which serves as the floor. The target's share of variance falls whenever another feature adds variance, even if the target's
own variance stays the same. The claim is therefore about the target's absolute variance; its variance relative to the part
that no feature explains is also reported. In the controls `easy_same` and `hard_same`, five outputs are trained on the
target: as many outputs as with four others, but nothing new to learn.

Settings: <target>_alone, <target>_<others><number> with others easy, xor or par4, <target>_same.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/competition/`.
Expected from the paper: the target has less variance among other features.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, SEEDS_OF_MAP, SMOKE
from repbias_jax.config import Config, Experiment, Overrides, Preset
from repbias_jax.data.binary import BinaryOptions, feature_names
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

TARGETS = {"easy": "parity1", "hard": "parity4"}
OTHERS = {"easy": ("parity1", (1, 2, 4, 8)), "xor": ("parity2", (1, 2, 4)), "par4": ("parity4", (1, 2, 4))}
COPIES = 5  # outputs that are trained on the target in the controls


def _setting(target: str, other: str = "", number: int = 0, copies: int = 1) -> Overrides:
    """Returns a setting's features and outputs: the target, the others, and last a copy of the target without an output."""
    features = (TARGETS[target], *(OTHERS[other][0] if other else "",) * number, TARGETS[target])
    task = BinaryOptions(features=features)
    names = feature_names(task)
    return ("task.features", features), ("task.outputs", (names[0],) * copies + names[1:-1])


def cells() -> dict[str, tuple[str, str, int]]:
    """Returns every setting except the controls, with its target, its other features and their number."""
    found = {f"{target}_alone": (target, "", 0) for target in TARGETS}
    for target in TARGETS:
        for other, (_, numbers) in OTHERS.items():
            found |= {f"{target}_{other}{n}": (target, other, n) for n in numbers}
    return found


EXPERIMENT = Experiment(
    name="competition",
    title="Alone or among others: what a feature loses to others that are trained with it",
    config=Config(BinaryOptions(twins=False), MLPOptions()),
    settings=(
        *((name, _setting(*cell)) for name, cell in cells().items()),
        *((f"{target}_same", _setting(target, copies=COPIES)) for target in TARGETS),
    ),
    seed_caps=tuple((name, SEEDS_OF_MAP) for name in cells() if not name.endswith(("_alone", "_xor4"))),
    # From 8,192 examples few networks learn parity-4 among four xor features, at any rate or length that was tried. From
    # twice as many most do, so all settings with that target have twice as many (results/competition/tried.csv).
    tuned=tuple(
        (f"{condition}.{name}", (("task.num_train", 16384),))
        for condition, _ in CONDITIONS
        for name in (*cells(), "hard_same")
        if name.startswith("hard")
    ),
    conditions=CONDITIONS,
    probes=("variance", "partition"),
    presets=(
        ("full", Preset(16)),
        (
            "quick",
            Preset(
                8,
                settings=("easy_alone", "easy_xor4", "easy_same"),
                conditions=("sgd",),
                overrides=(("training.epochs", 32),),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                settings=("easy_alone", "easy_xor4"),
                conditions=("sgd",),
                overrides=(*SMOKE, ("task.num_probe", 256)),
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C09, for both targets; if any of its settings was not run, it has no parts and is not measured."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _lose(results: Results, *names: str) -> tuple[Part, ...]:
    """Returns one part per target, each from two settings: the target alone, and among others."""
    return tuple(
        _loses(results, label, target, *names[2 * i : 2 * i + 2])
        for i, (label, target) in enumerate(zip("ab", TARGETS, strict=True))
    )


def _loses(results: Results, label: str, target: str, alone: str, crowded: str) -> Part:
    name = target_of(results, alone)
    variances = [results.values(s, "variance", name) for s in (alone, crowded)]
    total = results.values(alone, "total_variance")
    passed = contrasts.all_at_end(results, (alone, crowded))
    text = f"variance({name}) alone minus among 4 xor features, {target} target, as a share of all variance when alone"
    (one, low), (other, also) = (_over_unexplained(results, s, name) for s in (alone, crowded))
    accuracies = [results.accuracy(s, name, "accuracy").iloc[-1] for s in (alone, crowded)]
    return Part(
        label, text, (variances[0] - variances[1]) / total, passed, +1, 0.02, secondary=np.log(one / other),
        secondary_statistic="log ratio of r2 over the share that no feature explains",
        floored=low.astype(int) + also.astype(int), accuracy=accuracies[0] - accuracies[1],
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C09": (
        "A feature is represented more strongly alone, or with fewer others", "more strongly alone",
        tuple(f"{target}_{others}" for target in TARGETS for others in ("alone", "xor4")), _lose, "P",
    ),
}  # fmt: skip


def target_of(results: Results, setting: str) -> str:
    """Returns the name of the target's factor, which is the first output."""
    return results.outputs(setting)[0]


def copy_of(target: str, other: str, number: int) -> str:
    """Returns the factor name of the copy of the target that no output reports: the last feature of its kind."""
    alike = bool(other) and OTHERS[other][0] == TARGETS[target]
    return f"{TARGETS[target]}_{2 + number * alike}"


def _over_unexplained(results: Results, setting: str, name: str) -> tuple[pd.Series, pd.Series]:
    """Returns r2 (as in `above_null`) over the share that no feature explains, and which seeds were raised."""
    r2, low = contrasts.above_null(results, setting, name)
    ratio = r2 / (1 - results.values(setting, "joint_r2"))
    return ratio.where(ratio > 0), low


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions and settings that were run."""
    conditions = contrasts.conditions(results)
    drawn = [
        (name, _draw_numbers(results, conditions, metric, label))
        for name, metric, label in (
            ("share", "r2", draw.VARIANCE),
            ("absolute", "variance", "variance explained\n(squared activation units)"),
        )
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


CAPTIONS = {
    "share": "Share of the penultimate layer's variance that the target explains, by the number of other features "
    "trained with it. Each dot is a seed; marks are means over seeds with 95 % intervals. A share falls whenever "
    "another feature adds variance, even if the target's own variance stays the same.",
    "absolute": "The same for the target's absolute variance, which does not fall just because another feature adds "
    "variance. In the control, five outputs are all trained on the target: as many outputs as with four other "
    "features, but nothing new to learn.",
}

# The figure that shows a claim or a part of it; the default is the first figure.
FIGURES = {"C09": "absolute"}


def _draw_numbers(results: Results, conditions: list[str], metric: str, y_label: str) -> Figure | None:
    shown = [(c, t) for c in conditions for t in TARGETS if results.has(f"{c}.{t}_alone")]
    if not shown:
        return None
    figure, panels = draw.grid(len(shown) // len(TARGETS) or 1, min(len(shown), len(TARGETS)), 4.4, 3.4)
    for axes, (condition, target) in zip(panels.flat, shown, strict=True):
        _draw_target(axes, results, condition, target, metric, y_label)
    return draw.finish(figure)


def _draw_target(axes: Axes, results: Results, condition: str, target: str, metric: str, y_label: str) -> None:
    places, settings = {0: 0.0, 1: 1.0, 2: 2.0, 4: 3.0, 8: 4.0}, []
    for i, (other, (feature, _)) in enumerate(OTHERS.items()):
        own = [
            (n, f"{condition}.{name}")
            for name, (t, o, n) in cells().items()
            if t == target and o in ("", other) and results.has(f"{condition}.{name}")
        ]
        settings += [s for _, s in own]
        values = pd.DataFrame({n: results.values(s, metric, target_of(results, s)) for n, s in own}).T
        x = [places[n] for n, _ in own]
        shift = 0.08 * (i - 1)
        draw.dots(axes, x, values, f"others: {feature}", STYLES[i], shift=shift)
        untrained = [results.values(s, metric, target_of(results, s), step=0).mean() for _, s in own]
        unused = [results.values(s, metric, copy_of(target, other if n else "", n)).mean() for n, s in own]
        draw.floor(axes, np.add(x, shift), untrained, "target, untrained network", "x")
        draw.floor(axes, np.add(x, shift), unused, "unused copy of the target", "d")
    alone, same = f"{condition}.{target}_alone", f"{condition}.{target}_same"
    if results.has(same):
        control = pd.DataFrame({0: results.values(same, metric, target_of(results, same))}).T
        draw.dots(axes, [places[4]], control, "control: target five times", STYLES[3] | {"linestyle": "none"}, shift=0.3)
    if metric == "r2":
        contrasts.null_band(axes, results, alone, target_of(results, alone))
    axes.set_xlim(-0.5, max(places.values()) + 0.5)
    axes.set_xticks(list(places.values()), [str(n) for n in places])
    title = f"{target} target, {condition} ({contrasts.passing(results, list(dict.fromkeys(settings)))})"
    draw.label(axes, title, "number of other trained features", y_label)
