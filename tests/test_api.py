"""`repbias_jax.run` from Python: results as frames, resume, errors, and devices; and what a wheel holds."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from setuptools import find_packages

import repbias_jax
from experiments.claims import complexity
from repbias_jax.config import Config, ConfigError, Experiment
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.features import FEATURES, Feature
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.store import StoreError

TINY = {
    "model.widths": (8, 4), "task.num_train": 256, "task.num_test": 64, "task.num_probe": 128, "training.epochs": 2,
    "training.observe_every": 2,
}  # fmt: skip
PLAIN = Experiment(
    "plain",
    "Two features",
    Config(BinaryOptions(), MLPOptions()),
    settings=(("joint", ()), ("squared", (("training.loss", "squared"),))),
)


def times(folder):
    """When each file was written, but for the locks."""
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock")
    }


def test_a_plain_experiment_is_trained_and_measured_and_not_done_twice(tmp_path):
    results = repbias_jax.run(PLAIN, tmp_path, num_seeds=2, settings=["joint"], overrides=TINY)
    assert list(results.settings.index) == ["base.joint"]
    assert results.values("base.joint", "r2", "parity1").between(-1, 1).all()
    assert list(results.values("base.joint", "r2", "parity1").index) == [0, 1]
    wrong = {
        ("base.jiont", "r2", "parity1"): "unknown setting base.jiont; known: base.joint",
        ("base.joint", "rr2", "parity1"): "base.joint has no metric rr2; known: .*r2",
        ("base.joint", "r2", "parity9"): "base.joint has no feature parity9; known: parity1, ",
        ("base.joint", "r2", "parity1", "hidden_7"): "base.joint has no site hidden_7; known: hidden_0, ",
    }
    for names, words in wrong.items():
        with pytest.raises(ConfigError, match=words):
            results.values(*names)
    for name in ("sites", "places", "outputs", "twins", "last_step"):
        with pytest.raises(ConfigError, match=r"unknown setting joint; known: base\.joint"):
            getattr(results, name)("joint")
    with pytest.raises(ConfigError, match=r"unknown setting joint; known: base\.joint"):
        results.accuracy("joint", "parity1")
    with pytest.raises(ConfigError, match=r"base\.joint has no site zz; known: input, hidden_0"):
        list(results.activations("base.joint", "zz"))
    with pytest.raises(ConfigError, match=r"base\.joint has no step 7; known: 0, "):
        results.values("base.joint", "r2", "parity1", step=7)
    with pytest.raises(ConfigError, match="no column nope"):
        results.values("base.joint", "r2", "parity1", nope=7)
    with pytest.raises(ConfigError, match="curves have no split zz; known: train, test"):
        results.accuracy("base.joint", "parity1", split="zz")
    assert not (tmp_path / "plain" / "report.html").exists()
    before = times(tmp_path)
    again = repbias_jax.run(PLAIN, tmp_path, num_seeds=2, settings=["joint"], overrides=TINY)
    assert times(tmp_path) == before
    assert again.rows.equals(results.rows)
    more = repbias_jax.run(PLAIN, tmp_path, num_seeds=3, settings=["joint"], overrides=TINY)
    assert len(more.values("base.joint", "r2", "parity1")) == 3


def test_a_module_has_its_report_and_claims_without_their_settings_say_so(tmp_path):
    repbias_jax.run(complexity, tmp_path, preset="smoke", settings=["joint"], conditions=["sgd"], overrides=TINY)
    folder = tmp_path / "complexity"
    assert (folder / "report.html").exists()
    assert "its settings are not in this preset" in (folder / "claims.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"settings": ["nope"]}, "unknown setting nope in --settings; known: joint, squared"),
        ({"conditions": ["sgd"]}, "unknown condition sgd in --conditions; known: base"),
        ({"preset": "quick"}, "unknown --preset=quick; known: full"),
        ({"num_seeds": 0}, "--num_seeds=0: expected at least 1"),
        ({"stages": ["draw"]}, "unknown --stage=draw"),
        ({"stages": []}, "--stage is empty"),
        ({"overrides": {"model.depth": 3}}, "unknown name config.model.depth"),
        ({"overrides": {"training.loss": "squared"}}, "swept by the settings squared"),
        ({"lanes": -2}, "--lanes=-2: expected at least 1"),
        ({"num_seeds": "8"}, "num_seeds='8': expected a whole number"),
        ({"lanes": 1.5}, "lanes=1.5: expected a whole number"),
        ({"seed": -5}, "--seed=-5: expected seeds from 0"),
        ({"seed": 10_000}, "the last seed is 10015; expected all below 10000"),
        ({"settings": 3}, "settings=3: expected names"),
        ({"stages": [["draw"]]}, "expected names"),
        ({"overrides": [("training.epochs", 1)]}, "expected values by dotted names"),
    ],
)
def test_errors_are_those_of_the_command(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        repbias_jax.run(PLAIN, tmp_path / "new", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_numpy_numbers_and_lists_are_taken_for_what_they_are(tmp_path):
    """As a notebook has them: whole numbers of NumPy, and options given as lists."""
    config = dataclasses.replace(PLAIN.config, model=MLPOptions(widths=[8, 4]))  # pyright: ignore[reportArgumentType]
    whole = dataclasses.replace(PLAIN, config=config)
    results = repbias_jax.run(
        whole, tmp_path, num_seeds=np.int64(2), seed=np.int32(3), settings="joint", overrides=TINY,
    )  # fmt: skip
    assert list(results.values("base.joint", "r2", "parity1").index) == [3, 4]
    assert results.settings.loc["base.joint", "model.widths"] == "[8, 4]"


def test_settings_may_have_names_that_look_like_numbers(tmp_path):
    named = dataclasses.replace(PLAIN, settings=(("1", ()),), conditions=(("0", ()),))
    results = repbias_jax.run(named, tmp_path, num_seeds=2, overrides=TINY)
    assert len(results.curves) > 0
    assert list(results.values("0.1", "r2", "parity1").index) == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": (("a", ()), ("a", (("optimizer.learning_rate", 0.2),)))}, "settings: a is there 2 times"),
        ({"conditions": (("c", ()), ("c", ()))}, "conditions: c is there 2 times"),
        ({"settings": (("b.c", ()), ("c", ())), "conditions": (("a", ()), ("a.b", ()))}, "a.b.c is there 2 times"),
        ({"settings": ()}, "settings of the experiment plain is empty"),
        ({"tuned": (("joint", (("training.epochs", 1),)),)}, "tuned: unknown setting joint; known: base.joint"),
        ({"seed_caps": (("zz", 2),)}, "seed_caps: unknown setting zz"),
        ({"seed_blocks": (("zz", 100, 2),)}, "seed_blocks: unknown setting zz"),
        ({"seed_blocks": (("joint", 100, 50_000_000),)}, "50000000 seeds from 100"),
        ({"probes": ("variance", "variance")}, "probe variance: expected each at most once"),
    ],
)
def test_an_experiment_that_would_drop_something_is_refused(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        repbias_jax.run(dataclasses.replace(PLAIN, **change), tmp_path, overrides=TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_feature_defined_anew_is_other_code(tmp_path, monkeypatch):
    """In a notebook, where features are entries of a dictionary; in the same process its data are drawn anew."""
    monkeypatch.setitem(FEATURES, "made", Feature(2, (0, 1, 1, 0)))
    made = dataclasses.replace(PLAIN, config=dataclasses.replace(PLAIN.config, task=BinaryOptions(features=("made",))))
    repbias_jax.run(made, tmp_path, num_seeds=2, settings=["joint"], overrides=TINY)
    monkeypatch.setitem(FEATURES, "made", Feature(2, (0, 0, 0, 1)))
    with pytest.raises(StoreError, match="other code"):
        repbias_jax.run(made, tmp_path, num_seeds=4, settings=["joint"], overrides=TINY)
    results = repbias_jax.run(made, tmp_path / "other", num_seeds=1, settings=["joint"], overrides=TINY)
    ((_, _, factors),) = results.activations("base.joint")
    assert 0.15 < factors["made"].mean() < 0.35


def test_something_else_than_an_experiment_is_refused(tmp_path):
    for thing in ("complexity", repbias_jax, 3):
        with pytest.raises(ConfigError, match="expected an Experiment, or a module with EXPERIMENT"):
            repbias_jax.run(thing, tmp_path)


IN_A_PROCESS = f"""
import sys, jax
if sys.argv[1] == "started":
    jax.devices()
import repbias_jax
from repbias_jax.config import Config, Experiment
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
plain = Experiment("plain", "Two features", Config(BinaryOptions(), MLPOptions()), settings=(("joint", ()),))
repbias_jax.run(plain, sys.argv[2], num_seeds=1, overrides={TINY!r})
print(jax.device_count())
"""


@pytest.mark.parametrize(("state", "expected"), [("fresh", 2), ("started", 1)])
def test_two_devices_unless_jax_has_started(tmp_path, state, expected):
    line = [sys.executable, "-c", IN_A_PROCESS, state, str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(expected)
    manifest = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert manifest["layout"]["rows"] == expected
    assert manifest["record"]["devices"].startswith(f"{expected} x ")


def test_a_wheel_holds_the_library_alone(tmp_path):
    line = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["repbias_jax"]
    packages = find_packages(str(ROOT), include=["repbias_jax*"])
    assert all((tmp_path / "lib" / name.replace(".", "/") / "__init__.py").exists() for name in packages)
    assert list((tmp_path / "lib").rglob("*.html"))
