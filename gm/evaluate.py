"""One full pass over a split: nats of every example, once, and the result row."""

import functools
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm import __version__, bounds, sharding
from gm.bounds import logmeanexp
from gm.data.dataset import ArraySplit, Dataset, Fresh, Split, identify
from gm.data.texts import num_characters
from gm.errors import InputError, check_seed, check_whole
from gm.likelihood import bits
from gm.model import LikelihoodModel, log_prob
from gm.spec import Estimate


@functools.partial(jax.jit, static_argnames=("model", "draws", "mesh"))
def example_log_weights(
    model: LikelihoodModel,
    params: Any,
    x: jax.Array,
    cond: jax.Array | None,
    indices: jax.Array,
    key: jax.Array,
    draws: int = 1,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log-weights [draws, B] and mean terms, with noise that belongs to the example.

    The noise of draw k of example i is a function of (key, i, k) alone, so a value
    depends neither on the neighbours in the batch nor on the batch size.

    Args:
      model, params: what is evaluated.
      x, cond: a batch.
      indices: int32 [B], each example's number in the split.
      key: PRNG key.
      draws: K. Each draw is what `log_prob` returns: for WEIGHT models the log of an
        unbiased estimate of P(x).
      mesh: of several devices that share the batch.
    """
    params = sharding.gather(mesh, params)

    def draw(k):
        def one(x, cond, index):
            noise = jax.random.fold_in(jax.random.fold_in(key, index), k)
            cond = None if cond is None else cond[None]
            value = log_prob(model, params, x[None], cond, noise)
            return jax.tree.map(lambda v: v[0], value)

        return jax.vmap(one)(x, cond, indices)

    # A loop over the draws: the network's memory does not grow with K.
    log_w, terms = jax.lax.map(draw, jnp.arange(draws))
    return sharding.gather(mesh, (log_w, jax.tree.map(lambda t: t.mean(0), terms)))


def check_importance_samples(
    model: LikelihoodModel, num_samples: int, flag: str = "num_importance_samples"
) -> int:
    """Returns how many draws to take: 1 where the likelihood is exact.

    Raises:
      InputError: less than one, or more than one for an ELBO, where logmeanexp over
        draws would not be a bound.
    """
    check_whole(1, **{flag: num_samples})
    if model.estimate is Estimate.ELBO and num_samples > 1:
        raise InputError(
            f"--{flag}={num_samples}: {type(model).__name__} estimates "
            "an ELBO, over whose draws logmeanexp is not a bound; give 1"
        )
    return 1 if model.estimate is Estimate.EXACT else num_samples


def evaluate_log_weights(
    model: LikelihoodModel,
    params: Any,
    split: Split,
    order: np.ndarray,
    *,
    draws: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Log-weights of the examples of a split, each example exactly once.

    Args:
      model, params: what is evaluated; the EMA parameters as a rule.
      split: examples.
      order: int64 [N], which examples and in what order.
      draws: K.
      batch_size: the last batch is padded and the padding dropped.
      seed: of the noise; the same for every call.
      progress: called with (examples done, mean nats so far).
      mesh: of the devices that share each batch; None: all of them.

    Returns:
      (float64 [K, N] in that order, mean of each term in nats).

    Raises:
      InputError: a non-finite example (its number is named); none is left out.
    """
    check_whole(1, batch_size=batch_size)
    check_seed(seed)
    mesh = mesh or sharding.make_mesh()
    batch_size = -(-min(batch_size, len(order)) // mesh.size) * mesh.size
    rows = sharding.own_rows(mesh, batch_size)
    params = sharding.place(mesh, params)
    key = sharding.replicate(mesh, jax.random.key(seed))
    log_w = np.empty((draws, len(order)), np.float64)
    sums: dict[str, float] = {}
    total = 0.0
    for start in range(0, len(order), batch_size):
        stop = min(start + batch_size, len(order))
        numbers = (start + rows) % len(order)
        x, cond = split.batch(order[numbers])
        batch = (x, cond if model.cond else None, numbers.astype(np.int32))
        batch = sharding.assemble(mesh, batch, batch_size)
        block, terms = jax.device_get(
            example_log_weights(model, params, *batch, key, draws, mesh)
        )
        log_w[:, start:stop] = block[:, : stop - start]
        log_px = logmeanexp(log_w[:, start:stop])
        bad = np.flatnonzero(~np.isfinite(log_px))
        if bad.size:
            raise InputError(
                f"example {order[start + bad[0]]} of the split has {log_px[bad[0]]} "
                "nats: the likelihood is not finite there, so the mean is not either"
            )
        for name, term in terms.items():
            part = np.asarray(term, np.float64)[: stop - start].sum()
            sums[name] = sums.get(name, 0.0) + float(part)
        total -= log_px.sum()
        if progress is not None:
            progress(stop, float(total / stop))
    return log_w, {name: value / len(order) for name, value in sums.items()}


def evaluate_nats(
    model: LikelihoodModel,
    params: Any,
    split: Split,
    order: np.ndarray,
    *,
    num_importance_samples: int = 1,
    **options: Any,
) -> tuple[np.ndarray, dict[str, float]]:
    """Nats -log P(x) of the examples of a split, by `evaluate_log_weights`.

    Returns:
      (nats float64 [N] in the order given, mean of each term in nats).
    """
    draws = check_importance_samples(model, num_importance_samples)
    log_w, terms = evaluate_log_weights(
        model, params, split, order, draws=draws, **options
    )
    return -logmeanexp(log_w), terms


def _commit() -> str:
    """The commit of this code, with '+' if it was changed since; '' outside git."""
    here = Path(__file__).resolve().parent

    def git(*args):
        done = subprocess.run(["git", "-C", str(here), *args], capture_output=True)
        return done.stdout.decode().strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if commit and git("status", "--porcelain", "-uno") else "")


def provenance() -> dict[str, Any]:
    """Device, versions and commit, as every row states them."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    own = {"python": sys.version.split()[0], "gm": __version__}  # installed or not
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": own | {n: version(n) for n in names},
        "commit": _commit(),
    }


def num_params(params: Any) -> int:
    """How many parameters there are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def evaluate(
    model: LikelihoodModel,
    params: Any,
    dataset: Dataset,
    split_name: str,
    *,
    num_importance_samples: int = 1,
    k_curve: bool = False,
    interval: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], np.ndarray]:
    """Evaluates a whole split.

    Args:
      model, params: what is evaluated.
      dataset, split_name: on what.
      num_importance_samples: K.
      k_curve: adds the bound at k = 1, 2, 4, ..., K to the row.
      interval: adds bounds from both sides, from `bounds.GROUPS` x K draws.
      options: batch_size, seed, progress and mesh of `evaluate_log_weights`.

    Returns:
      (row, nats float64 [N]): the part of a result row that this pass determines, and
      nats per example in the split's fixed order.

    Raises:
      InputError: a split that is drawn anew at each step, a curve or an interval of
        what has no weights, or as `evaluate_log_weights` raises.
    """
    split = dataset.split(split_name)
    if isinstance(split, Fresh):
        raise InputError(
            f"--split={split_name}: {dataset.name} draws it anew at each step; "
            "give valid or test"
        )
    if (k_curve or interval) and model.estimate is not Estimate.WEIGHT:
        raise InputError(
            f"--{'k_curve' if k_curve else 'interval'}: {type(model).__name__} gives "
            f"{_SAID[model.estimate]}, of which there are no importance weights"
        )
    if interval and getattr(model, "dequantizer", "uniform") != "uniform":
        raise InputError(
            f"--interval: with dequantizer={model.dequantizer} the noise of its own "
            "samples has no known density; leave it out (--k_curve may be given)"
        )
    k = check_importance_samples(model, num_importance_samples)
    if k_curve and k < 2:
        raise InputError(
            f"--k_curve: with --num_importance_samples={k} there is one point; give more"
        )
    draws = bounds.GROUPS * k if interval else k
    sha256, order = identify(dataset, split)
    log_w, terms = evaluate_log_weights(
        model, params, split, order, draws=draws, **options
    )
    nats = -logmeanexp(log_w[:k])
    mean = float(nats.mean())
    floor = dataset.cond_entropy_nats if model.cond else dataset.entropy_nats
    row = {
        "dataset": dataset.name,
        "split": split_name,
        "split_sha256": sha256,
        "num_examples": len(nats),
        "shape": list(dataset.shape),
        "num_values": dataset.num_values,
        "unit": dataset.unit,
        "preprocessing": dataset.preprocessing,
        "conditioning": model.cond.label if model.cond else "none",
        "estimate": model.estimate.value,
        "num_importance_samples": k,
        "nats": mean,
        "bits_per_dim": bits(mean) / model.num_dims,
        "bits_per_object": bits(mean),
        "standard_error_nats": float(nats.std(ddof=1) / math.sqrt(len(nats)))
        if len(nats) > 1
        else None,
        "terms_nats": terms,
        "entropy_floor_nats": floor,
        "num_params": num_params(params),
        "evaluation_seed": options.get("seed", 0),
    }
    if dataset.end is not None:
        characters = num_characters(split, dataset.end)
        row["bits_per_char"] = bits(float(nats.sum())) / characters
    if k_curve:
        row["k_curve"] = bounds.k_curve(log_w, k)
    if interval:
        mesh = options.get("mesh")
        shortfall = _own_sample_shortfall(model, params, split, order, k, mesh)
        row["interval_nats"] = bounds.interval(log_w, k, shortfall)
    return row, nats


