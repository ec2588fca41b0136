"""Claims that would read what will not be there are refused before anything is trained."""

import types

import jax
import pytest

import repbias_jax
from experiments import command
from experiments.claims import EXPERIMENTS, encoder_residual, orders, output_position, sequence_complexity, steering
from repbias_jax import planning, rehearsal
from repbias_jax.config import ConfigError


def plan_of(name, preset, folder, *dotted):
    experiment = command.assemble(EXPERIMENTS[name], preset, None, None, dotted)
    return planning.place(experiment, planning.check(experiment, "cpu", 1), folder, jax.device_count())


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_keeps_what_its_claims_read(name, preset, tmp_path):
    rehearsal.rehearse(plan_of(name, preset, tmp_path), EXPERIMENTS[name])


REFUSED = {
    "no snapshot": (
        ("--experiment=learning_order", "--settings=joint,hard_first", "--config.training.epochs=40"),
        "sgd.joint: a claim reads r2 of hidden_1 at step 35, at which no snapshot is kept; the nearest is at step 34",
    ),
    "no common order": (
        ("--experiment=sequence_complexity", "--settings=pair_0,pair_1,pair_2,pair_3", "--config.task.order=example"),
        "base.pair_0: a claim reads the order of the outputs of a run, but config.task.order=example",
    ),
    "nothing to probe": (
        ("--experiment=output_position", "--settings=along_0", "--config.model.form=encoder"),
        "config.keep.probes=decode_answers (setting base.along_0): reads answers, of which",
    ),
    "heads": (
        ("--experiment=output_position", "--settings=joint_0", "--config.model.heads=3"),
        "config.model.heads=3: expected a divisor of config.model.width=",
    ),
    "length": (
        ("--experiment=output_position", "--settings=joint_0", "--config.task.length=8"),
        "which the input has not; expected",
    ),
    "order": (
        ("--experiment=complexity", "--settings=joint", "--config.task.output_order=0,1,2"),
        "config.task.output_order",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_claim_that_would_find_nothing_is_one_line_and_writes_nothing(case, call, tmp_path):
    arguments, expected = REFUSED[case]
    status, out, err = call("--preset=smoke", "--num_seeds=2", f"--workdir={tmp_path / 'new'}", *arguments)
    assert (status, out) == (2, "")
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("views", [("layers", "flat"), ("layers", "flat", "answers")], ids=["not stored", "stored"])
def test_a_claim_may_not_read_a_view_that_depends_on_labels(views, tmp_path):
    """Whether or not the run would keep it."""

    def claims(results, condition):
        results.values(f"{condition}.strings_0", "r2", "contains_token", site="decoder_0.out1")
        return []

    module = types.ModuleType("module")
    module.__file__, module.claims, module.EXPERIMENT = __file__, claims, sequence_complexity.EXPERIMENT
    more = {"preset": "smoke", "settings": ["strings_0"], "overrides": {"keep.views": views}}
    with pytest.raises(ConfigError, match=r"a claim reads decoder_0\.out1 of base\.strings_0, which depends on labels"):
        repbias_jax.run(module, tmp_path, **more)
    assert list(tmp_path.iterdir()) == []


def test_a_report_depends_on_all_code_of_its_claims():
    """Also on what an experiment shares with others, and on nothing outside the folder of its module."""
    found = planning.sources_of(output_position)
    expected = {output_position.__file__, orders.__file__, steering.__file__}
    assert expected <= set(map(str, found))
    assert {path.parent for path in found} == {found[0].parent}
    assert encoder_residual.__file__ not in map(str, found)
