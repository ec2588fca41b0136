"""Steering the network along a feature's difference vector (claims C22, C23, C24).

Claim: pushing a representation along the present-minus-absent vector of a feature flips the output for this feature and
  leaves the other output unchanged; the hard feature needs a smaller push.
Paper: Lampinen, Chan and Hermann 2024 (causal interventions); doses, controls and all sizes are ours.

  python -m experiments.run --experiment=steering --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=steering --workdir=DIR --preset=quick    SGD only, shorter

One setting, joint: identity (easy) and parity-4 (hard) in the base network, at the end of training. Every example is pushed
towards the value that the network does not report, and the network's own later layers finish the computation. The dose is
the L2 norm of the push divided by the rms of the representation. (In units of the feature's own vector, half of the
examples would flip at 0.5 for every feature by construction.) Controls are random directions of equal norm with the same
signs.

The primary site is the layer BEFORE the penultimate one. After the penultimate layer the network is linear, so C22 would
hold there by algebra alone.
  C22   a easy, b hard: share of the feature's own output that its own vector flips, minus the share that random directions
        of the same length flip
  C23   a easy, b hard: at the dose that flips 95 % of the feature's own output, the share of the other output that flips,
        minus the share that random directions flip; an equivalence within 0.05. A run that does not reach 95 % has no
        value.
  C24   log dose that flips half of hard minus log dose that flips half of easy. A run that does not reach half at any dose
        counts with the largest dose; a run that diverged has no value.

C24 follows nearly mechanically from the gap (C01) at one site.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/steering/`.
Expected from the paper: both features flip, the other output stays, and hard flips at a smaller dose.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import numpy as np
import pandas as pd

from experiments.claims.base import CONDITIONS, PRESETS
from repbias_jax.config import Config, Experiment
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.probes.steering import DOSES
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

EASY, HARD = "parity1", "parity4"
PAIRS = (("a", EASY, HARD), ("b", HARD, EASY))  # part, the feature pushed along, the other output
SITE = "before_last"
SITES = {"before_last": "before the penultimate layer", "last_hidden": "penultimate layer"}

EXPERIMENT = Experiment(
    name="steering",
    title="Steering: what a push along a feature's vector does to each output",
    config=Config(BinaryOptions(), MLPOptions()),
    settings=(("joint", ()),),
    conditions=CONDITIONS,
    probes=("variance", "steering"),
    presets=PRESETS,
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C22 to C24."""
    return contrasts.claims_of(CLAIMS, results, condition)


def flips(results: Results, setting: str, metric: str, feature: str, output: str, site: str = SITE) -> pd.DataFrame:
    """Returns the share of examples whose output flips, `[dose, seed]`, with rising doses."""
    table = results.table(setting, metric, feature, site, other=output)
    table = table[table["at"] != "own"]
    return table.assign(dose=table["at"].astype(float)).pivot(index="dose", columns="seed", values="value")


def dose_reaching(curve: pd.DataFrame, level: float) -> pd.Series:
    """Returns for each seed the dose at which a curve first reaches a level, linear in log dose.

    If the level is reached at the smallest dose, that dose is returned; NaN if it is never reached.
    """
    found = {}
    for seed, values in curve.items():
        reached = np.flatnonzero(values.to_numpy() >= level)
        first = reached[0] if len(reached) else None
        if first is None or first == 0:
            found[seed] = np.nan if first is None else float(curve.index[0])
            continue
        (x0, x1), (y0, y1) = np.log(curve.index[first - 1 : first + 1]), values.iloc[first - 1 : first + 1]
        found[seed] = float(np.exp(x0 + (level - y0) / (y1 - y0) * (x1 - x0)))
    return pd.Series(found, dtype=float)


def half_dose(curve: pd.DataFrame) -> pd.Series:
    """Returns for each seed the dose that flips half; the largest one if none does, and NaN if nothing was measured."""
    return dose_reaching(curve, 0.5).fillna(max(DOSES)).where(curve.notna().any())


