"""Where a model pays: the mean nats of each symbol over a split.

Autoregressive models in raster order tell symbols apart exactly. Of models with latents
it is the reconstruction: the KL belongs to no symbol. Others do not tell.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.data.dataset import Split
from gm.model import LikelihoodModel


@functools.partial(jax.jit, static_argnames=("model",))
def _log_probs(model, params, x, cond, key):
    """{what: log-probabilities [B, ...]} that the model's log_prob came by."""
    sample_key, dropout_key = jax.random.split(key)
    rngs = {"sample": sample_key, "dropout": dropout_key}
    options: dict[str, Any] = dict(rngs=rngs, method="log_prob", mutable=["maps"])
    _, state = model.apply({"params": params}, x, cond, **options)
    # Only the model's own: a part of it, such as a prior, has symbols of another kind.
    own = {k: v for k, v in state.get("maps", {}).items() if isinstance(v, tuple)}
    return {k.removeprefix("map_"): values[-1] for k, values in own.items()}


def bit_map(
    model: LikelihoodModel,
    params: Any,
    split: Split,
    *,
    batch_size: int = 100,
    seed: int = 0,
) -> tuple[str, np.ndarray] | None:
    """Mean nats of each pixel (all its channels) or symbol.

    Args:
      model, params: what is asked.
      split: all of its examples count.
      batch_size: examples at a time.
      seed: of the noise of latents.

    Returns:
      (what, float64 [H, W] or [L]): "symbols", which add up to the nats of an example, or
      "reconstruction"; None where the model does not tell symbols apart.
    """
    key, count = jax.random.key(seed), len(split)
    batch_size = min(batch_size, count)
    sums: dict[str, np.ndarray] = {}
    for start in range(0, count, batch_size):
        # The last batch is filled up: one shape, one compilation.
        numbers = np.minimum(np.arange(start, start + batch_size), count - 1)
        x, cond = split.batch(numbers)
        given = None if model.cond is None or cond is None else jnp.asarray(cond)
        noise = jax.random.fold_in(key, start)
        found = _log_probs(model, params, jnp.asarray(x), given, noise)
        for name, values in jax.device_get(found).items():
            part = values[: count - start].astype(np.float64).sum(0)
            sums[name] = sums.get(name, 0.0) - part
    if not sums:
        return None
    [(name, total)] = sums.items()
    grid = model.shape[:2] if len(model.shape) == 3 else model.shape
    pixels = total.reshape(math.prod(grid), -1).sum(1)
    return name, pixels.reshape(grid) / count
