"""The contract beside the audit (test_audit.py): what every model must fulfil."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import models
from experiments.models import REFERENCES
from gm import checkpoint
from gm import model as gm_model
from gm.audit.subject import (
    SPACES,
    Space,
    fitting,
    jitted_log_prob,
    parameters,
    quick_jit,
    space_for,
    training_data,
)
from gm.autoregressive import AutoregressiveModel
from gm.data.dataset import ArraySplit, Dataset
from gm.errors import InputError
from gm.fields import fields
from gm.model import load_model, log_prob

SLOW = pytest.mark.slow
SPECS = (
    "sequence",
    *(pytest.param(s, marks=SLOW) for s in ("colour", "vector", "image", "binary")),
)


def tiny(module):
    """The fields for tests; a file of one's own need not have them."""
    return getattr(module, "TINY", {})


def make(name, spec):
    """A tiny model with parameters that are neither initial nor special."""
    module = load_model(name)
    space = space_for(module.Model, spec)
    given = dict(shape=space.shape, num_values=space.num_values, cond=space.cond)
    model = module.Model(**given, **tiny(module))
    return model, parameters(model, "perturbed")


def batch(model, size=4):
    return Space(model.shape, model.num_values, model.cond).batch(size)


def test_a_model_of_a_paper_says_how_it_differs(model_name):
    """The first paragraph of a file names the paper."""
    doc = load_model(model_name).__doc__
    if re.search(r"\d{4}", doc.split("\n\n")[0]):
        assert re.search(r"^Deviations from the papers?: ", doc, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "field", "value", "wanted"),
    [
        ("maf", "depth", 0, "give 1 or more"),
        ("nice", "depth", 0, "give 1 or more"),
        ("flowpp", "num_mixtures", 0, "give 1 or more"),
        ("flowpp", "couplings", (4, 2), "give three numbers"),
        ("vae", "num_latents", 0, "give 1 or more"),
        ("transformer", "num_heads", 0, "give 1 or more"),
        ("tarflow", "num_heads", 0, "give 1 or more"),
        ("vqvae", "prior_heads", 0, "give 1 or more"),
        ("vqvae", "commitment", -1.0, "give 0 or more"),
        ("vdvae", "depth", 0, "give 1 or more"),
        ("vdvae", "bottleneck", 0.001, "no unit of width = 64; give 0.016 or more"),
        ("vdvae", "init_scale", -1.0, "give a number above 0"),
        ("tarflow", "log_scale_bound", 0.0, "give a number above 0"),
        ("mixture", "spread", 0.0, "give a number above 0"),
        ("gtm", "spread", -1.0, "give a number above 0"),
        ("glow", "num_scales", 0, "give 1 or more"),
        ("flowpp", "couplings", (0, 2, 0), r"\(4,\) would have no coupling"),
        ("vdm", "gamma_max", 1000.0, "give -80 to 80"),
        ("vdm", "gamma_min", -1000.0, "give -80 to 80"),
    ],
)
def test_a_field_of_which_no_model_can_be_made(name, field, value, wanted):
    with pytest.raises(InputError, match=f"^--set={field}=.*: .*{wanted}"):
        gm_model.build(name, described((4,)), {field: value})


def described(shape):
    x = np.zeros((1, *shape), np.uint8)
    return Dataset("x", shape, 3, "dim", *[ArraySplit(x)] * 3)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            "transformer",
            dict(num_heads=3),
            "--set=width=128 --set=num_heads=3: give a width that is a multiple of "
            "2 num_heads, 6",
        ),
        (
            "jet",
            dict(num_heads=7),
            "--set=width=128 --set=num_heads=7: give a width that is a multiple of "
            "num_heads, 7",
        ),
        (
            "vqvae",
            dict(prior_width=30),
            "--set=prior_width=30 --set=prior_heads=4: give a prior_width that is a "
            "multiple of 2 prior_heads, 8",
        ),
        (
            "multiscale",
            dict(base_model="transformer", base_fields="width=30"),
            "--set=base_model=transformer --set=base_fields=width=30: width=30 "
            "num_heads=4: give a width that is a multiple of 2 num_heads, 8",
        ),
        (
            "vdm",
            dict(gamma_min=10.0),
            "--set=gamma_min=10 --set=gamma_max=5: give gamma_min below gamma_max",
        ),
        # Of several zeros those are named that cannot be.
        (
            "idf",
            dict(num_couplings=0, num_mixtures=0),
            "--set=num_mixtures=0: IntegerDiscreteFlow cannot be built so; give 1 or "
            "more",
        ),
        (
            "made_ensemble",
            dict(width=0, mask_seed=0),
            "--set=width=0: MADEEnsemble cannot be built so; give 1 or more",
        ),
    ],
)
def test_fields_are_named_with_their_values(name, fields, said):
    with pytest.raises(InputError) as raised:
        gm_model.build(name, described((4,)), fields)
    assert str(raised.value) == said


