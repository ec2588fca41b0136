"""The statistics of C37 to C39 on frames whose right answers are known."""

import itertools

import numpy as np
import pandas as pd
import pytest
from made import SEEDS, Made

from experiments.claims import vision_untrained
from experiments.claims.vision_untrained import FEATURES, PAIRS, UNTRAINED
from repbias_jax.statistics import judge

END = 100
PAIRED = list(itertools.permutations(SEEDS, 2))  # networks of different seeds
BEFORE = {"shape": 0.40, "texture": 0.30, "color": 0.80}  # chance is .25, so texture cannot fall by much
AFTER_OTHER = {"shape": 0.34, "texture": 0.29, "color": 0.60}
ANYWAY = 0.03  # by which every accuracy falls in training on labels that do not depend on the image


def decoded(setting, made, value, steps, site="hidden_1"):
    for step, feature in itertools.product(steps, FEATURES):
        for metric, own in (("decode", value(feature, step)), ("decode_shuffled", 0.25), ("decode_converged", 1.0)):
            made.put(setting, metric, feature, dict.fromkeys(SEEDS, own) if metric != "decode" else own, step, site=site)


def trained():
    made = Made({name: name for name in FEATURES} | {"chance": "target"}, END)
    decoded("chance", made, lambda feature, step: BEFORE[feature] - ANYWAY * (step > 0), (0, END))
    for name in FEATURES:
        made.learn(name, name, [END])

        def value(feature, step, name=name):
            return BEFORE[feature] if step == 0 else 0.97 if feature == name else AFTER_OTHER[feature]

        decoded(name, made, value, (0, END))
    return made.done()


def parts_of(results, id_):
    (claim,) = [claim for claim in vision_untrained.claims(results, "sgd") if claim.id == id_]
    return {part.label: part for part in claim.parts}


def test_untrained_networks_are_compared_by_family():
    made = Made({"plain": "shape texture color", "residual": "shape texture color"}, 1)
    accuracy = {"plain": (0.5, 0.3, 0.9), "residual": (0.2, 0.4, 0.3)}
    for name, own in accuracy.items():
        decoded(name, made, lambda feature, step, own=own: own[FEATURES.index(feature)], (0,))
    parts = parts_of(made.done(), "C37")
    effects = {label: part.values.mean() for label, part in parts.items()}
    assert {label: effects[label] for label in "abcd"} == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.1, "d": -0.2}, abs=1e-6)
    assert all(parts[label].passed.all(axis=None) for label in "abcd")
    assert {label: "plain" in parts[label].statistic for label in "abcd"} == {"a": True, "b": True, "c": False, "d": False}


def untrained(*settings):
    """Networks in which color is read best, shape less well and texture worst; by the mean all are alike in `_flat`."""
    made = Made(dict.fromkeys(settings, "shape texture color"), 1)
    made.settings["places"] = "layers=hidden_0 hidden_1;last_hidden=hidden_1;flat=hidden_1.flat"
    for name in settings:
        accuracy = {"color": 0.9, "shape": 0.6, "texture": 0.4}.__getitem__
        decoded(name, made, lambda feature, step, own=accuracy: own(feature), (0,), "hidden_1.flat")
        if not name.endswith("_flat"):
            decoded(name, made, lambda feature, step, own=accuracy: own(feature), (0,))
    return made


def test_the_flat_last_stage_is_read_in_settings_of_its_own():
    parts = parts_of(untrained("plain", "residual", "plain_flat").done(), "C37")
    effects = {label: part.values.mean() for label, part in parts.items()}
    assert effects == pytest.approx(
        dict.fromkeys("ace", 0.3) | dict.fromkeys("bdf", 0.2) | dict.fromkeys("gh", np.nan), abs=1e-6, nan_ok=True
    )
    assert {label: len(part.passed) > 0 for label, part in parts.items()} == dict.fromkeys("abcdef", True) | dict.fromkeys(
        "gh", False
    )
    assert all("flat last stage" in parts[label].statistic for label in "efgh")
    rows = judge(vision_untrained.claims(untrained("plain", "residual").done(), "sgd"), "sgd", False)
    assert {row["id"] for row in rows if row["id"].startswith("C37")} == {f"C37{label}" for label in "abcdefgh"}


def test_only_features_that_trained_networks_read_decide(monkeypatch):
    monkeypatch.setattr(vision_untrained, "COMPARED", ("shape", "color"))
    parts = parts_of(untrained("plain", "residual", "plain_flat").done(), "C37")
    kinds = {label: part.kind for label, part in parts.items()}
    assert kinds == dict.fromkeys("aceg", "deciding") | dict.fromkeys("bdf", "shown")
    rows = judge(vision_untrained.claims(untrained("plain", "residual").done(), "sgd"), "sgd", False)
    assert [row["id"] for row in rows if row["id"].startswith("C37")] == [f"C37{label}" for label in "abcdeg"]


