"""Verdicts on made data where the right one is known."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from repbias_jax import statistics
from repbias_jax.statistics import (
    ORDER,
    SOURCES,
    Claim,
    Part,
    Summary,
    equivalence_p,
    holm,
    judge,
    known_from,
    least_favourable,
    sign_flips,
    summarise,
    values_of,
    verdict,
)  # fmt: skip


def seeds(mean, sd, k=16):
    """K values with exactly this mean and standard deviation."""
    x = np.random.default_rng(0).normal(size=k)
    return mean + sd * (x - x.mean()) / x.std(ddof=1)


def part(values, side=1, sesoi=0.02, passed=None, label="", **more):
    values = pd.Series(values)
    ok = np.ones(len(values), bool) if passed is None else passed
    return Part(label, "made", values, pd.DataFrame({"cell": ok}, index=values.index), side, sesoi, **more)


def one(*parts, text="made"):
    return judge([Claim("C99", text, "made up", tuple(parts))], "sgd", False)


@pytest.mark.parametrize(
    ("mean", "sd", "side", "expected"),
    [
        (0.10, 0.02, +1, "reproduced"),
        (-0.10, 0.02, -1, "reproduced"),
        (0.01, 0.005, +1, "reproduced, small"),
        (0.02, 0.005, +1, "reproduced, size not shown"),
        (-0.01, 0.005, +1, "opposite, small"),
        (-0.02, 0.005, +1, "opposite"),
        (-0.10, 0.02, +1, "opposite"),
        (0.10, 0.02, -1, "opposite"),
        (0.000, 0.02, +1, "no difference"),
        (0.015, 0.20, +1, "inconclusive"),
        (0.010, 0.00, 0, "reproduced"),
        (0.010, 0.01, 0, "reproduced"),
        (0.100, 0.02, 0, "opposite"),
        (-0.100, 0.02, 0, "opposite"),
        (0.020, 0.02, 0, "inconclusive"),
    ],
)
def test_verdicts(mean, sd, side, expected):
    assert verdict(summarise(seeds(mean, sd)), side, 0.02) == expected
    assert one(part(seeds(mean, sd), side))[0]["verdict"] == expected


M = 0.5  # the smallest effect that matters, in binary exactly
NAN, INF = math.nan, math.inf


def interval(low, high, inner=None, runs=16):
    """A summary of which only what verdicts read is given; the 90 % interval lies half as far from the middle."""
    middle, half = (low + high) / 2, (high - low) / 4
    inner_low, inner_high = inner or (middle - half, middle + half)
    return Summary(middle, low, high, inner_low, inner_high, low, high, NAN, runs)


AGAINST, FOR, AROUND = interval(-3, -1), interval(1, 3), interval(-1, 1)

# The decision table, row by row and at its edges: interval, side, second measure, pass rate, verdict.
TABLE = {
    "11 seeds": (interval(1, 2, runs=11), 1, None, 1.0, "not measured"),
    "12 seeds": (interval(1, 2, runs=12), 1, None, 1.0, "reproduced"),
    "under 75 % pass": (interval(1, 2), 1, None, 0.7499, "not measured"),
    "75 % pass": (interval(1, 2), 1, None, 0.75, "reproduced"),
    "no pass rate": (interval(1, 2), 1, None, NAN, "not measured"),
    "nothing finite": (interval(NAN, NAN), 1, None, 1.0, "not measured"),
    "infinite": (interval(-INF, INF), 1, None, 1.0, "not measured"),
    "equivalence, 11 seeds": (interval(-0.1, 0.1, runs=11), 0, None, 1.0, "not measured"),
    "L above 0, second below": (interval(1, 2), 1, AGAINST, 1.0, "depends on the measure"),
    "small, second below": (interval(0.1, 0.2), 1, AGAINST, 1.0, "depends on the measure"),
    "U below 0, second above": (interval(-2, -1), 1, FOR, 1.0, "depends on the measure"),
    "side turned, second on the other side": (interval(-2, -1), -1, FOR, 1.0, "depends on the measure"),
    "second around zero": (interval(1, 2), 1, AROUND, 1.0, "reproduced"),
    "second on the same side": (interval(1, 2), 1, FOR, 1.0, "reproduced"),
    "opposite, second too": (interval(-2, -1), 1, AGAINST, 1.0, "opposite"),
    "second touches zero": (interval(1, 2), 1, interval(-3, 0), 1.0, "reproduced"),
    "second without interval": (interval(1, 2), 1, interval(NAN, NAN), 1.0, "reproduced"),
    "second of 11 seeds": (interval(1, 2), 1, interval(-3, -1, runs=11), 1.0, "reproduced"),
    "undecided, second below": (interval(-3, 2), 1, AGAINST, 1.0, "inconclusive"),
    "L at m": (interval(0.5, 2), 1, None, 1.0, "reproduced"),
    "L under m, U above": (interval(0.25, 2), 1, None, 1.0, "reproduced, size not shown"),
    "U at m": (interval(0.25, 0.5), 1, None, 1.0, "reproduced, size not shown"),
    "U under m": (interval(0.25, 0.4375), 1, None, 1.0, "reproduced, small"),
    "L at 0": (interval(0, 2), 1, None, 1.0, "inconclusive"),
    "L above -m": (interval(-0.4375, -0.25), 1, None, 1.0, "opposite, small"),
    "L at -m": (interval(-0.5, -0.25), 1, None, 1.0, "opposite"),
    "L far under -m": (interval(-2, -0.25), 1, None, 1.0, "opposite"),
    "U at 0": (interval(-2, 0), 1, None, 1.0, "inconclusive"),
    "side turned": (interval(-2, -0.5), -1, None, 1.0, "reproduced"),
    "side turned, opposite, small": (interval(0.25, 0.4375), -1, None, 1.0, "opposite, small"),
    "90 % within": (interval(-1, 1, (-0.5, 0.5)), 1, None, 1.0, "no difference"),
    "90 % one side out": (interval(-1, 1, (-0.5, 0.5625)), 1, None, 1.0, "inconclusive"),
    "90 % other side out": (interval(-1, 1, (-0.5625, 0.5)), -1, None, 1.0, "inconclusive"),
    "equivalence, 90 % within": (interval(-1, 1, (-0.5, 0.5)), 0, None, 1.0, "reproduced"),
    "equivalence, L above 0 and 90 % within": (interval(0.1, 0.4), 0, None, 1.0, "reproduced"),
    "equivalence, L above m": (interval(0.5625, 2), 0, None, 1.0, "opposite"),
    "equivalence, U under -m": (interval(-2, -0.5625), 0, None, 1.0, "opposite"),
    "equivalence, L at m": (interval(0.5, 2), 0, None, 1.0, "inconclusive"),
    "equivalence, else": (interval(0.25, 2), 0, None, 1.0, "inconclusive"),
    "equivalence, second against": (interval(0.1, 0.4), 0, AGAINST, 1.0, "reproduced"),
    "equivalence, opposite, second against": (interval(0.5625, 2), 0, AGAINST, 1.0, "opposite"),
}


@pytest.mark.parametrize("row", TABLE)
def test_decision_table(row):
    found, side, second, rate, expected = TABLE[row]
    assert verdict(found, side, M, second, rate) == expected


def test_every_verdict_is_in_the_table_and_has_a_place_in_the_order():
    assert {expected for *_, expected in TABLE.values()} == set(ORDER)


def test_a_true_effect_of_the_smallest_size_is_no_coin_flip():
    """The point estimate decided between reproduced and small; an interval around the margin says that it cannot."""
    words = {verdict(interval(0.25 + d, 0.75 + d), 1, M) for d in (-0.125, 0.125)}
    assert words == {"reproduced, size not shown"}


def test_summary_is_student_t():
    x = seeds(0.3, 0.1, 9)
    found = summarise(x)
    for level, low, high in ((0.95, found.ci_low, found.ci_high), (0.90, found.inner_low, found.inner_high)):
        expected = stats.t.interval(level, 8, loc=x.mean(), scale=x.std(ddof=1) / 3)
        assert (low, high) == pytest.approx(expected)
    assert found.boot_low < found.effect < found.boot_high
    assert summarise([]).runs == 0
    assert math.isnan(summarise([1.0]).ci_low)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = [abs(summarise(x).effect) <= summarise(x).ci_high - summarise(x).effect for x in rng.normal(size=(300, 8))]
    assert 0.91 <= np.mean(hits) <= 0.985


def test_thousands_of_seeds_are_summarised_in_pieces(monkeypatch):
    """With the same draws as at once, in bounded memory."""
    assert statistics._pieces(100_000, 10_000) == [2000] * 50
    assert statistics._pieces(10_000, 64) == [10_000]
    x = np.random.default_rng(3).normal(0.05, 1, 40)
    at_once = summarise(x)
    monkeypatch.setattr(statistics, "_pieces", lambda draws, k: [1000] * (draws // 1000))
    assert summarise(x) == at_once


def test_sign_flips_are_exact_and_symmetric():
    assert sign_flips(np.asarray([1.0, 1.0, 1.0])) == pytest.approx(2 / 8)
    assert sign_flips(np.asarray([1.0, -1.0])) == 1
    x = np.random.default_rng(2).normal(0.2, 1, 16)
    assert sign_flips(x) == pytest.approx(sign_flips(-x))
    assert sign_flips(np.concatenate([x, x])) == pytest.approx(
        sign_flips(np.concatenate([x, x]))
    )  # drawn with a fixed seed
    assert sign_flips(np.full(20, 1.0)) < 1e-3
    assert sign_flips(np.asarray([1.0, 1.0, 1.0]), +1) == pytest.approx(1 / 8)
    assert sign_flips(np.asarray([1.0, 1.0, 1.0]), -1) == 1


def test_p_is_one_sided_in_the_claimed_direction():
    x = seeds(0.01, 0.05)
    for side in (+1, -1):
        assert one(part(x, side))[0]["p"] == pytest.approx(sign_flips(x, side))
    assert one(part(x, +1))[0]["p"] + one(part(x, -1))[0]["p"] == pytest.approx(1, abs=1e-3)


def test_p_of_an_equivalence_part_is_small_where_the_mean_is_within_the_margin():
    """Against zero it would be small where a mean inside the margin differs from zero, and large where it is zero."""
    for mean, within in ((0.0, True), (0.01, True), (0.05, False), (-0.05, False)):
        row = one(part(seeds(mean, 0.01), side=0))[0]
        assert (row["p"] < 0.05) == within == (row["verdict"] == "reproduced")
    x = seeds(0.015, 0.01)
    assert equivalence_p(x, 0.02) == pytest.approx(equivalence_p(-x, 0.02))
    assert equivalence_p(x, 0.02) == pytest.approx(sign_flips(x - 0.02) / 2)  # the nearer margin decides


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=12, max_size=14), st.sampled_from([-1, 1]), st.floats(0.001, 0.2))
def test_turning_the_sign_turns_the_verdict(values, side, sesoi):
    values = np.asarray(values)
    assert verdict(summarise(values), side, sesoi) == verdict(summarise(-values), -side, sesoi)


def test_gate_needs_seeds_and_pass_rate():
    values = seeds(0.2, 0.02)
    few = np.arange(16) < 11  # 11 seeds pass
    assert one(part(values, passed=few))[0]["verdict"] == "not measured"
    rare = np.arange(20) < 14  # 14 of 20: enough seeds, 70 %
    row = one(part(seeds(0.2, 0.02, 20), passed=rare))[0]
    assert (row["verdict"], row["runs"], row["left_out"]) == ("not measured", 14, 6)
    assert row["verdict_all_seeds"] == "reproduced"
    assert "pass rate 0.70" in row["note"]
    enough = np.arange(16) < 12
    row = one(part(values, passed=enough))[0]
    assert (row["verdict"], row["runs"], row["left_out"], row["pass_rate"]) == ("reproduced", 12, 4, 0.75)


def test_failing_seeds_are_left_out_of_the_effect():
    values = np.where(np.arange(16) < 3, 99.0, seeds(0.1, 0.01))
    row = one(part(values, passed=np.arange(16) >= 3))[0]
    assert row["effect"] < 0.2
    assert row["runs"] == 13


def test_a_seed_counts_only_when_it_passes_in_all_cells_and_has_a_value():
    values = pd.Series(seeds(0.1, 0.01))
    values[15] = np.nan
    cells = pd.DataFrame({"a": np.arange(16) != 0, "b": np.arange(16) != 1})
    row = one(Part("", "made", values, cells, 1, 0.02))[0]
    assert (row["runs"], row["left_out"]) == (13, 3)
    assert row["pass_rate"] == pytest.approx(15 / 16)


WORDS = {
    "reproduced": (0.2, 0.02),
    "reproduced, size not shown": (0.02, 0.005),
    "reproduced, small": (0.01, 0.005),
    "inconclusive": (0.01, 0.3),
    "no difference": (0.0, 0.02),
    "opposite, small": (-0.01, 0.005),
    "opposite": (-0.2, 0.02),
}


@pytest.mark.parametrize("expected", WORDS)
def test_a_compound_claim_has_the_verdict_of_its_least_favourable_part(expected):
    rows = one(part(seeds(0.2, 0.02), label="a"), part(seeds(*WORDS[expected]), label="b"))
    assert [r["id"] for r in rows] == ["C99", "C99a", "C99b"]
    assert rows[0]["verdict"] == rows[2]["verdict"] == expected
    assert rows[0]["p"] == max(rows[1]["p"], rows[2]["p"])
    assert math.isnan(rows[0]["effect"])
    assert rows[0]["partial"] is False


def test_order_from_best_to_worst():
    assert ORDER == (
        "reproduced", "reproduced, size not shown", "reproduced, small", "inconclusive", "no difference",
        "depends on the measure", "opposite, small", "opposite", "not measured",
    )  # fmt: skip
    for better, worse in itertools.pairwise(ORDER[:-1]):
        assert least_favourable([worse, better]) == (worse, False)
    assert least_favourable(["reproduced", "not measured"]) == ("reproduced", True)
    assert least_favourable(["not measured"] * 2) == ("not measured", False)
    assert least_favourable([]) == ("not measured", False)


def test_a_claim_with_an_unmeasured_deciding_part_is_partial_and_counts_as_p_1():
    few = part(seeds(0.2, 0.02), label="b", passed=np.arange(16) < 11)
    whole, a, b = one(part(seeds(0.2, 0.02), label="a"), few)
    assert (whole["verdict"], whole["partial"]) == ("reproduced", True)
    assert math.isnan(whole["p"])
    assert whole["p_holm"] == 1
    assert (a["verdict"], b["verdict"]) == ("reproduced", "not measured")
    assert (whole["runs"], whole["pass_rate"]) == (16, 1.0)
    whole, *_ = one(few, dataclasses.replace(few, label="c"))
    assert (whole["verdict"], whole["partial"]) == ("not measured", False)


@pytest.mark.parametrize("kind", ["shown", "ours"])
def test_parts_that_are_shown_or_ours_do_not_decide(kind):
    beside = part(seeds(-0.2, 0.02), label="b", kind=kind)
    whole, a, b = one(part(seeds(0.2, 0.02), label="a"), beside)
    assert (whole["verdict"], whole["p"], whole["statistic"]) == ("reproduced", a["p"], "a decides")
    assert (b["verdict"], b["kind"]) == ("opposite", kind)
    unmeasured = part(seeds(0.2, 0.02), label="b", passed=np.arange(16) < 11, kind=kind)
    assert one(part(seeds(0.2, 0.02), label="a"), unmeasured)[0]["partial"] is False
    assert one(beside, dataclasses.replace(beside, label="c"))[0]["verdict"] == "not measured"


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="C99a: kind 'seen', expected one of deciding, shown, ours"):
        one(part(seeds(0.2, 0.02), label="a", kind="seen"))


def test_separate_parts_have_no_verdict_over_them_and_count_each():
    parts = (
        part(seeds(0.2, 0.02), label="a"),
        part(seeds(0.0, 0.2), label="b"),
        part(seeds(0, 1), label="c", kind="shown"),
    )
    rows = judge([Claim("C08", "made", "", parts, "P", separate=True)], "sgd", False)
    assert [r["id"] for r in rows] == ["C08a", "C08b", "C08c"]
    a, b, c = rows
    assert a["p_holm"] == pytest.approx(2 * a["p"])
    assert b["p_holm"] == pytest.approx(max(b["p"], 2 * a["p"]))
    assert math.isnan(c["p_holm"])
    (row,) = judge([Claim("C08", "made", "", (), "P", separate=True)], "sgd", False)
    assert (row["id"], row["verdict"], row["p_holm"]) == ("C08", "not measured", 1)


def test_a_claim_without_its_settings_is_not_measured():
    row = one()[0]
    assert row["verdict"] == "not measured"
    assert "preset" in row["note"]


def test_the_second_measure_is_in_columns_and_can_make_a_verdict_depend_on_it():
    values = seeds(0.2, 0.02)
    plain = one(part(values, secondary=pd.Series(seeds(0.3, 0.02)), secondary_statistic="log ratio"))[0]
    assert (plain["verdict"], plain["note"], plain["second_statistic"]) == ("reproduced", "", "log ratio")
    second = summarise(seeds(0.3, 0.02))
    told = tuple(plain[name] for name in ("second_effect", "second_low", "second_high", "second_runs"))
    assert told == (second.effect, second.ci_low, second.ci_high, 16)
    turned = one(part(values, secondary=pd.Series(seeds(-0.3, 0.02))))[0]
    assert turned["verdict"] == "depends on the measure"
    shown = one(part(seeds(0, 0.01), side=0, secondary=pd.Series(seeds(-0.3, 0.02))))[0]
    assert (shown["verdict"], shown["second_effect"]) == ("reproduced", pytest.approx(-0.3))
    none = one(part(values))[0]
    assert none["second_runs"] == 0
    assert math.isnan(none["second_effect"])


def test_the_second_measure_is_of_the_seeds_that_count():
    """Without those that fail the gate, and without those of which it has no finite value."""
    second = pd.Series(np.where(np.arange(16) < 2, 99.0, -0.3))
    second[15] = -np.inf
    row = one(part(seeds(0.2, 0.02), passed=np.arange(16) >= 2, secondary=second))[0]
    assert (row["second_runs"], row["second_effect"]) == (13, pytest.approx(-0.3))
    assert row["verdict"] == "depends on the measure"
    few = second.where(second.index > 4)
    assert one(part(seeds(0.2, 0.02), secondary=few))[0]["verdict"] == "reproduced"  # of under 12 seeds


def test_equal_accuracy_that_is_not_shown_is_said():
    assert one(part(seeds(0.2, 0.02), accuracy=pd.Series(seeds(0, 0.001))))[0]["note"] == ""
    row = one(part(seeds(0.2, 0.02), accuracy=pd.Series(seeds(0.02, 0.001))))[0]
    assert row["note"] == "equal accuracy not shown"
    assert row["accuracy_difference"] == pytest.approx(0.02)


def test_a_note_of_several_parts_is_there_once():
    unequal, few = pd.Series(seeds(0.02, 0.001)), np.arange(16) >= 6
    parts = part(seeds(0.2, 0.02), passed=few, label="a"), part(seeds(0.2, 0.02), passed=few, label="b", accuracy=unequal)
    short = "10 seeds, pass rate 0.62: expected at least 12 seeds and 0.75"
    assert one(*parts)[0]["note"] == f"{short}; equal accuracy not shown"


def test_sources_are_said_and_how_we_know_them():
    row = judge([Claim("C99", "made", "", (part(seeds(0.2, 0.02)),), "P, HL20; after both")], "sgd", False)[0]
    assert (row["source"], row["known_from"]) == ("P, HL20; after both", f"{SOURCES['P']}; {SOURCES['HL20']}")
    assert known_from("") == ""
    with pytest.raises(KeyError):
        known_from("Q")


def test_a_verdict_can_be_computed_again_from_what_is_released():
    """From value, second value and gate of each seed, side, margin and pass rate."""
    values = np.where(np.arange(16) < 2, np.nan, seeds(0.2, 0.02))
    made = part(values, passed=np.arange(16) != 5, secondary=pd.Series(seeds(0.1, 0.05)))
    claim = Claim("C99", "made", "", (made,))
    table = pd.DataFrame(values_of([claim], "sgd"), columns=list(statistics.VALUE_COLUMNS)).set_index("seed")
    (row,) = judge([claim], "sgd", False)
    again = statistics.judged(
        table["value"], table["passed"], row["side"], row["margin"], row["pass_rate"], table["second"], table["value"]
    )
    assert {name: row[name] for name in again} == again


def test_holm_by_hand():
    """What was not measured counts as p = 1 in the family."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert list(found) == ["a", "b", "c", "d"]
    assert found["a"] == pytest.approx(0.04)
    assert found["c"] == pytest.approx(0.09)
    assert found["b"] == pytest.approx(0.09)
    assert found["d"] == 1


def test_holm_spans_the_claims_of_a_column_and_not_their_parts():
    claims = [Claim(f"C{i:02d}", "made", "", (part(seeds(0.2, 0.02)),)) for i in range(4)]
    rows = judge(claims, "sgd", False)
    assert all(r["p_holm"] == pytest.approx(min(1, 4 * r["p"])) for r in rows)
    assert set(rows[0]) == set(statistics.CLAIM_COLUMNS)
