"""Data generators, by name.

A generator is a module with `check(task)`, `input_shape(task)`, `num_values(task)`, `base_rates(task)`,
`sample(task, dials, key)` for ONE example, `decorrelated(task, dials)` (the dials of data in which every feature is
independent and at its base rate) and `probe_set(task, dials, name, key)` (natural, balanced or decorrelated). Add one: a
file, and a line here.
"""

from types import ModuleType

from repbias_jax.data import binary

DATA: dict[str, ModuleType] = {"binary": binary}
