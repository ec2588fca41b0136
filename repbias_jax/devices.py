"""Distributes runs over devices and, if requested, over the processes of one `jax.distributed` job.

Arrays of runs are `[rows, lanes, ...]`: rows are sharded over devices, one row per device; lanes are the innermost `vmap`.
Compiled programs contain no collective operation; processes communicate only between segments, in `agree` and `gather`.
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
# it, so sums must not depend on the order in which threads finish, and kernels must not be chosen by measuring their speed.
OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_deterministic_ops": True, "xla_gpu_autotune_level": 0}}
AT_ONCE = 64  # lanes that an accelerator computes at the same time, in programs that run once per chunk


def make_mesh(rows: int) -> Mesh:
    """Returns a mesh over the largest number of devices, of all processes, that divides the number of rows."""
    devices = jax.devices()
    size = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
    return jax.make_mesh((size,), ("runs",), axis_types=(AxisType.Auto,), devices=devices[:size])


class Spread:
    """A function of one run, applied to runs `[rows, lanes]`: one row per device, lanes at once.

    The program on a device is always that of ONE row, so that bits do not depend on the number of devices. If there are
    more rows than devices (a workdir begun on a larger machine), as many rows as devices are computed at a time.
    """

    def __init__(self, mesh: Mesh, function: Callable, mapped: int, shared: int = 0, once: bool = False):
        """Builds the program without compiling it.

        Args:
          mesh: with one axis, `runs`.
          function: of `mapped` arguments of one run and then `shared` ones.
          mapped: number of arguments with leading axes `[rows, lanes]`.
          shared: number of arguments that are the same for all runs.
          once: for functions that run once per chunk and need much memory or compile slowly. Their lanes are computed in
            turn on CPU, with less compiler optimization; elsewhere, AT_ONCE lanes at a time.
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
        """Returns the function's values, `[rows, lanes, ...]`. Args: mapped ones `[rows, lanes, ...]`, then shared ones."""
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
    """Returns the CPU as a device of JAX; None if JAX_PLATFORMS excludes it."""
    platforms = (jax.config.jax_platforms or "").split(",")  # pyright: ignore[reportAttributeAccessIssue]
    return None if any(platforms) and "cpu" not in platforms else jax.local_devices(backend="cpu")[0]


def memory_bytes() -> int:
    """Returns the memory of a local device in bytes; for a CPU, what is available to this process; 0 if unknown."""
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
    """Returns whether this process is the one that holds locks and writes what is written once."""
    return jax.process_index() == 0


def rows_here(rows: int, mesh: Mesh) -> range:
    """Returns the rows that live on this process's devices; with one process, all rows."""
    if jax.process_count() == 1:
        return range(rows)
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return range(mine[0], mine[-1] + 1)


def place(values: np.ndarray, rows: int, here: range, sharding: NamedSharding) -> jax.Array:
    """Returns an array `[rows, ...]` over all devices, whose rows on this process are `values` `[rows here, ...]`."""

    def part(index: Any) -> np.ndarray:
        first, last, _ = index[0].indices(rows)
        return values[first - here.start : last - here.start]

    return jax.make_array_from_callback((rows, *values.shape[1:]), sharding, part)


def fetch(array: jax.Array) -> np.ndarray:
    """Returns the rows of this process, on the host."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def gather(array: jax.Array) -> np.ndarray:
    """Returns all rows, on every host."""
    return np.asarray(array) if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)


def agree(*numbers: float) -> Sequence[Any]:
    """Returns the largest of each number over all processes, so that all decide alike; with one process, the numbers."""
    if jax.process_count() == 1:
        return numbers
    return multihost_utils.process_allgather(np.asarray(numbers, np.float64)).max(axis=0)
