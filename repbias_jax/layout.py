"""Decides which runs train together, and at which steps training stops to be observed.

Runs that share their static half form a group, whose programs are compiled once. A chunk is `rows x lanes` runs that
train at once: rows are sharded over devices, lanes are the innermost `vmap`. Bits depend on the number of lanes and not on
the number of devices, chunks or runs, so lanes are determined by the bytes of a run and constants of the backend alone.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from repbias_jax import devices, store, training
from repbias_jax.config import Config, Dials, Runtime, Static, dials_of, sparse, static_half

LANES = {"cpu": Runtime.lanes, "gpu": 64, "tpu": 16}  # measured on CPU and on an H100; on TPU only a first guess
LANE_BYTES = {"cpu": 64e6, "gpu": 4e9, "tpu": 1e9}  # the most bytes of weights and optimizer state, over all lanes
# The most bytes that a batch keeps for its gradient, over all lanes: measured on CPU, elsewhere only a guess.
KEPT_BYTES = {"cpu": 13e6, "gpu": 16e9, "tpu": 4e9}


class Group(NamedTuple):
    """All settings that share their static half."""

    name: str
    static: Static
    settings: tuple[str, ...]
    dials: Mapping[str, Dials]  # by setting

    @property
    def lanes(self) -> int:
        """Runs of a group that share a device and a `vmap`."""
        return self.static.runtime.lanes


class Chunk(NamedTuple):
    """The runs of a group that train at once; the unit of memory, checkpoint and resume."""

    group: Group
    name: str
    runs: tuple[tuple[str, int], ...]  # (setting, seed)
    rows: int

    @property
    def path(self) -> str:
        """Folder below the experiment's."""
        return f"{self.group.name}/{self.name}"


class Layout(NamedTuple):
    """How runs are laid out. This is decided when a workdir is made, and kept, because bits depend on it."""

    rows: int  # the most rows of a chunk: the number of devices when the workdir was begun
    seed: int
    extents: tuple[int, ...]  # numbers of seeds, such as 4, then extended to 16
    caps: Mapping[str, int] = {}  # the most seeds that a setting has, whatever the extents
    least_rows: int = 1  # the fewest rows of a chunk; on CPU 2, since the program for one device differs
    first_seeds: Mapping[str, int] = {}  # the first seed of each setting that has seeds of its own


def groups_of(configs: Mapping[str, Config], backend: str, lanes: int = 0) -> list[Group]:
    """Groups settings by their static half, in order of appearance.

    Args:
      configs: by full name of the setting.
      backend: the backend that trains.
      lanes: runs of a group that share a device; 0: as many as `lanes_of` gives.
    """
    found: dict[Static, list[str]] = {}
    for name, config in configs.items():
        found.setdefault(static_half(config, Runtime(backend)), []).append(name)
    groups = []
    for static, names in found.items():
        dials = {name: dials_of(configs[name]) for name in names}
        own = lanes or lanes_of(static, dials[names[0]])
        static = Static(static.config, static.switches, Runtime(backend, own))
        code = store.digest([sparse(static.config), static.switches, static.runtime.__dict__])[:8]
        groups.append(Group(f"{names[0]}-{code}", static, tuple(names), dials))
    return groups


def probes_of(static: Static, probes: Sequence[str]) -> tuple[str, ...]:
    """Returns the probes of a group: those of the experiment, and those of its own."""
    return (*probes, *(name for name in static.config.keep.probes if name not in probes))


def lanes_of(static: Static, dials: Dials) -> int:
    """Returns the lanes of a group, a power of two: LANES, halved until states and batches fit into their bounds."""
    backend = static.runtime.backend
    most = LANES.get(backend, 8)
    params = training.shapes_of_batch(static, dials)[0]
    sizes = (16 * training.count(params), LANE_BYTES), (training.kept_bytes(static, dials), KEPT_BYTES)
    while most > 1 and any(most * size > room.get(backend, 1e9) for size, room in sizes):
        most //= 2
    return most


def count_runs(groups: Sequence[Group], layout: Layout) -> int:
    """Returns the number of runs of an experiment, computed without listing them."""
    return sum(len(_seeds_of(name, layout, 0, layout.extents[-1])) for group in groups for name in group.settings)


