"""Images of one textured, colored shape on a tinted background, rendered on the device, for networks that read images.

An image has four factors: `shape`, `texture`, `color` (of the shape) and `tint` (of the background). They are drawn first,
then the pose (place, rotation, size and phase of the texture), then the image:

  target ~ uniform
  factor f = target    with probability (m_f - 1/V) / (1 - 1/V)      (m: match, 1/V by default: never)
           ~ uniform   else                                          (V: number of values)
  pixel    = background + coverage x (1 or DEPTH, by the texture) x (foreground - background) + noise

  task = ImageOptions(features=("shape", "color"), size=32)
  features: shape, color; unused twins: texture (of shape), tint (of color)

All shapes have the same area, and all colors the same distance from grey. `contrast` says how different colors are: at 1
they are those of COLORS, at 0 all are white. The shape is as visible at any contrast, since the distance from grey stays.

Source: names and colors of Trifeature, Hermann and Lampinen 2020; shapes, textures, areas and contrasts are ours.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import Config, ConfigError, Dials, Factor, Task, option
from repbias_jax.data.binary import (  # noqa: F401 draw: contract
    Example,
    check_length,
    check_outputs,
    draw,
    draw_each,
    labelled,
    order_of,
)

COLORS = {
    "red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "yellow": (1.0, 1.0, 0.0),
    "pink": (1.0, 0.4, 1.0), "cyan": (0.0, 1.0, 1.0), "purple": (0.3, 0.0, 0.5), "ocean": (0.1, 0.4, 0.5),
    "orange": (1.0, 0.6, 0.0), "white": (1.0, 1.0, 1.0),
}  # fmt: skip
TEXTURES = ("solid", "stripes", "grid", "hexgrid", "dots", "noise", "triangles", "zigzags", "rain", "pluses")
GREY = 0.5
AREA = 0.14  # of every shape of size 1, as a share of the image
SIZES = (0.9, 1.1)  # least and largest size
DISTANCE = 0.5  # of all colors from grey; in larger ones a part would leave 0..1
TINT = 0.12  # distance of a tinted background from grey
DEPTH = 0.2  # how much of the foreground is left in the gaps of a texture
PERIOD = 0.17  # of the textures, as a share of the image
CELLS = 16  # random cells of the texture `noise`, in each direction


def _ring(count: int, radii: Sequence[float] = (1.0,)) -> list[tuple[float, float]]:
    """Returns points on a circle, from the top; their distances from its center go through `radii`."""
    angles = [2 * math.pi * i / count for i in range(count)]
    return [(radii[i % len(radii)] * math.sin(a), radii[i % len(radii)] * math.cos(a)) for i, a in enumerate(angles)]


def _box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    """Returns the corners of a rectangle. Args: x, y: its lower left corner."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


