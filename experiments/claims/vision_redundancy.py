"""Which of two features of an image a network relies on when both predict its label (claim C40).

Claim: of two redundant features that predict a label equally well, the easier one, color, is relied on.
Paper: Hermann and Lampinen 2020 (Trifeature): their claim C30 in images. Tasks, statistics, sizes and controls are ours.

  python -m experiments.run --experiment=vision_redundancy --workdir=DIR                 full: 32 and 16 seeds
  python -m experiments.run --experiment=vision_redundancy --workdir=DIR --preset=quick  3 seeds, two settings

The plain network of `vision_plain` reports one label of four values. Given the label, color equals it with one probability,
shape with another, each independently of the other; texture and tint tell nothing. All networks are trained for equally
many updates. What a network relies on is read from its own answers to images whose color and shape are independent: where
they differ, how often the answer is the value of each.

  C40   share of conflicts that follow color minus share that follow shape
    a        where both always equal the label (`both`) > 0
    b, c, d  where they predict it equally well, of 1,024 images, of 8,192, and where every image is new, > 0; b, c shown
    e, f, g  where color predicts it in .8 and shape in .9 of the images, of as many images, > 0; shown

The preference at equal probabilities is found by linear interpolation: it is the mean of those of color .8, shape .9, and
of the reverse. A network that follows the better feature wherever it can, but does not read every shape, would have a mean
above zero, and one that also learned the noise of its labels another one. So the mean of two controls is subtracted, in
which one feature predicts little (color .5, shape .9, and the reverse): whatever such networks do not read, or answer by
heart, is missing there, too. With too few images no network reads shape: only numbers of images decide at which the
answers of the first control are the shape in .90 of all images, on average over calibration seeds: those new throughout.
Part a counts the networks that answer right in .95 of the images whose color and shape agree; the others have no gate, as
labels are noisy.

Settings: both; n1k_, n8k_ and fresh_ (numbers of images) with c50, c80, c90 and s50 (P(color = label), P(shape = label):
.5 and .9, .8 and .9, .9 and .8, .9 and .5).

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/vision_redundancy/`.
Expected from the paper: color.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import numpy as np
import pandas as pd

from experiments.claims import vision
from experiments.claims.vision import COLOR, MARGIN, SHAPE
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Overrides, Preset, Training
from repbias_jax.data.images import ImageOptions
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import MASTERY, Results
from repbias_jax.statistics import Claim, Part

VALUES = 4  # of the label and of every factor
BATCH, UPDATES = 64, 3072
SIZES = {"n1k": 1024, "n8k": 8192, "fresh": BATCH * UPDATES}  # numbers of training images
MATCHES = {"c50": (0.5, 0.9), "c80": (0.8, 0.9), "c90": (0.9, 0.8), "s50": (0.9, 0.5)}  # P(feature = label): color, shape
DECIDING = ("fresh",)  # numbers of images at which the control reads shape, on calibration seeds
LADDER = {f"{size}_{name}": (SIZES[size], match) for size in SIZES for name, match in MATCHES.items()}
FIRST_SEED = vision.FIRST_SEED + 400
SEEDS, SEEDS_LADDER = 32, 16
PREFERENCE = "share of conflicts that follow color minus share that follow shape"
EVEN = "equal probabilities, minus that of the two controls"


def _of(images: int, match: tuple[float, float]) -> Overrides:
    """Returns the changes for a label that color and shape predict. Args: match: P(feature = label) of each."""
    return ("task.match", match), ("task.num_train", images), ("training.epochs", BATCH * UPDATES // images)


EXPERIMENT = Experiment(
    name="vision_redundancy",
    title="Color or shape: which of two features of an image is relied on",
    config=Config(
        ImageOptions(features=(COLOR, SHAPE), outputs=("target",), num_test=1024, num_probe=2048),
        ConvNetOptions(),
        Optimizer("adam", 1e-3),
        Training(batch_size=BATCH, observe_every=256),
        Keep(views=("layers",)),
    ),
    settings=(
        ("both", _of(65536, (1.0, 1.0))),
        *((name, _of(*own)) for name, own in LADDER.items()),
    ),
    seed_caps=tuple((name, SEEDS_LADDER) for name in LADDER),
    seed_blocks=tuple((name, FIRST_SEED + 40, SEEDS_LADDER) for name in LADDER),
    probes=("reliance",),
    num_seeds=SEEDS,
    verdict_seed=FIRST_SEED,
    presets=(
        ("full", Preset(SEEDS)),
        (
            "quick",
            Preset(
                3,
                settings=("both", "n8k_c80"),
                overrides=(("task.num_train", 8192), ("training.epochs", BATCH * UPDATES // 8192)),
            ),
        ),
        (
            "smoke",
            Preset(
                2,
                settings=("both", *(f"n1k_{name}" for name in MATCHES), "n8k_c80"),
                overrides=(*vision.SMOKE, ("keep.every", 0)),
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C40."""
    text, paper, (both, *_), source = CLAIMS["C40"]
    parts = [_always(results, f"{condition}.{both}")]
    for label, shown, size in zip("bcd", "efg", SIZES, strict=True):
        parts += _compared(results, (label, shown), size, *(f"{condition}.{size}_{name}" for name in MATCHES))
    return [Claim("C40", text, paper, tuple(sorted(parts, key=lambda part: part.label)), source)]


