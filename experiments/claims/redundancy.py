"""Features that a network represents without needing them: decoding and reliance (claims C28, C29, C30, C33, C34).

Claim: easy is more decodable than hard from untrained networks; training enhances the target and partly suppresses other
  features; of two redundant features networks rely on the easier one, even if it predicts less; easy is learned first and
  partly unlearned.
Paper: Hermann and Lampinen 2020 (binary task). With their sizes hard stays under 80 %, so we use the sizes of our base
setting.

  python -m experiments.run --experiment=redundancy --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=redundancy --workdir=DIR --preset=quick    SGD only, three settings

Settings:
  target_easy  trained on identity (easy); parity-4 (hard) is present in the input and predicts nothing
  target_hard  trained on hard; easy is present and predicts nothing
  shortcut     trained on hard; in the training data easy equals it in 80 % of the examples
  p50 ... p90  trained on a latent target, which equals hard in 90 % of the examples and easy in 50, 60, 70, 80, 90 %

Choices that the claims leave open:
- A seed passes if the decoders that a claim reads have converged. C28 uses the untrained networks of target_easy; nothing
  is learned there, so nothing else is required.
- C29 is the mean over the two single-target networks (target easy, other hard, and the reverse), so that no single feature
  is always the target. A seed passes if both networks learned their targets.
- C30: given the features, the label is noisy, so a gate at 95 % accuracy is impossible. Part b replaces it: is the accuracy
  on the training distribution as high as the labels allow? This accuracy follows from the agreements on the crossed set
  (`accuracy_of`), which is the same distribution given both features. The labels allow an accuracy of 0.9 to a network that
  follows hard in every conflict, and 0.8 to one that follows easy. Only networks that follow easy in at most 20 % of the
  conflicts come within 0.02 of 0.9, and for these part a cannot hold. Part b therefore compares with the accuracy that the
  labels allow to a network that resolves conflicts as this one does (`allowed`); the figure also shows accuracy against
  0.9. With 8,192 examples, as in the other experiments, networks memorise the noise of their labels and fail part b. p50 to
  p90 are trained on four times as many examples for a quarter of the epochs. This is the smallest of the tried sizes at
  which every calibration network, in both conditions, passes part b; part a was not evaluated there
  (`results/redundancy/tried.csv`).
- C33 needs a setting in which easy is favoured first and hard is learned later: shortcut. Its gate is hard on test data on
  which easy predicts nothing. The maximum of a noisy curve is biased upwards, so each seed is measured at the snapshot
  (except the first) at which the mean of the OTHER half of the seeds peaks. Chance is one half.
- C34: the suppressed feature is easy in target_hard. (Hard is not decodable before training either; the figure shows it.)

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/redundancy/`.
Expected from the paper: easy above hard; the target up, others down but not to chance; reliance on easy at 80 against 90 %.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, SMOKE
from repbias_jax.config import Config, Experiment, Overrides, Preset
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, Summary, pseudo_values, summarise

EASY, HARD = "parity1", "parity4"
LADDER = {"p50": 0.5, "p60": 0.6, "p70": 0.7, "p80": 0.8, "p90": 0.9}  # of easy; that of hard is HARD_PREDICTS
HARD_PREDICTS, CHANCE = 0.9, 0.5
ALONG = (("keep.every", 256), ("keep.until", 4096), ("keep.every_late", 1024))
DECODED = "balanced accuracy of\na readout (share)"


def _redundant(easy: float) -> Overrides:
    """Returns the overrides for a target that both features predict; `easy` is P(easy = target)."""
    return ("task.outputs", ("target",)), ("task.predictivity", (easy, HARD_PREDICTS))


EXPERIMENT = Experiment(
    name="redundancy",
    title="Needed or not: what a network can be read for, and what it relies on",
    config=Config(BinaryOptions(), MLPOptions()),
    settings=(
        ("target_easy", (("task.outputs", (EASY,)),)),
        ("target_hard", (("task.outputs", (HARD,)), *ALONG)),
        ("shortcut", (("task.outputs", (HARD,)), ("task.predictivity", (0.8, 1.0)), *ALONG)),
        *((name, _redundant(p)) for name, p in LADDER.items()),
    ),
    # These have as many updates as the other settings, and enough examples that networks do not memorise noisy labels.
    tuned=tuple(
        (f"{condition}.{name}", (("task.num_train", 32768), ("training.epochs", 40)))
        for condition, _ in CONDITIONS
        for name in LADDER
    ),
    conditions=CONDITIONS,
    probes=("decode", "decode_nonlinear", "reliance"),
    presets=(
        ("full", Preset(16)),
        (
            "quick",
            Preset(
                12,
                settings=("target_easy", "target_hard", "p80"),
                conditions=("sgd",),
                overrides=(
                    ("task.num_train", 8192),
                    ("training.epochs", 64),
                    ("keep.every", 1024),
                    ("keep.until", 0),
                    ("keep.every_late", 0),
                ),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                settings=("target_easy", "target_hard", "shortcut", "p50", "p80"),
                conditions=("sgd",),
                overrides=(
                    *SMOKE,
                    ("task.num_probe", 512),
                    ("keep.every", 8),
                    ("keep.until", 0),
                    ("keep.every_late", 0),
                ),
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C28 to C30, C33 and C34; a claim whose settings were not run has no parts and is not measured."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _untrained(results: Results, setting: str) -> tuple[Part, ...]:
    easy, hard = contrasts.pair(results, setting, "decode", EASY, HARD, step=0)
    passed = pd.concat([contrasts.converged(results, setting, feature, 0) for feature in (EASY, HARD)], axis=1)
    text = "held-out accuracy of decoding easy minus hard, penultimate layer, untrained network"
    return (Part("", text, easy - hard, passed, +1, 0.05),)


def _enhanced(results: Results, target_easy: str, target_hard: str) -> tuple[Part, ...]:
    passed = contrasts.all_at_end(results, (target_easy, target_hard))
    for setting in (target_easy, target_hard):
        passed = passed.join([contrasts.converged(results, setting, f, step) for f in (EASY, HARD) for step in (0, None)])
    asked = _changes(results, ((target_easy, EASY), (target_hard, HARD)))
    other = _changes(results, ((target_easy, HARD), (target_hard, EASY)))
    both = "mean over networks trained on easy and on hard"
    return (
        Part("a", f"decoding accuracy of the target, after minus before training, {both}", asked[0], passed, +1, 0.05),
        Part("b", f"the same of the other feature, {both}", other[0], passed, -1, 0.05),
        Part("c", f"decoding accuracy of the other feature after training minus .5, {both}", other[1], passed, +1, 0.05),
    )


def _changes(results: Results, read: tuple[tuple[str, str], ...]) -> tuple[pd.Series, pd.Series]:
    """Returns the decoding accuracy after minus before training, and after minus chance: means over (setting, feature)."""
    after = pd.DataFrame({s: results.values(s, "decode", feature) for s, feature in read})
    before = pd.DataFrame({s: results.values(s, "decode", feature, step=0) for s, feature in read})
    return (after - before).mean(axis=1, skipna=False), (after - CHANCE).mean(axis=1, skipna=False)


def follow(results: Results, setting: str) -> tuple[pd.Series, pd.Series]:
    """Returns how often the output follows the features, by seed: A and F, each a share of examples, 0 to 1.

    Where the features agree, the output agrees with both in a share A; where they conflict, it follows easy in a share F.
    On the crossed set the features agree in half of the examples, so the output's agreement with easy is (A + F) / 2 and
    with hard (A + 1 - F) / 2.
    """
    easy, hard = contrasts.pair(results, setting, "agreement", EASY, HARD)
    return easy + hard - 0.5, easy - hard + 0.5


def accuracy_of(agree: pd.Series | float, conflict: pd.Series | float, easy: float, hard: float) -> pd.Series | float:
    """Returns the accuracy on the training distribution, given the predictivities of the two features.

    Given the target, the features are independent: both equal it with probability easy * hard, neither does with
    (1 - easy)(1 - hard), only easy does with easy (1 - hard), and only hard does with (1 - easy) hard.

    Args:
      agree: A, the share of examples with agreeing features on which the output equals both.
      conflict: F, the share of examples with conflicting features on which the output equals easy.
      easy: P(easy = target).
      hard: P(hard = target).
    """
    where_agree = easy * hard * agree + (1 - easy) * (1 - hard) * (1 - agree)
    return where_agree + easy * (1 - hard) * conflict + (1 - easy) * hard * (1 - conflict)


def allowed(easy: float, hard: float, conflict: pd.Series | float | None = None) -> pd.Series | float:
    """Returns the highest accuracy that the labels allow (Bayes).

    With `conflict`, it is the highest for a network that follows easy in this share of the conflicts.
    """
    if conflict is None:
        conflict = float(easy > hard)
    return accuracy_of(1.0, conflict, easy, hard)


def _relied(results: Results, setting: str) -> tuple[Part, ...]:
    easy, hard = LADDER[setting.split(".")[1]], HARD_PREDICTS
    agree, conflict = follow(results, setting)
    first, second = contrasts.pair(results, setting, "agreement", EASY, HARD)
    short = accuracy_of(agree, conflict, easy, hard) - allowed(easy, hard, conflict)
    learned = pd.DataFrame({f"{setting} (as accurate as its labels allow)": short.abs() <= 0.02})
    everyone = pd.DataFrame({f"{setting} (no gate)": short.notna()})
    text = "accuracy on the training distribution minus what its labels allow to one that resolves conflicts as it does"
    return (
        Part(
            "a", "agreement with easy minus with hard where they are independent, predictivity .8 against .9",
            first - second, learned, +1, 0.05,
        ),
        Part("b", text, short, everyone, 0, 0.02),
    )  # fmt: skip


def _falls(results: Results, setting: str) -> tuple[Part, ...]:
    curve = contrasts.curve(results, setting, "decode", EASY)
    every = [contrasts.converged(results, setting, EASY, step) for step in curve.index[curve.index > 0]]
    passed = contrasts.all_at_end(results, [setting]).join(every)
    text = "decoding accuracy of easy at its peak (that of the other half of the seeds) minus at the end"
    end = curve.loc[results.last_step(setting)]
    return (
        Part("a", text, at_peak(curve) - end, passed, +1, 0.05),
        Part("b", "decoding accuracy of easy at the end minus .5", end - CHANCE, passed, +1, 0.05),
    )


def at_peak(curve: pd.DataFrame) -> pd.Series:
    """Returns each seed's value at the snapshot at which the mean of the other half of the seeds peaks.

    Step 0 is left out. A half has every other seed; where the other half is empty or has no value, the value is NaN.

    Args:
      curve: `[snapshot, seed]`.
    """
    later = curve[curve.index > 0]
    halves = later.iloc[:, ::2], later.iloc[:, 1::2]
    found = [own.loc[other.mean(axis=1).idxmax()] for own, other in (halves, halves[::-1]) if other.notna().any(axis=None)]
    return pd.concat([*found, pd.Series(dtype=float)]).reindex(curve.columns).astype(float)


def _recovered(results: Results, setting: str) -> tuple[Part, ...]:
    more = results.values(setting, "decode_nonlinear", EASY) - results.values(setting, "decode", EASY)
    text = "accuracy of a nonlinear minus a linear decoder of easy, in a network trained on hard alone"
    passed = contrasts.all_at_end(results, [setting])
    passed = passed.join(
        [contrasts.converged(results, setting, EASY, None, metric) for metric in ("decode", "decode_nonlinear")]
    )
    return (Part("", text, more, passed, 0, 0.05),)


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C28": ("Untrained networks decode easy above hard", "easy above hard", ("target_easy",), _untrained, "HL20"),
    "C29": (
        "Training enhances the target and partly suppresses others", "enhances, partly suppresses",
        ("target_easy", "target_hard"), _enhanced, "HL20",
    ),
    "C30": ("Of two redundant features the easier is relied on, at .8 against .9", "the easier", ("p80",), _relied, "HL20"),
    "C33": (
        "Easy's decodability peaks, then falls while hard is learned, not to chance", "peaks, then falls", ("shortcut",),
        _falls, "HL20",
    ),
    "C34": (
        "Nonlinear decoders recover little more of a suppressed feature", "little more", ("target_hard",), _recovered,
        "HL20",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions and settings that were run."""
    conditions = contrasts.conditions(results)
    ladders = [c for c in conditions if _run(results, c, LADDER)]
    single = [s for name in ("target_easy", "target_hard") for s in contrasts.run_in(results, name)]
    along = [s for name in ("target_hard", "shortcut") for s in contrasts.run_in(results, name)]
    drawn = [
        ("layers", contrasts.by_condition(results, single, _draw_layers)),
        ("decoders", contrasts.by_condition(results, single, _draw_decoders)),
        ("reliance", _draw_reliance(results, ladders)),
        ("along", _draw_along(results, along)),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


CAPTIONS = {
    "layers": "Accuracy of a linear readout of each feature on held-out examples, by hidden layer, in networks "
    "trained on one of the two features. Each dot is a seed; marks are means over seeds with 95 % intervals. Grey "
    "marks are floors: the untrained network, the unused twin, and permuted labels.",
    "decoders": "Accuracy of a linear and of a nonlinear readout of the penultimate layer, before and after "
    "training. Each dot is a seed; marks are means over seeds with 95 % intervals. Grey marks are floors: permuted "
    "labels and the unused twin.",
    "reliance": "Networks trained on a label that both features predict; hard predicts it in 90 % of the examples. "
    "Left: how often the output agrees with each feature, on examples where the two are independent. The grey band "
    "is the 95 % interval (jackknife over seeds) of the predictivity of easy at which networks prefer neither "
    "feature. Right: accuracy on the training distribution, with the best accuracy that its labels allow, and the "
    "best that they allow to networks that follow one feature only.",
    "along": "Top: accuracy of a linear readout of each feature during training, in networks trained on hard; in "
    "`shortcut`, easy equals hard in 80 % of the training examples. Bottom: accuracy of the output on test data "
    "where the features are independent. Lines are means over seeds with 95 % bands.",
}

# The figure that shows a claim or a part of it; the default is the first figure.
FIGURES = {"C30": "reliance", "C33": "along", "C34": "decoders"}


def _run(results: Results, condition: str, names: dict[str, float]) -> dict[str, float]:
    return {f"{condition}.{name}": p for name, p in names.items() if results.has(f"{condition}.{name}")}


def _title(results: Results, setting: str) -> str:
    return f"{setting} ({contrasts.passing(results, [setting])})"


def _draw_layers(axes: Axes, results: Results, setting: str) -> None:
    hidden = contrasts.hidden(results, setting)
    x = np.arange(len(hidden))
    for feature, style, untrained, twin in ((EASY, STYLES[0], "x", "d"), (HARD, STYLES[1], "+", "p")):
        draw.dots(axes, x, contrasts.by_layer(results, setting, "decode", feature, hidden), feature, style)
        start = contrasts.by_layer(results, setting, "decode", feature, hidden, step=0).mean(axis=1)
        draw.floor(axes, x - 0.2, start, f"{feature}, untrained", untrained)
        unused = contrasts.by_layer(results, setting, "decode", f"twin_{feature}", hidden).mean(axis=1)
        draw.floor(axes, x + 0.2, unused, f"unused twin of {feature}", twin)
    shuffled = contrasts.by_layer(results, setting, "decode_shuffled", EASY, hidden).mean(axis=1)
    draw.floor(axes, x + 0.3, shuffled, "permuted labels", "1")
    axes.set_xticks(x, hidden)
    axes.set_ylim(top=1.03)
    draw.label(axes, _title(results, setting), "layer", DECODED)


def _draw_decoders(axes: Axes, results: Results, setting: str) -> None:
    cells = [(feature, step) for feature in (EASY, HARD) for step in (0, results.last_step(setting))]
    x = np.arange(len(cells))
    for metric, name, style, shift in (
        ("decode", "linear", STYLES[0], -0.1),
        ("decode_nonlinear", "nonlinear", STYLES[1], 0.1),
    ):
        values = pd.DataFrame({cell: results.values(setting, metric, cell[0], step=cell[1]) for cell in cells}).T
        draw.dots(axes, x, values, name, style | {"linestyle": "none"}, shift=shift)
        for prefix, end, floor, marks in (("", "_shuffled", "permuted labels", "x+"), ("twin_", "", "unused twin", "dp")):
            level = [results.values(setting, metric + end, prefix + f, step=step).mean() for f, step in cells]
            draw.floor(axes, x + (2.2 if end else 3.2) * shift, level, f"{name}, {floor}", marks[shift > 0])
    axes.set_xticks(x, [f"{feature}\n{'after' if step else 'before'}" for feature, step in cells])
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.set_ylim(top=1.03)
    draw.label(axes, _title(results, setting), "feature, before and after training", DECODED)


def _draw_reliance(results: Results, conditions: list[str]) -> Figure | None:
    if not conditions:
        return None
    figure, panels = draw.grid(len(conditions), 2, 4.4, 3.4)
    for (left, right), condition in zip(panels, conditions, strict=True):
        settings = _run(results, condition, LADDER)
        x = list(settings.values())
        shares = {f: pd.DataFrame({s: results.values(s, "agreement", f) for s in settings}).T for f in (EASY, HARD)}
        for (feature, values), style in zip(shares.items(), STYLES, strict=False):
            draw.dots(left, x, values, f"agrees with {feature}", style, shift=0.0)
        found = crossing(shares[EASY] - shares[HARD])
        if np.isfinite(found.effect):
            left.axvline(found.effect, linestyle=(0, (4, 3)), label="neither is preferred", **draw.FLOOR)
            left.axvspan(found.ci_low, found.ci_high, color="0.75", alpha=0.6, linewidth=0, zorder=0)
            said = f"{found.effect:.3f} \n[{found.ci_low:.3f}, {found.ci_high:.3f}]"
            left.text(found.ci_low, 0.55, f"{said} ", ha="right", va="bottom", fontsize=7.5)
        left.axhline(CHANCE, linestyle=(0, (1, 2)), label="independent", **draw.FLOOR)
        untrained = [results.values(s, "agreement", f"twin_{EASY}").mean() for s in settings]
        draw.floor(left, x, untrained, f"agrees with unused twin of {EASY}", "d")
        _draw_allowed(right, results, settings)
        for axes, y in (
            (left, "agreement of the output (share)"),
            (right, "accuracy on the\ntraining distribution (share)"),
        ):
            axes.set_xticks(x)
            axes.set_xlim(min(x) - 0.08, max(x) + 0.08)
            axes.set_ylim(top=1.03)
            draw.label(axes, condition, "P(easy = target), with P(hard = target) = 0.9", y)
    return draw.finish(figure)


def _draw_allowed(axes: Axes, results: Results, settings: dict[str, float]) -> None:
    found = {s: accuracy_of(*follow(results, s), p, HARD_PREDICTS) for s, p in settings.items()}
    x = list(settings.values())
    draw.dots(axes, x, pd.DataFrame(found).T, "accuracy", STYLES[2])
    bounds = {"best that labels allow": ("x", None), "best, following easy": ("d", 1.0), "best, following hard": ("+", 0.0)}
    for name, (marker, conflict) in bounds.items():
        draw.floor(axes, x, [float(allowed(p, HARD_PREDICTS, conflict)) for p in x], name, marker)


def crossing(preference: pd.DataFrame) -> Summary:
    """Returns the predictivity of easy at which the mean over seeds prefers neither feature, with a jackknife interval.

    Args:
      preference: `[rung, seed]`, agreement with easy minus agreement with hard, -1 to 1; rungs by full name of the setting.

    Returns:
      A predictivity within the range of the ladder, with its interval over seeds; NaN if the mean over all seeds, or over
      all but one, has no crossing.
    """
    x = np.array([LADDER[name.split(".")[1]] for name in preference.index])

    def of(seeds: list[int]) -> float:
        return crossover(x, preference[seeds].mean(axis=1).to_numpy())

    values = pseudo_values(of, list(preference.columns)).to_numpy()
    return summarise(values if np.isfinite(values).all() else [])


def crossover(x: np.ndarray, preference: np.ndarray) -> float:
    """Returns where a preference first changes its sign along x, by linear interpolation; NaN if it does not."""
    for i in range(len(x) - 1):
        a, b = preference[i], preference[i + 1]
        if a * b < 0:
            return float(x[i] + (x[i + 1] - x[i]) * a / (a - b))
    return float("nan")


def _draw_along(results: Results, settings: list[str]) -> Figure | None:
    if not settings:
        return None
    figure, panels = draw.grid(2, len(settings), 4.0, 2.7)
    for top, bottom, setting in zip(panels[0], panels[1], settings, strict=True):
        for feature, style, twin in zip((EASY, HARD), STYLES, STYLES[4:], strict=False):
            draw.band(top, contrasts.curve(results, setting, "decode", feature), feature, style, within=draw.SHARE)
            unused = contrasts.curve(results, setting, "decode", f"twin_{feature}")
            draw.band(top, unused, f"unused twin of {feature}", twin | {"marker": ""}, within=draw.SHARE)
        shuffled = contrasts.curve(results, setting, "decode_shuffled", EASY).mean(axis=1)
        draw.floor(top, shuffled.index, shuffled, "permuted labels", "1")
        draw.band(
            bottom, results.accuracy(setting, HARD, "accuracy"), "output trained on hard", STYLES[1], within=draw.SHARE
        )
        bottom.axhline(0.95, linestyle=(0, (4, 3)), label="95 %", **draw.FLOOR)
        for axes in (top, bottom):
            axes.axhline(CHANCE, linestyle=(0, (1, 2)), label="chance", **draw.FLOOR)
            axes.set_ylim(top=1.03)
        draw.label(top, _title(results, setting), "updates (steps)", DECODED)
        draw.label(bottom, "Accuracy on test data", "updates (steps)", "balanced accuracy (share)")
    return draw.finish(figure)
