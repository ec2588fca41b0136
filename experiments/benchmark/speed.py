"""The parts of the benchmark on two CPU cores, and their table; the package's docstring describes them."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.contest import CORES, US, Bench, Contender, Way, compete, ensemble_settings, fastest
from experiments.benchmark.forms import report as report_forms
from experiments.benchmark.networks import part_of
from experiments.benchmark.workers import ROOT, Sample, break_even, installed, machine, missing, paired, rounds_of, table
from repbias_jax import store

COLUMNS = ("part", "name", "quantity", "unit", "rounds", "min", "median", "max")
CHECKPOINT_SECONDS = 10.0  # the default of --checkpoint_seconds
STEPS = {"bmm": "whole", "vmap": "parts"}  # `step` in the smoke size
WAYS = (
    ("whole", 16, 1, True),
    ("whole", 16, 2, True),
    ("whole", 8, 2, True),
    ("whole", 32, 2, True),
    ("parts", 16, 1, True),
    ("parts", 16, 2, True),
    ("parts", 16, 2, False),
)


def choose(bench: Bench, kind: str) -> Way:
    """Returns the fastest way to train an ensemble over a few rounds; what does not compile is skipped."""
    ways = [Way(kind, *rest) for rest in (((STEPS[kind], 2, 1, False),) if bench.smoke else WAYS)]
    by_label = {way.label: way for way in ways}
    tried = {label: Contender("ensemble", ensemble_settings(bench, way)) for label, way in by_label.items()}
    return by_label[fastest(bench, tried)]


def contenders(bench: Bench) -> dict[str, Contender]:
    """Returns the installed contenders except ours, by name."""
    found = {"JAX, a jitted step per run": Contender("jitted", [bench.ours(folder=str(bench.folder), seeds=[0, 1])])}
    if installed("torch"):
        found["PyTorch loop"] = Contender("loop", [bench.rival(0, 1)])
        pinned = [bench.rival(i, i + CORES, **bench.pinned(i)) for i in range(CORES)]
        found["PyTorch tuned"] = Contender("tuned", pinned)
        for kind in ("bmm", "vmap"):
            way = choose(bench, kind)
            fewer = way._replace(models=bench.size.lanes, processes=CORES)
            anew = None if bench.smoke else ensemble_settings(bench, fewer)
            found[way.label] = Contender("ensemble", ensemble_settings(bench, way), anew)
    if installed("sklearn"):
        found["scikit-learn MLPClassifier"] = Contender("scikit-learn", [bench.rival(0, 1)])
    size = {"size": bench.size.product, "threads": CORES}
    found["matrix product, JAX"] = Contender("product", [size])
    if installed("torch"):
        found["matrix product, PyTorch"] = Contender("torch product", [size])
    return found


def speed_and_accuracy(bench: Bench) -> dict[str, list[Sample]]:
    """Measures the parts `calibration`, `speed`, `ratio` and `accuracy`; returns the samples, for the break-even."""
    samples = compete(bench, contenders)
    bench.append_missing("torch", "PyTorch", ("loop", "tuned", "ensemble bmm", "ensemble vmap"))
    bench.append_missing("sklearn", "scikit-learn", ("MLPClassifier",))
    return samples


def report_start(bench: Bench, samples: Mapping[str, list[Sample]]) -> None:
    """Adds the rows of `start`: the time to begin training, and the number of run-steps after which it is paid back."""
    each = {name: statistics.median(s.wall for s in found) / 1e6 for name, found in samples.items()}
    found = [start_once(bench, each) for _ in range(bench.size.starts)]
    for name in found[0]:
        quantity, unit = ("number", "run-steps") if "break-even" in name else ("wall", "s")
        bench.add("start", name, quantity, unit, [once[name] for once in found])


def start_once(bench: Bench, each: Mapping[str, float]) -> dict[str, float]:
    """Returns the quantities of `start`, measured once. Args: each: seconds per run-step by contender."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import experiments.run"], cwd=ROOT, check=True)
    once = {"import of experiments.run": time.perf_counter() - begun}
    other = started(bench, "tuned") if installed("torch") else {}
    if other:
        once["PyTorch tuned, process to end of first epoch"] = other["whole"]
    for name, cache in (("cold", ""), ("cached", bench.cache)):
        found = started(bench, "ours", cache=cache)
        once |= {f"{name}, {label}": found[key] for key, label in STARTED.items()}
        if other:
            ours, theirs = each["ours"], each["PyTorch tuned"]
            overhead = found["whole"] - found["warm"] - found["steps"] * ours
            rest = other["whole"] - other["steps"] * theirs
            once[f"{name}, break-even with PyTorch tuned"] = break_even(overhead - found["data"], ours, rest, theirs)
            once[f"{name}, break-even, our data drawn too"] = break_even(overhead, ours, rest, theirs)
    return once


