"""A vector-quantised autoencoder (van den Oord, Vinyals & Kavukcuoglu 2017).

An encoder gives a grid of vectors; each is replaced by the nearest of a codebook, so z is
a grid of integers; a decoder gives p(x|z), a transformer p(z). Since z(x) is one of the
z of which P(x) = sum_z p(x|z) p(z) is made,

  log P(x) >= log p(x|z(x)) + log p(z(x)),

a bound without noise. In training the paper's terms for the codebook and the commitment
(its equation 3) are added, and the gradient passes the nearest neighbour straight
through (its section 3.2). A sequence of L symbols, and with `dense` an image too, is
one pixel of as many channels: the layers are dense, and there is one place for codes.

Deviations from the paper: the prior is trained with the rest, not after it, and is a
transformer, not a PixelCNN; it does not pull at the codes. Vectors and codes have length
one, since otherwise few codes come into use (Yu et al. 2022). The codebook follows the
gradient of log p(x|z) too. The resolution is halved by putting 2 x 2 pixels into channels
before a convolution. The encoder is float32 whatever the precision: the nearest code must
not hang on rounding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.autoregressive import SymbolModel
from gm.errors import InputError
from gm.likelihood import sum_dims
from gm.models.transformer import Transformer
from gm.nn.attention import check_heads
from gm.nn.conditioning import CondEmbedding
from gm.nn.convolution import Conv, depth_to_space, num_halvings, space_to_depth
from gm.nn.symbols import symbol_features
from gm.spec import Estimate


class Residuals(nn.Module):
    """Residual blocks of ReLU, 3x3, ReLU, 1x1 (section 4.1), and a last ReLU."""

    depth: int
    kernel_size: int  # 1: a vector, one pixel
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, width] -> the same."""
        width = h.shape[-1]
        for _ in range(self.depth):
            branch = nn.relu(h)
            branch = Conv(width, self.kernel_size, dtype=self.dtype)(branch)
            branch = nn.Dropout(self.dropout_rate, deterministic=not train)(branch)
            h = h + nn.Dense(width, dtype=self.dtype)(nn.relu(branch))
        return nn.relu(h)


class Encoder(nn.Module):
    """Features of x -> vectors of length one."""

    width: int
    halvings: int
    depth: int
    kernel_size: int
    dropout_rate: float
    num_codes: int  # n, vectors per place
    code_dim: int

    @nn.compact
    def __call__(self, h: jax.Array, cond: jax.Array, train: bool) -> jax.Array:
        """H [B, H, W, F], cond [B or 1, width] -> float32 [B, h, w, n, code_dim]."""
        h = Conv(self.width, self.kernel_size)(h) + cond[:, None, None]
        for _ in range(self.halvings):
            h = Conv(self.width, self.kernel_size)(space_to_depth(nn.relu(h)))
        float32 = jnp.dtype("float32")
        blocks = Residuals(self.depth, self.kernel_size, self.dropout_rate, float32)
        out = nn.Dense(self.num_codes * self.code_dim)(blocks(h, train))
        out = out.reshape(*out.shape[:3], self.num_codes, self.code_dim)
        return unit(out)


class Decoder(nn.Module):
    """Vectors -> parameters of p(x|z)."""

    width: int
    halvings: int
    depth: int
    kernel_size: int
    dropout_rate: float
    features: int  # outputs per pixel
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array, cond: jax.Array, train: bool) -> jax.Array:
        """Z [B, h, w, n, code_dim], cond [B or 1, width] -> [B, H, W, features]."""
        h = z.reshape(*z.shape[:3], -1)
        h = Conv(self.width, self.kernel_size, dtype=self.dtype)(h)
        h = h + cond[:, None, None]
        rest = (self.kernel_size, self.dropout_rate, self.dtype)
        h = Residuals(self.depth, *rest)(h, train)
        for _ in range(self.halvings):
            h = depth_to_space(nn.Dense(4 * self.width, dtype=self.dtype)(h))
            h = nn.relu(Conv(self.width, self.kernel_size, dtype=self.dtype)(h))
        return nn.Dense(self.features)(h.astype(jnp.float32))


def unit(v: jax.Array) -> jax.Array:
    """Vectors [..., d] of length one."""
    return v * jax.lax.rsqrt(jnp.sum(v**2, axis=-1, keepdims=True) + 1e-12)


