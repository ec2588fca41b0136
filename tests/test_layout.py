"""Who may import whom; what the package may not do."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import repbias_jax
from experiments.claims import EXPERIMENTS
from repbias_jax.config import fields_of, flatten

PACKAGE = ROOT / "repbias_jax"
# Data flows down this list: a module may import those above it.
FLOW = (
    "config", "columns", "features", "data", "models", "training", "store", "provenance", "devices", "layout", "population",
    "probes", "pairs", "measure", "results", "statistics", "confirmation", "external", "report", "planning", "rehearsal",
    "selection",
    "pipeline", "api",
    "probe", "__init__",
)  # fmt: skip
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Every imported module, and the line it stands on."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_direction(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name, line in imports(path):
        if name.startswith("repbias_jax."):
            assert FLOW.index(name.split(".")[1]) <= FLOW.index(module), f"{path}:{line} imports {name}"
        owner = {"matplotlib": "report", "orbax": "store", "tensorstore": "store", "absl": "probe"}
        first = name.split(".")[0]
        assert first not in owner or owner[first] == module, f"{path}:{line} imports {name}"
        assert not name.startswith("experiments"), f"{path}:{line} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_flags_environment_wall_clock_or_global_generator(path):
    text = path.read_text()
    flags = () if path == PACKAGE / "probe.py" else ("FLAGS",)  # the one command of the package
    for word in ("os.environ", "getenv", *flags, "time.time(", "datetime", "np.random.seed", "import random"):
        assert word not in text, f"{path} uses {word}"


HEAVY = ("repbias_jax.training", "repbias_jax.population", "orbax", "tensorstore", "flax", "optax", "matplotlib", "jinja2")


@pytest.mark.parametrize("use", ["", "variance_explained", "probe_activations"])
def test_importing_the_package_is_light(use):
    """Neither training, storage nor plotting is loaded by the package or by its functions on arrays."""
    lines = ["import sys, numpy, repbias_jax", "assert set(repbias_jax.__all__) <= set(dir(repbias_jax))"]
    if use:
        lines += ["a, f = numpy.random.default_rng(0).normal(size=(40, 3)), numpy.arange(40) // 2 % 2"]
        lines += [f"repbias_jax.{use}(a, {{'f': f}})"]
    lines += [f"print([m for m in {HEAVY} if m in sys.modules])"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_unknown_public_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'gone'"):
        _ = repbias_jax.gone


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_contract_every_experiment(name):
    module = EXPERIMENTS[name]
    assert module.EXPERIMENT.name == name
    assert {"smoke", "quick", "full"} <= set(dict(module.EXPERIMENT.presets))
    assert dict(module.EXPERIMENT.presets)["full"].num_seeds >= 16
    for word in ("Claim:", "Paper:", f"--experiment={name}", "cost"):
        assert word.lower() in module.__doc__.lower()
    assert list(inspect.signature(module.claims).parameters) == ["results", "condition"]
    assert list(inspect.signature(module.figures).parameters) == ["results"]


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_settings_are_those_that_were_frozen(name):
    """`frozen.json` was committed before the run that gave the verdicts; without one the command says so."""
    path = ROOT / "experiments" / "results" / name / "frozen.json"
    assert path.exists() == (EXPERIMENTS[name].EXPERIMENT.variant == "")
    if not path.exists():
        assert not (path.parent / "claims.csv").exists()
        return
    frozen = json.loads(path.read_text())["settings"]
    configs = EXPERIMENTS[name].EXPERIMENT.configs()
    assert configs.keys() == frozen.keys()
    for setting, config in configs.items():
        now, then = ({k: plain(v) for k, v in values.items()} for values in (flatten(config), frozen[setting]))
        # An option that came after the freeze had its default.
        defaults = {k: plain(field.default) for k, (_, field) in fields_of(config).items()}
        assert then.keys() <= now.keys()
        assert now == defaults | then, setting


def plain(value):
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def test_public_names_are_documented():
    for name in repbias_jax.__all__:
        assert getattr(repbias_jax, name).__doc__
    for path in SOURCES:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        assert module.__doc__, path


def test_nothing_names_this_machine():
    for path in [*SOURCES, *Path(ROOT / "experiments").rglob("*.py"), ROOT / "README.md", ROOT / "BUILD.md"]:
        if path.exists():
            text = path.read_text()
            assert "/work/" not in text
            assert "/root/" not in text
