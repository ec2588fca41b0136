"""Variance explained by a feature's position in the output sequence (claim C13).

Claim: of equally complex features, those that are reported earlier are represented more strongly.
Paper: Lampinen, Chan and Hermann 2024 (output position in Transformers); tasks, statistics, sizes and controls are ours.

  python -m experiments.run --experiment=output_position --workdir=DIR                 full: 128 squares
  python -m experiments.run --experiment=output_position --workdir=DIR --preset=quick  12 squares

A Transformer reads 16 binary tokens and writes the values of four xor features, each of two tokens. Where the tokens of
each feature stand is drawn once per seed; the other eight tokens hold four unused twins. Each seed trains a square of four
networks, in the orders of a Williams square that is relabelled at random: every feature stands at every position once.
The representation is the output of the encoder, averaged over the tokens of the string; it contains no answer.

  C13   mean over the four runs of a square of the contrast (-9, -3, 3, 9)/10 over position, first to last, of the share
        r2_p / sum of r2; negative if earlier features are stronger. Second measure: the same at the whole encoder output.
    a   encoder-decoder: decides
    b   decoder only, at the tokens of the string, in the residual stream that enters the last block: shown
    c   control `query`: the order is drawn for every EXAMPLE and announced by query tokens that the decoder reads. No
        feature has a position; the change over its nominal one should be 0: shown
    d   control `parallel`: four heads report all features at once. The change over the heads should be 0: shown

Further controls, each with its figure:
  relabelled  the null distribution of C13 when the positions of each square are relabelled, drawn from all 24 ways.
  `along`     curves and snapshots in short distances: is the feature that is learned first the one that stands first?

Settings: joint_0 to joint_3, decoder_0 to decoder_3, query_0 to query_3, parallel_0 to parallel_3, along_0 to along_3: the
four orders of each kind; steered: one more network a seed, whose encoder output is pushed along the vector of each feature.

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/output_position/`.
Expected from the paper: the share falls from the first position to the last.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.claims import orders, steering
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Preset, Training
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.models.transformer import TransformerOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

KINDS = {
    "joint": "encoder-decoder",
    "decoder": "decoder only",
    "query": "order of each example",
    "parallel": "parallel heads",
    "along": "encoder-decoder",
}
STACKED = TransformerOptions(form="decoder", width=48, layers=3)
SQUARES, STACKED_SQUARES, CONTROLS, STEERED = 128, 32, 8, 4  # seeds of the kinds of settings
MARGIN = 0.06
SMOKE_SETTINGS = (*(name for kind in ("joint", "along") for name in orders.names(kind)), "steered")

EXPERIMENT = Experiment(
    name="output_position",
    title="First against last: does the position of an output decide what fills the representation?",
    config=Config(
        SequenceOptions(num_train=8000, num_test=512, num_probe=1024),
        TransformerOptions(),
        Optimizer("adam", 1e-3),
        Training(batch_size=64, epochs=8, observe_every=250),
        Keep(views=("layers", "flat")),
    ),
    settings=(
        *orders.settings("joint", ()),
        *orders.settings("decoder", (("model", STACKED),)),
        *orders.settings("query", (("task.order", "example"),)),
        *orders.settings("parallel", (("model.form", "encoder"),)),
        *orders.settings(
            "along",
            (
                ("training.observe_every", 25),
                ("keep.every", 50),
                ("keep.views", ("layers", "flat", "answers")),
                ("keep.probes", ("decode_answers",)),
            ),
        ),
        ("steered", (("keep.probes", ("steering",)), ("task.num_probe", 512))),
    ),
    seed_caps=(
        *((name, STACKED_SQUARES) for name in orders.names("decoder")),
        *((name, CONTROLS) for kind in ("query", "parallel", "along") for name in orders.names(kind)),
        ("steered", STEERED),
    ),
    probes=("variance",),
    num_seeds=SQUARES,
    verdict_seed=orders.FIRST_SEED,
    presets=(
        ("full", Preset(SQUARES)),
        ("quick", Preset(12, settings=orders.names("joint"), overrides=(("training.epochs", 4),))),
        ("smoke", Preset(2, settings=SMOKE_SETTINGS, overrides=(*orders.SMOKE, ("keep.every", 4)))),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C13."""
    text, paper, _, source = CLAIMS["C13"]
    parts = [
        _part(results, label, rows, name, decides)
        for label, kind, name, decides in (
            ("a", "joint", "mean over tokens of the encoder output", "deciding"),
            ("b", "decoder", "decoder only, residual stream that enters the last block, mean over tokens", "shown"),
            ("c", "query", "order of each example, mean over tokens of the encoder output", "shown"),
            ("d", "parallel", "parallel heads, mean over tokens of the encoder output", "shown"),
        )
        if (rows := orders.run(results, condition, kind))
    ]
    return [Claim("C13", text, paper, tuple(parts), source)]


