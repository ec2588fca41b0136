"""Strict JAX, four virtual devices, and one smoke run of each experiment for all tests that only read its files."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from absl import flags

ROOT = Path(__file__).parent.parent
DEVICES = 4

jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


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
def call(capsys):
    """`run_here`, and what it printed and what it complained of."""

    def do(*arguments: str):
        status = run_here(*arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return do


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A compilation cache of this session's own, which its subprocesses share."""
    return tmp_path_factory.mktemp("compilation_cache")


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


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, command) -> Path:
    """The experiment's folder after one smoke run."""
    workdir = tmp_path_factory.mktemp("smoke")
    done = command("--experiment=complexity", "--preset=smoke", f"--workdir={workdir}", f"--devices={DEVICES}")
    (workdir / "printed.txt").write_text(done.stdout)
    return workdir / "complexity"


@pytest.fixture(scope="session")
def begun(smoke, cache, tmp_path_factory) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Every experiment in smoke size, by the command for all, which goes on from `smoke`; beside the first tests."""
    workdir = Path(shutil.copytree(smoke.parent, tmp_path_factory.mktemp("smokes") / "workdir"))
    line = line_of(cache, "--experiment=ALL", "--preset=smoke", f"--workdir={workdir}", f"--devices={DEVICES}")
    with open(workdir / "printed.txt", "w") as printed, open(workdir / "complained.txt", "w") as complained:
        process = subprocess.Popen(line, cwd=ROOT, stdout=printed, stderr=complained)
    yield process, workdir
    process.kill()
    process.wait()


@pytest.fixture(scope="session", autouse=True)
def _begin_early(request):
    if any("smokes" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("begun")


@pytest.fixture(scope="session")
def smokes(begun) -> Path:
    """The workdir after every experiment in smoke size."""
    process, workdir = begun
    assert process.wait(timeout=900) == 0, (workdir / "complained.txt").read_text()
    return workdir
