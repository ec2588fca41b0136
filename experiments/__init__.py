"""The experiments, by name: each a module with `EXPERIMENT`, `claims(results, column)` and `figures(results)`.

Add one: a file, and a line here.
"""

from types import ModuleType

from experiments import complexity

EXPERIMENTS: dict[str, ModuleType] = {"complexity": complexity}
