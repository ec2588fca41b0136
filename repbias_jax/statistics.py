"""From seeds to an effect, an interval and a verdict.

Each part of a claim has one primary statistic with one value per seed, paired within a seed. Verdicts are computed only
here. With the expected side positive, [L, U] the 95 % interval, [l, u] the 90 % interval and m the smallest effect that
matters, the verdict is that of the first row that applies:

  any part      the gate fails, fewer than 12 seeds, nothing finite,  not measured
                or the site does not hold the compared features
  directional   L > 0 or U < 0, and the second measure's 95 %
                interval lies wholly beyond zero on the other side    depends on the measure
                L >= m                                                reproduced
                L > 0 and U < m                                       reproduced, small
                L > 0                                                 reproduced, size not shown
                U < 0 and L > -m                                      opposite, small
                U < 0                                                 opposite
                -m <= l and u <= m                                    no difference
                else                                                  inconclusive
  equivalence   -m <= l and u <= m                                    reproduced
                L > m or U < -m                                       opposite
                else                                                  inconclusive

For an equivalence part the second measure is reported but does not decide. Parts of kind `shown` or `ours` do not decide.
A claim with several parts has the verdict of its least favourable measured deciding part, in the order of `ORDER`, and the
mark `partial` if another deciding part is not measured. p is one-sided in the claimed direction; for an equivalence part it
is that of two one-sided tests against the margin, and for a claim with several parts the largest of theirs. A claim that is
not measured, or only in part, counts as p = 1 in Holm's correction.

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

from repbias_jax.results import MASTERY, Results

MIN_SEEDS, MIN_PASS_RATE, EQUAL_ACCURACY = 12, 0.75, 0.01
MOST_ABSENT = 0.25  # of the networks, beyond which a site does not hold the compared features
NOT_RUN = "its settings are not in this preset"
DEPENDS = "depends on the measure"
ORDER = (
    "reproduced", "reproduced, size not shown", "reproduced, small", "inconclusive", "no difference", DEPENDS,
    "opposite, small", "opposite", "not measured",
)  # fmt: skip
KINDS = ("deciding", "shown", "ours")

# The sources of claims, and how we know what each source says.
SOURCES = {
    "P": "the paper, arXiv 2405.05847: from its abstract, its authors' posts and readers' notes, without the full text",
    "F": "its follow-up, arXiv 2507.22216: from its abstract, its authors' posts and readers' notes, without the full text",
    "HL20": "Hermann and Lampinen 2020, arXiv 2006.12433: from the full text",
    "ours": "ours: not a claim of these papers",
}

CLAIM_COLUMNS = (
    "id", "column", "claim", "statistic", "effect", "ci_low", "ci_high", "boot_low", "boot_high", "margin", "runs",
    "left_out", "pass_rate", "accuracy_difference", "p", "p_holm", "paper", "verdict", "verdict_all_seeds", "note",
    "exploratory", "side", "kind", "partial", "source", "known_from", "second_statistic", "second_effect", "second_low",
    "second_high", "second_runs",
)  # fmt: skip
VALUE_COLUMNS = ("id", "column", "seed", "value", "passed", "second")


At = int | pd.Series  # a step, or one step per seed
Step = At | tuple[At, At]


@dataclasses.dataclass(frozen=True)
class Part:
    """One statistic of a claim.

    Attributes:
      label: `a`, `b`, ... or empty if the claim has one part.
      statistic: what is computed, in words and symbols, with its unit.
      values: one number per seed, for all seeds; NaN where a value is missing.
      passed: one row per seed, one column per compared cell: whether the seed learned every required output at every
        snapshot used.
      side: +1 or -1, the expected sign; 0 for an equivalence part.
      sesoi: the smallest effect that matters; the margin of an equivalence part.
      secondary: the same effect by another measure, by seed, with the same expected sign.
      secondary_statistic: what `secondary` is, in words and symbols; empty if there is none.
      floored: how many r2 of a seed were set to the upper end of their null band before a logarithm.
      accuracy: difference in accuracy between the features, by seed, if equal accuracy is a premise.
      everyone: `values` computed from all seeds, passed or not, if a seed's value depends on which other seeds are
        included (pseudo-values).
      absent: for each network, whether the r2 of all compared features lies inside its null band. If this is so in more
        than MOST_ABSENT of the networks, the part is not measured: the site does not hold the features.
      kind: `deciding`; or `shown` or `ours`, for parts that have their own verdict but do not enter that of the claim.
    """

    label: str
    statistic: str
    values: pd.Series
    passed: pd.DataFrame
    side: int
    sesoi: float
    secondary: pd.Series | None = None
    secondary_statistic: str = ""
    floored: pd.Series | None = None
    accuracy: pd.Series | None = None
    everyone: pd.Series | None = None
    absent: pd.Series | None = None
    kind: str = "deciding"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement and its parts.

    Attributes:
      id: `C01`, ...
      text: what is claimed.
      paper: what its source says, in words.
      parts: in order.
      source: names of `SOURCES`, separated by commas, with a remark after a semicolon if one is needed: `P, F`.
      separate: whether each part counts separately, also in Holm's correction, without a joint verdict.
    """

    id: str
    text: str
    paper: str
    parts: tuple[Part, ...]
    source: str = ""
    separate: bool = False


