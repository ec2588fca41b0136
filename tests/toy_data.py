"""A small family of data for contract tests: four tokens, a feature of three values and one of two, three kinds of order.

  tokens = (colour, 3 + size, 5 + noise, 8 + the listed output at position 0)

The order of the outputs is that of the options (`listed`), drawn once for each run (`run`) or for each example (`example`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import ConfigError, Dials, Factor, Task, num_outputs, option
from repbias_jax.data.binary import UNSEEN, Example

NAME, LENGTH, VOCABULARY = "toy_tokens", 4, 10
FACTORS = {"colour": Factor(3, "feature"), "size": Factor(2, "feature"), "noise": Factor(3, "nuisance")}


@dataclass(frozen=True)
class ToyTask(Task):
    """Options of the tokens."""

    name: str = option(NAME, "data generator", choices=(NAME,))
    features: tuple[str, ...] = option(("colour", "size"), "features of the input")
    order: str = option("run", "who has an order of outputs of its own", choices=("listed", "run", "example"))


OPTIONS = ToyTask


def check(task: ToyTask) -> None:
    """Raises ConfigError where halves of the probe set cannot be crossed, or there are not two outputs."""
    if task.num_probe % 12:
        raise ConfigError(f"config.task.num_probe={task.num_probe}: expected a multiple of 12")
    if num_outputs(task) != 2:
        raise ConfigError(f"config.task.outputs={task.outputs}: expected two")


def input_spec(task: ToyTask) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one example's tokens."""
    del task
    return jax.ShapeDtypeStruct((LENGTH,), jnp.int32)


def factors(task: ToyTask) -> dict[str, Factor]:
    """What every example has."""
    del task
    return FACTORS


def probe_factors(task: ToyTask, name: str) -> dict[str, Factor]:
    """The same in every probe set."""
    del name
    return factors(task)


def fair(task: ToyTask, dials: Dials) -> Dials:
    """Dials under which every label is seen."""
    del task
    return dials._replace(task={**dials.task, "exposure": jnp.ones_like(dials.task["exposure"])})


def draw(task: ToyTask, dials: Dials, key: Array) -> Array:
    """The order of the outputs of a run, `[O]`."""
    order = dials.task["output_order"]
    return jax.random.permutation(key, order) if task.order == "run" else order


def order_of(task: ToyTask, dials: Dials, drawn: Array) -> Array | None:
    """What was drawn; None where every example has its own."""
    del dials
    return None if task.order == "example" else drawn


def sample(task: ToyTask, dials: Dials, drawn: Array, key: Array) -> Example:
    """Draws ONE example: factors first."""
    keys = jax.random.split(key, 5)
    known = {n: jax.random.randint(k, (), 0, f.values) for k, (n, f) in zip(keys[:3], FACTORS.items(), strict=True)}
    order = jax.random.permutation(keys[3], drawn) if task.order == "example" else drawn
    seen = jax.random.bernoulli(keys[4], dials.task["exposure"])
    labels = jnp.where(seen, jnp.stack([known[name] for name in task.outputs or task.features]), UNSEEN)
    return Example(_tokens(known, order), known, labels[order], order)


def _tokens(known: dict[str, Array], order: Array) -> Array:
    return jnp.stack([known["colour"], 3 + known["size"], 5 + known["noise"], 8 + order[0]]).astype(jnp.int32)


def probe_set(
    task: ToyTask, dials: Dials, drawn: Array, name: str, key: Array
) -> tuple[Array, dict[str, Array], Array]:  # fmt: skip
    """As drawn or, `balanced`, with all values of both features crossed in each half."""
    own = dials if name == "natural" else fair(task, dials)
    found = jax.vmap(lambda k: sample(task, own, drawn, k))(jax.random.split(key, task.num_probe))
    known = found.factors
    if name == "balanced":
        place = jnp.arange(task.num_probe, dtype=jnp.int32) % (task.num_probe // 2)
        known = {**known, "colour": place % 3, "size": place // 3 % 2}
    order = found.order if task.order == "example" else drawn
    orders = jnp.broadcast_to(order, (task.num_probe, 2))
    return jax.vmap(_tokens)(known, orders), known, order
