"""What probes share: names of numbers, centring, class means and the variance they explain.

`phi` `[N, D]` are activations, factors int `[N]`. Centre before multiplying: float32 covariances of uncentred ReLU
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
    """Class sums of a feature, all that r2 needs. M: means on the fit set; A: sums on the score set."""

    means: Array  # [C, D]
    sums: Array  # [C, D]
    counts: Array  # [C], score set


def whole_factors(roles: Roles) -> list[str]:
    """Factors that are features, parts, twins or nuisances: all but single bits and latents."""
    return [name for name, factor in roles.items() if factor.role not in ("bit", "latent")]


def features(roles: Roles) -> list[str]:
    """Factors that are features: not parts or twins of others."""
    return [name for name, factor in roles.items() if factor.role == "feature"]


def dot(a: Array, b: Array) -> Array:
    """Matrix product in full float32, on every backend."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def centred(fit: Side, score: Side) -> tuple[Array, Array]:
    """Activations of both sides about the fit side's mean; twice, since the mean of large numbers is rounded."""
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
    """Columns of zeros and ones, float32 `[..., C]`."""
    return jax.nn.one_hot(codes, num_values, dtype=jnp.float32)


def moments(hot_fit: Array, hot_score: Array, phi_fit: Array, phi_score: Array) -> Moments:
    """Class sums. Args: one-hot `[..., N, C]`, activations `[N, D]`."""
    means = _class_sums(hot_fit, phi_fit) / jnp.maximum(hot_fit.sum(-2)[..., None], 1)
    return Moments(means, _class_sums(hot_score, phi_score), hot_score.sum(-2))


def explained(m: Moments) -> Array:
    """SST - SSE of each unit, `[..., D]`."""
    return jnp.sum((2 * m.sums - m.counts[..., None] * m.means) * m.means, axis=-2)


def per_unit(by_unit: Array, total: Array) -> Array:
    """r2 as the mean over living units of each unit's own ratio, `[]`. Args: SST - SSE and SST of each unit `[D]`."""
    return jnp.nanmean(jnp.where(total > 0, by_unit / jnp.where(total > 0, total, 1), jnp.nan))


def per_example(predicted: Array, phi: Array) -> Array:
    """r2 as the mean over examples of 1 - |phi - predicted|^2 / |phi|^2, `[]`; an example at zero has no ratio.

    Args: what a feature predicts of the score set, and phi about the fit set's mean, `[N, D]` each.
    """
    left, size = (jnp.sum(jnp.square(x), axis=1) for x in (phi - predicted, phi))
    return jnp.nanmean(jnp.where(size > 0, 1 - left / jnp.where(size > 0, size, 1), jnp.nan))


def explained_by(feature: str, fit: Side, score: Side, phi_fit: Array, phi_score: Array, num_values: int) -> Array:
    """SST - SSE of each column of `phi` `[N, D]`, for one factor of the two sides. Returns: `[D]`."""
    hot_fit, hot_score = (one_hot(side[1][feature], num_values) for side in (fit, score))
    return explained(moments(hot_fit, hot_score, phi_fit, phi_score))


def class_means(codes: Array, phi: Array, num_values: int) -> Array:
    """Mean of phi in each class, `[C, D]`; zero for a class that does not occur."""
    hot = one_hot(codes, num_values)
    return _class_sums(hot, phi) / jnp.maximum(hot.sum(0)[:, None], 1)


def class_spread(codes: Array, phi: Array, num_values: int) -> Array:
    """Variance of each unit between its class means, for centred phi `[N, D]`. Returns: `[D]`."""
    shares = one_hot(codes, num_values).mean(0)[:, None]
    return jnp.sum(shares * jnp.square(class_means(codes, phi, num_values)), axis=0)


def is_constant(raw: Array, sst: Array) -> Array:
    """Whether a layer's variance is no more than rounding."""
    return sst <= raw.size * jnp.square(4 * jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(raw)))


@functools.cache
def orders(length: int, side: int) -> np.ndarray:
    """The permutations, the same ones for every run: `[NUM_PERMUTATIONS, length]`, drawn once with a fixed seed."""
    rng = np.random.default_rng([length, side])
    return np.stack([rng.permutation(length) for _ in range(NUM_PERMUTATIONS)]).astype(np.int32)


def _class_sums(hot: Array, phi: Array) -> Array:
    """Sum of phi in each class `[..., C, D]`; the first class is what the others leave, which saves a product."""
    others = dot(jnp.swapaxes(hot[..., 1:], -1, -2), phi)
    whole = jnp.broadcast_to(phi.sum(0), (*hot.shape[:-2], 1, phi.shape[-1]))
    return jnp.concatenate([whole - others.sum(-2, keepdims=True), others], axis=-2)
