"""Examples, and what the models at hand say of them, each computed when first asked for."""

import dataclasses
import functools
from typing import Any

import numpy as np

from gm.codec.baselines import example_bits
from gm.model import LikelihoodModel
from gm.outliers import statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A model with its parameters."""

    model: LikelihoodModel
    params: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """The models that scores may ask, and how they are asked."""

    inlier: Fitted  # of the data that are no outliers
    background: Fitted | None = None  # of the same data with mutated symbols
    ensemble: tuple[Fitted, ...] = ()  # of the same data, beside `inlier`
    num_importance_samples: int = 1  # where a likelihood is not exact
    group_size: int = 10  # examples that typicality_group judges together


class Examples:
    """Some examples [N, *shape] of integers under the models."""

    def __init__(self, models: Models, x: np.ndarray):
        self.models, self.x = models, x

    def __len__(self) -> int:
        return len(self.x)

    def _log_likelihoods(self, fitted):
        draws = self.models.num_importance_samples
        return statistics.log_likelihoods(fitted.model, fitted.params, self.x, draws)

    @functools.cached_property
    def _own(self):
        return self._log_likelihoods(self.models.inlier)

    @property
    def nats(self) -> np.ndarray:
        """-log P(x) [N]."""
        return self._own[0]

    @property
    def terms(self) -> dict[str, np.ndarray]:
        """The terms of log P(x) in nats, [N] each."""
        return self._own[1]

    @functools.cached_property
    def background_nats(self) -> np.ndarray:
        """-log P(x) of the background model [N]."""
        return self._log_likelihoods(self.models.background)[0]

    @functools.cached_property
    def ensemble_nats(self) -> np.ndarray:
        """-log P(x) of each model of the ensemble, the inlier's first: [R, N]."""
        others = [self._log_likelihoods(f)[0] for f in self.models.ensemble]
        return np.stack([self.nats, *others])

    @functools.cached_property
    def code_bits(self) -> np.ndarray:
        """Bits of the shortest file of each example [N]: PNG, WebP or zlib."""
        return example_bits(self.x, self.models.inlier.model.num_values)

    @functools.cached_property
    def gradient_norms(self) -> np.ndarray:
        """Norm of d log P(x) / d params [N]."""
        inlier = self.models.inlier
        return statistics.gradient_norms(inlier.model, inlier.params, self.x)

    @functools.cached_property
    def regrets(self) -> np.ndarray:
        """Likelihood regret in nats [N]."""
        inlier = self.models.inlier
        return statistics.likelihood_regrets(inlier.model, inlier.params, self.x)

    @functools.cached_property
    def singular_values(self) -> np.ndarray:
        """Of the generating map's Jacobian, falling: [N, D]."""
        inlier = self.models.inlier
        return statistics.singular_values(inlier.model, inlier.params, self.x)
