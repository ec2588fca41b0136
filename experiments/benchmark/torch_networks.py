"""What contenders in PyTorch share whose networks have named weights: how they are drawn, trained and compared with ours.

Weights have the names that they have in JAX. `loss_of` lets the benchmark check on copied weights that a contender
computes what ours does. This file imports neither JAX nor the package, as `baselines`. Source: ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmark.baselines import Contender, TorchEnsemble, TorchTuned

Weights = Mapping[str, Any]


class TrainedByName(Contender):
    """A mixin for contenders. Besides the usual settings, `options` describes the network."""

    torch: Any
    weights: list[Any]
    shapes: Mapping[str, tuple[int, ...]]  # of the weights of one network, by name
    network: Any  # made by `_network`

    def _network(self) -> Callable[[Weights, Any], Any]:
        """Returns the forward pass, a function of weights and a batch; called once PyTorch is there."""
        raise NotImplementedError

    def _draw(self, *runs: int) -> list[Any]:
        """Returns initial weights with these leading axes, in the order of `shapes`."""
        torch = self.torch
        constants = {"scale": torch.ones, "bias": torch.zeros}
        found = []
        for name, shape in self.shapes.items():
            kind = name.rpartition(".")[2]
            make = constants.get(kind, torch.randn)
            found.append(make(*runs, *shape) * (1.0 if kind in constants else self.deviation(kind, shape)))
        return found

    @staticmethod
    def deviation(kind: str, shape: tuple[int, ...]) -> float:
        """Returns the standard deviation of initial weights. Args: kind, kernel or embedding; shape, `[in, out]`."""
        return shape[0] ** -0.5 if kind == "kernel" else 1.0

    def named(self, weights: list[Any]) -> dict[str, Any]:
        """Returns weights by name."""
        return dict(zip(self.shapes, weights, strict=True))

    @staticmethod
    def laid_out(array: np.ndarray) -> np.ndarray:
        """Returns weights of JAX `[K, ...]` with their axes in the order that they have here."""
        return array

    def loss_of(self, path: str) -> float:
        """Returns the loss on the first batch of each run, summed over runs, for the weights in a file, `[K, ...]` each."""
        total, seeds = 0.0, np.asarray(self.settings["seeds"])
        with np.load(path) as saved:
            for run, members in enumerate(self.runs()):
                self._reset(run)
                for name, weight in self.named(self.weights).items():
                    value = self.torch.as_tensor(self.laid_out(saved[name][seeds[members]]), device=weight.device)
                    weight.data.copy_(value.reshape(weight.shape))
                total += float(self._first_loss().detach())
        self._reset(0)
        return total

    def _first_loss(self) -> Any:
        """Returns the loss on the first batch, summed over the runs that train together."""
        raise NotImplementedError


class TunedNetwork(TrainedByName, TorchTuned):
    """One network after the other: fused Adam; `compile` says whether forward and backward pass are compiled."""

    def _prepare(self) -> None:
        super()._prepare()
        self.network = self._network()
        compiled = self.settings["compile"]
        self.forward: Callable = self.torch.compile(self.network, dynamic=False) if compiled else self.network

    def _build(self) -> tuple[Callable[[Any], Any], list[Any]]:
        self.weights = [weight.requires_grad_() for weight in self._draw()]
        weights = self.named(self.weights)
        return lambda x: self.forward(weights, x), self.weights

    def _first_loss(self) -> Any:
        return self.loss(*(t[: self.batch] for t in self.tensors))


class NetworkEnsemble(TrainedByName, TorchEnsemble):
    """Many networks at once, batched by hand; `step` and `compile` as in `TorchEnsemble`."""

    def _prepare(self) -> None:
        super()._prepare()
        self.network = self._network()

    def _initial(self) -> list[Any]:
        return self._draw(len(self.inputs))

    def forward_all(self, weights: list[Any], x: Any) -> Any:
        """Returns the logits of all networks, `[K, B, O, C]`. Args: x, `[K, B, ...]`."""
        return self.network(self.named(weights), x)

    def _first_loss(self) -> Any:
        return self.loss(self.weights, self.inputs[:, : self.batch], self.labels[:, : self.batch])
