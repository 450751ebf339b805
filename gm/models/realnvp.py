"""RealNVP: affine coupling layers, multi-scale for images (Dinh et al. 2017).

A coupling layer keeps the part of y under a mask m and scales and shifts the rest by
functions of it (paper, eq. 7 to 9):

  z = m y + (1 - m) (y exp(s(m y)) + t(m y)),     log|dz/dy| = sum (1 - m) s(m y).

Images: at each scale checkerboard couplings, a squeeze, channel couplings, and half
of the channels are factored out (section 3.6). Sequences and vectors: couplings over
fixed random halves.

Deviations from the paper: a learned scale and shift per channel instead of batch
normalisation, whose value would depend on an example's neighbours; s is bounded by a
scaled tanh; the data are mapped to R^D by the normal quantile function instead of a logit
that leaves a margin, so the model is a distribution on the data's range alone and the
untrained one is uniform.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.flow import FlowModel
from gm.likelihood import normal_log_prob, sum_dims
from gm.nn.conditioning import CondEmbedding
from gm.nn.convolution import Conv, depth_to_space, num_halvings, space_to_depth


def mask(kind: str, parity: int, shape: tuple[int, ...]) -> np.ndarray:
    """The mask m of a coupling, float32, broadcastable to `shape`.

    "checkerboard": over the pixels of [H, W, C]; "channel": the first or last half of
    the channels; "half": a random half of [L], fixed by the pair number parity // 2.
    """
    if kind == "checkerboard":
        cells = np.indices(shape[:2]).sum(0) % 2
        return (cells == parity % 2).astype(np.float32)[..., None]
    channels = np.arange(shape[-1])
    if kind == "half":
        channels = np.random.default_rng(parity // 2).permutation(channels)
    first = channels < shape[-1] // 2
    return (first if parity % 2 == 0 else ~first).astype(np.float32)


def to_normal(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The normal quantile of y in [-1, 1), and its log-slope, elementwise.

    It maps the cube onto all of R^D, so that no mass lies outside the data's range.
    """
    p = jnp.clip((y + 1) / 2, 1e-6, 1 - 1e-6)  # rounding may have given y = 1
    h = jax.scipy.special.ndtri(p)
    return h, -normal_log_prob(h) - math.log(2)


class Conditioner(nn.Module):
    """A residual network from the masked input to s and t: convolutional or dense."""

    features: int  # outputs per pixel, or in all for vectors
    width: int
    depth: int
    convolutional: bool
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, y: jax.Array, cond: jax.Array, train: bool) -> jax.Array:
        """Y [B, H, W, C] or [B, L], cond [B, width] -> [..., features]."""

        def layer(features, **kwargs):
            if self.convolutional:
                return Conv(features, dtype=self.dtype, **kwargs)
            return nn.Dense(features, dtype=self.dtype, **kwargs)

        if self.convolutional:
            cond = cond[:, None, None]
        h = layer(self.width)(y) + cond
        for _ in range(self.depth):
            branch = layer(self.width)(nn.silu(h))
            branch = nn.Dropout(self.dropout_rate, deterministic=not train)(branch)
            h = h + layer(self.width, kernel_init=nn.initializers.zeros)(
                nn.silu(branch)
            )
        return layer(self.features, kernel_init=nn.initializers.zeros)(nn.silu(h))


class Coupling(nn.Module):
    """A masked affine coupling, after a learned scale and shift per channel."""

    kind: str
    parity: int
    width: int
    depth: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        y: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Y -> (z, log_det [B]); with inverse=True, z -> (y, -log_det)."""
        channels = y.shape[-1]
        log_gain = self.param("log_gain", nn.initializers.zeros, (channels,))
        shift = self.param("shift", nn.initializers.zeros, (channels,))
        bound = self.param("log_scale_bound", nn.initializers.ones, (channels,))
        m = jnp.asarray(mask(self.kind, self.parity, y.shape[1:]))
        if not inverse:
            y = y * jnp.exp(log_gain) + shift
        conditioner = Conditioner(
            2 * channels,
            self.width,
            self.depth,
            y.ndim == 4,
            self.dropout_rate,
            self.dtype,
        )
        s, t = jnp.split(conditioner(y * m, cond, train).astype(jnp.float32), 2, -1)
        s = (1 - m) * bound * jnp.tanh(s)
        t = (1 - m) * t
        gains = log_gain.sum() * (y[0].size // channels)
        if inverse:
            y = (y - t) * jnp.exp(-s)
            return (y - shift) * jnp.exp(-log_gain), -sum_dims(s) - gains
        return y * jnp.exp(s) + t, sum_dims(s) + gains


class RealNVP(FlowModel):
    """Affine couplings; multi-scale where the shape is an image."""

    width: int = 64
    depth: int = 2  # residual blocks in a coupling's network
    num_couplings: int = 4  # of each kind at each scale; of all for vectors
    dropout_rate: float = 0.0

    def setup(self) -> None:
        """One list of couplings in the order of the forward pass."""
        args = (self.width, self.depth, self.dropout_rate, self.dtype)
        count = self.num_couplings
        couplings = []
        for kind in self._plan():
            if kind != "squeeze" and kind != "split":
                couplings += [Coupling(kind, i, *args) for i in range(count)]
        self.couplings = couplings
        self.embed = CondEmbedding(self.cond, self.width, self.dtype)

    def _plan(self) -> list[str]:
        """What happens to y, in order: kinds of couplings, squeezes and splits."""
        if len(self.shape) == 1:
            return ["half"]
        plan = []
        scales = num_halvings(self.shape, smallest=2)
        for scale in range(scales):
            plan += ["checkerboard", "squeeze", "channel"]
            if scale < scales - 1:
                plan += ["split"]
        return plan + ["checkerboard"]

    def forward(
        self, y: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Y [B, *shape] in [-1, 1) -> (z [B, D], log_det [B])."""
        batch = y.shape[0]
        cond = self.embed(cond)
        h, log_slope = to_normal(y)
        log_det = sum_dims(log_slope)
        couplings, parts = iter(self.couplings), []
        for kind in self._plan():
            if kind == "squeeze":
                h = space_to_depth(h)
            elif kind == "split":
                h, out = jnp.split(h, 2, axis=-1)
                parts.append(out.reshape(batch, -1))
            else:
                for _ in range(self.num_couplings):
                    h, change = next(couplings)(h, cond, train=train)
                    log_det += change
        return jnp.concatenate([*parts, h.reshape(batch, -1)], axis=1), log_det

    def inverse(self, z: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """Z [B, D] -> y [B, *shape]."""
        cond = self.embed(cond)
        shape, parts = self.shape, []
        for kind in self._plan():  # shapes on the way down, to cut z into its parts
            if kind == "squeeze":
                shape = (shape[0] // 2, shape[1] // 2, 4 * shape[2])
            elif kind == "split":
                shape = (*shape[:2], shape[2] // 2)
                parts.append(shape)
        h = z[:, -math.prod(shape) :].reshape(-1, *shape)
        end = z.shape[1] - math.prod(shape)
        couplings = iter(self.couplings[::-1])
        for kind in self._plan()[::-1]:
            if kind == "squeeze":
                h = depth_to_space(h)
            elif kind == "split":
                size = math.prod(parts[-1])
                out = z[:, end - size : end].reshape(-1, *parts.pop())
                h, end = jnp.concatenate([h, out], axis=-1), end - size
            else:
                for _ in range(self.num_couplings):
                    h, _ = next(couplings)(h, cond, inverse=True)
        return 2 * jax.scipy.special.ndtr(h) - 1


Model = RealNVP
TINY = dict(width=8, depth=1, num_couplings=2)
