"""The skip connection around a block of an encoder, and features over few or many tokens (claim C16).

Claim: residual connections from the input let an encoder favour features over a larger part of the string.
Paper: Lampinen, Chan and Hermann 2024 (encoder residuals); tasks, statistics, sizes and controls are ours.

  python -m experiments.run --experiment=encoder_residual --workdir=DIR                 full: 96 seeds
  python -m experiments.run --experiment=encoder_residual --workdir=DIR --preset=quick  12 seeds, shorter

An encoder of two blocks reads 16 binary tokens. Its output is averaged over the tokens, and a sigmoid unit for each feature
reads the mean. The skip connection around block 1 is multiplied by a dial s, and the sum is divided by sqrt(1 + s^2). Each
seed trains one network with s = 1 and one with s = 0, from the same data and initial weights. Where the tokens of each
feature stand is drawn once per seed. The representation is the mean of the encoder output.

  C16   [log r2(wide) - log r2(narrow)] at s = 1 minus the same at s = 0
    a   `wide`: narrow is one token (identity), wide is the majority of five; both are linearly separable
    b   `band`: block 1 attends only to tokens at most two away; narrow is the xor of two neighbours, wide the xor of two
        tokens that are eight apart
    c   control: a with the skip around block 2 taken away instead (`second_0`); shown
    d   control `parity`: a with the parity of three tokens as the wide feature; shown
  Second measure of each: the same of r2(wide) - r2(narrow).

The dial takes away the skip around a whole block. Inside the block, attention and dense layers keep theirs, so at s = 0 the
tokens still reach the dense layers without attention. Further control: the untrained networks at both s.

Settings: wide_1, wide_0, band_1, band_0, second_0, parity_1, parity_0: the kind and s.

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/encoder_residual/`.
Expected from the paper: with the skip, the wide feature is represented relatively more strongly.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import numpy as np
import pandas as pd

from experiments.claims import orders
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Preset, Training
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.models.transformer import TransformerOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

PAIRS = {  # of each kind of settings: the narrow feature and the wide one
    "wide": ("parity1", "majority5"),
    "band": ("parity2_1", "parity2_2"),
    "parity": ("parity1", "parity3"),
}
ON, OFF, OFF_SECOND = (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)  # factors on the skips around blocks 1 and 2
SEEDS, CONTROLS = 96, 24
MARGIN = float(np.log(1.1))
SMOKE_SETTINGS = ("wide_1", "wide_0", "band_1", "band_0", "second_0")

EXPERIMENT = Experiment(
    name="encoder_residual",
    title="Skip connections of an encoder: features over few against features over many tokens",
    config=Config(
        SequenceOptions(features=("parity1", "majority5"), order="listed", num_train=8000, num_test=512, num_probe=1024),
        TransformerOptions(form="encoder", width=32, head="unit"),
        Optimizer("adam", 1e-3),
        Training(batch_size=64, epochs=24, observe_every=500),
        Keep(views=("layers", "flat")),
    ),
    settings=(
        *((name, (("model.skips", skips),)) for name, skips in (("wide_1", ON), ("wide_0", OFF), ("second_0", OFF_SECOND))),
        *(
            (
                name,
                (
                    ("model.skips", skips),
                    ("model.band", 2),
                    ("task.features", ("parity2", "parity2")),
                    ("task.distances", (1, 8)),
                ),
            )
            for name, skips in (("band_1", ON), ("band_0", OFF))
        ),
        *(
            (name, (("model.skips", skips), ("task.features", ("parity1", "parity3"))))
            for name, skips in (("parity_1", ON), ("parity_0", OFF))
        ),
    ),
    seed_caps=tuple((name, CONTROLS) for name in ("second_0", "parity_1", "parity_0")),
    probes=("variance",),
    num_seeds=SEEDS,
    verdict_seed=orders.FIRST_SEED + 500,
    presets=(
        ("full", Preset(SEEDS)),
        (
            "quick",
            Preset(12, settings=("wide_1", "wide_0", "band_1", "band_0"), overrides=(("training.epochs", 8),)),
        ),
        ("smoke", Preset(2, settings=SMOKE_SETTINGS, overrides=(*orders.SMOKE, ("model.layers", 2)))),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C16."""
    text, paper, _, source = CLAIMS["C16"]
    parts = [
        _part(results, label, cells, *PAIRS[kind], name, decides)
        for label, kind, off, name, decides in (
            ("a", "wide", "wide_0", "identity and majority-of-5", "deciding"),
            ("b", "band", "band_0", "xor of neighbours and of tokens 8 apart, band", "deciding"),
            ("c", "wide", "second_0", "identity and majority-of-5, skip around block 2", "shown"),
            ("d", "parity", "parity_0", "identity and parity-3", "shown"),
        )
        if results.has(*(cells := [f"{condition}.{kind}_1", f"{condition}.{off}"]))
    ]
    return [Claim("C16", text, paper, tuple(parts), source)]


