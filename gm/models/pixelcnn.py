"""PixelCNN: convolutions that see the pixels before (van den Oord et al. 2016a, 2016b).

"Pixel recurrent neural networks" and "Conditional image generation with PixelCNN
decoders". Two architectures:

gated=True: a vertical stack sees the rows above, a horizontal one its own row to the left
and, by a link, the vertical stack. Both have gates (2016b, eq. 2):
y = tanh(W_f * x) sigmoid(W_g * x). Every pixel before is seen, given depth.

gated=False: one stack of masked convolutions, mask A first (not the pixel itself), mask B
after, in residual blocks (2016a, section 3). Its receptive field has a blind spot to the
right of the pixel, growing by one column a row, which no depth fills (2016b, figure 1):
`receptive_field` says so.

Deviations from the paper: masks of channels are replaced by a head in which the hidden
layer of a colour channel sees the channels before it, which depends on as much; beyond
32 values the head is a mixture of logistics (Salimans et al. 2017). The vertical stack has
1 x 1 convolutions of its features beside the k x k ones. With gates the head reads skip
connections, and also what the last layer would hand on to a next one, so that no weight is
idle. The condition enters the horizontal stack alone.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.errors import InputError
from gm.nn import reach
from gm.nn.causal import CausalConv
from gm.nn.reach import ABOVE, LEFT
from gm.nn.symbols import num_features, symbol_features
from gm.nn.views import View
from gm.raster import PixelModel


@jax.jit
def _gate(h: jax.Array) -> jax.Array:
    """tanh(a) sigmoid(b) of the halves: [..., 2I] -> [..., I]."""
    a, b = jnp.split(h, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


class VerticalLayer(nn.Module):
    """A layer of the vertical stack, on features v of the rows above."""

    width: int
    kernel_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, view: View, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """V [B, h, w, I] at row r, of rows < r -> (next v, link [B, h, w, 2 width]).

        A k x k kernel over the rows above is a 1 x k and a (k // 2 + 1) x 1 kernel.
        """
        k = self.kernel_size

        def layer(features, size, right, name):
            return CausalConv(features, size, right, dtype=self.dtype, name=name)

        wide = layer(self.width, (1, k), k // 2, "wide")(view, v)
        wide = view.after_first(wide, "row")  # nothing is above the first row
        tall = layer(2 * self.width, (k // 2 + 1, 1), 0, "tall")(view, wide)
        link = layer(2 * self.width, (1, 1), 0, "link")(view, tall)
        own = layer(2 * self.width, (1, 1), 0, "own")(view, v)
        return _gate(self.handed_on(view, tall) + own), link

    def handed_on(self, view: View, tall: jax.Array) -> jax.Array:
        """What the next layer of the stack gets of the rows' convolution: all of it."""
        return tall


class HorizontalLayer(nn.Module):
    """A layer of the horizontal stack, on features h of the row to the left."""

    width: int
    kernel_size: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        view: View,
        h: jax.Array,
        link: jax.Array | None,
        cond: jax.Array | None,
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """H [B, h, w, I] -> (residual branch, skip), both [B, h, w, width]."""

        def layer(features, size, name):
            return CausalConv(features, (1, size), dtype=self.dtype, name=name)

        out = layer(2 * self.width, self.kernel_size // 2 + 1, "row")(view, h)
        if link is not None:
            out = out + view.pick(link)
        if cond is not None:
            told = view.condition(cond, out)
            out = out + nn.Dense(2 * self.width, use_bias=False, dtype=self.dtype)(told)
        out = nn.Dropout(self.dropout_rate, deterministic=not train)(_gate(out))
        residual = layer(self.width, 1, "residual")(view, out)
        return residual, layer(self.width, 1, "skip")(view, out)


def _masked(size):
    """Mask B [k // 2 + 1, k] of a kernel that ends at the pixel's row."""
    mask = np.ones((size // 2 + 1, size), int)
    mask[-1, size // 2 + 1 :] = 0
    return mask


class MaskedLayer(nn.Module):
    """A convolution over the rows above, the row to the left and the pixel itself."""

    width: int
    kernel_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, view: View, x: jax.Array) -> jax.Array:
        """[B, h, w, I] -> [B, h, w, width]."""
        mask = _masked(self.kernel_size)
        return CausalConv(
            self.width,
            mask.shape,
            self.kernel_size // 2,
            mask=tuple(map(tuple, mask.tolist())),
            dtype=self.dtype,
            name="conv",
        )(view, x)


class MaskedBlock(nn.Module):
    """The residual block of 2016a, figure 5: 1 x 1, masked k x k, 1 x 1, with ReLU."""

    kernel_size: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, view: View, h: jax.Array, cond: jax.Array | None, train: bool
    ) -> jax.Array:
        """[B, h, w, width] -> the same."""
        width = h.shape[-1]
        half = max(width // 2, 1)
        out = CausalConv(half, (1, 1), dtype=self.dtype, name="down")(view, nn.relu(h))
        if cond is not None:
            told = view.condition(cond, out)
            out = out + nn.Dense(half, use_bias=False, dtype=self.dtype)(told)
        out = MaskedLayer(half, self.kernel_size, self.dtype)(view, nn.relu(out))
        out = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(out))
        return h + CausalConv(width, (1, 1), dtype=self.dtype, name="up")(view, out)


class PixelCNN(PixelModel):
    """Masked convolutions, with gates and two stacks or as one stack."""

    gated: bool = True
    width: int = 32
    depth: int = 5  # layers (or blocks) after the first
    kernel_size: int = 3
    first_kernel_size: int = 7
    head_width: int = 32
    dropout_rate: float = 0.0

    vertical_layer: ClassVar[type[VerticalLayer]] = VerticalLayer

    def setup(self) -> None:
        """The first layer, the others, the head."""
        for name in ("kernel_size", "first_kernel_size"):
            size = getattr(self, name)
            if size % 2 == 0 or size < 3:
                raise InputError(f"--set={name}={size}: give an odd size from 3")
        sizes = [self.first_kernel_size] + [self.kernel_size] * self.depth
        self.embed = self.make_embed(self.width)
        if self.gated:
            self.vertical = [
                self.vertical_layer(self.width, k, self.dtype)
                for k in (sizes if self.has_rows else ())
            ]
            self.horizontal = [
                HorizontalLayer(self.width, k, self.dropout_rate, self.dtype)
                for k in sizes
            ]
        else:  # mask A, as what it sees above and what it sees to the left
            half = sizes[0] // 2
            sized: dict[str, Any] = dict(dtype=self.dtype)
            if self.has_rows:
                self.above = CausalConv(self.width, (half, sizes[0]), half, **sized)
            self.left = CausalConv(self.width, (1, half), **sized)
            self.blocks = [
                MaskedBlock(k, self.dropout_rate, self.dtype) for k in sizes[1:]
            ]
        self.head = self.make_head(hidden=self.head_width)

    def inputs(self, x: jax.Array) -> jax.Array:
        """In [0, 1], so that black is what lies outside the image: [..., C] -> [..., F]."""
        features = symbol_features(x, self.num_values, self.one_hot)
        if num_features(self.num_values, self.one_hot) == 1:
            features = (features + 1) / 2
        return features.reshape(*x.shape[:-1], -1)

    def rows(self, view: View, x: jax.Array, cond: Any, train: bool) -> Any:
        """Links of all layers and the end of the stack; with one stack its first layer."""
        if not self.gated:
            return self.above(view, x)
        links = []
        for layer in self.vertical:
            x, link = layer(view, x)
            links.append(link)
        return links, x

    def pixels(
        self, view: View, x: jax.Array, above: Any, cond: Any, train: bool
    ) -> jax.Array:
        """Features for the head, after ReLU."""
        x = view.after_first(x, "column")  # the pixel to the left
        if not self.gated:
            h = self.left(view, x)
            if above is not None:
                h = h + view.pick(above)
            for block in self.blocks:
                h = block(view, h, cond, train)
            return nn.relu(h)
        links: list[Any] = [None] * len(self.horizontal)
        total: Any = 0.0
        if above is not None:
            links, end = above
            total = view.pick(end)
        h = x
        for i, (layer, link) in enumerate(zip(self.horizontal, links, strict=True)):
            residual, skip = layer(view, h, link, cond, train)
            h = h + residual if i else residual  # x is of another width
            total = total + skip
        return nn.relu(total + residual)

    @property
    def receptive_field(self) -> np.ndarray:
        """Bool [D, D]: whether symbol i is told of symbol j, by following the kernels."""
        height, width, channels = self.image_shape
        sizes = [self.first_kernel_size] + [self.kernel_size] * self.depth
        here, half = reach.image(height, width), sizes[0] // 2
        v = reach.conv(here, ABOVE)
        h = reach.conv(here, LEFT)
        if not self.gated:
            h = reach.conv(h, np.ones((1, half)))
            h |= reach.conv(v, np.ones((half, sizes[0])), half)
            for k in sizes[1:]:
                h |= reach.conv(h, _masked(k), k // 2)
            return reach.symbols(h, channels)
        for k in sizes:
            link = reach.conv(v, np.ones((k // 2 + 1, k)), k // 2)
            v = v | link
            h = reach.conv(h, np.ones((1, k // 2 + 1))) | link
        return reach.symbols(h | v, channels)


Model = PixelCNN
TINY = dict(width=8, depth=1, first_kernel_size=3, head_width=8)
