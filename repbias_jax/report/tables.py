"""Tables: `claims.csv`, the table printed at the end of a run, and the small files of a reference run."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import csv
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repbias_jax import store
from repbias_jax.results import Results
from repbias_jax.statistics import CLAIM_COLUMNS, KINDS, VALUE_COLUMNS


def write_claims(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `claims.csv`; missing numbers are empty."""
    store.write_table(folder / "claims.csv", CLAIM_COLUMNS, [[cell(row.get(c)) for c in CLAIM_COLUMNS] for row in rows])


def write_values(folder: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Writes `claim_values.csv`: each seed's value of each part, whether it passed, and the second measure."""
    store.write_table(folder / "claim_values.csv", VALUE_COLUMNS, [[cell(v) for v in row] for row in rows])


def cell(value: Any) -> Any:
    """Returns a value as text for a table: six digits; a missing value is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def read_claims(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of `claims.csv`, or none if there is no such file; columns added later are empty."""
    path = folder / "claims.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [dict.fromkeys(CLAIM_COLUMNS, "") | row for row in csv.DictReader(file)]


def effect_text(row: Mapping[str, Any]) -> str:
    """Returns an effect with its interval, `+0.310 [+0.280, +0.340]`, or a dash."""
    return _interval(row, ("effect", "ci_low", "ci_high")) or "-"


def second_text(row: Mapping[str, Any]) -> str:
    """Returns the second measure in the same form; empty if a part has none."""
    return _interval(row, ("second_effect", "second_low", "second_high"))


def _interval(row: Mapping[str, Any], names: tuple[str, str, str]) -> str:
    values: list[Any] = [row.get(k) for k in names]
    if any(v in (None, "") or math.isnan(float(v)) for v in values):
        return ""
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*map(float, values))


def verdict_text(row: Mapping[str, Any]) -> str:
    """Returns a verdict with its marks: `partial` if a deciding part is not measured; `shown` or `ours` for parts that do
    not decide."""
    kind = str(row.get("kind") or "deciding")
    marks = [mark for mark, on in (("partial", str(row.get("partial")) == "True"), (kind, kind in KINDS[1:])) if on]
    return f"{row['verdict']} ({', '.join(marks)})" if marks else str(row["verdict"])


def note_text(row: Mapping[str, Any]) -> str:
    """Returns the notes of a row and its second measure, as text for a page."""
    second = second_text(row)
    named = f"second measure, {row.get('second_statistic')}: {second}" if second else ""
    return "; ".join(text for text in (str(row.get("note") or ""), named) if text)


def claims_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the claims as lines of plain text; on a score card each line names its experiment."""
    table = [("claim", "condition", "effect [95 % interval]", "runs", "left out", "verdict", "experiment")]
    for row in rows:
        verdict = verdict_text(row) + (" (exploratory)" if str(row["exploratory"]) == "True" else "")
        cells = (row["id"], row["column"], effect_text(row), row["runs"], row["left_out"], verdict)
        table.append((*cells, row.get("experiment", "")))
    if not any(line[-1] for line in table[1:]):
        table = [line[:-1] for line in table]
    widths = [max(len(str(line[i])) for line in table) for i in range(len(table[0]))]
    return ["  ".join(str(v).ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in table]


def claim_of(id_: Any) -> str:
    """Returns the id of the claim: `C01` for `C01` and for its part `C01a`."""
    return str(id_).rstrip(string.ascii_lowercase)


def with_parts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows, each with `part`: whether it is a part of a claim that has a row of its own."""

    def place(row: Mapping[str, Any], id_: str) -> tuple:
        return row.get("experiment"), row["column"], id_

    known = {place(row, str(row["id"])) for row in rows}
    return [{**row, "part": claim_of(row["id"]) != row["id"] and place(row, claim_of(row["id"])) in known} for row in rows]


def reference(results: Results, rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Writes the small files of a reference run: claims, their values, rows of two snapshots, curves, manifest.

    Measures are means over seeds, before training and at the last snapshot; r2 before the readout, the upper end of its
    null band and readout norms are also written by seed, at the last one. Curves are accuracies on test data: mean, minimum
    and maximum over seeds.

    Args:
      results: of the run.
      rows: of `claims.csv`.
      target: folder to write to.
    """
    write_claims(target, rows)
    last = results.rows["setting"].map(lambda s: results.last_step(s))
    chosen = results.rows[results.rows["step"].isin([0]) | (results.rows["step"] == last)]
    chosen = chosen.drop(columns=["experiment", "group", "split"])
    # Measures of pairs are averaged over the seeds of both models.
    chosen["other"] = chosen["other"].str.replace(r"/\d+", "", n=1, regex=True)
    paired = ["other"] if set(chosen["other"]) != {""} else []
    chosen = chosen if paired else chosen.drop(columns="other")
    keys = ["setting", "step", "site", "probe", "metric", "feature", *paired, "at"]
    summary = chosen.groupby(keys)["value"].agg(["mean", "std", "count"]).reset_index()
    final = chosen[chosen["step"] == last.reindex(chosen.index)]
    penultimate = final["setting"].map(lambda s: results.site(s, "last_hidden"))
    main = final[final["metric"].isin(["r2", "null_high", "readout_norm"]) & (final["site"] == penultimate)]
    _write_frame(target / "measures.csv", summary)
    _write_frame(target / "seeds.csv", main.drop(columns=paired))
    curves = results.curves[results.curves["split"] == "test"]
    curves = curves.groupby(["setting", "step", "output"])["accuracy"].agg(["mean", "min", "max", "count"]).reset_index()
    _write_frame(target / "curves.csv", curves)
    for picture in sorted((results.folder / "figures").glob("*.png")):
        store.write_bytes(target / "figures" / picture.name, picture.read_bytes())
    for name in ("settings.csv", "claim_values.csv"):
        store.write_bytes(target / name, (results.folder / name).read_bytes())
    store.write_json(target / "manifest.json", results.manifest)


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    rounded = frame.copy()
    for name in rounded.select_dtypes(np.floating):
        rounded[name] = rounded[name].map(lambda v: "" if np.isnan(v) else f"{v:.5g}")
    store.write_table(path, list(rounded.columns), rounded.to_numpy().tolist())
