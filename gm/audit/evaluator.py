"""Checks of an evaluator: every example once, none left out, bounds that are bounds.

An evaluator is called like `gm.evaluate.evaluate`: (model, params, dataset, split_name,
*, batch_size, num_importance_samples) -> (row, nats [N]). It is shown models whose nats
are known.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gm.audit.reference import Geometric, GeometricBound, LinearGaussian
from gm.audit.subject import Measured, Space
from gm.data.dataset import ArraySplit, Dataset
from gm.errors import InputError
from gm.likelihood import bits


def _dataset(space: Space, *splits: np.ndarray) -> Dataset:
    """A data set of these examples: train, valid, test."""
    train, valid, test = (ArraySplit(np.asarray(x, np.int32)) for x in splits)
    return Dataset("audit", space.shape, space.num_values, "dim", train, valid, test)


def _known(
    hole: int = -1, estimate: type[Geometric] = Geometric
) -> tuple[Geometric, Dataset, dict[str, np.ndarray]]:
    """A Geometric model, splits of distinct values, and the nats of each split."""
    space = Space((2,), 40)
    train, valid, test = np.split(np.repeat(np.arange(30), 2).reshape(30, 2), [10, 19])
    dataset = _dataset(space, train, valid, test)
    model = estimate(shape=space.shape, num_values=space.num_values, hole=hole)
    normaliser = math.log(np.exp(-np.arange(40.0)).sum())
    nats = {
        n: getattr(dataset, n).x.sum(1) + 2 * normaliser
        for n in ("train", "valid", "test")
    }
    return model, dataset, nats


def every_example_once(evaluate: Callable[..., Any]) -> Iterator[Measured]:
    """All examples count, once, also those of a last batch that is not full."""
    model, dataset, expected = _known()
    for size in (4, 11, 100):
        row, nats = evaluate(
            model, {}, dataset, "test", batch_size=size, num_importance_samples=1
        )
        count, where = len(expected["test"]), f"in batches of {size}"
        nats = np.asarray(nats, np.float64)
        what = f"{count} examples {where}, of which {len(nats)} evaluated: off by"
        yield Measured(what, abs(len(nats) - count), 0)
        if len(nats) == count:
            off = np.abs(np.sort(nats) - np.sort(expected["test"])).max()
            yield Measured(f"nats per example {where}: off by", off, 1e-4)
        off = abs(row["nats"] - expected["test"].mean())
        yield Measured(f"mean nats {where}: off by", off, 1e-4)


def splits(evaluate: Callable[..., Any]) -> Iterator[Measured]:
    """The split that was asked for is the one evaluated."""
    model, dataset, expected = _known()
    for name in ("valid", "test"):
        row, _ = evaluate(
            model, {}, dataset, name, batch_size=10, num_importance_samples=1
        )
        means = {n: f"{v.mean():.2f}" for n, v in expected.items()}
        what = f"{row['nats']:.2f} nats for {name}, where the means are {means}: off by"
        yield Measured(what, abs(row["nats"] - expected[name].mean()), 1e-4)


def bits_per_dim(evaluate: Callable[..., Any]) -> Iterator[Measured]:
    """Bits per dimension are nats over D log 2."""
    model, dataset, expected = _known()
    row, _ = evaluate(
        model, {}, dataset, "test", batch_size=10, num_importance_samples=1
    )
    wanted = bits(expected["test"].mean()) / model.num_dims
    what = f"{row['bits_per_dim']:.4f} bits/dim, where {wanted:.4f} is right: off by"
    yield Measured(what, abs(row["bits_per_dim"] - wanted), 1e-5)


def nonfinite_examples(evaluate: Callable[..., Any]) -> Iterator[Measured]:
    """An example that has no finite likelihood is an error, never left out of a mean."""
    model, dataset, _ = _known(hole=25)
    try:
        row, _ = evaluate(
            model, {}, dataset, "test", batch_size=4, num_importance_samples=1
        )
    except (InputError, ValueError, FloatingPointError):
        yield Measured("a NaN example goes unreported", 0, 0)
        return
    silent = float(math.isfinite(row["nats"]))
    yield Measured(f"a NaN example goes unreported (mean {row['nats']:.3f})", silent, 0)


def elbo_refused(evaluate: Callable[..., Any]) -> Iterator[Measured]:
    """Importance samples of an ELBO are refused: logmeanexp over it bounds nothing."""
    model, dataset, _ = _known(estimate=GeometricBound)
    try:
        evaluate(model, {}, dataset, "test", batch_size=4, num_importance_samples=8)
    except ValueError:
        yield Measured("logmeanexp over 8 draws of an ELBO is computed", 0, 0)
        return
    yield Measured("logmeanexp over 8 draws of an ELBO is computed", 1, 0)


def _linear_gaussian(
    rounded: bool, size: int
) -> tuple[LinearGaussian, Dataset, tuple[float, float]]:
    """The reference model, a test split like it, and mean exact value and ELBO there."""
    space = Space((2,), 8)
    model = LinearGaussian(shape=space.shape, num_values=8, rounded=rounded)
    states = space.states()
    exact, elbo = model.exact(states), model.elbo(states)
    counts = np.round(size * np.exp(exact)).astype(int)
    x = np.repeat(states, counts, axis=0)
    dataset = _dataset(space, x[:1], x[:1], x)
    return model, dataset, (exact @ counts / len(x), elbo @ counts / len(x))


def sandwich(evaluate: Callable[..., Any]) -> Iterator[Measured]:
    """ELBO <= IW-5 <= IW-50 <= IW-500 <= exact on the linear-Gaussian model, and its twin.

    The last gap is small, and the ELBO is the closed form: too many draws under the name
    of one (or too few) are seen.
    """
    names = ["ELBO", "IW-5", "IW-50", "IW-500", "exact"]
    for rounded in (False, True):
        model, dataset, (exact, elbo) = _linear_gaussian(rounded, 2000)
        levels = []
        for k in (1, 5, 50, 500):
            row, _ = evaluate(
                model, {}, dataset, "test", batch_size=2000, num_importance_samples=k
            )
            levels.append(-row["nats"])
        levels.append(exact)
        chain = " <= ".join(f"{n} {v:.4f}" for n, v in zip(names, levels, strict=True))
        chain = f"{'discrete twin' if rounded else 'linear-Gaussian'}: {chain}"
        for i in range(4):  # the limits are four standard errors of the draws' noise
            what = f"{chain}; {names[i]} above {names[i + 1]} by"
            yield Measured(what, levels[i] - levels[i + 1], 5e-3)
        yield Measured(f"{chain}; IW-500 off exact by", abs(exact - levels[3]), 5e-3)
        if not rounded:
            what = f"{chain}; ELBO in closed form {elbo:.4f}: off by"
            yield Measured(what, abs(levels[0] - elbo), 0.08)


def repeatable(evaluate: Callable[..., Any]) -> Iterator[Measured]:
    """The same call gives the same number, and so do other batch sizes."""
    model, dataset, _ = _linear_gaussian(rounded=False, size=100)
    sizes = (64, 64, 10)
    rows = [
        evaluate(model, {}, dataset, "test", batch_size=s, num_importance_samples=2)[0]
        for s in sizes
    ]
    first, again, small = (row["nats"] for row in rows)
    yield Measured("the same call again: mean nats off by", abs(again - first), 0)
    off = abs(small - first) / max(abs(first), 1)
    yield Measured("batches of 10 against 64: mean nats off by", off, 1e-5)


EVALUATOR_CHECKS: dict[str, Callable[[Callable[..., Any]], Iterator[Measured]]] = {
    f.__name__: f
    for f in (
        every_example_once,
        splits,
        bits_per_dim,
        nonfinite_examples,
        elbo_refused,
        sandwich,
        repeatable,
    )
}
