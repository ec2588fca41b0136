"""How the balance and dependence of features change shares of variance.

On a natural set the variance that a binary feature of prevalence p can explain has the factor p (1 - p), whatever the
representation does. With q = 4 p (1 - p), and if the rest of the representation does not change:

  r2_natural = r2_balanced q / (1 - r2_balanced + r2_balanced q)
  r2_balanced = r2_natural / (r2_natural + q (1 - r2_natural))

Source: ours.
"""

from typing import TypeVar

import numpy as np
from jax import Array

Numbers = TypeVar("Numbers", float, np.ndarray, Array)


def natural_r2(balanced: Numbers, prevalence: Numbers) -> Numbers:
    """Returns the r2 expected at a prevalence, for a code whose r2 is `balanced` at prevalence 1/2; shapes broadcast."""
    rarity = 4 * prevalence * (1 - prevalence)
    return balanced * rarity / (1 - balanced + balanced * rarity)


def balanced_r2(natural: Numbers, prevalence: Numbers) -> Numbers:
    """Returns the r2 that the same code would have at prevalence 1/2: the inverse of `natural_r2`.

    At p = 1/2 it equals the input. It assumes that the rest of the representation does not change, so for correlated
    features it is an estimate.
    """
    return natural / (natural + 4 * prevalence * (1 - prevalence) * (1 - natural))


def evenness(shares: np.ndarray) -> float:
    """Returns how evenly examples are spread over classes: (1 - sum p^2) / (1 - 1 / C), for two classes 4 p (1 - p).

    Args:
      shares: of the classes, `[C]`, sum 1.

    Returns:
      0 (one class has all examples) to 1 (all classes have equally many); NaN for one class.
    """
    return float((1 - np.square(shares).sum()) / (1 - 1 / len(shares))) if len(shares) > 1 else np.nan


def dependence(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest canonical correlation of two features' columns.

    It ranges from 0 (uncorrelated) to 1 (one determines a value of the other). For two binary or continuous features it is
    |Pearson's r|. For independent features of q and r columns it is about (sqrt(q) + sqrt(r)) / sqrt(N) or lower.

    Args:
      a: columns `[N, q]`, float64.
      b: columns `[N, r]`, the same.

    Returns:
      The correlation; NaN if all columns of a feature are constant.
    """
    bases = []
    for columns in (a, b):
        # Only singular vectors that vary are kept: columns may be constant, or copies of each other.
        left, values, _ = np.linalg.svd(columns - columns.mean(0), full_matrices=False)
        bases.append(left[:, values > 1e-9 * max(values[0], 1e-300)])
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return float(np.clip(correlations[0], 0, 1)) if len(correlations) else np.nan
