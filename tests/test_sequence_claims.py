"""The statistics of C13 to C16 on frames whose right answers are known, and the output orders that they rest on."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from made import SEEDS, Made

import repbias_jax
from experiments import command
from experiments.claims import (
    EXPERIMENTS,
    encoder_residual,
    orders,
    output_position,
    sequence_complexity,
    sequence_prevalence,
)
from repbias_jax import confirmation
from repbias_jax.config import ConfigError
from repbias_jax.data import sequences
from repbias_jax.report import figures as draw
from repbias_jax.statistics import judge

XORS = [f"parity2_{i}" for i in (1, 2, 3, 4)]
PAIR = ["parity1_1", "parity1_2", "parity2_1", "parity2_2"]


class Ordered(Made):
    """Made results whose outputs stand in the order of a row, relabelled by a permutation of each seed."""

    def __init__(self, outputs, rows):
        super().__init__({name: " ".join(own) for name, own in outputs.items()}, 100)
        self.settings["places"] = "layers=hidden_0 hidden_1;last_hidden=hidden_1;flat=hidden_0"
        self.settings["twins"] = ""
        self.settings["task.order"] = "run"
        self.lines = {f"sgd.{name}": row for name, row in rows.items()}
        for name, own in outputs.items():
            for output in own:
                self.learn(name, output, [100])

    def order(self, setting):
        names = self.outputs(setting)
        labels = {k: np.random.default_rng(k).permutation(len(names)) for k in SEEDS}
        return pd.DataFrame({k: [names[labels[k][i]] for i in self.lines[setting]] for k in SEEDS}).T

    def put_by_position(self, setting, value, site="hidden_1", high=0.01):
        """r2 of the feature at each position: `value(position, feature)`, the same for every seed."""
        order = self.order(f"sgd.{setting}")
        for seed, row in order.iterrows():
            for position, feature in row.items():
                own = {k: value(position, feature) + 1e-4 * (k % 2) for k in SEEDS}
                self.put(setting, "r2", feature, own, site=site, seeds=[seed])
                self.put(setting, "null_high", feature, dict.fromkeys(SEEDS, high), site=site, seeds=[seed])
                self.put(setting, "null", feature, dict.fromkeys(SEEDS, -0.002), site=site, seeds=[seed])


def square(kind, names):
    rows = dict(zip(orders.names(kind), orders.SQUARE, strict=True))
    return Ordered(dict.fromkeys(rows, names), rows)


def parts_of(module, results):
    (claim,) = module.claims(results, "sgd")
    return {part.label: part for part in claim.parts}


def test_a_williams_square_has_every_output_everywhere_and_every_pair_once():
    for row in np.array(orders.SQUARE).T:
        assert sorted(row) == [0, 1, 2, 3]
    pairs = [pair for row in orders.SQUARE for pair in itertools.pairwise(row)]
    assert sorted(pairs) == sorted(itertools.permutations(range(4), 2))
    assert (np.arange(4) @ orders.LINEAR) == pytest.approx(3)  # a line's change from end to end
    assert orders.LINEAR.sum() == pytest.approx(0)


def test_shares_fall_over_positions_whatever_the_features():
    """r2 .4, .3, .2, .1: shares fall by .3 from end to end; features differ in size, which the square takes out."""
    made = square("joint", XORS)
    for setting in orders.names("joint"):
        made.put_by_position(setting, lambda p, f: 0.4 - 0.1 * p)
        made.put_by_position(setting, lambda p, f: 0.05 + 0.1 * p, site="hidden_0")
    part = parts_of(output_position, made.done())["a"]
    np.testing.assert_allclose(part.values, -0.3, atol=1e-3)
    assert (part.side, part.sesoi, part.kind) == (-1, 0.06, "deciding")
    assert part.passed.shape == (16, 4)
    assert part.secondary.mean() == pytest.approx(0.3 / 0.8, abs=1e-3)
    (row,) = judge(output_position.claims(made, "sgd"), "sgd", False)
    assert row["verdict"] == "depends on the measure"  # the second measure was made to rise
    made.learn("joint_2", XORS[1], [100], 0.9, seeds=[5])
    passed = parts_of(output_position, made.done())["a"].passed.all(axis=1)
    assert list(passed.index[~passed]) == [5]


def test_a_feature_that_is_larger_everywhere_is_no_effect_of_position():
    made = square("joint", XORS)
    for setting in orders.names("joint"):
        for site in ("hidden_0", "hidden_1"):
            made.put_by_position(setting, lambda p, f: 0.4 if f == XORS[0] else 0.1, site=site)
    np.testing.assert_allclose(parts_of(output_position, made.done())["a"].values, 0, atol=1e-3)


def test_relabelled_positions_have_no_slope_on_average():
    made = square("joint", XORS)
    for setting in orders.names("joint"):
        made.put_by_position(setting, lambda p, f: 0.4 - 0.1 * p)
    null = output_position.relabelled(made.done(), [f"sgd.{s}" for s in orders.names("joint")], 4000)
    assert abs(null.mean()) < 5 * null.std() / np.sqrt(4000)
    sd = np.std([np.array(way) @ orders.LINEAR * 0.1 for way in itertools.permutations(range(4))]) / np.sqrt(len(SEEDS))
    assert null.std() == pytest.approx(sd, rel=0.05)  # of the mean over squares, each relabelled on its own


def test_a_site_without_the_features_is_not_measured():
    made = square("joint", XORS)
    for setting in orders.names("joint"):
        for site in ("hidden_0", "hidden_1"):
            made.put_by_position(setting, lambda p, f: 0.004 - 0.001 * p, site=site)
    (row,) = judge(output_position.claims(made.done(), "sgd"), "sgd", False)
    assert row["verdict"] == "not measured"
    assert "the site does not hold the features in 64 of 64 networks" in row["note"]


def test_complexity_is_told_from_position():
    """Simple .3 and complex .1, less .02 for each position: the gap is .2, also among those that stand first."""
    made = square("pair", PAIR)
    for setting in orders.names("pair"):
        for site in ("hidden_0", "hidden_1"):
            made.put_by_position(setting, lambda p, f: (0.3 if f in PAIR[:2] else 0.1) - 0.02 * p, site=site)
        for f in PAIR:  # .15 of the gap are there before training
            made.put(setting, "r2", f, 0.15 if f in PAIR[:2] else 0.0, step=0)
    parts = parts_of(sequence_complexity, made.done())
    assert list(parts) == ["a", "c", "f"]
    np.testing.assert_allclose(parts["f"].values, 0.05, atol=2e-3)
    np.testing.assert_allclose(parts["a"].values, 0.2, atol=1e-3)
    np.testing.assert_allclose(parts["a"].secondary, 0.2, atol=1e-3)
    np.testing.assert_allclose(parts["c"].values, 0.2, atol=1e-3)
    np.testing.assert_allclose(parts["c"].secondary, np.log(3), atol=1e-2)
    assert [parts[k].kind for k in "acf"] == ["deciding", "shown", "shown"]
    assert parts["c"].floored.sum() == 0


def test_a_square_of_which_a_network_is_missing_has_no_value(monkeypatch):
    """As in a partial report: two orders of seed 3 are not there yet."""
    made, late = square("pair", PAIR), [f"sgd.{name}" for name in orders.names("pair")[2:]]
    for setting in orders.names("pair"):
        for site in ("hidden_0", "hidden_1"):
            made.put_by_position(setting, lambda p, f: (0.3 if f in PAIR[:2] else 0.1) - 0.02 * p, site=site)
    found, whole = made.done(), made.order
    found.rows = found.rows[~(found.rows["setting"].isin(late) & (found.rows["seed"] == 3))]
    monkeypatch.setattr(found, "order", lambda s: whole(s).drop(index=3) if s in late else whole(s))
    part = parts_of(sequence_complexity, found)["a"]
    assert part.secondary.isna().sum() == 0
    assert 3 not in part.secondary.index
    np.testing.assert_allclose(part.values.drop(index=3), 0.2, atol=1e-3)
    found.settings["column"] = "sgd"
    assert sequence_complexity.figures(found)


def test_r2_below_the_null_band_are_counted_where_a_logarithm_is_taken():
    """Complex features are raised from .01 to .1; they stand first in two of a square's four networks."""
    strings = dict(zip(orders.names("strings", 2), orders.BOTH, strict=True))
    tables = {
        "c": square("pair", PAIR),
        "d": Ordered(dict.fromkeys(strings, ("contains_token", "contains_phrase")), strings),
        "e": Ordered({"query": PAIR}, {"query": (0, 1, 2, 3)}),
    }
    tables["e"].settings["task.order"] = "example"
    for label, made in tables.items():
        for setting in made.lines:
            name = setting.removeprefix("sgd.")
            made.put_by_position(name, lambda p, f: 0.3 if f in (*PAIR[:2], "contains_token") else 0.01, high=0.1)
        part = parts_of(sequence_complexity, made.done())[label]
        np.testing.assert_allclose(part.secondary, np.log(3), atol=1e-2)
        assert set(part.floored) == {2}


