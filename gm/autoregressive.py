"""What autoregressive models share: log P(x) = sum_d log P(x_d | x_<d).

A model gives the parameters of its next-symbol distributions twice: for all positions
at once (`conditionals`, teacher-forced) and for one position with a cache (`step`). From
these the base class derives log_prob, sampling and prefix completion.

Of documents (`end`), which a symbol ends and fills up, what follows the end is certain,
and so is the end where there is no room for more: padding costs nothing, and P is a
distribution over documents of at most D - 1 symbols.
"""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.likelihood import (
    bernoulli_log_prob,
    categorical_log_prob,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_sample,
    mixture_channels,
    sum_dims,
)
from gm.model import LikelihoodModel
from gm.nn.conditioning import guide, with_none
from gm.spec import Estimate


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Cuts logits [..., K] to the fewest values whose mass is top_p (Holtzman et al. 2020).

    The likeliest is always among them; the others become -inf.
    """
    order = jnp.argsort(-logits, axis=-1)
    p = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # mass of what is likelier
    kept = (before < top_p) & (p > 0)
    kept = kept.at[..., 0].set(True)
    kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


class SymbolModel(LikelihoodModel):
    """Base of models whose network gives each symbol's distribution on its own.

    What its parameters mean, say `symbol_log_prob`, `symbol_logits` and `symbol_sample`:
    a model of which they mean something else overrides all three.
    """

    estimate: ClassVar[Estimate] = Estimate.EXACT
    family: ClassVar[str] = "autoregressive"

    # Discretized logistics per symbol; 0: a table over the values; None: a table up to
    # 32 values, else 10.
    num_mixtures: int | None = 0

    @property
    def mixtures(self) -> int:
        """Discretized logistics per symbol; 0: a table over the values."""
        if self.num_mixtures is None:
            return 0 if self.num_values <= 32 else 10
        return self.num_mixtures

    @property
    def num_params(self) -> int:
        """P, the parameters of one next-symbol distribution."""
        if self.mixtures:
            return mixture_channels(self.mixtures, 1)
        return 1 if self.num_values == 2 else self.num_values

    def symbol_log_prob(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Log P(x_d | x_<d): params [..., P], x [...] integers -> float32 [...]."""
        if self.mixtures:
            return discretized_logistic_mixture_log_prob(
                params, x[..., None], self.num_values
            )
        if self.num_values == 2:
            return bernoulli_log_prob(params[..., 0], x)
        return categorical_log_prob(params, x)

    def symbol_logits(self, params: jax.Array) -> jax.Array:
        """Log-probabilities over the values, up to a constant: [..., P] -> [..., K]."""
        if not self.mixtures and self.num_values > 2:
            return params.astype(jnp.float32)
        values = jnp.arange(self.num_values)
        return self.symbol_log_prob(params[..., None, :], values)

    def symbol_sample(self, key: jax.Array, params: jax.Array) -> jax.Array:
        """Draws a symbol of each distribution: [..., P] -> int32 [...]."""
        if self.mixtures:  # two draws are far cheaper than a table of K masses
            return discretized_logistic_mixture_sample(key, params, 1, self.num_values)[
                ..., 0
            ]
        return jax.random.categorical(key, self.symbol_logits(params)).astype(jnp.int32)


