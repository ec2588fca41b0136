"""Times this package against others that train the same network: workers, rounds, and how a part writes its rows."""

import contextlib
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmark.networks import config_of, part_of, rival_settings
from experiments.benchmark.workers import Row, Sample, Team, installed, missing, paired, rounds_of, summary
from repbias_jax.data import reported
from repbias_jax.layout import LANES

CORES = 2
US, RATE = "us/run-step", "GFLOP/s"
CALIBRATION_ROUNDS = 3


class Size(NamedTuple):
    """The amount of work of the benchmark; `SIZES` has the full and the smoke size."""

    seconds: float  # per round of one contender
    epochs: int  # of full training
    lanes: int
    product: int  # side of the matrices
    layouts: tuple[tuple[int, int], ...]  # devices, lanes
    runs: tuple[int, ...]
    compared: tuple[int, int]  # the two entries of `runs` whose ratio is reported
    starts: int  # number of times that processes are started
    seeds: int  # the most models in any ensemble
    permutations: int


LAYOUTS = (*((CORES, lanes) for lanes in (1, 2, 4, 8, 16, 32, 64)), (1, LANES["cpu"]))
SIZES = {
    False: Size(2.0, 160, LANES["cpu"], 4096, LAYOUTS, (16, 64, 256, 1024, 4096), (256, 16), 5, 64, 100),
    True: Size(0.02, 2, 2, 256, ((CORES, 2),), (4, 8), (8, 4), 1, 4, 2),
}


class Way(NamedTuple):
    """One way of training an ensemble in PyTorch; see `baselines.TorchEnsemble`."""

    batching: str  # bmm, vmap, or grouped (convolutions) with or without channels-last
    step: str  # whole or parts
    models: int  # per process
    processes: int  # two: pinned, one thread each; one: two threads
    compile: bool

    @property
    def label(self) -> str:
        """The name in the table."""
        made = f"compiled {self.step} step" if self.compile else "eager"
        threads = "2 processes" if self.processes == 2 else "2 threads"
        return f"PyTorch ensemble {self.batching} ({made}, {self.models} models, {threads})"


class Bench:
    """The state that all parts share: sizes, folders, settings of workers and the rows so far."""

    def __init__(self, rounds: int, smoke: bool, folder: Path, cache: str):
        self.rounds, self.smoke, self.size, self.folder, self.cache = rounds, smoke, SIZES[smoke], folder, cache
        self.config, self.rows, self.form = config_of(smoke), [], ""
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * CORES
        self.idle: dict[str, float] = {}

    @property
    def part(self) -> str:
        """The part that the form belongs to; empty for the MLP, which has several."""
        return part_of(self.form) if self.form else ""

    def of(self, form: str) -> "Bench":
        """Returns the state for a form, whose rows are in its part of the same table."""
        own = copy.copy(self)
        own.form, own.config, own.folder = form, config_of(self.smoke, form), self.folder / form
        own.size = self.size._replace(epochs=own.config.training.epochs, lanes=0, seeds=8 if self.smoke else 16)
        own.folder.mkdir()
        return own

    @contextlib.contextmanager
    def team(self, kind: str, *each: Mapping[str, Any]) -> Iterator[Team]:
        """Yields a team and closes it at the end."""
        team = Team(self.folder, kind, *each)
        try:
            yield team
        finally:
            team.close()

    def ours(self, **more: Any) -> dict[str, Any]:
        """Returns the settings of a worker of `contenders`."""
        shared = {"devices": CORES, "lanes": self.size.lanes, "smoke": self.smoke, "cache": self.cache, "form": self.form}
        return shared | more

    def rival(self, *seeds: int, **more: Any) -> dict[str, Any]:
        """Returns the settings of a worker of `baselines`, `torch_transformer` or `torch_convnet`."""
        return rival_settings(self.config, self.folder, seeds) | more

    def pinned(self, core: int) -> dict[str, Any]:
        """Returns the additional settings of a worker pinned to one core."""
        return {"core": self.cores[core % len(self.cores)], "threads": 1}

    def add(self, *row: Any) -> None:
        """Adds a row made from one number per round. Args: as for `workers.summary`."""
        self.append(summary(*row))

    def append(self, row: Row) -> None:
        """Adds a row; that of a form names the form and what would else be its part."""
        own = row._replace(part=self.part, name=f"{self.form}, {row.part}: {row.name}") if self.form else row
        self.rows.append(own)

    def append_missing(self, module: str, library: str, names: Sequence[str]) -> None:
        """Adds a row for each contender whose library is not installed."""
        for name in names if not installed(module) else ():
            self.append(missing("speed", f"{library} {name}", library))


def ensemble_settings(bench: Bench, way: Way) -> list[dict[str, Any]]:
    """Returns the settings of the workers of an ensemble."""
    shared = {"batching": way.batching, "step": way.step, "compile": way.compile}
    count = way.models
    if way.processes == 1:
        return [bench.rival(*range(count), threads=CORES, **shared)]
    return [bench.rival(*range(i * count, (i + 1) * count), **bench.pinned(i), **shared) for i in range(CORES)]


