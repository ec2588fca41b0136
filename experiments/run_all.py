"""Runs experiments one after the other, and writes the score card over all of them.

An experiment that fails does not stop the others: its error is printed when it happens, and its name again at the end.
"""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from experiments.command import complain
from repbias_jax import store
from repbias_jax.config import ConfigError
from repbias_jax.pipeline import Outcome
from repbias_jax.planning import Plan
from repbias_jax.population import Interrupted
from repbias_jax.report import card, tables


class Job(NamedTuple):
    """One experiment, checked and laid out."""

    module: ModuleType
    plan: Plan
    folder: Path

    @property
    def name(self) -> str:
        """Name of the folder: that of the experiment, or of one block of a confirmation."""
        return self.folder.name


def run_all(
    jobs: Sequence[Job], run_one: Callable[[Job], Outcome], stop: Callable[[], bool]
) -> tuple[list[str], list[str]]:
    """Runs all unfinished work. Returns: names of the jobs that failed, and of those that wait for other processes.

    Args:
      jobs: in order.
      run_one: runs the unfinished part of an experiment.
      stop: polled between experiments, and by `run_one`; when true, `Interrupted` is raised.
    """
    failed, waiting = [], []
    for i, job in enumerate(jobs):
        if stop():
            raise Interrupted(f"stopped before {job.name}")
        _progress(i, len(failed), len(jobs), f"; now {job.name}")
        try:
            missing = run_one(job).missing
        except Interrupted:
            raise
        except (ConfigError, store.StoreError, OSError) as error:
            complain(f"{job.name}: {error}")
            failed.append(job.name)
        except Exception:  # any error of one experiment is printed and sets the exit status, but the others run
            traceback.print_exc()
            complain(f"{job.name}: stopped by the error above")
            failed.append(job.name)
        else:
            if missing:
                print(f"{job.name}: {missing}")
                waiting.append(job.name)
    _progress(len(jobs), len(failed), len(jobs))
    return failed, waiting


def _progress(ended: int, failed: int, number: int, now: str = "") -> None:
    """Prints one line of progress; those of the experiment that runs now follow it."""
    bad = f", {failed} failed" if failed else ""
    print(f"experiments: {ended - failed}/{number} done{bad}{now}", file=sys.stderr, flush=True)


def write_card(
    modules: Mapping[str, ModuleType], failed: Sequence[str], workdir: Path, family: Sequence[str] | None = None
) -> None:
    """Writes the score card over everything that this and other processes have reported, and prints it.

    Each process reads and writes under one lock, so that the last of several processes writes the complete card.

    Args:
      modules: of the experiments that belong to the card, by the name of their folder.
      failed: names of those that failed in this process.
      workdir: has a folder for each of them.
      family: ids of the claims over which p is corrected; None: all of the card.
    """
    with store.lock(workdir / "scorecard.lock", wait=True):
        store.sweep(workdir)
        found = [card.read(workdir / name, module) for name, module in modules.items() if name not in failed]
        sources = [source for source in found if source is not None]
        missing = [name for name in modules if name not in {source.name for source in sources}]
        rows = card.write(workdir, sources, missing, family)
    print("\n".join(tables.claims_lines(rows)))
    if missing:
        print(f"Missing from the score card: {', '.join(missing)}")
    if illustrations := card.illustrations(sources):
        print(f"Not the reference settings, so that verdicts are illustrations: {illustrations}")
    for name in ("scorecard.html", "scorecard.csv"):
        print(workdir / name)
