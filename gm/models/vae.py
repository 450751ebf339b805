"""A variational autoencoder (Kingma & Welling 2014, Rezende et al. 2014).

Images of at least 8 x 8 go through convolutions (residual blocks; each halving of the
resolution is a change of 2 x 2 pixels into channels); everything else is dense. p(x|z) is
a table over the values up to 32 values (Bernoulli for 2), else a mixture of discretized
logistics (Salimans et al. 2017), so the bound is on log P(x), not on a density.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.latent import LatentModel
from gm.likelihood import (
    bernoulli_log_prob,
    categorical_log_prob,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_logits,
    discretized_logistic_mixture_sample,
    mixture_channels,
    scale,
    sum_dims,
)
from gm.nn.conditioning import CondEmbedding
from gm.nn.convolution import Conv, depth_to_space, num_halvings, space_to_depth


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
        branch = nn.silu(branch + (cond[:, None, None] if image else cond))
        branch = nn.Dropout(self.dropout_rate, deterministic=not train)(branch)
        zeros = nn.initializers.zeros
        return h + layer(width, kernel_init=zeros, dtype=self.dtype)(branch)


class VAE(LatentModel):
    """One layer of latent variables, convolutional or dense by shape."""

    width: int = 64
    depth: int = 1  # residual blocks per resolution, in encoder and decoder each
    num_latents: int = 32
    one_hot: bool = True  # inputs of up to 32 values; else one number in [-1, 1]
    num_mixtures: int | None = None  # None: a table up to 32 values, else 5 logistics
    dropout_rate: float = 0.0

    @property
    def latent_dims(self) -> int:
        """Number of latent dimensions."""
        return self.num_latents

    @property
    def mixtures(self) -> int:
        """Discretized logistics per pixel; 0: a table over the values."""
        if self.num_mixtures is None:
            return 0 if self.num_values <= 32 else 5
        return self.num_mixtures

    @property
    def channels(self) -> int:
        """Channels of an image; the symbols of a sequence are pixels of one."""
        return self.shape[-1] if len(self.shape) == 3 else 1

    @property
    def halvings(self) -> int | None:
        """How often the resolution is halved; None: dense."""
        if len(self.shape) != 3 or min(self.shape[:2]) < 8:
            return None
        return num_halvings(self.shape, smallest=4)

    @property
    def _outputs(self) -> int:
        """Decoder outputs per pixel, or per symbol of a sequence."""
        if self.mixtures:
            return mixture_channels(self.mixtures, self.channels)
        return self.channels * (1 if self.num_values == 2 else self.num_values)

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
        self.embed = CondEmbedding(self.cond, self.width, self.dtype)
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
        self.head = nn.Dense(pixels * self._outputs)  # float32, as the likelihood

    def infer(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """X [B, *shape] -> (mean, log_std) of q(z|x), each [B, num_latents]."""
        c = self.embed(cond)
        if self.one_hot and self.num_values <= 32:
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
        if len(self.shape) == 3:
            return params.reshape(-1, *self.shape[:2], self._outputs)
        return params.reshape(-1, *self.shape, self._outputs)

    def log_px_z(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Log p(x|z), [B]."""
        x = x if len(self.shape) == 3 else x[..., None]
        if self.mixtures:
            log_px = discretized_logistic_mixture_log_prob(params, x, self.num_values)
        elif self.num_values == 2:
            log_px = bernoulli_log_prob(params, x)
        else:
            logits = params.reshape(*x.shape, self.num_values)
            log_px = categorical_log_prob(logits, x)
        return sum_dims(log_px)

    def symbol_logits(self, params: jax.Array, x: jax.Array, channel: int) -> jax.Array:
        """Log-probabilities [B, pixels, K] of one channel given those before it."""
        params = params.reshape(params.shape[0], -1, params.shape[-1])
        if self.mixtures:
            x = x.reshape(x.shape[0], -1, self.channels)
            return discretized_logistic_mixture_logits(
                params, x, channel, self.num_values
            )
        if self.num_values == 2:
            logit = params[..., channel]
            return jnp.stack([jnp.zeros_like(logit), logit], axis=-1)
        return params.reshape(*params.shape[:2], -1, self.num_values)[:, :, channel]

    def sample_x(self, key: jax.Array, params: jax.Array) -> jax.Array:
        """Draws x ~ p(x|z): int32 [B, *shape]."""
        if self.mixtures:
            x = discretized_logistic_mixture_sample(
                key, params, self.channels, self.num_values
            )
        elif self.num_values == 2:
            x = jax.random.bernoulli(key, nn.sigmoid(params))
        else:
            logits = params.reshape(*params.shape[:-1], -1, self.num_values)
            x = jax.random.categorical(key, logits)
        return x.reshape(-1, *self.shape).astype(jnp.int32)


Model = VAE
TINY = dict(width=8, num_latents=4)
