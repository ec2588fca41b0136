"""What can be read from untrained and trained networks of images, and how alike they are (claims C37 to C39).

Claim: untrained networks decode color above shape above texture; training on one feature enhances it and partly suppresses
  the others; a trained network is more like an untrained one than like one that was trained on another feature.
Paper: Hermann and Lampinen 2020 (Trifeature): their claims C28, C29 and C32 in images. Tasks, statistics, sizes and
controls are ours.

  python -m experiments.run --experiment=vision_untrained --workdir=DIR                 full: 16 seeds, 32 untrained
  python -m experiments.run --experiment=vision_untrained --workdir=DIR --preset=quick  12 seeds, untrained alone

Settings:
  plain, residual   untrained networks of 64 x 64 pixels, ten shapes x ten textures x ten colors
  plain_flat, residual_flat   the same, of which the last stage is read without the mean over places (flat)
  ceiling           the plain network trained on all three features of these images, on calibration seeds alone
  shape, texture, color   the plain network of `vision_plain`, trained on one feature of four values alone
  all                     the same trained on all three; drawn
  chance                  the same trained on labels that do not depend on the image

  C37   held-out accuracy of a readout, color - shape and shape - texture, in untrained networks; each part by itself
    a, b   plain network; c, d   residual network; e to h   the same, read from the flat last stage
  C38   accuracy of a readout after minus before training on one feature
    a to c   of the feature trained on (shape, texture, color) > 0
    d to i   of each other feature < 0
    j to o   of each other feature, after training minus chance > 0
    p to u   d to i minus the same in networks trained on labels that do not depend on the image; shown
  C39   similarity of a trained and an untrained network, and that of two networks trained on different features
    a   log ratio of the two; it has no value where one of them is not above zero
    b   their difference; shown
    c   a with networks trained on labels that do not depend on the image in place of untrained ones; shown

Calibration seeds settle which parts decide; the others are shown. In C37 both features are read at .95 by each trained
network (`ceiling`). In C38 untrained networks read the target of a to c at .90 at most, so that it can rise by more than
the margin, and the other feature of d to o at least .10 above chance. A readout is a linear, multinomial one. The
representation is the mean of the last stage over places, unless it is said to be flat. C38 and C39 read all networks on the
same images, so that intervals over seeds lack what their choice adds to an accuracy (about .01).

For cost and outcome of the run see `manifest.json` and `claims.csv` in `experiments/results/vision_untrained/`.
Expected from the paper: color above shape above texture; target up, others down but above chance; above zero.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import itertools
import string
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from experiments.claims import vision
from experiments.claims.similarity import PRIMARY, SECONDARY, Contrast, Similarities
from experiments.claims.vision import COLOR, MARGIN, SHAPE, TEXTURE
from repbias_jax.config import Config, Experiment, Keep, Optimizer, Overrides, Preset, Training
from repbias_jax.data import images
from repbias_jax.data.images import ImageOptions
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.report import contrasts
from repbias_jax.report import figures as draw
from repbias_jax.report.figures import STYLES, Drawn, Figure
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, pseudo_values

FEATURES = (SHAPE, TEXTURE, COLOR)
FAMILIES = ("plain", "residual")
PAIRS = tuple((target, other) for target, other in itertools.permutations(FEATURES, 2))
UNTRAINED, CHANCE_LABELS = "untrained", "chance"
SEEDS, SEEDS_UNTRAINED, SEEDS_FLAT, SEEDS_CEILING = 16, 32, 16, 4
CHANCE = 0.25  # of four values
# Which features decide, by calibration seeds.
COMPARED = FEATURES  # of ten values; every network of `ceiling` reads them at .95
RISING = (SHAPE, TEXTURE)  # of four values; untrained networks read them at .90 at most, on average
FALLING = (TEXTURE, COLOR)  # of four values; untrained networks read them at least .10 above chance, on average
SESOI_SIMILARITY = float(np.log(1.1))
FLAT = {name: f"{name}_flat" for name in FAMILIES}  # the setting in which the last stage is read flat
READ_FLAT = (  # from half as many images, since a fit takes time with the cube of their number
    ("task.num_probe", 4000), ("keep.views", ("flat",)), ("keep.along", "flat"), ("keep.probes", ("decode_flat",)),
)  # fmt: skip
READ_LAST = (("keep.views", ("last_hidden",)), ("keep.probes", ("decode_last", "similarity")), ("keep.shared", True))
MODELS = {"plain": ConvNetOptions(), "residual": vision.RESIDUAL}
LONGER = (  # training of the ceiling, until it reads ten shapes
    ("task.num_train", 262144), ("training.epochs", 12), ("optimizer.final_rate", 0.1),
)  # fmt: skip
TEN = (  # large images of ten values of every feature
    ("task.size", 64),
    ("task.shapes", tuple(images.SHAPES)),
    ("task.textures", images.TEXTURES),
    ("task.colors", tuple(images.COLORS)),
)


def _untrained(family: str) -> Overrides:
    """Returns the changes for an untrained network that is read on ten values of every feature."""
    few = (("task.num_train", 64), ("task.num_test", 64), ("task.num_probe", 8000))
    return ("model", MODELS[family]), *TEN, *few, ("training.epochs", 0), ("keep.probes", ("decode",))


EXPERIMENT = Experiment(
    name="vision_untrained",
    title="What untrained and trained networks of images can be read for",
    config=Config(
        ImageOptions(features=FEATURES, num_train=65536, num_test=4096, num_probe=2048),
        ConvNetOptions(),
        Optimizer("adam", 1e-3),
        Training(batch_size=64, epochs=5, observe_every=1024),
        Keep(views=("layers",)),
    ),
    settings=(
        *((name, _untrained(name)) for name in FAMILIES),
        *((FLAT[name], (*_untrained(name), *READ_FLAT)) for name in FAMILIES),
        ("ceiling", (*TEN, ("task.outputs", FEATURES), ("task.num_probe", 2000), *LONGER)),
        *((name, (("task.outputs", (name,)), *READ_LAST)) for name in FEATURES),
        ("all", (("task.outputs", FEATURES), *READ_LAST)),
        (CHANCE_LABELS, (("task.outputs", ("target",)), *READ_LAST)),
    ),
    seed_caps=(
        *((name, SEEDS) for name in (*FEATURES, "all", CHANCE_LABELS)),
        *((name, SEEDS_FLAT) for name in FLAT.values()),
        ("ceiling", SEEDS_CEILING),
    ),
    probes=(),  # each setting has its own
    num_seeds=SEEDS_UNTRAINED,
    variant="settings that are not frozen yet",
    presets=(
        ("full", Preset(SEEDS_UNTRAINED, settings=(*FAMILIES, *FLAT.values(), *FEATURES, "all", CHANCE_LABELS))),
        ("quick", Preset(12, settings=FAMILIES, overrides=(("task.num_probe", 4000),))),
        (
            "smoke",
            Preset(
                2,
                settings=(*FAMILIES, "plain_flat", *FEATURES),
                overrides=(
                    *vision.SMOKE,
                    ("keep.every", 0),
                    ("task.shapes", ("square", "circle")),
                    ("task.textures", ("solid", "stripes")),
                    ("task.colors", ("red", "green")),
                ),
            ),
        ),
    ),
)


def claims(results: Results, condition: str) -> list[Claim]:
    """Returns C37 to C39; a claim whose settings were not run has no parts and is not measured."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _decoded(results: Results, *settings: str) -> tuple[Part, ...]:
    condition = settings[0].split(".")[0]
    read = [(family, f"{condition}.{family}", "last_hidden", "") for family in FAMILIES]
    read += [(family, f"{condition}.{own}", "flat", ", flat last stage") for family, own in FLAT.items()]
    compared = itertools.product(read, ((COLOR, SHAPE), (SHAPE, TEXTURE)))
    parts = []
    for label, ((family, setting, site, what), (first, second)) in zip(string.ascii_lowercase, compared, strict=False):
        text = f"held-out accuracy of decoding {first} minus {second}, untrained {family} network{what}"
        decides = {first, second} <= set(COMPARED)
        if not results.has(setting):
            parts += [contrasts.not_run(label, text, +1, MARGIN)] if decides else []
            continue
        one, other = contrasts.pair(results, setting, "decode", first, second, step=0, site=site)
        passed = pd.concat([contrasts.converged(results, setting, f, 0, site=site) for f in (first, second)], axis=1)
        parts += [Part(label, text, one - other, passed, +1, MARGIN, kind=_kind(decides))]
    return tuple(parts)


