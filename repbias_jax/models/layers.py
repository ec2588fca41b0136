"""Parts that several families of models are made of: dense layers, norms, dropout, nonlinearities, the readout."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import Dials, option

ACTIVATIONS = {"relu": nn.relu, "leaky_relu": nn.leaky_relu, "tanh": jnp.tanh, "gelu": nn.gelu}


def dense(width: int, dials: Dials, name: str) -> nn.Dense:
    """Returns a dense layer whose initial weights are LeCun-normal times the dial `init_scale`, and its biases zero."""

    def scaled(key, shape, dtype=jnp.float32):
        return nn.initializers.lecun_normal()(key, shape, dtype) * dials.model["init_scale"]

    return nn.Dense(width, kernel_init=scaled, name=name)


class GroupNorm(nn.Module):
    """Group norm of one image, equal to `nn.GroupNorm` up to rounding, in the same parameters.

    Sums over places come before sums over the channels of a group, which is much faster on a CPU.
    """

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `[H, W, C]` with mean 0 and variance 1 over places and channels of each group, scaled and shifted."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def mean(values: Array) -> Array:
            """The mean over a group, `[1, 1, C]`."""
            own = values.mean(axis=(0, 1)).reshape(self.groups, -1).mean(axis=1)
            return jnp.repeat(own, channels // self.groups)[None, None]

        centred = x - mean(x)
        factor = jax.lax.rsqrt(mean(jnp.square(centred)) + self.epsilon) * scale[None, None]
        return centred * factor + bias[None, None]


def drop(x: Array, rate: Array, key: Array) -> Array:
    """Applies inverted dropout with a traced rate, which `nn.Dropout` refuses. Args: x `[...]`; rate `[]` in [0, 1)."""
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def skips_option(where: str, count: Callable[[Any], int]) -> Any:
    """Returns the option `skips`, factors on skip connections. Args: where they are; their number, given the options."""
    return option(
        (),
        f"factor s on the skip connection around {where}; the sum is divided by sqrt(1 + s^2); empty: plain skips",
        "",
        True,
        fill=lambda config: config.model.skips or (1.0,) * count(config.model),  # pyright: ignore[reportAttributeAccessIssue]
        switch=True,
        low=0.0,
        high=100.0,
    )


def weighted_skip(x: Array, change: Array, s: Array | None) -> Array:
    """Returns (s x + change) / sqrt(1 + s^2), or x + change without s. Args: x and change `[...]`; s `[]`."""
    return x + change if s is None else (s * x + change) / jnp.sqrt(1 + jnp.square(s))


def readout(x: Array, num_outputs: int, num_values: int, head: str, dials: Dials) -> Array:
    """Returns the head's logits `[..., O * C]`, from `[..., D]`.

    A unit z gives the logits (-z/2, z/2), whose cross-entropy is a sigmoid's.
    """
    if head == "pair":
        return dense(num_outputs * num_values, dials, "readout")(x)
    z = dense(num_outputs, dials, "readout")(x) / 2
    return jnp.stack([-z, z], axis=-1).reshape(*x.shape[:-1], num_outputs * 2)


def embedding(count: int, width: int, dials: Dials, name: str) -> nn.Embed:
    """Returns a table of `count` vectors, whose numbers are drawn with the standard deviation `init_scale`."""

    def scaled(key, shape, dtype=jnp.float32):
        return jax.random.normal(key, shape, dtype) * dials.model["init_scale"]

    return nn.Embed(count, width, embedding_init=scaled, name=name)
