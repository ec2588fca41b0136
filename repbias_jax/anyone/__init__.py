"""The probes of this package on anyone's activations: variance explained, parts, readouts, units, components, similarity.

  external, external_features -> prepared (halves, columns, centring) -> measures, readouts, relations -> rows -> notes

Rows have the columns of an experiment's `results.csv`. Of every number with an interval there are three: `r2`, `r2_low`
and `r2_high`.

Source: ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd

from repbias_jax.anyone import described, measures, prepared, readouts, relations
from repbias_jax.config import ConfigError, safe_name
from repbias_jax.external_features import MISSING, Feature, features_of
from repbias_jax.measure import COLUMNS
from repbias_jax.probes.moments import Measured

NUM_DRAWS = 200
DECODABLE, SMALL = 0.9, 0.05  # balanced accuracy from which, and share of variance below which, a feature is pointed out
EXPERIMENT = "probe"


class Choices(NamedTuple):
    """What a caller may choose."""

    draws: int = NUM_DRAWS  # of the bootstrap over examples
    decodable: float = DECODABLE
    small: float = SMALL


DEFAULTS = Choices()


def probe_activations(
    activations: Mapping[str, np.ndarray] | np.ndarray,
    features: Mapping[str, Sequence[Any]],
    split: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    continuous: Sequence[str] = (),
    choices: Choices = DEFAULTS,
) -> pd.DataFrame:
    """Everything this package can say of a representation, for anyone's arrays.

    Args:
      activations: finite real `[N, ...]`, or several by name; each is flattened to `[N, D]`.
      features: by name, N values each; text, booleans and few distinct whole numbers are classes, other numbers continuous.
      split: `fit` or `score` for each example; by default a random half each, with a fixed seed.
      categorical: features to take for classes.
      continuous: features to take for numbers.
      choices: draws of the bootstrap, and what is pointed out as decodable but small.

    Returns:
      A row a number: the columns of `results.csv`. `metric` with the endings `_low` and `_high` are the ends of 95 %
      intervals; what has no value is NaN, with the reason.

    Raises:
      ConfigError: shapes that do not fit, values that are not finite, too few examples, too many features or classes.

    Source: the probes'; halves, intervals and limits are ours.
    """
    several = activations if isinstance(activations, Mapping) else {"activations": activations}
    sites = {str(name): np.asarray(array) for name, array in several.items()}
    text = {str(name): ["" if value is None else str(value) for value in values] for name, values in features.items()}
    for name, values in text.items():
        if gone := [i for i, value in enumerate(values) if value.strip().lower() in MISSING]:
            raise ConfigError(f"feature {name}: example {gone[0]} has no value; expected a value for every example")
    made = features_of(text, categorical, continuous)
    rows = list(probe(sites, made, split, choices))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.assign(value=pd.to_numeric(frame["value"]))


def probe(
    sites: Mapping[str, np.ndarray],
    features: Sequence[Feature],
    split: Sequence[str] | None = None,
    choices: Choices = DEFAULTS,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Any, ...]]:
    """The rows of `results.csv`, but for the number as a float. Args as `probe_activations`; `say` is told what is next.

    Raises:
      ConfigError: before the first row.
    """
    rows = check(sites, features, split)
    for name, value in described.describe(features, rows):
        yield _row("", "balance", name, value, "" if np.isfinite(value) else "one class")
    for site, activations in sites.items():
        found = {}
        for probe_name, name, value, reason in _site(site, activations, features, rows, choices.draws, say):
            found[name] = value
            yield _row(site, probe_name, name, value, reason)
        for probe_name, name, value in readouts.dissociations(found, choices.decodable, choices.small):
            yield _row(site, probe_name, name, value, "" if np.isfinite(value) else "no accuracy")


def check(
    sites: Mapping[str, np.ndarray], features: Sequence[Feature], split: Sequence[str] | None
) -> prepared.Rows:  # fmt: skip
    """The rows of both sides. Raises ConfigError where shapes do not fit or values are not finite real numbers."""
    if not sites:
        raise ConfigError("no activations; expected at least one array")
    count = len(features[0].values)
    for feature in features:
        if len(feature.values) != count:
            raise ConfigError(f"feature {feature.name}: {len(feature.values)} values; expected {count} as for the first")
    for site, array in sites.items():
        safe_name(site, "activations")
        if array.dtype.kind not in "fiub" or array.ndim < 1 or array.shape[0] != count or array.size == 0:
            found = f"{array.dtype} of shape {array.shape}"
            raise ConfigError(f"activations {site}: {found}; expected real numbers [{count}, ...], an example a row")
        if not np.isfinite(array).all():
            raise ConfigError(f"activations {site}: some values are not finite; expected none")
    if split is not None and len(split) != count:
        raise ConfigError(f"split: {len(split)} values; expected {count}, one for each example")
    return prepared.halves(count, split)


def _site(
    site: str,
    activations: np.ndarray,
    features: Sequence[Feature],
    rows: prepared.Rows,
    draws: int,
    say: Callable[[str], None],
) -> Iterator[tuple[str, Measured, float, str]]:
    """Probe, name, value and the reason why it is missing."""
    say(f"{site}: centring")
    phi, scale = prepared.centred(activations, rows)
    yield "variance", Measured("total_variance"), float(jnp.sum(jnp.square(phi[1])) / len(phi[1])) * scale**2, ""
    own = [f for f in features if prepared.varies(f, rows)]
    for feature in features:
        if feature not in own or not scale:
            reason = "constant layer" if not scale else "constant feature"
            yield "variance", Measured("r2", feature.name), np.nan, reason
    if not own or not scale:
        return
    say(f"{site}: variance, parts, units and components")
    fit, score = (jnp.asarray(prepared.resampled(len(half), draws, side)) for side, half in enumerate(rows))
    found = measures.measure(phi, prepared.design(own, rows), own, (fit, score), prepared.permutations(rows))
    yield from _with_reasons(found)
    for what, more in (
        ("readouts", readouts.readouts(phi, own, rows, draws)),
        ("similarity", relations.relations(phi[1], rows[1], own, draws)),
    ):
        say(f"{site}: {what}")
        yield from _with_reasons(more)


def _with_reasons(found: Iterator[tuple[str, Measured, float]]) -> Iterator[tuple[str, Measured, float, str]]:
    for name, measured, value in found:
        yield name, measured, value, "" if np.isfinite(value) else "no variance there"


def _row(site: str, probe_name: str, name: Measured, value: float, reason: str) -> tuple[Any, ...]:
    """A row of `results.csv`: one run, one snapshot, so that what tells those apart is empty or zero."""
    return (EXPERIMENT, "", "", 0, 0, site, probe_name, *name, "score", value, reason)
