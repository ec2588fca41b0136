"""What is refused before anything runs, how runs are laid out, and which code trained what."""

import dataclasses
import itertools
import json
import math
import os
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import Made

from experiments import command
from repbias_jax import layout, pipeline, planning, population, provenance, store
from repbias_jax.config import (
    Config,
    ConfigError,
    Preset,
    Runtime,
    dials_of,
    fields_of,
    flatten,
    override_all,
    sparse,
    static_half,
)
from repbias_jax.data import binary
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.features import FEATURES, Feature
from repbias_jax.layout import Layout
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.selection import select
from tests.faults import tiny

BASE = Config(BinaryOptions(), MLPOptions())


def planned(experiment, folder):
    return planning.place(experiment, planning.check(experiment, "cpu"), folder, 2)


def run(experiment, folder, **more):
    return pipeline.run(planned(experiment, folder), tiny, folder, pipeline.STAGES, lambda: False, {"commit": "a"}, **more)


# ---------------------------------------------------------------------------------------------- options, dials, hashes

OTHERS = {
    "keep.probes": ("units",),
    "task.features": ("parity2", "parity3"), "task.outputs": ("parity4",), "task.exposure": (0.5, 1.0),
    "task.output_order": (1, 0), "task.num_bits": 33, "task.first_bits": (1, 3), "task.twins": False,
    "task.prevalence": (0.3, 0.5), "task.predictivity": (0.7, 0.5), "model.activation": "tanh", "model.head": "unit",
    "model.widths": (8,), "optimizer.name": "adam", "training.loss": "squared", "training.loss_weights": ((1.0, 0.5),),
    "training.phase_ends": (1.0,), "training.dense": (0.1, 0.2), "keep.probe_set": "natural", "keep.shared": True,
    "keep.along": "hidden_0", "keep.views": ("last_hidden",),
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in fields_of(BASE) if not n.endswith(".name") or n == "optimizer.name"])
def test_every_option_is_static_or_a_dial(name):
    """A dial changes the arrays and no program; all else changes the program and no array of the same shape."""
    _, field = fields_of(BASE)[name]
    value = flatten(BASE)[name]
    if name == "optimizer.reset_phase":
        start = override_all(BASE, {"training.loss_weights": ((1.0, 1.0),) * 2, "training.phase_ends": (0.5, 1.0)})
        other = 1
    else:
        start, other = (
            BASE,
            OTHERS.get(name, value + 1 if type(value) is int else value / 2 + 0.01 if type(value) is float else None),
        )
    assert other is not None, f"{name}: no other value listed for this test"
    changed = override_all(start, {name: other})
    before, after = (static_half(c, Runtime()) for c in (start, changed))
    if not field.metadata["dial"]:
        assert before != after
        return
    assert dataclasses.replace(after, switches=before.switches) == before
    assert (after.switches != before.switches) == field.metadata["switch"]
    part, leaf = name.split(".")
    if name != "training.phase_ends":  # one phase always ends at the end
        assert not np.array_equal(getattr(dials_of(start), part)[leaf], getattr(dials_of(changed), part)[leaf])


def test_defaults_are_pinned():
    """Folder names and fingerprints hold what differs from these: another default makes old workdirs another experiment."""
    assert store.digest({k: str(v) for k, v in flatten(BASE).items()}) == PINNED
    assert sparse(BASE) == {"task.name": "binary", "model.name": "mlp"}
    assert sparse(override_all(BASE, {"model.dropout": 0.1}))["model.dropout"] == 0.1


PINNED = "ab45454053e1531c"


def test_whole_parts_are_replaced_before_leaves():
    changes = {"model.dropout": 0.2, "model": MLPOptions(widths=(8,))}
    assert override_all(BASE, changes).model == MLPOptions(widths=(8,), dropout=0.2)
    with pytest.raises(ConfigError, match="model"):
        override_all(BASE, {"model": BinaryOptions()})


