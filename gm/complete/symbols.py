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
    """The last state of a chain for each row, and how often another value was taken.

    Args:
      model, params: of estimate EXACT or WEIGHT.
      x: [B, *shape] integers; those at `places` are not read.
      cond: [B, ...] or None.
      places: int32 [missing], the flat positions of the missing symbols.
      key: PRNG key.
      num_steps: sweeps, each of `missing` random places.

    Returns:
      (completions int32 [B, *shape], fraction of updates that took another [B]).
    """
    batch = len(x)
    key_start, key_first, key = jax.random.split(key, 3)
    flat = _start(model, params, x, cond, places, key_start)
    rows = jnp.arange(batch)

    def log_prob(flat, cond, key):
        x = flat.reshape(-1, *model.shape)
        return gm_model.log_prob(model, params, x, cond, key)[0]

    def body(carry, index):
        flat, log_w, moved = carry
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        place = jax.random.choice(keys[0], places, (batch,))
        options = _options(keys[1], flat[rows, place], model.num_values)
        pool = options.shape[1]
        tried = repeat(flat, pool)
        where = (jnp.arange(batch * pool), repeat(place, pool))
        tried = tried.at[where].set(options.ravel())
        found = log_prob(tried, repeat(cond, pool), keys[2]).reshape(batch, pool)
        found = found.at[:, 0].set(log_w)  # the present value keeps its estimate
        chosen = jax.random.categorical(keys[3], found)
        new = options[rows, chosen]
        flat = flat.at[rows, place].set(new)
        return (flat, found[rows, chosen], moved + (chosen > 0)), None

    start = (flat, log_prob(flat, cond, key_first), jnp.zeros(batch))
    count = num_steps * len(places)
    (flat, _, moved), _ = jax.lax.scan(body, start, jnp.arange(count))
    return flat.reshape(x.shape), moved / count


def _start(model, params, x, cond, places, key):
    """X [B, D] with the missing symbols of a sample, or uniform ones without `sample`."""
    flat = x.reshape(len(x), -1)
    if type(model).sample is not gm_model.LikelihoodModel.sample:
        options = {"rngs": {"sample": key}, "method": "sample"}
        guess = model.apply({"params": params}, len(x), cond, **options)
    else:
        guess = jax.random.randint(key, flat.shape, 0, model.num_values)
    return flat.at[:, places].set(guess.reshape(len(x), -1)[:, places])


def _options(key, now, num_values):
    """Values [B, pool] to choose from: first the present one, [B]."""
    if num_values <= _POOL:  # and all others
        return (now[:, None] + jnp.arange(num_values)) % num_values
    others = jax.random.randint(key, (len(now), _POOL - 1), 0, num_values)
    return jnp.concatenate([now[:, None], others], axis=1)
