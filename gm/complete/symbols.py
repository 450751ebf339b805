"""Any model with log P(x), or an unbiased estimate of P(x): pseudo-marginal Gibbs.

One missing symbol at a time. P(x) is estimated anew for other values of it, and one is
taken with probability proportional to the estimates, of which that of the present value is
the one that it was taken with (Andrieu & Roberts 2009). These are exact conditionals of
a distribution of values and noises whose marginal is P, so the limit is exact however
noisy the estimates are. Of more than `_POOL` values a random pool is compared, the
present one in it: others are drawn uniformly, which is symmetric (Tjelmeland 2004).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm import model as gm_model
from gm.complete.method import Drawn, Method, repeat

_POOL = 8


class PseudoMarginalGibbs(Method):
    """What is left where a model can but say how probable an example is."""

    name = "pseudo-marginal Gibbs"
    steps = 20  # sweeps over the missing symbols

    @property
    def rows(self) -> int:
        """Every value of the pool, of every chain."""
        return self.num_completions * min(_POOL, self.model.num_values)

    def draw(self, params: Any, x: jax.Array, cond: Any, key: jax.Array) -> Drawn:
        """See Method; p(x_observed) stays unknown."""
        m, missing = self.num_completions, self.missing.ravel()
        rows = repeat((jnp.asarray(x, jnp.int32), cond), m)
        places = jnp.asarray(np.flatnonzero(missing))
        drawn, moved = run_chains(
            self.model, params, *rows, places, key, self.num_steps
        )
        figures = {"moves": np.asarray(moved).reshape(len(x), m).mean(1)}
        drawn = np.asarray(drawn).reshape(len(x), m, *self.model.shape)
        return Drawn(drawn, None, None, figures)


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def run_chains(
    model: Any,
    params: Any,
    x: jax.Array,
    cond: Any,
    places: jax.Array,
    key: jax.Array,
    num_steps: int,
) -> tuple[jax.Array, jax.Array]:
    """The last state of a chain for each row, and how often a symbol changed.

    Args:
      model, params: of estimate EXACT or WEIGHT.
      x: [B, *shape] integers; those at `places` are not read.
      cond: [B, ...] or None.
      places: int32 [missing], the flat positions of the missing symbols.
      key: PRNG key.
      num_steps: sweeps, each of `missing` random places.

    Returns:
      (completions int32 [B, *shape], fraction of updates that changed a symbol [B]).
    """
    batch, values = len(x), model.num_values
    pool = min(_POOL, values)
    key_start, key_first, key = jax.random.split(key, 3)

    def log_prob(flat, cond, key):
        x = flat.reshape(-1, *model.shape)
        return gm_model.log_prob(model, params, x, cond, key)[0]

    flat = x.reshape(batch, -1)
    if type(model).sample is not gm_model.LikelihoodModel.sample:
        rngs = {"sample": key_start}
        guess = model.apply({"params": params}, batch, cond, rngs=rngs, method="sample")
    else:
        guess = jax.random.randint(key_start, flat.shape, 0, values)
    flat = flat.at[:, places].set(guess.reshape(batch, -1)[:, places])
    cond_pool, rows = repeat(cond, pool), jnp.arange(batch)

    def body(carry, index):
        flat, log_w, moved = carry
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        place = jax.random.choice(keys[0], places, (batch,))
        now = flat[rows, place]
        if pool == values:  # all others
            others = (now[:, None] + jnp.arange(1, values)) % values
        else:
            others = jax.random.randint(keys[1], (batch, pool - 1), 0, values)
        options = jnp.concatenate([now[:, None], others], axis=1)  # [B, pool]
        tried = repeat(flat, pool)
        tried = tried.at[jnp.arange(batch * pool), repeat(place, pool)].set(
            options.ravel()
        )
        found = log_prob(tried, cond_pool, keys[2]).reshape(batch, pool)
        found = found.at[:, 0].set(log_w)
        chosen = jax.random.categorical(keys[3], found)
        new = options[rows, chosen]
        flat = flat.at[rows, place].set(new)
        return (flat, found[rows, chosen], moved + (new != now)), None

    start = (flat, log_prob(flat, cond, key_first), jnp.zeros(batch))
    count = num_steps * len(places)
    (flat, _, moved), _ = jax.lax.scan(body, start, jnp.arange(count))
    return flat.reshape(x.shape), moved / count
