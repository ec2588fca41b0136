"""Code that the commands share: exit codes, signals and the reading of arguments. Flags are defined in `run`."""

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import logging

from experiments.claims import EXPERIMENTS, base
from repbias_jax import confirmation, layout, pipeline, planning, population
from repbias_jax.config import Config, ConfigError, Experiment, Preset, describe_type, fields_of, flatten, override_all
from repbias_jax.confirmation import Confirmed
from repbias_jax.selection import FULL, select

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75
ALL = "ALL"  # the name that stands for every experiment
CONFIRM = "confirm"  # this preset is not a size: it runs the blocks of seeds that CONFIRMATION plans
CONFIRMATION = Path(__file__).parent / "results" / "confirm.json"


def quieten() -> None:
    """Keeps messages of libraries out of the output of the command."""
    logging.set_verbosity(logging.FATAL)  # orbax logs every file that it writes, and also what it raises
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable


def _print_unraisable(found: Any) -> None:
    """Prints an unraisable exception as Python does, except that it ignores calls of a closed event loop.

    When orbax gives up, tensorstore's other readers and writers still call its loop.
    """
    if not (found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def catch_signals() -> Callable[[], bool]:
    """Catches SIGTERM, SIGINT and SIGUSR1; returns a function that says whether one has arrived.

    The first signal only sets this flag, for the caller to poll; a second one exits at once.
    """
    caught: list[int] = []

    def note(number, _frame):
        if caught:
            os._exit(INTERRUPTED)
        caught.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, note)
    return lambda: bool(caught)


def prompt(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """Returns `main` for a process of its own, which ends as soon as `main` is interrupted.

    Python would wait at exit for whatever XLA is computing, such as a large data set that is no longer needed.
    """

    def run(arguments: Sequence[str]) -> int:
        status = main(arguments)
        if status == INTERRUPTED and jax.process_count() == 1:  # the processes of a distributed job end together
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status

    return run


def complain(message: str, status: int = BAD_INPUT) -> int:
    """Prints one line on standard error; returns the exit status."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def names_of(asked: str) -> list[str]:
    """Returns the names of the experiments that `--experiment` stands for.

    Raises:
      ConfigError: no experiment has that name.
    """
    if asked != ALL and asked not in EXPERIMENTS:
        raise ConfigError(f"unknown --experiment={asked}; known: {known()}")
    return list(EXPERIMENTS) if asked == ALL else [asked]


def known() -> str:
    """Returns all values that `--experiment` accepts, as text."""
    return ", ".join([*EXPERIMENTS, ALL])


def assemble(
    module: ModuleType, preset: str, num_seeds: int | None, seed: int | None, dotted: Sequence[str],
    settings: Sequence[str] = (), conditions: Sequence[str] = (),
) -> Experiment:  # fmt: skip
    """Returns the experiment that the command line describes.

    Raises:
      ConfigError: an unknown preset or name, a bad value, an override of a field that the settings sweep, or verdicts that
        `confirm.json` does not plan.
    """
    chosen = select(module.EXPERIMENT, preset, num_seeds, seed, dict(map(_change, dotted)), settings, conditions)
    return _planned(module, chosen, confirmation.load(CONFIRMATION)) if chosen.gives_verdict else chosen


def _planned(module: ModuleType, chosen: Experiment, entries: Sequence[Confirmed]) -> Experiment:
    """Returns the run that gives the verdicts of an experiment, with its entries of `confirm.json`.

    Raises ConfigError if a claim has none, or if their blocks of seeds are not those of the run.
    """
    if missing := [id_ for id_ in module.CLAIMS if id_ not in {entry.claim for entry in entries}]:
        raise ConfigError(f"{CONFIRMATION}: no entry for {missing[0]}; expected one before --preset={FULL} is run")
    run = {(chosen.seed, chosen.num_seeds), *((first, count) for _, first, count in chosen.seed_blocks)}
    planned = {(entry.first, entry.count): entry for entry in entries if entry.claim in module.CLAIMS}
    for first, count in sorted(run ^ set(planned)):
        of = f"{planned[first, count].claim} has" if (first, count) in planned else f"{chosen.name} runs"
        raise ConfigError(
            f"{CONFIRMATION}: {of} {count} seeds from {first} on; expected the same blocks in the plan and in the run"
        )
    return dataclasses.replace(chosen, confirmed=tuple(entries))


def confirmations(entries: Sequence[Confirmed]) -> dict[str, tuple[ModuleType, list[Experiment]]]:
    """Returns for every experiment its module and the runs that confirm its claims: one for each block of seeds.

    Raises:
      ConfigError: an entry names a claim that no experiment has, or parts with a joint verdict have different seeds.
    """
    claims = {name: getattr(module, "CLAIMS", {}) for name, module in EXPERIMENTS.items()}
    for entry in entries:
        owners = [EXPERIMENTS[name].EXPERIMENT for name, own in claims.items() if entry.claim in own]
        if not owners:
            raise ConfigError(f"{CONFIRMATION}: no experiment has {entry.claim} among its CLAIMS")
        if not entry.separate and owners[0].verdict_seed < 0:  # else one run has all blocks of the claim
            confirmation.seeds_of(entries, entry.claim)
    return {
        name: (module, _confirmations_of(module, _blocks(entries, claims[name]), entries))
        for name, module in EXPERIMENTS.items()
    }


def _confirmations_of(
    module: ModuleType, blocks: Sequence[Sequence[Confirmed]], entries: Sequence[Confirmed]
) -> list[Experiment]:  # fmt: skip
    """Returns the runs of an experiment's blocks of seeds: one of each, or one of all if its full preset is that run."""
    if blocks and module.EXPERIMENT.verdict_seed >= 0:
        return [_planned(module, select(module.EXPERIMENT), entries)]
    return [_confirming(module, block, entries) for block in blocks]


def _blocks(entries: Sequence[Confirmed], claims: Mapping[str, Any]) -> list[list[Confirmed]]:
    """Returns the entries of some claims, grouped by block of seeds."""
    blocks: dict[tuple[int, int], list[Confirmed]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.claim, entry.part)):
        if entry.claim in claims:
            blocks.setdefault((entry.first, entry.count), []).append(entry)
    return list(blocks.values())


