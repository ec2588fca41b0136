"""The first look: the committed reference runs (up to 16 seeds a setting, 32 in `optimizer`), judged by the present rules.

These runs were first judged by rules that have changed since. Their committed files stay as they were. Here their verdicts
are computed again from the committed values, one per seed, of the statistics that were used then; nothing is trained. All
parts decide, as they did then. A second measure is computed if it depends only on what the committed `seeds.csv` contains:
the r2 of the features at the penultimate layer at the end of training. For the others the card says that none was recorded.
"""

# pyright: reportArgumentType=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from repbias_jax import statistics
from repbias_jax.report import contrasts, tables
from repbias_jax.statistics import Claim
from repbias_jax.store import StoreError

NOT_RECORDED = "second measure not recorded"
CONTRAST = "(first - second) / (first + second)"  # of r2: the second measure of a difference in the first look
EASY_HARD, XORS = ("parity1", "parity4"), ("parity2_1", "parity2_2")

# The expected sign of each part; zero stands for an equivalence.
SIDES = {
    "C01a": +1, "C01b": +1, "C02a": -1, "C02b": +1, "C03a": +1, "C03b": +1, "C04a": +1, "C04b": +1, "C05": +1, "C06": +1,
    "C07a": +1, "C07b": +1, "C08": +1, "C09a": +1, "C09b": +1, "C10": +1, "C11": 0, "C12a": -1, "C12b": -1, "C19": +1,
    "C20": +1, "C21a": +1, "C21b": +1, "C22a": +1, "C22b": +1, "C23a": 0, "C23b": 0, "C24": -1, "C25": +1, "C26": +1,
    "C27a": -1, "C27b": +1, "C28": +1, "C29a": +1, "C29b": -1, "C29c": +1, "C30a": +1, "C30b": 0, "C32": +1, "C33a": +1,
    "C33b": +1, "C34": 0, "C35": -1, "C36": +1,
}  # fmt: skip

# These parts had a second measure then. That of C05 is read during training, and those of C09, C19, C20, C21b, C25 to C27,
# C32 and C35 are computed from measures that `seeds.csv` does not contain.
HAD_SECOND = {
    "C01a", "C01b", "C02b", "C04b", "C05", "C06", "C07a", "C08", "C09a", "C09b", "C10", "C11", "C12a", "C12b", "C19", "C20",
    "C21b", "C25", "C26", "C27a", "C27b", "C32", "C35",
}  # fmt: skip


class NothingRun:
    """Results in which no setting was run. With them the claims of a module have texts and sources but no parts."""

    def has(self, *settings: str) -> bool:
        """Returns whether these settings were run, which is never the case."""
        return False


def stated(module: ModuleType) -> dict[str, Claim]:
    """Returns the claims of an experiment by id, without parts."""
    return {claim.id: claim for claim in module.claims(NothingRun(), "")}


class Committed(NamedTuple):
    """r2 of one condition of a reference run: one row per setting, feature and seed."""

    rows: pd.Series
    condition: str

    def r2(self, setting: str, feature: str) -> pd.Series:
        """Returns r2 of a feature, by seed."""
        return self.rows.loc[f"{self.condition}.{setting}", feature]

    def gap(self, setting: str, first: str, second: str) -> pd.Series:
        """Returns r2 of one feature minus r2 of another, by seed."""
        return self.r2(setting, first) - self.r2(setting, second)

    def contrast(self, setting: str, first: str, second: str) -> pd.Series:
        """Returns the gap divided by the sum of the two r2, by seed."""
        return self.gap(setting, first, second) / (self.r2(setting, first) + self.r2(setting, second))


Measure = Callable[[Committed, str, str, str], pd.Series]  # `Committed.gap` or `Committed.contrast`


def _single(setting: str, first: str, second: str) -> Callable[[Committed, Measure], pd.Series]:
    return lambda run, measure: measure(run, setting, first, second)


def _minus(setting: str, other: str) -> Callable[[Committed, Measure], pd.Series]:
    return lambda run, measure: measure(run, setting, *EASY_HARD) - measure(run, other, *EASY_HARD)


def _slope(levels: Mapping[str, float], features: tuple[str, str]) -> Callable[[Committed, Measure], pd.Series]:
    x = np.asarray(list(levels.values()), float)
    return lambda run, measure: contrasts.slope(pd.DataFrame({s: measure(run, s, *features) for s in levels}), x)


def _swapped(run: Committed, measure: Measure) -> pd.Series:
    return (measure(run, "first_a", *XORS) + measure(run, "first_b", *reversed(XORS))) / 2


PREVALENCES = {"p50": 0.5, "p25": 0.25, "p10": 0.1, "p05": 0.05, "p02": 0.02}

