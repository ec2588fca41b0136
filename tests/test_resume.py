"""Whatever is interrupted, whenever, ends with the same numbers."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from conftest import DEVICES, ROOT, line_of

from repbias_jax import store

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


def repeats_at_most_a_segment(reached, lines):
    """A chunk goes on from the last step that was reported, or a later one. Args: reached, those steps by chunk."""
    before = dict(reached)
    for line in lines:
        if found := re.match(r"train: (\S+) (resumed at )?step (\d+)", line):
            chunk, resumed, step = found[1], found[2], int(found[3])
            if chunk in before:  # the first that this process says of it
                assert resumed, line
                assert step >= before.pop(chunk), line
            reached[chunk] = step


def test_kill_at_random_moments(cache, smoke, tmp_path):
    """SIGKILL after the n-th progress line and a random delay, again and again; then to the end."""
    rng, kills, resumed, reached = random.Random(5), 0, 0, {}
    while kills < 3:
        run = Started(cache, tmp_path, "--stage=train")
        if not run.progress(rng.randint(1, 4)):
            break
        time.sleep(rng.uniform(0, 0.15))
        run.process.kill()
        run.end()
        kills += 1
        resumed += any("resumed at step" in line for line in run.lines)
        repeats_at_most_a_segment(reached, run.lines)
    assert kills == 3
    last = Started(cache, tmp_path)
    assert last.end() == 0, "".join(last.lines)
    repeats_at_most_a_segment(reached, last.lines)
    resumed += any("resumed at step" in line for line in last.lines)
    assert resumed >= 1
    same(tmp_path / "complexity", smoke)


def test_chunks_that_were_measured_stay_measured(cache, smoke, tmp_path):
    folder = shutil.copytree(smoke, tmp_path / "complexity")
    (folder / "results.csv").unlink()
    for path in folder.glob("*/*/measured.json"):
        path.unlink()
    run = Started(cache, tmp_path)
    assert run.progress(2, "chunks done")
    run.process.kill()
    run.end()
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/measured.json")}
    assert 2 <= len(kept) < CHUNKS
    last = Started(cache, tmp_path)
    assert last.end() == 0, "".join(last.lines)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    same(folder, smoke)


def test_a_signal_saves_and_exits_75(cache, smoke, tmp_path):
    run = Started(cache, tmp_path, "--stage=train")
    assert run.progress(2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 75
    assert "run the same command again" in run.lines[-1]
    last = Started(cache, tmp_path, "--stage=train")
    assert last.end() == 0
    assert fingerprints(tmp_path / "complexity") == fingerprints(smoke)


SLOW = """
import pathlib, sys, time
import jax, jax.numpy as jnp
from absl import app
from experiments import command, run
from experiments.claims import EXPERIMENTS
from repbias_jax import training
from tests.faults import tiny

def wait(_):
    pathlib.Path(sys.argv[1], "drawing").touch()
    time.sleep(300)
    return jnp.float32(0)

def slow(*arguments, draw=training.make_data):
    data, late = draw(*arguments), jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(0))
    return jax.tree.map(lambda x: x + late.astype(x.dtype), data)

training.make_data, EXPERIMENTS["tiny"] = slow, tiny
app.run(command.prompt(run.main), argv=["run", "--experiment=tiny", f"--workdir={sys.argv[1]}"], flags_parser=run.parse)
"""


def test_a_signal_is_heard_while_data_are_drawn(tmp_path):
    """With data whose program takes five minutes: a signal ends the command long before, in one line."""
    line = [sys.executable, "-c", SLOW, str(tmp_path)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            while not (tmp_path / "drawing").exists():
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.05)
            run.send_signal(signal.SIGTERM)
            out, err = run.communicate(timeout=30)
        finally:
            run.kill()
    assert (run.returncode, out) == (75, "")
    assert re.fullmatch(
        r"interrupted: stopped while the data of \S+/chunk_000 were drawn; .*run the same command again\n", err
    )


def test_a_chunk_of_another_structure_is_refused_and_kept(command, smoke, tmp_path):
    """As after a change of the optimizer's code or its version: one line, and the checkpoint stays for who can read it."""
    folder = shutil.copytree(smoke, tmp_path / "complexity")
    chunk = next(folder.glob("sgd.joint*/chunk_000"))
    (chunk / "done.json").unlink()
    shutil.rmtree(chunk / "checkpoint")
    state = {"params": np.ones((2, 2, 3), np.float32), "momentum_of_old": np.ones((2, 2, 3), np.float32)}
    prints = np.asarray(jax.vmap(jax.vmap(store.fingerprint))(state))
    checkpoints = store.Checkpoints(chunk / "checkpoint")
    checkpoints.save(16, store.Saved(state, prints, np.zeros((2, 2, 3), np.float32), prints))
    checkpoints.close()
    manifest = store.read_json(folder / "manifest.json", "train")
    store.write_json(folder / "manifest.json", manifest | {"stages": {}})
    before = {p: p.read_bytes() for p in (chunk / "checkpoint").rglob("*") if p.is_file()}
    done = command(*ARGUMENTS, f"--workdir={tmp_path}", "--stage=train", check=1)
    assert f"{chunk}/checkpoint/16: undamaged, but of another structure" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p: p.read_bytes() for p in before} == before


def test_a_second_signal_exits_at_once():
    code = (
        "import os, signal; from experiments.command import catch_signals; stop = catch_signals();"
        "os.kill(os.getpid(), signal.SIGTERM); print(stop(), flush=True); os.kill(os.getpid(), signal.SIGINT); print(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert (done.returncode, done.stdout) == (75, "True\n")


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


def test_done_already_changes_nothing_and_is_quick(cache, smoke):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in smoke.rglob("*") if p.is_file()}
    line = line_of(cache, *ARGUMENTS, f"--workdir={smoke.parent}")
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as again:
        assert "C01" in again.stdout.read()
        _, status, used = os.wait4(again.pid, 0)
    assert status == 0
    assert used.ru_utime + used.ru_stime < 10  # of CPU, since other tests are at work; 5 s are promised, and 3 found
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in smoke.rglob("*") if p.is_file()}
    changed = {p.name for p in before if before[p] != after.get(p)}
    assert changed <= {"lock", "manifest.lock"}
    assert set(before) == set(after)
