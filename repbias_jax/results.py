"""A measured experiment as tidy frames, for statistics, reports and notebooks. Imports no training code.

`load` opens a finished workdir; `Results` is what it returns.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repbias_jax import store
from repbias_jax.config import ConfigError

METRICS = store.CURVE_COLUMNS[-3:]
MASTERY = 0.95  # accuracy of every class at which a feature counts as learned


# Recomputes the discarded activations of a chunk, given by its path below the folder, while they are read.
Restoring = Callable[[str], contextlib.AbstractContextManager[None]]


class Results:
    """A measured experiment: tidy frames, and activations that are read on demand.

    Attributes:
      rows: `results.csv` as written, one row per number.
      curves: loss and accuracies, one row per setting, seed, step, output and split.
      settings: one row per setting; the columns are the dotted names of its configuration.
      manifest: of the workdir.
    """

    strict = True  # whether measures that were not made are refused; reports, which draw what there is, set it to False

    claiming = False  # whether claims are computed, which may not read views that depend on labels

    def __init__(self, folder: Path, restoring: Restoring | None = None):
        self.folder, self.restoring = Path(folder), restoring
        self.manifest = store.read_json(self.folder / "manifest.json", "train")
        for stage in ("train", "measure"):
            if stage not in self.manifest["stages"]:
                raise store.StoreError(f"{self.folder}: stage {stage} is not up to date; rerun --stage={stage}")
            store.verify(self.folder, self.manifest["stages"][stage]["files"], stage)
        kinds: Any = dict.fromkeys(("setting", "site", "probe", "metric", "feature", "other", "at", "reason"), "str")
        self.rows = pd.read_csv(self.folder / "results.csv", keep_default_na=False, na_values={"value": [""]}, dtype=kinds)
        names: Any = dict.fromkeys(("setting", "column"), "str")  # a name may look like a number
        self.settings = pd.read_csv(self.folder / "settings.csv", keep_default_na=False, dtype=names).set_index("setting")
        chunks = sorted(path.parent for path in self.folder.glob("*/*/done.json"))
        for chunk in chunks:
            store.verify_chunk(chunk)
        parts = [pd.read_csv(chunk / "curves.csv", dtype={"setting": "str", "output": "str"}) for chunk in chunks]
        curves = pd.concat(parts).sort_values(["setting", "seed", "step", "output", "split"], ignore_index=True)
        # While other processes are still working, some settings and curves have no measured run.
        runs = self.rows[["setting", "seed"]].drop_duplicates()
        self.curves = curves.merge(runs, on=["setting", "seed"])
        self.settings = self.settings[self.settings.index.isin(runs["setting"])]

    def values(self, setting: str, metric: str, feature: str = "", site: str = "last_hidden", **more: Any) -> pd.Series:
        """Returns one value per seed, by default at the last step.

        Args:
          setting: full name, such as `sgd.joint`.
          metric: such as `r2`.
          feature: name of a factor; empty if the metric has none.
          site: name of a view, or a named place of one view, such as `last_hidden`, the penultimate layer.
          more: values of further columns: `at`, and `step`, a number, or by seed the step at which this seed is read.

        Returns:
          Values by seed, sorted; NaN where a value is missing.

        Raises:
          ConfigError: there is no such setting, or it has no such metric, feature or site; the message lists those it has.
        """
        found = self.table(setting, metric, feature, site, **more)
        steps = more.pop("step", None)
        if isinstance(steps, pd.Series):
            read = found[found["step"] == found["seed"].map(steps)].set_index("seed")["value"]
            return read.reindex(sorted(set(found["seed"])))
        if found.empty and self.strict:
            wanted = more if steps is None else {**more, "step": steps}
            self._check_names(setting, metric=metric, feature=feature, site=self.site(setting, site), **wanted)
        return found.set_index("seed")["value"].sort_index()

    def _check_names(self, setting: str, **wanted: Any) -> None:
        """Raises ConfigError for the first value of a column that does not occur together with the values before it."""
        rows = self.rows[self.rows["setting"] == setting]
        for column, value in wanted.items():
            known = sorted(rows[column].unique())
            if value != "" and value not in known:
                named = ", ".join(str(name) for name in known if name != "")
                raise ConfigError(f"{setting} has no {column} {value}; known: {named}")
            rows = rows[rows[column] == value]

    def table(self, setting: str, metric: str, feature: str = "", site: str = "last_hidden", **more: Any) -> pd.DataFrame:
        """Returns the matching rows of `rows`; all steps with `step="all"` or a step for each seed. Args: as for `values`.

        Raises:
          ConfigError: there is no such setting.
        """
        site = self.site(setting, site)
        step = more.pop("step", None)
        if step is None:
            step = self.last_step(setting)
        rows = self._indexed(setting, metric)
        chosen = (rows["feature"] == feature) & (rows["site"] == site)
        for column, value in more.items():
            if column not in rows:
                raise ConfigError(f"results.csv has no column {column}; known: {', '.join(rows.columns)}")
            chosen &= rows[column] == value
        return rows[chosen] if isinstance(step, str | pd.Series) else rows[chosen & (rows["step"] == step)]

    def _indexed(self, setting: str, metric: str) -> pd.DataFrame:
        if not hasattr(self, "_groups"):
            self._groups = dict(list(self.rows.groupby(["setting", "metric"])))
        return self._groups.get((setting, metric), self.rows.iloc[:0])

    def has(self, *settings: str) -> bool:
        """Returns whether all these settings were run."""
        return all(name in self.settings.index for name in settings)

    def _options(self, setting: str) -> pd.Series:
        """Returns the row of a setting in `settings`. Raises ConfigError if there is none."""
        if not self.has(setting):
            raise ConfigError(f"unknown setting {setting}; known: {', '.join(self.settings.index)}")
        return self.settings.loc[setting]

    def last_step(self, setting: str) -> int:
        """Returns the length of training in steps."""
        return int(self._options(setting)["num_steps"])

    def site(self, setting: str, name: str) -> str:
        """Returns the name of a view, given that name or a place such as `last_hidden`.

        Raises:
          ConfigError: the name stands for no view or for several, or a claim asks for a view that depends on labels.
        """
        found = self.places(setting).get(name, (name,))
        if len(found) != 1:
            raise ConfigError(f"{name} of {setting}: expected one view, not {', '.join(found) or 'none'}")
        if self.claiming and found[0] in self._label_fed(setting):
            allowed = ", ".join(self.sites(setting))
            raise ConfigError(f"a claim reads {found[0]} of {setting}, which depends on labels; expected one of {allowed}")
        return found[0]

    def _label_fed(self, setting: str) -> list[str]:
        """Returns the views that depend on labels."""
        return str(self._options(setting).get("label_fed", "")).split(" ")

    def sites(self, setting: str) -> list[str]:
        """Returns the views in layer order, from input to logits, without views that depend on labels."""
        hidden = self._label_fed(setting)
        return [name for name in str(self._options(setting)["sites"]).split(" ") if name not in hidden]

    def places(self, setting: str) -> dict[str, tuple[str, ...]]:
        """Returns the views that each named place of the model stands for."""
        text = str(self._options(setting).get("places", ""))
        if text:
            pairs = (place.split("=") for place in text.split(";"))
            return {name: tuple(views.split()) for name, views in pairs}
        # Results of the first release, which had one kind of model, do not list places.
        own = [name for name in self.sites(setting) if name != "logits"]
        layers = tuple(name for name in own if name != "input")
        return {"layers": layers, "last_hidden": (own[-1],), "before_last": tuple(own[-2:-1])}

    def twins(self, setting: str) -> dict[str, str]:
        """Returns, by feature, its unused twin: the same function of input that no output needs. Some have none."""
        if "twins" in self.settings:
            text = str(self._options(setting)["twins"])
            return dict(pair.split("=") for pair in text.split(";") if text)
        # Earlier results, which had one kind of data, do not list twins.
        names = self.rows["feature"].unique()
        return {name.removeprefix("twin_"): name for name in names if name.startswith("twin_")}

    def outputs(self, setting: str) -> list[str]:
        """Returns the names of the factors that the outputs report, in the order listed."""
        return str(self._options(setting)["outputs"]).split(" ")

    def order(self, setting: str) -> pd.DataFrame:
        """Returns the feature that each run reports at each output position, `[seed, position]`.

        Raises:
          ConfigError: every example has an order of its own, or the runs were trained before orders were stored.
        """
        if not hasattr(self, "_runs"):
            done = [store.read_json(path, "train") for path in self.folder.glob("*/*/done.json")]
            self._runs = [run for chunk in done for run in chunk["runs"]]
        own = {run["seed"]: run["order"] for run in self._runs if run["setting"] == setting and "order" in run}
        if not own:
            raise ConfigError(f"{setting} has no common order of its outputs in {self.folder}")
        measured = set(self.rows.loc[self.rows["setting"] == setting, "seed"])  # others may be trained meanwhile
        own = {seed: order for seed, order in own.items() if seed in measured}
        names = self.outputs(setting)
        return pd.DataFrame({seed: [names[listed] for listed in order] for seed, order in own.items()}).T.sort_index()

    def accuracy(self, setting: str, output: str, metric: str = "worst_class", split: str = "test") -> pd.DataFrame:
        """Returns a training curve of a feature, whatever its output position, [step, seed].

        Args:
          setting: full name.
          output: the reported factor; if several outputs report it, the worst of them counts.
          metric: `worst_class` (lowest accuracy of a class), `accuracy` (mean over classes) or `loss`.
          split: `train` or `test`.
        """
        for name, value, known in (("metric", metric, METRICS), ("split", split, ("train", "test"))):
            if value not in known:
                raise ConfigError(f"curves have no {name} {value}; known: {', '.join(known)}")
        positions = [i for i, name in enumerate(self.outputs(setting)) if name == output]
        if not positions:
            raise ConfigError(f"{setting} has no output {output}; known: {', '.join(self.outputs(setting))}")
        curves = self.curves
        # Results of the first release have the position in the list of outputs instead of the name.
        named = curves["output"].isin([output, *map(str, positions)])
        chosen = curves[(curves["setting"] == setting) & named & (curves["split"] == split)]
        worst = "max" if metric == "loss" else "min"
        return chosen.pivot_table(index="step", columns="seed", values=metric, aggfunc=worst, dropna=False)

    def mastery(self, setting: str, output: str, threshold: float = MASTERY, every: int = 1) -> pd.Series:
        """Returns, by seed, the step of the first of three consecutive evaluations with every class above the threshold.

        NaN if there is none. If some curves have more points than others, `every` keeps only the points at its multiples,
        so that three evaluations cover the same number of steps in all curves.
        """
        curve = self.accuracy(setting, output)
        above = curve[curve.index % every == 0] > threshold
        lasting = above & above.shift(-1, fill_value=False) & above.shift(-2, fill_value=False)
        return lasting.idxmax().where(lasting.any()).astype(float)

    def activations(self, setting: str, site: str = "last_hidden") -> Iterator[tuple[int, np.ndarray, dict]]:
        """Yields seed, activations `[T, N, D]` and factors `[N]` by name, one run at a time.

        While a report is written, discarded activations of the first and the last step are recomputed.

        Raises:
          StoreError: the activations were discarded and cannot be recomputed here.
        """
        site = self.site(setting, site)
        if site not in (known := str(self._options(setting)["sites"]).split(" ")):
            raise ConfigError(f"{setting} has no site {site}; known: {', '.join(known)}")
        for path in sorted(self.folder.glob("*/*/activations.zarr")):
            arrays = store.Activations(path)
            names = arrays.attributes()["settings"]
            if setting not in names:
                continue
            gone = site in store.discarded(path.parent)
            if gone and self.restoring is None:
                raise store.StoreError(
                    f"{path}/{site}: discarded after it was measured; use a workdir that keeps activations"
                )
            chunk = str(path.parent.relative_to(self.folder))
            with self.restoring(chunk) if gone and self.restoring else contextlib.nullcontext():
                steps = [0, arrays.shape(site)[1] - 1] if gone else slice(None)
                for run, index in enumerate(arrays.read("setting")):
                    if names[index] == setting:
                        own = {p.name.removeprefix("factor."): arrays.read(p.name, run) for p in path.glob("factor.*")}
                        yield int(arrays.read("seed", run)), arrays.read(site, (run, steps)), own


def load(workdir: str | Path) -> Results:
    """Opens a measured experiment: `<workdir>/<experiment>`, or `<workdir>` if it holds a single experiment.

    Raises:
      ConfigError: there is no measured experiment, or more than one.
    """
    root = Path(workdir)
    found = [root] if (root / "results.csv").exists() else sorted(p.parent for p in root.glob("*/results.csv"))
    if len(found) != 1:
        raise ConfigError(f"{root}: expected one measured experiment, found {[p.name for p in found] or 'none'}")
    return Results(found[0])
