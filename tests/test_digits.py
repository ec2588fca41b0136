"""Handwritten digits: factors, pictures that are held out, and that parity and color can be read by known rules."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from repbias_jax import training
from repbias_jax.config import Config, ConfigError, dials_of
from repbias_jax.data import digits, images
from repbias_jax.data.digits import DigitOptions
from repbias_jax.models.mlp import MLPOptions

SIZES = {"num_train": 1500, "num_test": 500, "num_probe": 512}
# Nothing but the picture and its place differs between images of these options.
GREY = {"colors": ("white",), "tints": ("white",), "features": ("parity",)}
CELLS = DigitOptions(size=32, noise=0.0, **GREY, **SIZES)


def dials(task, **values):
    own = dials_of(Config(task, MLPOptions()))
    return own._replace(task={**own.task, **{name: jnp.asarray(x, jnp.float32) for name, x in values.items()}})


@functools.cache
def drawn(task, count=4096, seed=0, held_out=0.0):
    own = dials(task, held_out=held_out)
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.device_get(jax.jit(jax.vmap(lambda k: digits.sample(task, own, None, k)))(keys))


@pytest.fixture
def still(monkeypatch):
    """All pictures are in the middle."""
    monkeypatch.setattr(digits, "SHIFT", 0.0)


def bytes_of(pictures):
    return [one.tobytes() for one in pictures]


def shown_by(inputs):
    """The number of the picture that each image shows, whose bytes differ by rounding alone; all are in the middle."""
    count = len(digits.pictures().pixels)
    every = jax.jit(jax.vmap(lambda n: digits.render(CELLS, {}, n, jnp.zeros(2), 1.0)))(jnp.arange(count))
    flat, known = (np.asarray(x, np.float32)[..., 0].reshape(len(x), -1) for x in (inputs, 255 * every))
    distances = (known**2).sum(axis=1) - 2 * flat @ known.T
    nearest = distances.argmin(axis=1)
    assert np.abs(flat - known[nearest]).max() < 1.01
    return nearest


def test_the_pictures_are_those_of_scikit_learn_and_a_third_of_each_digit_is_held_out():
    own, source = digits.pictures(), load_digits()
    assert own.pixels.dtype == np.uint8
    assert own.pixels.nbytes < 1e6
    key = {picture.astype(np.uint8).tobytes(): digit for picture, digit in zip(source.images, source.target, strict=True)}
    assert set(bytes_of(own.pixels)) == set(key)
    assert own.counts.sum() == len(own.pixels) == len(key) == 1797
    for part, digit in itertools.product(range(2), range(digits.DIGITS)):
        first, count = own.first[part, digit], own.counts[part, digit]
        assert {key[one.tobytes()] for one in own.pixels[first : first + count]} == {digit}
    shares = own.counts[1] / own.counts.sum(axis=0)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.005)


def test_factors_are_independent_and_functions_of_the_digit():
    task = DigitOptions()
    found = drawn(task).factors
    np.testing.assert_array_equal(found["parity"], found["digit"] % 2)
    np.testing.assert_array_equal(found["large"], found["digit"] >= 5)
    for one, other in itertools.combinations(digits.values_of(task), 2):
        cells = digits.values_of(task)[one], digits.values_of(task)[other]
        counts = np.zeros(cells)
        np.add.at(counts, (found[one], found[other]), 1)
        expected = counts.sum() / math.prod(cells)
        assert np.abs(counts - expected).max() < 5 * math.sqrt(expected), (one, other)
    expected = [1 / 12 if digit in (0, 2, 4, 5, 7, 9) else 1 / 8 for digit in range(10)]
    np.testing.assert_allclose(np.bincount(found["digit"]) / 4096, expected, atol=0.02)


def test_roles_follow_the_features():
    roles = {name: (own.role, own.of) for name, own in digits.factors(DigitOptions()).items()}
    assert roles == {
        "color": ("feature", ""), "parity": ("feature", ""), "large": ("twin", "parity"), "tint": ("twin", "color"),
        "digit": ("nuisance", ""),
    }  # fmt: skip
    roles = digits.factors(DigitOptions(**GREY))
    assert {name: own.role for name, own in roles.items()} == {"parity": "feature", "large": "twin", "digit": "nuisance"}


@pytest.mark.parametrize("probe_set", ["balanced", "natural", "decorrelated"])
def test_no_picture_is_both_in_the_training_set_and_in_another(probe_set, still):
    """Through the function that draws the data of a run; with all pictures in the middle an image tells its picture."""
    for_training, held_out = digits.pictures().counts.sum(axis=1)
    data = jax.jit(lambda d, s: training.make_data(CELLS, probe_set, d, s))(dials(CELLS), jnp.int32(0))
    train, *others = (set(shown_by(x)) for x in (data.train_inputs, data.test_inputs, data.probe.inputs))
    assert max(train) < for_training
    assert len(train) > 0.6 * for_training  # most of them
    for other in others:
        assert min(other) >= for_training
        assert len(other) > 0.4 * held_out
        assert not train & other


def test_training_can_be_told_to_show_held_out_pictures(still):
    for_training, _ = digits.pictures().counts.sum(axis=1)
    data = jax.jit(lambda d, s: training.make_data(CELLS, "balanced", d, s))(dials(CELLS, held_out=0.25), jnp.int32(0))
    assert abs(np.mean(shown_by(data.train_inputs) >= for_training) - 0.25) < 0.05
    assert shown_by(data.test_inputs).min() >= for_training


@pytest.mark.parametrize("features", [("color", "parity"), ("parity",), ("tint", "large", "color")])
def test_the_balanced_set_crosses_all_factors(features):
    task = DigitOptions(features=features, num_probe=256)
    digits.check(task)
    make = jax.jit(lambda d, k: digits.probe_set(task, d, None, "balanced", k))
    inputs, found, order = make(dials(task), jax.random.key(0))
    assert (inputs.shape, inputs.dtype) == ((256, 32, 32, 3), jnp.uint8)
    assert list(order) == list(range(len(features)))
    assert set(found) == set(digits.probe_factors(task, "balanced"))
    np.testing.assert_array_equal(found["parity"], found["digit"] % 2)
    np.testing.assert_array_equal(found["large"], found["digit"] >= 5)
    for half in (slice(0, 128), slice(128, 256)):
        cells = np.stack([np.asarray(found[name][half]) for name in ("parity", "large", "color", "tint")], axis=1)
        _, counts = np.unique(cells, axis=0, return_counts=True)
        assert list(counts) == [2] * 64


def covered(size, which, x, y):
    return np.asarray(digits.coverage(size, jnp.int32(which), jnp.asarray([x, y], jnp.float32)), np.float64)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_picture_lies_within_the_image_and_keeps_its_ink(size):
    for which in range(0, 1797, 199):
        ink = digits.pictures().pixels[which].sum() / digits.FULL * (size * digits.HEIGHT / digits.SIDE) ** 2
        for x, y in itertools.product((-digits.SHIFT, 0.0, digits.SHIFT), repeat=2):
            found = covered(size, which, x, y)
            assert 0 <= found.min() <= found.max() <= 1
            np.testing.assert_allclose(found.sum(), ink, rtol=0.01)
            border = np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]])
            assert border.max() < 0.1  # little is cut


def test_a_shift_by_pixels_shifts():
    """To the right and down."""
    plain = covered(32, 700, 0.0, 0.0)
    np.testing.assert_allclose(covered(32, 700, 2 / 32, -1 / 32), np.roll(plain, (-1, 2), axis=(0, 1)), atol=1e-5)
    assert np.abs(plain - np.roll(plain, (-1, 2), axis=(0, 1))).max() > 0.3


def test_a_picture_is_enlarged_as_by_a_slow_twin():
    """In float64: each pixel is the mean of its four neighbours among the picture's, weighted by nearness."""
    picture = np.pad(digits.pictures().pixels[1500] / digits.FULL, 1)
    expected = np.zeros((32, 32))
    for i, j in itertools.product(range(32), repeat=2):
        row, column = (((n + 0.5) / 32 - 0.5 - s) * 8 / digits.HEIGHT + 3.5 + 1 for n, s in ((i, -0.03), (j, 0.05)))
        for k, m in itertools.product(range(10), repeat=2):
            expected[i, j] += picture[k, m] * max(0, 1 - abs(row - k)) * max(0, 1 - abs(column - m))
    np.testing.assert_allclose(covered(32, 1500, 0.05, -0.03), expected, atol=1e-5)


