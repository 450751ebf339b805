"""What every way to complete examples takes and gives."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from gm.bounds import logmeanexp
from gm.errors import InputError
from gm.evaluate import check_importance_samples, example_log_weights
from gm.model import LikelihoodModel

LOG_PX_DRAWS = 64  # importance samples of log P(x), where it is not exact


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is drawn; None: what the method finds fit."""

    num_completions: int = 4  # M, of each example
    num_particles: int | None = None
    num_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Completions of n examples, with what was measured on the way."""

    x: np.ndarray  # integers [n, M, *shape], the observed symbols as they were
    nats: np.ndarray  # [n], -log p(x_missing | x_observed) of the original
    log_observed: np.ndarray | None  # [n], log of an unbiased estimate of p(x_observed)
    figures: dict[str, np.ndarray]  # [n] each


class Method:
    """Draws from p(x_missing | x_observed) of a model; one subclass per capability."""

    name: ClassVar[str]
    particles: ClassVar[int] = 1  # where the budget names none
    steps: ClassVar[int] = 0

    def __init__(self, model: LikelihoodModel, missing: np.ndarray, budget: Budget):
        """Args: the model, bool [*shape] of what is hidden, and the budget.

        Raises:
          InputError: steps for a method that has none.
        """
        if budget.num_steps and not self.steps:
            raise InputError(
                f"--num_steps={budget.num_steps}: this model completes such masks "
                "without a Markov chain; leave it out"
            )
        self.model, self.missing = model, missing
        self.num_completions = budget.num_completions
        self.num_particles = budget.num_particles or self.particles
        self.num_steps = budget.num_steps or self.steps

    @classmethod
    def fits(cls, model: LikelihoodModel, missing: np.ndarray) -> bool:
        """Whether it is right for these symbols, of a model that has the capability."""
        return True

    @property
    def exact(self) -> bool:
        """Whether completions are exact draws: not only in the limit of the budget."""
        return False

    @property
    def bound(self) -> str:
        """What the nats are in expectation: exact, upper, lower, or neither bound."""
        return "neither"

    @property
    def rows(self) -> int:
        """How many examples the network sees at once for each that is completed."""
        return self.num_completions * self.num_particles

    def draw(self, params: Any, x: jax.Array, cond: Any, key: jax.Array) -> Drawn:
        """Completes x [n, *shape], of which the hidden symbols serve the nats alone."""
        raise NotImplementedError


def log_px(
    model: LikelihoodModel, params: Any, x: jax.Array, cond: Any, key: jax.Array
) -> np.ndarray:
    """Log P(x) float64 [n]: exact, or a bound by LOG_PX_DRAWS importance samples."""
    draws = check_importance_samples(model, LOG_PX_DRAWS)
    indices = np.arange(len(x), dtype=np.int32)
    log_w, _ = example_log_weights(model, params, x, cond, indices, key, draws)
    return logmeanexp(np.asarray(log_w, np.float64))


def repeat(tree: Any, count: int) -> Any:
    """Each example `count` times, one after the other: [n, ...] -> [n count, ...]."""
    return jax.tree.map(lambda v: jnp.repeat(v, count, axis=0), tree)


def pick_chains(
    key: jax.Array, log_w: jax.Array, ends: jax.Array, count: int
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """Draws of the chains of annealed importance sampling, by weight (Neal 2001).

    Args:
      key: PRNG key.
      log_w: [n, P], of the P chains of each of n examples.
      ends: [n P, D], where the chains ended.
      count: M, how many to draw for each example.

    Returns:
      Ends [n M, D]; the log of the mean weight, float64 [n]; effective sample sizes [n].
    """
    n, chains = log_w.shape
    pick = functools.partial(systematic, count=count)
    chosen = jax.vmap(pick)(jax.random.split(key, n), log_w)  # [n, M]
    ends = ends.reshape(n, chains, -1)
    ends = jnp.take_along_axis(ends, chosen[..., None], axis=1).reshape(n * count, -1)
    weights = np.asarray(log_w, np.float64)
    sizes = 1 / (softmax(weights, axis=1) ** 2).sum(1)
    return ends, logmeanexp(weights, axis=1), sizes


def systematic(key: jax.Array, log_w: jax.Array, count: int) -> jax.Array:
    """Indices [count] of weights [P], each as often as its share, up to one in count."""
    points = (jax.random.uniform(key) + jnp.arange(count)) / count
    edges = jnp.cumsum(jax.nn.softmax(log_w))
    return jnp.minimum(jnp.searchsorted(edges, points), len(log_w) - 1)
