"""What can be read out of a frozen representation: linear and nonlinear decoders, and what they lean on.

Readouts are fitted on the fit set and scored on the score set. Everything they choose (standardisation, regularisation)
is chosen within the fit set. Beside every accuracy stands that of the same procedure on permuted labels.

Source: Hermann and Lampinen 2020 (decoding), Lampinen et al. 2024 (conflicts); solvers, controls and sizes are ours.
"""

import functools
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.probes import logistic
from repbias_jax.probes.moments import (
    Measured,
    Outputs,
    Roles,
    Side,
    centred,
    dot,
    features,
    is_constant,
    orders,
    whole_factors,
)
from repbias_jax.probes.readout import balanced_accuracy

SIZES = (64, 128, 256, 512)  # examples that a downstream readout is trained on
NUM_CONTROLS = 16  # labelings that no feature predicts, for each of them
RIDGES = (0.01, 0.1, 1.0, 10.0)  # added to the kernel matrix, whose diagonal is 1
STRONG, WEAK = logistic.GRID[0], logistic.GRID[-1]


class Answers(NamedTuple):
    """What readouts say of N examples: of F factors, and then of the same with permuted labels."""

    codes: Array  # [2 F, N], what is right
    said: Array  # [2 F, N]
    converged: Array  # [2 F], 1 where every fit reached its minimum, else 0


