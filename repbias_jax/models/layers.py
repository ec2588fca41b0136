"""Parts that several families of models are made of: dense layers, dropout, nonlinearities, the readout of the outputs."""

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
