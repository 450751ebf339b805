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
    view: Any,
    h: Any,
    num_scales: int,
    num_resnets: int,
    block: Callable[[int, Any, Any, Any], Any],
    down: Callable[[int, Any, Any], Any],
    up: Callable[[int, Any, Any], Any],
    coarser: Callable[[Any, Callable[[Any, Any], Any], Any], Any],
    scale: int = 0,
) -> Any:
    """Applies the layers of a stream from a scale on, with their skip connections.

    block(number, view, h, skip or None), in the order of their numbers; down(scale, view,
    h) to the next coarser scale, up(scale, view, h) back to a scale; coarser(view, network,
    h) applies network(view, h) there.
    """
    skips = [h]
    for i in range(num_resnets):
        h = block(scale * num_resnets + i, view, h, None)
        skips.append(h)
    below = num_scales - 1 - scale
    if below:
        layers = (num_scales, num_resnets, block, down, up, coarser, scale + 1)
        h = down(scale, view, h)
        h = up(scale, view, coarser(view, lambda view, h: unet(view, h, *layers), h))
    else:
        skips.pop()
    # All blocks down, and those up from the coarsest scale, which has one less.
    first = num_scales * num_resnets + below * (num_resnets + 1) - (below > 0)
    for i in range(len(skips)):
        h = block(first + i, view, h, skips.pop())
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
    ) -> tuple[jax.Array, list[jax.Array]]:
        """H [B, h, w, width] -> its end; what each block gives, for the other stream.

        beside: what each block hears of the other stream; None: it is the one that is
        heard.
        """
        sized: dict[str, Any] = dict(right=self.right, dtype=self.dtype)
        normed: dict[str, Any] = dict(weight_norm=True, **sized)
        told: list[jax.Array] = []

        def block(number, view, h, skip):
            layer = GatedResnet(
                self.kernel_size,
                dropout_rate=self.dropout_rate,
                name=f"GatedResnet_{number}",
                **sized,
            )
            heard = [] if beside is None else [view.pick(beside[number])]
            heard += [] if skip is None else [skip]
            heard = jnp.concatenate(heard, -1) if heard else None
            h = layer(view, h, heard, cond, train)
            if beside is None:
                told.append(h)
            return h

        def down(scale, view, h):
            layer = CausalConv(
                self.width,
                self.kernel_size,
                stride=2,
                name=f"CausalConv_{scale}",
                **normed,
            )
            return layer(view, h)

        def up(scale, view, h):
            name = f"UpConv_{self.num_scales - 2 - scale}"
            return UpConv(self.width, self.kernel_size, name=name, **normed)(view, h)

        def coarser(view, network, h):
            return view.coarser(self, network, h)

        scales = (self.num_scales, self.num_resnets)
        return unet(view, h, *scales, block, down, up, coarser), told


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
        return self.first_ul.rows(view, x), self.u(view, u, None, cond, train)[1]

    def pixels(
        self, view: View, x: jax.Array, above: Any, cond: Any, train: bool
    ) -> jax.Array:
        """The end of ul, after ELU."""
        first, beside = above or (None, None)
        h = self.first_ul.pixels(view, x, first)
        return nn.elu(self.ul(view, h, beside, cond, train)[0])

    @property
    def receptive_field(self) -> np.ndarray:
        """Bool [D, D]: whether symbol i is told of symbol j, by following the kernels."""
        height, width, channels = self.image_shape
        here = reach.image(height, width)
        above, left = reach.conv(here, ABOVE), reach.conv(here, LEFT)

        def blocks(h, kernel_size, right, beside):
            kernel, found = np.ones(kernel_size), []

            def block(number, _, h, skip):
                inside = reach.conv(h, kernel, right)
                for heard in (skip, beside and beside[number]):
                    inside = inside if heard is None else inside | heard
                found.append(h | reach.conv(inside, kernel, right))
                return found[-1]

            unet(
                None,
                h,
                self.scales,
                self.num_resnets,
                block,
                lambda scale, _, h: reach.conv(h, kernel, right, 2),
                lambda scale, _, h: reach.up(h, right),
                lambda _, network, h: network(None, h),
            )
            return found

        u = blocks(reach.conv(above, np.ones((2, 3)), 1), **U, beside=None)
        ul = reach.conv(left, np.ones((2, 1))) | reach.conv(above, np.ones((1, 3)), 1)
        return reach.symbols(blocks(ul, **UL, beside=u)[-1], channels)


Model = PixelCNNPP
TINY = dict(width=8, num_scales=1, dropout_rate=0.1)
