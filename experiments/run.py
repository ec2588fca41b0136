"""Runs an experiment, or all of them: data, training, measuring, verdicts, figures and a page.

  python -m experiments.run --experiment=complexity --workdir=DIR [--preset=smoke|quick|full] [--num_seeds=N] [--seed=0]
         [--stage=train,measure,report] [--config.NAME=VALUE ...] [--only_print] [--reference=DIR]
         [--shard=i/N] [--distributed]
  python -m experiments.run --experiment=ALL --workdir=DIR [...]      every experiment, and a score card over them

Exit status: 0 done; 75 interrupted, run the same command again; 2 bad input; 1 anything else.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import app, flags

from experiments import EXPERIMENTS, request
from experiments.process import DONE, FAILED, INTERRUPTED, catch_signals, complain, quieten, record
from experiments.run_all import Job, run_all, write_card
from repbias_jax import pipeline, planning, store
from repbias_jax.config import ConfigError, Experiment, describe_type, fields_of
from repbias_jax.measure import Results
from repbias_jax.population import Interrupted
from repbias_jax.report import tables

HEARTBEAT = 30  # seconds of silence after which the processes of a distributed job give one of them up

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, f"name of an experiment, or {request.ALL}: every one and a score card")
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
        sys.exit(complain(str(error).replace("\n", " ")))
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


def main(arguments: Sequence[str]) -> int:
    """Reads flags, runs, prints; returns the exit status."""
    quieten()
    try:
        jobs, stages, share = _read(arguments[1:])
        if FLAGS.only_print:
            print("\n".join(request.cost_lines([job.plan for job in jobs])))
            return DONE
        stop, recorded = catch_signals(), record()

        def run_one(job: Job) -> pipeline.Outcome:
            seconds = FLAGS.checkpoint_seconds
            return pipeline.run(job.plan, job.module, job.folder, stages, stop, recorded, seconds, share)

        if FLAGS.experiment != request.ALL:
            return _end_one(jobs[0], run_one(jobs[0]))
        return _end_all(jobs, run_all(jobs, run_one, stop), stages)
    except ConfigError as error:
        return complain(str(error))
    except Interrupted as error:
        print(f"interrupted: {error}; run the same command again", file=sys.stderr, flush=True)
        return INTERRUPTED
    except (store.StoreError, OSError) as error:
        return complain(str(error), FAILED)


def _read(arguments: Sequence[str]) -> tuple[list[Job], list[str], tuple[int, int]]:
    """The experiments that were asked for, the stages and the share: all of it checked, and nothing written."""
    dotted = [a for a in arguments if a.startswith("--config.")]
    if extra := [a for a in arguments if a not in dotted]:
        raise ConfigError(f"unexpected argument {extra[0]}; flags are written --name=value")
    names, stages = request.names_of(_required("experiment")), request.stages_of(FLAGS.stage)
    for flag in ("reference", "distributed"):
        if FLAGS.experiment == request.ALL and FLAGS[flag].value:
            raise ConfigError(f"--{flag} needs one experiment, not --experiment={request.ALL}")
    experiments = {}
    for name in names:
        with _named(name):
            experiments[name] = request.assemble(EXPERIMENTS[name], FLAGS.preset, FLAGS.num_seeds, FLAGS.seed, dotted)
    folders = {name: Path(_required("workdir")) / name for name in names}
    share = request.share_of(FLAGS.shard, {} if FLAGS.distributed else os.environ)
    _start_jax(list(folders.values()), stages, share)
    jobs = []
    for name in names:
        planning.check_workdir(folders[name])
        with _named(name):
            jobs.append(Job(EXPERIMENTS[name], _plan(experiments[name], folders[name], stages), folders[name]))
    return jobs, stages, share


def _required(name: str) -> str:
    value = FLAGS[name].value
    if not value:
        raise ConfigError(f"--{name} is missing" + (f"; known: {request.known()}" if name == "experiment" else ""))
    return value


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Says which of several experiments cannot work."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if FLAGS.experiment == request.ALL else str(error)) from error


def _start_jax(folders: Sequence[Path], stages: Sequence[str], share: tuple[int, int]) -> None:
    """Devices and compilation cache, which are chosen once a process."""
    # At least two: XLA compiles for one device in another way, which would change bits.
    # A distributed job's rows are those of all its processes. Of several folders the one with the most rows decides:
    # the others use as many of the devices as they have rows, so that none of their programs changes.
    recorded_rows = 0 if FLAGS.distributed else max(planning.recorded_rows(folder) for folder in folders)
    jax.config.update("jax_num_cpu_devices", recorded_rows or FLAGS.devices or max(2, os.cpu_count() or 1))
    if FLAGS.distributed:
        _join(stages, share)
    if FLAGS.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", f"{FLAGS.compilation_cache}/jax-{jax.__version__}")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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


def _plan(experiment: Experiment, folder: Path, stages: Sequence[str]) -> planning.Plan:
    """One experiment, checked and laid out."""
    recorded = "" if "train" in stages else planning.recorded_backend(folder)
    checked = planning.check(experiment, recorded or jax.default_backend())
    plan = planning.place(experiment, checked, folder, jax.device_count())
    if FLAGS.distributed and plan.layout.rows != jax.device_count():
        raise ConfigError(
            f"{folder} was begun on {plan.layout.rows} devices, this job has {jax.device_count()}: start as many, or "
            f"go on without --distributed"
        )
    return plan


def _end_one(job: Job, done: pipeline.Outcome) -> int:
    """What one experiment leaves behind, printed; returns the exit status."""
    complete = bool(done.claims and not done.missing)
    if FLAGS.reference and complete:
        tables.reference(Results(job.folder), done.claims, Path(FLAGS.reference))
    if done.missing:
        print(done.missing)
    if done.claims:
        print("\n".join(tables.claims_lines(done.claims)))
        if variant := job.plan.experiment.variant:
            print(f"Not the reference settings ({variant}): the verdicts are illustrations.")
        for path in (job.folder / "report.html", job.folder / "figures", job.folder / "results.csv"):
            print(path)
    if FLAGS.reference and not complete:
        return complain(f"--reference={FLAGS.reference}: nothing written; expected a complete run with stage report")
    return DONE


def _end_all(jobs: Sequence[Job], failed: Sequence[str], stages: Sequence[str]) -> int:
    """What all experiments leave behind; returns the exit status."""
    if "report" in stages:
        write_card(jobs, failed, Path(FLAGS.workdir))
    if failed:
        return complain(f"{len(failed)} of {len(jobs)} experiments failed: {', '.join(failed)}", FAILED)
    return DONE


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
