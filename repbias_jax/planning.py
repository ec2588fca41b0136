"""What will be run: names, ranges and shapes checked, runs laid out, and what it will cost. Nothing is written here."""

import dataclasses
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from repbias_jax import population, store, training
from repbias_jax.config import Config, ConfigError, Experiment, Runtime, check_types, flatten, num_outputs, safe_name
from repbias_jax.data import DATA
from repbias_jax.models import MODELS
from repbias_jax.population import Chunk, Group, Layout
from repbias_jax.probes import PROBES

LANES = {"cpu": Runtime.lanes, "gpu": 64, "tpu": 16}  # measured on CPU; GPU and TPU: a place to start
MAX_SEED = training.SHARED_SEED


class Plan(NamedTuple):
    """What will be run."""

    experiment: Experiment
    configs: dict[str, Config]
    groups: list[Group]
    layout: Layout
    runtime: Runtime

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, in order."""
        return population.chunks_of(self.groups, self.layout)


def check(experiment: Experiment, backend: str) -> tuple[dict[str, Config], list[Group], Runtime]:
    """Checks types, ranges, names and shapes; nothing is written.

    Raises:
      ConfigError: what was wrong, what was expected and where.
    """
    if experiment.num_seeds < 1:
        raise ConfigError(f"--num_seeds={experiment.num_seeds}: expected at least 1")
    known = [setting for setting, _ in experiment.settings]
    for name, cap in experiment.seed_caps:
        if name not in known or cap < 1:
            raise ConfigError(f"seed_caps: {name}={cap}: expected at least 1 for one of {', '.join(known)}")
    if experiment.seed + experiment.num_seeds > MAX_SEED:
        raise ConfigError(f"--seed={experiment.seed}: expected seeds below {MAX_SEED}")
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError("JAX_THREEFRY_PARTITIONABLE is off: expected JAX's default, which decides what is drawn")
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError("JAX_ENABLE_X64 is set: expected JAX's default of 32 bits, for which numbers are reproducible")
    for name in experiment.probes:
        if name not in PROBES:
            raise ConfigError(f"unknown probe {name}; known: {', '.join(PROBES)}")
    runtime = Runtime(backend, LANES.get(backend, 8))
    configs = experiment.configs()
    for name in (experiment.name, *configs):
        safe_name(name, "experiment and settings")  # they name folders
    for config in configs.values():
        _check_config(config)
    if any(PROBES[name].kind == "pair" for name in experiment.probes):
        _check_pairs(configs)
    groups = population.groups_of(configs, runtime)
    for group in groups:
        sites, along = population.sites_of(group.static, group.dials[group.settings[0]]), group.static.config.keep.along
        for name in (*sites, *DATA[group.static.config.task.name].feature_names(group.static.config.task)):
            safe_name(name, "sites and features")
        if along not in ("last_hidden", *sites):
            raise ConfigError(f"config.keep.along={along}: unknown site; known: last_hidden, {', '.join(sites)}")
    return configs, groups, runtime


def _check_config(config: Config) -> None:
    check_types(config)
    for kind, name, known in (("task", config.task.name, DATA), ("model", config.model.name, MODELS)):
        if name not in known:
            raise ConfigError(f"config.{kind}.name={name}: unknown; known: {', '.join(known)}")
    DATA[config.task.name].check(config.task)
    task, training_ = config.task, config.training
    if not config.model.widths:
        raise ConfigError("config.model.widths is empty: expected at least one hidden layer, such as 128,64")
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
    rising = all(a < b for a, b in itertools.pairwise([0, *(round(end * config.num_steps) for end in ends)]))
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


def _check_pairs(configs: Mapping[str, Config]) -> None:
    """Models of one column are compared on the same probe examples."""
    first: dict[str, tuple[str, Any]] = {}
    for name, config in configs.items():
        if not config.keep.shared:
            raise ConfigError(
                f"config.keep.shared=false (setting {name}): expected true, since pairs of models are compared"
            )
        # What decides the probe examples; the rest says what is asked for, or how much.
        own = dataclasses.replace(config.task, outputs=(), exposure=(), output_order=(), num_train=1, num_test=2)
        before, other = first.setdefault(name.split(".")[0], (name, (own, config.keep.probe_set)))
        if other != (own, config.keep.probe_set):
            raise ConfigError(
                f"settings {before} and {name} see different probe examples: expected the same task but for its outputs, "
                f"since pairs of models are compared"
            )


def recorded_rows(folder: Path) -> int:
    """Rows of a workdir's layout, which on CPU should also be its number of virtual devices; 0: there is none yet."""
    path = folder / "manifest.json"
    return int(store.read_json(path, "train")["layout"]["rows"]) if path.exists() else 0


