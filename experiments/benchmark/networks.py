"""The networks that the benchmark trains: the base MLP, and two forms of the Transformer of `output_position`.

A form is `encoder_decoder` or `decoder`; the empty form stands for the MLP. Source: ours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from repbias_jax.config import Config, num_outputs, override_all
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.models.transformer import TransformerOptions

LEARNING_RATE = 3e-4  # of the MLP
SMALL = {"model.widths": (16, 8), "task.num_train": 512, "task.num_test": 256, "task.num_probe": 256}
FORMS = {"encoder_decoder": "base.joint_0", "decoder": "base.decoder_0"}  # settings of `output_position`


def config_of(smoke: bool, form: str = "") -> Config:
    """Returns the base MLP under Adam or a form of the Transformer; if `smoke`, with fewer units and examples."""
    if form:
        from experiments.claims import orders, output_position  # here, because this import takes a second

        config = output_position.EXPERIMENT.configs()[FORMS[form]]
        return override_all(config, dict(orders.SMOKE) if smoke else {})
    changes: dict[str, Any] = {"optimizer.name": "adam", "optimizer.learning_rate": LEARNING_RATE}
    return override_all(Config(BinaryOptions(), MLPOptions()), changes | (SMALL if smoke else {}))


def rival_settings(config: Config, folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns the settings of a contender in another library: its network, its training, and the folder of its data."""
    model, rate = config.model, config.optimizer.learning_rate
    shared = {"learning_rate": rate, "batch": config.training.batch_size, "seeds": list(seeds), "folder": str(folder)}
    if isinstance(model, MLPOptions):
        return shared | {"widths": model.widths}
    assert isinstance(model, TransformerOptions)  # noqa: S101
    assert isinstance(config.task, SequenceOptions)  # noqa: S101
    options = {name: getattr(model, name) for name in ("form", "width", "heads", "layers", "expand")}
    options |= {"length": config.task.length, "vocabulary": config.task.vocabulary, "outputs": num_outputs(config.task)}
    return shared | {"options": options}


def step_flops(config: Config, params: Any) -> float:
    """Returns the FLOP of the matrix products of one update of one network: three times those of a forward pass.

    Args: params: stacked weights `[rows, lanes, ...]`, which are counted for an MLP.
    """
    batch = config.training.batch_size
    if isinstance(config.model, TransformerOptions):
        return 6.0 * batch * _transformer_products(config)
    return 6.0 * batch * sum(int(np.prod(x.shape[2:])) for x in jax.tree.leaves(params) if x.ndim == 4)


def _transformer_products(config: Config) -> int:
    """Returns the multiplications of the matrix products of a Transformer's forward pass, for one example."""
    model, task, outputs = config.model, config.task, num_outputs(config.task)
    assert isinstance(model, TransformerOptions)  # noqa: S101
    assert isinstance(task, SequenceOptions)  # noqa: S101
    square = model.width**2

    def block(own: int, changed: int, memory: int = 0) -> int:
        """Those of a block that reads `own` tokens, changes some or all of them, and also attends to `memory` tokens."""
        dense = (3 * own + (1 + 2 * model.expand) * changed) * square
        across = 2 * (own + memory) * square if memory else 0
        attention = 2 * changed * (own + memory) * model.width  # scores, and sums that they weight
        return dense + across + attention

    readout = outputs * 2 * model.width
    if model.form == "decoder":
        own = task.length + outputs
        return (model.layers - 1) * block(own, own) + block(own, outputs) + readout
    return model.layers * (block(task.length, task.length) + block(outputs, outputs, task.length)) + readout
