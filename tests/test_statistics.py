"""Verdicts on made data where the right one is known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from repbias_jax import statistics
from repbias_jax.statistics import Claim, Part, equivalence_p, holm, judge, sign_flips, summarise, verdict


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


def test_p_of_an_equivalence_part_is_small_where_the_mean_is_within_the_margin():
    """Against zero it would be small where a mean inside the margin differs from zero, and large where it is zero."""
    for mean, within in ((0.0, True), (0.01, True), (0.05, False), (-0.05, False)):
        row = one(part(seeds(mean, 0.01), side=0))[0]
        assert (row["p"] < 0.05) == within == (row["verdict"] == "reproduced")
    x = seeds(0.015, 0.01)
    assert equivalence_p(x, 0.02) == pytest.approx(equivalence_p(-x, 0.02))
    assert equivalence_p(x, 0.02) == pytest.approx(sign_flips(x - 0.02) / 2)  # the nearer margin decides


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=14), st.sampled_from([-1, 1]), st.floats(0.001, 0.2))
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


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (seeds(0.2, 0.02), "reproduced"),
        (seeds(0.01, 0.005), "reproduced, small"),
        (seeds(0.0, 0.02), "no difference"),
        (seeds(-0.2, 0.02), "opposite"),
        (seeds(0.01, 0.3), "inconclusive"),
    ],
)
def test_a_compound_claim_has_the_verdict_of_its_least_favourable_part(second, expected):
    rows = one(part(seeds(0.2, 0.02), label="a"), part(second, label="b"))
    assert [r["id"] for r in rows] == ["C99", "C99a", "C99b"]
    assert rows[0]["verdict"] == expected
    assert rows[0]["p"] == max(rows[1]["p"], rows[2]["p"])
    assert math.isnan(rows[0]["effect"])


def test_a_claim_without_its_settings_is_not_measured():
    row = one()[0]
    assert row["verdict"] == "not measured"
    assert "preset" in row["note"]


def test_secondary_measure_and_equal_accuracy_are_said():
    plain = one(part(seeds(0.2, 0.02), secondary=pd.Series(seeds(0.3, 0.02)), accuracy=pd.Series(seeds(0, 0.001))))[0]
    assert plain["note"] == ""
    row = one(part(seeds(0.2, 0.02), secondary=pd.Series(seeds(-0.3, 0.02)), accuracy=pd.Series(seeds(0.02, 0.001))))[0]
    assert row["note"] == "depends on the measure; equal accuracy not shown"
    assert row["accuracy_difference"] == pytest.approx(0.02)


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert found["a"] == pytest.approx(0.03)
    assert found["c"] == pytest.approx(0.06)
    assert found["b"] == pytest.approx(0.06)
    assert math.isnan(found["d"])


def test_holm_spans_the_claims_of_a_column_and_not_their_parts():
    claims = [Claim(f"C{i:02d}", "made", "", (part(seeds(0.2, 0.02)),)) for i in range(4)]
    rows = judge(claims, "sgd", False)
    assert all(r["p_holm"] == pytest.approx(min(1, 4 * r["p"])) for r in rows)
    assert set(rows[0]) == set(statistics.CLAIM_COLUMNS)
