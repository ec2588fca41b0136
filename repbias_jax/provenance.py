"""What a manifest records of the program and the machine. It is recorded and never compared."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy", "pandas", "matplotlib")


def record() -> dict[str, Any]:
    """Versions, machine and commit, for the manifest."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {**versions, "python": platform.python_version(), "devices": devices, "commit": commit()}


def commit() -> str:
    """What `git describe` says of this checkout."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
