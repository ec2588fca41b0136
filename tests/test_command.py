"""The command line: what it shows, and one clear line for everything that cannot work."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from experiments import EXPERIMENTS, request
from repbias_jax import planning
from repbias_jax.config import Config, ConfigError, fields_of, override

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
    "name without a value": (("--config.model.widths",), "expected --config.model.widths=VALUE"),
    "negative rate": (("--config.optimizer.learning_rate=-1",), "learning_rate=-1.0: expected a finite number > 0"),
    "NaN rate": (("--config.optimizer.learning_rate=nan",), "learning_rate=nan: expected a finite number > 0"),
    "infinite rate": (("--config.optimizer.learning_rate=inf",), "learning_rate=inf: expected a finite number > 0"),
    "rate in words": (("--config.optimizer.learning_rate=fast",), "learning_rate=fast: expected float"),
    "dropout of one": (("--config.model.dropout=1.0",), "dropout=1.0: expected a finite number >= 0 and < 1"),
    "seed out of range": (("--seed=3000000000",), "--seed=3000000000: expected seeds below 2147483647"),
    "empty stage": (("--stage=",), "--stage is empty; known: train, measure, report"),
    "block before the input": (("--config.task.first_bits=-1,3",), "first_bits=-1: expected a finite number >= 0"),
    "zero seeds": (("--num_seeds=0",), "--num_seeds=0: expected at least 1"),
    "negative seeds": (("--num_seeds=-3",), "--num_seeds=-3: expected at least 1"),
    "empty widths": (("--config.model.widths=",), "config.model.widths is empty: expected at least one hidden layer"),
    "fractional width": (("--config.model.widths=1.5,2",), "config.model.widths=1.5: expected int, not float"),
    "width zero": (("--config.model.widths=8,0",), "config.model.widths=0: expected a finite number"),
    "unknown activation": (("--config.model.activation=sine",), "'sine': unknown; known: relu, leaky_relu, tanh, gelu"),
    "unknown rule": (("--config.optimizer.name=lion",), "'lion': unknown; known: sgd, momentum, adam"),
    "unknown model": (("--config.model.name=rnn",), "config.model.name=rnn: unknown; known: mlp"),
    "unknown data": (("--config.task.name=text",), "config.task.name=text: unknown; known: binary"),
    "too few bits": (("--config.task.num_bits=4",), "reads bit 4, which the input has not; expected at least 5 bits"),
    "overlapping blocks": (("--config.task.first_bits=0,0",), "overlap at bit 0; expected disjoint blocks"),
    "batch over the data": (("--config.training.batch_size=100000",), "expected at most config.task.num_train=512"),
    "odd probe set": (("--config.task.num_probe=100",), "config.task.num_probe=100: expected a multiple of"),
    "weights of another shape": (("--config.training.loss_weights=(1.0,)",), "swept by the settings along_easy"),
    "prevalence of one": (("--config.task.prevalence=1.0,0.5",), "config.task.prevalence=1.0: expected a finite"),
    "phase that does not end": (("--config.training.phase_ends=0.5",), "expected 1 rising shares of training, the last 1"),
    "unknown site": (("--config.keep.along=hidden_9",), "unknown site; known: last_hidden, input, hidden_0"),
    "other features": (("--config.task.features=parity2,parity3",), "config.task.features: the claims of complexity name"),
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
        (("--config.training.epochs=9",), ("config.training.epochs", "= 8", "asks for 9", "another --workdir")),
        (("--seed=5",), ("the seed = 0", "asks for 5")),
        (("--num_seeds=1",), ("holds 2 seeds", "--num_seeds=1", "at least 2")),
    ):
        status, _, err = call(*SMOKE, f"--workdir={tmp_path}", *arguments)
        assert status == 2
        assert len(err.strip().splitlines()) == 1
        for word in words:
            assert word in err
    assert (tmp_path / "complexity" / "manifest.json").read_bytes() == before


def test_help_lists_experiments_presets_and_every_dotted_name(call):
    status, out, _ = call("--help")
    assert status == 0
    for name in (*EXPERIMENTS, "--preset=smoke", "--preset=quick", "--preset=full", "--num_seeds", "--only_print"):
        assert name in out
    for dotted, (_, field) in fields_of(Config()).items():
        line = next(text for text in out.splitlines() if f"--config.{dotted} " in text)
        assert field.metadata["doc"] in line
        assert field.metadata["unit"] in line
    assert re.search(r"--config.model.widths .*int,int,.*units; 256,128,64,64", out)


def test_only_print_starts_nothing(call, tmp_path):
    status, out, _ = call(*SMOKE, f"--workdir={tmp_path}", "--only_print")
    assert status == 0
    for word in ("groups", "chunks", "compilations", "runs", "run-steps", "TFLOP", "memory a device", "disk", "min at"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_own_optimizer_takes_the_place_of_the_columns(call, tmp_path):
    status, out, _ = call(
        "--experiment=complexity", f"--workdir={tmp_path}", "--only_print", "--config.optimizer.name=adam",
        "--config.optimizer.learning_rate=1e-3", "--config.model.widths=256,128,64,64",
    )  # fmt: skip
    assert status == 0
    assert "chosen.joint" in out
    assert "sgd" not in out
    made = request.assemble(EXPERIMENTS["complexity"], "full", None, 0, ["--config.optimizer.name=adam"])
    assert {c.optimizer.name for c in made.configs().values()} == {"adam"}
    assert {c.training.epochs for c in made.configs().values()} == {160}  # tuned lengths were for SGD


def test_presets_and_tuned_settings():
    full = request.assemble(EXPERIMENTS["complexity"], "full", None, 0, []).configs()
    assert full["sgd.joint"].optimizer.learning_rate == 0.1
    assert full["sgd.ladder"].training.epochs == 320
    assert full["adam.ladder"].optimizer.learning_rate == 3e-4
    longer = request.assemble(EXPERIMENTS["complexity"], "full", 3, 7, ["--config.training.epochs=5"])
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
    assert getattr(getattr(override(Config(), name, text), part), leaf) == expected


@pytest.mark.parametrize(("name", "value"), [("task.twins", "maybe"), ("model.widths", "a,b"), ("training.epochs", True)])
def test_values_of_the_wrong_type_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"config.{name}"):
        override(Config(), name, value)


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
        planning.check(dataclasses.replace(sound, columns=((f"{name}/", ()),)), "cpu")