def _part(results: Results, label: str, cells: list[str], narrow: str, wide: str, name: str, kind: str) -> Part:
    """Returns how much a skip changes the log ratio of wide to narrow, with it minus without; second: their difference."""
    seeds = results.values(cells[1], "r2", narrow).index  # a control has fewer
    found = contrasts.gaps(results, cells, wide, narrow)
    absent = orders.absent(results, cells)
    ratio, gap = (table[cells[0]] - table[cells[1]] for table in (found.ratios, found.apart))
    return Part(
        label, f"log(r2(wide) / r2(narrow)) at s = 1 minus s = 0, {name}", ratio,
        contrasts.all_at_end(results, cells).loc[seeds], +1, MARGIN, secondary=gap,
        secondary_statistic="the same of r2(wide) - r2(narrow)", floored=found.floored.sum(axis=1),
        accuracy=found.accuracy.mean(axis=1), kind=kind,
        absent=absent[absent.index.get_level_values(-1).isin(seeds)],
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {
    "C16": (
        "Skip connections of the encoder favour features over a larger part of the input", "features over a larger part",
        ("wide_1", "wide_0", "band_1", "band_0", "second_0", "parity_1", "parity_0"), "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    cells = {
        kind: {name: [f"{condition}.{s}"] for name, s in own.items() if results.has(f"{condition}.{s}")}
        for kind, own in CELLS.items()
    }
    cells = {kind: own for kind, own in cells.items() if own}
    drawn = (
        ("skips", _draw_skips(results, cells)),
        ("ratios", _draw_ratios(results, cells)),
        ("layers", orders.layers_figure(results, _panels(cells), 2)),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C16": "skips"}  # the figure that shows a claim
CELLS = {  # of each kind: what the level is called, and its setting
    "wide": {"both skips": "wide_1", "no skip 1": "wide_0", "no skip 2": "second_0"},
    "band": {"both skips": "band_1", "no skip 1": "band_0"},
    "parity": {"both skips": "parity_1", "no skip 1": "parity_0"},
}
TITLES = {"wide": "identity, majority of 5", "band": "xor: neighbours, 8 apart", "parity": "identity, parity of 3"}
CAPTIONS = {
    "skips": "Variance of the mean encoder output that is explained by the feature over few tokens (narrow) and by "
    "that over many (wide), with both skip connections, without that around block 1, and without that around block "
    "2; the connections inside a block stay. A dot is a seed; marks are means over seeds with 95 % intervals. Grey "
    "marks are floors.",
    "ratios": "The log ratio of the two, in trained and in untrained networks; an r2 below its null band counts as "
    "the end of the band. Claim C16 compares `both skips` with `no skip 1`, and its part c with `no skip 2`.",
    "layers": "The two features at every layer, averaged over tokens, and for all tokens of the encoder output side "
    "by side, with both skip connections (left) and without that around block 1 (right).",
}


def _draw_skips(results: Results, cells: dict[str, dict[str, list[str]]]) -> Figure | None:
    if not cells:
        return None
    figure, panels = draw.grid(1, len(cells), 4.2, 4.0)
    for axes, (kind, levels) in zip(panels[0], cells.items(), strict=True):
        orders.draw_levels(axes, results, levels, _groups(kind))
        passed = contrasts.passing(results, [setting for own in levels.values() for setting in own])
        draw.label(axes, f"{TITLES[kind]}\n({passed})", "", draw.VARIANCE)
    return draw.finish(figure)


def _groups(kind: str) -> dict[str, tuple[str]]:
    narrow, wide = PAIRS[kind]
    return {"narrow": (narrow,), "wide": (wide,)}


def _draw_ratios(results: Results, cells: dict[str, dict[str, list[str]]]) -> Figure | None:
    if not cells:
        return None
    figure, panels = draw.grid(1, len(cells), 4.2, 3.6)
    for axes, (kind, levels) in zip(panels[0], cells.items(), strict=True):
        narrow, wide = PAIRS[kind]
        for name, style, more in (("trained", STYLES[0], {}), ("untrained", STYLES[1], {"step": 0})):
            own = {level: contrasts.log_ratio(results, s, wide, narrow, **more)[0] for level, (s,) in levels.items()}
            draw.dots(axes, range(len(own)), pd.DataFrame(own).T, name, style, shift=0.06 if more else -0.06)
        axes.axhline(0, linestyle=(0, (1, 2)), label="equal", **draw.FLOOR)
        contrasts.at_levels(axes, list(levels))
        passed = contrasts.passing(results, [setting for own in levels.values() for setting in own])
        draw.label(axes, f"{TITLES[kind]}\n({passed})", "", "log ratio, wide over narrow")
    return draw.finish(figure)


def _panels(cells: dict[str, dict[str, list[str]]]) -> dict[str, tuple[list[str], dict[str, tuple[str]]]]:
    """Returns settings and features by title, with and without the first skip connection."""
    return {
        f"{TITLES[kind]}, {name}": (rows, _groups(kind))
        for kind, levels in cells.items()
        for name, rows in list(levels.items())[:2]
    }