def test_what_a_user_asks_for_outlives_a_setting_that_replaces_a_part():
    whole = dataclasses.replace(
        tiny.EXPERIMENT, settings=(("small", (("model", MLPOptions(widths=(4,))),)),), overrides=(("model.dropout", 0.25),)
    )
    assert whole.configs()["base.small"].model == MLPOptions(widths=(4,), dropout=0.25)


# ---------------------------------------------------------------------------------------------- provenance


def test_code_is_known_by_its_syntax_and_not_by_its_words():
    source = 'def f(x):\n    """Adds."""\n    return x + 1  # one\n'
    assert provenance.syntax_of(source) == provenance.syntax_of("def f(x):\n    return (x + 1)\n")
    assert provenance.syntax_of(source) != provenance.syntax_of(source.replace("+", "-"))
    features = (planning.Path(provenance.__file__).parent / "features.py").read_text()
    altered = features.replace('"parity4": _parity(4)', '"parity4": Feature(4, _table(4, lambda bits: int(all(bits))))')
    assert altered != features
    assert provenance.syntax_of(altered) != provenance.syntax_of(features)


def test_only_what_a_setting_runs_through_counts():
    static = static_half(BASE, Runtime())
    modules = provenance.modules_below(("repbias_jax.training", "repbias_jax.data.binary", "repbias_jax.models.mlp"))
    assert {"repbias_jax.features", "repbias_jax.config", "repbias_jax.models.sites"} <= set(modules)
    assert not [m for m in modules if "report" in m or "probes" in m or "store" in m]
    assert set(provenance.provenance_of(static)) == {"code", "jax", "flax", "optax"}


def test_a_workdir_does_not_mix_two_codes_unasked(tmp_path):
    folder = tmp_path / "tiny"
    run(tiny.EXPERIMENT, folder)
    [done] = folder.glob("*/*/done.json")
    content = store.read_json(done, "train")
    assert content["provenance"]["jax"] == jax.__version__
    store.write_json(done, {**content, "provenance": {**content["provenance"], "optax": "0.0.1"}})
    run(tiny.EXPERIMENT, folder)  # nothing is trained: whoever measures and reports may have any version
    more = dataclasses.replace(tiny.EXPERIMENT, num_seeds=6)
    with pytest.raises(store.StoreError, match=r"optax 0\.0\.1 instead of .*--mix_code"):
        run(more, folder)
    run(more, folder, mix_code=True)
    assert "optax 0.0.1" in store.read_json(folder / "manifest.json", "train")["stages"]["train"]["mixed_code"]


def test_an_option_that_came_later_had_its_default(tmp_path):
    folder = tmp_path / "tiny"
    run(tiny.EXPERIMENT, folder)
    path = folder / "manifest.json"
    manifest = store.read_json(path, "train")
    for setting in manifest["train_covers"]["settings"].values():
        del setting["model.head"]
    store.write_json(path, manifest)
    planned(tiny.EXPERIMENT, folder)
    other = dataclasses.replace(tiny.EXPERIMENT, config=override_all(tiny.CONFIG, {"model.head": "unit"}))
    with pytest.raises(ConfigError, match=r"model\.head .* = pair, but this run asks for unit"):
        planned(other, folder)


# ---------------------------------------------------------------------------------------------- what is refused


def test_too_many_runs_are_refused_at_once():
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="200,000,000 runs; expected at most 1,000,000"):
        planning.check(dataclasses.replace(tiny.EXPERIMENT, num_seeds=10**8), "cpu")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("probe", ["readout", "steering", "truncation"])
def test_interventions_need_outputs_that_the_probe_set_has(probe):
    config = override_all(tiny.CONFIG, {"task.outputs": ("target",)})
    with pytest.raises(ConfigError, match=f"{probe} .*target"):
        planning.check(dataclasses.replace(tiny.EXPERIMENT, config=config, probes=(probe,)), "cpu")


def test_probes_find_the_views_they_read():
    config = override_all(tiny.CONFIG, {"keep.views": ("input",)})
    with pytest.raises(ConfigError, match="steering"):
        planning.check(dataclasses.replace(tiny.EXPERIMENT, config=config, probes=("steering",)), "cpu")
    with pytest.raises(ConfigError, match=r"keep\.along=nowhere: unknown view"):
        planning.check(dataclasses.replace(tiny.EXPERIMENT, config=override_all(BASE, {"keep.along": "nowhere"})), "cpu")


