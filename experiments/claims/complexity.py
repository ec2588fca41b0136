"""Easy against hard features (claims C01 to C04 and C36).

Claim: of two features with the same role, both learned perfectly, the simpler one explains more of the representation.
Paper: Lampinen, Chan and Hermann 2024 (feature complexity); C02, C36 and all sizes are ours.

  python -m experiments.run --experiment=complexity --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=complexity --workdir=DIR --preset=quick    SGD only, shorter

Settings, each in two conditions (SGD at rate 0.1 for the verdicts; Adam at rate 3e-4, exploratory):
  joint       identity (easy) and parity-4 (hard), cross-entropy
  squared     the same with squared loss on +/-1 targets
  along       the same as joint, with activations kept every few steps
  along_easy  the same data and initial weights as along, trained on easy only
  ladder      parity-1, 2, 3, 4 in one model
  equal       majority-of-3 and parity-3: equal arity, unequal complexity
  composed    identity and (majority-of-3 xor majority-of-3)

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/complexity/`.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, LADDER, SMOKE
from repbias_jax.config import Config, Experiment, Preset
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, gate

EASY, HARD = "parity1", "parity4"
RUNGS = ("parity1", "parity2", "parity3", "parity4")
EQUAL = ("majority3", "parity3")
COMPOSED = "majority3_xor"
DENSE = (
    ("task.num_probe", 384),
    ("task.num_test", 1024),
    ("keep.every", 8),
    ("keep.until", 3584),
    ("keep.every_late", 128),
)

EXPERIMENT = Experiment(
    name="complexity",
    title="Easy against hard features: which fills the representation?",
    config=Config(BinaryOptions(), MLPOptions()),
    settings=(
        ("joint", ()),
        ("squared", (("training.loss", "squared"),)),
        ("along", DENSE),
        ("along_easy", (*DENSE, ("training.loss_weights", ((1.0, 0.0),)))),
        ("ladder", (("task.features", RUNGS),)),
        ("equal", (("task.features", EQUAL),)),
        ("composed", (("task.features", (EASY, COMPOSED)),)),
    ),
    conditions=CONDITIONS,
    # These values were chosen by pass rate on seeds 1000 to 1015; results/complexity/tried.csv lists what was tried.
    tuned=(("sgd.ladder", (("optimizer.learning_rate", 0.02), ("training.epochs", 320))),),
    probes=("variance", "walsh", "partition", "readout"),
    presets=(
        ("full", Preset(16)),
        (
            "quick",
            Preset(
                16,
                settings=("joint", "squared", "equal", "composed"),
                conditions=("sgd",),
                overrides=(("training.epochs", 64), ("keep.every", 256)),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                conditions=("sgd",),
                overrides=(*SMOKE, ("task.num_probe", 2048), ("keep.every", 16), ("keep.until", 0), ("keep.every_late", 0)),
            ),
        ),
    ),
)


# With one output unit for each feature the ladder takes longer to learn. These values were chosen by accuracy alone, on
# calibration seeds.
CONFIRMATION_TUNED = {"sgd.ladder": LADDER}


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C01 to C04 and C36; a claim whose settings were not run has no parts and is not measured."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _gap(results: Results, joint: str, squared: str) -> tuple[Part, ...]:
    return (
        contrasts.difference(results, joint, "a", "cross-entropy", (EASY, HARD), 0.05),
        contrasts.difference(results, squared, "b", "squared loss", (EASY, HARD), 0.05),
    )


def _ladder(results: Results, ladder: str, equal: str) -> tuple[Part, ...]:
    r2 = pd.DataFrame({rung: results.values(ladder, "r2", rung) for rung in RUNGS})
    slope = contrasts.slope(r2, np.arange(4.0))
    text = "slope of r2 over parity-1, 2, 3, 4 in one model, a rung"
    return (
        Part("a", text, slope, contrasts.at_end(results, ladder, RUNGS), -1, 0.02),
        contrasts.difference(results, equal, "b", "equal arity", EQUAL, 0.02),
    )


def _growth(results: Results, along: str, twin: str) -> tuple[Part, ...]:
    end = results.last_step(along)
    mastery = results.mastery(along, EASY)
    share = contrasts.curve(results, along, "r2_of_final", EASY)
    grown = share.loc[end] - contrasts.at_steps(share, mastery)
    begun, ended = _window(results, along)
    more = _relative_growth(results, along, begun, ended) - _relative_growth(results, twin, begun, ended)
    passed = gate(results, [(along, (EASY,), [mastery, end]), (along, (HARD,), [end])])
    inside = [(begun, ended)]
    window = gate(results, [(along, (EASY,), inside), (along, (HARD,), [end]), (twin, (EASY,), inside)])
    text = (
        "growth of easy's variance, relative to its value at mastery, per 1,000 updates while hard goes from 60 to 95 %, "
        "minus the same of its easy-only twin"
    )
    return (
        Part("a", "r2_of_final(easy) at the end minus at its mastery", grown, passed, +1, 0.02),
        Part("b", text, more, window, +1, 0.05),
    )


def _window(results: Results, setting: str) -> tuple[pd.Series, pd.Series]:
    """Returns, by seed, the first and last step of the window in which hard is learned; NaN where there is none.

    It begins at the first snapshot with a balanced accuracy over 60 % and ends at the first one at or after mastery (every
    class over 95 %, three evaluations in a row).
    """
    snapshots = contrasts.curve(results, setting, "variance", EASY).index
    accuracy = results.accuracy(setting, HARD, "accuracy")
    above = accuracy.loc[accuracy.index.isin(snapshots)] > 0.6
    begun = above.idxmax().where(above.any()).astype(float)
    mastered = results.mastery(setting, HARD)
    return begun, contrasts.next_snapshot(snapshots, mastered)


def _relative_growth(results: Results, setting: str, begun: pd.Series, ended: pd.Series) -> pd.Series:
    """Returns the slope of easy's variance in a window, per 1,000 updates, divided by that variance at easy's mastery.

    It is NaN if the window has fewer than 20 snapshots.
    """
    curve = contrasts.curve(results, setting, "variance", EASY)
    start = contrasts.at_steps(curve, results.mastery(setting, EASY))
    slopes = {}
    for seed in curve:
        inside = curve.loc[begun[seed] : ended[seed], seed] if np.isfinite(begun[seed] + ended[seed]) else curve[seed][:0]
        slopes[seed] = np.polyfit(inside.index, inside, 1)[0] * 1000 if len(inside) >= 20 else np.nan
    return pd.Series(slopes, dtype=float) / start


def _parts(results: Results, joint: str, composed: str) -> tuple[Part, ...]:
    proper = sum(
        results.values(joint, "walsh_r2", HARD, at=str(d)) - results.values(joint, "walsh_null", HARD, at=str(d))
        for d in (1, 2, 3)
    )
    inner = [results.values(composed, "r2", f"{COMPOSED}.majority_{x}") for x in "ab"]
    whole = results.values(composed, "r2", COMPOSED)
    return (
        Part(
            "a", f"Walsh parts of degree 1 to 3 of {HARD}'s block, each less its null, minus r2({HARD})",
            proper - results.values(joint, "r2", HARD), contrasts.at_end(results, joint, (EASY, HARD)), +1, 0.02,
        ),
        Part(
            "b", f"r2 of {COMPOSED}'s two inner majorities together minus r2 of the whole",
            inner[0] + inner[1] - whole, contrasts.at_end(results, composed, (EASY, COMPOSED)), +1, 0.02,
            secondary=(inner[0] + inner[1]) / 2 - whole,
            secondary_statistic="mean of the two minus the whole",
        ),
    )  # fmt: skip


def _readout(results: Results, joint: str) -> tuple[Part, ...]:
    easy, hard = (np.log(v) for v in contrasts.pair(results, joint, "readout_norm", EASY, HARD))
    text = f"log readout norm, {HARD} - {EASY}"
    return (Part("", text, hard - easy, contrasts.at_end(results, joint, (EASY, HARD)), +1, float(np.log(1.1))),)


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C01": (
        "Easy explains more variance than hard at equal accuracy", "about .55 against .05", ("joint", "squared"), _gap, "P",
    ),
    "C02": ("Variance explained falls with complexity", "falls", ("ladder", "equal"), _ladder, "ours; after P"),
    "C03": (
        "Easy goes on growing after mastery, most while hard is being learned", "grows, most then",
        ("along", "along_easy"), _growth, "P",
    ),
    "C04": (
        "Parts of the hard feature are represented more strongly than the whole", "more strongly", ("joint", "composed"),
        _parts, "P",
    ),
    "C36": ("The readout compensates: weak code, strong readout", "ours", ("joint",), _readout, "ours"),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions and settings that were run."""

    def run(setting: str) -> list[str]:
        return contrasts.run_in(results, setting)

    along = run("along") or run("joint")
    drawn = [
        ("gap", _draw_gap(results, run("joint") + run("squared"))),
        ("along", _draw_along(results, along)),
        ("layers", contrasts.by_condition(results, run("joint"), _draw_layers)),
        ("rungs", contrasts.by_condition(results, run("ladder"), _draw_rungs)),
        ("walsh", contrasts.by_condition(results, run("joint"), _draw_walsh)),
        ("parts", contrasts.by_condition(results, run("composed"), _draw_parts)),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


CAPTIONS = {
    "gap": "Share of the penultimate layer's variance that each feature explains at the end of training. Each dot is "
    "a seed; marks are means over seeds with 95 % intervals. The difference between the two marks of a pair is the "
    "bias. Grey marks are floors.",
    "along": "Top: variance explained during training, as a share of the FINAL total variance, so that growth is "
    "shown on one scale. Lines are means over seeds with 95 % bands. Bottom: accuracy on test data, which shows when "
    "each feature is learned.",
    "layers": "Share of each layer's variance explained by easy and hard after training, from input to logits. Each "
    "dot is a seed. Hard is absent from the input by construction: it is not a linear function of its bits.",
    "rungs": "Left: parities of 1 to 4 bits, all four in one model; a falling line is the bias toward simple "
    "features. Right: another model, trained on two functions of three bits, one linearly separable and one not. "
    "Dots are all seeds, whether or not they learned every feature.",
    "walsh": "Variance explained by products of 1, 2, 3 and 4 of the hard feature's bits, by degree. Each dot is a "
    "seed. Degree 4 is the feature itself; lower degrees are parts of it on which no output is trained.",
    "parts": "A hard feature, the xor of two majorities: variance explained by the two majorities together and by "
    "the whole feature, by layer. Each dot is a seed.",
}

# The figure that shows a claim or a part of it; the default is the first figure.
FIGURES = {"C02": "rungs", "C03": "along", "C04": "parts", "C04a": "walsh"}


def _draw_gap(results: Results, settings: list[str]) -> Figure | None:
    """Returns the main figure: easy and hard at the penultimate layer, one pair per setting."""
    if not settings:
        return None
    figure, ((axes,),) = draw.grid(1, 1, 5.2, 3.9)
    x = np.arange(len(settings))
    for feature, name, side, style in ((EASY, "easy", -1, STYLES[0]), (HARD, "hard", +1, STYLES[1])):
        r2 = pd.DataFrame({s: results.values(s, "r2", feature) for s in settings}).T
        draw.dots(axes, list(x), r2, f"{name} ({feature})", style | {"linestyle": "none"}, shift=0.12 * side)
        untrained = [results.values(s, "r2", feature, step=0).mean() for s in settings]
        draw.floor(axes, x + 0.26 * side, untrained, "untrained network", "x")
        twins = [results.values(s, "r2", f"twin_{feature}").mean() for s in settings]
        draw.floor(axes, x + 0.34 * side, twins, "unused twin", "d")
    contrasts.null_band(axes, results, settings[0], HARD)
    loss = {"joint": "cross-entropy", "squared": "squared loss"}
    axes.set_xticks(x, [f"{s.split('.')[0]}\n{loss[s.split('.')[1]]}" for s in settings])
    axes.set_xlim(-0.6, len(settings) - 0.4)
    draw.label(
        axes, f"Easy and hard features ({contrasts.passing(results, settings)})", "optimizer and loss", draw.VARIANCE
    )
    return draw.finish(figure)


def _draw_along(results: Results, settings: list[str]) -> Figure | None:
    if not settings:
        return None
    figure, panels = draw.grid(2, len(settings), 4.4, 2.9)
    for top, bottom, setting in zip(panels[0], panels[1], settings, strict=True):
        for i, feature in enumerate((EASY, HARD)):
            draw.band(top, contrasts.curve(results, setting, "r2_of_final", feature), feature, STYLES[i])
            twin = contrasts.curve(results, setting, "r2_of_final", f"twin_{feature}")
            draw.band(top, twin, f"unused twin of {feature}", STYLES[4 + i] | {"marker": ""})
            draw.band(bottom, results.accuracy(setting, feature, "accuracy"), feature, STYLES[i], within=draw.SHARE)
        alone = setting.replace(".along", ".along_easy")
        if alone != setting and results.has(alone):
            draw.band(top, contrasts.curve(results, alone, "r2_of_final", EASY), f"{EASY}, trained alone", STYLES[2])
        contrasts.null_band(top, results, setting, HARD)
        draw.floor(top, [0], [results.values(setting, "r2_of_final", EASY, step=0).mean()], "untrained network", "x")
        bottom.set_ylim(top=1.03)  # the interval of a mean accuracy can extend beyond 1
        bottom.axhline(0.95, linestyle=(0, (4, 3)), label="95 %", **draw.FLOOR)
        draw.label(top, f"Along training, {setting}", "updates (steps)", "variance explained,\nr2 of final (share)")
        draw.label(bottom, "Accuracy on test data", "updates (steps)", "balanced accuracy\n(share)")
    return draw.finish(figure)


def _draw_layers(axes: Axes, results: Results, setting: str) -> None:
    sites = results.sites(setting)
    contrasts.layers(axes, results, setting, EASY, HARD, sites)
    contrasts.null_band(axes, results, setting, HARD)
    axes.set_xticks(range(len(sites)), sites, rotation=30, ha="right")
    draw.label(axes, f"By layer, {setting}", "layer, from input to output", draw.VARIANCE)


def _draw_rungs(axes: Axes, results: Results, setting: str) -> None:
    x = [1, 2, 3, 4]
    r2 = pd.DataFrame({r: results.values(setting, "r2", r) for r in RUNGS}).T
    draw.dots(axes, x, r2, "parities, one model", STYLES[0])
    draw.floor(axes, x, [results.values(setting, "r2", r, step=0).mean() for r in RUNGS], "untrained network", "x")
    draw.floor(axes, x, [results.values(setting, "r2", f"twin_{r}").mean() for r in RUNGS], "unused twins", "d")
    equal = setting.replace("ladder", "equal")
    if results.has(equal):
        for feature, place, style in ((EQUAL[0], 4.85, STYLES[1]), (EQUAL[1], 5.15, STYLES[2])):
            pair = pd.DataFrame({feature: results.values(equal, "r2", feature)}).T
            draw.dots(axes, [place], pair, f"{feature}, model of two", style | {"linestyle": "none"})
    contrasts.null_band(axes, results, setting, RUNGS[0])
    axes.set_xticks([*x, 5], ["1", "2", "3", "4", "3 bits"] if results.has(equal) else ["1", "2", "3", "4", ""])
    draw.label(
        axes,
        f"By complexity, {setting} ({contrasts.passing(results, [setting])})",
        "bits of the parity; right: a model of two",
        draw.VARIANCE,
    )


def _draw_walsh(axes: Axes, results: Results, setting: str) -> None:
    hidden = contrasts.hidden(results, setting)
    x = list(range(len(hidden)))
    for degree in range(1, 5):
        name = f"degree {degree}" + (" (the feature)" if degree == 4 else "")
        share = contrasts.by_layer(results, setting, "walsh_r2", HARD, hidden, at=str(degree))
        draw.dots(axes, x, share, name, STYLES[degree - 1], shift=0.07 * (degree - 2.5))
    start = contrasts.by_layer(results, setting, "walsh_r2", HARD, hidden, at="1", step=0).mean(axis=1)
    draw.floor(axes, x, start, "degree 1, untrained", "x")
    draw.floor(
        axes,
        x,
        contrasts.by_layer(results, setting, "r2", f"twin_{HARD}", hidden).mean(axis=1),
        f"unused twin of {HARD}",
        "d",
    )
    contrasts.null_band(axes, results, setting, HARD)
    axes.set_xticks(x, hidden)
    draw.label(axes, f"Walsh spectrum of {HARD}'s bits, {setting}", "layer", draw.VARIANCE)


def _draw_parts(axes: Axes, results: Results, setting: str) -> None:
    hidden = contrasts.hidden(results, setting)
    x = list(range(len(hidden)))
    a, b = (contrasts.by_layer(results, setting, "r2", f"{COMPOSED}.majority_{k}", hidden) for k in "ab")
    draw.dots(axes, x, a + b, "its two majorities together", STYLES[2], shift=-0.06)
    draw.dots(
        axes,
        x,
        contrasts.by_layer(results, setting, "r2", COMPOSED, hidden),
        "the whole (xor of the two)",
        STYLES[1],
        shift=0.06,
    )
    start = contrasts.by_layer(results, setting, "r2", COMPOSED, hidden, step=0).mean(axis=1)
    draw.floor(axes, x, start, "the whole, untrained", "x")
    twin = contrasts.by_layer(results, setting, "r2", f"twin_{COMPOSED}", hidden).mean(axis=1)
    draw.floor(axes, x, twin, "unused twin of the whole", "d")
    contrasts.null_band(axes, results, setting, COMPOSED)
    axes.set_xticks(x, hidden)
    draw.label(axes, f"Parts and whole, {setting}", "layer", draw.VARIANCE)
