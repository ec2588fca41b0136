"""The experiments, by name: each a module with `EXPERIMENT`, `claims(results, column)` and `figures(results)`.

Add one: a file, and a line here.
"""

from types import ModuleType

from experiments import architecture, competition, complexity, downstream, learning_order, prevalence, redundancy

EXPERIMENTS: dict[str, ModuleType] = {
    "complexity": complexity,
    "learning_order": learning_order,
    "prevalence": prevalence,
    "competition": competition,
    "architecture": architecture,
    "downstream": downstream,
    "redundancy": redundancy,
}