def chunks_of(groups: Sequence[Group], layout: Layout) -> list[Chunk]:
    """Returns all chunks; adding an extent does not change the chunks of the extents before."""
    chunks = []
    for group in groups:
        pieces: list[tuple[int, tuple[tuple[str, int], ...]]] = []
        for low, high in itertools.pairwise((0, *layout.extents)):
            seeds = {name: _seeds_of(name, layout, low, high) for name in group.settings}
            ordered = range(low, max(r.stop for r in seeds.values()))
            runs = [(n, layout.first_seeds.get(n, layout.seed) + k) for k in ordered for n in seeds if k in seeds[n]]
            pieces += pieces_of(runs, layout, group.lanes)
        chunks += [Chunk(group, f"chunk_{i:03d}", runs, rows) for i, (rows, runs) in enumerate(pieces)]
    return chunks


def _seeds_of(setting: str, layout: Layout, low: int, high: int) -> range:
    """Returns which seeds of a setting, counted from its first seed, an extent adds.

    Seeds of a setting that has its own all belong to the first extent.
    """
    if setting in layout.first_seeds:
        return range(layout.caps[setting] if low == 0 else 0)
    return range(low, min(high, layout.caps.get(setting, high)))


def pieces_of(runs: Sequence[Any], layout: Layout, lanes: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yields the rows and the runs of each chunk: all have the same rows, and filled rows differ by at most one."""
    filled = math.ceil(len(runs) / lanes)
    count = math.ceil(filled / layout.rows)
    rows = max(layout.least_rows, math.ceil(filled / max(count, 1)))
    first = 0
    for i in range(count):
        size = (filled // count + (i < filled % count)) * lanes
        yield rows, tuple(runs[first : first + size])
        first += size


def shard_of(chunks: Sequence[Chunk], index: int, count: int) -> list[Chunk]:
    """Returns the chunks of one of `count` independent processes: assigned round-robin, most expensive first.

    Every chunk is in exactly one shard, whatever `count` is; a process that is started again with another `count`
    skips what is done.
    """
    if count == 1:
        return list(chunks)
    flops = chunk_flops(chunks)
    dealt = sorted(range(len(chunks)), key=lambda i: -flops[i])  # stable: every process assigns alike
    return [chunks[i] for i in sorted(dealt[index::count])]


def chunk_flops(chunks: Sequence[Chunk]) -> list[float]:
    """Returns the floating-point operations that train each chunk, with those of the copies that fill it up."""
    groups = {chunk.group.name: chunk.group for chunk in chunks}  # counting operations is slow: once per group
    each = {name: group.lanes * group.static.config.num_steps * step_flops(group) for name, group in groups.items()}
    return [chunk.rows * each[chunk.group.name] for chunk in chunks]


def step_flops(group: Group) -> float:
    """Returns the floating-point operations of one update of one run: three times those of the loss of a batch.

    XLA counts them for a CPU, since other backends give no count before compilation. If JAX_PLATFORMS excludes the CPU,
    they are those of dense layers with as many parameters.
    """
    static, dials = group.static, group.dials[group.settings[0]]
    params, *batch = training.shapes_of_batch(static, dials)
    host = devices.host()
    if host is None:
        return 6.0 * static.config.training.batch_size * training.count(params)
    with jax.default_device(host):
        loss = jax.jit(functools.partial(training.loss_of_batch, static)).lower(dials, params, *batch)
        found: Any = loss.cost_analysis()
    return 3.0 * float(found["flops"])


def snapshots_of(config: Config) -> tuple[int, ...]:
    """Returns the steps at which the view along training is kept."""
    keep, end, steps, step = config.keep, config.num_steps, [0], 0
    while keep.every:
        late = keep.until and keep.every_late and step >= keep.until
        step += keep.every_late if late else keep.every
        if step >= end:
            break
        steps.append(step)
    return (*steps, end) if end else (0,)


def points_of(config: Config) -> tuple[int, ...]:
    """Returns the steps at which segments end, step 0 first: the points of the curves, which include all snapshots."""
    regular = range(0, config.num_steps, config.training.observe_every)
    first, last = (round(share * config.num_steps) for share in config.training.dense or (0, 0))
    dense = range(first, last, config.training.dense_every)
    return tuple(sorted({*regular, *dense, *snapshots_of(config), config.num_steps}))


def snapshots_by_view(static: Static) -> dict[str, tuple[int, ...]]:
    """Returns the steps at which each stored view is kept."""
    along, ends = training.along_view(static), tuple(sorted({0, static.config.num_steps}))
    return {name: snapshots_of(static.config) if name == along else ends for name in training.stored_views(static)}
