"""Rendered images: areas, colors, invariances, and that every factor can be read from the image by a known rule."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.path import Path
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from repbias_jax import training
from repbias_jax.config import Config, ConfigError, dials_of
from repbias_jax.data import binary, images
from repbias_jax.data.digits import DigitOptions
from repbias_jax.data.images import ImageOptions
from repbias_jax.models.mlp import MLPOptions

ALL = ImageOptions(
    shapes=tuple(images.SHAPES),
    textures=images.TEXTURES,
    colors=tuple(images.COLORS),
    tints=tuple(images.COLORS),
    num_probe=200,
)
PLAIN = dataclasses.replace(ALL, textures=("solid",), colors=("white",), tints=("white",), features=("shape",))


def dials(task, **values):
    own = dials_of(Config(task, MLPOptions()))
    return own._replace(task={**own.task, **{name: jnp.asarray(x, jnp.float32) for name, x in values.items()}})


def poses(count, seed=0):
    return jax.vmap(images.draw_pose)(jax.random.split(jax.random.key(seed), count))


def drawn(task, count, seed=0, **values):
    own = dials(task, **values)
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(lambda k: images.sample(task, own, None, k)))(keys)


def unrendered(task, own, count, seed=0):
    """Examples whose images are not rendered: their inputs are 0. Args: own, the dials."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(lambda k: images.sample(task, own, None, k)._replace(inputs=0)))(keys)


@functools.cache
def renderer(task, axes):
    """Compiled once for all values, poses and contrasts. Args: axes of each of these, None where there is one."""
    return jax.jit(jax.vmap(lambda values, pose, contrast: images.render(task, values, pose, contrast), axes))


def coverage(task, shape, at):
    """Which share of each pixel a shape covers, `[N, size, size]`."""
    found = renderer(task, (None, 0, None))({"shape": jnp.int32(shape)}, at, 1.0)
    white = images.GREY + images.DISTANCE / math.sqrt(3)
    return (np.asarray(found)[..., 0] - images.GREY) / (white - images.GREY)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_shapes_have_equal_areas_and_lie_within_the_image(size):
    task, at = dataclasses.replace(PLAIN, size=size), poses(400)
    expected = images.AREA * np.mean(np.square(at.size))
    for i, name in enumerate(task.shapes):
        covered = coverage(task, i, at)
        assert covered.min() >= -1e-5
        assert covered.max() <= 1 + 1e-5
        np.testing.assert_allclose(covered.mean(), expected, rtol=0.03, err_msg=name)
        border = np.concatenate([covered[:, 0], covered[:, -1], covered[:, :, 0], covered[:, :, -1]])
        assert np.abs(border).max() < 0.5, name  # a tip may touch the outermost pixels, and is never cut


def test_the_number_of_covered_pixels_does_not_tell_the_shape():
    """Also for pairs of shapes that a linear rule could separate on both sides of a third."""
    count = 600
    area = np.stack([coverage(PLAIN, i, poses(count, i)).sum(axis=(1, 2)) for i in range(len(PLAIN.shapes))])
    x = (area.reshape(-1, 1) - area.mean()) / area.std()
    y, fit = np.repeat(np.arange(len(area)), count), np.arange(area.size) % 2 == 0
    features = np.concatenate([x, x**2], axis=1)
    found = LogisticRegression().fit(features[fit], y[fit]).score(features[~fit], y[~fit])
    assert found < 0.1 + 0.04


def test_the_mean_color_does_not_tell_the_shape():
    """In the images that networks see, with textures, tints, colors and noise."""
    found = drawn(ImageOptions(), 6000)
    means = np.asarray(found.inputs, float).mean(axis=(1, 2))
    x = (means - means.mean(axis=0)) / means.std(axis=0)
    rule = KNeighborsClassifier(51).fit(x[:3000], found.factors["shape"][:3000])
    assert rule.score(x[3000:], found.factors["shape"][3000:]) < 0.25 + 0.04
    assert rule.fit(x[:3000], found.factors["color"][:3000]).score(x[3000:], found.factors["color"][3000:]) > 0.5


@pytest.mark.parametrize("contrast", [1.0, 0.3, 0.1, 0.0])
def test_colors_are_equally_far_from_grey_and_as_different_as_the_contrast_says(contrast):
    given = jnp.asarray(images.directions(tuple(images.COLORS)))
    found = np.asarray(jax.vmap(lambda x: images.mixed(x, contrast))(given))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    assert np.abs(found).max() * images.DISTANCE <= 0.5 + 1e-6  # no part leaves 0..1
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(found, 2)]
    assert min(apart) >= 0.2 * contrast
    if contrast == 1.0:
        np.testing.assert_allclose(found, images.directions(tuple(images.COLORS)), atol=1e-6)
    if contrast == 0.0:
        np.testing.assert_allclose(found, 1 / math.sqrt(3), rtol=1e-5)


