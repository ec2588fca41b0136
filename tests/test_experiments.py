"""The claims of every experiment after the first, on frames whose right answers are known, and each in smoke size."""

import itertools

import numpy as np
import pandas as pd
import pytest
from looks import assert_readable
from made import SEEDS, Made

from experiments.claims import EXPERIMENTS, architecture, competition, learning_order, prevalence
from repbias_jax.results import Results
from repbias_jax.statistics import judge


def parts_of(module, results):
    """Parts by claim and label; every one of them has sixteen seeds that pass."""
    claims = module.claims(results, "sgd")
    found = {c.id + p.label: p for c in claims for p in c.parts}
    for name, part in found.items():
        assert len(part.values) == len(SEEDS)
        assert part.passed.to_numpy().all(), name
    return found


def values(found):
    return {name: part.values.mean() for name, part in found.items()}


def order_frames():
    """Joint gap .4 at equal updates; hard first .1; first minus second .2 for a first and .3 for b first."""
    end, equal, switch = 370, 160, 160
    xor = f"{learning_order.A} {learning_order.B}"
    outputs = dict.fromkeys(("joint", "hard_first", "easy_first"), "parity1 parity4")
    made = Made(outputs | dict.fromkeys(("first_a", "first_b", "both_at_once"), xor), end)
    for setting in made.settings.index:
        for output in made.outputs(setting):
            made.learn(setting.removeprefix("sgd."), output, range(0, end + 1, 10))
    made.learn("first_a", learning_order.B, range(0, 250, 10), 0.5)  # mastered at 250, read at the snapshot of 260
    made.learn("first_b", learning_order.A, range(0, 250, 10), 0.5)
    for step in (0, 20, equal, 260, end):
        for setting, first, second in (("joint", 0.6, 0.2), ("hard_first", 0.3, 0.2)):
            late = 0.0 if (setting, step) == ("joint", end) else second  # joint is not read at its end
            made.put(setting, "r2", "parity1", first, step)
            made.put(setting, "r2", "parity4", late, step)
        for setting, order in (("first_a", (1, 0)), ("first_b", (0, 1))):
            gap = (0.2 if setting == "first_a" else 0.3) * (2.0 if step == 260 else 1.0)
            for feature, is_first in zip((learning_order.A, learning_order.B), order, strict=True):
                made.put(setting, "r2", feature, 0.1 + gap * is_first, step)
    return made, switch


def test_order_of_learning_by_hand():
    made, switch = order_frames()
    found = parts_of(learning_order, made.done())
    assert values(found) == pytest.approx({"C05": 0.3, "C06": 0.1, "C07a": 0.25, "C07b": 0.5}, abs=1e-3)
    assert {p.side for p in found.values()} == {1}
    second = {name: found[name].secondary.mean() for name in ("C05", "C06", "C07a")}
    assert second == pytest.approx({"C05": 0.3, "C06": np.log(1.5), "C07a": np.log(3 * 4) / 2}, abs=3e-3)
    assert found["C06"].accuracy.abs().max() == 0
    assert {r["verdict"] for r in judge(learning_order.claims(made, "sgd"), "sgd", False)} == {"reproduced"}
    made.learn("hard_first", "parity4", [switch + 20], 0.9, seeds=[3])  # hard slips while easy is switched on
    for id_ in ("C05", "C06"):
        part = next(c for c in learning_order.claims(made.done(), "sgd") if c.id == id_).parts[0]
        assert list(part.passed.index[~part.passed.all(axis=1)]) == [3]


def test_phases_are_the_ramp_they_say():
    configs = learning_order.EXPERIMENT.configs()
    joint, hard_first = configs["sgd.joint"], configs["sgd.hard_first"]
    assert joint.num_phases == hard_first.num_phases == learning_order.RUNGS + 2
    easy = [row[0] for row in hard_first.training.loss_weights]
    assert easy[:2] == [0.0, 0.003]
    assert easy[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(easy))
    assert {row[1] for row in hard_first.training.loss_weights} == {1.0}
    epochs = np.array(hard_first.training.phase_ends) * hard_first.training.epochs
    np.testing.assert_allclose(np.diff(epochs), [5.0] * 10 + [160.0], rtol=1e-6)
    assert epochs[0] == 160
    for preset in ("full", "quick", "smoke"):
        fixed = dict(dict(learning_order.EXPERIMENT.presets)[preset].overrides)
        every, epochs = fixed.get("keep.every", 640), fixed.get("training.epochs", learning_order.TOTAL)
        steps = fixed.get("task.num_train", 8192) // 128 * epochs
        assert round(steps * learning_order.BOTH / learning_order.TOTAL) % every == 0, preset  # a snapshot is there