def test_contrast_changes_the_color_and_not_how_visible_it_is():
    task = DigitOptions(tints=("white",))
    for color, contrast in itertools.product(range(4), (0.0, 0.3, 1.0)):
        made = digits.render(task, {"color": jnp.int32(color)}, jnp.int32(100), jnp.zeros(2), contrast)
        apart = np.asarray(made) - images.GREY
        own = covered(32, 100, 0.0, 0.0)
        np.testing.assert_allclose(np.linalg.norm(apart, axis=-1), own * images.DISTANCE, atol=1e-5)
        tone = apart.reshape(-1, 3)[own.argmax()] / (own.max() * images.DISTANCE)
        expected = images.mixed(jnp.asarray(images.directions(task.colors), jnp.float32)[color], contrast)
        np.testing.assert_allclose(tone, expected, atol=1e-5)


def ink_of(inputs):
    """How much the pixels differ from the background, `[N, 32 * 32]`; the background is that of the outermost pixels."""
    x = np.asarray(inputs, float) / 255
    outside = np.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1).mean(axis=1)
    return np.linalg.norm(x - outside[:, None, None], axis=-1).reshape(len(x), -1)


def test_parity_of_held_out_pictures_can_be_read_by_the_nearest_pictures():
    """From images in all colors and tints, with noise and at all places."""
    task = DigitOptions()
    known, new = drawn(task, 4096), drawn(task, 512, seed=1, held_out=1.0)
    rule = KNeighborsClassifier(3).fit(ink_of(known.inputs), known.factors["digit"])
    digit = rule.predict(ink_of(new.inputs))
    assert np.mean(digit == new.factors["digit"]) > 0.85
    assert np.mean(digit % 2 == new.factors["parity"]) > 0.9
    assert np.mean((digit >= 5) == new.factors["large"]) > 0.9


