"""What holds for the whole process of a command: signals, what libraries print, and what the manifest says of it."""

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy", "pandas", "matplotlib")


def quieten() -> None:
    """Keeps what libraries say of themselves from what the command says."""
    logging.set_verbosity(logging.FATAL)  # orbax tells of every file it writes, and logs what it raises, too
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _print_unraisable


def _print_unraisable(found: Any) -> None:
    """As Python does, but for one: when orbax gives up, tensorstore's other readers and writers still call its loop."""
    if not (found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def catch_signals() -> Callable[[], bool]:
    """The first SIGTERM, SIGINT or SIGUSR1 is noted, to be polled; a second one exits at once."""
    caught: list[int] = []

    def note(number, _frame):
        if caught:
            os._exit(INTERRUPTED)
        caught.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, note)
    return lambda: bool(caught)


def complain(message: str, status: int = BAD_INPUT) -> int:
    """One line on standard error; returns the exit status."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def record() -> dict[str, Any]:
    """Versions, machine and commit, for the manifest."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {**versions, "python": platform.python_version(), "devices": devices, "commit": commit()}


def commit() -> str:
    """What `git describe` says of this checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
