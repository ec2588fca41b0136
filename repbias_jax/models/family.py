"""The contract of a family of models: what it declares before anything runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import ConfigError, Model, Task

IMPOSSIBLE = -1e9  # the logit of a value that an output does not have


class View(NamedTuple):
    """A named reading of a site as `[D]` for one example.

    Attributes:
      site: the site that is read.
      read: maps the site's value to `[D]`.
      spread: maps a change of the reading `[D]` to a change of the site with this effect, so that
        `read(x + spread(c)) == read(x) + c`; None if interventions do not apply.
      label_fed: whether the reading depends on labels that are given to the model.
    """

    site: str
    read: Callable[[Array], Array]
    spread: Callable[[Array], Array] | None = None
    label_fed: bool = False


class Family(NamedTuple):
    """A family of models.

    Attributes:
      options: a subclass of `Model`.
      build: `(options, task, num_values, switches) -> nn.Module`; `num_values` is C; `switches` names dials that are on.
      check: raises ConfigError, naming the option, if the model cannot be built.
      views: `(options, task) -> {name: View}`, in layer order.
      places: `(options, task) -> {place: (view, ...)}`. Every family has `all`; `layers`, whose measures are compared; and
        `last_hidden` and `before_last`, one view each (or none). None of these views is label-fed. A family may have more.
      block: how many examples are read at once on a CPU, so that what their gradient needs stays in the cache; 0: all.
    """

    options: type[Model]
    build: Callable[..., nn.Module]
    check: Callable[[Any, Task], None]
    views: Callable[[Any, Task], dict[str, View]]
    places: Callable[[Any, Task], dict[str, tuple[str, ...]]]
    block: int = 0


def resolve(
    name: str, places: Mapping[str, tuple[str, ...]], views: Mapping[str, Any] | tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the views that a name stands for: those of a place, or the view of that name.

    Raises:
      ConfigError: the name is neither.
    """
    if name in places:
        return places[name]
    if name not in views:
        raise ConfigError(f"unknown view {name}; known: {', '.join((*places, *views))}")
    return (name,)


def places_of_means(views: Mapping[str, View], before: int = 0) -> dict[str, tuple[str, ...]]:
    """Returns the places of a model whose layers are read as means, `X.mean`.

    Besides the places of every family, `flat` is the whole site of which `last_hidden` is the mean; it belongs to no other.

    Args:
      views: of the model; those that end in `.flat` belong to no other place.
      before: how many of the means are those of what comes before the first layer.
    """
    means = tuple(name for name in views if name.endswith(".mean"))
    flat = tuple(name for name in views if name.endswith(".flat"))
    return {
        "all": tuple(name for name in views if name not in flat),
        "layers": means[before:],
        "last_hidden": means[-1:],
        "before_last": means[-2:-1],
        "flat": flat,
    }


def possible(logits: Array, values: Array | None) -> Array:
    """Returns the logits, with IMPOSSIBLE for the values that an output does not have.

    Args:
      logits: `[..., O, C]`.
      values: int `[O]` or `[..., O]`, how many of the C values each output has; None: every output has all C.
    """
    if values is None:
        return logits
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    real = jnp.expand_dims(places, tuple(range(values.ndim))) < values[..., None]
    return jnp.where(jnp.broadcast_to(real, logits.shape), logits, IMPOSSIBLE)


def flatten(value: Array) -> Array:
    """Returns a site's value as one vector `[D]`."""
    return value.reshape(-1)
