"""Representation biases in networks that learn several features equally well: train many, measure, decide.

Public names are imported when they are first used, so that `import repbias_jax` alone loads no training code, no storage
library and no plotting library.

A map of the code. Data flows down this list; nothing imports upwards.

  config.py       what every family of data and models shares: options, dials, experiments, overrides
  features.py     features of bits as truth tables, from easy to hard
  data/           generators: factors first, then inputs that have them; DATA
  models/         Flax models for one example, with sites that can be recorded and edited, and views of them; MODELS
  training.py     one run, a pure function of (static half, dials, seed)
  store.py        what is on disk
  provenance.py   which code and which versions trained a chunk
  layout.py       groups, chunks, snapshots, points of curves: who trains together and where training stops
  devices.py      runs over devices and processes
  population.py   the training loop over chunks: resume, progress
  probes/         functions of arrays, and a glossary of what they measure; PROBES
  measure.py      probes over runs, snapshots and views; pairs.py: over pairs of models
  results.py      tidy frames of a measured experiment
  statistics.py   seeds to effect, interval and verdict; confirmation.py: what is decided on fresh seeds
  external/       activations computed elsewhere: loaders, the same measures, intervals over examples
  report/         contrasts that claims are made of, figures, tables, pages, the score card
  planning.py     what will be run, checked, and what it will cost
  rehearsal.py    claims before training: will what they read be there?
  selection.py    which part of an experiment is run
  pipeline.py     train, measure, report: the table of contents
  api.py          `run`: the same from Python
  probe.py        the command over external/
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repbias_jax.api import run
    from repbias_jax.config import Config, ConfigError, Experiment, Keep, Optimizer, Preset, Training
    from repbias_jax.data.binary import BinaryOptions
    from repbias_jax.data.digits import DigitOptions
    from repbias_jax.data.images import ImageOptions
    from repbias_jax.data.sequences import SequenceOptions
    from repbias_jax.external import probe_activations, variance_explained
    from repbias_jax.models.convnet import ConvNetOptions
    from repbias_jax.models.mlp import MLPOptions
    from repbias_jax.models.transformer import TransformerOptions
    from repbias_jax.models.vit import ViTOptions
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
    "DigitOptions": "data.digits",
    "ImageOptions": "data.images",
    "SequenceOptions": "data.sequences",
    "ConvNetOptions": "models.convnet",
    "MLPOptions": "models.mlp",
    "TransformerOptions": "models.transformer",
    "ViTOptions": "models.vit",
}
__all__ = [
    "BinaryOptions",
    "Config",
    "ConfigError",
    "ConvNetOptions",
    "DigitOptions",
    "Experiment",
    "ImageOptions",
    "Keep",
    "MLPOptions",
    "Optimizer",
    "Preset",
    "Results",
    "SequenceOptions",
    "Training",
    "TransformerOptions",
    "ViTOptions",
    "load",
    "probe_activations",
    "run",
    "variance_explained",
]


def __getattr__(name: str) -> Any:
    """Returns a public name, imported from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # so that it is looked up only once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
