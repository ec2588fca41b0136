"""The smallest experiment with a Transformer: the settings, claim and figure of `tiny` on strings of tokens.

It is called `tiny` too, and so is its folder; its key in EXPERIMENTS is `tiny_sequence`.
"""

import dataclasses

from repbias_jax.config import Config, Keep, Training
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.models.transformer import TransformerOptions
from tests.faults import tiny
from tests.faults.tiny import CAPTIONS, claims, figures

__all__ = ["CAPTIONS", "EXPERIMENT", "claims", "figures"]

EXPERIMENT = dataclasses.replace(
    tiny.EXPERIMENT,
    config=Config(
        SequenceOptions(features=("parity1", "parity2"), length=8, num_train=64, num_test=32, num_probe=64),
        TransformerOptions(width=8, heads=2, layers=1, expand=1),
        training=Training(batch_size=16, epochs=2, observe_every=4),
        keep=Keep(every=4),
    ),
)