def known_from(source: str) -> str:
    """Returns how we know what the sources of a claim say: their texts in `SOURCES`."""
    names = source.split(";")[0].split(",")
    return "; ".join(SOURCES[name] for name in map(str.strip, names) if name)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The mean over seeds with intervals. `p` is two-sided, by sign flips."""

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
    """Returns the mean, 95 and 90 % Student-t intervals, a 95 % percentile bootstrap interval, and p by sign flips.

    Args:
      values: one number per seed, finite, `[K]`.

    Returns:
      The summary; NaN for what K does not allow: everything if K = 0, everything but the mean if K = 1.
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
    random = np.random.default_rng(0)
    means = [x[random.integers(0, k, (size, k))].mean(axis=1) for size in _pieces(10_000, k)]
    boot = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Summary(
        mean, mean - outer, mean + outer, mean - inner, mean + inner, float(boot[0]), float(boot[1]), sign_flips(x), k
    )


def pseudo_values(statistic: Callable[[list[int]], float], seeds: Sequence[int]) -> pd.Series:
    """Returns the jackknife pseudo-values of a statistic: for each seed, K theta - (K - 1) (theta without that seed).

    Their mean is the statistic corrected for its first-order bias, and the t interval of that mean is the jackknife's. For
    a mean of values the pseudo-values are those values. For a mean over pairs of models of different seeds their mean is
    the statistic itself, and leaving out a seed leaves out all pairs with any of its models.

    Args:
      statistic: maps a list of seeds to a number, theta.
      seeds: the K seeds that are included.

    Returns:
      One value per seed, in order; NaN where the statistic is not defined for K - 1 seeds.

    Source: Tukey 1958.
    """
    seeds = list(seeds)
    whole, k = statistic(seeds) if seeds else math.nan, len(seeds)
    left = {s: statistic([t for t in seeds if t != s]) for s in seeds}
    return pd.Series({s: k * whole - (k - 1) * value for s, value in left.items()}, dtype=float)


def sign_flips(values: np.ndarray, side: int = 0) -> float:
    """Returns p of the mean under random signs: all 2^K of them up to K = 16, else 100,000 drawn with a fixed seed.

    Args:
      values: one number per seed, `[K]`.
      side: the alternative: +1 a mean above zero, -1 a mean below zero, 0 a mean that differs from zero (two-sided).
    """
    k = len(values)
    if k <= 16:
        sums = (1 - 2 * (np.arange(2**k)[:, None] >> np.arange(k) & 1)) @ values
    else:
        random = np.random.default_rng(0)
        sums = np.concatenate([random.choice([-1, 1], (size, k)) @ values for size in _pieces(100_000, k)])
    flipped, own = (np.abs(x) if side == 0 else side * x for x in (sums, values.sum()))
    drawn = int(k > 16)  # the observed signs are among all 2^K, but not among those drawn
    return float((drawn + np.sum(flipped >= own - 1e-12)) / (drawn + len(sums)))


