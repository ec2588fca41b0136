"""Trains and measures a population from Python or a notebook; resumes and raises errors like the command."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from repbias_jax import pipeline, planning
from repbias_jax.config import ConfigError, Experiment
from repbias_jax.provenance import record
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
    module = experiment if isinstance(experiment, ModuleType) else None
    whole = getattr(module, "EXPERIMENT", None) if module else experiment
    if not isinstance(whole, Experiment):
        raise ConfigError(f"{experiment!r}: expected an Experiment, or a module with EXPERIMENT")
    chosen = [stage for stage in _known(stages) if module or stage != "report"]
    selected = select(whole, preset, num_seeds, seed, overrides, settings, conditions, has_claims=module is not None)
    folder = Path(workdir) / selected.name
    planning.check_workdir(folder)
    _start_jax(folder)
    backend = "" if "train" in chosen else planning.recorded_backend(folder)
    checked = planning.check(selected, backend or jax.default_backend(), lanes=lanes)
    plan = planning.place(selected, checked, folder, jax.device_count())
    # Without the report stage the module is not used; this one stands in for it.
    pipeline.run(plan, module or sys.modules[__name__], folder, chosen, lambda: False, record())
    return Results(folder)


def _known(stages: Sequence[str]) -> list[str]:
    """Returns the stages as a list; raises ConfigError if one is unknown or there are none."""
    names = [stages] if isinstance(stages, str) else list(stages)
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
