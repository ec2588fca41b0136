"""The training loop over chunks: programs, progress, checkpoints and resume.

Rows of a chunk that share a device are computed one after another, so a chunk begun on two devices can be finished on one
with the same bits. No program contains a collective operation.
"""

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from repbias_jax import devices, provenance, store, training
from repbias_jax.config import Dials, Static, Task
from repbias_jax.data import DATA, reported
from repbias_jax.devices import Spread, make_mesh
from repbias_jax.layout import Chunk, points_of, snapshots_by_view

FIRST_STEPS = 64  # the most steps of the first segment, before the duration of a step is known
SEGMENT_SECONDS = 20.0  # longer segments are cut, so that signals and checkpoints never have to wait long
TIMED_SECONDS = 0.5  # how long updates are timed at least, if a run has as many


class Interrupted(Exception):
    """The program was told to stop, and everything so far is saved."""


def saved_like(one: Any, chunk: Chunk, sharding: jax.sharding.Sharding) -> store.Saved:
    """Returns a chunk's checkpoint as shapes. Args: one, shapes of one run's state; sharding, of the restored arrays."""
    config, stack = chunk.group.static.config, (chunk.rows, chunk.group.lanes)

    def stacked(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*stack, *shape), dtype, sharding=sharding)

    curve = (len(points_of(config)), len(training.SPLITS), len(reported(config.task)), len(training.METRICS))
    state = jax.tree.map(lambda x: stacked(x.shape, x.dtype), one)
    return store.Saved(state, stacked((), np.uint32), stacked(curve, np.float32), stacked((), np.uint32))


def is_sound(fingerprint: Callable[[Any], jax.Array], saved: store.Saved) -> bool:
    """Returns whether a restored checkpoint has the fingerprints it was saved with, on every process."""
    pairs = ((saved.state, saved.fingerprints), (saved.curves, saved.curve_sums))
    right = all(np.array_equal(devices.fetch(fingerprint(x)), devices.fetch(prints)) for x, prints in pairs)
    return not devices.agree(not right)[0]


class Programs:
    """The compiled programs of a group. Each is compiled once, whatever the number of chunks, segments and runs."""

    def __init__(self, static: Static, mesh: Mesh):
        self.static, self.mesh, self.sharding = static, mesh, NamedSharding(mesh, P("runs"))
        self.sizes: dict[str, tuple[int, int]] = {}
        task, keep = static.config.task, static.config.keep
        self.data = _data_program(task, keep.probe_set, keep.shared, mesh, provenance.definitions(task))
        self.init = Spread(mesh, lambda d, s: training.init(static, d, s), 2, once=True)
        self.segment = Spread(mesh, lambda *a: training.segment(static, *a), 4, shared=2)
        self.observe = Spread(mesh, lambda d, x, s: training.observe(static, d, x, s), 3)
        self.represent = Spread(mesh, lambda d, x, s: training.represent(static, d, x, s), 3)
        self.is_finite = Spread(mesh, _is_finite, 1)
        self.fingerprint = Spread(mesh, store.fingerprint, 1)

    def view_sizes(self, dials: Dials) -> dict[str, tuple[int, int]]:
        """Returns what `training.view_sizes` does, traced once: all settings of a group have the same shapes."""
        self.sizes = self.sizes or training.view_sizes(self.static, dials)
        return self.sizes