class Chosen(Results):
    """Results of which only some settings are there."""

    def __init__(self, folder, names):
        super().__init__(folder)
        kept = [s for s in self.settings.index if s.split(".", 1)[1] in names]
        self.settings = self.settings.loc[kept]
        self.rows = self.rows[self.rows["setting"].isin(kept)].reset_index(drop=True)
        self.curves = self.curves[self.curves["setting"].isin(kept)].reset_index(drop=True)


@pytest.mark.parametrize("name", [n for n, m in EXPERIMENTS.items() if dict(m.EXPERIMENT.presets)["quick"].settings])
def test_a_preset_of_some_settings_is_reported(name, smokes):
    """Quick runs are too long for a test: what smoke has of their settings is judged and drawn."""
    module = EXPERIMENTS[name]
    chosen = Chosen(smokes / name, dict(module.EXPERIMENT.presets)["quick"].settings)
    assert len(chosen.settings) > 0
    assert judge(module.claims(chosen, chosen.settings["column"].iloc[0]), "", False)
    drawn = module.figures(chosen)
    assert {d.name for d in drawn} <= set(module.CAPTIONS)
    for d in drawn:
        assert_readable(d.figure)


class Diverged(Results):
    """Results of which these seeds have diverged: they have no value after step 0, and learned nothing."""

    def __init__(self, folder, seeds):
        super().__init__(folder)
        self.seeds = set(seeds)
        partner = self.rows["other"].str.split("/").str[1].isin(map(str, seeds))  # `setting/seed`, of a similarity
        self.rows.loc[(self.rows["seed"].isin(seeds) | partner) & (self.rows["step"] > 0), "value"] = np.nan
        gone = self.curves["seed"].isin(seeds) & (self.curves["step"] > 0)
        self.curves.loc[gone, ["loss", "accuracy", "worst_class"]] = np.nan

    def activations(self, setting, site="last_hidden"):
        for seed, phi, factors in super().activations(setting, site):
            yield seed, np.full_like(phi, np.nan) if seed in self.seeds else phi, factors