# Each shape is one polygon or several; sizes and places are brought to those of all others.
SHAPES: dict[str, list[list[tuple[float, float]]]] = {
    "triangle": [_ring(3)],
    "square": [_box(0, 0, 1, 1)],
    "plus": [[(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1)]],
    "circle": [_ring(180)],  # for its reach; its distances are exact
    "tee": [[(1, 0), (2, 0), (2, 2), (3, 2), (3, 3), (0, 3), (0, 2), (1, 2)]],
    "rhombus": [[(0, -1), (0.5, 0), (0, 1), (-0.5, 0)]],
    "pentagon": [_ring(5)],
    "star": [_ring(10, (1.0, 0.42))],
    "fivesquare": [_box(2 * i % 3, 2 * i // 3, 1, 1) for i in range(5)],
    "trapezoid": [[(0, 0), (3, 0), (2, 1.4), (1, 1.4)]],
}


@functools.cache
def edges() -> dict[str, np.ndarray]:
    """Returns the edges of every shape, `[edges, 2, 2]` from a point to a point, at area 1 around the center of mass."""
    return {name: _normed(polygons) for name, polygons in SHAPES.items()}


def _normed(polygons: list[list[tuple[float, float]]]) -> np.ndarray:
    ends = np.array([pair for p in polygons for pair in zip(p, (*p[1:], p[0]), strict=True)], float)
    (x, y), (other_x, other_y) = ends[:, 0].T, ends[:, 1].T
    cross = x * other_y - other_x * y
    area = cross.sum() / 2
    center = np.array([((x + other_x) * cross).sum(), ((y + other_y) * cross).sum()]) / (6 * area)
    return (ends - center) / math.sqrt(abs(area))


def reach() -> float:
    """Returns the largest distance of a point of any shape from its place, as a share of the image."""
    return math.sqrt(AREA) * SIZES[1] * max(float(np.linalg.norm(own, axis=-1).max()) for own in edges().values())


@dataclass(frozen=True)
class ImageOptions(Task):
    """Options of images."""

    name: str = option("images", "data generator", choices=("images",))
    features: tuple[str, ...] = option(
        ("shape", "color"),
        "factors whose representation is compared; the others are unused twins",
        choices=("shape", "texture", "color", "tint"),
    )
    size: int = option(32, "height and width", "pixels", low=24, high=512)
    shapes: tuple[str, ...] = option(("triangle", "square", "plus", "circle"), "values of shape", choices=tuple(SHAPES))
    textures: tuple[str, ...] = option(
        ("solid", "stripes", "dots", "grid"),
        "values of texture",
        choices=TEXTURES,
    )
    colors: tuple[str, ...] = option(("red", "green", "blue", "yellow"), "values of color", choices=tuple(COLORS))
    tints: tuple[str, ...] = option(("red", "green", "blue", "yellow"), "values of tint", choices=tuple(COLORS))
    contrast: float = option(1.0, "difference of the colors; 0: all white", "share", True, low=0.0, high=1.0)
    noise: float = option(0.02, "standard deviation of the noise of a pixel", "share of the range", True, low=0.0, high=1.0)
    match: tuple[float, ...] = option(
        (),
        "P(feature = target); empty: 1 / number of values, independent",
        "probability",
        True,
        fill=lambda config: _own(config).match or chance(_own(config)),
        above=0.0,
        high=1.0,
    )


OPTIONS = ImageOptions


def _own(config: Config) -> ImageOptions:
    assert isinstance(config.task, ImageOptions)  # noqa: S101
    return config.task


class Pose(NamedTuple):
    """What differs between images of the same factors; or, with leading axes, many."""

    place: Array  # [2], of the shape's center, x and y in shares of the image
    angle: Array  # [], radians
    size: Array  # [], in SIZES
    phase: Array  # [2], of the texture, in periods
    cells: Array  # [CELLS, CELLS], bool, of the texture `noise`


def values_of(task: ImageOptions) -> dict[str, tuple[str, ...]]:
    """Returns the names of the values of every factor of an image."""
    return {"shape": task.shapes, "texture": task.textures, "color": task.colors, "tint": task.tints}


TWINS = {"texture": "shape", "shape": "texture", "tint": "color", "color": "tint"}


def factors(task: ImageOptions) -> dict[str, Factor]:
    """Returns the latent target, the features in order, and the factors that no output needs: twins where they have a
    feature of the same kind (texture of shape, tint of color), else nuisances. A factor of one value is none."""
    known = {name: len(names) for name, names in values_of(task).items() if len(names) > 1}
    return {"target": Factor(len(values_of(task)[task.features[0]]), "latent")} | with_roles(known, task.features, TWINS)


def with_roles(known: Mapping[str, int], features: Sequence[str], twins: Mapping[str, str]) -> dict[str, Factor]:
    """Returns the features in order, then the factors that no output needs, as twins where their twin is a feature.

    Args:
      known: number of values of each factor.
      features: names of those that are features.
      twins: for each factor that has one, the factor of the same kind.
    """
    found = {name: Factor(known[name], "feature") for name in features}
    for name in [name for name in known if name not in features]:
        is_twin = twins.get(name) in features
        found[name] = Factor(known[name], "twin", twins[name]) if is_twin else Factor(known[name], "nuisance")
    return found


def probe_factors(task: ImageOptions, name: str) -> dict[str, Factor]:
    """Returns the factors of a probe set; the crossed one has no target."""
    found = factors(task)
    if name == "balanced":
        del found["target"]
    return found


def check(task: ImageOptions) -> None:
    """Raises ConfigError, naming the option, if the task cannot be generated."""
    check_values(task, ("shapes", "textures", "colors", "tints"))
    counts = {name: len(values_of(task)[name]) for name in task.features}
    check_counts(counts)
    check_length(task, "match", len(task.features), "features")
    if (task.match or "target" in task.outputs) and len(set(counts.values())) > 1:
        numbers = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"config.task.match: features have different numbers of values ({numbers}); expected equal ones")
    for name, match, least in zip(task.features, task.match, chance(task), strict=False):
        if match < least - 1e-6:
            raise ConfigError(f"config.task.match={match:g}: expected at least {least:g} for {name}, which is chance")
    check_outputs(task, factors(task))
    check_crossed(task, math.prod(counts.values()), "the features' values")


def check_values(task: Task, names: Sequence[str]) -> None:
    """Raises ConfigError unless the features, and the values that these options name, are there and each of them once."""
    if not task.features:
        raise ConfigError("config.task.features is empty: expected at least one feature")
    for name in ("features", *names):
        values = getattr(task, name)
        if again := [value for value in values if values.count(value) > 1]:
            raise ConfigError(f"config.task.{name}: {again[0]} is there {values.count(again[0])} times; expected once")
        if not values:
            raise ConfigError(f"config.task.{name} is empty: expected at least one value")


def check_counts(counts: Mapping[str, int]) -> None:
    """Raises ConfigError, naming its option, if a feature has one value. Args: counts, of the features' values."""
    for name, count in counts.items():
        if count < 2:
            raise ConfigError(f"config.task.{name}s: the feature {name} has one value; expected at least two")


def check_crossed(task: Task, combinations: int, of: str) -> None:
    """Raises ConfigError unless all combinations `of` something can be equally frequent in each half of a probe set."""
    if task.num_probe % 2 or (task.num_probe // 2) % combinations:
        raise ConfigError(
            f"config.task.num_probe={task.num_probe}: expected a multiple of {2 * combinations}, so that all combinations "
            f"of {of} are equally frequent in each half"
        )


def input_spec(task: ImageOptions) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one example's input."""
    return jax.ShapeDtypeStruct((task.size, task.size, 3), jnp.uint8)


def chance(task: ImageOptions) -> tuple[float, ...]:
    """Returns P(feature = target) of independent features, for each feature."""
    return tuple(1 / len(values_of(task)[name]) for name in task.features)


def fair(task: ImageOptions, dials: Dials) -> Dials:
    """Returns dials under which features are independent and their labels are always seen."""
    own = {"match": jnp.asarray(chance(task), jnp.float32), "exposure": jnp.ones_like(dials.task["exposure"])}
    return dials._replace(task={**dials.task, **own})


def sample(task: ImageOptions, dials: Dials, drawn: None, key: Array) -> Example:
    """Draws ONE example: factors first, then an image that has them."""
    del drawn
    key_values, key_follow, key_seen, key_image = jax.random.split(key, 4)
    known = _draw_factors(task, dials, key_values, key_follow)
    return labelled(image(task, dials, known, key_image), known, task.outputs or task.features, dials, key_seen)


def _draw_factors(task: ImageOptions, dials: Dials, key: Array, follow: Array) -> dict[str, Array]:
    """Returns the target and all factors of one example, int32 `[]` each."""
    known = factors(task)
    limits = jnp.asarray([known[name].values for name in known], jnp.int32)
    drawn = jax.random.randint(key, (len(known),), 0, limits)
    found = {name: drawn[i] for i, name in enumerate(known)}
    least = jnp.asarray(chance(task), jnp.float32)
    follows = jax.random.uniform(follow, least.shape) < (dials.task["match"] - least) / (1 - least)
    for i, name in enumerate(task.features):
        found[name] = jnp.where(follows[i], found["target"] % known[name].values, found[name])
    return found


def draw_pose(key: Array) -> Pose:
    """Draws a pose at which the whole shape, whichever it is, lies within the image."""
    place, angle, size, phase, cells = jax.random.split(key, 5)
    margin = reach()
    return Pose(
        jax.random.uniform(place, (2,), minval=margin, maxval=1 - margin),
        jax.random.uniform(angle, (), maxval=2 * math.pi),
        jax.random.uniform(size, (), minval=SIZES[0], maxval=SIZES[1]),
        jax.random.uniform(phase, (2,)),
        jax.random.bernoulli(cells, 0.5, (CELLS, CELLS)),
    )


def image(task: ImageOptions, dials: Dials, values: dict[str, Array], key: Array) -> Array:
    """Returns an image with the given values in a random pose, with noise, uint8 `[size, size, 3]`."""
    key_pose, key_noise = jax.random.split(key)
    return noisy(render(task, values, draw_pose(key_pose), dials.task["contrast"]), dials.task["noise"], key_noise)


def noisy(clean: Array, noise: Array, key: Array) -> Array:
    """Returns an image in 0..1 with noise as bytes, uint8. Args: noise, the standard deviation of a pixel's noise."""
    found = clean + noise * jax.random.normal(key, clean.shape)
    return jnp.round(255 * jnp.clip(found, 0, 1)).astype(jnp.uint8)


def render(task: ImageOptions, values: dict[str, Array], pose: Pose, contrast: Array | float) -> Array:
    """Returns an image without noise, float32 `[size, size, 3]` in 0..1.

    Args:
      task: options of the generator.
      values: of `shape`, `texture`, `color` and `tint`, int32 `[]`; a factor of one value may be left out.
      pose: of the shape.
      contrast: difference of the colors.
    """
    shape, texture, color, tint = (values[name] if name in values else jnp.int32(0) for name in values_of(task))
    background, foreground = grounds(task.tints, tint, task.colors, color, contrast)
    cos, sin = jnp.cos(pose.angle), jnp.sin(pose.angle)
    unit = math.sqrt(AREA) * pose.size

    def pixel(x: Array, y: Array) -> Array:
        """The color of one pixel, `[3]`. Args: its place in shares of the image, down and right positive."""
        right, up = x - pose.place[0], pose.place[1] - y
        at = jnp.stack([cos * right + sin * up, cos * up - sin * right])  # in the shape's own axes
        covered = jnp.clip(0.5 - distance(task.shapes, shape, at / unit) * unit * task.size, 0, 1)
        shade = jnp.where(_is_filled(task.textures, texture, at / PERIOD, pose), 1.0, DEPTH)
        return background + covered * shade * (foreground - background)

    ahead = (jnp.arange(task.size, dtype=jnp.float32) + 0.5) / task.size
    return jax.vmap(jax.vmap(pixel, (0, None)), (None, 0))(ahead, ahead)


def grounds(
    tints: Sequence[str], tint: Array, colors: Sequence[str], color: Array, contrast: Array | float
) -> tuple[Array, Array]:  # fmt: skip
    """Returns the colors of background and foreground, `[3]` in 0..1.

    Args:
      tints: names of the tints; a single one leaves the background grey.
      tint: index among them, int32 `[]`.
      colors: names of the colors.
      color: index among them, int32 `[]`.
      contrast: difference of the colors.
    """
    tinted = TINT if len(tints) > 1 else 0.0
    background = GREY + tinted * jnp.asarray(directions(tints), jnp.float32)[tint]
    foreground = GREY + DISTANCE * mixed(jnp.asarray(directions(colors), jnp.float32)[color], contrast)
    return background, foreground


def directions(names: Sequence[str]) -> np.ndarray:
    """Returns the direction of each color from grey, `[colors, 3]`, of length 1."""
    away = np.array([COLORS[name] for name in names]) - GREY
    return away / np.linalg.norm(away, axis=-1, keepdims=True)


def mixed(direction: Array, contrast: Array | float) -> Array:
    """Returns a direction `[3]` of length 1 between that of white (contrast 0) and the given one (contrast 1)."""
    both = contrast * direction + (1 - contrast) / math.sqrt(3)
    return both / jnp.linalg.norm(both)


def distance(names: tuple[str, ...], which: Array, at: Array) -> Array:
    """Returns the signed distance of a point from the outline of a shape of area 1, negative inside.

    Args:
      names: of shapes.
      which: index of the shape among them, int32 `[]`.
      at: the point `[2]` in the shape's own axes.
    """
    (x, y), outlines = at, {name: own for name, own in edges().items() if name in names and name != "circle"}
    count = max((len(own) for own in outlines.values()), default=0)
    table = np.zeros((len(names), count, 5))  # of each edge: a point, what leads to the next one, 1 / its squared length
    for i, name in enumerate(names):
        own = _padded(outlines[name], count) if name in outlines else np.zeros((count, 2, 2))
        along = own[:, 1] - own[:, 0]
        squared = np.sum(along**2, axis=1, keepdims=True)
        table[i] = np.concatenate([own[:, 0], along, np.divide(1, squared, where=squared > 0, out=squared)], axis=1)
    chosen = jnp.asarray(table, jnp.float32)[which]
    nearest, inside = jnp.float32(jnp.inf), jnp.bool_(False)
    for k in range(count):  # in place of a sum over an axis: all edges together become one loop over pixels
        first_x, first_y, across, up, scale = chosen[k]
        to_x, to_y = x - first_x, y - first_y
        share = jnp.clip((to_x * across + to_y * up) * scale, 0, 1)
        nearest = jnp.minimum(nearest, (to_x - share * across) ** 2 + (to_y - share * up) ** 2)
        # The point is inside if a ray to the right crosses an odd number of edges.
        crosses = (to_y >= 0) != (to_y >= up)
        inside ^= crosses & ((across * to_y > up * to_x) == (up > 0))
    found = jnp.where(inside, -1.0, 1.0) * jnp.sqrt(nearest)
    if "circle" not in names:
        return found
    return jnp.where(which == names.index("circle"), jnp.sqrt(x**2 + y**2) - 1 / math.sqrt(math.pi), found)


def _padded(own: np.ndarray, count: int) -> np.ndarray:
    """Returns the edges and as many points of the outline as are missing, edges without length, `[count, 2, 2]`."""
    point = np.broadcast_to(own[0, 0], (count - len(own), 2, 2))
    return np.concatenate([own, point])


def _is_filled(names: Sequence[str], which: Array, at: Array, pose: Pose) -> Array:
    """Returns whether a texture is filled at a point. Args: at: `[2]` in periods, in the shape's own axes."""
    u, v = at + pose.phase
    a, b = u % 1, v % 1
    across, up = jnp.abs(a - 0.5), jnp.abs(b - 0.5)
    column, row = jnp.floor(2 * at).astype(jnp.int32) + CELLS // 2
    known = {
        "solid": lambda: jnp.bool_(True),
        "stripes": lambda: b < 0.5,
        "grid": lambda: (a < 0.28) | (b < 0.28),
        "hexgrid": lambda: _honeycomb(u / 1.3, v / 1.3) > 0.36,
        "dots": lambda: across**2 + up**2 < 0.33**2,
        "noise": lambda: pose.cells[row % CELLS, column % CELLS],
        "triangles": lambda: (u - v / math.sqrt(3)) % 1 + (v * 2 / math.sqrt(3)) % 1 < 1,
        "zigzags": lambda: (v + 1.2 * across) % 1 < 0.5,
        "rain": lambda: ((u + 0.5 * jnp.floor(v) + 0.3 * v) % 1 < 0.3) & (b < 0.6),
        "pluses": lambda: ((across < 0.13) & (up < 0.38)) | ((up < 0.13) & (across < 0.38)),
    }
    return jnp.stack([known[name]() for name in names])[which]


def _honeycomb(u: Array, v: Array) -> Array:
    """Returns how near a point is to the walls of a honeycomb: 0 in the middle of a cell, 1/2 at the middle of a wall."""
    high = math.sqrt(3)

    def off(shift: float) -> tuple[Array, Array]:
        return (u + shift) % 1 - 0.5, (v + shift * high) % high - high / 2

    (p, q), (r, s) = off(0.0), off(0.5)
    nearer = p**2 + q**2 < r**2 + s**2
    x, y = jnp.abs(jnp.where(nearer, p, r)), jnp.abs(jnp.where(nearer, q, s))
    return jnp.maximum(x, x / 2 + y * high / 2)


def probe_set(
    task: ImageOptions, dials: Dials, drawn: None, name: str, key: Array
) -> tuple[Array, dict[str, Array], Array]:  # fmt: skip
    """Draws the examples on which representations are probed: the first half to fit on, the second to score on.

    The `natural` set is drawn like the training set, the `decorrelated` set with independent features. In the `balanced`
    set all combinations of the features' values are equally frequent in each half; each other factor is as balanced as a
    half allows, in an order of its own.

    Args:
      task: options of the generator.
      dials: match, for `natural`; contrast and noise.
      drawn: the result of `draw` for this run.
      name: `natural`, `decorrelated` or `balanced`.
      key: a PRNG key.

    Returns:
      inputs uint8 `[N, size, size, 3]`; factors int32 `[N]` by name, as `probe_factors` lists them; the order `[O]`.
    """
    order = order_of(task, dials, drawn)
    if name != "balanced":
        own = dials if name == "natural" else fair(task, dials)
        keys = jax.random.split(key, task.num_probe)
        examples = draw_each(input_spec(task), lambda k: sample(task, own, drawn, k), keys)
        return examples.inputs, examples.factors, order
    key_factors, key_images = jax.random.split(key)
    found = crossed(probe_factors(task, name), task.features, key_factors, task.num_probe // 2)
    keys = jax.random.split(key_images, task.num_probe)
    inputs = draw_each(input_spec(task), lambda values, k: image(task, dials, values, k), found, keys)
    return inputs, found, order


def crossed(known: Mapping[str, Factor], names: Sequence[str], key: Array, half: int) -> dict[str, Array]:
    """Returns the factors of a crossed probe set, int32 `[2 half]` by name.

    Args:
      known: all factors.
      names: those of which all combinations are equally frequent in each half; each other one is balanced by itself, as
        far as its number of values divides a half.
      key: a PRNG key.
      half: number of examples in a half, a multiple of the number of combinations.
    """
    halves = [_crossed_half(known, names, k, half) for k in jax.random.split(key)]
    return {name: jnp.concatenate([own[name] for own in halves]) for name in known}


def _crossed_half(known: Mapping[str, Factor], names: Sequence[str], key: Array, half: int) -> dict[str, Array]:
    table = np.array(list(itertools.product(*(range(known[name].values) for name in names))), np.int32)
    tiled = jnp.tile(jnp.asarray(table), (half // len(table), 1))
    found = {name: tiled[:, i] for i, name in enumerate(names)}
    for i, name in enumerate(known):
        if name not in found:
            found[name] = (
                jax.random.permutation(jax.random.fold_in(key, i), jnp.arange(half, dtype=jnp.int32)) % known[name].values
            )
    return {name: found[name] for name in known}
