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
untrained one is uniform; no weight normalisation; one width at all scales; the default
goes down to 2 pixels a side, not 4; as many checkerboard couplings at the end as before,
not one more, and nothing is factored out just before them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.flow import CodingLayer, MultiScaleFlow
from gm.likelihood import sum_dims
from gm.nn.conditioning import CondEmbedding, grid_of
from gm.nn.coupling import Conditioner, arrange, kinds, mask, places


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
        coding: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Y -> (z, log_det [B]); with inverse=True, z -> (y, -log_det).

        With coding=True, (log_scale, shift) of what the coupling does to an entry in all,
        from the kept entries of z.
        """
        channels = y.shape[-1]
        log_gain = self.param("log_gain", nn.initializers.zeros, (channels,))
        shift = self.param("shift", nn.initializers.zeros, (channels,))
        bound = self.param("log_scale_bound", nn.initializers.ones, (channels,))
        m = jnp.asarray(mask(self.kind, self.parity, y.shape[1:]))
        if not inverse and not coding:
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
        if coding:
            return log_gain + s, shift * jnp.exp(s) + t
        gains = log_gain.sum() * (y[0].size // channels)
        if inverse:
            y = (y - t) * jnp.exp(-s)
            return (y - shift) * jnp.exp(-log_gain), -sum_dims(s) - gains
        return y * jnp.exp(s) + t, sum_dims(s) + gains


class RealNVP(MultiScaleFlow):
    """Affine couplings; multi-scale where the shape is an image."""

    width: int = 64
    depth: int = 2  # residual blocks in a coupling's network
    num_couplings: int = 4  # of each kind at each scale; of all for vectors
    max_halvings: int | None = None  # of the resolution; None: while 2 pixels are left
    dropout_rate: float = 0.0

    def setup(self) -> None:
        """One list of couplings in the order of the forward pass."""
        args = (self.width, self.depth, self.dropout_rate, self.dtype)
        self.couplings = [
            Coupling(kind, parity, *args)
            for kind, parity in kinds(self.shape, self.num_couplings, self.max_halvings)
        ]
        self.embed = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )

    def steps(self) -> list[Any]:
        """`num_couplings` of each kind in `plan`."""
        return arrange(self.shape, self.couplings, self.max_halvings)

    def coding_layers(self) -> list[CodingLayer]:
        """Two for each coupling: the gain of what it keeps, then all of the rest."""
        layers = []
        steps = places(self.shape, self.num_couplings, self.max_halvings)
        couplings = [place for place in steps if place.kind != "split"]
        for index, place in enumerate(couplings):

            def gain(model, h, cond, index=index, place=place):
                coupling = model.couplings[index]
                names = ("log_gain", "shift")
                found = [coupling.get_variable("params", name) for name in names]
                return _spread(found, place, h)

            def rest(model, h, cond, index=index, place=place):
                c = model.embed(cond)
                found = model.couplings[index](place.gather(h), c, coding=True)
                return _spread(found, place, h)

            for kept, context in ((True, gain), (False, rest)):
                layers.append(CodingLayer(place.entries(kept, self.num_dims), context))
        return layers


def _spread(values, place, h):
    """Values that broadcast to a coupling's input, at their places in [B, D] each."""
    shape = (h.shape[0], *place.where.shape)
    return [place.scatter(jnp.broadcast_to(v, shape), h.shape[1]) for v in values]


Model = RealNVP
TINY = dict(width=8, depth=1, num_couplings=2)
