"""Models, by name.

A model is built by `build(config, num_outputs, num_values, dropout)` and is a Linen module for ONE example without
batch state: `__call__(inputs, dials, key=None, edits={}) -> (logits [O, C], {site: array})`. Without a key it is
deterministic. Every site passes through `site`, which applies its edit and records it. Add one: a file, and a line here.
"""

from collections.abc import Callable

import flax.linen as nn

from repbias_jax.models import mlp

MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp.build}
