"""Layers of networks that read an image in raster order, against a view."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.nn.views import View


@jax.jit
def _norm(kernel):
    return jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)) + 1e-12)


class CausalConv(nn.Module):
    """A convolution with bias whose window ends at the pixel; see `View.conv`.

    weight_norm: the kernel is scale * v / |v|, one scale for each output (Salimans &
    Kingma 2016). mask [h, w]: taps of the kernel that are zero.
    """

    features: int
    kernel_size: tuple[int, int]
    right: int = 0
    stride: int = 1
    weight_norm: bool = False
    mask: tuple[tuple[int, ...], ...] | None = None
    gain: float = 1.0  # of the initial kernel
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, view: View, x: jax.Array) -> jax.Array:
        """[B, h, w, I] -> [B, h, w, features]."""
        kernel = self._kernel(x.shape[-1])
        x = x.astype(self.dtype)
        return self._finish(view.conv(x, kernel, self.right, self.stride), kernel)

    def _kernel(self, inputs):
        init = nn.initializers.variance_scaling(self.gain**2, "fan_in", "normal")
        shape = (*self.kernel_size, inputs, self.features)
        kernel = self.param("kernel", init, shape)
        if self.mask is not None:
            kernel = kernel * np.asarray(self.mask, np.float32)[..., None, None]
        return kernel.astype(self.dtype)

    def _finish(self, out, kernel):
        """Scale, which may as well be applied to what the convolution gives, and bias."""
        if self.weight_norm:
            norm = _norm(kernel.astype(jnp.float32))
            scale = self.param("scale", lambda _: norm)  # so the kernel starts as v
            out = out * (scale / norm).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return out + bias.astype(self.dtype)


class UpConv(CausalConv):
    """Doubles the resolution: `View.up` with bias; kernel_size (2, 2 + right)."""

    @nn.compact
    def __call__(self, view: View, x: jax.Array) -> jax.Array:
        """[B, h, w, I] -> [B, 2h, 2w, features]."""
        kernel = self._kernel(x.shape[-1])
        return self._finish(view.up(x.astype(self.dtype), kernel, self.right), kernel)


@jax.custom_jvp
def concat_elu(x: jax.Array) -> jax.Array:
    """elu(x) and elu(-x): [..., I] -> [..., 2I]."""
    # One exponential serves both; expm1 is slow on XLA:CPU and buys nothing here.
    below = jnp.exp(-jnp.abs(x)) - 1
    return jnp.concatenate(
        [jnp.where(x > 0, x, below), jnp.where(x > 0, below, -x)], axis=-1
    )


@concat_elu.defjvp
def _concat_elu_jvp(primals, tangents):
    # Derived, it would be 0 at x = 0, where padding puts many features.
    (x,), (tangent,) = primals, tangents
    slope = jnp.exp(-jnp.abs(x))
    pair = [jnp.where(x > 0, 1, slope), -jnp.where(x > 0, slope, 1)]
    return concat_elu(x), jnp.concatenate([tangent * s for s in pair], axis=-1)


@jax.jit
def _add_gated(x, h):
    a, b = jnp.split(h, 2, axis=-1)
    return x + a * nn.sigmoid(b)


class GatedResnet(nn.Module):
    """The residual block of PixelCNN++ (Salimans et al. 2017, appendix B).

    x + a * sigmoid(b), where (a, b) comes of two convolutions of x, between which it hears
    of other features (`beside`) and of the condition.
    """

    kernel_size: tuple[int, int]
    right: int = 0
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        view: View,
        x: jax.Array,
        beside: jax.Array | None = None,
        cond: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """X [B, h, w, I], beside [B, h, w, any], cond embedded -> [B, h, w, I]."""
        width = x.shape[-1]
        layer: dict[str, Any] = dict(
            right=self.right, weight_norm=True, dtype=self.dtype
        )
        h = CausalConv(width, self.kernel_size, name="first", **layer)(
            view, concat_elu(x)
        )
        if beside is not None:
            h = h + CausalConv(
                width, (1, 1), weight_norm=True, dtype=self.dtype, name="beside"
            )(view, concat_elu(beside))
        h = nn.Dropout(self.dropout_rate, deterministic=not train)(concat_elu(h))
        # Blocks start near the identity.
        h = CausalConv(2 * width, self.kernel_size, gain=0.1, name="second", **layer)(
            view, h
        )
        if cond is not None:
            told = view.condition(cond, h)
            h = h + nn.Dense(2 * width, use_bias=False, dtype=self.dtype)(told)
        return _add_gated(x, h)


class FirstLayer(nn.Module):
    """The first features of a stream that sees the rows above and the row to the left.

    The pixels around in the row above, and the two in the column to the left (Salimans et
    al. 2017); zero where that lies outside the image.
    """

    width: int
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        """Two convolutions."""
        normed: dict[str, Any] = dict(weight_norm=True, dtype=self.dtype)
        self.above = CausalConv(self.width, (1, 3), 1, **normed)
        self.left = CausalConv(self.width, (2, 1), **normed)

    def rows(self, view: View, x: jax.Array) -> jax.Array:
        """X [B, h, w, F], the pixel above each -> [B, h, w, width]."""
        return view.after_first(self.above(view, x), "row")

    def pixels(self, view: View, x: jax.Array, above: jax.Array | None) -> jax.Array:
        """X [B, h, w, F], the pixel before each -> [B, h, w, width]."""
        h = view.after_first(self.left(view, x), "column")
        return h if above is None else h + view.pick(above)
