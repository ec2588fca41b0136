"""Color and shape in a plain convolutional network (claim C17).

Claim: a convolutional network that is trained to report color and shape represents color more strongly.
Paper: Lampinen, Chan and Hermann 2024 (images); tasks, statistics, sizes and controls are ours.

  python -m experiments.run --experiment=vision_plain --workdir=DIR                 full: 32 seeds
  python -m experiments.run --experiment=vision_plain --workdir=DIR --preset=quick  3 seeds, shorter

A network of four convolutions reads images of 32 x 32 pixels, each with one of four shapes, textures and colors, on a
background of one of four tints. It reports shape and color; texture and tint are unused twins. The representation is the
mean of the last stage over places, at the first snapshot that is at least 1,000 updates after shape is mastered.

Colors are very different in pixels, so an untrained network already represents them. The contrast of the colors is
therefore a dial: at 1 they are those of the paper's stimuli, at 0 all are white.

  C17   r2(color) - r2(shape)
    a   at contrast 1
    b   at the contrast at which an UNTRAINED network has r2(color) nearest .05 (`titrated`)
    c   at contrast 1, trained minus untrained
    d   a after equally many updates, at the end of training; shown
    e   b after equally many updates; shown
  Second measure of each: the log ratio.

Settings: c100, c030, c010 (contrasts 1, .3 and .1) and titrated (.36).

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/vision_plain/`.
Expected from the paper: color above shape.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from experiments.claims import orders, vision
from experiments.claims.vision import COLOR, SHAPE
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Preset, Training
from repbias_jax.data.images import ImageOptions
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

TITRATED = 0.36  # at which the r2 of color in untrained networks is nearest .05: results/vision_plain/titrated.csv
CONTRASTS = {"c100": 1.0, "titrated": TITRATED, "c030": 0.3, "c010": 0.1}
SEEDS, CURVE = 32, 8  # CURVE: of the settings that no claim reads

EXPERIMENT = Experiment(
    name="vision_plain",
    title="Color and shape in a plain convolutional network",
    config=Config(
        ImageOptions(num_train=65536, num_test=1024, num_probe=1024),
        ConvNetOptions(),
        Optimizer("adam", 1e-3),
        Training(batch_size=64, epochs=5, observe_every=256),
        Keep(views=("layers",), every=256),
    ),
    settings=tuple((name, (("task.contrast", value),)) for name, value in CONTRASTS.items()),
    seed_caps=(("c030", CURVE), ("c010", CURVE)),
    probes=("variance",),
    num_seeds=SEEDS,
    verdict_seed=vision.FIRST_SEED,
    presets=(
        ("full", Preset(SEEDS)),
        ("quick", Preset(3, settings=("c100", "titrated"), overrides=(("training.epochs", 3),))),
        ("smoke", Preset(2, overrides=vision.SMOKE)),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C17."""
    text, paper, _, source = CLAIMS["C17"]
    plain, low = f"{condition}.c100", f"{condition}.titrated"
    parts: list[Part] = []
    two = (COLOR, SHAPE)
    if results.has(plain):
        parts += [vision.difference(results, plain, "a", "contrast 1", two)]
    if results.has(low):
        parts += [vision.difference(results, low, "b", f"contrast {TITRATED:g}", two)]
    if results.has(plain):
        parts += [vision.change(results, plain, "c", "contrast 1", two)]
        parts += [vision.difference(results, plain, "d", "contrast 1", two, True, "shown")]
    if results.has(low):
        parts += [vision.difference(results, low, "e", f"contrast {TITRATED:g}", two, True, "shown")]
    return [Claim("C17", text, paper, tuple(parts), source)]


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {
    "C17": ("A plain convolutional network represents color more strongly than shape", "color", ("c100", "titrated"), "P"),
}


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    run = {f"contrast {value:g}": f"{condition}.{name}" for name, value in CONTRASTS.items()}
    run = {level: setting for level, setting in run.items() if results.has(setting)}
    panels = {level: ([setting], {COLOR: (COLOR,), SHAPE: (SHAPE,)}) for level, setting in run.items()}
    drawn = (
        ("contrasts", _draw_contrasts(results, run)),
        ("along", orders.along_figure(results, panels)),
        ("stages", orders.layers_figure(results, panels)),
        ("sheet", vision.sheet()),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C17": "contrasts"}  # the figure that shows a claim
CAPTIONS = {
    "contrasts": "Variance of the mean of the last stage that is explained by color and by shape, by the contrast of the "
    "colors, at least 1,000 updates after shape is mastered. A dot is a seed; marks are means over seeds with 95 % "
    "intervals. Grey marks are floors. At contrast 0.36 untrained networks have an r2 of color near 0.05.",
    "along": "Test accuracy of the worst class of color and shape along training, and the variance that they explain; "
    "means over seeds with 95 % bands.",
    "stages": "The same at every stage, averaged over places, at the end of training.",
    "sheet": "All shapes, textures and colors that images can have, at two sizes; place, rotation, size and the other "
    "factors are random, but textures are shown on squares, and all others are solid. At 32 pixels noise, triangles and "
    "pluses can hardly be told apart; the experiments at this size use solid, stripes, dots and grid.",
}


def _draw_contrasts(results: Results, run: dict[str, str]) -> Figure | None:
    if not run:
        return None
    figure, panels = draw.grid(1, 1, 7.0, 4.2)
    vision.draw_levels(panels[0][0], results, {name.split()[1]: s for name, s in run.items()}, "plain network")
    panels[0][0].set_xlabel("contrast of the colors")
    return draw.finish(figure)
