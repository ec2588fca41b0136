"""Trains and measures a population from Python or a notebook; resumes and raises errors like the command."""

import contextlib
import operator
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from repbias_jax import pipeline, planning, store
from repbias_jax.config import ConfigError, Experiment
from repbias_jax.provenance import record
from repbias_jax.rehearsal import rehearse
from repbias_jax.results import Results
from repbias_jax.selection import FULL, select


def run(
    experiment: Experiment | ModuleType, workdir: str | Path, *, preset: str = FULL, num_seeds: int | None = None,
    seed: int | None = None, settings: Sequence[str] = (), conditions: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None, stages: Sequence[str] = pipeline.STAGES, lanes: int = 0,
) -> Results:  # fmt: skip
    """Runs the unfinished part of an experiment and returns its results.

    Progress is printed to standard error. After an interruption, the same call continues the run, and so does the command
    `python -m experiments.run` with the same workdir.

    Args:
      experiment: an `Experiment`, or a module with `EXPERIMENT`, `claims` and `figures`. For a plain `Experiment`, which
        has neither claims nor figures, the report stage is skipped.
      workdir: a folder; the experiment writes to a subfolder with its name.
      preset: size of the experiment.
      num_seeds: number of seeds per setting, except for settings with a cap; None: the number of the preset.
      seed: the first seed; None: the experiment's.
      settings: names of the settings to run; empty: those of the preset.
      conditions: names of the conditions to run; empty: those of the preset.
      overrides: values by dotted names, such as `{"training.epochs": 64}`.
      stages: of `train`, `measure` and `report`.
      lanes: runs trained at once in each row; 0: chosen for the backend.

    Returns:
      The measured values, curves and settings as data frames.

    Raises:
      ConfigError: an argument is invalid.
      StoreError: the files in `workdir` are damaged, missing or not up to date.
    """
    num_seeds, seed, lanes = (_whole(n, v) for n, v in (("num_seeds", num_seeds), ("seed", seed), ("lanes", lanes)))
    settings, conditions, stages = (
        _names(n, v) for n, v in (("settings", settings), ("conditions", conditions), ("stages", stages))
    )
    if not (isinstance(overrides or {}, Mapping) and all(isinstance(name, str) for name in overrides or {})):
        raise ConfigError(f"overrides={overrides!r}: expected values by dotted names, such as {{'training.epochs': 64}}")
    if not isinstance(workdir, str | os.PathLike):
        raise ConfigError(f"workdir={workdir!r}: expected the path of a folder")
    module = experiment if isinstance(experiment, ModuleType) else None
    whole = getattr(module, "EXPERIMENT", None) if module else experiment
    if not isinstance(whole, Experiment):
        raise ConfigError(f"{experiment!r}: expected an Experiment, or a module with EXPERIMENT")
    chosen = [stage for stage in _known(stages) if module or stage != "report"]
    selected = select(whole, preset, num_seeds, seed, overrides, settings, conditions, has_claims=module is not None)
    folder = Path(workdir) / selected.name
    store.check_workdir(folder)
    _start_jax(folder)
    backend = "" if "train" in chosen else planning.recorded_backend(folder)
    checked = planning.check(selected, backend or jax.default_backend(), lanes=lanes)
    plan = planning.place(selected, checked, folder, jax.device_count())
    if module:
        rehearse(plan, module)
    # Without the report stage the module is not used; this one stands in for it.
    pipeline.run(plan, module or sys.modules[__name__], folder, chosen, lambda: False, record())
    return Results(folder)


def _whole(name: str, value: Any) -> Any:
    """Returns a whole number as Python's int, and None as it is; raises ConfigError for anything else."""
    try:
        return value if value is None else operator.index(value)
    except TypeError as error:
        raise ConfigError(f"{name}={value!r}: expected a whole number") from error


def _names(name: str, value: Any) -> list[str]:
    """Returns names as a list, of which one may be given alone; raises ConfigError for anything else."""
    names: list[Any] = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not all(isinstance(one, str) for one in names):
        raise ConfigError(f"{name}={value!r}: expected names")
    return names


def _known(stages: Sequence[str]) -> list[str]:
    """Returns the stages as a list; raises ConfigError if one is unknown or there are none."""
    names = list(stages)
    if not names:
        raise ConfigError(f"--stage is empty; known: {', '.join(pipeline.STAGES)}")
    for name in names:
        if name not in pipeline.STAGES:
            raise ConfigError(f"unknown --stage={name}; known: {', '.join(pipeline.STAGES)}")
    return names


def _start_jax(folder: Path) -> None:
    """Sets the number of CPU devices to that of the workdir, or to two.

    Nothing changes if JAX has already started or if the number was configured.
    """
    if jax.config.jax_num_cpu_devices == -1:  # pyright: ignore[reportAttributeAccessIssue]
        with contextlib.suppress(RuntimeError):  # JAX has started; the manifest records its devices
            jax.config.update("jax_num_cpu_devices", planning.recorded_rows(folder) or 2)
