"""Flow++: couplings by mixtures of logistics, with attention (Ho et al. 2019).

A coupling keeps the part of h under a mask m and moves each other entry by the distribution
function of a mixture of M logistics, a logit and an affine map, whose parameters
are functions of what is kept (paper, section 3.2):

  F(h) = sum_k pi_k sigmoid((h - mu_k) / s_k),    z = logit(F(h)) exp(a) + b
  log|dz/dh| = log F'(h) - log F(h) - log(1 - F(h)) + a

The inverse solves logit F(h) = v by bisection: each component has the logit (h - mu_k)/s_k,
so the root lies between the least and the largest mu_k + s_k v. The network is of gated
convolutions and attention over positions (section 3.3). Before each coupling: actnorm and
an invertible 1x1 convolution. Images: checkerboard couplings, a squeeze, channel couplings,
checkerboard couplings; nothing is factored out. Noise is variational (section 3.1).

A vector is an image of one column, whose couplings keep every other symbol.

Deviations from the paper: masks in place of halves that are cut out, so the same network
sees all positions; noise is logistic, moved by affine couplings (gm/nn/dequantization.py);
the logit of the data leaves a margin of 1e-6 alone; actnorm starts at
one, not from a batch; log s and a are bounded by a scaled tanh; the attention is that of a
pre-norm transformer; the logistics of a position start alike but for random weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError, check_positive
from gm.flow import MultiScaleFlow
from gm.likelihood import sum_dims
from gm.nn.attention import SelfAttention, check_heads
from gm.nn.conditioning import CondEmbedding, grid_of, per_position
from gm.nn.convolution import Conv, num_halvings
from gm.nn.coupling import mask
from gm.nn.dequantization import VariationalDequantizer
from gm.nn.invertible import ActNorm, InvertibleConv

_STEPS = 40  # of the bisection, beyond what float32 can tell apart


def log_mixture_cdf(
    h: jax.Array, log_pi: jax.Array, mu: jax.Array, log_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log F and log(1 - F) of a mixture of logistics: h [...], the others [..., M]."""
    v = (h[..., None] - mu) * jnp.exp(-log_s)
    below = jax.nn.logsumexp(log_pi + jax.nn.log_sigmoid(v), axis=-1)
    above = jax.nn.logsumexp(log_pi + jax.nn.log_sigmoid(-v), axis=-1)
    return below, above


