"""Representation biases in networks that learn several features equally well: train many, measure, decide.

Public names are imported when they are first used, so that `import repbias_jax` alone loads no training code, no storage
library and no plotting library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repbias_jax.external import probe_activations, variance_explained
    from repbias_jax.measure import Results, load

__all__ = ["Results", "load", "probe_activations", "variance_explained"]
__version__ = "0.1.0"
_HOMES = {"Results": "measure", "load": "measure", "probe_activations": "external", "variance_explained": "external"}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # so that it is looked up once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
