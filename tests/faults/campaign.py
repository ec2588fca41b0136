"""Faults, tried: crash points, random kills, damage, full disk, signals, leftovers and rivals. `make faults` runs it all.

  python -m tests.faults.campaign [--share=0.05] [--output=experiments/results/faults.csv] [--only="a file damaged"]
                                  [--experiment=tiny_sequence]

Every trial ends in one of: `same` (the same command, run again, ends with the same bytes: weights' fingerprints, curves,
activations, results and claims), `named` (refused, with a message that names a file of the workdir and the stage to
rerun) or `other`, which must not be. The tiny experiments, with MLPs, Transformers and convolutional networks, are eight
runs with two checkpoints; all but the last are one chunk.

What a process did before it was killed stays in the page cache here: loss of power is another matter, against which every
file is synced before it is renamed.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import platform
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from repbias_jax import store
from repbias_jax.provenance import record
from tests.faults.experiments import TINY

ROOT = Path(__file__).parent.parent.parent
STAGES = ("train", "measure", "report")
ARGUMENTS = ("--devices=2", "--checkpoint_seconds=0")
LARGE = "--num_seeds=20"  # five chunks, for several processes
SAME, NAMED, OTHER = "same", "named", "other"
COLUMNS = ("fault", "where", "trials", SAME, NAMED, OTHER, "seconds", "commit")
WORKERS = os.cpu_count() or 1


class Ended(NamedTuple):
    """A command that has ended."""

    status: int  # negative: the signal that killed it
    said: str
    calls: int  # on files of the workdir; -1 when it was killed


class Server:
    """A process that forks one command at a time."""

    def __init__(self, library: Path, cache: Path, scratch: Path, experiment: str):
        self.cache, self.scratch, self.experiment = cache, scratch, experiment
        line = [sys.executable, "-m", "tests.faults.server"]
        more = {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(line, cwd=ROOT, env=os.environ | more, **pipes)

    def run(
        self, workdir: Path, *more: str, crash_at: int = -1, crash_name: str = "", signals: Sequence[tuple[float, int]] = ()
    ) -> Ended:
        """The tiny experiment's command.

        Args: crash_at, the call at which it dies; crash_name, of a file: it dies when it gives a file that name; signals,
          delays and numbers.
        """
        out = self.scratch / f"out.{self.process.pid}"
        words = [f"--experiment={self.experiment}", *ARGUMENTS]
        words += [f"--workdir={workdir}", f"--compilation_cache={self.cache}", *more]
        request = {"out": str(out), "folder": f"{workdir}/", "crash_at": crash_at, "crash_name": crash_name}
        request |= {"signals": signals, "arguments": words}
        count = Path(f"{out}.count")
        count.unlink(missing_ok=True)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())["status"]
        return Ended(status, out.read_text(errors="replace"), int(count.read_text()) if count.exists() else -1)


class Lab:
    """Servers, and copies of the workdir of a tiny experiment at each stage of its life."""

    def __init__(self, scratch: Path, workers: int = WORKERS, only: str = "", experiment: str = "tiny"):
        self.only, self.commit, self.experiment = re.compile(only), record()["commit"], experiment
        self.scratch, self.numbers, self.kills = scratch, itertools.count(), 0
        library = scratch / "crash.so"
        source = Path(__file__).parent / "crash.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"], check=True)
        self.servers: queue.Queue[Server] = queue.Queue()
        for _ in range(workers):
            self.servers.put(Server(library, scratch / "cache", scratch, experiment))
        self.pool = concurrent.futures.ThreadPoolExecutor(workers)
        self.states, self.calls = {"empty": scratch / "empty"}, {}
        self.states["empty"].mkdir()
        before = "empty"
        for stage in STAGES:
            folder = shutil.copytree(self.states[before], scratch / stage)
            with self.server() as server:
                ended = server.run(folder, f"--stage={stage}")
            assert ended.status == 0, ended.said
            self.states[stage], self.calls[stage], before = folder, ended.calls, stage
        self.expected = {stage: digests(self.states[stage], stage) for stage in STAGES}
        self.states["interrupted"] = self._interrupted()
        large = self.copy("empty")
        with self.server() as server:
            server.run(large, LARGE)
        self.expected["large"] = digests(large, "report")

    def close(self) -> None:
        """Ends the servers."""
        self.pool.shutdown()
        while not self.servers.empty():
            process = self.servers.get().process
            process.stdin.close()
            process.wait()
            process.stdout.close()

    @contextlib.contextmanager
    def server(self) -> Iterator[Server]:
        """A server of one's own, for a while."""
        server = self.servers.get()
        try:
            yield server
        finally:
            self.servers.put(server)

    def copy(self, state: str) -> Path:
        """A fresh copy of a workdir as it was after a stage."""
        return shutil.copytree(self.states[state], self.scratch / f"trial.{next(self.numbers)}")

    def _interrupted(self) -> Path:
        """A workdir with two checkpoints and no end: killed where the file that marks the end would get its name."""
        folder = self.copy("empty")
        with self.server() as server:
            ended = server.run(folder, "--stage=train", crash_name="done.json")
        steps = [p for p in folder.glob("*/*/*/checkpoint/*") if p.name.isdigit()]
        assert len(steps) == 2, (ended, steps)
        assert not list(folder.glob("*/*/*/done.json"))
        return folder

    def outcome(self, folder: Path, stage: str, end: Ended) -> str:
        """What became of a trial whose last command, up to `stage`, ended so."""
        if end.status == 0:
            return SAME if digests(folder, "report" if stage == "large" else stage) == self.expected[stage] else OTHER
        errors = [line for line in end.said.splitlines() if line.startswith("error: ")]
        named = len(errors) == 1 and str(folder) in errors[0] and "--stage=" in errors[0]
        return NAMED if end.status == 1 and named and "Traceback" not in end.said else OTHER


