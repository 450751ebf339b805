"""PixelVAE: a VAE with an autoregressive decoder (Gulrajani et al. 2017).

  p(x) = integral p(z) prod_d p(x_d | x_<d, z) dz

The latents need to say only what the symbols before do not (Chen et al. 2017, variational
lossy autoencoder). The symbols, in raster order, go through a MADE whose hidden units see
z: encoder and the network from z on are those of `vae`.

Deviations from the paper: MADE in place of PixelCNN layers, so that it serves data of any
shape; one layer of latents.
"""

import math

import flax.linen as nn
import jax

from gm.likelihood import sum_dims
from gm.models.made import MADE
from gm.models.vae import VAE


class SymbolDecoder(MADE):
    """MADE whose condition is a vector: every hidden unit sees all of it."""

    @property
    def lowest_degree(self) -> int:
        """Units that see no symbol tell the first one of the vector."""
        return 0

    def embedding(self, shape: tuple[int, ...]) -> nn.Module:
        """A linear map of the vector to the first layer, or to the outputs themselves."""
        features = self.width if self.depth else math.prod(shape)
        return nn.Dense(features, dtype=self.dtype)


class PixelVAE(VAE):
    """The decoder's parameters of `vae` become the condition of a MADE."""

    decoder_width: int = 256  # hidden units of the MADE
    decoder_depth: int = 1  # hidden layers of the MADE; 0: none

    # Bits-back coding would have to decode symbol by symbol: not for this model.
    symbol_logits = None  # type: ignore[assignment]

    def setup(self) -> None:
        """A VAE, and what comes between its parameters and the symbols."""
        super().setup()
        self.symbols = SymbolDecoder(
            shape=self.shape,
            num_values=self.num_values,
            precision=self.precision,
            width=self.decoder_width,
            depth=self.decoder_depth,
            one_hot=self.one_hot,
            num_mixtures=self.mixtures,
            dropout_rate=self.dropout_rate,
        )

    def log_px_given(
        self, z: jax.Array, x: jax.Array, cond: jax.Array | None, train: bool
    ) -> jax.Array:
        """Log p(x|z) [B], with dropout in both networks if `train`."""
        return self.log_px_z(self.generate(z, cond, train=train), x, train=train)

    def log_px_z(
        self, params: jax.Array, x: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Log p(x|z) = sum_d log p(x_d | x_<d, z), [B]."""
        x = x.reshape(x.shape[0], -1)
        told = params.reshape(x.shape[0], -1)
        conditionals = self.symbols.parameters(x, told, train=train)  # [B, D, P]
        return sum_dims(self.symbols.symbol_log_prob(conditionals, x))

    def sample_x(self, key: jax.Array, params: jax.Array) -> jax.Array:
        """Draws x ~ p(x|z) symbol by symbol: int32 [B, *shape]."""
        told = params.reshape(len(params), -1)
        cache = self.symbols.init_cache(len(told), told)
        x = self.symbols.draw(key, cache, len(told))
        return x.reshape(-1, *self.shape)


Model = PixelVAE
TINY = dict(width=8, num_latents=4, decoder_width=16)
