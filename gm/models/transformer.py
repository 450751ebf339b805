"""A decoder-only transformer over symbols (Vaswani et al. 2017, Radford et al. 2019).

The order is the raster order (row, column, channel) of an image, a text or a puzzle.
Positions are rotary (Su et al. 2021), axial for images, with a learned embedding per axis
besides, since what an image or a puzzle shows depends on where. A table's output layer
starts at zero: the untrained model is uniform. With style="gpt2" it is the architecture of
Radford et al. (2019) without biases: learned positions, plain blocks, and one matrix that
embeds the values and reads them out.

With any_order=True it is trained on random orders s (Uria et al. 2014; Hoogeboom et al.
2022): token t carries x_s(t-1), and the positions s(t-1) and s(t). The mean over orders of

  log P_s(x) = sum_t log p(x_s(t) | x_s(1), ..., x_s(t-1))

is their bound, which is also that of absorbing diffusion (Austin et al. 2021); since s is
independent of x, P(x) = E_s P_s(x) is a mixture of orders and P_s(x) an unbiased estimate
of it. With evaluation_order="raster", which may be chosen after training, the same
parameters give one exact order.

Deviations from the papers: of any-order models, the network sees the known symbols in the
order in which they became known, so that all D terms come from one pass; theirs sees a set
and scores one term; with style="gpt2", the GELU is exact (as nanoGPT's is), not GPT-2's
approximation by a tanh.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.autoregressive import AutoregressiveModel
from gm.errors import InputError
from gm.likelihood import sum_dims
from gm.nn.attention import (
    Block,
    Looped,
    check_heads,
    coordinates,
    make_blocks,
    run_blocks,
    step_blocks,
)
from gm.nn.conditioning import CondEmbedding, grid_of, per_symbol, with_none
from gm.spec import Estimate


class Transformer(AutoregressiveModel):
    """Causal transformer with one token per symbol."""

    width: int = 128
    depth: int = 4
    num_heads: int = 4
    dropout_rate: float = 0.0
    scan_layers: bool | None = None  # compile one block for all; None: from 8 on
    style: str = "modern"  # or "gpt2"
    any_order: bool = False  # trained on random orders
    evaluation_order: str = "random"  # of an any-order model; or "raster"
    evaluation_fields: ClassVar[tuple[str, ...]] = ("evaluation_order",)

    @property
    def estimate(self) -> Estimate:  # type: ignore[override]
        """EXACT, unless the order is drawn."""
        return Estimate.WEIGHT if self._random else Estimate.EXACT

    @property
    def _random(self):
        return self.any_order and self.evaluation_order == "random"

    def _check(self):
        plain = self.style == "gpt2"
        for name, valid in (
            ("style", ("modern", "gpt2")),
            ("evaluation_order", _ORDERS),
        ):
            if getattr(self, name) not in valid:
                raise InputError(
                    f"--set={name}={getattr(self, name)}: give {' or '.join(valid)}"
                )
        if self.any_order and self.end is not None:
            raise InputError(
                "--set=any_order=True: a text that ends is read in its own order; "
                "leave it out"
            )
        if plain and (self.any_order or self.mixtures):
            field = "any_order" if self.any_order else "num_mixtures"
            raise InputError(
                f"--set=style=gpt2: it has no {field}; leave one of the two out"
            )
        check_heads(self.width, self.num_heads, rotary=not plain)

    def setup(self) -> None:
        """Embeddings, blocks, head."""
        self._check()
        plain = self.style == "gpt2"
        small, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        self.embed = nn.Embed(self.num_values, self.width, embedding_init=small)
        if plain:
            self.start = jnp.zeros(self.width)
            self.positions = self.param("positions", small, (self.num_dims, self.width))
            self.norm: nn.Module = nn.LayerNorm(1e-5, use_bias=False, dtype=self.dtype)
        else:
            self.start = self.param("start", small, (self.width,))
            self.axes = self._axes("axis", small)
            self.norm = nn.RMSNorm(dtype=self.dtype)
            # A table starts uniform; logistics that start equal would stay equal.
            init = zeros if not self.mixtures else small
            self.head = nn.Dense(self.num_params, kernel_init=init, dtype=jnp.float32)
        if self.any_order:
            self.source_axes = self._axes("source_axis", small)
        self.condition = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )
        block = functools.partial(
            Block,
            num_heads=self.num_heads,
            # Between tokens of a random order no distance means anything.
            shape=None if plain or self.any_order else self.shape,
            plain=plain,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        self.blocks = make_blocks(block, self.depth, self.scan_layers)
        self.dropout = nn.Dropout(self.dropout_rate)

    def _axes(self, name, init):
        return [
            self.param(f"{name}_{a}", init, (size, self.width))
            for a, size in enumerate(self.shape)
        ]

    def _read(self, h):
        """Parameters [..., P] from the last block's output, float32."""
        h = self.norm(h)
        if self.style != "gpt2":
            return self.head(h)
        logits = h.astype(jnp.float32) @ self.embed.embedding.T
        return logits[..., 1:] - logits[..., :1] if self.num_values == 2 else logits

    def _places(self):
        """Embeddings [D, width] of the positions of the symbols that are predicted."""
        if self.style == "gpt2":
            return self.positions
        return _sum_axes(self.axes, self.shape)

    def _sources(self):
        """Embeddings [D, width] of the positions of the symbols that tokens carry."""
        if not self.any_order:
            return jnp.zeros((self.num_dims, self.width))
        return _sum_axes(self.source_axes, self.shape)

    def _told(self, cond, order):
        """What the condition adds to each token, [B, D or 1, width], in order."""
        told = per_symbol(self.condition(cond), self.shape)
        if order is None or told.shape[1] == 1:
            return told
        return jnp.take_along_axis(told, order[..., None], axis=1)

    def conditionals(
        self,
        x: jax.Array,
        cond: jax.Array | None = None,
        *,
        order: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Parameters of every symbol given those before it in order.

        Args:
          x: [B, D] integers, in that order.
          cond: [B, ...] or None.
          order: [B, D] integers, the position of each symbol of x; None: the raster
            order. Others are for any-order models.
          train: whether to drop out.

        Returns:
          float32 [B, D, P].
        """
        places, sources = self._places(), self._sources()
        if order is not None:
            places, sources = places[order], sources[order]
        # Token t carries symbol t-1 and the position of the symbol that it predicts.
        carried = self.embed(x[:, :-1]) + sources[..., :-1, :]
        start = jnp.broadcast_to(self.start, (x.shape[0], 1, self.width))
        h = jnp.concatenate([start, carried], axis=1)
        h = h + places + self._told(cond, order)
        h = self.dropout(h.astype(self.dtype), deterministic=not train)
        return self._read(run_blocks(self.blocks, h, train))

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) [B], or log P_s(x) for an order s drawn for each example."""
        if not self._random and not (self.any_order and train):
            return super().log_prob(x, cond, train=train)
        x = x.reshape(x.shape[0], self.num_dims)
        order = self._draw_order(self.make_rng("sample"), x.shape[0])
        x = jnp.take_along_axis(x, order, axis=1)
        params = self.conditionals(x, cond, order=order, train=train)
        log_px = sum_dims(self.symbol_log_prob(params, x))
        return log_px, {"symbols": log_px}

    def _draw_order(self, key, batch_size, known=0):
        """Random orders [B, D] that begin with the first `known` positions."""
        rank = jax.random.uniform(key, (batch_size, self.num_dims))
        first = jnp.arange(self.num_dims)
        return jnp.argsort(jnp.where(first < known, first - known, rank), axis=1)

    @nn.nowrap
    def order_after(
        self, key: jax.Array, batch_size: int, first: np.ndarray
    ) -> jax.Array | None:
        """Random orders, those of `first` before the others; None for the raster order."""
        if not self._random:
            return None
        rank = jax.random.uniform(key, (batch_size, self.num_dims))
        return jnp.argsort(rank + ~jnp.asarray(first), axis=1)

    def init_cache(
        self,
        batch_size: int,
        cond: jax.Array | None = None,
        order: jax.Array | None = None,
    ) -> Any:
        """The condition, the positions, and keys and values of every block."""
        head_dim = self.width // self.num_heads
        shape = (batch_size, self.num_heads, self.num_dims, head_dim)
        empty = (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        places, sources = self._places(), self._sources()
        # What the position adds to each token [D, width] or, in order, [B, D, width].
        if order is not None:
            places, sources = places[order], sources[order]
        first = jnp.zeros_like(sources[..., :1, :])
        where = places + jnp.concatenate([first, sources[..., :-1, :]], axis=-2)
        fixed = (
            jnp.moveaxis(self._told(cond, order), 1, 0),
            jnp.moveaxis(where, -2, 0),
        )
        return fixed, [empty] * self.depth

    @property
    def cache_lengths(self) -> list[int]:
        """Up to 8 segments of 128 symbols or more: attention reads all of the room."""
        count = min(-(-self.num_dims // _SEGMENT), 8)
        return [-(-self.num_dims * (i + 1) // count) for i in range(count)]

    def resize_cache(self, cache: Any, length: int) -> Any:
        """Keys and values [B, heads, length, head_dim]; the room added is empty."""
        fixed, cells = cache
        return fixed, jax.tree.map(lambda kept: _resize(kept, length), cells)

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Parameters [B, P] of symbol `index`; the cache grows by one position."""
        return self.stepper()(cache, index, previous)

    def stepper(self) -> Callable[..., Any]:
        """As the base class."""
        blocks = self.blocks
        each = blocks.each() if isinstance(blocks, Looped) else blocks

        def step(cache, index, previous):
            fixed, cells = cache
            told, where = fixed
            token = jnp.where(index > 0, self.embed(previous), self.start)
            h = token + where[index] + told[index % told.shape[0]]
            h = h[:, None].astype(self.dtype)
            h, grown = step_blocks(each, h, cells, index)
            return (fixed, grown), self._read(h)[:, 0]

        return step

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
        """As the base class; an order is drawn for each sample, the prefix first."""
        options: dict[str, Any] = dict(top_p=top_p, guidance=guidance)
        if not self._random:
            options |= dict(temperature=temperature, prefix=prefix)
            return super().sample(num_samples, cond, **options)
        known = 0 if prefix is None else prefix.shape[1]
        order = self._draw_order(self.make_rng("sample"), num_samples, known)
        orders = order
        if guidance:
            cond, orders = with_none(self.cond, cond), jnp.tile(order, (2, 1))
        cache = self.init_cache(len(orders), cond, orders)
        key = self.make_rng("sample")
        # In that order.
        drawn = self.draw(key, cache, num_samples, temperature, prefix, **options)
        x = jnp.take_along_axis(drawn, jnp.argsort(order, axis=1), axis=1)
        return x.reshape(num_samples, *self.shape)


_ORDERS = ("random", "raster")
_SEGMENT = 128  # symbols after which the cache gets more room in sampling


def _resize(kept, length):
    """[B, heads, T, head_dim], cut off or filled up with zeros along T."""
    added = max(length - kept.shape[2], 0)
    return jnp.pad(kept[:, :, :length], ((0, 0), (0, 0), (0, added), (0, 0)))


def _sum_axes(tables, shape):
    """[D, width]: the sum of the embeddings of each symbol's coordinates."""
    where = coordinates(shape)
    return sum(table[where[:, a]] for a, table in enumerate(tables))


Model = Transformer
TINY = dict(width=16, depth=2, num_heads=2)
