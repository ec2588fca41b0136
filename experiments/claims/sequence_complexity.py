"""Simple against complex features of a string, at every output position (claim C14).

Claim: of two features of a string the simpler one is represented more strongly, whatever their positions in the output.
Paper: Lampinen, Chan and Hermann 2024 (complexity in Transformers); tasks, statistics, sizes and controls are ours.

  python -m experiments.run --experiment=sequence_complexity --workdir=DIR                 full: 64 and 32 squares
  python -m experiments.run --experiment=sequence_complexity --workdir=DIR --preset=quick  12 squares of each kind, shorter

A Transformer (encoder-decoder) reads a string and writes the values of four features, two simple and two complex ones. Each
seed trains a square of four networks in the orders of a Williams square, relabelled at random: each feature stands at every
position once. The representation is the output of the encoder, averaged over the tokens of the string.

  C14   mean over the four runs of a square of r2(simple) - r2(complex), each the mean of its two features
    a   `pair`: two identities and two xors of 16 binary tokens
    b   `equal`: two majorities and two parities of three tokens each: features of as many tokens. The 4 tokens of the
        string that remain have no room for unused twins.
    c   a, among features that are reported first; shown
    d   `strings`: contains-token against contains-phrase, strings of 24 tokens over a vocabulary of 16; shown. A string
        without the phrase has the same tokens at other places.
    e   control `query`: a, where the order is drawn for every EXAMPLE and announced by query tokens, so that no feature has
        a position; the effect of complexity should remain; shown
    f   a, and g   b: what training adds, the difference of trained and untrained networks; shown
        Second measure of a and b: the coefficient of class (simple 1, complex 0) in a regression of r2 within each
        square, with position and the class of the feature reported before as covariates. Of c, d and e: the log ratio.

Transformers learn functions of low sensitivity more easily (arXiv 2211.12316, 2402.09963). Mean sensitivity (how many of
its tokens change a feature's value when flipped) and Walsh degree: identity 1, 1; xor 2, 2; majority of 3 tokens 1.5, 3;
parity of 3 tokens 3, 3.

Settings: pair_0 to pair_3, equal_0 to equal_3: the four orders; query; strings_0, strings_1: both orders.

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/sequence_complexity/`.
Expected from the paper: simple features explain more at every position.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import functools
from collections.abc import Sequence
from typing import Any

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

CLASSES = {  # of each kind of settings: the simple features and the complex ones
    "pair": (("parity1_1", "parity1_2"), ("parity2_1", "parity2_2")),
    "equal": (("majority3_1", "majority3_2"), ("parity3_1", "parity3_2")),
    "strings": (("contains_token",), ("contains_phrase",)),
}
SQUARES, EQUAL_SQUARES, SHOWN = 64, 32, 16  # seeds of the kinds of settings
EQUAL_SEED = orders.FIRST_SEED + 300
MARGIN = 0.02

EXPERIMENT = Experiment(
    name="sequence_complexity",
    title="Simple against complex features of a string, at every output position",
    config=Config(
        SequenceOptions(
            features=("parity1", "parity1", "parity2", "parity2"), num_train=8000, num_test=512, num_probe=1024
        ),
        TransformerOptions(),
        Optimizer("adam", 1e-3),
        Training(batch_size=64, epochs=8, observe_every=250),
        Keep(views=("layers", "flat")),
    ),
    settings=(
        *orders.settings("pair", (("keep.probes", ("components",)),)),
        *orders.settings(
            "equal",
            (
                ("task.features", ("majority3", "majority3", "parity3", "parity3")),
                ("task.twins", False),
                ("training.epochs", 24),
                ("training.observe_every", 500),
            ),
        ),
        ("query", (("task.order", "example"),)),
        *orders.settings(
            "strings",
            (
                ("task.features", ("contains_token", "contains_phrase")),
                ("task.length", 24),
                ("task.vocabulary", 16),
                ("keep.shared", True),
                ("keep.probes", ("similarity",)),
            ),
            orders.BOTH,
        ),
    ),
    seed_caps=(*((name, SHOWN) for name in (*orders.names("strings", 2), "query")),),
    seed_blocks=tuple((name, EQUAL_SEED, EQUAL_SQUARES) for name in orders.names("equal")),
    probes=("variance",),
    num_seeds=SQUARES,
    verdict_seed=orders.FIRST_SEED + 200,
    presets=(
        ("full", Preset(SQUARES)),
        (
            "quick",
            Preset(12, settings=(*orders.names("pair"), *orders.names("strings", 2)), overrides=(("training.epochs", 4),)),
        ),
        ("smoke", Preset(2, settings=(*orders.names("pair"), *orders.names("strings", 2)), overrides=orders.SMOKE)),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C14."""
    text, paper, _, source = CLAIMS["C14"]
    parts = []
    if pair := orders.run(results, condition, "pair"):
        parts.append(_part(results, pair, "a", "pair", "two identities and two xors"))
    if equal := orders.run(results, condition, "equal"):
        parts.append(_part(results, equal, "b", "equal", "majorities and parities of three tokens"))
    if pair:
        text_c = "r2(identity) - r2(xor) of features that are reported first"
        parts.append(_shown(results, pair, "c", text_c, *first_gap(results, pair, CLASSES["pair"][0])))
    if strings := orders.run(results, condition, "strings", 2):
        simple, complex_ = (names[0] for names in CLASSES["strings"])
        found = contrasts.gaps(results, strings, simple, complex_)
        means = (table.mean(axis=1, skipna=False) for table in (found.apart, found.ratios))
        parts.append(_shown(results, strings, "d", f"r2({simple}) - r2({complex_})", *means, found.floored.sum(axis=1)))
    if results.has(query := f"{condition}.query"):
        text_e, gap = "r2(identity) - r2(xor), order of each example", class_gap(results, query, *CLASSES["pair"])
        parts.append(_shown(results, [query], "e", text_e, gap, *_log_gap(results, query, *CLASSES["pair"])))
    for label, kind, rows in (("f", "pair", pair), ("g", "equal", equal)):
        if rows:
            ends = [[class_gap(results, s, *CLASSES[kind], **at) for s in rows] for at in ({}, {"step": 0})]
            gained = orders.over(ends[0]) - orders.over(ends[1])
            names = " - ".join(f"r2({name})" for name in NAMES[kind])
            parts.append(_shown(results, rows, label, f"{names}, trained minus untrained", gained))
    return [Claim("C14", text, paper, tuple(parts), source)]


