"""Handwritten digits in color on a tinted background: images of public data.

The pictures are the 1,797 digits of 8 x 8 pixels that come with scikit-learn. Each is enlarged, shifted by a few pixels and
colored. Factors are drawn first, then a picture that has them:

  parity (even, odd), large (5 or more), color (of the strokes), tint (of the background) ~ uniform, independent
  digit    ~ uniform among those with the drawn parity and size
  picture  ~ uniform among the digit's held-out pictures         with probability h          (h: held_out, 0 by default)
           ~ uniform among the digit's other pictures            else
  pixel    = background + coverage x (foreground - background) + noise

  task = DigitOptions(features=("color", "parity"), size=32)
  features: color, parity; unused twins: tint (of color), large (of parity)

Every third picture of a digit is held out. Test and probe sets show held-out pictures alone; with h = 0 the training set
shows none of them. People wrote several digits each, so the same hands are in both.

Source: pictures: Alpaydin and Kaynak 1998, the test set, as in scikit-learn; colors and contrast as in `images`.
"""

import dataclasses
import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import Dials, Factor, Task, option
from repbias_jax.data.binary import Example, check_outputs, draw, draw_each, labelled, order_of  # noqa: F401 draw: contract
from repbias_jax.data.images import (
    ImageOptions,
    check_counts,
    check_crossed,
    check_values,
    crossed,
    grounds,
    noisy,
    with_roles,
)

DIGITS, SIDE, FULL = 10, 8, 16  # of the pictures: classes, pixels in each direction, value of a covered pixel
LARGE = 5  # the least large digit
EVERY = 3  # one picture of so many is held out
HEIGHT = 0.75  # of a digit, as a share of the image
SHIFT = 1 / 16  # the largest, in each direction, as a share of the image


def _as_in_images(name: str) -> Any:
    """Returns an option of ImageOptions."""
    (own,) = [field for field in dataclasses.fields(ImageOptions) if field.name == name]
    return dataclasses.field(default=own.default, metadata=own.metadata)


@dataclass(frozen=True)
class DigitOptions(Task):
    """Options of handwritten digits."""

    name: str = option("digits", "data generator", choices=("digits",))
    features: tuple[str, ...] = option(
        ("color", "parity"),
        "factors whose representation is compared; of the others, those of the same kind are unused twins",
        choices=("parity", "large", "color", "tint"),
    )
    size: int = _as_in_images("size")
    colors: tuple[str, ...] = _as_in_images("colors")
    tints: tuple[str, ...] = _as_in_images("tints")
    contrast: float = _as_in_images("contrast")
    noise: float = _as_in_images("noise")
    held_out: float = option(
        0.0,
        "P(a training image shows a held-out picture); test and probe sets show no others",
        "probability",
        True,
        low=0.0,
        high=1.0,
    )


OPTIONS = DigitOptions
TWINS = {"parity": "large", "large": "parity", "color": "tint", "tint": "color"}


class Pictures(NamedTuple):
    """The handwritten digits: all that are not held out, by digit, then all that are."""

    pixels: np.ndarray  # uint8 [1797, SIDE, SIDE], in 0..FULL
    first: np.ndarray  # int32 [2, DIGITS]: the first picture of each digit, of those that are not and are held out
    counts: np.ndarray  # int32 [2, DIGITS]: how many there are


@functools.cache
def pictures() -> Pictures:
    """Returns the handwritten digits."""
    from sklearn.datasets import load_digits  # here, since it takes a second

    found: Any = load_digits()
    rank = np.zeros(len(found.target), int)  # among the pictures of the same digit, in the order of scikit-learn
    for digit in range(DIGITS):
        own = found.target == digit
        rank[own] = np.arange(own.sum())
    held = rank % EVERY == EVERY - 1
    order = np.lexsort((found.target, held))
    counts = np.stack([np.bincount(found.target[held == part], minlength=DIGITS) for part in (False, True)])
    first = (np.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape)
    return Pictures(found.images[order].astype(np.uint8), first.astype(np.int32), counts.astype(np.int32))


