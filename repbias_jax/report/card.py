"""The score card: the claims of several experiments in one table, as `scorecard.csv`, as a page and for README.

Claims stand in the order of their ids, parts below their claim, exploratory columns after all others. p is corrected by
Holm over all claims of the card that were tested: a claim counts once, whatever its parts, and exploratory columns do not.
The card depends on the files it reads and on nothing else, so that one made again is the same byte for byte.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import quote

from repbias_jax import store
from repbias_jax.report import page, tables
from repbias_jax.statistics import holm

COLUMNS = (
    "id", "claim", "paper", "statistic", "effect", "ci_low", "ci_high", "margin", "runs", "left_out", "pass_rate", "p",
    "p_holm", "verdict", "verdict_all_seeds", "note", "experiment", "column", "exploratory", "figure", "page",
)  # fmt: skip


class Source(NamedTuple):
    """What one experiment brings to the card.

    Attributes:
      name: of the experiment.
      title: in words.
      variant: what differs from its reference settings; empty: nothing.
      page: its report, relative to the folder of the card; empty: there is none.
      rows: of its `claims.csv`, each with its `experiment`, `page` and `figure`.
    """

    name: str
    title: str
    variant: str
    page: str
    rows: list[dict[str, Any]]


def read(folder: Path, module: ModuleType) -> Source | None:
    """An experiment's part, or nothing where its report is not up to date.

    Args:
      folder: of the experiment, in the folder of the card; or of its reference run.
      module: the experiment's. `FIGURES`, if it has one, names the figure that shows a claim or a part; for the rest
        that is the first figure of `CAPTIONS`. `NOTES`, if it has them, are what a reader of a claim should know.
    """
    path = folder / "manifest.json"
    manifest = store.read_json(path, "train") if path.exists() else {"stages": {}}
    if "report" not in manifest["stages"]:
        return None
    entry, shown = manifest["stages"]["report"], getattr(module, "FIGURES", {})
    pictures = {name: f"figures/{name}.png" for name in module.CAPTIONS}
    drawn = {name: f"{folder.name}/{file}" for name, file in pictures.items() if file in entry["files"]}
    link = f"{folder.name}/report.html" if (folder / "report.html").exists() else ""
    rows, notes = [], getattr(module, "NOTES", {})
    for row in tables.read_claims(folder):
        named = shown.get(row["id"], shown.get(tables.claim_of(row["id"])))
        figure = drawn.get(named, next(iter(drawn.values()), ""))
        note = "; ".join(text for text in (row["note"], notes.get(row["id"], "")) if text)
        rows.append(row | {"experiment": folder.name, "page": link, "figure": figure, "note": note})
    variant = entry.get("variant", manifest["record"].get("variant", ""))
    return Source(folder.name, module.EXPERIMENT.title, variant, link, rows)


def rows_of(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The rows of the card, in order, with `part` as of `tables.with_parts` and `p_holm` over the card."""
    rows = tables.with_parts([row for source in sources for row in source.rows])
    rows.sort(key=lambda row: (row["exploratory"] == "True", tables.claim_of(row["id"])))  # stable: else as they came
    tested = [i for i, row in enumerate(rows) if not row["part"] and row["exploratory"] == "False"]
    corrected = holm({str(i): float(rows[i]["p"] or "nan") for i in tested})
    return [row | {"p_holm": tables.cell(corrected.get(str(i)))} for i, row in enumerate(rows)]


def write(folder: Path, sources: Sequence[Source], missing: Sequence[str]) -> list[dict[str, Any]]:
    """Writes `scorecard.csv` and `scorecard.html`; returns the rows.

    Args:
      folder: with a folder for each experiment.
      sources: in the order in which claims of the same id shall stand.
      missing: names of experiments that belong to the card and have brought nothing.
    """
    rows = write_table(folder, sources)
    shown = [_shown(row) for row in rows]
    text = page.render(
        "card.html",
        title="Score card",
        sources=sources,
        missing=missing,
        illustrations=illustrations(sources),
        tested=sum(row["p_holm"] != "" for row in rows),
        tables=[
            ("Claims", [row for row in shown if row["exploratory"] != "True"]),
            ("Exploratory columns", [row for row in shown if row["exploratory"] == "True"]),
        ],
        quote=quote,
    )
    store.write_bytes(folder / "scorecard.html", text.encode())
    return rows


def write_table(folder: Path, sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Writes `scorecard.csv`; returns the rows."""
    rows = rows_of(sources)
    store.write_table(folder / "scorecard.csv", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    return rows


def illustrations(sources: Sequence[Source]) -> str:
    """Which experiments are not at their reference settings, and how; empty where all are."""
    alike: dict[str, list[str]] = {}
    for source in sources:
        if source.variant:
            alike.setdefault(source.variant, []).append(source.name)
    return "; ".join(f"{', '.join(names)} ({variant})" for variant, names in alike.items())


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its numbers as the page shows them."""
    numbers = {name: page.rounded(float(row[name])) if row[name] else "" for name in ("margin", "pass_rate", "p", "p_holm")}
    return {**row, **numbers, "effect_text": _effect(row)}


def _effect(row: Mapping[str, Any]) -> str:
    """The effect of a statistic; nothing where a row stands for several, which are below it."""
    return tables.effect_text(row) if row["margin"] else ""


def markdown(rows: Sequence[Mapping[str, Any]], place: str, exploratory: bool = False) -> str:
    """The card as README shows it: a line a claim, a line a part below it.

    Args:
      rows: of the card.
      place: folder of the card, as links need it.
      exploratory: whether to show the exploratory columns, each line with its column, instead of all others.
    """
    lines = ["| claim | | effect [95 % interval] | margin | seeds | verdict |", "|---|---|---|---|---|---|"]
    linked = ""
    for row in rows:
        if (row["exploratory"] == "True") != exploratory:
            continue
        new = row["figure"] if not row["part"] or row["figure"] != linked else ""  # once for a claim and its parts
        linked = row["figure"]
        name = f"[{row['id']}]({place}/{quote(new)})" if new else row["id"]
        name += f" {row['column']}" if exploratory else ""
        said = [] if row["part"] else [row["claim"]]
        said += [row["statistic"]] if row["margin"] else []
        seeds = f"{row['runs']} of {int(row['runs']) + int(row['left_out'])}"
        margin = f"{float(row['margin']):.3g}" if row["margin"] else ""
        verdict = f"**{row['verdict']}**" + (f"; {row['note']}" if row["note"] else "")
        cells = [name, "<br>".join(said), _effect(row), margin, seeds, verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
