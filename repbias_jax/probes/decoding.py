"""What can be read out of a frozen representation: linear and nonlinear decoders, and which features they rely on.

Readouts are fitted on the fit set and scored on the score set. Standardisation and regularisation are determined within
the fit set. For every decoding accuracy, that of the same procedure on permuted labels is also reported.

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
NUM_CONTROLS = 16  # control labelings for each size, which neither feature predicts
RIDGES = (0.01, 0.1, 1.0, 10.0)  # added to the kernel matrix, whose diagonal is 1
STRONG, WEAK = logistic.GRID[0], logistic.GRID[-1]


class Answers(NamedTuple):
    """Predictions of readouts for N examples: for F factors, and then for the same factors with permuted labels."""

    codes: Array  # [2 F, N], the correct codes
    said: Array  # [2 F, N], the predicted codes
    converged: Array  # [2 F], 1 where every fit reached its minimum, else 0


def decode(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Returns the accuracy of a linear readout of each factor: L2-regularised logistic regression.

    Units are standardised. The readout of a factor of more than two values is multinomial. Regularisation is chosen by the
    log loss on held-out quarters of the fit set.

    - `decode` is the balanced accuracy, the mean over classes of the share of score examples predicted correctly. Range: 0
      to 1; direction: higher is more decodable; perfect (linearly separable): 1; random: 1 / C.
    - `decode_shuffled` is the same for labels permuted on both sides: 1 / C whatever the representation.
    - `decode_converged` is 1 if every fit that led to `decode` reached the minimum, else 0.

    All are invariant to shift and to the scale of each unit, except for rounding.

    Args:
      fit: activations `[N, D]` and factors int `[N]` to fit on.
      score: the same, of other examples, to score on.
      roles: number of values and role of each factor.

    Returns:
      These three for every factor but single bits. NaN where the layer or the factor is constant.

    Source: Hermann and Lampinen 2020; solver, grid and control are ours.
    """
    return _named("decode", fit, score, roles, linear_answers)


