"""Measures correctness, speed and memory on an accelerator, within a time limit.

  python -m experiments.benchmark --accelerator --output=DIR [--part=NAME] [--seconds=480]

The benchmark needs only the checkout: no network, and PyTorch only for `rivals`. Everything on the device runs in a
separate process, which has the whole memory and its own XLA_FLAGS and is ended when the time of its part is over. Parts:

  correct      whether data are bit-identical to the CPU's; differences after 64 updates (limit 1e-4) and of probes (limit
               1e-5); whether training resumed in another process has the same fingerprints, for several compiler options
  lanes        run-steps per second of the base MLP by lanes and compiler options, compared with a matrix product
  rivals       the same population in PyTorch on the same card
  transformer  the same two parts for the two forms of the Transformer of `output_position`. The ensembles are batched by
               hand; 1,023 is the most whose batches of 64 fit into one call of PyTorch's attention on a GPU, which takes
               65,535 strings. Beside the other parts there is time for its first rows only; --part=transformer has
               the whole time
  convnet      the same for the plain and the residual network of `vision_plain` and `vision_residual`, with native
               convolutions in ours and grouped ones in PyTorch's ensembles
  paper        `complexity` at full size from start to verdict, its intervals compared with the committed ones; then
               further experiments while time is left
  memory       peak bytes per run compared with the prediction of `planning`

It rewrites accelerator.csv after every row (`part, name, quantity, unit, value`; if something was not measured, its row
gives the reason) and writes accelerator_manifest.json. Source: ours.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmark.networks import FORMS, config_of, rival_settings
from experiments.benchmark.workers import ROOT, Team, installed
from experiments.command import BAD_INPUT, DONE, complain
from repbias_jax import store
from repbias_jax.provenance import commit

COLUMNS = ("part", "name", "quantity", "unit", "value")
OURS = None  # stands for the compiler options that the package sets
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
OPTIONS = {  # compiler options under which training is interrupted and resumed
    "the package's options": OURS,
    "deterministic": DETERMINISTIC,
    "no autotuning": {"xla_gpu_autotune_level": 0},
    "XLA's defaults": {},
}
COMPILED = {"batching": "bmm", "step": "whole", "compile": True}  # the fastest PyTorch ensemble
GROUPED = {**COMPILED, "batching": "grouped channels-last"}
STORED = "deterministic, stored autotuning"
WHILE = "--xla_gpu_enable_command_buffer=+WHILE"
VARIANTS: dict[str, tuple[str, Mapping[str, Any] | None]] = {  # XLA_FLAGS and compiler options compared for speed
    "the package's options": ("", OURS),
    "XLA's defaults": ("", {}),
    "deterministic, autotuned": ("", DETERMINISTIC),
    "command buffer +WHILE": (WHILE, OURS),
    "command buffer +WHILE unrolled": (f"{WHILE} --xla_gpu_command_buffer_unroll_loops=true", OURS),
    "command buffer off": ("--xla_gpu_enable_command_buffer=", OURS),
}
SHARES = {"correct": 0.2, "lanes": 0.25, "rivals": 0.2, "transformer": 0.3, "convnet": 0.2, "paper": 0.25, "memory": 0.1}
PAPER = ("complexity", "learning_order", "prevalence", "optimizer", "architecture", "redundancy", "similarity", "steering")


class Size(NamedTuple):
    """The amount of work of the benchmark."""

    lanes: tuple[int, ...]
    models: int  # in the PyTorch ensembles
    transformers: tuple[int, ...]  # lanes
    ensembles: tuple[int, ...]  # models in the PyTorch ensembles of Transformers
    convnets: tuple[int, ...]  # lanes, and models in the PyTorch ensembles: the images of 256 take 6 GB
    updates: int
    product: int
    seconds: float  # per measurement
    preset: str


SIZES = {
    False: Size(
        (16, 64, 256, 1024, 4096), 1024, (16, 64, 256, 1024), (64, 256, 1023), (16, 64, 256), 64, 8192, 2.0, "full"
    ),
    True: Size((2,), 2, (2,), (2,), (2,), 4, 64, 0.01, "smoke"),
}


class OutOfTimeError(Exception):
    """The time of a part is over."""


class Failed(Exception):
    """A process on the device failed; the message is its last line."""


class Session:
    """The state that all parts share: size, folder, clock and the rows so far."""

    def __init__(self, output: Path, folder: Path, seconds: float, smoke: bool):
        self.output, self.folder, self.smoke, self.size = output, folder, smoke, SIZES[smoke]
        self.end = self.limit = time.monotonic() + seconds
        self.rows: list[tuple[str, str, str, str, str]] = []
        self.part = ""

    def left(self) -> float:
        """Returns the seconds left for this part; raises OutOfTimeError if there are none."""
        seconds = self.limit - time.monotonic()
        if seconds <= 0:
            raise OutOfTimeError
        return seconds

    def add(self, name: str, quantity: str, unit: str, value: float | str) -> None:
        """Adds a row, rewrites the table and prints the row."""
        shown = value if isinstance(value, str) else f"{value:.6g}"
        self.rows.append((self.part, name, quantity, unit, shown))
        store.write_table(self.output / "accelerator.csv", COLUMNS, self.rows)
        print(f"{self.part}: {name}, {quantity}: {shown} {unit}".rstrip(), flush=True)

    def run(self, task: str, xla_flags: str = "", platform: str = "", **settings: Any) -> Any:
        """Returns the answer of a task of `device_worker`, run in a separate process."""
        environment = dict(os.environ)
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {xla_flags}".strip()
        if platform:
            environment["JAX_PLATFORMS"] = platform
        line = [sys.executable, "-m", "experiments.benchmark.device_worker", task, json.dumps(settings)]
        return json.loads(self.finish(line, environment).splitlines()[-1])

    def finish(self, line: list[str], environment: Mapping[str, str]) -> str:
        """Returns the output of a process; raises Failed, or OutOfTimeError after ending it."""
        try:
            done = subprocess.run(  # noqa: S603
                line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=self.left()
            )
        except subprocess.TimeoutExpired as error:
            raise OutOfTimeError from error
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:300])
        return done.stdout

    def attempt(self, name: str, call: Callable[[], Any]) -> None:
        """Calls a function; if it raises Failed, adds a row with the reason, so that the next measurement can follow."""
        try:
            call()
        except Failed as error:
            self.add(name, f"failed: {error}", "", "")


def correct(session: Session) -> None:
    """Checks agreement with the CPU, and resumption in another process."""
    session.attempt("device and CPU", lambda: _agreement(session))
    tried = {"the package's options": OURS} if session.smoke else {**OPTIONS, STORED: DETERMINISTIC}
    for name, options in tried.items():
        stored = session.folder / "autotuning.pb" if name == STORED else None
        session.attempt(f"resumed, {name}", lambda n=name, o=options, s=stored: _resume(session, n, o, s))


def _agreement(session: Session) -> None:
    size, paths = session.size, [session.folder / "device.npz", session.folder / "cpu.npz"]
    for path, platform in zip(paths, ("", "cpu"), strict=True):
        session.run("numbers", platform=platform, lanes=2, smoke=session.smoke, steps=size.updates, path=str(path))
    with np.load(paths[0]) as device, np.load(paths[1]) as cpu:
        names = cpu.files
        same = all(np.array_equal(device[n], cpu[n]) for n in names if n.startswith("data/"))
        session.add("device and CPU", "data bit for bit the same", "", "yes" if same else "NO")
        for kind, limit in (("weights, SGD", 1e-4), ("weights, Adam", 1e-4), ("probes", 1e-5)):
            apart = np.concatenate([np.abs(device[n] - cpu[n]).reshape(-1) for n in names if n.startswith(f"{kind}/")])
            session.add("device and CPU", f"largest difference, {kind}", "", float(apart.max()))
            session.add("device and CPU", f"share beyond {limit:g}, {kind}", "", float(np.mean(apart > limit)))


def _resume(session: Session, name: str, options: Mapping[str, Any] | None, stored: Path | None) -> None:
    state, size = str(session.folder / "half.npz"), session.size
    shared = {"lanes": size.lanes[0], "smoke": session.smoke, "half": 4 * size.updates, "stop": 8 * size.updates}
    dump, load = ("--xla_gpu_dump_autotune_results_to=", "--xla_gpu_load_autotune_results_from=")
    flags = (f"{dump}{stored}", f"{load}{stored}") if stored else ("", "")
    whole = session.run("resume", flags[0], save=state, options=options, **shared)
    resumed = session.run("resume", flags[1], load=state, options=options, **shared)
    session.add(f"resumed, {name}", "same fingerprints as uninterrupted", "", "yes" if resumed == whole else "NO")


def lanes(session: Session) -> None:
    """Measures run-steps per second by lanes, then by options at the fastest number of lanes.

    Each rate is also given as a share of the rate of the card's matrix product.
    """
    size, flops = session.size, _products(session)
    usual, *others = VARIANTS
    found: dict[int, float] = {}
    for count in size.lanes:
        session.attempt(f"{count} lanes, {usual}", lambda c=count: found.update({c: _speed(session, c, usual, flops)}))
    if found and not session.smoke:
        fastest = max(found, key=lambda count: found[count])
        for name in others:
            session.attempt(f"{fastest} lanes, {name}", lambda n=name: _speed(session, fastest, n, flops))


def _products(session: Session) -> dict[str, float]:
    """Returns the rates of the card's matrix product in FLOP/s by precision, after adding a row for each."""
    flops = session.run("product", size=session.size.product, seconds=session.size.seconds)
    for name, rate in flops.items():
        session.add(f"matrix product, {name}", "rate", "FLOP/s", rate)
    return flops


