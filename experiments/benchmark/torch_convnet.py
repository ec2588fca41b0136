"""Convolutional networks in PyTorch for the benchmark: one at a time, or an ensemble by grouped convolutions.

They compute what `repbias_jax.models.convnet` computes in both of its forms, without dropout. Images stay uint8 in memory.
In an ensemble the channels of K networks are side by side in one image `[B, K C, H, W]`: a convolution has K groups, and a
group norm K times as many as that of one network. `loss_of` lets the benchmark check this on copied weights.

Weights have the names that they have in JAX, such as `stage_0_conv.kernel`. Kernels of convolutions are `[F, C, h, w]`, in
an ensemble `[K F, C, h, w]`. This file imports neither JAX nor the package; it is run as a module and answers calls as
`baselines` does:

  python -m experiments.benchmark.torch_convnet KIND '{"folder": ..., "seeds": [0], "options": {...}}'
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.benchmark.baselines import OnDevice, serve
from experiments.benchmark.torch_networks import NetworkEnsemble, TrainedByName, TunedNetwork, Weights

EPSILON = 1e-6  # of group norms, as in Flax
COLORS = 3  # channels of an image
CHANNELS_LAST = "grouped channels-last"  # `batching` of an ensemble whose channels are the last axis in memory


def shapes_of(options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights of one network, by name."""
    widths, found = options["widths"], {}
    if options["form"] == "plain":
        for i, (before, width) in enumerate(zip((COLORS, *widths), widths, strict=False)):
            found |= _layer(f"stage_{i}", before, width)
    else:
        found |= _layer("stem", COLORS, widths[0])
        for i, width in enumerate(widths):
            for j in range(options["blocks"]):
                before = widths[max(0, i - 1)] if j == 0 else width
                found |= _block(f"stage_{i}_block_{j}", before, width, has_skip=i > 0 and j == 0)
    logits = options["outputs"] * options["values"]
    return found | {"readout.kernel": (widths[-1], logits), "readout.bias": (logits,)}


def _layer(name: str, before: int, width: int, size: int = 3) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a convolution and of its norm. Args: before: channels that it reads."""
    kernel = {f"{name}_conv.kernel": (width, before, size, size)}
    return kernel | {f"{name}_norm.{part}": (width,) for part in ("scale", "bias")}


def _block(name: str, before: int, width: int, has_skip: bool) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a residual block. Args: has_skip: whether its skip is a convolution."""
    found = _layer(f"{name}_first", before, width) | _layer(f"{name}_second", width, width)
    return found | (_layer(f"{name}_skip", before, width, size=1) if has_skip else {})


def padding_of(side: int, size: int, stride: int) -> tuple[int, int]:
    """Returns the zeros before and after a side of an image in Flax's padding SAME. Args: size: of the window."""
    zeros = max(0, (math.ceil(side / stride) - 1) * stride + size - side)
    return zeros // 2, zeros - zeros // 2


