"""What is special in tarflow, flowpp, jet and variational dequantisation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.audit import mass, structure
from gm.audit.subject import SPACES, parameters, subject
from gm.codec.lossless import codec_class
from gm.errors import InputError
from gm.model import init_params, log_prob
from gm.models import flowpp, jet, realnvp, tarflow
from gm.spec import CondSpec

KEY = jax.random.key(3)


def num_params(model):
    shapes = jax.eval_shape(lambda: init_params(model, KEY))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_tarflow_has_the_parameters_of_the_reference():
    """ImageNet 64: patches of 2, width 768, 8 blocks of 8 layers."""
    model = tarflow.Model(
        shape=(64, 64, 3),
        num_values=256,
        width=768,
        num_blocks=8,
        depth=8,
        num_heads=12,
    )
    unused = 8 * 768  # a position of the last patch in each block
    assert num_params(model) == 460_142_784 - unused


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        (tarflow, dict(patch_size=2)),
        (tarflow, dict(patch_size=2, volume_preserving=True)),
        (jet, dict(patch_size=2, num_couplings=5)),
        (flowpp, dict(couplings=(1, 2, 1))),
    ],
)
def test_arrangements_have_their_inverse_and_determinant(module, changes):
    settings = tuple((module.TINY | changes).items())
    found = subject(module.Model, settings, "image", "perturbed")
    for check in (structure.inverse, structure.log_det):
        measured = list(check(found))
        assert measured
        assert all(m.passed for m in measured), [str(m) for m in measured]


def test_guidance_of_no_weight_changes_nothing_and_of_some_does():
    space = SPACES["sequence"]
    model = tarflow.Model(
        shape=space.shape,
        num_values=space.num_values,
        cond=dataclasses.replace(space.cond, optional=True),
        **tarflow.TINY,
    )
    params = parameters(model, "perturbed")
    cond = jnp.asarray([0, 1, 2])
    z = jax.random.normal(KEY, (3, 4))

    def inverse(given):
        return model.apply({"params": params}, z, given, method="inverse")

    plain = inverse(cond)
    np.testing.assert_allclose(inverse(tarflow.Guided(cond, 0.0)), plain, atol=1e-6)
    assert np.abs(inverse(tarflow.Guided(cond, 2.0)) - plain).max() > 1e-3
    back, _ = model.apply({"params": params}, plain, cond, method="forward")
    np.testing.assert_allclose(back, z, atol=1e-3)

    def draw(model, cond):
        rngs = {"sample": KEY}
        args = ({"params": params}, 3, cond)
        return model.apply(*args, guidance=1.0, rngs=rngs, method="sample")

    assert draw(model, cond).shape == (3, 4)
    with pytest.raises(InputError, match="cond_drop_rate"):
        draw(model.clone(cond=None), None)


def test_tarflow_refuses_a_single_patch():
    model = tarflow.Model(shape=(2, 2, 1), num_values=4, patch_size=2)
    with pytest.raises(InputError, match="one patch"):
        num_params(model)
    for size in (3, 4):
        with pytest.raises(InputError, match="a power of two"):
            num_params(tarflow.Model(shape=(6, 6, 1), num_values=4, patch_size=size))


def test_bisection_undoes_the_mixture_and_its_slope_is_that_of_autodiff():
    keys = jax.random.split(KEY, 4)
    h = 4 * jax.random.normal(keys[0], (50,))
    log_pi = jax.nn.log_softmax(2 * jax.random.normal(keys[1], (50, 3)))
    mu = 2 * jax.random.normal(keys[2], (50, 3))
    log_s = jax.random.normal(keys[3], (50, 3))
    v, log_slope = flowpp.mixture_logit(h, log_pi, mu, log_s)
    back = flowpp.mixture_logit_inverse(v, log_pi, mu, log_s)
    np.testing.assert_allclose(back, h, atol=1e-4)
    slope = jax.grad(lambda h: flowpp.mixture_logit(h, log_pi, mu, log_s)[0].sum())(h)
    np.testing.assert_allclose(log_slope, jnp.log(slope), atol=1e-3)


def test_untrained_jet_is_uniform():
    model = jet.Model(shape=(4, 4, 1), num_values=16, **jet.TINY)
    x = jax.random.randint(KEY, (5, 4, 4, 1), 0, 16)
    log_px, _ = log_prob(model, init_params(model, KEY), x, None, KEY)
    np.testing.assert_allclose(log_px, -16 * math.log(16), rtol=1e-4)


VARIATIONAL = dict(width=4, depth=1, num_couplings=1, dequantizer="variational")


def test_learned_noise_starts_as_uniform_noise():
    model = realnvp.Model(shape=(4, 4, 1), num_values=16, **VARIATIONAL)
    x = jax.random.randint(KEY, (5, 4, 4, 1), 0, 16)
    _, terms = log_prob(model, init_params(model, KEY), x, None, KEY)
    np.testing.assert_allclose(terms["dequantizer"], 0, atol=1e-4)


@pytest.mark.parametrize(
    ("check", "space", "kind"),
    [
        (mass.normalisation, "sequence", "perturbed"),
        pytest.param(mass.bounds, "pixels", "trained", marks=pytest.mark.slow),
        (mass.sampler, "sequence", "perturbed"),
        (structure.neighbours, "colour", "perturbed"),
    ],
)
def test_learned_noise_leaves_a_distribution(check, space, kind):
    found = subject(realnvp.Model, tuple(VARIATIONAL.items()), space, kind)
    measured = list(check(found))
    assert measured
    assert all(m.passed for m in measured), [str(m) for m in measured]


def test_learned_noise_can_not_be_coded():
    given = dict(shape=(4, 4, 1), num_values=16)
    codec_class(realnvp.Model(**given))
    with pytest.raises(InputError, match="uniform noise"):
        codec_class(realnvp.Model(**given, **VARIATIONAL))
    unknown = realnvp.Model(**given, **(VARIATIONAL | dict(dequantizer="normal")))
    with pytest.raises(InputError, match="uniform or variational"):
        num_params(unknown)
    assert num_params(realnvp.Model(**given, **VARIATIONAL)) > 0


def test_condition_reaches_the_learned_noise():
    spec = CondSpec("class", 3)
    model = realnvp.Model(shape=(6,), num_values=4, cond=spec, **VARIATIONAL)
    params = parameters(model, "perturbed")
    x = jnp.ones((2, 6), jnp.int32)
    a, b = (
        log_prob(model, params, x, jnp.full(2, c), KEY)[1]["dequantizer"]
        for c in (0, 1)
    )
    assert np.abs(a - b).min() > 1e-6
