"""Jet: couplings by vision transformers (Kolesnikov et al. 2024).

An image is a sequence of patches. A coupling keeps the part x1 under a mask and moves
the other part x2 by functions of it (paper, section 2):

  y2 = (x2 + b(x1)) sigmoid(s(x1)) / sigmoid(0),    log|dy/dx| = sum log of these factors

b and s are the output of a transformer over all patches that starts at zero, and so does
the flow at the identity. Of each five couplings the first four keep a random half of a
patch's channels, two in a row complementary ones, and the last keeps every other patch:
as a checkerboard, by columns or by rows. All are at one scale, without actnorm or 1x1
convolutions.

A vector is a sequence of patches of one symbol each; couplings keep random halves of these.

Deviations from the paper: masks in place of halves that are cut out and paired, so the
transformer sees all patches, those that are moved as zeros; the data are mapped to
R^D by the normal quantile function, so that no mass lies outside their range.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.flow import MultiScaleFlow
from gm.likelihood import sum_dims
from gm.nn.attention import Block, check_heads, make_blocks, run_blocks
from gm.nn.conditioning import CondEmbedding, grid_of, per_position
from gm.nn.coupling import mask
from gm.nn.patches import num_squeezes, patch_channels


class Coupling(nn.Module):
    """A coupling whose network is a transformer."""

    width: int
    depth: int
    num_heads: int
    dropout_rate: float
    dtype: jnp.dtype
    scan_layers: bool | None = None

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        m: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, T, C], m [T, C]: 1 where it is kept -> ([B, T, C], log_det [B]).

        cond: embedded, [B, T or 1, width].
        """
        length, channels = h.shape[1:]
        start = nn.initializers.normal(0.02)
        places = self.param("places", start, (length, self.width))
        t = nn.Dense(self.width, dtype=self.dtype)(h * m) + places.astype(self.dtype)
        t = t + cond
        block = functools.partial(
            Block,
            self.num_heads,
            shape=None,
            causal=False,
            plain=True,
            use_bias=True,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        t = run_blocks(make_blocks(block, self.depth, self.scan_layers), t, train)
        t = nn.LayerNorm(dtype=self.dtype)(t)
        zeros = nn.initializers.zeros
        out = nn.Dense(2 * channels, kernel_init=zeros, dtype=jnp.float32)(t)
        s, b = jnp.split(out, 2, axis=-1)
        log_scale = (1 - m) * (jax.nn.log_sigmoid(s) - jax.nn.log_sigmoid(0.0))
        b = (1 - m) * b
        if inverse:
            return h * jnp.exp(-log_scale) - b, -sum_dims(log_scale)
        return (h + b) * jnp.exp(log_scale), sum_dims(log_scale)


class Couplings(nn.Module):
    """One coupling of each kind in a row, in a loop."""

    layer: nn.Module  # one of them
    kinds: tuple[str, ...]  # "channel"; "patch" of an image, "half" of a vector
    remat: bool = False  # reverse mode keeps their inputs alone

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        cond: jax.Array,
        *,
        inverse: bool = False,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> ([B, H, W, C], log_det [B])."""

        def body(layer, tokens, m):
            return layer(tokens, m, cond, inverse=inverse, train=train)

        loop = nn.scan(
            nn.remat(body, prevent_cse=False) if self.remat else body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=len(self.kinds),
            reverse=inverse,
        )
        cond = per_position(cond, h.shape[1:3])
        cond = cond.reshape(len(cond), -1, cond.shape[-1])  # [B, T or 1, width]
        tokens = h.reshape(h.shape[0], -1, h.shape[-1])
        masks = jnp.asarray(self._arrays(h.shape[1:]))
        tokens, log_dets = loop(self.layer, tokens, masks)
        return tokens.reshape(h.shape), log_dets.sum(0)

    def _arrays(self, shape):
        """The masks, float32 [n, T, C]."""
        seen, arrays = dict.fromkeys(self.kinds, 0), []
        for kind in self.kinds:
            index, seen[kind] = seen[kind], seen[kind] + 1
            if kind == "channel":
                m = mask("half", index, shape[-1:])
            elif kind == "half":
                m = mask("half", index, shape[:1])[:, None, None]
            else:
                row, column = np.indices(shape[:2])
                number = (row + column, column, row)[index // 2 % 3]
                m = (number % 2 == index % 2).astype(np.float32)[..., None]
            arrays.append(np.broadcast_to(m, shape).reshape(-1, shape[-1]))
        return np.stack(arrays)


class Jet(MultiScaleFlow):
    """Transformer couplings on the patches of an image, or on a vector."""

    patch_size: int = 2  # a power of two; of images
    width: int = 128
    num_couplings: int = 10
    depth: int = 1  # transformer layers of a coupling
    num_heads: int = 4
    dropout_rate: float = 0.0
    scan_layers: bool | None = (
        None  # compile one layer of a coupling for all; None: from 8
    )
    remat: bool = False  # saves memory: the couplings are computed twice

    def setup(self) -> None:
        """The couplings, as a loop."""
        check_heads(self.width, self.num_heads)
        channels = patch_channels(self.shape, self.patch_size)
        spatial = "patch" if len(self.shape) == 3 else "half"
        turn = ("channel",) * (4 if channels > 1 else 0) + (spatial,)
        kinds = tuple(turn[i % len(turn)] for i in range(self.num_couplings))
        layer = Coupling(
            self.width,
            self.depth,
            self.num_heads,
            self.dropout_rate,
            self.dtype,
            self.scan_layers,
            parent=None,
        )
        self.couplings = Couplings(layer, kinds, self.remat)
        self.embed = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )

    @property
    def layout(self) -> tuple[int, ...]:
        """The image; a vector is a column of pixels."""
        return self.shape if len(self.shape) == 3 else (*self.shape, 1, 1)

    def steps(self) -> list[nn.Module | str]:
        """Squeezes that make patches, and the couplings."""
        squeezes = num_squeezes(self.shape, self.patch_size)
        return ["squeeze"] * squeezes + [self.couplings]


Model = Jet
TINY = dict(patch_size=1, width=4, num_couplings=3, depth=1, num_heads=1)