def _speed(session: Session, count: int, name: str, flops: Mapping[str, float], form: str = "") -> float:
    """Returns run-steps per second, after adding rows for it and for its shares of the rate of the matrix product."""
    xla_flags, options = VARIANTS[name]
    how = {"lanes": count, "smoke": session.smoke, "seconds": session.size.seconds, "options": options, "form": form}
    answer = session.run("speed", xla_flags, **how)
    title = f"{form}, {count} lanes, {name}" if form else f"{count} lanes, {name}"
    session.add(title, "rate", "run-steps/s", answer["rate"])
    for precision, rate in flops.items():
        session.add(title, f"share of matrix product, {precision}", "share", answer["flops"] / rate)
    return answer["rate"]


def rivals(session: Session) -> None:
    """Measures the same population in PyTorch on the same card."""
    if not installed("torch"):
        session.add("PyTorch", "skipped: PyTorch is not installed", "", "")
        return
    count = session.size.models
    session.run("dump", lanes=count, smoke=session.smoke, folder=str(session.folder))
    ways = {
        "bmm ensemble, compiled, CUDA graphs": ("device ensemble", COMPILED, count),
        "torch.func ensemble": ("device ensemble", {"batching": "vmap", "step": "parts", "compile": False}, count),
        "one network after the other": ("device tuned", {}, 1),
    }
    for name, (kind, more, models) in ways.items():
        _rival(session, name, kind, more, models)


