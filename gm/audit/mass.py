"""Checks of the mass: it sums to one, the samples follow it, bounds lie below it."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gm.audit.subject import MAX_STATES, Measured, Subject
from gm.spec import Estimate

ROWS = 2048  # examples per call
MAX_CALLS = 512  # keys that are drawn at most, per condition and state
TARGET = 0.01  # standard error of a sum of estimates at which drawing stops
NUM_SAMPLES = 20_000  # of each condition
DRAWN = 4000  # of them at a time: one program draws them all
MIN_LOG10_P = -4.0  # of the chi-square test


def _grid(subject: Subject) -> tuple[jax.Array, jax.Array | None, int]:
    """Every state under every condition: x [C S, *shape], cond, C."""
    states, cond = subject.space.states(), subject.space.conditions()
    if cond is None:
        return jnp.asarray(states), None, 1
    count = len(cond)
    x = np.tile(states, (count,) + (1,) * (states.ndim - 1))
    return jnp.asarray(x), jnp.asarray(np.repeat(cond, len(states), 0)), count


@functools.lru_cache(maxsize=8)
def enumerated(subject: Subject, *, again: bool = False) -> np.ndarray:
    """What log_prob says of every state: float64 [calls, repeats, C, S].

    One call and repeat where it is exact. Else draws, until the standard error of every
    sum that `normalisation` looks at is below TARGET; draws of one call share a key.
    `again`: other draws, and MAX_CALLS of them.
    """
    x, cond, count = _grid(subject)
    repeats = 1
    if subject.estimate is not Estimate.EXACT:
        repeats = max(ROWS // len(x), 1)
        x = jnp.tile(x, (repeats,) + (1,) * (x.ndim - 1))
        cond = (
            None if cond is None else jnp.tile(cond, (repeats, *[1] * (cond.ndim - 1)))
        )
    calls: list[np.ndarray] = []
    while True:
        for _ in range(1 if subject.estimate is Estimate.EXACT else 32):
            key = jax.random.fold_in(jax.random.key(11 if again else 3), len(calls))
            log_px = np.asarray(subject.log_prob(x, cond, key), np.float64)
            calls.append(log_px.reshape(repeats, count, -1))
        drawn = np.stack(calls)
        if subject.estimate is Estimate.EXACT:
            return drawn
        errors = (bound_sums if subject.estimate is Estimate.ELBO else sums)(drawn)[1]
        precise = not again and errors.max() < TARGET
        if len(calls) >= MAX_CALLS or precise:
            return drawn


def sums(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over the states of the mean estimate of P(x), and its standard error: [C]."""
    totals = np.exp(drawn).sum(-1).mean(1)  # [calls, C]
    if len(totals) == 1:
        return totals[0], np.zeros(totals.shape[1])
    return totals.mean(0), totals.std(0, ddof=1) / math.sqrt(len(totals))


