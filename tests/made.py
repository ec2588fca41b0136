"""Results from hand-written numbers instead of files, for claims whose right answers are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from repbias_jax.columns import COLUMNS
from repbias_jax.config import Factor
from repbias_jax.results import Results

SEEDS = range(16)


class Made(Results):
    """Settings of one condition, `sgd`, with rows and curves as they are put in; `done` makes the frames."""

    strict = False  # measures that a test does not put in, such as null bands, count as missing

    def __init__(self, outputs, end, observe_every=1):
        self.records, self.points, self.end = [], [], end
        self.settings = pd.DataFrame(
            [
                {"setting": f"sgd.{s}", "num_steps": end, "sites": "hidden_0 hidden_1 logits", "outputs": o}
                for s, o in outputs.items()
            ]
        ).set_index("setting")
        self.settings["training.observe_every"] = observe_every

    def put(self, setting, metric, feature, value, step=None, at="", other="", site="hidden_1", seeds=SEEDS):
        """The same value, with a little spread over seeds that sums to zero, or one value a seed."""
        for k in seeds:
            noise = 1e-3 * ((k % 2) - 0.5) if np.isscalar(value) else 0
            own = value + noise if np.isscalar(value) else value[k]
            self.records.append(
                dict.fromkeys(COLUMNS, "")
                | {"setting": f"sgd.{setting}", "seed": k, "step": self.end if step is None else step}
                | {"site": site, "metric": metric, "feature": feature, "other": other, "at": at, "value": own}
            )

    def learn(self, setting, output, steps, accuracy=1.0, seeds=SEEDS):
        """Accuracies of an output at some steps."""
        assert output in self.outputs(f"sgd.{setting}")
        for step in steps:
            for k in seeds:
                self.points.append((f"sgd.{setting}", k, step, output, "test", 0.0, accuracy, accuracy))

    def done(self):
        """Makes the frames; what was put in last counts."""
        self.rows = pd.DataFrame(self.records, columns=list(COLUMNS))
        columns = ["setting", "seed", "step", "output", "split", "loss", "accuracy", "worst_class"]
        self.curves = pd.DataFrame(self.points, columns=columns).drop_duplicates(columns[:5], keep="last")
        return self


def roles_of(factors, values=2):
    """Roles of made factors, by the names that these tests give them: `f.bit0`, `f.part`, `twin_f`, else a feature."""
    found = {}
    for name in factors:
        owner = name.removeprefix("twin_").split(".")[0]
        role = "bit" if ".bit" in name else "twin" if name.startswith("twin_") else "part" if "." in name else "feature"
        found[name] = Factor(2 if role == "bit" else values, role, "" if role == "feature" else owner)
    return found


def probed(probe):
    """A probe of representations, jitted once for each set of factors: `run(fit, score, values=2)`."""

    @functools.cache
    def compiled(roles):
        return jax.jit(lambda fit, score: probe(fit, score, dict(roles)))

    return lambda fit, score, values=2: compiled(tuple(roles_of(fit[1], values).items()))(fit, score)


def acting(probe, finish):
    """An intervention on a representation that `finish` turns into logits: a change is added to what is there."""

    def run(fit, score):
        own = {"fit": fit[0], "score": score[0]}
        return probe(fit, score, lambda side, change: finish(own[side] + jnp.broadcast_to(change, own[side].shape)))

    return run
