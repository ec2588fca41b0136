"""The command line: what it shows, and one clear line for everything that cannot work."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import run_here

from experiments.claims import EXPERIMENTS
from experiments.command import assemble, experiment_help
from repbias_jax import planning
from repbias_jax.config import Config, ConfigError, fields_of, override
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.results import Results
from repbias_jax.selection import select
from repbias_jax.statistics import NOT_RUN, judge

BASE = Config(BinaryOptions(), MLPOptions())

SMOKE = ("--experiment=complexity", "--preset=smoke")

BAD = {
    "no experiment": ((), "--experiment is missing; known: complexity"),
    "unknown experiment": (("--experiment=nope",), "unknown --experiment=nope; known: complexity"),
    "unknown preset": (("--preset=huge",), "unknown --preset=huge; known: full, quick, smoke"),
    "unknown stage": (("--stage=train,draw",), "unknown --stage=draw; known: train, measure, report"),
    "unknown flag": (("--presett=quick",), "Unknown command line flag 'presett'"),
    "flag of the wrong type": (("--num_seeds=many",), "num_seeds"),
    "loose argument": (("quick",), "unexpected argument quick"),
    "unknown name": (("--config.model.depth=3",), "unknown name config.model.depth; known: task.name"),
    "misspelt name": (("--config.model.width=8",), "unknown name config.model.width; did you mean config.model.widths?"),
    "name without a value": (("--config.model.widths",), "expected --config.model.widths=VALUE"),
    "negative rate": (("--config.optimizer.learning_rate=-1",), "learning_rate=-1.0: expected a finite number > 0"),
    "NaN rate": (("--config.optimizer.learning_rate=nan",), "learning_rate=nan: expected a finite number > 0"),
    "infinite rate": (("--config.optimizer.learning_rate=inf",), "learning_rate=inf: expected a finite number > 0"),
    "rate in words": (("--config.optimizer.learning_rate=fast",), "learning_rate=fast: expected float"),
    "dropout of one": (("--config.model.dropout=1.0",), "dropout=1.0: expected a finite number >= 0 and < 1"),
    "seed of a confirmation": (("--preset=full", "--seed=9990"), "the last seed is 10005; expected all below 10000"),
    "seed out of range": (("--preset=full", "--seed=3000000000"), "the last seed is 3000000015; expected seeds from 0 to"),
    "empty stage": (("--stage=",), "--stage is empty; known: train, measure, report"),
    "block before the input": (("--config.task.first_bits=-1,3",), "first_bits=-1: expected a finite number >= 0"),
    "zero seeds": (("--num_seeds=0",), "--num_seeds=0: expected at least 1"),
    "negative seeds": (("--num_seeds=-3",), "--num_seeds=-3: expected at least 1"),
    "empty widths": (("--config.model.widths=",), "config.model.widths is empty: expected at least one hidden layer"),
    "fractional width": (("--config.model.widths=1.5,2",), "config.model.widths=1.5: expected int, not float"),
    "width zero": (("--config.model.widths=8,0",), "config.model.widths=0: expected a finite number"),
    "unknown activation": (("--config.model.activation=sine",), "'sine': unknown; known: relu, leaky_relu, tanh, gelu"),
    "unknown rule": (("--config.optimizer.name=lion",), "'lion': unknown; known: sgd, momentum, adam"),
    "unknown model": (("--config.model.name=rnn",), "config.model.name='rnn': unknown; known: mlp"),
    "unknown data": (("--config.task.name=text",), "config.task.name='text': unknown; known: binary"),
    "too few bits": (("--config.task.num_bits=4",), "reads bit 4, which the input has not; expected at least 10, or"),
    "overlapping blocks": (("--config.task.first_bits=0,0",), "overlap at bit 0; expected disjoint blocks"),
    "batch over the data": (("--config.training.batch_size=100000",), "expected at most config.task.num_train=512"),
    "odd probe set": (("--config.task.num_probe=100",), "config.task.num_probe=100: expected a multiple of"),
    "weights of another shape": (("--config.training.loss_weights=(1.0,)",), "swept by the settings along_easy"),
    "prevalence of zero in float32": (
        ("--config.task.prevalence=1e-46,0.5",),
        "prevalence=1e-46: expected a finite number > 0 and < 1, which it is not in float32 (0)",
    ),
    "prevalence of one in float32": (
        ("--config.task.prevalence=0.99999999999,0.5",),
        "expected a finite number > 0 and < 1, which it is not in float32 (1)",
    ),
    "rate that overflows": (
        ("--config.optimizer.learning_rate=1e39",),
        "learning_rate=1e+39: expected a finite number > 0, which it is not in float32 (inf)",
    ),
    "prevalence of one": (("--config.task.prevalence=1.0,0.5",), "config.task.prevalence=1.0: expected a finite"),
    "phase that does not end": (("--config.training.phase_ends=0.5",), "expected 1 rising shares of training, the last 1"),
    "unknown site": (("--config.keep.along=hidden_9",), "config.keep.along=hidden_9: unknown view; known: all, layers"),
    "other features": (("--config.task.features=parity2,parity3",), "config.task.features: the claims of complexity name"),
    "unknown setting": (("--settings=joint,nope",), "unknown setting nope in --settings; known: joint, "),
    "unknown condition": (("--conditions=lion",), "unknown condition lion in --conditions; known: sgd, adam"),
    "settings of all": (("--experiment=ALL", "--settings=joint"), "--settings needs one experiment, not --experiment=ALL"),
    "endless training": (("--config.training.epochs=99999999999999999999",), "expected at most 2,147,483,647 and"),
    "too many examples": (("--config.task.num_train=99999999999",), "num_train=99999999999: expected a finite number"),
    "too many runs": (("--num_seeds=100000000",), "runs; expected at most 1,000,000"),
    "negative lanes": (("--lanes=-1",), "--lanes=-1: expected at least 1"),
    "swept field": (("--config.training.loss=squared",), "config.training.loss: swept by the settings squared"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, call, tmp_path):
    arguments, expected = BAD[case]
    base = () if case == "no experiment" else SMOKE
    status, out, err = call(*base, f"--workdir={tmp_path / 'new'}", *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert expected in err, err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_workdir_missing(call):
    status, _, err = call(*SMOKE)
    assert (status, err) == (2, "error: --workdir is missing\n")


def test_workdir_is_a_file(call, tmp_path):
    (tmp_path / "taken").write_text("precious")
    for workdir in (tmp_path / "taken", tmp_path / "taken" / "below"):
        status, _, err = call(*SMOKE, f"--workdir={workdir}")
        assert status == 2
        assert "is a file; expected a folder" in err
    assert (tmp_path / "taken").read_text() == "precious"


def test_workdir_cannot_be_written(call, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    status, _, err = call(*SMOKE, f"--workdir={tmp_path}")
    assert status == 2
    assert f"{tmp_path} cannot be written" in err
    assert list(tmp_path.iterdir()) == []


def test_workdir_of_another_configuration(call, smoke, tmp_path):
    shutil.copytree(smoke, tmp_path / "complexity")
    before = (tmp_path / "complexity" / "manifest.json").read_bytes()
    for arguments, words in (
        (("--config.training.epochs=9",), ("config.training.epochs", "= 8", "asks for 9", "another workdir")),
        (("--seed=5",), ("the seed = 0", "asks for 5")),
        (("--num_seeds=1",), ("holds 2 seeds", "--num_seeds=1", "at least 2")),
    ):
        status, _, err = call(*SMOKE, f"--workdir={tmp_path}", *arguments)
        assert status == 2
        assert len(err.strip().splitlines()) == 1
        for word in words:
            assert word in err
    assert (tmp_path / "complexity" / "manifest.json").read_bytes() == before


def test_help_is_one_line_for_each_command_flag_and_experiment(call):
    status, out, err = call("--help")
    assert (status, err) == (0, "")
    lines = [line.split("python -m ")[-1].strip() for line in out.splitlines()]
    for name in (*EXPERIMENTS, "experiments.run ", "repbias_jax.probe ", "--preset:", "--num_seeds:", "--settings:"):
        assert len([line for line in lines if line.split()[:1] == [name.strip()]]) == 1, name
    assert len(out.splitlines()) < 60
    assert "--config.model.widths" not in out


def test_help_of_the_command_itself_has_the_flags(command):
    """Where the module is the program, its flags have another module's name."""
    done = command("--help")
    assert "--workdir:" in done.stdout
    assert len(done.stdout.splitlines()) < 60