def decode_nonlinear(fit: Side, score: Side, roles: Roles) -> dict[Measured, Array]:
    """Returns the accuracy of a nonlinear readout of each factor: kernel ridge classification with a Gaussian kernel.

    Units are standardised, the kernel is k(x, z) = exp(-|x - z|^2 / (2 m^2)), where m is the median distance over disjoint
    pairs of examples, and targets y are +/-1 minus their mean. A readout has the closed form (K + ridge)^-1 y. The ridge is
    chosen by the squared error on held-out quarters of the fit set. The examples are those of `decode`, so that the two
    differ only in the readout. The cost is about N^3, which is why this probe runs only at the penultimate layer. Range,
    direction, perfect and random values are those of `decode`; `decode_nonlinear_converged` is 1 if the last linear system
    is solved to within 0.01 of a target, else 0.

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
    """Returns what the readouts of `decode` predict for each score example. Args: names: factors of `num_values` values."""
    codes, order = _questions(fit, score, names)
    x, targets = fit[0][order], logistic.columns(codes[0][:, order], num_values)
    l2, converged = logistic.cross_validated(x, targets)
    readout = logistic.readouts(x, targets, l2)
    said = logistic.predict(readout, score[0], _present(codes[0], num_values))
    return Answers(codes[1], said, jnp.minimum(converged, readout.converged))


def nonlinear_answers(fit: Side, score: Side, names: list[str], num_values: int) -> Answers:
    """Returns what the readouts of `decode_nonlinear` predict for each score example. Args: as for `linear_answers`."""
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
    """Returns which feature a readout relies on when two features predict its label perfectly.

    For each pair of features a, b a logistic readout is trained on n examples on which they agree (equally many of each
    value) and tested on examples of the score set.

    - `follow` is the share of examples on which a and b differ (balanced over the values of a) for which the readout
      predicts the value of a. Range: 0 to 1; direction: higher relies more on a; perfect reliance on a: 1, on b: 0; a
      random representation, or one that represents both equally: 1/2 for two values.
    - `follow_accuracy` is the balanced accuracy on score examples on which they agree (perfect 1, random 1 / C).
    - `follow_shuffled` is `follow` for shuffled training labels, which neither feature predicts, averaged over NUM_CONTROLS
      of them: about 1 / C.
    - `follow_converged` is 1 if every fit that led to the cross-validated `follow` reached its minimum, else 0.

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, of other examples.
      roles: number of values and role of each factor.

    Returns:
      For each pair, `feature` a and `other` b, and each n of SIZES that a balanced fit set of this length can supply (at =
      "64" to "512"): these four, with l2 by cross-validation; `follow` and `follow_accuracy` also with the strongest and
      the weakest l2 (at = "256 strong", "256 weak"). NaN if the layer is constant or the features agree on too few
      examples; `follow` and `follow_shuffled` also if they never differ.

    Source: the question is that of Lampinen et al. 2024; sizes and solver are ours.
    """
    names = features(roles)
    defined, out, earlier = _defined(fit, score), {}, ()
    for a, b in combinations(names, 2):
        num_values = roles[a].values
        if roles[b].values != num_values:
            continue  # a readout of one cannot predict the other
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
    """Returns how often the network's own outputs agree with each feature.

    `agreement` is the share of the probe set, both halves, on which an output equals the feature's value, balanced over the
    feature's values. Range: 0 to 1; direction: higher agrees with the feature more; perfect: 1; random: 1 / C. On a set
    with independent features, an output that equals one of them agrees with the others at 1 / C. The value is the same at
    every site, since the rest of the network is run from there. `agreement_where` is the same on the examples on which the
    feature equals another one (at = "equals NAME"), or on which it does not (at = "differs from NAME"). Where they differ,
    an output that equals the other one has 0, a random one 1 / C.

    Args:
      fit: activations `[N, D]` and factors int `[N]`.
      score: the same, of other examples.
      outputs: returns the logits of a side after a change of its representation, as in `repbias_jax.probes`.

    Returns:
      Both for every factor but single bits (`feature`) and every output (`other`), `agreement_where` also for every other
      factor. NaN for a constant factor, and where no example counts.

    Source: Hermann and Lampinen 2020; balancing is ours.
    """
    out = {}
    nothing = jnp.zeros(fit[0].shape[1])
    both = [outputs(side, nothing) for side in ("fit", "score")]
    factors = {name: jnp.concatenate([fit[1][name], score[1][name]]) for name in fit[1]}
    for output in both[0]:
        logits = jnp.concatenate([side[output] for side in both])
        said = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        for name, codes in factors.items():
            kept = {("agreement", ""): jnp.ones(len(codes), bool)}
            for other in (other for other in factors if other != name):
                same = codes == factors[other]
                kept |= {("agreement_where", f"equals {other}"): same, ("agreement_where", f"differs from {other}"): ~same}
            for (metric, at), own in kept.items():
                agreed = balanced_accuracy(said, codes, logits.shape[-1], own)
                out[Measured(metric, name, output, at)] = jnp.where(jnp.all(codes == codes[0]), jnp.nan, agreed)
    return out


def _downstream(x: Array, y: Array, score: Side, pair: tuple[str, str], num_values: int) -> dict[tuple[str, str], Array]:
    """Returns the measures of `transfer` by metric and suffix of `at`. Args: x `[n, D]`, y `[n]` in `_agreeing`'s order."""
    first, second = (score[1][name] for name in pair)
    labels = jnp.concatenate([y[None], jnp.asarray(_controls(len(y), num_values), y.dtype)])
    targets = logistic.columns(labels, num_values)
    l2, converged = logistic.cross_validated(x, targets)
    # Real and control labels are fitted with their cross-validated l2; real labels also with the two fixed l2.
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
    """Returns control labels that the labels of `_agreeing` do not predict, `[NUM_CONTROLS, n]`, the same for every run.

    For each value of the label, every control holds all values equally often. There are several controls, since a single
    fixed pattern over few examples resembles some function of the crossed bits, and would do so in every run.
    """
    generator = np.random.default_rng(size)
    control = np.empty((NUM_CONTROLS, size), np.int32)
    for value in range(num_values):
        own = np.arange(len(range(value, size, num_values))) % num_values
        control[:, value::num_values] = generator.permuted(np.tile(own, (NUM_CONTROLS, 1)), axis=1)
    return control