def _is_finite(state: training.State) -> jax.Array:
    """Returns whether all weights of a run are finite; once they are not, no update makes them finite again."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state.params)]))


@functools.cache
def _data_program(task: Task, probe_set: str, shared: bool, mesh: Mesh, definitions: str) -> Spread:
    """Returns the program that draws the data, which is the slowest to compile.

    Groups that differ in model or optimizer share it. Features that are defined anew in the same process have another one.
    """
    return Spread(mesh, lambda d, s: training.make_data(task, probe_set, d, s, shared), 2, once=True)


class Progress:
    """Progress of training (runs, steps, rate, time left): one line on a terminal, plain log lines elsewhere."""

    def __init__(self, runs: int, run_steps: int, every: float):
        self.runs, self.total, self.every = runs, run_steps, every
        self.done_runs, self.done = 0, 0
        self.fresh, self.begun, self.spoken = -1, 0.0, time.monotonic()
        self.bar = tqdm(
            total=run_steps, unit="run-step", unit_scale=True,
            disable=not (run_steps and sys.stderr.isatty() and devices.is_first()),
        )  # fmt: skip

    def skip(self, runs: int, run_steps: int) -> None:
        """Counts runs and run-steps as done, without including them in the rate."""
        self.done_runs, self.done = self.done_runs + runs, self.done + run_steps
        self.bar.update(run_steps)

    def advance(self, chunk: Chunk, step: int, steps: int) -> None:
        """Reports `steps` more steps of a chunk, which is now at `step`."""
        now = time.monotonic()
        if self.fresh < 0:  # the first segment is not part of the rate, since its time is mostly compilation
            self.fresh, self.begun = 0, now
        else:
            self.fresh += steps * len(chunk.runs)
        self.done += steps * len(chunk.runs)
        self.bar.update(steps * len(chunk.runs))
        self.bar.set_description(f"{self.done_runs}/{self.runs} runs, step {step}", refresh=False)
        if devices.is_first() and self.bar.disable and now - self.spoken >= self.every:
            self.spoken = now
            rate = self.fresh / max(now - self.begun, 1e-9)
            left = f"; {rate:,.0f} run-steps/s; {(self.total - self.done) / rate / 60:.1f} min left" if rate else ""
            print(
                f"train: {chunk.path} step {step}; {self.done_runs}/{self.runs} runs done{left}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Closes the progress bar."""
        self.bar.close()


def train(
    folder: Path, chunks: Sequence[Chunk], stop: Callable[[], bool], checkpoint_seconds: float,
    after: Callable[[Chunk], None] | None = None,
) -> None:  # fmt: skip
    """Trains every chunk that is not done, each to its end, and writes a done marker into its folder.

    Args:
      folder: the experiment's folder.
      chunks: from `chunks_of`, or a shard of them.
      stop: polled between segments; when it returns true, everything is saved and `Interrupted` is raised.
      checkpoint_seconds: shortest time between two checkpoints.
      after: called with each chunk as soon as it is done, whether it was trained now or before.
    """
    runs = sum(len(c.runs) for c in chunks)
    run_steps = sum(len(c.runs) * c.group.static.config.num_steps for c in chunks)
    progress = Progress(runs, run_steps, min(10.0, checkpoint_seconds))
    try:
        for _, members in itertools.groupby(chunks, key=lambda c: c.group.name):
            programs: dict[int, Programs] = {}  # by rows
            for chunk in members:
                if not _is_done(folder / chunk.path, chunk, progress):
                    if devices.agree(stop())[0]:
                        raise Interrupted(f"stopped before {chunk.path}; the chunks before it are done")
                    if chunk.rows not in programs:
                        programs[chunk.rows] = Programs(chunk.group.static, make_mesh(chunk.rows))
                    lock = store.lock(folder / chunk.path / "lock") if devices.is_first() else contextlib.nullcontext()
                    with lock:
                        if not _is_done(folder / chunk.path, chunk, progress):
                            trainer = _Trainer(folder / chunk.path, chunk, programs[chunk.rows], progress)
                            trainer.run(stop, checkpoint_seconds)
                if after is not None:
                    after(chunk)
    finally:
        progress.close()


def restore(folder: Path, chunk: Chunk, stop: Callable[[], bool] = lambda: False) -> None:
    """Recomputes the discarded activations of a finished chunk, bit for bit, at its first and last step.

    Raises:
      StoreError: the last weights are missing or damaged, or were trained by other code or versions or on another backend.
      Interrupted: `stop` returned true while the data were drawn.
    """
    backend, here = chunk.group.static.runtime.backend, jax.default_backend()
    other = other_code(folder, [chunk])
    if backend != here:
        other = f"{chunk.path} was trained on {backend}, and this is {here}"
    if other:
        raise store.StoreError(
            f"{folder}: discarded activations are made again only by what trained them: {other}; use that, or train again "
            f"in another workdir"
        )
    programs = _programs_of(chunk.group.static, chunk.rows)
    _Trainer(folder / chunk.path, chunk, programs, Progress(0, 0, 0.0)).restore(stop)


def step_seconds(chunk: Chunk, stop: Callable[[], bool] = lambda: False) -> float:
    """Measures how many seconds one update of all runs of a chunk takes here, with its own programs and data.

    Raises:
      Interrupted: `stop` returned true; nothing was written.
    """
    programs = _programs_of(chunk.group.static, chunk.rows)
    return _Trainer(Path(), chunk, programs, Progress(0, 0, 0.0)).step_seconds(stop)


@functools.lru_cache(maxsize=1)
def _programs_of(static: Static, rows: int) -> Programs:
    """Returns the programs of a group, compiled once for all its chunks of this number of rows."""
    return Programs(static, make_mesh(rows))