def _rival(session: Session, name: str, kind: str, more: Mapping[str, Any], models: int, form: str = "") -> None:
    """Adds a row with the run-steps per second of PyTorch, or one that says why there are none.

    Args:
      session: its folder has the data.
      name: of the row.
      kind: key of KINDS in `baselines`, `torch_transformer` or `torch_convnet`.
      more: settings of the kind.
      models: number of networks.
      form: of the network; empty: the MLP.
    """
    settings = {**rival_settings(config_of(session.smoke, form), session.folder, range(models)), **more}
    settings["device"] = "cpu" if session.smoke else "cuda"
    settings |= {"compile": False} if session.smoke else {}
    settings |= {"mode": "reduce-overhead"} if settings.get("compile") else {}
    title = f"{name}, {models} models"
    session.attempt(title, lambda: session.add(title, "rate", "run-steps/s", _rate(session, kind, settings)))


def _rate(session: Session, kind: str, settings: Mapping[str, Any]) -> float:
    """Returns the run-steps per second of a contender in PyTorch."""
    team = Team(session.folder, kind, settings)
    try:
        epochs = team.warm(session.size.seconds, session.left())
        return 1e6 / team.sample("advance", within=session.left(), epochs=epochs).wall
    except TimeoutError as error:
        raise OutOfTimeError from error
    except RuntimeError as error:
        raise Failed(str(error).strip().splitlines()[-1][:300]) from error
    finally:
        team.kill()


def transformer(session: Session) -> None:
    """Measures both forms of the Transformer by lanes, then PyTorch's ensembles of them."""
    size = session.size
    _forms(session, "transformer", size.transformers, size.ensembles, ("bmm", "device transformers", COMPILED))


def convnet(session: Session) -> None:
    """Measures the plain and the residual network by lanes, then PyTorch's ensembles of them."""
    size = session.size
    _forms(session, "convnet", size.convnets, size.convnets, ("grouped", "device convnets", GROUPED))


def _forms(
    session: Session, part: str, counts: tuple[int, ...], models: tuple[int, ...], rival: tuple[str, str, Mapping[str, Any]]
) -> None:  # fmt: skip
    """Measures run-steps per second of the forms of a part.

    Args:
      session: its rows are added.
      part: key of FORMS in `networks`.
      counts: lanes.
      models: sizes of PyTorch's ensembles.
      rival: how an ensemble is batched, its kind, and more settings of it.
    """
    flops, usual, (batched, kind, more) = _products(session), next(iter(VARIANTS)), rival
    for form, count in itertools.product(FORMS[part], counts):
        name = f"{form}, {count} lanes, {usual}"
        session.attempt(name, lambda f=form, c=count: _speed(session, c, usual, flops, f))
    if not installed("torch"):
        session.add("PyTorch", "skipped: PyTorch is not installed", "", "")
        return
    for form in FORMS[part]:
        session.run("dump", lanes=max(models), smoke=session.smoke, folder=str(session.folder), form=form)
        for count in models:
            _rival(session, f"{form}, {batched} ensemble, compiled, CUDA graphs", kind, more, count, form)


