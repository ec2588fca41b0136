"""Contenders of the benchmark that use this package or plain JAX, each in a separate process.

python -m experiments.benchmark.contenders KIND '{"devices": 2, "lanes": 4, ...}'  then: {"method": "advance", "epochs": 2}
"""

import functools
import importlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from experiments.benchmark import profiled
from experiments.benchmark.baselines import serve
from experiments.benchmark.networks import config_of, part_of, step_flops
from repbias_jax import layout, measure, population, store, training
from repbias_jax.config import num_outputs
from repbias_jax.models import convnet, convolution
from repbias_jax.probes import PROBES
from repbias_jax.probes.moments import Measured

NOISE = 0.1  # standard deviation of what is added to initial weights before losses are compared


class Ours:
    """Chunks of runs, as `population` trains them.

    Settings: devices, lanes (0: as many as planning chooses), smoke; optional: form (default: the MLP), runs (default: one
    chunk), cache (default: none), updates, to make epochs shorter, and native, for XLA's own convolutions on a CPU.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self.settings, rows = settings, settings["devices"]
        if settings.get("cache"):
            jax.config.update("jax_compilation_cache_dir", settings["cache"])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        if settings.get("native"):
            convnet.convolve = native_convolution
        jax.config.update("jax_num_cpu_devices", rows)
        self.config = config_of(settings["smoke"], settings.get("form", ""))
        groups = layout.groups_of({"base": self.config}, "cpu", settings["lanes"])
        self.shape = rows, groups[0].lanes
        laid = layout.Layout(rows, 0, (settings.get("runs", math.prod(self.shape)),))
        self.chunks = layout.chunks_of(groups, laid)
        self.programs = population.Programs(groups[0].static, population.make_mesh(rows))
        one = groups[0].dials["base"]
        stacked = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (*self.shape, *x.shape)).copy(), one)
        self.dials = jax.device_put(stacked, self.programs.sharding)
        self.step, self.state = 0, training.State(None, None)

    def begin(self, chunk: int = 0) -> None:
        """Draws the data and initial weights of a chunk."""
        seeds = np.asarray([k for _, k in self.chunks[chunk].runs], np.int32).reshape(self.shape)
        self.seeds = jax.device_put(seeds, self.programs.sharding)
        self.data = jax.block_until_ready(self.programs.data(self.dials, self.seeds))
        self.reset()

    def reset(self) -> None:
        """Re-initialises the weights."""
        self.step, self.state = 0, self.programs.init(self.dials, self.seeds)

    def advance(self, epochs: int) -> int:
        """Continues the training of a chunk; returns the number of run-steps."""
        if self.state.params is None:
            self.begin()
        steps = epochs * (self.settings.get("updates") or self.config.steps_per_epoch)
        begin, end = np.int32(self.step), np.int32(self.step + steps)
        self.state = self.programs.segment(self.dials, self.seeds, self.data, self.state, begin, end)
        jax.block_until_ready(self.state)
        self.step += steps
        return steps * self.seeds.size

    def train(self, epochs: int) -> list[list[float]]:
        """Trains from initial weights; returns the test accuracy (mean over classes) of each run and output."""
        self.begin()
        self.advance(epochs)
        curves = np.asarray(self.programs.observe(self.dials, self.data, self.state))
        return curves.reshape(-1, *curves.shape[2:])[:, 1, :, 1].tolist()

    def sweep(self, passes: int, chunks: int = 0) -> int:
        """Trains every chunk, or the first `chunks`, for an epoch per pass; returns the number of run-steps.

        Apart from writing files, it does all the work of `population` around an epoch.
        """
        done = 0
        for _ in range(passes):
            for chunk in range(chunks or len(self.chunks)):
                self.begin(chunk)
                done += self.advance(1)
                jax.device_get(self.programs.observe(self.dials, self.data, self.state))
                jax.device_get(self.programs.fingerprint(self.state))
        return done

    def first(self) -> dict[str, float]:
        """Returns the seconds of the first calls (`data`; `first`: init and an epoch) and of a `warm` epoch afterwards."""
        clock = [time.perf_counter()]
        for call in (self.begin, lambda: self.advance(1), lambda: self.advance(1)):
            call()
            clock.append(time.perf_counter())
        data, first, warm = np.diff(clock)
        return {"data": data, "first": first, "warm": warm}

    def profile(self) -> dict[str, float]:
        """Returns the share of each kind of operation in the time of an epoch, after one that is not counted."""
        self.advance(1)
        arguments = (self.dials, self.seeds, self.data, self.state, np.int32(0), np.int32(1))
        program = self.programs.segment.program.lower(*arguments).compile().as_text() or ""
        seconds = profiled.seconds_by_operation(lambda: self.advance(1))
        return profiled.shares(program, seconds, part_of(self.settings["form"]))

    def dump(self, folder: str) -> None:
        """Writes the data of all runs as arrays `[K, N, ...]`."""
        found = []
        for chunk in range(len(self.chunks)):
            self.begin(chunk)
            found.append({n: np.asarray(v) for n, v in self.data._asdict().items() if n.startswith(("train_", "test_"))})
        for name in found[0]:
            pieces = [piece[name].reshape(-1, *piece[name].shape[2:]) for piece in found]
            np.save(Path(folder) / f"{name}.npy", np.concatenate(pieces))

    def flops(self) -> float:
        """Returns the FLOP of the matrix products of one update of one run."""
        self.begin()
        return step_flops(self.config, self.state.params)

    def losses(self, path: str) -> list[float]:
        """Returns the loss of each run on its first batch, for initial weights plus noise; saves these, `[K, ...]` each."""
        static, rng, batch = self.chunks[0].group.static, np.random.default_rng(0), self.config.training.batch_size
        loss = jax.jit(jax.vmap(functools.partial(training.loss_of_batch, static)))
        weights, found = [], []
        for chunk in range(len(self.chunks)):
            self.begin(chunk)
            arrays = (self.dials, self.state.params, self.data.train_inputs, self.data.train_labels, self.data.train_order)
            flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), arrays)
            dials, params, inputs, labels, order = flat
            params = jax.tree.map(lambda x: x + NOISE * rng.normal(size=x.shape).astype(x.dtype), params)
            found += np.asarray(loss(dials, params, inputs[:, :batch], labels[:, :batch], order)).tolist()
            weights.append(flatten_dict(params["params"], sep="."))
        stacked = {name: np.concatenate([w[name] for w in weights]) for name in weights[0]}
        np.savez(path, **stacked)  # pyright: ignore[reportArgumentType]
        return found

    def save(self, folder: str) -> float:
        """Trains an epoch, then fingerprints and saves all runs; returns the seconds of the latter."""
        if not hasattr(self, "checkpoints"):
            self.checkpoints = store.Checkpoints(Path(folder))
        self.advance(1)
        points, outputs = len(layout.points_of(self.config)), num_outputs(self.config.task)
        shape = (*self.shape, points, len(training.SPLITS), outputs, len(training.METRICS))
        curves = jax.device_put(np.full(shape, np.nan, np.float32), self.programs.sharding)
        begun = time.perf_counter()
        prints, sums = (self.programs.fingerprint(x) for x in (self.state, curves))
        self.checkpoints.save(self.step, store.Saved(self.state, prints, curves, sums))
        return time.perf_counter() - begun

    def memory(self) -> float:
        """Returns the peak memory of this process, in MB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def native_convolution(images: Any, kernel: Any, strides: Any, padding: Any, **more: Any) -> Any:
    """Returns XLA's own convolution, which takes the place of `convolve` on a CPU. Args: as for `convolve`."""
    return convolution.native(images, kernel, strides, padding, more.get("precision"))


