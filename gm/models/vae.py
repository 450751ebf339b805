"""A variational autoencoder (Kingma & Welling 2014, Rezende et al. 2014).

Images of at least 8 x 8 go through convolutions (residual blocks; each halving of the
resolution is a change of 2 x 2 pixels into channels), unless `dense`; everything else is
dense. p(x|z) is that of `PixelDecoder`, so the bound is on log P(x), not on a density.
With num_train_samples above 1 it is trained as an importance-weighted autoencoder (Burda
et al. 2016).

Deviations from the papers: residual blocks, with LayerNorm and SiLU, in place of one hidden
layer of tanh; the KL is sampled, for it has to be a weight; the posterior starts as the
prior; logarithms of its standard deviations are clipped to [-7, 5].
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.latent import LatentModel, PixelDecoder
from gm.likelihood import scale
from gm.nn.conditioning import CondEmbedding, grid_of, per_position
from gm.nn.convolution import Conv, depth_to_space, num_halvings, space_to_depth
from gm.nn.symbols import MAX_ONE_HOT


class ResidualBlock(nn.Module):
    """Two layers on a residual branch: 3x3 convolutions of an image, else dense."""

    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, cond: jax.Array, train: bool) -> jax.Array:
        """H [B, H, W, width] or [B, width] -> the same."""
        width, image = h.shape[-1], h.ndim == 4
        layer = Conv if image else nn.Dense
        branch = nn.LayerNorm(dtype=self.dtype)(h)  # over channels, not over space
        branch = layer(width, dtype=self.dtype)(branch)
        branch = branch + (per_position(cond, h.shape[1:3]) if image else cond)
        branch = nn.silu(branch)
        branch = nn.Dropout(self.dropout_rate, deterministic=not train)(branch)
        zeros = nn.initializers.zeros
        return h + layer(width, kernel_init=zeros, dtype=self.dtype)(branch)


class VAE(PixelDecoder, LatentModel):
    """One layer of latent variables, convolutional or dense by shape."""

    width: int = 64
    depth: int = 1  # residual blocks per resolution, in encoder and decoder each
    num_latents: int = 32
    dense: bool = False  # no convolutions of images either, as in the papers
    one_hot: bool = True  # inputs of 2 to 32 values; else one number in [-1, 1]
    dropout_rate: float = 0.0

    @property
    def latent_dims(self) -> int:
        """Number of latent dimensions."""
        return self.num_latents

    @property
    def halvings(self) -> int | None:
        """How often the resolution is halved; None: dense."""
        if self.dense or len(self.shape) != 3 or min(self.shape[:2]) < 8:
            return None
        return num_halvings(self.shape, smallest=4)

    @property
    def _grid(self) -> tuple[int, ...]:
        """Shape of the decoder's deepest features."""
        if self.halvings is None:
            return (self.width,)
        side = 2**self.halvings
        return (self.shape[0] // side, self.shape[1] // side, self.width)

    def setup(self) -> None:
        """Encoder, decoder and the embedding of the condition."""
        levels = 1 + (self.halvings or 0)
        block = (self.dropout_rate, self.dtype)
        dense = dict(dtype=self.dtype)
        stem = Conv if self.halvings is not None else nn.Dense
        grid = grid_of(self.shape) if self.halvings is not None else None
        self.embed = CondEmbedding(self.cond, self.width, self.dtype, grid)
        self.stem = stem(self.width, **dense)
        self.encoder = [ResidualBlock(*block) for _ in range(levels * self.depth)]
        self.downs = [nn.Dense(self.width, **dense) for _ in range(levels - 1)]
        # Starts as the prior, whatever x is: weights of finite variance from the start.
        zeros = nn.initializers.zeros
        self.posterior = nn.Dense(2 * self.num_latents, kernel_init=zeros, **dense)
        self.expand = nn.Dense(math.prod(self._grid), **dense)
        self.decoder = [ResidualBlock(*block) for _ in range(levels * self.depth)]
        self.ups = [nn.Dense(4 * self.width, **dense) for _ in range(levels - 1)]
        pixels = 1 if self.halvings is not None else self.num_dims // self.channels
        self.head = nn.Dense(pixels * self.pixel_params)  # float32, as the likelihood

    def infer(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """X [B, *shape] -> (mean, log_std) of q(z|x), each [B, num_latents]."""
        c = self.embed(cond)
        # Not `symbol_features`, to which two values are one number: the parameters of
        # runs on binary images have this shape.
        if self.one_hot and self.num_values <= MAX_ONE_HOT:
            h = jax.nn.one_hot(x, self.num_values, dtype=self.dtype)
            h = h.reshape(*x.shape[:-1], -1)
        else:
            h = scale(x, self.num_values)
        if self.halvings is None:
            h = h.reshape(x.shape[0], -1)
        h = self.stem(h)
        for level in range(1 + len(self.downs)):
            for block in self.encoder[level * self.depth : (level + 1) * self.depth]:
                h = block(h, c, train)
            if level < len(self.downs):
                h = self.downs[level](space_to_depth(h))
        h = nn.silu(h).reshape(x.shape[0], -1)
        mean, log_std = jnp.split(self.posterior(h), 2, axis=-1)
        return mean, jnp.clip(log_std, -7.0, 5.0)

    def generate(
        self, z: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Z [B, num_latents] -> parameters of p(x|z), [B, H, W, P] or [B, L, P]."""
        c = self.embed(cond)
        h = self.expand(z.astype(self.dtype)).reshape(-1, *self._grid)
        for level in range(1 + len(self.ups)):
            for block in self.decoder[level * self.depth : (level + 1) * self.depth]:
                h = block(h, c, train)
            if level < len(self.ups):
                h = depth_to_space(self.ups[level](h))
        params = self.head(nn.silu(h).astype(jnp.float32))
        return self.per_pixel(params)


Model = VAE
TINY = dict(width=8, num_latents=4)
