"""Probes by name: functions of arrays that return numbers. To add one, write a function and add a line here.

There are three kinds.
- `representation`: `fn(fit, score, roles) -> {Measured: number}` for one run at one snapshot. `fit` and `score` are each
  (activations `[N, D]`, factors `[N]` by name); `roles` has a `Factor` for each factor.
- `intervention`: `fn(fit, score, outputs) -> {Measured: number}`. `outputs(side, change)` runs the network on the real
  inputs of a side, "fit" or "score", adds `change` `[N, D]` or `[D]` to the representation, and returns logits `[N, C]` by
  the name of the reported factor.
- `pair`: `fn(models) -> {Measured: [M, M]}`, symmetric. `models` are activations `[N, D]` of M models for the same
  examples.

Glossary. Each probe's docstring states range, direction, perfect and null values.

- `r2`: share of a layer's variance explained by a feature. Activations are predicted by their mean given the feature,
  fitted on one half of the probe set and scored on the other, both about the fit half's mean. 1: the layer is a
  function of the feature; about 0: the layer does not depend on the feature.
- `r2_per_example`: the mean over examples of each example's own ratio, the paper's form. `r2_per_unit`: the mean over
  units of each unit's own ratio. Neither has a stable null level, and neither is used for a verdict.
- `variance`, `total_variance`: absolute, in squared activation units, summed over units.
- `r2_of_final`: the numerator of r2 divided by the total variance of the LAST snapshot, so that all snapshots have one
  scale.
- `null`, `null_low`, `null_high`: the expected r2 of an absent feature, -(C - 1) / N with C values and N fitted examples,
  and the central 95 % of r2 under permuted labels.
- `walsh_r2`: r2 of products of +/-1 bits, summed by block and degree; on crossed probe sets the shares add up to 1.
- `joint_r2`, `unique_r2`, `shared_r2`: r2 of all features together; how much it falls without one feature; r2 of that
  feature alone minus its unique r2.
- `component_r2`, `top_r2`, `kept_accuracy`: r2 for one principal component; r2 for the first two together, whose null
  band ends at `top_null_high`; accuracy of the network when only the first k components are kept.
- `selective_share`, `participation`: share of living units with r2 over 0.1; participation ratio of the difference
  vector over living units.
- `flips`, `random_flips`: share of outputs that a push along a feature's vector, or in a random direction, changes. A
  dose is the length of the push over the layer's rms.
- `decode`, `follow`, `agreement`: balanced accuracy of a readout; for a readout trained on a label that two features
  predict, the share of conflicts in which it follows the first; how often an output agrees with a feature.
  `agreement_where` is the agreement on the examples on which two features are equal, or on which they differ.
  The probe `decode` reads all layers, `decode_last` the last one alone; `decode_flat` reads the last layer of a network
  of images whole, not its mean over places; `decode_answers` the last block of a decoder at each output position, also
  where it has seen answers.
- `rsa`, `cka`, `procrustes`: similarity of two models' representations of the same examples; higher is more similar.
- `readout_norm`, `margin`: norm of the weights with which the network's last layer reads an output; mean difference between
  the logit of the correct answer and the highest other logit.

Further words: the gap is r2(easy) - r2(hard), the primary statistic. A crossed probe set has all combinations of the
features' bits equally often in each half; all other bits are random. An unused twin is the same function of other
bits, on which no output is trained; it serves as a floor. A seed passes the gate when every class of every trained feature
is over 95 % correct on independent balanced data.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from repbias_jax.probes import components, decoding, readout, similarity, steering, units, variance


class Probe(NamedTuple):
    """A probe, what it needs, and where it is run."""

    function: Callable
    kind: Literal["representation", "intervention", "pair"]
    along: bool = False  # also runs at snapshots during training, not only at the first and the last
    views: tuple[str, ...] = ()  # places of the model, or views, where it runs; empty: all
    padded: bool = True  # widths may share one program, padded with units that are always zero; else each has its own
    labelled: bool = True  # whether an intervention reads the reported factors, which the probe set must then have


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
    "decode_last": Probe(decoding.decode, "representation", views=("last_hidden",), padded=False),
    "decode_flat": Probe(decoding.decode, "representation", views=("flat",), padded=False),
    "decode_answers": Probe(decoding.decode, "representation", views=("answers",), padded=False),
    "decode_nonlinear": Probe(decoding.decode_nonlinear, "representation", views=("last_hidden",), padded=False),
    "transfer": Probe(decoding.transfer, "representation", views=("layers",), padded=False),
    "reliance": Probe(decoding.reliance, "intervention", views=("last_hidden",), labelled=False),
}
