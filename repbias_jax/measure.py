"""Reads the store in bounded blocks, maps probes over runs, snapshots and views, and writes tidy rows."""

import functools
import heapq
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from repbias_jax import pairs, population, store, training
from repbias_jax.columns import COLUMNS
from repbias_jax.config import Dials, Factor, Static
from repbias_jax.data import DATA, reported
from repbias_jax.layout import Chunk, probes_of, snapshots_by_view
from repbias_jax.models.family import resolve
from repbias_jax.population import Interrupted
from repbias_jax.probes import PROBES
from repbias_jax.probes.moments import Measured, Side, whole_factors

Roles = tuple[tuple[str, Factor], ...]


class Block(NamedTuple):
    """A block of activations: some runs of a chunk at one view and snapshot."""

    chunk: Chunk
    site: str
    step: int
    first: int  # index of the first run within the chunk
    widest: int  # units of the chunk's widest view, up to which `_padded` adds units; 0: none are added
    runs: tuple[tuple[str, int], ...]  # its own; in the arrays, copies of the last run fill it up to `lanes`
    activations: np.ndarray  # [lanes, N, D]
    factors: dict[str, np.ndarray]  # [lanes, N] each


def all_measured(folder: Path, chunks: Sequence[Chunk], code: str) -> bool:
    """Returns whether every chunk has been measured, by whichever process."""
    return all(_is_measured(folder / chunk.path, store.digest([code, chunk.runs])) for chunk in chunks)


def merge(folder: Path, name: str, chunks: Sequence[Chunk], probes: Sequence[str], stop: Callable[[], bool]) -> None:
    """Compares pairs of models and merges their rows with those of all chunks into `results.csv`, row by row.

    Args: as in `measure`.
    """
    groups = {setting: chunk.group.name for chunk in chunks for setting in chunk.group.settings}
    found = [(name, groups[row[0]], *row) for row in pairs.compare(folder, chunks, probes, stop)]
    with store.merged_rows([folder / chunk.path / "rows.csv" for chunk in chunks], folder, _order) as rows:
        store.write_table(folder / "results.csv", COLUMNS, heapq.merge(rows, sorted(found, key=_order), key=_order))


def measure(
    folder: Path, name: str, chunks: Sequence[Chunk], probes: Sequence[str], stop: Callable[[], bool], code: str
) -> None:  # fmt: skip
    """Runs the probes on chunks and writes the rows of each to its own file; skips chunks that are already measured.

    Args:
      folder: the experiment's folder.
      name: of the experiment.
      chunks: those that are trained, or a shard of them.
      probes: names in PROBES; groups may have further ones.
      stop: polled between chunks.
      code: fingerprint of what a chunk's rows depend on: training, probes and their code.

    Raises:
      StoreError: something is missing or damaged.
      Interrupted: `stop` returned true; the rows of the chunks before are kept.
    """
    terminal = sys.stderr.isatty()
    for i, chunk in enumerate(tqdm(chunks, desc="measure", unit="chunk", disable=not terminal or len(chunks) == 1)):
        if stop():
            raise Interrupted(f"{i} of {len(chunks)} chunks are measured")
        if not terminal and i:
            print(f"measure: {i}/{len(chunks)} chunks done", file=sys.stderr, flush=True)
        path, own = folder / chunk.path, store.digest([code, chunk.runs])
        store.verify_chunk(path)
        if _is_measured(path, own):
            continue
        with store.lock(path / "lock"):
            gone = store.discarded(path)
            if gone:
                _check_restorable(path, chunk, probes, gone)
                population.restore(folder, chunk, stop)
            found = _of_final(list(_measure_chunk(path, chunk, probes)), chunk)
            rows = [(name, chunk.group.name, *row) for row in found]
            store.write_table(path / "rows.csv", COLUMNS, sorted(rows, key=_order))
            sums = {"rows.csv": store.checksum(path / "rows.csv")}
            store.write_json(path / "measured.json", {"format": store.FORMAT, "fingerprint": own, "files": sums})
            if gone:
                discard(folder, chunk, probes)


