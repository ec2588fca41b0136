"""Prints speed targets and measurements as tables and sentences for README and BUILD.md.

  python -m experiments.benchmark.targets        prints them; a test checks that the documents hold the same text

It reads `benchmark.csv`, `transformer.csv`, `convnet.csv`, `accelerator.csv`, its manifest and `faults.csv` in
`experiments/results/`.
Source: ours.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmark.networks import FORMS
from experiments.benchmark.profiled import KINDS

RESULTS = Path(__file__).parent.parent / "results"

Row = Mapping[str, str]


class Target(NamedTuple):
    """One line of the table: the quantity in words, its row in the table of its benchmark, and its limit."""

    what: str
    part: str
    name: str  # the beginning of the name; the worst of several rows counts
    quantity: str
    limit: float
    at_most: bool = True
    unit: str = ""


TRANSFORMER = "time a run-step of the {} Transformer, ours / fastest PyTorch"
CONVNET = "time a run-step of the {} convolutional network, ours / fastest PyTorch"
SPEEDS = ("benchmark.csv", "transformer.csv", "convnet.csv")  # the tables of TARGETS
TARGETS = (
    Target("time a run-step, ours / plain PyTorch loop", "ratio", "ours / PyTorch loop", "wall", 0.25),
    Target("the same, tuned PyTorch (fused, pinned, two processes)", "ratio", "ours / PyTorch tuned", "wall", 0.60),
    Target("the same, fastest PyTorch ensemble", "ratio", "ours / PyTorch ensemble", "wall", 0.85),
    Target("rate, ours / matrix product, JAX", "ratio", "ours / matrix product, JAX", "rate", 0.70, at_most=False),
    Target("the same, stretch", "ratio", "ours / matrix product, JAX", "rate", 0.85, at_most=False),
    Target("first call: trace, compile, run (our data apart)", "start", "cold, first call", "wall", 5.0, unit=" s"),
    Target("run-steps to break even with tuned PyTorch", "start", "cold, break-even with PyTorch", "number", 10_000),
    Target("the same, our data drawn too", "start", "cold, break-even, our data", "number", 10_000),
    Target("time a run-step, 256 runs / 16", "ratio", "256 / 16 runs", "wall", 1.1),
    Target("peak memory, 256 runs / 16", "ratio", "256 / 16 runs", "peak memory", 1.1),
    Target("checkpoint and fingerprint", "checkpoint", "", "share of 10 s of training", 0.02, unit=" of a segment"),
    Target("probe, r2 alone, scikit-learn / ours", "probe", "scikit-learn r2 / ours r2", "wall", 20, at_most=False),
    Target("probe with its permutations, scikit-learn / ours", "probe", "scikit-learn / ours", "wall", 20, False),
    Target("largest difference of the probe's r2", "probe", "r2", "largest difference", 1e-5),
    Target(TRANSFORMER.format("encoder-decoder"), "transformer", "encoder_decoder, ratio: ours / PyTorch", "wall", 0.7),
    Target(TRANSFORMER.format("decoder-only"), "transformer", "decoder, ratio: ours / PyTorch", "wall", 0.7),
    Target(CONVNET.format("plain"), "convnet", "plain, ratio: ours / PyTorch", "wall", 0.9),
    Target(CONVNET.format("residual"), "convnet", "residual, ratio: ours / PyTorch", "wall", 0.9),
    Target("the same of the plain one, XLA's own convolutions / ours", "convnet", "plain, ratio: XLA's", "wall", 20, False),
)  # fmt: skip


def read(name: str, folder: Path = RESULTS) -> list[dict[str, str]]:
    """Returns the rows of a table among the results."""
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def find(rows: Sequence[Row], part: str, name: str, quantity: str, worst: Callable = max) -> Row:
    """Returns the row of a quantity whose name begins with `name`; of several, the one with the `worst` median.

    Raises:
      KeyError: there is no such row.
    """
    found = [
        r
        for r in rows
        if (r["part"], r["quantity"]) == (part, quantity) and r["name"].startswith(name) and r["rounds"] != "0"
    ]
    if not found:
        raise KeyError(f"no row {part}, {name}, {quantity}: run make benchmark")
    return worst(found, key=lambda r: float(r["median"]))


def targets(rows: Sequence[Row]) -> str:
    """Returns a Markdown table: target, median with extremes, held or not; what has no row is not measured yet.

    Args:
      rows: of the tables in SPEEDS.
    """
    lines = ["| what | target | median [least, most] | held |", "|---|---|---|---|"]
    for t in TARGETS:
        limit = f"{t.limit:,.0f}" if t.limit >= 1000 else f"{t.limit:g}"
        target = f"{'at most' if t.at_most else 'at least'} {limit}{t.unit}"
        try:
            row = find(rows, t.part, t.name, t.quantity, max if t.at_most else min)
        except KeyError:
            lines.append(f"| {t.what} | {target} | not measured yet | |")
            continue
        value = float(row["median"])
        held = value <= t.limit if t.at_most else value >= t.limit
        numbers = f"{value:.3g} [{float(row['min']):.3g}, {float(row['max']):.3g}]"
        if t.limit >= 1000:
            numbers = f"{value:,.0f} [{float(row['min']):,.0f}, {float(row['max']):,.0f}]"
        lines.append(f"| {t.what} | {target} | {numbers} | {'yes' if held else '**no**'} |")
    return "\n".join(lines) + "\n"


def sentence(rows: Sequence[Row]) -> str:
    """Returns README's sentences on speed. Args: rows of `benchmark.csv`."""

    def median(part: str, name: str, quantity: str = "wall") -> float:
        return float(find(rows, part, name, quantity)["median"])

    loop, tuned, ensemble = (1 / median("ratio", f"ours / PyTorch {name}") for name in ("loop", "tuned", "ensemble"))
    return (
        f"One update of the base network with Adam takes {median('speed', 'ours'):.0f} us per network on two cores (the "
        f"training loop alone). This is {loop:.1f} times as fast as a plain PyTorch loop, {tuned:.1f} times as fast as the "
        f"same loop tuned and pinned to cores, and {ensemble:.1f} times as fast as the fastest PyTorch ensemble that we "
        f"could make.\n"
    )


