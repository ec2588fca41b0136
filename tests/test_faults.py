"""A share of the fault campaign (`make faults` runs it all), and what it found worth a test of its own."""

import json
import shutil
import sys

import pandas as pd
import pytest
from conftest import ROOT

from tests.faults import campaign

RESULTS = ROOT / "experiments" / "results" / "faults.csv"
OF_OTHERS = [RESULTS.with_name(f"faults_{model}.csv") for model in ("transformer", "convnet")]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler to preload a library"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    made = campaign.Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


def sampled(points, number):
    """Evenly spread, first and last with them."""
    return sorted({points[round(i * (len(points) - 1) / (number - 1))] for i in range(number)})


def everything(lab, trials):
    return dict(zip(trials, lab.pool.map(lambda trial: trial(), trials.values()), strict=True))


def test_killed_between_any_two_writes(lab):
    """A spread of the crash points of every stage: the same command again ends with the same bytes."""
    trials = {}
    for stage, number in (("train", 6), ("measure", 3), ("report", 2)):
        assert lab.calls[stage] > 30  # calls are counted
        for at in sampled(range(1, lab.calls[stage] + 1), number):
            trials[stage, at] = lambda s=stage, k=at: campaign.crash_point(lab, s, k)
    assert set(everything(lab, trials).values()) == {campaign.SAME}


def test_any_file_damaged(lab):
    """Some mutations: the same numbers, or a message that names the file and the stage; both occur."""
    chosen = campaign.damages(lab, 24)
    assert {kind for _, _, kind, _ in chosen} == set(campaign.DAMAGES)
    found = everything(lab, {item: lambda i=item: campaign.damaged(lab, *i) for item in chosen})
    assert set(found.values()) == {campaign.SAME, campaign.NAMED}


@pytest.mark.parametrize("kind", campaign.LEFTOVERS)
def test_leftovers(lab, kind):
    assert campaign.leftover(lab, kind) == campaign.SAME


def test_two_processes_at_once(lab):
    assert campaign.at_once(lab, 2) == campaign.SAME


@pytest.mark.skipif(not campaign.can_mount(), reason="needs to mount a small file system, as root")
@pytest.mark.parametrize("stage", campaign.STAGES)
def test_full_disk(lab, stage):
    assert campaign.full_disk(lab, stage, 65_536) == campaign.SAME


@pytest.mark.skipif(not campaign.can_mount(), reason="needs to mount a small file system, as root")
@pytest.mark.parametrize("state", ["empty", "train"])
def test_read_only_workdir(lab, state):
    assert campaign.read_only(lab, state) == campaign.SAME


def test_the_committed_campaign_is_whole():
    """Every crash point, a hundred random kills and three hundred damages were tried, and no trial ended otherwise."""
    table = pd.read_csv(RESULTS)
    counts = table[["trials", campaign.SAME, campaign.NAMED, campaign.OTHER]].to_numpy()
    assert (counts[:, 0] == counts[:, 1:].sum(axis=1)).all()
    assert (table[campaign.OTHER] == 0).all()
    points = table[table["fault"].str.startswith("process killed at its k-th")]
    assert list(points["where"]) == list(campaign.STAGES)
    assert points["trials"].sum() > 400
    (kills,) = [int(n) for n in table["fault"].str.extract(r"killed at random moments \((\d+) kills\)")[0].dropna()]
    assert kills >= 100
    assert table[table["fault"] == "a file damaged"]["trials"].sum() >= 300
    manifest = json.loads(RESULTS.with_suffix(".json").read_text())
    runs = [manifest, *manifest.get("again", [])]
    assert {run["share"] for run in runs} == {1}
    assert set(table["commit"]) == {run["commit"] for run in runs}


@pytest.mark.parametrize("path", OF_OTHERS, ids=lambda path: path.stem)
def test_the_committed_campaign_on_another_model_has_every_fault(path):
    """A share of the trials, and no trial ended otherwise; BUILD has the counts."""
    table, whole = (pd.read_csv(own) for own in (path, RESULTS))
    counts = table[["trials", campaign.SAME, campaign.NAMED, campaign.OTHER]].to_numpy()
    assert (counts[:, 0] == counts[:, 1:].sum(axis=1)).all()
    assert (table[campaign.OTHER] == 0).all()
    assert set(_kinds(table)) == set(_kinds(whole)) - {"8 processes at once"}
    trials, same, named = counts[:, :3].sum(axis=0)
    said = " ".join((ROOT / "BUILD.md").read_text().split())
    assert f"{trials}, of which {same} ended in `same` and {named} in `named`" in said


def _kinds(table):
    return table["fault"].str.replace(r" \(.*", "", regex=True)


def test_the_campaign_tells_other_numbers(lab, tmp_path):
    """What it compares can differ: one digit of the rows, one byte of the activations, one fingerprint."""
    for name, stage in (
        ("results.csv", "measure"),
        ("*/*/curves.csv", "train"),
        ("*/*/activations.zarr/hidden_0/c/0/0/0/0", "train"),
    ):
        folder = lab.copy("report")
        path = next((folder / "tiny").glob(name))
        path.write_bytes(path.read_bytes()[:-1])
        end = campaign.Ended(0, "", 0)
        assert lab.outcome(folder, stage, end) == campaign.OTHER, name
    refused = campaign.Ended(1, f"error: {folder}: damaged; rerun --stage=train\n", 0)
    assert lab.outcome(folder, "train", refused) == campaign.NAMED
    for said in ("error: damaged\n", "Traceback\nerror: {folder}: rerun --stage=train\n", ""):
        assert lab.outcome(folder, "train", campaign.Ended(1, said, 0)) == campaign.OTHER
