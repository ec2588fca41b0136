"""Easy against hard features (claims C01 to C04 and C36).

Claim: of two features with the same role, both learned perfectly, the simpler fills more of the representation.
Paper: Lampinen, Chan and Hermann 2024, the section on feature complexity; C02, C36 and all sizes are ours.

  python -m experiments.run --experiment=complexity --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=complexity --workdir=DIR --preset=quick    SGD only, shorter

Settings, each in two columns (SGD 0.1, which carries the verdicts, and Adam 3e-4, exploratory):
  joint       identity (easy) and parity-4 (hard), cross-entropy
  squared     the same with squared loss on +/-1 targets
  along       joint again, with activations kept every few steps
  along_easy  its twin: same data and initial weights, only easy asked for
  ladder      parity-1, 2, 3, 4 in one model
  equal       majority-of-3 and parity-3: equal arity, unequal complexity
  composed    identity and (majority-of-3 xor majority-of-3)

Cost and outcome of the reference run: `experiments/results/complexity/manifest.json` and `claims.csv` beside it.
"""

import numpy as np
import pandas as pd

from repbias_jax.config import Config, Experiment, Keep, Preset
from repbias_jax.measure import Results
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Drawn
from repbias_jax.statistics import Claim, Part, gate

EASY, HARD = "parity1", "parity4"
RUNGS = ("parity1", "parity2", "parity3", "parity4")
EQUAL = ("majority3", "parity3")
COMPOSED = "majority3_xor"
DENSE = (
    ("task.num_probe", 512),
    ("task.num_test", 1024),
    ("keep.every", 8),
    ("keep.until", 4096),
    ("keep.every_late", 128),
)

EXPERIMENT = Experiment(
    name="complexity",
    title="Easy against hard features: which fills the representation?",
    config=Config(keep=Keep(every=0)),
    settings=(
        ("joint", ()),
        ("squared", (("training.loss", "squared"),)),
        ("along", DENSE),
        ("along_easy", (*DENSE, ("training.loss_weights", ((1.0, 0.0),)))),
        ("ladder", (("task.features", RUNGS),)),
        ("equal", (("task.features", EQUAL),)),
        ("composed", (("task.features", (EASY, COMPOSED)),)),
    ),
    columns=(("sgd", ()), ("adam", (("optimizer.name", "adam"), ("optimizer.learning_rate", 3e-4)))),
    probes=("variance", "walsh", "partition", "readout"),
    presets=(
        ("full", Preset(16)),
        (
            "quick",
            Preset(
                16,
                settings=("joint", "squared", "equal", "composed"),
                columns=("sgd",),
                overrides=(("training.epochs", 64), ("keep.every", 256)),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                columns=("sgd",),
                overrides=(
                    ("model.widths", (32, 16)),
                    ("task.num_train", 512),
                    ("task.num_test", 256),
                    ("task.num_probe", 2048),
                    ("training.epochs", 8),
                    ("training.observe_every", 8),
                    ("keep.every", 16),
                    ("keep.until", 0),
                    ("keep.every_late", 0),
                ),
            ),
        ),
    ),
)


def claims(results: Results, column: str) -> list[Claim]:
    """C01 to C04 and C36, for the settings of `column` that were run."""
    made = [_gap(results, column), _ladder(results, column), _growth(results, column)]
    return [c for c in [*made, _parts(results, column), _readout(results, column)] if c is not None]


def _pair(results: Results, setting: str, metric: str, easy: str, hard: str) -> tuple[pd.Series, pd.Series]:
    return results.values(setting, metric, easy), results.values(setting, metric, hard)


def _accuracy_gap(results: Results, setting: str, easy: str, hard: str) -> pd.Series:
    end = results.last_step(setting)
    return results.accuracy(setting, easy, "accuracy").loc[end] - results.accuracy(setting, hard, "accuracy").loc[end]


def _at_end(results: Results, setting: str, outputs: tuple[str, ...]) -> pd.DataFrame:
    return gate(results, [(setting, outputs, [results.last_step(setting)])])


def _difference(results: Results, setting: str, letter: str, name: str, pair: tuple[str, str], sesoi: float) -> Part:
    easy, hard = _pair(results, setting, "r2", *pair)
    return Part(
        letter, f"r2({pair[0]}) - r2({pair[1]}), {name}", easy - hard, _at_end(results, setting, pair), +1, sesoi,
        secondary=(easy - hard) / (easy + hard), accuracy=_accuracy_gap(results, setting, *pair),
    )  # fmt: skip


