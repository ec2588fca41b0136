"""The statistics of C01 to C04 and C36, the gate and the times of mastery, on frames whose right answers are known."""

import numpy as np
import pandas as pd
import pytest
from made import SEEDS, Made

from experiments.claims import complexity
from repbias_jax.report import contrasts
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, gate, judge

STEPS = list(range(0, 321, 8))
END = STEPS[-1]
OUTPUTS = {
    "joint": "parity1 parity4", "squared": "parity1 parity4", "along": "parity1 parity4", "along_easy": "parity1 parity4",
    "ladder": "parity1 parity2 parity3 parity4", "equal": "majority3 parity3", "composed": "parity1 majority3_xor",
}  # fmt: skip


@pytest.fixture(scope="module")
def made():
    results = Made(OUTPUTS, END)
    for setting, outputs in OUTPUTS.items():
        for output in outputs.split():
            results.learn(setting, output, STEPS)
    for setting, easy, hard in (("joint", 0.5, 0.1), ("squared", 0.4, 0.2)):
        results.put(setting, "r2", "parity1", easy)
        results.put(setting, "r2", "parity4", hard)
    for i, rung in enumerate(complexity.RUNGS):
        results.put("ladder", "r2", rung, 0.4 - 0.1 * i)
    results.put("equal", "r2", "majority3", 0.45)
    results.put("equal", "r2", "parity3", 0.15)
    for degree, share, null in ((1, 0.2, -0.004), (2, 0.1, -0.006), (3, 0.05, -0.004)):
        results.put("joint", "walsh_r2", "parity4", share, at=str(degree))
        results.put("joint", "walsh_null", "parity4", [null] * 16, at=str(degree))
    results.put("composed", "r2", "majority3_xor", 0.25)
    results.put("composed", "r2", "majority3_xor.majority_a", 0.2)
    results.put("composed", "r2", "majority3_xor.majority_b", 0.1)
    results.put("joint", "readout_norm", "parity1", [1.0] * 16)
    results.put("joint", "readout_norm", "parity4", [2.0] * 16)
    # Along training: easy is learned at step 16; hard goes from 60 % at 80 to 95 % at 280.
    for setting, slope in (("along", 0.004), ("along_easy", 0.001)):
        results.learn(setting, "parity1", [0, 8], 0.5)
        for step in STEPS:
            size = 2.0 + slope * (step - 16)
            results.put(setting, "variance", "parity1", [size] * 16, step)
            results.put(setting, "r2_of_final", "parity1", [size / 10] * 16, step)
    results.learn("along", "parity4", range(0, 80, 8), 0.5)
    results.learn("along", "parity4", range(80, 280, 8), 0.7)
    results.learn("along_easy", "parity4", STEPS, 0.5)
    return results.done()


EXPECTED = {
    "C01a": 0.4,
    "C01b": 0.2,
    "C02a": -0.1,
    "C02b": 0.3,
    "C03a": 0.004 * (END - 16) / 10,
    "C03b": 1000 * (0.004 - 0.001) / 2.0,
    "C04a": 0.35 + 0.014 - 0.1,
    "C04b": 0.2 + 0.1 - 0.25,
    "C36": np.log(2),
}


def test_every_statistic_by_hand(made):
    claims = {c.id: c for c in complexity.claims(made, "sgd")}
    assert list(claims) == ["C01", "C02", "C03", "C04", "C36"]
    found = {c.id + p.label: p for c in claims.values() for p in c.parts}
    assert set(found) == set(EXPECTED)
    for name, part in found.items():
        assert part.values.mean() == pytest.approx(EXPECTED[name], abs=2e-4), name
        assert len(part.values) == 16
        assert part.passed.to_numpy().all(), name
        assert part.side == (-1 if name == "C02a" else 1)
    assert [found[n].sesoi for n in ("C01a", "C02a", "C03b", "C36")] == pytest.approx([0.05, 0.02, 0.05, np.log(1.1)])
    assert found["C01a"].secondary.mean() == pytest.approx(np.log(5), abs=1e-3)
    assert found["C04b"].secondary.mean() == pytest.approx(0.15 - 0.25, abs=1e-3)
    rows = {r["id"]: r["verdict"] for r in judge(list(claims.values()), "sgd", False)}
    mixed = {"C04": "depends on the measure", "C04b": "depends on the measure"}  # their mean is under the whole
    assert {name: word for name, word in rows.items() if word != "reproduced"} == mixed
    assert {
        r["id"] for r in judge(complexity.claims(made, "adam"), "adam", True) if r["verdict"] != "not measured"
    } == set()


def test_mastery_is_the_first_of_three(made):
    assert (made.mastery("sgd.along", "parity1") == 16).all()
    assert (made.mastery("sgd.along", "parity4") == 280).all()
    assert made.mastery("sgd.along_easy", "parity4").isna().all()
    lonely = Made(OUTPUTS, END)
    lonely.learn("joint", "parity1", STEPS, 0.5)
    lonely.learn("joint", "parity1", [16, 24, 64, 72, 80])
    assert (lonely.done().mastery("sgd.joint", "parity1") == 64).all()
    lonely.learn("joint", "parity1", [88])
    lonely.learn("joint", "parity1", [72], 0.5)  # not one of the points that count
    assert lonely.done().mastery("sgd.joint", "parity1", every=16).isna().all()
    lonely.learn("joint", "parity1", [96])
    assert (lonely.done().mastery("sgd.joint", "parity1", every=16) == 64).all()


