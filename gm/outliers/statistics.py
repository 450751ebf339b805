"""What a model says of each example by itself: the statistics that scores are made of.

The noise of example i is a function of (key, i) alone, as in evaluation. Each function
runs over batches, the last of which is filled up, so that it is compiled once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm.bounds import logmeanexp
from gm.evaluate import check_importance_samples, example_log_weights
from gm.likelihood import normal_kl, sum_dims, within_cell
from gm.model import LikelihoodModel, log_prob


def in_batches(function: Callable[..., Any], x: np.ndarray, batch_size: int) -> Any:
    """function(x [B, ...], indices int32 [B]) -> arrays [B, ...], joined to [N, ...]."""
    parts = []
    batch_size = min(batch_size, len(x))
    for start in range(0, len(x), batch_size):
        numbers = np.arange(start, start + batch_size) % len(x)
        found = function(x[numbers].astype(np.int32), numbers.astype(np.int32))
        size = min(batch_size, len(x) - start)
        parts.append(jax.tree.map(lambda a, n=size: np.asarray(a)[:n], found))
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def log_likelihoods(
    model: LikelihoodModel, params: Any, x: np.ndarray, draws: int = 1
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(nats -log P(x) float64 [N], terms of log P(x) in nats [N] each).

    Args:
      model, params: unconditional.
      x: [N, *shape] integers.
      draws: K importance samples, where the likelihood is not exact.
    """
    draws = check_importance_samples(model, draws)
    key = jax.random.key(0)

    def batch(x, indices):
        log_w, terms = example_log_weights(model, params, x, None, indices, key, draws)
        return log_w.T, terms

    log_w, terms = in_batches(batch, x, 100)
    nats = -logmeanexp(log_w.T.astype(np.float64))
    return nats, {name: term.astype(np.float64) for name, term in terms.items()}


@functools.partial(jax.jit, static_argnames="model")
def _gradient_norms(model, params, x, indices, key):
    def norm(example):
        x, index = example
        noise = jax.random.fold_in(jax.random.fold_in(key, index), 0)

        def log_px(params):
            return log_prob(model, params, x[None], None, noise)[0][0]

        return optax.tree.norm(jax.grad(log_px)(params))

    # One after the other: gradients of a batch would take a copy of all parameters each.
    return jax.lax.map(norm, (x, indices))


def gradient_norms(model: LikelihoodModel, params: Any, x: np.ndarray) -> np.ndarray:
    """Norm of d log P(x) / d params for each example, [N]."""
    key = jax.random.key(0)
    norms = functools.partial(_gradient_norms, model, params, key=key)
    return in_batches(norms, x, 100).astype(np.float64)


@functools.partial(jax.jit, static_argnames=("model", "num_steps", "draws"))
def _regrets(model, params, x, indices, key, num_steps, draws, learning_rate):
    apply = functools.partial(model.apply, {"params": params})
    start = jax.tree.map(
        lambda a: a.astype(jnp.float32), apply(x, None, method="infer")
    )

    def elbo(q, key):
        mean, log_std = q

        def log_px_z(key):
            def noise(i):
                return jax.random.normal(jax.random.fold_in(key, i), mean.shape[1:])

            z = mean + jnp.exp(log_std) * jax.vmap(noise)(indices)
            return apply(z, x, None, False, method="log_px_given")

        keys = jax.random.split(key, draws)
        return jax.lax.map(log_px_z, keys).mean(0) - sum_dims(normal_kl(*q))

    judge, search = jax.random.split(key)
    optimizer = optax.adam(learning_rate)  # elementwise: examples do not meet

    def body(carry, step):
        q, state = carry

        def loss(q):
            return -elbo(q, jax.random.fold_in(search, step)).sum()

        updates, state = optimizer.update(jax.grad(loss)(q), state)
        return (optax.apply_updates(q, updates), state), None

    (best, _), _ = jax.lax.scan(
        body, (start, optimizer.init(start)), jnp.arange(num_steps)
    )
    # Both are judged by the same draws; the better of the two is the optimum found.
    return jnp.maximum(elbo(best, judge) - elbo(start, judge), 0)


def likelihood_regrets(
    model: LikelihoodModel,
    params: Any,
    x: np.ndarray,
    *,
    num_steps: int = 50,
    draws: int = 4,
    learning_rate: float = 0.05,
) -> np.ndarray:
    """ELBO of the best q(z|x) of each example minus that of the encoder, nats [N] >= 0.

    Xiao et al. (2020), "Likelihood regret", who optimise the encoder's weights; here the
    mean and deviation of q are optimised by Adam, with a sampled reconstruction and
    the closed-form KL. For a LatentModel.
    """
    key = jax.random.key(0)

    def batch(x, indices):
        return _regrets(model, params, x, indices, key, num_steps, draws, learning_rate)

    return in_batches(batch, x, 100).astype(np.float64)


@functools.partial(jax.jit, static_argnames="model")
def _singular_values(model, params, x):
    forward = functools.partial(_forward, model, params)
    y = within_cell(x, 0.5, model.num_values).reshape(x.shape[0], -1)
    jacobian = jax.vmap(jax.jacrev(forward))(y)  # dz/dy [B, D, D]
    slopes = jnp.linalg.svd(jacobian, compute_uv=False)  # falling
    return 1 / jnp.maximum(slopes[:, ::-1], 1e-12)


def _forward(model, params, y):
    y = y.reshape(1, *model.shape)
    return model.apply({"params": params}, y, None, method="forward")[0][0]


def singular_values(model: LikelihoodModel, params: Any, x: np.ndarray) -> np.ndarray:
    """Singular values of a flow's dy/dz at the middle of the cell of x, falling: [N, D]."""

    def batch(x, indices):
        del indices  # no noise
        return _singular_values(model, params, x)

    return in_batches(batch, x, 20).astype(np.float64)
