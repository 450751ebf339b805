"""Whether one model is better than another: paired differences, seeds, ties.

Two models see the same examples, so the difference of their nats varies far less than
either (an easy image is easy for both). Its interval has two sources: which examples the
split happens to hold, and which seeds the runs happened to have.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_RESAMPLES = 10_000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean nats of A minus those of B on the same examples; negative: A is better."""

    nats: float
    low: float  # of the interval at LEVEL
    high: float
    p_value: float  # two-sided; 1 for equal nats
    num_examples: int
    seeds: tuple[int, int]
    spread: float  # larger standard deviation of a model's mean over its seeds; or 0


def _example_means(d: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap means of d [N] over examples, [_RESAMPLES] (Efron 1979)."""
    means = np.empty(_RESAMPLES)
    block = max(1, 2_000_000 // len(d))
    for start in range(0, _RESAMPLES, block):
        stop = min(start + block, _RESAMPLES)
        picked = rng.integers(0, len(d), (stop - start, len(d)), dtype=np.int32)
        means[start:stop] = d[picked].mean(1)
    # The bootstrap's variance is that of a sample of N; unbiased is N / (N - 1).
    return d.mean() + (means - d.mean()) * np.sqrt(len(d) / max(len(d) - 1, 1))


def _seed_noise(
    means: Sequence[float], others: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """What other seeds would move a model's mean by: Student's t, [_RESAMPLES].

    With few seeds a bootstrap over them is far too narrow: of 3 it knows two thirds of
    the variance. A model with one seed borrows the spread of the other.
    """
    source = means if len(means) > 1 else others
    if len(source) < 2:
        return np.zeros(_RESAMPLES)
    scale = np.std(source, ddof=1) / np.sqrt(len(means))
    return scale * rng.standard_t(len(source) - 1, _RESAMPLES)


def difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, seed: int = 0
) -> Difference:
    """Compares two models by the nats of their runs on the same examples.

    The draws of the mean difference add a bootstrap over examples to a t-distributed
    effect of the seeds of each model (the Behrens-Fisher solution, which covers at
    least its level). With one seed each nothing is known of other seeds, and the
    interval is about these two runs alone.

    Args:
      a, b: float64 [N] per run, one run per seed, in the split's fixed order.
      seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    d = np.mean(a, axis=0) - np.mean(b, axis=0)
    means_a, means_b = [float(x.mean()) for x in a], [float(x.mean()) for x in b]
    draws = _example_means(d, rng)
    draws = draws + _seed_noise(means_a, means_b, rng)
    draws = draws - _seed_noise(means_b, means_a, rng)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    spreads = [np.std(m, ddof=1) for m in (means_a, means_b) if len(m) > 1]
    return Difference(
        nats=float(d.mean()),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (float(beyond) + 1) / (_RESAMPLES + 1)),
        num_examples=len(d),
        seeds=(len(a), len(b)),
        spread=float(max(spreads, default=0.0)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many are looked at together (Holm 1979)."""
    count = len(p_values)
    adjusted, largest = [0.0] * count, 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
