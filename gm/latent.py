"""What latent-variable models share: the evidence lower bound from one draw of q.

log w = log p(x|z) + log p(z) - log q(z|x), z ~ q(z|x). E[w] = P(x), so the mean of log w
is the ELBO (Kingma & Welling 2014) and logmeanexp of K draws the tighter importance-
weighted bound (Burda et al. 2016). The KL is sampled, not analytic: that is what makes w
unbiased.

p(x|z) of pixels is in `PixelDecoder`, for models of one layer of latents or of many.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError
from gm.likelihood import (
    bernoulli_log_prob,
    categorical_log_prob,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_logits,
    discretized_logistic_mixture_sample,
    mixture_channels,
    normal_log_prob,
    sum_dims,
)
from gm.model import LikelihoodModel
from gm.spec import Estimate


class SampledLatents(LikelihoodModel):
    """Base of models whose log_prob is one log-weight, log p(x, z) - log q(z|x)."""

    estimate: ClassVar[Estimate] = Estimate.WEIGHT
    family: ClassVar[str] = "latent-variable"

    def log_weight(
        self, x: jax.Array, z: jax.Array, cond: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log p(x, z) - log q(z|x) [B], and its terms, for z as `sample_joint` gives."""
        raise TypeError(f"{type(self).__name__} defines no log_weight")

    def sample_joint(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (x, z), z from the prior with deviations scaled by the temperature."""
        raise TypeError(f"{type(self).__name__} defines no sample_joint")

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws z from the prior, scaled by the temperature, then x ~ p(x|z)."""
        return self.sample_joint(num_samples, cond, temperature=temperature)[0]


class PixelDecoder(SampledLatents):
    """p(x|z) whose pixels are independent given z, from P parameters for each of them.

    A table over the values up to 32 of them (Bernoulli for 2), else a mixture of
    discretized logistics (Salimans et al. 2017). A sequence is pixels of one channel.
    """

    num_mixtures: int | None = None  # None: a table up to 32 values, else 5 logistics

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
    def pixel_params(self) -> int:
        """P, decoder outputs per pixel, or per symbol of a sequence."""
        if self.mixtures:
            return mixture_channels(self.mixtures, self.channels)
        return self.channels * (1 if self.num_values == 2 else self.num_values)

    def per_pixel(self, params: jax.Array) -> jax.Array:
        """[B, ...] -> [B, H, W, P], or [B, L, P] of sequences."""
        grid = self.shape[:2] if len(self.shape) == 3 else self.shape
        return params.reshape(-1, *grid, self.pixel_params)

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
        self.sow("maps", "map_reconstruction", log_px)  # for `bit_map`
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


def mean_weight(
    log_w: jax.Array, terms: dict[str, jax.Array], count: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log of the mean of `count` weights of each example, and its terms.

    Burda et al. (2016), eq. 8. The terms are means over the draws; what the bound is
    above the mean of the log-weights is a term of its own.

    Args:
      log_w: [B count], the draws of an example one after the other.
      terms: of `log_w`.
      count: draws per example.
    """
    log_w = log_w.reshape(-1, count)
    log_px = jax.nn.logsumexp(log_w, axis=1) - math.log(count)
    means = {name: t.reshape(-1, count).mean(1) for name, t in terms.items()}
    return log_px, means | {"importance_weighting": log_px - log_w.mean(1)}


class LatentModel(SampledLatents):
    """Base of models with a Gaussian q(z|x) and a standard normal prior.

    A model gives `infer`, `generate`, `log_px_z` and `sample_x` (of p(x|z)).
    """

    # K draws of z in the objective: with train=True log_prob is the log of the mean of K
    # weights (Burda et al. 2016). Evaluation takes the draws that it is asked for.
    num_train_samples: int = 1

    @property
    def latent_dims(self) -> int:
        """Number of latent dimensions."""
        raise TypeError(f"{type(self).__name__} defines no latent_dims")

    def infer(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """X [B, *shape] -> (mean, log_std) of q(z|x), each [B, latent_dims]."""
        raise TypeError(f"{type(self).__name__} defines no infer")

    def generate(
        self, z: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Z [B, latent_dims] -> parameters of p(x|z)."""
        raise TypeError(f"{type(self).__name__} defines no generate")

    def log_px_given(
        self, z: jax.Array, x: jax.Array, cond: jax.Array | None, train: bool
    ) -> jax.Array:
        """Log p(x|z) [B]."""
        return self.log_px_z(self.generate(z, cond, train=train), x)

    def log_px_z(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Log p(x|z) [B] from what `generate` returned."""
        raise TypeError(f"{type(self).__name__} defines no log_px_z")

    def sample_x(self, key: jax.Array, params: jax.Array) -> jax.Array:
        """Draws x ~ p(x|z) from what `generate` returned."""
        raise TypeError(f"{type(self).__name__} defines no sample_x")

    @property
    def channels(self) -> int:
        """C: the symbols of x lie in C channels, coded one after another."""
        raise TypeError(f"{type(self).__name__} defines no channels")

    def symbol_logits(self, params: jax.Array, x: jax.Array, channel: int) -> jax.Array:
        """Log-probabilities [B, D / C, K] of the symbols of one channel, up to a constant.

        Args:
          params: what `generate` returned.
          x: [B, *shape] integers, of which the channels before `channel` are seen.
          channel: 0 to C - 1.
        """
        raise TypeError(f"{type(self).__name__} defines no symbol_logits")

    def _log_weight(self, x, z, cond, train, mean, log_std):
        log_px_z = self.log_px_given(z, x, cond, train)
        log_pz = sum_dims(normal_log_prob(z))
        log_qz_x = sum_dims(normal_log_prob(z, mean, log_std))
        terms = {"reconstruction": log_px_z, "minus_kl": log_pz - log_qz_x}
        return log_px_z + (log_pz - log_qz_x), terms

    def _posterior(self, x, cond, train):
        mean, log_std = self.infer(x, cond, train=train)
        return mean.astype(jnp.float32), log_std.astype(jnp.float32)

    def sample_posterior(
        self, x: jax.Array, cond: jax.Array | None = None
    ) -> jax.Array:
        """Draws z ~ q(z|x), as `log_weight` takes it: x [B, *shape] -> [B, latent_dims]."""
        mean, log_std = self._posterior(x, cond, False)
        eps = jax.random.normal(self.make_rng("sample"), mean.shape)
        return mean + jnp.exp(log_std) * eps

    def log_weight(
        self, x: jax.Array, z: jax.Array, cond: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log p(x, z) - log q(z|x) [B], and its terms."""
        return self._log_weight(x, z, cond, False, *self._posterior(x, cond, False))

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log of an unbiased estimate of P(x), [B]."""
        if self.num_train_samples < 1:
            raise InputError(
                f"--set=num_train_samples={self.num_train_samples}: give 1 or more"
            )
        count = self.num_train_samples if train else 1
        # One pass of the encoder serves all draws; those of an example lie together.
        mean, log_std, x, cond = jax.tree.map(
            lambda a: jnp.repeat(a, count, axis=0) if count > 1 else a,
            (*self._posterior(x, cond, train), x, cond),
        )
        eps = jax.random.normal(self.make_rng("sample"), mean.shape)
        z = mean + jnp.exp(log_std) * eps
        log_w, terms = self._log_weight(x, z, cond, train, mean, log_std)
        return (log_w, terms) if count == 1 else mean_weight(log_w, terms, count)

    def sample_joint(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (x, z): z from the prior, scaled by the temperature, x ~ p(x|z)."""
        key_z, key_x = jax.random.split(self.make_rng("sample"))
        z = temperature * jax.random.normal(key_z, (num_samples, self.latent_dims))
        return self.sample_x(key_x, self.generate(z, cond)), z
