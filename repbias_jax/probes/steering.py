"""Steering: a push along a feature's difference vector, while the network's own later layers finish the computation.

The vector v_f is the mean of phi given f = 1 minus its mean given f = 0, on the fit set. Each example of the score set is
pushed towards the value that the network does not report for f: along +v_f where it reports 0, along -v_f where it reports
1. The L2 norm of a push of dose x is x times the representation's rms, rms = sqrt(mean |phi - mean|^2).

Source: Lampinen et al. 2024 (causal interventions); doses, their unit and random directions are ours.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.probes.moments import Measured, Outputs, Side, centred, class_means

DOSES = tuple(float(f"{x:.3g}") for x in np.geomspace(0.05, 20, 27))
NUM_RANDOM = 5  # random directions of equal norm


def steering(fit: Side, score: Side, outputs: Outputs) -> dict[Measured, Array]:
    """Returns how often a push along one feature's vector flips what the network reports, for every output and dose.

    - `flips` of direction f (`feature`) and output g (`other`) is the share of examples whose report of g changes. Range: 0
      to 1; direction: higher is steered more; dose 0: 0; perfect (the vector controls f alone): 1 for f at some dose and 0
      for every other output; random (a vector without meaning): as `random_flips`. `at` is the dose, or `own` for the
      vector's own length. Invariant to a rotation, shift and scale of the representation that the rest of the network
      follows.
    - `random_flips` is the same for random directions with the same signs, the mean over five. Its null is 0 at small doses
      and has no known value at large ones.
    - `own_dose` is |v_f| / rms. Range: 0 to 1 / sqrt(p (1 - p)) at prevalence p; direction: higher is a longer vector;
      perfect (a representation of the feature and nothing else): the upper end; random: about 2 / sqrt(N).

    Only features of two values have a vector.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to take vectors from.
      score: the same, of other examples, to push.
      outputs: returns the logits of a side after a change of its representation, as in `repbias_jax.probes`.

    Returns:
      `flips` and `random_flips` for every pair of a direction and an output, and `own_dose` for every direction.

    Source: Lampinen et al. 2024 (the intervention); dose, signs and controls are ours.
    """
    phi_fit, phi_score = centred(fit, score)
    rms = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(phi_score), axis=-1)))
    unchanged = outputs("score", jnp.zeros(score[0].shape[1]))
    reported = {name: jnp.argmax(logits, -1) for name, logits in unchanged.items() if logits.shape[-1] == 2}
    others = jnp.asarray(random_directions(score[0].shape[1]))
    out: dict[Measured, Array] = {}
    for name, before in reported.items():
        means = class_means(fit[1][name], phi_fit, 2)
        vector = means[1] - means[0]
        norm = jnp.linalg.norm(vector)
        ways = jnp.concatenate([(vector / norm)[None], others])  # [1 + NUM_RANDOM, D]
        doses = jnp.concatenate([jnp.asarray(DOSES), (norm / rms)[None]])
        signs = (1 - 2 * before).astype(jnp.float32)[:, None]  # [N, 1]
        flips = _flips(signs, rms * doses, ways, reported, outputs)
        out[Measured("own_dose", name)] = norm / rms
        for other, shares in flips.items():  # [doses, ways]
            for i, at in enumerate((*map(str, DOSES), "own")):
                out[Measured("flips", name, other, at)] = shares[i, 0]
                out[Measured("random_flips", name, other, at)] = shares[i, 1:].mean()
    return out


def _flips(
    signs: Array, lengths: Array, ways: Array, reported: dict[str, Array], outputs: Outputs
) -> dict[str, Array]:  # fmt: skip
    """Returns the share of examples whose report changes, `[lengths, ways]` by output.

    Pushes are run one after the other, to bound memory.
    """

    def one(push: Array) -> dict[str, Array]:
        logits = outputs("score", signs * push[None])
        return {name: jnp.mean(jnp.argmax(logits[name], -1) != before) for name, before in reported.items()}

    pushes = (lengths[:, None, None] * ways[None]).reshape(-1, ways.shape[-1])
    found = jax.lax.map(one, pushes)
    return {name: shares.reshape(len(lengths), len(ways)) for name, shares in found.items()}


@functools.cache
def random_directions(units: int) -> np.ndarray:
    """Returns unit vectors `[NUM_RANDOM, D]`, the same for every run, drawn once with a fixed seed."""
    drawn = np.random.default_rng(units).normal(size=(NUM_RANDOM, units))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
