"""Activations that are removed as soon as they are measured: the same numbers, and less disk."""

import dataclasses
import shutil
import types

import jax
import pytest

from repbias_jax import layout, measure, pipeline, planning, population, provenance, store
from repbias_jax.config import ConfigError, override_all
from repbias_jax.population import Interrupted
from repbias_jax.report.figures import Drawn, grid, label
from repbias_jax.results import Results
from tests.faults import tiny

MANY = dataclasses.replace(tiny.EXPERIMENT, num_seeds=12)


def drawing(results):
    """A figure that reads activations, of both settings."""
    figure, axes = grid(1, 1)
    for setting in ("base.slow", "base.fast"):
        _, phi, _ = next(results.activations(setting))
        axes[0, 0].plot(phi[-1].mean(axis=0))
    label(axes[0, 0], "tiny", "unit", "activation")
    return [Drawn("tiny", figure, tiny.CAPTIONS["tiny"])]


READER = types.SimpleNamespace(claims=tiny.claims, figures=drawing, CAPTIONS=tiny.CAPTIONS, __file__=tiny.__file__)


def planned(experiment, folder):
    return planning.place(experiment, planning.check(experiment, "cpu"), folder, 2)


def run(experiment, folder, stages=pipeline.STAGES, **more):
    return pipeline.run(planned(experiment, folder), READER, folder, stages, lambda: False, {"commit": "a"}, **more)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) / "tiny" for name in ("keep", "discard")]
    run(MANY, folders[0])
    run(MANY, folders[1], discard=True)
    return folders


def pieces(folder):
    """Names of the views of which there are activations."""
    return {p.parent.name for p in folder.glob("*/*/activations.zarr/*/c")} & {"hidden_0", "hidden_1", "input", "logits"}


def test_results_are_those_of_kept_activations(both):
    kept, gone = both
    for name in ("results.csv", "claims.csv", "claim_values.csv", "figures/tiny.png"):
        assert (gone / name).read_bytes() == (kept / name).read_bytes(), name
    assert len(pieces(kept)) == 4
    assert not pieces(gone)
    assert any(p.is_dir() for p in gone.glob("*/*/activations.zarr/factor.parity1/c"))


def test_activations_of_a_finished_workdir_can_be_discarded(both, tmp_path):
    shutil.copytree(both[0], tmp_path / "tiny")
    run(MANY, tmp_path / "tiny", discard=True)
    assert not pieces(tmp_path / "tiny")
    assert (tmp_path / "tiny" / "results.csv").read_bytes() == (both[0] / "results.csv").read_bytes()


def test_activations_that_are_made_again_are_the_same_bits(both, tmp_path):
    kept, gone = both
    copy = shutil.copytree(gone, tmp_path / "tiny")
    [chunk, *_] = planned(MANY, copy).chunks
    population.restore(copy, chunk)
    for view in ("hidden_0", "logits"):
        again, before = (store.Activations(f / chunk.path / "activations.zarr").read(view) for f in (copy, kept))
        assert again.shape[1] == 2
        assert (again == before).all()


def test_a_new_probe_is_measured_on_what_is_made_again(both, tmp_path):
    [group, *_] = layout.groups_of(MANY.configs(), "cpu")
    assert len(layout.snapshots_by_view(group.static)["hidden_1"]) > 2
    other = dataclasses.replace(MANY, probes=("readout",))
    copies = [shutil.copytree(folder, tmp_path / name / "tiny") for folder, name in zip(both, "ab", strict=True)]
    for copy in copies:
        run(other, copy, stages=("measure",))
    assert (copies[0] / "results.csv").read_bytes() == (copies[1] / "results.csv").read_bytes()
    assert not pieces(copies[1])
    with pytest.raises(store.StoreError, match="variance reads snapshots along training"):
        run(dataclasses.replace(MANY, probes=("variance", "walsh")), copies[1], stages=("measure",))


