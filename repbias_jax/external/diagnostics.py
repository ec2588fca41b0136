"""Checks of the features, without their activations: how balanced they are, and how dependent on each other.

The r2 of a feature is hard to interpret if the feature is unbalanced (the r2 of a rare feature is small whatever the
representation does) or depends on another feature (their shared variance counts in the r2 of both). Both are measured and
reported. `notes` and `dissociated` put the problems and findings in a table of measures into sentences.

Source: ours.
"""

# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from repbias_jax.external.design import Rows, columns_of, varies
from repbias_jax.external.features import Feature
from repbias_jax.external.readouts import KINDS
from repbias_jax.probes.balance import dependence, evenness
from repbias_jax.probes.moments import Measured

EVEN = 0.95  # evenness below which a feature is called unbalanced: for two classes, if the rarer has a share below 0.39
DEPENDENT = 0.1  # correlation above which, if also above the level of chance, two features are called dependent
FEW = 10  # examples of a class in one half below which their number is reported


def describe(features: Sequence[Feature], rows: Rows) -> Iterator[tuple[Measured, float]]:
    """Yields the names and values of evenness, shares of classes and dependence, over both halves.

    Yields:
      `examples`: the number of examples in each half (`at` fit, score);
      for each feature `distinct`: its number of values;
      for each feature with classes:
        `class_share`: the share of examples in a class (`at` the class);
        `evenness`: as in `balance.evenness`;
        `fewest`: the smallest number of examples that any of its classes has in either half;
      for each pair of features that vary in both halves:
        `dependence`: as in `balance.dependence`;
        `dependence_null`: about what independent features reach by chance.
    """
    both = np.concatenate(rows)
    for side, own in zip(("fit", "score"), rows, strict=True):
        yield Measured("examples", at=side), float(len(own))
    for feature in features:
        yield Measured("distinct", feature.name), float(len(np.unique(feature.values)))
        if feature.levels:
            counts = np.stack([np.bincount(feature.values[own], minlength=len(feature.levels)) for own in rows])
            shares = counts.sum(0) / len(both)
            for level, share in zip(feature.levels, shares, strict=True):
                yield Measured("class_share", feature.name, at=level), float(share)
            yield Measured("evenness", feature.name), evenness(shares)
            yield Measured("fewest", feature.name), float(counts.min())
    columns = {f.name: columns_of(f)[both] for f in features if varies(f, rows)}
    for a, b in combinations(columns, 2):
        yield Measured("dependence", a, b), dependence(columns[a], columns[b])
        free = sum(np.sqrt(columns[name].shape[1]) for name in (a, b))
        yield Measured("dependence_null", a, b), float(free / np.sqrt(len(both)))


def notes(rows: pd.DataFrame) -> list[str]:
    """Returns one sentence for each problem of a feature or a readout, and one for all dependent pairs of features.

    Args: rows of `probe`, with numbers.
    """
    sentences, pairs = [], []
    by = rows[rows["probe"] == "balance"].set_index(["metric", "feature", "other", "at"])["value"].to_dict()
    constant = rows[(rows["metric"] == "r2") & (rows["reason"] == "constant feature")]["feature"]
    for name in dict.fromkeys(constant):
        sentences.append(f"{name} is constant in one half of the examples: its measures are undefined")
    for (metric, feature, other, _), value in by.items():
        if metric == "evenness" and value < EVEN:
            shares = {at: v for (m, f, _, at), v in by.items() if (m, f) == ("class_share", feature)}
            rarest = min(shares, key=lambda at: shares[at])
            more = "; r2_balanced estimates it at prevalence 1/2" if len(shares) == 2 else ""
            sentences.append(
                f"{feature} is unbalanced (share of class {rarest} {shares[rarest]:.3g}, evenness {value:.2f}): "
                f"this lowers its r2{more}"
            )
        elif metric == "fewest" and value < FEW:
            sentences.append(
                f"{feature} has a class with only {value:.0f} examples in one half: its measures are unreliable"
            )
        elif metric == "dependence" and value > max(DEPENDENT, by["dependence_null", feature, other, ""]):
            pairs.append(f"{feature} and {other} ({value:.2f})")
    if pairs:
        why = "the r2 of each feature includes what they share; unique_r2 and shared_r2 separate the two"
        sentences.append(f"Dependent features (canonical correlation): {', '.join(pairs)}; {why}")
    for kind, metric in KINDS.items():
        late = rows[(rows["metric"] == f"{metric}_converged") & (rows["value"] == 0)]
        for site, feature in late[["site", "feature"]].itertuples(index=False):
            sentences.append(f"{site}: the {kind} readout of {feature} has not converged: its accuracy may be too low")
    return sentences


def dissociated(rows: pd.DataFrame) -> list[str]:
    """Returns one sentence for each feature that is decodable but explains little variance. Args: as for `notes`."""
    sentences = []
    values = rows.set_index(["site", "metric", "feature", "at"])["value"].sort_index()
    chosen = rows[(rows["metric"] == "decodable_but_small") & (rows["value"] > 0)]
    for site, feature, at in chosen[["site", "feature", "at"]].itertuples(index=False):
        accuracy = values[site, KINDS[at], feature, ""]
        r2 = values[site, "r2", feature, ""]
        sentences.append(
            f"{site}: {feature} is decodable ({at}, balanced accuracy {accuracy:.3f}) but explains only {r2:.4f} "
            "of the variance"
        )
    return sentences
