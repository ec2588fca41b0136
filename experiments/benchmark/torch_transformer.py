"""Transformers in PyTorch for the benchmark: one network at a time, or an ensemble that is batched by hand.

They compute what `repbias_jax.models.transformer` computes in the forms encoder_decoder and decoder: pre-norm, learned
positions, ReLU, biases, no dropout; the last block of a decoder for the answers alone. `loss_of` lets the benchmark check
this on copied weights. An input is the string of tokens followed by the token of the answer before each output, `[L + O]`.
The answers are the labels in training. The test is greedy: each prediction becomes the answer before the next output.

Weights have the names that they have in JAX, such as `encoder.block_0.within.kernel`; those of an ensemble have a leading
axis K over runs. Attention always is one 4-D `scaled_dot_product_attention`, in an ensemble over all runs and examples.
This file imports neither JAX nor the package; it is run as a module and answers calls as `baselines` does:

  python -m experiments.benchmark.torch_transformer KIND '{"folder": ..., "seeds": [0], "options": {...}}'
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark.baselines import OnDevice, serve
from experiments.benchmark.torch_networks import NetworkEnsemble, TrainedByName, TunedNetwork, Weights

FIRST = 2  # the token of the answer 0; token 0: there is no answer before; token 1 stands for labels that are not seen
VALUES = 2  # values of an output
EPSILON = 1e-6  # of layer norms, as in Flax
ALIGNED = 64  # the weights of a run take a multiple of this many numbers


def shapes_of(options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights of one network, by name."""
    width, outputs = options["width"], options["outputs"]
    tables = {"tokens": options["vocabulary"], "places": options["length"], "answers": FIRST + VALUES}
    found: dict[str, tuple[int, ...]] = {
        f"{name}.embedding": (count, width) for name, count in {**tables, "output_places": outputs}.items()
    }
    for stack in ("encoder", "decoder") if options["form"] == "encoder_decoder" else ("decoder",):
        across = stack == "decoder" and options["form"] == "encoder_decoder"
        for i in range(options["layers"]):
            found |= {f"{stack}.block_{i}.{n}": s for n, s in _shapes_of_block(width, options["expand"], across).items()}
        found |= _norm(f"{stack}.norm", width)
    return found | _dense("readout", width, VALUES)


def _shapes_of_block(width: int, expand: int, across: bool) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a block's weights. Args: across: whether the block attends to a memory."""
    found = _norm("within_norm", width) | _dense("within", width, 3 * width) | _dense("within_out", width, width)
    if across:
        found |= _norm("across_norm", width) | _dense("across_query", width, width)
        found |= _dense("across", width, 2 * width) | _dense("across_out", width, width)
    hidden = expand * width
    return found | _norm("hidden_norm", width) | _dense("hidden", width, hidden) | _dense("hidden_out", hidden, width)


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.scale": (width,), f"{name}.bias": (width,)}


