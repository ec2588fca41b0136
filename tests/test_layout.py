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
from experiments import EXPERIMENTS
from repbias_jax.config import flatten

PACKAGE = ROOT / "repbias_jax"
# b <- a: what each module may import of the package.
MAY = {
    "config": set(),
    "features": {"config"},
    "data": {"config", "features", "data"},
    "models": {"config", "features", "models"},
    "training": {"config", "features", "data", "models"},
    "store": {"config"},
    "external": {"config", "store"},
    "external_features": {"config", "external"},
    "devices": set(),
    "population": {"config", "features", "data", "models", "training", "store", "devices"},
    "probes": {"config", "probes"},
    "pairs": {"config", "store", "population", "probes"},
    "measure": {"config", "features", "data", "models", "training", "store", "devices", "population", "probes", "pairs"},
    "statistics": {"config", "measure"},
    "report": {"config", "store", "measure", "statistics", "report"},
}
MAY["planning"] = MAY["measure"] - {"pairs"}
MAY["pipeline"] = {*MAY, "planning"}
MAY["anyone"] = {"config", "external_features", "probes", "measure", "anyone"}
MAY["__init__"] = {"measure", "probes", "anyone"}
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
            assert name.split(".")[1] in MAY[module], f"{path}:{line} imports {name}"
        owner = {"matplotlib": "report", "orbax": "store", "tensorstore": "store", "absl": "experiments"}
        first = name.split(".")[0]
        assert first not in owner or owner[first] == module, f"{path}:{line} imports {name}"
        assert not name.startswith("experiments"), f"{path}:{line} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_flags_environment_wall_clock_or_global_generator(path):
    text = path.read_text()
    for word in ("os.environ", "getenv", "FLAGS", "time.time(", "datetime", "np.random.seed", "import random"):
        assert word not in text, f"{path} uses {word}"


def test_importing_the_package_is_light():
    """No plotting, no page and no test library for users of `variance_explained`."""
    code = (
        "import sys, repbias_jax; print([m for m in ('matplotlib', 'jinja2', 'absl.flags', 'pytest') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "matplotlib" not in done.stdout
    assert "jinja2" not in done.stdout


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_contract_every_experiment(name):
    module = EXPERIMENTS[name]
    assert module.EXPERIMENT.name == name
    assert {"smoke", "quick", "full"} <= set(dict(module.EXPERIMENT.presets))
    assert dict(module.EXPERIMENT.presets)["full"].num_seeds >= 16
    for word in ("Claim:", "Paper:", f"--experiment={name}", "Cost"):
        assert word in module.__doc__
    assert list(inspect.signature(module.claims).parameters) == ["results", "column"]
    assert list(inspect.signature(module.figures).parameters) == ["results"]


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_settings_are_those_that_were_frozen(name):
    """`frozen.json` was committed before the run that gave the verdicts; without one the command says so."""
    path = ROOT / "experiments" / "results" / name / "frozen.json"
    assert path.exists() == (EXPERIMENTS[name].EXPERIMENT.variant == "")
    if not path.exists():
        assert not (path.parent / "claims.csv").exists()
        return
    frozen = json.loads(path.read_text())
    now = {n: {k: plain(v) for k, v in flatten(c).items()} for n, c in EXPERIMENTS[name].EXPERIMENT.configs().items()}
    assert now == frozen["settings"]


def plain(value):
    return [plain(v) for v in value] if isinstance(value, tuple) else value


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
