"""The notebook: in step with its script, without outputs, and run in smoke size."""

import jupytext
import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from experiments import scorecard
from experiments.claims import EXPERIMENTS

SCRIPT = ROOT / "experiments" / "notebooks" / "reproduce.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
RUN = "results = repbias_jax.run("


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters(notebook):
    """The place of the one cell that says how large the run is."""
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    return place


def contents(notebook):
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def test_script_and_notebook_are_the_same(notebook):
    """Where they are not: `jupytext --to ipynb experiments/notebooks/reproduce.py`."""
    assert contents(notebook) == contents(jupytext.read(SCRIPT))
    nbformat.validate(notebook)


def test_notebook_has_no_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def shown(cells, kind):
    return [out["data"][kind] for cell in cells for out in cell.get("outputs", ()) if kind in out.get("data", {})]


def test_notebook_runs(notebook, smoke, tmp_path, monkeypatch):
    """Every figure and table is shown, of the run and of every reference run; its run goes on with what tests share."""
    given = nbformat.v4.new_code_cell(f"SIZE, WORKDIR = {{'preset': 'smoke'}}, {str(smoke.parent)!r}")
    notebook.cells.insert(parameters(notebook) + 1, given)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this checkout's package, whatever is installed
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    (run,) = (i for i, cell in enumerate(notebook.cells) if cell.source.startswith(RUN))
    assert len(shown([notebook.cells[run]], "image/png")) == 1  # r2 by layer
    assert all("run-steps/s" not in out.get("text", "") for out in notebook.cells[run].outputs)  # nothing is trained again
    here, table, there = notebook.cells[run + 1 : -2], notebook.cells[-2], notebook.cells[-1]
    assert len(shown(here, "image/png")) == len(EXPERIMENTS["complexity"].CAPTIONS)
    [card] = shown([table], "text/markdown")
    assert card.replace("(../results/", "(./") in (ROOT / scorecard.RESULTS / "README.md").read_text()
    names = [name for name in EXPERIMENTS if (ROOT / scorecard.RESULTS / name / "claims.csv").exists()]
    captions = [caption for name in names for caption in EXPERIMENTS[name].CAPTIONS.values()]
    assert [text for text in shown([there], "text/markdown") if not text.startswith("### ")] == captions
    assert len(shown([there], "image/png")) == len(captions) > 0
