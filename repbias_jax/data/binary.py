"""Strings of bits with features in disjoint blocks, for MLPs.

Each feature reads its own block of bits at a fixed place. Every feature has an unused twin: the same function of other
bits, which no output reports. The remaining bits distract. Factors are drawn first, then inputs that have them:

  target ~ Bernoulli(1/2)
  feature f = target            with probability 2 q_f - 1      (q: predictivity, 1/2 by default: never)
            ~ Bernoulli(p_f)    else                            (p: prevalence)
  bits of f's block uniform among those with that value, all other bits uniform

  task = Task(features=("parity1", "parity4"))
  block of parity1: bit 0; of parity4: bits 1-4; of twin_parity1: bit 5; of twin_parity4: bits 6-9; distractors: 10-31

Source: 32 bits after Hermann and Lampinen 2020; the rest is ours.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import ConfigError, Dials, Task, num_outputs
from repbias_jax.features import FEATURES, Feature, look_up, to_bits

UNSEEN = -1  # a label that does not enter the loss


class Example(NamedTuple):
    """One example, or with leading axes many."""

    inputs: Array  # [num_bits], float32 in {0, 1}
    factors: dict[str, Array]  # [] each, int32: target, features, their parts, their twins
    labels: Array  # [O], int32 in 0..C-1, or UNSEEN


class Block(NamedTuple):
    """A feature and the bits it reads."""

    name: str
    feature: Feature
    first: int

    @property
    def places(self) -> slice:
        """Where the bits of the block stand in the input."""
        return slice(self.first, self.first + self.feature.arity)


def feature_names(task: Task) -> tuple[str, ...]:
    """Names of the features as factors: `parity4`, or `parity4_1`, `parity4_2` where a feature is repeated."""
    seen: dict[str, int] = {}
    names = []
    for name in task.features:
        seen[name] = seen.get(name, 0) + 1
        names.append(f"{name}_{seen[name]}" if task.features.count(name) > 1 else name)
    return tuple(names)


def blocks(task: Task) -> tuple[Block, ...]:
    """The features' blocks in order, then their twins'."""
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


def check(task: Task) -> None:
    """Raises ConfigError, naming the field, when the task cannot be made."""
    for name in task.features:
        if name not in FEATURES:
            raise ConfigError(f"config.task.features={name}: unknown; known: {', '.join(FEATURES)}")
    if not task.features:
        raise ConfigError("config.task.features is empty: expected at least one feature")
    for name in ("first_bits", "prevalence", "predictivity"):
        _check_length(task, name, len(task.features), "features")
    for name in ("exposure", "output_order"):
        _check_length(task, name, num_outputs(task), "outputs")
    if task.output_order and sorted(task.output_order) != list(range(num_outputs(task))):
        raise ConfigError(f"config.task.output_order={task.output_order}: expected each output's index once")
    known = _factor_names(task)
    for name in task.outputs:
        if name not in known:
            raise ConfigError(f"config.task.outputs={name}: unknown factor; known: {', '.join(known)}")
    _check_places(task)
    if task.num_probe % 2 or (task.num_probe // 2) % num_combinations(task):
        raise ConfigError(
            f"config.task.num_probe={task.num_probe}: expected a multiple of {2 * num_combinations(task)}, so that all "
            f"combinations of the features' bits are equally frequent in each half"
        )


def _check_length(task: Task, name: str, expected: int, of: str) -> None:
    value = getattr(task, name)
    if value and len(value) != expected:
        raise ConfigError(f"config.task.{name}={value}: expected {expected} values, one for each of the {of}")


def _check_places(task: Task) -> None:
    owner: dict[int, str] = {}
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
                    f"expected at least {bit + 1} bits, or fewer features, or config.task.twins=false"
                )
            owner[bit] = block.name


def input_shape(task: Task) -> tuple[int, ...]:
    """Shape of one example's input."""
    return (task.num_bits,)


def num_values(task: Task) -> int:
    """Values of an output, C: the largest over the features."""
    return max(2, *(FEATURES[name].num_values for name in task.features))


def base_rates(task: Task) -> tuple[float, ...]:
    """P(feature = 1) under uniform bits, for each feature."""
    return tuple(FEATURES[name].base_rate for name in task.features)


def decorrelated(task: Task, dials: Dials) -> Dials:
    """Dials under which features are independent, at their base rates and always seen."""
    return dials._replace(
        prevalence=jnp.asarray(base_rates(task), jnp.float32),
        predictivity=jnp.full_like(dials.predictivity, 0.5),
        exposure=jnp.ones_like(dials.exposure),
    )


