"""How `benchmark` measures: teams of worker processes that take turns, and rows made from a number a round."""

import contextlib
import importlib.util
import json
import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmark.baselines import KINDS as BASELINES

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 1800.0  # seconds for one call, of which the longest takes a few minutes


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
    """One round of one contender, in microseconds a run-step."""

    wall: float
    cpu: float


def summary(part: str, name: str, quantity: str, unit: str, values: Sequence[float]) -> Row:
    """A row from a number a round."""
    return Row(part, name, quantity, unit, len(values), min(values), statistics.median(values), max(values))


def missing(part: str, name: str, library: str) -> Row:
    """A row that says what was not measured."""
    return Row(part, name, f"skipped: {library} is not installed", "", 0, math.nan, math.nan, math.nan)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ratios round by round, so that what slows the machine down for a while slows both."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def break_even(overhead: float, each: float, other_overhead: float, other_each: float) -> float:
    """Number n from which on `overhead + n * each` is the smaller; 0: from the start; infinite: never."""
    if overhead <= other_overhead and each <= other_each:
        return 0.0
    return max(0.0, (overhead - other_overhead) / (other_each - each)) if each < other_each else math.inf


def installed(module: str) -> bool:
    """Whether a library is there."""
    return importlib.util.find_spec(module) is not None


class Team:
    """Worker processes of one contender that work at the same time."""

    def __init__(self, folder: Path, kind: str, *each: Mapping[str, Any]):
        """Starts them. Args: folder for temporary files; kind, of `baselines` or `contenders`; settings of each worker."""
        self.log = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115
        place = (
            [str(ROOT / "experiments" / "benchmark" / "baselines.py")]
            if kind in BASELINES
            else ["-m", "experiments.benchmark.contenders"]
        )
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
        """Calls a method of every worker at once; `wall` and `cpu` are then what that took. Returns their results.

        `within`: seconds after which TimeoutError is raised; by default a worker without an answer is a RuntimeError.
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
        """One line of a worker; waiting for it takes no CPU. Raises TimeoutError when none comes."""
        answers: Any = worker.stdout
        if not select.select([answers], [], [], patience)[0]:
            raise TimeoutError(f"no answer from process {worker.pid} after {patience:.0f} s")
        return answers.readline()

    def sample(self, method: str, **arguments: Any) -> Sample:
        """Time a run-step of a method that returns run-steps."""
        steps = sum(self.call(method, **arguments))
        return Sample(1e6 * self.wall / steps, 1e6 * self.cpu / steps)

    def warm(self, seconds: float, within: float | None = None) -> int:
        """Compiles and warms up; returns how many epochs fill a round of `seconds`."""
        for _ in range(3):  # CUDA graphs are recorded after a first call
            self.call("advance", within, epochs=1)
        return max(1, round(seconds / self.wall))

    def kill(self) -> None:
        """Ends the workers without waiting for what they do."""
        for worker in self.workers:
            worker.kill()
        self.close()

    def close(self) -> None:
        """Ends the workers."""
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
    """Lets teams take turns. Args: by name, a team, a method that returns run-steps, and its arguments."""
    names, found = list(teams), {name: [] for name in teams}
    for i in range(rounds):
        first = i % max(1, len(names))
        for name in (*names[first:], *names[:first]):
            team, method, arguments = teams[name]
            found[name].append(team.sample(method, **arguments))
    return found


def table(rows: Iterable[Row]) -> str:
    """The rows as text."""
    lines, part = [], ""
    for row in rows:
        if row.part != part:
            part = row.part
            lines += ["", f"{part:<98}{'median':>12}   {'min':>10} to {'max':<10}"]
        label = f"  {row.name}, {row.quantity}" + (f" [{row.unit}]" if row.unit else "")
        numbers = f"{row.median:>12.4g}   {row.min:>10.4g} to {row.max:<10.4g}" if row.rounds else ""
        lines.append(f"{label:<98}{numbers}")
    return "\n".join(lines)
