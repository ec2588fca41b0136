"""Features of bits as truth tables, from easy to hard.

A feature of arity `k` maps `k` bits to one of `C` values (here two). The experiments manipulate its complexity; its role
and base rate, and the number of bits that other features read, are matched. Majority-of-3 is linearly separable but not
linear: it correlates 1/2 with each of its bits and -1/2 with their parity.

Source: easy and hard features after Lampinen et al. 2024; parities and truth tables are ours.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class Feature:
    """A function of `arity` bits, as its truth table.

    Attributes:
      arity: number of bits that the feature reads, k.
      table: the value for each of the 2^k rows, first bit most significant.
      parts: truth tables of intermediate functions of the same bits, by name, which a network may compute on the way.
    """

    arity: int
    table: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def num_values(self) -> int:
        """Number of values, C."""
        return max(self.table) + 1

    @property
    def base_rate(self) -> float:
        """P(value = 1) when the bits are uniform and independent."""
        return float(np.mean(np.asarray(self.table) == 1))

    def value(self, bits: Array) -> Array:
        """Computes the feature's value. Args: bits `[..., k]` in {0, 1}. Returns: int32 `[...]` in 0..C-1."""
        return look_up(self.table, bits)

    def bits_given(self, value: Array, key: Array) -> Array:
        """Draws the bits uniformly among those that have a value: the inverse of `value`.

        Args:
          value: int `[]` in 0..C-1.
          key: a PRNG key.

        Returns:
          int32 bits `[k]` with `self.value(bits) == value`.
        """
        return self.bits_at(value, jax.random.uniform(key))

    def bits_at(self, value: Array, place: Array) -> Array:
        """Selects the bits at the relative position `place` in [0, 1) among those with a value. Returns: int32 `[k]`."""
        rows = [np.flatnonzero(np.asarray(self.table) == v) for v in range(self.num_values)]
        longest = max(len(r) for r in rows)
        padded = jnp.asarray(np.stack([np.resize(r, longest) for r in rows]), jnp.int32)
        counts = jnp.asarray([len(r) for r in rows], jnp.int32)[value]
        index = jnp.minimum((place * counts.astype(jnp.float32)).astype(jnp.int32), counts - 1)
        return to_bits(padded[value, index], self.arity)


def look_up(table: Sequence[int], bits: Array) -> Array:
    """Looks up a truth table. Args: table `2^k` values; bits `[..., k]`. Returns: int32 `[...]`."""
    weights = jnp.asarray([2**i for i in reversed(range(bits.shape[-1]))], jnp.int32)
    return jnp.asarray(table, jnp.int32)[jnp.matmul(bits.astype(jnp.int32), weights)]


def to_bits(row: Array, arity: int) -> Array:
    """Converts to binary digits, most significant first. Args: row int `[...]`. Returns: int32 `[..., arity]`."""
    shifts = jnp.arange(arity - 1, -1, -1, dtype=jnp.int32)
    digits = jnp.broadcast_to(row[..., None], (*row.shape, arity)) >> jnp.broadcast_to(shifts, (*row.shape, arity))
    return digits & 1


def _table(arity: int, function: Callable[[tuple[int, ...]], int]) -> tuple[int, ...]:
    return tuple(int(function(bits)) for bits in itertools.product((0, 1), repeat=arity))


def _parity(arity: int) -> Feature:
    return Feature(arity, _table(arity, lambda bits: sum(bits) % 2))


def _majority(bits: tuple[int, ...]) -> int:
    return int(2 * sum(bits) > len(bits))


def _xor_of_majorities() -> Feature:
    first = _table(6, lambda bits: _majority(bits[:3]))
    second = _table(6, lambda bits: _majority(bits[3:]))
    whole = _table(6, lambda bits: _majority(bits[:3]) ^ _majority(bits[3:]))
    return Feature(6, whole, (("majority_a", first), ("majority_b", second)))


FEATURES: dict[str, Feature] = {
    "parity1": _parity(1),
    "parity2": _parity(2),
    "parity3": _parity(3),
    "parity4": _parity(4),
    "majority3": Feature(3, _table(3, _majority)),
    "majority5": Feature(5, _table(5, _majority)),
    "majority3_xor": _xor_of_majorities(),
}
