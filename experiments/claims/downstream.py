"""Which feature a classifier trained on a frozen representation relies on (claim C25).

Claim: a classifier for a label that both features predict relies on the easy one.
Paper: Lampinen, Chan and Hermann 2024 (downstream classification, Fig. 16); all sizes are ours.

  python -m experiments.run --experiment=downstream --workdir=DIR                   full: 16 seeds, two optimizers
  python -m experiments.run --experiment=downstream --workdir=DIR --preset=quick    SGD only, shorter

One network is trained on an easy and a hard feature (identity and parity-4), and its representation is frozen. A logistic
readout then learns a new label from 64 to 512 probe examples on which the two features agree, so that both predict the
label perfectly. The readout is tested on examples on which the features conflict; one that relies equally on both follows
each feature in half of them. Regularisation is chosen by cross-validation; the strongest and the weakest regularisation of
the grid are also reported.

Setting: joint.

The statistic of C25 uses 256 examples with cross-validated regularisation, its second measure 64 examples (ours). C25
follows in part from C01 at one site: the figure `gap` shows it against the gap in variance explained, by seed.

For cost and outcome of the reference run see `manifest.json` and `claims.csv` in `experiments/results/downstream/`.
Expected from the paper: the readout follows easy in most conflicts.
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
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Axes, Drawn
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part

EASY, HARD = "parity1", "parity4"
SIZES = ("64", "128", "256", "512")
READ = ("64", "256")  # numbers of examples that C25 uses: for its second measure, and for its statistic
REGULARISED = {"": "cross-validated", " strong": "strong (C = .001)", " weak": "weak (C = 1)"}
FOLLOW = "conflicts that follow easy (share)"

EXPERIMENT = Experiment(
    name="downstream",
    title="A classifier on top: which of two equally predictive features does it rely on?",
    config=Config(BinaryOptions(), MLPOptions()),
    settings=(("joint", ()),),
    conditions=CONDITIONS,
    probes=("variance", "transfer"),
    presets=PRESETS,
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C25."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _relies(results: Results, joint: str) -> tuple[Part, ...]:
    few, many = (_follow(results, joint, size) - 0.5 for size in READ)
    passed = contrasts.at_end(results, joint, (EASY, HARD))
    for size in READ:
        passed[f"{joint} (readout of {size} converged)"] = _follow(results, joint, size, "follow_converged") == 1
    text = "share of conflict examples that follow easy minus .5, 256 training examples, cross-validated l2"
    return (
        Part(
            "", text, many, passed, +1, 0.05, secondary=few, secondary_statistic="the same, 64 training examples",
            accuracy=contrasts.accuracy_gap(results, joint, EASY, HARD),
        ),
    )  # fmt: skip


def _follow(results: Results, setting: str, at: str, metric: str = "follow", **more: object) -> pd.Series:
    return results.values(setting, metric, EASY, at=at, **more)


CLAIMS = {
    "C25": (
        "A classifier for a label that both features predict relies on easy", "relies on easy", ("joint",), _relies, "P",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the conditions that were run."""
    joint = contrasts.run_in(results, "joint")
    drawn = [
        ("sizes", contrasts.by_condition(results, joint, _draw_sizes)),
        ("layers", contrasts.by_condition(results, joint, _draw_layers)),
        ("gap", contrasts.by_condition(results, joint, _draw_gap)),
    ]
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


NOTES = {"C25": "follows in part from C01"}  # on the score card
CAPTIONS = {
    "sizes": "A readout of the frozen penultimate layer is trained on examples where easy and hard agree and tested "
    "on examples where they conflict. Shown is the share of test examples in which the readout follows easy, by "
    "number of training examples and by regularisation. One half means equal reliance on both. Each dot is a seed; "
    "marks are means over seeds with 95 % intervals. Grey marks: the untrained network, and shuffled training "
    "labels.",
    "layers": "The same by hidden layer, for 256 training examples and cross-validated regularisation, together with "
    "the accuracy on held-out examples where both features agree.",
    "gap": "The same at the penultimate layer, against the gap in variance explained. Each dot is a seed. Where the "
    "gap is wide, the layer holds little else that a readout could follow.",
}


def _draw_sizes(axes: Axes, results: Results, setting: str) -> None:
    x = np.arange(len(SIZES))
    for i, (kind, name) in enumerate(REGULARISED.items()):
        shares = pd.DataFrame({n: _follow(results, setting, n + kind) for n in SIZES}).T
        draw.dots(axes, x, shares, name, STYLES[i], shift=0.1 * (i - 1))
    _floors(axes, x, [(n, "last_hidden") for n in SIZES], results, setting)
    axes.set_xticks(x, SIZES)
    axes.set_xlim(-0.5, len(SIZES) - 0.5)
    axes.set_ylim(top=1.03)
    title = f"Penultimate layer, {setting} ({contrasts.passing(results, [setting])})"
    draw.label(axes, title, "training examples", FOLLOW)


def _draw_layers(axes: Axes, results: Results, setting: str) -> None:
    hidden = contrasts.hidden(results, setting)
    x = np.arange(len(hidden))
    for metric, name, style in (
        ("follow", "conflicts that follow easy", STYLES[0]),
        ("follow_accuracy", "accuracy where both agree", STYLES[2]),
    ):
        shares = contrasts.by_layer(results, setting, metric, EASY, hidden, at="256")
        draw.dots(axes, x, shares, name, style)
    _floors(axes, x, [("256", site) for site in hidden], results, setting)
    axes.set_xticks(x, hidden)
    axes.set_ylim(top=1.03)
    draw.label(axes, f"By layer, {setting}", "layer", "share of examples")


def _floors(axes: Axes, x: np.ndarray, places: list[tuple[str, str]], results: Results, setting: str) -> None:
    """Draws untrained networks and shuffled labels, one mark per place (size and site), and the line of equal reliance."""
    untrained = [_follow(results, setting, n, site=site, step=0).mean() for n, site in places]
    draw.floor(axes, x + 0.25, untrained, "follow easy, untrained network", "x")
    shuffled = [_follow(results, setting, n, "follow_shuffled", site=site).mean() for n, site in places]
    draw.floor(axes, x + 0.32, shuffled, "follow easy, shuffled labels", "d")
    axes.axhline(0.5, linestyle=(0, (1, 2)), label="both alike", **draw.FLOOR)


def _draw_gap(axes: Axes, results: Results, setting: str) -> None:
    for step, name, style in ((None, "trained", STYLES[0]), (0, "untrained network", STYLES[5])):
        easy, hard = contrasts.pair(results, setting, "r2", EASY, HARD, step=step)
        axes.plot(easy - hard, _follow(results, setting, "256", step=step), **style | {"linestyle": "none"}, label=name)
    axes.axhline(0.5, linestyle=(0, (1, 2)), label="both alike", **draw.FLOOR)
    axes.axvline(0, linestyle=(0, (4, 3)), label="no gap", **draw.FLOOR)
    axes.set_ylim(top=1.03)
    draw.label(axes, f"Against the gap, {setting}", "r2(easy) - r2(hard), penultimate layer (share)", FOLLOW)