class Network:
    """The forward pass of `count` networks, whose channels are side by side."""

    def __init__(self, torch: Any, options: Mapping[str, Any], count: int = 1, channels_last: bool = True):
        self.functional, self.options, self.count = torch.nn.functional, options, count
        self.torch, self.memory = torch, torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, weights: Weights, x: Any) -> Any:
        """Returns the logits `[K, B, O, C]`. Args: x, images uint8 `[K, B, H, W, 3]`, or `[B, H, W, 3]` of one network."""
        images = x.view(self.count, *x.shape[-4:]).permute(1, 0, 4, 2, 3).flatten(1, 2)
        x = images.contiguous(memory_format=self.memory).float() / 127.5 - 1
        if self.options["form"] == "plain":
            for i in range(len(self.options["widths"])):
                x = self.layer(weights, f"stage_{i}", x, stride=2).relu()
        else:
            x = self.layer(weights, "stem", x, stride=2).relu()
            for i in range(len(self.options["widths"])):
                skip = self.options["skips"][i] if self.options["skips"] else None
                for j in range(self.options["blocks"]):
                    x = self.block(weights, f"stage_{i}_block_{j}", x, 2 if i > 0 and j == 0 else 1, skip)
        return self.readout(weights, x.mean((2, 3)))

    def layer(self, weights: Weights, name: str, x: Any, stride: int = 1) -> Any:
        """Applies a convolution and a norm."""
        kernel = weights[f"{name}_conv.kernel"]
        before, after = padding_of(x.shape[-1], kernel.shape[-1], stride)
        if before != after:  # PyTorch's convolution only pads both sides alike
            x, before = self.functional.pad(x, (before, after, before, after)), 0
        x = self.functional.conv2d(x, kernel, None, stride, before, groups=self.count)
        scale, bias = (weights[f"{name}_norm.{part}"] for part in ("scale", "bias"))
        return self.functional.group_norm(x, self.count * self.options["groups"], scale, bias, EPSILON)

    def block(self, weights: Weights, name: str, x: Any, stride: int, skip: float | None) -> Any:
        """Applies a residual block. Args: skip: factor on the skip connection; None: a plain sum."""
        change = self.layer(weights, f"{name}_second", self.layer(weights, f"{name}_first", x, stride).relu())
        if f"{name}_skip_conv.kernel" in weights:
            x = self.layer(weights, f"{name}_skip", x, stride)
        if skip is None:
            return (x + change).relu()
        return ((skip * x + change) / math.sqrt(1 + skip**2)).relu()

    def readout(self, weights: Weights, means: Any) -> Any:
        """Returns the logits `[K, B, O, C]`. Args: means over places, `[B, K C]`."""
        kernel, bias = (weights[f"readout.{part}"] for part in ("kernel", "bias"))
        means = means.reshape(len(means), self.count, -1).transpose(0, 1)
        logits = self.torch.baddbmm(bias.view(self.count, 1, -1), means, kernel.view(self.count, *kernel.shape[-2:]))
        return logits.view(*logits.shape[:2], self.options["outputs"], self.options["values"])


class Images(TrainedByName):
    """A mixin for contenders that train convolutional networks."""

    test: Any  # [..., N, H, W, 3]

    def _prepare(self) -> None:
        self.shapes = shapes_of(self.settings["options"])
        super()._prepare()

    def _network(self) -> Network:
        channels_last = self.settings.get("batching", CHANNELS_LAST) == CHANNELS_LAST
        return Network(self.torch, self.settings["options"], self._side_by_side(), channels_last)

    def _side_by_side(self) -> int:
        """Returns how many networks are side by side."""
        return 1

    def _draw(self, *runs: int) -> list[Any]:
        """Returns initial weights of all networks: as in `Network`, with channels side by side."""
        found = dict(zip(self.shapes, super()._draw(*runs), strict=True))
        if runs:
            found = {name: w if name.startswith("readout") else w.flatten(0, 1) for name, w in found.items()}
        return [w.contiguous(memory_format=self.network.memory) if w.ndim == 4 else w for w in found.values()]

    @staticmethod
    def deviation(kind: str, shape: tuple[int, ...]) -> float:
        """Returns the standard deviation of initial weights: He-normal for convolutions, LeCun-normal for the readout."""
        return math.sqrt(2 / math.prod(shape[1:])) if len(shape) == 4 else TrainedByName.deviation(kind, shape)

    @staticmethod
    def laid_out(array: np.ndarray) -> np.ndarray:
        """Returns weights of JAX; kernels `[K, h, w, C, F]` as `[K, F, C, h, w]`."""
        return array.transpose(0, 4, 3, 1, 2) if array.ndim == 5 else array

    def _predictions(self) -> np.ndarray:
        with self.torch.no_grad():
            return self.network(self.named(self.weights), self.test).argmax(-1).cpu().numpy()


class ConvNetTuned(Images, TunedNetwork):
    """One network after the other, channels last: fused Adam; `compile` as in `TunedNetwork`."""


class ConvNetEnsemble(Images, NetworkEnsemble):
    """Many networks at once by grouped convolutions; `batching`: how channels lie, `step` and `compile` as elsewhere."""

    def _side_by_side(self) -> int:
        return len(self.inputs)


class DeviceConvNets(OnDevice, ConvNetEnsemble):
    """Many networks at once on a GPU."""


KINDS = {
    "convnet tuned": ConvNetTuned,
    "convnet ensemble": ConvNetEnsemble,
    "device convnets": DeviceConvNets,
}


if __name__ == "__main__":
    serve(KINDS, sys.argv[1], json.loads(sys.argv[2]))
