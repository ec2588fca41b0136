"""Runs probes of pairs of models. Models lie in different chunks, so this is done when the rows of all chunks are merged.

Within one condition, all models at their last step and the untrained networks of the condition's first setting are
compared, at the penultimate layer and on the score half of the probe set, which all seeds share. Two models of the same
seed are never compared, because they share data and often initial weights.

No intermediate results are stored: a pair depends only on its two models, so an interrupted comparison is repeated and
gives the same numbers. Memory holds the activations of one condition's models and what one measure computes from each:
for 64 models with 1,024 examples of 64 units, these are 17 MB, and 134 MB of distances.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repbias_jax import store, training
from repbias_jax.layout import Chunk, probes_of
from repbias_jax.models.family import resolve
from repbias_jax.population import Interrupted
from repbias_jax.probes import PROBES
from repbias_jax.probes.moments import Measured


def views_read(probes: Sequence[str], places: Mapping[str, tuple[str, ...]], views: Mapping[str, Any]) -> set[str]:
    """Returns the views that probes of pairs read. They are never discarded, since pairs are measured at the very end.

    Args:
      probes: names in PROBES.
      places: the views that each place of the model stands for.
      views: the model's views, by name.
    """
    pairwise = [place for name in probes if PROBES[name].kind == "pair" for place in PROBES[name].views]
    return {view for place in pairwise for view in resolve(place, places, views)}


class Model(NamedTuple):
    """One network at one step. Trained models come first, then untrained ones, both by setting and seed."""

    setting: str
    seed: int
    step: int
    last: int  # the last step of its setting
    chunk: Chunk
    place: int  # index of the run within the chunk

    @property
    def name(self) -> str:
        """The model's name in the CSV column `other`: setting and seed, and the step if it is not the last."""
        return f"{self.setting}/{self.seed}" + ("" if self.step == self.last else f"/{self.step}")


def compare(folder: Path, chunks: Sequence[Chunk], probes: Sequence[str], stop: Callable[[], bool]) -> Iterator[tuple]:
    """Yields rows, from the CSV column `setting` on: one per pair and metric, for the first model, the second as `other`.

    Args:
      folder: the experiment's folder.
      chunks: those that are trained, in order.
      probes: names in PROBES; groups may have further ones. Only those of pairs are run.
      stop: polled before each condition.

    Raises:
      StoreError: activations are missing or damaged.
      Interrupted: `stop` returned true.
    """
    for name in [name for name in PROBES if PROBES[name].kind == "pair"]:
        own = [chunk for chunk in chunks if name in probes_of(chunk.group.static, probes)]
        for condition, models in models_of(own).items():
            if stop():
                raise Interrupted(f"all chunks are measured, the pairs of {condition} are not")
            for wanted in PROBES[name].views:
                sites, phi = zip(*(_read(folder, model, wanted) for model in models), strict=True)
                yield from _rows(name, models, sites, phi, PROBES[name].function(phi))


def models_of(chunks: Sequence[Chunk]) -> dict[str, list[Model]]:
    """Returns the models that are compared with each other, in order, by condition."""
    found: dict[str, list[Model]] = {}
    first: dict[str, str] = {}
    for chunk in chunks:
        last = chunk.group.static.config.num_steps
        for place, (setting, seed) in enumerate(chunk.runs):
            condition = setting.split(".")[0]
            steps = {0, last} if first.setdefault(condition, setting) == setting else {last}
            found.setdefault(condition, []).extend(Model(setting, seed, step, last, chunk, place) for step in steps)
    return {condition: sorted(models, key=lambda m: (m.step != m.last, *m[:3])) for condition, models in found.items()}


def _read(folder: Path, model: Model, site: str) -> tuple[str, np.ndarray]:
    """Returns the view's own name and a model's activations `[N, D]` on the score half of its probe set."""
    arrays = store.Activations(folder / model.chunk.path / "activations.zarr")
    own = training.places_of(model.chunk.group.static)[site][0]
    time, half = list(arrays.read(f"snapshot_{own}")).index(model.step), arrays.shape(own)[2] // 2
    return own, arrays.read(own, np.s_[model.place, time, half:])


def _rows(
    probe: str, models: Sequence[Model], sites: Sequence[str], phi: Sequence[np.ndarray], found: Mapping[Measured, Any]
) -> Iterator[tuple]:
    reasons = [_reason(x) for x in phi]
    for i, model in enumerate(models):
        for j in range(i + 1, len(models)):
            if models[j].seed == model.seed:
                continue
            for key, values in found.items():
                value = values[i, j]
                reason = (reasons[i] or reasons[j] or "undefined") if np.isnan(value) else ""
                yield (
                    model.setting, model.seed, model.step, sites[i], probe, key.metric, key.feature, models[j].name, key.at,
                    "score", store.number(value), reason,
                )  # fmt: skip


def _reason(phi: np.ndarray) -> str:
    """Returns why a similarity to these activations may be missing; empty if they give no reason."""
    if not np.isfinite(phi).all():
        return "diverged"
    if np.ptp(phi, axis=0).max() <= 1e-6 * np.abs(phi).max():
        return "constant layer"
    return "constant example" if (np.ptp(phi, axis=1) == 0).any() else ""
