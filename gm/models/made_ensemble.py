"""MADE over several orders and masks (Germain et al. 2015, sections 4.2 and 4.3).

One set of weights under R = num_orders num_masks fixed masks, each a distribution p_r in
an order of its own; the model is their mixture, P(x) = 1/R sum_r p_r(x), exactly. It
has no conditionals of reasonable cost (those in an order other than its own are not at
hand for p_r), so it is not an autoregressive model, unlike MADE.

Training draws one r per step, as the paper does: E_r[log p_r(x)] <= log P(x), so
log_prob(train=True) is a bound in expectation over r (that of one r may lie above), while
evaluation is exact at R times the cost.

Deviations from the paper: SiLU for ReLU; symbols of up to 32 values are given one-hot;
r is drawn, not cycled; connectivity weights are left out.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gm.likelihood import sum_dims
from gm.models.made import MaskedNetwork


class MADEEnsemble(MaskedNetwork):
    """The mixture over orders and masks."""

    num_orders: int = 8
    num_masks: int = 1  # for each order
    mask_seed: int = 0

    def degrees(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Random orders, and degrees of the hidden units, of which none is below all."""
        rng = np.random.default_rng(self.mask_seed)
        orders = [rng.permutation(self.num_dims) + 1 for _ in range(self.num_orders)]
        places = np.repeat(orders, self.num_masks, axis=0)
        last = max(self.num_dims - 1, self.lowest_degree)
        low, layers = np.full((len(places), 1), self.lowest_degree), []
        for _ in range(self.depth):
            # Uniform from the lowest degree of the layer before it to D - 1.
            size = (len(places), self.width)
            layers.append(rng.integers(low, last, size, endpoint=True))
            low = layers[-1].min(axis=1, keepdims=True)
        return places, layers

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) [B]; in training log p_r(x) for one r drawn for the batch."""
        x = x.reshape(x.shape[0], self.num_dims)
        count = self.num_orders * self.num_masks

        def member(which):
            params = self.parameters(x, cond, which, train=train)
            return sum_dims(self.symbol_log_prob(params, x))

        if train:
            log_px = member(jax.random.randint(self.make_rng("sample"), (), 0, count))
        else:
            # The first outside the loop, where Flax may create the parameters.
            first = member(0)
            rest = jax.lax.map(member, jnp.arange(1, count))
            log_px = jnp.concatenate([first[None], rest])
            log_px = jax.nn.logsumexp(log_px, axis=0) - math.log(count)
        return log_px, {"symbols": log_px}

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws r for each example, and its symbols in the order of p_r."""
        key_which, key = jax.random.split(self.make_rng("sample"))
        places = jnp.asarray(self.degrees()[0] - 1)  # [R, D]
        order = jnp.argsort(places, axis=1)
        which = jax.random.randint(key_which, (num_samples,), 0, len(places))

        @jax.vmap  # each example under a mask of its own
        def look(pre, previous, which, index):
            before = order[which, jnp.maximum(index - 1, 0)]
            seen = self.add(pre[None], before, previous[None], which)[0]
            pre = jnp.where(index > 0, seen, pre)
            return pre, self.read(pre[None], order[which, index], which)[0]

        def body(carry, index):
            indices = jnp.full(num_samples, index)
            pre, params = look(*carry, which, indices)
            logits = self.symbol_logits(params) / temperature
            x = jax.random.categorical(jax.random.fold_in(key, index), logits)
            return (pre, x.astype(jnp.int32)), x.astype(jnp.int32)

        carry = (self.start(num_samples, cond), jnp.zeros((num_samples,), jnp.int32))
        _, drawn = jax.lax.scan(body, carry, jnp.arange(self.num_dims))  # [D, N]
        x = jnp.take_along_axis(drawn.T, places[which], axis=1)
        return x.reshape(num_samples, *self.shape)


Model = MADEEnsemble
TINY = dict(width=16, num_orders=2, num_masks=2)
