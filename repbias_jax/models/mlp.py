"""A multi-layer perceptron with one head of `O x C` logits.

Sites: `input`, `hidden_0`, `hidden_1`, ... (after the nonlinearity, before dropout), `logits` (flattened to `O * C`).
Initial weights are LeCun-normal times the dial `init_scale`, biases zero.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import Dials, Model
from repbias_jax.models.sites import site

ACTIVATIONS = {"relu": nn.relu, "leaky_relu": nn.leaky_relu, "tanh": jnp.tanh, "gelu": nn.gelu}


class MLP(nn.Module):
    """See the module's docstring; the contract is in `repbias_jax.models`."""

    widths: tuple[int, ...]
    activation: str
    num_outputs: int
    num_values: int
    dropout: bool

    @nn.compact
    def __call__(
        self, inputs: Array, dials: Dials, key: Array | None = None, edits: Mapping[str, Array] | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Logits `[O, C]` and sites of one example; dropout where the model has it and a key is given."""
        sites: dict[str, Array] = {}
        edits = edits or {}
        x = site(sites, edits, "input", inputs)
        for i, width in enumerate(self.widths):
            x = ACTIVATIONS[self.activation](_dense(width, dials, f"dense_{i}")(x))
            x = site(sites, edits, f"hidden_{i}", x)
            if self.dropout and key is not None:
                x = drop(x, dials.dropout, jax.random.fold_in(key, i))
        logits = site(sites, edits, "logits", _dense(self.num_outputs * self.num_values, dials, "readout")(x))
        return logits.reshape(self.num_outputs, self.num_values), sites


def drop(x: Array, rate: Array, key: Array) -> Array:
    """Inverted dropout with a traced rate (which `nn.Dropout` refuses). Args: x `[...]`; rate `[]` in [0, 1)."""
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def _dense(width: int, dials: Dials, name: str) -> nn.Dense:
    def scaled(key, shape, dtype=jnp.float32):
        return nn.initializers.lecun_normal()(key, shape, dtype) * dials.init_scale

    return nn.Dense(width, kernel_init=scaled, name=name)


def build(config: Model, num_outputs: int, num_values: int, dropout: bool) -> MLP:
    """An MLP of the given shape. Args: as in `repbias_jax.models`."""
    return MLP(config.widths, config.activation, num_outputs, num_values, dropout)