def _kind(decides: bool) -> str:
    return "deciding" if decides else "shown"


def _changed(results: Results, *settings: str) -> tuple[Part, ...]:
    """Returns what training on one feature does to the accuracies of all: on itself, on others, and above chance."""
    trained, control = dict(zip(FEATURES, settings, strict=True)), f"{settings[0].split('.')[0]}.{CHANCE_LABELS}"
    rows: list[tuple[str, pd.Series, pd.DataFrame, int, str]] = []
    for target, setting in trained.items():
        text = f"accuracy of decoding {target} after minus before training on {target}"
        rows.append((text, *_change(results, setting, target, target), +1, _kind(target in RISING)))
    falls = {(t, o): _change(results, trained[t], o, t) for t, o in PAIRS}
    text = "accuracy of decoding {} after minus before training on {}"
    rows += [(text.format(o, t), *fall, -1, _kind(o in FALLING)) for (t, o), fall in falls.items()]
    for (target, other), (_, passed) in falls.items():
        above = results.values(trained[target], "decode", other) - CHANCE
        text = f"accuracy of decoding {other} after training on {target}, minus chance"
        rows.append((text, above, passed, +1, _kind(other in FALLING)))
    for (target, other), (fall, passed) in falls.items() if results.has(control) else ():
        anyway, fits = _change(results, control, other)
        text = f"accuracy of decoding {other} after minus before training on {target}, minus the same on chance labels"
        rows.append((text, fall - anyway, passed.join(fits), -1, "shown"))
    return tuple(
        Part(label, text, values, passed, side, MARGIN, kind=kind)
        for label, (text, values, passed, side, kind) in zip(string.ascii_lowercase, rows, strict=False)
    )


