"""From seeds to an effect, an interval and a verdict.

One primary statistic per part of a claim, one value per seed, paired within a seed. Verdicts are computed here and
nowhere else:

  reproduced         the 95 % interval is on the expected side of zero and the effect is at least the smallest that matters
  reproduced, small  on that side, but smaller
  opposite           the interval is on the other side
  no difference      the 90 % interval lies within plus and minus the smallest effect that matters
  inconclusive       none of these
  not measured       fewer than 12 seeds, or a compared cell in which under 75 % of the seeds learned their features

An equivalence part is `reproduced` when its 90 % interval lies within the margin and `opposite` when its 95 % interval
lies outside; its p is that of two one-sided tests against the margin, that of all others is two-sided against zero. A
claim with several parts has the verdict of its least favourable part, in the order of `ORDER`.

Source: ours.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from repbias_jax.measure import MASTERY, Results

MIN_SEEDS, MIN_PASS_RATE, EQUAL_ACCURACY = 12, 0.75, 0.01
NOT_RUN = "its settings are not in this preset"
ORDER = ("reproduced", "reproduced, small", "inconclusive", "no difference", "opposite", "not measured")

CLAIM_COLUMNS = (
    "id", "column", "claim", "statistic", "effect", "ci_low", "ci_high", "boot_low", "boot_high", "margin", "runs",
    "left_out", "pass_rate", "accuracy_difference", "p", "p_holm", "paper", "verdict", "verdict_all_seeds", "note",
    "exploratory",
)  # fmt: skip


At = int | pd.Series  # a step, or one a seed
Step = At | tuple[At, At]


@dataclasses.dataclass(frozen=True)
class Part:
    """One statistic of a claim.

    Attributes:
      label: `a`, `b`, ... or empty where the claim has one part.
      statistic: what is computed, in words and symbols, with its unit.
      values: one number a seed, all seeds, NaN where it has none.
      passed: seeds by compared cells, whether every feature asked for was learned at every snapshot used.
      side: +1 or -1, the expected sign; 0 for an equivalence part.
      sesoi: the smallest effect that matters; the margin of an equivalence part.
      secondary: the same effect by another measure; where the verdicts differ the card says so.
      secondary_sesoi: its smallest effect that matters, where it is on another scale.
      accuracy: difference in accuracy between the features, by seed, where equal accuracy is a premise.
      everyone: `values` whether or not seeds passed, where a seed's value depends on which others are in (pseudo-values).
    """

    label: str
    statistic: str
    values: pd.Series
    passed: pd.DataFrame
    side: int
    sesoi: float
    secondary: pd.Series | None = None
    secondary_sesoi: float | None = None
    accuracy: pd.Series | None = None
    everyone: pd.Series | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of the paper and its parts. `paper` is what the paper says, in words."""

    id: str
    text: str
    paper: str
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean over seeds with intervals. `p` is two-sided, by sign flips."""

    effect: float
    ci_low: float
    ci_high: float
    inner_low: float  # 90 %
    inner_high: float
    boot_low: float
    boot_high: float
    p: float
    runs: int


def summarise(values: Sequence[float] | np.ndarray) -> Summary:
    """Mean, Student-t intervals of 95 and 90 %, percentile bootstrap of 95 %, and p by sign flips.

    Args:
      values: one number a seed, finite, `[K]`.

    Returns:
      NaN for what K does not allow: everything at 0, intervals at 1.
    """
    x = np.asarray(values, np.float64)
    k = len(x)
    if k == 0:
        return Summary(*[math.nan] * 8, runs=0)
    mean = float(x.mean())
    if k == 1:
        return Summary(mean, *[math.nan] * 7, runs=1)
    error = float(x.std(ddof=1)) / math.sqrt(k)
    outer, inner = (float(stats.t.ppf(q, k - 1)) * error for q in (0.975, 0.95))
    draws = np.random.default_rng(0).integers(0, k, (10_000, k))
    boot = np.quantile(x[draws].mean(axis=1), [0.025, 0.975])
    return Summary(
        mean, mean - outer, mean + outer, mean - inner, mean + inner, float(boot[0]), float(boot[1]), sign_flips(x), k
    )


def pseudo_values(statistic: Callable[[list[int]], float], seeds: Sequence[int]) -> pd.Series:
    """Jackknife: one number a seed for a statistic of all seeds together, K theta - (K - 1) theta without that seed.

    Their mean is the statistic less its bias to first order, and the t interval of that mean is the jackknife's. For a
    mean of values the pseudo-values are those values; for a mean over pairs of models of different seeds their mean is
    the statistic itself, and leaving out a seed leaves out all pairs with any model of it.

    Args:
      statistic: a number from a list of seeds.
      seeds: those that count, K of them.

    Returns:
      A value a seed, in order; NaN where K - 1 seeds do not allow the statistic.

    Source: Tukey 1958.
    """
    seeds = list(seeds)
    whole, k = statistic(seeds) if seeds else math.nan, len(seeds)
    left = {s: statistic([t for t in seeds if t != s]) for s in seeds}
    return pd.Series({s: k * whole - (k - 1) * value for s, value in left.items()}, dtype=float)


def sign_flips(values: np.ndarray, side: int = 0) -> float:
    """p of the mean under random signs: all 2^K of them up to K = 16, else 100,000 drawn with a fixed seed.

    Args:
      values: one number a seed, `[K]`.
      side: +1 or -1: of a mean that is larger or smaller than zero; 0: of one that differs from it.
    """
    k = len(values)
    if k <= 16:
        signs = 1 - 2 * (np.arange(2**k)[:, None] >> np.arange(k) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (100_000, k))
    flipped, own = (np.abs(x) if side == 0 else side * x for x in (signs @ values, values.sum()))
    drawn = int(k > 16)  # what was found is one of all signs, but not of those drawn
    return float((drawn + np.sum(flipped >= own - 1e-12)) / (drawn + len(signs)))


def equivalence_p(values: np.ndarray, sesoi: float) -> float:
    """p of a mean within the margin, by two one-sided tests: that it is not below `sesoi`, and not above its negative."""
    return max(sign_flips(values - sesoi, -1), sign_flips(values + sesoi, +1))


def verdict(found: Summary, side: int, sesoi: float) -> str:
    """The verdict of one part, seeds and pass rate being sufficient. Args: as in `Part`."""
    if not math.isfinite(found.ci_low):
        return "not measured"
    if side == 0:
        if -sesoi <= found.inner_low and found.inner_high <= sesoi:
            return "reproduced"
        return "opposite" if found.ci_low > sesoi or found.ci_high < -sesoi else "inconclusive"
    low, high = sorted((side * found.ci_low, side * found.ci_high))
    if low > 0:
        return "reproduced" if side * found.effect >= sesoi else "reproduced, small"
    if high < 0:
        return "opposite"
    if -sesoi <= found.inner_low and found.inner_high <= sesoi:
        return "no difference"
    return "inconclusive"


def gate(results: Results, cells: Sequence[tuple[str, Sequence[str], Sequence[Step]]]) -> pd.DataFrame:
    """Which seeds learned what they were asked for: every class over 95 % on balanced independent test data.

    Args:
      results: of the experiment.
      cells: setting, outputs that must pass, and steps at which they must: a number, one a seed, or a pair of those for
        every point of the curves from one to the other.

    Returns:
      Booleans, a row a seed and a column a cell. A seed that was not run in a cell does not pass there.
    """
    columns = {}
    for setting, outputs, steps in cells:
        curves = [results.accuracy(setting, output) for output in outputs]
        passed = {k: all(_holds(curve[k], step) for curve in curves for step in steps) for k in curves[0]}
        columns[f"{setting} ({', '.join(outputs)})"] = pd.Series(passed)
    return pd.DataFrame(columns).fillna(False).astype(bool)


def _holds(curve: pd.Series, step: Step) -> bool:
    """Whether one seed's curve, named by the seed, is above mastery at a step or from one step to another."""
    first, last = step if isinstance(step, tuple) else (step, step)
    first, last = (at.get(curve.name, np.nan) if isinstance(at, pd.Series) else at for at in (first, last))
    inside = curve[(curve.index >= first) & (curve.index <= last)]
    return len(inside) > 0 and bool((inside > MASTERY).all())


