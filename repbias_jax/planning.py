"""Plans a run: checks names, ranges and shapes, lays out the runs and estimates their cost. Nothing is written here."""

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from repbias_jax import devices, layout, pairs, store, training
from repbias_jax.config import (
    Config,
    ConfigError,
    Experiment,
    check_types,
    fields_of,
    flatten,
    num_outputs,
    safe_name,
    sparse,
)
from repbias_jax.confirmation import FIRST_SEED
from repbias_jax.data import DATA, output_values, reported
from repbias_jax.layout import Chunk, Group, Layout
from repbias_jax.models import MODELS
from repbias_jax.models.family import resolve
from repbias_jax.probes import PROBES

MAX_SEED = training.SHARED_SEED
MAX_RUNS = 1_000_000
MAX_STEPS = 2**31 - 1  # steps are int32


class Plan(NamedTuple):
    """What will be run: the experiment, its configurations and groups, and how its runs are laid out."""

    experiment: Experiment
    configs: dict[str, Config]
    groups: list[Group]
    layout: Layout
    backend: str

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, in order."""
        return layout.chunks_of(self.groups, self.layout)


def check(experiment: Experiment, backend: str, lanes: int = 0) -> tuple[dict[str, Config], list[Group], str]:
    """Checks types, ranges, names and shapes; nothing is written.

    Args:
      experiment: with its overrides applied.
      backend: the backend that trains.
      lanes: runs that share a device; 0: what suits the backend and the size of a run.

    Returns:
      The configurations by full name of the setting, the groups, and the backend.

    Raises:
      ConfigError: something is wrong; the message says what, what was expected and where.
    """
    if experiment.num_seeds < 1:
        raise ConfigError(f"--num_seeds={experiment.num_seeds}: expected at least 1")
    if lanes < 0:
        raise ConfigError(f"--lanes={lanes}: expected at least 1, or 0 to choose for the backend")
    known = [setting for setting, _ in experiment.settings]
    for name, cap in experiment.seed_caps:
        if name not in known or cap < 1:
            raise ConfigError(f"seed_caps: {name}={cap}: expected at least 1 for one of {', '.join(known)}")
    for name, first, count in experiment.seed_blocks:
        if name not in known or not 1 <= count <= MAX_RUNS or not 0 <= first <= MAX_SEED - count:
            raise ConfigError(
                f"seed_blocks: {name}: {count} seeds from {first}: expected at least 1 below {MAX_SEED} for one of "
                f"{', '.join(known)}"
            )
    if experiment.seed < 0:
        raise ConfigError(f"--seed={experiment.seed}: expected seeds from 0 to {MAX_SEED - 1}")
    if experiment.seed + experiment.num_seeds > MAX_SEED:
        raise ConfigError(
            f"--seed={experiment.seed} and --num_seeds={experiment.num_seeds}: the last seed is "
            f"{experiment.seed + experiment.num_seeds - 1}; expected seeds from 0 to {MAX_SEED - 1}"
        )
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError("JAX_THREEFRY_PARTITIONABLE is off: expected JAX's default, on which the drawn data depend")
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError("JAX_ENABLE_X64 is set: expected JAX's default of 32 bits, for which numbers are reproducible")
    for name in experiment.probes:
        if name not in PROBES or experiment.probes.count(name) > 1:
            raise ConfigError(f"probe {name}: expected each at most once, of {', '.join(PROBES)}")
    configs = experiment.configs()
    for name in (experiment.name, *configs):
        safe_name(name, "experiment and settings")  # they name folders
    for name, config in configs.items():
        _check_config(config)
        _check_probes(name, config, (*experiment.probes, *config.keep.probes))
    for name in [name for name in PROBES if PROBES[name].kind == "pair"]:
        _check_pairs({n: c for n, c in configs.items() if name in (*experiment.probes, *c.keep.probes)})
    groups = layout.groups_of(configs, backend, lanes)
    runs = layout.count_runs(groups, Layout(1, experiment.seed, (experiment.num_seeds,), experiment.caps()))
    if runs > MAX_RUNS:
        raise ConfigError(f"--num_seeds={experiment.num_seeds}: {runs:,} runs; expected at most {MAX_RUNS:,}")
    _check_reserved(experiment)
    return configs, groups, backend


def _check_reserved(experiment: Experiment) -> None:
    """Raises ConfigError if an experiment whose verdicts are not planned uses seeds that are kept for confirmations."""
    last = experiment.seed + experiment.num_seeds - 1
    if experiment.gives_verdict and not experiment.confirmed:
        raise ConfigError(
            f"{experiment.name}: its full preset gives planned verdicts, which only python -m experiments.run does; "
            f"expected a smaller preset, some of its settings, or a num_seeds or seed of your own"
        )
    if not experiment.confirmed and last >= FIRST_SEED:
        raise ConfigError(
            f"--seed={experiment.seed} and --num_seeds={experiment.num_seeds}: the last seed is {last}; expected all below "
            f"{FIRST_SEED}, since the others are kept for --preset=confirm, which looks at them once"
        )


def _check_config(config: Config) -> None:
    check_types(config)
    for kind, name, known in (("task", config.task.name, DATA), ("model", config.model.name, MODELS)):
        if name not in known:
            raise ConfigError(f"config.{kind}.name={name}: unknown; known: {', '.join(known)}")
    source, family = DATA[config.task.name], MODELS[config.model.name]
    for kind, value, options in (("task", config.task, source.OPTIONS), ("model", config.model, family.options)):
        if type(value) is not options:
            raise ConfigError(
                f"config.{kind}: {type(value).__name__} with the name {value.name}; expected {options.__name__}"
            )
    source.check(config.task)
    family.check(config.model, config.task)
    task, training_ = config.task, config.training
    _check_length(config)
    if config.model.head == "unit" and set(output_values(task)) != {2}:
        raise ConfigError(
            f"config.model.head=unit: outputs have {', '.join(map(str, output_values(task)))} values; expected 2 for all"
        )
    views, places = family.views(config.model, task), family.places(config.model, task)
    for name in (*views, *source.factors(task)):
        safe_name(name, "views and factors")
    for option, names in (("along", (config.keep.along,)), ("views", config.keep.views)):
        for name in names:
            if name not in (*places, *views):
                known = ", ".join((*places, *views))
                raise ConfigError(f"config.keep.{option}={name}: unknown view; known: {known}")
    if len(resolve(config.keep.along, places, views)) != 1:
        raise ConfigError(f"config.keep.along={config.keep.along}: expected one view; known: {', '.join(views)}")
    if training_.batch_size > task.num_train:
        raise ConfigError(
            f"config.training.batch_size={training_.batch_size}: expected at most config.task.num_train={task.num_train}"
        )
    if task.num_test > task.num_train:
        raise ConfigError(f"config.task.num_test={task.num_test}: expected at most config.task.num_train={task.num_train}")
    phases = config.num_phases
    for row in training_.loss_weights:
        if len(row) != num_outputs(task):
            raise ConfigError(f"config.training.loss_weights: expected {num_outputs(task)} weights a phase, one an output")
    ends = training_.phase_ends or (1.0,)
    rising = not config.num_steps or all(a < b for a, b in itertools.pairwise([0, *config.phase_steps]))
    if len(ends) != phases or ends[-1] != 1 or not rising:
        raise ConfigError(
            f"config.training.phase_ends={training_.phase_ends}: expected {phases} rising shares of training, the last 1"
        )
    if config.optimizer.reset_phase >= phases:
        raise ConfigError(
            f"config.optimizer.reset_phase={config.optimizer.reset_phase}: expected less than the {phases} phases there are"
        )
    if training_.dense and not (len(training_.dense) == 2 and training_.dense[0] < training_.dense[1]):
        raise ConfigError(f"config.training.dense={training_.dense}: expected two rising shares of training, or none")


def _check_length(config: Config) -> None:
    """Raises ConfigError if training has more steps, or points of curves, than can be counted and kept."""
    distances = [config.training.observe_every, *([config.training.dense_every] if config.training.dense else [])]
    distances += [every for every in (config.keep.every, config.keep.every_late) if every]
    points = config.num_steps // min(distances)
    if config.num_steps > MAX_STEPS or points > MAX_RUNS:
        raise ConfigError(
            f"config.training.epochs={config.training.epochs}: {config.num_steps:,} steps, {points:,} points of curves or "
            f"snapshots; expected at most {MAX_STEPS:,} and {MAX_RUNS:,}"
        )


def _check_probes(name: str, config: Config, probes: Sequence[str]) -> None:
    """Raises ConfigError if a probe would not find what it reads."""
    task, family = config.task, MODELS[config.model.name]
    views, places = family.views(config.model, task), family.places(config.model, task)
    for probe in config.keep.probes:
        if probe not in PROBES:
            raise ConfigError(f"config.keep.probes={probe} (setting {name}): unknown; known: {', '.join(PROBES)}")
    stored = {v for n in (*config.keep.views, config.keep.along) for v in resolve(n, places, views)}
    known = DATA[task.name].probe_factors(task, config.keep.probe_set)
    for probe in probes:
        wanted = {v for place in PROBES[probe].views for v in resolve(place, places, views)}
        if PROBES[probe].views and not wanted:
            raise ConfigError(
                f"config.keep.probes={probe} (setting {name}): reads {', '.join(PROBES[probe].views)}, of which "
                f"config.model.name={config.model.name} has no view with these options; expected another probe or model"
            )
        lacking = sorted(wanted - stored) if config.keep.views else []
        if lacking:
            raise ConfigError(
                f"config.keep.views={','.join(config.keep.views)} (setting {name}): expected also {', '.join(lacking)}, "
                f"which the probe {probe} reads"
            )
        fixed = sorted(v for v in wanted if views[v].spread is None)
        if PROBES[probe].kind == "intervention" and fixed:
            raise ConfigError(
                f"config.model.name={config.model.name} (setting {name}): probe {probe} changes {', '.join(fixed)}, whose "
                f"changes cannot be spread over a site; expected another probe or model"
            )
        unknown = [output for output in reported(task) if output not in known]
        if PROBES[probe].kind == "intervention" and PROBES[probe].labelled and unknown:
            raise ConfigError(
                f"config.task.outputs={','.join(reported(task))} (setting {name}): probe {probe} reads reported factors, "
                f"and the probe set {config.keep.probe_set} does not have the factor {unknown[0]}; expected outputs among "
                f"{', '.join(known)}"
            )


def _check_pairs(configs: Mapping[str, Config]) -> None:
    """Raises ConfigError unless all models of one condition have the same probe examples."""
    first: dict[str, tuple[str, Any]] = {}
    for name, config in configs.items():
        if not config.keep.shared:
            raise ConfigError(
                f"config.keep.shared=false (setting {name}): expected true, since pairs of models are compared"
            )
        # Only what determines the probe examples is compared: not the targets, nor the numbers of other examples.
        own = dataclasses.replace(config.task, outputs=(), exposure=(), output_order=(), num_train=1, num_test=2)
        before, other = first.setdefault(name.split(".")[0], (name, (own, config.keep.probe_set)))
        if other != (own, config.keep.probe_set):
            raise ConfigError(
                f"settings {before} and {name} see different probe examples: expected the same task but for its outputs, "
                f"since pairs of models are compared"
            )


def recorded_rows(folder: Path) -> int:
    """Returns the rows of a workdir's layout; 0 if it has no manifest yet.

    On CPU the number of virtual devices should be the same.
    """
    path = folder / "manifest.json"
    return int(store.read_json(path, "train")["layout"]["rows"]) if path.exists() else 0


def recorded_backend(folder: Path) -> str:
    """Returns the backend that a workdir was trained on; empty if it has no manifest yet.

    Other machines may measure and report it.
    """
    path = folder / "manifest.json"
    return store.read_json(path, "train")["train_covers"]["runtime"]["backend"] if path.exists() else ""


def place(experiment: Experiment, checked: tuple, folder: Path, num_devices: int) -> Plan:
    """Lays the runs out: as the workdir has them, or in a new workdir with at most one row per device.

    Raises:
      ConfigError: the workdir holds another configuration or more seeds, or, for a confirmation, another number of seeds.
    """
    configs, groups, backend = checked
    # On CPU the program for one device and its bits differ from those for several. Processes of one job share all rows.
    least = num_devices if jax.process_count() > 1 else min(2, num_devices) if backend == "cpu" else 1
    caps, firsts = experiment.caps(), experiment.first_seeds()
    laid = Layout(num_devices, experiment.seed, (experiment.num_seeds,), caps, least, firsts)
    plan = Plan(experiment, configs, groups, laid, backend)
    if not (folder / "manifest.json").exists():
        return plan
    manifest = store.read_json(folder / "manifest.json", "train")
    _same(folder, manifest["train_covers"], plan)
    extents = tuple(manifest["layout"]["extents"])
    if experiment.confirmed and extents != (experiment.num_seeds,):
        raise ConfigError(
            f"{folder} holds {extents[-1]} seeds, and confirm.json plans {experiment.num_seeds}, to be looked at once: "
            f"expected another workdir"
        )
    if experiment.num_seeds < extents[-1]:
        raise ConfigError(
            f"{folder} holds {extents[-1]} seeds, but the command has --num_seeds={experiment.num_seeds}: use at least "
            f"{extents[-1]}, or another workdir"
        )
    if experiment.num_seeds > extents[-1]:
        extents = (*extents, experiment.num_seeds)
    rows = manifest["layout"]["rows"]
    return plan._replace(
        layout=laid._replace(rows=rows, extents=extents, least_rows=manifest["layout"].get("least_rows", rows))
    )


def full_settings(plan: Plan) -> dict[str, Any]:
    """Returns all options of all settings, the runtime and the seeds, as the manifest keeps them."""
    settings = {name: {k: _plain(v) for k, v in flatten(config).items()} for name, config in plan.configs.items()}
    return {"settings": settings, **_runtime(plan)}


def _runtime(plan: Plan) -> dict[str, Any]:
    lanes = {name: group.lanes for group in plan.groups for name in group.settings}
    runtime = {"backend": plan.backend, "precision": plan.groups[0].static.runtime.precision, "lanes": lanes}
    caps = {"caps": dict(plan.layout.caps)} if plan.layout.caps else {}
    firsts = {"first_seeds": dict(plan.layout.first_seeds)} if plan.layout.first_seeds else {}
    return {"runtime": runtime, "seed": plan.layout.seed, **caps, **firsts}


def covered(plan: Plan) -> dict[str, dict[str, Any]]:
    """Returns what each stage depends on: the contents of its fingerprint. For settings, what differs from the defaults."""
    settings = {name: {k: _plain(v) for k, v in sparse(config).items()} for name, config in plan.configs.items()}
    train = {"format": store.FORMAT, "settings": settings, **_runtime(plan)}
    here = Path(__file__).parent
    probes = {
        "probes": list(plan.experiment.probes),
        "source": source_of(here / "probes", here / "measure.py", here / "pairs.py"),
    }
    measured = {"train": train, "seeds": list(plan.layout.extents), **probes}
    claims: dict[str, Any] = {"source": source_of(here / "report", here / "statistics.py")}
    if plan.experiment.confirmed:
        entries = [dataclasses.astuple(entry) for entry in plan.experiment.confirmed]
        claims["confirmed"] = [entries, source_of(here / "confirmation.py")]
    return {
        "train": {"train": train, "seeds": list(plan.layout.extents)},
        "measure": measured,
        "report": {"measure": measured, **claims},
    }


def source_of(*places: Path) -> str:
    """Returns a digest of code, so that a changed probe or claim reruns its stage and those after it."""
    files = sorted(f for p in places for f in (p.rglob("*") if p.is_dir() else [p]) if f.suffix in (".py", ".html"))
    return store.digest([store.checksum(f) for f in files])


def sources_of(module: ModuleType) -> list[Path]:
    """Returns the files of a module and of those in its folder whose modules, functions or constants it uses, in turn."""
    found, waiting = set(), [module]
    while waiting:
        one = waiting.pop()
        path = Path(str(one.__file__))
        if path in found or path.parent != Path(str(module.__file__)).parent:
            continue
        found.add(path)
        names = [v.__name__ if isinstance(v, ModuleType) else getattr(v, "__module__", "") for v in vars(one).values()]
        waiting += [sys.modules[name] for name in names if getattr(sys.modules.get(name), "__file__", None)]
    return sorted(found)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _same(folder: Path, old: Mapping[str, Any], plan: Plan) -> None:
    """Raises ConfigError naming the first field in which two trainings differ; options added later had their defaults."""
    new = full_settings(plan)
    pairs = [("the settings", sorted(old["settings"]), sorted(new["settings"])), ("the seed", old["seed"], new["seed"])]
    pairs += [(f"runtime.{k}", old["runtime"].get(k), v) for k, v in new["runtime"].items()]
    for key, what in (("caps", "seed_caps"), ("first_seeds", "first_seeds")):
        pairs.append((what, old.get(key, {}), new.get(key, {})))
    for name in sorted(set(old["settings"]) & set(new["settings"])):
        defaults = {k: _plain(field.default) for k, (_, field) in fields_of(plan.configs[name]).items()}
        before = defaults | old["settings"][name]
        pairs += [(f"config.{k} (setting {name})", before[k], v) for k, v in new["settings"][name].items()]
    for what, before, now in pairs:
        if before != now:
            raise ConfigError(
                f"{folder} was trained with {what} = {before}, but this run asks for {now}: use the same value, or "
                f"another workdir"
            )


def settings_table(plan: Plan) -> tuple[list[str], list[list[Any]]]:
    """Returns the header and rows of `settings.csv`: one row per setting.

    After the columns that identify a setting there is one for each option of any family, then places, label-fed views and
    twins.
    """
    names = list(dict.fromkeys(name for config in plan.configs.values() for name in flatten(config)))
    rows = []
    for group in plan.groups:
        views = training.views_of(group.static)
        stored = training.stored_views(group.static)
        fed = " ".join(name for name in stored if views[name].label_fed)
        found = training.places_of(group.static).items()
        places = ";".join(f"{p}={' '.join(v for v in own if v in stored)}" for p, own in found)
        for name in group.settings:
            config = plan.configs[name]
            own = {k: str(_plain(v)) for k, v in flatten(config).items()}
            first = [
                name,
                name.split(".")[0],
                group.name,
                config.num_steps,
                " ".join(reported(config.task)),
                " ".join(stored),
            ]
            known = DATA[config.task.name].probe_factors(config.task, config.keep.probe_set).items()
            twins = ";".join(f"{factor.of}={factor_name}" for factor_name, factor in known if factor.role == "twin")
            rows.append([*first, *(own.get(n, "") for n in names), places, fed, twins])
    return ["setting", "column", "group", "num_steps", "outputs", "sites", *names, "places", "label_fed", "twins"], rows


def estimate(plan: Plan, discard: bool = False) -> dict[str, float]:
    """Estimates what a run will cost.

    Args:
      plan: what will be run.
      discard: whether the activations of a chunk are removed once it is measured.

    Returns:
      chunks, compilations, runs, run_steps, disk_bytes, and device_bytes, the memory of the fullest device.
    """
    total: dict[str, float] = dict.fromkeys(
        ("chunks", "compilations", "runs", "run_steps", "disk_bytes", "device_bytes"), 0.0
    )
    chunks = plan.chunks
    total["chunks"] = len(chunks)
    largest = 0.0
    counts: dict[str, int] = {}
    rows: dict[str, set[int]] = {}
    for chunk in chunks:
        counts[chunk.group.name] = counts.get(chunk.group.name, 0) + len(chunk.runs)
        rows.setdefault(chunk.group.name, set()).add(chunk.rows)
    for group in plan.groups:
        static, config, dials = group.static, group.static.config, group.dials[group.settings[0]]
        runs = counts.get(group.name, 0)
        if not runs:
            continue
        sizes, kept = training.view_sizes(static, dials), layout.snapshots_by_view(static)
        by_view = {n: 4 * len(kept[n]) * examples * units for n, (examples, units) in sizes.items()}
        activations = sum(by_view.values())
        own = layout.probes_of(static, plan.experiment.probes)
        always = pairs.views_read(own, training.places_of(static), training.views_of(static))
        state_bytes, data_bytes = _bytes_of_run(static, dials)
        looking = sum(4 * examples * units for examples, units in sizes.values())
        kept, read = training.kept_bytes(static, dials), training.read_at_once(static, dials)
        # Where no gradient is computed, .14 to .43 of what it would keep was there at once in three programs.
        reading = 0.5 * min(max(config.task.num_test, config.task.num_probe), read) * kept / config.training.batch_size
        at_once = 4 * state_bytes + 2 * data_bytes + looking + max(kept, reading)
        total["compilations"] += 5 * len(rows[group.name])
        total["runs"] += runs
        total["run_steps"] += runs * config.num_steps
        stays = sum(size for name, size in by_view.items() if name in always or not discard)
        total["disk_bytes"] += runs * (2 * state_bytes + stays)
        largest = max(largest, max(rows[group.name]) * group.lanes * activations)
        per_device = max(rows[group.name]) / min(max(rows[group.name]), jax.device_count()) * group.lanes
        total["device_bytes"] = max(total["device_bytes"], per_device * at_once)
    total["disk_bytes"] += largest if discard else 0.0
    return total


def check_memory(plan: Plan, cost: Mapping[str, float]) -> None:
    """Raises ConfigError if training needs more memory than there is. Args: cost, from `estimate`."""
    rows = max((chunk.rows for chunk in plan.chunks), default=1)
    shared = min(rows, jax.local_device_count()) if plan.backend == "cpu" else 1  # devices of a CPU share its memory
    need, there = shared * cost["device_bytes"], devices.memory_bytes()
    if there and need > there:
        raise ConfigError(
            f"training needs about {need / 1e9:.1f} GB of memory at once, and {there / 1e9:.1f} GB are there: use a "
            f"smaller model, --lanes, --devices, config.task.num_train or config.task.num_probe"
        )


def _bytes_of_run(static: Any, dials: Any) -> tuple[float, float]:
    """Returns the bytes of a run's state and of its data."""
    config, seed = static.config, jax.ShapeDtypeStruct((), jnp.int32)
    data = jax.eval_shape(lambda d, s: training.make_data(config.task, config.keep.probe_set, d, s), dials, seed)
    state = jax.eval_shape(lambda d, s: training.init(static, d, s), dials, seed)
    sizes = [float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))) for tree in (state, data)]
    return sizes[0], sizes[1]