def sample(task: Task, dials: Dials, key: Array) -> Example:
    """Draws ONE example: factors first, then bits that have them."""
    everything = blocks(task)
    key_factors, key_seen, key_rest = jax.random.split(key, 3)
    draws = jax.random.uniform(key_factors, (3 * len(everything) + 1,))  # one call: each costs compilation
    target = (draws[0] < 0.5).astype(jnp.int32)
    bits = jax.random.bernoulli(key_rest, 0.5, (task.num_bits,)).astype(jnp.int32)
    for i, block in enumerate(everything):
        f, (own, follow, place) = i % len(task.features), draws[3 * i + 1 : 3 * i + 4]
        follows = (follow < 2 * dials.predictivity[f] - 1) & (i < len(task.features))
        value = jnp.where(follows, target, (own < dials.prevalence[f]).astype(jnp.int32))
        bits = bits.at[block.places].set(block.feature.bits_at(value, place))
    factors = {"target": target, **factors_of(task, bits)}
    seen = jax.random.bernoulli(key_seen, dials.exposure)
    labels = labels_of(task, factors)[dials.output_order]
    return Example(bits.astype(jnp.float32), factors, jnp.where(seen, labels, UNSEEN))


def labels_of(task: Task, factors: dict[str, Array]) -> Array:
    """The reported factors as listed. Args: factors `[]` each. Returns: int32 `[O]`."""
    return jnp.stack([factors[name] for name in task.outputs or feature_names(task)])


def factors_of(task: Task, bits: Array) -> dict[str, Array]:
    """Features, their parts and their twins. Args: bits `[num_bits]`. Returns: int32 `[]` by name."""
    factors = {}
    for block in blocks(task):
        own = bits[block.places]
        factors[block.name] = block.feature.value(own)
        if not block.name.startswith("twin_"):
            factors |= {f"{block.name}.{part}": look_up(table, own) for part, table in block.feature.parts}
    return factors


def _factor_names(task: Task) -> tuple[str, ...]:
    shape = jax.eval_shape(lambda bits: factors_of(task, bits), jax.ShapeDtypeStruct((4096,), jnp.int32))
    return ("target", *shape)


def _design(task: Task) -> tuple[tuple[Block, ...], int, bool]:
    """The asked blocks, the number of their combinations, and whether bits (or else only values) are crossed."""
    asked = blocks(task)[: len(task.features)]
    total = sum(block.feature.arity for block in asked)
    by_bits = 2**total <= task.num_probe // 2
    combinations = 2**total if by_bits else math.prod(block.feature.num_values for block in asked)
    return asked, combinations, by_bits


def num_combinations(task: Task) -> int:
    """Combinations that the balanced probe set crosses: of the features' bits where they fit, else of their values."""
    return _design(task)[1]


def probe_set(task: Task, dials: Dials, name: str, key: Array) -> tuple[Array, dict[str, Array]]:
    """Examples to look at a representation with; the first half is to fit on, the second to score on.

    `natural`: drawn as the training set is. `decorrelated`: every feature independent, at its base rate. `balanced`:
    exactly crossed. All combinations of the features' bits (of their values, where the bits have more combinations than
    there are examples) appear equally often in each half, with independent draws of the distractors; the twins take the
    same combinations in an order of their own, so each is balanced but, by chance, not quite uncorrelated with the rest.

    Args:
      task: what to draw.
      dials: prevalence and predictivity, for `natural`.
      name: `natural`, `decorrelated` or `balanced`.
      key: a PRNG key.

    Returns:
      inputs float32 `[N, num_bits]`; factors int32 `[N]` by name, in crossed bits those too, as `parity4.bit0`.
    """
    if name != "balanced":
        drawn = dials if name == "natural" else decorrelated(task, dials)
        examples = jax.vmap(lambda k: sample(task, drawn, k))(jax.random.split(key, task.num_probe))
        return examples.inputs, examples.factors
    halves = [_balanced_half(task, k, task.num_probe // 2) for k in jax.random.split(key, 2)]
    bits = jnp.concatenate(halves)
    factors = jax.vmap(lambda b: factors_of(task, b))(bits)
    asked, _, by_bits = _design(task)
    for block in asked if by_bits else ():
        factors |= {f"{block.name}.bit{i}": bits[:, block.first + i] for i in range(block.feature.arity)}
    return bits.astype(jnp.float32), factors


def _balanced_half(task: Task, key: Array, half: int) -> Array:
    """Bits `[half, num_bits]` of one half of the balanced set."""
    key_rest, key_twins, key_bits = jax.random.split(key, 3)
    bits = jax.random.bernoulli(key_rest, 0.5, (half, task.num_bits)).astype(jnp.int32)
    bits = _fill(task, bits, blocks(task)[: len(task.features)], jnp.arange(half), jax.random.fold_in(key_bits, 0))
    order = jax.random.permutation(key_twins, half)
    return _fill(task, bits, blocks(task)[len(task.features) :], order, jax.random.fold_in(key_bits, 1))


def _fill(task: Task, bits: Array, into: tuple[Block, ...], rows: Array, key: Array) -> Array:
    """Writes combination `rows[n] modulo their number` into example n's blocks."""
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
