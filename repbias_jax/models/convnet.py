"""Networks that read images: a plain convolutional network, and a residual network.

  plain      each stage is relu(norm(conv(x))), whose convolution halves height and width
  residual   a stem relu(norm(conv(x))) of the width of the first stage; then each stage is `blocks` blocks
             y = relu(skip(x) + f(x)), f = norm(conv(relu(norm(conv(x))))). The stem halves height and width, and so does
             the first block of every stage but the first

Convolutions are 3 x 3; norms are over groups of channels, so that nothing depends on other images. Where a block changes
the shape, its skip is a norm of a 1 x 1 convolution. The dial `skips` has a factor s for each stage: its blocks compute
y = relu((s skip(x) + f(x)) / sqrt(1 + s^2)). The head reads the mean of the last stage over places.

Sites: `input` (the image in -1..1), `stage_0`, ... `[H, W, C]`, `logits`. Views: `X.mean` over places, and `X.flat` of the
last stage, which belongs to the place `flat` alone.

Source: He et al. 2016, Wu and He 2018 (group norm); sizes and the dial are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import ConfigError, Dials, Model, Task, num_outputs, option
from repbias_jax.data import DATA
from repbias_jax.models.convolution import convolve
from repbias_jax.models.family import Family, View, flatten, places_of_means
from repbias_jax.models.layers import ACTIVATIONS, GroupNorm, drop, readout, skips_option, weighted_skip
from repbias_jax.models.sites import site


@dataclass(frozen=True)
class ConvNetOptions(Model):
    """Options of convolutional networks; dropout follows every stage."""

    name: str = option("convnet", "architecture", choices=("convnet",))
    form: str = option("plain", "stages", choices=("plain", "residual"))
    widths: tuple[int, ...] = option((32, 64, 64, 128), "stages", "channels", low=1, high=65536)
    blocks: int = option(1, "blocks in each stage of the form residual", low=1, high=64)
    groups: int = option(8, "groups of channels in a norm; must divide all widths", low=1, high=65536)
    skips: tuple[float, ...] = skips_option("the blocks of each stage", lambda own: len(own.widths))


class ConvNet(nn.Module):
    """See the module's docstring; the contract is in `repbias_jax.models`."""

    options: ConvNetOptions
    num_outputs: int
    num_values: int
    dropout: bool
    skips: bool

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
        options, sites, edits = self.options, {}, edits or {}
        act = ACTIVATIONS[options.activation]

        def layer(x: Array, width: int, name: str, stride: int = 1, size: int = 3) -> Array:
            """A convolution and a norm."""
            x = _convolution(width, size, stride, dials, f"{name}_conv")(x)
            return GroupNorm(options.groups, name=f"{name}_norm")(x)

        def block(x: Array, width: int, name: str, stride: int, skip: Array | None) -> Array:
            change = layer(act(layer(x, width, f"{name}_first", stride)), width, f"{name}_second")
            if change.shape != x.shape:
                x = layer(x, width, f"{name}_skip", stride, size=1)
            return act(weighted_skip(x, change, skip))

        x = site(sites, edits, "input", centred(inputs))
        if options.form == "residual":
            x = act(layer(x, options.widths[0], "stem", stride=2))
        for i, width in enumerate(options.widths):
            if options.form == "plain":
                x = act(layer(x, width, f"stage_{i}", stride=2))
            for j in range(options.blocks if options.form == "residual" else 0):
                stride = 2 if i > 0 and j == 0 else 1
                x = block(x, width, f"stage_{i}_block_{j}", stride, dials.model["skips"][i] if self.skips else None)
            x = site(sites, edits, f"stage_{i}", x)
            if self.dropout and key is not None:
                x = drop(x, dials.model["dropout"], jax.random.fold_in(key, i))
        logits = readout(x.mean(axis=(0, 1)), self.num_outputs, self.num_values, options.head, dials)
        return site(sites, edits, "logits", logits).reshape(self.num_outputs, self.num_values), sites