def test_a_floor_of_unused_twins_is_drawn_only_where_there_are_any():
    """As for features of as many tokens, which leave no room for twins of their own."""
    simple, complex_ = sequence_complexity.CLASSES["equal"]
    made = square("equal", [*simple, *complex_])
    for setting in orders.names("equal"):
        made.put_by_position(setting, lambda p, f: 0.2)
        for f in (*simple, *complex_):
            made.put(setting, "null_low", f, -0.01)
            made.put(setting, "r2", f, 0.01, step=0)
    rows = [f"sgd.{name}" for name in orders.names("equal")]
    _, panels = draw.grid(1, 2, 4.0, 3.0)
    orders.draw_positions(panels[0][0], made.done(), rows, "equal")
    orders.draw_levels(panels[0][1], made.done(), {"equal": rows}, {"simple": simple, "complex": complex_})
    by_class = sequence_complexity._draw_positions(made.done(), {"equal": rows})
    for axes in (*panels[0], *by_class.axes):
        labels = axes.get_legend_handles_labels()[1]
        assert any("untrained" in text for text in labels)
        assert not any("twin" in text for text in labels)


@pytest.mark.parametrize("kept", [False, True])
def test_training_is_drawn_with_r2_where_snapshots_were_kept(kept):
    """Three panels in two columns: accuracy, and below it r2 with its floors if there are more snapshots than two."""
    made, r2 = square("pair", PAIR), {0: 0.01, 50: 0.1, 100: 0.2} if kept else {0: 0.01, 100: 0.2}
    for setting in orders.names("pair"):
        for f in PAIR:
            made.learn(setting, f, [0], accuracy=0.5)
            for step, value in r2.items():
                made.put(setting, "r2", f, value, step=step)
            for metric, value in {"null_low": -0.03, "null": -0.005, "null_high": 0.01}.items():
                made.put(setting, metric, f, value)
    rows = [f"sgd.{name}" for name in orders.names("pair")]
    panels = {name: (rows, {"simple": PAIR[:2], "complex": PAIR[2:]}) for name in "abc"}
    figure = orders.along_figure(made.done(), panels, columns=2)
    shown = [axes for axes in figure.axes if axes.axison]
    is_r2 = [axes.get_ylabel() == draw.VARIANCE for axes in shown]
    assert is_r2 == ([False, False, True, True, False, True] if kept else [False] * 3)
    for axes, of_r2 in zip(shown, is_r2, strict=True):
        lines = {line.get_gid(): line for line in axes.get_lines()}
        for group in ("simple", "complex"):
            expected = list(r2.values()) if of_r2 else [0.5, 1.0]
            np.testing.assert_allclose(lines[f"mean of {group}"].get_ydata(), expected, atol=1e-3)
        assert ("null" in lines) == of_r2