def test_options_of_another_family_are_refused():
    config = dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(MLPOptions(), name="transformer"))
    with pytest.raises(ConfigError, match="transformer"):
        planning.check(dataclasses.replace(tiny.EXPERIMENT, config=config), "cpu")


def test_more_memory_than_there_is_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(planning.devices, "memory_bytes", lambda: 1_000)
    with pytest.raises(ConfigError, match=r"about 0\.0 GB .* 0\.0 GB are there.*--lanes"):
        run(tiny.EXPERIMENT, tmp_path / "tiny")
    assert not list(tmp_path.rglob("*.json"))


def test_memory_of_this_machine_is_known():
    assert planning.devices.memory_bytes() > 1e8


# ---------------------------------------------------------------------------------------------- layout


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 400), st.integers(1, 16), st.integers(1, 64), st.integers(1, 2))
def test_padding_is_never_more_than_a_row(runs, rows, lanes, least):
    least = min(least, rows)
    pieces = list(layout.pieces_of(range(runs), Layout(rows, 0, (1,), least_rows=least), lanes))
    assert list(itertools.chain.from_iterable(own for _, own in pieces)) == list(range(runs))
    assert len({own for own, _ in pieces}) == 1  # one program
    filled = math.ceil(runs / lanes)
    for own_rows, own in pieces:
        assert least <= own_rows <= rows
        empty = own_rows - math.ceil(len(own) / lanes)
        assert empty <= 1
    assert len(pieces) == math.ceil(filled / rows)


def test_4096_runs_are_planned_and_merged(tmp_path, monkeypatch):
    """All are planned, and `pipeline.run` merges the rows of 512 chunks with few files open.

    Two chunks are really trained and measured. For the others the store writes files like theirs with the seeds that were
    planned, since training all takes minutes; what merging reads and checks of them is there.
    """
    many = dataclasses.replace(tiny.EXPERIMENT, num_seeds=2048, probes=("readout",))
    folder, real, record = tmp_path / "tiny", population.train, {"commit": "a"}
    plan = planned(many, folder)
    runs = [run for chunk in plan.chunks for run in chunk.runs]
    assert sorted(runs) == [(f"base.{s}", k) for s in ("fast", "slow") for k in range(2048)]
    assert {(c.rows, len(c.runs)) for c in plan.chunks} == {(2, 8)}
    assert planning.estimate(plan)["runs"] == 4096
    monkeypatch.setattr(os, "fsync", lambda _: None)  # it is no power cut that is tested

    def some(folder, chunks, *arguments):
        real(folder, chunks[:2], *arguments)

    with monkeypatch.context() as few:
        few.setattr(population, "train", some)
        said = pipeline.run(plan, tiny, folder, ["train", "measure"], lambda: False, record).missing
        assert said.startswith("2 of 512 chunks are there (16 of 4096 runs)")
    [made, *_] = plan.chunks
    measured = store.read_json(folder / made.path / "measured.json", "measure")
    code = store.digest({k: v for k, v in planning.covered(plan)["measure"].items() if k != "seeds"})
    assert measured["fingerprint"] == store.digest([code, made.runs])
    for chunk in plan.chunks[2:]:
        like(folder / made.path, folder / chunk.path, chunk, code)
    limits, opened = resource.getrlimit(resource.RLIMIT_NOFILE), [int(p.name) for p in Path("/proc/self/fd").iterdir()]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(opened) + 80, limits[1]))  # 64 to merge, and a few
    try:
        assert pipeline.run(plan, tiny, folder, ["train", "measure"], lambda: False, record).missing == ""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    rows = list(store.read_table(folder / "results.csv"))
    assert len(rows) * len(made.runs) == len(list(store.read_table(folder / made.path / "rows.csv"))) * len(runs)
    assert list(dict.fromkeys((row[2], int(row[3])) for row in rows)) == sorted(runs)
    assert store.read_json(folder / "manifest.json", "train")["stages"].keys() == {"train", "measure"}


