"""Train, measure, report: the table of contents.

`run` calls the stages in order. Each stage reads the files of the previous one and is skipped if its fingerprint shows that
nothing it depends on has changed. Several processes can share an experiment: each trains and measures its own chunks, and
the process that finishes last merges and reports.
"""

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from repbias_jax import devices, layout, measure, population, report, store
from repbias_jax.config import ConfigError, Experiment
from repbias_jax.layout import Chunk
from repbias_jax.planning import (
    Plan,
    check_memory,
    covered,
    estimate,
    full_settings,
    settings_table,
    source_of,
    sources_of,
)

STAGES = ("train", "measure", "report")
DISK_MARGIN = 1.1


class Outcome(NamedTuple):
    """Result of a command: the rows of `claims.csv`, and a sentence on missing chunks (empty if none is missing)."""

    claims: list[dict[str, Any]]
    missing: str


def run(
    plan: Plan, module: ModuleType, folder: Path, stages: Sequence[str], stop: Callable[[], bool],
    record: Mapping[str, Any], checkpoint_seconds: float = 10.0, share: tuple[int, int] = (0, 1),
    mix_code: bool = False, discard: bool = False,
) -> Outcome:  # fmt: skip
    """Runs those of the requested stages that are not up to date.

    Args:
      plan: from `check` and `place`.
      module: module of the experiment, with `claims(results, condition)` and `figures(results)`.
      folder: of the experiment.
      stages: names from STAGES. Without `train`, chunks that other processes have not trained yet are left out and named.
      stop: polled; when it returns true, everything is saved and `Interrupted` is raised.
      record: versions, commit and so on, for the manifest; never compared.
      checkpoint_seconds: shortest time between two checkpoints.
      share: (i, N), shard i of N independent processes.
      mix_code: whether to continue a workdir partly trained by other code or versions; the manifest then records it.
      discard: whether to measure each chunk as soon as it is trained and then to delete its activations.
    """
    covers = covered(plan)
    covers["report"] |= {"module": source_of(*sources_of(module))}
    code = store.digest({k: v for k, v in covers["measure"].items() if k != "seeds"})
    own, shared = layout.shard_of(plan.chunks, *share), share[1] > 1
    _check_discard(discard, stages)
    _begin(folder, plan, covers, record, discard)
    if "train" in stages:
        _report_trained(folder, own)

    def measured(chunk: Chunk) -> None:
        measure.measure(folder, plan.experiment.name, [chunk], plan.experiment.probes, stop, code)
        measure.discard(folder, chunk, plan.experiment.probes)

    def current(stage: str) -> bool:
        return _current(folder, stage, covers[stage], present)

    def end(stage: str, files: Sequence[str], begun: float, **more: Any) -> None:
        _note(folder, stage, covers[stage], files, record, time.monotonic() - begun, **more)

    present, begun, mixed = plan.chunks, time.monotonic(), ""
    if "train" in stages and not current("train"):
        with store.lock(folder / "manifest.lock", wait=True):
            store.write_table(folder / "settings.csv", *settings_table(plan))
        mixed = population.other_code(folder, plan.chunks)
        if mixed and not mix_code:
            raise store.StoreError(
                f"{folder}: {mixed}, which may give other numbers: use that code, another workdir, or --mix_code to go on"
            )
        population.train(folder, own, stop, checkpoint_seconds, measured if discard else None)
    present = [chunk for chunk in plan.chunks if _trained(folder, [chunk])]
    for chunk in present:
        store.verify_chunk(folder / chunk.path)
    there = {chunk.path for chunk in present}
    missing = [chunk for chunk in plan.chunks if chunk.path not in there]
    note, waiting = _in_words(plan.chunks, missing), bool(missing) and "train" in stages
    if missing:
        covers = {stage: {**cover, "missing": [chunk.path for chunk in missing]} for stage, cover in covers.items()}
    if not waiting and not current("train"):
        if "train" in stages or (missing and present and (folder / "settings.csv").exists()):
            end("train", ["settings.csv"], begun, **({"mixed_code": mixed} if mixed else {}))
        else:
            _refuse(folder, "train", stages)

    if "measure" in stages and not current("measure"):
        begun, mine = time.monotonic(), [chunk for chunk in own if _trained(folder, [chunk])]
        measure.measure(folder, plan.experiment.name, mine, plan.experiment.probes, stop, code)
        for chunk in mine:
            if discard or store.discarded(folder / chunk.path):  # the latter: recomputed by a process that was killed
                measure.discard(folder, chunk, plan.experiment.probes)
        if waiting and _trained(folder, plan.chunks):
            # The other processes finished meanwhile, and may have left the merging to this one.
            return run(plan, module, folder, stages, stop, record, checkpoint_seconds, share, mix_code, discard)
        if not waiting and measure.all_measured(folder, present, code):
            # Files of the whole experiment have a single writer: the process that finishes last merges.
            with store.lock(folder / "lock", wait=shared):
                if not current("measure"):
                    measure.merge(folder, plan.experiment.name, present, plan.experiment.probes, stop)
                    end("measure", ["results.csv"], begun)
    elif "measure" in stages and discard:
        for chunk in own:  # measured before, when activations were kept
            measure.discard(folder, chunk, plan.experiment.probes)
    if waiting or "report" not in stages:
        return Outcome([], note)
    if not current("measure"):
        if shared and "measure" in stages:
            return Outcome([], note or "the other processes are still measuring; the last one reports")
        _refuse(folder, "measure", stages)

    begun = time.monotonic()
    with store.lock(folder / "lock", wait=shared):
        if not current("report"):
            described = _described(plan.experiment, note)
            files = report.write(folder, described, module, _restoring(folder, plan, stop))
            end("report", files, begun, variant=described.variant)
    return Outcome(report.read_claims(folder), note)


