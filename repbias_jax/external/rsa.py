"""Representational similarity: whether examples that differ in a feature are far apart in the representation.

The model RDM of a feature of classes has distance 1 between examples of different classes and 0 within a class; that of a
continuous feature has the absolute differences of the numbers. It is compared with the Euclidean distances of the
activations by Pearson's correlation (`rsa`) and by Spearman's (`rsa_rank`), over the pairs of at most 1,024 examples of the
score half.

Range: -1 to 1; direction: higher is more similar; perfect: 1; random: about 0, with a null band from permutations of the
feature's examples. In the bootstrap, each pair is weighted by the product of the numbers of times its two examples were
drawn, and an example makes no pair with itself; ranks are those of all examples.

Source: Kriegeskorte et al. 2008 (RSA); Nili et al. 2014 (resampling examples); feature models and band are ours.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.external.design import interval, resampled
from repbias_jax.external.features import Feature
from repbias_jax.probes import moments
from repbias_jax.probes.moments import Measured
from repbias_jax.probes.similarity import MEASURES

MAX_EXAMPLES = 1024
COMPARED = ("rsa", "rsa_rank")


def rsa(
    phi: Array, rows: np.ndarray, features: Sequence[Feature], draws: int
) -> Iterator[tuple[str, Measured, float]]:  # fmt: skip
    """Yields the RSA of one site with each feature, and the ends of its interval and null band, as probe, name and value.

    Values are NaN if the feature is constant among the compared examples.

    Args:
      phi: activations of the score half `[N, D]`.
      rows: of the score half, among all examples `[N]`.
      features: of all examples.
      draws: number of bootstrap draws.
    """
    kept = np.sort(np.random.default_rng(len(rows)).permutation(len(rows))[:MAX_EXAMPLES])
    counts = jnp.asarray(resampled(len(kept), draws, 2))
    orders = jnp.asarray(moments.orders(len(kept), 1))
    for metric in COMPARED:
        (own,) = MEASURES[metric].describe(phi[kept])
        for feature in features:
            (model,) = MEASURES[metric].describe(jnp.asarray(_model(feature, rows[kept])))
            found, band, drawn = jax.device_get(_compare(own, model, orders, counts))
            yield "rsa", Measured(metric, feature.name), float(found)
            for ending, (low, high) in (("", interval(found, drawn)), ("_null", np.quantile(band, (0.025, 0.975)))):
                yield "rsa", Measured(f"{metric}{ending}_low", feature.name), float(low)
                yield "rsa", Measured(f"{metric}{ending}_high", feature.name), float(high)


def _model(feature: Feature, rows: np.ndarray) -> np.ndarray:
    """Returns a representation whose distances are those of the model RDM, up to scale, float32 `[N, C]` or `[N, 1]`."""
    own = feature.values[rows]
    if feature.levels:
        return (own[:, None] == np.arange(len(feature.levels))).astype(np.float32) / np.float32(np.sqrt(2))
    size = np.abs(own).max()
    middled = own / (size or 1) - (own / (size or 1)).mean()
    return (middled / (middled.std() or 1)).astype(np.float32)[:, None]


@jax.jit
def _compare(own: Array, model: Array, orders: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Returns the correlation of two RDMs: as measured, under permutations `[P]` and under bootstrap draws `[draws]`.

    Args: both RDMs as vectors of all pairs, with mean 0 and length 1; permutations `[P, N]`; counts `[draws, N]`.
    """
    a, b = _square(own, orders.shape[1]), _square(model, orders.shape[1])
    band = jax.lax.map(lambda order: jnp.sum(a * b[order][:, order]) / 2, orders)
    weights = counts.astype(jnp.float32)

    def over_pairs(x: Array) -> Array:
        return jnp.sum(jnp.matmul(weights, x, precision="highest") * weights, axis=1) / 2

    # The entries of a unit vector over so many pairs are small: scaled to unit deviation, no square is lost in float32.
    a, b = a * jnp.sqrt(len(own)), b * jnp.sqrt(len(own))
    pairs = (jnp.square(weights.sum(1)) - jnp.square(weights).sum(1)) / 2
    mean_a, mean_b, aa, bb, ab = (over_pairs(x) / pairs for x in (a, b, a * a, b * b, a * b))
    spread = (aa - jnp.square(mean_a)) * (bb - jnp.square(mean_b))
    return jnp.sum(own * model), band, (ab - mean_a * mean_b) / jnp.sqrt(spread)


def _square(pairs: Array, count: int) -> Array:
    """Returns the symmetric matrix with a zero diagonal that has this upper triangle."""
    upper = jnp.zeros((count, count)).at[np.triu_indices(count, 1)].set(pairs)
    return upper + upper.T
