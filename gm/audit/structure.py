"""Checks of what a value may depend on, and of caches, inverses and determinants."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.audit.subject import Measured, Subject, quick_jit, training_data
from gm.autoregressive import AutoregressiveModel
from gm.data.dataset import ArraySplit
from gm.evaluate import evaluate_nats, example_log_weights
from gm.spec import Estimate

KEY = jax.random.key(6)


def _largest(difference: Any) -> float:
    """Largest absolute entry; NaN if there is one."""
    return float(np.abs(np.asarray(difference, np.float64)).max(initial=0.0))


def _relative(a: Any, b: Any) -> float:
    """Largest difference, over the largest value (or 1, if that is less)."""
    return _largest(np.asarray(a) - np.asarray(b)) / max(1.0, _largest(b))


def values(subject: Subject) -> Iterator[Measured]:
    """One finite float32 an example, the sum of its terms; if EXACT, of x alone."""
    x, cond = subject.space.batch(16)
    log_px = subject.log_prob(x, cond, KEY)
    if np.shape(log_px) != (16,):
        yield Measured(f"log_prob is {np.shape(log_px)}, not (16,)", 1, 0)
        return
    infinite = np.mean(~np.isfinite(log_px))
    yield Measured("share of non-finite values", infinite, 0)
    if subject.estimate is Estimate.EXACT:
        off = _relative(subject.log_prob(x, cond, jax.random.key(7)), log_px)
        yield Measured("EXACT values change with the key by", off, 1e-6)
    if subject.model is not None:
        terms = subject.terms(x, cond, KEY)
        wrong = [n for n, t in terms.items() if t.shape != (16,)]
        wrong += [] if log_px.dtype == jnp.float32 else [f"log_px is {log_px.dtype}"]
        yield Measured(f"terms that are not float32 [B] {wrong}:", len(wrong), 0)
        total = np.sum(list(terms.values()), axis=0)
        yield Measured(
            "sum of the terms is off log_px by", _relative(total, log_px), 1e-5
        )


def neighbours(subject: Subject) -> Iterator[Measured]:
    """A value does not change with the other examples of the batch.

    Every example is held in turn while the others are replaced: their values, and
    their conditions, at the same size and key. An exact value also outlives another
    place in the batch and another batch size.
    """
    size = 4
    x, cond = subject.space.batch(size)
    other, other_cond = subject.space.batch(size, seed=1)
    before = subject.log_prob(x, cond, KEY)
    worst = 0.0
    for i in range(size):
        mixed = other.at[i].set(x[i])
        given = None
        if cond is not None and other_cond is not None:
            given = jnp.roll(other_cond, 1, axis=0).at[i].set(cond[i])
        after = subject.log_prob(mixed, given, KEY)
        worst = max(worst, _relative(after[i], before[i]))
    yield Measured("log P of an example changes with its neighbours by", worst, 1e-5)
    if subject.estimate is Estimate.EXACT:
        flipped = subject.log_prob(x[::-1], None if cond is None else cond[::-1], KEY)
        off = _relative(flipped[::-1], before)
        yield Measured("log P changes with the place in the batch by", off, 1e-5)
        one = subject.log_prob(x[:1], None if cond is None else cond[:1], KEY)
        off = _relative(one[0], before[0])
        yield Measured("log P changes with the batch size by", off, 1e-5)


def _split(subject, size):
    x, cond = subject.space.batch(size)
    return ArraySplit(np.asarray(x), None if cond is None else np.asarray(cond))


def batch_size(subject: Subject) -> Iterator[Measured]:
    """Evaluated nats do not change with the batch size, also where it leaves a rest."""
    if subject.model is None:
        return
    split, order = _split(subject, 10), np.arange(10)
    args = (subject.model, subject.params, split, order)
    a, b = (evaluate_nats(*args, batch_size=size)[0] for size in (4, 10))
    off = _relative(a, b)
    yield Measured("nats, batches of 4 against 10: off by", off, 1e-5)


def devices(subject: Subject) -> Iterator[Measured]:
    """Evaluated nats do not change with the number of devices."""
    if subject.model is None or jax.device_count() < 2:
        return
    split = _split(subject, 6)
    args = (subject.model, subject.params)
    many, _ = evaluate_nats(*args, split, np.arange(6), batch_size=6)
    alone, _ = example_log_weights(
        *args, split.x, split.cond, jnp.arange(6), jax.random.key(0)
    )
    what = f"nats, {jax.device_count()} devices against one: off by"
    yield Measured(what, _relative(many, -np.asarray(alone[0], np.float64)), 1e-5)


def condition(subject: Subject) -> Iterator[Measured]:
    """The condition changes log P, and the first symbol of an autoregressive model."""
    conditions = subject.space.conditions()
    if conditions is None:
        return
    count = len(conditions)
    x, _ = subject.space.batch(1)
    x, cond = jnp.repeat(x, count, axis=0), jnp.asarray(conditions)
    # One batch per condition, so that all see the same noise.
    log_px = [
        subject.log_prob(x, jnp.roll(cond, c, axis=0), KEY)[0] for c in range(count)
    ]
    spread = float(np.ptp(log_px))
    unmoved = spread < 1e-6
    hint = " (a model of p(x) alone says takes_cond = False)" if unmoved else ""
    what = f"log P moves by {spread:.1e} with the condition{hint}; unmoved"
    yield Measured(what, float(unmoved), 0)
    if subject.has("conditionals"):
        first = subject.call("conditionals", x.reshape(count, -1), cond)[:, 0]
        moved = float(np.ptp(first, axis=0).max())
        what = f"the first symbol's parameters move by {moved:.1e}; unmoved"
        yield Measured(what, float(moved < 1e-6), 0)


# Autoregressive models: `conditionals`, `init_cache` and `step`.


def dependence(subject: Subject) -> np.ndarray:
    """How much the parameters of symbol i change with symbol j: [D, D], largest of 3 x.

    By perturbation, since integers have no gradient. The model's `order` (the i-th
    entry is the place of the i-th symbol drawn; default raster) sorts both axes.
    """
    x, cond = subject.space.batch(3)
    x = x.reshape(3, -1)
    dims = x.shape[1]
    order = np.asarray(getattr(subject.model, "order", np.arange(dims)))
    step = 1 + np.random.default_rng(8).integers(
        0, subject.space.num_values - 1, (3, dims)
    )
    change = np.eye(dims, dtype=np.int32)[:, None] * step  # [D, 3, D]
    changed = (np.asarray(x) + change) % subject.space.num_values
    table = np.zeros((dims, dims))
    for b in range(3):
        rows = jnp.asarray(np.concatenate([x[b : b + 1], changed[:, b]]))
        given = None if cond is None else jnp.repeat(cond[b : b + 1], dims + 1, axis=0)
        out = np.asarray(subject.call("conditionals", rows, given), np.float64)
        moved = np.abs(out[1:] - out[:1]).max(-1).T  # [output, symbol]
        table = np.maximum(table, moved / max(np.abs(out[0]).max(), 1.0))
    return table[order][:, order]


def causality(subject: Subject) -> Iterator[Measured]:
    """No symbol's distribution depends on the symbol itself or on later ones."""
    if not subject.has("conditionals"):
        return
    table = dependence(subject)
    leak = np.triu(table)
    i, j = np.unravel_index(np.argmax(leak), leak.shape)
    what = f"distribution {i} moves with symbol {j} (worst pair) by"
    yield Measured(what, leak[i, j] if np.isfinite(leak).all() else np.nan, 1e-6)


