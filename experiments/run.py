"""Runs an experiment: data, training, measuring, verdicts, figures and a page.

  python -m experiments.run --experiment=complexity --workdir=DIR [--preset=smoke|quick|full] [--num_seeds=N] [--seed=0]
         [--stage=train,measure,report] [--config.NAME=VALUE ...] [--only_print] [--reference=DIR]
         [--shard=i/N] [--distributed]

Exit status: 0 done; 75 interrupted, run the same command again; 2 bad input; 1 anything else.
"""

import dataclasses
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import app, flags, logging

from experiments import EXPERIMENTS
from repbias_jax import pipeline, planning, store
from repbias_jax.config import ConfigError, Experiment, Preset, describe_type, fields_of, override, override_all
from repbias_jax.measure import Results
from repbias_jax.population import Interrupted
from repbias_jax.report import tables

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75
HEARTBEAT = 30  # seconds of silence after which the processes of a distributed job give one of them up
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy", "pandas", "matplotlib")

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, "name of the experiment")
flags.DEFINE_string("workdir", None, "folder for results; the experiment gets its own folder in it")
flags.DEFINE_string("preset", "full", "size of the experiment")
flags.DEFINE_integer("num_seeds", None, "seeds of every setting that has no cap; by default the preset's")
flags.DEFINE_integer("seed", 0, "first seed", lower_bound=0)
flags.DEFINE_list("stage", list(pipeline.STAGES), "stages to run")
flags.DEFINE_bool("only_print", False, "show what would be run, and start nothing")
flags.DEFINE_integer(
    "devices", 0, "virtual devices on CPU for a new workdir; 0: one a core and at least two", lower_bound=0
)
flags.DEFINE_float("checkpoint_seconds", 10.0, "shortest time between two checkpoints", lower_bound=0)
flags.DEFINE_string(
    "shard", None, "i/N: train and measure the share i = 0..N-1 of N independent processes; default: what SLURM arrays "
    "(SLURM_ARRAY_TASK_*) and Kubernetes Indexed Jobs (JOB_COMPLETION_INDEX, with JOB_COMPLETIONS) say, else all"
)  # fmt: skip
flags.DEFINE_bool(
    "distributed", False, "train on all devices of a jax.distributed job, such as a TPU slice; needs --stage=train"
)
flags.DEFINE_string("reference", None, "also write the small files of a reference run to this folder")
flags.DEFINE_string("compilation_cache", None, "folder of your own for JAX's persistent compilation cache; default: none")


def parse(arguments: Sequence[str]) -> list[str]:
    """Flags by absl; `--config.NAME=VALUE` is kept for `assemble`. Bad flags are one line and status 2."""
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in arguments):
        print(help_text())
        sys.exit(DONE)
    dotted = [a for a in arguments if a.startswith("--config.")]
    try:
        rest = FLAGS([a for a in arguments if a not in dotted])
    except flags.Error as error:
        sys.exit(_complain(str(error).replace("\n", " ")))
    return [*rest, *dotted]


def help_text() -> str:
    """Experiments, presets, flags and every dotted name with its type, default and unit."""
    lines = [str(__doc__), "Flags:"]
    for flag in FLAGS.flags_by_module_dict().get(__name__, FLAGS.flags_by_module_dict().get("__main__", [])):
        lines.append(f"  --{flag.name}: {flag.help} (default: {flag.default_as_str or 'none'})")
    for name, module in EXPERIMENTS.items():
        experiment: Experiment = module.EXPERIMENT
        lines += ["", f"Experiment {name}: {experiment.title}"]
        for preset, size in experiment.presets:
            chosen = ", ".join(size.settings) or "all settings"
            lines.append(
                f"  --preset={preset}: {size.num_seeds} seeds; {chosen}; {', '.join(size.columns) or 'all columns'}"
            )
        for cap in sorted({cap for _, cap in experiment.seed_caps}):
            capped = [setting for setting, own in experiment.seed_caps if own == cap]
            lines.append(f"  at most {cap} seeds: {', '.join(capped)}")
        lines.append("  dotted names (type, unit; default):")
        for dotted, (kind, field) in fields_of(experiment.config).items():
            part, leaf = dotted.split(".")
            value = getattr(getattr(experiment.config, part), leaf)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            unit = f", {field.metadata['unit']}" if field.metadata["unit"] else ""
            lines.append(f"    --config.{dotted}  {field.metadata['doc']} ({describe_type(kind)}{unit}; {text or 'empty'})")
    return "\n".join(lines)


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
    changes = [*preset.overrides]
    for argument in dotted:
        name, sign, text = argument.removeprefix("--config.").partition("=")
        if not sign:
            raise ConfigError(f"{argument}: expected {argument}=VALUE")
        override(experiment.config, name, text)
        sweeping = [s for s, own in settings if name in dict(own) and name not in dict(preset.overrides)]
        if sweeping:
            raise ConfigError(f"--config.{name}: swept by the settings {', '.join(sweeping)}, and cannot be overridden")
        changes.append((name, text))
        if any(name in dict(own) for _, own in columns):
            # One column compares another value of this field: what the user asks for takes the place of all columns.
            columns = [("chosen", ())]
    fixed = dict(changes)
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


def record() -> dict[str, Any]:
    """Versions, machine and commit, for the manifest."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {**versions, "python": platform.python_version(), "devices": devices, "commit": commit()}


def commit() -> str:
    """What `git describe` says of this checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"