@pytest.mark.parametrize("every", [True, False], ids=["every_seed", "first_seed"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_diverged_runs_are_reported(name, every, smokes):
    """Nothing is claimed of runs without values, and every figure can be drawn without them."""
    module, seeds = EXPERIMENTS[name], sorted(set(Results(smokes / name).rows["seed"]))
    found = Diverged(smokes / name, seeds if every else seeds[:1])
    verdicts = {r["verdict"] for r in judge(module.claims(found, found.settings["column"].iloc[0]), "", False)}
    assert verdicts == {"not measured"}
    drawn = module.figures(found)
    assert every or {d.name for d in drawn} == set(module.CAPTIONS)
    for d in drawn:
        d.figure.canvas.draw()


def test_prevalence_by_hand():
    rungs = dict.fromkeys(prevalence.PREVALENCES, f"{prevalence.FREQUENT} {prevalence.RARE}")
    made = Made(rungs, 100)
    for name, p in prevalence.PREVALENCES.items():
        made.put(name, "r2", prevalence.FREQUENT, 0.3 + 0.03 * np.log(0.5 / p))
        made.put(name, "r2", prevalence.RARE, [0.3 - 0.02 * np.log(0.5 / p)] * 16)
        for output in (prevalence.FREQUENT, prevalence.RARE):
            made.learn(name, output, [100])
    found = parts_of(prevalence, made.done())
    assert values(found) == pytest.approx({"C08": 0.05}, abs=1e-3)
    assert found["C08"].passed.shape == (16, 5)
    falls = np.log(0.5 / np.array(list(prevalence.PREVALENCES.values())))
    ratios = np.log((0.3 + 0.03 * falls) / (0.3 - 0.02 * falls))
    rarity = -np.log(list(prevalence.PREVALENCES.values()))
    assert found["C08"].secondary.mean() == pytest.approx(np.polyfit(rarity, ratios, 1)[0], abs=1e-3)
    made.settings = made.settings.loc[["sgd.p50"]]
    assert prevalence.claims(made, "sgd")[0].parts == ()


def test_what_the_natural_set_would_show():
    """A representation with known variances, at prevalence .1: its crossed r2 predicts the natural one."""
    rng = np.random.default_rng(0)
    rest = rng.normal(size=200_000)
    crossed, natural = (np.arange(200_000) % 2 * 1.0, (rng.random(200_000) < 0.1) * 1.0)
    r2 = [np.var(2 * f) / np.var(2 * f + rest) for f in (crossed, natural)]
    assert prevalence.natural_r2(np.array([r2[0]]), np.array([0.1]))[0] == pytest.approx(r2[1], abs=0.01)


def test_competition_by_hand():
    names = {name: OUTPUTS[name] for name in ("easy_alone", "easy_xor4", "hard_alone", "hard_xor4")}
    made = Made(names, 100)
    for name, outputs in names.items():
        for output in dict.fromkeys(outputs.split()):
            made.learn(name, output, [100])
        alone = name.endswith("alone")
        target = outputs.split()[0]
        made.put(name, "variance", target, 3.0 if alone else 1.0)
        made.put(name, "r2", target, 0.6 if alone else 0.1)
        made.put(name, "total_variance", "", [5.0] * 16)
        made.put(name, "joint_r2", "", [0.8] * 16)
    found = parts_of(competition, made.done())
    assert values(found) == pytest.approx({"C09a": 0.4, "C09b": 0.4}, abs=1e-3)
    assert found["C09a"].secondary.mean() == pytest.approx(np.log(6), abs=0.01)
    assert found["C09a"].secondary_statistic
    made.learn("easy_xor4", "parity2_2", [100], 0.9, seeds=[2])
    part = competition.claims(made.done(), "sgd")[0].parts[0]
    assert list(part.passed.index[~part.passed.all(axis=1)]) == [2]


OUTPUTS = {
    name: " ".join(dict(own)["task.outputs"]) for name, own in competition.EXPERIMENT.settings
}  # fmt: skip


def test_competition_has_the_target_first_and_an_unused_copy():
    for name, own in competition.EXPERIMENT.settings:
        features, outputs = dict(own)["task.features"], dict(own)["task.outputs"]
        target = competition.TARGETS[name.split("_")[0]]
        assert features[0] == features[-1] == target
        assert outputs[0] == f"{target}_1"
        assert len(set(outputs)) == len(features) - 1
        unused = f"{target}_{features.count(target)}"
        assert unused not in outputs
        if name in competition.cells():
            assert competition.copy_of(*competition.cells()[name]) == unused
    assert len(OUTPUTS["easy_same"].split()) == competition.COPIES


def test_architecture_by_hand():
    made = Made(dict.fromkeys([n for n, _ in architecture.EXPERIMENT.settings], "parity1 parity4"), 100)
    for name, _ in architecture.EXPERIMENT.settings:
        depth = architecture.DEPTHS.get(name, 4)
        made.put(name, "r2", "parity1", 0.1 + 0.05 * depth + (0.01 if name == "width512" else 0))
        made.put(name, "r2", "parity4", [0.05] * 16)
        for output in ("parity1", "parity4"):
            made.learn(name, output, [100])
    found = parts_of(architecture, made.done())
    assert values(found) == pytest.approx({"C10": 0.05, "C11": 0.01}, abs=1e-3)
    assert [found[n].side for n in ("C10", "C11")] == [1, 0]
    assert found["C11"].sesoi == 0.05
    assert found["C11"].secondary.mean() == pytest.approx(np.log(0.31 / 0.3), abs=1e-3)
    verdicts = {r["id"]: r["verdict"] for r in judge(architecture.claims(made, "sgd"), "sgd", False)}
    assert verdicts == {"C10": "reproduced", "C11": "reproduced"}


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != "complexity"])
def test_smoke_has_claims_floors_and_figures(name, smokes):
    """Every claim of the module is in the table, every figure is drawn, and panels of r2 show their floors."""
    module, folder, printed = EXPERIMENTS[name], smokes / name, (smokes / "printed.txt").read_text()
    results = Results(folder)
    claims = pd.read_csv(folder / "claims.csv")
    assert len(claims) >= 1
    for id_ in claims["id"]:
        assert id_[:3] in module.__doc__
        assert id_ in printed
    drawn = module.figures(results)
    assert {d.name for d in drawn} == set(module.CAPTIONS)
    for figure in drawn:
        assert_readable(figure.figure)
        assert (folder / "figures" / f"{figure.name}.png").stat().st_size > 5_000
        for axes in figure.figure.axes:
            if axes.axison and "r2" in axes.get_ylabel():
                names = " ".join(axes.get_legend_handles_labels()[1])
                assert "null" in names, figure.name
                assert "untrained" in names or "along" in figure.name, figure.name  # along training it is where lines begin
                assert "unused twin" in names or "unused copy" in names, figure.name
