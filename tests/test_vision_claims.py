"""The statistics of C17, C18 and C41 on frames whose right answers are known, and where each network is read."""

import dataclasses

import numpy as np
import pytest
from looks import assert_readable
from made import SEEDS, Made

from experiments.claims import EXPERIMENTS, digits, vision, vision_plain, vision_residual
from repbias_jax.data import DATA
from repbias_jax.data.images import ImageOptions
from repbias_jax.statistics import judge

END, EVERY = 3072, 256
POINTS = range(0, END + 1, EVERY)
FAST = {k: 512 if k % 2 else 1024 for k in SEEDS}  # updates after which the harder feature is mastered
TWINS = {"shape": {"shape": "texture", "color": "tint"}, "parity": {"parity": "large", "color": "tint"}}


class Seen(Made):
    """Networks that master `hard` at the step FAST, and color at once; r2 as a function of the feature, step and seed."""

    def __init__(self, settings, slow=(), hard="shape"):
        super().__init__(dict.fromkeys(settings, f"{hard} color"), END)
        self.hard = hard
        self.settings["places"] = "layers=hidden_0 hidden_1;last_hidden=hidden_1"
        self.settings["twins"] = ";".join(f"{name}={twin}" for name, twin in TWINS[hard].items())
        self.settings["column"] = "sgd"
        for name in settings:
            for step in POINTS:
                self.learn(name, "color", [step])
                for k in SEEDS:
                    is_learned = step >= FAST[k] and k not in slow
                    self.learn(name, hard, [step], 1.0 if is_learned else 0.5, seeds=[k])

    def put_r2(self, setting, value):
        """Args: value(feature, step, seed)."""
        for step in POINTS:
            for name in (*TWINS[self.hard], *TWINS[self.hard].values()):
                for site in ("hidden_0", "hidden_1"):
                    self.put(setting, "r2", name, {k: value(name, step, k) for k in SEEDS}, step, site=site)
                    self.put(setting, "null_high", name, dict.fromkeys(SEEDS, 0.01), step, site=site)
                    self.put(setting, "null_low", name, dict.fromkeys(SEEDS, -0.01), step, site=site)
                    self.put(setting, "null", name, dict.fromkeys(SEEDS, -0.002), step, site=site)
        return self


def at_own(step, seed):
    """Whether a seed is read here: at the first snapshot at least 1,000 updates after mastery."""
    return step == {512: 1536, 1024: 2048}[FAST[seed]]


def parts_of(results, module):
    (claim,) = module.claims(results.done(), "sgd")
    return {part.label: part for part in claim.parts}


def r2_of(hard, color, end=0.0, before=0.0):
    """r2 that is as asked where a seed is read; at the end and at the beginning color leads by so much; else nonsense."""

    def value(name, step, seed):
        if name in ("texture", "tint", "large"):
            return 0.0
        if at_own(step, seed):
            return (color if name == "color" else hard) + 1e-4 * (seed % 3)
        lead = {END: end, 0: before}.get(step, 9.0)
        return 0.3 + (lead if name == "color" else 0.0)

    return value


def test_each_network_is_read_after_its_own_mastery():
    made = Seen(["c100", "titrated"]).put_r2("c100", r2_of(0.2, 0.5, end=0.05, before=0.1))
    made.put_r2("titrated", r2_of(0.4, 0.3, end=-0.2))
    assert dict(vision.read_at(made.done(), "sgd.c100")) == {k: 1536 if k % 2 else 2048 for k in SEEDS}
    parts = parts_of(made, vision_plain)
    expected = {"a": 0.3, "b": -0.1, "c": 0.2, "d": 0.05, "e": -0.2}
    for label, effect in expected.items():
        assert parts[label].values.to_numpy() == pytest.approx(np.full(len(SEEDS), effect)), label
        assert parts[label].passed.all(axis=None), label
    assert parts["a"].secondary.to_numpy() == pytest.approx(np.log(0.5 / 0.2), abs=1e-3)
    assert [parts[label].kind for label in expected] == ["deciding", "deciding", "deciding", "shown", "shown"]


def test_a_network_that_does_not_master_shape_is_left_out():
    made = Seen(["c100"], slow=(3, 4)).put_r2("c100", r2_of(0.2, 0.5))
    part = parts_of(made, vision_plain)["a"]
    passed = part.passed.all(axis=1)
    assert sorted(passed.index[~passed]) == [3, 4]
    assert part.values[[3, 4]].isna().all()


def test_a_network_that_loses_color_before_it_is_read_is_left_out():
    made = Seen(["c100"]).put_r2("c100", r2_of(0.2, 0.5))
    made.learn("c100", "color", [2048], 0.9, seeds=[2])
    passed = parts_of(made, vision_plain)["a"].passed.all(axis=1)
    assert list(passed.index[~passed]) == [2]


def test_the_last_stage_does_not_hold_what_lies_inside_the_null_band():
    part = parts_of(Seen(["c100"]).put_r2("c100", r2_of(0.001, 0.002)), vision_plain)["a"]
    assert part.absent.all()
    assert not parts_of(Seen(["c100"]).put_r2("c100", r2_of(0.001, 0.2)), vision_plain)["a"].absent.any()