class Jitted:
    """A jitted step of one run, called in a Python loop. Settings: smoke, folder of the data, seeds (trained in turn)."""

    def __init__(self, settings: Mapping[str, Any]):
        self.settings, self.config = settings, config_of(settings["smoke"])
        group = layout.groups_of({"base": self.config}, "cpu")[0]
        self.static, self.dials = group.static, group.dials["base"]
        self.jitted, self.order = jax.jit(self._step), np.random.default_rng(0)
        self._begin(0)

    def _begin(self, run: int) -> None:
        folder, seed = Path(self.settings["folder"]), self.settings["seeds"][run]
        found = {path.stem: jnp.asarray(np.load(path, mmap_mode="r")[seed]) for path in folder.glob("t*_*.npy")}
        nothing = training.Probe(jnp.zeros(0), {}, found["train_order"])
        self.data = training.Data(**found, probe=nothing)
        self.state = training.init(self.static, self.dials, jnp.int32(seed))

    def _step(self, state: training.State, inputs: Any, labels: Any, chosen: Any) -> training.State:
        optimizer = training.make_optimizer(self.config.optimizer.name, self.dials)

        def loss(params):
            logits, _ = training.forward(self.static, self.dials, params, inputs[chosen], self.data.train_order)
            return jnp.sum(training.losses(self.config.training.loss, logits, labels[chosen]).mean(axis=0))

        updates, opt_state = optimizer.update(jax.grad(loss)(state.params), state.opt_state, state.params)
        return training.State(optax.apply_updates(state.params, updates), opt_state)

    def advance(self, epochs: int) -> int:
        """Continues training; returns the number of run-steps."""
        count, size = self.config.steps_per_epoch, self.config.training.batch_size
        for _ in range(epochs):
            order = self.order.permutation(self.config.task.num_train).astype(np.int32)
            for i in range(count):
                chosen = order[i * size : (i + 1) * size]
                self.state = self.jitted(self.state, self.data.train_inputs, self.data.train_labels, chosen)
        jax.block_until_ready(self.state)
        return epochs * count

    def train(self, epochs: int) -> list[list[float]]:
        """Trains every run from initial weights; returns test accuracies as `Ours.train` does."""
        found = []
        for run in range(len(self.settings["seeds"])):
            self._begin(run)
            self.advance(epochs)
            curves = training.observe(self.static, self.dials, self.data, self.state)
            found.append(np.asarray(curves)[1, :, 1].tolist())
        return found