def _gap(results: Results, column: str) -> Claim | None:
    joint, squared = f"{column}.joint", f"{column}.squared"
    if not results.has(joint, squared):
        return None
    parts = (
        _difference(results, joint, "a", "cross-entropy", (EASY, HARD), 0.05),
        _difference(results, squared, "b", "squared loss", (EASY, HARD), 0.05),
    )
    return Claim("C01", "Easy explains more variance than hard at equal accuracy", "about .55 against .05", parts)


def _ladder(results: Results, column: str) -> Claim | None:
    ladder, equal = f"{column}.ladder", f"{column}.equal"
    parts = []
    if results.has(ladder):
        r2 = pd.DataFrame({rung: results.values(ladder, "r2", rung) for rung in RUNGS})
        weights = np.arange(4) - 1.5
        slope = (r2 * weights / np.square(weights).sum()).sum(axis=1, skipna=False)
        text = "slope of r2 over parity-1, 2, 3, 4 in one model, a rung"
        parts.append(Part("a", text, slope, _at_end(results, ladder, RUNGS), -1, 0.02))
    if results.has(equal):
        parts.append(_difference(results, equal, "b", "equal arity", EQUAL, 0.02))
    if len(parts) < 2:
        return None
    return Claim("C02", "Variance explained falls with complexity", "falls", tuple(parts))


def _growth(results: Results, column: str) -> Claim | None:
    along, twin = f"{column}.along", f"{column}.along_easy"
    if not results.has(along, twin):
        return None
    end = results.last_step(along)
    mastery = results.mastery(along, EASY)
    share = _curve(results, along, "r2_of_final")
    grown = share.loc[end] - _at(share, mastery)
    begun, ended = _window(results, along)
    more = _relative_growth(results, along, begun, ended) - _relative_growth(results, twin, begun, ended)
    passed = gate(results, [(along, (EASY,), [mastery, end]), (along, (HARD,), [end])])
    window = gate(results, [(along, (EASY,), [begun, ended]), (along, (HARD,), [end]), (twin, (EASY,), [begun, ended])])
    parts = (
        Part("a", "r2_of_final(easy) at the end minus at its mastery", grown, passed, +1, 0.02),
        Part(
            "b",
            "growth of easy's variance, relative to its value at mastery, per 1,000 updates while hard goes from 60 to "
            "95 %, minus the same of its easy-only twin",
            more, window, +1, 0.05,
        ),
    )  # fmt: skip
    text = "Easy goes on growing after mastery, most while hard is being learned"
    return Claim("C03", text, "grows, most then", parts)


def _curve(results: Results, setting: str, metric: str, feature: str = EASY) -> pd.DataFrame:
    """A measure at the penultimate layer along training: a row a snapshot, a column a seed."""
    return results.table(setting, metric, feature, step="all").pivot(index="step", columns="seed", values="value")


def _at(curve: pd.DataFrame, steps: pd.Series) -> pd.Series:
    """Each seed's value at its own step; NaN where there is none."""
    return pd.Series({k: curve.loc[s, k] if s in curve.index else np.nan for k, s in steps.items()}, dtype=float)


def _window(results: Results, setting: str) -> tuple[pd.Series, pd.Series]:
    """First snapshots at which hard is over 60 % (balanced) and over 95 % (every class, three times in a row)."""
    snapshots = _curve(results, setting, "variance").index
    accuracy = results.accuracy(setting, HARD, "accuracy")
    above = accuracy.loc[accuracy.index.isin(snapshots)] > 0.6
    begun = above.idxmax().where(above.any()).astype(float)
    mastered = results.mastery(setting, HARD)
    ended = mastered.map(lambda s: snapshots[snapshots >= s].min() if np.isfinite(s) else np.nan)
    return begun, ended


def _relative_growth(results: Results, setting: str, begun: pd.Series, ended: pd.Series) -> pd.Series:
    """Slope of easy's variance over the snapshots of a window, per 1,000 updates and its own value at mastery."""
    curve = _curve(results, setting, "variance")
    start = _at(curve, results.mastery(setting, EASY))
    slopes = {}
    for seed in curve:
        inside = curve.loc[begun[seed] : ended[seed], seed] if np.isfinite(begun[seed] + ended[seed]) else curve[seed][:0]
        slopes[seed] = np.polyfit(inside.index, inside, 1)[0] * 1000 if len(inside) >= 20 else np.nan
    return pd.Series(slopes, dtype=float) / start


