"""The score card of the reference runs: `experiments/results/scorecard.csv`, and the generated parts of four documents.

python -m experiments.scorecard          run it after a reference run; a test fails if one of them is not up to date

Runs that were judged by earlier rules are judged again by the present ones from their committed values
(`experiments/first_look.py`); the card has both verdicts.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import first_look
from experiments.claims import EXPERIMENTS
from repbias_jax import store
from repbias_jax.report import card, figures, tables, verdicts

ROOT = Path(__file__).parent.parent
RESULTS = Path("experiments/results")
BLOCK = re.compile(r"(?<=<!-- claims -->\n).*?(?=<!-- /claims -->)", re.S)

# README shows the first claim about each factor in each family of networks, and that on the analysis most used on brains,
# whatever their verdicts; the full card has all claims.
HEADLINES = ("C01", "C05", "C08", "C09", "C10", "C12", "C13", "C14", "C15", "C16", "C17", "C26")


def sources() -> list[card.Source]:
    """Returns the contributions to the card of all experiments with a reference run, judged by the present rules."""
    found = {name: card.read(ROOT / RESULTS / name, module) for name, module in EXPERIMENTS.items()}
    return [
        source._replace(rows=first_look.judged_again(ROOT / RESULTS / name, EXPERIMENTS[name], source.rows))
        for name, source in found.items()
        if source is not None
    ]


def sections() -> dict[Path, str]:
    """Returns the text between the markers of each document.

    README has the headline claims; in the folder of results, README has the whole card, DECISIONS the changed verdicts and
    FIGURES all figures with their captions.
    """
    rows = card.rows_of(sources())
    whole, explored = (card.markdown(rows, ".", exploratory) for exploratory in (False, True))
    return {
        ROOT / "README.md": card.headlines(rows, HEADLINES, str(RESULTS), str(RESULTS / "README.md")),
        ROOT / RESULTS / "README.md": f"### All claims\n\n{whole}\n### Exploratory conditions\n\n{explored}",
        ROOT / RESULTS / "DECISIONS.md": _changes(changed(rows)),
        ROOT / RESULTS / "FIGURES.md": _figures(),
    }


def _figures() -> str:
    """Returns all committed figures with their captions, by experiment."""
    lines = []
    for name, module in EXPERIMENTS.items():
        captions, folder = {**module.CAPTIONS, verdicts.NAME: verdicts.CAPTION}, ROOT / RESULTS / name / "figures"
        there = [figure for figure in captions if (folder / f"{figure}.png").exists()]
        lines += [f"## {name}", f"{module.EXPERIMENT.title}"] if there else []
        for figure in there:
            lines += [f"### {figure}", captions[figure], f"![{figure}]({name}/figures/{figure}.png)"]
    return "\n\n".join(lines) + "\n"


def draw_missing() -> None:
    """Draws the figure of verdicts of runs that were reported before there was one, from their committed values."""
    for name in EXPERIMENTS:
        folder = ROOT / RESULTS / name
        if not (folder / "claims.csv").exists() or (folder / "figures" / f"{verdicts.NAME}.png").exists():
            continue
        if item := verdicts.drawn(tables.read_claims(folder), pd.read_csv(folder / "claim_values.csv")):
            store.write_bytes(folder / "figures" / f"{item.name}.png", figures.as_bytes(item.figure, "png"))


def changed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the card whose verdict differs from that of the first look."""
    return [row for row in rows if row["verdict_first_look"] not in ("", row["verdict"])]


def _changes(rows: list[dict[str, Any]]) -> str:
    """Returns a table of the verdicts that changed."""
    lines = ["| claim | first look, old rules | the same values, new rules |", "|---|---|---|"]
    lines += [f"| {row['id']} {row['column']} | {row['verdict_first_look']} | {row['verdict']} |" for row in rows]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Writes `scorecard.csv`, figures of verdicts that are missing, and the text between the markers."""
    draw_missing()
    card.write_table(ROOT / RESULTS, sources())
    for path, section in sections().items():
        written = BLOCK.sub(lambda _, new=section: new, path.read_text(encoding="utf-8"))
        store.write_bytes(path, written.encode())


if __name__ == "__main__":
    write()
