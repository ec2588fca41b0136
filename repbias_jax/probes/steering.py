"""Steering: a push along a feature's difference vectors, while the network's own later layers finish the computation.

The vector v_ab of a feature f is the mean of phi given f = b minus its mean given f = a, on the fit set. Each example of
the score set is pushed away from the value a that the network reports for f, along v_ab, once towards each other value b.
The L2 norm of a push of dose x is x times the representation's rms, rms = sqrt(mean |phi - mean|^2).

Source: Lampinen et al. 2024 (causal interventions); doses, their unit, random directions and more than two values are ours.
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
    """Returns how often a push along one feature's vectors changes what the network reports, for every output and dose.

    - `flips` of direction f (`feature`) and output g (`other`) is the share of pushes that change the report of g: each
      example is pushed towards every other value of f in turn. Range: 0 to 1; direction: higher is steered more; dose 0: 0;
      perfect (the vectors control f alone): 1 for f at some dose and 0 for every other output; random (vectors without
      meaning): as `random_flips`. `at` is the dose, or `own` for each vector's own length. Invariant to a rotation, shift
      and scale of the representation that the rest of the network follows.
    - `random_flips` is the same for random directions, the mean over five; a push from a to b has the sign of b - a. Its
      null is 0 at small doses and has no known value at large ones.
    - `own_dose` is |v_ab| / rms, the mean over pairs of values. Range, for two values of prevalence p: 0 to
      1 / sqrt(p (1 - p)); direction: higher is a longer vector; perfect (a representation of the feature and nothing else):
      the upper end; random: about 2 / sqrt(N).

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
    reported = {name: jnp.argmax(logits, -1) for name, logits in unchanged.items()}
    out: dict[Measured, Array] = {}
    for name, before in reported.items():
        count = unchanged[name].shape[-1]
        means = class_means(fit[1][name], phi_fit, count)
        vectors = means[None] - means[:, None]  # [C, C, D], from a to b
        norms = jnp.linalg.norm(vectors, axis=-1)
        doses = jnp.concatenate(
            [jnp.broadcast_to(jnp.asarray(DOSES)[:, None, None], (len(DOSES), *norms.shape)), (norms / rms)[None]]
        )
        ways = jnp.concatenate([(vectors / norms[..., None])[None], _signed(random_directions(phi_fit.shape[1]), count)])
        flips = _flips(before, rms * doses, ways, reported, outputs)
        out[Measured("own_dose", name)] = jnp.sum(norms / rms) / (count * (count - 1))
        for other, shares in flips.items():  # [doses, ways]
            for i, at in enumerate((*map(str, DOSES), "own")):
                out[Measured("flips", name, other, at)] = shares[i, 0]
                out[Measured("random_flips", name, other, at)] = shares[i, 1:].mean()
    return out


def _signed(directions: np.ndarray, count: int) -> Array:
    """Returns unit vectors `[NUM_RANDOM, C, C, D]` with the sign of b - a from a to b."""
    places = np.arange(count)
    signs = np.sign(places[None] - places[:, None]).astype(np.float32)
    return jnp.asarray(directions[:, None, None] * signs[:, :, None])


def _flips(
    before: Array, lengths: Array, ways: Array, reported: dict[str, Array], outputs: Outputs
) -> dict[str, Array]:  # fmt: skip
    """Returns the share of pushes after which a report has changed, `[doses, ways]` by output.

    Pushes are run one after the other, to bound memory.

    Args:
      before: the value that is reported for each example, `[N]`.
      lengths: of a push from a to b, `[doses, C, C]`.
      ways: its direction, `[ways, C, C, D]`.
      reported: every output's report before a push, `[N]` by name.
      outputs: as in `steering`.
    """
    count = lengths.shape[1]
    sizes = (len(lengths), len(ways), count - 1)

    def one(which: tuple[Array, Array, Array]) -> dict[str, Array]:
        dose, way, ahead = which
        pair = before, (before + 1 + ahead) % count
        logits = outputs("score", lengths[dose][pair][:, None] * ways[way][pair])
        return {name: jnp.mean(jnp.argmax(logits[name], -1) != own) for name, own in reported.items()}

    found = jax.lax.map(one, tuple(jnp.asarray(x.reshape(-1), jnp.int32) for x in np.indices(sizes)))
    return {name: shares.reshape(sizes).mean(axis=-1) for name, shares in found.items()}


@functools.cache
def random_directions(units: int) -> np.ndarray:
    """Returns unit vectors `[NUM_RANDOM, D]`, the same for every run, drawn once with a fixed seed."""
    drawn = np.random.default_rng(units).normal(size=(NUM_RANDOM, units))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
