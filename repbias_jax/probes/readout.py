"""What the rest of the network makes of a representation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.probes.moments import Measured, Side, one_hot


def readout(fit: Side, score: Side, finish: Callable[[Array], dict[str, Array]]) -> dict[str, Array]:
    """Strength of the network's own readout of each output, and the margins it reaches.

    `readout_norm` = sqrt(2) times the Frobenius norm of the derivative of the class-centred logits with respect to the
    representation, at the fit set's mean; at the penultimate layer, and for two values, exactly |w_1 - w_0|. Range: 0
    to infinity; direction: higher is read out more strongly; an output that ignores the site: 0; an untrained
    LeCun-normal readout of D units: about sqrt(2). `margin` = mean over the score set of the label's logit minus the
    largest other one, in logits; perfect classification with certainty: large; random labels: about 0 or below. Both scale
    with the representation's inverse and with the logits; rotations of the representation change neither.

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, other examples.
      finish: from activations `[N, D]` to logits `[N, C]` by the name of the factor that an output reports.

    Returns:
      `readout_norm` and `margin` for each output.

    Source: ours.
    """
    middle = fit[0].mean(0, keepdims=True)

    def centred(point: Array) -> dict[str, Array]:
        return {name: (logits - logits.mean(-1, keepdims=True))[0] for name, logits in finish(point).items()}

    slopes = jax.jacrev(centred)(middle)
    out = {}
    for name, logits in finish(score[0]).items():
        label = jax.nn.one_hot(score[1][name], logits.shape[-1])
        margin = jnp.sum(logits * label, -1) - jnp.max(jnp.where(label > 0, -jnp.inf, logits), -1)
        out[Measured("readout_norm", name)] = jnp.sqrt(2 * jnp.sum(jnp.square(slopes[name])))
        out[Measured("margin", name)] = margin.mean()
    return out


def balanced_accuracy(said: Array, codes: Array, num_values: int, kept: Array | None = None) -> Array:
    """Share that is right, the mean over the values that occur.

    Args:
      said: int `[..., N]`.
      codes: the right ones, int `[..., N]` in 0..C-1.
      num_values: C.
      kept: boolean `[..., N]`, the examples that count; all, if not given.

    Returns:
      `[...]` in 0 to 1; NaN where no example counts.
    """
    hot = one_hot(codes, num_values)
    hot = hot if kept is None else jnp.where(kept[..., None], hot, 0)
    counts, right = hot.sum(-2), jnp.where((said == codes)[..., None], hot, 0).sum(-2)
    return jnp.sum(right / jnp.maximum(counts, 1), axis=-1) / jnp.sum(counts > 0, axis=-1, dtype=jnp.float32)