def _dense(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.kernel": (fan_in, fan_out), f"{name}.bias": (fan_out,)}


class Network:
    """The forward pass of one network; `Ensemble` replaces the layers that have weights."""

    def __init__(self, torch: Any, options: Mapping[str, Any]):
        self.torch, self.functional, self.options = torch, torch.nn.functional, options

    def __call__(self, weights: Weights, x: Any) -> Any:
        """Returns the logits `[..., O, C]`. Args: x, tokens `[..., L + O]`."""
        length = self.options["length"]
        string = self.table(weights, "tokens", x[..., :length]) + self.vectors(weights, "places")
        stream = self.table(weights, "answers", x[..., length:]) + self.vectors(weights, "output_places")
        memory = None
        if self.options["form"] == "decoder":
            stream = self.torch.cat([string, stream], dim=-2)
        else:
            memory = self.stack(weights, "encoder", string)
        stream = self.stack(weights, "decoder", stream, memory, first=length if memory is None else 0)
        return self.dense(weights, "readout", stream)

    def stack(self, weights: Weights, name: str, x: Any, memory: Any = None, first: int = 0) -> Any:
        """Returns the normed stream after all blocks; the last block only changes the tokens from `first` on."""
        last = self.options["layers"] - 1
        for i in range(last + 1):
            own = first if i == last else 0
            x = self.block(weights, f"{name}.block_{i}", x, memory, causal=name == "decoder", first=own)
        return self.norm(weights, f"{name}.norm", x)

    def block(self, weights: Weights, name: str, x: Any, memory: Any, causal: bool, first: int) -> Any:
        """Returns the stream after a block, from the token `first` on."""
        q, k, v = self.dense(weights, f"{name}.within", self.norm(weights, f"{name}.within_norm", x)).chunk(3, -1)
        read = self.attend(q[..., first:, :], k, v, causal=causal)
        x = x[..., first:, :] + self.dense(weights, f"{name}.within_out", read)
        if memory is not None:
            query = self.dense(weights, f"{name}.across_query", self.norm(weights, f"{name}.across_norm", x))
            read = self.attend(query, *self.dense(weights, f"{name}.across", memory).chunk(2, -1))
            x = x + self.dense(weights, f"{name}.across_out", read)
        hidden = self.dense(weights, f"{name}.hidden", self.norm(weights, f"{name}.hidden_norm", x)).relu()
        return x + self.dense(weights, f"{name}.hidden_out", hidden)

    def attend(self, q: Any, k: Any, v: Any, causal: bool = False) -> Any:
        """Returns what q `[..., L, D]` reads from k and v `[..., M, D]`; all leading axes are folded into one.

        If causal, q are the last L of the M tokens.
        """
        count, length, first = self.options["heads"], q.shape[-2], k.shape[-2] - q.shape[-2]
        heads = [x.reshape(-1, x.shape[-2], count, x.shape[-1] // count).transpose(1, 2) for x in (q, k, v)]
        if causal and first:  # `is_causal` would take q for the first tokens
            seen = self.torch.ones(length, k.shape[-2], dtype=self.torch.bool, device=q.device).tril(first)
            read = self.functional.scaled_dot_product_attention(*heads, attn_mask=seen)
        else:
            read = self.functional.scaled_dot_product_attention(*heads, is_causal=causal)
        return read.transpose(1, 2).reshape(q.shape)

    def dense(self, weights: Weights, name: str, x: Any) -> Any:
        """Applies a dense layer."""
        return self.functional.linear(x, weights[f"{name}.kernel"].t(), weights[f"{name}.bias"])

    def norm(self, weights: Weights, name: str, x: Any) -> Any:
        """Applies a layer norm."""
        scale, bias = weights[f"{name}.scale"], weights[f"{name}.bias"]
        return self.functional.layer_norm(x, scale.shape, scale, bias, EPSILON)

    def table(self, weights: Weights, name: str, tokens: Any) -> Any:
        """Returns the vectors of tokens."""
        return self.functional.embedding(tokens, weights[f"{name}.embedding"])

    def vectors(self, weights: Weights, name: str) -> Any:
        """Returns all vectors of a table, so that they can be added to the stream of every example."""
        return weights[f"{name}.embedding"]


class Ensemble(Network):
    """The same for K networks at once: every weight, stream and string of tokens has a leading axis over runs."""

    def dense(self, weights: Weights, name: str, x: Any) -> Any:
        """Applies the dense layers of all runs as one batched product."""
        kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]
        found = self.torch.baddbmm(bias[:, None], x.reshape(len(kernel), -1, x.shape[-1]), kernel)
        return found.view(*x.shape[:-1], kernel.shape[-1])

    def norm(self, weights: Weights, name: str, x: Any) -> Any:
        """Applies the layer norms of all runs."""
        scale, bias = (weights[f"{name}.{part}"][:, None, None] for part in ("scale", "bias"))
        return self.torch.addcmul(bias, self.functional.layer_norm(x, x.shape[-1:], eps=EPSILON), scale)

    def table(self, weights: Weights, name: str, tokens: Any) -> Any:
        """Returns the vectors of tokens, from the tables of all runs as one."""
        tables = weights[f"{name}.embedding"]
        first = self.torch.arange(len(tables), device=tokens.device)[:, None, None] * tables.shape[1]
        return self.functional.embedding(tokens + first, tables.reshape(-1, tables.shape[-1]))

    def vectors(self, weights: Weights, name: str) -> Any:
        """Returns all vectors of the table of each run."""
        return weights[f"{name}.embedding"][:, None]


class Strings(TrainedByName):
    """A mixin for contenders that train Transformers."""

    test: Any  # [..., N, L + O]

    def _prepare(self) -> None:
        self.shapes = shapes_of(self.settings["options"])
        inputs, labels, test, test_labels = self.arrays
        before = np.concatenate([np.zeros_like(labels[..., :1]), labels[..., :-1] + FIRST], axis=-1)
        self.arrays[0] = np.concatenate([inputs, before], axis=-1)
        self.arrays[2] = np.concatenate([test, np.zeros_like(test_labels)], axis=-1)
        super()._prepare()

    def train(self, epochs: int) -> list[list[float]]:
        """Trains all seeds from initial weights; returns the test accuracy of each run, by LISTED output as ours."""
        order = np.load(Path(self.settings["folder"]) / "test_order.npy")[self.settings["seeds"]]
        return np.take_along_axis(np.asarray(super().train(epochs)), order.argsort(-1), axis=-1).tolist()

    def _predictions(self) -> np.ndarray:
        """Returns greedy predictions `[K, N, O]`."""
        x, length = self.test.clone(), self.settings["options"]["length"]
        with self.torch.no_grad():
            for p in range(self.outputs - 1):
                x[..., length + p + 1] = self.network(self.named(self.weights), x)[..., p, :].argmax(-1) + FIRST
            found = self.network(self.named(self.weights), x).argmax(-1)
        return found.reshape(-1, *found.shape[-2:]).cpu().numpy()


class TransformerTuned(Strings, TunedNetwork):
    """One network after the other: fused Adam; `compile` says whether forward and backward pass are compiled."""

    def _network(self) -> Network:
        return Network(self.torch, self.settings["options"])


class TransformerEnsemble(Strings, NetworkEnsemble):
    """Many networks at once, batched by hand; `step` and `compile` as in `TorchEnsemble`.

    All weights are pieces of one tensor `[K, P]`, so that Adam is one operation and compilation stays short. Zeros at the
    end align the weights of every run.
    """

    def _network(self) -> Network:
        return Ensemble(self.torch, self.settings["options"])

    def _initial(self) -> list[Any]:
        count = len(self.inputs)
        filling = self.torch.zeros(count, -sum(self._counts()) % ALIGNED)
        return [self.torch.cat([*(weight.flatten(1) for weight in self._draw(count)), filling], dim=1)]

    def _counts(self) -> list[int]:
        """Returns how many numbers the weights of each name have."""
        return [math.prod(shape) for shape in self.shapes.values()]

    def named(self, weights: list[Any]) -> dict[str, Any]:
        """Returns the pieces of the one tensor by name."""
        counts = self._counts()
        pieces = weights[0].split([*counts, weights[0].shape[1] - sum(counts)], dim=1)
        return {n: x.view(len(x), *shape) for (n, shape), x in zip(self.shapes.items(), pieces, strict=False)}


class DeviceTransformers(OnDevice, TransformerEnsemble):
    """Many networks at once on a GPU."""


KINDS = {
    "transformer tuned": TransformerTuned,
    "transformer ensemble": TransformerEnsemble,
    "device transformers": DeviceTransformers,
}


if __name__ == "__main__":
    serve(KINDS, sys.argv[1], json.loads(sys.argv[2]))
