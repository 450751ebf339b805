"""Autoregressive models: symbol after symbol, the observed ones held and weighed.

A particle filter (Gordon et al. 1993; Doucet & Johansen 2011) over the model's order. A
missing symbol is drawn from p(x_d | x_<d), an observed one multiplies the weight by its
probability, and particles are resampled when the effective sample size falls below half
of them. The product of the mean weights is an unbiased estimate of p(x_observed), so its
log lies below log p(x_observed) in expectation.

Where no observed symbol depends on a missing one before it all weights are equal: one
particle is an exact draw. So it is where the missing symbols come last in the raster
order, and for models of any order, where they can be made to come last.

A document (`AutoregressiveModel.end`) does not end before its last observed character: a
missing symbol before it is drawn from p(x_d | x_<d, x_d is no end), and the weight is
multiplied by the probability of that. All symbols after the end are certain.

Each completion has a filter of its own, so that completions are independent.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.bounds import logmeanexp
from gm.complete.method import Drawn, Method, log_px, repeat, systematic


class Sequential(Method):
    """A particle filter, or exact draws where one particle is enough."""

    particles = 64

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._missing = self.missing.ravel()
        probe = self.model.order_after(jax.random.key(0), 1, ~self._missing)
        self._any_order = probe is not None
        if self.exact:
            self.num_particles = 1

    @property
    def exact(self) -> bool:
        """Whether no observed symbol depends on a missing one."""
        if self._any_order:
            return True
        if self.model.end is not None:  # from which all symbols after it are certain
            return not self._missing[: np.flatnonzero(~self._missing)[-1]].any()
        among = np.ix_(~self._missing, self._missing)
        return not self.model.receptive_field[among].any()

    @property
    def name(self) -> str:  # type: ignore[override]
        """By which of its cases."""
        if not self.exact:
            return f"particle filter of {self.num_particles} particles per completion"
        if self._any_order:
            return "exact, the observed symbols first in a random order"
        return "exact, in the model's order"

    @property
    def bound(self) -> str:
        """Of a drawn order the nats are exact; of the mixture of orders a bound."""
        if not self.exact:
            return "lower"
        return "upper" if self._any_order else "exact"

    def draw(self, params: Any, x: jax.Array, cond: Any, key: jax.Array) -> Drawn:
        """See Method."""
        key_order, key_draw, key_px = jax.random.split(key, 3)
        count, m = len(x), self.num_completions
        flat = jnp.asarray(x, jnp.int32).reshape(count, -1)
        order = self.model.order_after(key_order, count * m, ~self._missing)
        rows = (*repeat((flat, cond), m), order)
        hidden = jnp.asarray(self._missing)
        drawn, log_z, ess = jax.device_get(
            particle_filter(
                self.model, params, *rows, hidden, key_draw, self.num_particles
            )
        )
        drawn = drawn.reshape(count, m, *self.model.shape)
        log_z = log_z.astype(np.float64).reshape(count, m)
        log_observed = logmeanexp(log_z, axis=1)
        if self.exact:
            log_missing = log_prob_of(self.model, params, *rows, hidden)
            log_missing = np.asarray(log_missing, np.float64).reshape(count, m)
            return Drawn(drawn, -logmeanexp(log_missing, axis=1), log_observed, {})
        nats = log_observed - log_px(self.model, params, x, cond, key_px)
        figures = {"effective_sample_size": ess.reshape(count, m).mean(1)}
        if m > 1:  # how far the filters agree: far below 1 nat where they are enough
            figures["sd_of_log_p_observed_nats"] = log_z.std(1, ddof=1)
        return Drawn(drawn, nats, log_observed, figures)


def _apply(model, params, method, *args, **options):
    return model.apply({"params": params}, *args, method=method, **options)


@functools.partial(jax.jit, static_argnames="model")
def log_prob_of(
    model: Any, params: Any, x: jax.Array, cond: Any, order: Any, chosen: jax.Array
) -> jax.Array:
    """Log-probabilities of the chosen symbols given those before them, summed: [B].

    Args:
      model, params: autoregressive.
      x: [B, D] integers.
      cond: [B, ...] or None.
      order: [B, D] positions, or None for the raster order.
      chosen: bool [D].
    """
    options = {}
    chosen = jnp.broadcast_to(chosen, x.shape)
    if order is not None:
        x, chosen = (jnp.take_along_axis(v, order, axis=1) for v in (x, chosen))
        options = {"order": order}
    found = _apply(model, params, "conditionals", x, cond, **options)
    log_p = _apply(model, params, "each_log_prob", found, x)
    return jnp.where(chosen, log_p, 0.0).sum(1)


@functools.partial(jax.jit, static_argnames=("model", "num_particles"))
def particle_filter(
    model: Any,
    params: Any,
    x: jax.Array,
    cond: Any,
    order: Any,
    missing: jax.Array,
    key: jax.Array,
    num_particles: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One completion of each row, by a filter of its own.

    Args:
      model, params: autoregressive.
      x: [B, D] integers; those at `missing` are not read.
      cond: [B, ...] or None.
      order: [B, D] positions in the order of `step`, or None for the raster order.
      missing: bool [D].
      key: PRNG key.
      num_particles: P of each filter.

    Returns:
      completions int32 [B, D]; the log of an unbiased estimate of p(x_observed) [B]; the
      smallest effective sample size on the way [B], at most P.
    """
    one = functools.partial(_filter, model, params, missing, num_particles)
    keys = jax.random.split(key, len(x))
    return jax.vmap(one)(x, cond, order, keys)


