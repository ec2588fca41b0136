"""Representation biases in networks that learn several features equally well: train many, measure, decide."""

import importlib
from typing import Any

from repbias_jax.anyone import probe_activations
from repbias_jax.results import Results, load
from repbias_jax.probes.variance import variance_explained

__all__ = ["Results", "load", "probe_activations", "run", "variance_explained"]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"
_LAZY = {"run": "repbias_jax.api"}  # imported when first used


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_LAZY[name]), name)
