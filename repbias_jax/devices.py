"""Laying runs over devices and, where asked for, over the processes of one `jax.distributed` job.

Arrays of runs are `[rows, lanes, ...]`: rows are sharded over devices, a row a device, lanes are the innermost `vmap`.
Compiled programs have no collective; processes speak to each other only between segments, here, in `agree` and `gather`.
"""

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Compiler options of training programs. On a GPU a process that resumes must compute the same bits as the process before
# it. So sums may not depend on the order in which threads finish, and kernels may not be chosen by measuring their speed.
OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}}
AT_ONCE = 64  # lanes of what runs once a chunk that an accelerator does at the same time


def make_mesh(rows: int) -> Mesh:
    """A mesh over as many devices, of all processes, as divide the rows evenly."""
    devices = jax.devices()
    size = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
    return jax.make_mesh((size,), ("runs",), axis_types=(AxisType.Auto,), devices=devices[:size])


class Spread:
    """A function of one run, for runs `[rows, lanes]`: a row a device, lanes at once.

    The program on a device is always that of ONE row, so that bits do not depend on the number of devices. Where there
    are more rows than devices (a workdir begun on a larger machine), as many rows as devices are done at a time.
    """

    def __init__(self, mesh: Mesh, function: Callable, mapped: int, shared: int = 0, once: bool = False):
        """Compiles nothing yet.

        Args:
          mesh: one axis, `runs`.
          function: of `mapped` arguments of one run and then `shared` ones.
          mapped: arguments with leading axes `[rows, lanes]`.
          shared: arguments that are the same for all.
          once: for what runs once a chunk, and needs memory or compiles slowly: lanes in turn on CPU, with less
            optimization; a number of lanes at a time elsewhere.
        """
        platform = mesh.devices.flat[0].platform

        def on_device(*arguments):
            row, common = jax.tree.map(lambda x: x[0], arguments[:mapped]), arguments[mapped:]

            def one_run(*run):
                return function(*run, *common)

            if once:
                found = jax.lax.map(lambda run: one_run(*run), row, batch_size=None if platform == "cpu" else AT_ONCE)
            else:
                found = jax.vmap(one_run)(*row)
            return jax.tree.map(lambda x: x[None], found)

        specs = (P("runs"),) * mapped + (P(),) * shared
        mapped_rows = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P("runs"))
        options = {"xla_backend_optimization_level": 1} if once and platform == "cpu" else OPTIONS.get(platform)
        self.program = jax.jit(mapped_rows, compiler_options=options)
        self.mapped, self.devices, self.sharding = mapped, mesh.size, NamedSharding(mesh, P("runs"))

    def __call__(self, *arguments):
        """The function's values, `[rows, lanes, ...]`. Args: the mapped ones `[rows, lanes, ...]`, then the shared ones."""
        own, common = arguments[: self.mapped], arguments[self.mapped :]
        rows = jax.tree.leaves(own)[0].shape[0]
        if rows == self.devices:
            return self.program(*arguments)
        found = []
        for first in range(0, rows, self.devices):
            piece = jax.tree.map(lambda x, a=first: x[a : a + self.devices], own)
            found.append(self.program(*jax.device_put(piece, self.sharding), *common))
        return jax.device_put(jax.tree.map(lambda *x: jnp.concatenate(x), *found), self.sharding)


def host() -> Any:
    """The CPU as a device of JAX; None where JAX_PLATFORMS leaves it out."""
    platforms = (jax.config.jax_platforms or "").split(",")  # pyright: ignore[reportAttributeAccessIssue]
    return None if any(platforms) and "cpu" not in platforms else jax.local_devices(backend="cpu")[0]


def memory_bytes() -> int:
    """Memory of a local device; of a CPU what is available to this process; 0: unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("bytes_limit", 0))
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    found = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    group = Path("/sys/fs/cgroup/memory.max")
    text = group.read_text().strip() if group.is_file() else "max"
    found += [int(text)] if text.isdigit() else []
    memory = Path("/proc/meminfo")
    lines = memory.read_text().splitlines() if memory.is_file() else []
    found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min(found, default=0)


def is_first() -> bool:
    """Whether this process is the one that holds locks and writes what is written once."""
    return jax.process_index() == 0


def rows_here(rows: int, mesh: Mesh) -> range:
    """The rows that live on this process's devices; with one process, all."""
    if jax.process_count() == 1:
        return range(rows)
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return range(mine[0], mine[-1] + 1)


def place(values: np.ndarray, rows: int, here: range, sharding: NamedSharding) -> jax.Array:
    """Rows of this process `[rows here, ...]` as their part of an array `[rows, ...]` over all devices."""

    def part(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(rows)
        return values[first - here.start : last - here.start]

    return jax.make_array_from_callback((rows, *values.shape[1:]), sharding, part)


def fetch(array: jax.Array) -> np.ndarray:
    """The rows of this process, on the host."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def gather(array: jax.Array) -> np.ndarray:
    """All rows, on every host."""
    return np.asarray(array) if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)


def agree(*numbers: float) -> Sequence[Any]:
    """The largest of each number over all processes: what they decide together. With one process, the numbers."""
    if jax.process_count() == 1:
        return numbers
    return multihost_utils.process_allgather(np.asarray(numbers, np.float64)).max(axis=0)
