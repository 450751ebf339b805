"""Completes half-seen examples: draws from p(x_missing | x_observed) of any model.

The method is the most exact one that the model's capabilities allow; each says in its
file what it does, and by which paper. The metric is in nats of the missing symbols of the
true example, -log p(x_missing | x_observed) = log p(x_observed) - log p(x).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.complete.flow import AnnealedHamiltonian
from gm.complete.latent import MetropolisWithinGibbs
from gm.complete.masks import parse_mask
from gm.complete.method import Budget, Drawn, Method
from gm.complete.sequential import Sequential
from gm.complete.symbols import PseudoMarginalGibbs
from gm.errors import InputError, check_whole
from gm.model import LikelihoodModel
from gm.spec import Estimate

__all__ = ["Budget", "Completions", "complete", "method_for", "parse_mask"]

# The first of which a model has all methods, and that fits the mask. What a subclass has
# not, though its base has, is None there.
_METHODS: dict[tuple[str, ...], type[Method]] = {
    ("step", "order_after"): Sequential,
    ("sample_posterior", "generate", "symbol_logits"): MetropolisWithinGibbs,
    ("forward", "inverse", "log_weight"): AnnealedHamiltonian,
    ("log_prob",): PseudoMarginalGibbs,
}
_ROWS = 2048  # that a network sees at once


@dataclasses.dataclass(frozen=True)
class Completions:
    """Completions of N examples and what they say of the model."""

    x: np.ndarray  # integers [N, M, *shape]
    method: str
    exact: bool  # whether the draws are exact for any budget
    nats: np.ndarray  # [N], -log p(x_missing | x_observed)
    log_observed: np.ndarray | None  # [N], of an unbiased estimate of p(x_observed)
    bound: str  # of the nats in expectation: "exact", "upper", "lower" or "neither"
    figures: dict[str, float]  # means over examples: acceptance, effective samples


def method_for(model: LikelihoodModel, missing: np.ndarray, budget: Budget) -> Method:
    """The method that a model's capabilities and the mask allow.

    Raises:
      InputError: a budget below one, or a model that gives but a bound of log P(x).
    """
    for field in dataclasses.fields(budget):
        value = getattr(budget, field.name)
        if value is not None:
            check_whole(1, **{field.name: value})
    if model.estimate is Estimate.ELBO:
        raise InputError(
            f"{type(model).__name__} gives an ELBO alone, from which no method draws "
            "p(x_missing | x_observed); complete with a model of exact likelihoods or "
            "importance weights"
        )
    able = (
        cls
        for names, cls in _METHODS.items()
        if all(getattr(model, name, None) is not None for name in names)
    )
    return next(cls for cls in able if cls.fits(model, missing))(model, missing, budget)


def complete(
    model: LikelihoodModel,
    params: Any,
    x: np.ndarray,
    cond: np.ndarray | None,
    missing: np.ndarray,
    budget: Budget,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Completions:
    """Completes examples.

    Args:
      model, params: trained.
      x: integers [N, *shape]; the hidden symbols serve the nats alone.
      cond: [N, ...] or None.
      missing: bool [*shape], True where a symbol is hidden.
      budget: how much is drawn.
      seed: of the noise.
      progress: called with the number of examples done.

    Raises:
      InputError: as `method_for`.
    """
    method = method_for(model, missing, budget)
    size = min(max(_ROWS // method.rows, 1), len(x))
    key, parts = jax.random.key(seed), list[Drawn]()
    for start in range(0, len(x), size):
        numbers = np.arange(start, start + size) % len(x)  # one shape: compiled once
        part = method.draw(
            params,
            jnp.asarray(x[numbers], jnp.int32),
            None if cond is None else cond[numbers],
            jax.random.fold_in(key, start),
        )
        parts.append(jax.tree.map(lambda v, n=len(x) - start: v[:n], _as_tree(part)))
        if progress is not None:
            progress(min(start + size, len(x)))
    drawn, nats, log_z, figures = jax.tree.map(lambda *v: np.concatenate(v), *parts)
    assert np.array_equal(drawn[:, 0][:, ~missing], x[:, ~missing])
    means = {name: float(v.mean()) for name, v in figures.items()}
    return Completions(
        drawn, method.name, method.exact, nats, log_z, method.bound, means
    )


def _as_tree(part: Drawn) -> tuple[Any, ...]:
    return part.x, part.nats, part.log_observed, part.figures
