"""Which part of an experiment is run: its preset, settings, conditions and overrides, all checked by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from repbias_jax.config import ConfigError, Experiment, Overrides, Preset, changed, override, override_all

FULL = "full"


def select(
    experiment: Experiment, preset: str = FULL, num_seeds: int | None = None, seed: int | None = None,
    overrides: Mapping[str, Any] | None = None, settings: Sequence[str] = (), conditions: Sequence[str] = (),
    has_claims: bool = True,
) -> Experiment:  # fmt: skip
    """Returns the experiment as it will be run.

    Args:
      experiment: the whole experiment.
      preset: one of its presets. An experiment without presets has only `full`, with its own number of seeds.
      num_seeds: seeds of every setting that has no cap; None: the preset's number.
      seed: the first seed; None: the experiment's.
      overrides: dotted names such as `training.epochs` with a value, or with text that is read as one.
      settings: names of the settings to run; empty: those of the preset.
      conditions: names of the conditions to run; empty: those of the preset.
      has_claims: whether claims name the features, which then cannot be overridden.

    Raises:
      ConfigError: an unknown preset, setting, condition or dotted name, a bad value, or an override of a field that the
        settings sweep.
    """
    experiment.check_names()
    size = _preset(experiment, preset)
    changes = overrides or settings or conditions or num_seeds is not None or seed is not None
    gives_verdict = experiment.verdict_seed >= 0 and preset == FULL and not changes
    first = experiment.verdict_seed if gives_verdict else experiment.seed
    # Smaller presets never use the seeds of a verdict.
    has_blocks = gives_verdict or (preset == FULL and experiment.verdict_seed < 0)
    chosen = _choose(experiment.settings, settings or size.settings, "setting")
    compared = _choose(experiment.conditions, conditions or size.conditions, "condition")
    own = {name: _check(experiment, size, chosen, name, value, has_claims) for name, value in (overrides or {}).items()}
    # Conditions that are not run count too: a condition that changes nothing is named after what the others change.
    if any(changed(name, changes) for name in own for _, changes in experiment.conditions):
        if conditions:
            raise ConfigError(
                f"condition {', '.join(conditions)}: an override changes a field that the conditions compare; expected "
                f"either the condition or the override"
            )
        # The conditions vary this field: the user's value replaces all conditions.
        compared = (("chosen", ()),)
    fixed = {**dict(experiment.overrides), **dict(size.overrides), **own}

    variant = [experiment.variant] if experiment.variant else []
    variant += [] if preset == FULL else [f"preset {preset}"]
    variant += [f"settings {' '.join(settings)}"] if settings and len(chosen) < len(experiment.settings) else []
    variant += [f"conditions {' '.join(conditions)}"] if conditions and len(compared) < len(experiment.conditions) else []
    variant += [f"config.{name}={value}" for name, value in own.items()]
    return dataclasses.replace(
        experiment,
        config=override_all(experiment.config, fixed),
        settings=chosen,
        conditions=tuple(compared),
        overrides=tuple(fixed.items()),
        num_seeds=size.num_seeds if num_seeds is None else num_seeds,
        seed_caps=tuple((name, cap) for name, cap in experiment.seed_caps if name in dict(chosen)),
        seed_blocks=tuple(b for b in experiment.seed_blocks if has_blocks and b[0] in dict(chosen)),
        seed=first if seed is None else seed,
        gives_verdict=gives_verdict,
        variant=", ".join(variant),
    )


def _preset(experiment: Experiment, name: str) -> Preset:
    presets = dict(experiment.presets) or {FULL: Preset(experiment.num_seeds)}
    if name not in presets:
        raise ConfigError(f"unknown --preset={name}; known: {', '.join(presets)}")
    return presets[name]


def _choose(named: Sequence[tuple[str, Overrides]], names: Sequence[str], what: str) -> tuple[tuple[str, Overrides], ...]:
    """Returns the items with the given names, in their original order; all of them if no name is given."""
    known = dict(named)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what} {name or '(empty)'} in --{what}s; known: {', '.join(known)}")
    return tuple(item for item in named if not names or item[0] in names)


def _check(experiment: Experiment, preset: Preset, settings: Sequence, name: str, value: Any, has_claims: bool) -> Any:
    """Returns the value of one override; raises ConfigError if it is not allowed."""
    override(experiment.config, name, value)
    if has_claims and name in ("task.features", "task.outputs"):
        raise ConfigError(
            f"--config.{name}: the claims of {experiment.name} name the features they are about; other features need an "
            "experiment of their own (BUILD.md)"
        )
    sweeping = [s for s, changes in settings if changed(name, changes) and name not in dict(preset.overrides)]
    if sweeping:
        raise ConfigError(f"--config.{name}: swept by the settings {', '.join(sweeping)}, and cannot be overridden")
    return value
