"""Glow: a flow with invertible 1x1 convolutions (Kingma & Dhariwal 2018).

A step of the flow (paper, table 1), on an image of C channels:

  actnorm        h <- h exp(g) + b,                 log|det| = H W sum g
  1x1 conv       h <- W h at each pixel,            log|det| = H W log|det W|
                 W = P (L + I) (U + diag(sign exp(l))), P and sign fixed: H W sum l
  coupling       (a, b) <- h;  (s, t) <- network(a);  b <- (b + t) sigmoid(s + 2)
                 log|det| = sum log sigmoid(s + 2)

At each scale: a squeeze, K steps, and half of the channels are factored out, by a normal
whose mean and scale depend on the half that goes on; the last half by a learned one.

A vector is an image of one pixel, whose channels are its entries.

Deviations from the paper: parameters start from a key alone, so actnorm starts as data of
variance one would set it, and the normal quantile function makes the data so;
the 1x1 convolutions of a scale share P, and start at one random rotation; no actnorm
inside the networks; convolutions that start at zero pad with ones to tell the border,
where the authors' code has a channel for it; a condition enters the couplings' networks
and not the last prior. The authors' code takes data as they are (`preprocessing=identity`).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.errors import InputError, check_positive
from gm.flow import MultiScaleFlow
from gm.likelihood import sum_dims
from gm.nn.conditioning import CondEmbedding, grid_of, per_position
from gm.nn.convolution import Conv, conv, num_halvings
from gm.nn.invertible import ActNorm, InvertibleConv, Repeated


class ZeroConv(nn.Module):
    """A convolution that starts at zero, times exp(3 log_scale); padded with ones."""

    features: int
    kernel_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """[B, H, W, I] -> [B, H, W, features], float32."""
        size = (self.kernel_size, self.kernel_size, h.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, size)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        log_scale = self.param("log_scale", nn.initializers.zeros, (self.features,))
        # To pad h with ones is to pad h - 1 with zeros, and to add what ones would give.
        out = conv((h - 1).astype(self.dtype), kernel.astype(self.dtype))
        out = out.astype(jnp.float32) + kernel.sum((0, 1, 2)) + bias
        return out * jnp.exp(3 * log_scale)


def _kernel_size(h):
    """3, or 1 for an image of one pixel, of which it would see the border only."""
    return 3 if h.shape[1] * h.shape[2] > 1 else 1


class AffineCoupling(nn.Module):
    """Moves the second half of the channels as the first half says."""

    width: int
    affine: bool
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> ([B, H, W, C], log_det [B])."""
        a, b = jnp.split(h, [h.shape[-1] // 2], axis=-1)
        size, start = _kernel_size(h), nn.initializers.normal(0.05)
        hidden = a if a.shape[-1] else 0 * b  # one channel: nothing is kept
        hidden = Conv(self.width, size, self.dtype, start)(hidden)
        hidden = hidden + per_position(cond, hidden.shape[1:3])
        hidden = Conv(self.width, 1, self.dtype, start)(nn.relu(hidden))
        hidden = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(hidden))
        features = b.shape[-1] * (2 if self.affine else 1)
        out = ZeroConv(features, size, self.dtype)(hidden)
        if self.affine:
            s, t = jnp.split(out, 2, axis=-1)
            log_scale = jax.nn.log_sigmoid(s + 2)
        else:
            t, log_scale = out, 0 * out
        if inverse:
            b, log_scale = b * jnp.exp(-log_scale) - t, -log_scale
        else:
            b = (b + t) * jnp.exp(log_scale)
        return jnp.concatenate([a, b], axis=-1), sum_dims(log_scale)


class Step(nn.Module):
    """Actnorm, a 1x1 convolution and a coupling."""

    width: int
    affine: bool
    dropout_rate: float
    dtype: jnp.dtype

    def setup(self) -> None:
        """The three, in the order of the forward pass."""
        # What the coupling before it makes of inputs of variance one.
        shrunk = 1 / (1 + math.exp(-2)) if self.affine else 1.0
        self.actnorm = ActNorm((1 + shrunk**2) / 2)
        self.conv = InvertibleConv()
        self.coupling = AffineCoupling(
            self.width, self.affine, self.dropout_rate, self.dtype
        )

    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> ([B, H, W, C], log_det [B])."""
        log_det = jnp.zeros(h.shape[0])
        layers = [self.actnorm, self.conv, self.coupling]
        for layer in layers[::-1] if inverse else layers:
            h, change = layer(h, cond, inverse=inverse, train=train)
            log_det += change
        return h, log_det


class Prior(nn.Module):
    """Standardises what is factored out: (h - mean) / std, given what goes on.

    At the end (top) that is all, and it is given nothing.
    """

    top: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> ([B, H, W, C], log_det [B])."""
        a, b = jnp.split(h, [0 if self.top else h.shape[-1] // 2], axis=-1)
        given = 0 * h if self.top else a
        out = ZeroConv(2 * b.shape[-1], _kernel_size(h), self.dtype)(given)
        mean, log_std = jnp.split(out, 2, axis=-1)
        if inverse:
            b = mean + jnp.exp(log_std) * b
        else:
            b, log_std = (b - mean) * jnp.exp(-log_std), -log_std
        return jnp.concatenate([a, b], axis=-1), sum_dims(log_std)


class Glow(MultiScaleFlow):
    """Steps of actnorm, 1x1 convolution and coupling, at several scales."""

    width: int = 512
    depth: int = 32  # steps at each scale
    num_scales: int = 3  # at most, as long as height and width are even
    affine: bool = True  # or additive: b <- b + t
    dropout_rate: float = 0.0
    remat: bool = False  # saves memory: the steps are computed twice

    def setup(self) -> None:
        """The steps of each scale, and the prior of what it factors out."""
        check_positive(self, "num_scales")
        image = len(self.shape) == 3
        halvings = num_halvings(self.shape, smallest=1) if image else 0
        self.scales = max(min(halvings, self.num_scales), 1)
        self.squeezed = halvings > 0
        if image and self.layout[-1] == 1 and not self.squeezed and self.num_dims > 1:
            raise InputError(
                f"--model=glow: {self.shape[0]}x{self.shape[1]} images of one channel "
                "have no channels to couple; give another --resolution, or realnvp, "
                "which couples pixels"
            )
        args = (self.width, self.affine, self.dropout_rate, self.dtype)
        self.flows = [
            Repeated(Step(*args, parent=None), self.depth, self.remat)
            for _ in range(self.scales)
        ]
        pixels = np.prod(self.layout[:2]) // 4 ** min(halvings, self.scales)
        # The top prior of one pixel is a mean and a scale per channel.
        top: nn.Module = Prior(True, self.dtype) if pixels > 1 else ActNorm()
        lower: list[nn.Module] = [
            Prior(False, self.dtype) for _ in range(self.scales - 1)
        ]
        self.priors = [*lower, top]
        self.embed = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )

    @property
    def layout(self) -> tuple[int, ...]:
        """The image; a vector is an image of one pixel."""
        return self.shape if len(self.shape) == 3 else (1, 1, *self.shape)

    def steps(self) -> list[nn.Module | str]:
        """A squeeze, steps, the prior and a split, at each scale; no split at the last."""
        steps: list[nn.Module | str] = []
        for flow, prior in zip(self.flows, self.priors, strict=True):
            steps += ["squeeze"] * self.squeezed + [flow, prior, "split"]
        return steps[:-1]


Model = Glow
TINY = dict(width=8, depth=1, num_scales=2)
