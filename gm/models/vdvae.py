"""VDVAE: a deep hierarchical VAE on a grid (Child 2021).

Latents z_1, ..., z_N lie on grids from 1 x 1 up to that of the image. Top-down, block n
reads prior and posterior of z_n from the features h_n of what lies above it:

  p(z | h_1 ... h_N) = prod_n N(z_n; mean_p(h_n), std_p(h_n))
  q(z | x)           = prod_n N(z_n; mean_q(h_n, a), std_q(h_n, a)),   a = encoder(x)
  h_{n+1} = residual(h_n + shift(h_n) + project(z_n))                   (paper, figure 3)
  log w   = log p(x|z) + sum_n log p(z_n|h_n) - log q(z_n|h_n, a)

with z ~ q, so that E[w] = P(x). A block is 1x1, 3x3, 3x3, 1x1 convolutions with a
bottleneck; there is no normalisation. Blocks are written as in the reference: `32x11` is
11 blocks at resolution 32, `32d2` in the encoder one that is followed by pooling 2 x 2,
`16m8` in the decoder one that adds the features of resolution 8, repeated.

Deviations from the paper: the KL is sampled, for it has to be a weight; logarithms of
standard deviations are clipped to [-7, 5]; one width for all resolutions; optional
dropout; the mass of a logistic's bin is exact. A resolution is that of the height: the
width follows in proportion, and a sequence is an image of width 1. Skipping of steps
with large gradients is left to the training loop.
"""

import functools
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError, check_positive
from gm.latent import PixelDecoder
from gm.likelihood import normal_log_prob, sum_dims
from gm.nn.conditioning import CondEmbedding, grid_of, per_position
from gm.nn.convolution import Conv
from gm.nn.resolutions import (
    SCANNED,
    Run,
    check_runs,
    default_blocks,
    parse_runs,
    pool,
    repeat,
)
from gm.nn.symbols import symbol_features

_gelu = functools.partial(nn.gelu, approximate=False)


def _uniform(scale):
    """U(-b, b) of variance scale / fan_in."""
    return nn.initializers.variance_scaling(scale, "fan_in", "uniform")


def _layer(features, size, init, dtype, **named):
    """A convolution; of size 1 it is a dense layer."""
    if size == 1:
        return nn.Dense(features, kernel_init=init, dtype=dtype, **named)
    return Conv(features, size, dtype, kernel_init=init, **named)


