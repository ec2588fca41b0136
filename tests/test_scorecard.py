"""All experiments by one command, and one card over them: order, correction, what is missing, what a second run leaves."""

import csv
import dataclasses
import inspect
import os
import re
import shutil
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import DEVICES, ROOT, run_here

from experiments.claims import EXPERIMENTS
from experiments.command import names_of
from repbias_jax import pipeline, planning, store
from repbias_jax.config import ConfigError, Preset
from repbias_jax.report import card, tables
from repbias_jax.statistics import CLAIM_COLUMNS, Claim, Part, holm
from tests.faults import tiny

NASTY = "<img src=x onerror=alert(1)> a | b"


def row(id_, p="", exploratory="False", **more):
    """A row of `claims.csv` as it is read."""
    return dict.fromkeys(CLAIM_COLUMNS, "") | {
        "id": id_, "column": "sgd", "claim": "text", "statistic": "s", "effect": "0.3", "ci_low": "0.2", "ci_high": "0.4",
        "margin": "0.05", "runs": "15", "left_out": "1", "p": p, "verdict": "reproduced", "exploratory": exploratory,
    } | more  # fmt: skip


def source(name, *rows, variant="", figure="", page=""):
    own = [r | {"experiment": name, "figure": figure, "page": page} for r in rows]
    return card.Source(name, f"title of {name}", variant, page, own)


TOGETHER = {"effect": "", "ci_low": "", "ci_high": "", "margin": "", "statistic": "a and b together"}
SOURCES = (
    source("late", row("C12", "0.01"), row("C03", "0.04", **TOGETHER), row("C03a", "0.04"), row("C03b", "0.001")),
    source("early", row("C02", ""), row("C01", "0.02"), row("C01", "0.001", "True", column="adam")),
)


def test_claims_stand_in_the_order_of_their_ids_with_exploratory_columns_last():
    rows = card.rows_of(SOURCES)
    assert [r["id"] for r in rows] == ["C01", "C02", "C03", "C03a", "C03b", "C12", "C01"]
    assert [r["id"] for r in rows if r["part"]] == ["C03a", "C03b"]
    assert [r["exploratory"] for r in rows].index("True") == len(rows) - 1


def test_experiments_off_their_reference_settings_are_named_once_a_reason():
    named = [source("a"), source("b", variant="quick"), source("c", variant="new, quick"), source("d", variant="quick")]
    assert card.illustrations(named) == "b, d (quick); c (new, quick)"
    assert card.illustrations(named[:1]) == ""


def test_holm_is_over_the_claims_of_the_whole_card():
    """Not over parts and exploratory columns."""
    rows = card.rows_of(SOURCES)
    found = {r["id"]: float(r["p_holm"]) for r in rows if r["p_holm"]}
    assert found == pytest.approx(holm({"C12": 0.01, "C03": 0.04, "C01": 0.02, "C02": float("nan")}))
    assert found == pytest.approx({"C12": 0.04, "C01": 0.06, "C03": 0.08, "C02": 1})


def test_what_is_not_measured_or_partial_counts_as_p_1():
    """And so does a claim of a family fixed beforehand that is not on the card at all; others are left out of it."""
    rows = {r["id"]: r for r in card.rows_of(SOURCES)}
    assert (rows["C02"]["p_holm"], rows["C02"]["survives_holm"]) == ("1", "False")
    rows = {r["id"]: r for r in card.rows_of(SOURCES, ("C01", "C12", "C31")) if r["exploratory"] == "False"}
    found = {name: float(r["p_holm"]) for name, r in rows.items() if r["p_holm"]}
    assert found == pytest.approx({"C12": 0.03, "C01": 0.04})
    assert (rows["C12"]["survives_holm"], rows["C03"]["survives_holm"]) == ("True", "")


