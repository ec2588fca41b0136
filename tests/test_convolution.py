"""Convolutions as one product are native ones, in outputs and gradients, and a slow twin's in float64."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repbias_jax.models.convolution import as_product, convolve, native


def drawn(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_hand(images, kernel, strides, pads):
    """Loops over places, in float64. Args: pads, zeros before and after, of rows and of columns."""
    x, k = np.pad(np.asarray(images, np.float64), ((0, 0), *pads, (0, 0))), np.asarray(kernel, np.float64)
    height, width = ((whole - own) // s + 1 for whole, own, s in zip(x.shape[1:3], k.shape[:2], strides, strict=True))
    found = np.zeros((len(x), height, width, k.shape[3]))
    for i, j in itertools.product(range(height), range(width)):
        window = x[:, i * strides[0] : i * strides[0] + k.shape[0], j * strides[1] : j * strides[1] + k.shape[1]]
        found[:, i, j] = np.einsum("nhwc,hwcf->nf", window, k)
    return found


sides, steps, zeros = st.integers(1, 5), st.integers(1, 3), st.tuples(st.integers(0, 2), st.integers(0, 2))
pairs = st.tuples(zeros, zeros)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.tuples(sides, sides), st.tuples(steps, steps), st.one_of(st.sampled_from(["SAME", "VALID"]), pairs))
def test_outputs_and_gradients_are_those_of_the_native_convolution(size, strides, padding):
    images, kernel = drawn((2, 7, 9, 3), 0), drawn((*size, 3, 4), 1)

    def both(function):
        found, back = jax.vjp(lambda x, k: function(x, k, strides, padding, "highest"), images, kernel)
        return found, *back(drawn(found.shape, 2))

    for ours, theirs in zip(both(as_product), both(native), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)  # sums of up to 200 products


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (1, 2))])
def test_outputs_are_those_of_the_twin(size, strides, pads):
    images, kernel = drawn((2, 6, 8, 3), 3), drawn((*size, 3, 2), 4)
    found = as_product(images, kernel, strides, pads, "highest")
    np.testing.assert_allclose(found, by_hand(images, kernel, strides, pads), rtol=0, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_platform_decides_which_one_a_program_has(platform):
    layer = nn.Conv(4, (3, 3), 2, conv_general_dilated=convolve)
    images = jnp.zeros((1, 8, 8, 3))
    params = layer.init(jax.random.key(0), images)
    program = jax.jit(jax.grad(lambda p, x: layer.apply(p, x).sum()))
    text = program.trace(params, images).lower(lowering_platforms=(platform,)).as_text()
    assert ("convolution" in text) == (platform != "cpu")
    assert ("dot_general" in text) == (platform == "cpu")


@pytest.mark.parametrize("more", [{"kernel_dilation": 2}, {"input_dilation": 2}, {"feature_group_count": 3}])
def test_other_kinds_of_convolution_are_refused(more):
    layer = nn.Conv(6, (3, 3), conv_general_dilated=convolve, **more)
    with pytest.raises(ValueError, match=r"convolve: .*: expected"):
        layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
