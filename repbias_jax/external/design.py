"""Fit and score half, columns of the features, centred activations, and the bootstrap over examples.

One half of the examples is fitted on, the other scored on. By default that is a random order drawn with a fixed seed, and
not even and odd rows, since rows often come in an order with a period; whatever belongs together (frames of one film,
tokens of one sentence) has to stand on one side, which only the caller can say.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import ConfigError
from repbias_jax.external.features import Feature
from repbias_jax.probes.moments import orders

Rows = tuple[np.ndarray, np.ndarray]  # of the examples to fit on and of those to score on

MIN_EXAMPLES = 20
SIDES = {"fit": 0, "score": 1, 0: 0, 1: 1}
BLOCK = 2**22  # values that are centred at a time


class Design(NamedTuple):
    """The columns of F features, on both sides.

    Attributes:
      x: standardised on the fit side, after a first column of ones, float32 `[N, Q]` each.
      columns: which are whose.
      middle: mean of each column on the fit side before it was standardised, `[Q]`.
      scale: its standard deviation, `[Q]`.
    """

    x: tuple[Array, Array]
    columns: tuple[tuple[int, ...], ...]
    middle: np.ndarray
    scale: np.ndarray


def halves(count: int, split: Sequence[Any] | None = None) -> Rows:
    """Returns the rows to fit on and the rows to score on.

    Args:
      count: number of examples, N.
      split: `fit` or `score`, or 0 and 1, for each example; none: a random half each.

    Raises:
      ConfigError: fewer than 20 examples, other words, another number of them, or a half with fewer than 10 examples.
    """
    if count < MIN_EXAMPLES:
        raise ConfigError(f"{count} examples; expected at least {MIN_EXAMPLES}")
    if split is None:
        order = np.random.default_rng(0).permutation(count)
        return np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    given = np.asarray(split)
    if given.shape != (count,):
        raise ConfigError(f"split: values of shape {given.shape}; expected ({count},), one for each example")
    sides = np.array([SIDES.get(value, -1) for value in given.tolist()])
    if (sides < 0).any():
        other = str(given[np.argmin(sides)])[:64]
        raise ConfigError(f"split: {other!r}; expected fit or score for each example")
    fit, score = np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)
    if min(len(fit), len(score)) < MIN_EXAMPLES // 2:
        raise ConfigError(f"split: {len(fit)} to fit, {len(score)} to score; expected at least {MIN_EXAMPLES // 2} each")
    return fit, score


def varies(feature: Feature, rows: Rows) -> bool:
    """Whether a feature takes more than one value on both sides; without that nothing of it is defined."""
    return all(np.ptp(feature.values[own]) > 0 for own in rows)


def columns_of(feature: Feature) -> np.ndarray:
    """A column of zeros and ones for each class but the first, or the number itself: float64 `[N, q]`."""
    if not feature.levels:
        return feature.values[:, None]
    return (feature.values[:, None] == np.arange(1, len(feature.levels))).astype(np.float64)


def design_matrix(features: Sequence[Feature], rows: Rows) -> Design:
    """The columns of all features; standardised in float64."""
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
    """Both sides about the fit side's mean and over a common scale, centred in float64 so that an offset costs no digits.

    Args:
      activations: `[N, ...]`, finite.
      rows: of both sides.

    Returns:
      float32 `[N, D]` each, with mean square 1 over both; the scale, in units of activation, 0 where nothing varies. A unit
      that varies by no more than the rounding of its own type counts as constant.
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
    """Classes to decode, int32 `[N]`, and how many: of a continuous feature, whether it is above the fit side's median."""
    if feature.levels:
        return feature.values, len(feature.levels)
    return (feature.values > np.median(feature.values[rows[0]])).astype(np.int32), 2


def permutations(rows: Rows) -> tuple[Array, Array]:
    """The same permutations that the null band of `variance` has, of both sides."""
    return jnp.asarray(orders(len(rows[0]), 0)), jnp.asarray(orders(len(rows[1]), 1))


def resampled(count: int, draws: int, side: int) -> np.ndarray:
    """How often each of `count` examples is drawn by a bootstrap, uint8 `[draws, count]`; the same for every site."""
    rng = np.random.default_rng([draws, side])
    counts = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(draws)]
    return np.stack(counts).astype(np.uint8)


def interval(value: np.ndarray, draws: np.ndarray, floor: float = -np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Returns both ends of the 95 % interval of a number, from its bootstrap draws; the number always lies within.

    A draw holds fewer distinct examples than the data, so a fit to it loses as much against the data as a fit to the data
    loses against endless examples: r2 of a feature of C classes falls short by (C - 1) / N_fit each time. With many units
    that loss is larger than the spread of the draws, and their plain quantiles exclude the number itself. So the quantiles
    are taken about the draws' mean, and the interval reaches from the number as measured, which is what a fit to so many
    examples explains, to the number without the loss, which is what the feature explains in the population:

      loss = value - mean(draws)
      low  = value + min(loss, 0) + quantile(draws, 0.025) - mean(draws)
      high = value + max(loss, 0) + quantile(draws, 0.975) - mean(draws)

    Each end holds for the nearer of the two, so the interval covers either one in at least about 95 % of data sets. It is
    cautious where noise in many units makes up most of the number.

    Args:
      value: as measured, any shape.
      draws: the same number for each draw, `[draws, ...]`; draws without a value are left out.
      floor: below which the number cannot fall; no number of this package can exceed 1.

    Returns:
      Lower and upper ends, shaped as `value`; NaN where it has no value, or no draw has.

    Source: bias-corrected bootstrap (Efron and Tibshirani 1993, chapter 10); both ends together are ours.
    """
    defined = np.isfinite(value) & np.isfinite(draws).any(axis=0)
    kept = np.where(defined & np.isfinite(draws), draws, np.where(defined, np.nan, 0.0))
    mean = np.nanmean(kept, axis=0)
    loss = value - mean
    low = value + np.minimum(loss, 0) + np.nanquantile(kept, 0.025, axis=0) - mean
    high = value + np.maximum(loss, 0) + np.nanquantile(kept, 0.975, axis=0) - mean
    low, high = np.minimum(np.maximum(low, floor), value), np.maximum(np.minimum(high, 1.0), value)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)
