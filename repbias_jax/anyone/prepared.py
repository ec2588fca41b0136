"""Halves, columns and centred activations: everything that is decided before anything is measured.

One half of the examples is fitted on, the other scored on. By default that is a random order drawn with a fixed seed, and
not even and odd rows, since rows often come in an order with a period; whatever belongs together (frames of one film,
tokens of one sentence) has to stand on one side, which only the caller can say.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import ConfigError
from repbias_jax.external_features import Feature
from repbias_jax.probes.moments import orders

Rows = tuple[np.ndarray, np.ndarray]  # of the examples to fit on and of those to score on

MIN_EXAMPLES = 20
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


def halves(count: int, split: Sequence[str] | None = None) -> Rows:
    """Rows to fit on and to score on.

    Args:
      count: examples, N.
      split: `fit` or `score` for each; none: a random half each.

    Raises:
      ConfigError: fewer than 20 examples, other words, or a side with fewer than 10.
    """
    if count < MIN_EXAMPLES:
        raise ConfigError(f"{count} examples; expected at least {MIN_EXAMPLES}")
    if split is None:
        order = np.random.default_rng(0).permutation(count)
        return np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    said = np.asarray(split)
    if other := sorted(set(split) - {"fit", "score"}):
        raise ConfigError(f"split: {str(other[0])[:64]!r}; expected fit or score for each example")
    fit, score = np.flatnonzero(said == "fit"), np.flatnonzero(said == "score")
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


def design(features: Sequence[Feature], rows: Rows) -> Design:
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