def _convolution(width: int, size: int, stride: int, dials: Dials, name: str) -> nn.Conv:
    """Returns a convolution without bias, since a norm follows; its initial weights are He-normal times `init_scale`."""

    def scaled(key, shape, dtype=jnp.float32):
        return nn.initializers.he_normal()(key, shape, dtype) * dials.model["init_scale"]

    return nn.Conv(
        width, (size, size), stride, use_bias=False, kernel_init=scaled, conv_general_dilated=convolve, name=name
    )


def build(options: ConvNetOptions, task: Task, num_values: int, switches: tuple[str, ...]) -> ConvNet:
    """Returns a network for the task. Args: as in `Family`."""
    return ConvNet(options, num_outputs(task), num_values, "model.dropout" in switches, "model.skips" in switches)


def check(options: ConvNetOptions, task: Task) -> None:
    """Raises ConfigError, naming the option, if the options do not fit together or the input is no image."""
    shape = image_shape(task)
    if not options.widths:
        raise ConfigError("config.model.widths is empty: expected at least one stage, such as 32,64")
    if odd := [width for width in options.widths if width % options.groups]:
        raise ConfigError(f"config.model.groups={options.groups}: expected a divisor of all widths, which has {odd[0]}")
    if options.skips and options.form != "residual":
        raise ConfigError(f"config.model.skips={options.skips}: expected none, or config.model.form=residual")
    if options.skips and len(options.skips) != len(options.widths):
        raise ConfigError(f"config.model.skips={options.skips}: expected {len(options.widths)} values, one for each stage")
    if options.blocks > 1 and options.form != "residual":
        raise ConfigError(f"config.model.blocks={options.blocks}: expected 1, or config.model.form=residual")
    least = _sides(options, shape[0])[-1]
    if least < 2:
        raise ConfigError(
            f"config.model.widths={options.widths}: {len(options.widths)} stages leave {least} x {least} of the image's "
            f"{shape[0]} x {shape[1]} pixels; expected fewer stages or a larger config.task.size"
        )


def image_shape(task: Task) -> tuple[int, ...]:
    """Returns the shape `(H, W, C)` of the images of a task; raises ConfigError if its inputs are no images."""
    shape = DATA[task.name].input_spec(task).shape
    if len(shape) != 3:
        raise ConfigError(f"config.task.name={task.name}: expected images")
    return shape


def centred(image: Array) -> Array:
    """Returns an image of bytes as floats in -1..1."""
    return image.astype(jnp.float32) / 127.5 - 1


def _sides(options: ConvNetOptions, side: int) -> list[int]:
    """Returns the height of every stage for an image of the height `side`: each is half of that before it, rounded up."""
    return [-(-side // 2 ** (i + 1)) for i in range(len(options.widths))]


def views(options: ConvNetOptions, task: Task) -> dict[str, View]:
    """Returns the views: the mean of every site over places, the last stage flattened, and the logits."""
    shape = DATA[task.name].input_spec(task).shape
    sides, last = _sides(options, shape[0]), len(options.widths) - 1
    places = {"input": shape[:2], **{f"stage_{i}": (side, side) for i, side in enumerate(sides)}}

    def mean(name: str, size: tuple[int, ...]) -> View:
        return View(name, lambda x: x.mean(axis=(0, 1)), lambda c: jnp.broadcast_to(c, (*size, len(c))))

    found = {f"{name}.mean": mean(name, size) for name, size in places.items()}
    whole = (sides[-1], sides[-1], options.widths[-1])
    found[f"stage_{last}.flat"] = View(f"stage_{last}", flatten, lambda c: c.reshape(whole))
    return found | {"logits": View("logits", flatten, lambda c: c)}


def places(options: ConvNetOptions, task: Task) -> dict[str, tuple[str, ...]]:
    """Returns the views of each place."""
    return places_of_means(views(options, task), before=1)


FAMILY = Family(ConvNetOptions, build, check, views, places, block=8)  # 8 and 16 were the fastest of 4 to 32
