"""The claims of an experiment, computed before it is trained, to see whether what they read will be there.

A claim that reads a step without a snapshot, or a view that depends on labels, is refused before anything is trained.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from repbias_jax import layout, store, training
from repbias_jax.columns import COLUMNS
from repbias_jax.config import ConfigError
from repbias_jax.planning import Plan, settings_table
from repbias_jax.results import Results

SEEDS = 2  # claims are computed for so few, whatever is planned


class Planned(Results):
    """The results that a plan will have, as claims see them if no network has a value: settings, steps and views."""

    strict = False
    claiming = True

    def __init__(self, plan: Plan):
        header, rows = settings_table(plan)
        self.settings = pd.DataFrame(rows, columns=header).set_index("setting")
        self.rows, self.curves = pd.DataFrame(columns=list(COLUMNS)), pd.DataFrame(columns=list(store.CURVE_COLUMNS))
        self.seeds = list(range(SEEDS))
        self.points = {name: layout.points_of(config) for name, config in plan.configs.items()}
        self.kept: dict[str, dict[str, tuple[int, ...]]] = {}  # the steps of each stored view
        self.fed: dict[str, tuple[str, ...]] = {}
        for group in plan.groups:
            views = training.views_of(group.static)
            self.kept |= dict.fromkeys(group.settings, layout.snapshots_by_view(group.static))
            self.fed |= dict.fromkeys(group.settings, tuple(name for name, view in views.items() if view.label_fed))

    def _label_fed(self, setting: str) -> list[str]:
        """As in `Results`, with the views that are not stored."""
        return list(self.fed[setting])

    def table(self, setting: str, metric: str, feature: str = "", site: str = "last_hidden", **more: Any) -> pd.DataFrame:
        """As in `Results`, with NaN for every seed. Raises ConfigError for a step at which the view is not kept."""
        view, step = self.site(setting, site), more.pop("step", None)
        kept = self.kept[setting].get(view, ())
        steps = kept if isinstance(step, str | pd.Series) else [self.last_step(setting) if step is None else step]
        if kept and (missing := [s for s in steps if np.isfinite(s) and s not in kept]):
            near = min(kept, key=lambda s: abs(s - missing[0]))
            raise ConfigError(
                f"{setting}: a claim reads {metric} of {view} at step {missing[0]}, at which no snapshot is kept; the "
                f"nearest is at step {near}: expected other config.training.epochs or config.keep.every"
            )
        cells = [(seed, s) for s in steps for seed in self.seeds]
        found = pd.DataFrame(cells, columns=["seed", "step"]).reindex(columns=list(COLUMNS), fill_value="")
        named = {"setting": setting, "metric": metric, "feature": feature, "site": view, "at": "1", "value": np.nan}
        return found.assign(**{**named, **more})

    def accuracy(self, setting: str, output: str, metric: str = "worst_class", split: str = "test") -> pd.DataFrame:
        """As in `Results`, with NaN."""
        found = super().accuracy(setting, output, metric, split)
        return found.reindex(index=self.points[setting], columns=self.seeds).astype(float)

    def order(self, setting: str) -> pd.DataFrame:
        """As in `Results`, with the order listed for every seed."""
        if self.settings.loc[setting].get("task.order") == "example":
            raise ConfigError(
                f"{setting}: a claim reads the order of the outputs of a run, but config.task.order=example draws one for "
                f"every example"
            )
        return pd.DataFrame([self.outputs(setting)] * len(self.seeds), index=self.seeds)


def rehearse(plan: Plan, module: ModuleType) -> None:
    """Computes the claims of a plan without values. Raises ConfigError if one reads what will not be there."""
    planned = Planned(plan)
    for condition, _ in plan.experiment.conditions:
        module.claims(planned, condition)
