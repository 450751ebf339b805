"""How samples compare with a test split, as sets of points in some space of features.

Frechet distance between fitted Gaussians (Heusel et al. 2017), improved precision and
recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), the unbiased
squared maximum mean discrepancy (Gretton et al. 2012), and distances to the nearest
training example. All of them depend on how many points there are: compare at equal n, and
with the floor, which is what training examples score in the place of samples.
"""

import math
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

NEIGHBOURS_PRECISION = 3  # k of Kynkaanniemi et al.
NEIGHBOURS_DENSITY = 5  # k of Naeem et al.


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of points [N, F], [M, F].

    Of Gaussians with these means and covariances it is the squared 2-Wasserstein
    distance. Its bias is of order F / N: points of one distribution score above 0.
    """
    cov_x, cov_y = (np.atleast_2d(np.cov(v, rowvar=False)) for v in (x, y))
    # C_x^(1/2) C_y C_x^(1/2) has the eigenvalues of C_x C_y, and is symmetric.
    values, vectors = np.linalg.eigh(cov_x)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ cov_y @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return max(0.0, float(mean + np.trace(cov_x) + np.trace(cov_y) - 2 * cross))


def _radii(x, k):
    """Distance [N] from each point to the k-th nearest of the others."""
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, k - 1, axis=1)[:, k - 1]


def precision_recall(
    samples: np.ndarray, real: np.ndarray, k: int = NEIGHBOURS_PRECISION
) -> tuple[float, float]:
    """(share of samples within the balls of the real points, and the converse).

    A point's ball reaches to its k-th nearest neighbour in its own set.

    Args:
      samples: [N, F].
      real: [M, F].
      k: below N and M.
    """
    between = cdist(samples, real)
    precision = (between <= _radii(real, k)).any(axis=1).mean()
    recall = (between <= _radii(samples, k)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def density_coverage(
    samples: np.ndarray, real: np.ndarray, k: int = NEIGHBOURS_DENSITY
) -> tuple[float, float]:
    """(mean number of real balls that a sample lies in, over k; share of balls hit).

    Unlike precision and recall, neither grows much by an outlier. For equal distributions
    density is 1 in expectation, and coverage about 1 - 2^-k.
    """
    inside = cdist(samples, real) <= _radii(real, k)
    return float(inside.sum(axis=1).mean() / k), float(inside.any(axis=0).mean())


def mmd(
    x: np.ndarray, y: np.ndarray, *, permutations: int = 500, seed: int = 0
) -> tuple[float, float]:
    """(unbiased MMD^2, p-value that both sets are of one distribution).

    The kernel is exp(-d^2 / (2 m^2)), m the median distance between all points.

    Args:
      x, y: [N, F] each, as many of both.
      permutations: of all points, under which the p-value is (1 + how many have an
        MMD^2 at least as large) / (1 + permutations).
      seed: of the permutations.
    """
    n = len(x)
    if len(y) != n or n < 2:
        raise ValueError(f"{n} and {len(y)} points; give as many of both, 2 or more")
    squared = cdist(*[np.concatenate([x, y])] * 2, "sqeuclidean")
    median = np.median(squared[np.triu_indices(2 * n, 1)])
    kernel = np.exp(-squared / (2 * max(median, 1e-12)))
    np.fill_diagonal(kernel, 0.0)
    total = kernel.sum()
    signs = np.repeat([1.0, -1.0], n)
    rng = np.random.default_rng(seed)
    signs = np.stack([signs, *(rng.permutation(signs) for _ in range(permutations))])
    # s' K s = sum within the sets - sum between them, for any division into halves.
    contrast = ((signs @ kernel) * signs).sum(axis=1)
    within, between = (total + contrast) / 2, (total - contrast) / 2
    values = within / (n * (n - 1)) - between / n**2
    # Rounding differs between equal divisions.
    as_large = (values[1:] >= values[0] - 1e-12).sum()
    return float(values[0]), float((1 + as_large) / (1 + permutations))


def compare(samples: np.ndarray, real: np.ndarray, seed: int = 0) -> dict[str, float]:
    """All of the above for as many samples as real points, [N, F] each."""
    precision, recall = precision_recall(samples, real)
    density, coverage = density_coverage(samples, real)
    squared, p = mmd(samples, real, seed=seed)
    return {
        "frechet_distance": frechet_distance(samples, real),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "mmd2": squared,
        "mmd2_p": p,
    }


def nearest(x: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance [N], which [N]) of the nearest of `among` [M, F] to each x [N, F]."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(among)
    which = found.kneighbors(x, return_distance=False)[:, 0]
    # Taken anew: theirs is a difference of large numbers, and 0 has to be 0.
    return np.linalg.norm(x - among[which], axis=1), which


def memorisation(
    samples: np.ndarray, test: np.ndarray, train: np.ndarray
) -> dict[str, float]:
    """Whether samples lie nearer to training examples than test examples do.

    Args:
      samples, test: [N, F] each.
      train: all training examples, [M, F].

    Returns:
      copies and copies_test: the share at distance 0; nearest_train and
      nearest_train_test: median distances; nearer_than_test: P(a sample is nearer to its
      nearest training example than a test example is, ties counting half), 0.5 where
      nothing is memorised; and its standard error (Hanley & McNeil 1982).
    """
    from sklearn.metrics import roc_auc_score

    own, true = nearest(samples, train)[0], nearest(test, train)[0]
    labels = np.repeat([1, 0], [len(own), len(true)])
    auc = float(roc_auc_score(labels, -np.concatenate([own, true])))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (len(own) - 1) * (q1 - auc**2)
    spread += (len(true) - 1) * (q2 - auc**2)
    return {
        "copies": float((own == 0).mean()),
        "copies_test": float((true == 0).mean()),
        "nearest_train": float(np.median(own)),
        "nearest_train_test": float(np.median(true)),
        "nearer_than_test": auc,
        "nearer_than_test_standard_error": math.sqrt(
            max(spread, 0.0) / (len(own) * len(true))
        ),
    }


def pca(train: np.ndarray, count: int = 64, seed: int = 0) -> Any:
    """scikit-learn's PCA, fitted to at most 10000 training examples [M, F]."""
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(seed).permutation(len(train))[:10_000]
    size = min(count, train.shape[1], len(rows))
    return PCA(size, random_state=seed).fit(train[rows].astype(np.float64))
