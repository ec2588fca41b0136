"""Representation variance explained by each feature: the main measure.

The direction is encoding: the feature predicts the representation. `phi` `[N, D]` are activations and `f` is the feature's
value as one-hot columns; everything is centred with the mean of the FIT set before anything is multiplied (float32
covariances of uncentred ReLU activations cancel). With M `[C, D]`, the fit set's mean of phi given f:

  SST = sum |phi|^2      SSE = sum |phi - M[f]|^2      r2 = 1 - SSE / SST       sums over the score set

Permutations need only class sums, since SST - SSE = 2 <G' phi, M> - sum_c n_c |M_c|^2 for the one-hot G `[N, C]`.
For a binary feature of prevalence p, r2 = p (1 - p) |d|^2 / tr(S), where d is the difference of the class means and S the
covariance of phi.

Source: Lampinen et al. 2024 (the measure), Hermann and Lampinen 2020; ratio of sums, null and partition are ours.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.probes import regression
from repbias_jax.probes.moments import (
    Measured,
    Roles,
    Side,
    centred,
    dot,
    explained,
    features,
    is_constant,
    moments,
    one_hot,
    orders,
    per_example,
    per_unit,
    whole_factors,
)


def variance(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Returns the variance that each factor explains by itself.

    Range of r2: minus infinity to 1; direction: higher is more strongly represented; perfect (the representation is a
    function of the feature alone): 1; random: the null level -(C - 1) / N_fit. r2 is invariant to rotation, shift and scale
    of the representation. `variance` is in squared activation units, summed over units. Two other forms are also reported.
    They have the same range and direction, but no stable null: `r2_per_example`, the paper's form, is the mean over score
    examples of 1 - |phi - M[f]|^2 / |phi|^2; `r2_per_unit` is the mean over living units of each unit's own ratio.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to fit on.
      score: the same, of other examples, to score on.
      roles: number of values and role of each factor.

    Returns:
      For every factor but single bits: `r2`, `variance`, `r2_per_example`, `r2_per_unit`, `null`, `null_low` and
      `null_high` (the central 95 % of r2 under permuted labels); once: `total_variance`. NaN where the layer or the factor
      is constant.

    Source: Lampinen et al. 2024; the ratio of sums and the band are ours.
    """
    phi_fit, phi_score = centred(fit, score)
    total = jnp.sum(jnp.square(phi_score), axis=0)  # [D]
    sst = jnp.where(is_constant(score[0], total.sum()), jnp.nan, total.sum())
    out = {Measured("total_variance"): total.sum() / len(phi_score)}
    for name in whole_factors(roles):
        num_values = roles[name].values
        hot_fit, hot_score = (one_hot(side[1][name], num_values) for side in (fit, score))
        used = jnp.sum(hot_fit.sum(0) > 0)
        sst_f = jnp.where(used > 1, sst, jnp.nan)
        sums = moments(hot_fit, hot_score, phi_fit, phi_score)
        by_unit = explained(sums)
        null = permuted(fit[1][name], score[1][name], num_values, phi_fit, phi_score) / sst_f
        low, high = jnp.quantile(null, jnp.asarray([0.025, 0.975]))
        out |= {
            Measured("r2", name): by_unit.sum() / sst_f,
            Measured("variance", name): jnp.where(used > 1, by_unit.sum() / len(phi_score), jnp.nan),
            Measured("r2_per_example", name): jnp.where(
                jnp.isnan(sst_f), jnp.nan, per_example(dot(hot_score, sums.means), phi_score)
            ),
            Measured("r2_per_unit", name): jnp.where(jnp.isnan(sst_f), jnp.nan, per_unit(by_unit, total)),
            Measured("null", name): jnp.where(used > 1, -(used - 1) / len(phi_fit), jnp.nan),
            Measured("null_low", name): low,
            Measured("null_high", name): high,
        }
    return out


