"""A decoder-only transformer over the symbols of an image, a text or a puzzle.

The order is the raster order (row, column, channel). Positions are rotary (Su et al.
2021), axial for images, with a learned embedding per axis besides, since what an image
or a puzzle shows depends on where. Blocks are pre-norm with RMSNorm (Zhang & Sennrich
2019), QK-norm and SwiGLU (Shazeer 2020). A table's output layer starts at zero: the
untrained model is uniform.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.autoregressive import AutoregressiveModel
from gm.errors import InputError
from gm.nn.attention import Block, coordinates
from gm.nn.conditioning import CondEmbedding


class Transformer(AutoregressiveModel):
    """Causal transformer with one token per symbol."""

    width: int = 128
    depth: int = 4
    num_heads: int = 4
    dropout_rate: float = 0.0

    def setup(self) -> None:
        """Embeddings, blocks, head."""
        if self.width % (2 * self.num_heads):
            raise InputError(
                f"--set=width={self.width}: give a multiple of 2 num_heads = "
                f"{2 * self.num_heads}, since rotary positions turn pairs"
            )
        small = nn.initializers.normal(0.02)
        self.embed = nn.Embed(self.num_values, self.width, embedding_init=small)
        self.start = self.param("start", small, (self.width,))
        self.axes = [
            self.param(f"axis_{a}", small, (size, self.width))
            for a, size in enumerate(self.shape)
        ]
        self.condition = CondEmbedding(self.cond, self.width, self.dtype)
        self.blocks = [
            Block(
                num_heads=self.num_heads,
                shape=self.shape,
                dropout_rate=self.dropout_rate,
                dtype=self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.norm = nn.RMSNorm(dtype=self.dtype)
        # A table starts uniform; logistics that start equal would stay equal.
        init = nn.initializers.zeros if not self.mixtures else small
        self.head = nn.Dense(self.num_params, kernel_init=init, dtype=jnp.float32)
        self.dropout = nn.Dropout(self.dropout_rate)

    def _position_embedding(self):
        """[D, width]: the sum of the embeddings of a symbol's coordinates."""
        where = coordinates(self.shape)
        return sum(table[where[:, a]] for a, table in enumerate(self.axes))

    def conditionals(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """X [B, D] -> parameters [B, D, P] of P(x_d | x_<d)."""
        # Token d carries symbol d-1 and the position of the symbol that it predicts.
        start = jnp.broadcast_to(self.start, (x.shape[0], 1, self.width))
        h = jnp.concatenate([start, self.embed(x[:, :-1])], axis=1)
        h = h + self._position_embedding() + self.condition(cond)[:, None]
        h = self.dropout(h.astype(self.dtype), deterministic=not train)
        for block in self.blocks:
            h, _ = block(h, train=train)
        return self.head(self.norm(h))

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """The condition, the positions, and keys and values of every block."""
        head_dim = self.width // self.num_heads
        shape = (batch_size, self.num_heads, self.num_dims, head_dim)
        empty = (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        fixed = (self.condition(cond), self._position_embedding())
        return fixed, [empty] * self.depth

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Parameters [B, P] of symbol `index`; the cache grows by one position."""
        fixed, cells = cache
        condition, where = fixed
        token = jnp.where(index > 0, self.embed(previous), self.start)
        h = (token + where[index] + condition)[:, None].astype(self.dtype)
        grown = []
        for block, cell in zip(self.blocks, cells, strict=True):
            h, cell = block(h, cell, index)
            grown.append(cell)
        return (fixed, grown), self.head(self.norm(h))[:, 0]


Model = Transformer
TINY = dict(width=16, depth=2, num_heads=2)