def test_a_new_probe_has_a_chunk_on_disk_at_a_time(both, tmp_path, monkeypatch):
    copy, real, there = shutil.copytree(both[1], tmp_path / "tiny"), population.restore, []

    def counts(*arguments):
        real(*arguments)
        there.append(len(list(copy.glob("*/*/activations.zarr/hidden_0/c"))))

    monkeypatch.setattr(population, "restore", counts)
    run(dataclasses.replace(MANY, probes=("readout",)), copy, stages=("measure",))
    assert there == [1] * len(planned(MANY, copy).chunks)


def test_other_code_makes_nothing_again(both, tmp_path, monkeypatch):
    """What it would draw and compute from the last weights would be other activations."""
    copy = shutil.copytree(both[1], tmp_path / "tiny")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    [chunk, *_] = planned(MANY, copy).chunks
    with monkeypatch.context() as changed:
        changed.setattr(jax, "default_backend", lambda: "gpu")
        with pytest.raises(store.StoreError, match="was trained on cpu, and this is gpu"):
            population.restore(copy, chunk)
    monkeypatch.setattr(provenance, "provenance_of", lambda static: {"code": "another", "jax": jax.__version__})
    with pytest.raises(store.StoreError, match="made again only by what trained them"):
        population.restore(copy, chunk)
    with pytest.raises(store.StoreError, match="made again only by what trained them"):
        run(dataclasses.replace(MANY, probes=("readout",)), copy, stages=("measure",))
    assert {path: path.read_bytes() for path in before} == before


def test_what_probes_of_pairs_read_is_estimated_to_stay(tmp_path):
    shared = dataclasses.replace(MANY, config=override_all(tiny.CONFIG, {"keep.shared": True}))
    pairs = dataclasses.replace(shared, probes=("variance", "similarity"))
    one, other = (planning.estimate(planned(e, tmp_path / "tiny"), True)["disk_bytes"] for e in (shared, pairs))
    assert other > one


def test_a_library_user_is_told(both):
    results = Results(both[1])
    with pytest.raises(store.StoreError, match="discarded after it was measured"):
        next(results.activations("base.slow"))
    assert results.values("base.slow", "r2", "parity1").notna().all()


def test_interrupted_before_the_removal_ends_in_the_same(both, tmp_path, monkeypatch):
    folder, real, calls = tmp_path / "tiny", measure.discard, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise Interrupted("stopped here")
        real(*arguments)

    monkeypatch.setattr(measure, "discard", dies)
    with pytest.raises(Interrupted):
        run(MANY, folder, discard=True)
    run(MANY, folder, discard=True)
    assert (folder / "results.csv").read_bytes() == (both[1] / "results.csv").read_bytes()
    assert not pieces(folder)


def used(folder):
    """Bytes in the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_no_more_than_a_chunk_is_on_disk(both, tmp_path, monkeypatch):
    """Whenever activations are about to go, while training and for the figure, there is one chunk of them at most."""
    folder, real, there, bytes_ = tmp_path / "tiny", measure.discard, [], []

    def counts(*arguments):
        there.append(len(list(folder.glob("*/*/activations.zarr/hidden_0/c"))))
        bytes_.append(used(folder))
        return real(*arguments)

    monkeypatch.setattr(measure, "discard", counts)
    run(MANY, folder, discard=True)
    plan, kept = planned(MANY, folder), both[0]
    assert len(plan.chunks) > 1
    assert max(there) == 1
    assert sum(there) > len(plan.chunks)  # the figure had some of them made again
    of_chunk = max(sum(used(view) for view in (kept / c.path).glob("activations.zarr/*/c")) for c in plan.chunks)
    assert max(bytes_) <= used(folder) + of_chunk
    assert used(kept) > used(folder) + of_chunk
    estimates = [planning.estimate(plan, discard)["disk_bytes"] for discard in (False, True)]
    assert estimates[1] < estimates[0]


@pytest.mark.parametrize("stages", [("train",), ("train", "report")])
def test_nothing_is_discarded_unmeasured(stages, tmp_path):
    with pytest.raises(ConfigError, match="expected train and measure together"):
        run(MANY, tmp_path / "tiny", stages=stages, discard=True)
    assert not (tmp_path / "tiny").exists()