def test_the_null_band_is_drawn_where_levels_have_different_numbers_of_seeds():
    made = square("pair", PAIR)
    rows = [f"sgd.{name}" for name in orders.names("pair")]
    for setting, seeds in zip(orders.names("pair"), (SEEDS, SEEDS, SEEDS, range(4)), strict=True):
        for f in PAIR:
            for metric, value in {"r2": 0.2, "null_low": -0.03, "null": -0.005, "null_high": 0.01}.items():
                made.put(setting, metric, f, value, seeds=seeds)
    _, panels = draw.grid(1, 1, 4.0, 3.0)
    orders.draw_levels(panels[0][0], made.done(), {"many": rows[:1], "few": rows[3:]}, {"all": PAIR})
    (line,) = [line for line in panels[0][0].get_lines() if line.get_gid() == "null"]
    np.testing.assert_allclose(line.get_ydata(), -0.005, atol=1e-6)  # the mean, not the middle of the band


def test_the_class_before_does_not_enter_the_coefficient_of_class():
    """Only what stands before a feature matters here: the mean gap is not zero, the coefficient is."""
    made = square("pair", PAIR)
    for setting in orders.names("pair"):
        order = made.order(f"sgd.{setting}")
        for seed, row in order.iterrows():
            for position, feature in row.items():
                before = 0 if position == 0 else 0.1 if row[position - 1] in PAIR[:2] else -0.1
                made.put(setting, "r2", feature, {seed: 0.3 + before}, seeds=[seed])
    rows = [f"sgd.{s}" for s in orders.names("pair")]
    np.testing.assert_allclose(sequence_complexity.coefficient(made.done(), rows, PAIR[:2]), 0, atol=1e-6)


