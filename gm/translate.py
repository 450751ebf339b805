"""Paired translation, y ~ p(y | s): outputs, how good they are, and bits of the whole.

Where s = g(y), P(y) = P(s) P(y | s): two models make one of whole images, comparable with
unconditional ones. The mass that p(y | s) has on images of another source is lost:

  sum over y of P(g(y)) P(y | g(y)) = 1 - sum over s of P(s) leaked(s).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.audit.subject import MAX_STATES, Space
from gm.data.dataset import Dataset, Fresh, Split, identify
from gm.data.tasks import Task
from gm.data.translated import images_name
from gm.errors import InputError
from gm.evaluate import num_params
from gm.likelihood import bits
from gm.model import LikelihoodModel, log_prob
from gm.spec import Estimate
from gm.trained import Trained, own_row

MAX_NEIGHBOURS = 10_000  # training pairs among which the nearest source is sought,
MAX_ENTRIES = 2**26  # less of large images: entries of y in all


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def _draw(model, params, s, key, temperature):
    return model.apply(
        {"params": params},
        len(s),
        s,
        temperature=temperature,
        rngs={"sample": key},
        method="sample",
    )


def outputs(
    model: LikelihoodModel,
    params: Any,
    s: np.ndarray,
    *,
    count: int,
    seed: int = 0,
    temperature: float = 1.0,
) -> np.ndarray:
    """Draws `count` images for each source: s [N, ...] -> int32 [count, N, *shape]."""
    key = jax.random.key(seed)
    drawn = [
        np.asarray(_draw(model, params, s, jax.random.fold_in(key, k), temperature))
        for k in range(count)
    ]
    return np.stack(drawn).astype(np.int32)


def consistency(task: Task, y_hat: np.ndarray, s: np.ndarray) -> dict[str, Any]:
    """How often g(y_hat) = s: y_hat [count, N, *shape], s [N, *task.shape].

    Returns:
      pixels: the rate over the entries of s; images: over whole images, an unbiased
      estimate of one minus the leaked mass; with its standard error over the sources.
    """
    same = np.stack([np.asarray(task.apply(y)) == s for y in y_hat])
    whole = same.reshape(*same.shape[:2], -1).all(2).mean(0)  # [N]
    return {
        "pixels": float(same.mean()),
        "images": float(whole.mean()),
        "standard_error": float(whole.std(ddof=1) / math.sqrt(len(whole)))
        if len(whole) > 1
        else None,
        "num_draws": int(same.shape[0] * same.shape[1]),
    }


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the entries of an image: [..., H, W, C] -> [...]."""
    return np.abs(a.astype(np.int32) - b).mean((-3, -2, -1))


