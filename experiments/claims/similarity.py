"""How similar models are by RSA and CKA (claims C26, C27, C32, C35).

Claim: a model of an easy and a hard feature looks like a model of the easy one alone, though it computes both.
Paper: Lampinen, Chan and Hermann 2024 (RSA); Hermann and Lampinen 2020; Lampinen, Chan, Li and Hermann 2025/26.

  python -m experiments.run --experiment=similarity --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=similarity --workdir=DIR --preset=quick    SGD only, shorter

Settings. All have the same inputs, which contain identity (easy) and parity-4 (hard), and the same probe examples:
  both        trained on both features
  easy_only   trained on easy only
  hard_only   trained on hard only
  untrained   not a separate setting: the networks of `both` before training

Similarity is measured at the penultimate layer, only between models of different seeds. These choices are ours and were
fixed before anything ran:
  primary     RSA with Euclidean distances and Pearson's correlation of RDMs, which is the variant that gives -0.795 for
              the two solutions of XOR; higher is more similar
  secondary   debiased CKA; if its interval lies on the other side of zero, the verdict is "depends on the measure"
  margins     0.05 in similarity. C35 compares coefficients of variation (sd / mean over seeds) as a log ratio, margin
              log 1.1; their plain difference is secondary
  unit        a model: every statistic is computed from all seeds at once. The value of a seed is its jackknife
              pseudo-value, which leaves out all pairs with any model of this seed. Seeds that fail the gate in any
              compared setting, or whose model is constant, are excluded from all pairs

C26 follows in part from C01: if easy explains most of the variance, it also determines most of the distances.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/similarity/`.
Expected from the papers: C26 and C27b above zero, C27a below; C32 above; C35 below.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, PRESETS
from repbias_jax.config import Config, Experiment, Keep
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.probes.similarity import MEASURES, noise_ceiling
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, pseudo_values, summarise

EASY, HARD = "parity1", "parity4"
BOTH, EASY_ONLY, HARD_ONLY, UNTRAINED = "both", "easy_only", "hard_only", "untrained"
KINDS = (BOTH, EASY_ONLY, HARD_ONLY, UNTRAINED)
PRIMARY, SECONDARY = "rsa", "cka_debiased"
SESOI, SESOI_SPREAD = 0.05, float(np.log(1.1))

EXPERIMENT = Experiment(
    name="similarity",
    title="How alike are models of both features and models of one?",
    config=Config(BinaryOptions(), MLPOptions(), keep=Keep(shared=True)),
    settings=(
        (BOTH, ()),
        (EASY_ONLY, (("task.outputs", (EASY,)),)),
        (HARD_ONLY, (("task.outputs", (HARD,)),)),
    ),
    conditions=CONDITIONS,
    probes=("variance", "similarity"),
    presets=PRESETS,
)


class Similarities(NamedTuple):
    """Similarities between the models of one condition, by one measure; models are grouped by kind."""

    matrix: pd.DataFrame  # by (setting, step, seed), NaN for two models of one seed
    kinds: dict[str, tuple[str, int]]  # setting and step

    def block(self, one: str, other: str, seeds: Sequence[int]) -> np.ndarray:
        """Returns the similarities between the models of two kinds, `[K, K]`; NaN between two models of one seed."""
        rows, columns = ([(*self.kinds[kind], seed) for seed in seeds] for kind in (one, other))
        return self.matrix.reindex(index=rows, columns=columns).to_numpy(float, copy=True)

    def mean(self, one: str, other: str, seeds: Sequence[int]) -> float:
        """Returns the mean over all pairs of models of different seeds; NaN if there is none."""
        values = self.block(one, other, seeds)[~np.eye(len(seeds), dtype=bool)]
        return float(values.mean()) if len(values) else np.nan

    def defined(self, kinds: Sequence[str], seeds: Sequence[int]) -> list[int]:
        """Returns the seeds whose models all have similarities; a constant or diverged model has none."""
        alive = self.matrix.notna().any(axis=1)
        return [s for s in seeds if all(alive.get((*self.kinds[kind], s), False) for kind in kinds)]


Contrast = Callable[[Similarities, Sequence[int]], float]


def similarities(results: Results, condition: str, metric: str) -> Similarities:
    """Returns the similarities of the models of one condition. Args: metric: a key of MEASURES."""
    kinds = {kind: (f"{condition}.{kind}", results.last_step(f"{condition}.{kind}")) for kind in KINDS[:-1]}
    return Similarities(contrasts.similarities(results, condition, metric), kinds | {UNTRAINED: (f"{condition}.{BOTH}", 0)})


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C26, C27, C32 and C35; a claim whose settings were not run has no parts and is not measured."""
    return contrasts.claims_of(CLAIMS, results, condition)


