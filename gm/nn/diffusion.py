"""What a variational diffusion model (Kingma et al. 2021) is told, and its schedule."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.likelihood import scale


def sinusoids(t: jax.Array, width: int) -> jax.Array:
    """Embeds numbers [B] in [B, width], width even (Vaswani et al. 2017)."""
    half = width // 2
    frequency = jnp.exp(jnp.arange(half) * (-math.log(10000.0) / max(half - 1, 1)))
    angles = t[:, None] * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def value_waves(z: jax.Array, num_values: int) -> jax.Array:
    """Waves of periods of one and two values (appendix C): [..., C] -> [..., 4 C]."""
    low, second = scale(jnp.arange(2), num_values)
    v = (z - low) / (second - low)  # the integer, where there is no noise
    angles = math.pi * jnp.concatenate([v, 2 * v], axis=-1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class NoiseSchedule(nn.Module):
    """gamma(t) = -log SNR, which rises between learnt ends: t [...] -> [...]."""

    low: float
    high: float
    units: int  # of the monotone network; 0: linear

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Float32, in float32."""
        constant = nn.initializers.constant
        start = self.param("start", constant(self.low), ())
        # softplus keeps the ends in order, and is the identity for all but small ones.
        width = self.high - self.low
        raw = width + math.log(-math.expm1(-width))  # log(e^width - 1)
        span = nn.softplus(self.param("span", constant(raw), ()))
        if not self.units:
            return start + span * t
        normal, size = nn.initializers.normal(), (self.units,)
        slope, offset, weight = (
            self.param(name, normal, size) for name in ("slope", "offset", "weight")
        )

        def rise(t):  # t + l3(sigmoid(l2(t))) of appendix H, with weights above 0
            waves = nn.sigmoid(jnp.abs(slope) * (2 * t[..., None] - 1) + offset)
            return t + (jnp.abs(weight) * waves).mean(-1)

        low, high = rise(jnp.zeros(())), rise(jnp.ones(()))
        return start + span * (rise(t) - low) / (high - low)
