"""Symbols as inputs of a network."""

import jax

from gm.likelihood import scale

MAX_ONE_HOT = 32  # values beyond which a symbol is given as one number


def num_features(num_values: int, one_hot: bool) -> int:
    """F, the inputs of one symbol: one for each of 3 to 32 values, else one number."""
    return num_values if one_hot and 2 < num_values <= MAX_ONE_HOT else 1


def symbol_features(x: jax.Array, num_values: int, one_hot: bool) -> jax.Array:
    """Integers [...] -> inputs [..., F]: one-hot, or one number in [-1, 1]."""
    if num_features(num_values, one_hot) == 1:
        return scale(x, num_values)[..., None]
    return jax.nn.one_hot(x, num_values)
