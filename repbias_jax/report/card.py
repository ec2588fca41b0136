"""The score card: the claims of several experiments in one table, as `scorecard.csv`, as a page and for README.

Claims are ordered by id, with parts below their claim and exploratory conditions after all others. p is corrected by Holm
over all claims of the card, or over a family fixed beforehand. A claim counts once, whatever its number of parts; if its
parts are separate, each part counts. A claim that is not measured, or only in part, counts as p = 1.
The card depends only on the files it reads, so the same files give the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import quote

from repbias_jax import store
from repbias_jax.report import page, tables
from repbias_jax.statistics import DEPENDS, holm

COLUMNS = (
    "id", "claim", "paper", "statistic", "effect", "ci_low", "ci_high", "margin", "runs", "left_out", "pass_rate", "p",
    "p_holm", "verdict", "verdict_all_seeds", "note", "experiment", "column", "exploratory", "figure", "page",
    "side", "kind", "partial", "source", "known_from", "second_statistic", "second_effect", "second_low", "second_high",
    "second_runs", "survives_holm", "verdict_first_look", "p_first_look",
)  # fmt: skip


LEVEL = 0.05  # of Holm's correction over the card
UNDECIDED = ("inconclusive", DEPENDS)


class Source(NamedTuple):
    """The contribution of one experiment to the card.

    Attributes:
      name: of the experiment.
      title: in words.
      variant: what differs from the reference settings; empty if nothing does.
      page: path of its report, relative to the folder of the card; empty if there is none.
      rows: of its `claims.csv`, each with its `experiment`, `page` and `figure`.
    """

    name: str
    title: str
    variant: str
    page: str
    rows: list[dict[str, Any]]


def read(folder: Path, module: ModuleType) -> Source | None:
    """Returns the contribution of an experiment; None if its report is not up to date.

    Args:
      folder: of the experiment, in the folder of the card; or of its reference run.
      module: of the experiment. Its optional `FIGURES` names the figure that shows a claim or a part; the default is the
        first figure of `CAPTIONS`. Its optional `NOTES` are remarks on claims.
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


