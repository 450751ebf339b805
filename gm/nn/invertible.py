"""Invertible layers that several flows use.

A layer is a module (h, cond, inverse=False, train=False) -> (h, log_det [B]), with cond
[B or 1, width] embedded and log_det of the direction that was asked for, all in float32.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class ActNorm(nn.Module):
    """A learned scale and shift per channel: z = h exp(log_gain) + shift.

    Parameters come from a key, not from a batch of data (Kingma & Dhariwal 2018, section
    3.1, normalise the first batch): it starts as what inputs of a known mean square need.
    """

    mean_square: float = 1.0  # of the inputs at the start
    shifted: bool = True  # or no shift

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, ..., C] -> ([B, ..., C], log_det [B])."""
        channels = h.shape[-1]
        start = nn.initializers.constant(-math.log(self.mean_square) / 2)
        log_gain = self.param("log_gain", start, (channels,))
        shift = jnp.zeros(channels)
        if self.shifted:
            shift = self.param("shift", nn.initializers.zeros, (channels,))
        log_det = jnp.full(h.shape[:1], log_gain.sum() * (h[0].size // channels))
        if inverse:
            return (h - shift) * jnp.exp(-log_gain), -log_det
        return h * jnp.exp(log_gain) + shift, log_det


class Repeated(nn.Module):
    """Layers of one kind in a row, each with its own parameters: [length, ...] leaves.

    A loop, so that what is compiled does not grow with their number.
    """

    layer: nn.Module  # one of them
    length: int

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, ...] -> ([B, ...], log_det [B])."""

        def body(layer, h, _):
            return layer(h, cond, inverse=inverse, train=train)

        loop = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.length,
            reverse=inverse,
        )
        h, log_dets = loop(self.layer, h, None)
        return h, log_dets.sum(0)