def paper(session: Session) -> None:
    """Runs experiments from start to verdict, while time is left."""
    for experiment in PAPER[: 1 if session.smoke else None]:
        begun = time.perf_counter()
        line = [sys.executable, "-m", "experiments.run", f"--experiment={experiment}", f"--preset={session.size.preset}"]

        def one(line: list[str] = line, experiment: str = experiment, begun: float = begun) -> None:
            session.finish([*line, f"--workdir={session.output / 'paper'}"], os.environ)
            session.add(experiment, f"{session.size.preset}, start to verdict", "s", time.perf_counter() - begun)
            _compare(session, experiment)

        session.attempt(experiment, one)


def _compare(session: Session, experiment: str) -> None:
    """Compares each claim's interval with the committed one of the same seeds."""
    ours = session.output / "paper" / experiment / "claims.csv"
    here, committed = (_intervals(p) for p in (ours, ROOT / "experiments" / "results" / experiment / "claims.csv"))
    for name in sorted(here.keys() & committed.keys()):
        one, other = here[name], committed[name]
        for quantity, (low, effect, high) in (("interval here", one), ("interval committed", other)):
            session.add(f"{experiment} {name}", quantity, "", f"{effect:.4f} [{low:.4f}, {high:.4f}]")
        apart = one[0] > other[2] or other[0] > one[2]
        session.add(f"{experiment} {name}", "intervals overlap", "", "NO" if apart else "yes")


def _intervals(path: Path) -> dict[str, tuple[float, float, float]]:
    """Returns lower end, effect and upper end of every row that has an effect, by `id, condition`."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["effect"]]
    return {f"{r['id']}, {r['column']}": (float(r["ci_low"]), float(r["effect"]), float(r["ci_high"])) for r in rows}


def memory(session: Session) -> None:
    """Compares peak bytes per run with the prediction of `planning`."""
    for count in session.size.lanes[-2:]:

        def one(count: int = count) -> None:
            peak = session.run("speed", lanes=count, smoke=session.smoke, seconds=0.0)["peak_bytes"]
            predicted = session.run("predict", lanes=count, smoke=session.smoke)
            session.add(f"{count} lanes", "predicted", "bytes/run", predicted / count)
            if not peak:
                session.add(f"{count} lanes", "skipped: this backend reports no peak", "", "")
                return
            session.add(f"{count} lanes", "peak", "bytes/run", peak / count)
            session.add(f"{count} lanes", "peak / predicted", "", peak / predicted)

        session.attempt(f"{count} lanes", one)


PARTS: dict[str, Callable[[Session], None]] = {
    "correct": correct,
    "lanes": lanes,
    "rivals": rivals,
    "transformer": transformer,
    "convnet": convnet,
    "paper": paper,
    "memory": memory,
}


def measure(output: Path, parts: tuple[str, ...], seconds: float, allow_cpu: bool) -> int:
    """Runs the parts in turn, each within its share of the time that is left; returns the exit status."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        session = Session(output, Path(folder), seconds, allow_cpu)
        machine = session.run("describe")
        if machine["backend"] == "cpu" and not allow_cpu:
            return complain("--accelerator: JAX finds only a CPU; expected a GPU or TPU and its jaxlib", BAD_INPUT)
        manifest = {"format": store.FORMAT, **machine, "commit": commit(), "tiny": allow_cpu, "parts": list(parts)}
        store.write_json(output / "accelerator_manifest.json", manifest)
        for i, part in enumerate(parts):
            share = SHARES[part] / max(sum(SHARES[p] for p in parts[i:]), 1e-9)
            session.part, session.limit = part, session.end
            if SHARES[part]:
                session.limit = time.monotonic() + share * max(0.0, session.end - time.monotonic())
            try:
                PARTS[part](session)
            except OutOfTimeError:
                session.add(part, "stopped: the time of this part is over", "", "")
            except Failed as error:
                session.add(part, f"failed: {error}", "", "")
        store.write_json(output / "accelerator_manifest.json", manifest | {"seconds": round(time.monotonic() - begun, 1)})
    return DONE
