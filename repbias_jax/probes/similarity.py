"""Similarity of the representations of two models, for the same examples.

`phi` `[N, D]` are activations. A measure has two steps: `describe` runs once for each model and `compare` once for each
pair, so the costly part is done once per model. For all measures, higher is more similar and 1 is the maximum.

  RSA         a model is described by its representational dissimilarity matrix (RDM), the distances between its
              representations of all pairs of examples, as a vector [N (N - 1) / 2]; two models are compared by the
              Pearson or Spearman correlation of those vectors
  CKA         |X'Y|^2 / (|X'X| |Y'Y|) with X, Y centred; `cka_debiased` uses an unbiased estimate of each |.|^2 (HSIC)
  Procrustes  the nuclear norm of X'Y with X, Y centred and |X| = |Y| = 1: 1 - d^2 / 2, where d is the distance left
              after the best rotation of one onto the other

| measure | distance, comparison | invariant to |
|---|---|---|
| rsa | Euclidean, Pearson | rotation, shift, scale |
| rsa_rank | Euclidean, Spearman | the same |
| rsa_squared | squared Euclidean, Pearson | the same |
| rsa_correlation | 1 - correlation over units, Pearson | scale, and a number added to all units of an example |
| rsa_correlation_rank | the same, Spearman | the same |
| cka, cka_debiased, procrustes | | rotation, shift, scale |

The RDMs of 64 models for 1,024 examples take 134 MB in float32; those of one measure are held at a time.

Source: Kriegeskorte et al. 2008 (RSA); Kornblith et al. 2019 (CKA); Song et al. 2012 (unbiased HSIC); Williams et al. 2021
(Procrustes); Nili et al. 2014 (noise ceiling).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.probes.moments import Measured, dot


class Measure(NamedTuple):
    """The two steps of a measure: one for each model, one for each pair."""

    describe: Callable[[Array], tuple[Array, ...]]
    compare: Callable[..., Array]


def squared_distances(phi: Array) -> Array:
    """Returns the squared Euclidean distances of all pairs of examples.

    They are computed from differences, one example at a time: |x|^2 + |y|^2 - 2 xy would lose small distances in float32.

    Args:
      phi: activations `[N, D]`.

    Returns:
      `[N (N - 1) / 2]`, the upper triangle row by row, at least zero.
    """
    square = jax.lax.map(lambda x: jnp.sum(jnp.square(phi - x[None]), axis=-1), phi)
    return square[np.triu_indices(len(phi), 1)]


def euclidean(phi: Array) -> Array:
    """Returns the Euclidean distances of all pairs of examples, in the order of `squared_distances`."""
    return jnp.sqrt(squared_distances(phi))


def correlation(phi: Array) -> Array:
    """Returns 1 minus the correlation over units for all pairs of examples.

    This is half the squared distance of rows that are centred and have length 1.

    Args:
      phi: activations `[N, D]`.

    Returns:
      `[N (N - 1) / 2]` in 0 to 2; NaN for an example whose units are all equal.
    """
    rows = phi - phi.mean(axis=1, keepdims=True)
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return squared_distances(rows / jnp.where(length > 0, length, jnp.nan)) / 2


def unit(vector: Array) -> Array:
    """Returns a vector minus its mean, with length 1, so that dot products are Pearson correlations; NaN if constant."""
    middle = vector - _mean(vector)
    length = jnp.sqrt(_mean(jnp.square(middle)) * len(vector))
    return middle / jnp.where(length > 0, length, jnp.nan)


def unit_ranks(vector: Array) -> Array:
    """Returns `unit` of the ranks, so that dot products are Spearman correlations. Args: numbers of at least zero."""
    return unit(jnp.where(jnp.isnan(vector).any(), jnp.nan, ranks(vector)))


def ranks(vector: Array) -> Array:
    """Returns ranks from 0; equal values share their mean rank.

    Floats of at least zero have the same order as their bits. The bits and the position are sorted as ONE integer, which
    on CPU takes a fraction of the time of sorting pairs.

    Args:
      vector: float32 `[P]`, at least zero, P below 2^23.

    Returns:
      float32 `[P]` in 0 to P - 1.
    """
    count = len(vector)
    bits = jax.lax.bitcast_convert_type(vector, jnp.uint32)
    with jax.enable_x64(True):
        both = jnp.sort(bits.astype(jnp.uint64) << 32 | jnp.arange(count, dtype=jnp.uint64))
        order, bits = both.astype(jnp.uint32).astype(jnp.int32), (both >> 32).astype(jnp.uint32)
    place, edge = jnp.arange(count, dtype=jnp.int32), jnp.ones(1, bool)
    changes = bits[1:] != bits[:-1]
    first = jax.lax.cummax(jnp.where(jnp.concatenate([edge, changes]), place, 0))
    last = jax.lax.cummin(jnp.where(jnp.concatenate([changes, edge]), place, count), reverse=True)
    return jnp.zeros(count, jnp.float32).at[order].set((first + last).astype(jnp.float32) / 2)


def _mean(values: Array) -> Array:
    """Returns the mean, summed in two steps: one long sum in float32 would lose digits."""
    return _total(values) / len(values)


def _total(values: Array) -> Array:
    side = 512
    padded = jnp.pad(values, (0, -len(values) % side))
    return padded.reshape(-1, side).sum(axis=1).sum()


def _by_distance(distances: Callable[[Array], Array], scale: Callable[[Array], Array]) -> Measure:
    """Returns a measure by RSA, whose RDMs are scaled so that comparing two is a dot product."""
    return Measure(lambda phi: (scale(distances(phi)),), lambda a, b: _total(a * b))


def _centred(phi: Array) -> tuple[Array]:
    """Returns activations centred and with Frobenius norm 1; NaN if constant.

    They are centred twice, since the mean of large numbers is rounded.
    """
    raw = phi
    for _ in range(2):
        phi = phi - phi.mean(axis=0, keepdims=True)
    size = jnp.linalg.norm(phi)
    rounding = 4 * jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(raw)) * math.sqrt(raw.size)
    return (phi / jnp.where(size > rounding, size, jnp.nan),)


def _cka(x: Array, y: Array) -> Array:
    """Returns |X'Y|^2 / (|X'X| |Y'Y|)."""
    xy, xx, yy = (jnp.sum(jnp.square(dot(a.T, b))) for a, b in ((x, y), (x, x), (y, y)))
    return xy / jnp.sqrt(xx * yy)


