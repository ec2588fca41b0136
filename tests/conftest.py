"""Strict JAX that compiles fast, four virtual devices, and one smoke run of each experiment for all tests and workers."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from absl import flags

ROOT = Path(__file__).parent.parent
DEVICES = 4
LIMIT = 3600.0  # seconds in which all smoke runs are done, also beside other tests on a slow machine

# Most of the tests' time is XLA's: it optimizes less, here and in subprocesses, and compiles nothing twice in one process.
LESS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {LESS}".strip()
COMPILED = tempfile.TemporaryDirectory()  # a cache of this process alone, since its files are not written atomically
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="module")
def forgetful() -> Iterator[None]:
    """Frees what a file compiled: a process may map 65,530 regions of memory, and each program takes some."""
    yield
    jax.clear_caches()


def run_here(*arguments: str) -> int:
    """Runs the command in this process, with its flags as new; returns its exit status."""
    from experiments import run  # after JAX was set up

    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.flags_by_module_dict()[run.__name__]:
        flag.unparse()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        return run.main(run.parse(["run", f"--devices={DEVICES}", *map(str, arguments)]))
    except SystemExit as exit_:
        return exit_.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def call(capsys, monkeypatch):
    """`run_here`, and what it printed and complained of. It times and compiles no update: for all experiments, minutes."""
    monkeypatch.setattr("repbias_jax.population.step_seconds", lambda chunk, stop: 0.01)
    monkeypatch.setattr("repbias_jax.layout.step_flops", lambda group: 1e6)

    def do(*arguments: str):
        status = run_here(*arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return do


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder of this session, the same one for all of its workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def cache(shared) -> Path:
    """A compilation cache of this session's own, which its subprocesses share."""
    return shared / "compilation_cache"


def line_of(cache: Path, *arguments: str) -> list[str]:
    """The experiment command as a list of words."""
    return [sys.executable, "-m", "experiments.run", f"--compilation_cache={cache}", *map(str, arguments)]


@pytest.fixture(scope="session")
def command(cache):
    """Runs the experiment command in a process of its own; returns the finished process."""

    def run(*arguments: str, check: int | None = 0, **more) -> subprocess.CompletedProcess:
        done = subprocess.run(line_of(cache, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=900, **more)
        assert check is None or done.returncode == check, done.stderr + done.stdout
        return done

    return run


@pytest.fixture(scope="session", autouse=True)
def begun(request, shared, cache) -> Iterator[Path]:
    """The folder of all smoke runs, which the worker that comes first makes, beside the first tests."""
    folder = shared / "smokes"
    asked = {name for item in request.session.items for name in item.fixturenames}
    names = ["complexity"] * bool({"smoke", "smokes"} & asked) + ["ALL"] * ("smokes" in asked)
    with ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            pool.submit(_make, folder, cache, names)
        yield folder


def _make(folder: Path, cache: Path, names: list[str]) -> None:
    """One experiment, and in a copy that goes on from it, by the command for all, every one."""
    for name in names:
        workdir = folder / name
        workdir.mkdir(exist_ok=True)
        asked = (f"--experiment={name}", "--preset=smoke", f"--workdir={workdir}", f"--devices={DEVICES}")
        done = subprocess.run(line_of(cache, *asked), cwd=ROOT, capture_output=True, text=True)
        (workdir / "printed.txt").write_text(done.stdout)
        if name == "complexity":
            shutil.copytree(workdir, folder / "ALL")
        (folder / f"{name}.writing").write_text(str(done.returncode) + done.stderr)
        (folder / f"{name}.writing").rename(folder / f"{name}.ended")


def _made(folder: Path, name: str) -> Path:
    """Its workdir, once it is there."""
    limit = time.monotonic() + LIMIT
    while not (folder / f"{name}.ended").exists():
        assert time.monotonic() < limit, f"{name}: not done after {LIMIT:g} s"
        time.sleep(0.1)
    ended = (folder / f"{name}.ended").read_text()
    assert ended.startswith("0"), ended
    return folder / name


@pytest.fixture(scope="session")
def smoke(begun, tmp_path_factory) -> Path:
    """The experiment's folder after one smoke run: a copy, since commands are tried on it."""
    made = _made(begun, "complexity")
    workdir = Path(shutil.copytree(made, tmp_path_factory.mktemp("smoke") / "workdir"))
    printed = workdir / "printed.txt"
    printed.write_text(printed.read_text().replace(str(made), str(workdir)))
    return workdir / "complexity"


@pytest.fixture(scope="session")
def smokes(begun) -> Path:
    """The workdir after every experiment in smoke size."""
    return _made(begun, "ALL")
