"""Models, by name.

A model is a Linen module for ONE example, without batch state:

  __call__(inputs, dials, labels=None, key=None, edits={}, values=None) -> (logits [O, C], {site: array})

Without a key it is deterministic. With labels `[O]` a decoder is teacher-forced (an unseen label, -1, is a token of its
own); without, it feeds itself its own answers. `values` `[O]` is the number of values of the output at each position, None
where all have C of them: answers that are fed back are chosen among these (`family.possible`). A model without a decoder
ignores labels and values. Every site passes through `site`, which adds its edit and records it.

`repbias_jax.models.family` has the contract of a family.
Add one: a file, and a line here.
"""

from repbias_jax.models import mlp
from repbias_jax.models.family import Family

MODELS: dict[str, Family] = {"mlp": mlp.FAMILY}
