"""Runs the probes of this package on activations that were made elsewhere.

  arrays, features        read and check activations [N, ...] and features of N examples
  design                  makes the fit and score halves, design columns, centred activations and bootstrap draws
  encoding                measures variance explained, its parts, single units and principal components
  readouts, rsa           measure linear and kernel readouts, and representational similarity
  record, diagnostics     make rows of `results.csv`, and check the features

`variance_explained` returns a few numbers for each feature of one array; `probe_activations` returns all measures as a
table. Both share the same definitions of features, halves and measures.

Source: ours.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd

from repbias_jax.columns import COLUMNS
from repbias_jax.config import ConfigError, safe_name
from repbias_jax.external import design, diagnostics, encoding, readouts, record, rsa
from repbias_jax.external.arrays import refusal
from repbias_jax.external.features import Feature, features_of, masked, text_of
from repbias_jax.probes.moments import Measured

NUM_DRAWS, MIN_DRAWS = 200, 20
DECODABLE, SMALL = 0.9, 0.05  # a feature with at least this balanced accuracy and below this share of variance is reported


class Choices(NamedTuple):
    """Options of `probe_activations`."""

    draws: int = NUM_DRAWS  # number of bootstrap draws over examples, at least 20
    decodable: float = DECODABLE  # balanced accuracy from which a feature is decodable, 0 to 1
    small: float = SMALL  # share of variance below which it is small, 0 to 1


DEFAULTS = Choices()


def variance_explained(
    activations: np.ndarray,
    features: Mapping[str, Sequence[Any]],
    split: Sequence[Any] | None = None,
    categorical: Sequence[str] = (),
    continuous: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Returns the variance of a representation that each feature explains.

    Each feature predicts the activations by least squares on one half of the examples (a categorical feature by the mean of
    each class) and is scored on the other half. `probe_activations` computes the same numbers from the same arguments.

    Args:
      activations: finite real numbers `[N, ...]`, flattened to `[N, D]`.
      features: by name, N values each; text, booleans and whole numbers of at most 20 distinct values are classes, other
        numbers are continuous. Missing values are refused.
      split: `fit` or `score` (or 0 and 1) for each example, `[N]`; by default a random half each, drawn with a fixed seed.
      categorical: names of features to treat as classes, at most 50 classes each.
      continuous: names of features to treat as continuous numbers.

    Returns:
      By feature:
        `r2`: share of the variance that the feature explains, from minus infinity to 1 (the representation is a function of
          the feature alone, and a linear one if the feature is continuous); its expectation is `null` if the
          representation does not depend on the feature;
        `variance`: the explained variance in squared activation units, summed over the D units;
        `r2_per_unit`: the mean over units of each unit's own r2;
        `r2_per_example`: the mean over scored examples n of 1 - |phi_n - M[f_n]|^2 / |phi_n|^2;
        `null`, `null_low`, `null_high`: expectation and central 95 % of r2 when the feature's values are permuted.
      All values are NaN if the activations do not vary.

    Raises:
      ConfigError: shapes that do not match, values that are missing, masked or not finite, a feature that is constant in
        one half, fewer than 20 examples (10 in a half), or more than 32 features or 50 classes.

    Source: Lampinen et al. 2024 (the measure), Hermann and Lampinen 2020; ratio of sums, halves and null are ours.
    """
    made, array = features_of(text_of(features), categorical, continuous), _array("activations", activations)
    rows = check({"activations": array}, made, split)
    for feature in made:
        if not design.varies(feature, rows):
            raise ConfigError(f"feature {feature.name}: constant in one half of the examples; expected two values or more")
    phi, scale = design.centred(array, rows)
    orders = design.permutations(rows)
    found = {f.name: encoding.alone(phi, f, rows, orders)._asdict() for f in made}
    names = ("r2", "variance", "r2_per_unit", "r2_per_example", "null", "null_low", "null_high")
    size = {"variance": scale * scale}
    return {n: {m: float(values[m]) * size.get(m, 1.0) if scale else np.nan for m in names} for n, values in found.items()}


def probe_activations(
    activations: Mapping[str, np.ndarray] | np.ndarray,
    features: Mapping[str, Sequence[Any]],
    split: Sequence[Any] | None = None,
    categorical: Sequence[str] = (),
    continuous: Sequence[str] = (),
    choices: Choices = DEFAULTS,
) -> pd.DataFrame:
    """Returns all measures of a representation as a table.

    Args:
      activations: finite real numbers `[N, ...]`, or several arrays by name; each is flattened to `[N, D]`.
      features, split, categorical, continuous: as for `variance_explained`.
      choices: number of bootstrap draws, and the thresholds for features that are decodable but small.

    Returns:
      One row for each number, with the columns of `results.csv`. A metric that ends in `_low` or `_high` is an end of a
      95 % interval over examples (`design.interval`), or of a null band if `null` precedes that ending. An undefined value
      is NaN, and its row gives the reason.

    Raises:
      ConfigError: as for `variance_explained`, except that a feature that is constant in one half gets rows without a
        value; or `choices` that are out of range.

    Source: as for each probe; halves, intervals and limits are ours.
    """
    several = activations if isinstance(activations, Mapping) else {"activations": activations}
    sites = {str(name): _array(str(name), array) for name, array in several.items()}
    if len(sites) < len(several):
        raise ConfigError("activations: two arrays have the same name as text; expected every name once")
    made = features_of(text_of(features), categorical, continuous)
    frame = pd.DataFrame(list(probe(sites, made, split, choices)), columns=list(COLUMNS))
    return frame.assign(value=pd.to_numeric(frame["value"]))