def recorded_backend(folder: Path) -> str:
    """Backend that a workdir was trained on; empty: there is none yet. Other machines may measure and report it."""
    path = folder / "manifest.json"
    return store.read_json(path, "train")["train_covers"]["runtime"]["backend"] if path.exists() else ""


def place(experiment: Experiment, checked: tuple, folder: Path, devices: int) -> Plan:
    """Lays the runs out: as the workdir has them, or anew, a row a device.

    Raises:
      ConfigError: the workdir holds another configuration, or more seeds.
    """
    configs, groups, runtime = checked
    layout = Layout(devices, runtime.lanes, experiment.seed, (experiment.num_seeds,), experiment.caps())
    plan = Plan(experiment, configs, groups, layout, runtime)
    if not (folder / "manifest.json").exists():
        return plan
    manifest = store.read_json(folder / "manifest.json", "train")
    _same(folder, manifest["train_covers"], covered(plan)["train"])
    extents = tuple(manifest["layout"]["extents"])
    if experiment.num_seeds < extents[-1]:
        raise ConfigError(
            f"{folder} holds {extents[-1]} seeds, but --num_seeds={experiment.num_seeds} was asked for: ask for at least "
            f"{extents[-1]}, or use another --workdir"
        )
    if experiment.num_seeds > extents[-1]:
        extents = (*extents, experiment.num_seeds)
    return plan._replace(layout=layout._replace(rows=manifest["layout"]["rows"], extents=extents))


def covered(plan: Plan) -> dict[str, dict[str, Any]]:
    """What each stage depends on: the contents of its fingerprint."""
    settings = {name: {k: _plain(v) for k, v in flatten(config).items()} for name, config in plan.configs.items()}
    runtime = dataclasses.asdict(plan.runtime)
    train = {"format": store.FORMAT, "settings": settings, "runtime": runtime, "seed": plan.layout.seed}
    train |= {"caps": dict(plan.layout.caps)} if plan.layout.caps else {}
    here = Path(__file__).parent
    probes = {
        "probes": list(plan.experiment.probes),
        "source": source_of(here / "probes", here / "measure.py", here / "pairs.py"),
    }
    measured = {"train": train, "seeds": list(plan.layout.extents), **probes}
    claims = {"source": source_of(here / "report", here / "statistics.py")}
    return {
        "train": {"train": train, "seeds": list(plan.layout.extents)},
        "measure": measured,
        "report": {"measure": measured, **claims},
    }


