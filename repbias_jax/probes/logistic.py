"""L2-regularised logistic readouts: many small fits at once, by Newton's method.

For activations x `[N, D]` and codes y in 0..C-1, one readout is multinomial and minimises

  sum_n [log sum_j exp(z_nj) - z_n(y_n)] + l2 / 2 |w|^2,  z_nj = w_j x_n + b_j    (l2 = 1 / C of scikit-learn; b is free)

It has a column j for each value. For two values it has one column, and the logit of the other value is 0. A Newton step
solves H d = -g by conjugate gradients. With the probabilities p of the columns, H v has the rows
X' [p_j (X v_j - sum_k p_k X v_k)] + l2 v_j. H is never formed, so a step costs N D C instead of N (D C)^2, and the fits of
one set of examples share their matrix products. The preconditioner of every column is the inverse of X' X / 4 + l2, which
for one column bounds H from above and is the same for all targets. Everything is divided by N.

Source: the algorithm is textbook (Newton with conjugate gradients); limits and grid are ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.probes.moments import dot

GRID = (1000.0, 100.0, 10.0, 1.0)  # l2, from strong to weak; C from 0.001 to 1
FOLDS = 4
STEPS, INNER_STEPS = 40, 60  # limits of Newton steps, and of conjugate-gradient steps in each
TOLERANCE = 2e-6  # for the largest entry of the gradient, per example; float32 rounds it by about 1e-7
ROUGH = 1e-4  # the same in folds, where only losses are compared
WIDE = 1024  # units above which a layer with fewer examples is fitted in the span of its examples
LEFT = 0.3  # share of a step's residual at which conjugate gradients stop


class Readout(NamedTuple):
    """Fitted readouts of F label vectors, with J columns each: one for two values, else one for each value."""

    mean: Array  # [D], of the examples in the fit
    scale: Array  # [D], their standard deviation; infinite for units that are constant
    weights: Array  # [F, J, D], for standardised units
    intercept: Array  # [F, J]
    converged: Array  # [F], 1 where the fit converged, else 0


def columns(codes: Array, num_values: int) -> Array:
    """Returns targets in {0, 1}, float `[..., J, N]`, with J = 1 for two values, else C. Args: codes int `[..., N]`."""
    values = jnp.arange(1, 2) if num_values == 2 else jnp.arange(num_values)
    return jax.vmap(lambda own: own == codes, out_axes=-2)(values).astype(jnp.float32)


def cross_validated(x: Array, targets: Array) -> tuple[Array, Array]:
    """Returns for each factor the l2 of GRID with the smallest log loss on held-out quarters of the examples.

    The examples are split before anything is computed: units are standardised with the mean and standard deviation of the
    examples in the fit.

    Args:
      x: activations `[N, D]`, in random order, since folds are contiguous.
      targets: `[F, J, N]` in {0, 1}, as from `columns`.

    Returns:
      l2 `[F]`; whether all fits to folds converged, 1 or 0, `[F]`.
    """
    (train, held), present = folds(len(x)), occurring(targets)

    def one_fold(train: Array, held: Array) -> tuple[Array, Array]:
        mean, scale = standard(x[train])
        z, ahead = (_standardised(x[rows], mean, scale) for rows in (train, held))
        basis = _basis(z)
        z, ahead = _within(z, basis), _within(ahead, basis)

        def one_l2(weights: Array, l2: Array) -> tuple[Array, tuple[Array, Array]]:
            near = _inverse(z, l2)
            one = jax.vmap(lambda y, own, w: fit(z, y, own, l2, near, w, ROUGH))
            weights, done = one(targets[..., train], present, weights)
            loss = jax.vmap(_log_loss)(dot(weights, ahead.T), targets[..., held], present)
            return weights, (loss.sum(1), done)

        # The fits go from strong to weak, each starting from the minimum of the one before.
        return jax.lax.scan(one_l2, jnp.zeros((*targets.shape[:2], z.shape[1])), jnp.asarray(GRID))[1]

    losses, converged = jax.vmap(one_fold)(jnp.asarray(train), jnp.asarray(held))  # [FOLDS, G, F]
    return jnp.asarray(GRID)[jnp.argmin(losses.sum(0), axis=0)], converged.min((0, 1))


def readouts(x: Array, targets: Array, l2: Array) -> Readout:
    """Returns readouts fitted to all examples. Args: x `[N, D]`, targets `[F, J, N]` in {0, 1}, l2 `[F]`."""
    mean, scale = standard(x)
    # The factorisations of a wide layer, here and in `cross_validated`, must not run at the same time (see `after`).
    basis = _basis(_standardised(after(x, l2) if _is_wide(*x.shape) else x, mean, scale))
    z = _within(_standardised(x, mean, scale), basis)

    def one(y: Array, own: Array, l2: Array) -> tuple[Array, Array]:
        return fit(z, y, own, l2, _inverse(z, l2), jnp.zeros((len(y), z.shape[1])), TOLERANCE)

    weights, done = jax.vmap(one)(targets, occurring(targets), l2)
    by_unit = weights[..., :-1] if basis is None else dot(weights[..., :-1], basis.T)
    return Readout(mean, scale, by_unit, weights[..., -1], done)


def predict(readout: Readout, x: Array, present: Array | None = None) -> Array:
    """Returns the code that each readout predicts for each example.

    Args:
      readout: F readouts of J columns.
      x: activations `[N, D]`.
      present: `[F, J]`, which values occur in the fit; the others are never predicted. Not used if J = 1.

    Returns:
      int32 `[F, N]`; -1 where a logit is NaN.
    """
    z = _standardised(x, readout.mean, readout.scale)[:, :-1]
    logits = dot(readout.weights, z.T) + readout.intercept[..., None]
    return decided(logits, present)


def decided(logits: Array, present: Array | None = None) -> Array:
    """Returns the code with the largest logit, or for one column the logit's sign. Args: `[F, J, N]`, `[F, J]`.

    Returns: int32 `[F, N]`; -1 where a logit is NaN, so that NaN never counts as a prediction.
    """
    if logits.shape[1] == 1:
        codes = logits[:, 0] > 0
    else:
        codes = jnp.argmax(logits if present is None else jnp.where(present[..., None], logits, -jnp.inf), axis=1)
    return jnp.where(jnp.isnan(logits).any(1), -1, codes.astype(jnp.int32))


def occurring(targets: Array) -> Array:
    """Returns which columns have an example, boolean `[..., J]`; the one column of two values always counts.

    Args:
      targets: `[..., J, N]` in {0, 1}.
    """
    return jnp.any(targets > 0, axis=-1) | (targets.shape[-2] == 1)


def folds(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows to fit on and held-out rows, `[FOLDS, ...]` each; rows left over from equal folds are never held out."""
    size = count // FOLDS
    held = np.arange(FOLDS * size).reshape(FOLDS, size)
    return np.stack([np.setdiff1d(np.arange(count), own) for own in held]), held


