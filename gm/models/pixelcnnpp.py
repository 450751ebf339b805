"""PixelCNN++ (Salimans et al. 2017).

Two streams: u sees the rows above, ul also the row to the left (paper, section 2.3). Each
is a U-net: residual blocks, resolution halved twice, then back up, every block of the way
up with a skip connection to its counterpart (sections 2.3 and 2.4). Blocks are gated and
weight-normalised, with concatenated ELU and dropout. A pixel's distribution is a mixture of
discretized logistics, the means of green and blue depending linearly on the channels
before (sections 2.1 and 2.2):

  P(x | pixels before) = sum_m pi_m P_m(r) P_m(g | r) P_m(b | r, g).

Deviations from the paper: no data-dependent initialisation; blocks start near the identity
in its place. Masses in the tails are exact, not approximated by the density. Up to 32
values the head is a table by default (num_mixtures=0). The resolution is halved only
while it is even and two pixels remain.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.nn import reach
from gm.nn.causal import CausalConv, FirstLayer, GatedResnet, UpConv
from gm.nn.convolution import num_halvings
from gm.nn.reach import ABOVE, LEFT
from gm.nn.views import View
from gm.raster import PixelModel

# A stream's kernel, and how far it reaches to the right of the pixel.
U: dict[str, Any] = dict(kernel_size=(2, 3), right=1)
UL: dict[str, Any] = dict(kernel_size=(2, 2), right=0)


def unet(
    h: Any,
    num_scales: int,
    num_resnets: int,
    block: Callable[[int, int, Any, Any], Any],
    down: Callable[[int, Any], Any],
    up: Callable[[int, Any], Any],
) -> Any:
    """Applies the layers of a stream in order, with their skip connections.

    block(number, scale, h, skip or None); down(scale, h) from a scale to the next
    coarser; up(scale, h) back to a scale.
    """
    skips, number = [h], 0
    for scale in range(num_scales):
        if scale:
            h = down(scale - 1, h)
            skips.append(h)
        for _ in range(num_resnets):
            h = block(number, scale, h, None)
            skips.append(h)
            number += 1
    h = skips.pop()
    for scale in reversed(range(num_scales)):
        for _ in range(num_resnets + (scale < num_scales - 1)):
            h = block(number, scale, h, skips.pop())
            number += 1
        if scale:
            h = up(scale - 1, h)
    return h


class Stream(nn.Module):
    """One of the two U-nets."""

    kernel_size: tuple[int, int]
    right: int
    width: int
    num_scales: int
    num_resnets: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, view: View, h: jax.Array, beside: Any, cond: Any, train: bool
    ) -> list[jax.Array]:
        """H [B, h, w, width] -> what each block gives; `beside`: what each hears."""
        views = [view]
        for _ in range(self.num_scales - 1):
            views.append(views[-1].halved())
        sized: dict[str, Any] = dict(right=self.right, dtype=self.dtype)
        normed: dict[str, Any] = dict(weight_norm=True, **sized)
        found: list[jax.Array] = []

        def block(number, scale, h, skip):
            layer = GatedResnet(
                self.kernel_size, dropout_rate=self.dropout_rate, **sized
            )
            heard = [] if beside is None else [views[scale].pick(beside[number])]
            heard += [] if skip is None else [skip]
            found.append(
                layer(
                    views[scale],
                    h,
                    jnp.concatenate(heard, -1) if heard else None,
                    cond,
                    train,
                )
            )
            return found[-1]

        def down(scale, h):
            layer = CausalConv(self.width, self.kernel_size, stride=2, **normed)
            return layer(views[scale], h)

        def up(scale, h):
            return UpConv(self.width, self.kernel_size, **normed)(views[scale], h)

        unet(h, self.num_scales, self.num_resnets, block, down, up)
        return found


class PixelCNNPP(PixelModel):
    """Two streams and a mixture of logistics."""

    width: int = 40
    num_resnets: int = 1  # blocks per scale on the way down
    num_scales: int = 3  # at most
    dropout_rate: float = 0.5

    @property
    def scales(self) -> int:
        """Scales that the image allows for."""
        return 1 + min(num_halvings(self.image_shape, 2), self.num_scales - 1)

    def setup(self) -> None:
        """First layers, streams, head."""
        stream: dict[str, Any] = dict(
            width=self.width,
            num_scales=self.scales,
            num_resnets=self.num_resnets,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        normed: dict[str, Any] = dict(weight_norm=True, dtype=self.dtype)
        if self.has_rows:
            self.first_u = CausalConv(self.width, (2, 3), 1, **normed)
            self.u = Stream(**U, **stream)
        self.first_ul = FirstLayer(self.width, self.dtype)
        self.ul = Stream(**UL, **stream)
        self.embed = self.make_embed(self.width)
        self.head = self.make_head(weight_norm=True)

    def rows(self, view: View, x: jax.Array, cond: Any, train: bool) -> Any:
        """The first features of ul that come from above, and the blocks of u."""
        u = view.after_first(self.first_u(view, x), "row")
        return self.first_ul.rows(view, x), self.u(view, u, None, cond, train)

    def pixels(
        self, view: View, x: jax.Array, above: Any, cond: Any, train: bool
    ) -> jax.Array:
        """The end of ul, after ELU."""
        first, beside = above or (None, None)
        h = self.first_ul.pixels(view, x, first)
        return nn.elu(self.ul(view, h, beside, cond, train)[-1])

    @property
    def receptive_field(self) -> np.ndarray:
        """Bool [D, D]: whether symbol i is told of symbol j, by following the kernels."""
        height, width, channels = self.image_shape
        here = reach.image(height, width)
        above, left = reach.conv(here, ABOVE), reach.conv(here, LEFT)

        def blocks(h, kernel_size, right, beside):
            kernel, found = np.ones(kernel_size), []

            def block(number, scale, h, skip):
                inside = reach.conv(h, kernel, right)
                for heard in (skip, beside and beside[number]):
                    inside = inside if heard is None else inside | heard
                found.append(h | reach.conv(inside, kernel, right))
                return found[-1]

            unet(
                h,
                self.scales,
                self.num_resnets,
                block,
                lambda _, h: reach.conv(h, kernel, right, 2),
                lambda _, h: reach.up(h, right),
            )
            return found

        u = blocks(reach.conv(above, np.ones((2, 3)), 1), **U, beside=None)
        ul = reach.conv(left, np.ones((2, 1))) | reach.conv(above, np.ones((1, 3)), 1)
        return reach.symbols(blocks(ul, **UL, beside=u)[-1], channels)


Model = PixelCNNPP
TINY = dict(width=8, num_scales=1, dropout_rate=0.1)