def _parts(results: Results, column: str) -> Claim | None:
    joint, composed = f"{column}.joint", f"{column}.composed"
    if not results.has(joint, composed):
        return None
    proper = sum(
        results.values(joint, "walsh_r2", HARD, at=str(d)) - results.values(joint, "walsh_null", HARD, at=str(d))
        for d in (1, 2, 3)
    )
    inner = [results.values(composed, "r2", f"{COMPOSED}.majority_{x}") for x in "ab"]
    whole = results.values(composed, "r2", COMPOSED)
    parts = (
        Part(
            "a", f"Walsh parts of degree 1 to 3 of {HARD}'s block, each less its null, minus r2({HARD})",
            proper - results.values(joint, "r2", HARD), _at_end(results, joint, (EASY, HARD)), +1, 0.02,
        ),
        Part(
            "b", f"r2 of {COMPOSED}'s two inner majorities together minus r2 of the whole",
            inner[0] + inner[1] - whole, _at_end(results, composed, (EASY, COMPOSED)), +1, 0.02,
            secondary=(inner[0] + inner[1]) / 2 - whole,
        ),
    )  # fmt: skip
    return Claim("C04", "Parts of the hard feature are represented more strongly than the whole", "more strongly", parts)


def _readout(results: Results, column: str) -> Claim | None:
    joint = f"{column}.joint"
    if not results.has(joint):
        return None
    easy, hard = (np.log(v) for v in _pair(results, joint, "readout_norm", EASY, HARD))
    part = Part(
        "", f"log readout norm, {HARD} - {EASY}", hard - easy, _at_end(results, joint, (EASY, HARD)), +1, float(np.log(1.1))
    )
    return Claim("C36", "The readout compensates: weak code, strong readout", "not in the paper", (part,))


def figures(results: Results) -> list[Drawn]:
    """All figures, for the columns and settings that were run."""
    columns = list(dict.fromkeys(results.settings["column"]))
    drawn = [_figure_gap(results), _figure_layers(results, columns), _figure_along(results, columns)]
    drawn += [_figure_rungs(results, columns), _figure_walsh(results, columns), _figure_parts(results, columns)]
    return [d for d in drawn if d is not None]


def _with(results: Results, columns: list[str], setting: str) -> list[str]:
    return [f"{c}.{setting}" for c in columns if results.has(f"{c}.{setting}")]


def _null(axes, results: Results, setting: str, feature: str) -> None:
    low, high = (results.values(setting, f"null_{side}", feature).mean() for side in ("low", "high"))
    draw.null(axes, low, high)


def _figure_gap(results: Results) -> Drawn:
    """The main figure: easy and hard at the penultimate layer, a pair of columns a setting."""
    settings = [s for s in results.settings.index if s.split(".")[1] in ("joint", "squared", "along")]
    settings = [s for s in settings if s.split(".")[1] != "along"] or settings
    figure, ((axes,),) = draw.grid(1, 1, 4.8, 3.6)
    x = np.arange(len(settings))
    for i, feature in enumerate((EASY, HARD)):
        r2 = pd.DataFrame({s: results.values(s, "r2", feature) for s in settings}).T
        style = STYLES[i] | {"linestyle": "none"}
        draw.dots(axes, list(x), r2, f"{'easy' if i == 0 else 'hard'} ({feature})", style, shift=-0.15 + 0.3 * i)
        untrained = [results.values(s, "r2", feature, step=0).mean() for s in settings]
        twins = [results.values(s, "r2", f"twin_{feature}").mean() for s in settings]
        if i == 0:
            draw.floor(axes, x - 0.27, untrained, "untrained network", "x")
            draw.floor(axes, x - 0.21, twins, "unused twin", "d")
        else:
            draw.floor(axes, x + 0.27, untrained, "_", "x")
            draw.floor(axes, x + 0.21, twins, "_", "d")
    _null(axes, results, settings[0], HARD)
    axes.set_xticks(
        x, [s.replace("joint", "cross-entropy").replace("squared", "squared loss").replace(".", "\n") for s in settings]
    )
    axes.set_xlim(-0.5, len(settings) - 0.5)
    draw.label(axes, "Easy and hard, both over 95 % correct", "optimizer and loss", draw.VARIANCE)
    draw.legend(axes, -0.24)
    return Drawn(
        "gap",
        figure,
        "Share of the penultimate layer's variance that each feature explains at the end of training: dots are seeds, marks "
        "their mean with a 95 % interval. A gap between the two marks of a pair is the bias. Hollow marks are floors.",
    )


