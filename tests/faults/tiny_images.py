"""The smallest experiment with a convolutional network: the settings, claim and figure of `tiny` on images.

It is called `tiny` too, and so is its folder; its key in EXPERIMENTS is `tiny_images`.
"""

import dataclasses

from repbias_jax.config import Config, Keep, Training
from repbias_jax.data.images import ImageOptions
from repbias_jax.models.convnet import ConvNetOptions
from tests.faults import tiny
from tests.faults.tiny import CAPTIONS, claims, figures

__all__ = ["CAPTIONS", "EXPERIMENT", "claims", "figures"]

EXPERIMENT = dataclasses.replace(
    tiny.EXPERIMENT,
    config=Config(
        ImageOptions(
            size=24, shapes=("square", "circle"), colors=("red", "green"), num_train=64, num_test=32, num_probe=64
        ),
        ConvNetOptions(widths=(4, 4), groups=2),
        training=Training(batch_size=16, epochs=2, observe_every=4),
        keep=Keep(every=4),
    ),
)  # fmt: skip