def test_help_of_an_experiment_has_all_that_it_can_set(call):
    status, out, _ = call("--experiment=complexity", "--help")
    assert status == 0
    for name in ("--preset=smoke", "--preset=quick", "--preset=full", "--settings: joint, ", "--conditions: sgd, adam"):
        assert name in out
    for dotted, (_, field) in fields_of(BASE).items():
        line = next(text for text in out.splitlines() if f"--config.{dotted} " in text)
        assert field.metadata["doc"] in line
        assert field.metadata["unit"] in line
    assert re.search(r"--config.model.widths .*int,int,.*units, >= 1 and <= 65536; 256,128,64,64", out)
    assert re.search(r"--config.model.activation .*one of relu leaky_relu tanh gelu; relu", out)


def test_help_says_how_defaults_of_an_experiment_differ():
    experiment = EXPERIMENTS["complexity"].EXPERIMENT
    changed = dataclasses.replace(experiment, config=override(experiment.config, "model.widths", "7,5"))
    (line,) = [text for text in experiment_help(changed) if "differ from" in text]
    assert "model.widths=7,5" in line
    assert "model.widths" not in "".join(text for text in experiment_help(experiment) if "differ from" in text)


def test_help_of_an_unknown_experiment(call):
    status, out, err = call("--experiment=nope", "--help")
    assert (status, out) == (2, "")
    assert err.startswith("error: unknown --experiment=nope; known: ")


