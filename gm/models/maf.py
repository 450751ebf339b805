"""MAF: masked autoregressive flow (Papamakarios et al. 2017).

An example is a vector of D entries. A layer is an autoregressive model with normal
conditionals, seen as a map (paper, eq. 3 to 5), with (mu, alpha) from one pass of a MADE:

  z_d = (h_d - mu_d(h_<d)) exp(-alpha_d(h_<d)),      log|det| = -sum_d alpha_d.

After each layer the order is reversed. The inverse has to go entry by entry: D passes.

Deviations from the paper: a learned scale and shift per entry in place of batch
normalisation, whose value would depend on an example's neighbours; alpha is bounded by a
scaled tanh; SiLU for ReLU; the normal quantile function in place of a logit that leaves
a margin; the base is normal, not a mixture; layers start as the identity.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.flow import MultiScaleFlow
from gm.likelihood import sum_dims
from gm.nn.conditioning import CondEmbedding
from gm.nn.invertible import ActNorm, Repeated
from gm.nn.masked import MaskedDense, as_degrees, even_degrees


class MaskedAffine(nn.Module):
    """ActNorm, an autoregressive affine map, and a reversal of the entries."""

    num_dims: int
    width: int
    depth: int
    lowest_degree: int  # of hidden units: 0 where they have a condition to tell
    dropout_rate: float
    dtype: jnp.dtype

    def setup(self) -> None:
        """The MADE's layers."""
        order = np.arange(1, self.num_dims + 1)
        hidden = even_degrees(self.width, self.num_dims, self.lowest_degree)
        degrees = [order, *[hidden] * self.depth, np.tile(order, 2)]
        rows = [as_degrees(d[None]) for d in degrees]
        self.layers = [
            MaskedDense(rows[i], rows[i + 1], dtype=self.dtype)
            for i in range(self.depth)
        ]
        self.head = MaskedDense(rows[-2], rows[-1], strict=True, dtype=self.dtype)
        # The head's outputs are multiplied by this: the map starts as the identity.
        self.size = self.param("size", nn.initializers.zeros, (2 * self.num_dims,))
        self.actnorm = ActNorm()
        self.dropout = nn.Dropout(self.dropout_rate)

    def _moments(self, h, cond, train=False):
        """Both moments of each entry, given those before it: [B, D], float32."""
        out = self.layers[0](h) + cond
        for layer in self.layers[1:]:
            out = layer(self.dropout(nn.silu(out), deterministic=not train))
        out = self.head(self.dropout(nn.silu(out), deterministic=not train))
        mean, alpha = jnp.split(out.astype(jnp.float32), 2, axis=-1)
        mean_size, bound = jnp.split(self.size, 2)
        return mean * mean_size, jnp.tanh(alpha) * bound

    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, D] -> ([B, D], log_det [B])."""
        if not inverse:
            h, log_gain = self.actnorm(h, cond)
            mean, alpha = self._moments(h, cond, train)
            h = (h - mean) * jnp.exp(-alpha)
            return h[:, ::-1], log_gain - sum_dims(alpha)
        z = h[:, ::-1]

        def update(_, h):  # after n of these the first n entries are right
            mean, alpha = self._moments(h, cond)
            return z * jnp.exp(alpha) + mean

        h = jax.lax.fori_loop(0, self.num_dims, update, jnp.zeros_like(z))
        log_det = sum_dims(self._moments(h, cond)[1])
        h, log_gain = self.actnorm(h, cond, inverse=True)
        return h, log_det + log_gain


class MAF(MultiScaleFlow):
    """Autoregressive affine maps of vectors; images are flattened."""

    width: int = 512
    depth: int = 1  # hidden layers of a MADE, at least 1
    num_layers: int = 5
    dropout_rate: float = 0.0

    def setup(self) -> None:
        """Layers, all alike since each ends by reversing its output."""
        layer = MaskedAffine(
            self.num_dims,
            self.width,
            self.depth,
            0 if self.cond else 1,
            self.dropout_rate,
            self.dtype,
            parent=None,
        )
        self.layers = Repeated(layer, self.num_layers)
        self.embed = CondEmbedding(self.cond, self.width, self.dtype)

    @property
    def layout(self) -> tuple[int, ...]:
        """A vector."""
        return (self.num_dims,)

    def steps(self) -> list[Any]:
        """The layers."""
        return [self.layers]


Model = MAF
TINY = dict(width=12, num_layers=2)
