"""The child of `scale`: trains and measures many tiny runs of one setting in one process.

python -m experiments.benchmark.scale_worker WORKDIR RUNS keep|discard --config.NAME=VALUE ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.claims import complexity
from experiments.command import quieten
from repbias_jax import pipeline, planning
from repbias_jax.config import Config, Experiment, override_all
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.provenance import record


def main(workdir: Path, runs: int, activations: str, overrides: Sequence[str]) -> None:
    """Runs the stages `train` and `measure` as `experiments.run` does."""
    quieten()
    jax.config.update("jax_num_cpu_devices", 2)
    pairs = (word.removeprefix("--config.").split("=", 1) for word in overrides)
    config = override_all(Config(BinaryOptions(), MLPOptions()), dict(pairs))  # pyright: ignore[reportArgumentType]
    experiment = Experiment("scale", "many runs", config, (("all", ()),), num_seeds=runs, variant="tiny runs")
    checked = planning.check(experiment, jax.default_backend())
    plan = planning.place(experiment, checked, workdir / "scale", 2)
    stages, discard = ["train", "measure"], activations == "discard"
    pipeline.run(plan, complexity, workdir / "scale", stages, lambda: False, record(), discard=discard)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
