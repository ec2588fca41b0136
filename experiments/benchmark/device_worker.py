"""Tasks of a process on the device (or, for comparison, on the CPU): one task per process, answered with one JSON line.

python -m experiments.benchmark.device_worker TASK '{"lanes": 4, ...}'

Only `Population` uses the package's training, so that a change there needs a single edit here.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.networks import config_of, step_flops
from repbias_jax import devices, layout, planning, population, training, variance_explained
from repbias_jax.config import Experiment, override_all

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")


class Population:
    """Runs of the base MLP, or of a form of another network, as lanes of one device.

    Args: lanes; smoke: whether to use the small size; sgd: whether to use SGD at 0.1 in place of Adam; options: compiler
    options that replace those of the package; None: the package's; form: see `networks`; empty: the MLP.
    """

    def __init__(
        self, lanes: int, smoke: bool, sgd: bool = False, options: Mapping[str, Any] | None = None, form: str = ""
    ):  # fmt: skip
        self.lanes, self.config = lanes, config_of(smoke, form)
        if sgd:
            self.config = override_all(self.config, {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1})
        if options is not None:
            devices.OPTIONS["gpu"] = dict(options)
        group = layout.groups_of({"base": self.config}, jax.default_backend(), lanes)[0]
        self.programs = population.Programs(group.static, population.make_mesh(1))
        one = group.dials["base"]
        self.dials = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (1, lanes, *np.shape(x))).copy(), one)
        self.seeds = np.arange(lanes, dtype=np.int32)[None]

    def data(self) -> training.Data:
        """Returns the data of all runs."""
        return jax.block_until_ready(self.programs.data(self.dials, self.seeds))

    def init(self) -> training.State:
        """Returns the initial state of all runs."""
        return self.programs.init(self.dials, self.seeds)

    def train(self, data: training.Data, state: training.State, start: int, stop: int) -> training.State:
        """Trains all runs from step `start` to step `stop`; returns their state."""
        bounds = (np.int32(start), np.int32(stop))
        return jax.block_until_ready(self.programs.segment(self.dials, self.seeds, data, state, *bounds))

    def prints(self, state: training.State) -> list[int]:
        """Returns the fingerprints of the runs."""
        return np.asarray(self.programs.fingerprint(state)).reshape(-1).tolist()


def describe() -> dict[str, Any]:
    """Returns the backend, the device, its memory in bytes and the versions of packages."""
    device, versions = jax.devices()[0], {}
    for distribution in importlib.metadata.distributions():
        if distribution.metadata["Name"] in PACKAGES:
            versions[distribution.metadata["Name"]] = distribution.version
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    return {"backend": device.platform, "device": device.device_kind, "bytes": memory, "versions": versions}


def numbers(lanes: int, smoke: bool, steps: int, path: str) -> None:
    """Writes data, weights after `steps` updates of SGD and of Adam, and r2 of each feature in an artificial layer."""
    runs, found = Population(lanes, smoke), {}
    data = runs.data()
    found |= {f"data/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(data))}
    for name, trained in (("Adam", runs), ("SGD", Population(lanes, smoke, sgd=True))):
        state = trained.train(data, trained.init(), 0, steps)
        found |= {f"weights, {name}/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state.params))}
    inputs = np.asarray(data.probe.inputs)[0, 0]
    layer = np.tanh(inputs @ np.random.default_rng(0).normal(size=(inputs.shape[-1], 64)))  # by numpy: alike everywhere
    halves = [int(i >= len(layer) // 2) for i in range(len(layer))]
    factors = {name: np.asarray(data.probe.factors[name])[0, 0] for name in runs.config.task.features}
    for name, measured in variance_explained(layer, factors, halves).items():
        found[f"probes/{name}"] = np.asarray([measured["r2"]])
    np.savez(path, **found)  # pyright: ignore[reportArgumentType]


def resume(
    lanes: int,
    smoke: bool,
    half: int,
    stop: int,
    load: str = "",
    save: str = "",
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Returns the fingerprints after `stop` updates.

    Training starts from the state in `load` at step `half`, or, without `load`, at step 0; the state at `half` is then
    written to `save`.
    """
    runs = Population(lanes, smoke, options=options)
    data, state = runs.data(), runs.init()
    if load:
        with np.load(load) as file:
            leaves, shape = jax.tree.flatten(state)
            state = jax.tree.unflatten(shape, [jnp.asarray(file[str(i)]) for i in range(len(leaves))])
    else:
        state = runs.train(data, state, 0, half)
        leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
        np.savez(save, **leaves)  # pyright: ignore[reportArgumentType]
    return runs.prints(runs.train(data, state, half, stop))


def speed(
    lanes: int, smoke: bool, seconds: float, options: Mapping[str, Any] | None = None, form: str = ""
) -> dict[str, float]:  # fmt: skip
    """Returns run-steps per second after a warm-up, FLOP/s of the matrix products, and the device's peak bytes."""
    runs = Population(lanes, smoke, options=options, form=form)
    data, state, epoch = runs.data(), runs.init(), runs.config.steps_per_epoch
    flops = step_flops(runs.config, state.params)
    step, begun = 0, time.perf_counter()
    for _ in range(2):  # command buffers are recorded in the second execution
        begun, state, step = time.perf_counter(), runs.train(data, state, step, step + epoch), step + epoch
    passes = max(1, int(seconds / (time.perf_counter() - begun)))
    begun = time.perf_counter()
    runs.train(data, state, step, step + passes * epoch)
    rate = passes * epoch * lanes / (time.perf_counter() - begun)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {"rate": rate, "flops": rate * flops, "peak_bytes": peak}


def predict(lanes: int, smoke: bool) -> float:
    """Returns the bytes on the device that `planning` predicts for this many runs at once."""
    experiment = Experiment("memory", "memory", config_of(smoke), (("all", ()),), num_seeds=lanes)
    configs, groups, backend = planning.check(experiment, jax.default_backend(), lanes)
    laid = layout.Layout(1, 0, (lanes,))
    return planning.estimate(planning.Plan(experiment, configs, groups, laid, backend))["device_bytes"]


def product(size: int, seconds: float) -> dict[str, float]:
    """Returns the FLOP/s of one large matrix product in float32, without and with TF32."""
    matrix, found = jax.random.normal(jax.random.key(0), (size, size)), {}
    for name, precision in (("float32", "highest"), ("tf32", "default")):
        multiply = jax.jit(lambda a, p=precision: jnp.matmul(a, a, precision=p))
        multiply(matrix).block_until_ready()
        begun, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - begun < seconds:
            multiply(matrix).block_until_ready()
            count += 1
        found[name] = 2 * size**3 * count / (time.perf_counter() - begun)
    return found


def dump(lanes: int, smoke: bool, folder: str, form: str = "") -> None:
    """Writes training and test sets as arrays `[K, N, ...]`, for the baselines."""
    for name, value in Population(lanes, smoke, form=form).data()._asdict().items():
        if name.startswith(("train_", "test_")):
            np.save(Path(folder) / f"{name}.npy", np.asarray(value)[0])


TASKS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (describe, numbers, resume, speed, predict, product, dump)}


def main(task: str, settings: Mapping[str, Any]) -> None:
    """Runs a task and prints its answer to standard output, which nothing else uses."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(TASKS[task](**settings)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