def _change(results: Results, setting: str, feature: str, target: str = "") -> tuple[pd.Series, pd.DataFrame]:
    """Returns the accuracy of a readout after minus before training, and the gate: fits converged, target learned."""
    change = results.values(setting, "decode", feature) - results.values(setting, "decode", feature, step=0)
    fits = [contrasts.converged(results, setting, feature, step) for step in (0, None)]
    gate = [contrasts.at_end(results, setting, (target,))] if target else []
    return change, pd.concat([*gate, *fits], axis=1)


def _alike(results: Results, *settings: str) -> tuple[Part, ...]:
    condition = settings[0].split(".")[0]
    passed = contrasts.all_at_end(results, settings)
    passing, seeds = list(passed.index[passed.all(axis=1)]), list(passed.index)

    def part(label: str, statistic: Contrast, text: str, margin: float, kind: str, base: str = UNTRAINED) -> Part:
        first, second = (_similarities(results, condition, metric, base) for metric in (PRIMARY, SECONDARY))

        def values(own: Similarities, among: Sequence[int]) -> pd.Series:
            defined = own.defined(list(own.kinds), among)
            return pseudo_values(lambda chosen: statistic(own, chosen), defined).reindex(seeds)

        of_none = base if base == UNTRAINED else "trained on chance labels"
        pairs = f"similarity(trained, {of_none})", "similarity(trained on one feature, on another)"
        return Part(
            label, f"{text.format(*pairs)}, means over features, by {PRIMARY}", values(first, passing), passed, +1, margin,
            secondary=values(second, passing), secondary_statistic=f"the same, by {SECONDARY}",
            everyone=values(first, seeds), kind=kind,
        )  # fmt: skip

    parts = [part("a", log_ratio, "log({} / {})", SESOI_SIMILARITY, "deciding")]
    parts += [part("b", difference, "{} - {}", MARGIN, "shown")]
    if results.has(f"{condition}.{CHANCE_LABELS}"):
        parts += [part("c", log_ratio, "log({} / {})", SESOI_SIMILARITY, "shown", CHANCE_LABELS)]
    return tuple(parts)


