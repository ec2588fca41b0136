"""Many runs at once: groups, chunks, lanes, devices, resuming and progress.

Runs that share their static half form a group and its programs are compiled once. A chunk is `rows x lanes` runs that
train at once: rows are sharded over devices, lanes are the innermost `vmap`, and the rows of one device follow each
other. So bits depend on the number of lanes and not on the number of devices, chunks or runs, and a chunk begun on two
devices can be finished on one. No program has a collective.
"""

import contextlib
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from repbias_jax import devices, store, training
from repbias_jax.config import Config, Dials, Runtime, Static, Task, dials_of, flatten, num_outputs, static_half
from repbias_jax.data import DATA
from repbias_jax.devices import Spread, make_mesh

FIRST_STEPS = 64  # of a segment, before it is known how long a step takes
SEGMENT_SECONDS = 20.0  # a longer stretch is cut, so that signals and checkpoints are never far away


class Interrupted(Exception):
    """Training was asked to stop, and everything so far is saved."""


class Group(NamedTuple):
    """All settings that share their static half."""

    name: str
    static: Static
    settings: tuple[str, ...]
    dials: Mapping[str, Dials]  # by setting


class Chunk(NamedTuple):
    """The runs of a group that train at once; unit of memory, checkpoint and resume."""

    group: Group
    name: str
    runs: tuple[tuple[str, int], ...]  # (setting, seed)

    @property
    def path(self) -> str:
        """Folder below the experiment's."""
        return f"{self.group.name}/{self.name}"


class Layout(NamedTuple):
    """How runs are laid out; decided when a workdir is made, and kept, because bits depend on it."""

    rows: int
    lanes: int
    seed: int
    extents: tuple[int, ...]  # numbers of seeds: 4, then extended to 16
    caps: Mapping[str, int] = {}  # the number of seeds that a setting has at most, whatever the extents


def groups_of(configs: Mapping[str, Config], runtime: Runtime) -> list[Group]:
    """Groups settings by their static half, in order of appearance."""
    found: dict[Static, list[str]] = {}
    for name, config in configs.items():
        found.setdefault(static_half(config, runtime), []).append(name)
    groups = []
    for static, names in found.items():
        rates = DATA[static.config.task.name].base_rates(static.config.task)
        # A field that came later counts where it is used, so that folders keep their names.
        fields = {k: v for k, v in flatten(static.config).items() if k != "keep.shared" or v}
        code = store.digest([fields, static.dropout, static.reset, static.runtime.__dict__])[:8]
        dials = {name: dials_of(configs[name], rates) for name in names}
        groups.append(Group(f"{names[0]}-{code}", static, tuple(names), dials))
    return groups


def chunks_of(groups: Sequence[Group], layout: Layout) -> list[Chunk]:
    """All chunks; adding an extent leaves those of the extents before as they are."""
    chunks = []
    for group in groups:
        pieces: list[tuple[tuple[str, int], ...]] = []
        for low, high in itertools.pairwise((0, *layout.extents)):
            seeds = ((k, name) for k in range(low, high) for name in group.settings if k < layout.caps.get(name, high))
            runs = [(name, layout.seed + k) for k, name in seeds]
            size = layout.rows * layout.lanes
            pieces += [tuple(runs[i : i + size]) for i in range(0, len(runs), size)]
        chunks += [Chunk(group, f"chunk_{i:03d}", piece) for i, piece in enumerate(pieces)]
    return chunks


def share_of(chunks: Sequence[Chunk], index: int, count: int) -> list[Chunk]:
    """The chunks of one of `count` independent processes: dealt out by cost, dearest first.

    Every chunk is in exactly one share, whatever `count` is; a process that is started again with another `count`
    skips what is done.
    """

    def cost(chunk: Chunk) -> float:
        config = chunk.group.static.config
        weights = sum(a * b for a, b in itertools.pairwise((config.task.num_bits, *config.model.widths)))
        return len(chunk.runs) * config.num_steps * config.training.batch_size * weights

    dealt = sorted(range(len(chunks)), key=lambda i: -cost(chunks[i]))  # stable: every process deals alike
    return [chunks[i] for i in sorted(dealt[index::count])]


