"""Invertible layers that several flows use.

A layer is a module (h, cond, inverse=False, train=False) -> (h, log_det [B]), with cond
[B or 1, width] embedded and log_det of the direction that was asked for, all in float32.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from gm.errors import InputError

INVERSIONS = ("sequential", "jacobi")


def check_inversion(name: str) -> None:
    """InputError if there is no such way to invert an autoregressive map."""
    if name not in INVERSIONS:
        raise InputError(f"--set=inversion={name}: give {' or '.join(INVERSIONS)}")


def fixed_point(
    update: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    num_steps: int,
    tolerance: float = 1e-5,
) -> jax.Array:
    """Solves h = update(h) of a map whose entry n depends on the n before it: Jacobi.

    All entries at once, again and again (Song et al. 2021, "Accelerating feedforward
    computation via parallel nonlinear equation solving"). After n steps the first n are
    right, and as a rule all are long before: it stops where no entry moves by more than
    `tolerance` (relative to 1 + |h|), after `num_steps`, their number, at the latest.
    """

    def goes_on(state):
        _, moved, step = state
        return ~(moved <= tolerance) & (step < num_steps)  # also where it is NaN

    def body(state):
        h, _, step = state
        new = update(h)
        return new, jnp.max(jnp.abs(new - h) / (1 + jnp.abs(h))), step + 1

    moved, step = jnp.float32(jnp.inf), jnp.int32(0)
    return jax.lax.while_loop(goes_on, body, (start, moved, step))[0]


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


@functools.cache
def rotation(channels: int) -> tuple[np.ndarray, ...]:
    """P, L, U, log|s| and sign(s) of a random rotation, float32: [C, C] and [C]."""
    rng = np.random.default_rng(channels)
    rotated = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
    p, lower, upper = scipy.linalg.lu(rotated)
    s = np.diag(upper)
    parts = p, np.tril(lower, -1), np.triu(upper, 1), np.log(np.abs(s)), np.sign(s)
    return tuple(part.astype(np.float32) for part in parts)


class InvertibleConv(nn.Module):
    """A 1x1 convolution whose matrix is kept as P (L + I) (U + diag(s))."""

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
        p, *initial, sign = rotation(channels)
        lower, upper, log_s = (
            self.param(name, lambda _, value=value: jnp.asarray(value))
            for name, value in zip(("lower", "upper", "log_s"), initial, strict=True)
        )
        lower = jnp.tril(lower, -1) + jnp.eye(channels)
        upper = jnp.triu(upper, 1) + jnp.diag(sign * jnp.exp(log_s))
        log_det = jnp.full(h.shape[:1], log_s.sum() * (h[0].size // channels))
        if not inverse:
            matrix = p @ lower @ upper
            return jnp.matmul(h, matrix.T, precision="highest"), log_det
        solve = jax.scipy.linalg.solve_triangular
        columns = jnp.matmul(p.T, h.reshape(-1, channels).T, precision="highest")
        columns = solve(lower, columns, lower=True, unit_diagonal=True)
        return solve(upper, columns).T.reshape(h.shape), -log_det


class Repeated(nn.Module):
    """Layers of one kind in a row, each with its own parameters: [length, ...] leaves.

    A loop, so that what is compiled does not grow with their number.
    """

    layer: nn.Module  # one of them
    length: int
    remat: bool = False  # reverse mode keeps their inputs alone

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
            nn.remat(body, prevent_cse=False) if self.remat else body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.length,
            reverse=inverse,
        )
        h, log_dets = loop(self.layer, h, None)
        return h, log_dets.sum(0)