@SLOW
def test_jit_equals_eager(model_name):
    model, params = make(model_name, "vector")
    args = (model, params, *batch(model), jax.random.key(2))
    np.testing.assert_allclose(jitted_log_prob(*args)[0], log_prob(*args)[0], rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_every_parameter_gets_a_gradient(model_name, spec):
    model, params = make(model_name, spec)
    x, cond = batch(model, 16)

    def loss(params):
        return log_prob(model, params, x, cond, jax.random.key(2))[0].mean()

    gradient = quick_jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, f"{name} gets no gradient"


@SLOW
def test_an_untrained_model_of_bits_gets_a_gradient(model_name):
    """Where its logits are all zero, they must not be a place without a slope."""
    module = load_model(model_name)
    model = module.Model(shape=(4, 4, 1), num_values=2, **tiny(module))
    x, _ = batch(model)

    def loss(params):
        return log_prob(model, params, x, None, jax.random.key(2))[0].mean()

    gradient = quick_jit(jax.grad(loss))(parameters(model, "initial"))
    assert optax.tree.norm(gradient) > 0.1


def test_training_lowers_the_bits(model_name):
    """Forty steps on four noisy patterns, as the audit takes them."""
    model, _ = make(model_name, "pixels")
    x, cond = training_data(SPACES["pixels"])
    nats = [
        -jitted_log_prob(model, parameters(model, kind), x, cond, jax.random.key(2))[0]
        for kind in ("initial", "trained")
    ]
    assert nats[1].mean() < nats[0].mean() - 0.1


@pytest.mark.case(1)
def test_trained_twice_from_a_seed_the_parameters_are_equal(model_name):
    fit = fitting(make(model_name, "pixels")[0])
    assert checkpoint.state_digest(fit()) == checkpoint.state_digest(fit())


def test_saved_and_restored_parameters_give_the_same_number(model_name, tmp_path):
    model, params = make(model_name, "sequence")
    x, cond = batch(model)
    key = jax.random.key(2)
    before = jitted_log_prob(model, params, x, cond, key)[0]
    store = checkpoint.Checkpoints(tmp_path / "store")
    store.save(1, {"params": params}, {})
    store.wait()
    _, tree, _ = store.restore(jax.eval_shape(lambda: {"params": params}))
    store.close()
    after = jitted_log_prob(model, tree["params"], x, cond, key)[0]
    np.testing.assert_array_equal(before, after)


def test_condition_is_required(model_name):
    model, params = make(model_name, "sequence")
    if not model.takes_cond:
        pytest.skip(f"{model_name} takes no condition")
    x, _ = batch(model)
    key = jax.random.key(2)
    with pytest.raises(ValueError, match="needs its condition"):
        log_prob(model, params, x, None, key)


def test_bfloat16_network_keeps_a_float32_likelihood(model_name):
    model, params = make(model_name, "pixels")
    low = model.clone(precision="bfloat16")
    x, _ = batch(model)
    a = jitted_log_prob(model, params, x, None, jax.random.key(2))[0]
    b = jitted_log_prob(low, params, x, None, jax.random.key(2))[0]
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0.03)
    grad = jax.grad(lambda p: log_prob(low, p, x, None, jax.random.key(2))[0].sum())
    grads = jax.eval_shape(grad, params)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.model}-{r.count}")
def test_parameters_are_as_many_as_the_reference_has(reference):
    assert abs(reference.ours() / reference.count - 1) <= reference.tolerance


def test_a_small_difference_from_a_reference_is_shown(monkeypatch):
    near = dataclasses.replace(REFERENCES[0], count=785, tolerance=2e-3)
    far = dataclasses.replace(near, tolerance=1e-4)
    monkeypatch.setattr(models, "REFERENCES", (near, far))
    _, lines, good = models.references()
    difference = "-1 (-0.13%)"
    assert [line[5] for line in lines] == [difference, f"{difference}, MORE THAN 0.01%"]
    assert not good


def test_prefix_is_held(model_name):
    model, params = make(model_name, "sequence")
    if not isinstance(model, AutoregressiveModel):
        pytest.skip("not autoregressive")
    prefix = jnp.asarray([[1, 2], [2, 0]])[np.arange(20) % 2]

    def draw(params):
        rngs, args = {"sample": jax.random.key(0)}, (20, jnp.arange(20) % 3)
        return model.apply(
            {"params": params}, *args, prefix=prefix, rngs=rngs, method="sample"
        )

    x = quick_jit(draw)(params)
    np.testing.assert_array_equal(x[:, :2], prefix)
    assert (x[:, 2:] != x[0, 2:]).any()


def test_module_is_hashable_and_fields_are_its_config(model_name):
    module = load_model(model_name)
    model = module.Model(shape=(8, 8, 1), num_values=4, **tiny(module))
    assert hash(model) == hash(model.clone())
    assert not {"shape", "num_values", "cond"} & set(fields(type(model)))
