"""Tables, figures and one page from a measured experiment."""

from pathlib import Path
from types import ModuleType
from typing import Any

from repbias_jax import statistics
from repbias_jax.config import Experiment
from repbias_jax.measure import Results
from repbias_jax.report import figures, page, tables
from repbias_jax.report.tables import read_claims

__all__ = ["read_claims", "write"]


def write(folder: Path, experiment: Experiment, module: ModuleType) -> list[str]:
    """Writes `claims.csv`, `figures/` and `report.html`; returns their names within the folder."""
    results = Results(folder)
    rows: list[dict[str, Any]] = []
    for i, (column, _) in enumerate(experiment.columns):
        rows += statistics.judge(module.claims(results, column), column, exploratory=i > 0)
    tables.write_claims(folder, rows)
    drawn = figures.save(folder / "figures", module.figures(results))
    page.write(folder, experiment, rows, drawn, results)
    return ["claims.csv", "report.html", *(f"figures/{figure.name}.png" for figure in drawn)]
