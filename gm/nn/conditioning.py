"""The one block that embeds whatever a data set conditions on."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.spec import CondSpec

NUM_FREQUENCIES = 6


class CondEmbedding(nn.Module):
    """cond -> [B, width]; zeros [1, width] for an unconditional model.

    A class label has an embedding vector; real coordinates are scaled to [0, 1] by the
    range that the data set declares and pass through Fourier features and a small MLP
    (Tancik et al. 2020).
    """

    spec: CondSpec | None
    width: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, cond: jax.Array | None) -> jax.Array:
        """Embeds int32 [B] or float32 [B, size], as the spec says."""
        if self.spec is None:
            if cond is not None:
                raise ValueError("an unconditional model was given a condition")
            return jnp.zeros((1, self.width), self.dtype)
        if cond is None:
            raise ValueError(f"the model needs its condition ({self.spec.label})")
        if self.spec.kind == "class":
            return nn.Embed(self.spec.size, self.width, dtype=self.dtype)(cond)
        low, high = jnp.asarray(self.spec.low), jnp.asarray(self.spec.high)
        v = (cond - low) / jnp.maximum(high - low, 1e-6)  # [B, size]
        angles = math.pi * v[..., None] * 2.0 ** jnp.arange(NUM_FREQUENCIES)
        waves = [v[..., None], jnp.sin(angles), jnp.cos(angles)]
        features = jnp.concatenate(waves, -1).reshape(v.shape[0], -1)
        h = nn.Dense(self.width, dtype=self.dtype)(features)
        return nn.Dense(self.width, dtype=self.dtype)(nn.silu(h))


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
