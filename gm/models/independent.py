"""Independent symbols: log P(x) = sum_d log P(x_d | cond).

The floor that every other model must beat: fitted to the end, its bits are the sum of the
symbols' marginal entropies. A table over the values up to 32 values, else a mixture of
discretized logistics (Salimans et al. 2017), for each symbol.

Deviations from the paper: its logistics are what a network says of a pixel, and share an
indicator among the channels; here they are parameters, each symbol's own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.autoregressive import AutoregressiveModel
from gm.nn.conditioning import CondShift


class Independent(AutoregressiveModel):
    """Parameters of D distributions, moved by the condition."""

    width: int = 32  # of the condition's embedding
    num_mixtures: int | None = None  # None: a table up to 32 values, else 10 logistics

    @property
    def receptive_field(self) -> np.ndarray:
        """Bool [D, D]: nothing depends on anything."""
        return np.zeros((self.num_dims, self.num_dims), bool)

    def setup(self) -> None:
        """One distribution per symbol: uniform, or logistics that differ."""
        shape = (self.num_dims, self.num_params)
        # Equal logistics would have equal gradients, and remain one.
        init = nn.initializers.normal(0.5 if self.mixtures else 0.0)
        self.table = self.param("table", init, shape)
        self.shift = CondShift(self.cond, self.width, shape)

    def conditionals(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """X [B, D] -> parameters [B, D, P]; x is not looked at."""
        return self.init_cache(x.shape[0], cond)

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """The parameters of all symbols [B, D, P]."""
        params = self.table + self.shift(cond)
        return jnp.broadcast_to(params, (batch_size, *self.table.shape))

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Parameters [B, P] of symbol `index`."""
        return cache, jax.lax.dynamic_index_in_dim(cache, index, 1, keepdims=False)


Model = Independent
TINY = dict(width=4)
