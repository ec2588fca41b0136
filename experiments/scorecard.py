"""The score card of the reference runs: `experiments/results/scorecard.csv`, and the table in README.

python -m experiments.scorecard          after a reference run; a test fails where either is not up to date
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


def section() -> str:
    """What stands in README between the markers."""
    return card.markdown(card.rows_of(sources()), str(RESULTS))


if __name__ == "__main__":
    card.write_table(ROOT / RESULTS, sources())
    readme = ROOT / "README.md"
    written = BLOCK.sub(lambda _: section(), readme.read_text(encoding="utf-8"))
    store.write_bytes(readme, written.encode())
