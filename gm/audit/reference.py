"""Models whose nats are known, for examining what turns models into numbers."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gm.latent import LatentModel
from gm.likelihood import normal_log_prob, sum_dims
from gm.model import LikelihoodModel
from gm.spec import Estimate


class Geometric(LikelihoodModel):
    """Symbols with P(x) proportional to exp(-x); no number where every symbol is `hole`."""

    hole: int = -1
    estimate: ClassVar[Estimate] = Estimate.EXACT

    def log_prob(
        self, x: jax.Array, cond: Any = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) [B]."""
        normaliser = jax.nn.logsumexp(-jnp.arange(self.num_values, dtype=jnp.float32))
        log_px = sum_dims(-x.astype(jnp.float32) - normaliser)
        hole = (x == self.hole).all(axis=tuple(range(1, x.ndim)))
        log_px = jnp.where(hole, jnp.nan, log_px)
        return log_px, {"symbols": log_px}


class GeometricBound(Geometric):
    """The same, declared an ELBO."""

    estimate: ClassVar[Estimate] = Estimate.ELBO


class LinearGaussian(LatentModel):
    """z ~ N(0, 1), and two reals v = W z + N(0, s^2), or v rounded to integers.

    The density of v is known in closed form; the probability of the rounded pair is a
    one-dimensional integral. q(z|x) has the posterior's mean and a wider standard
    deviation, so that the bounds lie apart.
    """

    rounded: bool = False

    weights: ClassVar[tuple[float, float]] = (1.2, -0.7)
    std: ClassVar[float] = 0.8
    widening: ClassVar[float] = 1.5  # std of q over that of the posterior

    @property
    def latent_dims(self) -> int:
        """One."""
        return 1

    def _reals(self, x):
        """The reals that integers [..., 2] stand for: centred, one apart."""
        return x - (self.num_values - 1) / 2

    def infer(
        self, x: jax.Array, cond: Any = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and log standard deviation of q(z|x), [B, 1]."""
        w = np.asarray(self.weights, np.float32)
        precision = 1 + (w**2).sum() / self.std**2
        mean = (self._reals(x) @ w)[:, None] / (self.std**2 * precision)
        log_std = math.log(self.widening / math.sqrt(precision))
        return mean, jnp.full_like(mean, log_std)

    def generate(
        self, z: jax.Array, cond: Any = None, *, train: bool = False
    ) -> jax.Array:
        """Means of v, [B, 2]."""
        return z * jnp.asarray(self.weights)

    def log_px_z(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Log density, or log probability of the bin (the edge bins are unbounded)."""
        v = self._reals(x)
        if not self.rounded:
            return sum_dims(normal_log_prob(v, params, math.log(self.std)))
        side = jnp.where(v > params, -1.0, 1.0)  # differences of small numbers only
        edges = [jnp.where(x == 0, -jnp.inf, v - 0.5), v + 0.5]
        edges[1] = jnp.where(x == self.num_values - 1, jnp.inf, edges[1])
        low, high = (
            jax.scipy.stats.norm.cdf(side * (e - params) / self.std) for e in edges
        )
        return sum_dims(jnp.log(jnp.abs(high - low)))

    def exact(self, x: np.ndarray) -> np.ndarray:
        """Log density or log probability of integers [N, 2]: float64 [N]."""
        v, w = self._reals(np.asarray(x, np.float64)), np.asarray(self.weights)
        if not self.rounded:
            covariance = np.outer(w, w) + self.std**2 * np.eye(2)
            form = np.einsum("ni,ij,nj->n", v, np.linalg.inv(covariance), v)
            return -0.5 * (form + np.log(np.linalg.det(2 * np.pi * covariance)))
        z = np.linspace(-8, 8, 401)  # the sum converges exponentially
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
        upper = (v[:, None] + 0.5 - z[:, None] * w) / self.std  # [N, Z, 2]
        lower = upper - 1 / self.std
        upper[np.broadcast_to((x == self.num_values - 1)[:, None], upper.shape)] = (
            np.inf
        )
        lower[np.broadcast_to((x == 0)[:, None], lower.shape)] = -np.inf
        erf = np.vectorize(math.erf)
        mass = (erf(upper / math.sqrt(2)) - erf(lower / math.sqrt(2))) / 2
        return np.log((mass.prod(-1) * density).sum(-1))

    def elbo(self, x: np.ndarray) -> np.ndarray:
        """E_q[log w] of the density, in closed form: float64 [N]."""
        ratio = self.widening**2  # of the variances of q and the posterior
        return self.exact(x) - 0.5 * (ratio - 1 - math.log(ratio))
