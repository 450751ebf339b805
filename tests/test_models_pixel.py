"""Models of pixels in raster order: sizes of the papers, blind spots, heads and caches."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import likelihood
from gm.audit.subject import quick_jit
from gm.errors import InputError
from gm.model import init_params, load_model
from gm.nn import convolution


def build(name, shape, num_values=2, **fields):
    return load_model(name).Model(shape=shape, num_values=num_values, **fields)


@pytest.mark.parametrize(
    ("name", "shape", "num_values", "fields", "expected"),
    [
        # Counted in public implementations; scripts/parity compares with them.
        ("pixelcnn", (28, 28, 1), 2, {}, 115_361),
        ("pixelcnnpp", (28, 28, 1), 256, {}, 897_500),
        ("pixelcnnpp", (32, 32, 3), 256, dict(width=160, num_resnets=5), 53_659_080),
    ],
)
def test_parameters_are_those_of_the_reference(
    name, shape, num_values, fields, expected
):
    model = build(name, shape, num_values, **fields)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) == expected


def test_one_stack_has_the_blind_spot_that_no_depth_fills():
    """Right of the pixel in the rows above, beyond one column a row for each 3 x 3."""
    fields = dict(gated=False, first_kernel_size=3)
    for depth in (8, 20):
        seen = build("pixelcnn", (9, 9, 1), depth=depth, **fields).receptive_field
        row, column = np.indices((9, 9))
        up, side = 8 - row, column - 2
        expected = (up > 0) & (side <= up) | (up == 0) & (side < 0)
        pixel = 8 * 9 + 2  # the last row, third column
        np.testing.assert_array_equal(seen[pixel].reshape(9, 9), expected)


def test_two_stacks_have_none():
    seen = build("pixelcnn", (9, 9, 1), depth=8).receptive_field
    np.testing.assert_array_equal(seen, np.tri(81, k=-1, dtype=bool))


def test_shallow_network_says_how_far_it_sees():
    seen = build("pixelcnn", (1, 9, 1), depth=1, first_kernel_size=3).receptive_field
    # Two taps of the first layer, then two, of which one is the pixel's own features.
    assert seen.sum(axis=1).max() == 3


@pytest.mark.parametrize("name", ["kernel_size", "first_kernel_size"])
def test_even_kernels_are_refused(name):
    model = build("pixelcnn", (4, 4, 1), **{name: 4})
    with pytest.raises(InputError, match="odd"):
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_symbols_of_a_mixture_multiply_to_the_pixel(scale):
    x = jnp.asarray(list(itertools.product((0, 100, 255), repeat=3)), jnp.int32)
    params = scale * jax.random.normal(jax.random.key(0), (len(x), 30))
    symbols = likelihood.discretized_logistic_mixture_symbols(params, x, 256)
    log_p = likelihood.discretized_logistic_mixture_log_prob(symbols, x[..., None], 256)
    joint = likelihood.discretized_logistic_mixture_log_prob(params, x, 256)
    np.testing.assert_allclose(log_p.sum(-1), joint, rtol=1e-4, atol=1e-3)


CACHED = [
    # Three scales, and an odd size, which has one.
    pytest.param("pixelcnnpp", (8, 8, 2), dict(width=4), marks=pytest.mark.slow),
    pytest.param("pixelcnnpp", (3, 5, 1), dict(width=4), marks=pytest.mark.slow),
    ("pixelcnnpp", (4, 4, 1), dict(width=4)),  # two scales
    ("pixelcnn", (4, 3, 2), dict(width=4, depth=2, gated=False)),
]


@pytest.mark.parametrize(("name", "shape", "fields"), CACHED)
def test_cached_steps_equal_the_parallel_pass(name, shape, fields):
    model = build(name, shape, 5, one_hot=False, num_mixtures=2, **fields)
    leaves, tree = jax.tree.flatten(init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(1)
    noisy = [v + 0.2 * rng.standard_normal(v.shape).astype(np.float32) for v in leaves]
    bound = {"params": jax.tree.unflatten(tree, noisy)}
    x = jnp.asarray(rng.integers(0, 5, (3, model.num_dims)), jnp.int32)

    @quick_jit
    def both(x):
        def body(carry, index):
            cache, previous = carry
            cache, out = model.apply(bound, cache, index, previous, method="step")
            return (cache, x[:, index]), out

        start = model.apply(bound, 3, method="init_cache"), x[:, 0] * 0 + 1
        steps = jax.lax.scan(body, start, jnp.arange(model.num_dims))[1]
        full = model.apply(bound, x, method="conditionals")
        return steps.swapaxes(0, 1), full

    steps, full = both(x)
    np.testing.assert_allclose(steps, full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pads", [((2, 0), (1, 1)), ((0, 0), (3, 0)), ((1, 2), (0, 4))])
def test_gradients_of_any_padding(pads):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 5, 6, 3))
    kernel = jax.random.normal(keys[1], (2, 3, 3, 4))

    def grads(conv):
        return jax.grad(lambda x, k: (conv(x, k, pads) ** 2).sum(), (0, 1))(x, kernel)

    for a, b in zip(
        grads(convolution.padded_conv), grads(convolution._conv), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
