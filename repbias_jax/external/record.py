"""The record of a measurement: rows of `results.csv`, and the versions of the software that made them.

Source: ours.
"""

import importlib.metadata
import platform
from typing import Any

import jax

from repbias_jax.probes.moments import Measured

EXPERIMENT = "probe"
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "pandas", "matplotlib", "tensorstore")


def row(site: str, probe: str, name: Measured, value: float, reason: str = "") -> tuple[Any, ...]:
    """Returns a row of `results.csv`. The columns that identify run and snapshot are empty or 0: there is one of each."""
    return (EXPERIMENT, "", "", 0, 0, site, probe, *name, "score", value, reason)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages in use, and the devices, for the manifest and the page."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {**found, "python": platform.python_version(), "devices": devices}