def probe(
    sites: Mapping[str, np.ndarray],
    features: Sequence[Feature],
    split: Sequence[Any] | None = None,
    choices: Choices = DEFAULTS,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of `results.csv`, with numbers as floats.

    Args:
      sites: arrays `[N, ...]` by name.
      features: of the N examples, as from `features_of`.
      split, choices: as for `probe_activations`.
      say: is called with the name of the next measurement.

    Raises:
      ConfigError: as for `probe_activations`, before the first row.
    """
    check_choices(choices)
    rows = check(sites, features, split)
    for name, value in diagnostics.describe(features, rows):
        yield record.row("", "balance", name, value, "" if np.isfinite(value) else "one class")
    for site, activations in sites.items():
        found = {}
        for probe_name, name, value, reason in _site(site, activations, features, rows, choices.draws, say):
            found[name] = value
            yield record.row(site, probe_name, name, value, reason)
        for probe_name, name, value in readouts.dissociations(found, choices.decodable, choices.small):
            yield record.row(site, probe_name, name, value, "" if np.isfinite(value) else "no accuracy")


def check(sites: Mapping[str, np.ndarray], features: Sequence[Feature], split: Sequence[Any] | None) -> design.Rows:
    """Returns the row numbers of both halves.

    Raises ConfigError if there is no array, shapes do not match, values are not finite and real, or the split is invalid.
    """
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
            raise ConfigError(f"activations {site}: {found}; expected real numbers [{count}, ...], one example per row")
        if not np.isfinite(array).all():
            raise ConfigError(f"activations {site}: some values are not finite; expected only finite values")
    return design.halves(count, split)


def check_choices(choices: Choices) -> None:
    """Raises ConfigError unless these are `Choices`, each within its range."""
    if not isinstance(choices, Choices):
        raise ConfigError(f"choices: {type(choices).__name__}; expected repbias_jax.external.Choices")
    draws: Any = choices.draws
    if not isinstance(draws, int | np.integer) or draws < MIN_DRAWS:
        raise refusal("choices", f"draws={reprlib.repr(draws)}; expected a whole number of at least {MIN_DRAWS}")
    for name in ("decodable", "small"):
        value: Any = getattr(choices, name)
        if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:  # NaN is not
            raise refusal("choices", f"{name}={reprlib.repr(value)}; expected a number from 0 to 1")


def _array(site: str, values: Any) -> np.ndarray:
    """Returns activations as an array. Raises ConfigError if they make none, or have masked cells."""
    where, expected = f"activations {site}", "expected an array of finite real numbers [N, ...]"
    try:
        if masked(values):
            raise refusal(where, f"masked values; {expected}")
        return np.asarray(values)
    except ConfigError:  # it is a ValueError too
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise refusal(where, f"{str(error).partition(chr(10))[0][:200]}; {expected}") from error


def _site(
    site: str,
    activations: np.ndarray,
    features: Sequence[Feature],
    rows: design.Rows,
    draws: int,
    say: Callable[[str], None],
) -> Iterator[tuple[str, Measured, float, str]]:
    """Yields probe, name and value of each measure of one site, and the reason if the value is missing."""
    say(f"{site}: centring")
    phi, scale = design.centred(activations, rows)
    total = float(jnp.sum(jnp.square(phi[1])) / len(phi[1])) * scale * scale
    large = not np.isfinite(total)
    yield "variance", Measured("total_variance"), np.nan if large else total, "too large to square" if large else ""
    varying = [f for f in features if design.varies(f, rows)]
    for feature in features:
        if feature not in varying or not scale:
            reason = "constant layer" if not scale else "constant feature"
            yield "variance", Measured("r2", feature.name), np.nan, reason
    if not varying or not scale:
        return
    say(f"{site}: variance, parts, units and components")
    for what, found in (
        ("", encoding.measure(phi, scale, varying, rows, draws)),
        ("readouts", readouts.readouts(phi, varying, rows, draws)),
        ("similarity", rsa.rsa(phi[1], rows[1], varying, draws)),
    ):
        if what:
            say(f"{site}: {what}")
        for name, measured, value in found:
            lost = "too large to square" if measured.metric == "variance" else "no variance there"
            yield name, measured, value if np.isfinite(value) else np.nan, "" if np.isfinite(value) else lost