def _report_trained(folder: Path, chunks: Sequence[Chunk]) -> None:
    """Prints how many chunks were trained before, if any, so that nobody takes old training for new."""
    before = sum(_trained(folder, [chunk]) for chunk in chunks)
    if before and devices.is_first():
        print(f"train: {before} of {len(chunks)} chunks in {folder} were trained before", file=sys.stderr, flush=True)


def _check_discard(discard: bool, stages: Sequence[str]) -> None:
    """Raises ConfigError if activations would be discarded before they are measured."""
    if discard and ("train" in stages) != ("measure" in stages):
        raise ConfigError(f"--activations=discard with --stage={','.join(stages)}: expected train and measure together")
    if discard and jax.process_count() > 1:
        raise ConfigError("--activations=discard with --distributed: expected --activations=keep")


def _restoring(
    folder: Path, plan: Plan, stop: Callable[[], bool]
) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """Returns a context manager that recomputes discarded activations of a chunk, by path, while a figure reads them."""
    chunks = {chunk.path: chunk for chunk in plan.chunks}

    @contextlib.contextmanager
    def restored(path: str) -> Iterator[None]:
        population.restore(folder, chunks[path], stop)
        try:
            yield
        finally:
            measure.discard(folder, chunks[path], plan.experiment.probes)

    return restored


def _refuse(folder: Path, stale: str, stages: Sequence[str]) -> None:
    """Raises StoreError if a requested stage comes after a stale one."""
    if any(STAGES.index(stage) > STAGES.index(stale) for stage in stages):
        raise store.StoreError(f"{folder}: stage {stale} is not up to date; rerun with --stage={stale},{','.join(stages)}")


def _in_words(chunks: Sequence[Chunk], missing: Sequence[Chunk]) -> str:
    """Returns `2 of 3 chunks are there (16 of 24 runs); missing: ...`; empty if none is missing."""
    if not missing:
        return ""
    runs, left = sum(len(c.runs) for c in chunks), sum(len(c.runs) for c in missing)
    names = ", ".join(c.path for c in missing[:5]) + (", ..." if len(missing) > 5 else "")
    counts = f"{len(chunks) - len(missing)} of {len(chunks)} chunks are there ({runs - left} of {runs} runs)"
    return f"{counts}; missing: {names}"