def at_dose(curve: pd.DataFrame, doses: pd.Series) -> pd.Series:
    """Returns each seed's curve at a dose given for this seed, linear in log dose; NaN where the dose is missing."""
    return pd.Series({k: np.interp(np.log(d), np.log(curve.index), curve[k]) for k, d in doses.items()}, dtype=float)


def _flips_its_own(results: Results, joint: str) -> tuple[Part, ...]:
    parts = []
    for label, feature, _ in PAIRS:
        own, random = (
            results.values(joint, metric, feature, SITE, other=feature, at="own") for metric in ("flips", "random_flips")
        )
        text = (
            f"flips of {feature} by its own vector, layer before the penultimate, minus random directions' of that length"
        )
        parts.append(Part(label, text, own - random, contrasts.at_end(results, joint, (EASY, HARD)), +1, 0.05))
    return tuple(parts)


def _leaves_the_other(results: Results, joint: str) -> tuple[Part, ...]:
    parts = []
    for label, feature, other in PAIRS:
        doses = dose_reaching(flips(results, joint, "flips", feature, feature), 0.95)
        off, random = (at_dose(flips(results, joint, m, feature, other), doses) for m in ("flips", "random_flips"))
        text = (
            f"flips of {other} along {feature}'s vector at the dose that flips 95 % of {feature}, minus random directions'"
        )
        parts.append(Part(label, text, off - random, contrasts.at_end(results, joint, (EASY, HARD)), 0, 0.05))
    return tuple(parts)


