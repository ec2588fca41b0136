"""What BUILD.md says on adding an experiment and a feature of strings, done to the letter in a copy of the checkout."""

import re
import shlex
import shutil
import subprocess
import sys

import pandas as pd
from conftest import DEVICES, ROOT
from test_documents import BUILD, fenced

SECTION = re.search(r"^### Add an experiment of your own\n(.*?)(?=^##+ )", BUILD, re.M | re.S)[1]
PLACE = re.compile(r"# (?:in (?P<old>\S+), below the line: (?P<line>.+)|the new file (?P<new>\S+))")


def follow(block, checkout):
    """Writes a block where its first line says; the file it changes has to be there, a new one must not."""
    first, rest = block.split("\n", 1)
    place = PLACE.fullmatch(first)
    if place["new"]:
        path = checkout / place["new"]
        assert not path.exists()
        path.write_text(rest)
        return
    path = checkout / place["old"]
    lines = path.read_text().splitlines()
    assert lines.count(place["line"]) == 1, f"{path} has no such line, or several: {place['line']}"
    at = lines.index(place["line"]) + 1
    path.write_text("\n".join([*lines[:at], rest.rstrip("\n"), *lines[at:]]) + "\n")


def test_from_a_new_feature_to_a_figure_and_a_verdict(cache, tmp_path):
    checkout, workdir = tmp_path / "checkout", tmp_path / "work"
    for name in ("repbias_jax", "experiments", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
    blocks = fenced(SECTION, "python")
    assert len([line for block in blocks for line in block.splitlines()[1:] if line]) < 60
    for block in blocks:
        follow(block, checkout)
    lint = [sys.executable, "-m", "ruff", "check", "--fix", "--config", str(ROOT / "pyproject.toml")]
    touched = ["repbias_jax/features.py", "experiments/claims/__init__.py", "experiments/claims/multiplexer.py"]
    checked = subprocess.run([*lint, *touched], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout
    contract = [sys.executable, "-m", "pytest", "tests/test_layout.py", "-k", "contract and multiplexer"]
    kept = subprocess.run(contract, cwd=checkout, capture_output=True, text=True, timeout=120)
    assert kept.returncode == 0, kept.stdout
    (line,) = fenced(SECTION, "bash")
    python, *words = shlex.split(line.replace("/tmp/multiplexer", str(workdir)))
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *words, f"--devices={DEVICES}", f"--compilation_cache={cache}"],
        cwd=checkout, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = workdir / "multiplexer"
    claims = pd.read_csv(folder / "claims.csv")
    assert list(claims["id"]) == ["X01"]
    assert re.search(r"^X01 +sgd .*not measured", done.stdout, re.M)
    assert str(folder / "report.html") in done.stdout
    assert (folder / "figures" / "layers.png").stat().st_size > 5_000
    rows = pd.read_csv(folder / "results.csv").query("metric == 'r2' and site == 'hidden_1' and step > 0")
    assert set(rows[rows["value"].notna()]["feature"]) >= {"mux", "parity3", "twin_mux", "twin_parity3"}


STRINGS = re.search(r"^### Add a feature of strings\n(.*?)(?=^##+ )", BUILD, re.M | re.S)[1]
READ_BACK = """
import jax, jax.numpy as jnp, numpy as np
from repbias_jax.config import dials_of
from repbias_jax.data import sequences
sequences.check(task)
dials = dials_of(config)
drawn = sequences.draw(task, dials, jax.random.key(0))
found = jax.vmap(lambda k: sequences.sample(task, dials, drawn, k))(jax.random.split(jax.random.key(1), 400))
(part, *_) = sequences._parts(task)
counts = np.sum(np.asarray(found.inputs) == np.asarray(part.own(drawn))[0], axis=1)
assert set(counts) == {1, 2}, set(counts)
np.testing.assert_array_equal(found.factors["occurs_twice"], counts == 2)
assert 0.4 < np.mean(found.factors["occurs_twice"]) < 0.6
"""


def test_a_feature_of_strings_in_a_few_lines(tmp_path):
    for name in ("repbias_jax", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    block, used = fenced(STRINGS, "python")
    assert len(block.splitlines()) < 20
    follow(block, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", used + READ_BACK], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    contract = [sys.executable, "-m", "pytest", "tests/test_sequences.py", "-k", "each_feature_of_strings and occurs_twice"]
    kept = subprocess.run(contract, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert kept.returncode == 0, kept.stdout
