"""Classes: a small classifier to judge samples by, and the model itself as one.

The classifier is three convolutions and the mean and maximum over the image, a few
thousand parameters, trained on the train split. It is no part of the model that is
judged; its features serve `gm/quality.py`.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import log_softmax, logsumexp

from gm.bounds import logmeanexp
from gm.evaluate import example_log_weights
from gm.likelihood import bits, scale
from gm.model import LikelihoodModel

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 128, 4e-3


class Network(nn.Module):
    """Images of integers -> (logits of the classes, features)."""

    num_values: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C], or sequences [B, L] -> ([B, classes], [B, 64])."""
        h = scale(x, self.num_values)
        h = h if h.ndim == 4 else h[:, :, None, None]
        for width in (16, 32, 32):
            strides = tuple(2 if side > 6 else 1 for side in h.shape[1:3])
            h = nn.relu(nn.Conv(width, (3, 3), strides)(h))
        features = jnp.concatenate([h.mean((1, 2)), h.max((1, 2))], axis=-1)
        return nn.Dense(self.num_classes)(features), features


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained network; `digest` is the sha256 of its parameters."""

    network: Network
    params: Any

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Classes [N], features [N, 64]) of integers [N, *shape]."""
        parts = []
        for start in range(0, len(x), 500):
            block = x[start : start + 500]
            rows = np.minimum(np.arange(500), len(block) - 1)
            logits, features = _apply(self.network, self.params, block[rows])
            found = (np.argmax(logits, 1), np.asarray(features))
            parts.append([a[: len(block)] for a in found])
        classes, features = (np.concatenate(p) for p in zip(*parts, strict=True))
        return classes, features.astype(np.float64)

    @property
    def digest(self) -> str:
        """Says whether two results were judged by the same classifier."""
        leaves = jax.tree.leaves(self.params)
        whole = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
        return hashlib.sha256(whole).hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=0)
def _apply(network, params, x):
    return network.apply({"params": params}, x)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _fit(network, x, labels, seed, num_steps):
    key = jax.random.key(seed)
    params = network.init(key, x[:1])["params"]
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, num_steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)

    def body(carry, step):
        params, state = carry
        picked = jax.random.randint(
            jax.random.fold_in(key, step), (BATCH_SIZE,), 0, len(x)
        )

        def loss(params):
            logits, _ = network.apply({"params": params}, x[picked])
            wanted = optax.smooth_labels(
                jax.nn.one_hot(labels[picked], network.num_classes), 0.05
            )
            return optax.softmax_cross_entropy(logits, wanted).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(body, start, jnp.arange(num_steps))[0][0]


def fit_classifier(
    x: np.ndarray,
    labels: np.ndarray,
    num_values: int,
    num_classes: int,
    *,
    seed: int = 0,
    num_steps: int = NUM_STEPS,
) -> Classifier:
    """Trains a classifier on integers [N, *shape] with labels [N]."""
    network = Network(num_values, num_classes)
    params = _fit(network, jnp.asarray(x), jnp.asarray(labels), seed, num_steps)
    return Classifier(network, params)


def log_class_frequencies(labels: np.ndarray, size: int) -> np.ndarray:
    """Log p(c) [size] of the training labels, one added to each count."""
    counts = np.bincount(labels, minlength=size) + 1.0
    return np.log(counts / counts.sum())


def class_log_probs(
    model: LikelihoodModel,
    params: Any,
    x: np.ndarray,
    *,
    draws: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Log p(x|c) in nats for every class c, float64 [N, C].

    What number it is says `model.estimate`; the noise of an example is the same for all
    classes.

    Args:
      model, params: of a class condition.
      x: integers [N, *shape].
      draws: of importance weights; 1 where there are none.
      batch_size: examples at a time.
      seed: of the noise.
      progress: called with how many examples are done.
    """
    assert model.cond is not None
    count, key = len(x), jax.random.key(seed)
    batch_size = min(batch_size, count)
    log_px = np.empty((count, model.cond.size))
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        stop = min(start + batch_size, count)
        for label in range(model.cond.size):
            cond = np.full(batch_size, label, np.int32)
            log_w, _ = example_log_weights(
                model, params, x[rows], cond, rows.astype(np.int32), key, draws
            )
            found = logmeanexp(np.asarray(log_w, np.float64))
            log_px[start:stop, label] = found[: stop - start]
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
      labels: true classes, [N].
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
