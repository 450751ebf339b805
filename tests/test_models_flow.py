"""What is special to one flow: closed forms, parameter counts, its maps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gm.audit.subject import parameters, quick_jit
from gm.errors import InputError
from gm.flow import PREPROCESSING
from gm.model import init_params, load_model, log_prob
from gm.models import glow, maf, spline
from gm.nn.coupling import plan
from gm.nn.invertible import ActNorm, Repeated, fixed_point, rotation
from gm.spec import CondSpec


def build(name, shape, num_values=4, **fields):
    module = load_model(name)
    return module.Model(shape=shape, num_values=num_values, **{**module.TINY, **fields})


def noisy(params, size=0.3):
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    leaves = [
        v + size * rng.standard_normal(v.shape).astype(np.float32) for v in leaves
    ]
    return jax.tree.unflatten(tree, leaves)


@pytest.mark.parametrize(
    ("name", "shape", "fields", "expected"),
    [
        # rosinality/glow-pytorch, both kinds of coupling
        ("glow", (32, 32, 3), dict(width=64, depth=4, num_scales=3), 411_840),
        (
            "glow",
            (32, 32, 3),
            dict(width=64, depth=4, num_scales=3, affine=False),
            314_736,
        ),
        # 4 (392 1000 + 1000 + 4 (1000 1000 + 1000) + 1000 392 + 392) + 784
        ("nice", (28, 28, 1), dict(width=1000, depth=5, num_couplings=4), 19_158_352),
    ],
)
def test_parameters_are_those_of_the_reference(name, shape, fields, expected):
    model = build(name, shape, **fields)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize("name", ["realnvp", "spline"])
def test_halved_once_as_in_the_paper_it_can_be_inverted(name):
    model = build(name, (8, 8, 1), max_halvings=1, num_couplings=1)
    once = ["checkerboard", "squeeze", "channel", "checkerboard"]
    assert plan(model.shape, 1) == once != plan(model.shape)
    params = parameters(model, "perturbed")

    def there_and_back(y):
        z, _ = model.apply({"params": params}, y, method="forward")
        return model.apply({"params": params}, z, method="inverse")

    y = jnp.asarray(np.random.default_rng(0).uniform(-0.9, 0.9, (2, 8, 8, 1)))
    np.testing.assert_allclose(quick_jit(there_and_back)(y), y, atol=1e-4)
    assert "couplings_3" not in params


def test_idf_halved_once_codes_every_entry_once():
    model = build("idf", (8, 8, 1), max_halvings=1)
    steps = model.coding_steps()
    assert [kind for kind, _ in steps] == ["shift"] * 3 * model.num_couplings + ["base"]
    np.testing.assert_array_equal(np.sort(steps[-1][1]), np.arange(64))


@pytest.mark.parametrize("name", ["nice", "maf", "spline"])
def test_untrained_is_uniform(name):
    model = build(name, (5,))
    params = init_params(model, jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 5)))
    nats = log_prob(model, params, x, None, jax.random.key(0))[0]
    np.testing.assert_allclose(nats, -5 * math.log(4), rtol=1e-4)


# What flows share.


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_has_its_slope_and_inverse(name):
    found = PREPROCESSING[name]
    y = jnp.linspace(-0.999, 0.999, 101)
    h, log_slope = found.forward(y)
    slope = jax.vmap(jax.grad(lambda v: found.forward(v)[0]))(y)
    np.testing.assert_allclose(log_slope, jnp.log(slope), atol=1e-3)
    np.testing.assert_allclose(found.inverse(h), y, atol=1e-5)
    quantiles = found.quantile((np.asarray(y, np.float64) + 1) / 2)
    np.testing.assert_allclose(h, quantiles, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["normal", "logistic"])
@pytest.mark.parametrize("sharpness", [1, 30])
def test_a_density_that_peaks_where_the_range_ends_has_no_more_than_its_mass(
    name, sharpness
):
    """Of a logistic density around the first quantile half is inside, and no more."""
    found = PREPROCESSING[name]
    edges = (
        2
        * np.concatenate([np.linspace(0, 1e-5, 2001)[:-1], np.geomspace(1e-5, 1, 9999)])
        - 1
    )
    y = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    h, log_slope = (np.asarray(a, np.float64) for a in found.forward(y))
    first = float(found.forward(jnp.float32(-1))[0])
    density = sharpness * scipy.stats.logistic.pdf(sharpness * (h - first))
    total = (density * np.exp(log_slope) * np.diff(edges)).sum()
    assert total == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("preprocessing", "expected"), [("logistic", 1.0), ("identity", math.tanh(0.5))]
)
def test_identity_leaves_mass_outside_the_data(preprocessing, expected):
    """A standard logistic has tanh(1/2) of its mass in [-1, 1)."""
    model = build("nice", (1,), 256, preprocessing=preprocessing)
    params = init_params(model, jax.random.key(0))
    x = jnp.arange(256)[:, None]
    nats = log_prob(model, params, x, None, jax.random.key(0))[0]
    assert np.exp(np.asarray(nats, np.float64)).sum() == pytest.approx(
        expected, abs=1e-3
    )


def test_wrong_fields_are_refused():
    for name, fields in (
        ("glow", dict(preprocessing="logit")),
        ("spline", dict(preprocessing="normal")),
        ("nice", dict(prior="cauchy")),
    ):
        with pytest.raises(InputError, match=f"--set={next(iter(fields))}="):
            init_params(build(name, (4,), **fields), jax.random.key(0))


def test_repeated_layers_run_in_order_and_back():
    step = glow.Step(4, True, 0.0, jnp.dtype("float32"), parent=None)
    repeated = Repeated(step, 3)
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.standard_normal((2, 2, 2, 4)), jnp.float32)
    cond = jnp.zeros((1, 4))
    params = noisy(repeated.init(jax.random.key(0), h, cond)["params"])
    z, log_det = repeated.apply({"params": params}, h, cond)
    expected, total = h, 0
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], params["layer"])
        expected, change = step.apply({"params": one}, expected, cond)
        total += change
    np.testing.assert_allclose(z, expected, atol=1e-4)
    np.testing.assert_allclose(log_det, total, atol=1e-4)
    back, minus = repeated.apply({"params": params}, z, cond, inverse=True)
    np.testing.assert_allclose(back, h, atol=1e-4)
    np.testing.assert_allclose(minus, -log_det, atol=1e-3)


def test_actnorm_starts_as_inputs_of_a_mean_square_need():
    layer = ActNorm(mean_square=4.0, shifted=False)
    h = jnp.ones((2, 3))
    params = layer.init(jax.random.key(0), h, None)
    z, log_det = layer.apply(params, h, None)
    np.testing.assert_allclose(z, h / 2, rtol=1e-6)
    np.testing.assert_allclose(log_det, -3 * math.log(2), rtol=1e-6)
    assert list(params["params"]) == ["log_gain"]


# Glow.


@pytest.mark.parametrize("channels", [1, 2, 12])
def test_glow_convolutions_start_as_a_rotation(channels):
    p, lower, upper, log_s, sign = rotation(channels)
    eye = np.eye(channels)
    matrix = p @ (lower + eye) @ (upper + np.diag(sign * np.exp(log_s)))
    np.testing.assert_allclose(matrix @ matrix.T, eye, atol=1e-5)


def test_glow_zero_convolution_pads_with_ones():
    layer = glow.ZeroConv(3, 3, jnp.dtype("float32"))
    h = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5, 2)), jnp.float32)
    params = noisy(layer.init(jax.random.key(0), h))
    kernel, bias, log_scale = (
        params["params"][n] for n in ("kernel", "bias", "log_scale")
    )
    padded = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
    out = jax.lax.conv_general_dilated(
        padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = (out + bias) * jnp.exp(3 * log_scale)
    np.testing.assert_allclose(layer.apply(params, h), expected, rtol=1e-4, atol=1e-5)


# MAF.


def test_maf_layer_is_autoregressive():
    """Output d, before the reversal, depends on inputs <= d, and on its own linearly."""
    layer = maf.MaskedAffine(5, 16, 2, 1, 0.0, jnp.dtype("float32"))
    h = jnp.asarray(np.random.default_rng(0).standard_normal(5), jnp.float32)
    cond = jnp.zeros((1, 16))
    params = noisy(layer.init(jax.random.key(0), h[None], cond))

    def forward(h):
        return layer.apply(params, h[None], cond)[0][0, ::-1]

    jacobian = np.asarray(jax.jacrev(forward)(h))
    assert (np.triu(jacobian, 1) == 0).all()
    assert (np.abs(jacobian[np.tril_indices(5)]) > 0).all()
    assert (np.diag(jacobian) > 0).all()


@pytest.mark.parametrize("name", ["maf", "tarflow"])
@pytest.mark.parametrize("fields", [{}, dict(depth=2)])
def test_all_entries_at_once_invert_as_one_by_one_does(name, fields):
    """Jacobi against the cached loop, and both against the forward pass."""
    fields = load_model(name).TINY | fields
    given = dict(shape=(3, 4, 2), num_values=4, cond=CondSpec("class", 3))
    model = load_model(name).Model(**given, **fields)
    bound = {"params": parameters(model, "perturbed")}
    z = jax.random.normal(jax.random.key(0), (5, 24))
    cond = jnp.arange(5) % 3

    def inverse(model):
        return quick_jit(lambda z: model.apply(bound, z, cond, method="inverse"))(z)

    by_one, at_once = inverse(model), inverse(model.clone(inversion="jacobi"))
    np.testing.assert_allclose(at_once, by_one, atol=1e-4)
    back, _ = model.apply(bound, at_once, cond, method="forward")
    np.testing.assert_allclose(back, z, atol=1e-2)
    with pytest.raises(InputError, match="inversion=newton"):
        jax.eval_shape(
            lambda: init_params(model.clone(inversion="newton"), jax.random.key(0))
        )


def test_fixed_point_stops_when_nothing_moves():
    """Of a map whose entries need the one before, and of one that overflows at first."""
    steps = []

    def update(h, slope):
        jax.debug.callback(lambda: steps.append(1))
        before = jnp.pad(h[:, :-1], ((0, 0), (1, 0)))
        return 1 + slope * jnp.tanh(before)

    h = fixed_point(lambda h: update(h, 0.1), jnp.zeros((2, 50)), 50)
    jax.effects_barrier()
    assert len(steps) < 12
    np.testing.assert_allclose(h, update(h, 0.1), atol=1e-4)

    def wild(h):  # exp of exp of ...: infinite until the entries before are right
        before = jnp.pad(h[:, :-1], ((0, 0), (1, 0)))
        return jnp.where(before > 5, jnp.exp(before), 1.0)

    h = fixed_point(wild, jnp.full((1, 9), 1e3), 9)
    np.testing.assert_array_equal(h, 1)


# Spline.


@pytest.mark.parametrize("size", [0.0, 1.0, 10.0])
def test_spline_is_a_monotone_map_of_the_interval(size):
    rng = np.random.default_rng(0)
    h = jnp.linspace(-1, 1, 401)
    params = jnp.asarray(size * rng.standard_normal(3 * 6 + 1), jnp.float32)
    params = jnp.broadcast_to(params, (401, 19))
    z, log_slope = spline.rational_quadratic(h, params)
    assert (np.diff(z) > -1e-6).all()
    np.testing.assert_allclose([z[0], z[-1]], [-1, 1], atol=1e-6)
    if size == 0:
        np.testing.assert_allclose(z, h, atol=1e-6)
    back, minus = spline.rational_quadratic(z, params, inverse=True)
    # Where the map is flat, rounding of z alone moves h by more.
    flat = np.exp(-np.asarray(log_slope))
    assert (np.abs(back - h) <= 1e-5 + 1e-6 * flat).all()
    if size < 10:
        np.testing.assert_allclose(minus, -log_slope, atol=1e-2)
    slope = jax.vmap(jax.grad(lambda v, p: spline.rational_quadratic(v, p)[0]))(
        h[1:-1], params[1:-1]
    )
    np.testing.assert_allclose(
        log_slope[1:-1], jnp.log(slope), atol=1e-3 if size < 10 else 0.05
    )


def test_glow_refuses_what_it_cannot_couple():
    model = glow.Model(shape=(5, 7, 1), num_values=4, **glow.TINY)
    with pytest.raises(InputError, match="no channels to couple"):
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


@pytest.mark.parametrize("num_bins", [0, 2000])
def test_spline_refuses_bins_that_leave_no_room(num_bins):
    model = spline.Model(shape=(4,), num_values=4, num_bins=num_bins)
    with pytest.raises(InputError, match="num_bins"):
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


@pytest.mark.parametrize(("rest", "side"), [(0.3, 1), (-0.3, -1)])
def test_idf_gradient_is_the_step_to_the_integer_beside(rest, side):
    """And modulo K: of z = K - 1 the one above is 0."""
    model = build("idf", (4,))
    params = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 6)), jnp.float32)
    z = jnp.arange(4.0)[None]
    slope = jax.grad(lambda z: model._log_base(params, z, rest).sum())(z)
    log_p = np.diag(model._log_pmf(params, z.T * jnp.ones(4)))
    beside = np.diag(model._log_pmf(params, (z.T + side) * jnp.ones(4)))
    np.testing.assert_allclose(slope[0], side * (beside - log_p), rtol=1e-5)
