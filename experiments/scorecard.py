"""The score card of the reference runs: `experiments/results/scorecard.csv`, and the tables of two READMEs.

python -m experiments.scorecard          after a reference run; a test fails where one of them is not up to date
"""

import re
from pathlib import Path

from experiments import EXPERIMENTS
from repbias_jax import store
from repbias_jax.report import card

ROOT = Path(__file__).parent.parent
RESULTS = Path("experiments/results")
BLOCK = re.compile(r"(?<=<!-- claims -->\n).*?(?=<!-- /claims -->)", re.S)


def sources() -> list[card.Source]:
    """What the experiments with a reference run bring to the card."""
    found = [card.read(ROOT / RESULTS / name, module) for name, module in EXPERIMENTS.items()]
    return [source for source in found if source is not None]


def sections() -> dict[Path, str]:
    """What stands between the markers: the claims in README, their exploratory columns beside the results."""
    rows = card.rows_of(sources())
    return {
        ROOT / "README.md": card.markdown(rows, str(RESULTS)),
        ROOT / RESULTS / "README.md": card.markdown(rows, ".", exploratory=True),
    }


if __name__ == "__main__":
    card.write_table(ROOT / RESULTS, sources())
    for path, section in sections().items():
        written = BLOCK.sub(lambda _, new=section: new, path.read_text(encoding="utf-8"))
        store.write_bytes(path, written.encode())