def test_separate_parts_count_each_and_those_that_do_not_decide_do_not():
    kinds = {"C08a": "deciding", "C08b": "deciding", "C08c": "shown"}
    rows = card.rows_of([source("x", *(row(id_, "0.02", kind=kind) for id_, kind in kinds.items()))])
    assert not any(r["part"] for r in rows)
    assert [r["p_holm"] for r in rows] == ["0.04", "0.04", ""]


def test_a_claim_that_two_experiments_measure_counts_twice():
    rows = card.rows_of([source("one", row("C13", "0.01")), source("two", row("C13", "0.02"))])
    assert [(r["experiment"], float(r["p_holm"])) for r in rows] == [("one", 0.02), ("two", 0.02)]


def test_page_says_what_is_missing_and_escapes_names(tmp_path):
    texts = {"claim": NASTY, "paper": NASTY, "note": NASTY, "statistic": NASTY, "verdict": NASTY}
    nasty = source("nasty", row("C01", "0.01", **texts), variant=NASTY, figure='"><b>.png', page="javascript:alert(1)")
    card.write(tmp_path, [*SOURCES, nasty], ["lost"])
    text = (tmp_path / "scorecard.html").read_text()
    assert "<img" not in text
    assert text.count("&lt;img src=x") >= 7
    assert "<script" not in text
    assert "default-src 'none'" in text
    links = re.findall(r"(?:href|src)=\"([^\"]*)\"", text)
    assert len(links) == 3  # figure and page of one row, and the page again among the experiments
    assert not any(re.search(r"[:<>]", link) for link in links)
    assert re.search(r"Missing[^<]*: lost\.", text)
    assert "Exploratory conditions" in text
    assert "nan" not in text.lower()


def test_table_of_the_whole_card():
    """Links once for a claim and its parts, no exploratory columns, notes and old verdicts beside new ones."""
    second = {"second_statistic": "log ratio", "second_effect": "0.5", "second_low": "0.4", "second_high": "0.6"}
    told = row("C01", "0.01", note="a note", source="P", verdict_first_look="opposite", **second)
    shown = source("x", told, row("C02", claim="a | b", partial="True", **TOGETHER), row("C02a"), row("C02b", kind="shown"))
    rows = card.rows_of([shown._replace(rows=[r | {"figure": "x/figures/gap one.png"} for r in shown.rows]), SOURCES[1]])
    lines = card.markdown(rows, "results").splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[2] == (
        "| [C01](results/x/figures/gap%20one.png) | P | text<br>s | +0.300 [+0.200, +0.400]<br>second, log ratio: +0.500 "
        "[+0.400, +0.600] | 0.05 | 15 of 16 | **reproduced**; a note | opposite | 0.01 | yes |"
    )
    c02, a, b = lines[4:7]
    assert c02.startswith(
        "| [C02](results/x/figures/gap%20one.png) |  | a \\| b |  |  | 15 of 16 | **reproduced (partial)** |"
    )
    assert a.startswith("| C02a |  | s | +0.300")
    assert "**reproduced (shown)**" in b
    assert sum("adam" in line for line in lines) == 0
    (explored,) = card.markdown(rows, ".", exploratory=True).splitlines()[2:]
    assert explored.startswith("| C01 adam |  | text<br>s | +0.300")
    assert sum("C01" in line for line in lines) == 2


def test_headlines_show_claims_with_the_effect_that_decides_and_count_the_others():
    parts = (
        row("C03", "0.04", verdict="opposite", **TOGETHER),
        row("C03a"),
        row("C03b", effect="-0.3", verdict="opposite"),
    )
    words = (
        "reproduced",
        "reproduced, small",
        "depends on the measure",
        "opposite, small",
        "no difference",
        "not measured",
    )
    rest = [row(f"C1{i}", verdict=word) for i, word in enumerate(words)]
    rows = card.rows_of([source("x", row("C01", "0.001"), *parts, *rest)])
    text = card.headlines(rows, ("C01", "C03", "C99"), "results", "results/README.md")
    assert text == (
        "| claim |  | effect [95 % interval] | verdict | survives Holm |\n|---|---|---|---|---|\n"
        "| C01 | text | +0.300 [+0.200, +0.400] | **reproduced** | yes |\n"
        "| C03 | text | b: -0.300 [+0.200, +0.400] | **opposite** |  |\n\n"
        "Of the other 6 claims: 2 reproduced (1 of them small or of a size that is not shown), 1 undecided, 1 opposite, "
        "1 without a difference, 1 not measured. [The full card](results/README.md).\n"
    )
    assert card.others(rows[-1:], "x").startswith("Of the other claim: 1 not measured.")


