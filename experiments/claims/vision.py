"""What the experiments on images share: sizes, when representations are read, parts of claims, and figures."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from repbias_jax.config import Overrides
from repbias_jax.data import images
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import Axes, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Part, gate

SHAPE, TEXTURE, COLOR = "shape", "texture", "color"
RESIDUAL = ConvNetOptions(form="residual", widths=(16, 32, 64))  # the residual network of all experiments
FIRST_SEED = 21_000  # of the runs that give the verdicts on images
MARGIN = 0.05
AFTER = 1000  # updates after the harder feature's mastery, at which representations are compared
# Smoke runs have one size, so that experiments share compiled programs.
SMOKE: Overrides = (
    ("task.size", 24), ("task.num_train", 128), ("task.num_test", 64), ("task.num_probe", 512), ("model.widths", (8, 16)),
    ("training.batch_size", 16), ("training.epochs", 1), ("training.observe_every", 4), ("keep.every", 4),
)  # fmt: skip


def read_at(results: Results, setting: str, hard: str = SHAPE) -> pd.Series:
    """Returns, by seed, the first snapshot at least AFTER updates after `hard` is mastered; NaN where there is none."""
    snapshots = contrasts.curve(results, setting, "r2", hard).index
    return contrasts.next_snapshot(snapshots, results.mastery(setting, hard) + AFTER)


def learned(results: Results, setting: str, step: pd.Series | int) -> pd.DataFrame:
    """Returns the gate for every output of a setting at a step, or at a step of each seed."""
    return gate(results, [(setting, results.outputs(setting), [step])])


def apart(results: Results, setting: str, first: str, second: str, **more: Any) -> pd.Series:
    """Returns r2 of one feature minus r2 of another, by seed. Args: more, as in `Results.values`."""
    one, other = contrasts.pair(results, setting, "r2", first, second, **more)
    return one - other


def difference(
    results: Results, setting: str, label: str, name: str, features: tuple[str, str], at_end: bool = False,
    kind: str = "deciding", hard: str = SHAPE,
) -> Part:  # fmt: skip
    """Returns a part: r2 of one feature minus r2 of another after mastery, or at the end; second: the log ratio.

    Args:
      results: of the experiment.
      setting: full name.
      label: of the part.
      name: what the setting is.
      features: the one that should lead, and the other.
      at_end: whether all networks are read after equally many updates.
      kind: as in `Part`.
      hard: the feature after whose mastery networks are read.
    """
    steps = results.last_step(setting) if at_end else read_at(results, setting, hard)
    ratio, floored = contrasts.log_ratio(results, setting, *features, step=steps)
    when = "at the end" if at_end else f"{AFTER:,} updates after {hard}'s mastery"
    return Part(
        label, f"r2({features[0]}) - r2({features[1]}), {name}, {when}",
        apart(results, setting, *features, step=steps), learned(results, setting, steps), +1, MARGIN, secondary=ratio,
        secondary_statistic=contrasts.LOG_RATIO, floored=floored,
        accuracy=contrasts.accuracy_gap(results, setting, *features, step=steps),
        absent=contrasts.absent(results, setting, features, step=steps), kind=kind,
    )  # fmt: skip


def change(
    results: Results, setting: str, label: str, name: str, features: tuple[str, str], kind: str = "deciding",
    hard: str = SHAPE,
) -> Part:  # fmt: skip
    """Returns a part: how much training adds to r2 of one feature minus r2 of another; second: to their log ratio.

    Args: as for `difference`.
    """
    steps = read_at(results, setting, hard)
    (after, low), (before, also) = (contrasts.log_ratio(results, setting, *features, step=s) for s in (steps, 0))
    gained = apart(results, setting, *features, step=steps) - apart(results, setting, *features, step=0)
    return Part(
        label, f"r2({features[0]}) - r2({features[1]}), {name}, trained minus untrained", gained,
        learned(results, setting, steps), +1, MARGIN, secondary=after - before,
        secondary_statistic=f"the same of {contrasts.LOG_RATIO}", floored=low + also,
        accuracy=contrasts.accuracy_gap(results, setting, *features, step=steps),
        absent=contrasts.absent(results, setting, features, step=steps), kind=kind,
    )  # fmt: skip


def draw_levels(
    axes: Axes, results: Results, settings: Mapping[str, str], title: str, hard: str = SHAPE, at_end: Sequence[str] = ()
) -> None:  # fmt: skip
    """Draws r2 of color and a harder feature, each network read AFTER updates after that one's mastery, with all floors.

    Args:
      axes: to draw on.
      results: of the experiment.
      settings: full names, by level.
      title: of the panel.
      hard: the harder feature.
      at_end: full names of settings whose networks are read at the end instead.
    """
    steps = {s: results.last_step(s) if s in at_end else read_at(results, s, hard) for s in settings.values()}
    contrasts.levels(axes, results, settings, COLOR, hard, steps=steps)
    passed = [learned(results, setting, own).all(axis=1) for setting, own in steps.items()]
    counts = f"{sum(own.sum() for own in passed)} of {sum(map(len, passed))} networks learned all"
    draw.label(axes, f"{title}\n({counts})", "", draw.VARIANCE)


def sheet() -> Figure:
    """Returns a figure of all shapes, textures and colors at two sizes; whatever else an image has is drawn at random."""
    known = (images.SHAPES, images.TEXTURES, images.COLORS)
    figure, panels = draw.grid(3, 2, 6.0, 3.0)
    for j, size in enumerate((32, 64)):
        task = images.ImageOptions(
            size=size, shapes=tuple(images.SHAPES), textures=images.TEXTURES, colors=tuple(images.COLORS),
            tints=tuple(images.COLORS),
        )  # fmt: skip
        for i, (name, values) in enumerate(zip((SHAPE, TEXTURE, COLOR), known, strict=True)):
            axes = panels[i][j]
            axes.imshow(_of_values(task, name), interpolation="nearest")
            axes.set_xticks([(k + 0.5) * (size + 1) for k in range(len(values))], list(values), rotation=60, ha="right")
            axes.set_yticks([])
            draw.label(axes, f"{name}, {size} x {size} pixels", "", "")
    return draw.finish(figure)


def _of_values(task: images.ImageOptions, name: str, rows: int = 3) -> np.ndarray:
    """Returns images of every value of a factor side by side, in several rows. Textures are those of squares."""
    known, count = images.values_of(task), len(images.values_of(task)[name])
    key_values, key_pose = jax.random.split(jax.random.key(0))
    keys = jax.random.split(key_values, len(known))
    values = {f: jax.random.randint(k, (rows * count,), 0, len(v)) for k, (f, v) in zip(keys, known.items(), strict=True)}
    other = TEXTURE if name != TEXTURE else SHAPE
    values[other] = jnp.full_like(values[other], known[other].index("solid" if other == TEXTURE else "square"))
    values[name] = jnp.tile(jnp.arange(count), rows)
    one = jax.jit(jax.vmap(lambda own, key: images.render(task, own, images.draw_pose(key), 1.0)))
    return tiled(np.asarray(one(values, jax.random.split(key_pose, rows * count))), rows)


def tiled(made: np.ndarray, rows: int) -> np.ndarray:
    """Returns images `[rows * columns, H, W, 3]` side by side in rows, with a white line after each."""
    made = np.pad(made, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
    count, (high, wide) = len(made) // rows, made.shape[1:3]
    return made.reshape(rows, count, high, wide, 3).transpose(0, 2, 1, 3, 4).reshape(rows * high, count * wide, 3)
