"""The networks that the benchmark trains: the base MLP, two forms of the Transformer, and two convolutional networks.

Every form is a setting of an experiment; the empty form stands for the MLP. Source: ours.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from repbias_jax.config import Config, num_outputs, override_all
from repbias_jax.data import output_values
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.data.images import ImageOptions
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.models.transformer import TransformerOptions

LEARNING_RATE = 3e-4  # of the MLP
SMALL = {"model.widths": (16, 8), "task.num_train": 512, "task.num_test": 256, "task.num_probe": 256}
FORMS = {"transformer": ("encoder_decoder", "decoder"), "convnet": ("plain", "residual")}  # by part of the benchmark
SETTINGS = {  # experiment and setting of each form
    "encoder_decoder": ("output_position", "base.joint_0"),
    "decoder": ("output_position", "base.decoder_0"),
    "plain": ("vision_plain", "base.c100"),
    "residual": ("vision_residual", "base.skip_1"),
}
FEWER = 8  # images are an eighth of the experiment's, seen eight times as often: many runs fit into memory


def config_of(smoke: bool, form: str = "") -> Config:
    """Returns the base MLP under Adam or a form; if `smoke`, with fewer units and examples."""
    if form:
        return _config_of_form(smoke, form)
    changes: dict[str, Any] = {"optimizer.name": "adam", "optimizer.learning_rate": LEARNING_RATE}
    return override_all(Config(BinaryOptions(), MLPOptions()), changes | (SMALL if smoke else {}))


def _config_of_form(smoke: bool, form: str) -> Config:
    name, setting = SETTINGS[form]
    experiment = importlib.import_module(f"experiments.claims.{name}").EXPERIMENT  # here, because it takes a second
    config = override_all(experiment.configs()[setting], {"optimizer.final_rate": 1.0})  # the rivals' rates are constant
    if smoke:
        return override_all(config, dict(dict(experiment.presets)["smoke"].overrides))
    if isinstance(config.task, ImageOptions):
        few, often = config.task.num_train // FEWER, config.training.epochs * FEWER
        return override_all(config, {"task.num_train": few, "training.epochs": often})
    return config


def part_of(form: str) -> str:
    """Returns the part of the benchmark that a form belongs to."""
    return next(part for part, forms in FORMS.items() if form in forms)


def rival_settings(config: Config, folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns the settings of a contender in another library: its network, its training, and the folder of its data."""
    model, rate = config.model, config.optimizer.learning_rate
    shared = {"learning_rate": rate, "batch": config.training.batch_size, "seeds": list(seeds), "folder": str(folder)}
    if isinstance(model, MLPOptions):
        return shared | {"widths": model.widths}
    values = max(output_values(config.task))
    shared |= {"values": values}
    if isinstance(model, ConvNetOptions):
        options = {name: getattr(model, name) for name in ("form", "widths", "blocks", "groups", "skips")}
        return shared | {"options": options | {"outputs": num_outputs(config.task), "values": values}}
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
    if isinstance(config.model, ConvNetOptions):
        return 6.0 * batch * _convnet_products(config)
    return 6.0 * batch * sum(int(np.prod(x.shape[2:])) for x in jax.tree.leaves(params) if x.ndim == 4)


def _convnet_products(config: Config) -> int:
    """Returns the multiplications of the matrix products of a forward pass of convolutions, for one example."""
    model, task = config.model, config.task
    assert isinstance(model, ConvNetOptions)  # noqa: S101
    assert isinstance(task, ImageOptions)  # noqa: S101
    side, before, found, is_residual = task.size, 3, 0, model.form == "residual"

    def convolution(size: int, width: int) -> int:
        """Those of a convolution of `before` channels, at the places that are left."""
        return size**2 * before * width * side**2

    for i, width in enumerate((model.widths[0], *model.widths) if is_residual else model.widths):
        is_stem = is_residual and i == 0
        side = side if is_residual and i == 1 else -(-side // 2)
        found += convolution(3, width)
        if is_residual and i > 1:
            found += convolution(1, width)  # the skip where the shape changes
        before = width
        found += convolution(3, width) * (2 * model.blocks - 1) if is_residual and not is_stem else 0
    return found + before * num_outputs(task) * max(output_values(task))


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
