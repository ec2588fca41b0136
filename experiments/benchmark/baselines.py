"""Baselines of the benchmark: the same network in PyTorch and scikit-learn, each in a separate process.

Every contender trains with Adam on the same arrays. A PyTorch run starts from the same distribution of weights
(LeCun-normal, biases zero); scikit-learn keeps its own (Glorot-uniform). Each member of an ensemble has its own data and
its own order of examples, as our runs have. This file imports neither JAX nor the package, so that the start-up cost of a
process is that of its own library. It is run as a script and answers calls, one JSON line each.

  python experiments/benchmark/baselines.py KIND '{"folder": ..., "seeds": [0]}' then: {"method": "advance", "epochs": 2}
"""

import importlib
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


class Contender:
    """Models in training.

    `settings`: folder of the data, seeds, learning_rate, batch, widths, and those of the kind; optional: values of an
    output (default: 2), and updates, to make epochs shorter.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self.settings, self.rate, self.batch = settings, settings["learning_rate"], settings["batch"]
        names = ("train_inputs", "train_labels", "test_inputs", "test_labels")
        arrays = [np.load(Path(settings["folder"]) / f"{name}.npy", mmap_mode="r") for name in names]
        self.arrays = [np.array(a[settings["seeds"]]) for a in arrays]  # [K, N, ...]
        self.outputs, self.values = self.arrays[1].shape[-1], settings.get("values", 2)
        self.per_epoch = settings.get("updates") or self.arrays[0].shape[1] // self.batch
        self._prepare()
        self._reset(0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The units of an MLP's layers, from the input to the logits."""
        return self.arrays[0].shape[-1], *self.settings["widths"], self.values * self.outputs

    def _prepare(self) -> None:
        """Does the work that is needed only once; nothing by default."""

    def runs(self) -> list[slice]:
        """Returns the groups of seeds that train together, in order."""
        return [slice(i, i + 1) for i in range(len(self.settings["seeds"]))]

    def _reset(self, run: int) -> None:
        """Initialises weights, optimizer and order of the data for one entry of `runs`."""
        raise NotImplementedError

    def advance(self, epochs: int) -> int:
        """Continues training; returns the number of run-steps."""
        raise NotImplementedError

    def _predictions(self) -> np.ndarray:
        """Returns the predicted classes on the test sets of the models that train together, `[K, N, O]`."""
        raise NotImplementedError

    def train(self, epochs: int) -> list[list[float]]:
        """Trains all seeds from initial weights; returns the test accuracy (mean over classes) of each run and output."""
        accuracies = []
        for run, members in enumerate(self.runs()):
            self._reset(run)
            self.advance(epochs)
            found, labels = self._predictions(), self.arrays[3][members]
            classes = range(self.values)
            by_class = [np.mean((found == c) & (labels == c), axis=1) / np.mean(labels == c, axis=1) for c in classes]
            accuracies += np.mean(by_class, axis=0).tolist()
        return accuracies