def errors(y_hat: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Mean absolute errors, in values of a pixel, of y_hat [count, N, ...] against y.

    Returns:
      mean_error over all outputs; best_error of the best of each `count`; diversity:
      the mean distance of two outputs of the same source, 0 for a single one.
    """
    error = _distance(y_hat, y)  # [count, N]
    count = len(y_hat)
    pairs = [
        _distance(y_hat[i], y_hat[j]).mean() for i in range(count) for j in range(i)
    ]
    return {
        "mean_error": float(error.mean()),
        "best_error": float(error.min(0).mean()),
        "diversity": float(np.mean(pairs)) if pairs else 0.0,
    }


def nearest(train: Split | Fresh, s: np.ndarray, seed: int = 0) -> np.ndarray:
    """The y of the training pair whose source is nearest to each s: [N, *shape].

    Of at most MAX_NEIGHBOURS pairs, drawn with the seed: what a model is held against.
    """
    from scipy.spatial.distance import cdist

    if isinstance(train, Fresh):
        shapes = jax.eval_shape(lambda key: train.draw(key, 1), jax.random.key(seed))
        drawn = train.draw(jax.random.key(seed), _most(shapes[0].size))
        y, sources = (np.asarray(a) for a in drawn)
    else:
        rng = np.random.default_rng(seed)
        count = min(len(train), _most(train.batch(np.arange(1))[0].size))
        y, given = train.batch(np.sort(rng.choice(len(train), count, replace=False)))
        sources = np.asarray(given)
    flat = [a.reshape(len(a), -1).astype(np.float32) for a in (s, sources)]
    found: np.ndarray = y[cdist(*flat, "cityblock").argmin(1)]
    return found


def _most(size: int) -> int:
    return max(1, min(MAX_NEIGHBOURS, MAX_ENTRIES // size))


def leaked_mass(
    model: LikelihoodModel, params: Any, task: Task, s: np.ndarray
) -> np.ndarray | None:
    """P(g(y) != s | s) for each s [N, ...], by enumerating all y: float64 [N].

    None where there are too many, or the model's likelihood is not exact.
    """
    space = Space(model.shape, model.num_values)
    if model.estimate is not Estimate.EXACT or space.num_states > MAX_STATES:
        return None
    y = space.states()
    g = np.asarray(task.apply(y)).reshape(len(y), -1)

    @jax.jit
    def log_px(params, one):
        each = jnp.broadcast_to(one, (len(y), *one.shape))
        return log_prob(model, params, y, each, jax.random.key(0))[0]

    leaked = []
    for one in s:
        other = (g != one.reshape(-1)).any(1)
        leaked.append(np.exp(np.asarray(log_px(params, one), np.float64))[other].sum())
    return np.asarray(leaked)


def whole_images(
    found: Trained, source: Trained, dataset: Dataset, sources: Dataset, split: str
) -> tuple[dict[str, Any], np.ndarray]:
    """-log P(s) - log P(y | s): a result row like that of an unconditional model.

    Args:
      found, source: runs on `translate:TASK:NAME` and on `source:TASK:NAME`.
      dataset, sources: these data sets.
      split: of which both runs have a result row.

    Returns:
      (row, nats float64 [N] in the fixed order of the images): ready to be written.

    Raises:
      InputError: a run without a row.
    """
    rows, total = [], np.zeros(len(dataset.split(split)))  # type: ignore[arg-type]
    for run, data in ((found, dataset), (source, sources)):
        have = own_row(run, data, split)
        if have is None:
            raise InputError(
                f"--split={split}: {run.run.path} has no result row of it and of "
                f"{run.checkpoint}; run experiments.evaluate --workdir={run.run.path} "
                f"--split={split}"
            )
        rows.append(have[0])
        total = total + have[1]
    order = identify(dataset, dataset.split(split))[1]  # type: ignore[arg-type]
    row = _whole_row(rows, dataset, total)
    row["num_params"] = num_params(found.params) + num_params(source.params)
    row["checkpoint"] = f"{found.checkpoint}; {source.checkpoint}"
    return row, total[order]


def _whole_row(rows, dataset, nats):
    """The row of a whole image from those of (image given source, source)."""
    mean, kinds = float(nats.mean()), [row["estimate"] for row in rows]
    same = ("split_sha256", "num_examples", "shape", "num_values", "unit", "split")
    summed = ("examples_seen", "train_seconds", "train_flops")
    added = {name: sum(row.get(name, 0) for row in rows) for name in summed}
    return (
        {name: rows[0][name] for name in same}
        | added
        | {
            "model": f"{rows[0]['model']} given {rows[1]['model']}",
            "settings": {"image": rows[0]["settings"], "source": rows[1]["settings"]},
            "dataset": images_name(dataset.name),
            "preprocessing": dataset.preprocessing,
            "conditioning": "none",
            "augmentation": rows[0].get("augmentation", "none"),
            # The product of two unbiased estimates is one of the product.
            "estimate": next(e for e in ("elbo", "weight", "exact") if e in kinds),
            "num_importance_samples": min(
                (
                    row["num_importance_samples"]
                    for row in rows
                    if row["estimate"] != "exact"
                ),
                default=1,
            ),
            "nats": mean,
            "bits_per_dim": bits(mean) / math.prod(dataset.shape),
            "bits_per_object": bits(mean),
            "standard_error_nats": float(nats.std(ddof=1) / math.sqrt(len(nats)))
            if len(nats) > 1
            else None,
            "terms_nats": {"image": rows[0]["nats"], "source": rows[1]["nats"]},
            "entropy_floor_nats": dataset.entropy_nats,
        }
    )
