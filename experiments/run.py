"""Runs one experiment or all of them: generates data, trains, measures, and writes verdicts, figures and a page.

  python -m experiments.run --experiment=complexity --workdir=DIR [--preset=smoke|quick|full] [--num_seeds=N] [--seed=0]
         [--settings=A,B] [--conditions=sgd] [--stage=train,measure,report] [--config.NAME=VALUE ...] [--only_print]
         [--reference=DIR] [--lanes=N]
         [--shard=i/N] [--distributed]
  python -m experiments.run --experiment=complexity --workdir=DIR --preset=confirm    what results/confirm.json has planned
  python -m experiments.run --experiment=ALL --workdir=DIR [...]      all experiments, and a score card over them

Exit status: 0 done; 75 interrupted, run the same command again; 2 bad input; 1 any other error.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import jax
from absl import app, flags

from experiments import command
from experiments.claims import EXPERIMENTS
from experiments.command import DONE, FAILED, INTERRUPTED, catch_signals, complain, quieten
from experiments.run_all import Job, run_all, write_card
from repbias_jax import confirmation, pipeline, planning, store
from repbias_jax.config import ConfigError, Experiment
from repbias_jax.population import Interrupted
from repbias_jax.provenance import record
from repbias_jax.rehearsal import rehearse
from repbias_jax.report import tables
from repbias_jax.results import Results

HEARTBEAT = 30  # seconds without a sign of life after which the processes of a distributed job give one of them up

HELP = ("--help", "-h", "-help", "--helpfull", "--helpshort")
COMMANDS = (
    ("python -m experiments.run", "trains, measures and reports one experiment, or all of them (--experiment=ALL)"),
    ("python -m experiments.benchmark", "measures speed"),
    ("python -m experiments.scorecard", "writes the score card of the committed results"),
    ("python -m repbias_jax.probe", "measures your own activations"),
)
STATUS = "0 done; 75 interrupted, run the same command again; 2 bad input; 1 any other error"
FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, f"name of an experiment; {command.ALL} runs all and writes a score card")
flags.DEFINE_string("workdir", None, "folder for results, with one subfolder per experiment")
flags.DEFINE_string(
    "preset",
    "full",
    "size of the run (--experiment=X --help lists them); confirm: the seeds that confirm.json plans",
)
flags.DEFINE_integer(
    "num_seeds", None, "number of seeds per setting, except for settings with a cap; default: set by the preset"
)
flags.DEFINE_integer("seed", None, "first seed; default: the experiment's, mostly 0", lower_bound=0)
flags.DEFINE_list("settings", [], "names of the settings to run; default: set by the preset")
flags.DEFINE_list("conditions", [], "names of the conditions to run, such as sgd; default: set by the preset")
flags.DEFINE_integer("lanes", 0, "runs trained at once in each row of a new workdir; 0: chosen for the backend")
flags.DEFINE_list("stage", list(pipeline.STAGES), "stages to run")
flags.DEFINE_bool("only_print", False, "show what would run and what it would cost here; write nothing to the workdir")
flags.DEFINE_integer("devices", 0, "virtual CPU devices for a new workdir; 0: one per core, at least two", lower_bound=0)
flags.DEFINE_float("checkpoint_seconds", 10.0, "shortest time between two checkpoints", lower_bound=0)
flags.DEFINE_string(
    "shard", None, "i/N: train and measure shard i = 0..N-1 of N independent processes; default: read from SLURM arrays "
    "(SLURM_ARRAY_TASK_*) or Kubernetes Indexed Jobs (JOB_COMPLETION_INDEX with JOB_COMPLETIONS), else everything"
)  # fmt: skip
flags.DEFINE_bool(
    "distributed", False, "train on all devices of a jax.distributed job, such as a TPU slice; needs --stage=train"
)
flags.DEFINE_enum(
    "activations",
    "keep",
    ("keep", "discard"),
    "discard: measure each chunk as soon as it is trained, then delete its activations",
)
flags.DEFINE_bool(
    "mix_code",
    False,
    "continue a workdir that was partly trained by other code or library versions; the manifest records it",
)
flags.DEFINE_string("reference", None, "folder to which the small files of a reference run are also written")
flags.DEFINE_string("compilation_cache", None, "private folder for JAX's persistent compilation cache; default: no cache")


def parse(arguments: Sequence[str]) -> list[str]:
    """Parses the flags with absl. Returns: the other arguments, including `--config.NAME=VALUE`, which `assemble` reads.

    A request for help prints it and exits; bad flags print one line and exit with status 2.
    """
    asks_help = any(a in HELP for a in arguments)
    dotted = [a for a in arguments if a.startswith("--config.")]
    try:
        rest = FLAGS([a for a in arguments if a not in dotted and a not in HELP])
        if asks_help:
            names = [] if not FLAGS.experiment else command.names_of(FLAGS.experiment)
            print(help_text(names[0] if len(names) == 1 and FLAGS.experiment != command.ALL else ""))
            sys.exit(DONE)
    except (flags.Error, ConfigError) as error:
        sys.exit(complain(str(error).replace("\n", " ")))
    return [*rest, *dotted]


def help_text(name: str = "") -> str:
    """Returns the commands, flags and experiments, one line each; with `name`, also what that experiment can set."""
    lines = ["Commands:", *(f"  {line:<38} {what}" for line, what in COMMANDS), "", "Flags of experiments.run:"]
    for flag in FLAGS.flags_by_module_dict()[str(FLAGS.find_module_defining_flag("experiment"))]:
        lines.append(f"  --{flag.name}: {flag.help} (default: {flag.default_as_str or 'none'})")
    lines += ["  --config.NAME=VALUE: changes a value; --experiment=X --help lists the names", "", "Experiments:"]
    for key, module in EXPERIMENTS.items():
        ids = ", ".join(getattr(module, "CLAIMS", {}))
        lines.append(f"  {key:<20} {module.EXPERIMENT.title}{f' ({ids})' if ids else ''}")
    lines += ["", f"Exit status: {STATUS}"]
    return "\n".join(lines + (command.experiment_help(EXPERIMENTS[name].EXPERIMENT) if name else []))


def main(arguments: Sequence[str]) -> int:
    """Reads flags, runs, prints; returns the exit status."""
    quieten()
    try:
        jobs, stages, share = _read(arguments[1:])
        discard = FLAGS.activations == "discard"
        stop = catch_signals()
        if FLAGS.only_print:
            for line in command.cost_lines([job.plan for job in jobs], stages, discard, stop):
                print(line, flush=True)
            return DONE
        recorded = record()
        if FLAGS.preset == command.CONFIRM:
            recorded |= {"confirm.json": store.checksum(command.CONFIRMATION)}

        def run_one(job: Job) -> pipeline.Outcome:
            seconds = FLAGS.checkpoint_seconds
            how = (stages, stop, recorded, seconds, share, FLAGS.mix_code, discard)
            rehearse(job.plan, job.module)
            return pipeline.run(job.plan, job.module, job.folder, *how)

        if not _is_several():
            return _end_one(jobs[0], run_one(jobs[0]))
        return _end_all(jobs, *run_all(jobs, run_one, stop), stages)
    except ConfigError as error:
        return complain(str(error))
    except Interrupted as error:
        print(f"interrupted: {error}; run the same command again", file=sys.stderr, flush=True)
        return INTERRUPTED
    except (store.StoreError, OSError) as error:
        return complain(str(error), FAILED)


def _read(arguments: Sequence[str]) -> tuple[list[Job], list[str], tuple[int, int]]:
    """Returns the chosen experiments, the stages and the shard, all checked; starts JAX, and writes nothing."""
    dotted = [a for a in arguments if a.startswith("--config.")]
    if extra := [a for a in arguments if a not in dotted]:
        raise ConfigError(f"unexpected argument {extra[0]}; flags are written --name=value")
    names, stages = command.names_of(_required("experiment")), command.stages_of(FLAGS.stage)
    for flag in ("reference", "distributed", "settings"):
        if FLAGS.experiment == command.ALL and FLAGS[flag].value:
            raise ConfigError(f"--{flag} needs one experiment, not --experiment={command.ALL}")
    chosen = (_confirming if FLAGS.preset == command.CONFIRM else _assembled)(names, dotted)
    folders = [Path(_required("workdir")) / experiment.name for _, experiment in chosen]
    share = command.share_of(FLAGS.shard, {} if FLAGS.distributed else os.environ)
    _start_jax(folders, stages, share)
    jobs = []
    for (module, experiment), folder in zip(chosen, folders, strict=True):
        store.check_workdir(folder)
        with _named(experiment.name):
            jobs.append(Job(module, _plan(experiment, folder, stages), folder))
    return jobs, stages, share


def _assembled(names: Sequence[str], dotted: Sequence[str]) -> list[tuple[ModuleType, Experiment]]:
    """Returns the named experiments with the changes that the flags make, each with its module."""
    found = []
    for name in names:
        how = (FLAGS.preset, FLAGS.num_seeds, FLAGS.seed, dotted, FLAGS.settings, FLAGS.conditions)
        with _named(name):
            found.append((EXPERIMENTS[name], command.assemble(EXPERIMENTS[name], *how)))
    return found


def _confirming(names: Sequence[str], dotted: Sequence[str]) -> list[tuple[ModuleType, Experiment]]:
    """Returns the runs that `confirm.json` plans for the named experiments, one per block of seeds, each with its module.

    Raises ConfigError if flags would change them, or if none is planned.
    """
    given = [f"--{flag}" for flag in ("seed", "num_seeds", "settings", "conditions") if FLAGS[flag].present]
    if given := [*given, *(argument.split("=")[0] for argument in dotted)]:
        raise ConfigError(f"{given[0]} with --preset=confirm: expected none, since confirm.json says what is run")
    if FLAGS.distributed:
        raise ConfigError("--distributed with --preset=confirm, which may be several runs: expected --shard instead")
    entries = confirmation.load(command.CONFIRMATION)
    planned = command.confirmations(entries)
    found = [(planned[name][0], experiment) for name in names for experiment in planned[name][1]]
    if not found:
        known = ", ".join(confirmation.family(entries))
        raise ConfigError(f"{command.CONFIRMATION}: no claim of {names[0]}; confirmed are {known}")
    return found


def _required(name: str) -> str:
    value = FLAGS[name].value
    if not value:
        raise ConfigError(f"--{name} is missing" + (f"; known: {command.known()}" if name == "experiment" else ""))
    return value


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Adds the name of an experiment to a ConfigError, if the command may be several runs."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if _is_several() else str(error)) from error


def _is_several() -> bool:
    """Returns whether the command may be several runs, with one score card over them."""
    return FLAGS.experiment == command.ALL or FLAGS.preset == command.CONFIRM


def _start_jax(folders: Sequence[Path], stages: Sequence[str], share: tuple[int, int]) -> None:
    """Sets the devices and the compilation cache, which a process can choose only once."""
    # There are at least two, because XLA compiles differently for one device, which would change bits.
    # The rows of a distributed job are those of all its processes. If there are several folders, the one with the most rows
    # decides: the others use only as many devices as they have rows, so that none of their programs changes.
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
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)  # recognises TPU slices, SLURM and Open MPI
        except ValueError as error:
            raise ConfigError(
                f"--distributed: JAX recognises no cluster here ({error}); expected one, or JAX_COORDINATOR_ADDRESS, "
                f"JAX_NUM_PROCESSES and JAX_PROCESS_ID"
            ) from error
    else:
        address, number, own = (str(v) for v in given.values())
        if not (number.isdecimal() and own.isdecimal() and int(own) < int(number)):
            raise ConfigError(f"JAX_PROCESS_ID={own}, JAX_NUM_PROCESSES={number}: expected whole numbers, ID below NUM")
        jax.distributed.initialize(address, int(number), int(own), heartbeat_timeout_seconds=HEARTBEAT)


def _plan(experiment: Experiment, folder: Path, stages: Sequence[str]) -> planning.Plan:
    """Returns the plan of one experiment, checked and laid out."""
    recorded = "" if "train" in stages else planning.recorded_backend(folder)
    checked = planning.check(experiment, recorded or jax.default_backend(), lanes=FLAGS.lanes)
    plan = planning.place(experiment, checked, folder, jax.device_count())
    if FLAGS.distributed and plan.layout.rows != jax.device_count():
        raise ConfigError(
            f"{folder} was begun on {plan.layout.rows} devices, this job has {jax.device_count()}: start as many, or "
            f"go on without --distributed"
        )
    return plan


def _end_one(job: Job, done: pipeline.Outcome) -> int:
    """Prints the results of one experiment and writes its reference files; returns the exit status."""
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


def _end_all(jobs: Sequence[Job], failed: Sequence[str], waiting: Sequence[str], stages: Sequence[str]) -> int:
    """Writes the score card over several runs, and the reference files of confirmations; returns the exit status."""
    entries, modules, family = jobs[0].plan.experiment.confirmed, {job.name: job.module for job in jobs}, None
    if entries:  # the card covers all that is confirmed, whichever experiments run now
        planned = command.confirmations(entries).values()
        modules = {experiment.name: module for module, blocks in planned for experiment in blocks}
        family = confirmation.family(entries)
    if "report" in stages:
        write_card(modules, failed, Path(FLAGS.workdir), family)
    if entries and FLAGS.reference and "report" in stages:
        for job in jobs:
            if job.name not in (*failed, *waiting):
                rows = tables.read_claims(job.folder)
                tables.reference(Results(job.folder), rows, Path(FLAGS.reference) / job.name)
    if failed:
        return complain(f"{len(failed)} of {len(jobs)} experiments failed: {', '.join(failed)}", FAILED)
    return DONE


if __name__ == "__main__":
    app.run(command.prompt(main), flags_parser=parse)
