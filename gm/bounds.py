"""What log-weights say of log P(x): bounds from below and from above, and how tight.

A log-weight is log w with E[w] = P(x). Let W be the mean of K of them. Then

  E[log W]  <=  log P(x)  <=  E[W log W] / E[W].

The left is the importance-weighted bound (Burda et al. 2016, eq. 8). The right is its
reverse: the same mean with one draw from the posterior among the K (Grosse et al. 2015,
"Sandwiching the marginal likelihood using bidirectional Monte Carlo"), here with the
posterior draw taken by self-normalised weights. Jensen's inequality for the convex
W log W gives it; both sides meet as K grows.
"""

import numpy as np
from scipy.special import logsumexp, softmax

GROUPS = 16  # of K draws each, for a bound from above
_MARGIN = 2.6  # standard errors of the Monte Carlo mean: 99 % on both sides


def logmeanexp(log_w: np.ndarray, axis: int = 0) -> np.ndarray:
    """Log mean exp over an axis, float64: the importance-weighted bound."""
    return logsumexp(log_w, axis=axis) - np.log(log_w.shape[axis])


def grouped(log_w: np.ndarray, k: int) -> np.ndarray:
    """Log means of disjoint groups of k draws: [M, N] -> [M // k, N]."""
    count = len(log_w) // k
    return logmeanexp(log_w[: count * k].reshape(count, k, -1), axis=1)


def k_curve(log_w: np.ndarray, largest: int) -> list[dict[str, float]]:
    """The bound in nats at k = 1, 2, 4, ..., up to `largest`, over a split.

    Every point uses as many of the draws as it can. Where each k divides the next the
    curve falls for any draws, not only on average: log is concave.

    Args:
      log_w: [M, N] log-weights, M >= largest.
      largest: the last k.

    Returns:
      dictionaries of k, nats (mean over examples) and its standard error.
    """
    ks = [2**i for i in range(largest.bit_length()) if 2**i < largest] + [largest]
    curve = []
    for k in ks:
        nats = -grouped(log_w, k).mean(0)
        error = nats.std(ddof=1) / np.sqrt(len(nats)) if len(nats) > 1 else 0.0
        curve.append(
            {"k": k, "nats": float(nats.mean()), "standard_error_nats": float(error)}
        )
    return curve


def upper_bounds(log_w: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """E[W log W] / E[W] of each example, and its Monte Carlo variance: [N] each."""
    log_means = grouped(log_w, k)  # [G, N]
    share = softmax(log_means, axis=0)
    upper = (share * log_means).sum(0)
    # The delta method for a ratio of means over the G groups.
    variance = (share**2 * (log_means - upper) ** 2).sum(0)
    return upper, variance


def effective_draws(log_w: np.ndarray) -> float:
    """Mean over examples of (sum w)^2 / sum w^2: few where single weights rule."""
    share = softmax(log_w, axis=0)
    return float((1 / (share**2).sum(0)).mean())


def interval(
    log_w: np.ndarray, k: int, shortfall: float | None = None
) -> dict[str, float | int | None]:
    """An interval for the exact mean nats of a split, from GROUPS x k draws.

    It says nothing of which examples the split has: only of what is known of P(x) on
    them. The bound from above rests on weights whose large values were drawn; how far
    it falls short on examples whose posterior is known (`own_sample_shortfall`) widens
    it. Data whose weights have far heavier tails than own samples escape that: few
    effective draws are a warning.

    Args:
      log_w: [G k, N] log-weights, the first k being those of the reported bound.
      k: draws per mean.
      shortfall: nats to widen by; None: not known.

    Returns:
      low and high nats, k, number of groups, the shortfall, and the effective draws.
    """
    log_means = grouped(log_w, k)
    lower = log_means.mean(0)
    count, num_examples = log_means.shape
    lower_error = np.sqrt((log_means.var(0, ddof=1) / count).sum()) / num_examples
    upper, variance = upper_bounds(log_w, k)
    upper_error = np.sqrt(variance.sum()) / num_examples
    widen = max(0.0, shortfall or 0.0)
    first = float(-log_means[0].mean())  # the reported bound lies in its interval
    return {
        "low": float(-upper.mean() - widen - _MARGIN * upper_error),
        "high": max(float(-lower.mean() + _MARGIN * lower_error), first),
        "k": k,
        "groups": count,
        "own_sample_shortfall": shortfall,
        "effective_draws": effective_draws(log_w),
    }


def own_sample_shortfall(own_log_w: np.ndarray, log_w: np.ndarray, k: int) -> float:
    """How far the bound from above falls short on the model's own samples, mean nats.

    A sample that is drawn together with its noise comes with one exact draw of the
    posterior: no bias in the bound that is made with it.

    Args:
      own_log_w: [N], log-weight of each sample with the noise that it was drawn with.
      log_w: [M, N], fresh log-weights of the same samples.
      k: draws per mean.
    """
    exact = logmeanexp(np.concatenate([own_log_w[None], log_w[: k - 1]]))
    return float((exact - upper_bounds(log_w, k)[0]).mean())
