"""Fit and score halves, design columns of the features, centred activations, and the bootstrap over examples.

Probes are fitted on one half of the examples and scored on the other. By default the halves are random, drawn with a fixed
seed. They are not the even and the odd rows, since the order of rows often has a period. Examples that belong together
(frames of one film, tokens of one sentence) must be in the same half; only the caller can ensure that, by `split`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import ConfigError
from repbias_jax.external.features import Feature, masked
from repbias_jax.probes.moments import orders

Rows = tuple[np.ndarray, np.ndarray]  # row numbers of the examples to fit on and of those to score on

MIN_EXAMPLES = 20
SIDES = {"fit": 0, "score": 1, 0: 0, 1: 1}
BLOCK = 2**22  # number of values centred at a time


class Design(NamedTuple):
    """The design columns of F features, in both halves.

    Attributes:
      x: a column of ones, then the features' columns, standardised with the mean and standard deviation of the fit half;
        float32 `[N, Q]` for each half.
      columns: for each feature, the indices of its columns.
      middle: mean of each column in the fit half before it was standardised, `[Q]`.
      scale: standard deviation of each column in the fit half before it was standardised, `[Q]`.
    """

    x: tuple[Array, Array]
    columns: tuple[tuple[int, ...], ...]
    middle: np.ndarray
    scale: np.ndarray


def halves(count: int, split: Sequence[Any] | None = None) -> Rows:
    """Returns the rows to fit on and the rows to score on.

    Args:
      count: number of examples, N.
      split: `fit` or `score` (or 0 and 1) for each example; None: a random half each.

    Raises:
      ConfigError: fewer than 20 examples, other values in `split` or another number of them, or a half with fewer than 10
        examples.
    """
    if count < MIN_EXAMPLES:
        raise ConfigError(f"{count} examples; expected at least {MIN_EXAMPLES}")
    if split is None:
        order = np.random.default_rng(0).permutation(count)
        return np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    given = _values(split)
    if given.shape != (count,):
        raise ConfigError(f"split: values of shape {given.shape}; expected ({count},), one for each example")
    sides = np.array([_side(value) for value in given.tolist()])
    if (sides < 0).any():
        other = str(given[np.argmin(sides)])[:64]
        raise ConfigError(f"split: {other!r}; expected fit or score for each example")
    fit, score = np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)
    if min(len(fit), len(score)) < MIN_EXAMPLES // 2:
        raise ConfigError(f"split: {len(fit)} to fit, {len(score)} to score; expected at least {MIN_EXAMPLES // 2} each")
    return fit, score


def _values(split: Sequence[Any]) -> np.ndarray:
    """Returns a split as an array. Raises ConfigError if it makes none, or has masked cells."""
    try:
        if masked(split):
            raise ConfigError("split: masked values; expected fit or score for each example")
        return np.asarray(split)
    except ConfigError:  # it is a ValueError too
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError("split: values that make no array; expected fit or score for each example") from error


def _side(value: Any) -> int:
    """Returns 0 to fit, 1 to score, -1 for anything else."""
    try:
        return SIDES.get(value, -1)
    except TypeError:  # it has no hash
        return -1


def varies(feature: Feature, rows: Rows) -> bool:
    """Returns whether a feature takes more than one value in each half; otherwise its measures are undefined."""
    return all(np.ptp(feature.values[own]) > 0 for own in rows)


def columns_of(feature: Feature) -> np.ndarray:
    """Returns a column of zeros and ones for each class but the first, or the number itself, float64 `[N, q]`."""
    if not feature.levels:
        return feature.values[:, None]
    return (feature.values[:, None] == np.arange(1, len(feature.levels))).astype(np.float64)


def design_matrix(features: Sequence[Feature], rows: Rows) -> Design:
    """Returns the columns of all features, standardised in float64."""
    made, columns, place = [np.ones((len(features[0].values), 1))], [], 1
    for feature in features:
        own = columns_of(feature)
        made.append(own)
        columns.append(tuple(range(place, place + own.shape[1])))
        place += own.shape[1]
    x = np.concatenate(made, axis=1)
    size = np.abs(x).max(0)  # so that no square overflows
    x = x / np.where(size > 0, size, 1)
    middle, scale = x[rows[0]].mean(0), x[rows[0]].std(0)
    middle[0], scale = 0, np.where(scale > 0, scale, 1)
    scale[0] = 1
    x = (x - middle) / scale
    sides = tuple(jnp.asarray(x[own], jnp.float32) for own in rows)
    return Design((sides[0], sides[1]), tuple(columns), middle * size, scale * size)


def centred(activations: np.ndarray, rows: Rows) -> tuple[tuple[Array, Array], float]:
    """Returns the activations of both halves minus the fit half's mean, divided by a common scale.

    They are centred in float64, so that an offset costs no digits.

    Args:
      activations: `[N, ...]`, finite.
      rows: of both halves.

    Returns:
      Activations of each half, float32 `[N, D]`, with mean square 1 over both; the scale in units of activation, 0 if
      nothing varies. A unit that varies by no more than the rounding of its own type counts as constant.
    """
    phi = activations.reshape(len(activations), -1)
    units = phi.shape[1]
    sides = [np.zeros((len(own), units), np.float32) for own in rows]
    size = max((float(np.abs(phi[i : i + 1024].astype(np.float64)).max()) for i in range(0, len(phi), 1024)), default=0.0)
    rounding = 4 * np.finfo(phi.dtype).eps if phi.dtype.kind == "f" else 0.0
    step = max(1, BLOCK // len(phi))
    for first in range(0, units if size else 0, step):
        block = phi[:, first : first + step].astype(np.float64) / size  # so that no square overflows
        living = block.std(0) > rounding * np.abs(block).max(0)
        middle = block[rows[0]].mean(0)
        for side, own in zip(sides, rows, strict=True):
            side[:, first : first + step] = (block[own] - middle) * living
    squares = sum(float(np.einsum("nd,nd->", side, side, dtype=np.float64)) for side in sides)
    rms = float(np.sqrt(squares / max(1, phi.size)))
    for side in sides:
        side /= np.float32(rms or 1)
    return (jnp.asarray(sides[0]), jnp.asarray(sides[1])), rms * size


def class_codes(feature: Feature, rows: Rows) -> tuple[np.ndarray, int]:
    """Returns the classes to decode, int32 `[N]`, and their number.

    For a continuous feature the two classes are whether it is above the fit half's median.
    """
    if feature.levels:
        return feature.values, len(feature.levels)
    return (feature.values > np.median(feature.values[rows[0]])).astype(np.int32), 2


def permutations(rows: Rows) -> tuple[Array, Array]:
    """Returns permutations `[P, N]` of each half, drawn as for the null band of `variance`."""
    return jnp.asarray(orders(len(rows[0]), 0)), jnp.asarray(orders(len(rows[1]), 1))


def resampled(count: int, draws: int, side: int) -> np.ndarray:
    """Returns how often a bootstrap draws each of `count` examples, uint8 `[draws, count]`; the same for every site."""
    rng = np.random.default_rng([draws, side])
    counts = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(draws)]
    return np.stack(counts).astype(np.uint8)


def interval(value: np.ndarray, draws: np.ndarray, floor: float = -np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Returns both ends of the 95 % interval of a number, from its bootstrap draws; the number always lies within.

    A draw has fewer distinct examples than the data. So the draws fall short of the data by about as much as the data fall
    short of an infinite sample: for r2 of a feature of C classes, by (C - 1) / N_fit each time. With many units this loss
    is larger than the spread of the draws, and their plain quantiles exclude the number itself. Therefore the quantiles are
    taken relative to the draws' mean, and the interval covers two numbers: the number as measured, which is what a fit to
    so many examples explains, and the number corrected for the loss, which is what the feature explains in the population:

      loss = value - mean(draws)
      low  = value + min(loss, 0) + quantile(draws, 0.025) - mean(draws)
      high = value + max(loss, 0) + quantile(draws, 0.975) - mean(draws)

    The lower end is computed from the smaller of the two and the upper end from the larger, so the interval covers either
    one in at least about 95 % of data sets. It is conservative if noise in many units makes up most of the number.

    Args:
      value: as measured, any shape.
      draws: the number computed in each draw, `[draws, ...]`; NaN draws are left out.
      floor: lowest possible value of the number; the highest is 1 for every number of this package.

    Returns:
      Lower and upper ends, shaped as `value`; NaN where `value` or every draw is NaN.

    Source: bias-corrected bootstrap (Efron and Tibshirani 1993, chapter 10); combining both ends is ours.
    """
    defined = np.isfinite(value) & np.isfinite(draws).any(axis=0)
    kept = np.where(defined & np.isfinite(draws), draws, np.where(defined, np.nan, 0.0))
    mean = np.nanmean(kept, axis=0)
    loss = value - mean
    low = value + np.minimum(loss, 0) + np.nanquantile(kept, 0.025, axis=0) - mean
    high = value + np.maximum(loss, 0) + np.nanquantile(kept, 0.975, axis=0) - mean
    low, high = np.minimum(np.maximum(low, floor), value), np.maximum(np.minimum(high, 1.0), value)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)