STARTED = {
    "data": "drawing the data",
    "first": "first call (init and an epoch)",
    "warm": "second call (an epoch)",
    "whole": "process to end of second epoch",
}


def started(bench: Bench, kind: str, **more: Any) -> dict[str, float]:
    """Returns the seconds from creating a contender's processes to the end of their first calls, and the run-steps."""
    if kind == "ours":
        with bench.team("ours", bench.ours(**more)) as team:
            found = team.call("first")[0]
            steps = CORES * bench.size.lanes * bench.config.steps_per_epoch
            return {**found, "whole": time.perf_counter() - team.begun, "steps": steps}
    with bench.team(kind, *(bench.rival(i, **bench.pinned(i)) for i in range(CORES))) as team:
        steps = sum(team.call("advance", epochs=1))
        return {"whole": time.perf_counter() - team.begun, "steps": steps}


def report_lanes(bench: Bench) -> None:
    """Adds the rows of `lanes`: time per run-step by devices and runs per `vmap`."""
    with contextlib.ExitStack() as stack:
        jobs = {}
        for devices, lanes in bench.size.layouts:
            team = stack.enter_context(bench.team("ours", bench.ours(devices=devices, lanes=lanes)))
            jobs[f"{devices} x {lanes}"] = (team, "advance", {"epochs": team.warm(bench.size.seconds / 2)})
        for name, found in rounds_of(jobs, bench.rounds).items():
            bench.add("lanes", f"{name} (devices x lanes)", "wall", US, [s.wall for s in found])


