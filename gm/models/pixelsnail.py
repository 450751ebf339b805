"""PixelSNAIL: causal convolutions, and attention to all pixels before (Chen et al. 2018).

A block is a few gated residual blocks of 2 x 2 causal convolutions, then attention with one
head (paper, figures 2 and 3): keys and values are computed of the image, the features and
the position, queries of features and position,

  mixed_p = sum_{q <= p} softmax_q(query_p . key_q / sqrt(d)) value_q,

and a last residual block hears of what was mixed. Attention reaches every pixel before,
whatever the depth. Blocks and head are those of PixelCNN++.

Deviations from the paper: keys and values are given the pixel before theirs, so a pixel
attends to its own position as well as to those before (the paper's keys see their own
pixel, so theirs excludes it); scores are divided by sqrt(d). No data-dependent
initialisation; blocks start near the identity. Up to 32 values the head is a table by
default.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.nn.causal import CausalConv, FirstLayer, GatedResnet
from gm.nn.views import View
from gm.raster import PixelModel


class SnailBlock(nn.Module):
    """Residual blocks, attention, and a residual block that reads both."""

    num_resnets: int
    key_width: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        view: View,
        h: jax.Array,
        image: jax.Array,
        place: jax.Array,
        cond: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """H [B, h, w, width], image [B, h, w, F], place [1, h, w, 2] -> as h.

        `image` holds the pixel before each in raster order, the last of a row included, so
        that attention reaches all of them.
        """

        def resnet(size, name):
            return GatedResnet(
                (size, size), 0, self.dropout_rate, self.dtype, name=name
            )

        def project(features, x, name):
            x = resnet(1, f"{name}_resnet")(view, x, None, None, train)
            layer = CausalConv(
                features, (1, 1), weight_norm=True, dtype=self.dtype, name=name
            )
            return layer(view, x)[..., None, :]  # one head

        width = h.shape[-1]
        for i in range(self.num_resnets):
            h = resnet(2, f"conv_{i}")(view, h, None, cond, train)
        place = jnp.broadcast_to(place, (*h.shape[:3], 2)).astype(h.dtype)
        value_width = max(width // 2, 1)
        content = jnp.concatenate([image.astype(h.dtype), h, place], axis=-1)
        both = project(self.key_width + value_width, content, "key_value")
        query = project(self.key_width, jnp.concatenate([h, place], axis=-1), "query")
        key, value = both[..., : self.key_width], both[..., self.key_width :]
        mixed = view.attend(query, key, value)[..., 0, :]
        return resnet(1, "mix")(view, h, mixed, cond, train)


class PixelSNAIL(PixelModel):
    """Blocks of convolutions and attention."""

    width: int = 32
    num_blocks: int = 2
    num_resnets: int = 2  # convolutional residual blocks per block
    key_width: int = 16
    dropout_rate: float = 0.1

    def setup(self) -> None:
        """First layer, blocks, head."""
        self.first = FirstLayer(self.width, self.dtype)
        self.blocks = [
            SnailBlock(self.num_resnets, self.key_width, self.dropout_rate, self.dtype)
            for _ in range(self.num_blocks)
        ]
        self.embed = self.make_embed(self.width)
        self.head = self.make_head(weight_norm=True)

    def rows(self, view: View, x: jax.Array, cond: Any, train: bool) -> Any:
        """The first features that come from above."""
        return self.first.rows(view, x)

    def pixels(
        self, view: View, x: jax.Array, above: Any, cond: Any, train: bool
    ) -> jax.Array:
        """The last features, after ELU."""
        height, width, _ = self.image_shape
        grid = np.indices((height, width)).transpose(1, 2, 0) + 0.5
        place = view.at(jnp.asarray(grid / (height, width) - 0.5, jnp.float32))
        h = self.first.pixels(view, x, above)
        for block in self.blocks:
            h = block(view, h, x, place, cond, train)
        return nn.elu(h)


Model = PixelSNAIL
TINY = dict(width=8, num_blocks=1, num_resnets=1, key_width=4)