def source_of(*places: Path) -> str:
    """Digest of code, so that a changed probe or claim reruns its stage and what follows it."""
    files = sorted(f for p in places for f in (p.rglob("*") if p.is_dir() else [p]) if f.suffix in (".py", ".html"))
    return store.digest([store.checksum(f) for f in files])


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises ConfigError naming the first field in which two trainings differ."""
    new = new["train"]
    pairs = [("the seed", old["seed"], new["seed"])]
    pairs += [(f"runtime.{k}", old["runtime"].get(k), v) for k, v in new["runtime"].items()]
    pairs.append(("settings", sorted(old["settings"]), sorted(new["settings"])))
    pairs.append(("seed_caps", old.get("caps", {}), new.get("caps", {})))
    for name in sorted(set(old["settings"]) & set(new["settings"])):
        fields = new["settings"][name]
        pairs += [(f"config.{k} (setting {name})", old["settings"][name].get(k), v) for k, v in fields.items()]
    for what, before, now in pairs:
        if before != now:
            raise ConfigError(
                f"{folder} was trained with {what} = {before}, but this command asks for {now}: use the same value, or "
                f"another --workdir"
            )


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest of its parents that is there."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def check_workdir(folder: Path) -> None:
    """Raises ConfigError when a folder is a file or cannot be written."""
    place = existing(folder)
    if not place.is_dir():
        raise ConfigError(f"--workdir={folder.parent}: {place} is a file; expected a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"--workdir={folder.parent}: {place} cannot be written")


def settings_table(plan: Plan) -> tuple[list[str], list[list[Any]]]:
    """`settings.csv`: a row a setting, a column a field."""
    rows = []
    for group in plan.groups:
        sites = " ".join(population.sites_of(group.static, group.dials[group.settings[0]]))
        for name in group.settings:
            config = plan.configs[name]
            task = config.task
            outputs = " ".join(task.outputs or DATA[task.name].feature_names(task))
            values = [str(_plain(v)) for v in flatten(config).values()]
            rows.append([name, name.split(".")[0], group.name, config.num_steps, outputs, sites, *values])
    return ["setting", "column", "group", "num_steps", "outputs", "sites", *flatten(plan.experiment.config)], rows


def estimate(plan: Plan) -> dict[str, float]:
    """What a run will cost. Returns: chunks, compilations, runs, run_steps, flops, disk_bytes, device_bytes."""
    total: dict[str, float] = dict.fromkeys(
        ("chunks", "compilations", "runs", "run_steps", "flops", "disk_bytes", "device_bytes"), 0.0
    )
    chunks, stack = plan.chunks, plan.layout.rows * plan.layout.lanes
    devices = min(plan.layout.rows, len(jax.devices()))
    total["chunks"] = len(chunks)
    for group in plan.groups:
        static, config, dials = group.static, group.static.config, group.dials[group.settings[0]]
        runs = sum(len(chunk.runs) for chunk in chunks if chunk.group.name == group.name)
        sites = population.sites_of(static, dials)
        along = population.resolve_site(config.keep.along, tuple(sites))
        kept = {n: len(population.snapshots_of(config)) if n == along else 2 for n in sites}
        activations = sum(4 * kept[n] * examples * units for n, (examples, units) in sites.items())
        step_flops, state_bytes, data_bytes = _cost_of_run(static, dials)
        looking = sum(4 * examples * units for examples, units in sites.values())
        total["compilations"] += 5
        total["runs"] += runs
        total["run_steps"] += runs * config.num_steps
        total["flops"] += runs * config.num_steps * step_flops
        total["disk_bytes"] += runs * (activations + 2 * state_bytes)
        total["device_bytes"] = max(total["device_bytes"], stack / devices * (4 * state_bytes + data_bytes + looking))
    return total


def _cost_of_run(static: Any, dials: Any) -> tuple[float, float, float]:
    """Floating-point operations of one update (6 a weight and example), bytes of a run's state, bytes of its data."""
    config, seed = static.config, jax.ShapeDtypeStruct((), jnp.int32)
    data = jax.eval_shape(lambda d, s: training.make_data(config.task, config.keep.probe_set, d, s), dials, seed)
    state = jax.eval_shape(lambda d, s: training.init(static, d, s), dials, seed)
    weights = sum(x.size for x in jax.tree.leaves(state.params) if x.ndim > 1)
    sizes = [float(sum(4 * x.size for x in jax.tree.leaves(tree))) for tree in (state, data)]
    return 6.0 * weights * config.training.batch_size, sizes[0], sizes[1]