def like_easy(own: Similarities, seeds: Sequence[int]) -> float:
    """Returns the contrast of C26, above zero if models of both are more like easy-only than like hard-only ones."""
    return own.mean(BOTH, EASY_ONLY, seeds) - own.mean(BOTH, HARD_ONLY, seeds)


def less_alike(own: Similarities, seeds: Sequence[int]) -> float:
    """Returns the contrast of C27a, below zero if models of both are less like each other than like easy-only ones."""
    return own.mean(BOTH, BOTH, seeds) - own.mean(BOTH, EASY_ONLY, seeds)


def easy_agree(own: Similarities, seeds: Sequence[int]) -> float:
    """Returns the contrast of C27b, above zero if easy-only models agree more than hard-only ones."""
    return own.mean(EASY_ONLY, EASY_ONLY, seeds) - own.mean(HARD_ONLY, HARD_ONLY, seeds)


def like_untrained(own: Similarities, seeds: Sequence[int]) -> float:
    """Returns the contrast of C32, a mean over both tasks.

    It is above zero if models of one task are more like untrained ones than like those of the other task.
    """
    untrained = own.mean(EASY_ONLY, UNTRAINED, seeds) + own.mean(HARD_ONLY, UNTRAINED, seeds)
    return untrained / 2 - own.mean(EASY_ONLY, HARD_ONLY, seeds)


def _part(
    results: Results, label: str, text: str, contrast: Contrast, models: Sequence[str], side: int,
    equal: tuple[str, str] | None = None,
) -> Part:  # fmt: skip
    """Returns a part: a contrast of similarities as jackknife pseudo-values, by the primary and the secondary measure.

    Args:
      results: of the experiment.
      label: of the part.
      text: what is compared, without the measure.
      contrast: the statistic.
      models: full names of the compared settings, and of the untrained networks if they are compared.
      side: expected sign.
      equal: two of the settings, which should be learned equally well; None if there is no such premise.
    """
    condition = models[0].split(".")[0]
    kinds = [name.removeprefix(f"{condition}.") for name in models]
    passed = contrasts.all_at_end(results, [name for name in models if not name.endswith(f".{UNTRAINED}")])
    passing, seeds = list(passed.index[passed.all(axis=1)]), list(passed.index)
    first, second = (similarities(results, condition, metric) for metric in (PRIMARY, SECONDARY))

    def values(own: Similarities, among: Sequence[int]) -> pd.Series:
        return pseudo_values(lambda chosen: contrast(own, chosen), own.defined(kinds, among)).reindex(seeds)

    accuracies = [results.accuracy(s, results.outputs(s)[0], "accuracy").iloc[-1] for s in equal or ()]
    return Part(
        label, f"{text}, by {PRIMARY}", values(first, passing), passed, side, SESOI, secondary=values(second, passing),
        secondary_statistic=f"the same, by {SECONDARY}",
        accuracy=accuracies[0] - accuracies[1] if accuracies else None, everyone=values(first, seeds),
    )  # fmt: skip


def _like_easy(results: Results, both: str, easy: str, hard: str) -> tuple[Part, ...]:
    text = "similarity(both, easy-only) - similarity(both, hard-only)"
    return (_part(results, "", text, like_easy, (both, easy, hard), +1, (easy, hard)),)


