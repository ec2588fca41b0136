"""What unbalanced and dependent features do to shares of variance.

On a natural set the variance that a binary feature can explain carries the factor p (1 - p), whatever the representation
does: with q = 4 p (1 - p), and the rest of the representation as it is,

  r2_natural = r2_balanced q / (1 - r2_balanced + r2_balanced q)
  r2_balanced = r2_natural / (r2_natural + q (1 - r2_natural))

Source: ours.
"""

from typing import TypeVar

import numpy as np
from jax import Array

Numbers = TypeVar("Numbers", float, np.ndarray, Array)


def natural_r2(balanced: Numbers, prevalence: Numbers) -> Numbers:
    """r2 to be expected at a prevalence, of a code that shows `balanced` at 1/2. Any shapes that broadcast."""
    rarity = 4 * prevalence * (1 - prevalence)
    return balanced * rarity / (1 - balanced + balanced * rarity)


def balanced_r2(natural: Numbers, prevalence: Numbers) -> Numbers:
    """r2 that the same code would show at prevalence 1/2: the inverse of `natural_r2`, and the same where p = 1/2.

    It assumes that the rest of the representation stays as it is, so that for correlated features it is an estimate.
    """
    return natural / (natural + 4 * prevalence * (1 - prevalence) * (1 - natural))


def evenness(shares: np.ndarray) -> float:
    """How even classes are: (1 - sum p^2) / (1 - 1 / C), for two classes 4 p (1 - p).

    Args:
      shares: of the classes, `[C]`, sum 1.

    Returns:
      0 (one class has all) to 1 (all alike); NaN for one class.
    """
    return float((1 - np.square(shares).sum()) / (1 - 1 / len(shares))) if len(shares) > 1 else np.nan


def dependence(a: np.ndarray, b: np.ndarray) -> float:
    """The largest canonical correlation of two features' columns: 0 (uncorrelated) to 1 (one says a value of the other).

    For two binary or continuous features it is |Pearson's r|. Independent features of q and r columns are at about
    (sqrt(q) + sqrt(r)) / sqrt(N) or below.

    Args:
      a: columns `[N, q]`, float64.
      b: columns `[N, r]`, the same.
    """
    bases = []
    for columns in (a, b):
        # Singular vectors of what varies: columns may be constant, or copies of each other.
        left, values, _ = np.linalg.svd(columns - columns.mean(0), full_matrices=False)
        bases.append(left[:, values > 1e-9 * max(values[0], 1e-300)])
    return float(np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)[0], 0, 1))