def _is_measured(path: Path, fingerprint: str) -> bool:
    if not (path / "measured.json").exists():
        return False
    entry = store.read_json(path / "measured.json", "measure")
    rows = path / "rows.csv"
    same = entry["fingerprint"] == fingerprint and rows.is_file()
    return same and store.checksum(rows) == entry["files"]["rows.csv"]


def _order(row: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the sort key of a row of `results.csv`: setting, seed, step, site, probe, metric, feature, other, at."""
    return (row[2], int(row[3]), int(row[4]), *row[5:11])


def discard(folder: Path, chunk: Chunk, probes: Sequence[str]) -> None:
    """Removes the activations of a measured chunk, except those that probes of pairs will read."""
    static = chunk.group.static
    kept = pairs.views_read(probes_of(static, probes), training.places_of(static), training.views_of(static))
    store.discard(folder / chunk.path, sorted(kept))


def _check_restorable(path: Path, chunk: Chunk, probes: Sequence[str], gone: Sequence[str]) -> None:
    """Raises StoreError if probes would read discarded snapshots along training, for which no weights are kept."""
    static = chunk.group.static
    if training.along_view(static) in gone and len(snapshots_by_view(static)[training.along_view(static)]) > 2:
        along = [name for name in probes_of(static, probes) if PROBES[name].along]
        if along:
            raise store.StoreError(
                f"{path}: the probe {along[0]} reads snapshots along training, and these activations were discarded; "
                f"delete {path} and rerun --stage=train,measure, or keep them with --activations=keep in another workdir"
            )


def roles_of(static: Static) -> Roles:
    """Returns the factors of a probe set with their values and roles: sorted by name, then bits by feature in order."""
    task = static.config.task
    known = DATA[task.name].probe_factors(task, static.config.keep.probe_set).items()
    whole, bits = ([item for item in known if (item[1].role == "bit") == is_bit] for is_bit in (False, True))
    return (*sorted(whole), *sorted(bits, key=lambda item: item[1].of))


def _measure_chunk(folder: Path, chunk: Chunk, probes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yields rows, from the CSV column `setting` on, for all views and snapshots of a chunk."""
    static, last = chunk.group.static, chunk.group.static.config.num_steps
    places, views, probes = training.places_of(static), training.views_of(static), probes_of(static, probes)
    wanted = {name: {v for p in PROBES[name].views or ("all",) for v in resolve(p, places, views)} for name in probes}
    params, inputs = None, _Inputs(chunk)
    for block in _blocks(folder, chunk):
        for name in probes:
            probe = PROBES[name]
            if probe.kind == "pair" or block.site not in wanted[name] or not (probe.along or block.step in (0, last)):
                continue  # pairs cross chunks and are compared in `merge`
            if probe.kind == "representation":
                phi = _padded(block) if probe.padded else block.activations
                found = _representation(name, roles_of(static))(phi, block.factors)
            elif block.step == last and views[block.site].spread is not None:  # only the last weights are kept
                params = _restored(folder, chunk) if params is None else params
                found = _intervene(name, block, params, inputs)
            else:
                continue
            yield from _rows(block, name, found)


def _blocks(folder: Path, chunk: Chunk) -> Iterator[Block]:
    """Yields the activations of a chunk in blocks, as they are cut on disk: `lanes` runs, one snapshot, one view.

    A short last block is filled up with copies of its last run, so that bits do not depend on the number of runs.
    """
    arrays, lanes = store.Activations(folder / "activations.zarr"), chunk.group.lanes
    names = [p.name for p in sorted((folder / "activations.zarr").glob("factor.*"))]
    factors = {name.removeprefix("factor."): arrays.read(name).astype(np.int32) for name in names}
    sites, gone = arrays.attributes()["sites"], store.discarded(folder)
    widest = max(arrays.shape(site)[-1] for site in sites)
    for site in sites:
        steps = arrays.read(f"snapshot_{site}")
        for t, step in enumerate(steps):
            if site in gone and step not in (steps[0], steps[-1]):
                continue  # cannot be recomputed: only the first and the last weights are available
            for first in range(0, len(chunk.runs), lanes):
                last = min(first + lanes, len(chunk.runs))
                full = [*range(last - first), *[last - first - 1] * (lanes - last + first)]
                own = {name: values[first:last][full] for name, values in factors.items()}
                phi = arrays.read(site, np.s_[first:last, t])[full]
                padding = widest if len(steps) <= 2 else 0
                yield Block(chunk, site, int(step), first, padding, chunk.runs[first:last], phi, own)


def _halves(phi, factors) -> tuple[Side, Side]:
    """Returns the fit half and the score half of one run's probe set."""
    half = len(phi) // 2
    fit = (phi[:half], {n: v[:half] for n, v in factors.items()})
    return fit, (phi[half:], {n: v[half:] for n, v in factors.items()})


def _padded(block: Block) -> np.ndarray:
    """Returns the activations with added units that are always zero.

    They change no result of a probe that is padded, and save compiling it for every width.
    """
    more = max(0, block.widest - block.activations.shape[-1])
    return np.pad(block.activations, ((0, 0), (0, 0), (0, more)))


@functools.cache
def _representation(name: str, roles: Roles) -> Callable:
    """Returns a probe of representations, compiled for R runs: activations `[R, N, D]` and factors `[R, N]`."""
    return jax.jit(jax.vmap(lambda phi, factors: PROBES[name].function(*_halves(phi, factors), dict(roles))))


class _Inputs:
    """The probe examples of a chunk's runs, drawn again by a separate program and checked against the stored factors."""

    def __init__(self, chunk: Chunk):
        self.chunk = chunk
        self.found: dict[int, training.Probe] = {}  # by first run of a block

    def of(self, block: Block, dials: Dials, seeds: np.ndarray) -> training.Probe:
        """Returns the probe examples of a block's runs, `[lanes, N, ...]`.

        Raises StoreError if their factors are not those that were stored.
        """
        if block.first not in self.found:
            probe = _probe_program(self.chunk.group.static)(dials, jnp.asarray(seeds))
            for name, values in block.factors.items():
                if not np.array_equal(np.asarray(probe.factors[name]), values):
                    raise store.StoreError(
                        f"{self.chunk.path}: the probe examples drawn again do not have the stored factor {name}: the code "
                        f"that draws them has changed; measure with the code that trained, or train again"
                    )
            self.found = {block.first: probe}
        return self.found[block.first]


@functools.cache
def _probe_program(static: Static) -> Callable:
    """Returns a program that draws the probe examples of many runs, from their dials and seeds."""
    task, keep = static.config.task, static.config.keep
    return jax.jit(jax.vmap(lambda d, s: training.make_probe(task, keep.probe_set, d, s, keep.shared)))


@functools.cache
def _intervention(name: str, static: Static, view_name: str) -> Callable:
    """Returns an intervention on one view, compiled for many runs."""
    view, task = training.views_of(static)[view_name], static.config.task
    half = task.num_probe // 2

    def one(phi, factors, probe: training.Probe, params: Any, dials: Dials):
        def outputs(side: str, change):
            part = slice(0, half) if side == "fit" else slice(half, 2 * half)
            inputs, order = probe.inputs[part], probe.order if probe.order.ndim == 1 else probe.order[part]
            # The view is changed by an edit of its site, in the forward pass of the real input.
            change = jnp.broadcast_to(change, (half, phi.shape[-1]))
            shape = jax.eval_shape(lambda: training.forward(static, dials, params, inputs, order)[1][view.site]).shape[1:]
            edits = {view.site: jax.vmap(view.spread)(change).reshape(half, *shape)}  # pyright: ignore[reportArgumentType]
            logits, _ = training.forward(static, dials, params, inputs, order, edits)
            values = training.output_values(task)
            return {factor: logits[:, o, : values[o]] for o, factor in enumerate(reported(task))}

        own = {factor: factors[factor] for factor in whole_factors(dict(roles_of(static)))}
        return PROBES[name].function(*_halves(phi, own), outputs)

    return jax.jit(jax.vmap(one))


def _intervene(name: str, block: Block, params: Any, inputs: _Inputs) -> Mapping[Measured, Any]:
    """Returns what an intervention measures on the runs of a block. Args: params of the whole chunk, `[runs, ...]`."""
    static, count = block.chunk.group.static, len(block.runs)
    full = [*range(count), *[count - 1] * (len(block.activations) - count)]
    each = [block.chunk.group.dials[block.runs[i][0]] for i in full]
    dials = jax.tree.map(lambda *x: jnp.stack(x), *each)
    probe = inputs.of(block, dials, np.asarray([block.runs[i][1] for i in full], np.int32))
    own = jax.tree.map(lambda x: x[block.first + np.asarray(full)], params)
    return _intervention(name, static, block.site)(block.activations, block.factors, probe, own, dials)


def _restored(folder: Path, chunk: Chunk) -> Any:
    """Returns the final weights of a chunk's runs, `[runs, ...]`, checked against the done marker."""
    static, (setting, seed) = chunk.group.static, chunk.runs[0]
    one = jax.eval_shape(lambda d, s: training.init(static, d, s), chunk.group.dials[setting], jnp.int32(seed))
    done = store.read_json(folder / "done.json", "train")
    checkpoints = store.Checkpoints(folder / "checkpoint")
    try:
        # The shardings that were saved are not used, because they may name devices that this process does not have.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = population.saved_like(one, chunk, here)
        fingerprint = jax.jit(jax.vmap(jax.vmap(store.fingerprint)))
        step, saved, _ = checkpoints.restore(like, lambda found: population.is_sound(fingerprint, found), False)
    finally:
        checkpoints.close()
    prints = [] if saved is None else [f"{int(p):08x}" for p in np.asarray(saved.fingerprints).reshape(-1)]
    if saved is None or step != done["steps"] or prints[: len(chunk.runs)] != [r["fingerprint"] for r in done["runs"]]:
        raise store.StoreError(f"{folder}/checkpoint: damaged; delete {folder} and rerun --stage=train")
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(chunk.runs)], saved.state.params)


