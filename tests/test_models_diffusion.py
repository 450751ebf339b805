"""Facts of diffusion models: the two forms of the bound, its terms, the schedule."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.audit.subject import parameters
from gm.errors import InputError
from gm.likelihood import categorical_log_prob, normal_log_prob, scale
from gm.model import init_params, log_prob
from gm.models.vdm import VDM
from gm.nn.diffusion import NoiseSchedule

GIVEN = dict(shape=(3,), num_values=4, width=8, depth=1)


@functools.cache
def tiny(**changes):
    model = VDM(**GIVEN | dict(num_eval_times=1) | changes)
    return model, parameters(VDM(**GIVEN), "perturbed")


def expected_loss(num_timesteps, points):
    """Mean diffusion loss of one x over a grid of t and 256 eps that all t share."""
    model, params = tiny(num_timesteps=num_timesteps)
    x = jnp.asarray([[0, 3, 1]])
    eps = jax.random.normal(jax.random.key(0), (256, 3))
    v = jnp.tile(scale(x, 4), (256, 1))

    @jax.jit
    def at(t):
        c = jnp.zeros((1, model.width))
        t = jnp.full((256,), t)
        loss = model.apply(
            {"params": params}, v, t, eps, c, False, method="diffusion_loss"
        )
        return loss.mean()

    grid = (jnp.arange(points) + 0.5) / points
    return float(jax.lax.map(at, grid).mean())


def test_discrete_time_converges_to_continuous_time():
    limit = expected_loss(0, 2000)
    off = [abs(expected_loss(count, count) / limit - 1) for count in (25, 100, 1600)]
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.01


@pytest.mark.parametrize("num_eval_times", [1, 4])
def test_mean_bound_is_the_quadrature(num_eval_times):
    model, params = tiny(num_eval_times=num_eval_times)
    x = jnp.tile(jnp.asarray([[0, 3, 1]]), (20000, 1))
    value, terms = jax.jit(log_prob, static_argnames="model")(
        model, params, x, None, jax.random.key(1)
    )
    loss = np.asarray(terms["diffusion"], np.float64)
    error = loss.std() / math.sqrt(len(loss))
    # The grid shares 256 eps, of a relative error of about 1/sqrt(3 * 256).
    assert abs(loss.mean() + expected_loss(0, 2000)) < 4 * error + 0.1 * abs(
        loss.mean()
    )
    np.testing.assert_allclose(value, sum(terms.values()), rtol=1e-5)


def test_reconstruction_is_a_pmf_in_proportion_to_normals():
    model, params = tiny()
    z_0 = 0.7 * jax.random.normal(jax.random.key(0), (5, 3))
    logits = model.apply({"params": params}, z_0, method="symbol_logits")
    values = jnp.arange(4)
    every = jnp.broadcast_to(values, (5, 3, 4))
    repeated = jnp.repeat(logits[..., None, :], 4, axis=-2)
    log_px = categorical_log_prob(repeated, every)  # [5, 3, K]
    np.testing.assert_allclose(jnp.exp(log_px).sum(-1), 1, rtol=1e-5)
    gamma = params["schedule"]["start"]
    mean = scale(values, 4) * jnp.sqrt(jax.nn.sigmoid(-gamma))
    normal = normal_log_prob(z_0[..., None], mean, 0.5 * jax.nn.log_sigmoid(gamma))
    expected = jax.nn.log_softmax(normal)
    np.testing.assert_allclose(log_px, expected, rtol=1e-3, atol=1e-3)


def test_prior_term_is_the_kl_of_the_last_latent():
    model, params = tiny()
    x = jnp.asarray([[0, 3, 1]])
    kl = -log_prob(model, params, x, None, jax.random.key(0))[1]["minus_kl"][0]
    schedule = params["schedule"]
    gamma = schedule["start"] + jax.nn.softplus(schedule["span"])
    mean = scale(x, 4) * jnp.sqrt(jax.nn.sigmoid(-gamma))
    log_std = 0.5 * jax.nn.log_sigmoid(gamma)
    z = mean + jnp.exp(log_std) * jax.random.normal(jax.random.key(2), (200_000, 3))
    ratio = (normal_log_prob(z, mean, log_std) - normal_log_prob(z)).sum(-1)
    error = ratio.std() / math.sqrt(len(ratio))
    assert abs(ratio.mean() - kl) < 4 * error


@pytest.mark.parametrize("units", [0, 16])
def test_schedule_rises_between_its_ends(units):
    schedule = NoiseSchedule(-13.3, 5.0, units)
    t = jnp.linspace(0, 1, 101)
    params = schedule.init(jax.random.key(0), t)
    gamma = schedule.apply(params, t)
    assert (np.diff(gamma) > 0).all()
    np.testing.assert_allclose([gamma[0], gamma[-1]], [-13.3, 5.0], rtol=1e-5)


def test_times_are_uniform_and_spread():
    model, params = tiny(num_eval_times=4)

    def times(key, train):
        return model.apply({"params": params}, key, 8, train, method="_times")

    keys = jax.random.split(jax.random.key(0), 4000)
    for train in (False, True):
        t = jax.vmap(lambda key, train=train: times(key, train))(keys)  # [4000, num, 8]
        assert (t >= 0).all()
        assert (t < 1).all()
        for moment in (1, 2):  # of every example and draw
            mean = (t**moment).mean(0)
            np.testing.assert_allclose(mean, 1 / (moment + 1), atol=0.03)
        even = jnp.sort(t[0], axis=1 if train else 0)
        gaps = jnp.diff(even, axis=1 if train else 0)
        np.testing.assert_allclose(gaps, 1 / (8 if train else 4), atol=1e-5)


def test_remat_changes_no_value():
    model, params = tiny()
    again, _ = tiny(remat=True)
    x = jnp.asarray([[0, 3, 1]])
    a, b = (log_prob(m, params, x, None, jax.random.key(0))[0] for m in (model, again))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_initial_sigma_is_a_sixth_of_the_distance_of_values():
    """Which is the paper's choice at 256 values."""
    assert abs(VDM(shape=(1,), num_values=256).gamma_low + 13.3) < 0.05


def test_number_of_parameters_is_that_of_the_authors_code():
    """31M: google-research/vdm has 30,578,181, of which 512 weigh a constant zero.

    That is its unused condition, a 129th input of the layer after the time's embedding.
    """
    model = VDM(shape=(32, 32, 3), num_values=256, width=128, depth=32)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    count = sum(math.prod(s.shape) for s in jax.tree.leaves(shapes))
    assert count == 30_578_181 - 512


@pytest.mark.parametrize(
    "field", ["num_timesteps", "num_eval_times", "num_sample_steps"]
)
def test_numbers_of_times_that_make_no_bound_are_refused(field):
    least = 0 if field == "num_timesteps" else 1
    model = VDM(**GIVEN, **{field: least - 1})
    with pytest.raises(InputError, match=f"{field}.*{least} or more"):
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def test_a_wide_schedule_starts_at_its_ends():
    """log(e^width - 1) is the width beyond where e^width is finite."""
    for width in (1.0, 160.0):
        params = NoiseSchedule(-80.0, width - 80, 0).init(
            jax.random.key(0), jnp.ones(())
        )
        ends = NoiseSchedule(-80.0, width - 80, 0).apply(params, jnp.arange(2.0))
        np.testing.assert_allclose(ends, [-80, width - 80], rtol=1e-5)


def test_a_schedule_that_falls_is_refused():
    model = VDM(**GIVEN, gamma_min=1.0, gamma_max=0.0)
    with pytest.raises(InputError, match="gamma_max"):
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