def report_runs(bench: Bench) -> None:
    """Adds the rows of `runs`: time per run-step in `contenders.Ours.sweep`, and peak memory, by number of runs."""
    large, small = bench.size.compared
    with contextlib.ExitStack() as stack:
        teams = {n: stack.enter_context(bench.team("ours", bench.ours(runs=n))) for n in bench.size.runs}
        found: dict[int, list[float]] = {}
        for some, rounds in (([n for n in teams if n <= large], bench.rounds), ([n for n in teams if n > large], 1)):
            for n in some:
                teams[n].call("sweep", passes=1, chunks=1)
            jobs = {str(n): (teams[n], "sweep", {"passes": max(1, 4 * small // n)}) for n in some}
            found |= {int(n): [s.wall for s in samples] for n, samples in rounds_of(jobs, rounds).items()}
        memory = {n: team.call("memory")[0] for n, team in teams.items()}
    for n in teams:
        bench.add("runs", f"{n} runs", "wall", US, found[n])
        bench.add("runs", f"{n} runs", "peak memory", "MB", [memory[n]])
    bench.add("ratio", f"{large} / {small} runs", "wall", "", paired(found[large], found[small]))
    for n in sorted({large, max(teams)}):
        bench.add("ratio", f"{n} / {small} runs", "peak memory", "", [memory[n] / memory[small]])


def report_checkpoint(bench: Bench) -> None:
    """Adds the rows of `checkpoint`: the time to fingerprint and save all runs of a chunk."""
    with bench.team("ours", bench.ours()) as team:
        folder = str(bench.folder / "checkpoint")
        team.call("save", folder=folder)
        seconds = [team.call("save", folder=folder)[0] for _ in range(bench.rounds)]
    name = f"{CORES * bench.size.lanes} runs"
    bench.add("checkpoint", name, "wall", "s", seconds)
    shares = [s / CHECKPOINT_SECONDS for s in seconds]
    bench.add("checkpoint", name, f"share of {CHECKPOINT_SECONDS:g} s of training", "share", shares)


def report_probe(bench: Bench) -> None:
    """Adds the rows of `probe`. Raises RuntimeError if our r2 and scikit-learn's differ by 1e-5 or more."""
    if not installed("sklearn"):
        bench.rows.append(missing("probe", "variance", "scikit-learn"))
        return
    with bench.team("probe", bench.ours()) as team:
        difference = team.call("difference")[0]
        asked = {"permuted_runs": 1, "permutations": bench.size.permutations}
        rounds = [team.call("seconds", **asked)[0] for _ in range(bench.rounds + 1)][1:]
    seconds = {name: [found[name] for found in rounds] for name in rounds[0]}
    for name, values in seconds.items():
        bench.add("probe", name, "wall", "s", values)
    for what in (" r2", ""):
        times = paired(seconds[f"scikit-learn{what}"], seconds[f"ours{what}"])
        bench.add("probe", f"scikit-learn{what} / ours{what}", "wall", "times", times)
    bench.add("probe", "scikit-learn r2 / ours", "wall", "times", paired(seconds["scikit-learn r2"], seconds["ours"]))
    bench.add("probe", "r2", "largest difference", "", [difference])
    if not difference < 1e-5:
        raise RuntimeError(f"r2 of the probe and of scikit-learn differ by {difference:g}; expected less than 1e-5")


def record(bench: Bench, load_before: Sequence[float], spent: Mapping[str, float]) -> dict[str, Any]:
    """Returns the manifest: versions, machine, commit, load and cost."""
    return {
        **machine(),
        "smoke": bench.smoke,
        "rounds": bench.rounds,
        "load_before": list(load_before),
        "load_after": list(os.getloadavg()),
        "idle_cpu_share": {name: round(value, 4) for name, value in bench.idle.items()},
        "seconds": {**spent, "all": sum(spent.values())},
    }


def measure(rounds: int, smoke: bool, output: Path, cache: str | None, forms: Sequence[str] = ()) -> None:
    """Measures the parts of the MLP, or some forms of one part, writes table and manifest, and prints the table."""
    load: Sequence[float] = os.getloadavg()
    spent: dict[str, float] = {}
    if hasattr(os, "sched_setaffinity"):  # only two cores are used on a larger machine
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(rounds, smoke, Path(name), cache or f"{name}/cache")
        samples: dict[str, list[Sample]] = {}
        parts = {
            "speed and accuracy": lambda: samples.update(speed_and_accuracy(bench)),
            "start": lambda: report_start(bench, samples),
            "lanes": lambda: report_lanes(bench),
            "runs": lambda: report_runs(bench),
            "checkpoint": lambda: report_checkpoint(bench),
            "probe": lambda: report_probe(bench),
        }
        if forms:
            parts = {part_of(forms[0]): lambda: report_forms(bench, forms)}
        for part in parts:
            print(f"benchmark: {part}", file=sys.stderr, flush=True)
            begun = time.perf_counter()
            parts[part]()
            spent[part] = time.perf_counter() - begun
    bench.rows.sort(key=lambda row: row.part)  # stable: rows of a part keep the order of measurement
    text = [[*row[:5], *(f"{v:.6g}" if row.rounds else "" for v in row[5:])] for row in bench.rows]
    made = record(bench, load, spent)
    if forms:
        write_forms(output, forms, text, made)
    else:
        store.write_table(output / "benchmark.csv", COLUMNS, text)
        store.write_json(output / "benchmark_manifest.json", made)
    print(table(bench.rows))


def write_forms(output: Path, forms: Sequence[str], text: Sequence[Sequence[Any]], made: Mapping[str, Any]) -> None:
    """Writes the table of a part and its manifest, which has an entry for each form; what is there of other forms stays."""
    part = part_of(forms[0])
    rows, manifest = output / f"{part}.csv", output / f"{part}_manifest.json"
    before = list(store.read_table(rows)) if rows.exists() else []
    entries = store.read_json(manifest, part)["forms"] if manifest.exists() else {}
    kept = [row for row in before if row[1].split(",")[0] not in forms]
    store.write_table(rows, COLUMNS, [*text, *kept])
    store.write_json(manifest, {"format": store.FORMAT, "forms": {**entries, **dict.fromkeys(forms, made)}})