def _smaller_push(results: Results, joint: str) -> tuple[Part, ...]:
    curves = {f: flips(results, joint, "flips", f, f) for f in (EASY, HARD)}
    censored = sum(int((dose_reaching(c, 0.5).isna() & c.notna().any()).sum()) for c in curves.values())
    hard, easy = (np.log(half_dose(curves[f])) for f in (HARD, EASY))
    text = f"log dose that flips half of {HARD} minus that of {EASY} ({censored} curves do not reach half)"
    accuracy = contrasts.accuracy_gap(results, joint, EASY, HARD)
    passed = contrasts.at_end(results, joint, (EASY, HARD))
    return (Part("", text, hard - easy, passed, -1, float(np.log(1.1)), accuracy=accuracy),)


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source.
CLAIMS = {
    "C22": ("The present-minus-absent vector of a feature flips its output", "flips it", ("joint",), _flips_its_own, "P"),
    "C23": ("... and leaves the other output alone", "leaves it alone", ("joint",), _leaves_the_other, "P"),
    "C24": ("A smaller push flips hard", "a smaller push", ("joint",), _smaller_push, "P"),
}


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions that were run."""
    settings = [s for s in contrasts.run_in(results, "joint") if _has_values(results, s)]
    drawn = (
        ("doses", _draw_doses(results, settings)),
        ("matrix", _draw_matrix(results, settings)),
        ("half", contrasts.by_condition(results, settings, _draw_half)),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


NOTES = {"C24": "follows nearly mechanically from C01"}  # on the score card
FIGURES = {"C22": "matrix", "C23": "doses", "C24": "half"}  # the figure that shows a claim
CAPTIONS = {
    "doses": "Share of examples whose output flips, by the size of the push. Solid: the output of the feature along "
    "whose vector the representation is pushed. Thin: the other output. Grey: an output when pushed along random "
    "directions of equal norm, the mean over the signs of both features' pushes. Bands are 95 % intervals over "
    "seeds.",
    "matrix": "Share of outputs that each feature's vector flips, at the vector's own length. Rows are directions, "
    "columns are outputs; means over seeds. The lower rows are random directions of the same length, with the signs "
    "of that feature's pushes.",
    "half": "The size of the push that flips half of the examples, by feature and layer. Dots are all seeds; dots at "
    "the dotted line do not reach half even with the largest dose. Grey marks: the push at which random directions "
    "flip half on average.",
}


def _has_values(results: Results, setting: str) -> bool:
    """Returns whether any run was measured; if all have diverged, there is nothing to draw."""
    return any(results.table(setting, "flips", EASY, site, other=EASY)["value"].notna().any() for site in SITES)


def _draw_doses(results: Results, settings: list[str]) -> Figure | None:
    if not settings:
        return None
    figure, panels = draw.grid(len(settings), len(SITES), 4.4, 3.0)
    for row, setting in zip(panels, settings, strict=True):
        for axes, (site, name) in zip(row, SITES.items(), strict=True):
            axes.set_xscale("log")  # before drawing, since a panel without values has no scale to change
            for (_, feature, other), own, off in zip(PAIRS, STYLES[:2], STYLES[2:4], strict=True):
                draw.band(
                    axes,
                    flips(results, setting, "flips", feature, feature, site),
                    f"{feature}'s vector, its output",
                    own,
                    within=draw.SHARE,
                )
                thin = off | {"marker": ""}
                draw.band(
                    axes,
                    flips(results, setting, "flips", feature, other, site),
                    f"{feature}'s vector, {other}",
                    thin,
                    within=draw.SHARE,
                )
                pushed = [flips(results, setting, "random_flips", f, feature, site).mean(axis=1) for f in (EASY, HARD)]
                dash = (0, (1, 2)) if feature == EASY else (0, (4, 2))
                axes.plot(sum(pushed) / 2, linestyle=dash, label=f"random directions, {feature}", **draw.FLOOR)
            axes.set_ylim(-0.03, 1.03)
            passed = contrasts.passing(results, [setting])
            draw.label(axes, f"{setting}, {name}\n({passed})", "push (L2 norm over rms)", "outputs flipped (share)")
    return draw.finish(figure)


def _draw_matrix(results: Results, settings: list[str]) -> Figure | None:
    if not settings:
        return None
    figure, panels = draw.grid(len(settings), len(SITES), 4.0, 2.7)
    rows = [(m, f) for m in ("flips", "random_flips") for f in (EASY, HARD)]
    for line, setting in zip(panels, settings, strict=True):
        for axes, (site, name) in zip(line, SITES.items(), strict=True):
            shares = np.array(
                [[results.values(setting, m, f, site, other=o, at="own").mean() for o in (EASY, HARD)] for m, f in rows]
            )
            axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
            for (i, j), share in np.ndenumerate(shares):
                axes.text(j, i, f"{share:.2f}", ha="center", va="center", color="white" if share < 0.6 else "black")
            axes.set_xticks([0, 1], [EASY, HARD])
            axes.set_yticks(range(4), [f if m == "flips" else f"random,\nas {f}" for m, f in rows])
            draw.label(axes, f"{setting}, {name}", "output whose flips are counted (share)", "direction")
    return figure


def _draw_half(axes: Axes, results: Results, setting: str) -> None:
    x = np.arange(len(SITES))
    for feature, style, shift in ((EASY, STYLES[0], -0.1), (HARD, STYLES[1], 0.1)):
        doses = {s: half_dose(flips(results, setting, "flips", feature, feature, s)) for s in SITES}
        draw.dots(axes, x, pd.DataFrame(doses).T, feature, style | {"linestyle": "none"}, shift=shift)
        random = [flips(results, setting, "random_flips", feature, feature, s).mean(axis=1).to_frame() for s in SITES]
        reached = [half_dose(curve).item() for curve in random]
        draw.floor(axes, x + 2.5 * shift, reached, f"random directions, {feature}", "x" if shift < 0 else "+")
    axes.axhline(max(DOSES), linestyle=(0, (1, 2)), label="largest dose", **draw.FLOOR)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(SITES) - 0.5)
    axes.set_xticks(x, [name.replace(" penultimate", "\npenultimate") for name in SITES.values()])
    title = f"{setting} ({contrasts.passing(results, [setting])})"
    draw.label(axes, title, "layer", "push that flips half\n(L2 norm over rms)")