def snapshots_of(config: Config) -> tuple[int, ...]:
    """Steps at which the site along training is kept."""
    keep, end, steps, step = config.keep, config.num_steps, [0], 0
    while keep.every:
        late = keep.until and keep.every_late and step >= keep.until
        step += keep.every_late if late else keep.every
        if step >= end:
            break
        steps.append(step)
    return (*steps, end)


def points_of(config: Config) -> tuple[int, ...]:
    """Segment ends, step 0 first: the points of the curves, and all snapshots."""
    regular = range(0, config.num_steps, config.training.observe_every)
    first, last = (round(share * config.num_steps) for share in config.training.dense or (0, 0))
    dense = range(first, last, config.training.dense_every)
    return tuple(sorted({*regular, *dense, *snapshots_of(config), config.num_steps}))


def sites_of(static: Static, dials: Dials) -> dict[str, tuple[int, int]]:
    """Sites of a model with their examples and units, without running it. Returns: (N, D) by site, in order."""

    task = static.config.task

    def look(dials: Dials, seed: jax.Array) -> list[jax.Array]:
        blank = jnp.zeros(DATA[task.name].input_shape(task), jnp.float32)
        _, found = training.build_model(static).apply(training.init(static, dials, seed).params, blank, dials)
        names.extend(found)  # a transformed function would give them back sorted
        return list(found.values())

    names: list[str] = []
    shapes = jax.eval_shape(look, dials, jax.ShapeDtypeStruct((), jnp.int32))
    return {name: (task.num_probe, math.prod(s.shape)) for name, s in zip(names, shapes, strict=True)}


def resolve_site(name: str, sites: Sequence[str]) -> str:
    """A site's name; `last_hidden` is the penultimate layer, the last before the logits; `before_last` the one before."""
    places = {"last_hidden": -1, "before_last": -2}
    return [site for site in sites if site != "logits"][places[name]] if name in places else name


def saved_like(one: Any, config: Config, layout: Layout, sharding: jax.sharding.Sharding) -> store.Saved:
    """A chunk's checkpoint as shapes. Args: one, the state of one run as shapes; where it shall come back to."""
    stack = (layout.rows, layout.lanes)

    def stacked(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*stack, *shape), dtype, sharding=sharding)

    curve = (len(points_of(config)), len(training.SPLITS), num_outputs(config.task), len(training.METRICS))
    state = jax.tree.map(lambda x: stacked(x.shape, x.dtype), one)
    return store.Saved(state, stacked((), np.uint32), stacked(curve, np.float32), stacked((), np.uint32))


def is_sound(fingerprint: Callable[[Any], jax.Array], saved: store.Saved) -> bool:
    """Whether a restored checkpoint has the fingerprints it was saved with, on every process."""
    pairs = ((saved.state, saved.fingerprints), (saved.curves, saved.curve_sums))
    right = all(np.array_equal(devices.fetch(fingerprint(x)), devices.fetch(prints)) for x, prints in pairs)
    return not devices.agree(not right)[0]


class Programs:
    """The compiled programs of a group; one compilation each, whatever the number of chunks, segments and runs."""

    def __init__(self, static: Static, mesh: Mesh):
        self.mesh, self.sharding = mesh, NamedSharding(mesh, P("runs"))
        self.data = _data_program(static.config.task, static.config.keep.probe_set, static.config.keep.shared, mesh)
        self.init = Spread(mesh, lambda d, s: training.init(static, d, s), 2, once=True)
        self.segment = Spread(mesh, lambda *a: training.segment(static, *a), 4, shared=2)
        self.observe = Spread(mesh, lambda d, x, s: training.observe(static, d, x, s), 3)
        self.represent = Spread(mesh, lambda d, x, s: training.represent(static, d, x, s), 3)
        self.fingerprint = Spread(mesh, store.fingerprint, 1)


