"""Data generators, by name.

A generator is a module that draws factors first, then an input that has them. It defines:

- `OPTIONS`: its options, a subclass of `Task`
- `check(task)`: raises ConfigError, naming the option, if the task cannot be generated
- `input_spec(task)`: shape and dtype of one example's input
- `factors(task) -> {name: Factor}`: the factors of every drawn example, with the features in the order of the options
- `probe_factors(task, name)`: the factors of a probe set; a crossed one may lack latents and have bits in addition
- `fair(task, dials)`: the dials of the test set, in which features are independent and at their base rates
- `draw(task, dials, key) -> drawn`: a pytree of arrays that is drawn once per RUN; None if there is nothing to draw
- `order_of(task, dials, drawn) -> [O]`: the listed output at each output position of this run; None if every example has
  its own order
- `sample(task, dials, drawn, key) -> Example(inputs, factors, labels [O], order [O])` for ONE example; `labels[p]` is the
  label of the listed output `order[p]`
- optionally `definitions(task)`: text that changes if the features' names come to mean something else, as where they are
  entries of a dictionary that users add to
- for a generator of tokens, `tokens_of(task) -> Tokens`: the numbers of tokens in an input and of their values
- `probe_set(task, dials, drawn, name, key) -> (inputs [N, ...], factors {name: [N]}, order [O] or [N, O])`

To add a generator, add a file, and a line here.
"""

from types import ModuleType

from repbias_jax.config import Factor, Task
from repbias_jax.data import binary, digits, images, sequences

DATA: dict[str, ModuleType] = {"binary": binary, "sequences": sequences, "images": images, "digits": digits}


def reported(task: Task) -> tuple[str, ...]:
    """Returns the factors that the outputs report, in the order listed; by default the features. Factors may repeat."""
    return task.outputs or tuple(n for n, f in DATA[task.name].factors(task).items() if f.role == "feature")


def output_values(task: Task) -> tuple[int, ...]:
    """Returns the number of values of each output, in the order listed, `[O]`."""
    known: dict[str, Factor] = DATA[task.name].factors(task)
    return tuple(known[name].values for name in reported(task))