def _hsic(x: Array, y: Array) -> Array:
    """Returns the unbiased HSIC of linear kernels, times N (N - 3).

    Let K~ and L~ be K = XX' and L = YY' with zeros on their diagonals. Then it is

      tr K~L~ + (1'K~1) (1'L~1) / ((N - 1) (N - 2)) - 2 / (N - 2) 1'K~L~1

    Since X is centred, the row sums of K~ are minus the diagonal of K, -k_i = -|x_i|^2, so no N x N matrix is needed:

      |X'Y|^2 - sum_i k_i l_i + (sum k) (sum l) / ((N - 1) (N - 2)) - 2 / (N - 2) sum_i k_i l_i
    """
    n, k, l = len(x), jnp.sum(jnp.square(x), axis=1), jnp.sum(jnp.square(y), axis=1)  # noqa: E741
    both = jnp.sum(k * l)
    return jnp.sum(jnp.square(dot(x.T, y))) - both * n / (n - 2) + k.sum() * l.sum() / ((n - 1) * (n - 2))


def _cka_debiased(x: Array, y: Array) -> Array:
    """Returns HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), all unbiased; NaN unless both factors are above zero."""
    own = _hsic(x, x), _hsic(y, y)
    return _hsic(x, y) / jnp.sqrt(jnp.where((own[0] > 0) & (own[1] > 0), own[0] * own[1], jnp.nan))