def test_skips_are_compared_within_a_seed():
    made = Seen(["skip_1", "skip_0", "titrated", "vit"]).put_r2("skip_1", r2_of(0.5, 0.2, end=-0.1))
    made.put_r2("skip_0", r2_of(0.25, 0.2, end=0.05)).put_r2("titrated", r2_of(0.4, 0.35, end=0.2))
    made.put_r2("vit", r2_of(0.1, 0.2, end=0.3))  # read at the end
    parts = parts_of(made, vision_residual)
    expected = {"a": 0.3, "b": 0.25, "c": 0.05, "d": 0.1, "e": -0.3, "f": 0.15}
    for label, effect in expected.items():
        assert parts[label].values.to_numpy() == pytest.approx(np.full(len(SEEDS), effect)), label
    assert parts["b"].secondary.to_numpy() == pytest.approx(np.log(0.5 / 0.25), abs=1e-3)
    assert list(parts) == list(expected)
    assert [label for label, part in parts.items() if part.kind == "deciding"] == ["a", "b"]
    verdicts = {row["id"]: row["verdict"] for row in judge(vision_residual.claims(made, "sgd"), "sgd", False)}
    assert verdicts["C18"] == "reproduced"


def test_digits_are_read_after_the_mastery_of_parity_and_no_part_decides():
    made = Seen(["plain", "residual"], slow=(5,), hard="parity").put_r2("plain", r2_of(0.2, 0.5, end=0.05, before=0.1))
    made.put_r2("residual", r2_of(0.4, 0.1, end=-0.2, before=0.3))
    parts = parts_of(made, digits)
    expected = {"a": 0.3, "b": -0.3, "c": 0.2, "d": -0.6, "e": 0.05, "f": -0.2}
    assert list(parts) == list(expected)
    for label, effect in expected.items():
        passed = parts[label].passed.all(axis=1)
        assert list(passed.index[~passed]) == [5], label
        assert parts[label].values[passed].to_numpy() == pytest.approx(np.full(len(SEEDS) - 1, effect)), label
    assert parts["a"].secondary.dropna().to_numpy() == pytest.approx(np.log(0.5 / 0.2), abs=1e-3)
    assert "after parity's mastery" in parts["a"].statistic
    rows = judge(digits.claims(made, "sgd"), "sgd", False)
    assert [row["id"] for row in rows] == [f"C41{label}" for label in expected]
    assert [row["kind"] for row in rows] == ["ours"] * 4 + ["shown"] * 2
    assert [row["verdict"] for row in rows] == ["reproduced", "opposite"] * 2 + ["reproduced, size not shown", "opposite"]
    assert np.isnan([row["p_holm"] for row in rows]).all()  # none of them is a claim of the card
    two = Seen(["two_colors"], hard="parity").put_r2("two_colors", r2_of(0.2, 0.3, end=0.25, before=0.3))
    found = {label: part.values.mean() for label, part in parts_of(two, digits).items()}
    assert found == pytest.approx({"g": 0.1, "h": -0.2, "i": 0.25})
    counts = digits.EXPERIMENT.configs()["base.two_colors"].task
    assert {own.values for name, own in DATA["digits"].factors(counts).items() if name != "digit"} == {2}


@pytest.mark.parametrize("module", [vision_plain, vision_residual, digits])
def test_every_figure_is_drawn_and_has_a_caption(module):
    names = list(dict(module.EXPERIMENT.settings))
    made = Seen(names, hard="parity" if module is digits else "shape")
    for name in names:
        made.put_r2(name, r2_of(0.2, 0.5))
    drawn = module.figures(made.done())
    assert {one.name for one in drawn} == set(module.CAPTIONS)
    for one in drawn:
        assert one.figure.axes
        assert_readable(one.figure)


def test_nothing_is_drawn_or_judged_of_settings_that_were_not_run():
    cases = (vision_plain, "c030", "", 3), (vision_residual, "vit", "e", 3), (digits, "other", "", 0)
    for module, setting, labels, figures in cases:
        made = Seen([setting], hard="parity" if module is digits else "shape").put_r2(setting, r2_of(0.2, 0.5))
        assert list(parts_of(made, module)) == list(labels)
        drawn = [one.name for one in module.figures(made.done()) if one.name != "sheet"]
        assert len(drawn) == figures, (module, drawn)


def test_the_sheet_shows_all_values_of_three_factors():
    figure = vision.sheet()
    shown = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes]
    task = ImageOptions()
    assert set(task.shapes) <= set(shown[0])
    assert set(task.textures) <= set(shown[2])
    assert set(task.colors) <= set(shown[4])
    assert all(len(own) == 10 for own in shown)


def test_the_compared_networks_of_a_seed_have_the_same_data_and_differ_in_the_skips_alone():
    on, off = (EXPERIMENTS["vision_residual"].EXPERIMENT.configs()[f"base.skip_{s}"] for s in (1, 0))
    assert (on.model.skips, off.model.skips) == ((1.0,) * 3, (0.0,) * 3)
    assert dataclasses.replace(on, model=off.model) == off
    assert dataclasses.replace(on.model, skips=off.model.skips) == off.model


@pytest.mark.parametrize("name", ["vision_plain", "vision_residual", "digits"])
def test_the_compared_features_have_unused_twins(name):
    for config in EXPERIMENTS[name].EXPERIMENT.configs().values():
        known = DATA[config.task.name].factors(config.task)
        assert {own.of for own in known.values() if own.role == "twin"} == set(config.task.features)
