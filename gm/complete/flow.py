"""Flows: annealed Hamiltonian Monte Carlo on points y, the observed ones in their cells.

P(x_missing, x_observed) is the mass of a cell of [-1, 1)^D under p_Y, so a draw of y from
p_Y restricted to the box B, where observed coordinates lie in their cells and missing ones
anywhere in [-1, 1), has its missing cells distributed as p(x_missing | x_observed).

The box is mapped to R^D by y = low + width sigmoid(v). With s(v) the standard logistic
density, under which y is uniform in B, the chain goes through

  pi_beta(v) ~ s(v) (p_Y(y(v)) |B|)^beta,    beta = 0 to 1,

by Hamiltonian steps (Neal 2011). The weights of annealed importance sampling (Neal 2001),
prod_t (p_Y |B|)^(beta_t+1 - beta_t), average to p(x_observed) without bias, whatever the
steps, since their sizes are tuned on a run of their own. At the end completions are drawn
from the chains by weight, and moved on at beta = 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.bounds import logmeanexp
from gm.complete.method import Drawn, Method, log_px, repeat
from gm.likelihood import logistic_log_prob, quantize, sum_dims

_LEAPFROGS = 5  # in a Hamiltonian step
_RATE = 0.8  # of acceptance, that the sizes of the steps are tuned to


class AnnealedHamiltonian(Method):
    """For models with a density of y that can be differentiated."""

    name = "annealed Hamiltonian Monte Carlo"
    steps = 300
    particles = 4  # chains for each completion

    def draw(self, params: Any, x: jax.Array, cond: Any, key: jax.Array) -> Drawn:
        """See Method."""
        keys = jax.random.split(key, 5)
        n, m, chains = len(x), self.num_completions, self.rows
        x, missing = jnp.asarray(x, jnp.int32), jnp.asarray(self.missing)
        rows = (*repeat((x, cond), chains), missing)
        run = functools.partial(anneal, self.model, params)
        start = jnp.zeros(self.num_steps)
        *_, sizes, _ = run(*rows, keys[0], start, tune=True)
        v, log_w, _, rate = run(*rows, keys[1], sizes, tune=False)
        log_w = log_w.reshape(n, chains)
        chosen = jax.random.categorical(keys[2], log_w, shape=(m, n)).T  # [n, M]
        v = v.reshape(n, chains, -1)
        v = jnp.take_along_axis(v, chosen[..., None], axis=1).reshape(n * m, -1)
        rows = (*repeat((x, cond), m), missing)
        last = sizes[-1:]
        drawn = move_on(
            self.model, params, *rows, keys[3], v, last, max(self.num_steps // 4, 1)
        )
        log_w = np.asarray(log_w, np.float64)
        nats = logmeanexp(log_w, axis=1) - log_px(self.model, params, x, cond, keys[4])
        share = np.exp(log_w - log_w.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        figures = {"acceptance": rate.reshape(n, chains).mean(1)}
        figures["effective_sample_size"] = 1 / (share**2).sum(1)
        shape = (n, m, *self.model.shape)
        return Drawn(np.asarray(drawn).reshape(shape), nats, jax.device_get(figures))


def _box(model, x, missing):
    """Low ends and widths of the coordinates' ranges, [B, *shape] each."""
    cell = 2 / model.num_values
    low = jnp.where(missing, -1.0, x * cell - 1)
    return low, jnp.broadcast_to(jnp.where(missing, 2.0, cell), low.shape)


def _density(model, params, x, cond, missing):
    """V [B, D] -> (log p_Y(y(v)) + log |B|, its gradient, [B, D])."""
    low, width = _box(model, x, missing)
    more = missing.sum() * jnp.log(model.num_values)  # |B| to the volume of a cell

    def total(v):
        y = low + width * jax.nn.sigmoid(v).reshape(low.shape)
        found, _ = model.apply({"params": params}, x, y, cond, method="log_weight")
        return found.sum(), found + more

    def density(v):
        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(v)
        return value, gradient

    return density


