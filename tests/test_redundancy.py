"""What is read from and relied on: the claims of two experiments on frames whose right answers are known."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from made import SEEDS, Made

from experiments.claims import downstream, redundancy
from repbias_jax import pipeline, planning
from repbias_jax.report import page
from repbias_jax.results import Results
from repbias_jax.statistics import judge
from tests.faults import tiny

EASY, HARD = "parity1", "parity4"
END, SNAPSHOTS = 100, (0, 20, 40, 60, 80, 100)


def parts_of(module, results):
    claims = module.claims(results, "sgd")
    return {c.id + p.label: p for c in claims for p in c.parts}


def verdicts(module, results):
    return {str(r["id"]): r["verdict"] for r in judge(module.claims(results, "sgd"), "sgd", False)}


def test_downstream_by_hand():
    made = Made({"joint": f"{EASY} {HARD}"}, END)
    for at, share in (("64", 0.7), ("256", 0.9), ("256 strong", 0.2), ("256 weak", 0.3)):
        made.put("joint", "follow", EASY, share, at=at)
        made.put("joint", "follow", EASY, 0.4, step=0, at=at)
    for at, seed in (("64", 6), ("256", 7)):
        made.put("joint", "follow_converged", EASY, [float(k != seed) for k in SEEDS], at=at)
    for output in (EASY, HARD):
        made.learn("joint", output, [END])
    part = parts_of(downstream, made.done())["C25"]
    assert part.values.mean() == pytest.approx(0.4)
    assert part.secondary.mean() == pytest.approx(0.2)
    assert (part.side, part.sesoi) == (1, 0.05)
    assert verdicts(downstream, made) == {"C25": "reproduced"}
    made.learn("joint", HARD, [END], 0.9, seeds=[5])
    part = parts_of(downstream, made.done())["C25"]
    assert list(part.passed.index[~part.passed.all(axis=1)]) == [5, 6, 7]


def outputs_of(experiment):
    return {n: " ".join(dict(own)["task.outputs"]) for n, own in experiment.settings}


def frames(follow_easy=0.8):
    """Easy 1 to .75 where hard is asked for, hard .5 to .52 where easy is; untrained easy .9 and hard .5."""
    made = Made(outputs_of(redundancy.EXPERIMENT), END)
    for setting, easy, hard, output in (("target_easy", 1.0, 0.52, EASY), ("target_hard", 0.75, 1.0, HARD)):
        for feature, after, before in ((EASY, easy, 0.9), (HARD, hard, 0.5)):
            made.put(setting, "decode", feature, after)
            made.put(setting, "decode", feature, before, step=0)
            for step in (0, END):
                made.put(setting, "decode_converged", feature, [1.0] * 16, step=step)
        made.put(setting, "decode_nonlinear", EASY, easy + 0.01)
        made.put(setting, "decode_nonlinear_converged", EASY, [1.0] * 16)
        made.learn(setting, output, [END])
    for step, value in zip(SNAPSHOTS, (0.9, 0.95, 1.0, 0.9, 0.8, 0.7), strict=True):
        made.put("shortcut", "decode", EASY, value, step=step)
        made.put("shortcut", "decode_converged", EASY, [1.0] * 16, step=step)
    made.learn("shortcut", HARD, [END])
    agree = 0.99
    for name in redundancy.LADDER:
        made.put(name, "agreement", EASY, [(agree + follow_easy) / 2] * 16)
        made.put(name, "agreement", HARD, [(agree + 1 - follow_easy) / 2] * 16)
    return made


def test_redundancy_by_hand():
    made = frames().done()
    found = parts_of(redundancy, made)
    expected = {"C28": 0.4, "C29a": 0.3, "C29b": -0.065, "C29c": 0.135, "C30a": 0.3, "C30b": -0.007, "C33a": 0.3}
    expected |= {"C33b": 0.2, "C34": 0.01}
    assert {n: p.values.mean() for n, p in found.items()} == pytest.approx(expected, abs=2e-3)
    sides = {"C28": 1, "C29a": 1, "C29b": -1, "C29c": 1, "C30a": 1, "C30b": 0, "C33a": 1, "C33b": 1, "C34": 0}
    assert {n: p.side for n, p in found.items()} == sides
    assert {n: p.sesoi for n, p in found.items()} == dict.fromkeys(found, 0.05) | {"C30b": 0.02}
    assert set(verdicts(redundancy, made).values()) == {"reproduced"}
    for name, part in found.items():
        assert len(part.values) == len(SEEDS)
        assert part.passed.to_numpy().all(), name


def test_what_replaces_the_gate():
    made = frames()
    for setting, metric, seed, step in (
        ("target_easy", "decode_converged", 0, 0),
        ("target_hard", "decode_nonlinear_converged", 4, END),
        ("shortcut", "decode_converged", 5, SNAPSHOTS[2]),
    ):
        made.put(setting, metric, EASY, [float(k != seed) for k in SEEDS], step=step)
    made.learn("target_hard", HARD, [END], 0.9, seeds=[1])
    made.learn("shortcut", HARD, [END], 0.9, seeds=[2])
    made.put("p80", "agreement", EASY, [0.85 if k == 3 else 0.895 for k in SEEDS])
    made.records = pd.DataFrame(made.records).drop_duplicates(["setting", "seed", "step", "metric", "feature"], keep="last")
    found = parts_of(redundancy, made.done())
    failed = {name: list(p.passed.index[~p.passed.all(axis=1)]) for name, p in found.items()}
    assert failed == {
        "C28": [0], "C29a": [0, 1], "C29b": [0, 1], "C29c": [0, 1], "C30a": [3], "C30b": [], "C33a": [2, 5],
        "C33b": [2, 5], "C34": [1, 4],
    }  # fmt: skip


def test_the_page_names_readouts_that_did_not_converge():
    made = frames()
    assert page.unconverged(made.done()) == []
    for feature in (EASY, f"twin_{EASY}", "spare"):
        made.put("shortcut", "decode_converged", feature, [float(k not in (2, 9)) for k in SEEDS], step=SNAPSHOTS[1])
    of_earlier = page.unconverged(made.done())
    assert of_earlier == ["decode, sgd.shortcut, hidden_1: 4 values, of seeds 2, 9"]
    made.settings["twins"] = f"{EASY}=spare"  # what has the role is the twin, which nobody reads, whatever it is called
    assert page.unconverged(made.done()) == of_earlier
    made.settings["twins"] = ""
    assert page.unconverged(made.done()) == ["decode, sgd.shortcut, hidden_1: 6 values, of seeds 2, 9"]
    made.settings["twins"] = f"{EASY}=spare;{HARD}=twin_{EASY}"
    assert page.unconverged(made.done()) == ["decode, sgd.shortcut, hidden_1: 2 values, of seeds 2, 9"]


@pytest.mark.parametrize(("easy", "hard"), [(0.8, 0.9), (0.9, 0.9), (0.5, 0.9), (1.0, 0.7)])
def test_what_labels_allow_by_enumeration(easy, hard):
    """Every rule from the two features to an output, over all eight cases of target and features."""
    cases = {}
    for target, e, h in itertools.product((0, 1), repeat=3):
        chance = (easy if e == target else 1 - easy) * (hard if h == target else 1 - hard) / 2
        cases[target, e, h] = chance
    assert sum(cases.values()) == pytest.approx(1)
    best = {}
    for rule in itertools.product((0, 1), repeat=4):
        accuracy = sum(p for (target, e, h), p in cases.items() if rule[2 * e + h] == target)
        agree = np.mean([rule[0] == 0, rule[3] == 1])
        conflict = np.mean([rule[1] == 0, rule[2] == 1])
        assert redundancy.accuracy_of(agree, conflict, easy, hard) == pytest.approx(accuracy)
        best[conflict] = max(best.get(conflict, 0.0), accuracy)
    assert redundancy.allowed(easy, hard) == pytest.approx(max(best.values())) == pytest.approx(max(easy, hard))
    for conflict, accuracy in best.items():
        assert redundancy.allowed(easy, hard, conflict) == pytest.approx(accuracy)


def test_relying_on_easy_and_all_that_labels_allow_exclude_each_other():
    """Why part b of C30 asks for what a network's own way with conflicts allows."""
    for conflict in np.linspace(0, 1, 101):
        relies = conflict - 0.5 > 0
        within = abs(redundancy.allowed(0.8, 0.9, conflict) - redundancy.allowed(0.8, 0.9)) <= 0.02
        assert not (relies and within)


