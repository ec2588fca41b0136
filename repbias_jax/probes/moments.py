"""Shared by the probes: names of measures, centring, class means and the variance they explain.

`phi` `[N, D]` are activations, factors are int `[N]`. Centre before multiplying: float32 covariances of uncentred ReLU
activations cancel.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import Factor

NUM_PERMUTATIONS = 100
Factors = Mapping[str, Array]
Roles = Mapping[str, Factor]
Side = tuple[Array, Factors]  # activations [N, D] and factors [N] each, of one run at one snapshot
Outputs = Callable[[str, Array], dict[str, Array]]  # (side, change [N, D] or [D]) -> logits [N, C] by reported factor


class Measured(NamedTuple):
    """The name of one number a probe returns."""

    metric: str
    feature: str = ""
    other: str = ""
    at: str = ""


class Moments(NamedTuple):
    """Class means of a feature on the fit set and class sums on the score set: all that r2 needs."""

    means: Array  # [C, D]
    sums: Array  # [C, D]
    counts: Array  # [C], score set


def whole_factors(roles: Roles) -> list[str]:
    """Returns the factors that are features, parts, twins or nuisances: all but single bits and latents."""
    return [name for name, factor in roles.items() if factor.role not in ("bit", "latent")]


def features(roles: Roles) -> list[str]:
    """Returns the factors with the role `feature`, without parts and twins."""
    return [name for name, factor in roles.items() if factor.role == "feature"]


def dot(a: Array, b: Array) -> Array:
    """Returns the matrix product in full float32, on every backend."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def centred(fit: Side, score: Side) -> tuple[Array, Array]:
    """Returns the activations of both sides minus the fit side's mean.

    They are centred twice, since the mean of large numbers is rounded.
    """
    chex.assert_rank([phi for phi, _ in (fit, score)], 2)
    chex.assert_equal_shape_suffix([phi for phi, _ in (fit, score)], 1)
    for phi, factors in (fit, score):
        chex.assert_shape(list(factors.values()), (len(phi),))
    phi_fit, phi_score = fit[0], score[0]
    for _ in range(2):
        middle = phi_fit.mean(0, keepdims=True)
        phi_fit, phi_score = phi_fit - middle, phi_score - middle
    return phi_fit, phi_score


def one_hot(codes: Array, num_values: int) -> Array:
    """Returns columns of zeros and ones, float32 `[..., C]`."""
    return jax.nn.one_hot(codes, num_values, dtype=jnp.float32)


def moments(hot_fit: Array, hot_score: Array, phi_fit: Array, phi_score: Array) -> Moments:
    """Returns class means and sums. Args: one-hot codes `[..., N, C]` and activations `[N, D]` of both sides."""
    means = _class_sums(hot_fit, phi_fit) / jnp.maximum(hot_fit.sum(-2)[..., None], 1)
    return Moments(means, _class_sums(hot_score, phi_score), hot_score.sum(-2))


def explained(m: Moments) -> Array:
    """Returns SST - SSE of each unit, `[..., D]`."""
    return jnp.sum((2 * m.sums - m.counts[..., None] * m.means) * m.means, axis=-2)


def per_unit(by_unit: Array, total: Array) -> Array:
    """Returns the mean over living units of each unit's own r2, `[]`. Args: SST - SSE and SST of each unit `[D]`."""
    return jnp.nanmean(jnp.where(total > 0, by_unit / jnp.where(total > 0, total, 1), jnp.nan))


def per_example(predicted: Array, phi: Array) -> Array:
    """Returns the mean over examples of 1 - |phi - predicted|^2 / |phi|^2, `[]`; examples at zero are left out.

    Args: a feature's prediction for the score set, and the score set's phi minus the fit set's mean, `[N, D]` each.
    """
    left, size = (jnp.sum(jnp.square(x), axis=1) for x in (phi - predicted, phi))
    return jnp.nanmean(jnp.where(size > 0, 1 - left / jnp.where(size > 0, size, 1), jnp.nan))


def explained_by(feature: str, fit: Side, score: Side, phi_fit: Array, phi_score: Array, num_values: int) -> Array:
    """Returns SST - SSE of each column of `phi` `[N, D]` for one factor of the two sides, `[D]`."""
    hot_fit, hot_score = (one_hot(side[1][feature], num_values) for side in (fit, score))
    return explained(moments(hot_fit, hot_score, phi_fit, phi_score))


def class_means(codes: Array, phi: Array, num_values: int) -> Array:
    """Returns the mean of phi in each class, `[C, D]`; zero for a class that does not occur."""
    hot = one_hot(codes, num_values)
    return _class_sums(hot, phi) / jnp.maximum(hot.sum(0)[:, None], 1)


def class_spread(codes: Array, phi: Array, num_values: int) -> Array:
    """Returns the variance of each unit's class means, `[D]`, for centred phi `[N, D]`."""
    shares = one_hot(codes, num_values).mean(0)[:, None]
    return jnp.sum(shares * jnp.square(class_means(codes, phi, num_values)), axis=0)


def is_constant(raw: Array, sst: Array) -> Array:
    """Returns whether a layer's variance is no more than rounding. Args: raw activations; sum of squares about the mean."""
    return sst <= raw.size * jnp.square(4 * jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(raw)))


@functools.cache
def orders(length: int, side: int) -> np.ndarray:
    """Returns permutations `[NUM_PERMUTATIONS, length]`, the same for every run, drawn once with a fixed seed."""
    rng = np.random.default_rng([length, side])
    return np.stack([rng.permutation(length) for _ in range(NUM_PERMUTATIONS)]).astype(np.int32)


def _class_sums(hot: Array, phi: Array) -> Array:
    """Returns the sum of phi in each class, `[..., C, D]`.

    The first class's sum is the total minus the other sums, which saves a product.
    """
    others = dot(jnp.swapaxes(hot[..., 1:], -1, -2), phi)
    whole = jnp.broadcast_to(phi.sum(0), (*hot.shape[:-2], 1, phi.shape[-1]))
    return jnp.concatenate([whole - others.sum(-2, keepdims=True), others], axis=-2)
