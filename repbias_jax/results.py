"""A measured experiment as tidy frames: what statistics, reports and notebooks read. No training code.

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

MASTERY = 0.95  # accuracy of every class at which a feature counts as learned


Restoring = Callable[[str], contextlib.AbstractContextManager[None]]  # of a chunk, by its path below the folder


class Results:
    """A measured experiment: tidy frames, and the activations opened lazily.

    Attributes:
      rows: `results.csv` as written, one row a number.
      curves: loss and accuracies, a row for each setting, seed, step, output and split.
      settings: a row a setting; its configuration's dotted names as columns.
      manifest: of the workdir.
    """

    def __init__(self, folder: Path, restoring: Restoring | None = None):
        self.folder, self.restoring = Path(folder), restoring
        self.manifest = store.read_json(self.folder / "manifest.json", "train")
        for stage in ("train", "measure"):
            if stage not in self.manifest["stages"]:
                raise store.StoreError(f"{self.folder}: stage {stage} is not up to date; rerun --stage={stage}")
            store.verify(self.folder, self.manifest["stages"][stage]["files"], stage)
        kinds: Any = dict.fromkeys(("setting", "site", "probe", "metric", "feature", "other", "at", "reason"), "str")
        self.rows = pd.read_csv(self.folder / "results.csv", keep_default_na=False, na_values={"value": [""]}, dtype=kinds)
        self.settings = pd.read_csv(self.folder / "settings.csv", keep_default_na=False).set_index("setting")
        chunks = sorted(path.parent for path in self.folder.glob("*/*/done.json"))
        for chunk in chunks:
            store.verify_chunk(chunk)
        parts = [pd.read_csv(chunk / "curves.csv", dtype={"output": "str"}) for chunk in chunks]
        curves = pd.concat(parts).sort_values(["setting", "seed", "step", "output", "split"], ignore_index=True)
        # Where other processes are not done yet there are settings, and curves, without a measured run.
        runs = self.rows[["setting", "seed"]].drop_duplicates()
        self.curves = curves.merge(runs, on=["setting", "seed"])
        self.settings = self.settings[self.settings.index.isin(runs["setting"])]

    def values(self, setting: str, metric: str, feature: str = "", site: str = "last_hidden", **more: Any) -> pd.Series:
        """One number a seed, at the last step unless `step` is given.

        Args:
          setting: full name.
          metric: such as `r2`.
          feature: factor name; empty where the metric has none.
          site: a view's name, or a place of one view, such as `last_hidden`, the penultimate layer.
          more: further columns to match: `step`, `at`.

        Returns:
          Values by seed, sorted; NaN where missing.
        """
        found = self.table(setting, metric, feature, site, **more)
        return found.set_index("seed")["value"].sort_index()

    def table(self, setting: str, metric: str, feature: str = "", site: str = "last_hidden", **more: Any) -> pd.DataFrame:
        """The rows that match; `step="all"` for all steps."""
        site = self.site(setting, site)
        step = more.pop("step", None)
        if step is None:
            step = self.last_step(setting)
        rows = self._indexed(setting, metric)
        chosen = (rows["feature"] == feature) & (rows["site"] == site)
        for column, value in more.items():
            chosen &= rows[column] == value
        return rows[chosen] if isinstance(step, str) else rows[chosen & (rows["step"] == step)]

    def _indexed(self, setting: str, metric: str) -> pd.DataFrame:
        if not hasattr(self, "_groups"):
            self._groups = dict(list(self.rows.groupby(["setting", "metric"])))
        return self._groups.get((setting, metric), self.rows.iloc[:0])

    def has(self, *settings: str) -> bool:
        """Whether all settings were run."""
        return all(name in self.settings.index for name in settings)

    def last_step(self, setting: str) -> int:
        """Length of training, in steps."""
        return int(self.settings.loc[setting, "num_steps"])  # pyright: ignore[reportArgumentType]

    def site(self, setting: str, name: str) -> str:
        """A view's own name; a place such as `last_hidden` stands for one."""
        found = self.places(setting).get(name, (name,))
        if len(found) != 1:
            raise ConfigError(f"{name} of {setting}: expected one view, not {', '.join(found) or 'none'}")
        return found[0]

    def sites(self, setting: str) -> list[str]:
        """Views in layer order, from input to logits; those that are fed labels only by their own name."""
        hidden = str(self.settings.loc[setting].get("label_fed", "")).split(" ")
        return [name for name in str(self.settings.loc[setting, "sites"]).split(" ") if name not in hidden]

    def places(self, setting: str) -> dict[str, tuple[str, ...]]:
        """The views that each named place of the model stands for."""
        text = str(self.settings.loc[setting].get("places", ""))
        if text:
            pairs = (place.split("=") for place in text.split(";"))
            return {name: tuple(views.split()) for name, views in pairs}
        # Results of the first release, which had one kind of model, do not list them.
        own = [name for name in self.sites(setting) if name != "logits"]
        layers = tuple(name for name in own if name != "input")
        return {"layers": layers, "last_hidden": (own[-1],), "before_last": tuple(own[-2:-1])}

    def twins(self, setting: str) -> dict[str, str]:
        """By feature, the factor that is the same function of input that no output needs; where there is one."""
        if "twins" in self.settings:
            text = str(self.settings.loc[setting, "twins"])
            return dict(pair.split("=") for pair in text.split(";") if text)
        # Earlier results, which had one kind of data, do not list them.
        names = self.rows["feature"].unique()
        return {name.removeprefix("twin_"): name for name in names if name.startswith("twin_")}

    def outputs(self, setting: str) -> list[str]:
        """Names of the reported factors, in the order listed."""
        return str(self.settings.loc[setting, "outputs"]).split(" ")

    def accuracy(self, setting: str, output: str, metric: str = "worst_class", split: str = "test") -> pd.DataFrame:
        """A curve of a feature, whatever its output position: a row a step, a column a seed.

        Args:
          setting: full name.
          output: the factor that is reported; where several outputs report it, the worst of them counts.
          metric: `worst_class` is the lowest class's accuracy, `accuracy` their mean, `loss` the loss.
          split: `train` or `test`.
        """
        positions = [i for i, name in enumerate(self.outputs(setting)) if name == output]
        if not positions:
            raise ConfigError(f"{setting} has no output {output}; known: {', '.join(self.outputs(setting))}")
        curves = self.curves
        # Results of the first release have the place in the list in place of the name.
        named = curves["output"].isin([output, *map(str, positions)])
        chosen = curves[(curves["setting"] == setting) & named & (curves["split"] == split)]
        worst = "max" if metric == "loss" else "min"
        return chosen.pivot_table(index="step", columns="seed", values=metric, aggfunc=worst, dropna=False)

    def mastery(self, setting: str, output: str, threshold: float = MASTERY, every: int = 1) -> pd.Series:
        """Step of the first of three evaluations in a row in which every class is above the threshold; NaN: never.

        Where curves are compared that are denser in places, `every` leaves the points at its multiples: three
        evaluations are then equally far apart everywhere.
        """
        curve = self.accuracy(setting, output)
        above = curve[curve.index % every == 0] > threshold
        lasting = above & above.shift(-1, fill_value=False) & above.shift(-2, fill_value=False)
        return lasting.idxmax().where(lasting.any()).astype(float)

    def activations(self, setting: str, site: str = "last_hidden") -> Iterator[tuple[int, np.ndarray, dict]]:
        """Seed, activations `[T, N, D]` and factors `[N]` by name, a run at a time.

        Where activations were discarded, those of the first and the last step are made again while a report is written.

        Raises:
          StoreError: they were discarded, and there is nothing that makes them again.
        """
        site = self.site(setting, site)
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
    """Opens a measured workdir: `<workdir>/<experiment>` or, where it holds one experiment, `<workdir>`.

    Raises:
      ConfigError: there is no measured experiment, or there are several.
    """
    root = Path(workdir)
    found = [root] if (root / "results.csv").exists() else sorted(p.parent for p in root.glob("*/results.csv"))
    if len(found) != 1:
        raise ConfigError(f"{root}: expected one measured experiment, found {[p.name for p in found] or 'none'}")
    return Results(found[0])
