"""Whether the feature learned first is represented more strongly (claims C05, C06, C07).

Claim: training the hard feature first narrows the gap, but easy still wins; of two equally complex features the one that
  is learned first is represented more strongly.
Paper: Lampinen, Chan and Hermann 2024 (learning order); phases, ramp and all sizes are ours.

  python -m experiments.run --experiment=learning_order --workdir=DIR                   full: 16 seeds, three conditions
  python -m experiments.run --experiment=learning_order --workdir=DIR --preset=quick    SGD only

A training phase sets the weight of each output's loss. The switch to the second feature is a ramp: the weight of its loss
grows from 0.003 to 1 over 50 epochs, because a sudden switch would erase the feature learned first. The curves have more
points during the ramp. Statistics at the end of training (C05, C06, C07a) use only seeds in which the first feature stays
over 95 % correct throughout the ramp.

Settings, in three conditions: SGD at rate 0.1 (for the verdicts), Adam at rate 3e-4, and Adam whose optimizer state is
re-initialised at the switch (also in the settings without a switch):
  joint         identity (easy) and parity-4 (hard), both from the start
  hard_first    hard alone for 160 epochs, the ramp, then both for 160
  easy_first    easy alone for 160 epochs, the ramp, then both for 160
  first_a       two xor features, a and b: a alone, the ramp, then both
  first_b       the same, b first
  both_at_once  the same, both from the start
Under SGD the last three settings use rate 0.03. At rate 0.1, training the second xor temporarily erases the first one
in three of eight networks.

"Equal updates with both losses on": joint is measured after 160 epochs; hard_first also had 160 epochs with both losses at
full weight.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/learning_order/`.
Expected from the paper: the gap is narrower with hard first, and the feature learned first explains more.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import dataclasses

import numpy as np
import pandas as pd

from repbias_jax.config import Config, Experiment, Keep, Preset, Training
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, gate

EASY, HARD = "parity1", "parity4"
A, B = "parity2_1", "parity2_2"
ALONE, RAMP, BOTH = 160, 50, 160  # epochs
TOTAL = ALONE + RAMP + BOTH
RUNGS = 10  # training phases of the ramp
SWITCH = ALONE / TOTAL  # share of training at which the second feature is switched on
ENDS = (*((ALONE + RAMP * k / RUNGS) / TOTAL for k in range(RUNGS + 1)), 1.0)
RAMPED = (0.0, *(float(w) for w in np.geomspace(0.003, 1.0, RUNGS + 1)[:-1].round(4)), 1.0)
FIRST, SECOND = (tuple((1.0, w) for w in RAMPED), tuple((w, 1.0) for w in RAMPED))
TWO = ("task.features", ("parity2", "parity2"))
STAGED = ("hard_first", "easy_first", "first_a", "first_b")
ORDERS = ((("joint", "hard_first", "easy_first"), (EASY, HARD)), (("both_at_once", "first_a", "first_b"), (A, B)))

EXPERIMENT = Experiment(
    name="learning_order",
    title="Learned first: does the order of learning decide what fills the representation?",
    config=Config(
        BinaryOptions(num_probe=1024),  # half the default, so that snapshots every 640 steps take 5 GB
        MLPOptions(),
        training=Training(
            epochs=TOTAL, phase_ends=ENDS, loss_weights=((1.0, 1.0),) * len(ENDS), dense=(SWITCH, SWITCH + RAMP / TOTAL)
        ),
        keep=Keep(every=640),
    ),
    settings=(
        ("joint", ()),
        ("hard_first", (("training.loss_weights", SECOND),)),
        ("easy_first", (("training.loss_weights", FIRST),)),
        ("first_a", (TWO, ("training.loss_weights", FIRST))),
        ("first_b", (TWO, ("training.loss_weights", SECOND))),
        ("both_at_once", (TWO,)),
    ),
    # Two equally complex features are trained at a lower rate, at which the first one stays learned while the second is
    # switched on. The rate was chosen by pass rate on seeds 1000 to 1015 (results/learning_order/tried.csv).
    tuned=tuple((f"sgd.{name}", (("optimizer.learning_rate", 0.03),)) for name in ("first_a", "first_b", "both_at_once")),
    conditions=(
        ("sgd", ()),
        ("adam", (("optimizer.name", "adam"), ("optimizer.learning_rate", 3e-4))),
        ("adam_reset", (("optimizer.name", "adam"), ("optimizer.learning_rate", 3e-4), ("optimizer.reset_phase", 1))),
    ),
    probes=("variance",),
    presets=(
        ("full", Preset(16)),
        (
            "quick",
            Preset(
                12,
                settings=("joint", "hard_first", "first_a", "first_b"),
                conditions=("sgd",),
                overrides=(("task.num_train", 4096), ("training.epochs", 296), ("keep.every", 256)),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                conditions=("sgd",),
                overrides=(
                    ("model.widths", (32, 16)),
                    ("task.num_train", 256),
                    ("task.num_test", 128),
                    ("task.num_probe", 128),
                    ("training.epochs", 37),
                    ("training.observe_every", 8),
                    ("keep.every", 2),
                ),
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C05 to C07; a claim whose settings were not run has no parts and is not measured."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _steps(results: Results, setting: str) -> tuple[int, int, int]:
    """Returns three steps: the one after BOTH epochs, at which `joint` is read, that of the switch, and the last one."""
    end = results.last_step(setting)
    return round(end * BOTH / TOTAL), round(end * SWITCH), end


def _narrows(results: Results, joint: str, hard_first: str) -> tuple[Part, ...]:
    equal, switch, end = _steps(results, joint)
    gaps, accuracies, at_mastery = [], [], []
    for setting, step in ((joint, equal), (hard_first, end)):
        first, second = contrasts.pair(results, setting, "r2", EASY, HARD, step=step)
        gaps.append(first - second)
        accuracies.append(contrasts.accuracy_gap(results, setting, EASY, HARD, step))
        at_mastery.append(_gap_at_mastery(results, setting, EASY, HARD))
    passed = gate(
        results, [(joint, (EASY, HARD), [equal]), (hard_first, (EASY, HARD), [end]), (hard_first, (HARD,), [(switch, end)])]
    )
    text = "gap when both are trained at once minus gap when hard is trained first, equal updates with both losses on"
    secondary, accuracy = at_mastery[0] - at_mastery[1], sum(accuracies) / 2
    return (
        Part(
            "", text, gaps[0] - gaps[1], passed, +1, 0.02, secondary=secondary,
            secondary_statistic="the same when both are mastered", accuracy=accuracy,
        ),
    )  # fmt: skip


def _gap_at_mastery(results: Results, setting: str, first: str, second: str) -> pd.Series:
    """Returns r2(first) - r2(second) by seed, at the first snapshot at which both are mastered."""
    curves = [contrasts.curve(results, setting, "r2", feature) for feature in (first, second)]
    return contrasts.at_steps(curves[0] - curves[1], _both_mastered(results, setting, first, second))


def _both_mastered(results: Results, setting: str, first: str, second: str) -> pd.Series:
    """Returns for each seed the first snapshot at which both features are mastered."""
    regular = _regular(results, setting)
    mastered = np.maximum(*(results.mastery(setting, feature, every=regular) for feature in (first, second)))
    return contrasts.next_snapshot(contrasts.curve(results, setting, "r2", first).index, mastered)


def _regular(results: Results, setting: str) -> int:
    """Returns the number of steps between regular evaluations, without the additional ones during the ramp."""
    return int(results.settings.loc[setting, "training.observe_every"])


def _still(results: Results, hard_first: str) -> tuple[Part, ...]:
    _, switch, end = _steps(results, hard_first)
    passed = gate(results, [(hard_first, (EASY, HARD), [end]), (hard_first, (HARD,), [(switch, end)])])
    gap = contrasts.difference(results, hard_first, "", "when hard is trained first", (EASY, HARD), 0.02)
    return (dataclasses.replace(gap, passed=passed),)


def _first(results: Results, first_a: str, first_b: str) -> tuple[Part, ...]:
    """Returns the parts of C07, with roles swapped: each value is the mean over a first and b first, within a seed."""
    at_end, logs, accuracies, mastered, late, both = [], [], [], [], [], []
    for setting, first, second in ((first_a, A, B), (first_b, B, A)):
        _, switch, end = _steps(results, setting)
        one, other = contrasts.pair(results, setting, "r2", first, second)
        at_end.append(one - other)
        logs.append(contrasts.log_ratio(results, setting, first, second))
        accuracies.append(contrasts.accuracy_gap(results, setting, first, second))
        mastered.append(_gap_at_mastery(results, setting, first, second))
        late += [(setting, (first, second), [end]), (setting, (first,), [(switch, end)])]
        both.append((setting, (first, second), [_both_mastered(results, setting, first, second)]))
    text = "r2(learned first) - r2(learned second), two xor features, roles swapped,"
    ratios, floored = zip(*logs, strict=True)
    return (
        Part(
            "a", f"{text} at the end", sum(at_end) / 2, gate(results, late), +1, 0.02, secondary=sum(ratios) / 2,
            secondary_statistic=contrasts.LOG_RATIO, floored=sum(floored),
            accuracy=sum(accuracies) / 2,
        ),
        Part("b", f"{text} at mastery of the second", sum(mastered) / 2, gate(results, both), +1, 0.02),
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C05": ("Training hard first narrows the gap", "narrows", ("joint", "hard_first"), _narrows, "P"),
    "C06": ("... but easy still wins", "easy still wins", ("hard_first",), _still, "P"),
    "C07": (
        "Of two equally complex features the first learned is represented more strongly", "the first learned",
        ("first_a", "first_b"), _first, "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions and settings that were run."""
    drawn = [
        ("order", _draw_order(results)),
        ("mastery", _draw_mastery(results)),
        ("along_orders", _draw_along(results, *ORDERS[0])),
        ("along_equals", _draw_along(results, *ORDERS[1])),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


CAPTIONS = {
    "order": "Share of the penultimate layer's variance that each feature explains, by the order in which the "
    "features were trained. Jointly trained networks are measured after as many updates with both losses on as the "
    "staged networks have had at their end. Left: an easy and a hard feature. Right: two features of equal "
    "complexity. Each dot is a seed; marks are means over seeds with 95 % intervals. Grey marks are floors.",
    "mastery": "Left: number of updates until a feature is mastered (the first of three evaluations in a row in "
    "which each of its classes is over 95 % correct). Right: the gap, r2(easy) - r2(hard) or r2(a) - r2(b), at the "
    "first snapshot at which both features are mastered, and at the step that the figure `order` shows. In `first "
    "b`, a gap below zero favours the feature learned first. Each dot is a seed; marks are means over seeds with 95 "
    "% intervals. Grey marks are the gaps of the unused twins.",
    "along_orders": "Top: variance explained during training. The vertical line marks the switch, after which the "
    "second feature's loss is ramped up. Bottom: accuracy, evaluated every few updates after the switch. Lines are "
    "means over seeds with 95 % bands.",
    "along_equals": "The same for two features of equal complexity, a and b: both from the start, a first, or b first.",
}

# The figure that shows a claim or a part of it; the default is the first figure.
FIGURES = {"C07b": "mastery"}


def _draw_order(results: Results) -> Figure | None:
    conditions = contrasts.conditions(results, "joint", "first_a")
    if not conditions:
        return None
    figure, panels = draw.grid(len(conditions), 2, 4.4, 3.4)
    for row, condition in zip(panels, conditions, strict=True):
        for axes, (names, features) in zip(row, ORDERS, strict=True):
            _draw_bars(axes, results, condition, names, features)
    return draw.finish(figure)


def _read_at(results: Results, setting: str) -> int:
    """Returns the step at which an order is read: after equal updates with both losses on."""
    return _steps(results, setting)[2 if setting.split(".")[1] in STAGED else 0]


def _draw_mastery(results: Results) -> Figure | None:
    conditions = contrasts.conditions(results, "joint", "first_a")
    if not conditions:
        return None
    figure, panels = draw.grid(len(conditions), 2, 5.2, 3.4)
    for (left, right), condition in zip(panels, conditions, strict=True):
        orders = {f"{condition}.{n}": pair for names, pair in ORDERS for n in names if results.has(f"{condition}.{n}")}
        _draw_times(left, results, orders)
        _draw_gaps(right, results, orders)
        for axes, y in (
            (left, "updates until mastery (steps)"),
            (right, "gap: easy - hard, or a - b\n(share of variance)"),
        ):
            axes.set_xticks(range(len(orders)), [s.split(".")[1].replace("_", "\n", 1).replace("_", " ") for s in orders])
            axes.set_xlim(-0.5, len(orders) - 0.5)
            draw.label(axes, f"{condition} ({contrasts.passing(results, list(orders))})", "order of training", y)
    return draw.finish(figure)


def _draw_times(axes: Axes, results: Results, orders: dict[str, tuple[str, str]]) -> None:
    for i, name in enumerate(("easy, or a", "hard, or b")):
        steps = {s: results.mastery(s, pair[i], every=_regular(results, s)) for s, pair in orders.items()}
        style = STYLES[i] | {"linestyle": "none"}
        draw.dots(axes, range(len(orders)), pd.DataFrame(steps).T, name, style, shift=0.2 * i - 0.1)
    axes.set_ylim(bottom=0)


def _draw_gaps(axes: Axes, results: Results, orders: dict[str, tuple[str, str]]) -> None:
    def late(setting: str, prefix: str = "") -> pd.Series:
        features = (prefix + feature for feature in orders[setting])
        one, other = contrasts.pair(results, setting, "r2", *features, step=_read_at(results, setting))
        return one - other

    x, early = np.arange(len(orders)), {s: _gap_at_mastery(results, s, *pair) for s, pair in orders.items()}
    for gaps, name, style, shift in (
        (early, "gap when both are mastered", STYLES[2], -0.1),
        ({s: late(s) for s in orders}, "gap after equal updates", STYLES[3], 0.1),
    ):
        draw.dots(axes, x, pd.DataFrame(gaps).T, name, style | {"linestyle": "none"}, shift=shift)
    draw.floor(axes, x + 0.25, [late(s, "twin_").mean() for s in orders], "gap of the unused twins", "d")
    axes.axhline(0, linestyle=(0, (1, 2)), label="no gap", **draw.FLOOR)


def _draw_bars(axes: Axes, results: Results, condition: str, names: tuple[str, ...], features: tuple[str, str]) -> None:
    names = tuple(name for name in names if results.has(f"{condition}.{name}"))
    settings = [f"{condition}.{name}" for name in names]
    x = np.arange(len(settings))
    steps = {s: _read_at(results, s) for s in settings}
    for feature, side, style in zip(features, (-1, +1), STYLES, strict=False):
        r2 = pd.DataFrame({s: results.values(s, "r2", feature, step=steps[s]) for s in settings}).T
        draw.dots(axes, list(x), r2, feature, style | {"linestyle": "none"}, shift=0.12 * side)
        untrained = [results.values(s, "r2", feature, step=0).mean() for s in settings]
        draw.floor(axes, x + 0.26 * side, untrained, "untrained network", "x")
        twins = [results.values(s, "r2", f"twin_{feature}", step=steps[s]).mean() for s in settings]
        draw.floor(axes, x + 0.34 * side, twins, "unused twin", "d")
    contrasts.null_band(axes, results, settings[0], features[1])
    axes.set_xticks(x, [name.replace("_", " ") for name in names])
    axes.set_xlim(-0.6, len(settings) - 0.4)
    draw.label(axes, f"{condition} ({contrasts.passing(results, settings)})", "order of training", draw.VARIANCE)


def _draw_along(results: Results, names: tuple[str, ...], features: tuple[str, str]) -> Figure | None:
    settings = [found[0] for name in names if (found := contrasts.run_in(results, name))]  # in the first condition
    if not settings:
        return None
    figure, panels = draw.grid(2, len(settings), 3.6, 2.7)
    for top, bottom, setting in zip(panels[0], panels[1], settings, strict=True):
        top.sharey(panels[0][0])
        for feature, style, twin in zip(features, STYLES, STYLES[4:], strict=False):
            draw.band(top, contrasts.curve(results, setting, "r2", feature), feature, style)
            unused = contrasts.curve(results, setting, "r2", f"twin_{feature}")
            draw.band(top, unused, f"unused twin of {feature}", twin | {"marker": ""})
            draw.band(bottom, results.accuracy(setting, feature, "accuracy"), feature, style, within=draw.SHARE)
        contrasts.null_band(top, results, setting, features[1])
        for axes in (top, bottom) if setting.split(".")[1] in STAGED else ():
            axes.axvline(_steps(results, setting)[1], linestyle="-", label="switch", **draw.FLOOR)
        bottom.set_ylim(top=1.03)
        bottom.axhline(0.95, linestyle=(0, (4, 3)), label="95 %", **draw.FLOOR)
        draw.label(top, setting, "updates (steps)", draw.VARIANCE)
        draw.label(bottom, "Accuracy on test data", "updates (steps)", "balanced accuracy (share)")
    return draw.finish(figure)