def receptive_field(subject: Subject) -> Iterator[Measured]:
    """No blind spot: the symbols that a distribution is said to see do move it.

    A model that sees less than all earlier symbols says so by `receptive_field`, bool
    [D, D]: whether the i-th symbol sees the j-th.
    """
    if not subject.has("conditionals"):
        return
    table = dependence(subject)
    claimed = np.tri(len(table), k=-1, dtype=bool)
    claimed &= np.asarray(getattr(subject.model, "receptive_field", claimed), bool)
    blind = claimed & (table <= 1e-9)
    told = "that receptive_field (bool [D, D]) says are seen are not: share"
    what = f"{blind.sum()} of {claimed.sum()} earlier symbols {told}"
    yield Measured(what, blind.sum() / max(claimed.sum(), 1), 0)


def cache(subject: Subject) -> Iterator[Measured]:
    """`step` equals `conditionals`, and cached sampling full recomputation."""
    if not subject.has("conditionals", "init_cache", "step"):
        return
    x, cond = subject.space.batch(3)
    flat = x.reshape(3, -1)
    dims, model, bound = flat.shape[1], subject.model, {"params": subject.params}

    @quick_jit
    def steps(x):
        def body(carry, index):
            carry, previous = carry
            carry, out = model.apply(bound, carry, index, previous, method="step")
            return (carry, x[:, index]), out

        # A first symbol that is not zero: at index 0 it has to be ignored.
        start = (model.apply(bound, 3, cond, method="init_cache"), x[:, 0] * 0 + 1)
        return jax.lax.scan(body, start, jnp.arange(dims))[1].swapaxes(0, 1)

    full = subject.call("conditionals", flat, cond)
    what = "cached step against the parallel pass: off by"
    yield Measured(what, _relative(steps(flat), full), 1e-4)
    if subject.sample is None or type(model).sample is not AutoregressiveModel.sample:
        return

    @quick_jit
    def recompute(key):  # the noise of the shared sampler, the whole network each time
        def body(d, x):
            params = model.apply(bound, x, cond, method="conditionals")[:, d]
            noise = jax.random.fold_in(key, d)
            drawn = model.apply(bound, noise, params, method="symbol_sample")
            return x.at[:, d].set(drawn)

        return jax.lax.fori_loop(0, dims, body, jnp.zeros((3, dims), jnp.int32))

    key = jax.random.key(9)
    drawn = np.asarray(subject.sample(key, 3, cond)).reshape(3, -1)
    key = model.apply({}, rngs={"sample": key}, method=lambda m: m.make_rng("sample"))
    differ = float(np.mean(drawn != np.asarray(recompute(key))))
    yield Measured("share of cached samples unlike full recomputation", differ, 0)