def _similarities(results: Results, condition: str, metric: str, base: str = UNTRAINED) -> Similarities:
    """Returns the similarities of the networks of one feature, and of those that are trained on none.

    Args: metric, of the probe; base, UNTRAINED or CHANCE_LABELS, which are the `base` of what is returned.
    """

    def trained(name: str) -> tuple[str, int]:
        return f"{condition}.{name}", results.last_step(f"{condition}.{name}")

    of_none = (f"{condition}.{FEATURES[0]}", 0) if base == UNTRAINED else trained(base)
    kinds = {name: trained(name) for name in FEATURES} | {"base": of_none}
    return Similarities(contrasts.similarities(results, condition, metric), kinds)


def _two_means(own: Similarities, seeds: Sequence[int]) -> tuple[float, float]:
    """Returns the mean similarity of networks of a feature and of none, and that of networks of different features."""
    to_base = np.mean([own.mean(name, "base", seeds) for name in FEATURES])
    other = np.mean([own.mean(one, two, seeds) for one, two in itertools.combinations(FEATURES, 2)])
    return float(to_base), float(other)


def log_ratio(own: Similarities, seeds: Sequence[int]) -> float:
    """Returns the log ratio of C39, NaN if one of the two means is not above zero."""
    to_base, other = _two_means(own, seeds)
    return float(np.log(to_base / other)) if min(to_base, other) > 0 else np.nan


def difference(own: Similarities, seeds: Sequence[int]) -> float:
    """Returns the difference of the two means."""
    to_base, other = _two_means(own, seeds)
    return to_base - other


# For each claim: its text, what the paper says, the settings that it reads, a function that returns its parts, its source,
# and whether its parts have verdicts of their own.
CLAIMS = {
    "C37": (
        "Untrained networks decode color above shape above texture (C28 in images)", "color above shape above texture",
        FAMILIES, _decoded, "HL20", True,
    ),
    "C38": (
        "Training on one feature of images enhances it and partly suppresses others (C29 in images)",
        "enhances, partly suppresses", FEATURES, _changed, "HL20",
    ),
    "C39": (
        "A network of images is more like an untrained one than like one of another feature (C32 in images)", "more",
        FEATURES, _alike, "HL20",
    ),
}  # fmt: skip


def figures(results: Results) -> list[Drawn]:
    """Returns all figures, for the settings that were run."""
    condition = str(results.settings["column"].iloc[0])
    run = [name for name in (*FEATURES, "all", CHANCE_LABELS) if results.has(f"{condition}.{name}")]
    families = [name for name in FAMILIES if results.has(f"{condition}.{name}")]
    drawn = (
        ("decoded", _draw_decoded(results, condition, families)),
        ("changes", _draw_changes(results, condition, run)),
        ("similar", _draw_similar(results, condition, run)),
    )
    return [Drawn(name, figure, CAPTIONS[name]) for name, figure in drawn if figure is not None]


FIGURES = {"C37": "decoded", "C38": "changes", "C39": "similar"}  # the figure that shows a claim
CAPTIONS = {
    "decoded": "Held-out accuracy of linear readouts of ten colors, shapes and textures in untrained networks, from the "
    "mean of every stage over places, and from the flat last stage. A dot is a seed; marks are means over seeds with "
    "95 % intervals. Grey crosses are readouts of permuted labels.",
    "changes": "Accuracy of linear readouts of color, shape and texture from the mean of the last stage, before training "
    "and after training on one of them, on all of them, and on labels that do not depend on the image (`chance`). "
    "Grey crosses are readouts of permuted labels, grey diamonds those of tint, which no network is trained on.",
    "similar": "Similarity of representations by type of pair, for networks of different seeds: trained on one feature "
    "and untrained, trained on different features, and trained on the same feature. A dot is a seed, the mean over all "
    "pairs of its networks with those of other seeds; marks are means with 95 % intervals that take dots as independent. "
    "The verdict has a jackknife interval.",
}
DECODED = "balanced accuracy of\na readout (share)"