def test_few_networks_of_each_control_are_trained():
    caps, full = dict(vision_untrained.EXPERIMENT.seed_caps), dict(vision_untrained.EXPERIMENT.presets)["full"]
    assert set(full.settings) == {name for name, _ in vision_untrained.EXPERIMENT.settings} - {"ceiling"}
    assert (caps["ceiling"], caps["plain_flat"], caps["residual_flat"]) == (4, 16, 16)
    assert set(caps) < {name for name, _ in vision_untrained.EXPERIMENT.settings}


def test_a_readout_that_did_not_converge_leaves_its_network_out():
    made = Made({"plain": "shape texture color", "residual": "shape texture color"}, 1)
    for name in ("plain", "residual"):
        decoded(name, made, lambda feature, step: 0.5, (0,))
        made.put(name, "decode_converged", "texture", dict.fromkeys(SEEDS, 1.0) | {5: 0.0}, 0)
    made = made.done()
    made.rows = made.rows.drop_duplicates(["setting", "metric", "feature", "seed", "step"], keep="last")
    parts = parts_of(made, "C37")
    assert parts["a"].passed.all(axis=None)
    left = parts["b"].passed.all(axis=1)
    assert list(left.index[~left]) == [5]


def test_targets_rise_and_others_fall(monkeypatch):
    """Features that nothing can be lost of, or gained, decide nothing."""
    monkeypatch.setattr(vision_untrained, "FALLING", ("shape", "color"))
    monkeypatch.setattr(vision_untrained, "RISING", ("shape", "texture"))
    found = trained()
    parts = parts_of(found, "C38")
    assert [parts[label].values.mean() for label in "abc"] == pytest.approx([0.97 - BEFORE[f] for f in FEATURES], abs=1e-6)
    for fall, above, below, (_, other) in zip("defghi", "jklmno", "pqrstu", PAIRS, strict=True):
        assert parts[fall].values.mean() == pytest.approx(AFTER_OTHER[other] - BEFORE[other], abs=1e-6), fall
        assert parts[above].values.mean() == pytest.approx(AFTER_OTHER[other] - 0.25, abs=1e-6), above
        assert parts[below].values.mean() == pytest.approx(AFTER_OTHER[other] - BEFORE[other] + ANYWAY, abs=1e-6), below
        assert (parts[fall].side, parts[above].side, parts[below].side) == (-1, +1, -1)
        assert parts[fall].kind == parts[above].kind == ("shown" if other == "texture" else "deciding")
        assert parts[below].kind == "shown"
    assert [parts[label].kind for label in "abc"] == ["deciding", "deciding", "shown"]
    rows = {row["id"]: row for row in judge(vision_untrained.claims(found, "sgd"), "sgd", False)}
    assert not rows["C38"]["partial"]


@pytest.mark.parametrize(("untrained", "other"), [(0.6, 0.3), (0.2, 0.5), (0.3, -0.1)])
def test_similarities_are_compared_as_a_log_ratio_and_as_a_difference(untrained, other):
    kinds = {name: (f"sgd.{name}", END) for name in FEATURES} | {"base": (f"sgd.{FEATURES[0]}", 0)}
    models = pd.MultiIndex.from_tuples([(*kind, k) for kind in kinds.values() for k in SEEDS])
    matrix = pd.DataFrame(0.9, index=models, columns=models)
    for one, two in itertools.permutations(kinds.values(), 2):
        is_untrained = kinds["base"] in (one, two)
        matrix.loc[(*one, slice(None)), (*two, slice(None))] = untrained if is_untrained else other
    own = vision_untrained.Similarities(matrix, kinds)
    expected = np.log(untrained / other) if min(untrained, other) > 0 else np.nan
    assert vision_untrained.log_ratio(own, list(SEEDS)) == pytest.approx(expected, nan_ok=True)
    assert vision_untrained.difference(own, list(SEEDS)) == pytest.approx(untrained - other)


def test_untrained_networks_and_those_of_chance_labels_are_each_compared():
    """Networks of a feature: .8 alike untrained ones, .4 alike those of chance labels, .2 alike those of other features."""
    made = trained()
    made.learn("chance", "target", [END])
    models = [(name, END) for name in (*FEATURES, "chance")] + [(FEATURES[0], 0)]

    def alike(one, other):
        names = {one[0] if one[1] else UNTRAINED, other[0] if other[1] else UNTRAINED}
        return 0.8 if UNTRAINED in names else 0.4 if "chance" in names else 0.2 if len(names) == 2 else 0.9

    for (one, two), (k, m) in itertools.product(itertools.combinations_with_replacement(models, 2), PAIRED):
        for metric in ("rsa", "cka_debiased"):
            made.put(one[0], metric, "", alike(one, two), one[1], other=f"sgd.{two[0]}/{m}/{two[1]}", seeds=[k])
    parts = parts_of(made.done(), "C39")
    effects = {label: part.values.mean() for label, part in parts.items()}
    assert effects == pytest.approx({"a": np.log(4), "b": 0.6, "c": np.log(2)}, abs=1e-2)
    assert {label: part.secondary.mean() for label, part in parts.items()} == pytest.approx(effects, abs=1e-6)
    assert [part.kind for part in parts.values()] == ["deciding", "shown", "shown"]