def test_a_shape_is_as_visible_at_any_contrast():
    task = dataclasses.replace(ALL, tints=("white",), textures=("solid",))
    pose = images.draw_pose(jax.random.key(0))
    values = {"shape": jnp.ones(10, jnp.int32), "color": jnp.arange(10)}
    for contrast in (0.0, 0.1, 1.0):
        found = np.asarray(renderer(task, (0, None, None))(values, pose, contrast))
        apart = np.linalg.norm(found - images.GREY, axis=-1).max(axis=(1, 2))
        np.testing.assert_allclose(apart, images.DISTANCE, rtol=1e-5)


@pytest.mark.parametrize("texture", range(len(images.TEXTURES)))
def test_a_full_turn_changes_nothing_and_a_shift_by_pixels_shifts(texture):
    """Up to single pixels at the edge of a texture, where rounding decides."""
    values = {name: jnp.int32(i) for name, i in {"shape": 7, "texture": texture, "color": 3, "tint": 5}.items()}
    pose = images.draw_pose(jax.random.key(texture))._replace(place=jnp.asarray([0.5, 0.45]))
    turned = pose._replace(angle=pose.angle + 2 * math.pi)
    moved = pose._replace(place=pose.place + jnp.asarray([2, -1]) / ALL.size)
    every = jax.tree.map(lambda *x: jnp.stack(x), pose, turned, moved)
    plain, turned, moved = np.asarray(renderer(ALL, (None, 0, None))(values, every, 1.0))
    for found, expected in ((turned, plain), (moved, np.roll(plain, (-1, 2), axis=(0, 1)))):
        other = np.abs(found - expected).max(axis=-1) > 1e-3
        assert other.sum() <= 4
    assert np.abs(moved - plain).max() > 0.1


def test_distances_are_those_of_a_slow_twin():
    """In float64: the nearest edge by a loop, and inside or not by matplotlib."""
    at = np.random.default_rng(0).uniform(-1.3, 1.3, (300, 2))
    for i, name in enumerate(images.SHAPES):
        of_shape = functools.partial(images.distance, tuple(images.SHAPES), jnp.int32(i))
        found = np.asarray(jax.vmap(of_shape)(jnp.asarray(at, jnp.float32)))
        own, first, inside = images.edges()[name], 0, np.zeros(len(at), bool)
        for polygon in images.SHAPES[name]:
            corners = own[first : first + len(polygon), 0]
            inside ^= Path(corners).contains_points(at)
            first += len(polygon)
        nearest = np.full(len(at), np.inf)
        for start, end in own:
            along = end - start
            share = np.clip((at - start) @ along / (along @ along), 0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(at - start - share[:, None] * along, axis=1))
        np.testing.assert_allclose(found, np.where(inside, -nearest, nearest), atol=2e-4, err_msg=name)


@pytest.mark.parametrize("size", [32, 64])
def test_every_factor_can_be_read_from_the_image(size):
    """By the rule that made it: of all values, that whose image in the same pose is nearest is the right one."""
    task, rng = dataclasses.replace(ALL, size=size), np.random.default_rng(0)
    names = images.values_of(task)
    for k in range(40):
        pose = images.draw_pose(jax.random.key(k))
        right = {name: int(rng.integers(len(own))) for name, own in names.items()}
        for name in names:
            tried = {other: jnp.full(10, value, jnp.int32) for other, value in right.items()} | {name: jnp.arange(10)}
            made = np.asarray(renderer(task, (0, None, None))(tried, pose, 1.0))
            noisy = made[right[name]] + 0.02 * rng.normal(size=made[0].shape)
            assert np.square(made - noisy).sum(axis=(1, 2, 3)).argmin() == right[name], (k, name)


def test_images_have_the_factors_that_they_name():
    """Mean colors of the background and of what differs from it most."""
    found = drawn(dataclasses.replace(ALL, textures=("solid",)), 200, noise=0.0)
    for pixels, tint, color in zip(found.inputs, found.factors["tint"], found.factors["color"], strict=True):
        own = np.asarray(pixels, float) / 255
        tints = images.GREY + images.TINT * images.directions(ALL.tints)
        assert np.abs(tints - own[0, 0]).sum(axis=1).argmin() == tint
        colors = images.GREY + images.DISTANCE * images.directions(ALL.colors)
        flat = own.reshape(-1, 3)
        inner = flat[np.argsort(-np.linalg.norm(flat - own[0, 0], axis=1))[:20]].mean(axis=0)
        assert np.abs(colors - inner).sum(axis=1).argmin() == color


def test_examples_are_bytes_and_factors_are_independent():
    task = ImageOptions()
    found = unrendered(task, dials(task), 4000)
    inputs = drawn(task, 2).inputs
    assert inputs.dtype == jnp.uint8
    assert inputs.shape == (2, *images.input_spec(task).shape)
    names = [name for name in images.factors(task) if name != "target"]
    for one, other in itertools.combinations(["target", *names], 2):
        counts = np.zeros((4, 4))
        np.add.at(counts, (np.asarray(found.factors[one]), np.asarray(found.factors[other])), 1)
        assert np.abs(counts - 250).max() < 5 * math.sqrt(250), (one, other)
    np.testing.assert_array_equal(found.labels, np.stack([found.factors["shape"], found.factors["color"]], axis=1))


