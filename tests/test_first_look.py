"""The first look judged again: what is read of the committed runs is what was judged, and only rules change a verdict."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from experiments import first_look, scorecard
from experiments.claims import EXPERIMENTS
from experiments.first_look import Committed
from repbias_jax.report import card, tables
from repbias_jax.statistics import SOURCES, summarise
from repbias_jax.store import StoreError

RESULTS = ROOT / "experiments" / "results"
RUN = [name for name in EXPERIMENTS if (RESULTS / name / "claims.csv").exists()]
COMMITTED = [name for name in RUN if not any(r["side"] for r in tables.read_claims(RESULTS / name))]


def old_verdict(found, side, sesoi):
    """The rules of the first look, as they were, for what was measured."""
    if side == 0:
        if -sesoi <= found.inner_low and found.inner_high <= sesoi:
            return "reproduced"
        return "opposite" if found.ci_low > sesoi or found.ci_high < -sesoi else "inconclusive"
    low, high = sorted((side * found.ci_low, side * found.ci_high))
    if low > 0:
        return "reproduced" if side * found.effect >= sesoi else "reproduced, small"
    if high < 0:
        return "opposite"
    return "no difference" if -sesoi <= found.inner_low and found.inner_high <= sesoi else "inconclusive"


def values_of(name):
    return pd.read_csv(RESULTS / name / "claim_values.csv").set_index(["id", "column", "seed"]).sort_index()


def again(name):
    rows = tables.read_claims(RESULTS / name)
    return first_look.judged_again(RESULTS / name, EXPERIMENTS[name], rows)


@pytest.mark.parametrize("name", COMMITTED)
def test_sides_are_those_that_the_committed_verdicts_were_made_with(name):
    values = values_of(name)
    for row in tables.read_claims(RESULTS / name):
        if row["effect"] and row["verdict"] != "not measured":
            own = values.loc[row["id"], row["column"]]
            found = summarise(own["value"][own["passed"]].dropna().to_numpy())
            assert old_verdict(found, first_look.SIDES[row["id"]], float(row["margin"])) == row["verdict"], row["id"]


@pytest.mark.parametrize("id_", first_look.READ_FROM_R2)
def test_second_measures_are_read_where_the_primary_statistic_is(id_):
    """From the same r2, with the difference in place of the contrast, come the committed values."""
    (name,) = (n for n in RUN if any(i == id_ for i, *_ in values_of(n).index))
    values = values_of(name).loc[id_]
    for column in values.index.unique("column"):
        run = first_look.measured(RESULTS / name, column)
        found = first_look.READ_FROM_R2[id_](run, Committed.gap)
        own = values.loc[column]["value"].dropna()
        assert len(own) >= 16
        np.testing.assert_allclose(found[own.index], own, atol=2e-4)


@pytest.mark.parametrize("name", COMMITTED)
def test_only_verdicts_p_and_notes_are_new_and_the_old_ones_stay(name):
    old = tables.read_claims(RESULTS / name)
    new = again(name)
    stays = ("id", "column", "claim", "statistic", "effect", "ci_low", "ci_high", "margin", "runs", "left_out", "pass_rate")
    for before, after in zip(old, new, strict=True):
        assert {c: before[c] for c in stays} == {c: after[c] for c in stays}
        assert (after["verdict_first_look"], after["p_first_look"]) == (before["verdict"], before["p"])
        assert (after["verdict"] == "not measured") == (before["verdict"] == "not measured")
        assert after["source"].split(",")[0].split(";")[0] in SOURCES
        assert after["known_from"]


def test_what_the_new_rules_change():
    words = {(r["id"], r["column"]): r["verdict"] for name in COMMITTED for r in again(name)}
    if "architecture" in COMMITTED:
        assert words["C10", "sgd"] == "depends on the measure"  # the gap grows, the contrast falls
    if "learning_order" in COMMITTED:
        assert words["C07a", "sgd"] == words["C07", "sgd"] == "reproduced, size not shown"


def test_a_second_measure_that_was_not_recorded_is_said():
    rows = {(r["id"], r["column"]): r for r in again("learning_order")}
    assert first_look.NOT_RECORDED in rows["C05", "sgd"]["note"]
    assert rows["C05", "sgd"]["second_effect"] == ""
    assert first_look.NOT_RECORDED not in rows["C06", "sgd"]["note"]
    assert rows["C06", "sgd"]["second_effect"]
    assert first_look.NOT_RECORDED not in rows["C07b", "sgd"]["note"]  # it never had one


def test_what_a_module_notes_of_a_claim_with_parts_stays():
    source = next(s for s in scorecard.sources() if s.name == "components")
    notes = {r["id"]: r["note"] for r in source.rows if r["column"] == "sgd"}
    assert notes["C21"] == f"{EXPERIMENTS['components'].NOTES['C21']}; {first_look.NOT_RECORDED}"


def test_rows_of_the_present_rules_are_left_alone():
    rows = [{"id": "C01", "side": "", "verdict": "reproduced"}, {"id": "C01a", "side": "1", "verdict": "reproduced"}]
    assert first_look.judged_again(RESULTS, EXPERIMENTS["complexity"], rows) == rows


def test_a_part_without_a_side_is_refused(tmp_path):
    folder = shutil.copytree(RESULTS / "downstream", tmp_path / "downstream")
    for name in ("claims.csv", "claim_values.csv"):
        (folder / name).write_text((folder / name).read_text().replace("C25,", "C99,"))
    with pytest.raises(StoreError, match="C99 has no side and is no part of the first look"):
        first_look.judged_again(folder, EXPERIMENTS["downstream"], tables.read_claims(folder))


def test_every_claim_says_where_it_comes_from():
    for module in EXPERIMENTS.values():
        for id_, claim in first_look.stated(module).items():
            assert claim.source, id_


def test_headlines_are_on_the_card_and_fit_a_first_page():
    rows = card.rows_of(scorecard.sources())
    text = scorecard.sections()[ROOT / "README.md"]
    assert 10 <= len(scorecard.HEADLINES) <= 12
    assert sum(line.startswith("|") for line in text.splitlines()) == len(scorecard.HEADLINES) + 2
    tested = [r for r in rows if not r["part"] and r["exploratory"] == "False" and r["kind"] in ("", "deciding")]
    assert any(r["id"] == "C41a" and r not in tested for r in rows)  # parts that are ours alone are no claim
    rest = [r for r in tested if r["id"] not in scorecard.HEADLINES]
    assert card.others(rest, "experiments/results/README.md") in text
    assert all(text.count(f"[{id_}](") == 1 for id_ in scorecard.HEADLINES)


def test_decisions_have_each_claim_whose_word_changed():
    text = (RESULTS / "DECISIONS.md").read_text()
    assert scorecard.BLOCK.findall(text) == [scorecard.sections()[RESULTS / "DECISIONS.md"]]
    changed = scorecard.changed(card.rows_of(scorecard.sources()))
    assert changed
    for row in changed:
        assert f"| {row['id']} {row['column']} | {row['verdict_first_look']} | {row['verdict']} |" in text