def decode(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Accuracy of a linear readout of each factor: L2-regularised logistic regression.

    Units are standardised; two values share one readout, more have one each against the rest. Regularisation by the log
    loss on held-out quarters of the fit set. Range of `decode`: 0 to 1, the mean over classes of the share of score
    examples that are right; direction: higher is more decodable; perfect (linearly separable): 1; random: 1 / C.
    `decode_shuffled` is the same for permuted labels, on both sides: 1 / C whatever the representation. `decode_converged`
    is 1 where every fit that led to `decode` reached the minimum, else 0. Invariant to shift and to the scale of each
    unit, but for rounding.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to fit on.
      score: the same, of other examples, to score on.
      roles: number of values and role of each factor.

    Returns:
      The three for every factor but single bits. NaN where the layer or the factor is constant.

    Source: Hermann and Lampinen 2020; solver, grid and control are ours.
    """
    return _named("decode", fit, score, roles, linear_answers)


def decode_nonlinear(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Accuracy of a nonlinear readout of each factor: kernel ridge classification with a Gaussian kernel.

    With standardised units, k(x, z) = exp(-|x - z|^2 / (2 m^2)), m the median distance over disjoint pairs of examples,
    and targets +/-1 about their mean, a readout is (K + ridge)^-1 y: closed form. Ridge by the squared error on held-out
    quarters of the fit set. As many examples as `decode` has, so that the two differ in nothing but the readout; that
    costs about N^3, which is why it is run at the penultimate layer alone. Range, direction, perfect and random values as
    for `decode`; `decode_nonlinear_converged` is 1 where the last linear system is solved to .01 of a target, else 0.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to fit on.
      score: the same, of other examples, to score on.
      roles: number of values and role of each factor.

    Returns:
      `decode_nonlinear`, `decode_nonlinear_shuffled` and `decode_nonlinear_converged` for every factor but single bits.
      NaN where the layer or the factor is constant.

    Source: the question is Hermann and Lampinen's (2020), the decoder ours.
    """
    return _named("decode_nonlinear", fit, score, roles, nonlinear_answers)


def linear_answers(fit: Side, score: Side, names: list[str], num_values: int) -> Answers:
    """What the readouts of `decode` say of each example of the score set. Args: as there."""
    codes, order = _questions(fit, score, names)
    x, targets = fit[0][order], logistic.columns(codes[0][:, order], num_values)
    l2, converged = logistic.cross_validated(x, targets)
    readout = logistic.readouts(x, targets, l2)
    said = logistic.predict(readout, score[0], _present(codes[0], num_values))
    return Answers(codes[1], said, jnp.minimum(converged, readout.converged))


def nonlinear_answers(fit: Side, score: Side, names: list[str], num_values: int) -> Answers:
    """What the readouts of `decode_nonlinear` say of each example of the score set. Args: as there."""
    codes, order = _questions(fit, score, names)
    targets = 2 * logistic.columns(codes[0][:, order], num_values) - 1  # [F, J, N]
    flat = targets.reshape(-1, targets.shape[-1]).T  # [N, M]
    best, every = _best_ridge(fit[0][order], flat, targets.shape[1]), jnp.arange(flat.shape[1])
    predicted, left = _kernel_ridge(logistic.after(fit[0][order], best), flat, score[0])
    logits = predicted[best, :, every].reshape(*targets.shape[:2], -1)  # [F, J, Q]
    said = logistic.decided(logits, _present(codes[0], num_values))
    converged = jnp.max(left[best, every].reshape(targets.shape[:2]), axis=1) <= 1e-2
    return Answers(codes[1], said, converged.astype(jnp.float32))


def transfer(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """What a readout relies on when two features predict its label perfectly.

    For each pair of features a, b a logistic readout is trained on n examples on which they agree (as many of each
    value), and asked about examples on which they do not. Range of `follow`: 0 to 1, the share of those (balanced over
    the values of a) given the value of a; direction: higher relies more on a; perfect reliance on a: 1, on b: 0; a random
    representation, or one that holds both alike: 1/2 for two values. `follow_accuracy` is the balanced accuracy on other
    examples that agree (perfect 1, random 1 / C); `follow_shuffled` is `follow` for shuffled training labels, which neither
    feature predicts, the mean over NUM_CONTROLS of them: about 1 / C. `follow_converged` is 1 where every fit that led
    to the cross-validated `follow` reached its minimum, else 0.

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, other examples.
      roles: number of values and role of each factor.

    Returns:
      For each pair, `feature` a and `other` b, and each n of SIZES that a balanced fit set of this length can supply (at =
      "64" to "512"): the four, with l2 by cross-validation; `follow` and `follow_accuracy` also with the strongest and the
      weakest l2 (at = "256 strong", "256 weak"). NaN where the layer is constant or examples are missing.

    Source: the question is that of Lampinen et al. 2024; sizes and solver are ours.
    """
    names = features(roles)
    defined, out, earlier = _defined(fit, score), {}, ()
    for a, b in combinations(names, 2):
        num_values = roles[a].values
        if roles[b].values != num_values:
            continue  # a readout of one cannot be asked for the other
        for size in (n for n in SIZES if n <= len(fit[0]) // num_values and n % num_values == 0):
            rows, enough = _agreeing(fit[1][a], fit[1][b], size, num_values)
            x, y = logistic.after(fit[0][rows], *earlier), fit[1][a][rows]
            found = _downstream(x, y, score, (a, b), num_values)
            earlier = (found["follow", ""],)
            out |= {
                Measured(metric, a, b, str(size) + at): jnp.where(enough & defined, value, jnp.nan)
                for (metric, at), value in found.items()
            }
    return out


def reliance(fit: Side, score: Side, outputs: Outputs) -> dict[Measured, Array]:
    """How far the network's own outputs go with each feature.

    `agreement` = the share of the probe set, both halves, on which an output says the feature's value, balanced over the
    feature's values. Range: 0 to 1; direction: higher goes with the feature more; perfect: 1; random: 1 / C. On a set on
    which features are independent an output that is one of them agrees with the others at 1 / C; and the same at every
    site, since the rest of the network is run from there.

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, other examples.
      outputs: logits of a side, with its representation changed, as in `repbias_jax.probes`.

    Returns:
      `agreement` for every factor but single bits (`feature`) and every output (`other`); NaN for a constant factor.

    Source: Hermann and Lampinen 2020; balancing is ours.
    """
    out = {}
    nothing = jnp.zeros(fit[0].shape[1])
    both = [outputs(side, nothing) for side in ("fit", "score")]
    for output in both[0]:
        logits = jnp.concatenate([side[output] for side in both])
        said = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        for name in fit[1]:
            codes = jnp.concatenate([fit[1][name], score[1][name]])
            agreed = balanced_accuracy(said, codes, logits.shape[-1])
            out[Measured("agreement", name, output)] = jnp.where(jnp.all(codes == codes[0]), jnp.nan, agreed)
    return out


def _downstream(x: Array, y: Array, score: Side, pair: tuple[str, str], num_values: int) -> dict[tuple[str, str], Array]:
    """A label's readouts, by metric and what is added to the size. Args: x `[n, D]`, y `[n]`, as `_agreeing` has them."""
    first, second = (score[1][name] for name in pair)
    labels = jnp.concatenate([y[None], jnp.asarray(_controls(len(y), num_values), y.dtype)])
    targets = logistic.columns(labels, num_values)
    l2, converged = logistic.cross_validated(x, targets)
    # Real and control labels with the l2 they chose, and the real ones with the two that are fixed.
    targets = jnp.concatenate([targets, targets[:1], targets[:1]])
    readout = logistic.readouts(x, targets, jnp.concatenate([l2, jnp.asarray([STRONG, WEAK])]))
    said = logistic.predict(readout, score[0], jnp.ones((len(targets), num_values), bool))
    codes = jnp.broadcast_to(first[None], said.shape)
    follow, right = (
        balanced_accuracy(said, codes, num_values, jnp.broadcast_to(kept[None], said.shape))
        for kept in (first != second, first == second)
    )
    out = {
        ("follow_shuffled", ""): follow[1:-2].mean(),
        ("follow_converged", ""): jnp.minimum(converged[0], readout.converged[0]),
    }
    for i, at in ((0, ""), (-2, " strong"), (-1, " weak")):
        out |= {("follow", at): follow[i], ("follow_accuracy", at): right[i]}
    return out


@functools.cache
def _controls(size: int, num_values: int) -> np.ndarray:
    """Labels that those of `_agreeing`, each value in turn, do not predict: `[NUM_CONTROLS, n]`, the same for every run.

    Each holds every value equally often for each value of the label. Several, since one and the same pattern of few
    examples resembles, in every run, some function of the bits that are crossed.
    """
    generator = np.random.default_rng(size)
    control = np.empty((NUM_CONTROLS, size), np.int32)
    for value in range(num_values):
        own = np.arange(len(range(value, size, num_values))) % num_values
        control[:, value::num_values] = generator.permuted(np.tile(own, (NUM_CONTROLS, 1)), axis=1)
    return control


def _agreeing(a: Array, b: Array, size: int, num_values: int) -> tuple[Array, Array]:
    """`size` rows on which two features agree, each value in turn, in a fixed random order; whether there are enough."""
    order = orders(len(a), 0)[1]
    share = size // num_values
    hits = (a == b)[order][None] & (a[order][None] == jnp.arange(num_values)[:, None])  # [C, N]
    first = jnp.argsort(~hits, axis=1, stable=True)[:, :share]
    return jnp.asarray(order)[first].T.reshape(-1), jnp.all(hits.sum(1) >= share)


def _questions(fit: Side, score: Side, names: list[str]) -> tuple[list[Array], Array]:
    """Codes of both sides `[2 F, N]`, the second half permuted; an order of the fit set's rows."""
    codes = []
    for side, (phi, factors) in enumerate((fit, score)):
        real = jnp.stack([factors[name] for name in names])
        codes.append(jnp.concatenate([real, real[:, orders(len(phi), side)[0]]]))
    return codes, jnp.asarray(orders(len(fit[0]), 0)[1])


def _named(
    metric: str, fit: Side, score: Side, roles: Roles, answer: Callable[[Side, Side, list[str], int], Answers]
) -> dict[Measured, Array]:  # fmt: skip
    """Rows of a decoder; factors with equally many values are answered together."""
    by_values: dict[int, list[str]] = {}
    for name in whole_factors(roles):
        by_values.setdefault(roles[name].values, []).append(name)
    out: dict[Measured, Array] = {}
    for num_values, names in by_values.items():
        earlier = tuple(out.values())[-1:]  # factorisations of one program in a fixed order
        ordered = (logistic.after(fit[0], *earlier), fit[1])
        out |= _of_answers(metric, ordered, score, names, answer(ordered, score, names, num_values), num_values)
    return out


def _of_answers(
    metric: str, fit: Side, score: Side, names: list[str], answers: Answers, num_values: int
) -> dict[Measured, Array]:  # fmt: skip
    defined, out = _defined(fit, score), {}
    right = balanced_accuracy(answers.said, answers.codes, num_values)
    for f, name in enumerate(names):
        varies = defined & jnp.all(jnp.stack([jnp.any(s[1][name] != s[1][name][0]) for s in (fit, score)]))
        found = {"": right[f], "_shuffled": right[len(names) + f], "_converged": answers.converged[f]}
        out |= {Measured(metric + end, name): jnp.where(varies, value, jnp.nan) for end, value in found.items()}
    return out


def _defined(fit: Side, score: Side) -> Array:
    """Whether a layer varies by more than rounding."""
    return ~is_constant(score[0], jnp.sum(jnp.square(centred(fit, score)[1])))


def _present(codes: Array, num_values: int) -> Array:
    """Which values occur. Args: `[F, N]`. Returns: `[F, C]`."""
    return jnp.any(codes[..., None] == jnp.arange(num_values)[None, None], axis=1)


def _kernel_ridge(x: Array, targets: Array, others: Array) -> tuple[Array, Array]:
    """Kernel ridge regression of M targets about their means, with each of RIDGES, R in number.

    Args:
      x: activations `[N, D]`; targets: `[N, M]`; others: activations to predict for `[Q, D]`.

    Returns:
      Predictions `[R, Q, M]`; the largest residual of each linear system `[R, M]`.
    """
    mean, scale = logistic.standard(x)
    z, ahead = ((a - mean[None]) / scale[None] for a in (x, others))
    half = len(z) // 2
    width = jnp.median(jnp.sum(jnp.square(z[:half] - z[half : 2 * half]), axis=1))
    kernel, middle = _gaussian(z, z, width), targets.mean(0, keepdims=True)

    def solve(ridge: Array) -> tuple[Array, Array]:
        regular = kernel + ridge * jnp.eye(len(z))
        found = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(regular), True), targets - middle)
        return found, jnp.max(jnp.abs(dot(regular, found) - targets + middle), axis=0)

    found, left = jax.vmap(solve)(jnp.asarray(RIDGES))
    return dot(_gaussian(ahead, z, width)[None], found) + middle[None], left


def _best_ridge(x: Array, targets: Array, together: int) -> Array:
    """Place in RIDGES with the least squared error on held-out quarters `[M]`; `together` targets in a row share theirs."""

    def one_fold(train: Array, held: Array) -> Array:
        said, _ = _kernel_ridge(x[train], targets[train], x[held])
        return jnp.sum(jnp.square(said - targets[held][None]), axis=1)  # [R, M]

    train, held = logistic.folds(len(x))
    errors = jax.vmap(one_fold)(jnp.asarray(train), jnp.asarray(held)).sum(0)
    best = jnp.argmin(errors.reshape(len(RIDGES), -1, together).sum(-1), axis=0)
    return jnp.repeat(best, together)


def _gaussian(a: Array, b: Array, width: Array) -> Array:
    """exp(-|a - b|^2 / (2 width)), `[N, Q]`; a width of 0 is that of a constant layer, of which nothing is said."""
    squares = jnp.sum(jnp.square(a), axis=1)[:, None] + jnp.sum(jnp.square(b), axis=1)[None] - 2 * dot(a, b.T)
    return jnp.exp(-jnp.maximum(squares, 0) / (2 * jnp.where(width > 0, width, 1.0)))