def _agreement(results: Results, both: str, easy: str, hard: str) -> tuple[Part, ...]:
    texts = (
        "similarity(both, both of another seed) - similarity(both, easy-only)",
        "similarity of easy-only models - similarity of hard-only models",
    )
    return (
        _part(results, "a", texts[0], less_alike, (both, easy), -1),
        _part(results, "b", texts[1], easy_agree, (easy, hard), +1, (easy, hard)),
    )


def _like_untrained(results: Results, both: str, easy: str, hard: str) -> tuple[Part, ...]:
    untrained = both.removesuffix(BOTH) + UNTRAINED
    text = "similarity(one task, untrained) - similarity(easy-only, hard-only), mean over the two tasks"
    return (_part(results, "", text, like_untrained, (easy, hard, untrained), +1),)


def _spread(results: Results, both: str) -> tuple[Part, ...]:
    r2 = pd.DataFrame(dict(zip((EASY, HARD), contrasts.pair(results, both, "r2", EASY, HARD), strict=True))).dropna()
    passed = contrasts.all_at_end(results, [both])
    passing = [s for s in r2.index if passed.all(axis=1)[s]]

    def log_ratio(seeds: list[int]) -> float:
        easy, hard = (variation(r2.loc[seeds, name]) for name in (EASY, HARD))
        return float(np.log(easy / hard)) if min(easy, hard) > 0 else np.nan

    def plain(seeds: list[int]) -> float:
        return variation(r2.loc[seeds, EASY]) - variation(r2.loc[seeds, HARD])

    text = f"log of sd / mean over seeds of r2({EASY}), minus the same of r2({HARD})"
    return (
        Part(
            "", text, pseudo_values(log_ratio, passing), passed, -1, SESOI_SPREAD, secondary=pseudo_values(plain, passing),
            secondary_statistic="difference of the two ratios",
            accuracy=contrasts.accuracy_gap(results, both, EASY, HARD),
            everyone=pseudo_values(log_ratio, list(r2.index)),
        ),
    )  # fmt: skip


def variation(values: pd.Series) -> float:
    """Returns the coefficient of variation, sd / mean; NaN if the mean is not above zero."""
    return float(values.std() / values.mean()) if values.mean() > 0 else np.nan