def class_gap(
    results: Results, setting: str, simple: Sequence[str], complex_: Sequence[str], **more: Any
) -> pd.Series:  # fmt: skip
    """Returns mean r2 of the simple features minus that of the complex ones, by seed; `more` as in `Results.values`."""
    means = [sum(results.values(setting, "r2", f, **more) for f in names) / len(names) for names in (simple, complex_)]
    return means[0] - means[1]


def _log_gap(
    results: Results, setting: str, simple: Sequence[str], complex_: Sequence[str]
) -> tuple[pd.Series, pd.Series]:  # fmt: skip
    """Returns mean log r2 of the simple features minus that of the complex ones, and how many r2 were raised, by seed."""
    logs, low = _logs(results, setting, (*simple, *complex_))
    return logs[list(simple)].mean(axis=1, skipna=False) - logs[list(complex_)].mean(axis=1, skipna=False), low.sum(axis=1)


def _logs(results: Results, setting: str, features: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns log r2, each r2 as in `contrasts.above_null`, and which of them were raised, `[seed, feature]`."""
    found = {f: contrasts.above_null(results, setting, f) for f in features}
    return np.log(pd.DataFrame({f: r2 for f, (r2, _) in found.items()})), pd.DataFrame(
        {f: low for f, (_, low) in found.items()}
    )


def coefficient(results: Results, rows: Sequence[str], simple: Sequence[str]) -> pd.Series:
    """Returns the coefficient of class in a least-squares regression of r2 within each square.

    The 16 observations are the outputs of its four runs. Regressors: class (simple 1, complex 0), position (0 to 3), and
    the class of the feature that was reported before (simple 1/2, complex -1/2, none 0).
    """
    tables = [(orders.by_position(results, s), results.order(s).isin(list(simple)).astype(float)) for s in rows]
    found = {}
    for seed in functools.reduce(pd.Index.intersection, [table.index for pair in tables for table in pair]):
        r2, is_simple = (np.stack([table[i].loc[seed].to_numpy(float) for table in tables]) for i in range(2))
        before = np.concatenate([np.zeros((len(rows), 1)), is_simple[:, :-1] - 0.5], axis=1)
        position = np.broadcast_to(np.arange(r2.shape[1]), r2.shape)
        design = np.stack([np.ones(r2.size), is_simple.ravel(), position.ravel(), before.ravel()], axis=1)
        found[seed] = np.linalg.lstsq(design, r2.ravel(), rcond=None)[0][1] if np.isfinite(r2).all() else np.nan
    return pd.Series(found, index=list(found), dtype=float)


def _part(results: Results, rows: Sequence[str], label: str, kind: str, text: str) -> Part:
    """Returns r2(simple) - r2(complex) by square; second: the coefficient of class."""
    values = orders.over([class_gap(results, setting, *CLASSES[kind]) for setting in rows])
    return Part(
        label, f"r2(simple) - r2(complex), {text}", values, contrasts.all_at_end(results, rows), +1, MARGIN,
        secondary=coefficient(results, rows, CLASSES[kind][0]),
        secondary_statistic="coefficient of class, with position and the class before", absent=orders.absent(results, rows),
    )  # fmt: skip


def first_gap(results: Results, rows: Sequence[str], simple: Sequence[str]) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Returns mean r2 of simple minus that of complex features that stand first, the same of log r2, and how many r2 were
    raised before the logarithm, by square.

    In a square every feature stands first once.
    """
    gaps, ratios, raised = [], [], []
    for setting in rows:
        features, first = results.outputs(setting), results.order(setting)[0]
        tables = (pd.DataFrame({f: results.values(setting, "r2", f) for f in features}), *_logs(results, setting, features))
        r2, log, low = (pd.Series({seed: table.loc[seed, f] for seed, f in first.items()}) for table in tables)
        sign = np.where(first.isin(list(simple)), 1, -1)
        gaps.append(r2 * sign)
        ratios.append(log * sign)
        raised.append(low.astype(int))
    half = len(rows) / 2
    return sum(gaps) / half, sum(ratios) / half, sum(raised)


def _shown(
    results: Results, rows: Sequence[str], label: str, text: str, gap: pd.Series,
    ratio: pd.Series | None = None, floored: pd.Series | None = None,
) -> Part:  # fmt: skip
    """Returns a part that does not decide: a gap, and if there is one, the log ratio as its second measure."""
    return Part(
        label, text, gap, contrasts.all_at_end(results, rows), +1, MARGIN, secondary=ratio,
        secondary_statistic="" if ratio is None else contrasts.LOG_RATIO, floored=floored,
        absent=orders.absent(results, rows), kind="shown",
    )  # fmt: skip


# For each claim: its text, what the paper says, the settings that it reads, its source.
CLAIMS = {
    "C14": (
        "Simpler features of a string are represented more strongly", "the simpler",
        (*orders.names("pair"), *orders.names("equal"), *orders.names("strings", 2), "query"), "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    kinds = {kind: rows for kind in ("pair", "equal") if (rows := orders.run(results, condition, kind))}
    strings = orders.run(results, condition, "strings", 2)
    panels = _groups({**kinds, "strings": strings} if strings else kinds)
    drawn = (
        ("positions", _draw_positions(results, kinds)),
        ("classes", _draw_classes(results, kinds, strings, f"{condition}.query")),
        ("layers", orders.layers_figure(results, panels)),
        ("along", orders.along_figure(results, panels)),
        ("components", _draw_components(results, kinds.get("pair", []))),
        ("similarity", _draw_similarity(results, strings)),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C14": "classes"}  # the figure that shows a claim
NOTES = {"C14": "untrained networks have as large a lead: f, g"}  # on the score card
NAMES = {
    "pair": ("identity", "xor"),
    "equal": ("majority of 3", "parity of 3"),
    "strings": ("contains token", "contains phrase"),
}
CAPTIONS = {
    "classes": "Variance explained by simple and complex features: identity and xor, features of equally many "
    "tokens, features of strings proper, and identity and xor where the order of outputs is drawn for every example. "
    "A dot is a seed, the mean over its networks and over the features of a class; marks are means over seeds with "
    "95 % intervals. Grey marks are floors.",
    "positions": "The same by output position. A dot is a square: the mean over the networks in which a feature of "
    "this class stands at this position.",
    "layers": "Simple and complex features at every layer of the encoder, averaged over tokens, and for all tokens "
    "of its output side by side.",
    "along": "Test accuracy of the worst class of simple and of complex features along training; means over seeds with "
    "95 % bands. With `--config.keep.every` it shows the variance explained, too.",
    "components": "Variance of each of the first principal components of the encoder output that a class of "
    "features explains, the sum over its two features; means over squares with 95 % bands. Grey: the share of all "
    "variance that a component has.",
    "similarity": "Similarity (RSA, Euclidean distances) of the encoder outputs of networks of different seeds that "
    "read the same strings, up to the tokens that play each part, and report the features in the same order or in "
    "another; and of untrained networks. A dot is a seed: the mean over its networks and over all networks of other seeds.",
}


def _draw_positions(results: Results, kinds: dict[str, list[str]]) -> Figure | None:
    if not kinds:
        return None
    figure, panels = draw.grid(1, len(kinds), 4.6, 3.8)
    for axes, (kind, rows) in zip(panels[0], kinds.items(), strict=True):
        x = np.arange(len(results.outputs(rows[0])))
        for i, (name, style, marks) in enumerate(zip(NAMES[kind], STYLES, (("x", "d"), ("+", "p")), strict=False)):
            own = [
                _of_class(results, rows, CLASSES[kind][i], **which) for which in ({}, {"step": 0}, {"twins": True})
            ]  # fmt: skip
            draw.dots(axes, x, own[0], name, style, shift=0.12 * i - 0.06)
            draw.floor(axes, x, own[1].mean(axis=1), f"{name}, untrained", marks[0])
            draw.floor(axes, x, own[2].mean(axis=1), f"unused twin of {name}", marks[1])
        contrasts.null_band(axes, results, rows[0], CLASSES[kind][1][0])
        contrasts.at_levels(axes, [str(i + 1) for i in x])
        draw.label(axes, f"{kind}\n({contrasts.passing(results, rows)})", "output position", draw.VARIANCE)
    return draw.finish(figure)


def _of_class(results: Results, rows: Sequence[str], names: Sequence[str], **more: Any) -> pd.DataFrame:
    """Returns r2 by position, `[position, seed]`: the mean over networks of a square with a feature of a class there."""
    tables = [orders.by_position(results, s, **more).where(results.order(s).isin(list(names))) for s in rows]
    return pd.concat(tables).groupby(level=0).mean().T


def _draw_classes(results: Results, kinds: dict[str, list[str]], strings: list[str], query: str) -> Figure | None:
    more = {"strings": strings, "query": [query] if results.has(query) else []}
    shown = kinds | {kind: rows for kind, rows in more.items() if rows}
    if not shown:
        return None
    figure, panels = draw.grid(1, len(shown), 3.6, 4.2)
    for axes, (kind, rows) in zip(panels[0], shown.items(), strict=True):
        of = "pair" if kind == "query" else kind
        orders.draw_levels(axes, results, {kind: rows}, dict(zip(("simple", "complex"), CLASSES[of], strict=True)))
        names = " and ".join(NAMES[of])
        draw.label(axes, f"{names}\n({contrasts.passing(results, rows)})", "", draw.VARIANCE)
    return draw.finish(figure)


def _groups(kinds: dict[str, list[str]]) -> dict[str, tuple[list[str], dict[str, Sequence[str]]]]:
    """Returns the settings of each kind and its classes of features."""
    return {kind: (rows, dict(zip(("simple", "complex"), CLASSES[kind], strict=True))) for kind, rows in kinds.items()}


def _draw_components(results: Results, rows: list[str]) -> Figure | None:
    if not rows:
        return None
    figure, panels = draw.grid(1, 1, 4.8, 3.6)
    (axes,) = panels[0]
    for i, (name, style) in enumerate(zip(NAMES["pair"], STYLES, strict=False)):
        each = [_by_component(results, s, f, "component_r2") for s in rows for f in CLASSES["pair"][i]]
        draw.band(axes, sum(each) / len(rows), name, style)
    size = [_by_component(results, s, "", "component_share") for s in rows]
    mean = (sum(size) / len(size)).mean(axis=1)
    axes.plot(mean.index, mean, linestyle=(0, (4, 2)), label="share of all variance", **draw.FLOOR)
    title = f"pair\n({contrasts.passing(results, rows)})"
    draw.label(axes, title, "principal component", "variance of the component\nexplained (share)")
    return draw.finish(figure)


def _by_component(results: Results, setting: str, feature: str, metric: str) -> pd.DataFrame:
    """Returns a measure of principal components, `[component, seed]`."""
    table = results.table(setting, metric, feature)
    return table.assign(k=table["at"].astype(int)).pivot(index="k", columns="seed", values="value")


def by_order(results: Results, rows: Sequence[str]) -> pd.DataFrame:
    """Returns the similarity of networks to those of other seeds, `[seed, kind of pair]`: the mean over a seed's networks.

    Kinds of pairs: trained networks that report the features in the same order, or in another; untrained networks.
    """
    matrix = contrasts.similarities(results, rows[0].split(".")[0], "rsa")
    order = {(s, seed): tuple(row) for s in rows for seed, row in results.order(s).iterrows()}
    trained = [key for key in matrix.index if (key[0], key[2]) in order and key[1] == results.last_step(key[0])]
    untrained = [key for key in matrix.index if key[1] == 0]
    between, first = matrix.loc[trained, trained], [order[setting, seed] for setting, _, seed in trained]
    same = np.array([[one == other for other in first] for one in first], bool).reshape(between.shape)
    pairs = {
        "same order": between.where(same),
        "other order": between.where(~same),
        "untrained": matrix.loc[untrained, untrained],
    }
    return pd.DataFrame({name: table.mean(axis=1).groupby(level="seed").mean() for name, table in pairs.items()})


def _draw_similarity(results: Results, rows: list[str]) -> Figure | None:
    if not rows or results.settings.loc[rows[0], "task.order"] == "example":  # then networks have no order
        return None
    found = by_order(results, rows)
    if found.empty:  # a single seed has no other to be compared with
        return None
    figure, panels = draw.grid(1, 1, 4.4, 3.4)
    (axes,) = panels[0]
    draw.dots(axes, range(len(found.columns)), found.T, "seed", STYLES[0] | {"linestyle": "none"})
    contrasts.at_levels(axes, list(found.columns))
    draw.label(axes, f"strings\n({contrasts.passing(results, rows)})", "pairs of networks", "similarity (1: alike)")
    return draw.finish(figure)
