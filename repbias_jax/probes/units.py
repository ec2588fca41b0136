"""Single units: how many respond to a feature, and over how many its code is spread.

Source: Lampinen et al. 2024 (single units); participation ratio as in the field; thresholds and twins are ours.
"""

import jax.numpy as jnp
from jax import Array

from repbias_jax.probes.moments import Measured, Roles, Side, centred, class_spread, explained_by, whole_factors

SELECTIVE = 0.1  # r2 of a unit above which it counts as selective for a feature
DEAD = 1e-6  # share of the most varying unit's variance below which a unit counts as constant


def units(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Returns how many units are selective for each feature, and over how many units its code is spread.

    - `selective_share` is the share of living units whose own r2 for the feature, on the score set, is over 0.1. Range: 0
      to 1; direction: higher is denser; perfect (every unit is a function of the feature): 1; random: 0 at 1,024 examples.
    - `participation` is the participation ratio of the feature's code divided by the number n of living units,
      (sum_i b_i)^2 / (n sum_i b_i^2), where b_i is the variance between the class means of unit i on the fit set (for two
      classes it is proportional to d_i^2, with d the difference vector). Range: 1 / n to 1; direction: higher is denser;
      one unit: 1 / n; all units alike: 1; noise with two classes, or a random Gaussian d: about 1/3.
    - `living_share` is the share of units that vary at all. Range: 0 to 1; direction: higher means fewer dead units;
      perfect and random: 1.
    - `sparsity` is Treves and Rolls' lifetime sparsity 1 - mean(|a|)^2 / mean(a^2), averaged over living units. Range: 0
      (always the same size) to 1; direction: with higher values units are active for fewer examples; perfect (a unit active
      for one of N examples): 1 - 1 / N; random: 1 - 2 / pi = 0.36 for Gaussian activations, 1 - 1 / pi = 0.68 for
      Gaussian activations rectified at their mean.

    All are invariant to the order and to a common scale of units, `selective_share` also to each unit's own scale and
    shift. A rotation changes them.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to take class means from.
      score: the same, of other examples, to score on.
      roles: number of values and role of each factor.

    Returns:
      `selective_share` and `participation` of every factor but single bits; `living_share` and `sparsity` once. NaN where
      no unit is living (`living_share` is then 0), or the feature is constant.

    Source: Lampinen et al. 2024 (single units); Treves and Rolls 1991; thresholds are ours.
    """
    phi_fit, phi_score = centred(fit, score)
    total = jnp.sum(jnp.square(phi_score), axis=0)  # [D]
    living = alive(total)
    size = jnp.square(jnp.abs(score[0]).mean(0)) / jnp.where(living, jnp.square(score[0]).mean(0), 1)
    out = {
        Measured("living_share"): living.mean(),
        Measured("sparsity"): jnp.sum(jnp.where(living, 1 - size, 0)) / _count(living),
    }
    for name in whole_factors(roles):
        r2 = explained_by(name, fit, score, phi_fit, phi_score, roles[name].values) / jnp.where(living, total, 1)
        spread = class_spread(fit[1][name], phi_fit, roles[name].values)  # [D]
        constant = jnp.all(fit[1][name] == fit[1][name][0])
        out |= {
            Measured("selective_share", name): jnp.where(constant, jnp.nan, selective_share(r2, living)),
            Measured("participation", name): jnp.where(constant, jnp.nan, participation(spread, living)),
        }
    return out


def selective_share(r2: Array, living: Array) -> Array:
    """Returns the share of living units whose own r2 is over SELECTIVE; NaN if there are none. Args: `[D]` each."""
    return jnp.sum((r2 > SELECTIVE) & living).astype(jnp.float32) / _count(living)


def participation(spread: Array, living: Array) -> Array:
    """Returns the participation ratio of variances between class means divided by the number of living units.

    NaN if no unit is living or all variances are 0.
    """
    own = jnp.where(living, spread, 0)
    return jnp.square(own.sum()) / jnp.sum(jnp.square(own)) / _count(living)


def alive(total: Array) -> Array:
    """Returns which units have a variance above DEAD times the largest. Args: sums of squares `[D]`."""
    return total > DEAD * total.max()


def _count(living: Array) -> Array:
    return jnp.where(living.any(), living.sum().astype(jnp.float32), jnp.nan)