def test_prevalence_is_a_difference_from_one_half():
    """Gaps .05 at one half, .15 at .05 and .11 at exposure .1, the mean over both orders."""
    kinds = {"p50": 0.05, "p05": 0.15, "e10": 0.11}
    rows = {f"{kind}_{i}": row for kind in kinds for i, row in enumerate(orders.BOTH)}
    made = Ordered(dict.fromkeys(rows, ("parity2_1", "parity2_2")), rows)
    for kind, gap in kinds.items():
        for i, shift in enumerate((0.02, -0.02)):
            made.put_by_position(f"{kind}_{i}", lambda p, f, g=gap, s=shift: 0.2 + (g + s if f == "parity2_1" else 0))
    parts = parts_of(sequence_prevalence, made.done())
    found = {label: part.values.mean() for label, part in parts.items()}
    assert found == pytest.approx({"a": 0.1, "b": 0.06}, abs=1e-6)
    assert parts["a"].passed.shape == (16, 4)
    ratio = np.mean([np.log((0.2 + g) / 0.2) for g in (0.17, 0.13)]) - np.mean(
        [np.log((0.2 + g) / 0.2) for g in (0.07, 0.03)]
    )
    assert parts["a"].secondary.mean() == pytest.approx(ratio, abs=1e-3)


def test_controls_are_measured_as_what_they_control():
    """Orders of each example and parallel heads by nominal position; the skip of block 2; none of them decides."""
    made = square("query", XORS)
    made.settings["task.order"] = "example"
    for i, name in enumerate(orders.names("query")):
        made.settings.loc[f"sgd.{name}", "task.output_order"] = str(orders.SQUARE[i])
        for site in ("hidden_0", "hidden_1"):
            for position, listed in enumerate(orders.SQUARE[i]):
                own = dict.fromkeys(SEEDS, 0.4 - 0.1 * position)
                made.put(name, "r2", XORS[listed], own, site=site)
                made.put(name, "null_high", XORS[listed], dict.fromkeys(SEEDS, 0.01), site=site)
    parts = parts_of(output_position, made.done())
    assert list(parts) == ["c"]
    assert parts["c"].kind == "shown"
    np.testing.assert_allclose(parts["c"].values, -0.3, atol=1e-3)

    names = {"wide_1": ["parity1", "majority5"], "second_0": ["parity1", "majority5"]}
    made = Ordered(names, dict.fromkeys(names, (0, 1)))
    made.put_by_position("wide_1", lambda p, f: 0.1 if f == "parity1" else 0.3)
    for feature, value in (("parity1", 0.2), ("majority5", 0.3)):  # the control has fewer seeds
        made.put("second_0", "r2", feature, value, seeds=SEEDS[:12])
        made.put("second_0", "null_high", feature, 0.01, seeds=SEEDS[:12])
    part = parts_of(encoder_residual, made.done())["c"]
    assert part.kind == "shown"
    assert len(part.passed) == 12
    assert part.absent.groupby(level=0).count().to_dict() == {"sgd.wide_1": 12, "sgd.second_0": 12}
    np.testing.assert_allclose(part.values.dropna(), np.log(2), atol=2e-3)

    made = Ordered({"query": PAIR}, {"query": (0, 1, 2, 3)})
    made.settings["task.order"] = "example"
    made.put_by_position("query", lambda p, f: 0.3 if f in PAIR[:2] else 0.1)
    part = parts_of(sequence_complexity, made.done())["e"]
    assert part.kind == "shown"
    np.testing.assert_allclose(part.values, 0.2, atol=1e-3)
    np.testing.assert_allclose(part.secondary, np.log(3), atol=1e-2)


def test_networks_are_compared_by_the_order_that_they_report():
    """Alike where orders are the same, whatever the setting is called."""
    names = ("contains_token", "contains_phrase")
    rows = dict(zip(orders.names("strings", 2), orders.BOTH, strict=True))
    made = Ordered(dict.fromkeys(rows, names), rows)
    first = {(s, k): made.order(f"sgd.{s}").loc[k, 0] for s in rows for k in SEEDS}
    for (s, k), (t, m) in itertools.combinations(first, 2):
        if k != m:
            alike = 0.9 if first[s, k] == first[t, m] else 0.4
            made.put(s, "rsa", "", alike, other=f"sgd.{t}/{m}", seeds=[k])
    found = sequence_complexity.by_order(made.done(), [f"sgd.{s}" for s in rows])
    np.testing.assert_allclose(found[["same order", "other order"]].mean(), [0.9, 0.4], atol=1e-3)
    assert len(found) == len(SEEDS)
    assert len({first[s, k] for s in rows for k in SEEDS[:1]}) == 2