def _confirming(module: ModuleType, block: Sequence[Confirmed], entries: Sequence[Confirmed]) -> Experiment:
    """Returns the run of one block: the settings that its claims read, under the base setting of confirmations."""
    whole, ids = module.EXPERIMENT, list(dict.fromkeys(entry.claim for entry in block))
    settings = tuple(dict.fromkeys(setting for id_ in ids for setting in module.CLAIMS[id_][2]))
    size = Preset(block[0].count, settings, (whole.conditions[0][0],))
    chosen = select(dataclasses.replace(whole, presets=((FULL, size),)), seed=block[0].first)
    apart = block[0].part if block[0].separate else ""
    return dataclasses.replace(
        chosen,
        name=f"{whole.name}.{ids[0]}{apart}",
        title=f"{whole.title} (confirmation of {', '.join(ids)})",
        config=override_all(whole.config, dict(getattr(module, "CONFIRMATION", base.CONFIRMATION))),
        tuned=tuple({**dict(whole.tuned), **getattr(module, "CONFIRMATION_TUNED", {})}.items()),
        seed_caps=(),  # every setting has as many seeds as were planned
        seed_blocks=(),
        variant="",
        confirmed=tuple(entries),
    )


def _change(argument: str) -> tuple[str, str]:
    """Returns the name and the text of `--config.NAME=VALUE`; raises ConfigError if the value is missing."""
    name, sign, text = argument.removeprefix("--config.").partition("=")
    if not sign:
        raise ConfigError(f"{argument}: expected {argument}=VALUE")
    return name, text


def experiment_help(experiment: Experiment) -> list[str]:
    """Returns the help of an experiment in lines: presets, settings, conditions and every dotted name that it can set."""
    defaults = Config(type(experiment.config.task)(), type(experiment.config.model)())
    base, own = flatten(defaults), flatten(experiment.config)
    different = [f"{name}={_text(own[name])}" for name in own if own[name] != base.get(name)]
    lines = ["", f"Experiment {experiment.name}: {experiment.title}"]
    for name, size in experiment.presets:
        chosen = f"{', '.join(size.settings) or 'all settings'}; {', '.join(size.conditions) or 'all conditions'}"
        lines.append(f"  --preset={name}: {size.num_seeds} seeds; {chosen}")
        lines += [f"    changes {', '.join(f'{n}={_text(v)}' for n, v in size.overrides)}"] if size.overrides else []
    if experiment.verdict_seed >= 0:
        lines.append(
            f"  --preset={CONFIRM}: the same run as {FULL}; confirm.json plans its seeds, from {experiment.verdict_seed} on"
        )
    else:
        lines.append(f"  --preset={CONFIRM}: the claims of confirm.json, each block of seeds in a folder of its own")
    for cap in sorted({cap for _, cap in experiment.seed_caps}):
        capped = [setting for setting, limit in experiment.seed_caps if limit == cap]
        lines.append(f"  at most {cap} seeds: {', '.join(capped)}")
    lines.append(f"  --settings: {', '.join(name for name, _ in experiment.settings)}")
    lines.append(f"  --conditions: {', '.join(name for name, _ in experiment.conditions)}")
    lines.append(f"  defaults that differ from the library's: {'; '.join(different) or 'none'}")
    lines.append("  dotted names (type, unit, range; default here):")
    for name, (kind, field) in fields_of(experiment.config).items():
        facts = [describe_type(kind), field.metadata["unit"], _range(field.metadata)]
        described = ", ".join(fact for fact in facts if fact)
        lines.append(f"    --config.{name}  {field.metadata['doc']} ({described}; {_text(own[name]) or 'empty'})")
    return lines