def _filter(model, params, missing, count, x, cond, order, key):
    """`particle_filter` of one row, x [D]."""
    args = [None if v is None else v[None] for v in (cond, order) if v is not None]
    if order is not None and cond is None:
        args = [None, *args]
    # Every particle has a cache of its own, of batch size 1: so that each leaf has the
    # particles as its first axis, and is resampled without knowing what is in it.
    cache = _apply(model, params, "init_cache", 1, *args)
    cache = jax.tree.map(lambda v: jnp.broadcast_to(v, (count, *v.shape)), cache)
    place = jnp.arange(len(x)) if order is None else order
    seen = ~missing & (x != (-1 if model.end is None else model.end))
    goes_on = jax.lax.cummax(seen.astype(int), reverse=True) > 0

    def draws(log_p, where):
        """Logits [P, K] of a missing symbol, and what drawing by them weighs [P]."""
        if model.end is None:
            return log_p, jnp.zeros(count)
        ended = goes_on[where] & (jnp.arange(model.num_values) == model.end)
        logits = jnp.where(ended, -jnp.inf, log_p)
        return logits, jax.nn.logsumexp(logits, axis=1)

    @functools.partial(jax.vmap, in_axes=(0, None, 0))
    def step(cache, index, previous):
        cache, told = _apply(model, params, "step", cache, index, previous[None])
        logits = _apply(model, params, "symbol_logits", told)
        logits = model.with_end(logits, index, previous[None])
        return cache, jax.nn.log_softmax(logits[0])

    def body(carry, index):
        cache, previous, drawn, log_w, log_z, ess = carry
        cache, log_p = step(cache, index, previous)  # [P, K]
        where = place[index]
        key_x, key_resample = jax.random.split(jax.random.fold_in(key, index))
        logits, weight = draws(log_p, where)
        new = jax.random.categorical(key_x, logits)
        value = jnp.where(missing[where], new, x[where]).astype(jnp.int32)
        drawn = drawn.at[:, where].set(value)
        log_w += jnp.where(missing[where], weight, log_p[:, x[where]])
        if count > 1:
            now = _effective(log_w)
            mean = jax.nn.logsumexp(log_w) - math.log(count)
            fresh = now < count / 2
            chosen = systematic(key_resample, log_w, count)
            chosen = jnp.where(fresh, chosen, jnp.arange(count))
            cache, drawn, value = jax.tree.map(
                lambda v: v[chosen], (cache, drawn, value)
            )
            log_w = jnp.where(fresh, 0.0, log_w)
            log_z += jnp.where(fresh, mean, 0.0)
            ess = jnp.minimum(ess, now)
        return (cache, value, drawn, log_w, log_z, ess), None

    zeros = jnp.zeros((count,), jnp.int32)
    drawn = jnp.zeros((count, len(x)), jnp.int32)
    start = (cache, zeros, drawn, jnp.zeros(count), 0.0, jnp.float32(count))
    (_, _, drawn, log_w, log_z, ess), _ = jax.lax.scan(body, start, jnp.arange(len(x)))
    log_z += jax.nn.logsumexp(log_w) - math.log(count)
    chosen = jax.random.categorical(jax.random.fold_in(key, len(x)), log_w)
    return drawn[chosen], log_z, ess


def _effective(log_w):
    """(sum w)^2 / sum w^2."""
    share = jax.nn.softmax(log_w)
    return 1 / (share**2).sum()