def _draw_decoded(results: Results, condition: str, families: Sequence[str]) -> Figure | None:
    if not families:
        return None
    figure, panels = draw.grid(1, len(families), 4.4, 3.8, one_scale=True)
    for axes, family in zip(panels[0], families, strict=True):
        setting = f"{condition}.{family}"
        read = {stage.removesuffix(".mean"): (setting, stage) for stage in contrasts.hidden(results, setting)}
        if results.has(flat := f"{condition}.{FLAT[family]}"):
            read["last stage, flat"] = (flat, "flat")
        x = range(len(read))
        for i, feature in enumerate((COLOR, SHAPE, TEXTURE)):
            found = {
                metric: pd.DataFrame(
                    {at: results.values(own, metric, feature, site=site, step=0) for at, (own, site) in read.items()}
                ).T
                for metric in ("decode", "decode_shuffled")
            }
            draw.dots(axes, x, found["decode"], feature, STYLES[i] | {"linestyle": "none"}, shift=0.14 * (i - 1))
            draw.floor(axes, x, found["decode_shuffled"].mean(axis=1), "permuted labels", "x")
        contrasts.at_levels(axes, [name.replace("_", " ").replace(", ", ",\n") for name in read])
        draw.label(axes, f"untrained {family} network", "", DECODED)
    return draw.finish(figure)


def _draw_changes(results: Results, condition: str, run: Sequence[str]) -> Figure | None:
    if not run:
        return None
    figure, panels = draw.grid(1, 1, 7.0, 4.0)
    (axes,) = panels[0]
    levels = [(UNTRAINED, run[0], 0), *((name, name, None) for name in run)]
    x = np.arange(len(levels))

    def read(metric: str, feature: str) -> pd.DataFrame:
        """A measure of a feature by level, [level, seed]."""
        found = {name: results.values(f"{condition}.{own}", metric, feature, step=step) for name, own, step in levels}
        return pd.DataFrame(found).T

    for i, feature in enumerate((COLOR, SHAPE, TEXTURE)):
        draw.dots(axes, x, read("decode", feature), feature, STYLES[i] | {"linestyle": "none"}, shift=0.14 * (i - 1))
        draw.floor(axes, x, read("decode_shuffled", feature).mean(axis=1), "permuted labels", "x")
    draw.floor(axes, x + 0.28, read("decode", "tint").mean(axis=1), "tint, the unused twin of color", "d")
    contrasts.at_levels(axes, [name if name == UNTRAINED else f"trained\non {name}" for name, *_ in levels])
    draw.label(axes, "plain network, mean of the last stage", "", DECODED)
    return draw.finish(figure)


def _draw_similar(results: Results, condition: str, run: Sequence[str]) -> Figure | None:
    if not set(FEATURES) <= set(run) or contrasts.similarities(results, condition, PRIMARY).empty:
        return None
    figure, panels = draw.grid(1, 2, 4.6, 3.8)
    for axes, metric in zip(panels[0], (PRIMARY, SECONDARY), strict=True):
        own = _similarities(results, condition, metric)
        seeds = own.defined(list(own.kinds), sorted(set(own.matrix.index.get_level_values("seed"))))
        by_type = {kind: _by_network(own, pairs, seeds) for kind, pairs in _types()}
        draw.dots(axes, range(len(by_type)), pd.DataFrame(by_type).T, "networks", STYLES[0])
        contrasts.at_levels(axes, list(by_type))
        draw.label(axes, metric, "", "similarity")
    return draw.finish(figure)


def _types() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields the types of pairs of networks."""
    yield "trained,\nuntrained", [(name, "base") for name in FEATURES]
    yield "different\nfeatures", list(itertools.combinations(FEATURES, 2))
    yield "same\nfeature", [(name, name) for name in FEATURES]
    yield "both\nuntrained", [("base", "base")]


def _by_network(own: Similarities, pairs: Sequence[tuple[str, str]], seeds: Sequence[int]) -> pd.Series:
    """Returns the mean similarity of a seed's networks to those of other seeds, over some types of pairs."""
    blocks = [own.block(one, other, seeds) for one, other in pairs]
    return pd.Series(np.nanmean(np.stack(blocks), axis=(0, 2)), index=list(seeds))