def test_settings_and_conditions_are_chosen(call, tmp_path):
    asked = ("--experiment=complexity", f"--workdir={tmp_path}", "--only_print")
    status, out, _ = call(*asked, "--settings=joint,squared", "--conditions=sgd", "--lanes=2")
    assert status == 0
    assert set(re.findall(r"sgd\.\w+|adam\.\w+", out)) == {"sgd.joint", "sgd.squared"}
    assert re.search(r"steps, 2 lanes", out)
    made = assemble(EXPERIMENTS["complexity"], "full", None, 0, [], ["squared", "joint"], ["adam"])
    assert list(made.configs()) == ["adam.joint", "adam.squared"]  # in the experiment's order
    assert made.variant == "settings squared joint, conditions adam"


def test_all_of_the_settings_are_no_variant():
    experiment = EXPERIMENTS["components"].EXPERIMENT
    names = [name for name, _ in experiment.settings]
    assert assemble(EXPERIMENTS["components"], "full", None, 0, [], names).variant == experiment.variant


def test_an_override_of_what_a_chosen_condition_compares_is_refused():
    with pytest.raises(ConfigError, match="condition adam: an override changes a field that the conditions compare"):
        assemble(EXPERIMENTS["complexity"], "full", None, 0, ["--config.optimizer.name=adam"], [], ["adam"])


def test_claims_whose_settings_were_not_chosen_say_so(smoke):
    results = Results(smoke)
    results.settings = results.settings.loc[["sgd.joint"]]
    rows = judge(EXPERIMENTS["complexity"].claims(results, "sgd"), "sgd", False)
    notes = {row["id"]: str(row["note"]) for row in rows}
    assert NOT_RUN in notes["C02"]
    assert NOT_RUN not in notes["C36"]


def test_a_setting_and_a_condition_that_change_one_field_are_refused():
    sound = EXPERIMENTS["complexity"].EXPERIMENT
    clash = dataclasses.replace(sound, settings=(("fast", (("optimizer.learning_rate", 0.5),)),))
    with pytest.raises(ConfigError, match=r"condition adam and setting fast both change config.optimizer.learning_rate"):
        clash.configs()
    part, leaf = ("model", MLPOptions(widths=(4, 4))), ("model.widths", (8, 8))
    for own, changes in ((part, leaf), (leaf, part)):  # a whole part and a field of it
        clash = dataclasses.replace(sound, settings=(("a", (own,)),), conditions=(("c", (changes,)),))
        with pytest.raises(ConfigError, match="condition c and setting a both change"):
            clash.configs()
    for module in EXPERIMENTS.values():
        module.EXPERIMENT.configs()


def test_an_override_of_a_part_that_settings_replace_is_refused():
    sound = EXPERIMENTS["complexity"].EXPERIMENT
    wide = dataclasses.replace(sound, settings=(("wide", (("model", MLPOptions(widths=(64, 64))),)),), tuned=())
    with pytest.raises(ConfigError, match=r"config\.model\.widths: swept by the settings wide"):
        select(wide, overrides={"model.widths": (4, 4)})


def test_a_condition_keeps_its_name_only_for_what_it_names():
    """SGD is the condition without changes: with another optimizer it would carry a wrong name."""
    experiment = assemble(EXPERIMENTS["complexity"], "smoke", None, 0, ["--config.optimizer.name=adam"])
    assert [name for name, _ in experiment.conditions] == ["chosen"]


@pytest.mark.parametrize("text", ["0x10", "0b1", "0o7", "1_000", "0X10,8"])
def test_numbers_are_decimal_only(text):
    for name in ("training.epochs", "model.widths", "optimizer.learning_rate"):
        with pytest.raises(ConfigError, match=f"config.{name}={text}: expected .*decimal digits"):
            override(BASE, name, text)


