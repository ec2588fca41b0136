"""What is on disk: opened by others, and detected when damaged."""

import functools
import heapq
import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pandas as pd
import pytest
import xarray
import zarr
from conftest import DEVICES, ROOT

import repbias_jax
from experiments.claims import EXPERIMENTS
from experiments.command import assemble
from repbias_jax import pairs, pipeline, planning, population, store
from repbias_jax.columns import COLUMNS
from repbias_jax.external.arrays import read_arrays
from repbias_jax.store import StoreError

ARGUMENTS = ("--experiment=complexity", "--preset=smoke", f"--devices={DEVICES}")


@pytest.fixture
def copy(smoke, tmp_path):
    """The smoke run's folder, to be damaged."""
    shutil.copytree(smoke, tmp_path / "complexity")
    return tmp_path / "complexity"


def test_files_are_as_described(smoke):
    for name in (
        "manifest.json",
        "settings.csv",
        "results.csv",
        "claims.csv",
        "report.html",
        "figures/gap.png",
        "figures/gap.pdf",
    ):
        assert (smoke / name).stat().st_size > 0
    for chunk in smoke.glob("*/chunk_*"):
        for name in ("checkpoint", "activations.zarr", "curves.csv", "done.json", "lock"):
            assert (chunk / name).exists()
        assert not [p for p in chunk.rglob("*") if p.name.endswith(".tmp")]
    rows = pd.read_csv(smoke / "results.csv")
    assert tuple(rows.columns) == COLUMNS
    key = [c for c in COLUMNS if c not in ("value", "reason")]
    assert not rows.duplicated(key).any()
    assert rows.loc[rows["value"].isna(), "reason"].notna().all()
    settings = pd.read_csv(smoke / "settings.csv")
    assert set(rows["setting"]) == set(settings["setting"])
    manifest = json.loads((smoke / "manifest.json").read_text())
    assert set(manifest["stages"]) == {"train", "measure", "report"}
    assert {"jax", "commit", "devices"} <= set(manifest["record"])


def test_zarr_and_xarray_open_the_activations(smoke):
    path = next(smoke.glob("sgd.joint*/chunk_000/activations.zarr"))
    group = zarr.open_group(path, mode="r")
    data = xarray.open_zarr(path)
    assert data["hidden_1"].dims == ("run", "snapshot_hidden_1", "example", "unit_hidden_1")
    np.testing.assert_array_equal(data["snapshot_hidden_1"], [0, 16, 32])
    np.testing.assert_array_equal(data["snapshot_input"], [0, 32])
    np.testing.assert_array_equal(data["hidden_1"][0, -1], group["hidden_1"][0, -1])
    assert np.isfinite(group["hidden_0"][:]).all()
    assert list(data["split"].values[[0, -1]]) == [0, 1]
    np.testing.assert_array_equal(data["factor.parity1"], data["input"][:, 0, :, 0])
    assert group.attrs["settings"] == ["sgd.along", "sgd.along_easy", "sgd.joint"]
    ours = store.Activations(path)
    np.testing.assert_array_equal(ours.read("hidden_1", 1), group["hidden_1"][1])


def test_load_gives_frames_and_lazy_activations(smoke):
    results = repbias_jax.load(smoke.parent)
    assert results.outputs("sgd.ladder") == ["parity1", "parity2", "parity3", "parity4"]
    assert results.sites("sgd.joint") == ["input", "hidden_0", "hidden_1", "logits"]
    assert list(results.values("sgd.joint", "r2", "parity1").index) == [0, 1]
    found = list(results.activations("sgd.joint", "hidden_0"))
    assert [seed for seed, _, _ in found] == [0, 1]
    assert found[0][1].shape == (2, 2048, 32)
    with pytest.raises(repbias_jax.ConfigError, match="found none"):
        repbias_jax.load(smoke / "figures")