_ALL = (BOTH, EASY_ONLY, HARD_ONLY)
# For each claim: its text, what the papers say, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C26": (
        "RSA: a model of both looks like an easy-only one (in part from C01)", "more than like a hard-only one", _ALL,
        _like_easy, "P, F, HL20",
    ),
    "C27": (
        "Two models of both can be less alike than either is to an easy-only one; easy-only ones agree more",
        "less alike; agree more", _ALL, _agreement, "F",
    ),
    "C32": (
        "A trained model is more like an untrained one than like one trained on another task", "more", _ALL,
        _like_untrained, "HL20",
    ),
    "C35": ("Simple features are more consistent over seeds", "more consistent", (BOTH,), _spread, "F"),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions and settings that were run."""
    run = contrasts.conditions(results, *_ALL)
    conditions = [c for c in run if len(contrasts.similarities(results, c, PRIMARY))]  # one seed has no pairs
    drawn = [
        ("matrix", _draw_matrices(results, conditions)),
        ("types", _draw_types(results, conditions)),
        ("ceilings", _draw_ceilings(results, conditions)),
        ("spread", contrasts.by_condition(results, contrasts.run_in(results, BOTH), _draw_spread)),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C35": "spread"}  # the figure that shows a claim
CAPTIONS = {
    "matrix": "Similarity of every pair of models at the penultimate layer, ordered by setting and then by seed. "
    "Left: the primary measure (RSA with Euclidean distances and Pearson correlation). Right: debiased CKA. Grey: "
    "two models of one seed, which are not compared. A bright block off the diagonal means that models trained on "
    "different features look alike.",
    "types": "The same by type of pair, for every measure; 1 means most similar. A dot is one MODEL of the first "
    "kind: its mean over all models of the second kind. Marks are means over all pairs with 95 % jackknife intervals "
    "over seeds. All models are shown, whether or not they learned their features. Two untrained networks are the "
    "floor.",
    "ceilings": "How well models of one kind predict the RDM of models of another kind (Pearson correlation, "
    "Euclidean distances). Dots are the predicting models; marks are their means with 95 % jackknife intervals. The "
    "grey band is the noise ceiling: its upper end is the best that any RDM can reach for these models, its lower "
    "end what the mean of the other models reaches for a left-out one. Marks near the band of another task mean that "
    "RSA cannot distinguish the tasks.",
    "spread": "Variance explained by easy and hard over seeds, in models trained on both features and in models "
    "trained on one. A feature whose dots spread widely relative to their mean is inconsistent; sd / mean is printed "
    "below each.",
}
NAMES = {BOTH: "easy+hard", EASY_ONLY: "easy", HARD_ONLY: "hard", UNTRAINED: "untrained"}
TYPES = (
    *((kind, kind) for kind in _ALL), (BOTH, EASY_ONLY), (BOTH, HARD_ONLY), (EASY_ONLY, HARD_ONLY),
    *((kind, UNTRAINED) for kind in KINDS),
)  # fmt: skip
RELATIONS = ("same task", "different tasks", "one or both untrained")


def _draw_matrices(results: Results, conditions: list[str]) -> Figure | None:
    if not conditions:
        return None
    figure, panels = draw.grid(len(conditions), 2, 4.6, 4.0)
    for row, condition in zip(panels, conditions, strict=True):
        for axes, metric in zip(row, (PRIMARY, SECONDARY), strict=True):
            own = similarities(results, condition, metric)
            by_kind = [[key for key in own.matrix.index if key[:2] == own.kinds[kind]] for kind in KINDS]
            models, edges = [key for keys in by_kind for key in keys], np.cumsum([0, *map(len, by_kind)])
            image = axes.imshow(own.matrix.loc[models, models], cmap="viridis", interpolation="nearest")
            axes.set_facecolor("0.85")
            axes.set_xticks((edges[1:] + edges[:-1]) / 2 - 0.5, [NAMES[k] for k in KINDS])
            axes.set_yticks((edges[1:] + edges[:-1]) / 2 - 0.5, [NAMES[k] for k in KINDS], rotation=90, va="center")
            for edge in edges[1:-1] - 0.5:
                axes.axhline(edge, color="white", linewidth=1)
                axes.axvline(edge, color="white", linewidth=1)
            draw.label(axes, f"{condition}, {metric}", "models, by setting and seed", "models")
            figure.colorbar(image, ax=axes, label="similarity (1: alike)", shrink=0.85)
    return figure


class Estimate(NamedTuple):
    """Values drawn for one type of pairs: one dot per model, the mean over all pairs, and half of its 95 % interval."""

    dots: np.ndarray
    mean: float
    error: float  # half of the interval


def estimate(own: Similarities, one: str, other: str) -> Estimate:
    """Returns the mean of each model of kind `one` over the models of kind `other`, and the mean over all pairs.

    The latter has a 95 % jackknife interval.
    """
    seeds = own.defined((one, other), sorted(set(own.matrix.index.get_level_values("seed"))))
    block = own.block(one, other, seeds)
    apart = ~np.eye(len(seeds), dtype=bool)
    dots = np.array([row[keep].mean() if keep.any() else np.nan for row, keep in zip(block, apart, strict=True)])
    found = summarise(pseudo_values(lambda chosen: own.mean(one, other, chosen), seeds).dropna().to_numpy())
    return Estimate(dots, own.mean(one, other, seeds), float(np.nan_to_num(found.ci_high - found.effect)))


def _draw_types(results: Results, conditions: list[str]) -> Figure | None:
    if not conditions:
        return None
    figure, panels = draw.grid(2 * len(conditions), 4, 2.9, 3.1)
    wanted = [(condition, metric) for condition in conditions for metric in MEASURES]
    for axes, (condition, metric) in zip(panels.flat, wanted, strict=True):
        own = similarities(results, condition, metric)
        for y, (one, other) in enumerate(TYPES):
            relation = 2 if other == UNTRAINED else int(one != other)
            found, style = estimate(own, one, other), STYLES[relation] | {"linestyle": "none"}
            spread = y + np.linspace(-0.2, 0.2, len(found.dots))
            axes.plot(found.dots, spread, ".", color=style["color"], alpha=0.45, markersize=3)
            axes.errorbar(found.mean, y, xerr=found.error, capsize=2, markersize=5, label=RELATIONS[relation], **style)
        first = axes is panels.flat[0] or axes in panels[:, 0]
        names = [f"{NAMES[a]} - {NAMES[b]}" for a, b in TYPES]
        axes.set_yticks(range(len(TYPES)), names if first else [""] * len(names))
        axes.invert_yaxis()
        draw.label(axes, f"{metric}, {condition}", "similarity (1: alike)", "pairs of models" if first else "")
    return draw.finish(figure)


def _draw_ceilings(results: Results, conditions: list[str]) -> Figure | None:
    if not conditions:
        return None
    figure, panels = draw.grid(len(conditions), len(_ALL), 3.3, 3.1)
    for row, condition in zip(panels, conditions, strict=True):
        own = similarities(results, condition, PRIMARY)
        for axes, target in zip(row, _ALL, strict=True):
            for x, kind in enumerate(KINDS):
                found, style = estimate(own, kind, target), STYLES[x] | {"linestyle": "none"}
                spread = x + np.linspace(-0.15, 0.15, len(found.dots))
                axes.plot(spread, found.dots, ".", color=style["color"], alpha=0.45, markersize=3)
                axes.errorbar(x, found.mean, found.error, capsize=2, markersize=5, label=f"{NAMES[kind]} models", **style)
            low, high = ceiling(own, target)
            axes.axhspan(low, high, color="0.75", alpha=0.6, linewidth=2, zorder=0, label="noise ceiling")
            axes.set_xlim(-0.5, len(KINDS) - 0.5)
            axes.set_xticks(range(len(KINDS)), [NAMES[kind] for kind in KINDS])
            draw.label(
                axes, f"RDMs of {NAMES[target]} models, {condition}", "predicted by models of", "correlation of RDMs"
            )
    return draw.finish(figure)


def ceiling(own: Similarities, kind: str) -> tuple[float, float]:
    """Returns the lower and upper noise ceiling of one kind's models, from the correlations of their RDMs."""
    seeds = own.defined((kind,), sorted(set(own.matrix.index.get_level_values("seed"))))
    block = own.block(kind, kind, seeds)
    np.fill_diagonal(block, 1.0)
    return noise_ceiling(block)