class Bottleneck(nn.Module):
    """1x1, 3x3, 3x3, 1x1 convolutions; 1x1 alone up to resolution 2."""

    features: int
    middle: int
    kernel_size: int
    init_scale: float
    last_init: nn.initializers.Initializer
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, I] -> [B, H, W, features]."""
        for size in (1, self.kernel_size, self.kernel_size):
            init = _uniform(self.init_scale)
            layer = _layer(self.middle, size, init, self.dtype)
            h = layer(_gelu(h))
        h = nn.Dropout(self.dropout_rate, deterministic=not train)(_gelu(h))
        return _layer(self.features, 1, self.last_init, self.dtype)(h)


class TopDownBlock(nn.Module):
    """One group of latents: prior, posterior, and what z adds to the features."""

    width: int
    num_latents: int
    init_scale: float
    last_scale: float  # init_scale / number of blocks, of what is added (paper, 3)
    bottleneck: functools.partial  # of the arguments that all Bottlenecks share
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, noise, given, activations, train, temperature):
        """Features [B, H, W, width] -> features, (z, log p(z) - log q(z) [B]).

        Args:
          h: features.
          noise: [B, H, W, num_latents], standard normal; or z itself if `given`.
          given: whether `noise` is z.
          activations: of the encoder, to draw from q; None: from p.
          train: whether there is dropout.
          temperature: factor of the standard deviation of p.
        """
        size = self.num_latents
        zeros, small = nn.initializers.zeros, _uniform(self.last_scale)
        prior = self.bottleneck(2 * size + self.width, last_init=zeros, name="prior")
        mean, log_std, shift = jnp.split(prior(h, train), (size, 2 * size), axis=-1)
        p = _normal(mean, log_std)
        if activations is None:
            z = noise if given else p[0] + temperature * jnp.exp(p[1]) * noise
            log_ratio = jnp.zeros(len(h))
        else:
            init = _uniform(self.init_scale)
            infer = self.bottleneck(2 * size, last_init=init, name="posterior")
            seen = jnp.concatenate([h, activations], axis=-1)
            q = _normal(*jnp.split(infer(seen, train), 2, axis=-1))
            z = noise if given else q[0] + jnp.exp(q[1]) * noise
            log_ratio = sum_dims(normal_log_prob(z, *p) - normal_log_prob(z, *q))
        project = _layer(self.width, 1, small, self.dtype, name="project")
        residual = self.bottleneck(self.width, last_init=small, name="residual")
        h = h + shift + project(z)
        return h + residual(h, train), (z, log_ratio)


def _normal(mean, log_std):
    """In float32, whatever the network computes in."""
    log_std = jnp.clip(log_std.astype(jnp.float32), -7.0, 5.0)
    return mean.astype(jnp.float32), log_std


class VDVAE(PixelDecoder):
    """Bottom-up encoder, top-down decoder, both of bottleneck residual blocks."""

    width: int = 64
    bottleneck: float = 0.25  # width inside a block, as a part of `width`
    num_latents: int = 16  # per position and block
    depth: int = 2  # blocks per resolution, where the next two say nothing
    encoder_blocks: str | None = None  # such as 32x11,32d2,16x6,16d16,1x3
    decoder_blocks: str | None = None  # such as 1x1,16m1,16x10,32m16,32x21
    # Variance of initial weights times inputs of a unit. 1/3 is the reference's; small
    # networks have latents that are not used in the end, unless it is larger.
    init_scale: float = 1 / 3
    max_bias: int = 64  # resolution up to which there is a learned bias per position
    one_hot: bool = True  # inputs of 3 to 32 values; else one number in [-1, 1]
    dropout_rate: float = 0.0

    @property
    def runs(self) -> tuple[list[Run], list[Run]]:
        """Blocks of the encoder and of the decoder; InputError if they do not fit."""
        default = default_blocks(self.shape[0], self.depth, self._grid)
        down = parse_runs("encoder_blocks", self.encoder_blocks or default[0])
        up = parse_runs("decoder_blocks", self.decoder_blocks or default[1])
        check_runs(down, up, self._grid, self.shape[0])
        return down, up

    def _grid(self, resolution):
        """(H, W) at a resolution; that of a sequence has width 1."""
        if resolution == 1 < self.shape[0]:
            return 1, 1
        width = self.shape[1] if len(self.shape) == 3 else 1
        return resolution, max(width * resolution // self.shape[0], 1)

    @property
    def latent_dims(self) -> int:
        """Number of latent dimensions, of all blocks together."""
        return sum(math.prod(shape) for shape in self._latent_shapes())

    def _latent_shapes(self) -> Iterator[tuple[int, ...]]:
        for run in self.runs[1]:
            yield run.count, *self._grid(run.resolution), self.num_latents

    def setup(self) -> None:
        """Blocks by run: a list of them, or one whose parameters are stacked."""
        check_positive(self, "width", "depth", "init_scale")
        middle = int(self.width * self.bottleneck)
        if middle < 1:
            least = math.ceil(1000 / self.width) / 1000
            raise InputError(
                f"--set=bottleneck={self.bottleneck}: leaves no unit of width = "
                f"{self.width}; give {least} or more"
            )
        down, up = self.runs
        shared = dict(dropout_rate=self.dropout_rate, dtype=self.dtype)
        first = _uniform(self.init_scale)
        last, last_up = (
            self.init_scale / sum(r.count for r in runs) for runs in (down, up)
        )

        def block(run):
            return functools.partial(
                Bottleneck,
                middle=middle,
                kernel_size=3 if run.resolution > 2 else 1,
                init_scale=self.init_scale,
                **shared,
            )

        def copies(run, make):
            return [make() for _ in range(run.count if run.count < SCANNED else 1)]

        self.stem = _layer(self.width, 3, first, self.dtype)
        self.down = [
            copies(run, lambda b=block(run): b(self.width, last_init=_uniform(last)))
            for run in down
        ]
        self.up = [
            copies(
                run,
                lambda b=block(run): TopDownBlock(
                    self.width,
                    self.num_latents,
                    self.init_scale,
                    last_up,
                    b,
                    self.dtype,
                ),
            )
            for run in up
        ]
        zeros = nn.initializers.zeros
        self.start = {
            str(r): self.param(f"start_{r}", zeros, (*self._grid(r), self.width))
            for r in sorted({run.resolution for run in up})
            if r <= self.max_bias
        }
        self.embed = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )
        self.gain = self.param("gain", nn.initializers.ones, (self.width,))
        self.bias = self.param("bias", zeros, (self.width,))
        self.head = nn.Dense(self.pixel_params, kernel_init=first)  # float32

    def _encode(self, x, cond, train):
        """Integers [B, *shape] -> the last features [B, H, W, width] by resolution."""
        x = x.reshape(-1, *self._grid(self.shape[0]), self.channels)
        features = symbol_features(x, self.num_values, self.one_hot)
        h = self.stem(features.reshape(*x.shape[:3], -1))
        h = h + per_position(self.embed(cond), h.shape[1:3])
        found = {self.shape[0]: h}
        for run, blocks in zip(self.runs[0], self.down, strict=True):
            h, _ = run.apply(
                lambda block, h, _: (h + block(h, train), None), blocks, h, None
            )
            h = pool(h, self._grid(run.resolution // run.pool))
            found[h.shape[1]] = h
        return found

    def _decode(self, noise, cond, found=None, given=False, train=False, temperature=1):
        """Top-down pass; arguments as of `TopDownBlock`, noise [B, latent_dims].

        Returns:
          parameters of p(x|z); z [B, latent_dims]; log p(z) - log q(z|x) [B].
        """
        c = self.embed(cond)
        features: dict[int, jax.Array] = {}
        log_ratio, zs, first = 0.0, [], 0
        shapes = self._latent_shapes()
        for run, blocks, shape in zip(self.runs[1], self.up, shapes, strict=True):
            side, grid = run.resolution, self._grid(run.resolution)
            h = features.get(side)
            if h is None:
                h = jnp.zeros((1, *grid, self.width))
                h = self.start.get(str(side), h) + per_position(c, grid)
                h = h.astype(self.dtype)
                h = jnp.broadcast_to(h, (len(noise), *h.shape[1:]))
            if run.mix:
                h = h + repeat(features[run.mix], grid)
            part = noise[:, first : first + math.prod(shape)]
            first += math.prod(shape)
            part = jnp.moveaxis(part.reshape(-1, *shape), 1, 0)  # [count, B, h, w, z]
            activations = None if found is None else found[side]
            fixed = (given, activations, train, temperature)
            features[side], (z, log_ratios) = run.apply(
                lambda block, h, e, fixed=fixed: block(h, e, *fixed), blocks, h, part
            )
            zs.append(jnp.moveaxis(z, 0, 1).reshape(len(noise), -1))
            log_ratio += log_ratios.sum(0)
        h = features[self.shape[0]].astype(jnp.float32) * self.gain + self.bias
        return self.per_pixel(self.head(h)), jnp.concatenate(zs, 1), log_ratio

    def generate(
        self, z: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Z [B, latent_dims] -> parameters of p(x|z), [B, H, W, P] or [B, L, P]."""
        return self._decode(z, cond, given=True, train=train)[0]

    def _log_weight(self, x, noise, cond, given, train):
        found = self._encode(x, cond, train)
        params, _, log_ratio = self._decode(noise, cond, found, given, train)
        log_px_z = self.log_px_z(params, x)
        return log_px_z + log_ratio, {
            "reconstruction": log_px_z,
            "minus_kl": log_ratio,
        }

    def sample_posterior(
        self, x: jax.Array, cond: jax.Array | None = None
    ) -> jax.Array:
        """Draws z ~ q(z|x), as `log_weight` takes it: x [B, *shape] -> [B, latent_dims]."""
        shape = (x.shape[0], self.latent_dims)
        noise = jax.random.normal(self.make_rng("sample"), shape)
        return self._decode(noise, cond, self._encode(x, cond, False))[1]

    def log_weight(
        self, x: jax.Array, z: jax.Array, cond: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log p(x, z) - log q(z|x) [B], and its terms."""
        return self._log_weight(x, z, cond, True, False)

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log of an unbiased estimate of P(x), [B]."""
        shape = (x.shape[0], self.latent_dims)
        noise = jax.random.normal(self.make_rng("sample"), shape)
        return self._log_weight(x, noise, cond, False, train)

    def sample_joint(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (x, z): the deviations of z from its means scaled by the temperature."""
        key_z, key_x = jax.random.split(self.make_rng("sample"))
        noise = jax.random.normal(key_z, (num_samples, self.latent_dims))
        params, z, _ = self._decode(noise, cond, temperature=temperature)
        return self.sample_x(key_x, params), z


Model = VDVAE
TINY = dict(width=8, num_latents=1, depth=1)
