"""Bounds from weights: from both sides of the exact value."""

import itertools

import jax
import numpy as np
import pytest

from gm import bounds, evaluate
from gm.data.dataset import ArraySplit, Dataset
from gm.errors import InputError
from gm.model import init_params, load_model


def log_weights(rng, sigma, shape):
    """Log-normal weights of mean one."""
    return sigma * rng.standard_normal(shape) - sigma**2 / 2


def test_logmeanexp_has_no_overflow():
    x = np.asarray([[1000.0, -1000.0], [1000.0, -1000.0]])
    np.testing.assert_allclose(bounds.logmeanexp(x), [1000, -1000])


def test_k_curve_falls_towards_the_exact_value():
    rng = np.random.default_rng(0)
    curve = bounds.k_curve(log_weights(rng, 1.0, (512, 200)), 512)
    assert [point["k"] for point in curve] == [2**i for i in range(10)]
    nats = [point["nats"] for point in curve]
    assert all(a > b for a, b in itertools.pairwise(nats))
    assert nats[0] == pytest.approx(0.5, abs=0.01)  # the ELBO is sigma^2 / 2 off
    assert 0 < nats[-1] < 0.005
    assert curve[0]["standard_error_nats"] < curve[0]["nats"]
    assert [p["k"] for p in bounds.k_curve(log_weights(rng, 1.0, (6, 9)), 6)] == [
        *(1, 2, 4, 6)
    ]


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [1, 16])
def test_interval_encloses_the_exact_value(sigma, k):
    hits, widths, seeds = 0, [], 100
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        shape = (bounds.GROUPS * k, 100)
        # A draw of the posterior: its weight is size-biased, so its mean is shifted.
        own = sigma * (rng.standard_normal(100) + sigma) - sigma**2 / 2
        shortfall = bounds.own_sample_shortfall(own, log_weights(rng, sigma, shape), k)
        found = bounds.interval(log_weights(rng, sigma, shape), k, shortfall)
        hits += found["low"] <= 0 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert hits >= 0.95 * seeds
    assert np.mean(widths) < 2.5 * sigma**2


def tiny(name, seed):
    """A small model of (2, 2, 1) images with parameters that are not the initial ones."""
    module = load_model(name)
    model = module.Model(shape=(2, 2, 1), num_values=3, **module.TINY)
    params = init_params(model, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, leaves)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "realnvp"])
def test_interval_encloses_the_enumerated_value_of_a_model(name):
    x = np.array(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2, 1)
    split = ArraySplit(x)
    dataset = Dataset("all", (2, 2, 1), 3, "dim", split, split, split)
    hits, widths = 0, []
    for seed in range(20):
        model, params = tiny(name, seed)
        everything, _ = evaluate.evaluate_log_weights(
            model, params, split, np.arange(81), draws=1500, batch_size=81, seed=99
        )
        # From 1500 weights each: an error of about 0.003 nats, for which 0.005 is left.
        exact = -bounds.logmeanexp(everything).mean()
        row, _ = evaluate.evaluate(
            model,
            params,
            dataset,
            "test",
            num_importance_samples=32,
            interval=True,
            k_curve=True,
            batch_size=81,
            seed=seed,
        )
        low, high = (row["interval_nats"][side] for side in ("low", "high"))
        assert high >= row["k_curve"][-1]["nats"] - 0.2
        hits += low - 0.005 <= exact <= high + 0.005
        widths.append(high - low)
    assert hits == 20
    assert np.mean(widths) < 0.3  # of about 4.4 nats: it says something


def test_curves_and_intervals_of_what_has_no_weights_are_refused():
    model, params = tiny("made", 0)
    split = ArraySplit(np.zeros((2, 2, 2, 1), np.uint8))
    dataset = Dataset("t", (2, 2, 1), 3, "dim", split, split, split)
    for flag in ("k_curve", "interval"):
        with pytest.raises(InputError, match=f"--{flag}: MADE gives exact"):
            evaluate.evaluate(model, params, dataset, "test", **{flag: True})
    learned = load_model("realnvp").Model(
        shape=(2, 2, 1), num_values=3, dequantizer="variational"
    )
    with pytest.raises(InputError, match="--interval: with dequantizer=variational"):
        evaluate.evaluate(learned, None, dataset, "test", interval=True)
    model, params = tiny("vae", 0)
    with pytest.raises(InputError, match="--k_curve"):
        evaluate.evaluate(model, params, dataset, "test", k_curve=True)
