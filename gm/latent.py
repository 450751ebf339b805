"""What latent-variable models share: the evidence lower bound from one draw of q.

log w = log p(x|z) + log p(z) - log q(z|x), z ~ q(z|x). E[w] = P(x), so the mean of log w
is the ELBO (Kingma & Welling 2014) and logmeanexp of K draws the tighter importance-
weighted bound (Burda et al. 2016). The KL is sampled, not analytic: that is what makes w
unbiased.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from gm.likelihood import normal_log_prob, sum_dims
from gm.model import LikelihoodModel
from gm.spec import Estimate


class LatentModel(LikelihoodModel):
    """Base of models with a Gaussian q(z|x) and a standard normal prior.

    A model gives `infer`, `generate`, `log_px_z` and `sample_x` (of p(x|z)).
    """

    estimate: ClassVar[Estimate] = Estimate.WEIGHT
    family: ClassVar[str] = "latent-variable"

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
        log_px_z = self.log_px_z(self.generate(z, cond, train=train), x)
        log_pz = sum_dims(normal_log_prob(z))
        log_qz_x = sum_dims(normal_log_prob(z, mean, log_std))
        terms = {"reconstruction": log_px_z, "minus_kl": log_pz - log_qz_x}
        return log_px_z + (log_pz - log_qz_x), terms

    def _posterior(self, x, cond, train):
        mean, log_std = self.infer(x, cond, train=train)
        return mean.astype(jnp.float32), log_std.astype(jnp.float32)

    def log_weight(
        self, x: jax.Array, z: jax.Array, cond: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log p(x, z) - log q(z|x) [B], and its terms."""
        return self._log_weight(x, z, cond, False, *self._posterior(x, cond, False))

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log of an unbiased estimate of P(x), [B]."""
        mean, log_std = self._posterior(x, cond, train)
        eps = jax.random.normal(self.make_rng("sample"), mean.shape)
        z = mean + jnp.exp(log_std) * eps
        return self._log_weight(x, z, cond, train, mean, log_std)

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

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws z from the prior, scaled by the temperature, then x ~ p(x|z)."""
        return self.sample_joint(num_samples, cond, temperature=temperature)[0]