def test_only_print_writes_nothing(capsys, tmp_path):
    """Updates are timed."""
    assert run_here(*SMOKE, f"--workdir={tmp_path}", "--only_print") == 0
    out = capsys.readouterr().out
    words = ("groups", "chunks", "compilations", "run-steps", "TFLOP", "memory a device", "disk", "training about")
    for word in words:
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_own_optimizer_takes_the_place_of_the_conditions(call, tmp_path):
    status, out, _ = call(
        "--experiment=complexity", f"--workdir={tmp_path}", "--only_print", "--config.optimizer.name=adam",
        "--config.optimizer.learning_rate=1e-3", "--config.model.widths=256,128,64,64",
    )  # fmt: skip
    assert status == 0
    assert "chosen.joint" in out
    assert "sgd" not in out
    made = assemble(EXPERIMENTS["complexity"], "full", None, 0, ["--config.optimizer.name=adam"])
    assert {c.optimizer.name for c in made.configs().values()} == {"adam"}
    assert {c.training.epochs for c in made.configs().values()} == {160}  # tuned lengths were for SGD


def test_presets_and_tuned_settings():
    full = assemble(EXPERIMENTS["complexity"], "full", None, 0, []).configs()
    assert full["sgd.joint"].optimizer.learning_rate == 0.1
    assert full["sgd.ladder"].training.epochs == 320
    assert full["adam.ladder"].optimizer.learning_rate == 3e-4
    longer = assemble(EXPERIMENTS["complexity"], "full", 3, 7, ["--config.training.epochs=5"])
    assert (longer.num_seeds, longer.seed) == (3, 7)
    assert {c.training.epochs for c in longer.configs().values()} == {5}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("model.widths", "64", (64,)), ("model.widths", "64,32", (64, 32)), ("optimizer.learning_rate", "1", 1.0),
        ("task.features", "parity1, parity2", ("parity1", "parity2")), ("task.twins", "false", False),
        ("training.loss_weights", "(1,0),(0,1)", ((1.0, 0.0), (0.0, 1.0))), ("training.loss_weights", "1,0", ((1.0, 0.0),)),
        ("task.prevalence", "", ()), ("task.prevalence", "0.25,0.5", (0.25, 0.5)),
    ],
)  # fmt: skip
def test_values_are_read(name, text, expected):
    part, leaf = name.split(".")
    assert getattr(getattr(override(BASE, name, text), part), leaf) == expected


@pytest.mark.parametrize(("name", "value"), [("task.twins", "maybe"), ("model.widths", "a,b"), ("training.epochs", True)])
def test_values_of_the_wrong_type_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"config.{name}"):
        override(BASE, name, value)


def test_printed_table_and_paths(smoke):
    printed = (smoke.parent / "printed.txt").read_text()
    assert "verdict" in printed.splitlines()[0]
    for id_ in ("C01", "C02", "C03", "C04", "C36"):
        assert re.search(rf"^{id_} ", printed, re.M)
    for name in ("report.html", "figures", "results.csv"):
        assert str(smoke / name) in printed
        assert (smoke / name).exists()


def test_reference_files_are_small_and_complete(call, smoke, tmp_path):
    shutil.copytree(smoke, tmp_path / "w" / "complexity")
    status, _, err = call(*SMOKE, f"--workdir={tmp_path / 'w'}", f"--reference={tmp_path / 'ref'}")
    assert status == 0, err
    written = {str(p.relative_to(tmp_path / "ref")) for p in (tmp_path / "ref").rglob("*") if p.is_file()}
    assert {
        "claims.csv",
        "measures.csv",
        "seeds.csv",
        "curves.csv",
        "settings.csv",
        "manifest.json",
    } <= written
    assert "figures/gap.png" in written
    assert sum(p.stat().st_size for p in (tmp_path / "ref").rglob("*")) < 3e6
    assert json.loads((tmp_path / "ref" / "manifest.json").read_text())["experiment"] == "complexity"


@pytest.mark.parametrize("name", ["../up", "/root", "a/b", ".hidden", "-flag", "<b>", "=1", "$$", "a b", "x" * 200, ""])
def test_names_that_try_paths_markup_formulas_or_tex_are_refused(name):
    """Of experiments and settings: they name folders, and stand in page, tables and figures."""
    sound = EXPERIMENTS["complexity"].EXPERIMENT
    with pytest.raises(ConfigError, match=r"experiment and settings: name .*: expected 1 to 128 of"):
        planning.check(dataclasses.replace(sound, name=name), "cpu")
    with pytest.raises(ConfigError, match=r"experiment and settings: name .*: expected 1 to 128 of"):
        planning.check(dataclasses.replace(sound, conditions=((f"{name}/", ()),)), "cpu")
