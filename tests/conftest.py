"""Strict JAX, four virtual devices, and one smoke run that feeds every test which only reads its files."""

import shutil
import signal
import subprocess
import sys
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
def smokes(smoke, command, tmp_path_factory) -> Path:
    """The workdir after every experiment in smoke size, by the command that runs them all and goes on from `smoke`'s."""
    workdir = Path(shutil.copytree(smoke.parent, tmp_path_factory.mktemp("smokes") / "workdir"))
    done = command("--experiment=ALL", "--preset=smoke", f"--workdir={workdir}", f"--devices={DEVICES}")
    (workdir / "printed.txt").write_text(done.stdout)
    return workdir
