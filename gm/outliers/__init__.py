"""Outlier detection by likelihood: scores, sets of outliers, and how well it goes.

`compare` fits the scores on the inlier's own examples and measures them on sets of
outliers; `score` only scores. An example is as much of an outlier as its score is high.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gm.errors import InputError
from gm.outliers.examples import Examples, Fitted, Models
from gm.outliers.measures import Measure, measures
from gm.outliers.scores import SCORES, choose

__all__ = ["SCORES", "Comparison", "Fitted", "Models", "choose", "compare", "score"]

INLIER = "inlier"  # the set of test examples that are no outliers


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of sets of examples, and how well they tell outliers from inliers."""

    scores: dict[str, dict[str, np.ndarray]]  # score -> set -> [N]
    measures: dict[str, dict[str, dict[str, Measure]]]  # score -> outlier set -> ...
    left_out: dict[str, str]  # score -> why


def score(
    models: Models,
    fit: np.ndarray,
    sets: Mapping[str, np.ndarray],
    names: Sequence[str] = (),
    *,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Scores every set by every score that the models can give.

    Args:
      models: unconditional.
      fit: examples [N, *shape] of the inlier's train or valid split, for all thresholds
        and statistics.
      sets: {name: examples}; none is seen in fitting.
      names: of scores; none: all that can be had.
      progress: called with (pairs of score and set done, which is next).

    Returns:
      ({score: {set: float64 [N]}}, {score left out: why}).

    Raises:
      InputError: an unknown score, or one that was named and cannot be had.
    """
    chosen, left_out = choose(models, names)
    reference = Examples(models, fit)
    examples = {name: Examples(models, x) for name, x in sets.items()}
    found: dict[str, dict[str, np.ndarray]] = {}
    for i, (name, how) in enumerate(chosen.items()):
        progress(i * len(sets), f"fitting {name}")
        try:
            scorer = how.fit(reference)
        except InputError as error:
            if names:
                raise InputError(f"--scores={name}: {error}") from None
            left_out[name] = str(error)
            continue
        found[name] = {}
        for j, (where, given) in enumerate(examples.items()):
            progress(i * len(sets) + j, f"{name} of {where}")
            found[name][where] = scorer(given)
    return found, left_out


def compare(
    models: Models,
    fit: np.ndarray,
    inliers: np.ndarray,
    outliers: Mapping[str, np.ndarray],
    names: Sequence[str] = (),
    *,
    seed: int = 0,
    progress: Callable[[int, str], None] = lambda done, text: None,
) -> Comparison:
    """Scores test inliers and sets of outliers, and measures each score on each set.

    Args:
      models, fit, names, progress: as for `score`.
      inliers: test examples [N, *shape].
      outliers: {name: examples [M, *shape]}.
      seed: of the bootstrap.

    Raises:
      InputError: as `score`.
    """
    sets = {INLIER: inliers, **outliers}
    scores, left_out = score(models, fit, sets, names, progress=progress)
    return Comparison(
        scores,
        {
            name: {
                where: measures(values[INLIER], values[where], seed)
                for where in outliers
                if len(values[INLIER]) and len(values[where])
            }
            for name, values in scores.items()
        },
        left_out,
    )