def values_of(claims: Sequence[Claim], column: str) -> list[tuple[str, str, int, float, bool]]:
    """What the verdicts rest on: claim and part, column, seed, value, whether it passed the gate in all cells."""
    return [
        (claim.id + part.label, column, int(str(seed)), float(part.values.get(seed, math.nan)), bool(passed.all()))
        for claim in claims
        for part in claim.parts
        for seed, passed in part.passed.iterrows()
    ]


def judge(claims: Sequence[Claim], column: str, exploratory: bool) -> list[dict[str, object]]:
    """Rows of `claims.csv`: one a claim, and for claims with several parts one a part below it.

    Args:
      claims: of an experiment, in one column of settings.
      column: its name.
      exploratory: whether the column is a comparison and no test of the claims; its rows say so.
    """
    rows: list[dict[str, object]] = []
    for claim in claims:
        parts = [_row(claim, part) for part in claim.parts]
        rows += parts if len(parts) == 1 else [_together(claim, parts), *parts]
    names = {claim.id for claim in claims}
    corrected = holm({str(r["id"]): float(str(r["p"])) for r in rows if r["id"] in names})
    for row in rows:
        row |= {"column": column, "exploratory": exploratory, "p_holm": corrected.get(str(row["id"]), math.nan)}
    return [{name: row.get(name, math.nan) for name in CLAIM_COLUMNS} for row in rows]


