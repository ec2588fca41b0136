"""The Vision Transformer: a slow twin in float64 with every site edited, its patches, views and refused options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer import dense_by_hand, stack_by_hand
from test_transformer import options as blocks_of

import repbias_jax
from repbias_jax.config import Config, ConfigError, Experiment, Keep, Optimizer, Training, dials_of
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.data.images import ImageOptions
from repbias_jax.models import vit
from repbias_jax.models.vit import ViTOptions

SIZE, PATCH, IMAGES = 24, 8, 3
TASK = ImageOptions(size=SIZE, num_probe=32)
OWN = ViTOptions(patch=PATCH, width=8, heads=2, layers=2, expand=2)


@functools.cache
def made():
    """Module, random weights (norms too), dials and images."""
    vit.check(OWN, TASK)
    dials, rng = dials_of(Config(TASK, OWN)), np.random.default_rng(0)
    module = vit.build(OWN, TASK, 4, ())
    images = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    shapes = jax.eval_shape(lambda key: module.init(key, images[0], dials), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])), shapes)
    return module, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), dials, images


def run(edits=None):
    module, params, dials, images = made()
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(jax.vmap(lambda x: module.apply(params, x, dials, edits=edits)))(images))


def by_hand(image, edits):
    """The logits `[O, C]` of one image, patch by patch."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made()[1])["params"]

    def site(name, value):
        return value + edits.get(name, 0)

    tops = range(0, SIZE, PATCH)
    patches = np.stack([image[i : i + PATCH, j : j + PATCH].reshape(-1) / 127.5 - 1 for i in tops for j in tops])
    x = site("embedding", dense_by_hand(p["patches"], patches) + p["places"]["embedding"])
    everything = [range(len(x))] * len(x)
    memory = stack_by_hand(p["encoder"], x, blocks_of("encoder"), everything, site, "encoder_of_image")
    return site("logits", dense_by_hand(p["readout"], memory.mean(axis=0))).reshape(2, 4)


def test_logits_are_those_of_the_twin_also_where_a_site_is_edited():
    images, (_, sites) = made()[3], run()
    rng = np.random.default_rng(1)
    for name in (None, *sites):
        edits = {} if name is None else {name: rng.normal(size=sites[name].shape[1:]).astype(np.float32)}
        named = {f"encoder_of_image{own.removeprefix('block')}" if "block" in own else own: e for own, e in edits.items()}
        logits, _ = run(edits)
        np.testing.assert_allclose(logits[0], by_hand(images[0], named), rtol=0, atol=1e-4, err_msg=str(name))


def test_patches_are_cut_row_by_row():
    image = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    found = vit.cut(jnp.asarray(image), 2)
    assert found.shape == (6, 12)
    np.testing.assert_array_equal(found[1], image[:2, 2:4].reshape(-1))
    np.testing.assert_array_equal(found[3], image[2:, :2].reshape(-1))


def test_views_are_means_and_a_spread_change_moves_them_by_as_much():
    _, sites = run()
    known, places = vit.views(OWN, TASK), vit.places(OWN, TASK)
    assert {view.site for view in known.values()} == set(sites)
    for name, view in known.items():
        value = jnp.asarray(sites[view.site][0])
        change = jnp.linspace(-1.0, 1.0, len(view.read(value)))
        moved = view.read(value + view.spread(change)) - view.read(value)
        np.testing.assert_allclose(moved, change, rtol=0, atol=1e-5, err_msg=name)
    assert places["layers"] == ("embedding.mean", "block_0.mean", "block_1.mean")
    assert places["all"] == (*places["layers"], "logits")
    assert (places["last_hidden"], places["flat"]) == (("block_1.mean",), ("block_1.flat",))


@pytest.mark.parametrize(
    ("named", "own", "task"),
    [
        ("task.name", OWN, BinaryOptions()),
        ("patch", ViTOptions(patch=7), TASK),
        ("heads", ViTOptions(heads=5), TASK),
    ],
)
def test_options_that_do_not_fit_together_are_refused_in_one_line(named, own, task):
    with pytest.raises(ConfigError) as caught:
        vit.check(own, task)
    assert str(caught.value).startswith("config.")
    assert named in str(caught.value).split(":")[0]
    assert "\n" not in str(caught.value)


def test_it_is_trained_stored_and_measured(tmp_path):
    """The loss falls, and r2 is there at every stage before and after training."""
    task = dataclasses.replace(
        TASK, num_train=256, num_test=64, num_probe=64, colors=("red", "green"), tints=("red", "green")
    )
    task = dataclasses.replace(task, features=("color",))
    config = Config(task, OWN, Optimizer("adam", 3e-3), Training(batch_size=16, epochs=3, observe_every=16), Keep(every=16))
    experiment = Experiment("vit", "A small Vision Transformer", config, (("one", ()),), num_seeds=2)
    results = repbias_jax.run(experiment, tmp_path)
    loss = results.curves.query("output == 'color' and split == 'train'").groupby("step")["loss"].mean()
    assert loss.iloc[-1] < 0.5 * loss.iloc[0]
    for site in ("embedding.mean", "block_0.mean", "block_1.mean"):
        for step in (0, results.last_step("base.one")):
            assert results.values("base.one", "r2", "color", step=step, site=site).notna().all(), (site, step)