def standard(x: Array) -> tuple[Array, Array]:
    """Returns each unit's mean and standard deviation, infinite where it is no more than rounding. Args: `[N, D]`."""
    mean = x.mean(0)
    mean = mean + (x - mean[None]).mean(0)
    deviation = jnp.sqrt(jnp.mean(jnp.square(x - mean[None]), axis=0))
    living = deviation > 4 * jnp.finfo(jnp.float32).eps * jnp.max(jnp.abs(x))
    return mean, jnp.where(living, deviation, jnp.inf)


def fit(x: Array, y: Array, present: Array, l2: Array, near: Array, start: Array, tolerance: float) -> tuple[Array, Array]:
    """Fits one readout.

    Args:
      x: standardised activations with a last column of ones `[N, D + 1]`.
      y: targets in {0, 1} `[J, N]`.
      present: which columns count, boolean `[J]`; the weights of others stay as they are.
      l2: `[]`.
      near: `[D + 1, D + 1]`, symmetric: the preconditioner, `_inverse(x, l2)`.
      start: initial weights, with the intercept last `[J, D + 1]`.
      tolerance: for the largest entry of the gradient.

    Returns:
      Weights with the intercept last `[J, D + 1]`; 1 if every entry of the gradient is within the tolerance, else 0.
    """
    penalty = _penalty(x, l2)[None]

    def look(w: Array) -> tuple[Array, Array]:
        at = dot(w, x.T)
        return at, dot(_probabilities(at, present) - y, x) / len(x) + penalty * w

    def go_on(state: tuple[Array, ...]) -> Array:
        return (state[0] < STEPS) & (jnp.max(jnp.abs(state[-1])) > tolerance)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        i, w, at, g = state
        p = _probabilities(at, present)

        def product(v: Array) -> Array:
            along = dot(v, x.T)
            return dot(p * (along - jnp.sum(p * along, axis=0, keepdims=True)), x) / len(x) + penalty * v

        d = _solve(product, near, -g)
        along, lengths = dot(d, x.T), jnp.asarray([1.0, 0.5, 0.25, 0.0625])[:, None, None]
        # Far from the minimum a full step can be too long. Losses at several lengths cost no matrix product.
        reached = jax.vmap(lambda z: jnp.mean(_log_loss(z, y, present)))(at[None] + lengths * along[None])
        loss = reached + jnp.sum(penalty[None] * jnp.square(w[None] + lengths * d[None]), axis=(1, 2)) / 2
        w = w + lengths[jnp.argmin(loss)] * d
        return i + 1, w, *look(w)

    _, w, _, g = jax.lax.while_loop(go_on, step, (jnp.int32(0), start, *look(start)))
    return w, (jnp.max(jnp.abs(g)) <= tolerance).astype(jnp.float32)


