"""How well a score tells outliers from inliers, with intervals over examples."""

import dataclasses

import numpy as np

RESAMPLES = 500  # of the bootstrap
NAMES = {
    "auroc": "AUROC",
    "aupr": "AUPR, outliers being positive",
    "fpr95": "inliers flagged where 95 % of the outliers are",
}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A value and its 95 % bootstrap interval over examples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def measures(
    inliers: np.ndarray, outliers: np.ndarray, seed: int = 0
) -> dict[str, Measure]:
    """AUROC, AUPR and the FPR at a TPR of 95 %; positive means outlier.

    A score that is not finite counts as the most outlying of all.

    Args:
      inliers: scores [N], higher is more outlying.
      outliers: scores [M].
      seed: of the resamples, which are drawn from both sides.

    Returns:
      {name: measure} with the keys of `NAMES`.
    """
    scores = np.concatenate([inliers, outliers]).astype(np.float64)
    top = np.finfo(np.float64).max
    scores = np.where(np.isfinite(scores), scores, top)
    labels = np.repeat([0, 1], [len(inliers), len(outliers)])
    values = weighted_measures(scores, labels, np.ones((1, len(scores)), int))
    rng = np.random.default_rng(seed)
    counts = [
        rng.multinomial(size, np.full(size, 1 / size), RESAMPLES)
        for size in (len(inliers), len(outliers))
    ]
    drawn = weighted_measures(scores, labels, np.concatenate(counts, axis=1))
    return {
        name: Measure(
            float(value[0]), *map(float, np.quantile(drawn[name], (0.025, 0.975)))
        )
        for name, value in values.items()
    }


def weighted_measures(
    scores: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """The measures of many resamples at once; scikit-learn takes one at a time.

    With equal scores its ROC curve may leave out where 95 % are reached; this does not.

    Args:
      scores, labels: [N]; labels are 1 for outliers.
      counts: [R, N], how often each example is in each resample.

    Returns:
      {name: [R]}.
    """
    order = np.argsort(-scores, kind="stable")
    # One point of the curves for each distinct score: after the last of equal ones.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    positive = labels[order] == 1
    counts = counts[:, order]
    hits = np.cumsum(np.where(positive, counts, 0), axis=1)[:, last]
    alarms = np.cumsum(np.where(positive, 0, counts), axis=1)[:, last]
    tpr, fpr = hits / hits[:, -1:], alarms / alarms[:, -1:]
    zero = np.zeros((len(counts), 1))
    rise = np.diff(tpr, axis=1, prepend=zero)
    before = np.concatenate([zero, fpr[:, :-1]], axis=1)
    flagged = np.maximum(hits + alarms, 1)
    found = np.argmax(tpr >= 0.95, axis=1)[:, None]
    return {
        "auroc": (rise * (1 - (fpr + before) / 2)).sum(1),
        "aupr": (rise * hits / flagged).sum(1),
        "fpr95": np.take_along_axis(fpr, found, axis=1)[:, 0],
    }