def measure(folder):
    """Runs the measuring and reporting stages on a damaged copy, in this process; returns what was complained of."""
    (folder / "results.csv").unlink()
    line = [sys.executable, "-m", "experiments.run", *ARGUMENTS, f"--workdir={folder.parent}", "--stage=measure"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1, done.stderr
    assert not (folder / "results.csv").exists()
    line = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(line) == 1, done.stderr
    return line[0]


def flip(path, place=0.5):
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * place)] ^= 1
    path.write_bytes(raw)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, halve, lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_damaged_activations_are_named(copy, harm):
    """Every kind of damage to one piece of an array is found on reading, and no number comes of it."""
    chunk = next(copy.glob("sgd.joint*/chunk_000"))
    piece = next(p for p in sorted((chunk / "activations.zarr" / "hidden_0" / "c").rglob("*")) if p.is_file())
    harm(piece)
    with pytest.raises(StoreError, match=r"hidden_0: damaged .*rerun --stage=train"):
        store.Activations(chunk / "activations.zarr").read("hidden_0")


@pytest.mark.parametrize("name", ["curves.csv", "activations.zarr/hidden_0/zarr.json", "activations.zarr/zarr.json"])
def test_damaged_small_files_are_named(copy, name):
    chunk = next(copy.glob("sgd.joint*/chunk_000"))
    flip(chunk / name)
    done = store.read_json(chunk / "done.json", "train")
    with pytest.raises(StoreError, match=r"damaged; delete .* and rerun --stage=train"):
        store.verify(chunk, done["files"], "train")
    (chunk / name).unlink()
    with pytest.raises(StoreError, match="missing"):
        store.verify(chunk, done["files"], "train")


def test_damaged_curves_of_a_finished_run_are_named(command, copy):
    """Neither a library user nor a command that has nothing left to do passes them over."""
    chunk = next(copy.glob("sgd.joint*/chunk_000"))
    flip(chunk / "curves.csv")
    with pytest.raises(StoreError, match=r"curves.csv: damaged; delete .* and rerun --stage=train"):
        repbias_jax.load(copy)
    done = command(*ARGUMENTS, f"--workdir={copy.parent}", check=1)
    assert f"{chunk}/curves.csv: damaged" in done.stderr


def test_the_command_names_a_damaged_piece(copy):
    chunk = next(copy.glob("sgd.joint*/chunk_000"))
    flip(chunk / "curves.csv")
    assert f"{chunk}/curves.csv: damaged" in measure(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}'])
def test_json_cut_short_or_of_another_format_is_named(tmp_path, content):
    path = tmp_path / "done.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"done.json: .*rerun --stage=train"):
        store.read_json(path, "train")