def _procrustes(x: Array, y: Array) -> Array:
    """Returns the sum of the singular values of X'Y, which is the largest trace of X'Y R over rotations R."""
    product = dot(x.T, y)
    sound = jnp.isfinite(product).all()
    values = jnp.linalg.svd(jnp.where(sound, product, 0), compute_uv=False)
    return jnp.where(sound, values.sum(), jnp.nan)


MEASURES: dict[str, Measure] = {
    "rsa": _by_distance(euclidean, unit),
    "rsa_rank": _by_distance(euclidean, unit_ranks),
    "rsa_squared": _by_distance(squared_distances, unit),
    "rsa_correlation": _by_distance(correlation, unit),
    "rsa_correlation_rank": _by_distance(correlation, unit_ranks),
    "cka": Measure(_centred, _cka),
    "cka_debiased": Measure(_centred, _cka_debiased),
    "procrustes": Measure(_centred, _procrustes),
}
_PROGRAMS = {name: (jax.jit(m.describe), jax.jit(m.compare)) for name, m in MEASURES.items()}


def similarity(models: Sequence[Array]) -> dict[Measured, np.ndarray]:
    """Returns how similar the representations of every two models are, by every measure of MEASURES.

    Range: -1 to 1 for RSA, 0 to 1 for `cka` and `procrustes`, up to 1 for `cka_debiased`. Direction: higher is more
    similar. Perfect (one is the other, rotated, shifted and scaled): 1. Random (independent representations): about 0 for
    RSA and `cka_debiased`; above 0, and rising with D / N, for `cka` and `procrustes`. Each pair is computed by itself, so
    no value depends on how many models there are. Models may have different numbers of units.

    Args:
      models: activations `[N, D]` of each of M models for the same N examples, float32.

    Returns:
      For each measure float32 `[M, M]`, symmetric. NaN where a representation is constant or not finite and, for
      `rsa_correlation`, where all units of some example are equal.

    Raises:
      ValueError: the models have different numbers of examples, or fewer than 4.

    Source: in the module's docstring; Euclidean distance and Pearson are Hermann and Lampinen's (2020).
    """
    if len({len(phi) for phi in models}) != 1 or len(models[0]) < 4:
        raise ValueError(f"expected the same number of examples, at least 4; got {[len(phi) for phi in models]}")
    return {Measured(name): _compare_all(models, *programs) for name, programs in _PROGRAMS.items()}


def _compare_all(models: Sequence[Array], describe: Callable, compare: Callable) -> np.ndarray:
    """Returns one measure of every two models, `[M, M]`; the models' descriptions are not kept."""
    own = [describe(jnp.asarray(phi)) for phi in models]
    values = np.full((len(models),) * 2, np.nan, np.float32)
    for i, j in zip(*np.triu_indices(len(models)), strict=True):
        values[i, j] = values[j, i] = compare(*own[i], *own[j])
    return values


def noise_ceiling(correlations: np.ndarray) -> tuple[float, float]:
    """Returns bounds on how well any RDM can correlate with the RDMs of some models, given how these differ.

    With RDMs z_i of unit length and c_ij = z_i'z_j, the best single RDM is their mean (upper bound). The mean over the
    other models does not use the model itself (lower bound):

      upper = mean_i (sum_j c_ij) / sqrt(sum_jk c_jk)      lower = the same with j and k over the others than i

    Args:
      correlations: Pearson correlations of the models' RDMs, `[M, M]`, symmetric, ones on the diagonal.

    Returns:
      Lower and upper bound, -1 to 1; NaN for fewer than two models.

    Source: Nili et al. 2014.
    """
    c, count = np.asarray(correlations, np.float64), len(correlations)
    if count < 2:
        return np.nan, np.nan
    upper = np.sqrt(c.sum()) / count
    others = ~np.eye(count, dtype=bool)
    lower = [c[i, o].sum() / np.sqrt(c[np.ix_(o, o)].sum()) for i, o in enumerate(others)]
    return float(np.mean(lower)), float(upper)