def mixture_logit(
    h: jax.Array, log_pi: jax.Array, mu: jax.Array, log_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The logit of F(h) and its log-slope, elementwise."""
    below, above = log_mixture_cdf(h, log_pi, mu, log_s)
    v = (h[..., None] - mu) * jnp.exp(-log_s)
    density = log_pi - log_s + jax.nn.log_sigmoid(v) + jax.nn.log_sigmoid(-v)
    log_slope = jax.nn.logsumexp(density, axis=-1) - below - above
    return below - above, log_slope


def mixture_logit_inverse(
    v: jax.Array, log_pi: jax.Array, mu: jax.Array, log_s: jax.Array
) -> jax.Array:
    """The h at which logit F(h) = v, by bisection."""
    ends = mu + jnp.exp(log_s) * v[..., None]

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        below, above = log_mixture_cdf(middle, log_pi, mu, log_s)
        less = below - above < v
        return jnp.where(less, middle, low), jnp.where(less, high, middle)

    bracket = jax.lax.fori_loop(0, _STEPS, halve, (ends.min(-1), ends.max(-1)))
    return (bracket[0] + bracket[1]) / 2


class GatedLayer(nn.Module):
    """A gated convolution and attention over positions, each a residual with LayerNorm."""

    num_heads: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, cond: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, width], cond [B or 1, 1, 1, width] -> [B, H, W, width]."""
        width = h.shape[-1]
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        both = jnp.concatenate([h, -h], axis=-1)
        branch = Conv(width, dtype=self.dtype)(nn.elu(both)) + cond
        branch = jnp.concatenate([branch, -branch], axis=-1)
        branch = Conv(2 * width, 1, self.dtype)(dropout(nn.elu(branch)))
        value, gate = jnp.split(branch, 2, axis=-1)
        h = nn.LayerNorm(dtype=self.dtype)(h + value * nn.sigmoid(gate))
        positions = h.reshape(h.shape[0], -1, width)
        attention = SelfAttention(
            self.num_heads,
            shape=None,
            causal=False,
            qk_norm=False,
            use_bias=True,
            dtype=self.dtype,
        )
        branch = dropout(attention(positions)[0]).reshape(h.shape)
        return nn.LayerNorm(dtype=self.dtype)(h + branch)


class GatedNetwork(nn.Module):
    """Gated layers in a loop between two convolutions."""

    features: int
    width: int
    depth: int
    num_heads: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, cond: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C], cond [B or 1, width] -> [B, H, W, features], float32."""
        cond = per_position(cond, h.shape[1:3])
        small = nn.initializers.normal(0.02)
        places = self.param("places", small, (*h.shape[1:3], self.width))
        h = Conv(self.width, dtype=self.dtype)(h) + places.astype(self.dtype) + cond
        loop = nn.scan(
            lambda layer, h, _: (layer(h, cond, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        layer = GatedLayer(self.num_heads, self.dropout_rate, self.dtype)
        h, _ = loop(layer, h, None)
        # Small, not zero: logistics that start equal would stay equal.
        last = Conv(self.features, dtype=self.dtype, kernel_init=small)
        return last(nn.elu(h)).astype(jnp.float32)


class MixtureCoupling(nn.Module):
    """Actnorm, a 1x1 convolution and a coupling by a mixture of logistics."""

    kind: str
    parity: int
    num_mixtures: int
    network: tuple  # width, depth, num_heads, dropout_rate, dtype

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
        before = [ActNorm(), InvertibleConv()][: h.shape[-1]]  # no rotation of one
        log_det = jnp.zeros(h.shape[0])
        if not inverse:
            for layer in before:
                h, change = layer(h, cond)
                log_det += change
        m = jnp.asarray(mask(self.kind, self.parity, h.shape[1:]))
        channels = h.shape[-1]
        features = channels * (2 + 3 * self.num_mixtures)
        out = GatedNetwork(features, *self.network)(h * m, cond, train)
        out = out.reshape(*h.shape, -1)  # [B, H, W, C, 2 + 3 M]
        a, b = 2 * jnp.tanh(out[..., 0] / 2), out[..., 1]
        log_pi, mu, log_s = jnp.split(out[..., 2:], 3, axis=-1)
        mixture = jax.nn.log_softmax(log_pi), mu, 5 * jnp.tanh(log_s / 5)
        if not inverse:
            moved, log_slope = mixture_logit(h, *mixture)
            log_det += sum_dims((1 - m) * (log_slope + a))
            return m * h + (1 - m) * (moved * jnp.exp(a) + b), log_det
        moved = mixture_logit_inverse((h - b) * jnp.exp(-a), *mixture)
        _, log_slope = mixture_logit(moved, *mixture)
        log_det -= sum_dims((1 - m) * (log_slope + a))
        h = m * h + (1 - m) * moved
        for layer in before[::-1]:
            h, change = layer(h, cond, inverse=True)
            log_det += change
        return h, log_det


class FlowPP(MultiScaleFlow):
    """Couplings by mixtures of logistics, at two scales."""

    dequantizer: str = "variational"
    preprocessing: str = "logistic"
    width: int = 96
    depth: int = 10  # gated layers of a coupling
    num_heads: int = 4
    num_mixtures: int = 32
    couplings: tuple[int, ...] = (4, 2, 3)  # checkerboard, channel, checkerboard
    dropout_rate: float = 0.2

    def setup(self) -> None:
        """Couplings in the order of the forward pass."""
        check_heads(self.width, self.num_heads)
        check_positive(self, "num_mixtures")
        said = f"--set=couplings={','.join(map(str, self.couplings))}"
        if len(self.couplings) != 3:
            raise InputError(f"{said}: give three numbers, such as 4,2,3")
        halve = len(self.shape) == 3 and num_halvings(self.shape, smallest=2) > 0
        first, channel, last = self.couplings
        # Without a squeeze all are at one scale.
        kinds = ["checkerboard"] * first + ["squeeze"] * halve
        kinds += ["channel"] * (channel * halve) + ["checkerboard"] * last
        if not {"checkerboard", "channel"} & set(kinds):
            raise InputError(
                f"{said}: an example of shape {self.shape} would have no coupling; "
                "give such as 4,2,3"
            )
        args = self.width, self.depth, self.num_heads, self.dropout_rate, self.dtype
        self.kinds = tuple(kinds)
        self.layers = [
            MixtureCoupling(kind, parity, self.num_mixtures, args)
            for parity, kind in enumerate(k for k in kinds if k != "squeeze")
        ]
        self.embed = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )

    @nn.nowrap
    def make_dequantizer(self) -> nn.Module:
        """As wide as the couplings, and at most two layers deep."""
        depth = min(self.depth, 2)
        return VariationalDequantizer(
            self.cond,
            self.num_values,
            self.width,
            depth,
            self.dropout_rate,
            self.dtype,
        )

    @property
    def layout(self) -> tuple[int, ...]:
        """The image; a vector is a column of pixels."""
        return self.shape if len(self.shape) == 3 else (*self.shape, 1, 1)

    def steps(self) -> list[nn.Module | str]:
        """Couplings, and the squeeze between them."""
        layers = iter(self.layers)
        return [k if k == "squeeze" else next(layers) for k in self.kinds]


Model = FlowPP
TINY = dict(width=4, depth=1, num_heads=1, num_mixtures=2, couplings=(1, 0, 1))