def test_a_seed_that_slips_inside_the_window_does_not_pass(made):
    results = Made(OUTPUTS, END)
    results.records, results.points = made.records, list(made.points)
    results.learn("along", "parity1", [160], 0.8, seeds=[3])
    results.learn("along_easy", "parity1", [168], 0.8, seeds=[4])
    results.learn("along", "parity1", [296], 0.8, seeds=[5])  # after the window
    part = next(c for c in complexity.claims(results.done(), "sgd") if c.id == "C03").parts[1]
    assert list(part.passed.index[~part.passed.all(axis=1)]) == [3, 4]


def test_gate_asks_every_class_of_every_output_at_every_step(made):
    results = Made(OUTPUTS, END)
    results.records, results.points = made.records, list(made.points)
    results.learn("joint", "parity4", [END], 0.95, seeds=[0])  # not over 95 %
    results.learn("joint", "parity1", [END], np.nan, seeds=[1])  # diverged
    results.done()
    passed = gate(results, [("sgd.joint", ("parity1", "parity4"), [END]), ("sgd.squared", ("parity1",), [END])])
    assert list(passed.index[~passed.iloc[:, 0]]) == [0, 1]
    assert passed.iloc[:, 1].all()
    assert not gate(results, [("sgd.joint", ("parity1",), [END + 1])]).to_numpy().any()  # a step that is not there
    early = pd.Series(16, index=SEEDS)
    assert gate(results, [("sgd.along", ("parity1",), [early])]).to_numpy().all()
    assert not gate(results, [("sgd.along", ("parity1",), [early - 8])]).to_numpy().any()


def test_windows_with_under_20_points_have_no_value(made):
    results = Made(OUTPUTS, END)
    results.records, results.points = made.records, list(made.points)
    results.learn("along", "parity4", range(80, 136, 8), 0.5)  # 60 % only at 136: 19 points to 280
    part = next(c for c in complexity.claims(results.done(), "sgd") if c.id == "C03").parts[1]
    assert part.values.isna().all()


def test_r2_of_final_is_on_the_scale_of_the_last_snapshot(smoke):
    results = Results(smoke)
    for feature in ("parity1", "parity4"):
        total = results.values("sgd.along", "total_variance")
        for step in (0, 16, 32):
            r2, then = (results.values("sgd.along", m, f, step=step) for m, f in (("r2", feature), ("total_variance", "")))
            share = results.values("sgd.along", "r2_of_final", feature, step=step)
            np.testing.assert_allclose(share, r2 * then / total, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(
            results.values("sgd.along", "r2_of_final", feature), results.values("sgd.along", "r2", feature), rtol=1e-4
        )


def gap_of(easy, hard, high=0.01):
    """A gap between two features of 16 networks that learned both, r2 by seed; the null level is -.002."""
    made = Made({"joint": "parity1 parity4"}, 100)
    for feature, r2 in (("parity1", easy), ("parity4", hard)):
        made.put("joint", "r2", feature, r2)
        made.put("joint", "null", feature, [-0.002] * 16)
        made.put("joint", "null_high", feature, [high] * 16)
        made.learn("joint", feature, [100])
    part = contrasts.difference(made.done(), "sgd.joint", "", "made", ("parity1", "parity4"), 0.02)
    return part, judge([Claim("C99", "made", "", (part,))], "sgd", False)[0]


def test_the_log_ratio_has_r2_below_the_null_band_at_its_end():
    easy, hard = [0.4] * 13 + [0.4, 0.005, np.nan], [0.2] * 13 + [-0.003, 0.001, -0.003]
    part, row = gap_of(easy, hard)
    by_hand = [np.log(2)] * 13 + [np.log(0.4 / 0.01), 0.0, np.nan]  # the last but one: both below the band
    np.testing.assert_allclose(part.secondary, by_hand)
    assert list(part.floored) == [0] * 13 + [1, 2, 1]
    assert row["second_statistic"] == "log(first / second)"
    assert row["second_effect"] == pytest.approx(np.nanmean(by_hand))
    assert "log ratio: 3 r2 of 2 seeds set to the end of the null band" in row["note"]  # of the seeds that count
    assert "null band" not in gap_of([0.4] * 16, [0.2] * 16)[1]["note"]


def test_a_null_band_that_ends_below_zero_leaves_the_size_of_the_null_level():
    part, _ = gap_of([0.4] * 16, [0.2] * 8 + [0.001] * 8, high=-0.0005)
    np.testing.assert_allclose(part.secondary, [np.log(2)] * 8 + [np.log(0.4 / 0.002)] * 8)
    assert list(part.floored) == [0] * 8 + [1] * 8


def test_a_log_ratio_against_the_difference_makes_a_verdict_depend_on_the_measure():
    """Few large gaps carry the mean difference; in most networks the hard feature is ahead by a factor."""
    spread = 1e-3 * (np.arange(16) % 2)
    part, row = gap_of(list(np.where(np.arange(16) % 2, 0.9, 0.02) + spread), list(np.where(np.arange(16) % 2, 0.6, 0.1)))
    assert part.values.mean() > 0
    assert row["second_high"] < 0
    assert row["verdict"] == "depends on the measure"
