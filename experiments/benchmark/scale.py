"""Measures time, memory, disk and open files of one command that trains many tiny runs, by number of runs, on the CPU.

  python -m experiments.benchmark --part=scale [--smoke] [--output=DIR]      writes scale.csv and its manifest

A child process trains and measures a tiny network with this number of seeds, once keeping the activations and once
discarding those of each chunk as soon as they are measured. Its open files are read from /proc ten times per second, its
peak memory is the one recorded by the kernel, and its disk use is that of its folder, which is read for at most a tenth of
the time. Seconds include start-up and compilation. Source: ours.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from experiments.benchmark.workers import machine
from experiments.command import DONE, FAILED, complain
from repbias_jax import store

ROOT = Path(__file__).parent.parent.parent
COLUMNS = (
    "runs",
    "activations",
    "run_steps",
    "seconds",
    "us_a_run_step",
    "peak_memory_mb",
    "peak_disk_mb",
    "max_open_files",
)
ACTIVATIONS = ("keep", "discard")
STEPS = 4  # updates per run
SIZES = {False: (1024, 10_000), True: (8,)}
SMALL = {"model.widths": "16,8", "task.num_train": 512, "task.num_test": 256, "task.num_probe": 256, "training.epochs": 1}


class Peaks(NamedTuple):
    """The largest values observed while a process was running."""

    memory_mb: float
    disk_mb: float
    files: int


def command(runs: int, activations: str, workdir: Path) -> list[str]:
    """Returns a command that trains and measures this many runs of one setting. Args: activations: `keep` or `discard`."""
    overrides = [f"--config.{name}={value}" for name, value in {**SMALL, "training.batch_size": 512 // STEPS}.items()]
    line = [sys.executable, "-m", "experiments.benchmark.scale_worker", str(workdir), str(runs), activations]
    return [*line, *overrides]


def watch(process: subprocess.Popen, folder: Path, every: float = 0.1) -> Peaks:
    """Watches a process in /proc, and its folder, until it ends; returns the peaks."""
    place, peaks, look = Path(f"/proc/{process.pid}"), Peaks(0.0, 0.0, 0), 0.0
    while process.poll() is None:
        with contextlib.suppress(OSError):
            marks = [line.split()[1] for line in (place / "status").read_text().splitlines() if line.startswith("VmHWM")]
            memory = int(marks[0]) / 1024 if marks else 0.0
            files = len(list((place / "fd").iterdir()))
            peaks = Peaks(max(peaks.memory_mb, memory), peaks.disk_mb, max(peaks.files, files))
        if (begun := time.monotonic()) > look:
            peaks = peaks._replace(disk_mb=max(peaks.disk_mb, used_mb(folder)))
            look = time.monotonic() + max(every, 9 * (time.monotonic() - begun))  # a walk over many files is slow
        time.sleep(every)
    return peaks._replace(disk_mb=max(peaks.disk_mb, used_mb(folder)))


def used_mb(folder: Path) -> float:
    """Returns the disk space that the files of a folder take, in MB."""
    total = 0
    for place, folders, files in os.walk(folder):  # skips folders that are removed meanwhile
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_blocks * 512
    return total / 1e6


def measure(output: Path, smoke: bool) -> int:
    """Writes a row for each number of runs, with activations kept and discarded, once measured; returns the exit status.

    `scale_manifest.json` has versions, machine, commit and the load of the machine before each row.
    """
    if not Path("/proc/self/fd").exists():
        return complain("--part=scale: expected a system with /proc, where memory and open files are read")
    rows, loads = [], []
    for runs, activations in [(size, how) for size in SIZES[smoke] for how in ACTIVATIONS]:
        with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as log:
            loads.append(list(os.getloadavg()))
            begun, line = time.perf_counter(), command(runs, activations, Path(name))
            process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)  # noqa: S603
            peaks = watch(process, Path(name))
            seconds, steps = time.perf_counter() - begun, runs * STEPS
            if process.returncode:
                log.seek(0)
                return complain(f"--part=scale: {runs} runs failed: {log.read()[-500:]}".replace("\n", " "), FAILED)
            numbers = (seconds, 1e6 * seconds / steps, peaks.memory_mb, peaks.disk_mb)
            rows.append((runs, activations, steps, *(f"{value:.6g}" for value in numbers), peaks.files))
            store.write_table(output / "scale.csv", COLUMNS, rows)
            store.write_json(output / "scale_manifest.json", {**machine(), "smoke": smoke, "load_before": loads})
            print(dict(zip(COLUMNS, rows[-1], strict=True)), flush=True)  # before the folder is removed, which takes time
    return DONE
