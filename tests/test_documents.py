"""The commands and numbers of README and BUILD.md, run and compared."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from conftest import DEVICES, ROOT, line_of

from experiments import scorecard
from experiments.benchmark import targets
from experiments.claims import EXPERIMENTS
from repbias_jax import store
from repbias_jax.report import card, tables
from repbias_jax.statistics import summarise

README, BUILD = ((ROOT / name).read_text() for name in ("README.md", "BUILD.md"))
RESULTS = ROOT / "experiments" / "results"
RUN = [name for name in EXPERIMENTS if (RESULTS / name / "claims.csv").exists()]  # those with a reference run


def fenced(text, language=""):
    """The contents of the fenced blocks in a language."""
    return [body for found, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if found == language]


def commands(text):
    """Every experiment command of a document, as it stands."""
    lines = [line.split("  #")[0].strip() for block in fenced(text) for line in block.splitlines()]
    return [line for line in lines if "experiments.run" in line]


@pytest.mark.parametrize("line", commands(README))
def test_readme_commands_run(line, cache, smoke, tmp_path):
    """As they stand, with a smoke preset and a scratch workdir appended; the plain one is the run all tests share."""
    words = line.split()
    assert words[:3] == [".venv/bin/python", "-m", "experiments.run"]
    if [w for w in words[3:] if not w.startswith("--workdir")] == ["--experiment=complexity"]:
        folder, printed = smoke, (smoke.parent / "printed.txt").read_text()
    else:
        more = ["--preset=smoke", f"--workdir={tmp_path}", f"--devices={DEVICES}"]
        done = subprocess.run(line_of(cache, *words[3:], *more), cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        folder, printed = tmp_path / "complexity", done.stdout
    assert "C01" in printed
    assert (folder / "report.html").exists()


def test_make_targets_of_the_readme_exist_and_run_what_it_says():
    assert "make demo\n" in fenced(README)
    assert "`make test`" in README
    demo = subprocess.run(["make", "-n", "demo", "VENV=V"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "V/bin/python -m experiments.run --experiment=complexity --preset=quick --workdir=/tmp/repbias_demo" in demo
    assert "pip install --quiet -e . -c requirements.txt" in demo
    tests = subprocess.run(["make", "-n", "test", "VENV=V"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for word in ("ruff check", "ruff format --check", "pyright", "-m pytest"):
        assert word in tests


def test_make_demo_runs(cache, smoke):
    """As it stands, in this environment instead of a new one, with a smoke preset; what all tests share is done already."""
    line = ["make", "demo", f"VENV={sys.prefix}", f"--old-file={sys.prefix}/installed", "PRESET=smoke"]
    line.append(f"DEMO={smoke.parent}")
    own = {
        "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax-{jax.__version__}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    assert f"{smoke}/report.html" in done.stdout


def test_build_reference_command_is_understood(call, tmp_path):
    left_out = ("--workdir", "--reference", "--only_print")
    for words in dict.fromkeys(
        tuple(w for w in line.split()[3:] if not w.startswith(left_out)) for line in commands(BUILD)
    ):
        status, printed, complaint = call(*words, "--only_print", f"--workdir={tmp_path}")
        assert status == 0, complaint
        assert "chunks" in printed


def test_readme_python_runs(tmp_path):
    """As it stands, but for the size of the population."""
    own, population = fenced(README, "python")
    small = (
        "num_seeds=2, overrides={'training.epochs': 1, 'task.num_train': 256, 'task.num_test': 64, 'task.num_probe': 128}"
    )
    population = population.replace("num_seeds=8", small).replace("/tmp/mine", str(tmp_path))
    found = []
    for code in (own, population):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert 0.03 < float(found[0][0]) < 0.1
    stored = pd.read_csv(tmp_path / "mine" / "results.csv").query(
        "setting == 'base.adam' and metric == 'r2' and site == 'hidden_1' and step == 2"
    )
    means = stored.groupby("feature")["value"].mean()
    names, learned, shares = (found[1][i::3] for i in range(3))
    assert names == ["parity1", "parity3"]
    curves = pd.concat(pd.read_csv(path) for path in (tmp_path / "mine").glob("*/*/curves.csv"))
    last = curves.query("setting == 'base.adam' and split == 'test' and step == 2")
    worst = last.groupby("output")["worst_class"].min()
    np.testing.assert_allclose([float(v) for v in learned], worst[names], rtol=1e-5)
    np.testing.assert_allclose([float(v) for v in shares], means[names], rtol=1e-5)


def test_readme_is_a_first_page():
    assert len(README.splitlines()) <= 200
    assert sum(line.startswith("|") for line in README.splitlines()) <= 40
    assert "OWNER" not in README
    assert fenced(README, "text") == [(RESULTS / "demo.txt").read_text()]  # what the demo printed


def test_ten_lines_of_numpy_recompute_r2(smoke):
    (code,) = (block for block in fenced(BUILD, "python") if "zarr.open_group" in block)
    assert len(code.strip().splitlines()) == 10
    path = next(smoke.glob("sgd.joint*/chunk_000/activations.zarr"))
    line = [sys.executable, "-c", code, str(path), "hidden_1", "parity4"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    stored = pd.read_csv(smoke / "results.csv").query(
        "metric == 'r2' and feature == 'parity4' and site == 'hidden_1' and step == 32"
    )
    stored = stored.set_index(["setting", "seed"])["value"]
    printed = [text.split() for text in done.stdout.splitlines()]
    assert len(printed) == 6
    for setting, seed, value in printed:
        assert float(value) == pytest.approx(stored[setting, int(seed)], abs=1e-5)


def test_readme_claims_are_those_of_the_reference_runs(tmp_path):
    """`python -m experiments.scorecard` writes both."""
    for path, section in scorecard.sections().items():
        assert scorecard.BLOCK.findall(path.read_text()) == [section], path
    card.write_table(tmp_path, scorecard.sources())
    assert (tmp_path / "scorecard.csv").read_bytes() == (ROOT / scorecard.RESULTS / "scorecard.csv").read_bytes()


def test_every_committed_figure_is_shown_once_with_a_caption():
    text = (RESULTS / "FIGURES.md").read_text()
    shown = re.findall(r"^### (\w+)\n\n(.{40,})\n\n!\[\1\]\((\w+/figures/\1\.png)\)$", text, re.M)
    there = sorted(str(path.relative_to(RESULTS)) for path in RESULTS.glob("*/figures/*.png"))
    assert sorted(path for *_, path in shown) == there


@pytest.mark.parametrize("name", list(targets.SECTIONS))
def test_measured_speed_and_faults_are_those_of_the_results(name):
    """`python -m experiments.benchmark.targets` prints what should stand there."""
    found = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README + BUILD, re.S)
    assert found == [targets.SECTIONS[name]()]


def test_targets_are_judged_from_their_rows():
    """The worst of several rows counts, on the right side of the limit; what has no row is said to be not measured."""

    def row(part, name, quantity, median):
        return {"part": part, "name": name, "quantity": quantity, "rounds": "3", "min": "0", "median": median, "max": "1e6"}

    rows = [row(t.part, t.name, t.quantity, str(t.limit)) for t in targets.TARGETS]
    assert targets.targets(rows).count("| yes |") == len(targets.TARGETS) - 1  # one row, with two limits
    rows.append(row("ratio", "ours / PyTorch ensemble vmap", "wall", "0.9"))
    assert targets.targets(rows).count("**no**") == 2
    assert targets.targets(rows[1:]).count("| not measured yet | |") == 1


def test_reference_gaps_are_those_of_its_measures():
    """The committed values of C01 are differences of the committed r2, of at least 16 seeds."""
    folder = RESULTS / "complexity"
    seeds = pd.read_csv(folder / "seeds.csv").query("metric == 'r2' and probe == 'variance'")
    values = pd.read_csv(folder / "claim_values.csv").query("column == 'sgd' and passed")
    for id_, setting in (("C01a", "sgd.joint"), ("C01b", "sgd.squared")):
        r2 = seeds[seeds["setting"] == setting].pivot(index="seed", columns="feature", values="value")
        assert len(r2) >= 16
        kept = values[values["id"] == id_].set_index("seed")["value"]
        assert len(kept) >= 12
        np.testing.assert_allclose((r2["parity1"] - r2["parity4"])[kept.index], kept, atol=1e-4)


@pytest.mark.parametrize("name", RUN)
def test_reference_claims_follow_from_their_seeds(name):
    """The committed effects and intervals are those of the committed values, one a seed, in every column."""
    values = pd.read_csv(RESULTS / name / "claim_values.csv").set_index(["id", "column"]).sort_index()
    for row in tables.read_claims(RESULTS / name):
        enough = int(row["runs"]) + int(row["left_out"]) >= 16
        assert enough or (row["kind"], row["verdict"]) == ("shown", "not measured"), row["id"]  # controls have fewer
        if row["effect"]:
            own = values.loc[[(row["id"], row["column"])]]
            found = summarise(own[own["passed"]]["value"].dropna().to_numpy())
            assert int(row["runs"]) == found.runs
            for bound in ("effect", "ci_low", "ci_high"):
                assert float(row[bound]) == pytest.approx(getattr(found, bound), rel=1e-3, abs=1e-4), (row["id"], bound)


@pytest.mark.parametrize("name", RUN)
def test_reference_is_small_and_says_where_it_comes_from(name):
    folder = RESULTS / name
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 3e6
    entry = store.read_json(folder / "manifest.json", "train")
    for stage in ("train", "measure", "report"):
        assert re.fullmatch(r"[0-9a-f]{7,40}", entry["stages"][stage]["commit"]), stage  # a clean checkout of it
    assert entry["record"]["variant"] == ""
    for file in ("frozen.json", "claims.csv", *(f"figures/{figure}.png" for figure in EXPERIMENTS[name].CAPTIONS)):
        assert (folder / file).exists(), file


def test_the_first_page_says_which_claims_have_no_verdict_yet():
    waiting = {id_ for name, module in EXPERIMENTS.items() if name not in RUN for id_ in module.CLAIMS}
    said = re.search(r"- \*\*Not run yet\*\*: (.*?)\n- ", README, re.S)
    assert waiting == set(re.findall(r"C\d\d", said[1] if said else ""))


def test_links_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "BUILD.md", RESULTS / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)
