"""Identifies the code and library versions that train a chunk, and what a manifest records of the program and machine.

The digest covers the syntax trees, without docstrings and comments, of the modules that train a setting: `training`, the
generator and the model that the setting uses, and what these import of the package, but not other generators and models.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from repbias_jax import store
from repbias_jax.config import Static, Task
from repbias_jax.data import DATA
from repbias_jax.models import MODELS

VERSIONS = ("jax", "flax", "optax")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy", "pandas", "matplotlib")
REGISTRIES = ("repbias_jax.data", "repbias_jax.models")  # they import every family


def provenance_of(static: Static) -> dict[str, str]:
    """Returns what a setting's numbers depend on besides its options: `code`, a digest, and the versions of VERSIONS."""
    model = MODELS[static.config.model.name].options.__module__
    modules = modules_below(("repbias_jax.training", DATA[static.config.task.name].__name__, model))
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    # Features may be defined, or defined anew, outside the modules, as in a notebook.
    defined = definitions(static.config.task)
    return {"code": store.digest([*((name, syntax(name)) for name in modules), defined]), **versions}


def definitions(task: Task) -> str:
    """Returns what the names of a task's features mean, as text, if its generator has a function `definitions`."""
    return getattr(DATA[task.name], "definitions", lambda task: "")(task)


def difference(before: dict[str, str], now: dict[str, str]) -> str:
    """Returns the differences between two provenances in words; empty if there are none."""
    changed = [name for name in now if before.get(name) != now[name]]
    words = [f"{name} {before.get(name)} instead of {now[name]}" if name != "code" else "other code" for name in changed]
    return ", ".join(words)


@functools.cache
def modules_below(roots: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the roots and the modules of the package that they import, directly or not, sorted, without registries."""
    found, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name in found or name in REGISTRIES:
            continue
        found.add(name)
        todo += [other for other in _imports(name) if other.startswith("repbias_jax.")]
    return tuple(sorted(found))


def _imports(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(_source(name))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("repbias_jax"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _is_module(inner) else node.module


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name.rpartition(".")[0]) is not None and _spec_of(name) is not None


def _spec_of(name: str):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the parent is a module and not a package
        return None


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise store.StoreError(f"module {name}: its source is not there, so the code that trains cannot be recorded")
    return Path(spec.origin).read_text()


@functools.cache
def syntax(name: str) -> str:
    """Returns the syntax tree of a module as text, without docstrings. Each module is read once per process."""
    return syntax_of(_source(name))


def syntax_of(source: str) -> str:
    """Returns the syntax tree of source code as text, without docstrings; it has no comments and no layout anyway."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        can_have_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if can_have_one and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def record() -> dict[str, Any]:
    """Returns versions, machine and commit for the manifest, which records them and never compares them."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {**versions, "python": platform.python_version(), "devices": devices, "commit": commit()}


def commit() -> str:
    """Returns the output of `git describe` for this checkout, or `not a checkout`."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
