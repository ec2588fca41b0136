"""The smallest experiment: eight runs of two settings, two checkpoints, snapshots along training, a claim, a figure."""

from repbias_jax.config import Config, Experiment, Keep, Preset, Training
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report.figures import Drawn, grid, label
from repbias_jax.results import Results
from repbias_jax.statistics import Claim, Part, gate

CONFIG = Config(
    BinaryOptions(features=("parity1", "parity2"), num_bits=8, num_train=64, num_test=32, num_probe=64),
    MLPOptions(widths=(8, 4)),
    training=Training(batch_size=16, epochs=2, observe_every=4),
    keep=Keep(every=4),
)
EXPERIMENT = Experiment(
    name="tiny",
    title="The smallest experiment that has everything",
    config=CONFIG,
    settings=(("slow", ()), ("fast", (("optimizer.learning_rate", 0.3),))),
    probes=("variance", "readout"),
    presets=(("full", Preset(4)),),
    num_seeds=4,
)


def claims(results: Results, column: str) -> list[Claim]:
    """The first feature's share minus the second's, of whoever learned the first."""
    setting = f"{column}.slow"
    first, second = results.outputs(setting)
    gap = results.values(setting, "r2", first) - results.values(setting, "r2", second)
    passed = gate(results, [(setting, (first,), [results.last_step(setting)])])
    return [Claim("T01", "Easy explains more", "", (Part("", "r2(easy) - r2(hard)", gap, passed, +1, 0.05),))]


def figures(results: Results) -> list[Drawn]:
    """One panel."""
    figure, axes = grid(1, 1)
    axes[0, 0].plot(results.values("base.slow", "r2", results.outputs("base.slow")[0]))
    label(axes[0, 0], "tiny", "seed", "r2")
    return [Drawn("tiny", figure, CAPTIONS["tiny"])]


CAPTIONS = {"tiny": "r2 of the easy feature, by seed."}
