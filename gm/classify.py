"""Classes: a small classifier to judge samples by, and the model itself as one.

The classifier is a perceptron of scikit-learn, trained on the train split. It is no part
of the model that is judged; the last hidden layer gives features for `gm/quality.py`.
"""

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy.special import log_softmax, logsumexp

from gm.bounds import logmeanexp
from gm.evaluate import example_log_weights
from gm.likelihood import bits
from gm.model import LikelihoodModel

HIDDEN = (128, 64)  # units of the layers; the last are the features
MAX_EPOCHS = 30


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network; `digest` is the sha256 of its weights."""

    network: Any  # scikit-learn's MLPClassifier
    num_values: int

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Classes [N], features [N, 64]) of integers [N, *shape]."""
        net, h = self.network, _inputs(x, self.num_values)
        for weight, bias in zip(net.coefs_[:-1], net.intercepts_[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0)
        logits = h @ net.coefs_[-1] + net.intercepts_[-1]
        if len(net.classes_) == 2:  # of which scikit-learn keeps one logit
            logits = np.concatenate([-logits, logits], axis=1)
        return net.classes_[logits.argmax(1)], h.astype(np.float64)

    @property
    def digest(self) -> str:
        """Says whether two results were judged by the same classifier."""
        weights = (*self.network.coefs_, *self.network.intercepts_)
        whole = b"".join(np.ascontiguousarray(w).tobytes() for w in weights)
        return hashlib.sha256(whole).hexdigest()[:16]


def _inputs(x, num_values):
    """Integers [N, *shape] -> float32 [N, D] in [0, 1]."""
    return (x.reshape(len(x), -1) / np.float32(num_values - 1)).astype(np.float32)


def fit_classifier(
    x: np.ndarray, labels: np.ndarray, num_values: int, *, seed: int = 0
) -> Classifier:
    """Trains a classifier on integers [N, *shape] with labels [N].

    Adam, until a tenth that is held out of it gets no better for some passes; until the
    loss does, where a tenth has not room for every class, or a class has one example.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    sizes = np.unique(labels, return_counts=True)[1]
    network = MLPClassifier(
        HIDDEN,
        alpha=1e-3,
        learning_rate_init=2e-3,
        max_iter=MAX_EPOCHS if len(x) >= 10_000 else 5 * MAX_EPOCHS,
        early_stopping=bool(sizes.min() > 1 and len(x) / 10 >= max(2, len(sizes))),
        n_iter_no_change=3 if len(x) >= 10_000 else 15,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many passes will do
        network.fit(_inputs(x, num_values), labels)
    return Classifier(network, num_values)


def log_class_frequencies(labels: np.ndarray, size: int) -> np.ndarray:
    """Log p(c) [size] of the training labels, one added to each count."""
    counts = np.bincount(labels, minlength=size) + 1.0
    return np.log(counts / counts.sum())


def cond_log_probs(
    model: LikelihoodModel,
    params: Any,
    x: np.ndarray,
    conditions: np.ndarray,
    *,
    draws: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Log p(x|c) in nats of every example for every condition c, float64 [N, C].

    What number it is says `model.estimate`; the noise of an example is the same for all
    conditions.

    Args:
      model, params: of a conditional model.
      x: integers [N, *shape].
      conditions: [C, ...], such as the classes.
      draws: of importance weights; 1 where there are none.
      batch_size: examples at a time.
      seed: of the noise.
      progress: called with how many examples are done.
    """
    count, key = len(x), jax.random.key(seed)
    batch_size = min(batch_size, count)
    log_px = np.empty((count, len(conditions)))
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        stop = min(start + batch_size, count)
        for i, condition in enumerate(conditions):
            cond = np.stack([condition] * batch_size)
            log_w, _ = example_log_weights(
                model, params, x[rows], cond, rows.astype(np.int32), key, draws
            )
            found = logmeanexp(np.asarray(log_w, np.float64))
            log_px[start:stop, i] = found[: stop - start]
        if progress is not None:
            progress(stop)
    return log_px


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15
) -> float:
    """Expected calibration error (Guo et al. 2017): bins of equal width.

    The mean over examples of |accuracy - mean confidence| of their bin.
    """
    which = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gap = np.bincount(which, correct - confidence, num_bins)
    return float(np.abs(gap).sum() / len(confidence))


def bayes_classifier(
    log_px: np.ndarray, labels: np.ndarray, log_pc: np.ndarray
) -> dict[str, float]:
    """The model as a classifier: argmax_c log p(x|c) + log p(c).

    Args:
      log_px: log p(x|c) nats, [N, C].
      labels: true classes, or the numbers of the true conditions, [N].
      log_pc: log p(c), [C].

    Returns:
      accuracy; calibration_error of p(c|x); nats_conditional, the mean of -log p(x|c) of
      the true class; nats_marginal, of -log p(x) = -logsumexp_c (log p(x|c) + log p(c));
      bits_gained, their difference: what the condition tells of x, at most
      bits_of_condition, the mean of -log2 p(c), where p(c|x) is calibrated; standard
      errors over examples.
    """
    joint = log_px + log_pc
    posterior = np.exp(log_softmax(joint, axis=1))
    guess, rows = posterior.argmax(1), np.arange(len(labels))
    correct = guess == labels
    given, marginal = log_px[rows, labels], logsumexp(joint, axis=1)
    gain, root = given - marginal, math.sqrt(len(labels))
    accuracy = float(correct.mean())
    return {
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy)) / root,
        "calibration_error": calibration_error(posterior.max(1), correct),
        "nats_conditional": float(-given.mean()),
        "nats_marginal": float(-marginal.mean()),
        "bits_gained": bits(float(gain.mean())),
        "bits_gained_standard_error": bits(float(gain.std(ddof=1))) / root,
        "bits_of_condition": bits(float(-log_pc[labels].mean())),
    }
