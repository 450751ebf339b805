"""TarFlow: autoregressive transformers in a row, as a flow (Zhai et al. 2024).

An image is a sequence of T patches. A block moves every patch by what those before it
say (paper, eq. 3 to 5), in parallel, and reverses the order for the next block:

  z_t = (x_t - mu(x_<t)) exp(-a(x_<t)),    log|dz/dx| = -sum a,    mu(x_<0) = a(x_<0) = 0
  x_t = z_t exp(a(x_<t)) + mu(x_<t),       one patch after the other

mu and a are the output of a causal transformer at the patch before. With
volume_preserving=True a = 0 and one scale and shift per channel are learned at the end.

The inverse goes patch by patch with keys and values in a cache, or iterates all patches
at once until none moves (inversion=jacobi): whole passes, but far fewer than T.

A vector is a sequence of patches of one symbol each.

Guidance moves samples away from the unconditional model (section 3.5), mu and a each by
mu + w (mu - mu_none), a before its bound: w > 0 leaves the likelihood model, as a
temperature does. It needs training that drops conditions (`--cond_drop_rate`).

Deviations from the paper: the data are mapped to R^D by the logistic quantile function
(`preprocessing=identity` is the paper's [-1, 1]), so that no mass lies outside their range;
a is bounded by a scaled tanh, or far from the data it overflows (`log_scale_bound=none` is
the paper's); dequantisation is uniform, not by Gaussian noise; no denoising after sampling;
the last patch of a sequence has no position, since nothing is said from it; one embedding
of the condition is shared by the blocks, and none is an embedding of its own where the
authors' code takes the mean of the classes.
"""

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError, check_positive
from gm.flow import MultiScaleFlow
from gm.likelihood import sum_dims
from gm.nn.attention import (
    Block,
    Looped,
    check_heads,
    make_blocks,
    run_blocks,
    step_blocks,
)
from gm.nn.conditioning import CondEmbedding, guide, with_none
from gm.nn.invertible import ActNorm, Repeated, check_inversion, fixed_point
from gm.nn.patches import num_squeezes, patch_channels


class Guided(NamedTuple):
    """A condition of samples that guidance moves away from those without one."""

    cond: jax.Array
    weight: float