def _figure_layers(results: Results, columns: list[str]) -> Drawn | None:
    settings = _with(results, columns, "joint")
    if not settings:
        return None
    figure, panels = draw.grid(1, len(settings), 4.2, 3.6)
    for axes, setting in zip(panels[0], settings, strict=True):
        sites = results.sites(setting)
        x = list(range(len(sites)))
        for i, feature in enumerate((EASY, HARD)):
            r2 = pd.DataFrame({s: results.values(setting, "r2", feature, site=s) for s in sites}).T
            draw.dots(axes, x, r2, feature, STYLES[i])
            untrained = [results.values(setting, "r2", feature, site=s, step=0).mean() for s in sites]
            draw.floor(axes, x, untrained, f"{feature}, untrained", "x" if i == 0 else "+")
            twins = [results.values(setting, "r2", f"twin_{feature}", site=s).mean() for s in sites]
            draw.floor(axes, x, twins, f"unused twin of {feature}", "d" if i == 0 else "p")
        _null(axes, results, setting, HARD)
        axes.set_xticks(x, sites, rotation=30, ha="right")
        draw.label(axes, f"By layer, {setting}", "layer, from input to output", draw.VARIANCE)
        draw.legend(axes, -0.34)
    return Drawn(
        "layers",
        figure,
        "Share of each layer's variance explained by easy and hard after training, from input to logits. Dots are seeds. Hard is "
        "absent from the input by construction: it is not a linear function of its bits.",
    )


def _figure_along(results: Results, columns: list[str]) -> Drawn | None:
    settings = _with(results, columns, "along") or _with(results, columns, "joint")
    figure, panels = draw.grid(2, len(settings), 4.2, 3.1)
    for top, bottom, setting in zip(panels[0], panels[1], settings, strict=True):
        for i, feature in enumerate((EASY, HARD)):
            draw.band(top, _curve(results, setting, "r2_of_final", feature), feature, STYLES[i])
            twin = _curve(results, setting, "r2_of_final", f"twin_{feature}")
            draw.band(top, twin, f"unused twin of {feature}", STYLES[4 + i] | {"marker": ""})
            draw.band(bottom, results.accuracy(setting, feature, "accuracy"), feature, STYLES[i])
        alone = setting.replace(".along", ".along_easy")
        if setting.endswith(".along") and results.has(alone):
            draw.band(top, _curve(results, alone, "r2_of_final"), f"{EASY}, asked for alone", STYLES[2])
        _null(top, results, setting, HARD)
        start = results.values(setting, "r2_of_final", EASY, step=0).mean()
        draw.floor(top, [0], [start], "untrained network", "x")
        bottom.axhline(0.95, linestyle=(0, (4, 3)), label="95 %", **draw.FLOOR)
        draw.label(top, f"Along training, {setting}", "updates (steps)", "variance explained,\nr2 of final (share)")
        draw.label(bottom, "Accuracy on test data", "updates (steps)", "balanced accuracy (share)")
        draw.legend(top, -0.24)
        draw.legend(bottom, -0.24)
    return Drawn(
        "along",
        figure,
        "Above: variance explained along training as a share of the FINAL total variance, so that growth shows on one scale; mean "
        "over seeds with 95 % band. Below: when each feature is learned. A model that is asked for its only feature tends to 1.",
    )


