"""What most experiments share: the two optimizers compared, and the size of a smoke run."""

from repbias_jax.config import Overrides

# SGD 0.1 is the base setting's and carries the verdicts; Adam is exploratory.
COLUMNS: tuple[tuple[str, Overrides], ...] = (
    ("sgd", ()),
    ("adam", (("optimizer.name", "adam"), ("optimizer.learning_rate", 3e-4))),
)
# One size, so that experiments share compiled programs.
SMOKE: Overrides = (
    ("model.widths", (32, 16)), ("task.num_train", 512), ("task.num_test", 256), ("training.epochs", 8),
    ("training.observe_every", 8),
)  # fmt: skip
