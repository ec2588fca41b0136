"""Variance explained by features of any kind, from weighted sums: the basis of partition, units and components.

A feature has one or more columns: a binary feature its value, a categorical feature one column for each value but the
first, a continuous feature its number (so only its linear effect is measured). Let X `[N, Q]` be a column of ones and all
columns of the features, phi `[N, D]` the activations and W the diagonal matrix of the examples' weights. Everything
follows from a few sums over each side:

  fit    A = X'WX, B = X'W phi            score    G = X'WX, H = X'W phi, s = sum_n w_n phi_n^2
  P = A^-1 of the chosen columns, M = P B                 gain(P) = sum_q M (2 H - G M)     [D]
  SST = s - gain(ones)                                    SST - SSE = gain(ones and chosen) - gain(ones)
  over all units                                          gain(P) = 2 tr(P B H') - tr(G P B B' P)

For the columns of one categorical feature this gives the r2 of `variance` (class means), for all columns the joint fit.
Weights are counts: an example that a bootstrap draws twice counts twice, and only the sums have to be recomputed.

Source: ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.probes.moments import dot

Columns = Sequence[Sequence[int]]  # for each feature, which columns of X are its own; column 0 is ones


class Sums(NamedTuple):
    """Weighted sums over both sides."""

    inner_fit: Array  # [Q, Q]
    outer_fit: Array  # [Q, D]
    inner_score: Array  # [Q, Q]
    outer_score: Array  # [Q, D]
    squares: Array  # [D], score


class Shares(NamedTuple):
    """Parts of a representation's variance that F features explain, as shares of all its variance."""

    alone: Array  # [F], r2
    unique: Array  # [F], the loss of the joint fit without the feature
    joint: Array  # []


def sums(x: tuple[Array, Array], phi: tuple[Array, Array], weights: tuple[Array, Array]) -> Sums:
    """Returns the sums of both sides. Args: columns `[N, Q]`, activations `[N, D]` and weights `[N]` of both sides."""
    (x_fit, x_score), (phi_fit, phi_score) = x, phi
    weighted_fit, weighted_score = (own * w[:, None] for own, w in zip(x, weights, strict=True))
    return Sums(
        dot(weighted_fit.T, x_fit), dot(weighted_fit.T, phi_fit),
        dot(weighted_score.T, x_score), dot(weighted_score.T, phi_score),
        dot(weights[1][None], jnp.square(phi_score))[0],
    )  # fmt: skip


def inverses(s: Sums, columns: Columns) -> Array:
    """Returns P for each feature alone, for all together and for all but each, `[2 F + 1, Q, Q]`.

    Rows and columns of P are zero for columns that are left out. All P are computed in ONE batched factorisation: on CPU,
    two independent ones in one program can deadlock, each waiting for the other's threads (seen with jaxlib 0.10.2).
    P is a pseudo-inverse, since features may be copies of each other and a bootstrap may not have drawn some class.
    """
    size = s.inner_fit.shape[0]
    every = [c for own in columns for c in own]
    chosen = [*columns, every, *([c for c in every if c not in own] for own in columns)]
    masks = np.zeros((len(chosen), size), np.float32)
    for mask, own in zip(masks, chosen, strict=True):
        mask[[0, *own]] = 1
    return jnp.linalg.pinv(s.inner_fit[None] * masks[:, :, None] * masks[:, None], hermitian=True)


def total(s: Sums) -> Array:
    """Returns the score set's sum of squares about the fit set's mean, SST `[D]`."""
    return s.squares - _by_mean(s)


def explained(s: Sums, inverse: Array, own: Sequence[int]) -> Array:
    """Returns SST - SSE of each unit by least squares on one feature's columns, `[D]`. Args: inverse: its P `[Q, Q]`."""
    use = np.array([0, *own])
    weights = dot(inverse[np.ix_(use, use)], s.outer_fit[use])
    gain = jnp.sum(weights * (2 * s.outer_score[use] - dot(s.inner_score[np.ix_(use, use)], weights)), axis=0)
    return gain - _by_mean(s)


def spread(s: Sums, inverse: Array, own: Sequence[int]) -> Array:
    """Returns the sum of squares explained within the fit set, `[D]`: for classes, N times the variance of their means."""
    return explained(s._replace(inner_score=s.inner_fit, outer_score=s.outer_fit), inverse, own)


def shares(s: Sums, inverse: Array) -> Shares:
    """Returns what each feature explains alone and in addition to all others, and what all explain together.

    Range: minus infinity to 1; direction: higher is more strongly represented; perfect: 1; random: minus the number of
    free columns over N_fit. The shared part is `alone - unique`: 0 for independent features, below 0 where one suppresses
    what the other does not explain. All are invariant to rotation, shift and scale of the representation.
    """
    across, within = dot(s.outer_fit, s.outer_score.T), dot(s.outer_fit, s.outer_fit.T)  # B H', B B'
    bent = dot(dot(inverse, s.inner_score[None]), inverse)
    gains = 2 * jnp.sum(inverse * across.T[None], (1, 2)) - jnp.sum(bent * within[None], (1, 2))
    found = (gains - _by_mean(s).sum()) / total(s).sum()
    alone, joint, left = jnp.split(found, [len(found) // 2, len(found) // 2 + 1])
    return Shares(alone, joint[0] - left, joint[0])


def permuted(
    x: tuple[Array, Array], phi: tuple[Array, Array], columns: Columns, orders: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Returns what each feature alone explains when its values are permuted on both sides.

    Args:
      x: columns `[N, Q]` of both sides.
      phi: activations `[N, D]` of both sides.
      columns: of each feature.
      orders: int `[P, N]` of both sides, permutations of their examples.

    Returns:
      r2 `[P, F]`; each unit's own r2 for the first permutation `[F, D]`, infinite or NaN where the unit does not vary.
    """
    s = sums(x, phi, (jnp.ones(len(x[0])), jnp.ones(len(x[1]))))
    inverse = inverses(s, columns)  # products of the columns do not depend on the order

    def one(order: tuple[Array, Array]) -> Array:
        outer = [dot(own[rows].T, of) for own, rows, of in zip(x, order, phi, strict=True)]
        mixed = s._replace(outer_fit=outer[0], outer_score=outer[1])
        return jnp.stack([explained(mixed, inverse[f], own) for f, own in enumerate(columns)])  # [F, D]

    every = jax.lax.map(lambda order: one(order).sum(-1), orders, batch_size=10)
    return every / total(s).sum(), one((orders[0][0], orders[1][0])) / total(s)[None]


def _by_mean(s: Sums) -> Array:
    """Returns the part of the score set's sum of squares about zero that the fit set's mean explains, `[D]`."""
    middle = s.outer_fit[0] / s.inner_fit[0, 0]
    return middle * (2 * s.outer_score[0] - s.inner_score[0, 0] * middle)
