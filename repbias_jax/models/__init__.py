"""Models, by name.

A model is a Linen module for ONE example, without batch statistics:

  __call__(inputs, dials, labels=None, key=None, edits={}, values=None) -> (logits [O, C], {site: array})

Without a key the model is deterministic. With labels `[O]` a decoder is teacher-forced (an unseen label, -1, has its own
token); without labels, it feeds back its own answers, chosen among the possible values (`family.possible`). `values` `[O]`
is the number of values of the output at each position; None if every output has C values. A model without a decoder
ignores labels and values. Every site passes through `site`, which adds its edit and records it.

`repbias_jax.models.family` has the contract of a family. To add one, add a file, and a line here.
"""

from repbias_jax.models import convnet, mlp, transformer, vit
from repbias_jax.models.family import Family

MODELS: dict[str, Family] = {
    "mlp": mlp.FAMILY,
    "transformer": transformer.FAMILY,
    "convnet": convnet.FAMILY,
    "vit": vit.FAMILY,
}
