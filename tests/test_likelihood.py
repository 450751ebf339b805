"""Every number against brute force."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gm import likelihood


def test_bits_per_dim_of_the_uniform_distribution():
    assert float(likelihood.bits_per_dim(10 * math.log(8), 10)) == pytest.approx(3)
    assert likelihood.bits(2.5 * math.log(2)) == pytest.approx(2.5)


@pytest.mark.parametrize("num_values", [2, 17, 256])
@pytest.mark.parametrize(
    ("mean", "log_scale"), [(0.1, -2), (0.0, -7), (-1.0, -7), (5, 1), (-30, -3), (1, 5)]
)
def test_discretized_logistic_sums_to_one_and_is_exact(num_values, mean, log_scale):
    x = jnp.arange(num_values)
    log_px = likelihood.discretized_logistic_log_prob(
        jnp.full(x.shape, float(mean)),
        jnp.full(x.shape, float(log_scale)),
        x,
        num_values,
    )
    log_px = np.asarray(log_px, np.float64)
    assert np.exp(log_px).sum() == pytest.approx(1, abs=1e-5)
    # The reference, in float64, from whichever side keeps its digits.
    centre = 2 * np.arange(num_values) / (num_values - 1) - 1
    scale = np.exp(log_scale)
    hi = (centre + 1 / (num_values - 1) - mean) / scale
    lo = (centre - 1 / (num_values - 1) - mean) / scale
    hi[-1], lo[0] = np.inf, -np.inf
    flip = lo > 0
    hi, lo = np.where(flip, -lo, hi), np.where(flip, -hi, lo)
    with np.errstate(over="ignore"):
        sigmoid_hi, sigmoid_lo = 1 / (1 + np.exp(-hi)), 1 / (1 + np.exp(-lo))
    mass = sigmoid_hi - sigmoid_lo
    seen = mass > 1e-30
    np.testing.assert_allclose(log_px[seen], np.log(mass[seen]), rtol=1e-4, atol=2e-3)


@given(
    mean=st.floats(-50, 50),
    log_scale=st.floats(-7, 7),
    x=st.integers(0, 255),
)
@settings(max_examples=300, deadline=None)
def test_discretized_logistic_and_gradient_are_finite(mean, log_scale, x):
    def value(mean, log_scale):
        return likelihood.discretized_logistic_log_prob(
            mean, log_scale, jnp.asarray(x), 256
        )

    args = (jnp.float32(mean), jnp.float32(log_scale))
    assert np.isfinite(value(*args))
    assert np.isfinite(jax.grad(value, argnums=(0, 1))(*args)).all()


@pytest.mark.parametrize(("channels", "num_values"), [(1, 16), (3, 6)])
def test_mixture_sums_to_one_over_all_colours(channels, num_values):
    size = likelihood.mixture_channels(4, channels)
    assert likelihood.mixture_channels(10, 3) == 100  # as in PixelCNN++
    params = 2 * jax.random.normal(jax.random.key(0), (size,))
    x = jnp.asarray(list(itertools.product(range(num_values), repeat=channels)))
    log_px = likelihood.discretized_logistic_mixture_log_prob(
        jnp.broadcast_to(params, (len(x), size)), x, num_values
    )
    assert np.exp(np.asarray(log_px, np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_mixture_samples_follow_the_mixture():
    params = jax.random.normal(jax.random.key(1), (likelihood.mixture_channels(3, 2),))
    count, num_values = 40_000, 4
    samples = likelihood.discretized_logistic_mixture_sample(
        jax.random.key(2), jnp.broadcast_to(params, (count, len(params))), 2, num_values
    )
    x = jnp.asarray(list(itertools.product(range(num_values), repeat=2)))
    log_px = likelihood.discretized_logistic_mixture_log_prob(
        jnp.broadcast_to(params, (len(x), len(params))), x, num_values
    )
    found = np.bincount(np.asarray(samples) @ [num_values, 1], minlength=16)
    expected = count * np.exp(np.asarray(log_px))
    chi2 = ((found - expected) ** 2 / expected).sum()
    assert chi2 < 45  # 15 degrees of freedom: p < 1e-4 beyond


def test_categorical_and_bernoulli():
    logits = jnp.asarray([0.3, -2.0, 1.0])
    log_px = likelihood.categorical_log_prob(jnp.tile(logits, (3, 1)), jnp.arange(3))
    np.testing.assert_allclose(log_px, jax.nn.log_softmax(logits), rtol=1e-6)
    two = likelihood.bernoulli_log_prob(jnp.asarray([1.5, 1.5]), jnp.asarray([0, 1]))
    assert np.exp(np.asarray(two)).sum() == pytest.approx(1)


def test_gradients_at_zero():
    """Where an untrained network may start: the slopes there are those nearby."""
    zero, x = jnp.zeros(2), jnp.arange(2)

    def bernoulli(v):
        return likelihood.bernoulli_log_prob(v, x).sum()

    def logistic(v):  # the lower edge of the bin of 1 lies at the mean
        return likelihood.discretized_logistic_log_prob(v, v, x, 2).sum()

    for function in (bernoulli, logistic):
        at, beside = jax.grad(function)(zero), jax.grad(function)(zero + 1e-6)
        np.testing.assert_allclose(at, beside, rtol=1e-4)
    np.testing.assert_allclose(jax.grad(bernoulli)(zero), [-0.5, 0.5])


def test_kl_equals_its_monte_carlo_estimate():
    mean, log_std = jnp.asarray(0.7), jnp.asarray(-0.4)
    z = mean + jnp.exp(log_std) * jax.random.normal(jax.random.key(0), (200_000,))
    estimate = likelihood.normal_log_prob(z, mean, log_std)
    estimate -= likelihood.normal_log_prob(z)
    kl = float(likelihood.normal_kl(mean, log_std))
    error = float(estimate.std()) / math.sqrt(len(z))
    assert abs(float(estimate.mean()) - kl) < 4 * error


@pytest.mark.parametrize("num_values", [2, 17, 256])
def test_dequantize_stays_in_its_cell_and_quantize_undoes_it(num_values):
    x = jnp.arange(num_values).repeat(50).reshape(10, -1)
    y, log_volume = likelihood.dequantize(jax.random.key(0), x, num_values)
    assert y.min() >= -1
    assert y.max() <= 1
    np.testing.assert_array_equal(likelihood.quantize(y, num_values), x)
    expected = x.shape[1] * math.log(2 / num_values)
    np.testing.assert_allclose(log_volume, expected, rtol=1e-6)