def plan_lines(plan: planning.Plan) -> list[str]:
    """What would be run and what it would cost."""
    cost = planning.estimate(plan)
    lines = [f"{plan.experiment.name}: {plan.experiment.title}"]
    for group in plan.groups:
        lines.append(f"  group {group.name}: {', '.join(group.settings)}; {group.static.config.num_steps:,} steps")
    nominal = 5e10 * min(plan.layout.rows, jax.device_count())
    lines += [
        f"  {len(plan.groups)} groups, {cost['chunks']:.0f} chunks of {plan.layout.rows} x {plan.layout.lanes} runs, "
        f"at most {cost['compilations']:.0f} compilations",
        f"  {cost['runs']:.0f} runs, {cost['run_steps']:,.0f} run-steps, {cost['flops'] / 1e12:,.1f} TFLOP",
        f"  memory a device about {cost['device_bytes'] / 1e6:,.0f} MB, disk at most {cost['disk_bytes'] / 1e9:,.2f} GB",
        f"  training about {cost['flops'] / nominal / 60:,.1f} min at {nominal / 1e9:.0f} GFLOP/s",
    ]
    return lines


def _stages(asked: Sequence[str]) -> list[str]:
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


def _join(stages: Sequence[str], share: tuple[int, int]) -> None:
    """Joins the `jax.distributed` job that the environment describes."""
    if list(stages) != ["train"]:
        raise ConfigError("--distributed needs --stage=train; measure and report with a command without it")
    if share[1] > 1:
        raise ConfigError("--distributed trains all chunks on all devices: it needs no --shard")
    given = {k: os.environ.get(k) for k in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    if None in given.values():
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)  # TPU slices, SLURM and Open MPI are recognised
    else:
        address, number, own = (str(v) for v in given.values())
        if not (number.isdecimal() and own.isdecimal() and int(own) < int(number)):
            raise ConfigError(f"JAX_PROCESS_ID={own}, JAX_NUM_PROCESSES={number}: expected whole numbers, ID below NUM")
        jax.distributed.initialize(address, int(number), int(own), heartbeat_timeout_seconds=HEARTBEAT)


def _required(name: str) -> str:
    value = FLAGS[name].value
    if not value:
        raise ConfigError(f"--{name} is missing" + (f"; known: {', '.join(EXPERIMENTS)}" if name == "experiment" else ""))
    return value


def _print_unraisable(found: Any) -> None:
    """As Python does, but for one: when orbax gives up, tensorstore's other readers and writers still call its loop."""
    if not (found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _catch_signals() -> Callable[[], bool]:
    """The first SIGTERM, SIGINT or SIGUSR1 is noted, to be polled; a second one exits at once."""
    caught: list[int] = []

    def note(number, _frame):
        if caught:
            os._exit(INTERRUPTED)
        caught.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, note)
    return lambda: bool(caught)


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return BAD_INPUT


def main(arguments: Sequence[str]) -> int:
    """Reads flags, runs, prints; returns the exit status."""
    logging.set_verbosity(logging.FATAL)  # orbax tells of every file it writes, and logs what it raises, too
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable
    dotted = [a for a in arguments[1:] if a.startswith("--config.")]
    try:
        if extra := [a for a in arguments[1:] if a not in dotted]:
            raise ConfigError(f"unexpected argument {extra[0]}; flags are written --name=value")
        name = _required("experiment")
        if name not in EXPERIMENTS:
            raise ConfigError(f"unknown --experiment={name}; known: {', '.join(EXPERIMENTS)}")
        module = EXPERIMENTS[name]
        stages = _stages(FLAGS.stage)
        experiment = assemble(module, FLAGS.preset, FLAGS.num_seeds, FLAGS.seed, dotted)
        folder = Path(_required("workdir")) / name
        # At least two: XLA compiles for one device in another way, which would change bits.
        # A distributed job's rows are those of all its processes.
        recorded_rows = 0 if FLAGS.distributed else planning.recorded_rows(folder)
        jax.config.update("jax_num_cpu_devices", recorded_rows or FLAGS.devices or max(2, os.cpu_count() or 1))
        share = share_of(FLAGS.shard, {} if FLAGS.distributed else os.environ)
        if FLAGS.distributed:
            _join(stages, share)
        if FLAGS.compilation_cache:
            jax.config.update("jax_compilation_cache_dir", f"{FLAGS.compilation_cache}/jax-{jax.__version__}")
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        planning.check_workdir(folder)
        recorded = "" if "train" in stages else planning.recorded_backend(folder)
        checked = planning.check(experiment, recorded or jax.default_backend())
        plan = planning.place(experiment, checked, folder, jax.device_count())
        if FLAGS.distributed and plan.layout.rows != jax.device_count():
            raise ConfigError(
                f"{folder} was begun on {plan.layout.rows} devices, this job has {jax.device_count()}: start as many, or "
                f"go on without --distributed"
            )
        if FLAGS.only_print:
            print("\n".join(plan_lines(plan)))
            return DONE
        stop, seconds = _catch_signals(), FLAGS.checkpoint_seconds
        done = pipeline.run(plan, module, folder, stages, stop, record(), seconds, share)
        if FLAGS.reference and done.claims and not done.missing:
            tables.reference(Results(folder), done.claims, Path(FLAGS.reference))
    except ConfigError as error:
        return _complain(str(error))
    except Interrupted as error:
        print(f"interrupted: {error}; run the same command again", file=sys.stderr, flush=True)
        return INTERRUPTED
    except (store.StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED
    if done.missing:
        print(done.missing)
    if done.claims:
        print("\n".join(tables.claims_lines(done.claims)))
        if experiment.variant:
            print(f"Not the reference settings ({experiment.variant}): the verdicts are illustrations.")
        for path in (folder / "report.html", folder / "figures", folder / "results.csv"):
            print(path)
    if FLAGS.reference and (done.missing or not done.claims):
        return _complain(f"--reference={FLAGS.reference}: nothing written; expected a complete run with stage report")
    return DONE


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
