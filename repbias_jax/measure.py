"""Reads the store in bounded blocks, maps probes over runs, snapshots and sites, and writes tidy rows.

`load` opens a finished workdir for library users; `Results` is what statistics, reports and experiments read.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (pandas annotates what may be a Series, a DataFrame or an array as any of them.)

import fnmatch
import functools
import heapq
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from tqdm import tqdm

from repbias_jax import pairs, population, store, training
from repbias_jax.config import ConfigError, Dials, Static
from repbias_jax.data import DATA
from repbias_jax.population import Chunk, Interrupted, Layout
from repbias_jax.probes import PROBES
from repbias_jax.probes.moments import Measured, Side

COLUMNS = (
    "experiment", "group", "setting", "seed", "step", "site", "probe", "metric", "feature", "other", "at", "split",
    "value", "reason",
)  # fmt: skip
MASTERY = 0.95  # accuracy of every class at which a feature counts as learned


class Results:
    """A measured experiment: tidy frames, and the activations opened lazily.

    Attributes:
      rows: `results.csv` as written, one row a number.
      curves: loss and accuracies, a row for each setting, seed, step, output and split.
      settings: a row a setting; its configuration's dotted names as columns.
      manifest: of the workdir.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
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
            verify_chunk(chunk)
        parts = [pd.read_csv(chunk / "curves.csv") for chunk in chunks]
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
          site: a site's name; `last_hidden` is the penultimate layer.
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
        """A site's own name; `last_hidden` stands for the penultimate layer."""
        return population.resolve_site(name, self.sites(setting))

    def sites(self, setting: str) -> list[str]:
        """Sites in order, from input to logits."""
        return str(self.settings.loc[setting, "sites"]).split(" ")

    def outputs(self, setting: str) -> list[str]:
        """Names of the reported factors, in the order listed."""
        return str(self.settings.loc[setting, "outputs"]).split(" ")

    def accuracy(self, setting: str, output: str, metric: str = "worst_class", split: str = "test") -> pd.DataFrame:
        """A curve: a row a step, a column a seed. `worst_class` is the lowest class's accuracy, `accuracy` their mean."""
        position = self.outputs(setting).index(output)
        curves = self.curves
        chosen = (curves["setting"] == setting) & (curves["output"] == position) & (curves["split"] == split)
        return curves[chosen].pivot(index="step", columns="seed", values=metric)

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
        """Seed, activations `[T, N, D]` and factors `[N]` by name, a run at a time."""
        site = self.site(setting, site)
        for path in sorted(self.folder.glob("*/*/activations.zarr")):
            arrays = store.Activations(path)
            names = arrays.attributes()["settings"]
            factors = [p.name for p in path.glob("factor.*")]
            for run, index in enumerate(arrays.read("setting")):
                if names[index] == setting:
                    own = {name.removeprefix("factor."): arrays.read(name, run) for name in factors}
                    yield int(arrays.read("seed", run)), arrays.read(site, run), own


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


class Block(NamedTuple):
    """Some runs of a chunk at one site and snapshot."""

    chunk: Chunk
    site: str
    step: int
    first: int  # of the runs, within the chunk
    widest: int  # units of the chunk's widest site
    runs: tuple[tuple[str, int], ...]  # its own; what fills the block up to `lanes` comes after
    activations: np.ndarray  # [lanes, N, D]
    factors: dict[str, np.ndarray]  # [lanes, N] each


def all_measured(folder: Path, chunks: Sequence[Chunk], code: str) -> bool:
    """Whether every chunk has been measured, by whichever process."""
    return all(_is_measured(folder / chunk.path, store.digest([code, chunk.runs])) for chunk in chunks)


def merge(folder: Path, name: str, chunks: Sequence[Chunk], probes: Sequence[str], stop: Callable[[], bool]) -> None:
    """Writes `results.csv` from the rows of all chunks, a row at a time, and those of pairs. Args: as in `measure`."""
    groups = {setting: chunk.group.name for chunk in chunks for setting in chunk.group.settings}
    found = [(name, groups[row[0]], *row) for row in pairs.compare(folder, chunks, probes, stop)]
    rows = [store.read_table(folder / chunk.path / "rows.csv") for chunk in chunks]
    store.write_table(folder / "results.csv", COLUMNS, heapq.merge(*rows, sorted(found, key=_order), key=_order))


