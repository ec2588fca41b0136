"""Shape and color in a residual network, with and without its skip connections (claim C18).

Claim: a residual network that is trained to report color and shape represents shape more strongly.
Paper: Lampinen, Chan and Hermann 2024 (images); tasks, statistics, sizes and controls are ours.

  python -m experiments.run --experiment=vision_residual --workdir=DIR                 full: 32 seeds
  python -m experiments.run --experiment=vision_residual --workdir=DIR --preset=quick  2 seeds, shorter

The task is that of `vision_plain`. The network has a stem and three stages of one block each. All skip connections are
multiplied by a dial s, and each sum is divided by sqrt(1 + s^2). Each seed trains one network with s = 1 and one with
s = 0, which is the same network without skip connections, from the same data and initial weights. The representation is
the mean of the last stage over places, at the first snapshot at least 1,000 updates after shape is mastered. The Vision
Transformer learns shape slowly, from four times the images, and is read at the end of training.

  C18   r2(shape) - r2(color)
    a   at s = 1
    b   at s = 1 minus s = 0
    c   a at the contrast at which an untrained network has r2(color) nearest .05; shown
    d   a after equally many updates, at the end of training; shown
    e   d in a small Vision Transformer, of 8 seeds; shown
    f   b at the end of training; shown
  Second measure of each: the log ratio. The learning rate falls to a tenth along training, since at a constant rate
  networks lose shape again after it is mastered. The plain network of `vision_plain` (claim C17) had a constant rate.

Settings: skip_1, skip_0 (s), titrated and vit.

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/vision_residual/`.
Expected from the paper: shape above color.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import pandas as pd

from experiments.claims import orders, vision
from experiments.claims.vision import COLOR, MARGIN, SHAPE
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Preset, Training
from repbias_jax.data.images import ImageOptions
from repbias_jax.models.vit import ViTOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

TITRATED = 0.35  # at which the r2 of color in untrained networks is nearest .05: results/vision_residual/titrated.csv
ON, OFF = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
SEEDS = 32
CAPS = {"titrated": 16, "vit": 8}  # an update of the Vision Transformer costs the most
TWO = (SHAPE, COLOR)
SHOWN = {  # what is shown beside the claim: the label of its part, what the setting is, and whether it is read at the end
    "titrated": ("c", f"contrast {TITRATED:g}", False),
    "vit": ("e", "Vision Transformer", True),
}

EXPERIMENT = Experiment(
    name="vision_residual",
    title="Shape and color in a residual network, with and without skip connections",
    config=Config(
        ImageOptions(num_train=65536, num_test=1024, num_probe=1024),
        vision.RESIDUAL,
        Optimizer("adam", 1e-3, final_rate=0.1),
        Training(batch_size=64, epochs=5, observe_every=256),
        Keep(views=("layers",), every=256),
    ),
    settings=(
        ("skip_1", (("model.skips", ON),)),
        ("skip_0", (("model.skips", OFF),)),
        ("titrated", (("model.skips", ON), ("task.contrast", TITRATED))),
        ("vit", (("model", ViTOptions(patch=8)), ("task.num_train", 4 * 65536), ("training.epochs", 4))),
    ),
    seed_caps=tuple(CAPS.items()),
    probes=("variance",),
    num_seeds=SEEDS,
    verdict_seed=vision.FIRST_SEED + 100,
    presets=(
        ("full", Preset(SEEDS)),
        ("quick", Preset(2, settings=("skip_1", "skip_0"), overrides=(("training.epochs", 3),))),
        (
            "smoke",
            Preset(2, settings=("skip_1", "skip_0", "titrated"), overrides=(*vision.SMOKE, ("model.widths", (8, 8, 16)))),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C18."""
    text, paper, (on, off), source = CLAIMS["C18"]
    on, off = f"{condition}.{on}", f"{condition}.{off}"
    parts: list[Part] = []
    if results.has(on):
        parts += [vision.difference(results, on, "a", "s = 1", TWO)]
    if results.has(on, off):
        parts += [_change(results, on, off, "b"), _change(results, on, off, "f", at_end=True, kind="shown")]
    if results.has(on):
        parts += [vision.difference(results, on, "d", "s = 1", TWO, at_end=True, kind="shown")]
    for name, (label, what, at_end) in SHOWN.items():
        if results.has(f"{condition}.{name}"):
            parts += [vision.difference(results, f"{condition}.{name}", label, what, TWO, at_end, "shown")]
    return [Claim("C18", text, paper, tuple(sorted(parts, key=lambda part: part.label)), source)]