def like(made, path, chunk, code):
    """Writes the small files of a chunk as those of one that was made. Args: folders of both, the chunk, the code."""
    done = store.read_json(made / "done.json", "train")
    names = {(run["setting"], str(run["seed"])): new for run, new in zip(done["runs"], chunk.runs, strict=True)}
    for name, first in (("curves.csv", 0), ("rows.csv", 2)):  # in their order, since later seeds follow each other, too
        header, rows = (made / name).read_text().split("\n", 1)[0].split(","), store.read_table(made / name)
        renamed = [[*row[:first], *names[row[first], row[first + 1]], *row[first + 2 :]] for row in rows]
        store.write_table(path / name, header, renamed)
    runs = [{**run, "setting": s, "seed": k} for run, (s, k) in zip(done["runs"], chunk.runs, strict=True)]
    store.write_json(path / "done.json", {**done, "runs": runs, "files": store.metadata_sums(path)})
    own = {"fingerprint": store.digest([code, chunk.runs]), "files": {"rows.csv": store.checksum(path / "rows.csv")}}
    store.write_json(path / "measured.json", {"format": store.FORMAT, **own})


def test_a_setting_may_have_seeds_of_its_own(tmp_path):
    blocks = dataclasses.replace(tiny.EXPERIMENT, seed_blocks=(("fast", 10_000, 2),))
    plan = planned(blocks, tmp_path / "tiny")
    runs = sorted(run for chunk in plan.chunks for run in chunk.runs)
    assert runs == [("base.fast", 10_000), ("base.fast", 10_001), *(("base.slow", k) for k in range(4))]
    assert select(blocks, "full").seed_blocks == blocks.seed_blocks
    smaller = dataclasses.replace(blocks, presets=(*blocks.presets, ("quick", Preset(2))))
    assert select(smaller, "quick").seed_blocks == ()
    larger = dataclasses.replace(blocks, seed_blocks=(("fast", 10_000, 9),))
    plan = planned(larger, tmp_path / "larger")
    assert sorted(seed for c in plan.chunks for name, seed in c.runs if name == "base.fast") == list(range(10_000, 10_009))
    assert layout.count_runs(plan.groups, plan.layout) == 9 + 4
    for bad in (("nobody", 0, 1), ("fast", 0, 0), ("fast", 2**31 - 1, 2)):
        with pytest.raises(ConfigError, match=f"seed_blocks: {bad[0]}"):
            planning.check(dataclasses.replace(blocks, seed_blocks=(bad,)), "cpu")
    run(blocks, tmp_path / "tiny")
    with pytest.raises(ConfigError, match="first_seeds"):
        planned(dataclasses.replace(blocks, seed_blocks=(("fast", 10_002, 2),)), tmp_path / "tiny")


@pytest.mark.parametrize("devices", [1, 8, 256])
def test_many_devices_do_not_multiply_the_work(devices):
    groups = layout.groups_of(tiny.EXPERIMENT.configs(), "gpu")
    chunks = layout.chunks_of(groups, Layout(devices, 0, (4,)))
    assert [(c.rows, len(c.runs)) for c in chunks] == [(1, 8)]


def test_lanes_follow_from_the_size_of_a_run():
    sizes = {"small": (256, 128, 64, 64), "wide": (512,) * 4, "huge": (4096, 4096)}
    configs = {f"base.{n}": override_all(BASE, {"model.widths": w}) for n, w in sizes.items()}
    lanes = {group.settings[0]: group.lanes for group in layout.groups_of(configs, "cpu")}
    assert lanes == {"base.small": 4, "base.wide": 4, "base.huge": 1}
    assert {group.lanes for group in layout.groups_of(configs, "cpu", lanes=2)} == {2}


