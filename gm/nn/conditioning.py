"""The one block that embeds whatever a data set conditions on."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError
from gm.spec import CondSpec

NUM_FREQUENCIES = 6


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
    (Tancik et al. 2020). None, where it is optional, has an embedding of its own.
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
        low, high = jnp.asarray(spec.low), jnp.asarray(spec.high)
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
