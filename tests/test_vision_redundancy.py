"""The statistics of C40 on frames whose right answers are known, and the accuracy that a network's answers give."""

import itertools

import numpy as np
import pytest
from made import SEEDS, Made

from experiments.claims import vision_redundancy
from experiments.claims.vision_redundancy import COLOR, LADDER, SHAPE, VALUES, accuracy_of, allowed
from repbias_jax.statistics import judge

FOLLOWED = {"c50": (0.05, 0.92), "c80": (0.3, 0.6), "c90": (0.7, 0.2), "s50": (0.99, 0.01)}  # of color and of shape


def answers(made, setting, color, shape, agree=1.0):
    for feature, own, other in ((COLOR, color, SHAPE), (SHAPE, shape, COLOR)):
        made.put(setting, "agreement_where", feature, own, at=f"differs from {other}")
        made.put(setting, "agreement_where", feature, agree, at=f"equals {other}")
        made.put(setting, "agreement", feature, 1 / VALUES + own * (1 - 1 / VALUES))


def made(agree=1.0):
    found = Made(dict.fromkeys(("both", *LADDER), "target"), 100)
    answers(found, "both", 0.9, 0.05, agree)
    for name in LADDER:
        answers(found, name, *FOLLOWED[name.split("_")[1]])
    return found.done()


def parts_of(results):
    (claim,) = vision_redundancy.claims(results, "sgd")
    return {part.label: part for part in claim.parts}


def test_preference_at_equal_probabilities_is_the_mean_of_two_settings_less_that_of_two_controls(monkeypatch):
    monkeypatch.setattr(vision_redundancy, "DECIDING", ("n8k", "fresh"))
    parts = parts_of(made())
    effects = {label: part.values.mean() for label, part in parts.items()}
    equal = (-0.3 + 0.5) / 2 - (0.05 - 0.92 + 0.99 - 0.01) / 2
    expected = {"a": 0.85} | dict.fromkeys("bcd", equal) | dict.fromkeys("efg", -0.3)
    assert effects == pytest.approx(expected, abs=1e-3)
    assert {part.side for part in parts.values()} == {1}
    assert [label for label, part in parts.items() if part.kind == "shown"] == list("befg")
    rows = {row["id"]: row for row in judge(vision_redundancy.claims(made(), "sgd"), "sgd", False)}
    assert {id_: row["verdict"] for id_, row in rows.items()} == {
        "C40": "reproduced, small", "C40a": "reproduced", "C40b": "reproduced, small", "C40c": "reproduced, small",
        "C40d": "reproduced, small", "C40e": "opposite", "C40f": "opposite", "C40g": "opposite",
    }  # fmt: skip
    assert not rows["C40"]["partial"]


@pytest.mark.parametrize(("unread", "by_heart"), [(0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
def test_a_network_that_follows_the_better_feature_prefers_neither(unread, by_heart):
    """Where it does not read shape, its answer is by chance one of the other three values; a share of answers is random."""
    found = Made(dict.fromkeys(LADDER, "target"), 100)
    for name, (_, (color, shape)) in LADDER.items():
        followed = np.array([1.0, 0.0] if color > shape else [unread / 3, 1 - unread])
        answers(found, name, *((1 - by_heart) * followed + by_heart / VALUES))
    (claim,) = vision_redundancy.claims(found.done(), "sgd")
    values = {part.label: part.values.mean() for part in claim.parts}
    assert [values[label] for label in "bcd"] == pytest.approx([0.0] * 3, abs=1e-6)


def test_a_network_that_has_not_learned_its_label_is_left_out_of_the_first_part_alone():
    parts = parts_of(made(agree={k: 0.9 if k == 3 else 1.0 for k in SEEDS}))
    left = parts["a"].passed.all(axis=1)
    assert list(left.index[~left]) == [3]
    assert parts["c"].passed.all(axis=None)


def test_only_what_was_run_is_claimed():
    found = made()
    found.settings = found.settings.loc[["sgd.both", "sgd.n8k_c80"]]
    assert {label: len(part.passed) for label, part in parts_of(found).items()} == {"a": 16, "d": 0}
    rows = {row["id"]: row for row in judge(vision_redundancy.claims(found, "sgd"), "sgd", False)}
    assert rows["C40"]["partial"]
    assert rows["C40"]["verdict"] == "reproduced"


@pytest.mark.parametrize("match", [(0.5, 0.9), (0.8, 0.9), (0.9, 0.8), (1.0, 1.0)])
@pytest.mark.parametrize("answer", ["color", "shape", "neither", "other"])
def test_accuracy_is_that_of_a_table_of_all_cases(match, answer):
    """Networks that always answer with the color, with the shape, or with a value that neither of the two has."""
    total = 0.0
    for label, color, shape in itertools.product(range(VALUES), repeat=3):
        weight = 1 / VALUES
        for value, own in zip((color, shape), match, strict=True):
            weight *= own if value == label else (1 - own) / (VALUES - 1)
        free = [v for v in range(VALUES) if v not in (color, shape)]
        right = {
            "color": color == label,
            "shape": shape == label,
            "neither": (label in free) / len(free),
            "other": color == label if color == shape else (label in free) / len(free),
        }
        total += weight * right[answer]
    answered = {"color": (1.0, 1.0, 0.0), "shape": (1.0, 0.0, 1.0), "neither": (0.0, 0.0, 0.0), "other": (1.0, 0.0, 0.0)}
    assert accuracy_of(*answered[answer], match) == pytest.approx(total, abs=1e-12)
    assert allowed(match) >= total - 1e-12
