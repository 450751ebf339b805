"""A mixture of independent symbols: P(x) = sum_k p(k | cond) prod_d p(x_d | k).

The mixture of Bernoullis of McLachlan & Peel (2000), and the same with tables or
discretized logistics. It is autoregressive in closed form: with the posterior over
components p(k | x_<d), which grows by one symbol at a time,

  p(x_d | x_<d) = sum_k p(k | x_<d) p(x_d | k).

Deviations: trained by gradients, not EM; since parameters are initialised without data,
components start at random, `spread` apart, not at examples. All conditions share the
components and choose among them; those of `gtm` depend on the condition.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.autoregressive import AutoregressiveModel
from gm.errors import check_positive
from gm.likelihood import categorical_log_prob
from gm.nn.conditioning import CondShift


class Mixture(AutoregressiveModel):
    """Components that are each a distribution of independent symbols.

    The parameters of a next-symbol distribution, P = K of them, are its
    log-probabilities, whatever the components are made of.
    """

    num_components: int = 100
    spread: float = 0.2  # standard deviation of the initial parameters
    width: int = 32  # of the condition's embedding
    num_mixtures: int | None = None  # None: a table up to 32 values, else 10 logistics

    def setup(self) -> None:
        """The components' parameters and weights."""
        # Components that start equal would stay equal.
        check_positive(self, "spread")
        shape, count = (self.num_dims, self.num_params), self.num_components
        # What all components have in common is learnt by all at once. Without `shared`,
        # the few that come to fit the marginals first take all the examples.
        self.shared = self.param("shared", nn.initializers.zeros, shape)
        self.setup_components()
        self.weights = self.param("weights", nn.initializers.zeros, (count,))
        self.shift = CondShift(self.cond, self.width, (count,))

    def setup_components(self) -> None:
        """What a component has of its own."""
        shape = (self.num_components, self.num_dims, self.num_params)
        self.own = self.param("own", nn.initializers.normal(self.spread), shape)

    def symbol_log_prob(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Log P(x_d | x_<d): params [..., K], x [...] integers -> float32 [...]."""
        return categorical_log_prob(params, x)

    def symbol_logits(self, params: jax.Array) -> jax.Array:
        """Log-probabilities over the values: [..., K]."""
        return params

    def symbol_sample(self, key: jax.Array, params: jax.Array) -> jax.Array:
        """Draws a symbol of each distribution: [..., K] -> int32 [...]."""
        return jax.random.categorical(key, params).astype(jnp.int32)

    def _log_prior(self, cond):
        """Log p(k | cond): [B or 1, M]."""
        return jax.nn.log_softmax(self.weights + self.shift(cond))

    def components(self, cond: jax.Array | None = None) -> jax.Array:
        """Parameters of the components, [B, M, D, P]; B is 1 where all share them."""
        return (self.shared + self.own)[None]

    def _log_component(self, table, x):
        """Log p(x_d | k): table [B or 1, M, ..., P], x [B, ...] -> [B, M, ...]."""
        return super().symbol_log_prob(table, x[:, None])

    def _predict(self, log_posterior, table):
        """Log p(x_d | x_<d): log p(k | x_<d) [B, M], table [B or 1, M, P] -> [B, K]."""
        values = jnp.arange(self.num_values)[None, None]
        log_p = super().symbol_log_prob(table[..., None, :], values)  # [B or 1, M, K]
        return jax.nn.logsumexp(log_posterior[:, :, None] + log_p, axis=1)

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) [B], without the conditionals: log sum_k p(k) prod_d p(x_d | k)."""
        if self.end is not None:  # of documents, some symbols do not count
            return super().log_prob(x, cond, train=train)
        x = x.reshape(x.shape[0], self.num_dims)
        evidence = self._log_component(self.components(cond), x).sum(-1)  # [B, M]
        log_joint = self._log_prior(cond) + evidence
        log_px = jax.nn.logsumexp(log_joint, axis=1)
        return log_px, {"symbols": log_px}

    def conditionals(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """X [B, D] -> log-probabilities [B, D, K] of P(x_d | x_<d)."""
        table = self.components(cond)
        evidence = self._log_component(table, x)  # [B, M, D]
        before = jnp.pad(evidence, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
        log_joint = self._log_prior(cond)[:, :, None] + jnp.cumsum(before, axis=2)
        log_posterior = jax.nn.log_softmax(log_joint, axis=1)
        # A map over positions, since [B, M, D, K] would be large.
        out = jax.lax.map(
            lambda row: self._predict(*row),
            (log_posterior.transpose(2, 0, 1), table.transpose(2, 0, 1, 3)),
        )
        return out.swapaxes(0, 1)

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """Log p(k | cond), [B, M]."""
        prior = self._log_prior(cond)
        return jnp.broadcast_to(prior, (batch_size, self.num_components))

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """The posterior is updated by the previous symbol: O(M K) a symbol."""

        def params_at(d):  # of one symbol: `components` would add those of all
            return (self.shared[d] + self.own[:, d])[None]

        return self._advance(cache, params_at, index, previous)

    def _advance(self, log_posterior, params_at, index, previous):
        """`step` of a posterior [B, M] and the components at d, [B or 1, M, P]."""
        evidence = self._log_component(params_at(jnp.maximum(index - 1, 0)), previous)
        log_posterior += jnp.where(index > 0, evidence, 0)
        log_posterior = jax.nn.log_softmax(log_posterior)
        return log_posterior, self._predict(log_posterior, params_at(index))


Model = Mixture
TINY = dict(num_components=3, width=4)