def measure(
    folder: Path, name: str, chunks: Sequence[Chunk], layout: Layout, probes: Sequence[str], stop: Callable[[], bool],
    code: str,
) -> None:  # fmt: skip
    """Runs the probes on chunks, each with a file of its own; what was measured before is not measured again.

    Args:
      folder: the experiment's folder.
      name: of the experiment.
      chunks: what was trained, or a share of it.
      layout: lanes of a block.
      probes: names in PROBES.
      stop: polled between chunks.
      code: fingerprint of training, probes and their code: what a chunk's rows depend on.

    Raises:
      StoreError: something is missing or damaged.
      Interrupted: `stop` said so; the chunks before are kept.
    """
    terminal = sys.stderr.isatty()
    for i, chunk in enumerate(tqdm(chunks, desc="measure", unit="chunk", disable=not terminal)):
        if stop():
            raise Interrupted(f"{i} of {len(chunks)} chunks are measured")
        if not terminal and i:
            print(f"measure: {i}/{len(chunks)} chunks done", file=sys.stderr, flush=True)
        path, own = folder / chunk.path, store.digest([code, chunk.runs])
        verify_chunk(path)
        if _is_measured(path, own):
            continue
        with store.lock(path / "lock"):
            found = _of_final(list(_measure_chunk(path, chunk, layout, probes)), chunk)
            rows = [(name, chunk.group.name, *row) for row in found]
            store.write_table(path / "rows.csv", COLUMNS, sorted(rows, key=_order))
            sums = {"rows.csv": store.checksum(path / "rows.csv")}
            store.write_json(path / "measured.json", {"format": store.FORMAT, "fingerprint": own, "files": sums})


def verify_chunk(path: Path) -> None:
    """Raises StoreError when a chunk is not done or one of its small files is damaged."""
    store.verify(path, store.read_json(path / "done.json", "train")["files"], "train")


def _is_measured(path: Path, fingerprint: str) -> bool:
    if not (path / "measured.json").exists():
        return False
    entry = store.read_json(path / "measured.json", "measure")
    rows = path / "rows.csv"
    same = entry["fingerprint"] == fingerprint and rows.is_file()
    return same and store.checksum(rows) == entry["files"]["rows.csv"]


def _order(row: Sequence[Any]) -> tuple[Any, ...]:
    """The order of `results.csv`: by setting, seed, step, site, probe, metric, feature, other, at."""
    return (row[2], int(row[3]), int(row[4]), *row[5:11])


def _measure_chunk(folder: Path, chunk: Chunk, layout: Layout, probes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Rows from `setting` on, for all sites and snapshots of a chunk."""
    static, last = chunk.group.static, chunk.group.static.config.num_steps
    values = DATA[static.config.task.name].num_values(static.config.task)
    sites = tuple(population.sites_of(static, next(iter(chunk.group.dials.values()))))
    params = None
    for block in _blocks(folder, chunk, layout.lanes):
        for name in probes:
            probe = PROBES[name]
            places = [population.resolve_site(s, sites) for s in probe.sites or ("*",)]
            here = any(fnmatch.fnmatchcase(block.site, place) for place in places)
            if probe.kind == "pair" or not here or not (probe.along or block.step in (0, last)):
                continue  # pairs cross chunks: `merge` has them compared
            if probe.kind == "representation":
                phi = _padded(block) if probe.padded else block.activations
                found = _representation(name, values)(phi, block.factors)
            elif block.step == last:  # only the last weights are kept
                params = _restored(folder, chunk, layout) if params is None else params
                found = _intervene(name, block, params)
            else:
                continue
            yield from _rows(block, name, found)


def _blocks(folder: Path, chunk: Chunk, lanes: int) -> Iterator[Block]:
    """The pieces of a chunk as they lie on disk: `lanes` runs, one snapshot, one site.

    A short last piece is filled up with its last run, so that bits do not depend on the number of runs.
    """
    arrays = store.Activations(folder / "activations.zarr")
    names = [p.name for p in sorted((folder / "activations.zarr").glob("factor.*"))]
    factors = {name.removeprefix("factor."): arrays.read(name).astype(np.int32) for name in names}
    sites = arrays.attributes()["sites"]
    widest = max(arrays.shape(site)[-1] for site in sites)
    for site in sites:
        steps = arrays.read(f"snapshot_{site}")
        for t, step in enumerate(steps):
            for first in range(0, len(chunk.runs), lanes):
                last = min(first + lanes, len(chunk.runs))
                full = [*range(last - first), *[last - first - 1] * (lanes - last + first)]
                own = {name: values[first:last][full] for name, values in factors.items()}
                phi = arrays.read(site, np.s_[first:last, t])[full]
                padding = widest if len(steps) == 2 else 0
                yield Block(chunk, site, int(step), first, padding, chunk.runs[first:last], phi, own)


def _halves(phi, factors) -> tuple[Side, Side]:
    """The fit half and the score half of one run's probe set."""
    half = len(phi) // 2
    fit = (phi[:half], {n: v[:half] for n, v in factors.items()})
    return fit, (phi[half:], {n: v[half:] for n, v in factors.items()})


def _padded(block: Block) -> np.ndarray:
    """Activations with units that are always zero, which change no probe and save compiling for every width."""
    more = max(0, block.widest - block.activations.shape[-1])
    return np.pad(block.activations, ((0, 0), (0, 0), (0, more)))


@functools.cache
def _representation(name: str, num_values: int) -> Callable:
    """A probe of representations, compiled for many runs: `[R, N, D]` and factors `[R, N]`."""
    return jax.jit(jax.vmap(lambda phi, factors: PROBES[name].function(*_halves(phi, factors), num_values)))


@functools.cache
def _intervention(name: str, static: Static, site: str) -> Callable:
    """An intervention, compiled for many runs; `finish` is the model from `site` onwards."""
    task, model = static.config.task, training.build_model(static)
    reported = task.outputs or DATA[task.name].feature_names(task)
    blank = jnp.zeros(DATA[task.name].input_shape(task), jnp.float32)

    def one(phi, factors, params: Any, dials: Dials):
        def finish(activations):
            # The rest of the model sees `activations`: the edit of a blank input's own activation up to them.
            sites: Any = model.apply(params, blank, dials)[1]
            own = sites[site]
            edits = activations.reshape(-1, *own.shape) - own[None]
            logits, _ = jax.vmap(lambda edit: model.apply(params, blank, dials, edits={site: edit}))(edits)
            place = jnp.argsort(dials.output_order)  # the position of each listed factor
            return {factor: logits[:, place[o]] for o, factor in enumerate(reported)}

        return PROBES[name].function(*_halves(phi, factors), finish)

    return jax.jit(jax.vmap(one))


def _intervene(name: str, block: Block, params: Any) -> Mapping[Measured, Any]:
    """An intervention on the runs of a block. Args: params of the whole chunk, `[runs, ...]`."""
    static, count = block.chunk.group.static, len(block.runs)
    full = [*range(count), *[count - 1] * (len(block.activations) - count)]
    each = [block.chunk.group.dials[block.runs[i][0]] for i in full]
    dials = jax.tree.map(lambda *x: jnp.stack(x), *each)
    own = jax.tree.map(lambda x: x[block.first + np.asarray(full)], params)
    with jax.default_matmul_precision(static.runtime.precision):
        return _intervention(name, static, block.site)(block.activations, block.factors, own, dials)


def _restored(folder: Path, chunk: Chunk, layout: Layout) -> Any:
    """The final weights of a chunk's runs, `[runs, ...]`, checked against the done marker."""
    static, (setting, seed) = chunk.group.static, chunk.runs[0]
    one = jax.eval_shape(lambda d, s: training.init(static, d, s), chunk.group.dials[setting], jnp.int32(seed))
    done = store.read_json(folder / "done.json", "train")
    checkpoints = store.Checkpoints(folder / "checkpoint")
    try:
        # A sharding of our own: those it was saved with may name devices that are not here.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = population.saved_like(one, static.config, layout, here)
        fingerprint = jax.jit(jax.vmap(jax.vmap(store.fingerprint)))
        step, saved, _ = checkpoints.restore(like, lambda found: population.is_sound(fingerprint, found), False)
    finally:
        checkpoints.close()
    prints = [] if saved is None else [f"{int(p):08x}" for p in np.asarray(saved.fingerprints).reshape(-1)]
    if saved is None or step != done["steps"] or prints[: len(chunk.runs)] != [r["fingerprint"] for r in done["runs"]]:
        raise store.StoreError(f"{folder}/checkpoint: damaged; delete {folder} and rerun --stage=train")
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(chunk.runs)], saved.state.params)