def other_code(folder: Path, chunks: Sequence[Chunk]) -> str:
    """Returns in words the first chunk trained, even in part, by other code or versions than the present; empty if none."""
    present: dict[str, dict[str, str]] = {}
    for chunk in chunks:
        if chunk.group.name not in present:
            present[chunk.group.name] = provenance.provenance_of(chunk.group.static)
        for marker in ("done.json", "begun.json"):
            path = folder / chunk.path / marker
            before = store.read_json(path, "train").get("provenance", {}) if path.exists() else present[chunk.group.name]
            found = provenance.difference(before, present[chunk.group.name])
            if found:
                return f"{chunk.path} was trained with {found}"
    return ""


def _is_done(folder: Path, chunk: Chunk, progress: Progress) -> bool:
    # Only one of several processes writes the marker: a chunk is done once all of them see it.
    if devices.agree(not (folder / "done.json").exists())[0]:
        return False
    done = store.read_json(folder / "done.json", "train")
    if [(r["setting"], r["seed"]) for r in done["runs"]] != list(chunk.runs):
        raise store.StoreError(f"{folder}/done.json: holds other runs; delete {folder} and rerun --stage=train")
    progress.skip(len(chunk.runs), len(chunk.runs) * chunk.group.static.config.num_steps)
    return True


