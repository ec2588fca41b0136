"""Variance explained, parts, units and components of one site, with intervals by bootstrap over examples.

Examples are drawn with replacement within each half, 200 times, with a fixed seed; an interval is the central 95 % of the
draws. It covers the choice of examples: another training run of the same network is another matter, about which one set of
activations says nothing. Principal axes are those of all examples of the fit half and are not drawn again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.anyone.prepared import Design
from repbias_jax.external_features import Feature
from repbias_jax.probes import components, regression, units
from repbias_jax.probes.balance import balanced_r2
from repbias_jax.probes.moments import Measured, dot

Sides = tuple[Array, Array]


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


def measure(
    phi: Sides, design: Design, features: list[Feature], draws: Sides, orders: Sides
) -> Iterator[tuple[str, Measured, float]]:
    """All numbers of one site: probe, name and value.

    Args:
      phi: centred activations `[N, D]` of both sides.
      design: of the features.
      features: those that vary on both sides.
      draws: how often each example is drawn, uint8 `[draws, N]` of both sides.
      orders: permutations of each side, `[P, N]`.
    """
    axes = _axes(phi[0])
    z = (dot(phi[0], axes), dot(phi[1], axes))
    binary = np.array([len(f.levels) == 2 for f in features])
    middle, scale = (np.array([a[own[0]] for own in design.columns], np.float32) for a in (design.middle, design.scale))
    width = design.x[0].shape[1] * max(len(own) for own in phi)
    batch = max(1, min(8, 2**22 // width))
    # All examples once come first, as often as makes the number of rows one of whole batches, which are compiled once.
    first = batch - len(draws[0]) % batch
    counts = tuple(jnp.concatenate([jnp.ones((first, own.shape[1]), jnp.uint8), own]) for own in draws)
    every = _drawn(design.x, phi, z, counts, jnp.asarray(middle), jnp.asarray(scale), design.columns, batch)
    every = jax.device_get(every)
    point = jax.tree.map(lambda a: a[0], every)
    low, high = (jax.tree.map(lambda a, q=q: _quantile(a[first:], q), every) for q in (0.025, 0.975))
    for ending, found in (("", point), ("_low", low), ("_high", high)):
        yield from _named(found, ending, features, binary)
    yield from _floors(phi, design, features, orders)


def _quantile(draws: np.ndarray, share: float) -> np.ndarray:
    """A quantile over the draws that have a value; NaN where none has. Args: `[draws, ...]`."""
    known = np.isfinite(draws).any(axis=0)
    return np.where(known, np.nanquantile(np.where(known, draws, 0), share, axis=0), np.nan)


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


def _floors(phi: Sides, design: Design, features: list[Feature], orders: Sides) -> Iterator[tuple[str, Measured, float]]:
    """The null band, its expectation, and what units show of permuted values and of mere noise."""
    null, selective = jax.device_get(_permuted(design.x, phi, orders, design.columns))
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    for f, feature in enumerate(features):
        free = len(design.columns[f])
        yield "variance", Measured("null", feature.name), -free / len(phi[0])
        yield "variance", Measured("null_low", feature.name), float(low[f])
        yield "variance", Measured("null_high", feature.name), float(high[f])
        yield "units", Measured("selective_null", feature.name), float(selective[f])
        yield "units", Measured("participation_null", feature.name), free / (free + 2)  # squares of `free` normal numbers


@jax.jit
def _axes(phi_fit: Array) -> Array:
    return components.first_axes(phi_fit)


@jax.jit(static_argnames="columns")
def _permuted(x: Sides, phi: Sides, orders: Sides, columns: regression.Columns) -> tuple[Array, Array]:
    """r2 under permutations `[P, F]`; share of selective units under one `[F]`."""
    ones = jnp.ones(len(x[0])), jnp.ones(len(x[1]))
    living = units.alive(regression.total(regression.sums(x, phi, ones)))
    null, by_unit = regression.permuted(x, phi, columns, orders)
    return null, jnp.stack([units.selective_share(own, living) for own in by_unit])


@jax.jit(static_argnames=("columns", "batch"))
def _drawn(
    x: Sides, phi: Sides, z: Sides, draws: Any, middle: Array, scale: Array, columns: regression.Columns, batch: int
) -> Found:
    """The measures for each row of counts `[draws, N]` of both sides: `[draws, ...]`."""

    def one(counts: Sides) -> Found:
        weights = counts[0].astype(jnp.float32), counts[1].astype(jnp.float32)
        return _found(regression.sums(x, phi, weights), regression.sums(x, z, weights), middle, scale, columns)

    return jax.lax.map(one, draws, batch_size=batch)


def _found(s: regression.Sums, by_axis: regression.Sums, middle: Array, scale: Array, columns: regression.Columns) -> Found:
    """The measures. Args: sums of the units and of the components; mean and deviation of each feature's first column."""
    inverse = regression.inverses(s, columns)
    parts, total = regression.shares(s, inverse), regression.total(s)
    living, first = units.alive(total), np.array([own[0] for own in columns])
    prevalence = middle + scale * s.inner_score[0, first] / s.inner_score[0, 0]
    rarest = jnp.minimum(prevalence, 1 - prevalence) * s.inner_score[0, 0]  # examples, none in some draws
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
