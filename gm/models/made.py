"""MADE: masked autoencoder for distribution estimation (Germain et al. 2015).

An autoencoder whose weights are masked so that the output for x_d sees x_<d alone. Here
in the raster order, with one mask; `made_ensemble` has several of both. Hidden unit k has
a degree m(k); it sees inputs of number <= m(k), and output d sees hidden units of degree
< d (paper, eq. 8 and 9; inputs and outputs are numbered from 1). Without a hidden layer
(depth=0) it is the fully visible sigmoid belief network: a logistic regression of each
x_d on x_<d (Frey et al. 1996).

With fewer hidden units than symbols some degrees are missing, as in the paper: then a
symbol does not see the few just before it, and `receptive_field` says which.

Deviations from the paper: SiLU by default, for ReLU; degrees are even, not random; symbols
of up to 32 values are given one-hot.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.autoregressive import AutoregressiveModel, SymbolModel
from gm.errors import InputError
from gm.nn.conditioning import CondEmbedding, CondShift
from gm.nn.masked import MaskedDense, as_degrees, even_degrees
from gm.nn.symbols import num_features, symbol_features

_ACTIVATIONS = {"silu": nn.silu, "relu": nn.relu}


class MaskedNetwork(SymbolModel):
    """An MLP that gives every conditional in one pass, with R choices of its masks.

    `which` below is the number of the mask, 0 to R - 1.
    """

    width: int = 512
    depth: int = 1  # hidden layers; 0: FVSBN
    dropout_rate: float = 0.0
    activation: str = "silu"  # or "relu", as in the paper
    one_hot: bool = True  # inputs of 3 to 32 values; else one number in [-1, 1]
    num_mixtures: int | None = None  # None: a table up to 32 values, else 10 logistics

    def degrees(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Places of the symbols in the order, from 1, [R, D]; degrees of the hidden units.

        The latter, [R, width] for each layer, are at least `lowest_degree`.
        """
        raise TypeError(f"{type(self).__name__} defines no degrees")

    @property
    def lowest_degree(self) -> int:
        """0 with a condition: units that see no symbol tell the first one of it."""
        return 0 if self.cond else 1

    def setup(self) -> None:
        """Layers, and what the condition adds to the first of them."""
        if self.activation not in _ACTIVATIONS:
            raise InputError(
                f"--set=activation={self.activation}: give {' or '.join(_ACTIVATIONS)}"
            )
        features = num_features(self.num_values, self.one_hot)
        places, hidden = self.degrees()
        inputs = np.repeat(places, features, axis=1)
        outputs = np.repeat(places, self.num_params, axis=1)
        degrees = [as_degrees(d) for d in (inputs, *hidden, outputs)]
        self.layers = [
            MaskedDense(degrees[i], degrees[i + 1], dtype=self.dtype)
            for i in range(self.depth)
        ]
        self.head = MaskedDense(degrees[-2], degrees[-1], strict=True)
        self.embed = self.embedding(outputs.shape[1:])
        self.dropout = nn.Dropout(self.dropout_rate)

    def embedding(self, shape: tuple[int, ...]) -> nn.Module:
        """Embeds the condition; of that shape if it goes to the outputs themselves."""
        if self.depth:
            return CondEmbedding(self.cond, self.width, self.dtype)
        return CondShift(self.cond, self.width, shape)

    @property
    def _first(self):
        return self.layers[0] if self.depth else self.head

    def _features(self, x):
        """Integers [...] -> inputs [..., F]."""
        return symbol_features(x, self.num_values, self.one_hot)

    def _hidden(self, pre, which, train):
        """Pre-activation of the first hidden layer -> last hidden layer, [B, width]."""
        activation = _ACTIVATIONS[self.activation]
        h = self.dropout(activation(pre), deterministic=not train)
        for layer in self.layers[1:]:
            h = self.dropout(activation(layer(h, which)), deterministic=not train)
        return h

    def parameters(
        self,
        x: jax.Array,
        cond: Any,
        which: int | jax.Array = 0,
        *,
        train: bool = False,
    ) -> jax.Array:
        """X [B, D] -> parameters [B, D, P], each given the symbols before it in order."""
        features = self._features(x).reshape(x.shape[0], -1)
        out = self._first(features, which) + self.embed(cond)
        if self.depth:
            out = self.head(self._hidden(out, which, train), which)
        return out.reshape(*x.shape, self.num_params)

    def start(self, batch_size: int, cond: Any) -> jax.Array:
        """The first layer's pre-activation with no symbol seen: [B, its width]."""
        first = self._first.offset() + self.embed(cond)
        return jnp.broadcast_to(first, (batch_size, first.shape[1]))

    def add(
        self, pre: jax.Array, index: jax.Array, x: jax.Array, which: int | jax.Array = 0
    ) -> jax.Array:
        """Lets the pre-activation see symbol `index`, x [B]: O(width) for it."""
        features = self._features(x).astype(pre.dtype)  # [B, F]
        size = features.shape[1]
        return pre + features @ self._first.rows(index * size, size, which)

    def read(
        self, pre: jax.Array, index: jax.Array, which: int | jax.Array = 0
    ) -> jax.Array:
        """Parameters [B, P] of symbol `index`."""
        start, size = index * self.num_params, self.num_params
        if not self.depth:
            return jax.lax.dynamic_slice_in_dim(pre, start, size, axis=1)
        return self.head.columns(self._hidden(pre, which, False), start, size, which)


class MADE(MaskedNetwork, AutoregressiveModel):
    """One mask, in the raster order: the conditionals are at hand, and cached."""

    def degrees(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Degrees run evenly, so that positions have about as many units each."""
        even = even_degrees(self.width, self.num_dims, self.lowest_degree)
        return np.arange(1, self.num_dims + 1)[None], [even[None]] * self.depth

    @property
    def receptive_field(self) -> np.ndarray:
        """Bool [D, D]: symbol i sees up to the largest degree that is below its place."""
        if not self.depth:
            return super().receptive_field
        [places], [[degrees], *_] = self.degrees()
        below = degrees < places[:, None]  # [D, width]
        seen = np.where(below, degrees, 0).max(axis=1)
        return places <= seen[:, None]

    def conditionals(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """X [B, D] -> parameters [B, D, P] of P(x_d | x_<d)."""
        return self.parameters(x, cond, train=train)

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """The first layer's pre-activation [B, width] with no symbol seen."""
        return self.start(batch_size, cond)

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Adds one symbol to the pre-activation: O(width) for it, not O(D width)."""
        seen = self.add(cache, jnp.maximum(index - 1, 0), previous)
        cache = jnp.where(index > 0, seen, cache)
        return cache, self.read(cache, index)


Model = MADE
TINY = dict(width=32)