class _Trainer:
    """Trains one chunk, from its start or its last checkpoint to its done marker."""

    def __init__(self, folder: Path, chunk: Chunk, programs: Programs, progress: Progress):
        self.folder, self.chunk, self.programs, self.progress = folder, chunk, programs, progress
        self.config, self.lanes = chunk.group.static.config, chunk.group.lanes
        self.points = points_of(self.config)
        self.rows = devices.rows_here(chunk.rows, programs.mesh)
        # A chunk that is not full is padded with copies of its last run, which are computed and dropped.
        filled = [*chunk.runs, *[chunk.runs[-1]] * (chunk.rows * self.lanes - len(chunk.runs))]
        here = filled[self.rows.start * self.lanes : self.rows.stop * self.lanes]
        self.runs = slice(self.rows.start * self.lanes, min(self.rows.stop * self.lanes, len(chunk.runs)))
        dials = [chunk.group.dials[setting] for setting, _ in here]
        self.dials = jax.tree.map(lambda *x: self._place(np.stack([np.asarray(v) for v in x])), *dials)
        self.seeds = self._place(np.asarray([k for _, k in here], np.int32))

    def _place(self, values: np.ndarray) -> jax.Array:
        """Returns this process's values `[run, ...]`, with padding, as an array `[rows, lanes, ...]` over the devices."""
        values = values.reshape(len(self.rows), self.lanes, *values.shape[1:])
        return devices.place(values, self.chunk.rows, self.rows, self.programs.sharding)

    def _real(self, values: np.ndarray) -> np.ndarray:
        """Returns this process's values `[rows, lanes, ...]` as `[run, ...]`, without the padding of the chunk."""
        return values.reshape(-1, *values.shape[2:])[: max(0, self.runs.stop - self.runs.start)]

    def run(self, stop: Callable[[], bool], checkpoint_seconds: float) -> None:
        """Trains to the end. If `stop` returns true before that, saves and raises Interrupted."""
        if devices.is_first():
            store.sweep(self.folder)
            if not (self.folder / "begun.json").exists():
                own = provenance.provenance_of(self.chunk.group.static)
                store.write_json(self.folder / "begun.json", {"format": store.FORMAT, "provenance": own})
        devices.agree(0)  # no process writes before everything is swept
        data = self._wait(self.programs.data(self.dials, self.seeds), stop)
        checkpoints = store.Checkpoints(self.folder / "checkpoint")
        try:
            step, state, curves = self._start(checkpoints)
            activations = self._open(data)
            self.progress.skip(0, step * len(self.chunk.runs))
            if step == 0:
                self._look(0, data, state, curves, activations)
                if not self.config.num_steps and checkpoints.is_empty():
                    self._save(checkpoints, 0, state, curves)
            elif devices.is_first():
                print(f"train: {self.chunk.path} resumed at step {step}", file=sys.stderr, flush=True)
            clock, longest = time.monotonic(), FIRST_STEPS
            while step < self.config.num_steps:
                end = min(next(p for p in self.points if p > step), step + longest)
                begun = time.monotonic()
                state = self.programs.segment(self.dials, self.seeds, data, state, np.int32(step), np.int32(end))
                jax.block_until_ready(state)
                advanced = end - step
                if end in self.points:
                    self._look(end, data, state, curves, activations)
                    end = self._skip_if_diverged(end, data, state, curves, activations)
                now = time.monotonic()
                ending, seconds, waited = devices.agree(stop(), now - begun, now - clock)
                longest = max(1, int(SEGMENT_SECONDS * advanced / seconds))
                advanced, step = end - step, end
                if ending or step == self.config.num_steps or waited >= checkpoint_seconds:
                    self._save(checkpoints, step, state, curves)
                    clock = time.monotonic()
                self.progress.advance(self.chunk, step, advanced)
                if ending and step < self.config.num_steps:
                    raise Interrupted(f"{self.chunk.path} is saved at step {step} of {self.config.num_steps}")
            self._finish(data, state, curves)
            self.progress.skip(len(self.chunk.runs), 0)
        finally:
            checkpoints.close()

    def restore(self, stop: Callable[[], bool]) -> None:
        """Recomputes and writes the activations of the first and the last step, from the initial and the last weights."""
        data = self._wait(self.programs.data(self.dials, self.seeds), stop)
        checkpoints = store.Checkpoints(self.folder / "checkpoint")
        try:
            step, state, _ = self._start(checkpoints)
        finally:
            checkpoints.close()
        if step != self.config.num_steps:
            raise store.StoreError(f"{self.folder}/checkpoint: damaged; delete {self.folder} and rerun --stage=train")
        activations = self._open(data)
        self._keep(0, data, self.programs.init(self.dials, self.seeds), activations)
        self._keep(step, data, state, activations)

    def step_seconds(self, stop: Callable[[], bool]) -> float:
        """Returns how many seconds one update takes, without evaluations and checkpoints; writes nothing."""
        data = self._wait(self.programs.data(self.dials, self.seeds), stop)
        state = self.programs.init(self.dials, self.seeds)

        def lasted(steps: int) -> float:
            begun = time.monotonic()
            jax.block_until_ready(self.programs.segment(self.dials, self.seeds, data, state, np.int32(0), np.int32(steps)))
            return time.monotonic() - begun

        steps = 1
        lasted(steps)  # compiles
        while (seconds := lasted(steps)) < TIMED_SECONDS and steps < self.config.num_steps:
            if stop():
                raise Interrupted("stopped while updates were timed")
            steps = min(4 * steps, self.config.num_steps)
        return seconds / steps

    def _wait(self, data: training.Data, stop: Callable[[], bool]) -> training.Data:
        """Returns `data`; a single process waits until they are drawn.

        If `stop` returns true meanwhile, raises Interrupted; there is nothing to save yet.
        """
        leaves = jax.tree.leaves(data)
        while jax.process_count() == 1 and not all(leaf.is_ready() for leaf in leaves):
            if stop():
                raise Interrupted(f"stopped while the data of {self.chunk.path} were drawn; the chunks before it are done")
            time.sleep(0.002)
        return data

    def _skip_if_diverged(self, step: int, data: Any, state: Any, curves: np.ndarray, activations: Any) -> int:
        """Returns the last step if every run of the chunk has diverged, which no update can repair; else `step`.

        The rest of the chunk is recorded as if it had been trained: missing values at the remaining points of the curves,
        and activations that are not finite.
        """
        sound = self._real(devices.fetch(self.programs.is_finite(state)))
        if step == self.config.num_steps or devices.agree(bool(sound.any()))[0]:
            return step
        if devices.is_first():
            print(
                f"train: {self.chunk.path}: all {len(self.chunk.runs)} runs have diverged by step {step}", file=sys.stderr
            )
        for later in (p for p in self.points if p > step):
            self._look(later, data, state, curves, activations)
        return self.config.num_steps

    def _start(self, checkpoints: store.Checkpoints) -> tuple[int, Any, np.ndarray]:
        """Returns the step, state and curves to continue from."""
        state = self.programs.init(self.dials, self.seeds)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), state)
        like = saved_like(one, self.chunk, self.programs.sharding)
        step, saved, damaged = checkpoints.restore(like, lambda found: is_sound(self.programs.fingerprint, found), True)
        for line in damaged:
            print(line, file=sys.stderr, flush=True)
        if saved is None:
            return 0, state, np.full((len(self.rows), *like.curves.shape[1:]), np.nan, np.float32)
        return step, saved.state, np.array(devices.fetch(saved.curves))

    def _open(self, data: training.Data) -> store.Activations:
        """Returns the arrays of this chunk, with its factors written; creates those that are missing."""
        settings = sorted({setting for setting, _ in self.chunk.runs})
        examples = self.config.task.num_probe
        coordinates = {
            "split": (("example",), np.repeat(np.asarray([0, 1], np.int8), examples // 2)),
            "seed": (("run",), np.asarray([k for _, k in self.chunk.runs], np.int32)),
            "setting": (("run",), np.asarray([settings.index(s) for s, _ in self.chunk.runs], np.int32)),
        }
        static = self.chunk.group.static
        sizes, self.kept = self.programs.view_sizes(next(iter(self.chunk.group.dials.values()))), snapshots_by_view(static)
        along = training.along_view(static)
        attributes = {"settings": settings, "sites": list(sizes), "along": along, "split": "0 fit, 1 score"}
        activations = store.Activations(self.folder / "activations.zarr")
        shapes = {name: (self.kept[name], *sizes[name]) for name in sizes}
        factors = {f"factor.{name}": values for name, values in data.probe.factors.items()}
        known = DATA[self.config.task.name].probe_factors(self.config.task, self.config.keep.probe_set)
        size = store.Size(len(self.chunk.runs), self.lanes, examples)
        activations.create(shapes, size, {f"factor.{n}": f.values for n, f in known.items()}, coordinates, attributes)
        for name, values in factors.items():
            activations.write(name, self.runs, self._real(devices.fetch(values)))
        return activations

    def _look(self, step: int, data: Any, state: Any, curves: np.ndarray, activations: store.Activations) -> None:
        """Records a point of the curves and, at a snapshot, the activations."""
        curves[:, :, self.points.index(step)] = devices.fetch(self.programs.observe(self.dials, data, state))
        self._keep(step, data, state, activations)

    def _keep(self, step: int, data: Any, state: Any, activations: store.Activations) -> None:
        """Writes the activations if the step is a snapshot; else writes nothing."""
        wanted = [name for name, steps in self.kept.items() if step in steps]
        sites = self.programs.represent(self.dials, data, state) if wanted else {}
        for name in wanted:
            place = (self.runs, self.kept[name].index(step))
            activations.write(name, place, self._real(devices.fetch(sites[name])))

    def _save(self, checkpoints: store.Checkpoints, step: int, state: Any, curves: np.ndarray) -> None:
        spread = self._place(curves.reshape(-1, *curves.shape[2:]))
        prints, sums = (self.programs.fingerprint(x) for x in (state, spread))
        checkpoints.save(step, store.Saved(state, prints, spread, sums))

    def _finish(self, data: training.Data, state: Any, curves: np.ndarray) -> None:
        """Writes the curves and the done marker, once for all processes."""
        # Where each output stands; nothing if every example has an order of its own.
        orders = devices.gather(data.train_order) if data.train_order.ndim == 3 else None
        prints = devices.gather(self.programs.fingerprint(state)).reshape(-1)
        every = devices.gather(self._place(curves.reshape(-1, *curves.shape[2:])))
        if devices.is_first():
            every = every.reshape(-1, *every.shape[2:])
            store.write_table(self.folder / "curves.csv", store.CURVE_COLUMNS, self._curve_rows(every))
            runs = [
                {"setting": setting, "seed": seed, "fingerprint": f"{int(value):08x}"}
                for (setting, seed), value in zip(self.chunk.runs, prints, strict=False)
            ]
            if orders is not None:
                each = orders.reshape(-1, orders.shape[-1]).tolist()
                runs = [run | {"order": order} for run, order in zip(runs, each, strict=False)]
            own = provenance.provenance_of(self.chunk.group.static)
            laid = {"rows": self.chunk.rows, "lanes": self.lanes}
            done = {"format": store.FORMAT, "runs": runs, "steps": self.config.num_steps, "layout": laid, "provenance": own}
            store.write_json(self.folder / "done.json", done | {"files": store.metadata_sums(self.folder)})
        devices.agree(0)  # no process looks for the marker before it is written

    def _curve_rows(self, curves: np.ndarray) -> Iterator[tuple[Any, ...]]:
        """Yields the rows of `curves.csv`. Args: curves of all runs `[run, points, 2, O, 3]`, with padding."""
        for (setting, seed), values in zip(self.chunk.runs, curves, strict=False):
            for t, step in enumerate(self.points):
                for split, name in enumerate(training.SPLITS):
                    for output, feature in enumerate(reported(self.config.task)):
                        yield setting, seed, step, feature, name, *(store.number(v) for v in values[t, split, output])
