"""Noise within the cell of an integer, learned: variational dequantisation.

For y = x + u with u in (0, 1)^D of a density q(u|x) > 0 (Ho et al. 2019, section 3.1),

  P(x) = integral of p_Y(x + u) du = E_q[p_Y(x + u) / q(u|x)],

so one draw of u gives the log of an unbiased estimate of P(x), and a better q one of less
variance.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.likelihood import scale, sum_dims
from gm.nn.conditioning import CondEmbedding, grid_of
from gm.nn.coupling import Conditioner, mask
from gm.spec import CondSpec

_BOUND = 0.34  # of a log scale; two of them are less than log 2


class VariationalDequantizer(nn.Module):
    """u = sigmoid(h), h by affine couplings of logistic noise given x.

    The first step moves each entry as x says; two more move one half of the entries as
    x and the other half say, and conversely. It starts as uniform noise.

    Logistic noise, and scales above 1/2 in all, where Ho et al. (2019) have normal noise:
    q(u|x) goes to zero at the border of the cell slower than u, and the weights
    p_Y(x + u) / q(u|x) have a variance. Under a normal they have none.
    """

    spec: CondSpec | None
    num_values: int
    width: int = 32
    depth: int = 1
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        key: jax.Array,
        x: jax.Array,
        cond: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """X [B, *shape] integers -> (u [B, *shape] in [0, 1], log q(u|x) [B])."""
        embed = CondEmbedding(self.spec, self.width, self.dtype, grid_of(x.shape[1:]))
        embedded = embed(cond)
        v = scale(x, self.num_values)
        image, channels = x.ndim == 4, x.shape[-1]
        kind = "checkerboard" if image else "half"
        kept = [jnp.asarray(mask(kind, parity, x.shape[1:])) for parity in (0, 1)]
        h = jax.random.logistic(key, x.shape)
        log_q = _log_slope(h)  # of logistic noise: log sigmoid'(h)
        for m in (0 * kept[0], *kept):
            conditioner = Conditioner(
                2 * channels,
                self.width,
                self.depth,
                image,
                self.dropout_rate,
                self.dtype,
            )
            # Of bounded inputs, lest the tails of some entries move the others far.
            seen = jnp.concatenate([v, m * (2 * jax.nn.sigmoid(h) - 1)], axis=-1)
            out = conditioner(seen, embedded, train).astype(jnp.float32)
            s, t = jnp.split(out, 2, axis=-1)
            # Two steps move an entry: the product of their scales is above 1/2.
            s = (1 - m) * _BOUND * jnp.tanh(s / _BOUND)
            h = h * jnp.exp(s) + (1 - m) * t
            log_q -= s
        return jax.nn.sigmoid(h), sum_dims(log_q - _log_slope(h))


def _log_slope(h):
    """Log of the derivative of the sigmoid at h."""
    return jax.nn.log_sigmoid(h) + jax.nn.log_sigmoid(-h)
