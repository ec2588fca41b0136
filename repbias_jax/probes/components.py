"""Principal components: what each feature explains of them, and what the network can still report from the first few.

Let S = Phi' Phi / N be the covariance of the fit set, centred with its mean, and V `[D, D]` its eigenvectors by falling
eigenvalue. Component k of an example is z_k = phi V_k. Axes come from the fit set; everything else is scored on the score
set.

Source: Lampinen et al. 2024 (principal components, truncation); sizes, shares and the area are ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.probes.moments import Measured, Outputs, Roles, Side, centred, dot, explained_by, whole_factors
from repbias_jax.probes.readout import balanced_accuracy
from repbias_jax.probes.variance import permuted

SHOWN = 10  # components whose features are measured
TOP = 2  # components whose joint share is measured
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def components(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Returns how much of each of the first principal components every feature explains.

    - `component_share` of component k (`at`) is its share of all variance. Range: 0 to 1; it falls with k on the fit set;
      random (isotropic): 1 / D.
    - `component_r2` of a feature and k is r2 of the feature for the one-dimensional z_k. Range, direction, perfect and
      random values are those of r2 in `variance`.
    - `top_r2` (`at` 2) is the same for the first two components together, with SSE and SST summed over both, and
      `top_null_high` is the upper end of its null band, the 97.5th percentile under permuted labels.

    All are invariant to rotation, shift and scale of the representation.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to take axes and class means from.
      score: the same, of other examples, to score on.
      roles: number of values and role of each factor.

    Returns:
      For k = 1 to 10 (or D): `component_share`, and `component_r2` of every factor but single bits. For the same factors
      also `top_r2` and `top_null_high`. NaN where a component has no variance.

    Source: Lampinen et al. 2024; the ratio of sums is ours.
    """
    phi_fit, phi_score = centred(fit, score)
    axes = first_axes(phi_fit)
    z_fit, z_score = dot(phi_fit, axes), dot(phi_score, axes)
    spread, total = jnp.sum(jnp.square(z_score), axis=0), jnp.sum(jnp.square(phi_score))
    spread = jnp.where(spread > 1e-10 * total, spread, jnp.nan)
    out = {Measured("component_share", at=str(k + 1)): spread[k] / total for k in range(axes.shape[1])}
    for name in whole_factors(roles):
        explained = explained_by(name, fit, score, z_fit, z_score, roles[name].values)  # [SHOWN]
        for k in range(axes.shape[1]):
            out[Measured("component_r2", name, at=str(k + 1))] = explained[k] / spread[k]
        top = spread[:TOP].sum()
        null = permuted(fit[1][name], score[1][name], roles[name].values, z_fit[:, :TOP], z_score[:, :TOP]) / top
        out[Measured("top_r2", name, at=str(TOP))] = explained[:TOP].sum() / top
        out[Measured("top_null_high", name, at=str(TOP))] = jnp.quantile(null, 0.975)
    return out


def truncation(fit: Side, score: Side, outputs: Outputs) -> dict[Measured, Array]:
    """Returns how well the network's own readout reports each output from the first k principal components.

    The representation's other components are set to the fit set's mean.

    - `kept_accuracy` of k (`at`) is the balanced accuracy. Range: 0 to 1; direction: higher survives truncation better;
      perfect (all components of a network that has learned): 1; with uninformative components, as those of a random
      representation: about 1 / C.
    - `kept_area` is the area under this curve over k from 1 to D, divided by D - 1. `kept_area_log2` is the area over
      log2 k, divided by log2 D, which gives the first few components more weight. Both have the same range.

    All are invariant to a rotation that the readout follows.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to take axes from.
      score: the same, of other examples.
      outputs: returns the logits of a side after a change of its representation, as in `repbias_jax.probes`.

    Returns:
      `kept_accuracy` of each output for k in SIZES below D and for D, and both areas.

    Source: Lampinen et al. 2024 (truncation); how the areas are taken is ours.
    """
    middle, units = fit[0].mean(0, keepdims=True), fit[0].shape[1]
    axes = principal_axes(centred(fit, score)[0])
    sizes = np.array([k for k in SIZES if k < units] + [units])
    z = dot(score[0] - middle, axes)

    def accuracies(kept: Array) -> dict[str, Array]:
        logits = outputs("score", middle + dot(z * kept[None], axes.T) - score[0])
        return {name: balanced_accuracy(jnp.argmax(x, -1), score[1][name], x.shape[-1]) for name, x in logits.items()}

    masks = (np.arange(units) < sizes[:, None]).astype(np.float32)
    out: dict[Measured, Array] = {}
    for name, curve in jax.lax.map(accuracies, jnp.asarray(masks)).items():
        out |= {Measured("kept_accuracy", name, at=str(k)): curve[i] for i, k in enumerate(sizes)}
        for metric, at in (("kept_area", sizes), ("kept_area_log2", np.log2(sizes))):
            width = np.diff(at).astype(np.float32) / max(at[-1] - at[0], 1e-9)
            out[Measured(metric, name)] = jnp.sum((curve[1:] + curve[:-1]) / 2 * width) if units > 1 else curve[0]
    return out


def principal_axes(centred_fit: Array) -> Array:
    """Returns eigenvectors of the covariance by falling eigenvalue, as columns `[D, D]`. Args: `[N, D]`, centred."""
    return jnp.linalg.eigh(dot(centred_fit.T, centred_fit) / len(centred_fit))[1][:, ::-1]


def first_axes(centred_fit: Array) -> Array:
    """Returns the first SHOWN principal axes, or as many as there are, `[D, K]`. Args: `[N, D]`, centred.

    They come from the smaller of the two Gram matrices. With more units than examples, Phi Phi' = U diag(s^2) U' and the
    axes are Phi' U / s, NaN where there is no variance.
    """
    examples, units = centred_fit.shape
    if units <= examples:
        return principal_axes(centred_fit)[:, :SHOWN]
    squares, left = jnp.linalg.eigh(dot(centred_fit, centred_fit.T))
    squares, left = squares[::-1][:SHOWN], left[:, ::-1][:, :SHOWN]
    axes = dot(centred_fit.T, left)
    length = jnp.linalg.norm(axes, axis=0, keepdims=True)
    return axes / jnp.where(squares > 1e-6 * squares[0], length[0], jnp.nan)[None]