def _rows(block: Block, probe: str, found: Mapping[Measured, Any]) -> Iterator[tuple[Any, ...]]:
    """Yields rows, from the CSV column `setting` on, for one block and probe."""
    sound = np.asarray(np.isfinite(block.activations).all(axis=(1, 2)))
    spread, size = np.ptp(block.activations, axis=1).max(axis=1), np.abs(block.activations).max(axis=(1, 2))
    living: np.ndarray = spread > 1e-6 * size
    numbers: dict[Measured, Any] = jax.device_get(dict(found))
    for key, values in numbers.items():
        for i, (setting, seed) in enumerate(block.runs):
            value, reason = values[i] if sound[i] else np.nan, ""
            if np.isnan(value):
                constant = "undefined" if key.at else "constant feature"
                reason = "diverged" if not sound[i] else constant if living[i] else "constant layer"
            yield (
                setting, seed, block.step, block.site, probe, key.metric, key.feature, key.other, key.at,
                "score", store.number(value), reason,
            )  # fmt: skip


def _of_final(rows: list[tuple[Any, ...]], chunk: Chunk) -> list[tuple[Any, ...]]:
    """Returns the rows and adds `r2_of_final` = variance(t) / total_variance(T) for each row of `variance`.

    All snapshots along training thus have one scale, that of the last one. (It is not 1 - SSE_t / SST_T, which tends to 1
    for a small representation.)
    """
    last = chunk.group.static.config.num_steps
    totals = {(r[0], r[1], r[3]): r for r in rows if r[2] == last and r[5] == "total_variance"}
    added = []
    for row in rows:
        if row[5] == "variance":
            total = totals[row[0], row[1], row[3]]
            share = float(row[10]) / float(total[10]) if row[10] and total[10] and float(total[10]) > 0 else np.nan
            reason = "" if np.isfinite(share) else row[11] or total[11] or "constant layer at the last snapshot"
            added.append((*row[:5], "r2_of_final", *row[6:10], store.number(share), reason))
    return rows + added
