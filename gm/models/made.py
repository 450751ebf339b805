"""MADE: masked autoencoder for distribution estimation (Germain et al. 2015).

An autoencoder whose weights are masked so that the output for x_d sees x_<d alone. Here
in the raster order, with one mask. Hidden unit k has a degree m(k); it sees inputs of
number <= m(k), and output d sees hidden units of degree < d (paper, eq. 8 and 9; inputs
and outputs are numbered from 1).

Deviations from the paper: SiLU for ReLU; symbols of up to 32 values are given one-hot.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.autoregressive import AutoregressiveModel
from gm.likelihood import scale
from gm.nn.conditioning import CondEmbedding


class MaskedDense(nn.Module):
    """A dense layer whose kernel [I, O] is multiplied by a constant mask."""

    in_degrees: tuple[int, ...]
    out_degrees: tuple[int, ...]
    strict: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        """The masked kernel; its initial scale counts only the inputs let through."""
        low, high = np.asarray(self.in_degrees), np.asarray(self.out_degrees)
        compare = np.less if self.strict else np.less_equal
        mask = compare(low[:, None], high[None, :]).astype(np.float32)
        fan_in = np.maximum(mask.sum(0), 1)

        def init(key, shape, dtype=jnp.float32):
            return jax.random.normal(key, shape, dtype) * mask / np.sqrt(fan_in)

        kernel = self.param("kernel", init, mask.shape)
        self.kernel = (kernel * mask).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (mask.shape[1],))
        self.bias = bias.astype(self.dtype)

    def __call__(self, h: jax.Array) -> jax.Array:
        """[B, I] -> [B, O]."""
        return h.astype(self.dtype) @ self.kernel + self.bias


class MADE(AutoregressiveModel):
    """A masked MLP that gives every conditional in one pass."""

    width: int = 512
    depth: int = 1  # hidden layers
    dropout_rate: float = 0.0
    one_hot: bool = True  # inputs of 3 to 32 values; else one number in [-1, 1]
    num_mixtures: int | None = None  # None: categorical up to 32 values, else 10

    @property
    def mixtures(self) -> int:
        """Discretized logistics per symbol; 0: a table over the values."""
        if self.num_mixtures is None:
            return 0 if self.num_values <= 32 else 10
        return self.num_mixtures

    @property
    def num_features(self) -> int:
        """How many inputs a symbol has: 1, or one for each value."""
        return self.num_values if self.one_hot and 2 < self.num_values <= 32 else 1

    def setup(self) -> None:
        """Degrees and layers."""
        dims = np.arange(1, self.num_dims + 1)
        inputs = tuple(np.repeat(dims, self.num_features).tolist())
        outputs = tuple(np.repeat(dims, self.num_params).tolist())
        # Degrees run evenly, so that no position is short of units; with a condition
        # they start at 0: units that see no symbol tell the first one of it.
        low = 0 if self.cond else 1
        count = max(self.num_dims - low, 1)
        cycle = np.arange(self.width) * count // self.width + low
        hidden = tuple(cycle.tolist())
        degrees = [inputs] + [hidden] * self.depth
        self.layers = [
            MaskedDense(degrees[i], degrees[i + 1], dtype=self.dtype)
            for i in range(self.depth)
        ]
        self.head = MaskedDense(degrees[-1], outputs, strict=True)
        self.embed = CondEmbedding(self.cond, self.width, self.dtype)
        self.dropout = nn.Dropout(self.dropout_rate)

    def _features(self, x):
        """Integers [...] -> inputs [..., num_features]."""
        if self.num_features == 1:
            return scale(x, self.num_values)[..., None]
        return jax.nn.one_hot(x, self.num_values)

    def _rest(self, pre, train):
        """Pre-activation of the first hidden layer -> last hidden layer, [B, width]."""
        h = self.dropout(nn.silu(pre), deterministic=not train)
        for layer in self.layers[1:]:
            h = self.dropout(nn.silu(layer(h)), deterministic=not train)
        return h

    def conditionals(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """X [B, D] -> parameters [B, D, P] of P(x_d | x_<d)."""
        features = self._features(x).reshape(x.shape[0], -1)
        h = self._rest(self.layers[0](features) + self.embed(cond), train)
        return self.head(h).reshape(*x.shape, self.num_params)

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """The first layer's pre-activation [B, width] with no symbol seen."""
        first = self.layers[0].bias + self.embed(cond)
        return jnp.broadcast_to(first, (batch_size, self.width))

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Adds one symbol to the pre-activation: O(width) for it, not O(D width)."""
        rows = jax.lax.dynamic_slice_in_dim(
            self.layers[0].kernel,
            jnp.maximum(index - 1, 0) * self.num_features,
            self.num_features,
        )
        update = self._features(previous).astype(self.dtype) @ rows
        pre = cache + jnp.where(index > 0, update, 0)
        start, size = index * self.num_params, self.num_params
        kernel = jax.lax.dynamic_slice_in_dim(self.head.kernel, start, size, axis=1)
        bias = jax.lax.dynamic_slice_in_dim(self.head.bias, start, size)
        return pre, self._rest(pre, train=False) @ kernel + bias


Model = MADE
TINY = dict(width=16)