def definitions(task: DigitOptions) -> str:
    """Returns a digest of the pictures, since they come with another package."""
    del task
    return hashlib.sha256(pictures().pixels.tobytes()).hexdigest()


def values_of(task: DigitOptions) -> dict[str, int]:
    """Returns the number of values of every factor that is drawn by itself; a color or tint without choice is none."""
    counts = {"parity": 2, "large": 2, "color": len(task.colors), "tint": len(task.tints)}
    return {name: count for name, count in counts.items() if count > 1}


def factors(task: DigitOptions) -> dict[str, Factor]:
    """Returns the features in order, their unused twins, and nuisances, of which one is the digit itself."""
    return with_roles({**values_of(task), "digit": DIGITS}, task.features, TWINS)


def probe_factors(task: DigitOptions, name: str) -> dict[str, Factor]:
    """Returns the factors of a probe set, which are those of every example."""
    del name
    return factors(task)


def check(task: DigitOptions) -> None:
    """Raises ConfigError, naming the option, if the task cannot be generated."""
    check_values(task, ("colors", "tints"))
    check_counts({name: values_of(task).get(name, 1) for name in task.features})
    check_outputs(task, factors(task))
    check_crossed(task, math.prod(values_of(task).values()), "all factors' values")


def input_spec(task: DigitOptions) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one example's input."""
    return jax.ShapeDtypeStruct((task.size, task.size, 3), jnp.uint8)


def fair(task: DigitOptions, dials: Dials) -> Dials:
    """Returns dials under which all pictures are held-out ones and labels are always seen."""
    del task
    own = {name: jnp.ones_like(dials.task[name]) for name in ("held_out", "exposure")}
    return dials._replace(task={**dials.task, **own})


def sample(task: DigitOptions, dials: Dials, drawn: None, key: Array) -> Example:
    """Draws ONE example: factors first, then an image that has them."""
    del drawn
    key_values, key_digit, key_seen, key_image = jax.random.split(key, 4)
    counts = values_of(task)
    each = jax.random.randint(key_values, (len(counts),), 0, jnp.asarray(list(counts.values()), jnp.int32))
    known = with_digit(task, {name: each[i] for i, name in enumerate(counts)}, key_digit)
    return labelled(image(task, dials, known, key_image), known, task.outputs or task.features, dials, key_seen)


def with_digit(task: DigitOptions, values: dict[str, Array], key: Array) -> dict[str, Array]:
    """Returns all factors of one example, with a digit that has the drawn ones, int32 `[]` each."""
    digits = jnp.arange(DIGITS)
    fits = (digits % 2 == values["parity"]) & ((digits >= LARGE).astype(jnp.int32) == values["large"])
    found = {**values, "digit": jax.random.categorical(key, jnp.where(fits, 0.0, -jnp.inf)).astype(jnp.int32)}
    return {name: found[name] for name in factors(task)}


def draw_picture(digit: Array, held_out: Array, key: Array) -> Array:
    """Returns the number of a picture of a digit, int32 `[]`. Args: held_out, the probability that it is a held-out one."""
    key_part, key_which = jax.random.split(key)
    part = jax.random.bernoulli(key_part, held_out).astype(jnp.int32)
    first, count = (jnp.asarray(own)[part, digit] for own in (pictures().first, pictures().counts))
    return first + jax.random.randint(key_which, (), 0, count)


def image(task: DigitOptions, dials: Dials, values: dict[str, Array], key: Array) -> Array:
    """Returns an image with the given values of some picture at some place, with noise, uint8 `[size, size, 3]`."""
    key_picture, key_shift, key_noise = jax.random.split(key, 3)
    which = draw_picture(values["digit"], dials.task["held_out"], key_picture)
    shift = jax.random.uniform(key_shift, (2,), minval=-SHIFT, maxval=SHIFT)
    return noisy(render(task, values, which, shift, dials.task["contrast"]), dials.task["noise"], key_noise)