_SAID = {Estimate.EXACT: "exact log-likelihoods", Estimate.ELBO: "a sampled ELBO"}


def _own_sample_shortfall(model, params, split, order, k, mesh, count=200):
    """`bounds.own_sample_shortfall` on samples, with conditions of the split."""
    if not hasattr(model, "sample_joint"):
        return None
    numbers = order[np.arange(min(count, len(order)))]
    cond = split.batch(numbers)[1] if model.cond else None

    @jax.jit
    def draw(params, key):
        apply = functools.partial(model.apply, {"params": params})
        x, noise = apply(
            len(numbers), cond, rngs={"sample": key}, method="sample_joint"
        )
        return x, apply(x, noise, cond, method="log_weight")[0]

    x, own_log_w = jax.device_get(draw(params, jax.random.key(1)))
    log_w, _ = evaluate_log_weights(
        model,
        params,
        ArraySplit(x, cond),
        np.arange(len(x)),
        draws=bounds.GROUPS * k,
        seed=2,
        mesh=mesh,
    )
    return bounds.own_sample_shortfall(np.asarray(own_log_w, np.float64), log_w, k)


def write_result(
    directory: Path,
    split_name: str,
    row: Mapping[str, Any],
    nats: np.ndarray,
    **more: np.ndarray,
) -> Path:
    """Writes results/<split>.nats.npy, NAME.npy of more, then <split>.json; all whole."""
    import io

    from gm.rundir import write_json, write_whole

    for name, values in {"nats": nats, **more}.items():
        buffer = io.BytesIO()
        np.save(buffer, values)
        write_whole(directory / f"{split_name}.{name}.npy", buffer.getvalue())
    path = directory / f"{split_name}.json"
    write_json(path, dict(row))
    return path
