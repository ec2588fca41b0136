"""Linear and kernel readouts of one site, with permuted controls, and features that are decodable but small.

The decoders are those of `probes.decoding`. They are fitted on at most 2,048 examples of the fit half and scored on at most
8,192 of the score half, both drawn with a fixed seed: the cost of the kernel readout grows with the cube of the number of
fitted examples. For a continuous feature the label is whether it is above the fit half's median. Intervals come from a
bootstrap over the scored examples; the readouts are not refitted.

Source: ours.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.external.design import Rows, class_codes, interval, resampled
from repbias_jax.external.features import Feature
from repbias_jax.probes import decoding
from repbias_jax.probes.moments import Measured

MAX_FIT, MAX_SCORE = 2048, 8192
KINDS = {"linear": "decode", "nonlinear": "decode_nonlinear"}  # metrics of the two readouts


def readouts(
    phi: tuple[Array, Array], features: Sequence[Feature], rows: Rows, draws: int
) -> Iterator[tuple[str, Measured, float]]:
    """Yields the accuracies of one site, each as probe, name and value.

    For each feature of C classes they are `chance` (1 / C), the balanced accuracies `decode` and `decode_nonlinear`, and
    for both of these the metrics with a further ending:

      `_shuffled`: accuracy with labels permuted on both sides; about 1 / C whatever the representation;
      `_low`, `_high`: ends of the accuracy's 95 % interval;
      `_converged`: 1 if the fit has converged, else 0.

    All but `chance` are NaN if the feature is constant among the examples that are used.

    Args:
      phi: centred activations `[N, D]` of both halves.
      features: those that vary in both halves, of all examples.
      rows: of both halves.
      draws: number of bootstrap draws.
    """
    (phi_fit, fit), (phi_score, score) = (
        _drawn(half, own, most) for half, own, most in zip(phi, rows, (MAX_FIT, MAX_SCORE), strict=True)
    )
    counts = resampled(len(score), draws, 3)
    asked = [(f.name, *class_codes(f, rows)) for f in features]
    for number in sorted({number for _, _, number in asked}):
        own = [(name, codes) for name, codes, own_number in asked if own_number == number]
        # Factors get internal names, which sort in this order: a user's names may mean something to the probes.
        factors = [{f"f{i:03d}": jnp.asarray(c[side]) for i, (_, c) in enumerate(own)} for side in (fit, score)]
        for name, _ in own:
            yield "decode", Measured("chance", name), 1 / number
        for metric, program in PROGRAMS.items():
            answers = jax.device_get(program((phi_fit, factors[0]), (phi_score, factors[1]), number))
            for i, (name, codes) in enumerate(own):
                defined = np.ptp(codes[fit]) > 0 and np.ptp(codes[score]) > 0
                codes_of, said, converged = (a[[i, len(own) + i]] for a in answers)
                for ending, value in _accuracies(codes_of, said, converged, number, counts):
                    yield "decode", Measured(metric + ending, name), value if defined else np.nan


def dissociations(values: dict[Measured, float], decodable: float, small: float) -> Iterator[tuple[str, Measured, float]]:
    """Yields for each feature whether it is decodable but explains little variance: probe, name, and 1 or 0.

    There is one value for each decoder (`at` linear or nonlinear); it is NaN if the accuracy is.

    Args:
      values: of one site, by name.
      decodable: balanced accuracy from which a feature is decodable.
      small: r2, as a share, below which it explains little.
    """
    for name in [m.feature for m, value in values.items() if m.metric == "r2" and np.isfinite(value)]:
        for at, metric in KINDS.items():
            accuracy, r2 = values.get(Measured(metric, name), np.nan), values[Measured("r2", name)]
            found = np.nan if np.isnan(accuracy + r2) else float(accuracy >= decodable and r2 < small)
            yield "decode", Measured("decodable_but_small", name, at=at), found


def _program(answers: Callable[..., decoding.Answers]) -> Callable[..., tuple[Array, ...]]:
    return jax.jit(lambda fit, score, number: tuple(answers(fit, score, list(fit[1]), number)), static_argnums=2)


PROGRAMS = {"decode": _program(decoding.linear_answers), "decode_nonlinear": _program(decoding.nonlinear_answers)}


def _drawn(half: Array, rows: np.ndarray, most: int) -> tuple[Array, np.ndarray]:
    """Returns the activations and rows of at most `most` random examples of a half, in their original order."""
    kept = np.sort(np.random.default_rng(len(rows)).permutation(len(rows))[:most])
    return half[kept], rows[kept]


def _accuracies(
    codes: np.ndarray, said: np.ndarray, converged: np.ndarray, number: int, counts: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Yields each ending of a decoder's metrics with its value.

    Args: codes, predictions and convergence for real and then permuted labels, `[2, N]`, `[2, N]` and `[2]`; number of
    classes; counts of the bootstrap `[draws, N]`.
    """
    right = said == codes
    hot = codes[..., None] == np.arange(number)  # [2, N, C]
    for k, ending in enumerate(("", "_shuffled")):
        yield ending, float(_balanced(np.ones((1, len(right[k]))), right[k], hot[k])[0])
    value = _balanced(np.ones((1, len(right[0]))), right[0], hot[0])[0]
    low, high = interval(value, _balanced(counts, right[0], hot[0]), floor=0.0)
    yield from (("_low", float(low)), ("_high", float(high)), ("_converged", float(converged[0])))


def _balanced(counts: np.ndarray, right: np.ndarray, hot: np.ndarray) -> np.ndarray:
    """Returns the share of correct examples, averaged over classes that occur, `[draws]`.

    Args: counts `[draws, N]`; which examples are correct `[N]`; one-hot classes `[N, C]`.
    """
    weights = counts.astype(np.float64)
    of = weights @ hot
    return np.nanmean(np.where(of > 0, weights @ (hot & right[:, None]) / np.maximum(of, 1), np.nan), axis=1)