def render(
    task: DigitOptions, values: dict[str, Array], which: Array, shift: Array, contrast: Array | float
) -> Array:  # fmt: skip
    """Returns an image without noise, float32 `[size, size, 3]` in 0..1.

    Args:
      task: options of the generator.
      values: of `color` and `tint`, int32 `[]`; a factor of one value may be left out.
      which: number of the picture, int32 `[]`.
      shift: of the picture from the middle, `[2]` to the right and down, in shares of the image.
      contrast: difference of the colors.
    """
    color, tint = (values[name] if name in values else jnp.int32(0) for name in ("color", "tint"))
    background, foreground = grounds(task.tints, tint, task.colors, color, contrast)
    pixel = jax.vmap(jax.vmap(lambda covered: background + covered * (foreground - background)))
    return pixel(coverage(task.size, which, shift))


def coverage(size: int, which: Array, shift: Array) -> Array:
    """Returns which share of each pixel is covered, float32 `[size, size]`, from a picture by linear interpolation.

    Args:
      size: of the image, in pixels.
      which: number of the picture, int32 `[]`.
      shift: of the picture from the middle, `[2]` to the right and down, in shares of the image.
    """
    ahead = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size - 0.5
    across, down = (_nearness((ahead - own) * (SIDE / HEIGHT) + (SIDE - 1) / 2) for own in shift)
    own = jnp.asarray(pictures().pixels)[which].astype(jnp.float32) / FULL
    rows = jnp.sum(down[:, :, None] * own[:, None], axis=0)  # [size, SIDE]
    return jnp.sum(across[:, None] * rows.T[:, :, None], axis=0)


def _nearness(at: Array) -> Array:
    """Returns the weights of a line's pixels at some places, `[SIDE, places]`; beyond the line they fall to 0.

    The weights are continuous in the place. Two neighbours chosen by a floor are not, if a compiler rounds it in two ways.
    """
    return jnp.maximum(0, 1 - jnp.abs(at[None] - jnp.arange(SIDE, dtype=jnp.float32)[:, None]))


def probe_set(
    task: DigitOptions, dials: Dials, drawn: None, name: str, key: Array
) -> tuple[Array, dict[str, Array], Array]:  # fmt: skip
    """Draws the examples on which representations are probed: the first half to fit on, the second to score on.

    All show held-out pictures, the `natural` set, too. Both halves may show the same picture, in other colors and places.
    In the `balanced` set all combinations of parity, large, color and tint are equally frequent in each half; in the others
    they are drawn independently.

    Args:
      task: options of the generator.
      dials: contrast and noise.
      drawn: the result of `draw` for this run.
      name: `natural`, `decorrelated` or `balanced`.
      key: a PRNG key.

    Returns:
      inputs uint8 `[N, size, size, 3]`; factors int32 `[N]` by name, as `probe_factors` lists them; the order `[O]`.
    """
    order, own = order_of(task, dials, drawn), fair(task, dials)
    if name != "balanced":
        keys = jax.random.split(key, task.num_probe)
        examples = draw_each(input_spec(task), lambda k: sample(task, own, drawn, k), keys)
        return examples.inputs, examples.factors, order
    key_factors, key_digits, key_images = jax.random.split(key, 3)
    known = {f: factor for f, factor in factors(task).items() if f != "digit"}
    found = crossed(known, list(known), key_factors, task.num_probe // 2)
    found = jax.vmap(lambda values, k: with_digit(task, values, k))(found, jax.random.split(key_digits, task.num_probe))
    keys = jax.random.split(key_images, task.num_probe)
    inputs = draw_each(input_spec(task), lambda values, k: image(task, own, values, k), found, keys)
    return inputs, found, order
