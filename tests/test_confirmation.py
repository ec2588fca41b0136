"""What a confirmation may be: entries of `confirm.json`, their seeds, the family for Holm, and what is refused."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pandas as pd
import pytest
import tiny_claims

from experiments import command, first_look, run
from experiments.claims import EXPERIMENTS
from experiments.run_all import run_all
from repbias_jax import confirmation
from repbias_jax.config import ConfigError, fields_of, flatten
from repbias_jax.pipeline import Outcome
from repbias_jax.report import tables
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, holm


def entry(claim="C01a", first=10_000, count=256, **more):
    return {
        "claim": claim, "statistic": "gap", "side": 1, "margin": 0.05, "n": 256, "seeds": {"first": first, "count": count},
        "date": "2026-12-01",
    } | more  # fmt: skip


GOOD = [
    entry("C01a"),
    entry("C01b"),
    entry("C05", 20_000, 640, n=640),
    entry("C06", 20_000, 640, n=640, **{"with": "C05"}),
    entry("C08a", 30_000, separate=True),
    entry("C08b", 40_000, separate=True),
    entry("C13", 50_000, 512, n=128, side=-1),
]


def written(tmp_path, entries):
    path = tmp_path / "confirm.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def test_entries_seeds_and_family(tmp_path):
    entries = confirmation.load(written(tmp_path, GOOD))
    first = ("C01", "a", "gap", 1, 0.05, 256, 10_000, 256, "2026-12-01", "", False)
    assert dataclasses.astuple(entries[0]) == first
    assert confirmation.seeds_of(entries, "C01") == confirmation.seeds_of(entries, "C01b") == (10_000, 256)
    assert confirmation.seeds_of(entries, "C06") == (20_000, 640)
    assert confirmation.family(entries) == ("C01", "C05", "C06", "C08a", "C08b", "C13")
    for id_, expected in (("C08", "different seeds"), ("C02", "no confirmation of C02; confirmed are C01, C05")):
        with pytest.raises(ConfigError, match=expected):
            confirmation.seeds_of(entries, id_)


BAD = {
    "no list": ({}, "expected a list of at least one entry, got {}"),
    "empty": ([], "expected a list of at least one entry, got []"),
    "no JSON": ("[{", "no valid JSON"),
    "a number of 5,000 digits": (f"[{'9' * 5000}]", "no valid JSON"),
    "endless nesting": ("[" * 100_000, "no valid JSON"),
    "a key twice": ('[{"claim": "C01", "claim": "C02"}]', "no valid JSON: twice the key 'claim'"),
    "no object": ([3], "entry 0: expected an object with claim, statistic"),
    "unknown key": ([entry(seed=1)], 'unknown key "seed"; known: claim'),
    "missing key": ([{k: v for k, v in entry().items() if k != "margin"}], "no key 'margin'"),
    "id": ([entry("c1")], 'claim is "c1", expected an id like C01 or C01a'),
    "id of another type": ([entry(1)], "claim is 1, expected an id"),
    "statistic": ([entry(statistic=" ")], 'statistic is " ", expected a text'),
    "side": ([entry(side=2)], "side is 2, expected 1, -1, or 0"),
    "side true": ([entry(side=True)], "side is true, expected 1, -1, or 0"),
    "margin 0": ([entry(margin=0)], "margin is 0, expected a number above 0"),
    "margin nan": ([entry(margin=float("nan"))], "margin is NaN, expected a number above 0"),
    "margin beyond floats": ([entry(margin=10**400)], "expected a number above 0"),
    "margin infinite": ([entry(margin=float("inf"))], "margin is Infinity, expected a number above 0"),
    "n": ([entry(n=11)], "n is 11, expected a whole number of at least 12"),
    "n with a fraction": ([entry(n=20.5)], "n is 20.5, expected a whole number"),
    "seeds": ([entry(seeds=[10_000, 256])], "seeds is [10000, 256], expected {"),
    "seed of the first look": ([entry(first=9_999)], "seeds.first is 9999, expected a whole number of at least 10000"),
    "fewer seeds than n": ([entry(count=255)], "seeds.count is 255, expected a whole number of at least n = 256"),
    "seeds without end": ([entry(first=2**31 - 256, count=257)], "expected no seed above 2147483647"),
    "date": ([entry(date="1 December")], 'date is "1 December", expected a day like 2026-12-01'),
    "day that there is not": ([entry(date="2026-02-30")], 'date is "2026-02-30", expected a day'),
    "month that there is not": ([entry(date="2026-13-01")], 'date is "2026-13-01", expected a day'),
    "separate": ([entry(separate=1)], "separate is 1, expected true or false"),
    "with itself": ([entry(**{"with": "C01"})], 'with is "C01", expected the id of another claim'),
    "with none": ([entry(**{"with": "C05"})], "C01a is with C05, which has no entry"),
    "twice": ([entry(), entry()], "C01a twice"),
    "whole and part": ([entry(), entry("C01")], "C01 as a whole and its part a"),
    "separate in part": ([entry(separate=True), entry("C01b")], "some parts of C01 are separate and some are not"),
    "overlap": ([entry(), entry("C02", 10_255)], "seeds of C01a and C02 overlap at 10255; expected blocks apart, or"),
    "same, not said": ([entry(), entry("C02")], "seeds of C01a and C02 overlap at 10000; expected blocks apart, or"),
    "inside another": ([entry(count=1000), entry("C02", 10_100), entry("C03", 10_900)], "overlap at 10100"),
    "parts overlap": ([entry(), entry("C01b", 10_100)], "expected the same block or blocks apart"),
    "with, other seeds": ([entry(), entry("C02", 20_000, **{"with": "C01"})], "C02 is with C01 and has other seeds"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_in_one_line(case, tmp_path):
    entries, expected = BAD[case]
    path = written(tmp_path, entries)
    with pytest.raises(ConfigError) as caught:
        confirmation.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert expected in text
    assert len(text.splitlines()) == 1


def test_a_missing_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"confirm\.json: no such file; a confirmation needs it, committed before"):
        confirmation.load(tmp_path / "confirm.json")


def claim(id_="C01", labels="ab", separate=False, **more):
    values = pd.Series(np.linspace(0, 1, 16))
    part = {"statistic": "gap", "values": values, "passed": pd.DataFrame(values > -1), "side": 1, "sesoi": 0.05} | more
    return Claim(id_, "made", "", tuple(Part(label=label, **part) for label in labels), separate=separate)


def test_claims_have_to_be_what_was_written_down(tmp_path):
    entries = confirmation.load(written(tmp_path, GOOD))
    confirmation.check(entries, [claim(), claim("C02", side=-1), claim("C08", separate=True)])
    for made, expected in (
        (claim(side=-1), "C01a: side is -1, confirm.json has 1"),
        (claim(sesoi=0.02), "C01a: margin is 0.02, confirm.json has 0.05"),
        (claim(statistic="other"), 'C01a: statistic is "other", confirm.json has "gap"'),
        (claim(labels="a"), "C01: confirm.json has C01a, C01b, its experiment decides by C01a"),
        (claim(labels=""), "C01: confirm.json has C01a, C01b, its experiment decides by none"),
        (claim("C08"), "C08a: separate is false, confirm.json has true"),
    ):
        with pytest.raises(ConfigError) as caught:
            confirmation.check(entries, [made])
        assert str(caught.value) == expected
    shown = Part("c", "other", pd.Series([1.0]), pd.DataFrame(), 1, 1, kind="shown")
    both = claim()
    confirmation.check(entries, [Claim("C01", "made", "", (*both.parts, shown))])


PLAN = [
    entry("C90", 10_000, 13, statistic="r2(parity1) - r2(majority3), made", margin=0.02, n=13),
    entry("C91a", 20_000, 16, statistic="total variance", margin=0.02, n=16),
]


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """`plan(entries)` is what is confirmed; the tiny experiment is among the experiments."""
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny_claims)
    monkeypatch.setattr(command, "CONFIRMATION", tmp_path / "confirm.json")

    def write(entries):
        return written(tmp_path, entries)

    write(PLAN)
    return write


def confirm(call, workdir, *arguments):
    return call("--experiment=tiny", "--preset=confirm", f"--workdir={workdir}", *arguments)


def test_a_confirmation_from_end_to_end(plan, call, tmp_path):
    workdir = tmp_path / "w"
    status, out, err = confirm(call, workdir, "--only_print")
    assert (status, workdir.exists()) == (0, False), err
    assert [line for line in out.splitlines() if line.startswith("tiny.")] == [
        "tiny.C90: One bit against three (confirmation of C90)", "tiny.C91: One bit against three (confirmation of C91)",
    ]  # fmt: skip
    status, out, err = confirm(call, workdir, f"--reference={tmp_path / 'ref'}")
    assert status == 0, err
    assert "illustration" not in out
    rows = {folder: tables.read_claims(workdir / folder) for folder in ("tiny.C90", "tiny.C91")}
    assert {folder: [row["id"] for row in own] for folder, own in rows.items()} == {
        "tiny.C90": ["C90"], "tiny.C91": ["C91", "C91a", "C91b"],
    }  # fmt: skip
    for folder, first, count in (("tiny.C90", 10_000, 13), ("tiny.C91", 20_000, 16)):
        results = Results(workdir / folder)
        assert list(results.settings.index) == ["sgd.joint"]
        assert results.settings.loc["sgd.joint", "model.head"] == "unit"
        assert sorted(results.rows["seed"].unique()) == list(range(first, first + count))
        assert {(row["column"], row["exploratory"]) for row in rows[folder]} == {("sgd", "False")}
        assert results.manifest["record"]["confirm.json"]
        assert "illustration" not in (workdir / folder / "report.html").read_text()
        assert (tmp_path / "ref" / folder / "claims.csv").read_bytes() == (workdir / folder / "claims.csv").read_bytes()
    (one,), (whole, total, _) = rows["tiny.C90"], rows["tiny.C91"]
    assert int(one["runs"]) + int(one["left_out"]) == 13
    assert int(total["runs"]) + int(total["left_out"]) == 16
    values = pd.read_csv(workdir / "tiny.C91" / "claim_values.csv")
    assert list(values[values["id"] == "C91a"]["seed"]) == list(range(20_000, 20_016))
    assert one["verdict"] != "not measured"
    assert whole["verdict"] == "reproduced"
    # Alone, a block takes what is not in it as p = 1; the card has both.
    assert float(whole["p_holm"]) == pytest.approx(2 * float(whole["p"]), rel=1e-5)
    card = {row["id"]: row for row in pd.read_csv(workdir / "scorecard.csv", dtype=str).to_dict("records")}
    both = holm({id_: float(card[id_]["p"]) for id_ in ("C90", "C91")})
    assert {id_: float(card[id_]["p_holm"]) for id_ in both} == pytest.approx(both, rel=1e-5)
    # Nothing is done twice, and a plan that was changed after the look needs another workdir.
    before = (workdir / "tiny.C90" / "manifest.json").read_bytes()
    assert confirm(call, workdir)[0] == 0
    assert (workdir / "tiny.C90" / "manifest.json").read_bytes() == before
    for count in (16, 12):
        plan([PLAN[0] | {"n": 12, "seeds": {"first": 10_000, "count": count}}, PLAN[1]])
        status, _, err = confirm(call, workdir)
        assert (status, len(err.splitlines())) == (2, 1)
        assert f"tiny.C90 holds 13 seeds, and confirm.json plans {count}, to be looked at once" in err
    # A statistic that is not the planned one is known with its values: refused at the report, and nothing is lost.
    plan([PLAN[0] | {"statistic": "another"}, PLAN[1]])
    status, _, err = confirm(call, workdir)
    assert status == 1
    assert 'tiny.C90: C90: statistic is "r2(parity1) - r2(majority3), made", confirm.json has "another"' in err
    plan(PLAN)
    assert confirm(call, workdir)[0] == 0
    assert tables.read_claims(workdir / "tiny.C90") == [one]


def test_an_interrupted_confirmation_goes_on(plan, call, tmp_path, monkeypatch):
    """Stopped again and again, it ends with the tables of one that was never stopped."""
    plan([PLAN[0]])
    assert confirm(call, tmp_path / "whole")[0] == 0
    with monkeypatch.context() as signalled:
        polls = itertools.count()
        signalled.setattr(run, "catch_signals", lambda: lambda: next(polls) >= 4)  # from then on, as a signal is
        status, _, err = confirm(call, tmp_path / "cut")
    assert (status, "run the same command again" in err) == (75, True)
    assert not (tmp_path / "cut" / "tiny.C90" / "claims.csv").exists()
    assert confirm(call, tmp_path / "cut")[0] == 0
    for name in ("claims.csv", "claim_values.csv", "results.csv"):
        assert (tmp_path / "cut" / "tiny.C90" / name).read_bytes() == (tmp_path / "whole" / "tiny.C90" / name).read_bytes()


REFUSED = {
    "seed": (("--seed=3",), "--seed with --preset=confirm: expected none, since confirm.json says what is run"),
    "number": (("--num_seeds=12",), "--num_seeds with --preset=confirm: expected none"),
    "settings": (("--settings=joint",), "--settings with --preset=confirm: expected none"),
    "conditions": (("--conditions=sgd",), "--conditions with --preset=confirm: expected none"),
    "a change": (("--config.training.epochs=2",), "--config.training.epochs with --preset=confirm: expected none"),
    "distributed": (("--distributed",), "--distributed with --preset=confirm"),
    "another experiment": (("--experiment=downstream",), "no claim of downstream; confirmed are C90, C91"),
    "a seed of a confirmation": (("--preset=smoke", "--seed=9999"), "the last seed is 10000; expected all below 10000"),
    "the same, at full size": (("--preset=full", "--seed=10000"), "expected all below 10000"),
    "the same, by an extension": (
        ("--preset=full", "--num_seeds=10001"),
        "the last seed is 10000; expected all below 10000",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_confirmation_is_as_it_was_planned(case, plan, call, tmp_path):
    arguments, expected = REFUSED[case]
    status, out, err = confirm(call, tmp_path / "w", *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert expected in err
    assert not (tmp_path / "w").exists()


PLANS = {
    "a claim of no experiment": ([*PLAN, entry("C99", 30_000)], "no experiment has C99 among its CLAIMS"),
    "one verdict, two blocks": ([*PLAN, entry("C91b", 30_000)], "C91: its parts have different seeds"),
}


@pytest.mark.parametrize("case", PLANS)
def test_plans_that_cannot_be_run(case, plan, call, tmp_path):
    entries, expected = PLANS[case]
    plan(entries)
    status, _, err = confirm(call, tmp_path / "w")
    assert (status, len(err.splitlines())) == (2, 1)
    assert expected in err
    (tmp_path / "confirm.json").unlink()
    status, _, err = confirm(call, tmp_path / "w")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "confirm.json: no such file; a confirmation needs it" in err
    assert not (tmp_path / "w").exists()


def test_all_experiments_are_confirmed_by_what_is_planned_of_them(plan, call, tmp_path):
    """Parts that are separate may have blocks of their own; experiments without an entry are left out."""
    both = {"statistic": "made", "separate": True}
    plan([*PLAN, entry("C08a", 30_000, **both), entry("C08b", 40_000, **both), entry("C02", 50_000)])
    status, out, err = call("--experiment=ALL", "--preset=confirm", f"--workdir={tmp_path / 'w'}", "--only_print")
    assert status == 0, err
    names = [line.split(":")[0] for line in out.splitlines() if line[0] not in " a"]
    assert names == ["complexity.C02", "prevalence.C08a", "prevalence.C08b", "tiny.C90", "tiny.C91"]
    made = dict(command.confirmations(confirmation.load(tmp_path / "confirm.json")))["complexity"][1][0]
    assert [name for name, _ in made.settings] == ["ladder", "equal"]
    configs = made.configs()
    assert {config.model.head for config in configs.values()} == {"unit"}
    assert configs["sgd.ladder"].training.epochs == 400
    assert (made.seed, made.num_seeds, made.variant) == (50_000, 256, "")


def test_every_experiment_says_which_settings_a_claim_reads():
    for module in EXPERIMENTS.values():
        assert list(module.CLAIMS) == list(first_look.stated(module))
        for _, _, settings, *_ in module.CLAIMS.values():
            assert set(settings) <= set(dict(module.EXPERIMENT.settings))


def test_fewer_values_than_were_planned_are_no_confirmation(tmp_path):
    entries = confirmation.load(written(tmp_path, [entry("C01", 10_000, 16, n=16)]))
    made = claim(labels=("",))
    (planned,) = confirmation.planned(entries, [made, claim("C02")], {(10_000, 16)})
    assert planned.parts[0].passed.equals(made.parts[0].passed)
    few = dataclasses.replace(made.parts[0], passed=made.parts[0].passed.iloc[:15])
    with pytest.raises(ConfigError, match=r"^C01: 15 values, confirm.json plans n = 16; expected exactly as many$"):
        confirmation.planned(entries, [dataclasses.replace(made, parts=(few,))], {(10_000, 16)})
    twelve = confirmation.load(written(tmp_path, [entry("C01", 10_000, 16, n=12)]))
    with pytest.raises(ConfigError, match=r"^C01: 16 values, confirm.json plans n = 12"):  # a value may depend on all seeds
        confirmation.planned(twelve, [made], {(10_000, 16)})


def test_a_run_that_waits_for_other_processes_is_told_apart():
    """It has not failed, and nothing of it is published."""
    jobs = [types.SimpleNamespace(name=name) for name in ("done", "waits", "fails")]

    def run_one(job):
        if job.name == "fails":
            raise ConfigError("bad")
        return Outcome([], "2 of 5 chunks are there" if job.name == "waits" else "")

    assert run_all(jobs, run_one, lambda: False) == (["fails"], ["waits"])


def test_confirmations_train_the_base_setting_that_was_frozen(tmp_path):
    """Frozen by accuracy alone: the base setting, and what the ladder of parities needs to be learned under it."""
    ids = {"C01a": 10_000, "C01b": 10_000, "C02a": 20_000, "C02b": 20_000}
    entries = confirmation.load(written(tmp_path, [entry(id_, first) for id_, first in ids.items()]))
    _, runs = command.confirmations(entries)["complexity"]
    configs = {name: config for run in runs for name, config in run.configs().items()}
    frozen = json.loads((command.CONFIRMATION.parent / "base" / "frozen.json").read_text())["settings"]
    assert {"joint", "ladder"} == set(frozen)
    for setting, options in frozen.items():
        now = json.loads(json.dumps(flatten(configs[f"sgd.{setting}"])))
        added = {name: value for name, value in now.items() if name not in options}  # options that came later
        assert now == options | added
        assert added == {
            name: json.loads(json.dumps(fields_of(configs[f"sgd.{setting}"])[name][1].default)) for name in added
        }
