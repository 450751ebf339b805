"""The one block that embeds whatever a data set conditions on."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError
from gm.nn.convolution import Conv, space_to_depth
from gm.nn.resolutions import pool, repeat
from gm.nn.symbols import symbol_features
from gm.spec import CondSpec

NUM_FREQUENCIES = 6
_SMALLEST = 4  # side down to which an image is halved on its way to a vector


def is_none(spec: CondSpec, cond: jax.Array) -> jax.Array:
    """Which conditions [B, ...] stand for none: bool [B]."""
    return cond == spec.size if spec.kind == "class" else jnp.isnan(cond).any(-1)


def none_like(spec: CondSpec, cond: jax.Array) -> jax.Array:
    """As many conditions that stand for none."""
    return jnp.full_like(cond, spec.size if spec.kind == "class" else jnp.nan)


def drop(key: jax.Array, spec: CondSpec, cond: jax.Array, rate: float) -> jax.Array:
    """Conditions [B, ...], each replaced by none with probability `rate`.

    What is trained so is p(x|c) and p(x) in one network, for guidance (Ho & Salimans
    2021).
    """
    dropped = jax.random.bernoulli(key, rate, cond.shape[:1])
    dropped = dropped.reshape(-1, *[1] * (cond.ndim - 1))
    return jnp.where(dropped, none_like(spec, cond), cond)


def with_none(spec: CondSpec | None, cond: jax.Array | None) -> jax.Array:
    """Conditions [N, ...], then as many of none, [2 N, ...]: what guidance compares.

    Raises:
      InputError: the model was not trained without its condition.
    """
    if spec is None or cond is None or not spec.optional:
        raise InputError(
            "--guidance: needs a run that was also trained without its condition "
            "(train --conditional --cond_drop_rate=0.1)"
        )
    return jnp.concatenate([cond, none_like(spec, cond)])


def guide(doubled: jax.Array, guidance: float) -> jax.Array:
    """Outputs [2 N, ...] for `with_none` -> none + (1 + guidance) (given - none)."""
    given, none = jnp.split(doubled, 2)
    return none + (1 + guidance) * (given - none)


class CondEmbedding(nn.Module):
    """cond -> [B, width]; zeros [1, width] for an unconditional model.

    A class label has an embedding vector; real coordinates are scaled to [0, 1] by the
    range that the data set declares and pass through Fourier features and a small MLP
    (Tancik et al. 2020). An image passes through convolutions: to a vector, or for a
    model that has a grid of pixels to a map [B, *grid, width], which `per_position` and
    `per_symbol` lay over its features. None, where it is optional, has an embedding of
    its own.
    """

    spec: CondSpec | None
    width: int
    dtype: jnp.dtype = jnp.dtype("float32")
    grid: tuple[int, ...] | None = None  # (H, W) of the model's pixels; None: no map

    @nn.compact
    def __call__(self, cond: jax.Array | None) -> jax.Array:
        """Embeds int32 [B], float32 [B, size] or integers [B, H, W, C]."""
        if self.spec is None:
            if cond is not None:
                raise ValueError("an unconditional model was given a condition")
            return jnp.zeros((1, self.width), self.dtype)
        if cond is None:
            raise ValueError(f"the model needs its condition ({self.spec.label})")
        if not self.spec.optional:
            return self._embed(self.spec, cond)
        start = nn.initializers.normal(1 / math.sqrt(self.width))
        none = self.param("none", start, (self.width,)).astype(self.dtype)
        absent = is_none(self.spec, cond)[:, None]
        some = cond[:, None] if cond.ndim == 1 else cond
        some = jnp.where(absent, jnp.zeros_like(some), some).reshape(cond.shape)
        return jnp.where(absent, none, self._embed(self.spec, some))

    def _embed(self, spec: CondSpec, cond: jax.Array) -> jax.Array:
        """The same of conditions that are there."""
        if spec.kind == "class":
            return nn.Embed(spec.size, self.width, dtype=self.dtype)(cond)
        if spec.kind == "image":
            return ImageEmbedding(spec, self.width, self.dtype, self.grid)(cond)
        low, high = jnp.asarray(spec.low), jnp.asarray(spec.high)
        v = (cond - low) / jnp.maximum(high - low, 1e-6)  # [B, size]
        angles = math.pi * v[..., None] * 2.0 ** jnp.arange(NUM_FREQUENCIES)
        waves = [v[..., None], jnp.sin(angles), jnp.cos(angles)]
        features = jnp.concatenate(waves, -1).reshape(v.shape[0], -1)
        h = nn.Dense(self.width, dtype=self.dtype)(features)
        return nn.Dense(self.width, dtype=self.dtype)(nn.silu(h))


class ImageEmbedding(nn.Module):
    """A residual convolutional network over an image, with a learned row and column.

    The position matters: of the pixels that a coarse one is the mean of, the last in
    raster order is what the others leave.
    """

    spec: CondSpec
    width: int
    dtype: jnp.dtype
    grid: tuple[int, ...] | None

    @nn.compact
    def __call__(self, cond: jax.Array) -> jax.Array:
        """Integers [B, H, W, C] -> [B, *grid, width], or [B, width] without a grid."""
        h = symbol_features(jnp.asarray(cond, jnp.int32), self.spec.num_values, True)
        h = h.reshape(*cond.shape[:3], -1)
        if self.grid is not None:  # at the finer of the two, since means lose
            finest = [max(a, b) for a, b in zip(h.shape[1:3], self.grid, strict=True)]
            h = resample(h, tuple(finest))
        start = nn.initializers.normal(0.02)
        rows = self.param("rows", start, (h.shape[1], 1, self.width))
        columns = self.param("columns", start, (h.shape[2], self.width))
        h = Conv(self.width, dtype=self.dtype)(h) + (rows + columns).astype(self.dtype)
        branch = nn.silu(Conv(self.width, dtype=self.dtype)(nn.silu(h)))
        h = h + Conv(self.width, dtype=self.dtype)(branch)
        if self.grid is not None:
            return resample(h, self.grid)
        while min(h.shape[1:3]) >= 2 * _SMALLEST:
            height, width = (side // 2 * 2 for side in h.shape[1:3])
            h = space_to_depth(nn.silu(h)[:, :height, :width])
            h = nn.Dense(self.width, dtype=self.dtype)(h)
        h = nn.silu(h).reshape(h.shape[0], -1)
        return nn.Dense(self.width, dtype=self.dtype)(h)


def resample(h: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """[B, H, W, F] -> [B, *grid, F]: means over blocks, or each pixel repeated.

    Raises:
      ValueError: of H and a row number, or W, neither divides the other.
    """
    for axis, side in enumerate(grid, 1):
        if h.shape[axis] % side and side % h.shape[axis]:
            raise ValueError(f"{h.shape[1:3]} and {tuple(grid)}: neither divides")
    least = [min(a, b) for a, b in zip(h.shape[1:3], grid, strict=True)]
    return repeat(pool(h, (least[0], least[1])), (grid[0], grid[1]))


def per_position(cond: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """What is added to features [B, *grid, width] of an embedding: a vector or a map."""
    return cond[:, None, None] if cond.ndim == 2 else resample(cond, grid)


def per_symbol(cond: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What is added to the features [B, D, width] of the symbols of `shape`, in order."""
    if cond.ndim == 2:
        return cond[:, None]
    each = resample(cond, shape[:2]).reshape(cond.shape[0], -1, cond.shape[-1])
    return jnp.repeat(each, shape[2], axis=1)


def grid_of(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """(H, W) of images, which have pixels to lay a map over; None of sequences."""
    return shape[:2] if len(shape) == 3 else None


class CondShift(nn.Module):
    """cond -> [B, *shape], a linear map of its embedding; zeros [1, *shape] if none."""

    spec: CondSpec | None
    width: int  # of the embedding
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, cond: jax.Array | None) -> jax.Array:
        """What the condition adds to parameters of this shape, in float32."""
        h = CondEmbedding(self.spec, self.width)(cond)
        if self.spec is None:
            return jnp.zeros((1, *self.shape))
        out = nn.Dense(math.prod(self.shape), use_bias=False)(h)
        return out.reshape(-1, *self.shape)