def _rows(block: Block, probe: str, found: Mapping[Measured, Any]) -> Iterator[tuple[Any, ...]]:
    """Rows from `setting` on, for one block and probe."""
    sound = np.isfinite(block.activations).all(axis=(1, 2))
    spread, size = np.ptp(block.activations, axis=1).max(axis=1), np.abs(block.activations).max(axis=(1, 2))
    living = spread > 1e-6 * size
    for key, values in jax.device_get(found).items():
        for i, (setting, seed) in enumerate(block.runs):
            value, reason = values[i] if sound[i] else np.nan, ""
            if np.isnan(value):
                constant = "undefined" if key.at else "constant feature"
                reason = "diverged" if not sound[i] else constant if living[i] else "constant layer"
            yield (
                setting, seed, block.step, block.site, probe, key.metric, key.feature, key.other, key.at,
                "score", store.number(value), reason,
            )  # fmt: skip


def _of_final(rows: list[tuple[Any, ...]], chunk: Chunk) -> list[tuple[Any, ...]]:
    """Adds `r2_of_final` = variance(t) / total_variance(T): along training on one scale, that of the last snapshot.

    (Not 1 - SSE_t / SST_T, which tends to 1 for a small representation.)
    """
    last = chunk.group.static.config.num_steps
    totals = {(r[0], r[1], r[3]): r for r in rows if r[2] == last and r[5] == "total_variance"}
    added = []
    for row in rows:
        if row[5] == "variance":
            total = totals[row[0], row[1], row[3]]
            share = float(row[10]) / float(total[10]) if row[10] and total[10] and float(total[10]) > 0 else np.nan
            reason = "" if np.isfinite(share) else row[11] or total[11] or "constant layer at the last snapshot"
            added.append((*row[:5], "r2_of_final", *row[6:10], store.number(share), reason))
    return rows + added
