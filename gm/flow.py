"""What flows share: an invertible map to a standard normal, and dequantisation.

log P(x) = log E_u[p_Y(y)] + log_volume, with log p_Y(y) = log N(z; 0, I) + log|dz/dy| and
y the dequantised x. One draw of u gives the log of an unbiased estimate of P(x).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from gm.likelihood import dequantize, normal_log_prob, quantize, sum_dims
from gm.model import LikelihoodModel
from gm.spec import Estimate


class FlowModel(LikelihoodModel):
    """Base of models with `forward(y) -> (z, log_det)` and `inverse(z) -> y`."""

    estimate: ClassVar[Estimate] = Estimate.WEIGHT

    def forward(
        self, y: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Y [B, *shape] in [-1, 1) -> (z [B, D], log_det [B] of dz/dy), float32."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def inverse(self, z: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """Z [B, D] -> y [B, *shape]."""
        raise TypeError(f"{type(self).__name__} defines no inverse")

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log of an unbiased estimate of P(x), [B]."""
        y, log_volume = dequantize(self.make_rng("sample"), x, self.num_values)
        z, log_det = self.forward(y, cond, train=train)
        log_pz = sum_dims(normal_log_prob(z))
        terms = {"base": log_pz, "log_det": log_det, "volume": log_volume}
        return log_pz + log_det + log_volume, terms

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws z ~ N(0, temperature^2 I), inverts, and takes the integer cell."""
        key = self.make_rng("sample")
        z = temperature * jax.random.normal(key, (num_samples, self.num_dims))
        return quantize(self.inverse(z, cond), self.num_values).astype(jnp.int32)
