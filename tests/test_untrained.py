"""Networks that are read as they are initialised: no epochs, one snapshot, the same numbers after a kill."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from test_discard import run

from repbias_jax import layout, pairs
from tests.faults import tiny

MEASURED = ("train", "measure")


def with_epochs(count, **more):
    return dataclasses.replace(tiny.EXPERIMENT, overrides=(("training.epochs", count),), **more)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained") / "tiny"
    run(with_epochs(0), folder, MEASURED)
    return folder


def rows(folder):
    columns = ["setting", "seed", "step", "site", "probe", "metric", "feature", "other", "at"]
    return pd.read_csv(folder / "results.csv", dtype={"at": str}).set_index(columns)["value"].sort_index()


def test_they_have_the_values_that_trained_networks_have_before_training(untrained, tmp_path):
    run(with_epochs(1), tmp_path / "tiny", MEASURED)
    found, other = rows(untrained), rows(tmp_path / "tiny")
    assert found.index.is_unique
    assert set(found.index.get_level_values("step")) == {0}
    before = other[other.index.get_level_values("step") == 0].drop("r2_of_final", level="metric")
    assert len(before) > 100
    np.testing.assert_array_equal(found.reindex(before.index), before)


def test_weights_are_kept_for_interventions_and_a_killed_run_goes_on(untrained, tmp_path):
    folder = tmp_path / "tiny"
    run(with_epochs(0), folder, MEASURED)
    assert "readout" in rows(folder).index.get_level_values("probe")
    for done in folder.glob("*/*/done.json"):  # killed after the checkpoint was saved
        assert json.loads(done.read_text())["steps"] == 0
        done.unlink()
    run(with_epochs(0), folder, MEASURED)
    assert (folder / "results.csv").read_bytes() == (untrained / "results.csv").read_bytes()


def test_discarded_activations_give_the_same_values(untrained, tmp_path):
    run(with_epochs(0), tmp_path / "tiny", MEASURED, discard=True)
    assert (tmp_path / "tiny" / "results.csv").read_bytes() == (untrained / "results.csv").read_bytes()


def test_each_is_one_of_a_pair_once():
    groups = layout.groups_of(with_epochs(0, num_seeds=2).configs(), "cpu")
    chunks = layout.chunks_of(groups, layout.Layout(2, 0, (2,)))
    for models in pairs.models_of(chunks).values():
        names = [model.name for model in models]
        assert len(set(names)) == len(names) == 2 * len(tiny.EXPERIMENT.settings)


def test_their_cost_is_printed_and_a_negative_length_is_refused(call, tmp_path):
    words = "--experiment=complexity", "--preset=smoke", f"--workdir={tmp_path}", "--only_print"
    status, printed, _ = call(*words, "--config.training.epochs=0")
    assert status == 0
    assert "0 run-steps" in printed
    assert "training about 0.0 min here" in printed
    status, _, complained = call(*words, "--config.training.epochs=-1")
    assert status == 2
    assert "training.epochs" in complained