def digests(workdir: Path, stage: str) -> dict[str, str]:
    """What must be the same after `stage`: weights' fingerprints, curves and activations; rows; claims."""
    folder, found = workdir / "tiny", {}
    names = [*folder.glob("*/*/curves.csv"), *(p for p in folder.glob("*/*/activations.zarr/**/*") if p.is_file())]
    if stage != "train":
        names.append(folder / "results.csv")
    if stage == "report":
        names += [folder / "claims.csv", folder / "claim_values.csv"]
    for path in names:
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.glob("*/*/done.json"):
        found[str(path.relative_to(folder))] = str(json.loads(path.read_bytes())["runs"])
    return found


def crash_point(lab: Lab, stage: str, at: int) -> str:
    """Dies at the `at`-th call of a stage; the same command again."""
    folder = lab.copy({"train": "empty", "measure": "train", "report": "measure"}[stage])
    with lab.server() as server:
        first = server.run(folder, f"--stage={stage}", crash_at=at)
        end = first if first.status == 0 else server.run(folder, f"--stage={stage}")
        found = lab.outcome(folder, stage, end)
    return _ended(folder, found, end)


def random_kill(lab: Lab, seed: int) -> str:
    """SIGKILL after random times, until the command gets to its end."""
    rng, folder, kills = random.Random(seed), lab.copy("empty"), 0
    with lab.server() as server:
        while True:
            end = server.run(folder, signals=[(rng.uniform(0.3, 2.0), signal.SIGKILL)] if kills < 4 else [])
            if end.status != -signal.SIGKILL:
                break
            kills += 1
        found = lab.outcome(folder, "report", end)
    lab.kills += kills
    return _ended(folder, found, end)