def test_the_peak_is_that_of_the_other_half():
    """Noise about a level gives no peak, where the maximum of each seed would; a peak all share is found."""
    rng = np.random.default_rng(0)
    noise = pd.DataFrame(0.8 + 0.02 * rng.normal(size=(21, 400)), index=range(0, 210, 10))
    assert redundancy.at_peak(noise).mean() == pytest.approx(0.8, abs=0.004)
    assert noise.max().mean() > 0.83
    noise.loc[50] += 0.1
    noise.loc[0] += 0.5  # the untrained network is no peak of training
    assert redundancy.at_peak(noise).mean() == pytest.approx(0.9, abs=0.004)
    assert redundancy.at_peak(noise[[7]]).isna().tolist() == [True]  # one seed has no other half


def test_a_diverged_network_decodes_nothing_and_relies_on_nothing(tmp_path):
    """A readout of what is not finite would say one half, and an argmax of such logits would agree with something."""
    settings = (("slow", ()), ("burst", (("optimizer.learning_rate", 1e30),)))
    experiment = dataclasses.replace(tiny.EXPERIMENT, settings=settings, num_seeds=2, probes=("decode", "reliance"))
    plan = planning.place(experiment, planning.check(experiment, "cpu"), tmp_path, 2)
    pipeline.run(plan, tiny, tmp_path, ("train", "measure"), lambda: False, {"commit": ""}, 0.0)
    rows = Results(tmp_path).rows
    last = rows[(rows["step"] == rows["step"].max()) & (rows["site"] == "hidden_1")].groupby("setting")
    assert {name: found["value"].notna().any() for name, found in last} == {"base.burst": False, "base.slow": True}
    assert set(last.get_group("base.burst")["reason"]) == {"diverged"}
    assert {"decode", "agreement"} <= set(last.get_group("base.burst")["metric"])