def bound_sums(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over the states of exp(mean bound), and its standard error: [C]."""
    flat = drawn.mean(1)  # [calls, C, S]
    bound = np.exp(flat.mean(0))
    noise = flat.std(0, ddof=1) / math.sqrt(len(flat))
    return bound.sum(-1), np.sqrt(((bound * noise) ** 2).sum(-1))


def _estimates(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean estimate of P(x) and its standard error: [C, S]."""
    means = np.exp(drawn).mean(1)
    if len(means) == 1:
        return means[0], np.zeros(means.shape[1:])
    return means.mean(0), means.std(0, ddof=1) / math.sqrt(len(means))


def _given(subject: Subject, index: int) -> str:
    cond = subject.space.conditions()
    return "" if cond is None else f" given {np.round(cond[index], 2)}"


def normalisation(subject: Subject) -> Iterator[Measured]:
    """The probabilities of all states sum to one, for every condition.

    Two-sided for EXACT and WEIGHT. An ELBO, averaged over its noise, sums to at most one.
    """
    drawn = enumerated(subject)
    total, error = sums(drawn)
    z = (np.abs(total - 1) / np.maximum(error, 1e-6)).max()
    if subject.estimate is Estimate.WEIGHT and 3 < z < 8:
        # Weights have heavy tails, of which few draws know little: fresh ones decide.
        drawn = enumerated(subject, again=True)
        total, error = sums(drawn)
    states = drawn.shape[-1]
    for c in range(drawn.shape[2]):
        where = _given(subject, c)
        if subject.estimate is Estimate.EXACT:
            what = f"{states} probabilities{where} sum to {total[c]:.7f}, off by"
            yield Measured(what, abs(total[c] - 1), 1e-5)
        elif subject.estimate is Estimate.WEIGHT:
            what = f"{states} mean weights{where} sum to {total[c]:.4f}"
            yield Measured(f"undecided: {what}, standard error", error[c], 0.03)
            z = abs(total[c] - 1) / max(error[c], 1e-6)
            yield Measured(f"{what} +- {error[c]:.4f}, standard errors off", z, 4)
        else:
            bound, noise = (float(v[c]) for v in bound_sums(drawn))
            what = f"exp of {states} bounds{where} sums to {bound:.4f}, limit 1"
            yield Measured(f"{what}, above by", bound - 1, 4 * noise + 1e-4)


@functools.lru_cache(maxsize=32)
def _counts(subject: Subject) -> np.ndarray:
    """How often each state was drawn: [C, S], NUM_SAMPLES per condition."""
    assert subject.sample is not None
    cond = subject.space.conditions()
    counts = []
    for c in range(1 if cond is None else len(cond)):
        given = None if cond is None else jnp.asarray(np.repeat(cond[[c]], DRAWN, 0))
        key = jax.random.fold_in(jax.random.key(4), c)
        parts = [
            np.asarray(subject.sample(key, DRAWN, given), np.int64)
            for key in jax.random.split(key, NUM_SAMPLES // DRAWN)
        ]
        x = np.reshape(parts, (NUM_SAMPLES, -1))
        index = x @ subject.space.num_values ** np.arange(x.shape[1])[::-1]
        counts.append(np.bincount(index, minlength=subject.space.num_states))
    return np.stack(counts)


def _p_value(statistic: float, freedom: int) -> float:
    return float(jax.scipy.special.gammaincc(freedom / 2, statistic / 2))


def _followed(subject, drawn):
    """Whether samples follow the estimates `drawn`, by cells and in the mean."""
    counts = _counts(subject)
    p, error = _estimates(drawn)
    for c in range(len(counts)):
        expected, variance = NUM_SAMPLES * p[c], (NUM_SAMPLES * error[c]) ** 2
        rare = expected < 5
        cells = [
            np.r_[v[~rare], v[rare].sum()] for v in (counts[c], expected, variance)
        ]
        observed, expected, variance = (v[cells[1] > 0] for v in cells)
        lost = NUM_SAMPLES - observed.sum()  # drawn, though impossible
        statistic = float(((observed - expected) ** 2 / (expected + variance)).sum())
        log_p = math.log10(max(_p_value(statistic, max(len(observed) - 1, 1)), 1e-99))
        what = (
            f"{NUM_SAMPLES} samples{_given(subject, c)}: chi-square "
            f"{statistic:.0f} in {len(observed)} cells, -log10 p"
        )
        yield Measured(what, math.inf if lost else -log_p, -MIN_LOG10_P)
    q = p / p.sum(1, keepdims=True)
    log_q = np.log(np.maximum(q, 1e-99))
    centred = log_q - (q * log_q).sum(1, keepdims=True)
    off = (counts * centred).sum() / counts.sum()
    variance = NUM_SAMPLES * q + (NUM_SAMPLES * error) ** 2
    spread = math.sqrt((variance * centred**2).sum()) / counts.sum()
    what = f"mean log P of {counts.sum()} samples: {off:+.4f} nats off, standard errors"
    yield Measured(what, abs(off) / max(spread, 1e-6), 4)


def sampler(subject: Subject) -> Iterator[Measured]:
    """Samples are integers in range, differ by key, and follow the likelihood.

    Chi-square of counts against enumerated probabilities; rare states share a cell, and
    where the probabilities are estimated, their variance is counted too. The mean log P
    of all samples against its expectation sees what is spread over many cells: it is
    the most powerful test of a temperature.
    """
    if subject.sample is None:
        return
    n = DRAWN if subject.space.num_states <= MAX_STATES else 64
    _, cond = subject.space.batch(n)
    a, b = (np.asarray(subject.sample(jax.random.key(k), n, cond)) for k in (0, 1))
    shape = (n, *subject.space.shape)
    if a.shape != shape or not np.issubdtype(a.dtype, np.integer):
        wrong = f"samples are {a.dtype}{list(a.shape)}, not integers {list(shape)}"
        yield Measured(wrong, 1, 0)
        return
    outside = float(np.mean((a < 0) | (a >= subject.space.num_values)))
    yield Measured("share of symbols outside the alphabet", outside, 0)
    yield Measured("samples are the same for another key", (a == b).all(), 0)
    if outside or subject.space.num_states > MAX_STATES:
        return
    if subject.estimate is Estimate.ELBO:  # no probabilities: see `bounds`
        return
    figures = list(_followed(subject, enumerated(subject)))
    if subject.estimate is Estimate.WEIGHT and 1 < max(m.severity for m in figures) < 3:
        # As in `normalisation`: of heavy tails a few draws know little.
        figures = list(_followed(subject, enumerated(subject, again=True)))
    yield from figures


def bounds(subject: Subject) -> Iterator[Measured]:
    """ELBO <= IW-k <= log P(x), monotone in k, with P(x) from the sampler's counts.

    All three are means over x drawn from the model. log P(x) comes from another path
    than the bounds, so that it can refute them.
    """
    if subject.estimate is Estimate.EXACT or subject.sample is None:
        return
    drawn = enumerated(subject)
    drawn = drawn.reshape(-1, *drawn.shape[2:])  # [draws, C, S]
    frequency = _counts(subject) / NUM_SAMPLES
    weight = frequency / len(frequency)  # of the mean over conditions

    def mean(k):  # the bound with k draws, and its standard error
        groups = len(drawn) // k
        grouped = drawn[: groups * k].reshape(k, groups, *drawn.shape[1:])
        bound = np.logaddexp.reduce(grouped, axis=0) - math.log(k)
        spread = bound.std(0, ddof=1) / math.sqrt(groups)
        return (bound.mean(0) * weight).sum(), math.sqrt(((spread * weight) ** 2).sum())

    ks = (1,) if subject.estimate is Estimate.ELBO else (1, 4, 16)
    names = [f"IW-{k}" if k > 1 else "ELBO" for k in ks] + ["log P"]
    steps = [mean(k) for k in ks]
    steps.append((float((weight * np.log(np.maximum(frequency, 1e-99))).sum()), 0.0))
    chain = " <= ".join(f"{n} {v:.3f}" for n, (v, _) in zip(names, steps, strict=True))
    for i in range(len(ks)):
        (low, low_error), (high, high_error) = steps[i], steps[i + 1]
        limit = 4 * math.hypot(low_error, high_error) + 2e-3
        what = f"{chain}: {names[i]} above {names[i + 1]} by"
        yield Measured(what, low - high, limit)


def symbols(subject: Subject) -> Iterator[Measured]:
    """The conditional pmfs sum to one, whatever a network says.

    Autoregressive: of one symbol, with parameters of size 1, 10 and 100. Latent: of x
    given z, over all states, with z of size 1, 3 and 10.
    """
    rng = np.random.default_rng(5)
    space = subject.space
    if subject.has("conditionals"):
        x, cond = space.batch(1)
        shape = subject.call("conditionals", x.reshape(1, -1), cond).shape
        values = np.repeat(np.arange(space.num_values)[:, None], 64, axis=1)
        for size in (1, 10, 100):
            one = np.float32(size * rng.standard_normal((1, 64, shape[-1])))
            params = jnp.asarray(np.repeat(one, len(values), axis=0))
            log_p = subject.call("symbol_log_prob", params, values)  # [K, 64]
            off = np.abs(np.exp(np.asarray(log_p, np.float64)).sum(0) - 1).max()
            what = f"{space.num_values} probabilities of a symbol, parameters of "
            yield Measured(f"{what}size {size}: sum off by", off, 1e-4)
    elif subject.has("generate", "log_px_z") and space.num_states <= MAX_STATES:
        states, cond, _ = _grid(subject)
        states = states[: space.num_states]
        cond = None if cond is None else cond[: len(states)]
        for size in (1, 3, 10):
            draw = size * rng.standard_normal((1, subject.model.latent_dims))
            z = jnp.asarray(np.repeat(draw, len(states), 0), jnp.float32)
            log_px_z = subject.call(
                "log_px_z", subject.call("generate", z, cond), states
            )
            off = abs(np.exp(np.asarray(log_px_z, np.float64)).sum() - 1)
            what = f"{len(states)} probabilities p(x|z), z of size {size}"
            yield Measured(f"{what}: sum off by", off, 1e-4)
