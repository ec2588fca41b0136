"""Probes, by name: functions of arrays that return numbers. Add one: a function, and a line here.

`representation`: `fn(fit, score, num_values)`, each side (activations `[N, D]`, factors) of one run at one snapshot.
`intervention`: `fn(fit, score, finish)`, where `finish` is the rest of the model. Both return `{Measured: number}`.
`pair`: `fn(models)`, activations `[N, D]` of M models for the same examples; returns `{Measured: [M, M]}`, symmetric.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from repbias_jax.probes import components, decoding, readout, similarity, steering, units, variance


class Probe(NamedTuple):
    """A probe, what it needs, and where it is run."""

    function: Callable
    kind: Literal["representation", "intervention", "pair"]
    along: bool = False  # also at the snapshots along training, and not only at the first and the last
    sites: tuple[str, ...] = ()  # only there (`hidden_*`: all of these); empty: everywhere
    padded: bool = True  # widths may share one program, by units that are always zero; else each has its own, and no waste


PROBES: dict[str, Probe] = {
    "variance": Probe(variance.variance, "representation", along=True),
    "walsh": Probe(variance.walsh, "representation"),
    "partition": Probe(variance.partition, "representation"),
    "components": Probe(components.components, "representation", sites=("last_hidden",)),
    "units": Probe(units.units, "representation", padded=False),  # counts units that never vary
    "truncation": Probe(components.truncation, "intervention", sites=("last_hidden",)),
    "steering": Probe(steering.steering, "intervention", sites=("before_last", "last_hidden")),
    "readout": Probe(readout.readout, "intervention", sites=("last_hidden",)),
    "similarity": Probe(similarity.similarity, "pair", sites=("last_hidden",)),
    "decode": Probe(decoding.decode, "representation", along=True, sites=("hidden_*",), padded=False),
    "decode_nonlinear": Probe(decoding.decode_nonlinear, "representation", sites=("last_hidden",), padded=False),
    "transfer": Probe(decoding.transfer, "representation", sites=("hidden_*",), padded=False),
    "reliance": Probe(decoding.reliance, "intervention", sites=("last_hidden",)),
}