class TorchLoop(Contender):
    """Typical notebook code: DataLoader, nn.Sequential, torch.optim.Adam, one run; as many threads as PyTorch uses."""

    def _prepare(self) -> None:
        self.torch = load_torch(self.settings)

    def _reset(self, run: int) -> None:
        inputs, labels, test, _ = self.arrays
        self.tensors = [self.torch.tensor(inputs[run]), self.torch.tensor(labels[run], dtype=self.torch.int64)]
        self.test = self.torch.tensor(test[run])
        self.torch.manual_seed(self.settings["seeds"][run])
        self.model, parameters = self._build()
        self.optimizer = self.torch.optim.Adam(parameters, **self._adam())
        self.data = self._loader()

    def _build(self) -> tuple[Callable[[Any], Any], Iterable[Any]]:
        """Returns a network with initial weights, as a function of a batch, and its parameters."""
        nn, layers = self.torch.nn, []
        for fan_in, fan_out in pairwise(self.sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            nn.init.normal_(layers[-2].weight, std=fan_in**-0.5)
            nn.init.zeros_(layers[-2].bias)
        model = nn.Sequential(*layers[:-1])
        return model, model.parameters()

    def _adam(self) -> dict[str, Any]:
        """Returns the arguments of Adam."""
        return {"lr": self.rate}

    def _loader(self) -> Any:
        """Returns an iterable of batches, iterated once per epoch."""
        utils = self.torch.utils.data
        return utils.DataLoader(utils.TensorDataset(*self.tensors), batch_size=self.batch, shuffle=True, drop_last=True)

    def loss(self, x: Any, y: Any) -> Any:
        """Returns the cross-entropy of a batch: the mean over examples, summed over outputs."""
        return self.torch.nn.functional.cross_entropy(self.model(x).view(-1, self.values), y.view(-1)) * self.outputs

    def advance(self, epochs: int) -> int:
        """Continues training; returns the number of run-steps."""
        for _ in range(epochs):
            for x, y in self.data:
                self.optimizer.zero_grad()
                self.loss(x, y).backward()
                self.optimizer.step()
        return epochs * self.per_epoch

    def _predictions(self) -> np.ndarray:
        with self.torch.no_grad():
            return self.model(self.test).view(1, -1, self.outputs, self.values).argmax(-1).numpy()


class TorchTuned(TorchLoop):
    """The same loop with the usual advice: tensors shuffled in memory once per epoch, fused Adam, one thread."""

    def _adam(self) -> dict[str, Any]:
        return {"lr": self.rate, "fused": True}

    def _loader(self) -> Any:
        return self

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        size = self.per_epoch * self.batch
        order = self.torch.randperm(len(self.tensors[0]))[:size]
        return zip(*(t[order].split(self.batch) for t in self.tensors), strict=True)


class TorchEnsemble(Contender):
    """Many models at once by batched products (`batching` bmm) or `torch.func` (`batching` vmap).

    If `step` is whole, forward, backward and Adam are one compiled graph; if it is parts, forward and backward are
    compiled and Adam is PyTorch's fused one. If `compile` is false, the same steps are run eagerly.
    """

    def _prepare(self) -> None:
        torch = self.torch = load_torch(self.settings)
        inputs, labels, test, _ = self.arrays
        self.inputs, self.labels = torch.tensor(inputs), torch.tensor(labels, dtype=torch.int64)
        self.test, whole = torch.tensor(test), self.settings["step"] == "whole"
        vmap = self.settings["batching"] == "vmap"
        self.forward = torch.func.vmap(self.forward_one) if vmap else self.forward_all
        function = self.whole_step if whole else self.loss
        self.compiled: Any = (
            torch.compile(function, dynamic=False, mode=self.settings.get("mode")) if self.settings["compile"] else function
        )

    def runs(self) -> list[slice]:
        """Returns one group with all seeds."""
        return [slice(None)]

    def _reset(self, run: int) -> None:
        torch = self.torch
        torch.manual_seed(self.settings["seeds"][0])
        self.weights = self._initial()
        if self.settings["step"] == "whole":
            self.memories = [[torch.zeros_like(w) for w in self.weights] for _ in range(2)]
            self.time = torch.zeros(())  # a tensor, since a number would be compiled as a constant
            if self.settings.get("mode") == "reduce-overhead":  # CUDA graphs update only fixed addresses in place
                for tensor in (*self.weights, *self.memories[0], *self.memories[1], self.time):
                    torch._dynamo.mark_static_address(tensor)
        else:
            for weight in self.weights:
                weight.requires_grad_()
            self.adam = torch.optim.Adam(self.weights, lr=self.rate, fused=True)

    def _initial(self) -> list[Any]:
        """Returns the initial weights of all models."""
        torch, count, found = self.torch, len(self.inputs), []
        for fan_in, fan_out in pairwise(self.sizes):
            found += [torch.randn(count, fan_in, fan_out) * fan_in**-0.5, torch.zeros(count, 1, fan_out)]
        return found

    def forward_all(self, weights: list[Any], x: Any) -> Any:
        """Returns the logits of all models. Args: weights `[K, in, out]` and `[K, 1, out]` in turn; x `[K, B, in]`."""
        for i in range(0, len(weights), 2):
            x = self.torch.baddbmm(weights[i + 1], x if i == 0 else x.relu(), weights[i])
        return x

    def forward_one(self, weights: list[Any], x: Any) -> Any:
        """Returns the logits of one model; mapped over models."""
        for i in range(0, len(weights), 2):
            x = self.torch.addmm(weights[i + 1], x if i == 0 else x.relu(), weights[i])
        return x

    def loss(self, weights: list[Any], x: Any, y: Any) -> Any:
        """Returns the cross-entropy: the mean over examples, summed over models and outputs."""
        logits = self.forward(weights, x).view(-1, self.values).log_softmax(-1)
        return -logits.gather(1, y.reshape(-1, 1)).sum() / self.batch

    def whole_step(self, weights: list[Any], first: list[Any], second: list[Any], time: Any, x: Any, y: Any) -> None:
        """Updates all models in place by one step of Adam."""
        gradients = self.torch.func.grad(self.loss)(weights, x, y)
        c1, c2 = 1 - 0.9**time, 1 - 0.999**time
        for w, m, v, g in zip(weights, first, second, gradients, strict=True):
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            w.sub_(self.rate / c1 * m / ((v / c2).sqrt() + 1e-8))

    def update(self, x: Any, y: Any) -> None:
        """Trains all models for one step."""
        if self.settings["step"] == "whole":
            self.time.add_(1)
            with self.torch.no_grad():
                self.compiled(self.weights, *self.memories, self.time, x, y)
        else:
            self.compiled(self.weights, x, y).backward()
            self.adam.step()
            self.adam.zero_grad()

    def advance(self, epochs: int) -> int:
        """Continues training; returns the number of run-steps."""
        count, size = len(self.inputs), self.per_epoch * self.batch
        each = self.torch.arange(count)[:, None]
        for _ in range(epochs):
            order = self.torch.rand(self.labels.shape[:2]).argsort(1)[:, :size]
            order = order.view(count, -1, self.batch).transpose(0, 1)  # [steps, K, B]
            for x, y in zip(self.inputs[each, order], self.labels[each, order], strict=True):
                self.update(x, y)
        return epochs * self.per_epoch * count

    def _predictions(self) -> np.ndarray:
        with self.torch.no_grad():
            logits = self.forward(self.weights, self.test)
        return logits.view(*logits.shape[:2], self.outputs, self.values).argmax(-1).numpy()


class ScikitLearn(Contender):
    """`MLPClassifier` with one label per output, fitted one epoch at a time."""

    def _reset(self, run: int) -> None:
        self.run = run
        network = importlib.import_module("sklearn.neural_network")
        self.model = network.MLPClassifier(
            self.settings["widths"], solver="adam", alpha=0.0, batch_size=self.batch, learning_rate_init=self.rate,
            random_state=self.settings["seeds"][run],
        )  # fmt: skip

    def advance(self, epochs: int) -> int:
        """Continues training; returns the number of run-steps."""
        for _ in range(epochs):
            self.model.partial_fit(self.arrays[0][self.run], self.arrays[1][self.run], classes=np.arange(self.outputs))
        return epochs * self.per_epoch

    def _predictions(self) -> np.ndarray:
        return np.asarray(self.model.predict(self.arrays[2][self.run]))[None]


class TorchProduct:
    """The product of two square matrices."""

    def __init__(self, settings: Mapping[str, Any]):
        self.torch = load_torch(settings)
        self.matrix = self.torch.randn(settings["size"], settings["size"])

    def advance(self, epochs: int) -> int:
        """Multiplies `epochs` times; returns this number."""
        for _ in range(epochs):
            self.torch.mm(self.matrix, self.matrix)
        return epochs


class OnDevice:
    """A mixin for training on a GPU: calls return only when the device is done, so that their time is complete."""

    torch: Any

    def advance(self, epochs: int) -> int:
        """Continues training; returns the number of run-steps once they are computed."""
        done = super().advance(epochs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.torch.cuda.is_available():
            self.torch.cuda.synchronize()
        return done


class DeviceTuned(OnDevice, TorchTuned):
    """One network after the other on a GPU, with tensors in its memory and fused Adam."""


class DeviceEnsemble(OnDevice, TorchEnsemble):
    """Many models at once on a GPU; `mode` "reduce-overhead" uses CUDA graphs."""


KINDS = {
    "device tuned": DeviceTuned,
    "device ensemble": DeviceEnsemble,
    "loop": TorchLoop,
    "tuned": TorchTuned,
    "ensemble": TorchEnsemble,
    "scikit-learn": ScikitLearn,
    "torch product": TorchProduct,
}


def load_torch(settings: Mapping[str, Any]) -> Any:
    """Returns PyTorch, which is not installed everywhere, after setting its threads and device as in `settings`."""
    torch = importlib.import_module("torch")
    if settings.get("threads"):
        torch.set_num_threads(settings["threads"])
    if settings.get("device"):
        torch.set_default_device(settings["device"])
    return torch


def serve(kinds: Mapping[str, Any], kind: str, settings: Mapping[str, Any]) -> None:
    """Creates one object and answers calls of its methods, with result, wall and CPU seconds, until the input ends.

    `idle_cpu` is the CPU time used between two calls: a library's waiting threads must not slow down the others.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that output of a library is not taken for an answer
    if settings.get("core") is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {settings["core"]})
    warnings.simplefilter("ignore")  # scikit-learn warns that one epoch does not converge
    subject = kinds[kind](settings)
    ended = cpu_seconds()
    for line in sys.stdin:
        call, begun, cpu = json.loads(line), time.perf_counter(), cpu_seconds()
        idle = cpu - ended
        result = getattr(subject, call.pop("method"))(**call)
        wall, ended = time.perf_counter() - begun, cpu_seconds()
        answer = {"result": result, "wall": wall, "cpu": ended - cpu, "idle_cpu": idle}
        print(json.dumps(answer), file=answers, flush=True)


def cpu_seconds() -> float:
    """Returns the user and system time of this process and its children, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    serve(KINDS, sys.argv[1], json.loads(sys.argv[2]))
