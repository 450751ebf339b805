"""A variational diffusion model (Kingma, Salimans, Poole & Ho 2021).

With v the values of x scaled to [-1, 1] and a noise schedule gamma(t) that rises,

  q(z_t|x) = N(alpha_t v, sigma_t^2),  sigma_t^2 = sigmoid(gamma(t)) = 1 - alpha_t^2,

so gamma is -log SNR. A network predicts the noise of z_t, and the bound (their equation
11) has three terms: log p(x|z_0), a KL at t = 1, and the diffusion loss, in continuous
time (equation 17) or in T steps (equation 14). p(x|z_0) is normalised over the K values:
the bound is on the log of a pmf. The network keeps the resolution of the image
(appendix B.3): residual blocks down, an attention in the middle, and as many blocks up,
each of which sees the features of its counterpart. A sequence of L symbols is one pixel
of L channels: the layers are dense.

Deviations from the paper: what it leaves open is as in the authors' published code. Values
are at 2x/(K-1) - 1, and gamma(0) starts where their distance is 6 sigma, which at 256
values is the -13.3 of the paper. The Fourier features have periods of one and two values,
as n = 7, 8 have there. In a monotone network as the schedule all weights follow the
gradient of the bound, also those that the paper trains for low variance. The condition is
added to the embedding of time.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError
from gm.likelihood import categorical_log_prob, normal_kl, scale, sum_dims
from gm.model import LikelihoodModel
from gm.nn.attention import attend
from gm.nn.conditioning import CondEmbedding, guide, with_none
from gm.nn.convolution import Conv
from gm.nn.diffusion import NoiseSchedule, sinusoids, value_waves
from gm.spec import Estimate


class ResNetBlock(nn.Module):
    """Two convolutions on a residual branch; the body of a loop over equal blocks."""

    width: int
    kernel_size: int  # 1: a vector, one pixel
    dropout_rate: float
    train: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, h: jax.Array, skip: jax.Array | None, cond: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """H and skip [B, H, W, width], cond [B, 4 width] -> the new h, twice."""

        def layer(features, **kwargs):
            return Conv(features, self.kernel_size, dtype=self.dtype, **kwargs)

        if skip is not None:
            h = jnp.concatenate([h, skip], axis=-1)
        zeros: Any = dict(kernel_init=nn.initializers.zeros)
        branch = layer(self.width)(nn.silu(_norm(h, self.kernel_size)(h)))
        shift = nn.Dense(self.width, use_bias=False, dtype=self.dtype, **zeros)(cond)
        branch = branch + shift[:, None, None]
        branch = nn.silu(_norm(branch, self.kernel_size)(branch))
        branch = nn.Dropout(self.dropout_rate, deterministic=not self.train)(branch)
        branch = layer(self.width, **zeros)(branch)
        if skip is not None:
            h = nn.Dense(self.width, dtype=self.dtype, name="shortcut")(h)
        h = h + branch
        return h, h


def _norm(h, kernel_size):
    """Groups of at least four channels and all pixels; all channels of a vector."""
    channels = h.shape[-1]
    groups = math.gcd(min(32, max(channels // 4, 1)), channels)
    return nn.GroupNorm(groups if kernel_size > 1 else 1, dtype=h.dtype)


class PixelAttention(nn.Module):
    """Self-attention of one head over the pixels, on a residual branch."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """[B, H, W, width] -> the same."""
        width = h.shape[-1]
        branch = _norm(h, 3)(h).reshape(h.shape[0], 1, -1, width)
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(branch)
        out = attend(*jnp.split(qkv, 3, axis=-1), allowed=jnp.ones((1, 1), bool))
        zeros = nn.initializers.zeros
        out = nn.Dense(width, kernel_init=zeros, dtype=self.dtype, name="out")(out)
        return h + out.reshape(h.shape)


class NoisePredictor(nn.Module):
    """The U-net without changes of resolution."""

    width: int
    depth: int
    num_values: int
    dropout_rate: float
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, z: jax.Array, t: jax.Array, cond: jax.Array, train: bool = False
    ) -> jax.Array:
        """Z [B, H, W, C] or [B, L], t in [0, 1] [B], cond [B or 1, width] -> its eps."""
        kernel_size, pixels = (3, z) if z.ndim == 4 else (1, z[:, None, None])
        c = sinusoids(1000 * t, self.width) + cond
        c = nn.silu(nn.Dense(4 * self.width, dtype=self.dtype)(c))
        c = nn.silu(nn.Dense(4 * self.width, dtype=self.dtype)(c))
        block = (self.width, kernel_size, self.dropout_rate, train, self.dtype)
        cls = nn.remat(ResNetBlock, prevent_cse=False) if self.remat else ResNetBlock
        blocks = nn.scan(  # equal ones in a loop, which compiles as fast as one
            cls,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.depth + 1,
        )
        h = jnp.concatenate([pixels, value_waves(pixels, self.num_values)], axis=-1)
        stem = Conv(self.width, kernel_size, dtype=self.dtype, name="stem")(h)
        # The last of these blocks is the first in the middle; nothing skips from it.
        h, features = blocks(*block, name="down")(stem, None, c)  # [depth + 1, B, ...]
        if h.shape[1] * h.shape[2] > 1:
            h = PixelAttention(self.dtype, name="attention")(h)
        h, _ = ResNetBlock(*block, name="middle")(h, None, c)
        skips = jnp.concatenate([stem[None], features[:-1]])[::-1]
        h, _ = blocks(*block, name="up")(h, skips, c)
        h = nn.silu(_norm(h, kernel_size)(h)).astype(jnp.float32)
        zeros = nn.initializers.zeros
        out = Conv(pixels.shape[-1], kernel_size, kernel_init=zeros, name="head")(h)
        return z + out.reshape(z.shape)  # at much noise, z is the noise


_LEAST = dict(num_timesteps=0, num_eval_times=1, num_sample_steps=1)
_MAX_GAMMA = 80  # beyond, sigma or alpha leaves float32 and the gradient is NaN


class VDM(LikelihoodModel):
    """Diffusion with a learnt noise schedule; a bound on log P(x)."""

    width: int = 64
    depth: int = 4  # residual blocks down, and as many up
    dropout_rate: float = 0.0
    num_timesteps: int = 0  # T; 0: continuous time
    num_eval_times: int = 4  # draws of t for an example, other than in training
    num_sample_steps: int = 250  # of the sampler in continuous time
    gamma_min: float | None = None  # initial gamma(0); None: 6 sigma between two values
    gamma_max: float = 5.0  # initial gamma(1)
    schedule_units: int = 0  # of a monotone network; 0: the schedule is linear
    remat: bool = False  # saves memory: the blocks are computed twice
    estimate = Estimate.ELBO
    family = "latent-variable"
    evaluation_fields = ("num_timesteps", "num_eval_times", "num_sample_steps")

    def setup(self) -> None:
        """Network, schedule and the embedding of the condition."""
        if self.width % 2:
            raise InputError(f"--set=width={self.width}: give an even number")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"--set={name}={getattr(self, name)}: give {least} or more"
                )
        for name in ("gamma_min", "gamma_max"):
            gamma = getattr(self, name)
            if gamma is not None and abs(gamma) > _MAX_GAMMA:
                raise InputError(
                    f"--set={name}={gamma:g}: give -{_MAX_GAMMA} to {_MAX_GAMMA}"
                )
        if self.gamma_low >= self.gamma_max:
            told = (
                f"--set=gamma_min={self.gamma_low:g} --set=gamma_max={self.gamma_max:g}"
            )
            raise InputError(f"{told}: give gamma_min below gamma_max")
        self.embed = CondEmbedding(self.cond, self.width, self.dtype)
        ends = (self.gamma_low, self.gamma_max)
        self.schedule = NoiseSchedule(*ends, self.schedule_units)
        sizes = (self.width, self.depth, self.num_values)
        rest = (self.dropout_rate, self.remat, self.dtype)
        self.network = NoisePredictor(*sizes, *rest)

    @property
    def gamma_low(self) -> float:
        """Initial gamma(0), by default 2 log sigma where values lie 6 sigma apart."""
        default = -2 * math.log(3 * max(self.num_values - 1, 1))
        return default if self.gamma_min is None else self.gamma_min

    def predict_noise(
        self, z: jax.Array, gamma: jax.Array, cond: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """The noise in z [B, D] of level gamma [B], given the condition's embedding."""
        t = (gamma - self.gamma_low) / (self.gamma_max - self.gamma_low)
        shape = (-1, *(self.shape if len(self.shape) == 3 else (self.num_dims,)))
        return self.network(z.reshape(shape), t, cond, train=train).reshape(z.shape)

    def symbol_logits(self, z_0: jax.Array) -> jax.Array:
        """Log p(x_d | z_0) up to a constant: z_0 [B, D] -> [B, D, K]."""
        # In proportion to N(z_0; alpha_0 v, sigma_0^2); exp(gamma) = sigma^2 / alpha^2.
        gamma = self.schedule(jnp.zeros(()))
        v = scale(jnp.arange(self.num_values), self.num_values)
        distance = z_0[..., None] / _alpha(gamma) - v
        return -0.5 * jnp.exp(-gamma) * distance**2

    def _times(self, key, batch_size, train):
        """Times [draws, B], each uniform on [0, 1).

        The draws of an example are spread evenly; in training, which has one, those of a
        batch are (their appendix I.1). They never hang on the data of others.
        """
        if train:
            u, count = jax.random.uniform(key), batch_size
            return (u + jnp.arange(count)[None] / count) % 1.0
        u, count = jax.random.uniform(key, (batch_size,)), self.num_eval_times
        return (u + jnp.arange(count)[:, None] / count) % 1.0

    def diffusion_loss(
        self, v: jax.Array, t: jax.Array, eps: jax.Array, cond: jax.Array, train: bool
    ) -> jax.Array:
        """One draw of the diffusion loss: v, eps [B, D], t [B] -> nats [B]."""
        if not self.num_timesteps:
            # 1/2 gamma'(t) |eps - eps_hat(z_t)|^2: equation 17.
            gamma, slope = jax.jvp(self.schedule, (t,), (jnp.ones_like(t),))
            weight = 0.5 * slope
        else:
            # T/2 (exp(gamma(t) - gamma(s)) - 1) |eps - eps_hat(z_t)|^2: equation 14.
            count = self.num_timesteps
            step = jnp.minimum(jnp.floor(t * count), count - 1)
            gamma = self.schedule((step + 1) / count)
            weight = 0.5 * count * jnp.expm1(gamma - self.schedule(step / count))
        z_t = _alpha(gamma)[:, None] * v + _sigma(gamma)[:, None] * eps
        eps_hat = self.predict_noise(z_t, gamma, cond, train=train)
        return weight * sum_dims((eps - eps_hat) ** 2)

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """An unbiased estimate of a bound on log P(x), [B], and its three terms."""
        batch = x.shape[0]
        key_t, key_0, key_eps = jax.random.split(self.make_rng("sample"), 3)
        x = x.reshape(batch, self.num_dims)
        v, c = scale(x, self.num_values), self.embed(cond)
        gamma_0, gamma_1 = self.schedule(jnp.zeros(())), self.schedule(jnp.ones(()))
        z_0 = _alpha(gamma_0) * v + _sigma(gamma_0) * jax.random.normal(key_0, v.shape)
        log_px_z = categorical_log_prob(self.symbol_logits(z_0), x)
        log_std = 0.5 * nn.log_sigmoid(gamma_1)  # of z_1
        kl = normal_kl(_alpha(gamma_1) * v, log_std)
        # The draws of an example are examples of the network.
        t = self._times(key_t, batch, train)  # [draws, B]
        v = jnp.tile(v, (len(t), 1))
        c = c if self.cond is None else jnp.tile(c, (len(t), 1))
        eps = jax.random.normal(key_eps, v.shape)
        loss = self.diffusion_loss(v, t.ravel(), eps, c, train)
        terms = {
            "reconstruction": sum_dims(log_px_z),
            "minus_kl": -sum_dims(kl),
            "diffusion": -loss.reshape(t.shape).mean(0),
        }
        return sum(terms.values(), jnp.zeros((batch,))), terms

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
        guidance: float = 0.0,
    ) -> jax.Array:
        """Ancestral sampling (their appendix A.4), then x ~ p(x|z_0).

        With `num_timesteps` this is exactly the model that the bound is on; in continuous
        time it is approximate. The temperature multiplies the noise. Guidance moves
        eps_hat away from that without the condition (Ho & Salimans 2021).
        """
        key = self.make_rng("sample")
        steps = self.num_timesteps or self.num_sample_steps
        c = self.embed(with_none(self.cond, cond) if guidance else cond)
        shape = (num_samples, self.num_dims)
        network, variables = self.unbind()  # no bound module inside a lax loop

        def body(z: jax.Array, i: jax.Array) -> tuple[jax.Array, Any]:
            """z_t -> z_s, from t = i / steps."""
            ends = jnp.stack([i, i - 1]) / steps
            gamma_t, gamma_s = network.apply(variables, ends, method=_gamma)
            given = jnp.tile(z, (2, 1)) if guidance else z
            gammas = jnp.full((len(given),), gamma_t)
            told: Any = (variables, given, gammas, c)
            eps_hat: Any = network.apply(*told, method="predict_noise")
            eps_hat = guide(eps_hat, guidance) if guidance else eps_hat
            # q(z_s|z_t, x) with x from eps_hat; 1 - exp(gamma_s - gamma_t) is the
            # share of the noise that this step takes away.
            share = -jnp.expm1(gamma_s - gamma_t)
            mean = z - _sigma(gamma_t) * share * eps_hat
            mean *= _alpha(gamma_s) / _alpha(gamma_t)
            std = _sigma(gamma_s) * jnp.sqrt(share)
            eps = jax.random.normal(jax.random.fold_in(key, i), shape)
            return mean + temperature * std * eps, None

        z = temperature * jax.random.normal(jax.random.fold_in(key, steps + 1), shape)
        z_0, _ = jax.lax.scan(body, z, jnp.arange(steps, 0, -1))
        x = jax.random.categorical(jax.random.fold_in(key, 0), self.symbol_logits(z_0))
        return x.reshape(num_samples, *self.shape).astype(jnp.int32)


def _gamma(model, t):
    return model.schedule(t)


def _alpha(gamma):
    return jnp.sqrt(nn.sigmoid(-gamma))


def _sigma(gamma):
    return jnp.sqrt(nn.sigmoid(gamma))


Model = VDM
TINY = dict(width=8, depth=1, num_eval_times=1, num_sample_steps=8)