def test_ink_and_mean_color_do_not_tell_parity():
    """All that a mean over pixels tells is at chance, up to what few hundred pictures leave to chance."""
    found = drawn(DigitOptions(), 4096)
    means = np.asarray(found.inputs, float).mean(axis=(1, 2))
    features = np.concatenate([means, ink_of(found.inputs).mean(axis=1, keepdims=True)], axis=1)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    rule = KNeighborsClassifier(51).fit(x[:2048], found.factors["parity"][:2048])
    assert abs(np.mean(rule.predict(x[2048:]) == found.factors["parity"][2048:]) - 0.5) < 0.12


def test_color_and_tint_can_be_read_from_mean_colors():
    """Color from the pixels that differ most from the corner, tint from the corner."""
    found = drawn(DigitOptions(), 512)
    for pixels, color, tint in zip(found.inputs, found.factors["color"], found.factors["tint"], strict=True):
        flat = np.asarray(pixels, float).reshape(-1, 3) / 255
        corner = np.asarray(pixels, float)[:3, :3].mean(axis=(0, 1)) / 255
        inner = flat[np.argsort(-np.linalg.norm(flat - corner, axis=1))[:20]].mean(axis=0)
        for own, scale, names, right in (
            (inner, images.DISTANCE, DigitOptions().colors, color),
            (corner, images.TINT, DigitOptions().tints, tint),
        ):
            known = images.GREY + scale * images.directions(names)
            assert np.linalg.norm(known - own, axis=1).argmin() == right


def test_labels_may_be_the_digit_itself():
    task = DigitOptions(outputs=("digit", "color"))
    digits.check(task)
    found = drawn(task, 64)
    np.testing.assert_array_equal(found.labels, np.stack([found.factors["digit"], found.factors["color"]], axis=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": ()}, "config.task.features is empty"),
        ({"features": ("parity", "parity")}, "config.task.features: parity is there 2 times"),
        ({"colors": ("red",)}, "config.task.colors: the feature color has one value; expected at least two"),
        ({"colors": ()}, "config.task.colors is empty"),
        ({"tints": ("red", "blue", "red")}, "config.task.tints: red is there 2 times"),
        ({"num_probe": 96}, "config.task.num_probe=96: expected a multiple of 128"),
        ({"outputs": ("large",)}, "config.task.outputs=large: expected a factor that is no unused twin"),
        ({"outputs": ("shape",)}, "config.task.outputs=shape: unknown factor; known: color, parity, large, tint, digit"),
        ({"exposure": (0.5,)}, "config.task.exposure"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ConfigError) as error:
        digits.check(DigitOptions(**options))
    assert said in str(error.value)


def test_options_that_images_share_are_theirs():
    own, theirs = (type(task).__dataclass_fields__ for task in (DigitOptions(), images.ImageOptions()))
    for name in ("size", "colors", "tints", "contrast", "noise"):
        assert own[name].default == theirs[name].default
        assert own[name].metadata == theirs[name].metadata