def _described(experiment: Experiment, said: str) -> Experiment:
    """Returns the experiment with a note on missing chunks added to `variant`, its differences from the reference."""
    return dataclasses.replace(experiment, variant=", ".join(v for v in (experiment.variant, said) if v))


def _begin(
    folder: Path, plan: Plan, covers: Mapping[str, Any], record: Mapping[str, Any], discard: bool
) -> None:  # fmt: skip
    """Creates the folder and its manifest, after checking memory and disk; an existing manifest keeps its stages."""
    if not _trained(folder, plan.chunks):
        cost = estimate(plan, discard)
        check_memory(plan, cost)
        need = cost["disk_bytes"] * DISK_MARGIN - _used(folder)
        free = shutil.disk_usage(store.existing(folder)).free
        if need > free:
            raise store.StoreError(f"{folder}: needs about {need / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free")
    path, extents = folder / "manifest.json", list(plan.layout.extents)
    with store.lock(folder / "manifest.lock", wait=True):
        _sweep(folder)
        manifest = store.read_json(path, "train") if path.exists() else {"format": store.FORMAT, "stages": {}}
        there = manifest.get("layout", {"extents": extents})["extents"]
        if there != extents[: len(there)]:
            raise store.StoreError(f"{folder}: another process asked for {there[-1]} seeds meanwhile; run again")
        groups = {g.name: g.lanes for g in plan.groups}
        laid = {"rows": plan.layout.rows, "least_rows": plan.layout.least_rows, "lanes": groups, "extents": extents}
        fresh = {"experiment": plan.experiment.name, "layout": laid, "train_covers": full_settings(plan)}
        if any(manifest.get(k) != v for k, v in fresh.items()):
            manifest |= {**fresh, "record": {**record, "variant": plan.experiment.variant}}
            store.write_json(path, manifest)


def _sweep(folder: Path) -> None:
    """Removes half-written files of a killed process, unless a live process is writing in the folder."""
    with contextlib.suppress(store.StoreError), store.lock(folder / "lock"):
        store.sweep(folder)
        store.sweep(folder / "figures")


def _used(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a temporary file of another process
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _current(folder: Path, stage: str, covers: Mapping[str, Any], chunks: Sequence[Chunk]) -> bool:
    """Returns whether a stage was done with the same fingerprint and its files have not changed since."""
    entry = store.read_json(folder / "manifest.json", "train")["stages"].get(stage)
    if entry is None or entry["fingerprint"] != store.digest(covers):
        return False
    if stage == "train" and not _trained(folder, chunks):
        return False
    return all((folder / n).is_file() and store.checksum(folder / n) == s for n, s in entry["files"].items())


def _trained(folder: Path, chunks: Sequence[Chunk]) -> bool:
    return all((folder / c.path / "done.json").is_file() for c in chunks)


def _note(
    folder: Path, stage: str, covers: Any, files: Sequence[str], record: Mapping[str, Any], seconds: float, **more: Any
) -> None:
    """Records in the manifest that a stage is done, with `more` entries. Commit and seconds are recorded, not compared."""
    with store.lock(folder / "manifest.lock", wait=True):
        manifest = store.read_json(folder / "manifest.json", "train")
        sums = {name: store.checksum(folder / name) for name in files}
        entry = {"fingerprint": store.digest(covers), "files": sums, **more}
        before = manifest["stages"].get(stage, {})
        if {k: before.get(k) for k in entry} != entry:
            # The seconds are those of the process that ended the stage.
            manifest["stages"][stage] = {**entry, "commit": record["commit"], "wall_seconds": round(seconds, 1)}
            for later in STAGES[STAGES.index(stage) + 1 :]:
                manifest["stages"].pop(later, None)
            store.write_json(folder / "manifest.json", manifest)
