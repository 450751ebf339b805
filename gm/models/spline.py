"""Neural spline flow: rational-quadratic couplings (Durkan et al. 2019).

A coupling keeps the entries of h under a mask and takes each of the others through a
spline, whose knots are functions of what is kept. Between knots k and k + 1, of width w,
height v and slopes d_k, d_(k+1), with s = v / w and u in [0, 1] the place between them
(paper, eq. 4 and 5):

  z = z_k + v (s u^2 + d_k u (1 - u)) / e,    e = s + (d_(k+1) + d_k - 2 s) u (1 - u)
  dz/dh = s^2 (d_(k+1) u^2 + 2 s u (1 - u) + d_k (1 - u)^2) / e^2.

Each spline takes [-1, 1] onto itself, the range of the data, so no mass lies outside;
at the end the normal quantile function takes the cube to R^D. The couplings and scales
are those of RealNVP.

Deviations from the paper: no tails beyond the interval, and slopes are free at its ends;
no 1x1 convolutions or actnorm, which would leave the cube.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.errors import InputError
from gm.flow import MultiScaleFlow, from_normal, to_normal
from gm.likelihood import sum_dims
from gm.nn.conditioning import CondEmbedding, grid_of
from gm.nn.coupling import Conditioner, arrange, kinds, mask

MIN_SIZE = 1e-3  # of a bin, as a part of the interval, and of a slope
MAX_BINS = 500  # half of the interval is left to be divided as the network says


def _knots(logits):
    """[..., K] -> widths [..., K] and left ends [..., K] of the bins of [-1, 1]."""
    count = logits.shape[-1]
    part = MIN_SIZE + (1 - MIN_SIZE * count) * jax.nn.softmax(logits)
    # A product, since a cumulative sum takes long to compile and to run.
    upto = np.triu(np.ones((count, count), np.float32))
    right = jnp.matmul(part, upto, precision="highest")
    return 2 * part, 2 * (right - part) - 1


def rational_quadratic(
    h: jax.Array, params: jax.Array, inverse: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Takes each h in [-1, 1] through its spline, or back.

    Args:
      h: [...].
      params: [..., 3 K + 1], unbounded: widths, heights and slopes; all zero is the
        identity.
      inverse: back.

    Returns:
      [...] and the log-slope of the direction that was asked for.
    """
    count = (params.shape[-1] - 1) // 3
    width, left = _knots(params[..., :count])
    height, low = _knots(params[..., count : 2 * count])
    one = math.log(math.expm1(1 - MIN_SIZE))  # where the slope is one
    slope = MIN_SIZE + jax.nn.softplus(params[..., 2 * count :] + one)
    ends = low if inverse else left
    index = (h[..., None] >= ends[..., 1:]).sum(-1)
    chosen = jax.nn.one_hot(index, count)
    table = jnp.stack([width, left, height, low, slope[..., :-1], slope[..., 1:]])
    w, x0, v, z0, d0, d1 = (table * chosen).sum(-1)
    s = v / w
    bend = d1 + d0 - 2 * s
    if inverse:  # the root of a u^2 + b u + c that lies in [0, 1]; paper, eq. 29
        rise = h - z0
        a, b, c = v * (s - d0) + rise * bend, v * d0 - rise * bend, -s * rise
        root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0))
        u = jnp.clip(2 * c / (-b - root), 0, 1)
        out = x0 + u * w
    else:  # no clip: where rounding takes u past 1, the gradient would be lost
        u = (h - x0) / w
        out = None
    e = s + bend * u * (1 - u)
    if out is None:
        out = z0 + v * (s * u**2 + d0 * u * (1 - u)) / e
    numerator = d1 * u**2 + 2 * s * u * (1 - u) + d0 * (1 - u) ** 2
    log_slope = 2 * jnp.log(s) + jnp.log(numerator) - 2 * jnp.log(e)
    return out, -log_slope if inverse else log_slope


class SplineCoupling(nn.Module):
    """Splines of the entries that the mask does not keep."""

    kind: str
    parity: int
    num_bins: int
    width: int
    depth: int
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
        """[B, ..., C] in [-1, 1] -> (the same, log_det [B])."""
        m = jnp.asarray(mask(self.kind, self.parity, h.shape[1:]))
        conditioner = Conditioner(
            h.shape[-1] * (3 * self.num_bins + 1),
            self.width,
            self.depth,
            h.ndim == 4,
            self.dropout_rate,
            self.dtype,
        )
        params = conditioner(h * m, cond, train).astype(jnp.float32)
        out, log_slope = rational_quadratic(h, params.reshape(*h.shape, -1), inverse)
        return jnp.where(m > 0, h, out), sum_dims((1 - m) * log_slope)


class NeuralSplineFlow(MultiScaleFlow):
    """Spline couplings; multi-scale where the shape is an image."""

    preprocessing: str = "identity"
    width: int = 64
    depth: int = 2  # residual blocks in a coupling's network
    num_couplings: int = 4  # of each kind at each scale; of all for vectors
    max_halvings: int | None = None  # of the resolution; None: while 2 pixels are left
    num_bins: int = 8
    dropout_rate: float = 0.0

    def setup(self) -> None:
        """One list of couplings in the order of the forward pass."""
        if self.preprocessing != "identity":
            raise InputError(
                f"--set=preprocessing={self.preprocessing}: the splines are on the "
                "data's range itself; leave it at identity"
            )
        if not 1 <= self.num_bins <= MAX_BINS:
            raise InputError(f"--set=num_bins={self.num_bins}: give 1 to {MAX_BINS}")
        args = (self.width, self.depth, self.dropout_rate, self.dtype)
        self.couplings = [
            SplineCoupling(kind, parity, self.num_bins, *args)
            for kind, parity in kinds(self.shape, self.num_couplings, self.max_halvings)
        ]
        self.embed = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )

    def steps(self) -> list[Any]:
        """`num_couplings` of each kind in `plan`."""
        return arrange(self.shape, self.couplings, self.max_halvings)

    def forward(
        self, y: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Y [B, *shape] in [-1, 1) -> (z [B, D], log_det [B])."""
        h, log_det = super().forward(y, cond, train=train)
        z, log_slope = to_normal(h)
        return z, log_det + sum_dims(log_slope)

    def inverse(self, z: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """Z [B, D] -> y [B, *shape]."""
        return super().inverse(from_normal(z), cond)


Model = NeuralSplineFlow
TINY = dict(width=8, depth=0, num_couplings=1, num_bins=3)