def test_a_flipped_bit_in_a_checkpoint_is_passed_over(tmp_path):
    """Orbax restores such a file without a word; the fingerprint finds it, and the checkpoint before is used."""
    state = {"w": np.random.default_rng(0).normal(size=(2, 2, 4000)).astype(np.float32)}
    curves = np.zeros((2, 2, 3), np.float32)
    fingerprint = jax.jit(jax.vmap(jax.vmap(store.fingerprint)))

    def saved():
        return store.Saved(state, np.asarray(fingerprint(state)), curves, np.asarray(fingerprint(curves)))

    def restore(checkpoints):
        return checkpoints.restore(like, lambda found: population.is_sound(fingerprint, found), True)

    checkpoints = store.Checkpoints(tmp_path)
    for step in (8, 16):
        state = {"w": state["w"] + 1}
        checkpoints.save(step, saved())
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved())
    assert restore(checkpoints)[0] == 16
    checkpoints.close()
    largest = max((p for p in (tmp_path / "16").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(largest)
    again = store.Checkpoints(tmp_path)
    step, found, damaged = restore(again)
    assert step == 8
    np.testing.assert_allclose(found.state["w"], state["w"] - 1, atol=1e-6)
    assert len(damaged) == 1
    assert "damaged checkpoint passed over" in damaged[0]
    assert not (tmp_path / "16").exists()
    again.save(16, saved())  # orbax would not, were the damaged one still there
    assert restore(again)[0] == 16
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(b"")
    step, found, damaged = restore(again)
    assert (step, found) == (-1, None)
    assert len(damaged) == 2
    again.close()


def trained(optimizer, rows=2, dtype=np.float32):
    """A checkpoint of a small model under an optimizer, its fingerprints, and what to restore it as."""
    params = {"w": np.ones((rows, 2, 3), dtype)}
    state = {"params": params, "optimizer": jax.tree.map(np.asarray, jax.vmap(jax.vmap(optimizer.init))(params))}
    curves = np.zeros((rows, 2, 3), np.float32)
    fingerprint = jax.jit(jax.vmap(jax.vmap(store.fingerprint)))
    saved = store.Saved(state, np.asarray(fingerprint(state)), curves, np.asarray(fingerprint(curves)))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
    return saved, like, lambda found: population.is_sound(fingerprint, found)


OTHERS = {
    "another optimizer": ((optax.sgd(0.1, momentum=0.9),), r"state/optimizer/0/count is int32\[2, 2\], expected nothing"),
    "other shapes": ((optax.adam(0.1), 4), r"curve_sums is uint32\[2, 2\], expected uint32\[4, 2\]"),
    "another type": ((optax.adam(0.1), 2, np.int32), r"is float32\[2, 2, 3\], expected int32\[2, 2, 3\]"),
}


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_structure_is_not_damaged(tmp_path, other, described):
    """It is neither passed over nor removed, and the one line says what differs and the way out; then it can be used."""
    saved, like, is_sound = trained(optax.adam(0.1))
    checkpoints = store.Checkpoints(tmp_path)
    checkpoints.save(8, saved)
    checkpoints.save(16, saved)
    if not described:  # as older versions left it
        (tmp_path / "structure.json").unlink()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    arguments, message = OTHERS[other]
    _, unlike, sound = trained(*arguments)
    with pytest.raises(StoreError, match=message) as error:
        checkpoints.restore(unlike, sound, True)
    assert "undamaged" in str(error.value)
    assert "use another workdir" in str(error.value)
    assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert checkpoints.restore(like, is_sound, True)[0] == 16
    checkpoints.close()


@pytest.mark.parametrize("harm", [flip, halve, lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_a_damaged_description_of_a_checkpoint_costs_nothing(tmp_path, harm):
    saved, like, is_sound = trained(optax.adam(0.1))
    checkpoints = store.Checkpoints(tmp_path)
    checkpoints.save(8, saved)
    harm(tmp_path / "structure.json")
    assert checkpoints.restore(like, is_sound, True)[0] == 8
    checkpoints.save(16, saved)  # and is mended
    assert store.read_json(tmp_path / "structure.json", "train")["arrays"] == store.structure(saved._asdict())
    checkpoints.close()


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_damage_to_what_orbax_says_of_a_checkpoint_is_damage(tmp_path, name, place):
    """It is no other structure: the step is restored or passed over for the one before."""
    saved, like, is_sound = trained(optax.adam(0.1))
    checkpoints = store.Checkpoints(tmp_path)
    checkpoints.save(8, saved)
    checkpoints.save(16, saved)
    checkpoints.close()
    flip(next((tmp_path / "16").rglob(name)), place)
    again = store.Checkpoints(tmp_path)
    assert again.restore(like, is_sound, True)[0] in (8, 16)
    again.close()


def test_the_way_out_of_damage_works(command, smoke, copy):
    """Following the printed advice to its end gives the numbers there were."""
    chunk = next(copy.glob("sgd.joint*/chunk_000"))
    flip(chunk / "curves.csv")
    advice = measure(copy)
    assert f"delete {chunk} and rerun --stage=train" in advice
    shutil.rmtree(chunk)
    command(*ARGUMENTS, f"--workdir={copy.parent}", "--stage=train")
    command(*ARGUMENTS, f"--workdir={copy.parent}")
    assert (copy / "results.csv").read_bytes() == (smoke / "results.csv").read_bytes()
    assert (copy / "claims.csv").read_bytes() == (smoke / "claims.csv").read_bytes()


def test_a_stage_is_not_run_on_stale_files(command, copy, tmp_path):
    flip(copy / "results.csv")
    done = command(*ARGUMENTS, f"--workdir={copy.parent}", "--stage=report", check=1)
    assert "stage measure is not up to date; rerun with --stage=measure,report" in done.stderr
    done = command(*ARGUMENTS, f"--workdir={tmp_path / 'fresh'}", "--stage=report", check=1)
    assert "stage train is not up to date" in done.stderr
    with pytest.raises(StoreError, match=r"results.csv: damaged; .*rerun --stage=measure"):
        repbias_jax.load(copy)


def test_a_full_disk_is_refused_at_the_start_and_named_later(copy, tmp_path, monkeypatch):
    experiment = assemble(EXPERIMENTS["complexity"], "smoke", None, 0, [])
    folder = tmp_path / "other" / "complexity"
    plan = planning.place(experiment, planning.check(experiment, "cpu"), folder, DEVICES)
    usage = store.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"needs about 0.\d\d GB more, 0.00 GB are free"):
        pipeline.run(plan, EXPERIMENTS["complexity"], folder, ["train"], lambda: False, {"commit": ""})
    assert not folder.exists()
    with pytest.raises(StoreError, match=r"cannot be written \(No space left\)"), store.writing(tmp_path):
        raise OSError("No space left")
    with pytest.raises(StoreError, match="RESOURCE_EXHAUSTED"), store.writing(tmp_path):
        raise ValueError("RESOURCE_EXHAUSTED: disk [source=x]")


def test_only_two_checkpoints_are_kept(smoke):
    for folder in smoke.glob("*/*/checkpoint"):
        assert 1 <= len([p for p in folder.iterdir() if p.name.isdigit()]) <= 2


def test_a_held_lock_names_its_owner(tmp_path):
    with store.lock(tmp_path / "lock"), pytest.raises(StoreError, match="in use by process"), store.lock(tmp_path / "lock"):
        pass
    with store.lock(tmp_path / "lock"):  # it goes with its holder
        pass


def test_two_processes_on_one_chunk(smoke, copy):
    chunk = next(copy.glob("sgd.joint*/chunk_000"))
    (chunk / "done.json").unlink()
    manifest = store.read_json(copy / "manifest.json", "train")
    store.write_json(copy / "manifest.json", manifest | {"stages": {}})
    begun = time.monotonic()
    line = [sys.executable, "-m", "experiments.run", *ARGUMENTS, f"--workdir={copy.parent}", "--stage=train"]
    with store.lock(chunk / "lock"):
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert time.monotonic() - begun < 15  # 5 s and the imports
    assert done.returncode == 1
    assert "in use by process" in done.stderr


def test_writes_are_whole_or_not_at_all(tmp_path, monkeypatch):
    store.write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(store.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


TEXTS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "a\rb", "a\r\nb", "a\nb", 'say "a", b', " a "]


@pytest.mark.parametrize("text", TEXTS)
def test_every_cell_of_a_table_is_read_back_as_it_was(tmp_path, text):
    rows = [[text, "-0.5"], ["name", text], ["-", "-inf"]]
    store.write_table(tmp_path / "t.csv", ("a", "b"), rows)
    assert list(store.read_table(tmp_path / "t.csv")) == rows
    assert pd.read_csv(tmp_path / "t.csv", dtype=str).to_numpy().tolist() == rows


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_files_are_as_open_to_others_as_the_umask_says(tmp_path, mask):
    code = "import sys; from pathlib import Path; from repbias_jax import store; store.write_bytes(Path(sys.argv[1]), b'x')"
    line = [sys.executable, "-c", f"import os; os.umask({mask}); {code}", str(tmp_path / "f")]
    subprocess.run(line, cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~mask


def tables(folder, number, rows=3):
    """Sorted tables whose rows fall between one another's."""
    paths = [folder / f"{i:04d}.csv" for i in range(number)]
    for i, path in enumerate(paths):
        store.write_table(path, ("at", "of"), [(i + number * r, i) for r in range(rows)])
    return paths


def by_first(row):
    return int(row[0])


@pytest.mark.parametrize("number", [0, 1, 3, 4, 17])
def test_merging_in_stretches_is_merging_at_once(tmp_path, number):
    paths = tables(tmp_path, number)
    paths += paths[:2]  # equal rows stay in the order of their files
    expected = list(heapq.merge(*map(store.read_table, paths), key=by_first))
    with store.merged_rows(paths, tmp_path, by_first, at_once=3) as rows:
        assert list(rows) == expected
    assert sorted(tmp_path.iterdir()) == sorted(set(paths))
    with pytest.raises(RuntimeError, match="stopped"), store.merged_rows(paths, tmp_path, by_first, at_once=3):
        raise RuntimeError("stopped")
    assert sorted(tmp_path.iterdir()) == sorted(set(paths))


def test_more_tables_are_merged_than_files_may_be_open(tmp_path):
    """As `measure.merge` does for the chunks of a large population."""
    tables(tmp_path, 300)
    code = (
        "import resource, sys; from pathlib import Path; from repbias_jax import store;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); folder = Path(sys.argv[1]);"
        "paths = sorted(folder.glob('*.csv'));\n"
        "with store.merged_rows(paths, folder, lambda row: int(row[0])) as rows:\n"
        "    store.write_table(folder / 'all', ('at', 'of'), rows)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    assert [int(row[0]) for row in store.read_table(tmp_path / "all")] == list(range(900))


def test_results_are_the_same_however_many_files_are_open(smoke, tmp_path, monkeypatch):
    experiment = assemble(EXPERIMENTS["complexity"], "smoke", None, 0, [])
    plan = planning.place(experiment, planning.check(experiment, "cpu"), smoke, DEVICES)
    for chunk in plan.chunks:
        (tmp_path / chunk.path).mkdir(parents=True)
        shutil.copy(smoke / chunk.path / "rows.csv", tmp_path / chunk.path)
    monkeypatch.setattr(pairs, "compare", lambda *_: [])
    monkeypatch.setattr(store, "merged_rows", functools.partial(store.merged_rows, at_once=2))
    repbias_jax.measure.merge(tmp_path, "complexity", plan.chunks, experiment.probes, lambda: False)
    assert (tmp_path / "results.csv").read_bytes() == (smoke / "results.csv").read_bytes()


def test_factors_have_the_smallest_type_that_holds_them(tmp_path):
    arrays = store.Activations(tmp_path / "activations.zarr")
    arrays.create({}, store.Size(2, 2, 3), {"bit": 2, "class": 128, "token": 129, "many": 40_000}, {}, {})
    values = np.asarray([[0, 1, 127]] * 2, np.int32)
    for name, dtype in (("bit", np.int8), ("class", np.int8), ("token", np.int16), ("many", np.int32)):
        arrays.write(name, slice(0, 2), values)
        np.testing.assert_array_equal(arrays.read(name), values)
        assert arrays.read(name).dtype == dtype
    with pytest.raises(StoreError, match=r"class: values from 0 to 128 do not fit its type, int8"):
        arrays.write("class", slice(0, 2), values + (values == 127))


def test_our_own_activations_are_read_by_the_strict_reader(smoke):
    path = next(smoke.glob("sgd.joint*/chunk_000/activations.zarr"))
    found = read_arrays(path)
    for name in ("hidden_1", "factor.parity4", "seed"):
        np.testing.assert_array_equal(found[name], store.Activations(path).read(name))


def test_numbers_read_back_as_they_were():
    for value in np.float32([0.1, 1e-30, 1 / 3, 12345678, -0.0]):
        assert np.float32(store.number(value)) == value
    assert store.number(np.nan) == ""


def test_a_diverging_run_is_listed_and_left_out(command, tmp_path):
    done = command(*ARGUMENTS, f"--workdir={tmp_path}", "--config.optimizer.learning_rate=1e30")
    assert "not measured" in done.stdout
    page = (tmp_path / "complexity" / "report.html").read_text()
    assert page.count("diverged") >= 10
    rows = pd.read_csv(tmp_path / "complexity" / "results.csv")
    last = rows[(rows["step"] == 32) & (rows["site"] == "hidden_1") & (rows["metric"] == "r2")]
    assert last["value"].isna().all()
    assert (last["reason"] == "diverged").all()