def _part(results: Results, label: str, rows: Sequence[str], site: str, kind: str) -> Part:
    """Returns the slope of the shares over position, by square; second: the same of the whole site."""
    statistic = f"contrast of r2 / (sum of r2) over output position, first to last, {site}"
    values, whole = (orders.slope_of_shares(results, rows, site=view) for view in ("last_hidden", "flat"))
    return Part(
        label, statistic, values, contrasts.all_at_end(results, rows), -1, MARGIN, secondary=whole,
        secondary_statistic="the same of all tokens side by side", absent=orders.absent(results, rows), kind=kind,
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {
    "C13": (
        "Earlier outputs are represented more strongly", "earlier outputs",
        tuple(name for kind in ("joint", "decoder", "query", "parallel") for name in orders.names(kind)), "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    kinds = {kind: rows for kind in KINDS if (rows := orders.run(results, condition, kind))}
    drawn = (
        ("positions", _draw_positions(results, kinds)),
        ("layers", _draw_layers(results, kinds)),
        ("relabelled", _draw_relabelled(results, kinds)),
        ("along", _draw_along(results, kinds.get("along", []))),
        ("answers", _draw_answers(results, kinds.get("along", []))),
        ("steering", _draw_steering(results, f"{condition}.steered")),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C13": "positions"}  # the figure that shows a claim
CAPTIONS = {
    "positions": "Share of the variance of the representation that the feature at each output position explains. "
    "Each dot is a square: the mean over four networks in which every feature stands at every position once. Marks "
    "are means over squares with 95 % intervals. Grey marks are floors. The representation is the encoder output, or "
    "for decoders the residual stream that enters the last block, averaged over the tokens of the string. In the "
    "control with an order for each example and in the one with parallel heads a position is only nominal.",
    "layers": "The same at every layer of the encoder, averaged over tokens, and for all tokens of its output side "
    "by side.",
    "relabelled": "The statistic of C13 (line) and draws from its null distribution: in each of 20,000 draws the labels "
    "of the four positions of each square are exchanged by one of their 24 permutations. p is the share of draws that "
    "are as low as the line. Squares count whose four networks learned all features.",
    "along": "Training: variance explained by position, accuracy of the worst class by position, and the step at "
    "which each position is mastered, by square. Bands are 95 % intervals over squares. If features that stand first "
    "are also learned first, order of learning is a possible mediator.",
    "answers": "Balanced accuracy of a linear readout of the feature at each position, from the last block of the "
    "decoder at each output position; means over networks. Right of the diagonal are features that are still to be "
    "reported; left of it those that have been reported, whose answers are inputs of the state. Chance is 0.5.",
    "steering": "Share of outputs that change when the encoder output is pushed along the vector of the feature at one "
    "position, by the size of the push; means over networks with 95 % intervals. A changed answer is fed to the later "
    "outputs. Grey: random directions of the same length.",
}


def _draw_positions(results: Results, kinds: dict[str, list[str]]) -> Figure | None:
    shown = {kind: rows for kind, rows in kinds.items() if kind != "along"}
    if not shown:
        return None
    figure, panels = draw.grid(1, len(shown), 3.9, 3.6)
    for axes, (kind, rows) in zip(panels[0], shown.items(), strict=True):
        orders.draw_positions(axes, results, rows, KINDS[kind])
    return draw.finish(figure)


def _draw_layers(results: Results, kinds: dict[str, list[str]]) -> Figure | None:
    shown = {kind: kinds[kind] for kind in ("joint", "decoder") if kind in kinds}
    if not shown:
        return None
    sites = {kind: results.sites(rows[0]) for kind, rows in shown.items()}
    figure, panels = draw.grid(len(shown), max(map(len, sites.values())), 3.3, 3.2)
    for line, (kind, rows) in zip(panels, shown.items(), strict=True):
        for axes in line[len(sites[kind]) :]:
            axes.set_axis_off()
        for axes, site in zip(line, sites[kind], strict=False):
            orders.draw_positions(axes, results, rows, f"{KINDS[kind]}, {site}", site=site)
    return draw.finish(figure)


def relabelled(results: Results, rows: Sequence[str], draws: int = 20_000) -> np.ndarray:
    """Returns the mean statistic of C13 under random relabelings of each square's positions, `[draws]`.

    Squares count that pass the gate of C13; NaN without any.
    """
    tables = [orders.shares(orders.by_position(results, setting)) for setting in rows]
    ways = [list(way) for way in itertools.permutations(range(len(orders.LINEAR)))]
    every = pd.DataFrame({i: orders.over([orders.slope(table[way]) for table in tables]) for i, way in enumerate(ways)})
    values = every.loc[_passed(results, rows)].dropna().to_numpy()
    if not len(values):
        return np.full(draws, np.nan)
    chosen = np.random.default_rng(0).integers(0, len(ways), (draws, len(values)))
    return values[np.arange(len(values)), chosen].mean(axis=1)


def _passed(results: Results, rows: Sequence[str]) -> pd.Index:
    """Returns the seeds of the squares whose networks learned all features."""
    passed = contrasts.all_at_end(results, rows).all(axis=1)
    return passed.index[passed]


def _draw_relabelled(results: Results, kinds: dict[str, list[str]]) -> Figure | None:
    shown = {kind: kinds[kind] for kind in ("joint", "decoder") if kind in kinds}
    if not shown:
        return None
    figure, panels = draw.grid(1, len(shown), 4.0, 3.0)
    for axes, (kind, rows) in zip(panels[0], shown.items(), strict=True):
        null, effect = relabelled(results, rows), orders.slope_of_shares(results, rows).loc[_passed(results, rows)].mean()
        p = (1 + np.sum(null <= effect)) / (1 + len(null)) if np.isfinite(effect) else np.nan
        axes.hist(null[np.isfinite(null)], bins=60, color="0.75", label="relabelled")
        axes.axvline(effect, color=STYLES[0]["color"], label="as trained")
        draw.label(axes, f"{KINDS[kind]}, p = {p:.2g}", "change of the share, first to last", "draws")
    return draw.finish(figure)


def _draw_along(results: Results, rows: list[str]) -> Figure | None:
    if not rows:
        return None
    figure, panels = draw.grid(1, 3, 4.0, 3.4)
    tables = [_along(results, setting) for setting in rows]
    outputs = range(len(results.outputs(rows[0])))
    for p, style in zip(outputs, STYLES, strict=False):
        for axes, which, within in zip(panels[0], ("r2", "accuracy"), ((-np.inf, 1), draw.SHARE), strict=False):
            each = [table[which][p] for table in tables]
            draw.band(axes, sum(each) / len(each), f"position {p + 1}", style, within=within)
    steps = orders.over_frames([_mastery(results, setting) for setting in rows])
    draw.dots(panels[0][2], list(outputs), steps.T, "square", STYLES[0])
    twins = orders.over_frames([orders.by_position(results, setting, twins=True) for setting in rows]).mean().mean()
    draw.floor(panels[0][0], [results.last_step(rows[0])], [twins], "unused twins, at the end", "d")
    draw.null(panels[0][0], {metric: orders.by_position(results, rows[0], metric).mean().mean() for metric in draw.NULL})
    contrasts.at_levels(panels[0][2], [str(p + 1) for p in outputs])
    draw.label(panels[0][0], "representation", "step", draw.VARIANCE)
    draw.label(panels[0][1], "accuracy", "step", "accuracy of the worst class")
    draw.label(panels[0][2], f"mastery\n({contrasts.passing(results, rows)})", "output position", "step of mastery")
    return draw.finish(figure)


def _along(results: Results, setting: str) -> dict[str, dict[int, pd.DataFrame]]:
    """Returns r2 and accuracy along training of the feature at each position, `[step, seed]` each."""
    order, names = orders.order_of(results, setting), results.outputs(setting)
    found = {
        "r2": {f: contrasts.curve(results, setting, "r2", f) for f in names},
        "accuracy": {f: results.accuracy(setting, f) for f in names},
    }
    return {
        which: {p: pd.DataFrame({seed: by_feature[f][seed] for seed, f in order[p].items()}) for p in order}
        for which, by_feature in found.items()
    }


def _mastery(results: Results, setting: str) -> pd.DataFrame:
    """Returns the step of mastery by position, `[seed, position]`; NaN where a feature is not mastered."""
    steps = pd.DataFrame({f: results.mastery(setting, f) for f in results.outputs(setting)})
    return orders.placed(steps, orders.order_of(results, setting))


def _matrix(axes: Axes, values: np.ndarray, low: float, x: str, y: str, title: str) -> None:
    """Draws a matrix by position with its numbers."""
    axes.imshow(values, cmap="cividis", vmin=low, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        dark = value < low + 0.6 * (1 - low)
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
    for ticks, count in ((axes.set_xticks, values.shape[1]), (axes.set_yticks, values.shape[0])):
        ticks(range(count), [str(i + 1) for i in range(count)])
    draw.label(axes, title, x, y)


def _draw_answers(results: Results, rows: list[str]) -> Figure | None:
    if not rows:
        return None
    views = results.places(rows[0])["answers"]
    by_view = [
        np.mean([orders.by_position(results, s, "decode", site=view).mean() for s in rows], axis=0) for view in views
    ]
    figure, panels = draw.grid(1, 1, 4.6, 3.4)
    title = f"readout ({contrasts.passing(results, rows)})"
    _matrix(panels[0][0], np.array(by_view), 0.5, "position of the feature", "output position of the state", title)
    return figure


def _draw_steering(results: Results, setting: str) -> Figure | None:
    if not results.has(setting):
        return None
    order = orders.order_of(results, setting)
    figure, panels = draw.grid(1, len(order.columns), 3.6, 3.2, one_scale=True)
    for axes, pushed in zip(panels[0], order, strict=True):
        axes.set_xscale("log")
        for flipped, style in zip(order, STYLES, strict=False):
            curve = _flips(results, setting, "flips", order, pushed, flipped)
            draw.band(axes, curve, f"output at position {flipped + 1}", style, within=draw.SHARE)
        random = [_flips(results, setting, "random_flips", order, pushed, j).mean(axis=1) for j in order]
        axes.plot(sum(random) / len(random), linestyle=(0, (1, 2)), label="random directions, all outputs", **draw.FLOOR)
        axes.set_ylim(-0.03, 1.03)
        title = f"feature at position {pushed + 1}\n({contrasts.passing(results, [setting])})"
        draw.label(axes, title, "push (L2 norm over rms)", "outputs flipped (share)")
    return draw.finish(figure)


def _flips(results: Results, setting: str, metric: str, order: pd.DataFrame, pushed: int, flipped: int) -> pd.DataFrame:
    """Returns the share of outputs at one position that flip when the feature at another is pushed, `[dose, seed]`."""
    each = {
        seed: steering.flips(results, setting, metric, row[pushed], row[flipped], "last_hidden")
        for seed, row in order.iterrows()
    }
    return pd.DataFrame({seed: curve[seed] for seed, curve in each.items()})
