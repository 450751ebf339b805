"""NICE: additive couplings and a diagonal scaling (Dinh et al. 2015).

An example is a vector of D entries. A coupling keeps the odd or the even ones, a, and
adds a function of them to the others (paper, eq. 3 and section 3.2):

  b <- b + m(a),      log|det| = 0.

After all couplings every entry has a scale of its own, z = h exp(s), log|det| = sum s
(section 3.3). The prior is logistic and independent per entry (section 3.4), or normal.

Deviations from the paper: data in [0, 1] are mapped to R^D by the quantile function of
the logistic, so that no mass lies outside and the untrained model is uniform; the paper
takes them as they are (`preprocessing=identity`, the same up to an affine map). The last
layers of the networks start at zero. A condition is added to their first layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError
from gm.flow import MultiScaleFlow
from gm.likelihood import logistic_log_prob, sum_dims
from gm.nn.conditioning import CondEmbedding
from gm.nn.invertible import ActNorm


class AdditiveCoupling(nn.Module):
    """Adds a function of every second entry to the others."""

    parity: int  # 0 or 1: the first entry that is kept
    width: int
    depth: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, D] -> ([B, D], log_det [B] = 0)."""
        kept, moved = h[:, self.parity :: 2], h[:, 1 - self.parity :: 2]
        hidden = nn.Dense(self.width, dtype=self.dtype)(kept) + cond
        for _ in range(self.depth - 1):
            hidden = nn.Dense(self.width, dtype=self.dtype)(nn.relu(hidden))
        hidden = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(hidden))
        last = nn.Dense(
            moved.shape[1], kernel_init=nn.initializers.zeros, dtype=self.dtype
        )
        shift = last(hidden).astype(jnp.float32)
        moved = moved - shift if inverse else moved + shift
        return h.at[:, 1 - self.parity :: 2].set(moved), jnp.zeros(h.shape[0])


class NICE(MultiScaleFlow):
    """Additive couplings on vectors; images are flattened."""

    preprocessing: str = "logistic"
    width: int = 1000
    depth: int = 5  # hidden layers of a coupling's network, at least 1
    num_couplings: int = 4
    prior: str = "logistic"  # or "normal"
    dropout_rate: float = 0.0

    def setup(self) -> None:
        """Couplings, which keep the even and the odd entries in turn, and the scaling."""
        if self.prior not in ("logistic", "normal"):
            raise InputError(f"--set=prior={self.prior}: it is logistic or normal")
        if self.depth < 1:
            raise InputError(f"--set=depth={self.depth}: give 1 or more")
        args = (self.width, self.depth, self.dropout_rate, self.dtype)
        count = self.num_couplings if self.num_dims > 1 else 0  # none of one entry
        self.couplings = [AdditiveCoupling(i % 2, *args) for i in range(count)]
        self.scaling = ActNorm(shifted=False)
        self.embed = CondEmbedding(self.cond, self.width, self.dtype)

    @property
    def layout(self) -> tuple[int, ...]:
        """A vector."""
        return (self.num_dims,)

    def steps(self) -> list[Any]:
        """Couplings, then the scaling."""
        return [*self.couplings, self.scaling]

    def log_base(self, z: jax.Array) -> jax.Array:
        """Log density of the prior at z [B, D], [B]."""
        if self.prior == "normal":
            return super().log_base(z)
        return sum_dims(logistic_log_prob(z))

    def sample_base(self, key: jax.Array, num_samples: int) -> jax.Array:
        """Draws z [num_samples, D] from the prior."""
        if self.prior == "normal":
            return super().sample_base(key, num_samples)
        return jax.random.logistic(key, (num_samples, self.num_dims))


Model = NICE
TINY = dict(width=8, depth=1, num_couplings=2)
