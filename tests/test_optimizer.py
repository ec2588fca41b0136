"""The map over optimizers: choosing on one half of the seeds, settings with seeds of their own, cells that are hatched."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from looks import assert_readable
from made import Made

from experiments.claims import EXPERIMENTS, optimizer
from experiments.command import assemble
from experiments.run import help_text
from repbias_jax import layout, pipeline, planning
from repbias_jax.config import ConfigError
from repbias_jax.layout import Layout
from repbias_jax.results import Results
from repbias_jax.statistics import judge
from tests.faults import tiny

SEEDS, EVEN, ODD = range(24), range(0, 24, 2), range(1, 24, 2)
LUCKY, HONEST = "adam_1e-3_d10", "adam_1e-4_d25"
END = 100


def made_of(settings, seeds=SEEDS):
    """Results in which every network has learned everything and r2 is .4 and .2."""
    made = Made(dict.fromkeys(settings, "parity1 parity4"), END)
    made.settings["column"] = "sgd"
    for name in settings:
        own = seeds[name] if isinstance(seeds, dict) else seeds
        for step in (0, END):
            for feature, value in ((optimizer.EASY, 0.4), (optimizer.HARD, 0.2)):
                made.put(name, "r2", feature, [value] * 24, step, seeds=own)
                made.put(name, "r2", f"twin_{feature}", [0.01] * 24, step, seeds=own)
        for side, value in (("low", -0.01), ("high", 0.01)):
            made.put(name, f"null_{side}", optimizer.HARD, [value] * 24, seeds=own)
        for output in (optimizer.EASY, optimizer.HARD):
            made.learn(name, output, [END], seeds=own)
    return made


def shift(made, name, gap):
    """Gives a cell one gap a seed, with a hard feature at .3. Later values count."""
    made.records = [
        r
        for r in made.records
        if not (r["setting"] == f"sgd.{name}" and r["metric"] == "r2" and r["step"] == END and "twin" not in r["feature"])
    ]
    made.put(name, "r2", optimizer.EASY, [0.3 + g for g in gap], seeds=SEEDS)
    made.put(name, "r2", optimizer.HARD, [0.3] * 24, seeds=SEEDS)


def planted():
    """A cell that is lowest by far on the even seeds alone, and one that is below zero on all."""
    made = made_of((*optimizer.SHRINKS, *(n for n in optimizer.REVERSES if n not in optimizer.SHRINKS)))
    noise = 1e-3 * (np.arange(24) // 2 % 2 - 0.5)
    shift(made, "adam_3e-4_d0", 0.3 + noise)
    shift(made, "adam_3e-4_d25", 0.1 - noise)
    shift(made, LUCKY, np.where(np.arange(24) % 2, 0.2, -0.25) + noise)
    shift(made, HONEST, -0.05 + noise)
    return made


def parts(made):
    (claim,) = optimizer.claims(made.done(), "sgd")
    assert claim.id == "C12"
    return claim.parts


def verdicts(made):
    return {r["id"]: r["verdict"] for r in judge(optimizer.claims(made.done(), "sgd"), "sgd", False)}


def test_a_cell_that_only_looks_best_in_the_choosing_half():
    made = planted()
    a, b = parts(made)
    assert a.values.mean() == pytest.approx(-0.2, abs=1e-3)
    assert (a.side, a.sesoi, len(a.values), a.passed.shape) == (-1, 0.02, 24, (24, 2))
    assert a.secondary.mean() == pytest.approx(np.log(0.4 / 0.3) - np.log(0.6 / 0.3), abs=1e-3)
    assert LUCKY in b.statistic
    assert list(b.values.index) == list(b.passed.index) == list(ODD)
    assert b.values.mean() == pytest.approx(0.2, abs=1e-3)  # of all 24 seeds it would be below zero
    assert (b.side, b.sesoi, b.passed.shape) == (-1, 0.02, (12, 1))
    assert b.secondary.mean() == pytest.approx(np.log(0.5 / 0.3), abs=1e-3)
    assert b.accuracy.abs().max() == 0
    assert verdicts(made) == {"C12": "opposite", "C12a": "reproduced", "C12b": "opposite"}


def test_cells_are_chosen_by_even_seeds_that_pass():
    made = planted()
    made.learn(LUCKY, optimizer.HARD, [END], 0.9, seeds=EVEN[:3])  # 75 % of the choosing half is enough
    assert LUCKY in parts(made)[1].statistic
    made.learn(LUCKY, optimizer.HARD, [END], 0.9, seeds=EVEN[:4])
    b = parts(made)[1]
    assert HONEST in b.statistic
    assert b.values.mean() == pytest.approx(-0.05, abs=1e-3)
    assert verdicts(made) == {"C12": "reproduced", "C12a": "reproduced", "C12b": "reproduced"}
    # What the odd seeds do does not choose, and a seed that did not learn has no say.
    made = planted()
    other = "adam_3e-4_d10"
    shift(made, other, [-9.0 if k == 0 or k % 2 else 0.2 for k in SEEDS])
    made.learn(other, optimizer.HARD, [END], 0.9, seeds=[0])
    assert LUCKY in parts(made)[1].statistic
    # A failure in the testing half is left out of the test, and twelve seeds are needed there.
    made.learn(LUCKY, optimizer.EASY, [END], 0.9, seeds=[3])
    assert list(parts(made)[1].passed.index[~parts(made)[1].passed.all(axis=1)]) == [3]
    assert verdicts(made)["C12b"] == "not measured"


def test_no_cell_that_learned_is_not_measured():
    made = planted()
    for name in optimizer.REVERSES:
        made.learn(name, optimizer.HARD, [END], 0.9, seeds=EVEN[:4])
    assert parts(made)[1].values.isna().all()
    assert verdicts(made)["C12b"] == "not measured"
    gaps, learned = pd.DataFrame({"x": [0.1] * 4}), pd.DataFrame({"x": [True] * 4})
    assert optimizer.chosen(gaps, learned) == "x"
    assert optimizer.chosen(gaps * np.nan, learned) is None


def test_quick_has_a_and_says_that_b_was_not_run():
    made = made_of(optimizer.SHRINKS)
    shift(made, "adam_3e-4_d0", 0.3 + 1e-3 * np.arange(24))
    rows = {r["id"]: r for r in judge(optimizer.claims(made.done(), "sgd"), "sgd", False)}
    assert {k: r["verdict"] for k, r in rows.items()} == {
        "C12": "reproduced", "C12a": "reproduced", "C12b": "not measured",
    }  # fmt: skip
    assert rows["C12"]["partial"] is True
    assert rows["C12b"]["note"] == "its settings are not in this preset"
    assert optimizer.claims(made_of(["sgd_1e-1_d0"]).done(), "sgd")[0].parts == ()


def test_the_grid_is_four_rules_three_rates_three_dropouts_and_a_line():
    configs = optimizer.EXPERIMENT.configs()
    assert len(configs) == 36 + 4
    assert len(optimizer.REVERSES) == 6
    assert len(layout.groups_of(configs, "cpu")) == 4 * 2  # dropout on or off is another program
    for cell in optimizer.CELLS:
        config = configs[f"all.{cell.setting}"]
        assert config.optimizer.name == cell.rule
        assert f"{config.optimizer.learning_rate:.0e}" == f"{float(cell.rate):.0e}"
        assert config.optimizer.weight_decay == (0.01 if cell.rule == "adamw" else 0)
        assert f"d{100 * config.model.dropout:.0f}" == cell.dropout
    base, scaled = configs["all.sgd_1e-1_d0"], configs["all.init_0.25"]
    assert dataclasses.replace(base, model=scaled.model) == scaled
    assert (base.model.init_scale, scaled.model.init_scale) == (1.0, 0.25)
    plan = planned(assemble(optimizer, "full", None, 0, []))
    assert planning.estimate(plan)["runs"] == 7 * optimizer.SEEDS + 33 * optimizer.SEEDS_ELSEWHERE
    read = set(configs) - set(plan.layout.caps)
    assert read == {f"all.{name}" for name in (*optimizer.SHRINKS, *optimizer.REVERSES)}
    assert "at most 4 seeds: sgd_3e-2_d0, " in help_text("optimizer")


def test_hatched_is_what_was_not_learned():
    cells = [c.setting for c in optimizer.CELLS]
    made = made_of(list(dict.fromkeys((*cells, *optimizer.SCALES))), {n: range(4) for n in (*cells, *optimizer.SCALES)})
    made.learn("adam_3e-4_d25", optimizer.HARD, [END], 0.9, seeds=[0])  # 75 % is enough
    made.learn("adam_1e-4_d25", optimizer.HARD, [END], 0.9, seeds=[0, 1])
    made.learn("sgd_3e-2_d10", optimizer.EASY, [END], 0.9, seeds=range(4))
    for r in made.records:  # one cell below zero, one seed in it that did not learn and does not count
        if r["setting"] == "sgd.adamw_1e-3_d25" and r["feature"] == optimizer.EASY:
            r["value"] = 9.0 if r["seed"] == 2 else 0.1
    made.learn("adamw_1e-3_d25", optimizer.HARD, [END], 0.9, seeds=[2])
    for r in made.records:
        if r["setting"] == "sgd.init_4" and r["metric"] == "r2" and r["step"] == END:
            r["value"] = np.nan
    drawn = {d.name: d.figure for d in optimizer.figures(made.done())}
    assert set(drawn) == set(optimizer.CAPTIONS)
    for figure in drawn.values():
        assert_readable(figure)
    panels = {axes.get_title(loc="left"): axes for axes in drawn["map"].axes if axes.get_title(loc="left")}
    assert list(panels) == list(optimizer.RATES)
    hatched = {(n, p.get_x() + 0.5, p.get_y() + 0.5) for n, axes in panels.items() for p in axes.patches if p.get_hatch()}
    assert hatched == {("adam", 0, 2), ("sgd", 0, 1)}
    texts = {(name, *text.get_position()): text.get_text() for name, axes in panels.items() for text in axes.texts}
    assert len(texts) == 36
    assert texts["adam", 0, 2] == "2 of 4"
    assert texts["adam", 1, 2] == "+0.20\n3 of 4"
    assert texts["adamw", 2, 2] == "-0.10\n3 of 4"
    red, _, blue, _ = next(p for p in panels["adamw"].patches if p.get_xy() == (1.5, 1.5)).get_facecolor()
    for axes in drawn["init_scale"].axes:
        assert [t.get_text() for t in axes.get_xticklabels()] == ["0.25", "0.5", "1", "2", "4\n(no value)"]
    assert blue > red  # purple below zero, orange above
    red, _, blue, _ = next(p for p in panels["sgd"].patches if p.get_xy() == (1.5, 1.5)).get_facecolor()
    assert red > blue


# Settings with numbers of seeds of their own, on the smallest experiment there is: settings `slow` and `fast`.

CAPPED = dataclasses.replace(tiny.EXPERIMENT, seed_caps=(("slow", 3),))


def planned(experiment, folder=Path("nowhere")):
    return planning.place(experiment, planning.check(experiment, "cpu"), folder, 2)


def run(folder, experiment, *stages):
    plan = planned(experiment, folder)
    pipeline.run(plan, tiny, folder, stages, lambda: False, {"commit": ""}, 0.0)
    return plan


@pytest.mark.parametrize("extents", [(1,), (3,), (4,), (20,), (2, 6), (4, 5, 20)])
def test_a_cap_is_the_smaller_of_both_numbers(extents):
    groups = layout.groups_of(tiny.EXPERIMENT.configs(), "cpu")
    chunks = layout.chunks_of(groups, Layout(2, 7, extents, CAPPED.caps()))
    runs = [run for chunk in chunks for run in chunk.runs]
    seeds = {"base.slow": range(min(3, extents[-1])), "base.fast": range(extents[-1])}
    assert len(runs) == len(set(runs))
    assert set(runs) == {(name, 7 + k) for name, own in seeds.items() for k in own}
    before = layout.chunks_of(groups, Layout(2, 7, extents[:-1] or extents, CAPPED.caps()))
    assert chunks[: len(before)] == before  # extending leaves what is there as it is
    whole = layout.chunks_of(groups, Layout(2, 7, extents))
    assert layout.chunks_of(groups, Layout(2, 7, extents, {"base.slow": extents[-1]})) == whole
    assert (chunks == whole) == (extents[-1] <= 3)


def test_a_capped_workdir_is_extended(tmp_path):
    folder = tmp_path / "tiny"
    run(folder, dataclasses.replace(CAPPED, num_seeds=2), "train")
    first = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/done.json")}
    plan = run(folder, dataclasses.replace(CAPPED, num_seeds=6), *pipeline.STAGES)
    assert {p: p.stat().st_mtime_ns for p in first} == first
    assert planning.estimate(plan)["runs"] == 3 + 6
    found = Results(folder).rows.groupby("setting")["seed"].unique()
    assert {name: sorted(seeds) for name, seeds in found.items()} == {"base.fast": [*range(6)], "base.slow": [0, 1, 2]}
    assert "Runs: 9. Settings: 2. Seeds per setting: 3 to 6." in (folder / "report.html").read_text()
    with pytest.raises(ConfigError, match=r"seed_caps = \{'base.slow': 3\}, but this run asks for \{'base.slow': 4\}"):
        planned(dataclasses.replace(CAPPED, num_seeds=6, seed_caps=(("slow", 4),)), folder)


def test_a_cap_names_a_setting_and_allows_a_seed():
    for caps in ((("other", 3),), (("slow", 0),)):
        with pytest.raises(ConfigError, match=r"seed_caps: \w+=\d: expected at least 1 for one of slow, fast"):
            planning.check(dataclasses.replace(tiny.EXPERIMENT, seed_caps=caps), "cpu")
    for module in EXPERIMENTS.values():
        assert {name for name, _ in module.EXPERIMENT.seed_caps} <= set(dict(module.EXPERIMENT.settings))
    assert assemble(optimizer, "quick", None, 0, []).seed_caps == ()
    assert planning.covered(planned(tiny.EXPERIMENT))["train"]["train"].keys() == {
        "format", "settings", "runtime", "seed",
    }  # fmt: skip