class VQVAE(SymbolModel):
    """Discrete latent variables with an autoregressive prior."""

    width: int = 64
    depth: int = 2  # residual blocks in encoder and decoder each
    dense: bool = False  # no convolutions of images either
    max_halvings: int = 1  # of the resolution, where it can be halved so often
    num_codes: int = 1  # per place
    codebook_size: int = 64
    code_dim: int = 8
    commitment: float = 0.25  # weight of what draws the vectors to their codes
    prior_width: int = 64
    prior_depth: int = 2
    prior_heads: int = 4
    dropout_rate: float = 0.0
    one_hot: bool = True  # inputs of 3 to 32 values; else one number in [-1, 1]
    num_mixtures: int | None = None  # None: a table up to 32 values, else 10 logistics
    estimate = Estimate.ELBO
    family = "latent-variable"

    @property
    def canvas(self) -> tuple[int, ...]:
        """[H, W, C] as which an example is seen: a sequence is one pixel."""
        image = len(self.shape) == 3 and not self.dense
        return self.shape if image else (1, 1, self.num_dims)

    @property
    def halvings(self) -> int:
        """How often the resolution is halved."""
        return min(self.max_halvings, num_halvings(self.canvas, smallest=1))

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Of the integers z: [h, w, n]."""
        side = 2**self.halvings
        height, width, _ = self.canvas
        return (height // side, width // side, self.num_codes)

    def setup(self) -> None:
        """Encoder, codebook, decoder and prior."""
        if self.codebook_size < 2:
            raise InputError(
                f"--set=codebook_size={self.codebook_size}: give 2 or more"
            )
        if self.commitment < 0:
            raise InputError(f"--set=commitment={self.commitment}: give 0 or more")
        # The prior itself would name them as its own fields.
        names = ("prior_width", "prior_heads")
        check_heads(self.prior_width, self.prior_heads, rotary=True, names=names)
        same: dict[str, Any] = dict(
            width=self.width,
            halvings=self.halvings,
            depth=self.depth,
            kernel_size=3 if self.canvas == self.shape else 1,
            dropout_rate=self.dropout_rate,
        )
        self.embed = CondEmbedding(self.cond, self.width)
        self.encoder = Encoder(**same, num_codes=self.num_codes, code_dim=self.code_dim)
        normal = nn.initializers.normal(1.0)
        size = (self.codebook_size, self.code_dim)
        self.codebook = self.param("codebook", normal, size)
        features = self.canvas[-1] * self.num_params
        self.decoder = Decoder(**same, features=features, dtype=self.dtype)
        self.prior = Transformer(
            self.code_shape,
            self.codebook_size,
            self.cond,
            self.precision,
            width=self.prior_width,
            depth=self.prior_depth,
            num_heads=self.prior_heads,
            dropout_rate=self.dropout_rate,
        )

    def encode(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """X [B, *shape] -> (vectors [B, h, w, n, code_dim], their codes [B, h, w, n])."""
        h = symbol_features(x, self.num_values, self.one_hot)
        h = h.reshape(x.shape[0], *self.canvas[:2], -1)
        v = self.encoder(h, self.embed(cond), train)
        # Of vectors of length one the nearest is that with the largest product.
        products = jax.lax.stop_gradient(v) @ unit(self.codebook).T
        return v, jnp.argmax(products, axis=-1)

    def decode(
        self, vectors: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """[B, h, w, n, code_dim] -> parameters of p(x|z), [B, *shape, P]."""
        params = self.decoder(vectors, self.embed(cond), train)
        return params.reshape(-1, *self.shape, self.num_params)

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A bound on log P(x), [B]; less the two training losses if `train`."""
        v, codes = self.encode(x, cond, train=train)
        e = unit(self.codebook)[codes]
        # The value is e; the gradient is that of e, and v's as if v had been used.
        straight = e + (v - jax.lax.stop_gradient(v))
        params = self.decode(straight, cond, train=train)
        terms = {
            "reconstruction": sum_dims(self.symbol_log_prob(params, x)),
            "prior": self.prior.log_prob(codes, cond, train=train)[0],
        }
        if train:
            # Equation 3: |sg[v] - e|^2 + beta |v - sg[e]|^2.
            stop = jax.lax.stop_gradient
            terms["codebook"] = -sum_dims((stop(v) - e) ** 2)
            terms["commitment"] = -self.commitment * sum_dims((v - stop(e)) ** 2)
        return sum(terms.values(), jnp.zeros(x.shape[0])), terms

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Codes from the prior, one after the other, then x ~ p(x|z)."""
        codes = self.prior.sample(num_samples, cond, temperature=temperature)
        logits = self.symbol_logits(self.decode(unit(self.codebook)[codes], cond))
        x = jax.random.categorical(self.make_rng("sample"), logits / temperature)
        return x.astype(jnp.int32)


Model = VQVAE
TINY = dict(
    width=8,
    depth=1,
    num_codes=2,
    codebook_size=8,
    code_dim=4,
    prior_width=8,
    prior_depth=1,
    prior_heads=2,
)
