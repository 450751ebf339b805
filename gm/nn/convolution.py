"""Convolutions that stay fast inside a loop, and lossless changes of resolution."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _conv(x, kernel, pads):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT
    )


Pads = tuple[tuple[int, int], tuple[int, int]]  # rows above, below; columns left, right
_NO_PADS: Pads = ((0, 0), (0, 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _canonical_conv(x, kernel, pads):
    """Convolution of stride 1 whose gradients are NHWC convolutions too.

    On CPU, XLA sends only convolutions of this layout inside a loop body to its fast
    path; the gradients that JAX derives are 25 times slower there (jax issue 12868).
    Reverse mode only.
    """
    return _conv(x, kernel, pads)


def _canonical_forward(x, kernel, pads):
    return _canonical_conv(x, kernel, pads), (x, kernel)


def _canonical_backward(pads, residuals, g):
    x, kernel = residuals
    flipped = [
        (k - 1 - low, k - 1 - high)
        for k, (low, high) in zip(kernel.shape[:2], pads, strict=True)
    ]
    dx = _conv(g, kernel[::-1, ::-1].swapaxes(2, 3), flipped)
    dw = _conv(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), pads)
    return dx, dw.transpose(1, 2, 0, 3)


_canonical_conv.defvjp(_canonical_forward, _canonical_backward)


def padded_conv(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolution of stride 1, padded with zeros: [B, H, W, I], [h, w, I, O]."""
    if jax.default_backend() == "cpu":
        return _canonical_conv(x, kernel, pads)
    return _conv(x, kernel, pads)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """SAME convolution of stride 1: [B, H, W, I], [h, w, I, O] -> [B, H, W, O].

    Odd kernel sizes only: an even one would be off by half a pixel.
    """
    if any(k % 2 == 0 for k in kernel.shape[:2]):
        raise ValueError(f"kernel of even size {kernel.shape[:2]}")
    rows, columns = (k // 2 for k in kernel.shape[:2])
    return padded_conv(x, kernel, ((rows, rows), (columns, columns)))


class Conv(nn.Module):
    """A convolution of stride 1 with bias: SAME, or only where its window lies inside."""

    features: int
    kernel_size: int | tuple[int, int] = 3
    dtype: jnp.dtype = jnp.dtype("float32")
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    padded: bool = True  # or the output is smaller, by kernel_size - 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, I] -> [B, H, W, features]."""
        size = self.kernel_size
        size = size if isinstance(size, tuple) else (size, size)
        shape = (*size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        out = conv(x, kernel) if self.padded else padded_conv(x, kernel, _NO_PADS)
        return out + bias.astype(self.dtype)


@functools.partial(jax.jit, static_argnums=1)
def space_to_depth(x: jax.Array, block: int = 2) -> jax.Array:
    """[B, H, W, C] -> [B, H/b, W/b, b*b*C]: every b x b block becomes channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, -1)


@functools.partial(jax.jit, static_argnums=1)
def depth_to_space(x: jax.Array, block: int = 2) -> jax.Array:
    """[B, H, W, b*b*C] -> [B, b*H, b*W, C], the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    c = c // block**2
    x = x.reshape(b, h, w, block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c)


def num_halvings(shape: tuple[int, ...], smallest: int) -> int:
    """How often H and W can be halved exactly while both stay >= smallest."""
    side = math.gcd(shape[0], shape[1])
    count = 0
    while side % 2 == 0 and min(shape[:2]) // 2 ** (count + 1) >= smallest:
        side //= 2
        count += 1
    return count
