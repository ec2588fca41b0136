"""Color and parity of handwritten digits in networks that read images (claim C41, exploratory).

Claim: a network that is trained to report the color of a handwritten digit and whether it is odd represents color more
strongly.
Paper: none, ours: what C17 and C18 ask of rendered shapes, asked of public data. Exploratory: each part
has a verdict of its own, and none enters the claims of the paper.

  python -m experiments.run --experiment=digits --workdir=DIR                 full: 16 seeds
  python -m experiments.run --experiment=digits --workdir=DIR --preset=quick  2 seeds

The images are scikit-learn's 1,797 digits, enlarged to 32 x 32 pixels, in four colors on a background of four tints. The
networks are those of `vision_plain` and `vision_residual`, without the dial on skip connections. They report color, which
is easy, and parity, which needs the digit. Tint is the unused twin of color, and whether the digit is at least five that of
parity. Training shows two thirds of the pictures; accuracy and representations are those of the other third. The
representation is the mean of the last stage over places, at the first snapshot that is at least 1,000 updates after parity
is mastered.

  C41   r2(color) - r2(parity); all parts are ours, and none decides for another
    a   plain network
    b   residual network
    c   a, trained minus untrained
    d   b, trained minus untrained
    e   a after equally many updates, at the end of training; shown
    f   b after equally many updates; shown
    g, h, i   a, c and e where color, too, has two values
  Second measure of each: the log ratio.

Color has four values and parity two. Means of four classes can differ in three directions and those of two in one, so that
color may explain more variance for this alone: g to i have two colors and two tints.

Settings: plain, residual and two_colors (plain).

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/digits/`.
Expected: color above parity in both networks.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import orders, vision
from experiments.claims.vision import COLOR
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Preset, Training
from repbias_jax.data import digits
from repbias_jax.data.digits import DigitOptions
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

PARITY = "parity"
TWO = (COLOR, PARITY)
NETWORKS = {"plain": "plain network", "residual": "residual network", "two_colors": "plain network, two colors"}
LABELS = {"plain": "ace", "residual": "bdf", "two_colors": "ghi"}  # after mastery, trained minus untrained, at the end
TWO_COLORS = ("red", "green")
SEEDS = 16

EXPERIMENT = Experiment(
    name="digits",
    title="Color and parity of handwritten digits",
    config=Config(
        DigitOptions(features=TWO, num_train=16384, num_test=1024, num_probe=1024),
        ConvNetOptions(),
        Optimizer("adam", 1e-3),
        Training(batch_size=64, epochs=12, observe_every=128),
        Keep(views=("layers",), every=128),
    ),
    settings=(
        ("plain", ()),
        ("residual", (("model", vision.RESIDUAL),)),
        ("two_colors", (("task.colors", TWO_COLORS), ("task.tints", TWO_COLORS))),
    ),
    probes=("variance",),
    num_seeds=SEEDS,
    presets=(
        ("full", Preset(SEEDS)),
        ("quick", Preset(2, settings=("plain", "residual"))),
        ("smoke", Preset(2, settings=("plain", "residual"), overrides=vision.SMOKE)),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C41, of the networks that were run."""
    text, paper, _, source = CLAIMS["C41"]
    parts: list[Part] = []
    for name, network in NETWORKS.items():
        setting, (after, gained, end) = f"{condition}.{name}", LABELS[name]
        if results.has(setting):
            parts += [
                vision.difference(results, setting, after, network, TWO, kind="ours", hard=PARITY),
                vision.change(results, setting, gained, network, TWO, kind="ours", hard=PARITY),
                vision.difference(results, setting, end, network, TWO, at_end=True, kind="shown", hard=PARITY),
            ]
    return [Claim("C41", text, paper, tuple(sorted(parts, key=lambda part: part.label)), source, separate=True)]


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {
    "C41": (
        "Networks of handwritten digits represent color more strongly than parity", "ours", tuple(NETWORKS), "ours",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    run = {level: f"{condition}.{name}" for name, level in NETWORKS.items() if results.has(f"{condition}.{name}")}
    panels = {level: ([setting], {COLOR: (COLOR,), PARITY: (PARITY,)}) for level, setting in run.items()}
    drawn = (
        ("levels", _draw_levels(results, run)),
        ("along", orders.along_figure(results, panels)),
        ("stages", orders.layers_figure(results, panels)),
        ("sheet", _sheet()),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C41": "levels"}  # the figure that shows a claim
CAPTIONS = {
    "levels": "Variance of the mean of the last stage that is explained by the color and by the parity of a handwritten "
    "digit, at least 1,000 updates after parity is mastered, in a plain and in a residual network, and in a plain one that "
    "sees two colors instead of four. A dot is a seed; marks are means over seeds with 95 % intervals. Grey marks are "
    "floors.",
    "along": "Test accuracy of the worst class of color and parity along training, and the variance that they explain; "
    "means over seeds with 95 % bands. All of it is on pictures that training does not show.",
    "stages": "The same at every stage, averaged over places, at the end of training.",
    "sheet": "Handwritten digits of scikit-learn in four colors, as networks see them; tint, place and picture are random. "
    "Left: pictures of the training set; right: pictures that only test and probe sets show.",
}


def _draw_levels(results: Results, run: dict[str, str]) -> Figure | None:
    if not run:
        return None
    figure, panels = draw.grid(1, 1, 7.0, 4.2)
    levels = {name.replace(", ", ",\n"): setting for name, setting in run.items()}
    vision.draw_levels(panels[0][0], results, levels, "handwritten digits", PARITY)
    return draw.finish(figure)


def _sheet() -> Figure:
    """Returns a figure of all digits in all colors, of pictures that are in the training set and of some that are not."""
    task = DigitOptions()
    figure, panels = draw.grid(1, 2, 6.0, 3.0)
    for held_out, (axes, title) in enumerate(zip(panels[0], ("training", "held out"), strict=True)):
        axes.imshow(vision.tiled(_images(task, held_out), len(task.colors)), interpolation="nearest")
        places = [(i + 0.5) * (task.size + 1) for i in range(digits.DIGITS)]
        axes.set_xticks(places, [str(i) for i in range(digits.DIGITS)])
        axes.set_yticks(places[: len(task.colors)], list(task.colors))
        draw.label(axes, title, "", "")
    return draw.finish(figure)


def _images(task: DigitOptions, held_out: int) -> np.ndarray:
    """Returns an image of every digit in every color, `[colors * 10, size, size, 3]` in 0..1."""
    count = len(task.colors) * digits.DIGITS
    key_tint, key_picture, key_shift = jax.random.split(jax.random.key(held_out), 3)
    color, digit = (jnp.asarray(own.reshape(-1)) for own in np.indices((len(task.colors), digits.DIGITS), np.int32))
    values = {"color": color, "tint": jax.random.randint(key_tint, (count,), 0, len(task.tints))}
    keys = jax.random.split(key_picture, count)
    which = jax.vmap(lambda own, key: digits.draw_picture(own, jnp.float32(held_out), key))(digit, keys)
    shift = jax.random.uniform(key_shift, (count, 2), minval=-digits.SHIFT, maxval=digits.SHIFT)
    return np.asarray(jax.jit(jax.vmap(lambda *own: digits.render(task, *own, 1.0)))(values, which, shift))