def _logits(at: Array, present: Array) -> Array:
    """Returns the logits of all values `[C, N]`. Args: at, of the columns `[J, N]`; present `[J]`."""
    if len(at) == 1:
        return jnp.concatenate([jnp.zeros_like(at), at])
    return jnp.where(present[:, None], at, -jnp.inf)


def _probabilities(at: Array, present: Array) -> Array:
    """Returns the probabilities of the columns `[J, N]`. Args: as for `_logits`."""
    return jax.nn.softmax(_logits(at, present), axis=0)[-len(at) :]


def _log_loss(at: Array, y: Array, present: Array) -> Array:
    """Returns minus the log probability of the targets `[N]`. Args: as for `_logits`; y `[J, N]` in {0, 1}."""
    return jax.nn.logsumexp(_logits(at, present), axis=0) - jnp.sum(y * at, axis=0)


def _solve(product, near: Array, target: Array) -> Array:
    """Solves `product(d) = target` `[J, D + 1]` for a symmetric positive definite `product`, by conjugate gradients.

    It stops when the residual, in the norm of `near`, is at most LEFT times its initial size, or after INNER_STEPS steps.
    """

    def go_on(state) -> Array:
        i, _, _, _, left = state
        return (i < INNER_STEPS) & (left > LEFT**2 * first)

    def step(state):
        i, d, residual, direction, left = state
        image = product(direction)
        length = left / jnp.sum(direction * image)
        d, residual = d + length * direction, residual - length * image
        ahead = dot(residual, near)
        now = jnp.sum(residual * ahead)
        return i + 1, d, residual, ahead + now / left * direction, now

    ahead = dot(target, near)
    first = jnp.sum(target * ahead)
    return jax.lax.while_loop(go_on, step, (jnp.int32(0), jnp.zeros_like(target), target, ahead, first))[1]


def after(value: Array, *earlier: Array) -> Array:
    """Returns `value` unchanged, but makes it depend on `earlier`, so that it is used only after these are computed.

    Two batched factorisations of one program that do not depend on each other run at the same time. On CPU each waits for
    threads of one pool, and in a pool of two threads both wait for ever (seen with jaxlib 0.10.2). Hence a dependence by
    value: an optimisation barrier is removed before the program is scheduled. A NaN or infinity in `earlier` does not
    spread to `value`.
    """
    if not earlier:
        return value
    total = jnp.asarray(sum(jnp.sum(e.astype(jnp.float32)) for e in earlier))
    return value + 0.0 * jnp.where(jnp.isfinite(total), total, 0.0)


def _standardised(x: Array, mean: Array, scale: Array) -> Array:
    """Returns standardised units with a last column of ones, `[N, D + 1]`. Args: `[N, D]`."""
    return jnp.concatenate([(x - mean[None]) / scale[None], jnp.ones((len(x), 1))], axis=1)


def _is_wide(examples: int, units: int) -> bool:
    """Returns whether to fit in the span of the examples, since a matrix of units by units would take too much memory."""
    return units > WIDE and units > examples


def _basis(x: Array) -> Array | None:
    """Returns an orthonormal basis of the span of a wide layer's examples, as columns; None if the layer is not wide.

    The gradient of the loss with respect to w is a weighted sum of examples, and that of the penalty is a multiple of w.
    So the minimum lies in the span of the N examples, and in an orthonormal basis of it the penalty is still l2 / 2 |w|^2.

    The basis is computed by QR. The eigenvectors of the Gram matrix would take a third of the time, but in float32 squares
    lose directions weaker than about a thousandth of the strongest, which is where features of little variance are.

    Args:
      x: standardised activations and a last column of ones `[N, D + 1]`.

    Returns:
      `[D, N]`.
    """
    if not _is_wide(len(x), x.shape[1] - 1):
        return None
    return jnp.linalg.qr(x[:, :-1].T)[0]


def _within(x: Array, basis: Array | None) -> Array:
    """Returns coordinates in a basis, with the last column unchanged, `[N, R + 1]`. Args: `[N, D + 1]`, `[D, R]`."""
    return x if basis is None else jnp.concatenate([dot(x[:, :-1], basis), x[:, -1:]], axis=1)


def _penalty(x: Array, l2: Array) -> Array:
    """Returns the diagonal of the penalty's Hessian, per example, `[D + 1]`: l2, and 0 for the intercept, which is last."""
    return jnp.concatenate([jnp.full(x.shape[1] - 1, l2), jnp.zeros(1)]) / len(x)


def _inverse(x: Array, l2: Array) -> Array:
    """Returns the inverse of X' X / 4 + penalty, per example, `[D + 1, D + 1]`."""
    bound = dot(x.T, x) / (4 * len(x)) + jnp.diag(_penalty(x, l2))
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(bound), True), jnp.eye(len(bound)))
