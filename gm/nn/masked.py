"""Dense layers that let each output see a part of the inputs alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Degrees = tuple[tuple[int, ...], ...]


def as_degrees(table: np.ndarray) -> Degrees:
    """Integers [R, units] as nested tuples: the fields of a module must be hashable."""
    return tuple(map(tuple, table.tolist()))


def even_degrees(width: int, num_dims: int, lowest: int) -> np.ndarray:
    """Degrees [width] of hidden units, from `lowest` to D - 1, so that none is short."""
    return np.arange(width) * max(num_dims - lowest, 1) // width + lowest


class MaskedDense(nn.Module):
    """A dense layer whose kernel [I, O] is multiplied by a constant mask.

    An output of degree m sees the inputs of degree <= m, or < m if strict (Germain et al.
    2015, eq. 8 and 9). There may be R masks for one kernel; `which` selects one.
    """

    in_degrees: Degrees  # R rows of I
    out_degrees: Degrees  # R rows of O
    strict: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        """The kernel; its initial scale counts only the inputs let through."""

        def init(key, shape, dtype=jnp.float32):
            seen = self._count_inputs()
            fan_in = np.maximum(seen.astype(np.float32) / len(self.in_degrees), 1)
            # Not by numpy: what is only asked for its shape must not need its memory.
            masks = self._mask(*map(jnp.asarray, (self.in_degrees, self.out_degrees)))
            return jax.random.normal(key, shape, dtype) * masks.any(0) / np.sqrt(fan_in)

        shape = (len(self.in_degrees[0]), len(self.out_degrees[0]))
        self.kernel = self.param("kernel", init, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape[1:])

    def _mask(self, low, high):
        """Whether output o sees input i: bool [..., I, O]."""
        low, high = low[..., :, None], high[..., None, :]
        return low < high if self.strict else low <= high

    def _count_inputs(self):
        """How many inputs each output sees, over all masks: [O]."""
        side = "left" if self.strict else "right"
        pairs = zip(self.in_degrees, self.out_degrees, strict=True)
        return sum(np.searchsorted(np.sort(low), high, side) for low, high in pairs)

    def _degrees(self, which):
        return (
            jnp.asarray(np.asarray(self.in_degrees))[which],
            jnp.asarray(np.asarray(self.out_degrees))[which],
        )

    def __call__(self, h: jax.Array, which: int | jax.Array = 0) -> jax.Array:
        """[B, I] -> [B, O]."""
        kernel = jnp.where(self._mask(*self._degrees(which)), self.kernel, 0)
        return h.astype(self.dtype) @ kernel.astype(self.dtype) + self.offset()

    def offset(self) -> jax.Array:
        """The bias [O] in the layer's dtype: the output where all inputs are zero."""
        return self.bias.astype(self.dtype)

    def rows(
        self, start: int | jax.Array, size: int, which: int | jax.Array = 0
    ) -> jax.Array:
        """The masked kernel of `size` inputs from `start`: [size, O]."""
        low, high = self._degrees(which)
        low = jax.lax.dynamic_slice_in_dim(low, start, size)
        kernel = jax.lax.dynamic_slice_in_dim(self.kernel, start, size)
        return jnp.where(self._mask(low, high), kernel, 0).astype(self.dtype)

    def columns(
        self,
        h: jax.Array,
        start: int | jax.Array,
        size: int,
        which: int | jax.Array = 0,
    ) -> jax.Array:
        """`size` outputs from `start`, the others not computed: [B, I] -> [B, size]."""
        low, high = self._degrees(which)
        high = jax.lax.dynamic_slice_in_dim(high, start, size)
        kernel = jax.lax.dynamic_slice_in_dim(self.kernel, start, size, axis=1)
        kernel = jnp.where(self._mask(low, high), kernel, 0).astype(self.dtype)
        bias = jax.lax.dynamic_slice_in_dim(self.offset(), start, size)
        return h.astype(self.dtype) @ kernel + bias