def _text(value: Any) -> str:
    """Returns a value as it is written on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _range(bounds: Mapping[str, Any]) -> str:
    """Returns a range, `>= 0 and < 1`, or the possible choices; empty if any value is allowed."""
    if "choices" in bounds:
        return "one of " + " ".join(bounds["choices"])
    signs = (("low", ">="), ("above", ">"), ("high", "<="), ("below", "<"))
    return " and ".join(f"{sign} {bounds[key]:g}" for key, sign in signs if key in bounds)


def stages_of(asked: Sequence[str]) -> list[str]:
    """Returns the requested stages; raises ConfigError if there are none or one is unknown."""
    if not asked:
        raise ConfigError(f"--stage is empty; known: {', '.join(pipeline.STAGES)}")
    for name in asked:
        if name not in pipeline.STAGES:
            raise ConfigError(f"unknown --stage={name}; known: {', '.join(pipeline.STAGES)}")
    return list(asked)


def share_of(asked: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns (i, N) for shard i of N independent processes: from `--shard`, else from the scheduler, else (0, 1).

    Raises:
      ConfigError: there is no such shard, or a SLURM array has gaps, so that the index of a task is unknown.
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


def cost_lines(
    plans: Sequence[planning.Plan], stages: Sequence[str], discard: bool = False, stop: Callable[[], bool] = lambda: False
) -> Iterator[str]:  # fmt: skip
    """Yields what would be run and what it would cost, by experiment, and the total of several, as lines.

    Raises:
      Interrupted: `stop` returned true while updates were timed.
    """
    costs, times = [], []
    for plan in plans:
        yield f"{plan.experiment.name}: {plan.experiment.title}"
        for group in plan.groups:
            steps = f"{group.static.config.num_steps:,} steps, {group.lanes} lanes"
            yield f"  group {group.name}: {', '.join(group.settings)}; {steps}"
        cost, chunks = planning.estimate(plan, discard), plan.chunks
        work = layout.chunk_flops(chunks)
        own = sum(w * len(c.runs) / (c.rows * c.group.lanes) for w, c in zip(work, chunks, strict=True))
        yield (
            f"  {len(plan.groups)} groups, {cost['chunks']:.0f} chunks of at most {plan.layout.rows} rows, "
            f"at most {cost['compilations']:.0f} compilations"
        )
        yield f"  {cost['runs']:.0f} runs, {cost['run_steps']:,.0f} run-steps, {own / 1e12:,.1f} TFLOP"
        yield (
            f"  memory a device about {cost['device_bytes'] / 1e6:,.0f} MB, disk at most {cost['disk_bytes'] / 1e9:,.2f} GB"
        )
        seconds = _training_seconds(plan, cost, work, stop) if "train" in stages else None
        yield f"  {_in_words(seconds)}"
        costs.append(cost | {"flops": own})
        times.append(seconds)
    if len(plans) > 1:
        total = {name: sum(cost[name] for cost in costs) for name in costs[0]}
        yield (
            f"all {len(plans)} experiments: {total['runs']:,.0f} runs, {total['flops'] / 1e12:,.1f} TFLOP, at most "
            f"{total['compilations']:.0f} compilations and {total['disk_bytes'] / 1e9:,.2f} GB; "
            f"{_in_words(None if None in times else sum(times))}"
        )


def _training_seconds(
    plan: planning.Plan, cost: Mapping[str, float], work: Sequence[float], stop: Callable[[], bool]
) -> float | None:  # fmt: skip
    """Estimates how long all updates of a plan take here, from the time of one update of its dearest chunk.

    Args:
      plan: what would be run.
      cost: of the plan, from `estimate`.
      work: of its chunks, from `chunk_flops`.
      stop: polled.

    Returns:
      Seconds, or None where nothing can be timed: in a process of several, on another backend, or without enough memory.
    """
    if jax.process_count() > 1 or plan.backend != jax.default_backend():
        return None
    if not any(work):
        return 0.0  # nothing is trained
    dearest = work.index(max(work))
    chunk = plan.chunks[dearest]
    try:
        planning.check_memory(plan, cost)
        step = population.step_seconds(chunk, stop)
    except (ConfigError, jax.errors.JaxRuntimeError):
        return None
    return step * chunk.group.static.config.num_steps * sum(work) / work[dearest]


def _in_words(seconds: float | None) -> str:
    return "training not timed" if seconds is None else f"training about {seconds / 60:,.1f} min here"
