"""Unpaired translation by one flow that is conditioned on the domain.

An image of domain a is encoded as z = f(y; a) and decoded as f^-1(z; b), both exactly
invertible: translating back gives the image again (AlignFlow, Grover et al. 2020, there
with two flows of a shared base). Maximum likelihood alone does not say which images of
the two domains belong together, since any map of z that keeps the base fits as well: that
the domains share their weights is what makes alike images lie near each other.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm import quality
from gm.data.dataset import Dataset
from gm.data.splits import PARTS
from gm.errors import InputError
from gm.flow import FlowModel
from gm.likelihood import dequantize, quantize
from gm.model import LikelihoodModel


def check_flow(model: LikelihoodModel) -> None:
    """InputError unless the model is a flow conditioned on one of two domains."""
    if not isinstance(model, FlowModel):
        raise InputError(
            f"--unpaired: {type(model).__name__} is no flow, which it takes to encode "
            "in one domain and decode in the other; train such as glow or realnvp"
        )
    if len(model.shape) != 3:
        raise InputError(f"--unpaired: takes images, not {model.shape}")
    if model.cond is None or model.cond.kind != "class" or model.cond.size != 2:
        label = model.cond.label if model.cond else "none"
        raise InputError(
            f"--unpaired: the run's condition is {label}; train with --conditional on "
            "a data set of two classes, such as domains:solids"
        )


@functools.partial(jax.jit, static_argnames=("model",))
def _translate(model, params, y, domain):
    """Y [B, *shape] in [-1, 1) -> (y' in the other domain, y again)."""

    def move(y, a, b):
        z, _ = model.apply({"params": params}, y, a, method="forward")
        return model.apply({"params": params}, z, b, method="inverse")

    there = move(y, domain, 1 - domain)
    return there, move(there, 1 - domain, domain)


def translate(
    model: LikelihoodModel,
    params: Any,
    x: np.ndarray,
    domain: np.ndarray,
    *,
    seed: int = 0,
    batch_size: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Translates images to the other domain, with their dequantisation noise, and back.

    Args:
      model, params: a flow.
      x: [N, *shape] integers.
      domain: int32 [N], 0 or 1: of each image.
      seed: of the noise, which is translated along.
      batch_size: images at a time.

    Returns:
      (integers [N, *shape] of the other domain; the cycle's error |y'' - y| [N, *shape],
      in units of y in [-1, 1), before anything is rounded to an integer). Where z is so
      unlikely in the other domain that the inverse overflows, the image is black and the
      error infinite.
    """
    key, found, cycle = jax.random.key(seed), [], []
    for start in range(0, len(x), batch_size):
        part = np.arange(start, start + batch_size) % len(x)  # one shape, one program
        noise = jax.random.fold_in(key, start)
        y, _ = dequantize(noise, jnp.asarray(x[part], jnp.int32), model.num_values)
        there, again = _translate(model, params, y, domain[part])
        kept = min(batch_size, len(x) - start)
        axes = tuple(range(1, there.ndim))
        held = jnp.isfinite(there).all(axes, keepdims=True)
        moved = quantize(jnp.where(held, there, -1), model.num_values)
        off = jnp.where(held & jnp.isfinite(again), jnp.abs(again - y), jnp.inf)
        found.append(np.asarray(moved)[:kept])
        cycle.append(np.asarray(off)[:kept])
    return np.concatenate(found), np.concatenate(cycle)


def all_images(dataset: Dataset, domain: int) -> np.ndarray:
    """[M, *shape]: the images of one domain in all three splits of a data set in memory."""
    found = []
    for part in PARTS:
        split: Any = dataset.split(part)
        x, label = split.batch(np.arange(len(split)))
        found.append(x[label == domain])
    return np.concatenate(found)


def judge(
    x: np.ndarray, moved: np.ndarray, partners: np.ndarray, among: np.ndarray
) -> dict[str, Any]:
    """Holds translations of a domain's images against what they should have become.

    Args:
      x: [N, *shape], images of one domain.
      moved: [N, *shape], their translations to the other.
      partners: [N, *shape], the true ones.
      among: [M, *shape], all that the other domain is known to have, partners included.

    Returns:
      match_rate: how often the nearest of `among` (least squares) is the own partner or
      its equal; candidates: M; mean_error: the mean absolute difference from the partner,
      in values of a pixel. The same of x itself, which is what not translating comes to,
      and the rate of a blind guess.
    """

    def flat(a):
        return a.reshape(len(a), -1).astype(np.float64)

    def rate(images):
        near = among[quality.nearest(flat(images), flat(among))[1]]
        return float((near == partners).reshape(len(near), -1).all(1).mean())

    def error(images):
        return float(np.abs(images.astype(np.int32) - partners).mean())

    return {
        "match_rate": rate(moved),
        "match_rate_of_copies": rate(x),
        "match_rate_of_chance": 1 / len(among),
        "candidates": len(among),
        "mean_error": error(moved),
        "mean_error_of_copies": error(x),
    }
