"""A multi-layer perceptron with one head of `O x C` logits, or of O units.

Sites, each also a view: `input`, `hidden_0`, `hidden_1`, ... (after the nonlinearity, before dropout), `logits`
(flattened to `O * C`). Initial weights are LeCun-normal times the dial `init_scale`, biases zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
from jax import Array

from repbias_jax.config import ConfigError, Dials, Model, Task, num_outputs, option
from repbias_jax.data import DATA
from repbias_jax.models.family import Family, View, flatten
from repbias_jax.models.layers import ACTIVATIONS, dense, drop, readout
from repbias_jax.models.sites import site


@dataclass(frozen=True)
class MLPOptions(Model):
    """Options of multi-layer perceptrons; dropout follows every hidden layer."""

    name: str = option("mlp", "architecture", choices=("mlp",))
    widths: tuple[int, ...] = option((256, 128, 64, 64), "hidden layers", "units", low=1, high=65536)


class MLP(nn.Module):
    """See the module's docstring; the contract is in `repbias_jax.models`."""

    widths: tuple[int, ...]
    activation: str
    num_outputs: int
    num_values: int
    dropout: bool
    head: str = "pair"

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        dials: Dials,
        labels: Array | None = None,
        key: Array | None = None,
        edits: Mapping[str, Array] | None = None,
        values: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns logits `[O, C]` and sites of one example; applies dropout if the model has it and a key is given."""
        del labels, values
        sites: dict[str, Array] = {}
        edits = edits or {}
        x = site(sites, edits, "input", inputs)
        for i, width in enumerate(self.widths):
            x = ACTIVATIONS[self.activation](dense(width, dials, f"dense_{i}")(x))
            x = site(sites, edits, f"hidden_{i}", x)
            if self.dropout and key is not None:
                x = drop(x, dials.model["dropout"], jax.random.fold_in(key, i))
        logits = readout(x, self.num_outputs, self.num_values, self.head, dials)
        logits = site(sites, edits, "logits", logits)
        return logits.reshape(self.num_outputs, self.num_values), sites


def build(options: MLPOptions, task: Task, num_values: int, switches: tuple[str, ...]) -> MLP:
    """Returns an MLP of the given shape. Args: as in `Family`."""
    dropout = "model.dropout" in switches
    return MLP(options.widths, options.activation, num_outputs(task), num_values, dropout, options.head)


def check(options: MLPOptions, task: Task) -> None:
    """Raises ConfigError if there is no hidden layer, or the input is not one vector."""
    if len(DATA[task.name].input_spec(task).shape) != 1:
        raise ConfigError(
            f"config.task.name={task.name}: expected inputs of one axis, such as binary, or another config.model"
        )
    if not options.widths:
        raise ConfigError("config.model.widths is empty: expected at least one hidden layer, such as 128,64")


def views(options: MLPOptions, task: Task) -> dict[str, View]:
    """Returns the views: every site, unchanged."""
    del task
    return {name: View(name, flatten, lambda change: change) for name in ("input", *_hidden(options), "logits")}


def places(options: MLPOptions, task: Task) -> dict[str, tuple[str, ...]]:
    """Returns the views of each place."""
    hidden = _hidden(options)
    return {
        "all": tuple(views(options, task)),
        "layers": hidden,
        "last_hidden": hidden[-1:],
        "before_last": ("input", *hidden)[-2:-1],
    }


def _hidden(options: MLPOptions) -> tuple[str, ...]:
    return tuple(f"hidden_{i}" for i in range(len(options.widths)))


FAMILY = Family(MLPOptions, build, check, views, places)