def rows_of(sources: Sequence[Source], family: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Returns the rows of the card in order, with `part` (see `tables.with_parts`), `p_holm` and `survives_holm`.

    Args:
      sources: contributions; their order decides between claims with the same id.
      family: ids of the claims over which p is corrected, including claims that are not on the card; default: all claims
        of the card.
    """
    rows = tables.with_parts([row for source in sources for row in source.rows])
    rows.sort(key=lambda row: (row["exploratory"] == "True", tables.claim_of(row["id"])))  # stable: ties keep their order
    tested = [i for i, row in enumerate(rows) if _is_tested(row) and (family is None or row["id"] in family)]
    absent = set(family or ()) - {rows[i]["id"] for i in tested}
    p = {str(i): float(rows[i]["p"] or "nan") for i in tested} | {f"absent {id_}": float("nan") for id_ in absent}
    corrected = holm(p)
    nothing = dict.fromkeys(COLUMNS, "")
    return [nothing | row | _corrected(corrected.get(str(i))) for i, row in enumerate(rows)]


def _is_tested(row: Mapping[str, Any]) -> bool:
    """Returns whether a row is one of the claims over which p is corrected."""
    return not row["part"] and row["exploratory"] == "False" and row.get("kind", "") in ("", "deciding")


def _corrected(p: float | None) -> dict[str, Any]:
    return {"p_holm": tables.cell(p), "survives_holm": "" if p is None else str(p <= LEVEL)}


def write(
    folder: Path, sources: Sequence[Source], missing: Sequence[str], family: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Writes `scorecard.csv` and `scorecard.html`; returns the rows.

    Args:
      folder: folder with one subfolder per experiment.
      sources: contributions; their order decides between claims with the same id.
      missing: names of experiments that belong to the card but have no results.
      family: as in `rows_of`.
    """
    rows = write_table(folder, sources, family)
    shown = [_shown(row) for row in rows]
    text = page.render(
        "card.html",
        title="Score card",
        sources=sources,
        missing=missing,
        illustrations=illustrations(sources),
        family=f"{len(family)} claims of confirm.json"
        if family is not None
        else f"{sum(row['p_holm'] != '' for row in rows)} claims of this card that were tested",
        tables=[
            ("Claims", [row for row in shown if row["exploratory"] != "True"]),
            ("Exploratory conditions", [row for row in shown if row["exploratory"] == "True"]),
        ],
        quote=quote,
    )
    store.write_bytes(folder / "scorecard.html", text.encode())
    return rows


def write_table(folder: Path, sources: Sequence[Source], family: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Writes `scorecard.csv`; returns the rows."""
    rows = rows_of(sources, family)
    store.write_table(folder / "scorecard.csv", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    return rows


def illustrations(sources: Sequence[Source]) -> str:
    """Returns the experiments that differ from their reference settings, and how; empty if none does."""
    alike: dict[str, list[str]] = {}
    for source in sources:
        if source.variant:
            alike.setdefault(source.variant, []).append(source.name)
    return "; ".join(f"{', '.join(names)} ({variant})" for variant, names in alike.items())


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with its numbers and texts as the page shows them."""
    numbers = {name: page.rounded(float(row[name])) if row[name] else "" for name in ("margin", "pass_rate", "p", "p_holm")}
    texts = {"effect_text": _effect(row), "verdict": tables.verdict_text(row), "note": tables.note_text(row)}
    return {**row, **numbers, **texts}


def _effect(row: Mapping[str, Any]) -> str:
    """Returns the effect of a statistic; empty for a claim whose parts have rows of their own."""
    return tables.effect_text(row) if row["margin"] else ""


def markdown(rows: Sequence[Mapping[str, Any]], place: str, exploratory: bool = False) -> str:
    """Returns the card as a Markdown table: one line per claim, its parts below it, with old and new verdicts.

    Args:
      rows: of the card.
      place: path of the card's folder for links.
      exploratory: whether to show only the exploratory conditions (each line names its condition) or only the others.
    """
    heads = ("claim", "source", "", "effect [95 % interval]", "margin", "seeds", "verdict", "first look", "p", "Holm")
    lines, linked = [], ""
    for row in rows:
        if (row["exploratory"] == "True") != exploratory:
            continue
        new = row["figure"] if not row["part"] or row["figure"] != linked else ""  # once for a claim and its parts
        linked = row["figure"]
        name = _linked(row["id"], new, place) + (f" {row['column']}" if exploratory else "")
        texts = [] if row["part"] else [row["claim"]]
        texts += [row["statistic"]] if row["margin"] else []
        effect = [_effect(row)]
        if second := tables.second_text(row):
            effect.append(f"second, {row['second_statistic']}: {second}")
        seeds = f"{row['runs']} of {int(row['runs']) + int(row['left_out'])}"
        margin = f"{float(row['margin']):.3g}" if row["margin"] else ""
        verdict = f"**{tables.verdict_text(row)}**" + (f"; {row['note']}" if row["note"] else "")
        p = f"{float(row['p']):.2g}" if row["p"] else ""
        source = "" if row["part"] else row["source"]
        cells = (
            name,
            source,
            "<br>".join(texts),
            "<br>".join(effect),
            margin,
            seeds,
            verdict,
            row["verdict_first_look"],
            p,
        )
        lines.append((*cells, _survives(row)))
    return _table(heads, lines)


def headlines(rows: Sequence[Mapping[str, Any]], ids: Sequence[str], place: str, full: str) -> str:
    """Returns the headline claims as a Markdown table, followed by a sentence that counts the verdicts of all others.

    For a claim with several parts, the table shows the label and effect of the part that decides the verdict.

    Args:
      rows: of the card.
      ids: of the claims to show; ids that are not on the card are ignored.
      place: path of the card's folder for links.
      full: path of the document with the whole card.
    """
    claims = [row for row in rows if _is_tested(row)]
    shown = [row for row in claims if row["id"] in ids]
    heads = ("claim", "", "effect [95 % interval]", "verdict", "survives Holm")
    lines = [
        (_linked(row["id"], row["figure"], place), row["claim"], _deciding_effect(row, rows),
         f"**{tables.verdict_text(row)}**", _survives(row))
        for row in shown
    ]  # fmt: skip
    rest = [row for row in claims if row["id"] not in ids]
    return _table(heads, lines) + (f"\n{others(rest, full)}\n" if rest else "")


def others(rows: Sequence[Mapping[str, Any]], full: str) -> str:
    """Returns a sentence: how many claims have each kind of verdict."""
    words = [str(row["verdict"]) for row in rows]
    as_claimed = [word for word in words if word.startswith("reproduced")]
    less = sum(word != "reproduced" for word in as_claimed)
    counts = (
        (len(as_claimed), "reproduced" + (f" ({less} of them small or of a size that is not shown)" if less else "")),
        (sum(word in UNDECIDED for word in words), "undecided"),
        (sum(word.startswith("opposite") for word in words), "opposite"),
        (words.count("no difference"), "without a difference"),
        (sum(word == "not measured" for word in words), "not measured"),
    )
    summary = ", ".join(f"{number} {word}" for number, word in counts if number)
    which = "the other claim" if len(rows) == 1 else f"the other {len(rows)} claims"
    return f"Of {which}: {summary}. [The full card]({full})."


def _deciding_effect(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the effect of a claim; for several parts, label and effect of the first deciding part with its verdict."""
    if row["margin"]:
        return tables.effect_text(row)
    for part in rows:
        alike = all(part[name] == row[name] for name in ("experiment", "column", "verdict"))
        if alike and part["part"] and tables.claim_of(part["id"]) == row["id"] and part.get("kind") in ("", "deciding"):
            return f"{part['id'].removeprefix(row['id'])}: {tables.effect_text(part)}"
    return ""


def _linked(name: str, figure: str, place: str) -> str:
    return f"[{name}]({place}/{quote(figure)})" if figure else name


def _survives(row: Mapping[str, Any]) -> str:
    """Returns whether a reproduced claim survives Holm's correction; empty for all other verdicts."""
    return {"True": "yes", "False": "no"}.get(row["survives_holm"], "") if row["verdict"].startswith("reproduced") else ""


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (heads, *lines))
    return "\n".join([head, "|" + "---|" * len(heads), *body]) + "\n"