class Product:
    """The product of two square matrices on one device; as many threads as JAX uses."""

    def __init__(self, settings: Mapping[str, Any]):
        self.matrix = jax.random.normal(jax.random.key(0), (settings["size"], settings["size"]))
        self.product = jax.jit(lambda a: jnp.matmul(a, a, precision="float32"))

    def advance(self, epochs: int) -> int:
        """Multiplies `epochs` times; returns this number."""
        for _ in range(epochs):
            self.product(self.matrix).block_until_ready()
        return epochs


class VarianceProbe:
    """The variance probe as `measure` runs it, on one snapshot of a hidden layer, and scikit-learn on the same arrays."""

    def __init__(self, settings: Mapping[str, Any]):
        trained = Ours(settings)
        trained.advance(2)
        programs = trained.programs
        sites = programs.represent(trained.dials, trained.data, trained.state)
        self.phi, factors = jax.device_get((sites["hidden_0"], trained.data.probe.factors))
        lanes = settings["lanes"]
        self.phi = self.phi.reshape(-1, *self.phi.shape[2:])[:lanes]  # [R, N, D]
        self.factors = {n: v.reshape(-1, v.shape[-1])[:lanes] for n, v in factors.items()}
        self.roles = dict(measure.roles_of(trained.chunks[0].group.static))
        self.names = [key.feature for key in self.ours() if key.metric == "r2"]

    @functools.cached_property
    def program(self) -> Callable:
        """All results of the probe, from `[R, N, D]` and factors `[R, N]`."""
        return self._compiled(lambda found: found)

    @functools.cached_property
    def program_r2(self) -> Callable:
        """r2 alone: results that are not returned are not computed."""
        return self._compiled(lambda found: {key: v for key, v in found.items() if key.metric == "r2"})

    def _compiled(self, keep: Callable) -> Callable:
        def one(phi, factors):
            half = len(phi) // 2
            fit = (phi[:half], {n: v[:half] for n, v in factors.items()})
            score = (phi[half:], {n: v[half:] for n, v in factors.items()})
            return keep(PROBES["variance"].function(fit, score, self.roles))

        return jax.jit(jax.vmap(one))

    def ours(self) -> dict[Measured, np.ndarray]:
        """Returns all results of the probe."""
        return jax.device_get(self.program(self.phi, self.factors))

    def ours_r2(self) -> dict[Measured, np.ndarray]:
        """Returns r2 alone."""
        return jax.device_get(self.program_r2(self.phi, self.factors))

    def scikit_r2(self, runs: int, permutations: int = 0) -> np.ndarray:
        """Returns r2 of every factor by LinearRegression on its one-hot columns, `[runs, F]`.

        Each r2 is also computed `permutations` times with permuted labels; these values are discarded.
        """
        linear, rng = importlib.import_module("sklearn.linear_model"), np.random.default_rng(0)
        found = np.zeros((runs, len(self.names)))
        for run in range(runs):
            fit, score = np.split(self.phi[run], 2)
            for i, name in enumerate(self.names):
                hot = np.eye(self.roles[name].values, dtype=np.float32)[self.factors[name][run]]
                fit_hot, score_hot = np.split(hot, 2)
                found[run, i] = self._one_r2(linear, fit_hot, fit, score_hot, score)
                for _ in range(permutations):
                    a, b = rng.permutation(fit_hot), rng.permutation(score_hot)
                    self._one_r2(linear, a, fit, b, score)
        return found

    @staticmethod
    def _one_r2(linear: Any, fit_hot: Any, fit: Any, score_hot: Any, score: Any) -> float:
        """Returns r2, fitted on one half and scored on the other against the FIT half's mean, as in our definition."""
        predicted = linear.LinearRegression().fit(fit_hot, fit).predict(score_hot)
        return 1 - np.square(score - predicted).sum() / np.square(score - fit.mean(0)).sum()

    def seconds(self, permuted_runs: int, permutations: int) -> dict[str, float]:
        """Returns the seconds for all runs of ours and of scikit-learn, for r2 alone and with permuted labels.

        With permuted labels, scikit-learn is measured on `permuted_runs` runs and scaled up.
        """
        runs = len(self.phi)
        return {
            "ours r2": _seconds(self.ours_r2),
            "scikit-learn r2": _seconds(lambda: self.scikit_r2(runs)),
            "ours": _seconds(self.ours),
            "scikit-learn": _seconds(lambda: self.scikit_r2(permuted_runs, permutations)) * runs / permuted_runs,
        }

    def difference(self) -> float:
        """Returns the largest absolute difference between our r2 and scikit-learn's."""
        ours = np.stack([self.ours()[Measured("r2", name)] for name in self.names], axis=1)
        return float(np.abs(ours - self.scikit_r2(len(self.phi))).max())


def _seconds(call: Callable) -> float:
    """Returns the mean seconds per call, over as many calls as fill a quarter of a second, at least one."""
    begun, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begun < 0.25:
        call()
        count += 1
    return (time.perf_counter() - begun) / count


KINDS = {"ours": Ours, "jitted": Jitted, "product": Product, "probe": VarianceProbe}

if __name__ == "__main__":
    serve(KINDS, sys.argv[1], json.loads(sys.argv[2]))
