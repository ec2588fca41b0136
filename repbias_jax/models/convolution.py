"""Convolutions: native, or on a CPU as one matrix product over shifted slices of the image (im2col).

In a loop, as in training, XLA's own convolution takes many times as long on a CPU. Which of the two a program has is
decided when it is lowered for a platform. Both compute the same in float32, up to rounding.

  nn.Conv(features, (3, 3), conv_general_dilated=convolve)

Source: im2col after Chellapilla, Puri and Simard 2006; the slow native convolution is jax issue 12868.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = str | Sequence[tuple[int, int]]


def convolve(images: Array, kernel: Array, strides: Sequence[int], padding: Padding, **more: Any) -> Array:
    """Returns `[N, H', W', F]`, the convolution that `nn.Conv` asks for.

    Args:
      images: `[N, H, W, C]`.
      kernel: `[h, w, C, F]`.
      strides: of the window, in both directions.
      padding: `SAME`, `VALID`, or rows and columns of zeros on both sides.
      more: what else `nn.Conv` hands over; only the defaults and a precision are possible.

    Raises:
      ValueError: dilated or grouped convolutions are asked for.
    """
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}
    if odd := [f"{name}={more[name]}" for name, value in plain.items() if more.get(name, value) != value]:
        raise ValueError(f"convolve: {odd[0]}: expected {plain[odd[0].split('=')[0]]}")
    precision = more.get("precision")
    return jax.lax.platform_dependent(
        images,
        kernel,
        cpu=lambda x, k: as_product(x, k, strides, padding, precision),
        default=lambda x, k: native(x, k, strides, padding, precision),
    )


def native(images: Array, kernel: Array, strides: Sequence[int], padding: Padding, precision: Any = None) -> Array:
    """Returns the convolution by XLA's own operation. Args: as for `convolve`."""
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=LAYOUT, precision=precision)


def as_product(images: Array, kernel: Array, strides: Sequence[int], padding: Padding, precision: Any = None) -> Array:
    """Returns the convolution as one product of `[N, H', W', h w C]` and `[h w C, F]`. Args: as for `convolve`."""
    size = kernel.shape[:2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(images.shape[1:3], size, strides, padding)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    counts = [(whole - own) // step + 1 for whole, own, step in zip(padded.shape[1:3], size, strides, strict=True)]

    def shifted(down: int, right: int) -> Array:
        """The pixel at this place of every window, `[N, H', W', C]`."""
        ends = [first + (count - 1) * step + 1 for first, count, step in zip((down, right), counts, strides, strict=True)]
        start, end = (0, down, right, 0), (len(padded), *ends, padded.shape[3])
        return jax.lax.slice(padded, start, end, (1, *strides, 1))

    windows = jnp.concatenate([shifted(*at) for at in itertools.product(*map(range, size))], axis=-1)
    return jnp.matmul(windows, kernel.reshape(-1, kernel.shape[-1]), precision=precision)
