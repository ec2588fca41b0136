"""Representation biases in networks that learn several features equally well: train many, measure, decide.

Public names are imported when they are first used, so that `import repbias_jax` alone loads no training code, no storage
library and no plotting library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repbias_jax.api import run
    from repbias_jax.config import Config, ConfigError, Experiment, Keep, Optimizer, Preset, Training
    from repbias_jax.data.binary import BinaryOptions
    from repbias_jax.external import probe_activations, variance_explained
    from repbias_jax.models.mlp import MLPOptions
    from repbias_jax.results import Results, load

__version__ = "0.1.0"
_HOMES = {
    "run": "api",
    "load": "results",
    "Results": "results",
    "probe_activations": "external",
    "variance_explained": "external",
    "Config": "config",
    "ConfigError": "config",
    "Experiment": "config",
    "Keep": "config",
    "Optimizer": "config",
    "Preset": "config",
    "Training": "config",
    "BinaryOptions": "data.binary",
    "MLPOptions": "models.mlp",
}
__all__ = [
    "BinaryOptions",
    "Config",
    "ConfigError",
    "Experiment",
    "Keep",
    "MLPOptions",
    "Optimizer",
    "Preset",
    "Results",
    "Training",
    "load",
    "probe_activations",
    "run",
    "variance_explained",
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
