"""Values that most experiments share: the two optimizers compared, the size of a smoke run, presets of the base setting."""

from repbias_jax.config import Overrides, Preset

# SGD at rate 0.1 is the optimizer of the base setting and gives the verdicts; Adam is exploratory.
CONDITIONS: tuple[tuple[str, Overrides], ...] = (
    ("sgd", ()),
    ("adam", (("optimizer.name", "adam"), ("optimizer.learning_rate", 3e-4))),
)
SEEDS_OF_MAP = 8  # for settings that no claim reads
# Most smoke runs have this one size, so that experiments share compiled programs.
SMOKE: Overrides = (
    ("model.widths", (32, 16)), ("task.num_train", 512), ("task.num_test", 256), ("training.epochs", 8),
    ("training.observe_every", 8),
)  # fmt: skip
# These are for experiments that train the base setting. `quick` is shorter, but long enough to learn both features.
PRESETS = (
    ("full", Preset(16)),
    ("quick", Preset(12, conditions=("sgd",), overrides=(("training.epochs", 64),))),
    ("smoke", Preset(2, conditions=("sgd",), overrides=SMOKE)),
)

# The base setting of confirmations has one sigmoid unit for each feature, because the source describes separate output
# units. Length and rate were chosen by pass rate alone, on seeds 1000 to 1015: results/base/tried.csv lists what was tried,
# and frozen.json in the same folder what was frozen. A module may define a CONFIRMATION of its own, and CONFIRMATION_TUNED
# for settings that need another length and rate under it.
CONFIRMATION: Overrides = (("model.head", "unit"),)
LADDER: Overrides = (("optimizer.learning_rate", 0.02), ("training.epochs", 400))
