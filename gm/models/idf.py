"""IDF: an integer discrete flow (Hoogeboom et al. 2019).

A coupling keeps the part of x under a mask m and adds a rounded function of it to the
rest, here modulo K:

  z = x + (1 - m) round(t(m x)) mod K.

This is a bijection of {0, ..., K-1}^D, so P(x) is the base's P(z): exact, with no
dequantisation, no log-determinant and no mass outside the data's range. In training the
gradient passes the rounding as if it were not there; that of the base is of its
log-probability made linear between integers.

At a split (images) half of z is factored out, by a base that depends on the half that
goes on: a mixture of discretized logistics for each dimension.

Deviations from the paper: modulo K in place of unbounded integers; the base's gradient,
the paper's being the slope of the discretized logistic; residual networks in place of
DenseNets; no dimensions are permuted.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.likelihood import (
    discretized_logistic_mixture_log_prob,
    mixture_channels,
    scale,
    sum_dims,
)
from gm.model import LikelihoodModel
from gm.nn.conditioning import CondEmbedding
from gm.nn.coupling import Conditioner, places
from gm.spec import Estimate


class IntegerDiscreteFlow(LikelihoodModel):
    """Additive couplings on integers; multi-scale where the shape is an image."""

    width: int = 64
    depth: int = 2  # residual blocks in a coupling's network
    num_couplings: int = 4  # of each kind at each scale; of all for vectors
    max_halvings: int | None = None  # of the resolution; None: while 2 pixels are left
    num_mixtures: int = 5  # discretized logistics per dimension of the base
    dropout_rate: float = 0.0
    estimate = Estimate.EXACT
    family = "flow"

    def setup(self) -> None:
        """One network for each coupling and for each split, and what the base shares."""
        self.steps = places(self.shape, self.num_couplings, self.max_halvings)
        outputs = mixture_channels(self.num_mixtures, 1)
        self.networks = [
            Conditioner(
                features=place.where.shape[-1]
                * (outputs if place.kind == "split" else 1),
                width=self.width,
                depth=self.depth,
                convolutional=len(self.shape) == 3,
                dropout_rate=self.dropout_rate,
                dtype=self.dtype,
            )
            for place in self.steps[:-1]
        ]
        self.embed = CondEmbedding(self.cond, self.width, self.dtype)
        # One head for the base of all dimensions: it learns much faster than a table of
        # their parameters would.
        self.table = self.param(
            "table", nn.initializers.normal(1.0), (self.num_dims, self.width)
        )
        self.head = nn.Dense(
            outputs, kernel_init=nn.initializers.zeros, bias_init=self._spread
        )

    def _spread(self, key, shape, dtype=jnp.float32):
        """Components all over the range: (logit, mean, log_scale) of each."""
        mean = jnp.linspace(-1, 1, self.num_mixtures + 2, dtype=dtype)[1:-1]
        return jnp.stack([0 * mean, mean, 0 * mean - 1], axis=-1).reshape(shape)

    def _network(self, index, z, cond, train):
        """What step `index` makes of the entries that it keeps, float32."""
        place = self.steps[index]
        h = scale(place.gather(z), self.num_values) * place.mask
        return self.networks[index](h, cond, train).astype(jnp.float32)

    def _shift(self, index, z, cond, train=False):
        """What a coupling adds to z [B, D], before rounding; cond is embedded."""
        place = self.steps[index]
        t = self._network(index, z, cond, train) * (1 - place.mask)
        # In a tenth of the network's units: a shift that is learnt too fast is noise to
        # the base, since rounding hides from the gradient what it does.
        return place.scatter(t * ((self.num_values - 1) / 20), self.num_dims)

    def _base(self, index, z, cond, train=False):
        """Parameters [B or 1, n, P] of what a split factors out; cond is embedded."""
        place = self.steps[index]
        h = self.table[place.changed] + cond[:, None].astype(jnp.float32)
        params = self.head(nn.silu(h))
        if place.mask.any():
            more = self._network(index, z, cond, train)
            more = more.reshape(*more.shape[:-1], place.where.shape[-1], -1)
            params += more[:, place.mask == 0]
        return params

    def _centre(self, z):
        """Makes 0, where a well predicted dimension ends, the middle of the range."""
        return (z + self.num_values // 2) % self.num_values

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) [B], exactly."""
        c = self.embed(cond)
        z = x.reshape(x.shape[0], -1).astype(jnp.float32)  # integers throughout
        rest = jnp.zeros_like(z)  # how far rounding went down, in all
        log_pz = jnp.zeros(x.shape[0])
        for index, place in enumerate(self.steps):
            if place.kind == "split":
                params = self._base(index, z, c, train)
                changed = place.changed
                log_pz += self._log_base(params, z[:, changed], rest[:, changed])
            else:
                t = self._shift(index, z, c, train)
                rounding = jax.lax.stop_gradient(t - jnp.round(t))
                z = (z + (t - rounding)) % self.num_values  # exactly an integer
                rest += rounding
        return log_pz, {"base": log_pz}

    def _log_base(self, params, z, rest):
        """Log-probability [B] of z [B, n] under the base, with a gradient for z.

        The gradient is that of a log-probability which is linear between integers, at
        z + rest: a shift settles at the best integer near it, away from where rounding
        would change. The slope of a narrow logistic says nothing of the next integer.
        """
        here = jax.lax.stop_gradient(z)
        side = jnp.where(rest < 0, -1, 1)
        log_pz = self._log_pmf(params, here)
        slope = side * (self._log_pmf(params, here + side) - log_pz)
        return sum_dims(log_pz + jax.lax.stop_gradient(slope) * (z - here))

    def _log_pmf(self, params, z):
        """Elementwise, of z modulo K: params [B or 1, n, P], z [B, n] -> [B, n]."""
        return discretized_logistic_mixture_log_prob(
            params, self._centre(z)[..., None], self.num_values
        )

    def coding_steps(self) -> list[tuple[str, np.ndarray]]:
        """What the codec goes through, in order, and the entries that each is about.

        ("shift", changed): `coding_shift` is added to these. ("base", factored out):
        these are coded by `coding_logits`, given what remains.
        """
        names = {"split": "base"}
        return [
            (names.get(p.kind, "shift"), p.changed)
            for p in places(self.shape, self.num_couplings, self.max_halvings)
        ]

    def coding_shift(
        self, index: int, z: jax.Array, cond: jax.Array | None = None
    ) -> jax.Array:
        """The integers [B, D] that step `index` adds, from what it keeps of z."""
        return jnp.round(self._shift(index, z, self.embed(cond))).astype(jnp.int32)

    def coding_logits(
        self, index: int, z: jax.Array, cond: jax.Array | None = None
    ) -> jax.Array:
        """Log-probabilities [B, n, K] of what step `index` factors out of z [B, D]."""
        params = self._base(index, z, self.embed(cond))
        params = jnp.broadcast_to(params, (z.shape[0], *params.shape[1:]))
        values = self._centre(jnp.arange(self.num_values))
        return discretized_logistic_mixture_log_prob(
            params[..., None, :], values[:, None], self.num_values
        )

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws z from the base, at a temperature, and undoes the couplings."""
        keys = jax.random.split(self.make_rng("sample"), len(self.steps))
        z = jnp.zeros((num_samples, self.num_dims), jnp.int32)
        for index, place in reversed(list(enumerate(self.steps))):
            if place.kind == "split":
                logits = self.coding_logits(index, z, cond) / temperature
                part = jax.random.categorical(keys[index], logits).astype(jnp.int32)
                z = z.at[:, place.changed].set(part)
            else:
                z = (z - self.coding_shift(index, z, cond)) % self.num_values
        return z.reshape(num_samples, *self.shape)


Model = IntegerDiscreteFlow
TINY = dict(width=8, depth=1, num_couplings=2, num_mixtures=2)