def test_claims_written_before_columns_were_added_can_be_read(tmp_path):
    tables.write_claims(tmp_path, [row("C01", "0.01", source="P")])
    old = CLAIM_COLUMNS[: CLAIM_COLUMNS.index("side")]
    lines = [",".join(line[: len(old)]) for line in csv.reader((tmp_path / "claims.csv").read_text().splitlines())]
    (tmp_path / "claims.csv").write_text("\n".join(lines) + "\n")
    (read,) = tables.read_claims(tmp_path)
    assert tuple(read) == CLAIM_COLUMNS
    assert (read["id"], read["source"], read["kind"]) == ("C01", "", "")
    (shown,) = card.rows_of([source("x", read)])
    assert (shown["p_holm"], shown["verdict_first_look"]) == ("0.01", "")


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_contract_claims_name_figures_that_there_are(name):
    module = EXPERIMENTS[name]
    elsewhere = re.sub(r"(FIGURES|NOTES) = \{.*?\}", "", inspect.getsource(module), flags=re.S)
    figures, notes = getattr(module, "FIGURES", {}), getattr(module, "NOTES", {})
    for id_ in (*figures, *notes):
        assert f'"{id_[:3]}"' in elsewhere
    assert set(figures.values()) <= set(module.CAPTIONS)


def test_what_an_experiment_notes_stands_beside_its_claim():
    reference = ROOT / "experiments" / "results" / "components"
    rows = {r["id"]: r["note"] for r in card.read(reference, EXPERIMENTS["components"]).rows if r["column"] == "sgd"}
    assert rows["C19"] == EXPERIMENTS["components"].NOTES["C19"]
    assert rows["C21a"] == ""


def claim(id_, parts, p):
    """A claim that depends on nothing that was trained: twelve seeds that all pass."""
    values = pd.Series(np.linspace(0.1, 0.3, 12) * (1 if p else -1))
    passed = pd.DataFrame({"all": [True] * 12})
    return Claim(id_, f"{id_} {NASTY}", "", tuple(Part(x, "s", values, passed, 1, 0.05) for x in parts))


def stand_in(name, claims):
    """The tiny experiment with one setting, under another name and with claims of its own."""
    full, half = (("full", Preset(4)), ("half", Preset(2)))
    presets = (full,) if name == "gamma" else (full, half)
    more = {"settings": tiny.EXPERIMENT.settings[:1], "probes": ("readout",), "presets": presets}
    experiment = dataclasses.replace(tiny.EXPERIMENT, name=name, **more)
    return SimpleNamespace(
        EXPERIMENT=experiment, claims=lambda results, condition: claims(), figures=lambda results: [],
        CAPTIONS=tiny.CAPTIONS, __file__=tiny.__file__,
    )  # fmt: skip


def broken():
    raise KeyError("a claim that cannot be computed")


def three(**more):
    found = {
        "alpha": stand_in("alpha", lambda: [claim("C07", ("",), True), claim("C36", ("",), False)]),
        "beta": stand_in("beta", lambda: [claim("C02", ("a", "b"), True)]),
        "gamma": stand_in("gamma", lambda: [claim("C01", ("",), True)]),
    }
    return found | {name: stand_in(name, claims) for name, claims in more.items()}