def _draw_spread(axes: Axes, results: Results, setting: str) -> None:
    condition = setting.split(".")[0]
    shown = [(setting, EASY), (setting, HARD)]
    alone = {f"{condition}.{EASY_ONLY}": EASY, f"{condition}.{HARD_ONLY}": HARD}
    shown += [(s, feature) for s, feature in alone.items() if results.has(s)]
    ticks = []
    for x, (own, feature) in enumerate(shown):
        r2, style = results.values(own, "r2", feature), STYLES[0 if feature == EASY else 1] | {"linestyle": "none"}
        draw.dots(axes, [x], pd.DataFrame({feature: r2}).T, feature, style)
        draw.floor(axes, [x + 0.2], [results.values(own, "r2", feature, step=0).mean()], "untrained network", "x")
        draw.floor(axes, [x + 0.3], [results.values(own, "r2", f"twin_{feature}").mean()], "unused twin", "d")
        spread = variation(r2.dropna())
        ticks.append(f"{own.split('.')[1]}\n{'-' if np.isnan(spread) else f'{spread:.2f}'}")
    contrasts.null_band(axes, results, setting, HARD)
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_xticks(range(len(shown)), ticks)
    title = f"{condition} ({contrasts.passing(results, list(dict.fromkeys(s for s, _ in shown)))})"
    draw.label(axes, title, "setting, and sd / mean over seeds", draw.VARIANCE)
