"""Causal self-attention with rotary positions, for whole sequences and with a cache."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """Coordinates [D, A] of the symbols of an example in raster order."""
    return np.indices(shape).reshape(len(shape), -1).T


def rotary_table(positions: np.ndarray, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [T, head_dim/2] (Su et al. 2021), axes sharing the pairs.

    Args:
      positions: [T, A]; an axis along which all positions are equal gets no pairs.
      head_dim: even.
    """
    axes = [a for a in range(positions.shape[1]) if np.ptp(positions[:, a])] or [0]
    pairs = head_dim // 2
    counts = [pairs // len(axes) + (i < pairs % len(axes)) for i in range(len(axes))]
    angles = []
    for axis, count in zip(axes, counts, strict=True):
        frequency = 10000.0 ** (-np.arange(count) / max(count, 1))
        angles.append(positions[:, axis, None] * frequency)
    table = np.concatenate(angles, axis=1).astype(np.float32)
    return np.cos(table), np.sin(table)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (x_i, x_{i + head_dim/2}): x [..., T, head_dim], tables [T, ...]."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | np.ndarray
) -> jax.Array:
    """Softmax attention, heads first: q [B, H, T, d], k and v [B, H, S, d].

    `allowed` (bool, broadcast to [T, S]) says which keys a query may see. The softmax
    is in float32.
    """
    scores = jnp.einsum("bhtd,bhsd->bhts", q / math.sqrt(q.shape[-1]), k)
    scores = jnp.where(allowed, scores.astype(jnp.float32), -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, v)


class CausalSelfAttention(nn.Module):
    """Multi-head attention where position t sees positions <= t.

    Queries and keys are RMS-normalised (QK-norm, Dehghani et al. 2023) and rotated.
    """

    num_heads: int
    shape: tuple[int, ...]  # of an example: its symbols in raster order
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """H [B, T, width] -> [B, T, width], and the cache.

        Without a cache the T positions see one another; with one, T = 1 and the cache
        holds keys and values [B, heads, D, head_dim] of the positions before `index`.
        """
        batch, length, width = h.shape
        head_dim = width // self.num_heads
        qkv = nn.Dense(3 * width, use_bias=False, dtype=self.dtype, name="qkv")(h)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, head_dim)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [B, heads, T, head_dim]
        q = nn.RMSNorm(dtype=self.dtype, name="norm_q")(q)
        k = nn.RMSNorm(dtype=self.dtype, name="norm_k")(k)
        table = rotary_table(coordinates(self.shape), head_dim)
        cos, sin = jnp.asarray(table[0]), jnp.asarray(table[1])
        if cache is None or index is None:
            q = rotate(q, cos[:length], sin[:length])
            k = rotate(k, cos[:length], sin[:length])
            out = attend(q, k, v, np.tri(length, dtype=bool))
        else:
            q = rotate(q, cos[index][None], sin[index][None])
            k = rotate(k, cos[index][None], sin[index][None])
            keys = jax.lax.dynamic_update_slice_in_dim(cache[0], k, index, axis=2)
            values = jax.lax.dynamic_update_slice_in_dim(cache[1], v, index, axis=2)
            cache = (keys, values)
            out = attend(q, keys, values, jnp.arange(keys.shape[2]) <= index)
        out = out.transpose(0, 2, 1, 3).reshape(batch, length, width)
        out = nn.Dense(width, use_bias=False, dtype=self.dtype, name="out")(out)
        return out, cache
