"""Scores of how much of an outlier an example is, from likelihoods; higher is more so.

A score is fitted on examples of the inlier's own data and then maps any examples to
numbers: no outlier is seen in fitting. Each says what it needs of the models.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.neighbors import KernelDensity, NearestNeighbors
from sklearn.svm import OneClassSVM

from gm.audit.subject import defines
from gm.errors import InputError, did_you_mean
from gm.flow import FlowModel
from gm.latent import LatentModel
from gm.likelihood import bits
from gm.outliers.examples import Examples, Models

MAX_JACOBIAN = 256  # dimensions of which all singular values are computed

Scorer = Callable[[Examples], np.ndarray]  # examples -> float64 [N]


@dataclasses.dataclass(frozen=True)
class Score:
    """How a score is fitted, and what has to be there for it."""

    fit: Callable[[Examples], Scorer]
    unit: str
    lacks: Callable[[Models], str] = lambda models: ""
    """What is missing, in words; "" if nothing is."""
    of_groups: bool = False  # one number for a group of examples, not for each


def _likelihood(fit: Examples) -> Scorer:
    """-log P(x): what fails where outliers are simpler (Nalisnick et al. 2019a)."""
    return lambda examples: examples.nats


def _mean_nats(fit: Examples) -> float:
    """Over the inliers of which the model is not at a loss."""
    finite = np.isfinite(fit.nats)
    if not finite.any():
        raise InputError("no inlier has a finite likelihood")
    return float(fit.nats[finite].mean())


def _typicality(fit: Examples) -> Scorer:
    """|-log P(x) - H|, H the mean over inliers (Nalisnick et al. 2019b)."""
    entropy = _mean_nats(fit)
    return lambda examples: np.abs(examples.nats - entropy)


def _typicality_group(fit: Examples) -> Scorer:
    """The same of the mean over groups of examples, all outliers or none: [N / M]."""
    entropy = _mean_nats(fit)

    def score(examples):
        size = examples.models.group_size
        groups = examples.nats[: len(examples) // size * size].reshape(-1, size)
        return np.abs(groups.mean(1) - entropy)

    return score


def _likelihood_ratio(fit: Examples) -> Scorer:
    """-(log P(x) - log P_background(x)) (Ren et al. 2019)."""
    return lambda examples: examples.nats - examples.background_nats


def _complexity(fit: Examples) -> Scorer:
    """-log2 P(x) - L(x), L the bits of the shortest file (Serra et al. 2020)."""
    per_nat = bits(1.0)
    return lambda examples: per_nat * examples.nats - examples.code_bits


def _waic(fit: Examples) -> Scorer:
    """-(E log P(x) - Var log P(x)) over models, in nats (Choi et al. 2018)."""

    def score(examples):
        nats = examples.ensemble_nats
        return nats.mean(0) + nats.var(0, ddof=1)

    return score


def _statistics(examples: Examples) -> dict[str, np.ndarray]:
    norms = {"gradient_norm": np.log(np.maximum(examples.gradient_norms, 1e-30))}
    return {"nats": examples.nats} | examples.terms | norms


def _standardised(fit: Examples) -> Callable[[Examples], np.ndarray]:
    """Examples -> [N, S], each statistic with mean 0 and deviation 1 over inliers.

    A statistic that is constant, or a copy of one before it, is left out; so are inliers
    of which one is not finite.
    """
    found: dict[str, np.ndarray] = _statistics(fit)
    finite = np.all([np.isfinite(value) for value in found.values()], axis=0)
    found = {name: value[finite] for name, value in found.items()}
    if finite.sum() < 2:
        raise InputError("fewer than two inliers have statistics that are finite")
    kept: list[str] = []
    for name, value in found.items():
        if value.std() <= 1e-6 * max(1, abs(value.mean())):
            continue
        copies = [abs(np.corrcoef(value, found[k])[0, 1]) > 1 - 1e-6 for k in kept]
        if not any(copies):
            kept.append(name)
    if not kept:
        raise InputError("all statistics are the same for every inlier")
    moments = {name: (found[name].mean(), found[name].std()) for name in kept}

    def standardise(examples):
        values = _statistics(examples)
        columns = [(values[k] - mean) / std for k, (mean, std) in moments.items()]
        return np.stack(columns, axis=1)

    return standardise


def _finite_rows(columns: np.ndarray) -> np.ndarray:
    return columns[np.isfinite(columns).all(1)]


def _of_finite(
    score: Callable[[np.ndarray], np.ndarray], columns: np.ndarray
) -> np.ndarray:
    """Scores [N] of the rows [N, S] that are finite; infinite of the others."""
    found, held = np.full(len(columns), np.inf), np.isfinite(columns).all(1)
    if held.any():
        found[held] = score(columns[held])
    return found


def _dose(fit: Examples) -> Scorer:
    """-sum of log densities of statistics, a KDE each (Morningstar et al. 2021)."""
    standardise = _standardised(fit)
    densities = [
        KernelDensity(bandwidth="scott").fit(column[:, None])
        for column in _finite_rows(standardise(fit)).T
    ]

    def score(columns):
        pairs = zip(densities, columns.T, strict=True)
        return -np.sum([d.score_samples(c[:, None]) for d, c in pairs], axis=0)

    return lambda examples: _of_finite(score, standardise(examples))


def _dose_svm(fit: Examples) -> Scorer:
    """The same statistics in a one-class SVM (Morningstar et al. 2021)."""
    standardise = _standardised(fit)
    machine = OneClassSVM(nu=0.1, gamma="scale").fit(_finite_rows(standardise(fit)))

    def score(columns):
        return -machine.decision_function(columns)

    return lambda examples: _of_finite(score, standardise(examples))


def _likelihood_regret(fit: Examples) -> Scorer:
    """ELBO of the best q(z|x) of an example minus the encoder's (Xiao et al. 2020)."""
    return lambda examples: examples.regrets