class Contender(NamedTuple):
    """Settings of a contender's workers; `for_accuracy` replaces them where accuracies need another number of runs."""

    kind: str
    settings: list[dict[str, Any]]
    for_accuracy: list[dict[str, Any]] | None = None


def fastest(bench: Bench, tried: Mapping[str, Contender]) -> str:
    """Returns the name of the fastest contender over a few rounds; those that do not compile are skipped."""
    with contextlib.ExitStack() as stack:
        jobs = {}
        for label, contender in tried.items():
            team = stack.enter_context(bench.team(contender.kind, *contender.settings))
            try:
                jobs[label] = (team, "advance", {"epochs": team.warm(bench.size.seconds / 2)})
            except RuntimeError as error:
                print(f"{label}: passed over: {error}", file=sys.stderr)
        found = {label: [s.wall for s in samples] for label, samples in rounds_of(jobs, CALIBRATION_ROUNDS).items()}
    for label, walls in found.items():
        bench.add("calibration", label, "wall", US, walls)
    return min(found, key=lambda label: statistics.median(found[label]))


def compete(
    bench: Bench, make: Callable[[Bench], dict[str, Contender]], check: Callable[[Mapping[str, Team]], None] | None = None
) -> dict[str, list[Sample]]:  # fmt: skip
    """Measures speed and accuracy of this package and of its rivals; returns the samples.

    Args:
      bench: its rows are added.
      make: returns the other contenders by name, as soon as our data are in the folder.
      check: is called with all teams by name before anything is timed.
    """
    with contextlib.ExitStack() as stack:
        teams = {"ours": stack.enter_context(bench.team("ours", bench.ours(runs=bench.size.seeds)))}
        teams["ours"].call("dump", folder=str(bench.folder))
        flops = teams["ours"].call("flops")[0]
        teams["ours"].call("sweep", passes=1, chunks=1)  # so that part `runs` finds everything compiled
        others = make(bench)
        teams |= {name: stack.enter_context(bench.team(c.kind, *c.settings)) for name, c in others.items()}
        if check:
            check(teams)
        jobs = {name: (team, "advance", {"epochs": team.warm(bench.size.seconds)}) for name, team in teams.items()}
        waited = {name: team.idle_cpu for name, team in teams.items()}
        begun = time.perf_counter()
        samples = rounds_of(jobs, bench.rounds)
        elapsed, title = time.perf_counter() - begun, f"{bench.form}, " if bench.form else ""
        bench.idle.update({f"{title}{name}": (team.idle_cpu - waited[name]) / elapsed for name, team in teams.items()})
        report_speed(bench, samples, flops)
        report_accuracies(bench, teams, others)
    return samples


def report_accuracies(bench: Bench, teams: Mapping[str, Team], others: Mapping[str, Contender]) -> None:
    """Adds the rows of `accuracy` of all contenders that train something."""
    for name, team in teams.items():
        anew = others[name].for_accuracy if name in others else None
        if anew:
            with bench.team(others[name].kind, *anew) as own:
                report_accuracy(bench, name, own)
        elif not is_product(name):
            report_accuracy(bench, name, team)


def is_product(name: str) -> bool:
    """Returns whether a contender is a matrix product, which trains nothing."""
    return name.startswith("matrix product")


def report_speed(bench: Bench, samples: Mapping[str, list[Sample]], flops: float) -> None:
    """Adds the rows of `speed` and `ratio`. Args: flops: FLOP per run-step."""
    ours = samples["ours"]
    rates = {n: [2 * bench.size.product**3 / s.wall / 1e3 for s in found] for n, found in samples.items() if is_product(n)}
    rates |= {n: [flops / s.wall / 1e3 for s in found] for n, found in samples.items() if not is_product(n)}
    for name, found in samples.items():
        for quantity in Sample._fields:
            values = [getattr(s, quantity) for s in found]
            bench.add("speed", name, quantity, "us/product" if is_product(name) else US, values)
            if not is_product(name) and name != "ours":
                ratios = paired([getattr(s, quantity) for s in ours], values)
                bench.add("ratio", f"ours / {name}", quantity, "", ratios)
        bench.add("speed", name, "rate", RATE, rates[name])
        if is_product(name):
            bench.add("ratio", f"ours / {name}", "rate", "", paired(rates["ours"], rates[name]))


def report_accuracy(bench: Bench, name: str, team: Team) -> None:
    """Adds the rows of `accuracy` for one contender, trained to the end: statistics over its runs."""
    outputs = reported(bench.config.task)
    runs = [accuracy for worker in team.call("train", epochs=bench.size.epochs) for accuracy in worker]
    for output, values in zip(outputs, zip(*runs, strict=True), strict=True):
        bench.add("accuracy", name, output, "share", values)
        for quantity, value in (("mean", statistics.mean(values)), ("sd", statistics.stdev(values))):
            bench.append(Row("accuracy", name, f"{output}, {quantity}", "share", len(values), value, value, value))
