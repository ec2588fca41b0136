"""Tables, figures and one page from a measured experiment."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from repbias_jax import confirmation, statistics
from repbias_jax.config import Experiment
from repbias_jax.report import figures, page, tables, verdicts
from repbias_jax.report.tables import read_claims
from repbias_jax.results import Restoring, Results

__all__ = ["read_claims", "write"]


def write(folder: Path, experiment: Experiment, module: ModuleType, restoring: Restoring | None = None) -> list[str]:
    """Writes `claims.csv`, `figures/` and `report.html`; returns their names within the folder.

    Raises:
      ConfigError: the deciding parts of a confirmed claim differ from its entries in `confirm.json`, or a claim reads a
        view that depends on labels.
    """
    results, family = Results(folder, restoring), confirmation.family(experiment.confirmed)
    results.strict = False
    rows: list[dict[str, Any]] = []
    values: list[tuple[Any, ...]] = []
    blocks = {(experiment.seed, experiment.num_seeds), *((first, count) for _, first, count in experiment.seed_blocks)}
    for i, (condition, _) in enumerate(experiment.conditions):
        results.claiming = True
        claims = module.claims(results, condition)
        results.claiming = False
        if experiment.confirmed:
            claims = confirmation.planned(experiment.confirmed, claims, blocks)
        rows += statistics.judge(claims, condition, exploratory=i > 0, family=family)
        values += statistics.values_of(claims, condition)
    tables.write_claims(folder, rows)
    tables.write_values(folder, values)
    judged = verdicts.drawn(read_claims(folder), pd.read_csv(folder / "claim_values.csv"))
    drawn = figures.save(folder / "figures", [*module.figures(results), *([judged] if judged else [])])
    page.write(folder, experiment, rows, drawn, results)
    return ["claims.csv", "claim_values.csv", "report.html", *(f"figures/{figure.name}.png" for figure in drawn)]