@pytest.fixture
def registered():
    """Puts experiments in the place of those there are, for one test."""
    own = dict(EXPERIMENTS)

    def put(modules):
        EXPERIMENTS.clear()
        EXPERIMENTS.update(modules)

    put(three())
    yield put
    put(own)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three experiments trained and measured, one of them as if begun on a machine with half as many devices."""
    workdir, module = tmp_path_factory.mktemp("all"), three()["alpha"]
    checked = planning.check(module.EXPERIMENT, "cpu")
    plan = planning.place(module.EXPERIMENT, checked, workdir / "alpha", DEVICES)
    nothing = {"commit": "", "variant": ""}
    pipeline.run(plan, module, workdir / "alpha", ("train", "measure"), lambda: False, nothing)
    for name in ("beta", "gamma"):  # the same settings under other names
        shutil.copytree(workdir / "alpha", workdir / name)
    manifest = store.read_json(workdir / "gamma" / "manifest.json", "train")
    manifest["layout"]["rows"] = DEVICES // 2  # four runs are one chunk there, too
    store.write_json(workdir / "gamma" / "manifest.json", manifest)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "w")


def cards(workdir):
    return [(workdir / name).read_bytes() for name in ("scorecard.csv", "scorecard.html")]


def ids(workdir):
    with open(workdir / "scorecard.csv", newline="") as file:
        return [r["id"] for r in csv.DictReader(file)]


def test_one_that_fails_does_not_keep_the_others(call, registered, workdir):
    registered(three(alpha=broken))
    status, out, err = call("--experiment=ALL", f"--workdir={workdir}")
    assert status == 1
    assert err.index("experiments: 0/3 done; now alpha") < err.index("KeyError: 'a claim that cannot be computed'")
    assert err.index("alpha: stopped by the error above") < err.index("experiments: 0/3 done, 1 failed; now beta")
    assert err.endswith("experiments: 2/3 done, 1 failed\nerror: 1 of 3 experiments failed: alpha\n")
    assert "Missing from the score card: alpha" in out
    assert ids(workdir) == ["C01", "C02", "C02a", "C02b"]
    assert "<b>missing</b>" in cards(workdir)[1].decode()
    registered(three())
    status, out, err = call("--experiment=ALL", f"--workdir={workdir}")
    assert status == 0
    assert ids(workdir) == ["C01", "C02", "C02a", "C02b", "C07", "C36"]
    assert "missing" not in cards(workdir)[1].decode().lower()
    assert out.splitlines()[-2:] == [str(workdir / "scorecard.html"), str(workdir / "scorecard.csv")]
    assert re.search(r"^C07 .*reproduced +alpha$", out, re.M)
    assert re.search(r"^C36 .*opposite +alpha$", out, re.M)
    assert 'href="beta/report.html"' in cards(workdir)[1].decode()


def test_a_failure_that_is_expected_is_one_line(call, registered, workdir):
    """A damaged file: what is wrong and what to do, as with one experiment."""
    (workdir / "beta" / "results.csv").write_text("damaged")
    status, _, err = call("--experiment=ALL", f"--workdir={workdir}", "--stage=report")
    assert status == 1
    assert re.search(r"^error: beta: .*stage measure is not up to date; rerun with --stage=measure,report$", err, re.M)
    assert "Traceback" not in err
    assert ids(workdir) == ["C01", "C07", "C36"]


def test_interrupted_and_started_again_the_card_is_the_same(call, registered, workdir, tmp_path):
    other = shutil.copytree(workdir, tmp_path / "other")
    assert run_here("--experiment=ALL", f"--workdir={workdir}") == 0

    calls = []

    def told_to_stop():
        calls.append("claims")
        if len(calls) == 2:  # in the report; the first call is before training
            os.kill(os.getpid(), signal.SIGTERM)
        return [claim("C02", ("a", "b"), True)]

    registered(three(beta=told_to_stop))
    status, _, err = call("--experiment=ALL", f"--workdir={other}")
    assert status == 75
    assert "interrupted: stopped before gamma; run the same command again" in err
    assert not (other / "scorecard.csv").exists()
    registered(three())
    assert run_here("--experiment=ALL", f"--workdir={other}") == 0
    assert cards(other) == cards(workdir)
    (other / ".scorecard.csv.half.tmp").write_text("what a killed process leaves")
    before = {p: p.stat().st_mtime_ns for p in other.glob("*/*") if p.is_file() and not p.name.endswith("lock")}
    status, _, err = call("--experiment=ALL", f"--workdir={other}", "--shard=0/2")
    assert status == 0
    assert "experiments: 3/3 done" in err
    assert cards(other) == cards(workdir)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not list(other.glob(".*.tmp"))


def test_workdirs_begun_with_different_rows_keep_them(call, registered, workdir):
    """The process has devices for the most of them."""
    assert [planning.recorded_rows(workdir / n) for n in EXPERIMENTS] == [DEVICES, DEVICES, DEVICES // 2]
    status, out, _ = call("--experiment=ALL", f"--workdir={workdir}", "--only_print")
    assert status == 0
    assert out.count(f"chunks of at most {DEVICES} rows") == 2
    assert out.count(f"chunks of at most {DEVICES // 2} rows") == 1
    assert "all 3 experiments: 12 runs" in out


def test_seeds_preset_and_stage_are_those_of_every_experiment(call, registered, tmp_path):
    status, out, _ = call("--experiment=ALL", f"--workdir={tmp_path}", "--num_seeds=7", "--seed=3", "--only_print")
    assert status == 0
    assert "all 3 experiments: 21 runs" in out
    status, out, err = call("--experiment=ALL", f"--workdir={tmp_path}", "--config.model.widths=8,8", "--only_print")
    assert status == 0
    assert list(tmp_path.iterdir()) == []
    status, _, err = call("--experiment=ALL", f"--workdir={tmp_path}", "--stage=measure")
    assert status == 1
    assert err.count("stage train is not up to date") == 3
    assert not (tmp_path / "scorecard.csv").exists()


BAD = {
    "a preset that one has not": (("--preset=half",), "gamma: unknown --preset=half; known: full"),
    "an override that does not fit one": (("--config.optimizer.learning_rate=0.1",), "beta: --config.optimizer.learning"),
    "a reference": (("--reference=ref",), "--reference needs one experiment, not --experiment=ALL"),
    "a distributed job": (("--distributed",), "--distributed needs one experiment, not --experiment=ALL"),
    "no seeds": (("--num_seeds=0",), "alpha: --num_seeds=0: expected at least 1"),
    "stages": (("--stage=draw",), "unknown --stage=draw"),
    "share": (("--shard=2/2",), "--shard=2/2: expected i/N"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_found_before_anything_is_written(case, call, registered, tmp_path):
    modules = three()
    swept = dataclasses.replace(modules["beta"].EXPERIMENT, settings=tiny.EXPERIMENT.settings)
    registered(modules | {"beta": SimpleNamespace(**{**vars(modules["beta"]), "EXPERIMENT": swept})})
    arguments, expected = BAD[case]
    status, out, err = call("--experiment=ALL", f"--workdir={tmp_path / 'new'}", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {expected}")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_of_another_configuration_is_refused_before_the_others_go_on(call, registered, workdir):
    status, _, err = call("--experiment=ALL", f"--workdir={workdir}", "--config.training.epochs=3")
    assert status == 2
    assert re.match(r"error: alpha: .*config.training.epochs.* asks for 3", err)
    assert not list(workdir.glob("*/claims.csv"))


def test_make_reproduce_runs_every_experiment():
    line = ["make", "-n", "reproduce", "VENV=V", "REPRODUCE=D"]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "V/bin/python -m experiments.run --experiment=ALL --preset=quick --workdir=D\n" in printed


def test_no_experiment_may_take_the_name_of_all():
    assert "ALL" not in EXPERIMENTS
    with pytest.raises(ConfigError, match=r"unknown --experiment=all; known: .*, ALL"):
        names_of("all")