# Flows: `forward` and `inverse`.


def _points(subject):
    """Points y [4, *shape] in [-1, 1): of training data, random, and at the edges."""
    rng = np.random.default_rng(10)
    space = subject.space
    x = np.asarray(training_data(space, 1)[0])
    data = (x + rng.random(x.shape)) * (2 / space.num_values) - 1
    noise = rng.uniform(-1, 1, (1, *space.shape))
    edges = np.stack(
        [np.full(space.shape, 0.999), rng.choice([-0.999, 0.999], space.shape)]
    )
    y = np.concatenate([data, noise, edges]).clip(-0.999, 0.999)
    _, cond = space.batch(4)
    names = ("data", "noise", "all at the edge", "random edges")
    return jnp.asarray(y, jnp.float32), cond, names


def inverse(subject: Subject) -> Iterator[Measured]:
    """inverse(forward(y)) is y, for data and far from them."""
    if not subject.has("forward", "inverse"):
        return
    y, cond, names = _points(subject)
    z, _ = subject.call("forward", y, cond)
    back = subject.call("inverse", z, cond)
    for i, name in enumerate(names):
        what = f"inverse of forward at {name}: off by"
        yield Measured(what, _largest(back[i] - y[i]), 1e-4)


def log_det(subject: Subject) -> Iterator[Measured]:
    """The log-determinant of forward equals that of its Jacobian by autodiff."""
    if not subject.has("forward", "inverse"):
        return
    y, cond, names = _points(subject)
    model, bound = subject.model, {"params": subject.params}

    @quick_jit
    def jacobian(y, cond):
        def forward(y):
            given = None if cond is None else cond[None]
            return model.apply(bound, y[None], given, method="forward")[0][0]

        return jax.jacrev(forward)(y).reshape(y.size, y.size)

    _, claimed = subject.call("forward", y, cond)
    for i, name in enumerate(names):
        matrix = jacobian(y[i], None if cond is None else cond[i])
        _, expected = np.linalg.slogdet(np.asarray(matrix, np.float64))
        off = abs(float(claimed[i]) - expected) / max(1.0, abs(expected))
        what = (
            f"log-det at {name}: {float(claimed[i]):.4f}, "
            f"by autodiff {expected:.4f}, relative error"
        )
        yield Measured(what, off, 1e-4)