# For each part, a function that computes its effect from a measure of two features. With the difference it gives the
# primary statistic of the part, which a test verifies; with the contrast it gives the second measure.
READ_FROM_R2: dict[str, Callable[[Committed, Measure], pd.Series]] = {
    "C01a": _single("joint", *EASY_HARD),
    "C01b": _single("squared", *EASY_HARD),
    "C02b": _single("equal", "majority3", "parity3"),
    "C06": _single("hard_first", *EASY_HARD),
    "C07a": _swapped,
    "C08": _slope({name: -np.log(p) for name, p in PREVALENCES.items()}, XORS),
    "C10": _slope({f"depth{n}": n for n in range(2, 7)}, EASY_HARD),
    "C11": _minus("width512", "width64"),
    "C12a": _minus("adam_3e-4_d25", "adam_3e-4_d0"),
    "C12b": _single("adam_1e-3_d25", *EASY_HARD),  # the cell that was chosen on the even seeds, as its statistic says
}


def measured(folder: Path, condition: str) -> Committed:
    """Returns the r2 of a reference run in one condition."""
    rows = pd.read_csv(folder / "seeds.csv", dtype={"feature": str})
    rows = rows[(rows["metric"] == "r2") & (rows["probe"] == "variance")]
    return Committed(rows.set_index(["setting", "feature", "seed"])["value"].sort_index(), condition)


def second(folder: Path, id_: str, condition: str) -> tuple[str, pd.Series | None]:
    """Returns the name and the values, by seed, of a part's second measure; None if the committed files do not give any."""
    if id_ == "C04b":
        run = measured(folder, condition)
        whole, *inner = (run.r2("composed", f"majority3_xor{of}") for of in ("", ".majority_a", ".majority_b"))
        return "mean of the two minus the whole", (inner[0] + inner[1]) / 2 - whole
    if id_ not in READ_FROM_R2:
        return "", None
    return CONTRAST, READ_FROM_R2[id_](measured(folder, condition), Committed.contrast)


def judged_again(folder: Path, module: ModuleType, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of a reference run's `claims.csv`, with verdict, p, note and second measure by the present rules.

    The committed verdict and p go to `verdict_first_look` and `p_first_look`. If any row has a side, all rows were written
    under the present rules and are returned unchanged.

    Args:
      folder: with `claim_values.csv` and `seeds.csv`.
      module: of the experiment, whose claims name their sources.
      rows: as returned by `tables.read_claims`.

    Raises:
      StoreError: a part does not belong to the first look.
    """
    if any(row.get("side", "") != "" for row in rows):
        return [dict(row) for row in rows]
    values = pd.read_csv(folder / "claim_values.csv").set_index(["id", "column", "seed"]).sort_index()
    rows = tables.with_parts(rows)
    parents = {(tables.claim_of(row["id"]), row["column"]) for row in rows if row["part"]}
    again: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if (row["id"], row["column"]) not in parents:
            again[row["id"], row["column"]] = _part(folder, row, values.loc[row["id"], row["column"]])
    for id_, condition in parents:
        parts = {i.removeprefix(id_): r for (i, c), r in again.items() if c == condition and tables.claim_of(i) == id_}
        again[id_, condition] = statistics.together(parts)
    sources = {id_: claim.source for id_, claim in stated(module).items()}
    return [_beside(row, again[row["id"], row["column"]], sources[tables.claim_of(row["id"])]) for row in rows]


def _part(folder: Path, row: Mapping[str, Any], values: pd.DataFrame) -> dict[str, Any]:
    id_ = str(row["id"])
    if id_ not in SIDES:
        raise StoreError(f"{folder / 'claims.csv'}: {id_} has no side and is no part of the first look; report it again")
    name, beside = second(folder, id_, str(row["column"]))
    found = statistics.judged(
        values["value"], values["passed"].astype(bool), SIDES[id_], float(row["margin"]), float(row["pass_rate"]), beside,
        values["value"],
    )  # fmt: skip
    note = NOT_RECORDED if id_ in HAD_SECOND and beside is None else ""
    return found | {"kind": "deciding", "partial": False, "second_statistic": name, "note": note}


def _notes(row: Mapping[str, Any]) -> list[str]:
    """Returns the notes of a committed row, except the one that is a verdict now."""
    return [text for text in str(row["note"]).split("; ") if text and text != statistics.DEPENDS]


def _beside(row: Mapping[str, Any], again: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns a committed row with its new verdict; the old verdict and the committed effects are kept."""
    new = ("p", "verdict", "verdict_all_seeds", "note", "side", "kind", "partial", *SECOND)
    told = {name: tables.cell(again.get(name)) for name in new}
    told["note"] = "; ".join(dict.fromkeys([*_notes(row), *(text for text in str(again["note"]).split("; ") if text)]))
    told |= {"source": source, "known_from": statistics.known_from(source)}
    old = {"verdict_first_look": row["verdict"], "p_first_look": row["p"]}
    return {name: value for name, value in row.items() if name != "part"} | told | old


SECOND = tuple(name for name in statistics.CLAIM_COLUMNS if name.startswith("second_"))
