"""What a command asks for: experiments, stages, a share of the work, and its cost in words. Flags stay in `run`."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType

import jax

from experiments import EXPERIMENTS
from repbias_jax import pipeline, planning
from repbias_jax.config import ConfigError, Experiment, Preset, override, override_all

ALL = "ALL"  # the name that stands for every experiment


def names_of(asked: str) -> list[str]:
    """Names of the experiments that `--experiment` stands for.

    Raises:
      ConfigError: there is none of that name.
    """
    if asked != ALL and asked not in EXPERIMENTS:
        raise ConfigError(f"unknown --experiment={asked}; known: {known()}")
    return list(EXPERIMENTS) if asked == ALL else [asked]


def known() -> str:
    """Every value of `--experiment`."""
    return ", ".join([*EXPERIMENTS, ALL])


def assemble(module: ModuleType, preset_name: str, num_seeds: int | None, seed: int, dotted: Sequence[str]) -> Experiment:
    """The experiment as asked for: its preset, then the user's overrides.

    Raises:
      ConfigError: unknown preset or name, bad value, or an override of a field that the settings sweep.
    """
    experiment: Experiment = module.EXPERIMENT
    presets = dict(experiment.presets)
    if preset_name not in presets:
        raise ConfigError(f"unknown --preset={preset_name}; known: {', '.join(presets)}")
    preset: Preset = presets[preset_name]
    settings = [s for s in experiment.settings if not preset.settings or s[0] in preset.settings]
    columns = [c for c in experiment.columns if not preset.columns or c[0] in preset.columns]
    own = [_change(experiment, preset, settings, argument) for argument in dotted]
    if any(name in dict(compared) for name, _ in own for _, compared in columns):
        # One column compares another value of this field: what the user asks for takes the place of all columns.
        columns = [("chosen", ())]
    fixed = dict([*preset.overrides, *own])
    variant = [experiment.variant] if experiment.variant else []
    variant += [] if preset_name == "full" else [f"preset {preset_name}"]
    variant += [a.removeprefix("--") for a in dotted]

    def without(named):
        return tuple((name, tuple((n, v) for n, v in own if n not in fixed)) for name, own in named)

    return dataclasses.replace(
        experiment,
        config=override_all(experiment.config, fixed),
        settings=without(settings),
        columns=tuple(columns),
        tuned=without(experiment.tuned),
        num_seeds=preset.num_seeds if num_seeds is None else num_seeds,
        seed_caps=tuple((name, cap) for name, cap in experiment.seed_caps if name in dict(settings)),
        seed=seed,
        variant=", ".join(variant),
    )


def _change(experiment: Experiment, preset: Preset, settings: Sequence, argument: str) -> tuple[str, str]:
    """`--config.NAME=VALUE` as name and text, checked."""
    name, sign, text = argument.removeprefix("--config.").partition("=")
    if not sign:
        raise ConfigError(f"{argument}: expected {argument}=VALUE")
    override(experiment.config, name, text)
    if name in ("task.features", "task.outputs"):
        raise ConfigError(
            f"--config.{name}: the claims of {experiment.name} name the features they are about; other features need an "
            "experiment of their own (BUILD.md)"
        )
    sweeping = [s for s, own in settings if name in dict(own) and name not in dict(preset.overrides)]
    if sweeping:
        raise ConfigError(f"--config.{name}: swept by the settings {', '.join(sweeping)}, and cannot be overridden")
    return name, text


def stages_of(asked: Sequence[str]) -> list[str]:
    """The stages asked for. Raises ConfigError where there is none, or none of that name."""
    if not asked:
        raise ConfigError(f"--stage is empty; known: {', '.join(pipeline.STAGES)}")
    for name in asked:
        if name not in pipeline.STAGES:
            raise ConfigError(f"unknown --stage={name}; known: {', '.join(pipeline.STAGES)}")
    return list(asked)


def share_of(asked: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which of how many independent processes this is: `--shard`, else what the scheduler says, else 0 of 1.

    Raises:
      ConfigError: no such share, or an array of tasks with gaps, which does not say how many there are.
    """
    if asked is not None:
        index, _, count = asked.partition("/")
        source = f"--shard={asked}"
    elif "SLURM_ARRAY_TASK_ID" in environment:
        first, last, number, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{k}", "1")) for k in ("MIN", "MAX", "COUNT", "STEP")
        )
        if number != (last - first) // step + 1:
            raise ConfigError(f"SLURM array of {number} tasks from {first} to {last} has gaps: give --shard=i/N")
        index, count = str((int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step), str(number)
        source = f"SLURM array task {environment['SLURM_ARRAY_TASK_ID']}"
    elif "JOB_COMPLETION_INDEX" in environment:
        index, count = environment["JOB_COMPLETION_INDEX"], environment.get("JOB_COMPLETIONS", "")
        source = f"JOB_COMPLETION_INDEX={index}, JOB_COMPLETIONS={count or 'not set'}"
    else:
        return 0, 1
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"{source}: expected i/N with whole numbers 0 <= i < N")
    return int(index), int(count)


def cost_lines(plans: Sequence[planning.Plan]) -> list[str]:
    """What would be run and what it would cost, by experiment, and of several the sum."""
    lines, costs = [], []
    for plan in plans:
        cost = planning.estimate(plan)
        rate = 5e10 * min(plan.layout.rows, jax.device_count())
        costs.append(cost | {"minutes": cost["flops"] / rate / 60})
        lines.append(f"{plan.experiment.name}: {plan.experiment.title}")
        for group in plan.groups:
            lines.append(f"  group {group.name}: {', '.join(group.settings)}; {group.static.config.num_steps:,} steps")
        lines += [
            f"  {len(plan.groups)} groups, {cost['chunks']:.0f} chunks of {plan.layout.rows} x {plan.layout.lanes} runs, "
            f"at most {cost['compilations']:.0f} compilations",
            f"  {cost['runs']:.0f} runs, {cost['run_steps']:,.0f} run-steps, {cost['flops'] / 1e12:,.1f} TFLOP",
            f"  memory a device about {cost['device_bytes'] / 1e6:,.0f} MB, "
            f"disk at most {cost['disk_bytes'] / 1e9:,.2f} GB",
            f"  training about {costs[-1]['minutes']:,.1f} min at {rate / 1e9:.0f} GFLOP/s",
        ]
    if len(plans) > 1:
        total = {name: sum(cost[name] for cost in costs) for name in costs[0]}
        lines.append(
            f"all {len(plans)} experiments: {total['runs']:,.0f} runs, {total['flops'] / 1e12:,.1f} TFLOP, at most "
            f"{total['compilations']:.0f} compilations and {total['disk_bytes'] / 1e9:,.2f} GB; training about "
            f"{total['minutes']:,.1f} min"
        )
    return lines