def _pieces(draws: int, k: int, limit: int = 20_000_000) -> list[int]:
    """Returns sizes of pieces in which draws of K numbers are made, of `limit` numbers at most, to bound memory."""
    most = max(1, limit // k)
    return [min(most, draws - first) for first in range(0, draws, most)]


def equivalence_p(values: np.ndarray, sesoi: float) -> float:
    """Returns p for a mean within the margin: the larger p of two one-sided tests, mean < `sesoi` and mean > -`sesoi`."""
    return max(sign_flips(values - sesoi, -1), sign_flips(values + sesoi, +1))


def verdict(found: Summary, side: int, sesoi: float, second: Summary | None = None, pass_rate: float = 1.0) -> str:
    """Returns the verdict of one part: the first row that applies in the table at the top of this module.

    Args:
      found: summary of the seeds that pass.
      side: as in `Part`.
      sesoi: as in `Part`.
      second: summary of the second measure of the same seeds, or None; ignored if it has fewer than MIN_SEEDS values.
      pass_rate: share of seeds that pass in the compared cell in which the fewest pass.
    """
    if found.runs < MIN_SEEDS or not pass_rate >= MIN_PASS_RATE or not math.isfinite(found.ci_low):
        return "not measured"
    if side == 0:
        return _equivalence(found, sesoi)
    (low, high), (inner_low, inner_high) = towards(side, found)
    if second is not None and second.runs >= MIN_SEEDS and (low > 0 or high < 0):
        second_low, second_high = towards(side, second)[0]
        if (low > 0 and second_high < 0) or (high < 0 and second_low > 0):
            return DEPENDS
    if low > 0:
        return "reproduced" if low >= sesoi else "reproduced, small" if high < sesoi else "reproduced, size not shown"
    if high < 0:
        return "opposite, small" if low > -sesoi else "opposite"
    return "no difference" if -sesoi <= inner_low and inner_high <= sesoi else "inconclusive"


def _equivalence(found: Summary, margin: float) -> str:
    """Returns the verdict of an equivalence part."""
    if -margin <= found.inner_low and found.inner_high <= margin:
        return "reproduced"
    return "opposite" if found.ci_low > margin or found.ci_high < -margin else "inconclusive"


def towards(side: int, found: Summary) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns the 95 and 90 % intervals, with signs flipped if the expected side is negative."""
    outer, inner = (found.ci_low, found.ci_high), (found.inner_low, found.inner_high)
    return (outer, inner) if side > 0 else ((-outer[1], -outer[0]), (-inner[1], -inner[0]))


def least_favourable(verdicts: Sequence[str]) -> tuple[str, bool]:
    """Returns the verdict of a claim, from those of its deciding parts, and whether some but not all lack a measurement."""
    measured = [word for word in verdicts if word != "not measured"]
    if not measured:
        return "not measured", False
    return max(measured, key=ORDER.index), len(measured) < len(verdicts)


def gate(results: Results, cells: Sequence[tuple[str, Sequence[str], Sequence[Step]]]) -> pd.DataFrame:
    """Returns which seeds learned the required outputs: every class above 95 % on balanced independent test data.

    Args:
      results: of the experiment.
      cells: setting, outputs that must pass, and steps at which they must. A step is a number, or one number per seed; a
        pair of steps stands for every point of the curves from one to the other.

    Returns:
      Booleans with one row per seed and one column per cell. A seed that was not run in a cell does not pass there.
    """
    columns = {}
    for setting, outputs, steps in cells:
        curves = [results.accuracy(setting, output) for output in outputs]
        passed = {k: all(_holds(curve[k], step) for curve in curves for step in steps) for k in curves[0]}
        columns[f"{setting} ({', '.join(outputs)})"] = pd.Series(passed)
    return pd.DataFrame(columns).fillna(False).astype(bool)


def _holds(curve: pd.Series, step: Step) -> bool:
    """Returns whether a curve, whose name is its seed, is above mastery at a step or from one step to another."""
    first, last = step if isinstance(step, tuple) else (step, step)
    first, last = (at.get(curve.name, np.nan) if isinstance(at, pd.Series) else at for at in (first, last))
    inside = curve[(curve.index >= first) & (curve.index <= last)]
    return len(inside) > 0 and bool((inside > MASTERY).all())


def values_of(claims: Sequence[Claim], condition: str) -> list[tuple[str, str, int, float, bool, float]]:
    """Returns rows of `claim_values.csv`: claim and part, condition, seed, value, passed in all cells, second measure."""

    def at(values: pd.Series | None, seed: object) -> float:
        return math.nan if values is None else float(values.get(seed, math.nan))

    return [
        (
            claim.id + part.label,
            condition,
            int(str(seed)),
            at(part.values, seed),
            bool(passed.all()),
            at(part.secondary, seed),
        )
        for claim in claims
        for part in claim.parts
        for seed, passed in part.passed.iterrows()
    ]


def judge(
    claims: Sequence[Claim], condition: str, exploratory: bool, family: Sequence[str] = ()
) -> list[dict[str, object]]:  # fmt: skip
    """Returns rows of `claims.csv`: one per claim and, for claims with several parts, one per part below it.

    Args:
      claims: of an experiment, in one condition.
      condition: name of the condition.
      exploratory: whether the condition is a comparison and not a test of the claims; the rows are marked accordingly.
      family: ids over which p is corrected, including ids that are not among the claims; empty: all claims.
    """
    rows: list[dict[str, object]] = []
    tested: set[str] = set()
    for claim in claims:
        parts = [_row(claim, part) for part in claim.parts]
        own = parts if parts and (claim.separate or len(parts) == 1) else [_together(claim, parts), *parts]
        tested |= {str(r["id"]) for r in (own if claim.separate else own[:1]) if r["kind"] == "deciding"}
        rows += own
    p = {str(r["id"]): float(str(r["p"])) for r in rows if r["id"] in tested}
    corrected = holm(dict.fromkeys(family, math.nan) | p)
    for row in rows:
        row |= {"column": condition, "exploratory": exploratory, "p_holm": corrected.get(str(row["id"]), math.nan)}
    return [{name: row.get(name, math.nan) for name in CLAIM_COLUMNS} for row in rows]


def _common(claim: Claim) -> dict[str, object]:
    """Returns the entries that all rows of a claim share."""
    told = {"claim": claim.text, "paper": claim.paper}
    return told | {"source": claim.source, "known_from": known_from(claim.source)}


def _together(claim: Claim, parts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Returns the row of a claim with several parts, or with none."""
    common = _common(claim) | {"id": claim.id, "kind": "deciding"}
    if not parts:
        nothing = {"runs": 0, "left_out": 0, "p": math.nan, "verdict": "not measured", "verdict_all_seeds": "not measured"}
        return common | nothing | {"partial": False, "statistic": "", "note": NOT_RUN}
    return common | together({part.label: row for part, row in zip(claim.parts, parts, strict=True)})


def together(parts: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Returns the joint entries of a claim with several parts, from the rows of its parts by label.

    Parts that do not decide are left out; a claim without a deciding part is not measured.
    """
    deciding = {label: row for label, row in parts.items() if row["kind"] == "deciding"}
    decided, partial = least_favourable([str(row["verdict"]) for row in deciding.values()])
    everyone, _ = least_favourable([str(row["verdict_all_seeds"]) for row in deciding.values()])
    used = [row for row in deciding.values() if row["verdict"] != "not measured"] or list(deciding.values())

    def all_of(name: str) -> list[float]:
        return [float(str(row[name])) for row in used] or [math.nan]

    runs, left_out = ([0 if math.isnan(v) else int(v) for v in all_of(name)] for name in ("runs", "left_out"))
    return {
        "statistic": " and ".join(deciding) + (" together" if len(deciding) > 1 else " decides"),
        "runs": min(runs),
        "left_out": max(left_out),
        "pass_rate": min(all_of("pass_rate")),
        "p": math.nan if partial or decided == "not measured" else max(all_of("p")),
        "verdict": decided,
        "verdict_all_seeds": everyone,
        "partial": partial,
        "note": "; ".join(
            dict.fromkeys(text for row in deciding.values() for text in str(row["note"]).split("; ") if text)
        ),
    }


def _row(claim: Claim, part: Part) -> dict[str, object]:
    """Returns the row of one part, with its verdict."""
    if part.kind not in KINDS:
        raise ValueError(f"{claim.id}{part.label}: kind {part.kind!r}, expected one of {', '.join(KINDS)}")
    values = part.values.reindex(part.passed.index)
    passed = part.passed.all(axis=1)
    rate = float(part.passed.mean().min()) if len(part.passed) else math.nan
    everyone = values if part.everyone is None else part.everyone
    found = judged(values, passed, part.side, part.sesoi, rate, part.secondary, everyone)
    notes = [] if len(part.passed) else [NOT_RUN]
    notes += [str(found["note"])] if len(part.passed) and found["note"] else []
    if part.absent is not None and part.absent.mean() > MOST_ABSENT:
        nothing = {"verdict": "not measured", "verdict_all_seeds": "not measured", "p": math.nan}
        found |= nothing
        notes.append(f"the site does not hold the features in {part.absent.sum():.0f} of {len(part.absent)} networks")
    used, equal = passed & np.isfinite(values), math.nan
    if part.floored is not None and (count := part.floored.reindex(values.index)[used]).sum():
        notes.append(f"log ratio: {count.sum():.0f} r2 of {(count > 0).sum()} seeds set to the end of the null band")
    if part.accuracy is not None:
        difference = summarise(part.accuracy.reindex(values.index)[used].dropna().to_numpy())
        equal = difference.effect
        if not max(abs(difference.inner_low), abs(difference.inner_high)) <= EQUAL_ACCURACY:
            notes.append("equal accuracy not shown")
    named = {"id": claim.id + part.label, "statistic": part.statistic, "kind": part.kind, "accuracy_difference": equal}
    named |= {"second_statistic": part.secondary_statistic if part.secondary is not None else ""}
    return _common(claim) | found | named | {"partial": False, "note": "; ".join(notes)}


def judged(
    values: pd.Series,
    passed: pd.Series,
    side: int,
    sesoi: float,
    pass_rate: float,
    second: pd.Series | None,
    everyone: pd.Series,
) -> dict[str, object]:
    """Returns the numbers and the verdict of one part, from its values in `claim_values.csv`.

    Args:
      values: one number per seed.
      passed: whether a seed passes the gate in all compared cells, with the index of `values`.
      side: as in `Part`.
      sesoi: as in `Part`.
      pass_rate: share of seeds that pass in the compared cell in which the fewest pass.
      second: the second measure, by seed, or None.
      everyone: one number for each seed that has one, whether or not it passes.
    """
    passed = passed & np.isfinite(values)
    used = summarise(values[passed].to_numpy())
    other = None if second is None else second.reindex(values.index)[passed]
    beside = summarise([] if other is None else other[np.isfinite(other)].to_numpy())
    decided = verdict(used, side, sesoi, beside, pass_rate)
    measured = decided != "not measured"
    overall = summarise(everyone[np.isfinite(everyone)].to_numpy())
    x = values[passed].to_numpy()
    p = math.nan if not measured else sign_flips(x, side) if side else equivalence_p(x, sesoi)
    short = f"{used.runs} seeds, pass rate {pass_rate:.2f}: expected at least {MIN_SEEDS} seeds and {MIN_PASS_RATE}"
    return {
        "effect": used.effect,
        "ci_low": used.ci_low,
        "ci_high": used.ci_high,
        "boot_low": used.boot_low,
        "boot_high": used.boot_high,
        "margin": sesoi,
        "side": side,
        "runs": used.runs,
        "left_out": len(values) - used.runs,
        "pass_rate": pass_rate,
        "p": p,
        "verdict": decided,
        "verdict_all_seeds": verdict(overall, side, sesoi),
        "second_effect": beside.effect,
        "second_low": beside.ci_low,
        "second_high": beside.ci_high,
        "second_runs": beside.runs,
        "note": "" if measured else short,
    }


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Returns p corrected by Holm's step-down method over a family; a p that is not finite (not measured) counts as 1.

    Args:
      p: by name.

    Returns:
      The corrected p, by name.
    """
    known = sorted((value if math.isfinite(value) else 1.0, name) for name, value in p.items())
    corrected, running = {}, 0.0
    for rank, (value, name) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * value))
        corrected[name] = running
    return {name: corrected[name] for name in p}