def test_a_skip_is_a_change_of_a_log_ratio():
    names = {"wide_1": ["parity1", "majority5"], "wide_0": ["parity1", "majority5"]}
    made = Ordered(names, dict.fromkeys(names, (0, 1)))
    made.put_by_position("wide_1", lambda p, f: 0.1 if f == "parity1" else 0.3)
    made.put_by_position("wide_0", lambda p, f: 0.2 if f == "parity1" else 0.3)
    part = parts_of(encoder_residual, made.done())["a"]
    np.testing.assert_allclose(part.values, np.log(2), atol=2e-3)
    assert part.secondary.mean() == pytest.approx(0.1, abs=1e-6)
    assert part.sesoi == pytest.approx(np.log(1.1))


PLANNED = [name for name, module in EXPERIMENTS.items() if module.EXPERIMENT.verdict_seed >= 0]


def everything(module):
    """Frames of all settings that the claims of a module read, with the same number everywhere."""
    read = [name for claim in module.CLAIMS.values() for name in claim[2]]
    options = {name: dict(own) for name, own in module.EXPERIMENT.settings if name in read}
    whole = module.EXPERIMENT.configs()
    outputs = {name: list(sequences.feature_names(whole[f"base.{name}"].task)) for name in options}
    rows = {name: own.get("task.output_order", tuple(range(len(outputs[name])))) for name, own in options.items()}
    made = Ordered(outputs, rows)
    for name in options:
        for site in ("hidden_0", "hidden_1"):
            made.put_by_position(name, lambda p, f: 0.2, site=site)
    return made.done()


@pytest.mark.parametrize("name", PLANNED)
def test_the_code_decides_what_confirm_json_plans(name):
    """Statistics, sides, margins, seeds and numbers of values of the run that gives the verdicts."""
    module, entries = EXPERIMENTS[name], confirmation.load(command.CONFIRMATION)
    confirmation.check(entries, module.claims(everything(module), "sgd"))
    run = command.assemble(module, "full", None, None, [])
    assert run.gives_verdict
    assert run.confirmed == entries
    blocks = {(run.seed, run.num_seeds), *((first, count) for _, first, count in run.seed_blocks)}
    own = {(entry.first, entry.count) for entry in entries if entry.claim in module.CLAIMS}
    assert blocks == own
    assert command.confirmations(entries)[name][1] == [run]


@pytest.mark.parametrize("name", PLANNED)
def test_only_the_planned_run_uses_the_seeds_of_a_verdict(name, monkeypatch, tmp_path):
    module = EXPERIMENTS[name]
    setting = module.EXPERIMENT.settings[0][0]
    for preset, more in (
        ("quick", {}), ("smoke", {}), ("full", {"num_seeds": 4}), ("full", {"dotted": ["--config.training.batch_size=32"]}),
        ("full", {"settings": [setting]}),
    ):  # fmt: skip
        given = {"num_seeds": None, "seed": None, "dotted": [], "settings": [], **more}
        made = command.assemble(module, preset, *given.values())
        assert not made.gives_verdict
        assert (made.seed, made.seed_blocks, made.confirmed) == (0, (), ())
    entries = [entry for entry in confirmation.load(command.CONFIRMATION) if entry.claim not in module.CLAIMS]
    monkeypatch.setattr(confirmation, "load", lambda path: tuple(entries))
    with pytest.raises(ConfigError, match=r"confirm\.json: no entry for C\d\d; expected one before --preset=full is run"):
        command.assemble(module, "full", None, None, [])
    with pytest.raises(ConfigError, match=r"its full preset gives planned verdicts, which only python -m exp.* does"):
        repbias_jax.run(module, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PLANNED)
def test_a_run_of_other_seeds_than_planned_is_refused(name, monkeypatch):
    module, entries = EXPERIMENTS[name], confirmation.load(command.CONFIRMATION)
    own = next(entry for entry in entries if entry.claim in module.CLAIMS)
    other = [
        dataclasses.replace(e, count=e.count - 1) if (e.first, e.count) == (own.first, own.count) else e for e in entries
    ]
    monkeypatch.setattr(confirmation, "load", lambda path: tuple(other))
    with pytest.raises(ConfigError, match=r"confirm\.json: .* seeds from \d+ on; expected the same blocks"):
        command.assemble(module, "full", None, None, [])
