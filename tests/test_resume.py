"""Whatever is interrupted, whenever, ends with the same numbers."""

import json
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import DEVICES, ROOT, line_of

ARGUMENTS = ("--experiment=complexity", "--preset=smoke", f"--devices={DEVICES}", "--checkpoint_seconds=0")
CHUNKS = 5


def fingerprints(folder):
    """Final fingerprints of all runs, by setting and seed."""
    found = {}
    for path in sorted(folder.glob("*/*/done.json")):
        for run in json.loads(path.read_text())["runs"]:
            found[run["setting"], run["seed"]] = run["fingerprint"]
    return found


def same(folder, reference):
    assert fingerprints(folder) == fingerprints(reference)
    assert (folder / "results.csv").read_bytes() == (reference / "results.csv").read_bytes()


class Started:
    """A run of the command whose progress lines can be waited for."""

    def __init__(self, cache, workdir, *more):
        line = line_of(cache, *ARGUMENTS, f"--workdir={workdir}", *more)
        self.process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.lines = []

    def progress(self, number, word="run-steps/s"):
        """Reads on to the n-th progress line; False when the process ends before."""
        for line in self.process.stderr:
            self.lines.append(line)
            number -= word in line
            if number == 0:
                return True
        return False

    def end(self):
        """Waits for the end; returns the exit status."""
        with self.process.stderr:
            self.lines += list(self.process.stderr)
        return self.process.wait(timeout=300)


def test_kill_at_random_moments(cache, smoke, tmp_path):
    """SIGKILL after the n-th progress line and a random delay, again and again; then to the end."""
    rng, kills, resumed = random.Random(5), 0, 0
    while kills < 4:
        run = Started(cache, tmp_path, "--stage=train")
        if not run.progress(rng.randint(1, 4)):
            break
        time.sleep(rng.uniform(0, 0.15))
        run.process.kill()
        run.end()
        kills += 1
        resumed += any("resumed at step" in line for line in run.lines)
    assert kills >= 3
    last = Started(cache, tmp_path)
    assert last.end() == 0, "".join(last.lines)
    resumed += any("resumed at step" in line for line in last.lines)
    assert resumed >= 1
    same(tmp_path / "complexity", smoke)


def test_kill_during_a_save(cache, smoke, tmp_path):
    """SIGKILL while orbax's temporary folder is there, twice; the leftover harms nothing."""
    caught = 0
    for _ in range(8):
        run = Started(cache, tmp_path, "--stage=train")
        if not run.progress(1):
            break
        until = time.monotonic() + 5
        while time.monotonic() < until and run.process.poll() is None:
            if any(tmp_path.glob("complexity/*/*/checkpoint/*tmp*")):
                run.process.kill()
                caught += 1
                break
        run.process.kill()
        run.end()
        if caught == 2:
            break
    assert caught == 2
    assert any(tmp_path.glob("complexity/*/*/checkpoint/*tmp*"))
    last = Started(cache, tmp_path)
    assert last.end() == 0, "".join(last.lines)
    assert any("resumed at step" in line for line in last.lines)
    same(tmp_path / "complexity", smoke)


def test_kill_while_measuring_and_reporting(cache, smoke, tmp_path):
    """Chunks that were measured stay measured; a half-written report is written again."""
    shutil.copytree(smoke, tmp_path / "complexity")
    folder = tmp_path / "complexity"
    (folder / "results.csv").unlink()
    for path in folder.glob("*/*/measured.json"):
        path.unlink()
    run = Started(cache, tmp_path)
    assert run.progress(2, "chunks done")
    run.process.kill()
    run.end()
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/measured.json")}
    assert len(kept) >= 2
    run = Started(cache, tmp_path)
    assert run.progress(CHUNKS - 1, "chunks done")
    while not any((folder / "figures").glob(".*.tmp")) and run.process.poll() is None:
        time.sleep(0.001)
    run.process.kill()
    run.end()
    last = Started(cache, tmp_path)
    assert last.end() == 0, "".join(last.lines)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    same(folder, smoke)
    for name in ("claims.csv", "claim_values.csv"):
        assert (folder / name).read_bytes() == (smoke / name).read_bytes()
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_75(cache, smoke, tmp_path, number):
    run = Started(cache, tmp_path, "--stage=train")
    assert run.progress(2)
    run.process.send_signal(number)
    assert run.end() == 75
    assert "run the same command again" in run.lines[-1]
    last = Started(cache, tmp_path, "--stage=train")
    assert last.end() == 0
    assert fingerprints(tmp_path / "complexity") == fingerprints(smoke)


def test_more_seeds_extend_a_workdir(command, smoke, tmp_path):
    base = (*ARGUMENTS, f"--workdir={tmp_path}")
    command(*base, "--num_seeds=1", "--stage=train")
    first = sorted((tmp_path / "complexity").glob("*/*/done.json"))
    times = [p.stat().st_mtime_ns for p in first]
    assert len(first) == CHUNKS
    command(*base, "--num_seeds=2")
    assert [p.stat().st_mtime_ns for p in first] == times  # what was there is not run again
    assert len(list((tmp_path / "complexity").glob("*/*/done.json"))) == 2 * CHUNKS
    ours, theirs = ((f / "results.csv").read_bytes() for f in (tmp_path / "complexity", smoke))
    assert ours == theirs


def test_done_already_changes_nothing_and_is_quick(command, smoke):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in smoke.rglob("*") if p.is_file()}
    begun = time.monotonic()
    done = command(*ARGUMENTS, f"--workdir={smoke.parent}")
    assert time.monotonic() - begun < 10  # 3 s on an idle machine; 5 s are promised
    assert "C01" in done.stdout
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in smoke.rglob("*") if p.is_file()}
    changed = {p.name for p in before if before[p] != after.get(p)}
    assert changed <= {"lock", "manifest.lock"}
    assert set(before) == set(after)
