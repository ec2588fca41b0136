"""Strings of bits with features in disjoint blocks, for MLPs.

Each feature reads its own block of bits at a fixed position. Every feature has an unused twin: the same function of other
bits, which no output reports. The remaining bits are distractors. Factors are drawn first, then inputs that have them:

  target ~ Bernoulli(1/2)
  feature f = target            with probability 2 q_f - 1      (q: predictivity, 1/2 by default: never)
            ~ Bernoulli(p_f)    else                            (p: prevalence)
  bits of f's block: uniform among those with that value; all other bits: uniform

  task = BinaryOptions(features=("parity1", "parity4"))
  block of parity1: bit 0; of parity4: bits 1-4; of twin_parity1: bit 5; of twin_parity4: bits 6-9; distractors: 10-31

Source: 32 bits after Hermann and Lampinen 2020; the rest is ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import Config, ConfigError, Dials, Factor, Task, num_outputs, option
from repbias_jax.features import FEATURES, Feature, look_up, to_bits

UNSEEN = -1  # a label that does not enter the loss
MOST_DRAWN = 2**21  # numbers of the inputs that are drawn at once; an image of 32 pixels has 3,072


@dataclass(frozen=True)
class BinaryOptions(Task):
    """Options of strings of bits."""

    name: str = option("binary", "data generator", choices=("binary",))
    features: tuple[str, ...] = option(("parity1", "parity4"), f"features of the input, of {', '.join(FEATURES)}")
    num_bits: int = option(32, "length of the input", "bits", low=1, high=4096)
    first_bits: tuple[int, ...] = option((), "where each feature's block starts; empty: one after the other", "bits", low=0)
    twins: bool = option(True, "give every feature an unused twin: the same function of bits that no output needs")
    prevalence: tuple[float, ...] = option(
        (),
        "P(feature = 1) in training; empty: its base rate, the only value for a feature of more than two values",
        "probability",
        True,
        fill=lambda config: _own(config).prevalence or base_rates(_own(config)),
        above=0.0,
        below=1.0,
    )
    predictivity: tuple[float, ...] = option(
        (),
        "P(feature = target) at prevalence 1/2; empty: 1/2, independent",
        "probability",
        True,
        fill=lambda config: _own(config).predictivity or (0.5,) * len(config.task.features),
        low=0.5,
        high=1.0,
    )


OPTIONS = BinaryOptions


def _own(config: Config) -> BinaryOptions:
    assert isinstance(config.task, BinaryOptions)  # noqa: S101
    return config.task


class Example(NamedTuple):
    """One example, or, with leading axes, many."""

    inputs: Array  # as `input_spec` says; of bits, [num_bits], float32 in {0, 1}
    factors: dict[str, Array]  # [] each, int32: target, features, their parts, their twins
    labels: Array  # [O], int32 in 0..C-1, or UNSEEN, by output position
    order: Array  # [O], int32: the listed output at each position


def draw_each(spec: jax.ShapeDtypeStruct, one: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the values of a function that draws one input, for each of N arguments, `[N, ...]`.

    Many large inputs are drawn in blocks: while an image is drawn it needs some sixteen times the memory of its bytes.

    Args:
      spec: shape and dtype of an input.
      one: function of the arguments of one input.
      *arguments: with a leading axis N.
    """
    block = max(1, MOST_DRAWN // math.prod(spec.shape))
    if len(jax.tree.leaves(arguments)[0]) <= block:
        return jax.vmap(one)(*arguments)
    return jax.lax.map(lambda own: one(*own), arguments, batch_size=block)


class Block(NamedTuple):
    """A feature and the bits it reads."""

    name: str
    feature: Feature
    first: int

    @property
    def places(self) -> slice:
        """The positions of the block's bits in the input."""
        return slice(self.first, self.first + self.feature.arity)


def feature_names(task: Task) -> tuple[str, ...]:
    """Returns the features' names as factors: `parity4`, or `parity4_1`, `parity4_2` if a feature is repeated."""
    seen: dict[str, int] = {}
    names = []
    for name in task.features:
        seen[name] = seen.get(name, 0) + 1
        names.append(f"{name}_{seen[name]}" if task.features.count(name) > 1 else name)
    return tuple(names)


def blocks(task: BinaryOptions) -> tuple[Block, ...]:
    """Returns the features' blocks in order, then their twins'."""
    features = [FEATURES[name] for name in task.features]
    lengths = [f.arity for f in features]
    first = task.first_bits or tuple(int(x) for x in np.cumsum([0, *lengths[:-1]]))
    asked = [Block(n, f, b) for n, f, b in zip(feature_names(task), features, first, strict=True)]
    if not task.twins:
        return tuple(asked)
    taken = {bit for block in asked for bit in range(block.places.start, block.places.stop)}
    twins, start = [], 0
    for block in asked:
        arity = block.feature.arity
        while taken & set(range(start, start + arity)):
            start += 1
        twins.append(Block(f"twin_{block.name}", block.feature, start))
        taken |= set(range(start, start + arity))
        start += arity
    return (*asked, *twins)


def check(task: BinaryOptions) -> None:
    """Raises ConfigError, naming the field, if the task cannot be generated."""
    for name in task.features:
        if name not in FEATURES:
            raise ConfigError(f"config.task.features={name}: unknown; known: {', '.join(FEATURES)}")
    if not task.features:
        raise ConfigError("config.task.features is empty: expected at least one feature")
    for name in ("first_bits", "prevalence", "predictivity"):
        check_length(task, name, len(task.features), "features")
    check_outputs(task, factors(task))
    for name in task.features if task.prevalence or task.predictivity else ():
        if FEATURES[name].num_values > 2:
            raise ConfigError(
                f"config.task.prevalence and predictivity: {name} has {FEATURES[name].num_values} values; "
                f"expected neither, which are defined for two values"
            )
    _check_places(task)
    if task.num_probe % 2 or (task.num_probe // 2) % num_combinations(task):
        raise ConfigError(
            f"config.task.num_probe={task.num_probe}: expected a multiple of {2 * num_combinations(task)}, so that all "
            f"combinations of the features' bits are equally frequent in each half"
        )


def definitions(task: BinaryOptions) -> str:
    """Returns the truth tables of the task's features, as text."""
    return repr([(name, FEATURES.get(name)) for name in task.features])


def check_outputs(task: Task, known: Mapping[str, Factor]) -> None:
    """Raises ConfigError if an output is not one of the known factors, or the options of outputs do not fit them."""
    for name in ("exposure", "output_order"):
        check_length(task, name, num_outputs(task), "outputs")
    if task.output_order and sorted(task.output_order) != list(range(num_outputs(task))):
        raise ConfigError(f"config.task.output_order={task.output_order}: expected each output's index once")
    for name in task.outputs:
        if name not in known:
            raise ConfigError(f"config.task.outputs={name}: unknown factor; known: {', '.join(known)}")
        if known[name].role == "twin":
            raise ConfigError(f"config.task.outputs={name}: expected a factor that is no unused twin")


def check_length(task: Task, name: str, expected: int, of: str) -> None:
    """Raises ConfigError unless an option is empty or has as many values as there are `of`."""
    value = getattr(task, name)
    if value and len(value) != expected:
        raise ConfigError(f"config.task.{name}={value}: expected {expected} values, one for each of the {of}")


def _check_places(task: BinaryOptions) -> None:
    owner: dict[int, str] = {}
    needed = max(block.places.stop for block in blocks(task))
    for block in blocks(task):
        for bit in range(block.places.start, block.places.stop):
            if bit in owner:
                raise ConfigError(
                    f"config.task.first_bits={task.first_bits}: blocks of {owner[bit]} and {block.name} overlap at bit "
                    f"{bit}; expected disjoint blocks"
                )
            if not 0 <= bit < task.num_bits:
                raise ConfigError(
                    f"config.task.num_bits={task.num_bits}: {block.name} reads bit {bit}, which the input has not; "
                    f"expected at least {needed}, or fewer features, or config.task.twins=false"
                )
            owner[bit] = block.name


def input_spec(task: BinaryOptions) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one example's input."""
    return jax.ShapeDtypeStruct((task.num_bits,), jnp.float32)


def factors(task: BinaryOptions) -> dict[str, Factor]:
    """Returns the factors of every drawn example: the latent target, each feature and its parts, then the twins."""
    return {"target": Factor(2, "latent"), **_read_from_bits(task)}


def probe_factors(task: BinaryOptions, name: str) -> dict[str, Factor]:
    """Returns the factors of a probe set; the crossed one has no target, and has the bits if these are crossed."""
    if name != "balanced":
        return factors(task)
    asked, _, by_bits = _design(task)
    bits = {f"{b.name}.bit{i}": Factor(2, "bit", b.name) for b in asked if by_bits for i in range(b.feature.arity)}
    return {**_read_from_bits(task), **bits}


def _read_from_bits(task: BinaryOptions) -> dict[str, Factor]:
    """Returns the factors that are functions of the input."""
    found = {}
    for i, block in enumerate(blocks(task)):
        if i >= len(task.features):
            found[block.name] = Factor(block.feature.num_values, "twin", feature_names(task)[i - len(task.features)])
            continue
        found[block.name] = Factor(block.feature.num_values, "feature")
        for part, table in block.feature.parts:
            found[f"{block.name}.{part}"] = Factor(max(2, max(table) + 1), "part", block.name)
    return found


def base_rates(task: BinaryOptions) -> tuple[float, ...]:
    """Returns P(feature = 1) under uniform bits, for each feature."""
    return tuple(FEATURES[name].base_rate for name in task.features)


def fair(task: BinaryOptions, dials: Dials) -> Dials:
    """Returns dials under which features are independent, at their base rates, and their labels are always seen."""
    own = {
        "prevalence": jnp.asarray(base_rates(task), jnp.float32),
        "predictivity": jnp.full_like(dials.task["predictivity"], 0.5),
        "exposure": jnp.ones_like(dials.task["exposure"]),
    }
    return dials._replace(task={**dials.task, **own})


def draw(task: Task, dials: Dials, key: Array) -> None:
    """Returns None, since a run draws nothing once."""
    del task, dials, key


def order_of(task: Task, dials: Dials, drawn: None) -> Array:
    """Returns the listed output at each output position, int32 `[O]`."""
    del task, drawn
    return dials.task["output_order"]


def sample(task: BinaryOptions, dials: Dials, drawn: None, key: Array) -> Example:
    """Draws ONE example: factors first, then bits that have them."""
    del drawn
    everything = blocks(task)
    key_factors, key_seen, key_rest = jax.random.split(key, 3)
    draws = jax.random.uniform(key_factors, (3 * len(everything) + 1,))  # one call, since each costs compile time
    target = (draws[0] < 0.5).astype(jnp.int32)
    bits = jax.random.bernoulli(key_rest, 0.5, (task.num_bits,)).astype(jnp.int32)
    for i, block in enumerate(everything):
        f, (own, follow, place) = i % len(task.features), draws[3 * i + 1 : 3 * i + 4]
        follows = (follow < 2 * dials.task["predictivity"][f] - 1) & (i < len(task.features))
        value = jnp.where(follows, target, _value(block.feature, own, dials.task["prevalence"][f]))
        bits = bits.at[block.places].set(block.feature.bits_at(value, place))
    known = {"target": target, **factors_of(task, bits)}
    return labelled(bits.astype(jnp.float32), known, task.outputs or feature_names(task), dials, key_seen)


def _value(feature: Feature, uniform: Array, prevalence: Array) -> Array:
    """Returns a feature's value from a uniform number in [0, 1): two values by prevalence, more at their base rates."""
    if feature.num_values == 2:
        return (uniform < prevalence).astype(jnp.int32)
    table = np.asarray(feature.table)
    ends = np.cumsum([np.mean(table == v) for v in range(feature.num_values - 1)])
    return jnp.sum(uniform >= jnp.asarray(ends, jnp.float32)).astype(jnp.int32)


def labelled(inputs: Array, known: dict[str, Array], reported: Sequence[str], dials: Dials, key: Array) -> Example:
    """Returns an example with its labels, each of which is UNSEEN unless it is exposed.

    Args:
      inputs: of the example.
      known: its factors, `[]` each.
      reported: names of the factors that outputs report, as listed.
      dials: exposure and output_order.
      key: a PRNG key.
    """
    order, labels = dials.task["output_order"], jnp.stack([known[name] for name in reported])
    labels = jnp.where(jax.random.bernoulli(key, dials.task["exposure"]), labels, UNSEEN)
    return Example(inputs, known, labels[order], order)


def factors_of(task: BinaryOptions, bits: Array) -> dict[str, Array]:
    """Computes features, their parts and their twins. Args: bits `[num_bits]`. Returns: int32 `[]` by name."""
    found = {}
    for i, block in enumerate(blocks(task)):
        own = bits[block.places]
        found[block.name] = block.feature.value(own)
        if i < len(task.features):
            found |= {f"{block.name}.{part}": look_up(table, own) for part, table in block.feature.parts}
    return found


def _design(task: BinaryOptions) -> tuple[tuple[Block, ...], int, bool]:
    """Returns the features' blocks, the number of crossed combinations, and whether bits or only values are crossed."""
    asked = blocks(task)[: len(task.features)]
    total = sum(block.feature.arity for block in asked)
    by_bits = 2**total <= task.num_probe // 2
    combinations = 2**total if by_bits else math.prod(block.feature.num_values for block in asked)
    return asked, combinations, by_bits


def num_combinations(task: BinaryOptions) -> int:
    """Returns the number of combinations in the balanced probe set: of the features' bits if they fit, else of values."""
    return _design(task)[1]


def probe_set(
    task: BinaryOptions, dials: Dials, drawn: None, name: str, key: Array
) -> tuple[Array, dict[str, Array], Array]:  # fmt: skip
    """Draws the examples on which representations are probed: the first half to fit on, the second to score on.

    The `natural` set is drawn like the training set. In the `decorrelated` set every feature is independent, at its base
    rate. The `balanced` set is exactly crossed: all combinations of the features' bits (or of their values, if a half has
    fewer examples than the bits have combinations) appear equally often in each half, with independent distractors. The
    twins take the same combinations in an independent order, so each twin is balanced but has small chance correlations
    with the other factors.

    Args:
      task: options of the generator.
      dials: prevalence and predictivity, for `natural`.
      drawn: the result of `draw` for this run.
      name: `natural`, `decorrelated` or `balanced`.
      key: a PRNG key.

    Returns:
      inputs float32 `[N, num_bits]`; factors int32 `[N]` by name, as `probe_factors` lists them; the order `[O]`.
    """
    order = order_of(task, dials, drawn)
    if name != "balanced":
        own = dials if name == "natural" else fair(task, dials)
        examples = jax.vmap(lambda k: sample(task, own, drawn, k))(jax.random.split(key, task.num_probe))
        return examples.inputs, examples.factors, order
    halves = [_balanced_half(task, k, task.num_probe // 2) for k in jax.random.split(key, 2)]
    bits = jnp.concatenate(halves)
    found = jax.vmap(lambda b: factors_of(task, b))(bits)
    asked, _, by_bits = _design(task)
    for block in asked if by_bits else ():
        found |= {f"{block.name}.bit{i}": bits[:, block.first + i] for i in range(block.feature.arity)}
    return bits.astype(jnp.float32), found, order


def _balanced_half(task: BinaryOptions, key: Array, half: int) -> Array:
    """Returns the bits `[half, num_bits]` of one half of the balanced set."""
    key_rest, key_twins, key_bits = jax.random.split(key, 3)
    bits = jax.random.bernoulli(key_rest, 0.5, (half, task.num_bits)).astype(jnp.int32)
    bits = _fill(task, bits, blocks(task)[: len(task.features)], jnp.arange(half), jax.random.fold_in(key_bits, 0))
    order = jax.random.permutation(key_twins, half)
    return _fill(task, bits, blocks(task)[len(task.features) :], order, jax.random.fold_in(key_bits, 1))


def _fill(task: BinaryOptions, bits: Array, into: tuple[Block, ...], rows: Array, key: Array) -> Array:
    """Writes combination `rows[n]`, modulo the number of combinations, into the blocks of example n; returns the bits."""
    _, combinations, by_bits = _design(task)
    rest = (rows % combinations).astype(jnp.int32)
    for i, block in enumerate(into):
        size = 2**block.feature.arity if by_bits else block.feature.num_values
        value, rest = rest % size, rest // size
        if by_bits:
            own = to_bits(value, block.feature.arity)
        else:
            keys = jax.random.split(jax.random.fold_in(key, i), len(rows))
            own = jax.vmap(block.feature.bits_given)(value, keys)
        bits = bits.at[:, block.places].set(own)
    return bits