def card(rows: Sequence[Row], manifest: Mapping[str, Any]) -> str:
    """Returns README's sentences on a GPU. Args: rows of `accelerator.csv`; its manifest."""

    def rates(part: str, name: str) -> list[float]:
        return [float(r["value"]) for r in rows if r["part"] == part and name in r["name"] and r["quantity"] == "rate"]

    def at(lanes: int) -> float:
        return rates("lanes", f"{lanes} lanes, the package's options")[0]

    (took,) = [float(r["value"]) for r in rows if r["part"] == "paper" and r["unit"] == "s"]
    overlaps = [r["value"] for r in rows if r["quantity"] == "intervals overlap"]
    where = f"On one {manifest['device']} (jax {manifest['versions']['jax']}, float32)"
    return (
        f"{where} the same loop makes {at(64):,.0f} updates of a network a second with 64 networks at once and "
        f"{at(1024):,.0f} with 1,024; the fastest PyTorch ensemble of 1,024 made {max(rates('rivals', 'ensemble')):,.0f} "
        f"there. `complexity` under SGD, 112 networks, took {took:.0f} s from start to verdict, and "
        f"{overlaps.count('yes')} of its {len(overlaps)} intervals overlap those from the CPU.\n"
    )


def profile(rows: Sequence[Row]) -> str:
    """Returns a Markdown table: the share of each kind of operation in our steps. Args: rows of `transformer.csv`."""
    forms = FORMS["transformer"]
    lines = ["| time of our step spent in | " + " | ".join(forms) + " |", "|---|" + "---|" * len(forms)]
    for kind in KINDS["transformer"]:
        found = [find(rows, "transformer", f"{form}, profile: ours", kind) for form in forms]
        lines.append(f"| {kind} | " + " | ".join(f"{float(row['median']):.0%}" for row in found) + " |")
    rates = [find(rows, "transformer", f"{form}, ratio: ours / matrix product", "rate") for form in forms]
    lines.append("| rate, ours / matrix product | " + " | ".join(f"{float(row['median']):.2f}" for row in rates) + " |")
    return "\n".join(lines) + "\n"


def faults(rows: Sequence[Row]) -> str:
    """Returns a Markdown table of trials and outcomes. Args: rows of `faults.csv`."""
    lines = ["| fault | where | trials | same | named | other |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(r[k] for k in ("fault", "where", "trials", "same", "named", "other")) + " |" for r in rows]
    return "\n".join(lines) + "\n"


SECTIONS: dict[str, Callable[[], str]] = {
    "speed": lambda: sentence(read("benchmark.csv")),
    "card": lambda: card(read("accelerator.csv"), json.loads((RESULTS / "accelerator_manifest.json").read_text())),
    "targets": lambda: targets([row for name in SPEEDS if (RESULTS / name).exists() for row in read(name)]),
    "profile": lambda: profile(read("transformer.csv")),
    "faults": lambda: faults(read("faults.csv")),
}


if __name__ == "__main__":
    for name, text in SECTIONS.items():
        print(f"<!-- {name} -->\n{text()}<!-- /{name} -->")