def _gradient_norm(fit: Examples) -> Scorer:
    """Norm of d log P(x) / d params (as in Dauncey et al. 2024)."""
    return lambda examples: examples.gradient_norms


def local_dimension(x: np.ndarray, num_anchors: int = 100) -> float:
    """Mean local dimension of data [N, D], by PCA of each anchor's 100 neighbours.

    Counted are the eigenvalues above 5 % of the largest (Fukunaga & Olsen 1971).
    """
    size = min(101, len(x))
    anchors = x[:: max(1, len(x) // num_anchors)]
    near = NearestNeighbors(n_neighbors=size).fit(x).kneighbors(anchors)[1]
    spread = [np.linalg.svd(x[i] - x[i].mean(0), compute_uv=False) ** 2 for i in near]
    return float(np.mean([(s > 0.05 * s[0]).sum() for s in spread]))


def _above(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Maps values to the part of `values` that they exceed; equal ones count half."""
    values = np.sort(values)

    def part(new):
        sides = [np.searchsorted(values, new, side) for side in ("left", "right")]
        return np.mean(sides, axis=0) / len(values)

    return part


def dimensions(singular_values: np.ndarray, threshold: float) -> np.ndarray:
    """Local intrinsic dimension: singular values [N, D] above the threshold, [N]."""
    return (singular_values > threshold).sum(-1).astype(np.float64)


def _lid(fit: Examples) -> Scorer:
    """Unlikely, or of a low local intrinsic dimension (Kamkari et al. 2024).

    The dimension is the number of singular values of the flow's Jacobian above a
    threshold, at which inliers have on average the dimension that local PCA finds. An
    example is flagged where its nats exceed a part of the inliers' nats, or its dimension
    is below that of the same part: the score is the larger of the two parts.
    """
    flat = fit.x.reshape(len(fit), -1).astype(np.float64)
    wanted = local_dimension(flat) / flat.shape[1]
    threshold = np.quantile(fit.singular_values, 1 - wanted)
    unlikely = _above(fit.nats)
    thin = _above(-dimensions(fit.singular_values, threshold))

    def score(examples):
        dims = dimensions(examples.singular_values, threshold)
        return np.maximum(unlikely(examples.nats), thin(-dims))

    return score


def _lacks_q(models: Models) -> str:
    model = models.inlier.model
    if isinstance(model, LatentModel) and defines(type(model), "infer", "generate"):
        return ""
    return (
        f"{type(model).__name__} has no Gaussian q(z|x) to optimise (such as vae has)"
    )


def _lacks_jacobian(models: Models) -> str:
    model = models.inlier.model
    if not (isinstance(model, FlowModel) and defines(type(model), "forward")):
        return f"{type(model).__name__} is no flow, which has a Jacobian"
    if model.num_dims > MAX_JACOBIAN:
        return (
            f"singular values are computed up to {MAX_JACOBIAN} dimensions, these are "
            f"{model.num_dims}"
        )
    return ""


def _lacks_background(models: Models) -> str:
    return "" if models.background else "no --background run of the same data"


def _lacks_ensemble(models: Models) -> str:
    return "" if models.ensemble else "no --ensemble runs of the same data"


SCORES = {
    "likelihood": Score(_likelihood, "nats"),
    "typicality": Score(_typicality, "nats"),
    "typicality_group": Score(_typicality_group, "nats", of_groups=True),
    "likelihood_ratio": Score(_likelihood_ratio, "nats", _lacks_background),
    "complexity": Score(_complexity, "bits"),
    "waic": Score(_waic, "nats", _lacks_ensemble),
    "dose": Score(_dose, "nats"),
    "dose_svm": Score(_dose_svm, ""),
    "likelihood_regret": Score(_likelihood_regret, "nats", _lacks_q),
    "gradient_norm": Score(_gradient_norm, "nats"),
    "lid": Score(_lid, "of the inliers", _lacks_jacobian),
}


def choose(
    models: Models, names: Sequence[str] = ()
) -> tuple[dict[str, Score], dict[str, str]]:
    """The scores that the models can give, and the reasons for those left out.

    Args:
      models: what there is.
      names: of the scores that are wanted; none: all that there are.

    Raises:
      InputError: an unknown name, or a wanted score that cannot be had.
    """
    for name in names:
        if name not in SCORES:
            raise InputError(
                f"--scores={name}: unknown{did_you_mean(name, SCORES)} "
                f"(one of {', '.join(SCORES)})"
            )
        reason = SCORES[name].lacks(models)
        if reason:
            raise InputError(f"--scores={name}: {reason}")
    reasons = {name: score.lacks(models) for name, score in SCORES.items()}
    chosen = names or [name for name, reason in reasons.items() if not reason]
    return (
        {name: SCORES[name] for name in chosen},
        {} if names else {name: reason for name, reason in reasons.items() if reason},
    )