def signalled(lab: Lab, number: int, seed: int) -> str:
    """A polite signal at a random moment: exit 75 or 0 (or the signal itself, before it is caught), then to the end."""
    rng, folder = random.Random(seed), lab.copy("empty")
    with lab.server() as server:
        first = server.run(folder, signals=[(rng.uniform(0.2, 3.0), number)])
        polite = first.status in (0, 75, -number)
        end = server.run(folder)
        found = lab.outcome(folder, "report", end) if polite else OTHER
    return _ended(folder, found, end if polite else first)


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _halve(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    first = rng.randrange(max(1, len(raw) - 4095))
    raw[first : first + 4096] = bytes(len(raw[first : first + 4096]))
    path.write_bytes(raw)


def _flip(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    if raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "deleted": _delete, "emptied": _empty, "halved": _halve, "4 KiB zeroed": _zero, "one bit flipped": _flip,
}  # fmt: skip


def damaged(lab: Lab, state: str, name: str, kind: str, seed: int) -> str:
    """One file of a workdir damaged; then the command, to the end."""
    folder = lab.copy(state)
    DAMAGES[kind](folder / name, random.Random(seed))
    with lab.server() as server:
        end = server.run(folder)
    found = lab.outcome(folder, "report", end)
    if found == OTHER and end.status == 0 and "activations.zarr/" in name:
        # Nobody reads this piece any more: the numbers are what they were, and who does read it is told.
        own, theirs = digests(folder, "report"), lab.expected["report"]
        rest = {path: value for path, value in theirs.items() if path != name.removeprefix("tiny/")}
        if all(own[path] == value for path, value in rest.items()) and len(own) <= len(theirs) and _refuses(folder / name):
            found = SAME
    return _ended(folder, found, end, f"{state} {name} {kind}")


def _refuses(piece: Path) -> bool:
    """Whether an array that a damaged piece belongs to cannot be read, with a message that names it."""
    chunk = next(p for p in piece.parents if p.name.startswith("chunk_"))
    array = piece.relative_to(chunk / "activations.zarr").parts[0]
    try:
        store.Activations(chunk / "activations.zarr").read(array)
    except store.StoreError as error:
        return str(chunk) in str(error) and array in str(error)
    return False


def damages(lab: Lab, number: int) -> list[tuple[str, str, str, int]]:
    """Files of each state with each kind of damage; `number` of them, at random (orbax names its files so, too)."""
    every = []
    for state in ("interrupted", "train", "measure", "report"):
        files = sorted(str(p.relative_to(lab.states[state])) for p in lab.states[state].rglob("*") if p.is_file())
        every += [(state, name, kind, i) for i, (name, kind) in enumerate(itertools.product(files, DAMAGES))]
    rng = random.Random(0)
    rng.shuffle(every)
    return sorted(every[:number])


def can_mount() -> bool:
    """Whether this process may mount a small file system: root may, unless it is in a container that forbids it."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as place:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=False, capture_output=True).returncode:
            return False
        subprocess.run(["umount", place], check=True)
    return True


def full_disk(lab: Lab, stage: str, spare: int) -> str:
    """A file system that has room for what is there and `spare` bytes more; then room again."""
    before = lab.states[{"train": "empty", "measure": "train", "report": "measure"}[stage]]
    mount = lab.scratch / f"disk.{next(lab.numbers)}"
    mount.mkdir()
    used = sum(-(-p.stat().st_size // 4096) * 4096 + 4096 for p in before.rglob("*"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={used + spare}", "tmpfs", mount], check=True)
    try:
        folder = shutil.copytree(before, mount / "w")
        with lab.server() as server:
            first = server.run(folder, f"--stage={stage}")
            leftovers = [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
            told = first.status == 1 and str(folder) in first.said and "Traceback" not in first.said
            subprocess.run(["mount", "-o", "remount,size=1g", mount], check=True)
            end = server.run(folder, f"--stage={stage}")
            found = lab.outcome(folder, stage, end)
        good = (told or first.status == 0) and not leftovers
        return _ended(None, found if good else OTHER, first if not good else end, f"full disk {stage} {spare} {leftovers}")
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def leftover(lab: Lab, kind: str) -> str:
    """Something half-written, or a lock of a process that is gone, in a trained or an interrupted workdir."""
    folder = lab.copy("interrupted" if kind.startswith("chunk") else "train")
    experiment = folder / "tiny"
    chunk = next(experiment.glob("*/chunk_000"))
    places = {
        "temporary file": experiment / ".results.csv.x.tmp",
        "temporary figure": experiment / "figures" / ".tiny.png.x.tmp",
        "stale lock": experiment / "lock",
        "stale manifest lock": experiment / "manifest.lock",
        "chunk temporary file": chunk / ".curves.csv.x.tmp",
        "chunk stale lock": chunk / "lock",
        "chunk half checkpoint": chunk / "checkpoint" / "9.orbax-checkpoint-tmp" / "x",
        "chunk empty checkpoint": chunk / "checkpoint" / "9" / "x",
        "chunk zarr lock": chunk / "activations.zarr" / "hidden_0" / "c" / "0" / "0" / "0" / "0.__lock",
    }
    places[kind].parent.mkdir(parents=True, exist_ok=True)
    places[kind].write_bytes(b"process 1 on nowhere\n")
    with lab.server() as server:
        end = server.run(folder)
        found = lab.outcome(folder, "report", end)
    return _ended(folder, found, end, kind)


LEFTOVERS = (
    "temporary file", "temporary figure", "stale lock", "stale manifest lock", "chunk temporary file", "chunk stale lock",
    "chunk half checkpoint", "chunk empty checkpoint", "chunk zarr lock",
)  # fmt: skip


def read_only(lab: Lab, state: str) -> str:
    """A workdir that cannot be written: refused by name, or done already; then writable again."""
    folder = lab.copy(state)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    try:
        with lab.server() as server:
            first = server.run(folder)
            subprocess.run(["mount", "-o", "remount,rw,bind", folder], check=True)
            end = server.run(folder)
            found = lab.outcome(folder, "report", end)
        told = first.status in (1, 2) and str(folder) in first.said and "Traceback" not in first.said
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    return _ended(folder, found if told else OTHER, first if not told else end, f"read only {state}")


def at_once(lab: Lab, number: int) -> str:
    """Several processes on one workdir, as shares and not; each ends done or in use; then one more."""
    folder, line = lab.copy("empty"), [sys.executable, "-m", "tests.faults.one"]
    words = [f"--experiment={lab.experiment}", *ARGUMENTS, LARGE, f"--workdir={folder}"]
    words.append(f"--compilation_cache={lab.scratch / 'cache'}")
    shares = [[f"--shard={i}/{number // 2}"] if i < number // 2 else [] for i in range(number)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*line, *words, *share], cwd=ROOT, **quiet) for share in shares]
    said = [process.communicate(timeout=300)[1] for process in started]
    polite = all(p.returncode == 0 or (p.returncode == 1 and "in use by" in s) for p, s in zip(started, said, strict=True))
    with lab.server() as server:
        end = server.run(folder, LARGE)
        found = lab.outcome(folder, "large", end)
    return _ended(folder, found if polite else OTHER, end, "\n".join(said))


def _ended(folder: Path | None, found: str, end: Ended, what: str = "") -> str:
    """Tidies up; tells of what must not be."""
    if found == OTHER:
        print(f"OTHER: {what} {folder} status {end.status}\n{end.said[-3000:]}", file=sys.stderr, flush=True)
    elif folder is not None:
        shutil.rmtree(folder)
    return found


def several(lab: Lab, fault: str, where: str, trials: Sequence[Callable[[], str]], serial: bool = False) -> list:
    """Runs trials and counts what became of them. Returns: a row of the table; nothing where others are asked for."""
    if not lab.only.match(fault):
        return []
    begun = time.monotonic()
    if serial:
        found = collections.Counter(trial() for trial in trials)
    else:
        found = collections.Counter(lab.pool.map(lambda trial: trial(), trials))
    row = [fault, where, len(trials), found[SAME], found[NAMED], found[OTHER], round(time.monotonic() - begun), lab.commit]
    print(", ".join(map(str, row)), file=sys.stderr, flush=True)
    return row


def every(lab: Lab, share: float) -> Iterator[list]:
    """All faults, or a share of them: a row of the table each."""

    def some(number: int) -> int:
        return max(1, round(number * share))

    for stage in STAGES:
        points = range(1, lab.calls[stage] + 1)
        chosen = points if share == 1 else random.Random(1).sample(points, some(len(points)))
        trials = [lambda s=stage, k=k: crash_point(lab, s, k) for k in chosen]
        yield several(lab, "process killed at its k-th write, rename or sync", stage, trials)
    lab.kills = 0
    trials = [lambda k=k: random_kill(lab, k) for k in range(some(45))]
    row = several(lab, "killed at random moments", "all stages", trials)
    yield [f"{row[0]} ({lab.kills} kills)", *row[1:]] if row else row
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        trials = [lambda k=k, n=number: signalled(lab, n, k) for k in range(some(20))]
        yield several(lab, signal.Signals(number).name, "all stages", trials)
    trials = {state: [] for state in ("interrupted", *STAGES)}
    for state, name, kind, seed in damages(lab, some(320)):
        trials[state].append(lambda a=state, b=name, c=kind, d=seed: damaged(lab, a, b, c, d))
    for state, chosen in trials.items():
        yield several(lab, "a file damaged", state if state == "interrupted" else f"after {state}", chosen)
    yield several(lab, "leftovers", "all stages", [lambda k=k: leftover(lab, k) for k in LEFTOVERS[: some(len(LEFTOVERS))]])
    for number in (2, 8)[: some(2)]:
        yield several(lab, f"{number} processes at once", "all stages", [lambda n=number: at_once(lab, n)], serial=True)
    if can_mount():
        spares = (8_192, 65_536, 262_144)[: some(3)]
        for stage in STAGES:
            yield several(lab, "full disk", stage, [lambda s=stage, b=b: full_disk(lab, s, b) for b in spares])
        yield several(
            lab, "read-only workdir", "all stages", [lambda s=s: read_only(lab, s) for s in ("empty", "train", "measure")]
        )


def replaced(table: Iterable[Sequence], rows: Sequence[Sequence]) -> list[Sequence]:
    """A table with some of its rows made anew; they are known by fault, without its number of kills, and where."""

    def key(row: Sequence) -> tuple:
        return str(row[0]).split(" (")[0], row[1]

    fresh = {key(row): row for row in rows}
    return [fresh.pop(key(row), row) for row in table] + list(fresh.values())


def main() -> int:
    """The command. Returns: 0 when no trial ended with other numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the trials, in (0, 1]")
    parser.add_argument("--output", type=Path, help="where to write the table; its manifest goes beside it")
    parser.add_argument("--only", default="", help="faults whose names begin so; the other rows of the table stay")
    parser.add_argument("--experiment", default="tiny", choices=tuple(TINY), help="what is disturbed")
    asked = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults.") as scratch:
        lab = Lab(Path(scratch), only=asked.only, experiment=asked.experiment)
        rows = [row for row in every(lab, asked.share) if row]
        lab.close()
    if asked.output:
        if asked.only:
            rows = replaced(store.read_table(asked.output), rows)
        store.write_table(asked.output, COLUMNS, rows)
        more = {"share": asked.share, "wall_seconds": round(time.monotonic() - begun), "machine": platform.platform()}
        path, made = asked.output.with_suffix(".json"), {"format": store.FORMAT, **record(), **more}
        if asked.only:  # beside the manifest of what stays in the table
            whole = store.read_json(path, "faults")
            made = whole | {"again": [*whole.get("again", []), {"only": asked.only, **made}]}
        store.write_json(path, made)
    return int(any(row[COLUMNS.index(OTHER)] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
