"""What the rest of the network makes of a representation."""

import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.probes.moments import Measured, Outputs, Side, one_hot


def readout(fit: Side, score: Side, outputs: Outputs) -> dict[Measured, Array]:
    """Strength of the network's own readout of each output, and the margins it reaches.

    `readout_norm` = sqrt(2) times the Frobenius norm of the derivative of the class-centred logits with respect to the
    representation, their mean over the fit set; at the penultimate layer, and for two values, exactly |w_1 - w_0|. Range: 0
    to infinity; direction: higher is read out more strongly; an output that ignores the site: 0; an untrained
    LeCun-normal readout of D units: about sqrt(2). `margin` = mean over the score set of the label's logit minus the
    largest other one, in logits; perfect classification with certainty: large; random labels: about 0 or below. Both scale
    with the representation's inverse and with the logits; rotations of the representation change neither.

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, other examples.
      outputs: logits of a side, with its representation changed, as in `repbias_jax.probes`.

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
    """Share that is right, the mean over the values that occur.

    Args:
      said: int `[..., N]`; -1 where a readout says nothing, since its fit is no number.
      codes: the right ones, int `[..., N]` in 0..C-1.
      num_values: C.
      kept: boolean `[..., N]`, the examples that count; all, if not given.

    Returns:
      `[...]` in 0 to 1; NaN where no example counts, or nothing was said of one.
    """
    hot = one_hot(codes, num_values)
    hot = hot if kept is None else jnp.where(kept[..., None], hot, 0)
    counts, right = hot.sum(-2), jnp.where((said == codes)[..., None], hot, 0).sum(-2)
    share = jnp.sum(right / jnp.maximum(counts, 1), axis=-1) / jnp.sum(counts > 0, axis=-1, dtype=jnp.float32)
    return jnp.where(jnp.any(said < 0, axis=-1), jnp.nan, share)
