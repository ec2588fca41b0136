"""What the rest of the network makes of a representation."""

import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.probes.moments import Measured, Outputs, Side, one_hot


def readout(fit: Side, score: Side, outputs: Outputs) -> dict[Measured, Array]:
    """Returns the strength of the network's own readout of each output, and its margins.

    - `readout_norm` is sqrt(2) times the Frobenius norm of the derivative, with respect to the representation, of the
      class-centred logits averaged over the fit set. At the penultimate layer, for two values, it is exactly |w_1 - w_0|.
      Range: 0 to infinity; direction: higher is read out more strongly; an output that ignores the site: 0; an untrained
      LeCun-normal readout of D units: about sqrt(2). It scales with the logits and with the inverse of the representation.
    - `margin` is the mean over the score set of the label's logit minus the largest other logit, in logits. Perfect
      classification with certainty: large; random labels: about 0 or below. It scales with the logits.

    Rotations of the representation that the readout follows change neither.

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, of other examples.
      outputs: returns the logits of a side after a change of its representation, as in `repbias_jax.probes`.

    Returns:
      `readout_norm` and `margin` for each output.

    Source: ours.
    """
    nothing = jnp.zeros(fit[0].shape[1])

    def centred(change: Array) -> dict[str, Array]:
        return {n: (logits - logits.mean(-1, keepdims=True)).mean(0) for n, logits in outputs("fit", change).items()}

    slopes = jax.jacrev(centred)(nothing)
    out = {}
    for name, logits in outputs("score", nothing).items():
        label = jax.nn.one_hot(score[1][name], logits.shape[-1])
        margin = jnp.sum(logits * label, -1) - jnp.max(jnp.where(label > 0, -jnp.inf, logits), -1)
        out[Measured("readout_norm", name)] = jnp.sqrt(2 * jnp.sum(jnp.square(slopes[name])))
        out[Measured("margin", name)] = margin.mean()
    return out


def balanced_accuracy(said: Array, codes: Array, num_values: int, kept: Array | None = None) -> Array:
    """Returns the share of correct answers, averaged over the values that occur.

    Args:
      said: answers, int `[..., N]`; -1 where a readout gives none, since its fit is NaN.
      codes: the correct ones, int `[..., N]` in 0..C-1.
      num_values: C.
      kept: boolean `[..., N]`, the examples that count; by default all.

    Returns:
      `[...]` in 0 to 1; NaN if no example counts, or any example has no answer.
    """
    hot = one_hot(codes, num_values)
    hot = hot if kept is None else jnp.where(kept[..., None], hot, 0)
    counts, right = hot.sum(-2), jnp.where((said == codes)[..., None], hot, 0).sum(-2)
    share = jnp.sum(right / jnp.maximum(counts, 1), axis=-1) / jnp.sum(counts > 0, axis=-1, dtype=jnp.float32)
    return jnp.where(jnp.any(said < 0, axis=-1), jnp.nan, share)
