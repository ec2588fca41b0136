"""Probes, by name: functions of arrays that return numbers. Add one: a function, and a line here.

`representation`: `fn(fit, score, roles)`, each side (activations `[N, D]`, factors `[N]` by name) of one run at one
snapshot, `roles` a `Factor` for each factor. `intervention`: `fn(fit, score, outputs)`, where `outputs(side, change)` runs
the network on the real inputs of a side, "fit" or "score", with its representation changed by `change` `[N, D]` or `[D]`,
and gives logits `[N, C]` by the name of the reported factor. Both return `{Measured: number}`.
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
    views: tuple[str, ...] = ()  # only there: places of the model, or views; empty: everywhere
    padded: bool = True  # widths may share one program, by units that are always zero; else each has its own, and no waste
    labelled: bool = True  # an intervention that reads the reported factors, which the probe set then needs


PROBES: dict[str, Probe] = {
    "variance": Probe(variance.variance, "representation", along=True),
    "walsh": Probe(variance.walsh, "representation"),
    "partition": Probe(variance.partition, "representation"),
    "components": Probe(components.components, "representation", views=("last_hidden",)),
    "units": Probe(units.units, "representation", padded=False),  # counts units that never vary
    "truncation": Probe(components.truncation, "intervention", views=("last_hidden",)),
    "steering": Probe(steering.steering, "intervention", views=("before_last", "last_hidden")),
    "readout": Probe(readout.readout, "intervention", views=("last_hidden",)),
    "similarity": Probe(similarity.similarity, "pair", views=("last_hidden",)),
    "decode": Probe(decoding.decode, "representation", along=True, views=("layers",), padded=False),
    "decode_nonlinear": Probe(decoding.decode_nonlinear, "representation", views=("last_hidden",), padded=False),
    "transfer": Probe(decoding.transfer, "representation", views=("layers",), padded=False),
    "reliance": Probe(decoding.reliance, "intervention", views=("last_hidden",), labelled=False),
}
