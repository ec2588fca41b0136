"""A small Vision Transformer: patches of an image as tokens, an encoder of a Transformer, heads that read its mean.

  x = dense(patch) + place;  memory = norm(blocks(x));  logits = heads(mean of memory over patches)

The blocks are those of `repbias_jax.models.transformer`: pre-norm, attention to all patches, then dense layers.

Sites: `embedding` `[patches, D]`, `block_0`, ... (the last one after the norm), `logits`. Views: `X.mean` over patches, and
`X.flat` of the last block, which belongs to the place `flat` alone.

Source: Dosovitskiy et al. 2021; the mean instead of a class token after Beyer et al. 2022; sizes are ours.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import ConfigError, Dials, Model, Task, num_outputs, option
from repbias_jax.models.convnet import centred, image_shape
from repbias_jax.models.family import Family, View, flatten, places_of_means
from repbias_jax.models.layers import dense, embedding, readout
from repbias_jax.models.sites import site
from repbias_jax.models.transformer import Stack, TransformerOptions


@dataclass(frozen=True)
class ViTOptions(Model):
    """Options of Vision Transformers; dropout follows attention and the dense layers of every block."""

    name: str = option("vit", "architecture", choices=("vit",))
    patch: int = option(4, "height and width of a patch; must divide the image's", "pixels", low=1, high=512)
    width: int = option(64, "residual stream", "units", low=1, high=65536)
    heads: int = option(4, "attention heads; must divide the width", low=1)
    layers: int = option(3, "blocks", low=1, high=256)
    expand: int = option(2, "hidden units of a block's dense layers, as a multiple of the width", low=1, high=64)


class ViT(nn.Module):
    """See the module's docstring; the contract is in `repbias_jax.models`."""

    options: ViTOptions
    num_outputs: int
    num_values: int
    dropout: bool

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        dials: Dials,
        labels: Array | None = None,
        key: Array | None = None,
        edits: Mapping[str, Array] | None = None,
        values: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Returns logits `[O, C]` and sites of one image, uint8 `[H, W, 3]`."""
        del labels, values
        own, sites = self.options, {}
        record = functools.partial(site, sites, edits or {})
        patches = cut(centred(inputs), own.patch)
        place = embedding(len(patches), own.width, dials, "places")(jnp.arange(len(patches), dtype=jnp.int32))
        x = record("embedding", dense(own.width, dials, "patches")(patches) + place)
        blocks = TransformerOptions(
            activation=own.activation,
            form="encoder",
            width=own.width,
            heads=own.heads,
            layers=own.layers,
            expand=own.expand,
        )
        memory = Stack(blocks, "block", name="encoder")(x, None, dials, key if self.dropout else None, record)
        logits = readout(memory.mean(axis=0), self.num_outputs, self.num_values, own.head, dials)
        return record("logits", logits).reshape(self.num_outputs, self.num_values), sites


def cut(image: Array, patch: int) -> Array:
    """Returns the patches of an image `[H, W, C]`, row by row, `[H W / patch^2, patch^2 C]`."""
    high, wide, channels = image.shape
    rows = image.reshape(high // patch, patch, wide // patch, patch, channels)
    return rows.swapaxes(1, 2).reshape(-1, patch * patch * channels)


def build(options: ViTOptions, task: Task, num_values: int, switches: tuple[str, ...]) -> ViT:
    """Returns a Vision Transformer for the task. Args: as in `Family`."""
    return ViT(options, num_outputs(task), num_values, "model.dropout" in switches)


def check(options: ViTOptions, task: Task) -> None:
    """Raises ConfigError, naming the option, if the options do not fit together or the input is no image."""
    shape = image_shape(task)
    if shape[0] % options.patch or shape[1] % options.patch:
        raise ConfigError(
            f"config.model.patch={options.patch}: expected a divisor of the image's {shape[0]} x {shape[1]} pixels"
        )
    if options.width % options.heads:
        raise ConfigError(f"config.model.heads={options.heads}: expected a divisor of config.model.width={options.width}")


def views(options: ViTOptions, task: Task) -> dict[str, View]:
    """Returns the views: the mean of every site over patches, the last block flattened, and the logits."""
    high, wide, _ = image_shape(task)
    count, last = high * wide // options.patch**2, options.layers - 1

    def spread(change: Array) -> Array:
        return jnp.broadcast_to(change, (count, options.width))

    names = ("embedding", *(f"block_{i}" for i in range(options.layers)))
    found = {f"{name}.mean": View(name, lambda x: x.mean(axis=0), spread) for name in names}
    found[f"block_{last}.flat"] = View(f"block_{last}", flatten, lambda c: c.reshape(count, options.width))
    return found | {"logits": View("logits", flatten, lambda c: c)}


def places(options: ViTOptions, task: Task) -> dict[str, tuple[str, ...]]:
    """Returns the views of each place."""
    return places_of_means(views(options, task))


FAMILY = Family(ViTOptions, build, check, views, places)
