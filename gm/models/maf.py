"""MAF: masked autoregressive flow (Papamakarios et al. 2017).

An example is a vector of D entries. A layer is an autoregressive model with normal
conditionals, seen as a map (paper, eq. 3 to 5), with (mu, alpha) from one pass of a MADE:

  z_d = (h_d - mu_d(h_<d)) exp(-alpha_d(h_<d)),      log|det| = -sum_d alpha_d.

After each layer the order is reversed. The inverse has to go entry by entry, at the cost
of one pass in all: as in MADE, the first hidden layer grows by an entry. Or it iterates all
entries at once until none moves (inversion=jacobi): passes, but far fewer than D.

Deviations from the paper: a learned scale and shift per entry in place of batch
normalisation, whose value would depend on an example's neighbours; alpha is bounded by a
scaled tanh; SiLU for ReLU; the normal quantile function in place of a logit that leaves
a margin; the base is normal, not a mixture; layers start as the identity.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.flow import MultiScaleFlow
from gm.likelihood import sum_dims
from gm.nn.conditioning import CondEmbedding
from gm.nn.invertible import ActNorm, Repeated, check_inversion, fixed_point
from gm.nn.masked import MaskedDense, as_degrees, even_degrees


class MaskedAffine(nn.Module):
    """ActNorm, an autoregressive affine map, and a reversal of the entries."""

    num_dims: int
    width: int
    depth: int
    lowest_degree: int  # of hidden units: 0 where they have a condition to tell
    dropout_rate: float
    dtype: jnp.dtype
    inversion: str = "sequential"  # or "jacobi"

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
        invert = self._jacobi if self.inversion == "jacobi" else self._sequential
        h, alpha = invert(h[:, ::-1], cond)
        h, log_gain = self.actnorm(h, cond, inverse=True)
        return h, sum_dims(alpha) + log_gain

    def _sequential(self, z, cond):
        """(h, alpha) [B, D], entry by entry: O(width) for each if there is one layer."""
        first, size = self.layers[0], jnp.split(self.size, 2)

        def body(pre, given):
            index, z_d, mean_size, bound = given
            out = pre.astype(self.dtype)
            for layer in self.layers[1:]:
                out = layer(nn.silu(out))
            out = nn.silu(out)
            mean, alpha = (
                self.head.columns(out, start, 1)[:, 0].astype(jnp.float32)
                for start in (index, index + self.num_dims)
            )
            alpha = jnp.tanh(alpha) * bound
            h_d = z_d * jnp.exp(alpha) + mean * mean_size
            seen = h_d[:, None].astype(self.dtype) @ first.rows(index, 1)
            return pre + seen.astype(jnp.float32), (h_d, alpha)

        # float32, because it is summed over all entries.
        pre = (first.offset() + cond).astype(jnp.float32)
        pre = jnp.broadcast_to(pre, (z.shape[0], self.width))
        given = (jnp.arange(self.num_dims), z.T, *size)
        _, (h, alpha) = jax.lax.scan(body, pre, given)
        return h.T, alpha.T

    def _jacobi(self, z, cond):
        """The same, of all entries at once."""

        def update(h):
            mean, alpha = self._moments(h, cond)
            return z * jnp.exp(alpha) + mean

        h = fixed_point(update, z, self.num_dims)
        return h, self._moments(h, cond)[1]


class MAF(MultiScaleFlow):
    """Autoregressive affine maps of vectors; images are flattened."""

    width: int = 512
    depth: int = 1  # hidden layers of a MADE, at least 1
    num_layers: int = 5
    dropout_rate: float = 0.0
    inversion: str = "sequential"  # or "jacobi"
    evaluation_fields: ClassVar[tuple[str, ...]] = ("inversion",)

    def setup(self) -> None:
        """Layers, all alike since each ends by reversing its output."""
        check_inversion(self.inversion)
        layer = MaskedAffine(
            self.num_dims,
            self.width,
            self.depth,
            0 if self.cond else 1,
            self.dropout_rate,
            self.dtype,
            self.inversion,
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
