"""Optimizer, learning rate, dropout and init scale: a map of the gap (claim C12).

Claim: dropout with Adam shrinks the gap between an easy and a hard feature, and can reverse it.
Paper: Lampinen, Chan and Hermann 2024 (optimizer and dropout); the grid and all sizes are ours.

  python -m experiments.run --experiment=optimizer --workdir=DIR                   full: 40 settings
  python -m experiments.run --experiment=optimizer --workdir=DIR --preset=quick    C12a's two cells: figures, no verdict

Identity (easy) and parity-4 (hard) in the base network, 10,240 updates, for every combination of
  update rule          sgd, momentum (0.9), adam, adamw (weight decay 0.01)
  dropout              0, 0.1, 0.25, after every hidden layer
  learning rate        three for each rule, a factor of about three apart
and, with SGD at rate 0.1 and no dropout, a series of init scales (factors of 0.25 to 4 on the LeCun-normal weights).
Settings are named <rule>_<rate>_d<dropout in percent> and init_<scale>. The update rule is a factor here, so there is only
one condition.

C12 was fixed before anything ran. gap = r2(easy) - r2(hard), penultimate layer, end of training; smallest effect 0.02:
  a  gap(Adam 3e-4, dropout .25) - gap(Adam 3e-4, no dropout) < 0, over the seeds that pass the gate in both.
  b  some cell of Adam with dropout has gap < 0. The candidates are the six cells that the claim is about: Adam, dropout 0.1
     and 0.25, three rates (ours; AdamW is shown but is not a candidate). The cell is CHOSEN on the even seeds: of the cells
     in which at least 75 % of these seeds pass the gate, the one with the lowest mean gap over the seeds that pass. It is
     TESTED on the odd seeds, which had no part in the choice: one gap per seed that passes the gate in that cell, expected
     below zero. If no cell qualifies, b has no value and is not measured.
Everything else is a map without verdicts. A cell in which more than 25 % of the seeds did not learn both features is
hatched and has no number: easy explains much of the layer there because hard is not learned.

Calibration with four seeds (`results/optimizer/tried.csv`): at this length all four pass in six of the seven cells that C12
reads. With Adam at rate 1e-4 and dropout 0.25, parity-4 stays at chance; that cell was left unchanged. With Adam at rate
3e-4 and dropout 0.25, learning takes up to 7,680 updates, so `quick` has 8,192 updates and 8 seeds; part b needs `full`.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/optimizer/`.
Expected from the paper: part a below zero, and some cell below zero.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.claims.base import SMOKE
from repbias_jax.config import Config, Experiment, Overrides, Preset
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import MIN_PASS_RATE, Claim, Part

EASY, HARD = "parity1", "parity4"
GAP = "gap: easy - hard (share of variance)"
SEEDS, SEEDS_ELSEWHERE = 32, 4  # 16 to choose a cell by, 16 to test it on
RATES = {
    "sgd": ("3e-2", "1e-1", "3e-1"),
    "momentum": ("3e-3", "1e-2", "3e-2"),
    "adam": ("1e-4", "3e-4", "1e-3"),
    "adamw": ("1e-4", "3e-4", "1e-3"),
}
DROPOUTS = {"d0": 0.0, "d10": 0.1, "d25": 0.25}
DECAY = {"adamw": 1e-2}
SCALES = {"init_0.25": 0.25, "init_0.5": 0.5, "sgd_1e-1_d0": 1.0, "init_2": 2.0, "init_4": 4.0}


class Cell(NamedTuple):
    """A cell of the map: an update rule, a learning rate and a dropout rate, by their names."""

    rule: str
    rate: str
    dropout: str

    @property
    def setting(self) -> str:
        """Name of the cell's setting."""
        return f"{self.rule}_{self.rate}_{self.dropout}"


CELLS = [Cell(rule, rate, dropout) for rule, rates in RATES.items() for rate in rates for dropout in DROPOUTS]
SHRINKS = ("adam_3e-4_d25", "adam_3e-4_d0")
REVERSES = tuple(c.setting for c in CELLS if c.rule == "adam" and c.dropout != "d0")


def _overrides(cell: Cell) -> Overrides:
    return (
        ("optimizer.name", cell.rule), ("optimizer.learning_rate", float(cell.rate)),
        ("optimizer.weight_decay", DECAY.get(cell.rule, 0.0)), ("model.dropout", DROPOUTS[cell.dropout]),
    )  # fmt: skip


