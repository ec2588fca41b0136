"""The experiments, by name: each a module with `EXPERIMENT`, `claims(results, condition)` and `figures(results)`.

`condition` is the name of a condition. To add an experiment, add a module to this folder and a line here.
"""

from types import ModuleType

from experiments.claims import (
    architecture,
    competition,
    complexity,
    components,
    downstream,
    learning_order,
    optimizer,
    prevalence,
    redundancy,
    similarity,
    steering,
)

EXPERIMENTS: dict[str, ModuleType] = {
    "complexity": complexity,
    "learning_order": learning_order,
    "prevalence": prevalence,
    "competition": competition,
    "architecture": architecture,
    "components": components,
    "steering": steering,
    "optimizer": optimizer,
    "similarity": similarity,
    "downstream": downstream,
    "redundancy": redundancy,
}