class AutoregressiveModel(SymbolModel):
    """Base of models with exact conditionals in raster order (row, column, channel)."""

    end: int | None = None  # of documents: the value that ends one and fills the rest

    @property
    def receptive_field(self) -> np.ndarray:
        """Bool [D, D]: whether the distribution of symbol i depends on symbol j."""
        return np.tri(self.num_dims, k=-1, dtype=bool)

    def conditionals(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Teacher-forced parameters: x [B, D] -> [B, D, P]; row d sees x_<d alone."""
        raise TypeError(f"{type(self).__name__} defines no conditionals")

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """The cache before the first symbol: a pytree of arrays of fixed shape."""
        raise TypeError(f"{type(self).__name__} defines no init_cache")

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Parameters [B, P] of symbol `index`, given the symbol before it (int32 [B]).

        At index 0 `previous` is to be ignored. Equal to `conditionals(...)[:, index]`
        up to float rounding.
        """
        raise TypeError(f"{type(self).__name__} defines no step")

    def stepper(self) -> Callable[..., tuple[Any, jax.Array]]:
        """`step`, with what depends on parameters alone computed here, before a loop."""
        return self.step

    @property
    def cache_lengths(self) -> list[int]:
        """Numbers of symbols, increasing to D, for which `resize_cache` makes room."""
        return [self.num_dims]

    def resize_cache(self, cache: Any, length: int) -> Any:
        """The cache with room for `length` symbols, those so far among them.

        For models whose step reads all of the room; others leave it as it is.
        """
        return cache

    @nn.nowrap
    def order_after(
        self, key: jax.Array, batch_size: int, first: np.ndarray
    ) -> jax.Array | None:
        """Orders int32 [B, D] to generate in, drawn, in which `first` (bool [D]) is first.

        None where the model has but the raster order. Others are an argument `order` of
        `init_cache` and `conditionals`.
        """
        return None

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) [B], exactly."""
        x = x.reshape(x.shape[0], self.num_dims)
        params = self.conditionals(x, cond, train=train)  # [B, D, P]
        log_p = self.each_log_prob(params, x)
        self.sow("maps", "map_symbols", log_p)  # for `bit_map`; else it costs nothing
        log_px = sum_dims(log_p)
        return log_px, {"symbols": log_px}

    def each_log_prob(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Log P of each symbol of x [B, D] by its `conditionals`, [B, D]."""
        log_p = self.symbol_log_prob(params, x)
        if self.end is None:
            return log_p
        previous = jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
        certain = self._is_over(jnp.arange(self.num_dims), previous)
        return jnp.where(certain, jnp.where(x == self.end, 0.0, -jnp.inf), log_p)

    def _is_over(self, index, previous):
        """Whether symbol `index` of a document can but be `end`."""
        ended = (index > 0) & (previous == self.end)
        return ended | (index == self.num_dims - 1)

    def with_end(
        self, logits: jax.Array, index: jax.Array, previous: jax.Array
    ) -> jax.Array:
        """The logits [B, K] of symbol `index`, or those of `end` where it is certain.

        `previous`, int32 [B], is the symbol before it.
        """
        if self.end is None:
            return logits
        only = jnp.where(jnp.arange(self.num_values) == self.end, 0.0, -jnp.inf)
        return jnp.where(self._is_over(index, previous)[:, None], only, logits)

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        guidance: float = 0.0,
        prefix: jax.Array | None = None,
    ) -> jax.Array:
        """Draws symbols one after the other, with the cache.

        Args:
          num_samples: N.
          cond: [N, ...] or None.
          temperature: divides the logits; other than 1 leaves the model.
          top_p: symbols are drawn from the `nucleus` of this mass; below 1 leaves it.
          guidance: g, of logits_none + (1 + g) (logits - logits_none), with which the
            model says what they would be without the condition; above 0 leaves it.
          prefix: [N, P] integers that the first P symbols are held to, in raster order:
            exact completion of a prefix.

        Returns:
          int32 [N, *shape].
        """
        rows = num_samples
        if guidance:
            rows, cond = 2 * num_samples, with_none(self.cond, cond)
        cache = self.init_cache(rows, cond)
        # One key outside the loop, folded with the index: make_rng inside it would give
        # every symbol the same noise.
        key = self.make_rng("sample")
        options: dict[str, Any] = dict(top_p=top_p, guidance=guidance)
        xs = self.draw(key, cache, num_samples, temperature, prefix, **options)
        return xs.reshape(num_samples, *self.shape)

    def draw(
        self,
        key: jax.Array,
        cache: Any,
        num_samples: int,
        temperature: float = 1.0,
        prefix: jax.Array | None = None,
        *,
        top_p: float = 1.0,
        guidance: float = 0.0,
    ) -> jax.Array:
        """Symbols [N, D] in the order of `step`, from a fresh cache; else as `sample`."""
        known = 0 if prefix is None else prefix.shape[1]
        plain = temperature == top_p == 1 and not guidance and self.end is None
        step = self.stepper()

        def draw_symbol(key, params, index, previous):
            if plain:
                return self.symbol_sample(key, params)
            logits = self.symbol_logits(params)
            logits = guide(logits, guidance) if guidance else logits
            logits = self.with_end(logits, index, previous) / temperature
            logits = nucleus(logits, top_p) if top_p < 1 else logits
            return jax.random.categorical(key, logits).astype(jnp.int32)

        def body(carry, index):
            cache, previous = carry
            given = jnp.tile(previous, 2) if guidance else previous
            cache, params = step(cache, index, given)
            x = draw_symbol(jax.random.fold_in(key, index), params, index, previous)
            if known:
                held = prefix[:, jnp.minimum(index, known - 1)]
                x = jnp.where(index < known, held, x).astype(jnp.int32)
            return (cache, x), x

        carry = (cache, jnp.zeros((num_samples,), jnp.int32))
        parts = []
        for first, last in itertools.pairwise([0, *self.cache_lengths]):
            carry = (self.resize_cache(carry[0], last), carry[1])
            carry, part = jax.lax.scan(body, carry, jnp.arange(first, last))
            parts.append(part)  # [symbols, N]
        return jnp.concatenate(parts).T
