"""Variance explained, its parts, single units and principal components of one site, with intervals over examples.

The bootstrap draws examples with replacement within each half, with a fixed seed; `design.interval` turns the draws into
intervals. An interval covers the choice of examples. It does not cover how much another training run of the same network
would differ, which one set of activations cannot show. Principal axes are those of all examples of the fit half and are not
recomputed for each draw.

Source: Lampinen et al. 2024 (the measures); intervals are ours.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.external.design import Design, Rows, design_matrix, interval, permutations, resampled
from repbias_jax.external.features import Feature
from repbias_jax.probes import components, moments, regression, units
from repbias_jax.probes.balance import balanced_r2
from repbias_jax.probes.moments import Measured, dot

Sides = tuple[Array, Array]
FLOORS: dict[str, float] = dict.fromkeys(("selective_share", "participation", "living_share", "component_share"), 0.0)


class Found(NamedTuple):
    """Measures of F features and K components."""

    r2: Array  # [F]
    unique_r2: Array  # [F]
    shared_r2: Array  # [F]
    r2_balanced: Array  # [F]
    joint_r2: Array  # []
    selective_share: Array  # [F]
    participation: Array  # [F]
    living_share: Array  # []
    component_share: Array  # [K]
    component_r2: Array  # [F, K]
    top_r2: Array  # [F]


PROBE_OF = {
    **dict.fromkeys(("r2", "r2_balanced"), "variance"),
    **dict.fromkeys(("joint_r2", "unique_r2", "shared_r2"), "partition"),
    **dict.fromkeys(("selective_share", "participation", "living_share"), "units"),
    **dict.fromkeys(("component_share", "component_r2", "top_r2"), "components"),
}


class Alone(NamedTuple):
    """What one feature explains by itself, as scalars; `variance` is in squared units of phi, summed over units."""

    r2: Array
    variance: Array
    r2_per_unit: Array
    r2_per_example: Array
    null: Array
    null_low: Array
    null_high: Array
    selective_null: Array  # share of selective units when the feature's values are permuted once


def alone(phi: Sides, feature: Feature, rows: Rows, orders: Sides) -> Alone:
    """Returns what one feature explains by itself; both public functions take these numbers from here.

    Args:
      phi: centred activations `[N, D]` of both halves.
      feature: one feature of all examples.
      rows: of both halves.
      orders: permutations of each half, `[P, N]`.
    """
    if feature.levels:
        codes = tuple(jnp.asarray(feature.values[half]) for half in rows)
        return jax.device_get(_classes_alone(codes, phi, orders, len(feature.levels)))
    return jax.device_get(_number_alone(design_matrix([feature], rows).x, phi, orders))


def measure(
    phi: Sides, scale: float, features: list[Feature], rows: Rows, draws: int
) -> Iterator[tuple[str, Measured, float]]:
    """Yields all numbers of one site, each as probe, name and value.

    Args:
      phi: centred activations `[N, D]` of both halves.
      scale: of phi, in units of activation.
      features: those that vary in both halves.
      rows: of both halves.
      draws: number of bootstrap draws.
    """
    orders = permutations(rows)
    single = [alone(phi, feature, rows, orders) for feature in features]
    point, every = _with_draws(phi, design_matrix(features, rows), draws)
    r2 = np.array([found.r2 for found in single])
    point = point._replace(r2=r2, shared_r2=r2 - point.unique_r2)
    ends: dict[str, Any] = {n: interval(v, getattr(every, n), FLOORS.get(n, -np.inf)) for n, v in point._asdict().items()}
    low, high = (Found(**{name: both[side] for name, both in ends.items()}) for side in (0, 1))
    binary = np.array([len(f.levels) == 2 for f in features])
    for ending, found in (("", point), ("_low", low), ("_high", high)):
        yield from _named(found, ending, features, binary)
    for feature, found in zip(features, single, strict=True):
        for metric in ("r2_per_unit", "r2_per_example", "null", "null_low", "null_high"):
            yield "variance", Measured(metric, feature.name), float(getattr(found, metric))
        yield "variance", Measured("variance", feature.name), float(found.variance) * (scale * scale)
        free = max(1, len(feature.levels) - 1)
        yield "units", Measured("selective_null", feature.name), float(found.selective_null)
        # This is the participation of many units whose variances between classes are sums of `free` squared normal numbers.
        yield "units", Measured("participation_null", feature.name), free / (free + 2)


def _with_draws(phi: Sides, design: Design, draws: int) -> tuple[Found, Found]:
    """Returns the measures over all examples, and over the examples of each bootstrap draw, `[draws, ...]`."""
    axes = _axes(phi[0])
    z = (dot(phi[0], axes), dot(phi[1], axes))
    first = [own[0] for own in design.columns]
    middle, scale = (jnp.asarray(a[first], jnp.float32) for a in (design.middle, design.scale))
    width = design.x[0].shape[1] * max(*(len(half) for half in phi), phi[0].shape[1])
    batch = max(1, min(8, 2**22 // width))
    # Rows that count every example once come first: as many as make all batches full, so that one compilation serves all.
    ahead = batch - draws % batch
    counts = [jnp.asarray(resampled(len(half), draws, side)) for side, half in enumerate(phi)]
    counts = tuple(jnp.concatenate([jnp.ones((ahead, own.shape[1]), jnp.uint8), own]) for own in counts)
    every = jax.device_get(_drawn(design.x, phi, z, counts, middle, scale, design.columns, batch))
    return jax.tree.map(lambda a: a[0], every), jax.tree.map(lambda a: a[ahead:], every)


def _named(found: Found, ending: str, features: list[Feature], binary: np.ndarray) -> Iterator[tuple[str, Measured, float]]:
    for metric, values in found._asdict().items():
        probe, name = PROBE_OF[metric], metric + ending
        if metric in ("joint_r2", "living_share"):
            yield probe, Measured(name), float(values)
        elif metric == "component_share":
            for k, value in enumerate(values, start=1):
                yield probe, Measured(name, at=str(k)), float(value)
        else:
            for f, feature in enumerate(features):
                if metric == "component_r2":
                    for k, value in enumerate(values[f], start=1):
                        yield probe, Measured(name, feature.name, at=str(k)), float(value)
                elif metric != "r2_balanced" or binary[f]:
                    at = str(components.TOP) if metric == "top_r2" else ""
                    yield probe, Measured(name, feature.name, at=at), float(values[f])


@jax.jit
def _axes(phi_fit: Array) -> Array:
    return components.first_axes(phi_fit)


@jax.jit(static_argnames="num_classes")
def _classes_alone(codes: Sides, phi: Sides, orders: Sides, num_classes: int) -> Alone:
    """Returns what a feature explains by the class means of the fit half, as in `variance`. Args: codes: int `[N]`."""

    def sums(order: Sides) -> moments.Moments:
        fit, score = (moments.one_hot(own[rows], num_classes) for own, rows in zip(codes, order, strict=True))
        return moments.moments(fit, score, *phi)

    def by_unit(order: Sides) -> Array:
        return moments.explained(sums(order))

    in_order = jnp.arange(len(codes[0])), jnp.arange(len(codes[1]))
    found = sums(in_order)
    used = jnp.sum(moments.one_hot(codes[0], num_classes).sum(0) > 0)
    batch = max(1, min(10, 2**24 // (num_classes * sum(len(own) for own in codes))))
    permuted = jax.lax.map(lambda order: by_unit(order).sum(), orders, batch_size=batch)
    mixed = by_unit((orders[0][0], orders[1][0]))
    return _alone(phi, moments.explained(found), found.means[codes[1]], permuted, mixed, used - 1)


@jax.jit
def _number_alone(x: Sides, phi: Sides, orders: Sides) -> Alone:
    """Returns what a continuous feature explains by a least-squares line. Args: x: ones, standardised values `[N, 2]`."""
    s = regression.sums(x, phi, (jnp.ones(len(x[0])), jnp.ones(len(x[1]))))
    inverse = regression.inverses(s, ((1,),))[0]
    null, mixed = regression.permuted(x, phi, ((1,),), orders)
    total = regression.total(s)
    line = dot(x[1], dot(inverse, s.outer_fit))
    by_unit = regression.explained(s, inverse, (1,))
    return _alone(phi, by_unit, line, null[:, 0] * total.sum(), jnp.where(total > 0, mixed[0] * total, 0), jnp.int32(1))


def _alone(phi: Sides, by_unit: Array, predicted: Array, permuted: Array, mixed: Array, free: Array) -> Alone:
    """Returns the measures of one feature, from sums of squares.

    Args:
      phi: centred activations of both halves.
      by_unit, mixed: SST - SSE of each unit `[D]`, and the same with the feature's values permuted once.
      predicted: predicted activations of the score half `[N, D]`.
      permuted: SST - SSE over all units, for each permutation `[P]`.
      free: number of the feature's columns, without the constant.
    """
    total = jnp.square(phi[1]).sum(0)  # of each unit
    low, high = jnp.quantile(permuted / total.sum(), jnp.asarray([0.025, 0.975]))
    return Alone(
        r2=by_unit.sum() / total.sum(),
        variance=by_unit.sum() / len(phi[1]),
        r2_per_unit=moments.per_unit(by_unit, total),
        r2_per_example=moments.per_example(predicted, phi[1]),
        null=-free / len(phi[0]),
        null_low=low,
        null_high=high,
        selective_null=units.selective_share(mixed / jnp.where(total > 0, total, 1), units.alive(total)),
    )


@jax.jit(static_argnames=("columns", "batch"))
def _drawn(
    x: Sides, phi: Sides, z: Sides, draws: Any, middle: Array, scale: Array, columns: regression.Columns, batch: int
) -> Found:
    """Returns the measures `[draws, ...]` for each row of counts. Args: draws: counts `[draws, N]` of both halves."""

    def one(counts: Sides) -> Found:
        weights = counts[0].astype(jnp.float32), counts[1].astype(jnp.float32)
        return _found(regression.sums(x, phi, weights), regression.sums(x, z, weights), middle, scale, columns)

    return jax.lax.map(one, draws, batch_size=batch)


def _found(s: regression.Sums, by_axis: regression.Sums, middle: Array, scale: Array, columns: regression.Columns) -> Found:
    """Returns the measures from weighted sums.

    Args: sums for the units and for the components; mean and standard deviation of each feature's first column.
    """
    inverse = regression.inverses(s, columns)
    parts, total = regression.shares(s, inverse), regression.total(s)
    living, first = units.alive(total), np.array([own[0] for own in columns])
    prevalence = middle + scale * s.inner_score[0, first] / s.inner_score[0, 0]
    rarest = jnp.minimum(prevalence, 1 - prevalence) * s.inner_score[0, 0]  # examples of the rarer class; 0 in some draws
    alone = jnp.stack([regression.explained(s, inverse[f], own) for f, own in enumerate(columns)])  # [F, D]
    spread = jnp.stack([regression.spread(s, inverse[f], own) for f, own in enumerate(columns)])
    lengths = regression.total(by_axis)
    lengths = jnp.where(lengths > 1e-10 * total.sum(), lengths, jnp.nan)
    of_axes = jnp.stack([regression.explained(by_axis, inverse[f], own) for f, own in enumerate(columns)])  # [F, K]
    return Found(
        r2=parts.alone,
        unique_r2=parts.unique,
        shared_r2=parts.alone - parts.unique,
        r2_balanced=jnp.where(rarest > 0.5, balanced_r2(parts.alone, prevalence), jnp.nan),
        joint_r2=parts.joint,
        selective_share=jnp.stack([units.selective_share(own / total, living) for own in alone]),
        participation=jnp.stack([units.participation(own, living) for own in spread]),
        living_share=living.mean(),
        component_share=lengths / total.sum(),
        component_r2=of_axes / lengths[None],
        top_r2=of_axes[:, : components.TOP].sum(1) / lengths[: components.TOP].sum(),
    )
