"""The experiments, by name: each a module with `EXPERIMENT`, `claims(results, condition)` and `figures(results)`.

`condition` is the name of a condition. To add an experiment, add a module to this folder and a line here.
"""

from types import ModuleType

from experiments.claims import (
    architecture,
    competition,
    complexity,
    components,
    digits,
    downstream,
    encoder_residual,
    learning_order,
    optimizer,
    output_position,
    prevalence,
    redundancy,
    sequence_complexity,
    sequence_prevalence,
    similarity,
    steering,
    vision_plain,
    vision_redundancy,
    vision_residual,
    vision_untrained,
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
    "output_position": output_position,
    "sequence_complexity": sequence_complexity,
    "sequence_prevalence": sequence_prevalence,
    "encoder_residual": encoder_residual,
    "vision_plain": vision_plain,
    "vision_residual": vision_residual,
    "vision_untrained": vision_untrained,
    "vision_redundancy": vision_redundancy,
    "digits": digits,
}