def _agreeing(a: Array, b: Array, size: int, num_values: int) -> tuple[Array, Array]:
    """Returns `size` rows on which two features agree, in a fixed random order, and whether there are enough.

    The values of the features alternate: 0, 1, ..., C - 1, 0, 1, ...
    """
    order = orders(len(a), 0)[1]
    share = size // num_values
    hits = (a == b)[order][None] & (a[order][None] == jnp.arange(num_values)[:, None])  # [C, N]
    first = jnp.argsort(~hits, axis=1, stable=True)[:, :share]
    return jnp.asarray(order)[first].T.reshape(-1), jnp.all(hits.sum(1) >= share)


def _questions(fit: Side, score: Side, names: list[str]) -> tuple[list[Array], Array]:
    """Returns the codes of both sides, real and then permuted, `[2 F, N]`; and a random order of the fit set's rows."""
    codes = []
    for side, (phi, factors) in enumerate((fit, score)):
        real = jnp.stack([factors[name] for name in names])
        codes.append(jnp.concatenate([real, real[:, orders(len(phi), side)[0]]]))
    return codes, jnp.asarray(orders(len(fit[0]), 0)[1])


def _named(
    metric: str, fit: Side, score: Side, roles: Roles, answer: Callable[[Side, Side, list[str], int], Answers]
) -> dict[Measured, Array]:  # fmt: skip
    """Returns the measures of a decoder; factors with equally many values are fitted together."""
    by_values: dict[int, list[str]] = {}
    for name in whole_factors(roles):
        by_values.setdefault(roles[name].values, []).append(name)
    out: dict[Measured, Array] = {}
    for num_values, names in by_values.items():
        earlier = tuple(out.values())[-1:]  # fixes the order of factorisations in one program
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
    """Returns whether a layer varies by more than rounding."""
    return ~is_constant(score[0], jnp.sum(jnp.square(centred(fit, score)[1])))


def _present(codes: Array, num_values: int) -> Array:
    """Returns which values occur, `[F, C]`. Args: codes `[F, N]`."""
    return jnp.any(codes[..., None] == jnp.arange(num_values)[None, None], axis=1)


def _kernel_ridge(x: Array, targets: Array, others: Array) -> tuple[Array, Array]:
    """Fits kernel ridge regression of M targets about their means, with each of the R values of RIDGES.

    Args:
      x: activations `[N, D]`.
      targets: `[N, M]`.
      others: activations to predict for `[Q, D]`.

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
    """Returns the index in RIDGES with the smallest squared error on held-out quarters, `[M]`.

    Each `together` consecutive targets share one ridge.
    """

    def one_fold(train: Array, held: Array) -> Array:
        said, _ = _kernel_ridge(x[train], targets[train], x[held])
        return jnp.sum(jnp.square(said - targets[held][None]), axis=1)  # [R, M]

    train, held = logistic.folds(len(x))
    errors = jax.vmap(one_fold)(jnp.asarray(train), jnp.asarray(held)).sum(0)
    best = jnp.argmin(errors.reshape(len(RIDGES), -1, together).sum(-1), axis=0)
    return jnp.repeat(best, together)


def _gaussian(a: Array, b: Array, width: Array) -> Array:
    """Returns exp(-|a - b|^2 / (2 width)), `[N, Q]`; a width of 0, as in a constant layer, is read as 1."""
    squares = jnp.sum(jnp.square(a), axis=1)[:, None] + jnp.sum(jnp.square(b), axis=1)[None] - 2 * dot(a, b.T)
    return jnp.exp(-jnp.maximum(squares, 0) / (2 * jnp.where(width > 0, width, 1.0)))
