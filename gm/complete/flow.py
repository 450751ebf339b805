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
from the chains by weight, and moved on at beta = 1 by as many steps.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.complete.method import Drawn, Method, log_px, pick_chains, repeat
from gm.likelihood import logistic_log_prob, quantize, sum_dims

_LEAPFROGS = 5  # in a Hamiltonian step
_ACCEPTANCE = 0.8  # that the sizes of the steps are tuned to
_TUNING = 0.2  # change of a log size by an acceptance that is off by 1


class AnnealedHamiltonian(Method):
    """For models with a density of y that can be differentiated."""

    name = "annealed Hamiltonian Monte Carlo"
    steps = 100
    particles = 1  # chains for each completion

    def draw(self, params: Any, x: jax.Array, cond: Any, key: jax.Array) -> Drawn:
        """See Method."""
        keys = jax.random.split(key, 6)
        n, m, chains = len(x), self.num_completions, self.rows
        steps, dims = self.num_steps, self.model.num_dims
        x, missing = jnp.asarray(x, jnp.int32), jnp.asarray(self.missing)
        rows = (*repeat((x, cond), chains), missing)
        run = functools.partial(move, self.model, params)
        v = jax.random.logistic(keys[0], (n * chains, dims))
        betas = (jnp.arange(steps + 1) / steps) ** 3
        _, _, sizes, _ = run(*rows, keys[1], v, betas, jnp.zeros(steps), _TUNING)
        v, log_w, _, rate = run(*rows, keys[2], v, betas, sizes, 0.0)
        log_w = log_w.reshape(n, chains)
        v, log_z, sizes = pick_chains(keys[3], log_w, v, m)
        rows = (*repeat((x, cond), m), missing)
        last = jnp.full(steps, sizes[-1])
        v, *_ = run(*rows, keys[4], v, jnp.ones(steps + 1), last, 0.0)
        y = _points(self.model, *rows, v)
        drawn = jnp.where(missing, quantize(y, self.model.num_values), rows[0])
        nats = log_z - log_px(self.model, params, x, cond, keys[5])
        figures = {
            "acceptance": np.asarray(rate).reshape(n, chains).mean(1),
            "effective_sample_size": sizes,
        }
        shape = (n, m, *self.model.shape)
        return Drawn(np.asarray(drawn).reshape(shape), nats, log_z, figures)


def _points(model, x, cond, missing, v):
    """Y [B, *shape] of v [B, D]: observed ones in their cells, missing ones anywhere."""
    cell = 2 / model.num_values
    low = jnp.where(missing, -1.0, x * cell - 1)
    width = jnp.where(missing, 2.0, cell)
    return low + width * jax.nn.sigmoid(v).reshape(low.shape)


def _density(model, params, x, cond, missing):
    """V [B, D] -> (log p_Y(y(v)) + log |B|, its gradient, [B, D])."""
    more = missing.sum() * jnp.log(model.num_values)  # |B| to the volume of a cell

    def total(v):
        y = _points(model, x, cond, missing, v)
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


@functools.partial(jax.jit, static_argnames="model")
def move(
    model: Any,
    params: Any,
    x: jax.Array,
    cond: Any,
    missing: jax.Array,
    key: jax.Array,
    v: jax.Array,
    betas: jax.Array,
    log_sizes: jax.Array,
    rate: float | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A chain for each row through the distributions pi_beta.

    Args:
      model, params: a flow.
      x: [B, *shape] integers; those at `missing` are not read.
      cond: [B, ...] or None.
      missing: bool [*shape].
      key: PRNG key.
      v: [B, D], where the chains start: a draw at the first beta.
      betas: [T + 1].
      log_sizes: [T], of the Hamiltonian steps.
      rate: how fast all sizes to come follow the acceptance of all rows; above 0 the
        weights are biased.

    Returns:
      v [B, D]; log-weights [B]; log sizes [T] that were used; acceptance [B].
    """
    density = _density(model, params, x, cond, missing)

    def body(carry, t):
        state, log_w, drift, accepted = carry
        log_w += (betas[t + 1] - betas[t]) * state[1]
        used = log_sizes[t] + drift
        step_key = jax.random.fold_in(key, t)
        state, taken = _hamiltonian(
            density, step_key, state, betas[t + 1], jnp.exp(used)
        )
        drift += rate * (taken.mean() - _ACCEPTANCE)
        return (state, log_w, drift, accepted + taken), used

    zeros, num_steps = jnp.zeros(len(x)), len(log_sizes)
    start = ((v, *density(v)), zeros, 0.0, zeros)
    (state, log_w, _, accepted), used = jax.lax.scan(body, start, jnp.arange(num_steps))
    return state[0], log_w, used, accepted / num_steps