class MetaBlock(nn.Module):
    """An affine autoregressive layer over patches, after which their order is reversed."""

    length: int  # T
    channels: int  # of a patch
    width: int
    depth: int
    num_heads: int
    volume_preserving: bool
    log_scale_bound: float | None
    dropout_rate: float
    dtype: jnp.dtype
    inversion: str = "sequential"  # or "jacobi"
    scan_layers: bool | None = None

    def setup(self) -> None:
        """A causal transformer whose output layer starts at zero."""
        self.enter = nn.Dense(self.width, dtype=self.dtype)
        start = nn.initializers.normal(0.01)
        self.places = self.param("places", start, (self.length - 1, self.width))
        block = functools.partial(
            Block,
            self.num_heads,
            shape=None,
            plain=True,
            use_bias=True,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        self.blocks = make_blocks(block, self.depth, self.scan_layers)
        features = self.channels * (1 if self.volume_preserving else 2)
        zeros = nn.initializers.zeros
        self.leave = nn.Dense(features, kernel_init=zeros, dtype=jnp.float32)

    def __call__(
        self,
        h: jax.Array,
        cond: tuple[jax.Array, Any],
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> ([B, H, W, C], log_det [B]).

        `cond` is embedded, [B or 1, width], and a guidance weight or None; with a weight
        the embedding [2 B, width] ends with that of no condition.
        """
        tokens = h.reshape(h.shape[0], self.length, self.channels)
        if inverse:
            invert = self._jacobi if self.inversion == "jacobi" else self._sequential
            x, a = invert(tokens[:, ::-1], *cond)
            return x.reshape(h.shape), sum_dims(a)
        a, mu = self._moments(tokens, *cond, train)
        z = (tokens - mu) * jnp.exp(-a)
        return z[:, ::-1].reshape(h.shape), -sum_dims(a)

    def _moments(self, x, cond, weight, train=False):
        """(a, mu), each [B, T, C], of every patch given those before it."""
        given = x[:, :-1] if weight is None else jnp.tile(x[:, :-1], (2, 1, 1))
        t = self.enter(given) + self.places.astype(self.dtype)
        t = t + cond[:, None]  # [B, T - 1, width]
        t = run_blocks(self.blocks, t, train)
        out = self.leave(t) if weight is None else guide(self.leave(t), weight)
        # What is said at a patch is about the next; nothing is said of the first.
        return self._split(jnp.pad(out, ((0, 0), (1, 0), (0, 0))))

    def _jacobi(self, z, cond, weight):
        """As `_sequential`, of all patches at once."""

        def update(x):
            a, mu = self._moments(x, cond, weight)
            return z * jnp.exp(a) + mu

        x = fixed_point(update, z, self.length)
        return x, self._moments(x, cond, weight)[0]

    def _split(self, out):
        if self.volume_preserving:
            return jnp.zeros_like(out), out
        a, mu = jnp.split(out, 2, axis=-1)
        if self.log_scale_bound is not None:
            a = self.log_scale_bound * jnp.tanh(a / self.log_scale_bound)
        return a, mu

    def _sequential(self, z, cond, weight):
        """Z [B, T, C] -> (x, a) [B, T, C], with keys and values in a cache."""
        rows = z.shape[0] * (1 if weight is None else 2)
        head_dim = self.width // self.num_heads
        empty = jnp.zeros((rows, self.num_heads, self.length - 1, head_dim), self.dtype)

        each = self.blocks.each() if isinstance(self.blocks, Looped) else None

        def body(block, carry, step):
            x, cells = carry  # x [B, C]: patch `index`
            index, z_next = step
            given = x if weight is None else jnp.concatenate([x, x])
            t = block.enter(given) + block.places[index].astype(block.dtype) + cond
            t, grown = step_blocks(each or block.blocks, t[:, None], cells, index)
            out = block.leave(t[:, 0])
            if weight is not None:
                out = guide(out, weight)
            a, mu = block._split(out)
            x = z_next * jnp.exp(a) + mu
            return (x, grown), (x, a)

        loop = nn.scan(
            body,
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": False},
        )
        carry = z[:, 0], [(empty, empty)] * self.depth
        steps = jnp.arange(self.length - 1), z[:, 1:].swapaxes(0, 1)
        _, (rest, a) = loop(self, carry, steps)  # [T - 1, B, C] each
        x = jnp.concatenate([z[:, :1], rest.swapaxes(0, 1)], axis=1)
        return x, a.swapaxes(0, 1)


class TarFlow(MultiScaleFlow):
    """Blocks of alternating order on the patches of an image, or on a vector."""

    preprocessing: str = "logistic"
    patch_size: int = 2  # a power of two; of images
    width: int = 128
    num_blocks: int = 4
    depth: int = 2  # transformer layers of a block
    num_heads: int = 4
    volume_preserving: bool = False
    log_scale_bound: float | None = 1.0  # of a; none: as in the paper
    dropout_rate: float = 0.0
    scan_layers: bool | None = (
        None  # compile one layer of a block for all; None: from 8
    )
    remat: bool = False  # saves memory: the blocks are computed twice
    inversion: str = "sequential"  # or "jacobi"
    evaluation_fields: ClassVar[tuple[str, ...]] = ("inversion",)

    def setup(self) -> None:
        """The blocks, as a loop."""
        check_heads(self.width, self.num_heads)
        check_inversion(self.inversion)
        check_positive(self, "log_scale_bound")
        channels = patch_channels(self.shape, self.patch_size)
        if self.num_dims == channels:
            raise InputError(
                f"--set=patch_size={self.patch_size}: an example of shape {self.shape} "
                "would be one patch; there must be two or more"
            )
        block = MetaBlock(
            self.num_dims // channels,
            channels,
            self.width,
            self.depth,
            self.num_heads,
            self.volume_preserving,
            self.log_scale_bound,
            self.dropout_rate,
            self.dtype,
            self.inversion,
            self.scan_layers,
            parent=None,
        )
        self.blocks = Repeated(block, self.num_blocks, self.remat)
        if self.volume_preserving:
            self.scale = ActNorm()
        self.embedding = CondEmbedding(self.cond, self.width, self.dtype)

    @property
    def layout(self) -> tuple[int, ...]:
        """The image; a vector is a column of pixels."""
        return self.shape if len(self.shape) == 3 else (*self.shape, 1, 1)

    def embed(self, cond: jax.Array | Guided | None) -> tuple[jax.Array, Any]:
        """The condition as the blocks take it."""
        if isinstance(cond, Guided):
            return self.embedding(with_none(self.cond, cond.cond)), cond.weight
        return self.embedding(cond), None

    def steps(self) -> list[nn.Module | str]:
        """Squeezes that make patches, and the blocks."""
        squeezes = num_squeezes(self.shape, self.patch_size)
        last = [self.scale] if self.volume_preserving else []
        return ["squeeze"] * squeezes + [self.blocks, *last]

    def sample(
        self,
        num_samples: int,
        cond: Any = None,
        *,
        temperature: float = 1.0,
        guidance: float = 0.0,
    ) -> jax.Array:
        """Draws integers; `guidance` is the weight w, or 0 to sample from the model."""
        if guidance:
            cond = Guided(cond, guidance)
        return super().sample(num_samples, cond, temperature=temperature)


Model = TarFlow
TINY = dict(patch_size=1, width=8, num_blocks=2, depth=1, num_heads=2)
