"""Writes `report.html`, one self-contained page without scripts. Every name from outside is escaped."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from repbias_jax import store
from repbias_jax.config import Experiment
from repbias_jax.report import tables
from repbias_jax.report.figures import Drawn
from repbias_jax.results import MASTERY, Results


def write(
    folder: Path, experiment: Experiment, rows: Sequence[Mapping[str, Any]], drawn: Sequence[Drawn], results: Results
) -> None:
    """Writes the page. Args: rows of `claims.csv`, the figures as saved in `figures/`, and the results behind them."""
    table = results.settings.drop(columns=["column", "group", "sites"])
    varying = [name for name in table if table[name].nunique() > 1]
    text = render(
        "page.html",
        title=experiment.title,
        runs=len(results.curves.drop_duplicates(["setting", "seed"])),
        seeds=_seeds(results),
        variant=experiment.variant,
        readouts=readouts(results),
        unconverged=unconverged(results),
        conditions=[_condition(name, rows) for name, _ in experiment.conditions],
        figures=[figure(folder, item) for item in drawn],
        left_out=left_out(results),
        varying=varying,
        settings=[{"setting": s, "cells": [table.loc[s, n] for n in varying]} for s in table.index],
        constant=[(name, table[name].iloc[0]) for name in table if name not in varying],
        record=sorted(results.manifest["record"].items()),
    )
    store.write_bytes(folder / "report.html", text.encode())


def render(template: str, **values: Any) -> str:
    """Returns a page rendered from one of the templates in this folder; values are escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(template).render(**values)


def _seeds(results: Results) -> str:
    """Returns the number of seeds per setting: `16`, or `4 to 24` if it differs between settings."""
    counts = results.curves.groupby("setting")["seed"].nunique()
    return " to ".join(str(n) for n in np.unique([counts.min(), counts.max()]))


def _condition(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = []
    for row in tables.with_parts([row for row in rows if row["column"] == name]):
        repeated = {"claim": "", "paper": ""} if row["part"] else {}
        texts = {"effect_text": tables.effect_text(row), "verdict": tables.verdict_text(row), "note": tables.note_text(row)}
        own.append({k: rounded(v) for k, v in row.items()} | texts | repeated)
    return {"name": name, "exploratory": bool(own and own[0]["exploratory"]), "rows": own}


def rounded(value: Any) -> Any:
    """Returns a value as a page shows it: three digits; a missing value is empty."""
    return f"{value:.3g}" if isinstance(value, float) and not np.isnan(value) else tables.cell(value)


def figure(folder: Path, item: Drawn) -> dict[str, str]:
    """Returns name, caption and picture (base64) of a saved figure."""
    image = base64.b64encode((folder / "figures" / f"{item.name}.png").read_bytes()).decode()
    return {"name": item.name, "caption": item.caption, "image": image}


def readouts(results: Results) -> list[dict[str, Any]]:
    """Returns norm and margin (logits) of each output's readout, the means over seeds at the last step."""
    measured, rows = results.rows[results.rows["metric"] == "readout_norm"], []
    for setting in results.settings.index:
        known = set(measured[measured["setting"] == setting]["feature"])
        for output in (name for name in results.outputs(setting) if name in known):
            norm, margin = (results.values(setting, metric, output).mean() for metric in ("readout_norm", "margin"))
            if np.isfinite(norm):
                rows.append(
                    {"setting": setting, "output": output, "norm": f"{norm:.2f}", "margin": f"{round(margin, 2) + 0.0:.2f}"}
                )
    return rows


def unconverged(results: Results) -> list[str]:
    """Returns one line per measure, setting and site whose readouts did not converge; unused twins are not listed."""
    rows, settings = results.rows, results.settings.index
    rows = rows[rows["metric"].str.endswith("_converged") & (rows["value"] == 0)]
    twins = {(setting, twin) for setting in settings for twin in results.twins(setting).values()}
    rows = rows[np.array([pair not in twins for pair in zip(rows["setting"], rows["feature"], strict=True)], bool)]
    return [
        f"{metric.removesuffix('_converged')}, {setting}, {site}: {len(own)} values, of seeds "
        f"{', '.join(map(str, sorted(own['seed'].unique())))}"
        for (metric, setting, site), own in rows.groupby(["metric", "setting", "site"])
    ]


def left_out(results: Results) -> list[dict[str, Any]]:
    """Returns the runs that do not pass at the last step, with the reason."""
    rows = []
    for (setting, seed), own in _final(results).groupby(["setting", "seed"]):
        if own["worst_class"].isna().any():
            rows.append({"setting": setting, "seed": seed, "why": "diverged: its outputs are not finite"})
            continue
        failed = [
            f"{_name(results, str(setting), o)} at {w:.3f}"
            for o, w in zip(own["output"], own["worst_class"], strict=True)
            if not w > MASTERY and _asked(results, str(setting), _name(results, str(setting), o))
        ]
        if failed:
            rows.append({"setting": setting, "seed": seed, "why": f"worst class not over {MASTERY}: {', '.join(failed)}"})
    return rows


def _final(results: Results) -> pd.DataFrame:
    curves = results.curves[results.curves["split"] == "test"]
    return curves[curves["step"] == curves["setting"].map(lambda s: results.last_step(s))]


def _name(results: Results, setting: str, output: Any) -> str:
    """Returns the factor of a curve; results of the first release have its position in the list of outputs instead."""
    names = results.outputs(setting)
    return output if output in names else names[int(output)]


def _asked(results: Results, setting: str, output: str) -> bool:
    """Returns whether an output that reports a factor has a positive loss weight in any phase."""
    weights = str(results.settings.loc[setting, "training.loss_weights"])
    places = [i for i, name in enumerate(results.outputs(setting)) if name == output]
    return weights == "[]" or any(row[i] > 0 for row in json.loads(weights) for i in places)