def test_a_chunk_whose_runs_have_all_diverged_ends(tmp_path, capsys):
    config = override_all(tiny.CONFIG, {"optimizer.learning_rate": 1e30})
    lost = dataclasses.replace(tiny.EXPERIMENT, config=config, settings=(("slow", ()),))
    folder = tmp_path / "tiny"
    run(lost, folder)
    assert "all 4 runs have diverged by step 4" in capsys.readouterr().err
    [curves] = folder.glob("*/*/curves.csv")
    rows = [line.split(",") for line in curves.read_text().splitlines()[1:]]
    assert {int(row[2]) for row in rows} == {0, 4, 8}
    assert all(row[5] == "" for row in rows if int(row[2]) > 0)
    assert json.loads(next(folder.glob("*/*/done.json")).read_text())["steps"] == 8


# ---------------------------------------------------------------------------------------------- data and gate


def test_every_value_of_a_feature_is_sampled(monkeypatch):
    monkeypatch.setitem(FEATURES, "three", Feature(2, (0, 1, 2, 1)))
    config = override_all(BASE, {"task.features": ("three", "parity1")})
    binary.check(config.task)
    dials = dials_of(config)
    sample = jax.jit(jax.vmap(lambda key: binary.sample(config.task, dials, None, key)))
    drawn = sample(jax.random.split(jax.random.key(0), 20_000))
    shares = np.bincount(np.asarray(drawn.factors["three"]), minlength=3) / 20_000
    np.testing.assert_allclose(shares, (0.25, 0.5, 0.25), atol=0.02)
    bits = np.asarray(drawn.inputs)[:, :2].astype(int)
    np.testing.assert_array_equal(np.asarray((0, 1, 2, 1))[bits @ (2, 1)], drawn.factors["three"])
    with pytest.raises(ConfigError, match="three has 3 values"):
        binary.check(override_all(config, {"task.prevalence": (0.1, 0.5)}).task)
    with pytest.raises(ConfigError, match="head=unit"):
        planning.check(dataclasses.replace(tiny.EXPERIMENT, config=override_all(config, {"model.head": "unit"})), "cpu")


def test_where_a_feature_has_several_outputs_the_worst_counts():
    results = Made({"twice": "easy easy"}, end=4)
    for accuracy in (1.0, 0.6):
        results.points.append(("sgd.twice", 0, 4, "easy", "test", 1 - accuracy, accuracy, accuracy))
    results.put("twice", "r2", "easy", 0.5, seeds=[0])
    made = results.done()
    made.curves = results.curves.__class__(results.points, columns=made.curves.columns)
    assert made.accuracy("sgd.twice", "easy").loc[4, 0] == 0.6
    assert made.accuracy("sgd.twice", "easy", "loss").loc[4, 0] == pytest.approx(0.4)


def test_exposure_belongs_to_a_feature_in_any_order():
    config = override_all(BASE, {"task.exposure": (1.0, 0.25), "task.output_order": (1, 0)})
    dials = dials_of(config)
    drawn = jax.vmap(lambda key: binary.sample(config.task, dials, None, key))(jax.random.split(jax.random.key(0), 2_000))
    hidden = np.mean(np.asarray(drawn.labels) == binary.UNSEEN, axis=0)
    np.testing.assert_allclose(hidden, (0.75, 0.0), atol=0.05)
    assert jnp.array_equal(drawn.order[0], jnp.asarray([1, 0]))


def test_costs_are_counted_where_jax_has_no_cpu(monkeypatch):
    """By XLA's count for a CPU; where JAX_PLATFORMS leaves the CPU out, by the weights, which is nearly the same."""
    group = layout.groups_of({"base": BASE}, "gpu")[0]
    counted = layout.step_flops(group)
    monkeypatch.setattr(layout.devices, "host", lambda: None)
    assert 0.8 * counted < layout.step_flops(group) < 1.2 * counted


def lines_of(*plans, stages=pipeline.STAGES):
    return list(command.cost_lines(plans, stages))


