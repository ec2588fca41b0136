"""Convolutional networks: a slow twin in float64, skips, views, that one image does not depend on others, refusals."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repbias_jax.config import Config, ConfigError, dials_of
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.data.images import ImageOptions
from repbias_jax.models import convnet, layers, mlp
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.models.mlp import MLPOptions

SIZE, IMAGES = 24, 3
TASK = ImageOptions(size=SIZE, num_probe=32)
PLAIN = ConvNetOptions(widths=(4, 6), groups=2)
CASES = {
    "plain": PLAIN,
    "residual": dataclasses.replace(PLAIN, form="residual"),
    "skips": dataclasses.replace(PLAIN, form="residual", skips=(0.5, 2.0)),
    "no skips": dataclasses.replace(PLAIN, form="residual", skips=(0.0, 0.0)),
    "blocks": dataclasses.replace(PLAIN, form="residual", blocks=2, activation="tanh"),
}
each_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def made(case):
    """Module, random weights (norms too), dials and images of a case."""
    own, rng = CASES[case], np.random.default_rng(0)
    convnet.check(own, TASK)
    dials = dials_of(Config(TASK, own))
    module = convnet.build(own, TASK, 4, ("model.skips",) if own.skips else ())
    images = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    shapes = jax.eval_shape(lambda key: module.init(key, images[0], dials), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    return module, params, dials, images


def run(case, images=None, edits=None):
    module, params, dials, own = made(case)
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(jax.vmap(lambda x: module.apply(params, x, dials, edits=edits)))
        return jax.device_get(apply(own if images is None else images))


def conv_by_hand(kernel, x, stride):
    """A convolution with the padding `SAME`, by loops over places."""
    size, side = len(kernel), len(x)
    out = -(-side // stride)
    zeros = max((out - 1) * stride + size - side, 0)
    x = np.pad(x, ((zeros // 2, zeros - zeros // 2), (zeros // 2, zeros - zeros // 2), (0, 0)))
    found = np.zeros((out, out, kernel.shape[3]))
    for i, j in itertools.product(range(out), range(out)):
        window = x[i * stride : i * stride + size, j * stride : j * stride + size]
        found[i, j] = np.einsum("hwc,hwcf->f", window, kernel)
    return found


def norm_by_hand(p, x, groups):
    """Over places and the channels of a group; Flax adds 1e-6 to the variance."""
    parts = [(g - g.mean()) / np.sqrt(g.var() + 1e-6) for g in np.split(x, groups, axis=2)]
    return np.concatenate(parts, axis=2) * p["scale"] + p["bias"]


def by_hand(case, image, edits):
    """The logits `[O, C]` of one image."""
    own = CASES[case]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made(case)[1])["params"]
    act = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}[own.activation]

    def site(name, value):
        return value + edits.get(name, 0)

    def layer(name, x, stride=1):
        return norm_by_hand(p[f"{name}_norm"], conv_by_hand(p[f"{name}_conv"]["kernel"], x, stride), own.groups)

    x = site("input", image / 127.5 - 1)
    x = act(layer("stem", x, 2)) if own.form == "residual" else x
    for i in range(len(own.widths)):
        if own.form == "plain":
            x = act(layer(f"stage_{i}", x, 2))
        else:
            for j in range(own.blocks):
                name, stride = f"stage_{i}_block_{j}", 2 if i and not j else 1
                change = layer(f"{name}_second", act(layer(f"{name}_first", x, stride)))
                skipped = layer(f"{name}_skip", x, stride) if change.shape != x.shape else x
                s = own.skips[i] if own.skips else None
                x = act(skipped + change if s is None else (s * skipped + change) / np.sqrt(1 + s**2))
        x = site(f"stage_{i}", x)
    logits = x.mean(axis=(0, 1)) @ p["readout"]["kernel"] + p["readout"]["bias"]
    return site("logits", logits).reshape(2, 4)


@each_case
def test_logits_are_those_of_the_twin_also_where_a_site_is_edited(case):
    images, (_, sites) = made(case)[3], run(case)
    rng = np.random.default_rng(1)
    for name in (None, *sites):
        edits = {} if name is None else {name: rng.normal(size=sites[name].shape[1:]).astype(np.float32)}
        logits, _ = run(case, edits=edits)
        np.testing.assert_allclose(logits[0], by_hand(case, images[0], edits), rtol=0, atol=1e-4, err_msg=str(name))


@each_case
def test_an_image_does_not_depend_on_the_others(case):
    images = made(case)[3]
    together, _ = run(case)
    alone, _ = run(case, images[1:2])
    np.testing.assert_allclose(alone[0], together[1], rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


@each_case
def test_every_site_has_a_view_that_a_spread_change_moves_by_as_much(case):
    _, sites = run(case)
    known = convnet.views(CASES[case], TASK)
    assert {view.site for view in known.values()} == set(sites)
    for name, view in known.items():
        value = jnp.asarray(sites[view.site][0])
        before = view.read(value)
        change = jnp.linspace(-1.0, 1.0, len(before))
        np.testing.assert_allclose(view.read(value + view.spread(change)), before + change, rtol=0, atol=1e-5, err_msg=name)


@each_case
def test_the_places_are_means_in_order_and_maps_belong_to_none_but_flat(case):
    places = convnet.places(CASES[case], TASK)
    assert places["layers"] == ("stage_0.mean", "stage_1.mean")
    assert (places["before_last"], places["last_hidden"]) == (("stage_0.mean",), ("stage_1.mean",))
    assert places["all"] == ("input.mean", *places["layers"], "logits")
    assert places["flat"] == ("stage_1.flat",)


def test_the_head_reads_the_mean_of_the_last_stage():
    """A change that leaves the mean alone changes no logit."""
    _, sites = run("residual")
    change = np.random.default_rng(2).normal(size=sites["stage_1"].shape[1:]).astype(np.float32)
    still, _ = run("residual", edits={"stage_1": change - change.mean(axis=(0, 1))})
    moved, _ = run("residual", edits={"stage_1": change})
    plain, _ = run("residual")
    np.testing.assert_allclose(still, plain, rtol=0, atol=1e-5)
    assert np.abs(moved - plain).max() > 1e-3


@pytest.mark.parametrize("size", [25, 30])
def test_views_fit_stages_whose_sides_are_rounded_up(size):
    task, own = dataclasses.replace(TASK, size=size), ConvNetOptions(form="residual", widths=(4, 4, 4), groups=2, blocks=2)
    convnet.check(own, task)
    dials, module = dials_of(Config(task, own)), convnet.build(own, task, 4, ())
    image = jnp.zeros((size, size, 3), jnp.uint8)
    _, sites = jax.eval_shape(lambda key: module.apply(module.init(key, image, dials), image, dials), jax.random.key(0))
    assert sites["stage_2"].shape[0] == -(-size // 8) > size // 8
    for name, view in convnet.views(own, task).items():
        change = jax.eval_shape(view.read, sites[view.site])
        assert jax.eval_shape(view.spread, change).shape == sites[view.site].shape, name


def test_an_mlp_reads_no_images():
    with pytest.raises(ConfigError, match=r"^config\.task\.name=images: expected inputs of one axis"):
        mlp.check(MLPOptions(), TASK)


REFUSED = [
    ("task.name", PLAIN, BinaryOptions()),
    ("widths", ConvNetOptions(widths=()), TASK),
    ("groups", ConvNetOptions(widths=(4, 6), groups=4), TASK),
    ("skips", ConvNetOptions(skips=(1.0, 1.0, 1.0, 1.0)), TASK),
    ("skips", ConvNetOptions(form="residual", skips=(1.0,)), TASK),
    ("blocks", ConvNetOptions(blocks=2), TASK),
    ("widths", ConvNetOptions(widths=(8,) * 5), TASK),
]


@pytest.mark.parametrize(("named", "own", "task"), REFUSED, ids=[f"{i}-{n}" for i, (n, _, _) in enumerate(REFUSED)])
def test_options_that_do_not_fit_together_are_refused_in_one_line(named, own, task):
    with pytest.raises(ConfigError) as caught:
        convnet.check(own, task)
    assert str(caught.value).startswith("config.")
    assert named in str(caught.value).split(":")[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (6, 3), (8, 8)])
def test_group_norm_is_that_of_flax_in_outputs_and_gradients(channels, groups):
    rng = np.random.default_rng(5)
    x, back = (jnp.asarray(3 + rng.normal(size=(5, 7, channels)), jnp.float32) for _ in range(2))
    params = {"params": {name: jnp.asarray(rng.normal(size=channels), jnp.float32) for name in ("scale", "bias")}}

    def both(apply):
        found, pull = jax.vjp(apply, params, x)
        return jax.tree.leaves((found, pull(back)))

    ours = both(layers.GroupNorm(groups).apply)
    theirs = both(lambda params, x: nn.GroupNorm(groups, use_fast_variance=False).apply(params, x[None])[0])
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-4)  # gradients of scales are sums of 35 products