def walsh(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Returns the Walsh partition: the variance explained by products of +/-1 bits, by block and degree.

    On an exactly crossed set the products are orthogonal, so their shares add up: features (a parity is one product),
    parts (products of fewer bits of a block), `across` (products over several blocks) and `rest` (distractors) sum to 1.
    The crossed bits are the factors with the role `bit`, each in the block of the feature it is `of`; without any, the
    result is empty. Each entry is the sum of r2 over `q` products; range, direction and perfect value are those of r2;
    random: `walsh_null` = -q / N_fit.

    Args:
      fit: activations `[N, D]` and factors int `[N]`, exactly crossed in the bits.
      score: the same, of other examples.
      roles: number of values and role of each factor.

    Returns:
      `walsh_r2` and `walsh_null` for every block and degree (`at`), and for `across` by degree; `walsh_r2` of `rest`.

    Source: ours.
    """
    names = [n for n, f in roles.items() if f.role == "bit"]
    if not names:
        return {}
    owners = [roles[name].of for name in names]
    members = np.array([[q >> i & 1 for i in range(len(names))] for q in range(1, 2 ** len(names))], bool)  # [Q, bits]
    phi_fit, phi_score = centred(fit, score)
    sst = jnp.sum(jnp.square(phi_score))
    sst = jnp.where(is_constant(score[0], sst), jnp.nan, sst)
    on_fit, on_score = (
        dot(_products(jnp.stack([side[1][n] for n in names], 1)).T, phi) / len(phi)
        for side, phi in ((fit, phi_fit), (score, phi_score))
    )  # [Q, D] each: coefficients
    share = len(phi_score) * jnp.sum((2 * on_score - on_fit) * on_fit, axis=1) / sst  # [Q]
    out, groups = {Measured("walsh_r2", "rest"): 1 - share.sum()}, {}
    for q, row in enumerate(members):
        touched = {owners[i] for i in np.flatnonzero(row)}
        groups.setdefault((touched.pop() if len(touched) == 1 else "across", int(row.sum())), []).append(q)
    for (block, degree), chosen in groups.items():
        out[Measured("walsh_r2", block, at=str(degree))] = share[np.asarray(chosen)].sum()
        null = jnp.where(jnp.isnan(sst), jnp.nan, -len(chosen) / len(phi_fit))
        out[Measured("walsh_null", block, at=str(degree))] = null
    return out


def partition(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Returns the unique and shared parts of each feature, for features that are correlated or unbalanced.

    The representation is predicted by least squares from all features at once, and from all but one. `joint_r2` is r2 of
    all features together; `unique_r2` of f is what the joint fit loses without f; `shared_r2` is r2 of f alone minus its
    unique part. For independent features the shared part is 0 and the unique part is the r2 of `variance`. Range,
    direction, perfect and random values and invariances are those of r2 (random joint: minus the number of free columns
    over N_fit).

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, of other examples.
      roles: number of values and role of each factor.

    Returns:
      `joint_r2` once, `unique_r2` and `shared_r2` for each feature (factors that are not parts, bits or twins).

    Source: ours.
    """
    phi = centred(fit, score)
    defined = ~is_constant(score[0], jnp.sum(jnp.square(phi[1])))
    names = features(roles)
    if not names:
        return {Measured("joint_r2"): jnp.where(defined, 0.0, jnp.nan)}
    x_fit, x_score = (_columns(side, names, roles) for side in (fit, score))
    middle = x_fit.mean(0, keepdims=True).at[0, 0].set(0)
    weights = jnp.ones(len(x_fit)), jnp.ones(len(x_score))
    sums = regression.sums((x_fit - middle, x_score - middle), phi, weights)
    ends = np.cumsum([1, *(roles[name].values - 1 for name in names)]).tolist()
    own = [list(range(a, b)) for a, b in itertools.pairwise(ends)]
    found = jax.tree.map(
        lambda value: jnp.where(defined, value, jnp.nan), regression.shares(sums, regression.inverses(sums, own))
    )
    out = {Measured("joint_r2"): found.joint}
    for i, name in enumerate(names):
        constant = jnp.all(fit[1][name] == fit[1][name][0])
        unique = jnp.where(constant, jnp.nan, found.unique[i])
        out |= {Measured("unique_r2", name): unique, Measured("shared_r2", name): found.alone[i] - unique}
    return out


def _columns(side: Side, names: Sequence[str], roles: Roles) -> Array:
    """Returns a column of ones, and one for each value but the first of each factor, `[N, 1 + sum of (C - 1)]`."""
    hot = [one_hot(side[1][name], roles[name].values)[:, 1:] for name in names]
    return jnp.concatenate([jnp.ones((len(side[0]), 1)), *hot], axis=1)


def permuted(codes_fit: Array, codes_score: Array, num_values: int, phi_fit: Array, phi_score: Array) -> Array:
    """Returns SST - SSE over all units for each of `NUM_PERMUTATIONS` permutations of the labels, `[permutations]`."""
    fit, score = codes_fit[orders(len(codes_fit), 0)], codes_score[orders(len(codes_score), 1)]
    sums = moments(one_hot(fit, num_values), one_hot(score, num_values), phi_fit, phi_score)
    return jnp.sum(explained(sums), axis=-1)


def _products(bits: Array) -> Array:
    """Returns all non-empty products of +/-1 bits, `[N, 2^k - 1]`: product q >= 1 is over the bits set in q.

    Args: bits: `[N, k]` in {0, 1}.
    """
    signs = 1.0 - 2.0 * bits.astype(jnp.float32)
    products = jnp.ones((len(bits), 1), jnp.float32)
    for i in range(bits.shape[1]):
        products = jnp.concatenate([products, products * signs[:, i : i + 1]], axis=1)
    return products[:, 1:]
