"""Representation biases in networks that learn several features equally well: train many, measure, decide."""

from repbias_jax.anyone import probe_activations
from repbias_jax.measure import Results, load
from repbias_jax.probes.variance import variance_explained

__all__ = ["Results", "load", "probe_activations", "variance_explained"]
__version__ = "0.1.0"
