"""What a family of models declares, before anything runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import ConfigError, Model, Task

IMPOSSIBLE = -1e9  # the logit of a value that an output does not have
PLACES = ("all", "layers", "last_hidden", "before_last")  # what probes name


class View(NamedTuple):
    """A named reading of a site as `[D]` for one example.

    Attributes:
      site: the site that is read.
      read: from the site's value to `[D]`.
      spread: from a change of the reading `[D]` to the change of the site that brings it about; None: interventions do not
        apply. `read(x + spread(c)) == read(x) + c`.
      label_fed: whether the reading depends on labels that the model is given.
    """

    site: str
    read: Callable[[Array], Array]
    spread: Callable[[Array], Array] | None = None
    label_fed: bool = False


class Family(NamedTuple):
    """A family of models.

    Attributes:
      options: a subclass of `Model`.
      build: `(options, num_outputs, num_values, switches) -> nn.Module`; `switches` names the dials that are on.
      check: raises ConfigError, naming the option, when the model cannot be made.
      views: `(options, task) -> {name: View}`, in layer order.
      places: `(options, task) -> {place: (view, ...)}` for PLACES: `layers` are those whose measures are compared,
        `last_hidden` and `before_last` one view each (or none). None of them is label-fed.
    """

    options: type[Model]
    build: Callable[..., nn.Module]
    check: Callable[[Any, Task], None]
    views: Callable[[Any, Task], dict[str, View]]
    places: Callable[[Any, Task], dict[str, tuple[str, ...]]]


def resolve(
    name: str, places: Mapping[str, tuple[str, ...]], views: Mapping[str, Any] | tuple[str, ...]
) -> tuple[str, ...]:
    """The views that a place or a view's own name stands for.

    Raises:
      ConfigError: the name is neither.
    """
    if name in places:
        return places[name]
    if name not in views:
        raise ConfigError(f"unknown view {name}; known: {', '.join((*places, *views))}")
    return (name,)


def possible(logits: Array, values: Array | None) -> Array:
    """Logits with IMPOSSIBLE for the values that an output does not have.

    Args:
      logits: `[..., O, C]`.
      values: int `[O]` or `[..., O]`, how many of the C values each output has; None: all have all.
    """
    if values is None:
        return logits
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    real = jnp.expand_dims(places, tuple(range(values.ndim))) < values[..., None]
    return jnp.where(jnp.broadcast_to(real, logits.shape), logits, IMPOSSIBLE)


def flatten(value: Array) -> Array:
    """A site's value as one vector `[D]`."""
    return value.reshape(-1)
