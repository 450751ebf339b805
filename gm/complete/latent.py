"""Latent-variable models: Metropolis-within-Gibbs over (z, x_missing).

Mattei & Frellsen (2018), algorithm 2. Alternately

  z' ~ q(z | x), accepted with probability min(1, w(x, z') / w(x, z)),
  x_missing ~ p(x_missing | z),          w(x, z) = p(x | z) p(z) / q(z | x),

whose limit is p(z, x_missing | x_observed) exactly. Accepting every z' is pseudo-Gibbs
(Rezende et al. 2014), which has another limit: here it serves as the start alone.

p(x_observed) is estimated by importance sampling from a mixture of the prior and of q(z |
x) at the chains' last states, with the mixture's density in the denominator (Hesterberg
1995; Owen & Zhou 2000): weights are bounded, the estimate is unbiased.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.complete.method import Drawn, Method, log_px, repeat

_PARTS = 8  # of the mixture at most, besides the prior


class MetropolisWithinGibbs(Method):
    """For models with q(z|x), and pixels that are independent given z."""

    name = "Metropolis-within-Gibbs"
    steps = 1000
    particles = 32  # draws from each part of the mixture that estimates p(x_observed)

    @classmethod
    def fits(cls, model: Any, missing: np.ndarray) -> bool:
        """The channels of a pixel may depend on each other: hidden together or not."""
        pixels = missing.reshape(-1, model.channels)
        return bool((pixels.all(1) == pixels.any(1)).all())

    @property
    def rows(self) -> int:
        """The chains, or the mixture's parts and the prior, where those are more."""
        return self.num_completions + 1

    def draw(self, params: Any, x: jax.Array, cond: Any, key: jax.Array) -> Drawn:
        """See Method."""
        key_chain, key_weights, key_px = jax.random.split(key, 3)
        count, m = len(x), self.num_completions
        x, missing = jnp.asarray(x, jnp.int32), jnp.asarray(self.missing)
        rows = repeat((x, cond), m)
        drawn, rate = run_chains(
            self.model, params, *rows, missing, key_chain, self.num_steps
        )
        drawn = drawn.reshape(count, m, *self.model.shape)
        states = drawn[:, :_PARTS]
        log_z, ess = log_observed(
            self.model, params, states, cond, missing, key_weights, self.num_particles
        )
        log_z = np.asarray(log_z, np.float64)
        nats = log_z - log_px(self.model, params, x, cond, key_px)
        figures = {"acceptance": rate.reshape(count, m).mean(1)}
        figures["effective_sample_size"] = ess
        return Drawn(np.asarray(drawn), nats, log_z, jax.device_get(figures))


def _apply(model, params, method, *args, key=None):
    rngs = None if key is None else {"sample": key}
    return model.apply({"params": params}, *args, rngs=rngs, method=method)


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def run_chains(
    model: Any,
    params: Any,
    x: jax.Array,
    cond: Any,
    missing: jax.Array,
    key: jax.Array,
    num_steps: int,
) -> tuple[jax.Array, jax.Array]:
    """The last state of a chain for each row, and its acceptance rate.

    Args:
      model, params: latent-variable.
      x: [B, *shape] integers; those at `missing` are not read.
      cond: [B, ...] or None.
      missing: bool [*shape].
      key: PRNG key.
      num_steps: of which the first fifth accepts every z.

    Returns:
      (completions int32 [B, *shape], rate float32 [B] after the first fifth).
    """
    apply = functools.partial(_apply, model, params)
    first = num_steps // 5
    key_start, key_z, key = jax.random.split(key, 3)
    guess = apply("sample", len(x), cond, key=key_start)
    x = jnp.where(missing, guess, x)
    z = apply("sample_posterior", x, cond, key=key_z)

    def body(carry, index):
        x, z, accepted = carry
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        new = apply("sample_posterior", x, cond, key=keys[0])
        log_ratio = apply("log_weight", x, new, cond)[0]
        log_ratio -= apply("log_weight", x, z, cond)[0]
        u = jax.random.uniform(keys[1], log_ratio.shape, minval=1e-30)
        taken = jnp.log(u) < log_ratio
        accepted += jnp.where(index >= first, taken, False)
        z = jnp.where((taken | (index < first))[:, None], new, z)
        told = apply("generate", z, cond)
        x = jnp.where(missing, apply("sample_x", keys[2], told), x)
        return (x, z, accepted), None

    start = (x, z, jnp.zeros(len(x)))
    (x, _, accepted), _ = jax.lax.scan(body, start, jnp.arange(num_steps))
    return x, accepted / (num_steps - first)


@functools.partial(jax.jit, static_argnames=("model", "num_draws"))
def log_observed(
    model: Any,
    params: Any,
    states: jax.Array,
    cond: Any,
    missing: jax.Array,
    key: jax.Array,
    num_draws: int,
) -> tuple[jax.Array, jax.Array]:
    """The log of an unbiased estimate of p(x_observed), and its effective draws: [n] each.

    Args:
      model, params: latent-variable.
      states: [n, M, *shape] integers: the observed symbols, and M guesses at the others.
      cond: [n, ...] or None.
      missing: bool [*shape].
      key: PRNG key.
      num_draws: from each of the M + 1 parts of the mixture.
    """
    apply = functools.partial(_apply, model, params)
    count, m = states.shape[:2]
    observed = repeat(states[:, 0], m + 1)
    flat_states = states.reshape(count * m, *model.shape)
    cond_m, cond_1 = repeat(cond, m), repeat(cond, m + 1)

    def body(_, index):
        key_q, key_p = jax.random.split(jax.random.fold_in(key, index))
        z = apply("sample_posterior", flat_states, cond_m, key=key_q)
        prior = apply("sample_joint", count, cond, key=key_p)[1]
        z = jnp.concatenate([z.reshape(count, m, -1), prior[:, None]], axis=1)
        z = z.reshape(count * (m + 1), -1)
        told = apply("generate", z, cond_1)
        log_px_z = (_symbols(apply, told, observed, model) * ~missing.ravel()).sum(1)

        def ratio(state):  # log q(z | state) / p(z), state [n, *shape]
            x = repeat(state, m + 1)
            log_w = apply("log_weight", x, z, cond_1)[0]
            return _symbols(apply, told, x, model).sum(1) - log_w

        ratios = jax.lax.map(ratio, jnp.moveaxis(states, 1, 0))  # [M, n (M + 1)]
        ratios = jnp.concatenate([ratios, jnp.zeros((1, len(z)))])  # the prior itself
        mixture = jax.nn.logsumexp(ratios, axis=0) - math.log(m + 1)
        return None, (log_px_z - mixture).reshape(count, m + 1)

    _, log_w = jax.lax.scan(body, None, jnp.arange(num_draws))  # [S, n, M + 1]
    log_w = jnp.moveaxis(log_w, 1, 0).reshape(count, -1)
    share = jax.nn.softmax(log_w, axis=1)
    log_z = jax.nn.logsumexp(log_w, axis=1) - math.log(log_w.shape[1])
    return log_z, 1 / (share**2).sum(1)


def _symbols(apply, told, x, model):
    """Log p(x_d | z, channels of the pixel before it), [B, D]."""
    pixels = x.reshape(len(x), -1, model.channels)
    terms = []
    for c in range(model.channels):
        logits = apply("symbol_logits", told, x, c)  # [B, pixels, K]
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        picked = jnp.take_along_axis(log_p, pixels[..., c, None], axis=-1)
        terms.append(picked[..., 0])
    return jnp.stack(terms, axis=-1).reshape(len(x), -1)