def test_features_match_the_target_as_often_as_asked():
    task = ImageOptions(outputs=("target",), match=(1.0, 0.7))
    images.check(task)
    found = unrendered(task, dials(task), 4000)
    agree = [np.mean(found.factors[name] == found.factors["target"]) for name in task.features]
    assert agree[0] == 1
    assert abs(agree[1] - 0.7) < 0.03
    np.testing.assert_array_equal(found.labels[:, 0], found.factors["target"])
    fair = unrendered(task, images.fair(task, dials(task)), 2000, seed=1)
    assert abs(np.mean(fair.factors["shape"] == fair.factors["target"]) - 0.25) < 0.05


@pytest.mark.parametrize("features", [("shape", "color"), ("color",), ("shape", "texture", "color")])
def test_the_balanced_set_is_crossed(features):
    task = ImageOptions(features=features, num_probe=256)
    images.check(task)
    made = jax.jit(lambda key: images.probe_set(task, dials(task), None, "balanced", key))
    inputs, found, order = made(jax.random.key(0))
    assert inputs.shape == (256, 32, 32, 3)
    assert inputs.dtype == jnp.uint8
    assert list(order) == list(range(len(features)))
    assert set(found) == set(images.probe_factors(task, "balanced"))
    for half in (slice(0, 128), slice(128, 256)):
        cells = np.stack([np.asarray(found[name][half]) for name in features], axis=1)
        _, counts = np.unique(cells, axis=0, return_counts=True)
        assert set(counts) == {128 // 4 ** len(features)}
        for values in found.values():
            assert set(np.bincount(values[half])) == {32}


@pytest.mark.parametrize("task", [ImageOptions(size=24), DigitOptions(size=24)])
def test_images_drawn_in_blocks_are_those_drawn_at_once(task, monkeypatch):
    """Blocks of 7 images do not divide the numbers of images."""
    small = dataclasses.replace(task, num_train=24, num_test=16, num_probe=256)

    def made():
        draw = jax.jit(lambda d, s: training.make_data(small, "balanced", d, s))
        return draw(dials(small), jnp.int32(3)), "scan" in str(draw.trace(dials(small), jnp.int32(3)).jaxpr)

    whole, looped = made()
    assert not looped
    monkeypatch.setattr(binary, "MOST_DRAWN", 7 * 24 * 24 * 3)
    found, looped = made()
    assert looped
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        apart = np.abs(np.asarray(a, int) - np.asarray(b, int))
        assert apart.max() <= (a.dtype == np.uint8)
        assert apart.mean() < 1e-4


@pytest.mark.parametrize("task", [ImageOptions(size=24), DigitOptions(size=24)])
def test_drawing_many_images_needs_little_more_memory_than_they_have(task):
    many = dataclasses.replace(task, num_train=2**17, num_test=1024, num_probe=2**13)
    draw = jax.jit(lambda d, s: training.make_data(many, "natural", d, s))
    memory = draw.lower(dials(many), jnp.int32(0)).compile().memory_analysis()
    assert memory.output_size_in_bytes > 2**17 * 24 * 24 * 3
    assert memory.temp_size_in_bytes < 1.5 * memory.output_size_in_bytes


def test_roles_follow_the_features():
    roles = {name: (own.role, own.of) for name, own in images.factors(ImageOptions()).items()}
    assert roles == {
        "target": ("latent", ""), "shape": ("feature", ""), "color": ("feature", ""), "texture": ("twin", "shape"),
        "tint": ("twin", "color"),
    }  # fmt: skip
    roles = images.factors(ImageOptions(features=("color",), tints=("white",)))
    assert {name: own.role for name, own in roles.items()} == {
        "target": "latent", "color": "feature", "shape": "nuisance", "texture": "nuisance",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": ()}, "features is empty"),
        ({"features": ("shape", "shape")}, "features: shape is there 2 times"),
        ({"shapes": ("circle",)}, "the feature shape has one value; expected at least two"),
        ({"colors": ()}, "colors is empty"),
        ({"colors": ("red", "blue", "red", "green")}, "colors: red is there 2 times"),
        ({"match": (0.5,)}, "match"),
        ({"match": (0.1, 0.5)}, "match=0.1: expected at least 0.25 for shape"),
        ({"match": (0.5, 0.5), "shapes": ("circle", "square")}, "different numbers of values (shape 2, color 4)"),
        ({"num_probe": 100}, "num_probe=100: expected a multiple of 32"),
        ({"outputs": ("texture",)}, "expected a factor that is no unused twin"),
        ({"outputs": ("sound",)}, "unknown factor; known: target, shape, color"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ConfigError) as error:
        images.check(ImageOptions(**options))
    assert said in str(error.value)