def _figure_rungs(results: Results, columns: list[str]) -> Drawn | None:
    settings = _with(results, columns, "ladder")
    if not settings:
        return None
    figure, panels = draw.grid(1, len(settings), 4.2, 3.6)
    for axes, setting in zip(panels[0], settings, strict=True):
        x = [1, 2, 3, 4]
        draw.dots(
            axes, x, pd.DataFrame({r: results.values(setting, "r2", r) for r in RUNGS}).T, "parities, one model", STYLES[0]
        )
        draw.floor(axes, x, [results.values(setting, "r2", r, step=0).mean() for r in RUNGS], "untrained network", "x")
        draw.floor(axes, x, [results.values(setting, "r2", f"twin_{r}").mean() for r in RUNGS], "unused twins", "d")
        equal = setting.replace("ladder", "equal")
        if results.has(equal):
            pair = pd.DataFrame({f: results.values(equal, "r2", f) for f in EQUAL}).T
            style = STYLES[1] | {"linestyle": "none"}
            draw.dots(axes, [4.8], pair.loc[["majority3"]], "majority-of-3 (with parity-3)", style)
            draw.dots(
                axes, [5.2], pair.loc[["parity3"]], "parity-3 (with majority-of-3)", STYLES[2] | {"linestyle": "none"}
            )
        _null(axes, results, setting, RUNGS[0])
        axes.set_xticks([*x, 5], ["1", "2", "3", "4", "3 bits"] if results.has(equal) else ["1", "2", "3", "4", ""])
        draw.label(axes, f"By complexity, {setting}", "bits of the parity; right: a model of two", draw.VARIANCE)
        draw.legend(axes, -0.24)
    return Drawn(
        "rungs",
        figure,
        "Left: parity of 1 to 4 bits, all four in one model. Right: another model, asked for two functions of three bits, one "
        "linearly separable and one not. Dots are seeds. A falling line is the bias toward simple features.",
    )


def _figure_walsh(results: Results, columns: list[str]) -> Drawn | None:
    settings = _with(results, columns, "joint")
    if not settings:
        return None
    figure, panels = draw.grid(1, len(settings), 4.2, 3.6)
    for axes, setting in zip(panels[0], settings, strict=True):
        hidden = [s for s in results.sites(setting) if s.startswith("hidden")]
        for degree in range(1, 5):
            curve = pd.DataFrame({s: results.values(setting, "walsh_r2", HARD, site=s, at=str(degree)) for s in hidden}).T
            name = f"degree {degree}" + (" (the feature)" if degree == 4 else "")
            draw.dots(axes, list(range(len(hidden))), curve, name, STYLES[degree - 1], shift=0.06 * (degree - 2.5))
        untrained = [results.values(setting, "walsh_r2", HARD, site=s, at="1", step=0).mean() for s in hidden]
        draw.floor(axes, range(len(hidden)), untrained, "degree 1, untrained", "x")
        twin = [results.values(setting, "r2", f"twin_{HARD}", site=s).mean() for s in hidden]
        draw.floor(axes, range(len(hidden)), twin, f"unused twin of {HARD}", "d")
        _null(axes, results, setting, HARD)
        axes.set_xticks(range(len(hidden)), hidden)
        draw.label(axes, f"Walsh spectrum of {HARD}'s bits, {setting}", "layer", "variance explained, r2 (share)")
        draw.legend(axes, -0.24)
    return Drawn(
        "walsh",
        figure,
        "Variance explained by products of 1, 2, 3 and 4 of the hard feature's bits, summed by degree. Degree 4 is the feature "
        "itself; lower degrees are parts that nobody asks for.",
    )


def _figure_parts(results: Results, columns: list[str]) -> Drawn | None:
    settings = _with(results, columns, "composed")
    if not settings:
        return None
    figure, panels = draw.grid(1, len(settings), 4.2, 3.6)
    for axes, setting in zip(panels[0], settings, strict=True):
        sites = [s for s in results.sites(setting) if s.startswith("hidden")]
        x = list(range(len(sites)))
        inner = sum(
            pd.DataFrame({s: results.values(setting, "r2", f"{COMPOSED}.majority_{k}", site=s) for s in sites}).T
            for k in "ab"
        )
        draw.dots(axes, x, pd.DataFrame(inner), "its two majorities together", STYLES[2], shift=-0.06)
        whole = pd.DataFrame({s: results.values(setting, "r2", COMPOSED, site=s) for s in sites}).T
        draw.dots(axes, x, whole, "the whole (xor of the two)", STYLES[1], shift=0.06)
        untrained = [results.values(setting, "r2", COMPOSED, site=s, step=0).mean() for s in sites]
        draw.floor(axes, x, untrained, "the whole, untrained", "x")
        twin = [results.values(setting, "r2", f"twin_{COMPOSED}", site=s).mean() for s in sites]
        draw.floor(axes, x, twin, "unused twin of the whole", "d")
        _null(axes, results, setting, COMPOSED)
        axes.set_xticks(x, sites)
        draw.label(axes, f"Parts and whole, {setting}", "layer", draw.VARIANCE)
        draw.legend(axes, -0.24)
    return Drawn(
        "parts",
        figure,
        "A hard feature built of two majorities: variance explained by the two parts together and by the whole, by layer. Dots "
        "are seeds.",
    )