def _change(
    results: Results, on: str, off: str, label: str, at_end: bool = False, kind: str = "deciding"
) -> Part:  # fmt: skip
    """Returns how much skip connections add to the difference of shape and color; second: to their log ratio.

    Args: as for `vision.difference`.
    """
    steps = {s: results.last_step(s) if at_end else vision.read_at(results, s) for s in (on, off)}
    when = "at the end" if at_end else f"{vision.AFTER:,} updates after shape's mastery"
    gap = [vision.apart(results, setting, *TWO, step=own) for setting, own in steps.items()]
    ratio = [contrasts.log_ratio(results, setting, *TWO, step=own) for setting, own in steps.items()]
    every = [vision.learned(results, setting, own) for setting, own in steps.items()]
    accuracy = [contrasts.accuracy_gap(results, setting, *TWO, step=own) for setting, own in steps.items()]
    low = [contrasts.absent(results, setting, TWO, step=own) for setting, own in steps.items()]
    return Part(
        label, f"r2(shape) - r2(color) at s = 1 minus s = 0, {when}", gap[0] - gap[1],
        every[0].join(every[1]), +1, MARGIN, secondary=ratio[0][0] - ratio[1][0],
        secondary_statistic=f"the same of {contrasts.LOG_RATIO}", floored=ratio[0][1] + ratio[1][1],
        accuracy=(accuracy[0] + accuracy[1]) / 2, absent=pd.concat(dict(zip(steps, low, strict=True))), kind=kind,
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {"C18": ("A residual network represents shape more strongly than color", "shape", ("skip_1", "skip_0"), "P")}


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    run = {level: f"{condition}.{name}" for name, level in LEVELS.items() if results.has(f"{condition}.{name}")}
    panels = {level.replace("\n", " "): ([setting], {COLOR: (COLOR,), SHAPE: (SHAPE,)}) for level, setting in run.items()}
    drawn = (
        ("skips", _draw_skips(results, run)),
        ("along", orders.along_figure(results, panels, 3)),
        ("stages", orders.layers_figure(results, panels, 3)),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C18": "skips"}  # the figure that shows a claim
LEVELS = {
    "skip_1": "skips\n(s = 1)", "skip_0": "no skips\n(s = 0)", "titrated": f"s = 1,\ncontrast {TITRATED:g}",
    "vit": "Vision\nTransformer",
}  # fmt: skip
CAPTIONS = {
    "skips": "Variance of the mean of the last stage that is explained by shape and by color: at least 1,000 updates after "
    "shape is mastered in a residual network with and without its skip connections and with paler colors, at the "
    "end of training in a small Vision Transformer. A dot is a seed; marks are means with 95 % intervals. Grey: floors.",
    "along": "Test accuracy of the worst class of shape and color along training, and the variance that they explain; "
    "means over seeds with 95 % bands.",
    "stages": "The same at every stage, averaged over places, at the end of training.",
}


def _draw_skips(results: Results, run: dict[str, str]) -> Figure | None:
    if not run:
        return None
    figure, panels = draw.grid(1, 1, 7.0, 4.2)
    late = [setting for level, setting in run.items() if level == LEVELS["vit"]]
    vision.draw_levels(panels[0][0], results, run, "residual network and others", at_end=late)
    return draw.finish(figure)
