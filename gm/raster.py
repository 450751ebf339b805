"""What models of pixels in raster order share: teacher-forced and cached, from one network.

A model gives two networks against a `View` (gm/nn/views.py) and a head. `rows` sees
complete rows above, `pixels` the row's pixels to the left and what `rows` gives; neither
sees its own pixel. The head gives the symbols of a pixel, each with those before it.

Sequences and vectors (L,) are images of one row; with one row there is no `rows`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.autoregressive import AutoregressiveModel
from gm.likelihood import discretized_logistic_mixture_symbols, mixture_channels
from gm.nn.causal import CausalConv
from gm.nn.conditioning import CondEmbedding, grid_of
from gm.nn.symbols import symbol_features
from gm.nn.views import Pixel, Row, View, Whole


class PixelHead(nn.Module):
    """Features of a pixel -> parameters of its symbols, P(x_c | x_<c, pixels before).

    Mixtures: one of logistics for the whole pixel, the indicator shared by its channels
    (Salimans et al. 2017, section 2.2). Else channel by channel: the hidden layer of
    channel c sees the channels before it.
    """

    channels: int
    num_values: int
    mixtures: int
    num_params: int  # of a symbol
    hidden: int = 0  # width of a ReLU layer; 0: none
    weight_norm: bool = False
    one_hot: bool = True

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        """H [..., width], x [..., C] integers -> [..., C, P]."""
        h = h.astype(jnp.float32)

        def dense(features, name, h):
            norm = self.weight_norm
            layer = CausalConv(features, (1, 1), weight_norm=norm, name=name)
            return layer(Whole(), h)  # of one pixel: any view will do

        if self.mixtures:
            if self.hidden:
                h = nn.relu(dense(self.hidden, "hidden", h))
            count = mixture_channels(self.mixtures, self.channels)
            params = dense(count, "out", h)
            return discretized_logistic_mixture_symbols(params, x, self.num_values)
        seen = symbol_features(x, self.num_values, self.one_hot)  # [..., C, F]
        symbols = []
        for c in range(self.channels):
            before = seen[..., :c, :].reshape(*x.shape[:-1], -1)
            g = jnp.concatenate([h, before], axis=-1)
            if self.hidden:
                g = nn.relu(dense(self.hidden, f"hidden_{c}", g))
            symbols.append(dense(self.num_params, f"out_{c}", g))
        return jnp.stack(symbols, axis=-2)


class PixelModel(AutoregressiveModel):
    """Base of models whose network runs against a view."""

    num_mixtures: int | None = None  # None: a table up to 32 values, else 10 logistics
    one_hot: bool = True  # inputs of 3 to 32 values; else one number each

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C; a sequence is one row."""
        if len(self.shape) == 1:
            return 1, self.shape[0], 1
        height, width, channels = self.shape
        return height, width, channels

    @property
    def has_rows(self) -> bool:
        """Whether there are rows above any pixel."""
        return self.image_shape[0] > 1

    def rows(self, view: View, x: jax.Array, cond: Any, train: bool) -> Any:
        """What rows above tell: x [B, h, w, F] holds the pixel above each -> a pytree."""
        raise NotImplementedError

    def pixels(
        self, view: View, x: jax.Array, above: Any, cond: Any, train: bool
    ) -> jax.Array:
        """Features of each pixel: x [B, h, w, F] holds the one before it, also of the row
        above: `view.after_first(x, "column")` is the one to the left."""
        raise NotImplementedError

    def embed_cond(self, cond: jax.Array | None) -> jax.Array | None:
        """The condition's embedding by `self.embed`, for `View.condition`; None without."""
        embedding = self.embed(cond)
        return None if self.cond is None else embedding

    def inputs(self, x: jax.Array) -> jax.Array:
        """Pixels, integers [..., C] -> what the network sees of them, [..., F].

        Outside the image it sees zeros: a constant 1 tells those from a value of 0.
        """
        features = symbol_features(x, self.num_values, self.one_hot)
        features = features.reshape(*x.shape[:-1], -1)
        return jnp.concatenate([features, jnp.ones_like(features[..., :1])], axis=-1)

    def make_head(self, **options: Any) -> PixelHead:
        """The head for this model's symbols."""
        return PixelHead(
            self.image_shape[2],
            self.num_values,
            self.mixtures,
            self.num_params,
            one_hot=self.one_hot,
            **options,
        )

    def make_embed(self, width: int) -> CondEmbedding:
        """The embedding of the condition."""
        return CondEmbedding(self.cond, width, self.dtype, grid_of(self.shape))

    def conditionals(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """X [B, D] -> parameters [B, D, P] of P(x_d | x_<d)."""
        image = x.reshape(-1, *self.image_shape)
        view, embedding = Whole(), self.embed_cond(cond)
        seen = self.inputs(image)
        above = None
        if self.has_rows:
            above = self.rows(view, view.delay(seen), embedding, train)
        line = seen.reshape(len(seen), -1, seen.shape[-1])
        before = jnp.pad(line[:, :-1], ((0, 0), (1, 0), (0, 0))).reshape(seen.shape)
        h = self.pixels(view, before, above, embedding, train)
        return self.head(h, image).reshape(*x.shape, -1)

    def _run_row(self, place, line, cond, buffers):
        """(What the rows above tell, buffers) at the start of a row."""
        height, width, _ = self.image_shape
        view = Row(place[0], jnp.zeros_like(place[1]), width, height * width, buffers)
        x = view.after_first(line[:, None], "row")
        return self.rows(view, x, cond, False), view.buffers

    def _run_pixel(self, place, pixel, above, cond, buffers):
        """(Features [B, width], buffers) of a pixel, `pixel` being the one before."""
        height, width, _ = self.image_shape
        view = Pixel(*place, width, height * width, buffers)
        first = (place[0] == 0) & (place[1] == 0)
        x = jnp.where(first, 0, self.inputs(pixel)[:, None, None])
        h = self.pixels(view, x, above, cond, False)
        return h[:, 0, 0], view.buffers

    def init_cache(self, batch_size: int, cond: jax.Array | None = None) -> Any:
        """The row and pixel so far, what the networks gave last, and their buffers."""
        _, width, channels = self.image_shape
        pixel = jnp.zeros((batch_size, channels), jnp.int32)
        seen = self.inputs(pixel)
        cache: dict[str, Any] = {
            "pixel": pixel,
            "line": jnp.zeros((batch_size, width, seen.shape[-1]), seen.dtype),
            "above": None,
            "row_buffers": [],
            "cond": self.embed_cond(cond),
        }
        # A first run gives the shapes; of its numbers none is kept.
        place = (jnp.int32(0), jnp.int32(0))
        if self.has_rows:
            cache["above"], cache["row_buffers"] = jax.tree.map(
                jnp.zeros_like,
                self._run_row(place, cache["line"], cache["cond"], None),
            )
        cache["hidden"], cache["buffers"] = jax.tree.map(
            jnp.zeros_like,
            self._run_pixel(place, pixel, cache["above"], cache["cond"], None),
        )
        return cache

    def step(
        self, cache: Any, index: jax.Array, previous: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Parameters [B, P] of symbol `index`; the network runs when a pixel starts."""
        _, width, channels = self.image_shape
        channel, column = index % channels, index // channels % width
        place = (index // (channels * width), column)
        pixel = cache["pixel"].at[:, (index - 1) % channels].set(previous)
        cache = cache | {"pixel": pixel}

        def new_pixel(cache):
            # At index 0 this writes what row 0 does not see and row 1 overwrites.
            line = cache["line"].at[:, (column - 1) % width].set(self.inputs(pixel))
            above, row_buffers = cache["above"], cache["row_buffers"]
            if self.has_rows:
                above, row_buffers = jax.lax.cond(
                    column == 0,
                    lambda above, buffers: self._run_row(
                        place, line, cache["cond"], buffers
                    ),
                    lambda above, buffers: (above, buffers),
                    above,
                    row_buffers,
                )
            hidden, buffers = self._run_pixel(
                place, pixel, above, cache["cond"], cache["buffers"]
            )
            return cache | {
                "line": line,
                "above": above,
                "row_buffers": row_buffers,
                "hidden": hidden,
                "buffers": buffers,
            }

        if channels > 1:
            cache = jax.lax.cond(channel == 0, new_pixel, lambda c: c, cache)
        else:
            cache = new_pixel(cache)
        params = self.head(cache["hidden"], pixel)  # [B, C, P]
        return cache, jnp.take(params, channel, axis=1)
