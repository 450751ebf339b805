"""One network, three ways to run it: a whole image, a row or a pixel at a time.

Networks that read an image in raster order are written once, against a view. `Whole`
takes all pixels at once [B, H, W, I], with paddings that hide what is to come. `Row` and
`Pixel` take one row [B, 1, W, I] or one pixel [B, 1, 1, I], and find what came before in
a cache: the last few rows of each convolution's input, in a ring. All three give the same
numbers. Two networks suffice for any causal one: the first sees complete rows alone and
is run a row at a time, the second reads the first (`pick`) and is run pixel by pixel
(Ramachandran et al. 2017).

Coarser scales (`coarser`): the coarse pixel (r // 2, c // 2) sees the fine pixels up to
(2 (r // 2), 2 (c // 2)). It is computed at that one, and remembered for the other three.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.nn.attention import attend
from gm.nn.conditioning import per_position
from gm.nn.convolution import depth_to_space, padded_conv


class View:
    """What a network may do with more than one pixel; tensors as the view's kind says."""

    def conv(
        self, x: jax.Array, kernel: jax.Array, right: int = 0, stride: int = 1
    ) -> jax.Array:
        """Causal convolution with a kernel [h, w, I, O], stride 1 or 2.

        The window ends at the pixel's row, and `right` columns to its right; with
        stride 2, those of the fine pixel (2i, 2j).
        """
        if kernel.shape[:2] == (1, 1) and stride == 1:
            return x @ kernel[0, 0]
        return self._conv(x, kernel, right, stride)

    def _conv(self, x, kernel, right, stride):
        raise NotImplementedError

    def up(self, x: jax.Array, kernel: jax.Array, right: int = 0) -> jax.Array:
        """Doubles the resolution, called on the finer view.

        The coarse pixel (i, j) adds x @ kernel[a, b] to the fine (2i + a, 2j + b - right);
        kernel [2, 2 + right, I, O].
        """
        raise NotImplementedError

    def coarser(
        self,
        module: nn.Module,
        network: Callable[["View", jax.Array], jax.Array],
        x: jax.Array,
    ) -> jax.Array:
        """What a network gives at half the resolution: network(view there, x).

        The layers of the network are those of `module`, in which this is called.
        """
        raise NotImplementedError

    def after_first(self, x: jax.Array, axis: str) -> jax.Array:
        """Zero in the first row or column."""
        raise NotImplementedError

    def pick(self, x: jax.Array) -> jax.Array:
        """What the network of rows gives, for the network of pixels."""
        raise NotImplementedError

    def at(self, table: jax.Array) -> jax.Array:
        """What a table [H, W, F] says of each pixel: [1, h, w, F]."""
        raise NotImplementedError

    def condition(self, cond: jax.Array, h: jax.Array) -> jax.Array:
        """What a condition's embedding, a vector or a map, tells pixels h [B, h, w, I]."""
        raise NotImplementedError

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Each pixel attends to itself and those before: [B, h, w, heads, d]."""
        raise NotImplementedError


def _up_kernel(kernel, right):
    """[2, 2 + right, I, O] -> [2, 2, J, O]: from a coarse pixel, with its right one."""
    if not right:
        return kernel
    even = jnp.stack([kernel[:, 1], jnp.zeros_like(kernel[:, 1])], axis=1)
    odd = jnp.stack([kernel[:, 2], kernel[:, 0]], axis=1)  # [2, 2, I, O]
    both = jnp.stack([even, odd], axis=1)
    return both.reshape(2, 2, -1, kernel.shape[-1])


def _with_right(x, right):
    """Adds the features of the pixel to the right: [B, h, w, I] -> [B, h, w, J]."""
    if not right:
        return x
    after = jnp.pad(x[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
    return jnp.concatenate([x, after], axis=-1)


class Whole(View):
    """The whole image at once: [B, H, W, I]."""

    def _conv(self, x, kernel, right, stride):
        rows, columns = kernel.shape[:2]
        pads = ((rows - 1, 0), (columns - 1 - right, right))
        if stride == 1:
            return padded_conv(x, kernel, pads)
        # Only what is kept, as one product: strided gradients are slow on CPU.
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        taps = [
            x[:, a : a + height : stride, b : b + width : stride]
            for a in range(rows)
            for b in range(columns)
        ]
        return jnp.concatenate(taps, -1) @ kernel.reshape(-1, kernel.shape[-1])

    def up(self, x: jax.Array, kernel: jax.Array, right: int = 0) -> jax.Array:
        """As one product, and a change of layout."""
        kernel = _up_kernel(kernel, right)
        kernel = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
        return depth_to_space(_with_right(x, right) @ kernel)

    def coarser(self, module: Any, network: Any, x: jax.Array) -> jax.Array:
        """With this view: it knows of no size."""
        return network(self, x)

    def delay(self, x: jax.Array) -> jax.Array:
        """Row r becomes row r - 1; the first is zero."""
        return jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))

    def after_first(self, x: jax.Array, axis: str) -> jax.Array:
        """By position."""
        size = x.shape[1 if axis == "row" else 2]
        shape = (-1, 1, 1) if axis == "row" else (-1, 1)
        return jnp.where((jnp.arange(size) > 0).reshape(shape), x, 0)

    def pick(self, x: jax.Array) -> jax.Array:
        """All of it."""
        return x

    def at(self, table: jax.Array) -> jax.Array:
        """All of it."""
        return table[None]

    def condition(self, cond: jax.Array, h: jax.Array) -> jax.Array:
        """All of it, at the scale of h."""
        return per_position(cond, h.shape[1:3])

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """With a triangular mask."""
        batch, height, width = q.shape[:3]
        heads_first = [
            t.reshape(batch, height * width, *t.shape[3:]).swapaxes(1, 2)
            for t in (q, k, v)
        ]
        out = attend(*heads_first, jnp.tri(height * width, dtype=bool))
        return out.swapaxes(1, 2).reshape(*q.shape[:4], -1)


class _Cached(View):
    """At a place (row, column); every call takes the next buffer and gives it back."""

    def __init__(
        self,
        row: jax.Array,
        column: jax.Array,
        width: int,
        num_pixels: int,
        buffers: Sequence[Any] | None,
    ):
        self.row, self.column, self.width = row, column, width
        self.num_pixels = num_pixels
        self._old = None if buffers is None else iter(buffers)  # None: all are empty
        self.buffers: list[Any] = []  # as they are after the calls so far

    def _halved(self, buffers):
        place = (self.row // 2, self.column // 2, self.width // 2)
        return type(self)(*place, self.num_pixels, buffers)

    def _buffer(self, x, shape):
        if self._old is None:
            return jnp.zeros((x.shape[0], *shape), x.dtype)
        return next(self._old)

    def _remember(self, x, num_rows, left, right):
        """Puts x [B, 1, n, I] in a ring of rows; returns it [B, num_rows, padded, I]."""
        shape = (num_rows, left + self.width + right, x.shape[-1])
        place = (0, self.row % num_rows, left + self.column, 0)
        ring = jax.lax.dynamic_update_slice(self._buffer(x, shape), x, place)
        self.buffers.append(ring)
        return ring

    def _rows(self, ring, count, stride):
        """The last `count` rows up to the one that a coarse row sees."""
        last = self.row // stride * stride
        return jnp.take(ring, (last - count + 1 + jnp.arange(count)) % ring.shape[1], 1)

    def after_first(self, x: jax.Array, axis: str) -> jax.Array:
        return jnp.where(getattr(self, axis) > 0, x, 0)

    def condition(self, cond: jax.Array, h: jax.Array) -> jax.Array:
        """At the row, or at the pixel, of the view's scale."""
        if cond.ndim == 2:
            return per_position(cond, h.shape[1:3])
        height, width = cond.shape[1:3]
        cond = per_position(cond, (height * self.width // width, self.width))
        place = (0, self.row, self.column, 0)
        size = (cond.shape[0], *h.shape[1:3], cond.shape[3])
        return jax.lax.dynamic_slice(cond, place, size)


class Row(_Cached):
    """A complete row at a time, its column being 0: [B, 1, W, I]."""

    def _conv(self, x, kernel, right, stride):
        rows, columns = kernel.shape[:2]
        ring = self._remember(x, rows + stride - 1, 0, 0)
        window = self._rows(ring, rows, stride)
        pads = ((0, 0), (columns - 1 - right, right))
        return padded_conv(window, kernel, pads)[:, :, ::stride]

    def coarser(self, module: Any, network: Any, x: jax.Array) -> jax.Array:
        """Anew at both of its fine rows, which is cheap beside their pixels."""
        old = None if self._old is None else next(self._old)
        coarse = self._halved(old)
        out = network(coarse, x)
        self.buffers.append(coarse.buffers)
        return out

    def up(self, x: jax.Array, kernel: jax.Array, right: int = 0) -> jax.Array:
        """The row's half of the kernel."""
        kernel = _up_kernel(kernel, right)[self.row % 2]  # [2, J, O]
        out = jnp.einsum("bhwi,pio->bhwpo", _with_right(x, right), kernel)
        return out.reshape(x.shape[0], 1, -1, kernel.shape[-1])


class Pixel(_Cached):
    """A pixel at a time: [B, 1, 1, I]."""

    def _conv(self, x, kernel, right, stride):
        rows, columns, _, features = kernel.shape
        left = columns - 1 - right
        ring = self._remember(x, rows + stride - 1, left, right)
        first = self.column // stride * stride  # in padded columns: the window's first
        window = jax.lax.dynamic_slice_in_dim(ring, first, columns, axis=2)
        window = self._rows(window, rows, stride)  # [B, h, w, I]
        out = window.reshape(x.shape[0], -1) @ kernel.reshape(-1, features)
        return out[:, None, None]

    def coarser(self, module: Any, network: Any, x: jax.Array) -> jax.Array:
        """At the first of its fine pixels; at the others, from a buffer of its row."""

        def run(module, x, line, buffers):
            coarse = self._halved(buffers)
            out = network(coarse, x)
            if line is None:
                line = jnp.zeros(
                    (*out.shape[:2], coarse.width, out.shape[3]), out.dtype
                )
            place = (0, 0, coarse.column, 0)
            return jax.lax.dynamic_update_slice(line, out, place), coarse.buffers

        def remember(module, x, line, buffers):
            return line, buffers

        if self._old is None:
            line, buffers = run(module, x, None, None)
        else:
            first = (self.row % 2 == 0) & (self.column % 2 == 0)
            line, buffers = nn.cond(first, run, remember, module, x, *next(self._old))
        self.buffers.append((line, buffers))
        return jax.lax.dynamic_slice_in_dim(line, self.column // 2, 1, axis=2)

    def up(self, x: jax.Array, kernel: jax.Array, right: int = 0) -> jax.Array:
        """One matrix of the kernel."""
        if right:
            raise ValueError("a pixel's right neighbour is not known yet")
        return x @ kernel[self.row % 2, self.column % 2]

    def pick(self, x: jax.Array) -> jax.Array:
        """The pixel of a row at its scale."""
        return jax.lax.dynamic_slice_in_dim(x, self.column, 1, axis=2)

    def at(self, table: jax.Array) -> jax.Array:
        """The pixel's entry."""
        return table[self.row, self.column][None, None, None]

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """With keys and values of the pixels before, [B, heads, H W, d]."""
        index = self.row * self.width + self.column
        known = []
        for t in (k, v):
            new = t[:, 0].swapaxes(1, 2)  # [B, heads, 1, d]
            buffer = self._buffer(t, (new.shape[1], self.num_pixels, new.shape[3]))
            known.append(jax.lax.dynamic_update_slice_in_dim(buffer, new, index, 2))
        self.buffers += known
        allowed = jnp.arange(self.num_pixels) <= index
        out = attend(q[:, 0].swapaxes(1, 2), *known, allowed)
        return out.swapaxes(1, 2)[:, None]