def conflicts(results: Results, setting: str, feature: str) -> pd.Series:
    """Returns the share of images whose color and shape differ on which the answer is this feature's value, by seed."""
    other = SHAPE if feature == COLOR else COLOR
    return results.values(setting, "agreement_where", feature, at=f"differs from {other}")


def preference(results: Results, setting: str) -> pd.Series:
    """Returns the share of conflicts that follow color minus the share that follow shape, by seed."""
    return conflicts(results, setting, COLOR) - conflicts(results, setting, SHAPE)


def _always(results: Results, setting: str) -> Part:
    """Returns part a, over the networks that answer right where color and shape agree."""
    text = f"{PREFERENCE}, both always equal the label"
    if not results.has(setting):
        return contrasts.not_run("a", text, +1, MARGIN)
    right = results.values(setting, "agreement_where", COLOR, at=f"equals {SHAPE}")
    passed = pd.DataFrame({f"{setting} (right where color and shape agree)": right > MASTERY})
    return Part("a", text, preference(results, setting), passed, +1, MARGIN)


def _compared(results: Results, labels: tuple[str, str], size: str, *settings: str) -> list[Part]:
    """Returns the two parts of a number of images.

    Args:
      results: of the experiment.
      labels: of the part at equal probabilities, and of that where shape predicts better.
      size: key of SIZES.
      *settings: full names, as in MATCHES.
    """
    equal, less = (f"{PREFERENCE}, {what}, {_images(size)}" for what in (EVEN, ".8 / .9"))
    kind = "deciding" if size in DECIDING else "shown"
    if not results.has(*settings):
        return [contrasts.not_run(labels[0], equal, +1, MARGIN)] if kind == "deciding" else []
    little_color, worse, better, little_shape = (preference(results, s) for s in settings)
    even = (worse + better) / 2 - (little_color + little_shape) / 2
    return [
        Part(label, text, own, pd.DataFrame({f"{settings[1]} (no gate)": own.notna()}), +1, MARGIN, kind=kind)
        for label, text, own, kind in zip(labels, (equal, less), (even, worse), (kind, "shown"), strict=True)
    ]


def _images(size: str) -> str:
    """Returns the number of training images in words. Args: size, key of SIZES."""
    return "new images throughout" if size == "fresh" else f"{SIZES[size]:,} images"


def accuracy_of(
    agree: pd.Series | float, color: pd.Series | float, shape: pd.Series | float, match: tuple[float, float]
) -> pd.Series | float:  # fmt: skip
    """Returns the accuracy on the training distribution.

    Given the label, color and shape are independent. Where they agree on another value than the label, an answer that is
    not theirs is the label as often as each other value; so it is where they differ and neither is the label.

    Args:
      agree: share of images with equal values on which the answer is this value.
      color: share of images with different values on which the answer is that of color.
      shape: the same of shape.
      match: P(feature = label), of color and of shape.
    """
    first, second = match
    same = (1 - first) * (1 - second) / (VALUES - 1)  # both have the same other value
    apart = (1 - first) * (1 - second) - same
    found = first * second * agree + first * (1 - second) * color + (1 - first) * second * shape
    return found + same * (1 - agree) / (VALUES - 1) + apart * (1 - color - shape) / (VALUES - 2)


