"""Any model with log P(x), or an unbiased estimate of P(x): annealed pseudo-marginal Gibbs.

One missing symbol at a time. P(x) is estimated anew for other values of it, and one is
taken with probability proportional to the estimates, of which that of the present value is
the one that it was taken with (Andrieu & Roberts 2009). These are exact conditionals of
a distribution of values and noises whose marginal is P, so the limit is exact however
noisy the estimates are. Of more than `_POOL` values a random pool is compared, the
present one in it (Tjelmeland 2004).

With b(x_missing) independent symbols, about as the model's own samples have them, a chain
starts at b and goes through

  pi_beta(x_missing) ~ b(x_missing) (P(x) / b(x_missing))^beta,    beta = 0 to 1,

the pool drawn from b and taken by (P / b)^beta. The weights of annealed importance sampling
(Neal 2001), prod_t (P / b)^(beta_t+1 - beta_t), average to p(x_observed) without bias. At
the end completions are drawn from the chains by weight, and moved on at beta = 1 by as
many sweeps.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm import model as gm_model
from gm.complete.method import Drawn, Method, log_px, pick_chains, repeat
from gm.spec import Estimate

_POOL = 8
_SAMPLES = 64  # of the model, for b


class PseudoMarginalGibbs(Method):
    """What is left where a model can but say how probable an example is."""

    name = "annealed pseudo-marginal Gibbs"
    particles = 1  # chains for each completion
    steps = 20  # sweeps over the missing symbols, annealed; and as many at the end

    @property
    def bound(self) -> str:
        """By Jensen's inequality for p(x_observed); where P(x) is estimated, neither."""
        return "lower" if self.model.estimate is Estimate.EXACT else "neither"

    @property
    def rows(self) -> int:
        """Every value of the pool, of every chain."""
        return super().rows * min(_POOL, self.model.num_values)

    def draw(self, params: Any, x: jax.Array, cond: Any, key: jax.Array) -> Drawn:
        """See Method."""
        keys = jax.random.split(key, 6)
        n, m, chains = len(x), self.num_completions, super().rows
        x = jnp.asarray(x, jnp.int32)
        places = jnp.asarray(np.flatnonzero(self.missing))
        log_b = _base(self.model, params, cond, n, keys[0])[places]
        run = functools.partial(move, self.model, params)
        count = self.num_steps * len(places)
        rows = repeat((x.reshape(n, -1), cond), chains)
        values = jax.random.categorical(keys[1], log_b, shape=(n * chains, len(places)))
        flat = rows[0].at[:, places].set(values)
        betas = jnp.linspace(0, 1, count + 1)
        flat, log_w, _ = run(flat, rows[1], places, log_b, keys[2], betas)
        log_w = log_w.reshape(n, chains)
        flat, log_z, sizes = pick_chains(keys[3], log_w, flat, m)
        last = jnp.ones(count + 1)
        flat, _, moved = run(flat, repeat(cond, m), places, log_b, keys[4], last)
        nats = log_z - log_px(self.model, params, x, cond, keys[5])
        figures = {
            "moves": np.asarray(moved).reshape(n, m).mean(1),
            "effective_sample_size": sizes,
        }
        drawn = np.asarray(flat).reshape(n, m, *self.model.shape)
        return Drawn(drawn, nats, log_z, figures)


@functools.partial(jax.jit, static_argnames="model")
def move(
    model: Any,
    params: Any,
    flat: jax.Array,
    cond: Any,
    places: jax.Array,
    log_b: jax.Array,
    key: jax.Array,
    betas: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A chain for each row through the distributions pi_beta.

    Args:
      model, params: of estimate EXACT or WEIGHT.
      flat: int32 [B, D], where the chains start: a draw at the first beta.
      cond: [B, ...] or None.
      places: int32 [missing], the flat positions of the missing symbols.
      log_b: [missing, num_values], the log-probabilities of b.
      key: PRNG key.
      betas: [T + 1], one random place a step.

    Returns:
      flat [B, D]; log-weights [B]; the fraction of steps that took another value [B].
    """
    batch, num_values = len(flat), model.num_values
    rows = jnp.arange(batch)

    def log_ratio(flat, cond, key):  # of P and b
        x = flat.reshape(-1, *model.shape)
        log_p = gm_model.log_prob(model, params, x, cond, key)[0]
        return log_p - log_b[jnp.arange(len(places)), flat[:, places]].sum(1)

    def body(carry, index):
        flat, now, log_w, moved = carry
        log_w += (betas[index + 1] - betas[index]) * now
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        number = jax.random.randint(keys[0], (batch,), 0, len(places))
        place, values = places[number], log_b[number]  # values: [B, num_values]
        present = flat[rows, place][:, None]
        if num_values <= _POOL:  # all of them, by their weight in b
            options = (present + jnp.arange(num_values)) % num_values
            prior = jnp.take_along_axis(values, options, axis=1)
        else:
            shape = (_POOL - 1, batch)
            others = jax.random.categorical(keys[1], values, shape=shape).T
            options, prior = jnp.concatenate([present, others], axis=1), 0.0
        pool = options.shape[1]
        where = (jnp.arange(batch * pool), repeat(place, pool))
        tried = repeat(flat, pool).at[where].set(options.ravel())
        found = log_ratio(tried, repeat(cond, pool), keys[2]).reshape(batch, pool)
        found = found.at[:, 0].set(now)  # the present value keeps its estimate
        chosen = jax.random.categorical(keys[3], prior + betas[index + 1] * found)
        flat = flat.at[rows, place].set(options[rows, chosen])
        return (flat, found[rows, chosen], log_w, moved + (chosen > 0)), None

    key, key_first = jax.random.split(key)
    zeros, count = jnp.zeros(batch), len(betas) - 1
    start = (flat, log_ratio(flat, cond, key_first), zeros, zeros)
    (flat, _, log_w, moved), _ = jax.lax.scan(body, start, jnp.arange(count))
    return flat, log_w, moved / count


@functools.partial(jax.jit, static_argnames=("model", "count"))
def _base(model, params, cond, count, key):
    """Log b [D, num_values]: the symbols of samples, given the conditions in turn.

    The estimate sqrt(S) / num_values + how often, of S samples, has the least maximal risk
    (Trybula 1958); without samples it is uniform.
    """
    if type(model).sample is gm_model.LikelihoodModel.sample:
        return jnp.full((model.num_dims, model.num_values), -jnp.log(model.num_values))
    if cond is not None:
        cond = cond[jnp.arange(_SAMPLES) % count]
    options = {"rngs": {"sample": key}, "method": "sample"}
    drawn = model.apply({"params": params}, _SAMPLES, cond, **options)
    drawn = drawn.reshape(_SAMPLES, -1)
    counts = jnp.stack([(drawn == v).sum(0) for v in range(model.num_values)], axis=-1)
    total = counts + _SAMPLES**0.5 / model.num_values
    return jnp.log(total / total.sum(1, keepdims=True))