def _together(claim: Claim, parts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The row of a claim with several parts, or with none."""
    common: dict[str, object] = {"id": claim.id, "claim": claim.text, "paper": claim.paper}
    if not parts:
        nothing = {"runs": 0, "left_out": 0, "p": math.nan, "verdict": "not measured", "verdict_all_seeds": "not measured"}
        return common | nothing | {"statistic": "", "note": NOT_RUN}

    def all_of(name: str) -> list[float]:
        return [float(str(part[name])) for part in parts]

    return common | {
        "statistic": " and ".join(part.label for part in claim.parts) + " together",
        "runs": int(min(all_of("runs"))),
        "left_out": int(max(all_of("left_out"))),
        "pass_rate": float(np.min(all_of("pass_rate"))),
        "p": float(np.max(all_of("p"))),  # NaN where a part was not measured
        "verdict": max((str(part["verdict"]) for part in parts), key=ORDER.index),
        "verdict_all_seeds": max((str(part["verdict_all_seeds"]) for part in parts), key=ORDER.index),
        "note": "; ".join(dict.fromkeys(str(part["note"]) for part in parts if part["note"])),
    }


def _row(claim: Claim, part: Part) -> dict[str, object]:
    """One part, judged."""
    values = part.values.reindex(part.passed.index)
    passed = part.passed.all(axis=1) & np.isfinite(values)
    rate = float(part.passed.mean().min()) if len(part.passed) else math.nan
    used = summarise(values[passed].to_numpy())
    all_seeds = values if part.everyone is None else part.everyone
    everyone = summarise(all_seeds[np.isfinite(all_seeds)].to_numpy())
    decided = verdict(used, part.side, part.sesoi)
    p = used.p if part.side else equivalence_p(values[passed].to_numpy(), part.sesoi)
    notes = []
    if used.runs < MIN_SEEDS or not rate >= MIN_PASS_RATE:
        decided = "not measured"
        short = f"{used.runs} seeds, pass rate {rate:.2f}: needs {MIN_SEEDS} and {MIN_PASS_RATE}"
        notes.append(short if len(part.passed) else NOT_RUN)
    if part.secondary is not None and decided != "not measured":
        second = summarise(part.secondary.reindex(values.index)[passed].dropna().to_numpy())
        if verdict(second, part.side, part.secondary_sesoi or part.sesoi) != decided:
            notes.append("depends on the measure")
    equal = math.nan
    if part.accuracy is not None:
        difference = summarise(part.accuracy.reindex(values.index)[passed].dropna().to_numpy())
        equal = difference.effect
        if not max(abs(difference.inner_low), abs(difference.inner_high)) <= EQUAL_ACCURACY:
            notes.append("equal accuracy not shown")
    return {
        "id": claim.id + part.label,
        "claim": claim.text,
        "statistic": part.statistic,
        "effect": used.effect,
        "ci_low": used.ci_low,
        "ci_high": used.ci_high,
        "boot_low": used.boot_low,
        "boot_high": used.boot_high,
        "margin": part.sesoi,
        "runs": used.runs,
        "left_out": len(values) - used.runs,
        "pass_rate": rate,
        "accuracy_difference": equal,
        "p": math.nan if decided == "not measured" else p,
        "paper": claim.paper,
        "verdict": decided,
        "verdict_all_seeds": verdict(everyone, part.side, part.sesoi) if everyone.runs >= MIN_SEEDS else "not measured",
        "note": "; ".join(notes),
    }


def holm(p: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction. Args: p by name, NaN where not measured. Returns: the same, corrected."""
    known = sorted((value, name) for name, value in p.items() if math.isfinite(value))
    corrected, running = dict.fromkeys(p, math.nan), 0.0
    for rank, (value, name) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * value))
        corrected[name] = running
    return corrected
