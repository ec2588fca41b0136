"""Measuring in the benchmark: teams of worker processes that take turns, and rows made from one number per round."""

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmark import baselines, torch_convnet, torch_transformer
from repbias_jax import store
from repbias_jax.provenance import commit

PACKAGES = ("jax", "jaxlib", "numpy", "torch", "scikit-learn")
ROOT = Path(__file__).parent.parent.parent
MODULES = {kind: m.__name__ for m in (torch_transformer, torch_convnet) for kind in m.KINDS}  # that workers are run as
PATIENCE = 1800.0  # limit for one call, in seconds; the longest takes a few minutes


class Row(NamedTuple):
    """A row of the table."""

    part: str
    name: str
    quantity: str
    unit: str
    rounds: int
    min: float
    median: float
    max: float


class Sample(NamedTuple):
    """One round of one contender, in microseconds per run-step."""

    wall: float
    cpu: float


def summary(part: str, name: str, quantity: str, unit: str, values: Sequence[float]) -> Row:
    """Returns a row made from one number per round."""
    return Row(part, name, quantity, unit, len(values), min(values), statistics.median(values), max(values))


def missing(part: str, name: str, library: str) -> Row:
    """Returns a row that says that something was not measured, since a library is not installed."""
    return Row(part, name, f"skipped: {library} is not installed", "", 0, math.nan, math.nan, math.nan)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Returns the ratios by round, in which a temporary slowdown of the machine affects both sides."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def break_even(overhead: float, each: float, other_overhead: float, other_each: float) -> float:
    """Returns the n from which on `overhead + n * each` is smaller than the other cost; 0: always; infinite: never."""
    if overhead <= other_overhead and each <= other_each:
        return 0.0
    return max(0.0, (overhead - other_overhead) / (other_each - each)) if each < other_each else math.inf


def installed(module: str) -> bool:
    """Returns whether a library is installed."""
    return importlib.util.find_spec(module) is not None


def machine() -> dict[str, Any]:
    """Returns versions, processor, cores and commit, for a manifest."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "format": store.FORMAT,
        "versions": {**versions, "python": platform.python_version()},
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "commit": commit(),
    }


class Team:
    """Worker processes of one contender that work at the same time."""

    def __init__(self, folder: Path, kind: str, *each: Mapping[str, Any]):
        """Starts the workers. Args: folder for temporary files; kind: key of KINDS in `baselines`, `contenders` or a module
        of MODULES; each: settings of one worker."""
        self.settings, self.log = each, tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115
        module = MODULES.get(kind, "experiments.benchmark.contenders")
        place = [baselines.__file__] if kind in baselines.KINDS else ["-m", module]
        more = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        self.workers = [
            subprocess.Popen(  # noqa: S603
                [sys.executable, *place, kind, json.dumps(settings)], cwd=ROOT, env={**os.environ, **more}, **pipes
            )
            for settings in each
        ]
        self.wall = self.cpu = self.idle_cpu = 0.0
        self.begun = time.perf_counter()

    def call(self, method: str, within: float | None = None, **arguments: Any) -> list[Any]:
        """Calls a method of all workers at once and returns their results; sets `wall` and `cpu` to the seconds it took.

        Args:
          method: name of the method.
          within: seconds after which TimeoutError is raised; None: after PATIENCE seconds, RuntimeError is raised.
          arguments: of the method.

        Raises:
          RuntimeError: a worker failed.
        """
        begun = time.perf_counter()
        answers = []
        try:
            for worker in self.workers:
                print(json.dumps({"method": method, **arguments}), file=worker.stdin, flush=True)
            answers = [json.loads(self._answer(worker, within or PATIENCE)) for worker in self.workers]
        except (OSError, ValueError) as error:
            if within is not None and isinstance(error, TimeoutError):
                raise
            self.log.seek(0)
            raise RuntimeError(f"a worker did not finish {method}: {error}\n{self.log.read()[-3000:]}") from error
        self.wall, self.cpu = time.perf_counter() - begun, sum(a["cpu"] for a in answers)
        self.idle_cpu += sum(a["idle_cpu"] for a in answers)
        return [a["result"] for a in answers]

    @staticmethod
    def _answer(worker: subprocess.Popen, patience: float) -> str:
        """Returns one line of a worker, without using the CPU while waiting. Raises TimeoutError if none comes in time."""
        answers: Any = worker.stdout
        if not select.select([answers], [], [], patience)[0]:
            raise TimeoutError(f"no answer from process {worker.pid} after {patience:.0f} s")
        return answers.readline()

    def sample(self, method: str, **arguments: Any) -> Sample:
        """Returns the time per run-step of a method that returns run-steps."""
        steps = sum(self.call(method, **arguments))
        return Sample(1e6 * self.wall / steps, 1e6 * self.cpu / steps)

    def warm(self, seconds: float, within: float | None = None) -> int:
        """Compiles and warms up; returns the number of epochs that fill a round of `seconds`."""
        for _ in range(3):  # CUDA graphs are recorded only after a first call
            self.call("advance", within, epochs=1)
        return max(1, round(seconds / self.wall))

    def kill(self) -> None:
        """Kills the workers without waiting for their work."""
        for worker in self.workers:
            worker.kill()
        self.close()

    def close(self) -> None:
        """Ends the workers; kills those that do not end within 20 seconds."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
            try:
                worker.wait(timeout=20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            worker.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
        self.log.close()


def rounds_of(teams: Mapping[str, tuple[Team, str, dict]], rounds: int) -> dict[str, list[Sample]]:
    """Lets teams take turns; returns their samples. Args: teams: by name, a team, a method that returns run-steps, and the
    method's arguments."""
    names, found = list(teams), {name: [] for name in teams}
    for i in range(rounds):
        first = i % max(1, len(names))
        for name in (*names[first:], *names[:first]):
            team, method, arguments = teams[name]
            found[name].append(team.sample(method, **arguments))
    return found


def table(rows: Iterable[Row]) -> str:
    """Returns the rows as text."""
    lines, part = [], ""
    for row in rows:
        if row.part != part:
            part = row.part
            lines += ["", f"{part:<98}{'median':>12}   {'min':>10} to {'max':<10}"]
        label = f"  {row.name}, {row.quantity}" + (f" [{row.unit}]" if row.unit else "")
        numbers = f"{row.median:>12.4g}   {row.min:>10.4g} to {row.max:<10.4g}" if row.rounds else ""
        lines.append(f"{label:<98}{numbers}")
    return "\n".join(lines)
