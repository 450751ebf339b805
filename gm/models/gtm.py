"""GTM: a mixture whose components lie on a curve (Bishop, Svensen & Williams 1998).

A latent-variable model summed exactly: z takes M equally spaced values in (0, 1), and one
network makes the parameters of independent symbols of each,

  P(x) = sum_k p(k | cond) prod_d p(x_d | network(z_k, cond)).

Neighbours on the curve are alike from the start, so that what varies smoothly (the angle
that a solid is seen from) is laid out in order, whatever the condition; components of
`mixture` that each went its own way would have to be told apart for every condition anew.
It is autoregressive in closed form, as `mixture` is.

Deviations from the paper: a line of points, not a grid in the plane; a residual MLP, as in
density networks (MacKay 1995), not radial basis functions; trained by gradients, not EM;
the weights p(k | cond) are learnt; symbols are integers, not reals with Gaussian noise.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.models.mixture import Mixture
from gm.models.vae import ResidualBlock
from gm.nn.conditioning import CondEmbedding

_NUM_FREQUENCIES = 3  # of the curve's coordinate: a smooth curve


class GTM(Mixture):
    """A mixture of M points on a curve through the space of parameters."""

    num_components: int = 16
    width: int = 256  # of the network
    depth: int = 2  # residual blocks

    def setup_components(self) -> None:
        """The network that makes the parameters of all points."""
        self.embed = CondEmbedding(self.cond, self.width)
        self.stem = nn.Dense(self.width)
        block = (0.0, jnp.dtype("float32"))  # without dropout
        self.blocks = [ResidualBlock(*block) for _ in range(self.depth)]
        self.norm = nn.LayerNorm()
        self.head = nn.Dense(self.num_dims * self.num_params, use_bias=False)

    def components(self, cond: jax.Array | None = None) -> jax.Array:
        """Parameters of the points, [B, M, D, P]; B is 1 without a condition."""
        z = (jnp.arange(self.num_components) + 0.5) / self.num_components
        angles = math.pi * z[:, None] * jnp.arange(1, 1 + _NUM_FREQUENCIES)
        line = 4 * z[:, None] - 2  # about as large as a normal variable
        curve = jnp.concatenate([line, jnp.sin(angles), jnp.cos(angles)], axis=1)
        c = self.embed(cond)[:, None]  # [B, 1, width]
        h = self.stem(curve) + c
        for block in self.blocks:
            h = block(h, c, False)
        out = self.head(nn.silu(self.norm(h)))
        out = out.reshape(*h.shape[:2], self.num_dims, self.num_params)
        return self.spread * out + self.shared

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """Log p(k | cond) [B, M], and the components [B, M, D, P]."""
        table = self.components(cond)
        table = jnp.broadcast_to(table, (batch_size, *table.shape[1:]))
        return super().init_cache(batch_size, cond), table

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """The posterior is updated by the previous symbol; the components stay."""
        log_posterior, table = cache

        def params_at(d):
            return table[:, :, d]

        log_posterior, params = self._advance(log_posterior, params_at, index, previous)
        return (log_posterior, table), params


Model = GTM
TINY = dict(num_components=3, width=8, depth=1)