def _hamiltonian(density, key, state, beta, size):
    """One step at pi_beta: the state (v, value, gradient), and who moved, bool [B]."""
    key_p, key_u, key_size = jax.random.split(key, 3)
    v, value, gradient = state
    p = jax.random.normal(key_p, v.shape)
    # Sizes differ by chain, so that no orbit closes for all.
    size = size * jax.random.uniform(key_size, (len(v), 1), minval=0.7, maxval=1.3)

    def force(v, gradient):
        return beta * gradient - jnp.tanh(v / 2)  # the latter of log s(v)

    def energy(v, value, p):
        return 0.5 * (p**2).sum(1) - beta * value - sum_dims(logistic_log_prob(v))

    def leap(carry, _):
        v, p, value, gradient = carry
        p = p + 0.5 * size * force(v, gradient)
        v = v + size * p
        value, gradient = density(v)
        p = p + 0.5 * size * force(v, gradient)
        return (v, p, value, gradient), None

    start = (v, p, value, gradient)
    (w, q, *new), _ = jax.lax.scan(leap, start, length=_LEAPFROGS)
    log_ratio = energy(v, value, p) - energy(w, new[0], q)
    u = jax.random.uniform(key_u, log_ratio.shape, minval=1e-30)
    taken = jnp.log(u) < log_ratio  # not where it is NaN
    state = jax.tree.map(
        lambda new, old: jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old),
        (w, *new),
        state,
    )
    return state, taken


@functools.partial(jax.jit, static_argnames=("model", "tune"))
def anneal(
    model: Any,
    params: Any,
    x: jax.Array,
    cond: Any,
    missing: jax.Array,
    key: jax.Array,
    log_sizes: jax.Array,
    tune: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A chain for each row, from the uniform distribution on its box to the flow's.

    Args:
      model, params: a flow.
      x: [B, *shape] integers; those at `missing` are not read.
      cond: [B, ...] or None.
      missing: bool [*shape].
      key: PRNG key.
      log_sizes: [T], of the Hamiltonian steps; where they are tuned, only of the first.
      tune: whether sizes follow the acceptance of all rows. The weights are then biased.

    Returns:
      v [B, D]; log-weights [B]; log sizes [T] that were used; acceptance rate [B].
    """
    num_steps = len(log_sizes)
    density = _density(model, params, x, cond, missing)
    key_start, key = jax.random.split(key)
    v = jax.random.logistic(key_start, (len(x), model.num_dims))
    betas = (jnp.arange(num_steps + 1) / num_steps) ** 3

    def body(carry, index):
        state, log_w, log_size, accepted = carry
        log_size = log_size if tune else log_sizes[index]
        log_w += (betas[index + 1] - betas[index]) * state[1]
        state, taken = _hamiltonian(
            density,
            jax.random.fold_in(key, index),
            state,
            betas[index + 1],
            jnp.exp(log_size),
        )
        used, log_size = log_size, log_size + 0.2 * (taken.mean() - _RATE)
        return (state, log_w, log_size, accepted + taken), used

    zeros = jnp.zeros(len(x))
    start = ((v, *density(v)), zeros, log_sizes[0], zeros)
    (state, log_w, _, accepted), used = jax.lax.scan(body, start, jnp.arange(num_steps))
    return state[0], log_w, used, accepted / num_steps


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def move_on(
    model: Any,
    params: Any,
    x: jax.Array,
    cond: Any,
    missing: jax.Array,
    key: jax.Array,
    v: jax.Array,
    log_size: jax.Array,
    num_steps: int,
) -> jax.Array:
    """Completions int32 [B, *shape], after further steps at beta = 1 from v [B, D]."""
    density = _density(model, params, x, cond, missing)

    def body(state, index):
        step_key = jax.random.fold_in(key, index)
        return _hamiltonian(density, step_key, state, 1.0, jnp.exp(log_size))[0], None

    state, _ = jax.lax.scan(body, (v, *density(v)), jnp.arange(num_steps))
    low, width = _box(model, x, missing)
    y = low + width * jax.nn.sigmoid(state[0]).reshape(low.shape)
    return jnp.where(missing, quantize(y, model.num_values), x)