def test_the_printed_time_is_that_of_all_updates_and_counts_what_fills_a_chunk(tmp_path, monkeypatch):
    """From the time of one update of the dearest chunk, half a second here."""
    timed = []
    monkeypatch.setattr(population, "step_seconds", lambda chunk, stop: timed.append(chunk) or 0.5)
    long = (("long", (("training.epochs", 40), ("model.widths", (16, 8)))),)
    few = dataclasses.replace(tiny.EXPERIMENT, num_seeds=3, settings=(*tiny.EXPERIMENT.settings, *long))
    plan = planned(few, tmp_path)
    assert any(len(chunk.runs) < chunk.rows * chunk.group.lanes for chunk in plan.chunks)
    each = {group.name: layout.step_flops(group) for group in plan.groups}
    work = [c.rows * c.group.lanes * c.group.static.config.num_steps * each[c.group.name] for c in plan.chunks]
    (group,) = (group for group in plan.groups if group.settings == ("base.long",))
    steps = group.static.config.num_steps
    minutes = steps * 0.5 * sum(work) / max(work) / 60
    lines = lines_of(plan, plan)
    assert {chunk.group.name for chunk in timed} == {group.name}
    assert sum(line == f"  training about {minutes:,.1f} min here" for line in lines) == 2
    assert lines[-1].endswith(f"training about {2 * minutes:,.1f} min here")


@pytest.mark.parametrize("why", ["memory", "backend", "stages", "device"])
def test_nothing_is_timed_that_would_not_be_trained_here(why, tmp_path, monkeypatch):
    plan, timed = planned(tiny.EXPERIMENT, tmp_path), []

    def time_step(chunk, stop):
        timed.append(chunk)
        if why == "device":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
        return 0.5

    monkeypatch.setattr(population, "step_seconds", time_step)
    if why == "memory":
        monkeypatch.setattr(planning.devices, "memory_bytes", lambda: 1_000)
    asked = plan._replace(backend="gpu") if why == "backend" else plan
    lines = lines_of(asked, stages=("measure", "report") if why == "stages" else pipeline.STAGES)
    assert lines[-1] == "  training not timed"
    assert len(timed) == (why == "device")


def test_an_update_is_timed_without_compilation(tmp_path, monkeypatch):
    """The first call takes five seconds more, and every update a hundredth; nothing is written."""
    monkeypatch.chdir(tmp_path)
    now, asked = [0.0], []
    chunk = planned(tiny.EXPERIMENT, tmp_path).chunks[0]
    programs = population.Programs(chunk.group.static, population.make_mesh(chunk.rows))

    def segment(dials, seeds, data, state, start, stop):
        now[0] += 0.01 * int(stop - start) + 5.0 * (not asked)
        asked.append(int(stop - start))
        return state

    monkeypatch.setattr(programs, "segment", segment)
    monkeypatch.setattr(population, "_programs_of", lambda static, rows: programs)
    monkeypatch.setattr(population.time, "monotonic", lambda: now[0])
    assert population.step_seconds(chunk) == pytest.approx(0.01)
    assert asked == [1, 1, 4, 8]  # a run has eight updates
    with pytest.raises(population.Interrupted, match="stopped"):
        population.step_seconds(chunk, lambda: True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("platforms", "found"), [(None, True), ("", True), ("tpu,cpu", True), ("cuda", False), ("tpu", False)]
)
def test_the_cpu_is_found_unless_it_is_left_out(platforms, found, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_platforms", platforms)
    assert (layout.devices.host() is not None) == found


def test_what_an_experiment_itself_says_is_kept():
    """Its first seed and its overrides, below those of a preset, and these below what a user asks for."""
    own = dataclasses.replace(
        tiny.EXPERIMENT,
        seed=7,
        overrides=(("training.epochs", 3), ("optimizer.learning_rate", 0.5), ("model.dropout", 0.1)),
    )
    own = dataclasses.replace(own, presets=(("full", Preset(2, overrides=(("optimizer.learning_rate", 0.25),))),))
    chosen = select(own, overrides={"model.dropout": 0.2})
    assert chosen.seed == 7
    assert select(own, seed=9).seed == 9
    for config in chosen.configs().values():
        assert (config.training.epochs, config.optimizer.learning_rate, config.model.dropout) == (3, 0.25, 0.2)