def test_crossover():
    x = np.array([0.5, 0.6, 0.8])
    assert redundancy.crossover(x, np.array([-0.3, -0.1, 0.1])) == pytest.approx(0.7)
    assert np.isnan(redundancy.crossover(x, np.array([0.1, 0.2, 0.3])))
    # Each seed crosses at a place of its own; where all have one slope the crossing of means is the mean of crossings.
    places = np.linspace(0.55, 0.75, 9)
    preference = pd.DataFrame({k: np.array(list(redundancy.LADDER.values())) - at for k, at in enumerate(places)})
    found = redundancy.crossing(preference.set_axis([f"sgd.{name}" for name in redundancy.LADDER]))
    assert found.effect == pytest.approx(0.65)
    assert found.runs == 9
    half = 0.025 * np.sqrt(7.5) * 2.306 / 3  # standard deviation, t of 8 degrees of freedom, root of 9
    assert (found.ci_low, found.ci_high) == pytest.approx((0.65 - half, 0.65 + half), abs=1e-4)
    steep = preference * np.array([9.0] + [1.0] * 8)  # what crosses is the mean, to which the first seed then gives most
    pooled = np.average(places, weights=[9] + [1] * 8)
    whole = redundancy.crossover(np.array(list(redundancy.LADDER.values())), steep.mean(axis=1).to_numpy())
    assert whole == pytest.approx(pooled)
    left = [np.average(np.delete(places, k), weights=np.delete([9] + [1] * 8, k)) for k in range(9)]
    found = redundancy.crossing(steep.set_axis([f"sgd.{name}" for name in redundancy.LADDER]))
    assert found.effect == pytest.approx(9 * pooled - 8 * np.mean(left))
    never = preference.assign(**{"8": 1.0})[[0, "8"]].set_axis([f"sgd.{name}" for name in redundancy.LADDER])
    assert np.isnan(redundancy.crossing(never).effect)  # without seed 0 nothing crosses


def test_settings_are_what_they_say():
    configs = redundancy.EXPERIMENT.configs()
    for name, p in redundancy.LADDER.items():
        task = configs[f"sgd.{name}"].task
        assert (task.outputs, task.predictivity) == (("target",), (p, 0.9))
    assert configs["sgd.shortcut"].task.predictivity == (0.8, 1.0)  # so that hard is the label
    assert len(redundancy.EXPERIMENT.settings) == 8