def allowed(match: tuple[float, float]) -> float:
    """Returns the highest accuracy that the labels allow: that of following the better of the two (Bayes)."""
    better = float(match[0] > match[1])
    return accuracy_of(1.0, better, 1 - better, match)


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {
    "C40": (
        "Of two redundant features of images the easier is relied on (C30 in images)", "color", ("both", *LADDER), "HL20",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    panels = {"both always equal the label": {"1 / 1": (f"{condition}.both", (1.0, 1.0))}}
    for size in SIZES:
        panels[_images(size)] = {
            f"{color:g} / {shape:g}".replace("0.", "."): (f"{condition}.{size}_{name}", (color, shape))
            for name, (color, shape) in MATCHES.items()
        }
    run = {
        title: own
        for title, every in panels.items()
        if (own := {level: cell for level, cell in every.items() if results.has(cell[0])})
    }
    return [Drawn("reliance", _draw_reliance(results, run), CAPTIONS["reliance"])] if run else []


FIGURES = {"C40": "reliance"}  # the figure that shows a claim
CAPTIONS = {
    "reliance": "Networks trained on a label that color and shape predict, by the two probabilities. Top: on images whose "
    "color and shape differ, how often the answer is the value of each. Bottom: accuracy on the training distribution, as "
    "it follows from the answers where color and shape agree and where they differ, and the best accuracy that the labels "
    "allow (dashes) and chance (dotted). A dot is a seed; marks are means over seeds with 95 % intervals. Grey marks at "
    "the top are floors: how often the answer is the value of the unused twins.",
}


def _draw_reliance(results: Results, panels: dict[str, dict[str, tuple[str, tuple[float, float]]]]) -> Figure:
    figure, axes = draw.grid(2, len(panels), 3.4, 3.0)
    for top, bottom, (title, cells) in zip(*axes, panels.items(), strict=True):
        _draw_followed(top, results, [setting for setting, _ in cells.values()])
        _draw_accuracy(bottom, results, list(cells.values()))
        for own, name, y in (
            (top, title, "share of conflicts"),
            (bottom, "", "accuracy on the\ntraining distribution (share)"),
        ):
            contrasts.at_levels(own, list(cells))
            own.set_ylim(-0.03, 1.03)
            draw.label(own, name, "P(color = label) / P(shape = label)", y)
    return draw.finish(figure)


def _draw_followed(axes: Axes, results: Results, settings: list[str]) -> None:
    x = np.arange(len(settings))
    for feature, twin, style, shift, mark in (
        (COLOR, "tint", STYLES[0], -0.06, "d"),
        (SHAPE, "texture", STYLES[1], 0.06, "p"),
    ):
        followed = pd.DataFrame({s: conflicts(results, s, feature) for s in settings}).T
        draw.dots(axes, x, followed, f"answer is the {feature}", style | {"linestyle": "none"}, shift=shift)
        unused = [results.values(s, "agreement", twin).mean() for s in settings]
        draw.floor(axes, x + 3 * shift, unused, f"{twin}, the unused twin of {feature}", mark)


def _draw_accuracy(axes: Axes, results: Results, cells: list[tuple[str, tuple[float, float]]]) -> None:
    x = np.arange(len(cells))
    found = {}
    for setting, match in cells:
        agree = results.values(setting, "agreement_where", COLOR, at=f"equals {SHAPE}")
        followed = (conflicts(results, setting, feature) for feature in (COLOR, SHAPE))
        found[setting] = accuracy_of(agree, *followed, match)
    draw.dots(axes, x, pd.DataFrame(found).T, "accuracy", STYLES[2] | {"linestyle": "none"})
    draw.floor(axes, x, [allowed(match) for _, match in cells], "best that the labels allow", "_")
    axes.axhline(1 / VALUES, linestyle=(0, (1, 2)), label="chance", **draw.FLOOR)