@functools.cache
def _data_program(task: Task, probe_set: str, shared: bool, mesh: Mesh) -> Spread:
    """Groups that differ in model or optimizer share their data program, which is the slowest to compile."""
    return Spread(mesh, lambda d, s: training.make_data(task, probe_set, d, s, shared), 2, once=True)


class Progress:
    """One line on a terminal, plain log lines elsewhere: runs, steps, rate, time left."""

    def __init__(self, runs: int, run_steps: int, every: float):
        self.runs, self.total, self.every = runs, run_steps, every
        self.done_runs, self.done, self.begun = 0, 0, time.monotonic()
        self.fresh, self.spoken = 0, self.begun
        self.bar = tqdm(
            total=run_steps, unit="run-step", unit_scale=True, disable=not (sys.stderr.isatty() and devices.is_first())
        )

    def skip(self, runs: int, run_steps: int) -> None:
        """Counts what was there already."""
        self.done_runs, self.done = self.done_runs + runs, self.done + run_steps
        self.bar.update(run_steps)

    def advance(self, chunk: Chunk, step: int, steps: int) -> None:
        """Reports `steps` more steps of a chunk, which is now at `step`."""
        self.fresh, self.done = self.fresh + steps * len(chunk.runs), self.done + steps * len(chunk.runs)
        self.bar.update(steps * len(chunk.runs))
        self.bar.set_description(f"{self.done_runs}/{self.runs} runs, step {step}", refresh=False)
        now = time.monotonic()
        if devices.is_first() and self.bar.disable and now - self.spoken >= self.every:
            self.spoken = now
            rate = self.fresh / max(now - self.begun, 1e-9)
            print(
                f"train: {chunk.path} step {step}; {self.done_runs}/{self.runs} runs done; {rate:,.0f} run-steps/s; "
                f"{(self.total - self.done) / rate / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Ends the line."""
        self.bar.close()


def train(
    folder: Path, chunks: Sequence[Chunk], layout: Layout, stop: Callable[[], bool], checkpoint_seconds: float
) -> None:
    """Trains every chunk that is not done, each to its end, and leaves a done marker in its folder.

    Args:
      folder: the experiment's folder.
      chunks: from `chunks_of`, or a share of them.
      layout: rows and lanes.
      stop: polled between segments; when true, everything is saved and `Interrupted` raised.
      checkpoint_seconds: shortest time between two checkpoints.
    """
    runs = sum(len(c.runs) for c in chunks)
    run_steps = sum(len(c.runs) * c.group.static.config.num_steps for c in chunks)
    progress = Progress(runs, run_steps, min(10.0, checkpoint_seconds))
    mesh = make_mesh(layout.rows)
    try:
        for _, members in itertools.groupby(chunks, key=lambda c: c.group.name):
            todo = [c for c in members if not _is_done(folder / c.path, c, progress)]
            programs = Programs(todo[0].group.static, mesh) if todo else None
            for chunk in todo:
                if devices.agree(stop())[0]:
                    raise Interrupted(f"stopped before {chunk.path}; the chunks before it are done")
                lock = store.lock(folder / chunk.path / "lock") if devices.is_first() else contextlib.nullcontext()
                with lock:
                    if not _is_done(folder / chunk.path, chunk, progress):
                        _Trainer(folder / chunk.path, chunk, layout, programs, progress).run(stop, checkpoint_seconds)
    finally:
        progress.close()


def _is_done(folder: Path, chunk: Chunk, progress: Progress) -> bool:
    # Of several processes only one writes the marker: a chunk is done when the slowest of them sees it.
    if devices.agree(not (folder / "done.json").exists())[0]:
        return False
    done = store.read_json(folder / "done.json", "train")
    if [(r["setting"], r["seed"]) for r in done["runs"]] != list(chunk.runs):
        raise store.StoreError(f"{folder}/done.json: holds other runs; delete {folder} and rerun --stage=train")
    progress.skip(len(chunk.runs), len(chunk.runs) * chunk.group.static.config.num_steps)
    return True


class _Trainer:
    """One chunk, from its start or its last checkpoint to its done marker."""

    def __init__(self, folder: Path, chunk: Chunk, layout: Layout, programs: Any, progress: Progress):
        self.folder, self.chunk, self.layout, self.programs, self.progress = folder, chunk, layout, programs, progress
        self.config = chunk.group.static.config
        self.points = points_of(self.config)
        self.rows = devices.rows_here(layout.rows, programs.mesh)
        # A short last chunk is filled up with copies of its last run, which are computed and dropped.
        filled = [*chunk.runs, *[chunk.runs[-1]] * (layout.rows * layout.lanes - len(chunk.runs))]
        here = filled[self.rows.start * layout.lanes : self.rows.stop * layout.lanes]
        self.runs = slice(self.rows.start * layout.lanes, min(self.rows.stop * layout.lanes, len(chunk.runs)))
        dials = [chunk.group.dials[setting] for setting, _ in here]
        self.dials = jax.tree.map(lambda *x: self._place(np.stack([np.asarray(v) for v in x])), *dials)
        self.seeds = self._place(np.asarray([k for _, k in here], np.int32))

    def _place(self, values: np.ndarray) -> jax.Array:
        """Values of this process's runs `[run, ...]`, filled up, as an array `[rows, lanes, ...]` over the devices."""
        values = values.reshape(len(self.rows), self.layout.lanes, *values.shape[1:])
        return devices.place(values, self.layout.rows, self.rows, self.programs.sharding)

    def _real(self, values: np.ndarray) -> np.ndarray:
        """This process's own runs `[run, ...]` of its values `[rows, lanes, ...]`, without what fills them up."""
        return values.reshape(-1, *values.shape[2:])[: max(0, self.runs.stop - self.runs.start)]

    def run(self, stop: Callable[[], bool], checkpoint_seconds: float) -> None:
        """Trains to the end; raises Interrupted after saving when `stop` says so."""
        if devices.is_first():
            store.sweep(self.folder)
        devices.agree(0)  # nobody writes before everything is swept
        data = self.programs.data(self.dials, self.seeds)
        checkpoints = store.Checkpoints(self.folder / "checkpoint")
        try:
            step, state, curves = self._start(checkpoints)
            activations = self._open(data)
            self.progress.skip(0, step * len(self.chunk.runs))
            if step == 0:
                self._look(0, data, state, curves, activations)
            elif devices.is_first():
                print(f"train: {self.chunk.path} resumed at step {step}", file=sys.stderr, flush=True)
            clock, longest = time.monotonic(), FIRST_STEPS
            while step < self.config.num_steps:
                end = min(next(p for p in self.points if p > step), step + longest)
                begun = time.monotonic()
                state = self.programs.segment(self.dials, self.seeds, data, state, np.int32(step), np.int32(end))
                if end in self.points:
                    self._look(end, data, state, curves, activations)
                jax.block_until_ready(state)
                now = time.monotonic()
                ending, seconds, waited = devices.agree(stop(), now - begun, now - clock)
                longest = max(1, int(SEGMENT_SECONDS * (end - step) / seconds))
                advanced, step = end - step, end
                if ending or step == self.config.num_steps or waited >= checkpoint_seconds:
                    self._save(checkpoints, step, state, curves)
                    clock = time.monotonic()
                self.progress.advance(self.chunk, step, advanced)
                if ending and step < self.config.num_steps:
                    raise Interrupted(f"{self.chunk.path} is saved at step {step} of {self.config.num_steps}")
            self._finish(state, curves)
            self.progress.skip(len(self.chunk.runs), 0)
        finally:
            checkpoints.close()

    def _start(self, checkpoints: store.Checkpoints) -> tuple[int, Any, np.ndarray]:
        """Step, state and curves to go on from."""
        state = self.programs.init(self.dials, self.seeds)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), state)
        like = saved_like(one, self.config, self.layout, self.programs.sharding)
        step, saved, damaged = checkpoints.restore(like, lambda found: is_sound(self.programs.fingerprint, found), True)
        for line in damaged:
            print(line, file=sys.stderr, flush=True)
        if saved is None:
            return 0, state, np.full((len(self.rows), *like.curves.shape[1:]), np.nan, np.float32)
        return step, saved.state, np.array(devices.fetch(saved.curves))

    def _open(self, data: training.Data) -> store.Activations:
        """The arrays of this chunk, made where they are missing."""
        settings = sorted({setting for setting, _ in self.chunk.runs})
        examples = self.config.task.num_probe
        coordinates = {
            "split": (("example",), np.repeat(np.asarray([0, 1], np.int8), examples // 2)),
            "seed": (("run",), np.asarray([k for _, k in self.chunk.runs], np.int32)),
            "setting": (("run",), np.asarray([settings.index(s) for s, _ in self.chunk.runs], np.int32)),
        }
        sites = sites_of(self.chunk.group.static, next(iter(self.chunk.group.dials.values())))
        along = resolve_site(self.config.keep.along, tuple(sites))
        self.kept = {name: snapshots_of(self.config) if name == along else (0, self.config.num_steps) for name in sites}
        attributes = {"settings": settings, "sites": list(sites), "along": along, "split": "0 fit, 1 score"}
        activations = store.Activations(self.folder / "activations.zarr")
        shapes = {name: (self.kept[name], *sites[name]) for name in sites}
        factors = {f"factor.{name}": values for name, values in data.probe_factors.items()}
        size = store.Size(len(self.chunk.runs), self.layout.lanes, examples)
        activations.create(shapes, size, tuple(factors), coordinates, attributes)
        for name, values in factors.items():
            activations.write(name, self.runs, self._real(devices.fetch(values)).astype(np.int8))
        return activations

    def _look(self, step: int, data: Any, state: Any, curves: np.ndarray, activations: store.Activations) -> None:
        """Records a point of the curves and, at a snapshot, the activations."""
        curves[:, :, self.points.index(step)] = devices.fetch(self.programs.observe(self.dials, data, state))
        wanted = [name for name, steps in self.kept.items() if step in steps]
        sites = self.programs.represent(self.dials, data, state) if wanted else {}
        for name in wanted:
            place = (self.runs, self.kept[name].index(step))
            activations.write(name, place, self._real(devices.fetch(sites[name])))

    def _save(self, checkpoints: store.Checkpoints, step: int, state: Any, curves: np.ndarray) -> None:
        spread = self._place(curves.reshape(-1, *curves.shape[2:]))
        prints, sums = (self.programs.fingerprint(x) for x in (state, spread))
        checkpoints.save(step, store.Saved(state, prints, spread, sums))

    def _finish(self, state: Any, curves: np.ndarray) -> None:
        """Writes the curves and the done marker, once for all processes."""
        prints = devices.gather(self.programs.fingerprint(state)).reshape(-1)
        every = devices.gather(self._place(curves.reshape(-1, *curves.shape[2:])))
        if devices.is_first():
            every = every.reshape(-1, *every.shape[2:])
            store.write_table(self.folder / "curves.csv", store.CURVE_COLUMNS, self._curve_rows(every))
            runs = [
                {"setting": setting, "seed": seed, "fingerprint": f"{int(value):08x}"}
                for (setting, seed), value in zip(self.chunk.runs, prints, strict=False)
            ]
            done = {"format": store.FORMAT, "runs": runs, "steps": self.config.num_steps}
            store.write_json(self.folder / "done.json", done | {"files": store.metadata_sums(self.folder)})
        devices.agree(0)  # nobody looks for the marker before it is there

    def _curve_rows(self, curves: np.ndarray) -> Iterator[tuple[Any, ...]]:
        """Rows of `curves.csv`. Args: curves of all runs `[run, points, 2, O, 3]`, filled up."""
        for (setting, seed), values in zip(self.chunk.runs, curves, strict=False):
            for t, step in enumerate(self.points):
                for split, name in enumerate(training.SPLITS):
                    for output in range(values.shape[2]):
                        yield setting, seed, step, output, name, *(store.number(v) for v in values[t, split, output])
