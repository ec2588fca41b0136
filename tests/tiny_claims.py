"""An experiment of seconds: two linear features that every network learns, and claims about one and the same setting."""

from repbias_jax.config import Config, Experiment, Optimizer, Preset, Training
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.report import contrasts
from repbias_jax.statistics import Part

ONE, THREE = "parity1", "majority3"
EXPERIMENT = Experiment(
    name="tiny",
    title="One bit against three",
    config=Config(
        BinaryOptions(features=(ONE, THREE), num_bits=8, num_train=512, num_test=128, num_probe=128),
        MLPOptions(widths=(16,)),
        Optimizer(learning_rate=0.5),
        Training(batch_size=64, epochs=30, observe_every=120),
    ),
    settings=(("joint", ()), ("unread", ())),
    seed_caps=(("joint", 2),),
    conditions=(("sgd", ()), ("slow", (("optimizer.learning_rate", 0.1),))),
    presets=(("full", Preset(16)), ("smoke", Preset(2, conditions=("sgd",)))),
    variant="not frozen",
)


def claims(results, condition):
    """C90 and C91, and C92, which nobody confirms."""
    return contrasts.claims_of(CLAIMS, results, condition)


def _gap(results, joint):
    return (contrasts.difference(results, joint, "", "made", (ONE, THREE), 0.02),)


def _total(results, joint):
    total = results.values(joint, "total_variance")
    passed = contrasts.at_end(results, joint, (ONE, THREE))
    return Part("a", "total variance", total, passed, +1, 0.02), Part(
        "b", "twice", 2 * total, passed, +1, 0.02, kind="shown"
    )


CLAIMS = {
    "C90": ("One bit explains more than three", "made", ("joint",), _gap, "ours"),
    "C91": ("There is variance", "made", ("joint",), _total, "ours"),
    "C92": ("One bit explains more, again", "made", ("joint", "unread"), lambda r, joint, _: _gap(r, joint), "ours"),
}
CAPTIONS = {}


def figures(results):
    """None."""
    return []