SETTINGS = (
    *((cell.setting, _overrides(cell)) for cell in CELLS),
    *((name, (("model.init_scale", scale),)) for name, scale in SCALES.items() if scale != 1),
)
EXPERIMENT = Experiment(
    name="optimizer",
    title="Optimizer, learning rate, dropout and init scale: where the gap shrinks and where it turns around",
    config=Config(BinaryOptions(), MLPOptions()),
    settings=SETTINGS,
    seed_caps=tuple((name, SEEDS_ELSEWHERE) for name, _ in SETTINGS if name not in (*SHRINKS, *REVERSES)),
    conditions=(("all", ()),),
    probes=("variance",),
    presets=(
        ("full", Preset(SEEDS)),
        # 8 seeds fill one chunk per cell; twelve, which a verdict needs, would take as long as sixteen.
        ("quick", Preset(8, settings=SHRINKS, overrides=(("training.epochs", 128),))),
        (
            "smoke",
            Preset(
                2,
                settings=(*SHRINKS, *REVERSES, "sgd_1e-1_d0", "init_2"),
                overrides=SMOKE,
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C12; a part whose settings were not run is not measured.

    Without the settings of part a, C12 has no parts at all; without those of part b, part b has no values.
    """
    run = [name for name in (*SHRINKS, *REVERSES) if results.has(f"{condition}.{name}")]
    text, paper, _, parts, source = CLAIMS["C12"]
    return [Claim("C12", text, paper, parts(results, condition, run) if set(SHRINKS) <= set(run) else (), source)]


def _shrinks_and_reverses(results: Results, condition: str, run: Sequence[str]) -> tuple[Part, ...]:
    """Returns both parts, from the settings that were run."""
    shrinks, reverses = ([f"{condition}.{name}" for name in family] for family in (SHRINKS, REVERSES))
    return _shrinks(results, *shrinks), _reverses(results, reverses if set(REVERSES) <= set(run) else [])


def _shrinks(results: Results, with_dropout: str, without: str) -> Part:
    gaps, ratios, floored, accuracy = contrasts.gaps(results, [with_dropout, without], EASY, HARD)
    change, in_logs = (found[with_dropout] - found[without] for found in (gaps, ratios))
    passed = contrasts.all_at_end(results, [with_dropout, without])
    return Part(
        "a", "gap(Adam 3e-4, dropout .25) - gap(Adam 3e-4, no dropout)", change, passed, -1, 0.02, secondary=in_logs,
        secondary_statistic=f"change of {contrasts.LOG_RATIO}", floored=floored.sum(axis=1),
        accuracy=accuracy.mean(axis=1),
    )  # fmt: skip


def _reverses(results: Results, cells: Sequence[str]) -> Part:
    """Returns part b over the given cells; if none is given or none qualifies, the part has no values."""
    gaps, ratios, floored, accuracy = contrasts.gaps(results, cells, EASY, HARD)
    passed = contrasts.all_at_end(results, cells)
    learned = passed.set_axis(cells, axis=1)
    cell = chosen(gaps, learned)
    text = f"gap in the Adam cell with dropout whose gap is lowest on the even seeds ({cell or 'none'}), on the odd seeds"
    odd = passed[_is_odd(passed.index)]
    if cell is None:
        return Part("b", text, pd.Series(np.nan, odd.index), odd, -1, 0.02)
    tested = [found[cell].reindex(odd.index) for found in (gaps, ratios, accuracy)]
    own = learned[[cell]].loc[odd.index]
    return Part(
        "b", text, tested[0], own, -1, 0.02, secondary=tested[1], secondary_statistic=contrasts.LOG_RATIO,
        floored=floored[cell], accuracy=tested[2],
    )  # fmt: skip


def chosen(gaps: pd.DataFrame, learned: pd.DataFrame) -> str | None:
    """Returns the cell that C12b tests, chosen on the even seeds alone.

    Args:
      gaps: `[seed, cell]`.
      learned: `[seed, cell]`, whether a seed passes the gate in a cell.

    Returns:
      The cell with the lowest mean gap over the even seeds that pass, among the cells in which at least 75 % of the even
      seeds pass; the first one if several are equal; None if there is no such cell.
    """
    even = learned[~_is_odd(learned.index)]
    able = even.columns[even.mean() >= MIN_PASS_RATE]
    means = gaps.reindex(even.index)[able].where(even[able]).mean().dropna()
    return str(means.idxmin()) if len(means) else None


def _is_odd(seeds: pd.Index) -> np.ndarray:
    return seeds.to_numpy(int) % 2 == 1


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C12": (
        "Dropout with Adam shrinks the gap, and can reverse it", "shrinks, can reverse",
        tuple(dict.fromkeys((*SHRINKS, *REVERSES))), _shrinks_and_reverses, "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    drawn = [
        ("map", _draw_map(results, condition)),
        ("dropout", _draw_dropout(results, condition)),
        ("init_scale", _draw_init_scale(results, condition)),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


CAPTIONS = {
    "map": "The gap, r2(easy) - r2(hard) at the penultimate layer, for every update rule, learning rate and dropout "
    "rate. A cell shows the mean over the networks that learned both features, and how many did. Below zero, the "
    "hard feature explains more. Hatched cells have no number because more than 25 % of their networks did not learn "
    "both features. Empty places were not run.",
    "dropout": "Share of the penultimate layer's variance explained by the easy and the hard feature under Adam, by "
    "dropout rate; one panel per learning rate. Dots are all seeds, including those that did not learn the hard "
    "feature; marks are means over seeds with 95 % intervals. Grey marks are floors.",
    "init_scale": "Variance explained by easy and hard, and the gap between them, by the scale of the initial "
    "weights (1: LeCun-normal), under SGD at rate 0.1 without dropout. Each dot is a seed; marks are means over "
    "seeds with 95 % intervals. Grey marks are floors. `No value` means that the outputs of all networks at that "
    "scale became infinite or NaN.",
}


def _draw_map(results: Results, condition: str) -> Figure | None:
    """Returns the map, one panel per rule: learning rate x dropout, colored by the gap on a scale centred on zero."""
    run = {c: f"{condition}.{c.setting}" for c in CELLS if results.has(f"{condition}.{c.setting}")}
    if not run:
        return None
    passed = {c: contrasts.all_at_end(results, [s]).all(axis=1) for c, s in run.items()}
    gaps = contrasts.gaps(results, list(run.values()), EASY, HARD)[0]
    means = {c: gaps[s][passed[c].index[passed[c]]].mean() for c, s in run.items() if passed[c].mean() >= MIN_PASS_RATE}
    widest = max((abs(v) for v in means.values()), default=0.1)
    rules = list(dict.fromkeys(c.rule for c in run))
    figure, panels = draw.grid(1, len(rules), 2.9, 2.8)
    for axes, rule in zip(panels[0], rules, strict=True):
        for cell in (c for c in run if c.rule == rule):
            place = (RATES[rule].index(cell.rate), list(DROPOUTS).index(cell.dropout))
            draw.tile(axes, place, means.get(cell), widest, f"{passed[cell].sum()} of {len(passed[cell])}")
        axes.set_yticks(range(len(DROPOUTS)), [f"{rate:g}" for rate in DROPOUTS.values()])
        axes.set_ylim(-0.5, len(DROPOUTS) - 0.5)
        contrasts.at_levels(axes, [f"{float(rate):g}" for rate in RATES[rule]])
        axes.set_aspect("equal")
        draw.label(axes, rule, "learning rate", "dropout (probability)")
    return draw.key_of_tiles(figure, widest, GAP)


def _draw_dropout(results: Results, condition: str) -> Figure | None:
    """Returns a figure of easy and hard by dropout under Adam, with one panel per learning rate."""
    run = [c for c in CELLS if c.rule == "adam" and results.has(f"{condition}.{c.setting}")]
    if not run:
        return None
    rates = list(dict.fromkeys(c.rate for c in run))
    figure, panels = draw.grid(1, len(rates), 3.6, 3.4, one_scale=True)
    for axes, rate in zip(panels[0], rates, strict=True):
        own = {f"{DROPOUTS[c.dropout]:g}": f"{condition}.{c.setting}" for c in run if c.rate == rate}
        contrasts.levels(axes, results, own, EASY, HARD)
        title = f"Adam {rate} ({contrasts.passing(results, list(own.values()))})"
        draw.label(axes, title, "dropout (probability)", draw.VARIANCE)
    return draw.finish(figure)


def _draw_init_scale(results: Results, condition: str) -> Figure | None:
    own = {f"{scale:g}": f"{condition}.{name}" for name, scale in SCALES.items() if results.has(f"{condition}.{name}")}
    if not own:
        return None
    settings = list(own.values())
    figure, (panels,) = draw.grid(1, 2, 4.2, 3.4)
    contrasts.levels(panels[0], results, own, EASY, HARD)
    draw.label(panels[0], f"SGD 0.1 ({contrasts.passing(results, settings)})", "init scale (factor)", draw.VARIANCE)
    draw.dots(panels[1], range(len(own)), contrasts.gaps(results, settings, EASY, HARD)[0].T, "gap", STYLES[2])
    start = [contrasts.pair(results, s, "r2", EASY, HARD, step=0) for s in settings]
    unused = [contrasts.pair(results, s, "r2", f"twin_{EASY}", f"twin_{HARD}") for s in settings]
    for name, pairs, mark in (("gap, untrained", start, "x"), ("gap of the unused twins", unused, "d")):
        draw.floor(panels[1], range(len(own)), [(easy - hard).mean() for easy, hard in pairs], name, mark)
    panels[1].axhline(0, color="0.6", linewidth=0.8, zorder=0)
    contrasts.at_levels(panels[1], contrasts.level_names(results, own, EASY))
    draw.label(panels[1], "Gap", "init scale (factor)", GAP)
    return draw.finish(figure)
