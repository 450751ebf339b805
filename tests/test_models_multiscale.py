"""The pyramid and the model on it: brute force, odd sizes, windows, what is never seen."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from gm import audit
from gm.audit.subject import parameters, quick_jit
from gm.errors import InputError
from gm.model import init_params, log_prob
from gm.models import multiscale
from gm.nn import pyramid
from gm.spec import CondSpec

KEY = jax.random.key(5)
PIXELCNN = dict(
    base_model="pixelcnn",
    base_fields="width=4,depth=1,first_kernel_size=3,head_width=4",
    base_size=2,
)


def make(shape, num_values, cond=None, **fields):
    fields = multiscale.TINY | fields
    model = multiscale.Model(shape=shape, num_values=num_values, cond=cond, **fields)
    return model, parameters(model, "perturbed")


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 5), (8, 2)])
def test_pyramid_is_a_bijection_of_any_size(size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(1, 9, (2, *size, 3)))
    phases = pyramid.split(x)
    np.testing.assert_array_equal(pyramid.join(phases, size), x)
    np.testing.assert_array_equal(phases[:, :, :, 0], x[:, ::2, ::2])
    inside = pyramid.inside(size)
    assert inside.sum() == math.prod(size)
    np.testing.assert_array_equal(phases[0, ..., 0] > 0, inside)
    # All levels together hold each pixel once.
    held = pyramid.sizes(*size, 1)
    kept = [math.prod(fine) - math.prod(low) for fine, low in itertools.pairwise(held)]
    assert sum(kept) + math.prod(held[-1]) == math.prod(size)


def test_windows_cover_a_level_with_what_lies_around():
    x = jnp.arange(1, 36).reshape(1, 5, 7, 1)
    tile, border = (2, 3), (1, 2)
    count = pyramid.num_windows((5, 7), tile)
    found = pyramid.windows(x, jnp.arange(count)[:, None], tile, border)
    assert found.shape == (9, 1, 4, 7, 1)
    padded = np.pad(np.asarray(x)[0, ..., 0], ((1, 2), (2, 4)))
    for number in range(count):
        top, left = 2 * (number // 3), 3 * (number % 3)
        expected = padded[top : top + 4, left : left + 7]
        np.testing.assert_array_equal(found[number, 0, ..., 0], expected)


@pytest.mark.parametrize(
    ("shape", "num_values", "fields"),
    [
        ((2, 4, 1), 3, dict(tile=1)),
        slow((2, 4, 1), 3, dict(copies=False)),
        slow((3, 2, 1), 4, PIXELCNN),
        ((1, 3, 2), 3, {}),
        slow((3, 1, 2), 3, {}),
        slow((5,), 4, {}),
        slow((2, 1, 1), 40, dict(num_mixtures=2)),
    ],
)
@pytest.mark.parametrize("cond", [slow(None), CondSpec("class", 2)])
def test_probabilities_sum_to_one(shape, num_values, fields, cond):
    model, params = make(shape, num_values, cond, **fields)
    grid = itertools.product(range(num_values), repeat=math.prod(shape))
    x = jnp.asarray(list(grid), jnp.int32).reshape(-1, *shape)
    given = None if cond is None else jnp.ones(len(x), jnp.int32)
    log_px = quick_jit(lambda p: log_prob(model, p, x, given, KEY)[0])(params)
    assert abs(np.exp(np.asarray(log_px, np.float64)).sum() - 1) < 1e-5


@pytest.mark.parametrize("kind", [slow(None), slow("class"), "image"])
def test_windows_of_any_size_give_the_same(kind):
    cond = {
        None: None,
        "class": CondSpec("class", 3),
        "image": CondSpec("image", 80, shape=(10, 8, 1), num_values=3),
    }[kind]
    model, params = make((10, 8, 2), 60, cond, base_size=2)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 60, (3, 10, 8, 2)))
    given = {None: None, "class": jnp.arange(3), "image": x[..., :1] % 3}[kind]
    found = []
    for tile in (1, 3, 99):
        tiled = model.clone(tile=tile)
        terms = quick_jit(lambda p, m=tiled: log_prob(m, p, x, given, KEY)[1])(params)
        found.append({name: terms[name] for name in ("base", "10x8", "5x4", "3x2")})
    for other in found[1:]:
        for name, term in found[0].items():
            np.testing.assert_allclose(term, other[name], rtol=1e-4)


def test_training_estimates_it_from_a_window_of_each_level():
    model, params = make((7, 6, 1), 20)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 7, 6, 1)))
    exact = quick_jit(lambda p: log_prob(model, p, x, None, KEY)[0])(params)

    @quick_jit
    def draws(keys):
        def one(key):
            return log_prob(model, params, x, None, key, train=True)[0]

        return jax.vmap(one)(keys)

    found = np.asarray(draws(jax.random.split(KEY, 2000)), np.float64)
    error = found.std(0) / math.sqrt(len(found))
    assert (error > 0).all()
    assert (abs(found.mean(0) - exact) < 5 * error).all()


def test_a_pixel_is_told_only_of_what_comes_before_it():
    """One symbol after another changes: levels below it and phases before it do not."""
    model, params = make((4, 6, 2), 9)
    refinement = model.make_refinement()
    level = jax.tree.map(lambda p: p[0], params["levels"])
    inside = jnp.ones((1, 6 + 2, 7 + 2, 4), bool)  # a window with its border of 2
    x = np.random.default_rng(0).integers(0, 9, (1, 8, 9, 4, 2))
    told = jnp.zeros((1, 1, 1, 8))

    @quick_jit
    def look(x):
        return refinement.apply(
            {"params": level}, x, inside, told, False, method="log_probs"
        )

    before = look(x)
    assert before.shape == (1, 4, 5, 3, 2)
    seen = 0
    for row, column, phase, channel in np.ndindex(x.shape[1:]):
        changed = x.copy()
        changed[0, row, column, phase, channel] += 1
        moved = np.abs(np.asarray(look(changed % 9) - before))[0] > 1e-6
        after = moved[:, :, max(phase - 1, 0) :].copy()
        assert not moved[:, :, : max(phase - 1, 0)].any()
        if phase:  # in its own phase it moves itself, and the channels after
            own = after[:, :, 0]
            if 2 <= row < 6 and 2 <= column < 7:
                assert not own[row - 2, column - 2, :channel].any()
                own[row - 2, column - 2] = False
            assert not own.any()
        seen += after.any()
    assert seen > 0.9 * x.size / 2


@pytest.mark.parametrize(
    ("shape", "num_values", "fields"),
    [slow((2, 3, 1), 3, {}), ((2, 1, 1), 40, dict(num_mixtures=2)), ((1, 2, 2), 5, {})],
)
def test_samples_follow_the_likelihood(shape, num_values, fields):
    model, params = make(shape, num_values, **fields)

    @quick_jit
    def density(x, cond, key):
        return log_prob(model, params, x, cond, key)[0]

    def sample(key, count, cond):
        rngs = {"sample": key}
        return quick_jit(
            lambda p: model.apply(
                {"params": p}, count, cond, rngs=rngs, method="sample"
            )
        )(params)

    given = dict(shape=shape, num_values=num_values, estimate=model.estimate)
    checks = ["normalisation", "sampler"]
    for verdict in audit.audit_functions(density, sample, **given, checks=checks):
        assert verdict.status == "pass", verdict.figure


def test_samples_of_odd_size_are_in_the_alphabet():
    model, params = make((5, 7, 2), 40, CondSpec("class", 3), base_size=3)
    rngs = {"sample": KEY}
    cond = jnp.arange(6) % 3
    draw = quick_jit(
        lambda p: model.apply({"params": p}, 6, cond, rngs=rngs, method="sample")
    )
    x = np.asarray(draw(params))
    assert x.shape == (6, 5, 7, 2)
    assert x.min() >= 0
    assert x.max() < 40
    assert (x[:3] != x[3:]).any()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(base_model="multiscale"), "a base again"),
        (dict(base_model="pixelcn"), "did you mean pixelcnn"),
        (dict(base_model="made", base_fields="depth=x"), "base_fields=depth=x: .*MADE"),
        (dict(base_size=0), "base_size=0"),
        (dict(tile=0), "tile=0"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(fields, said):
    fields = multiscale.TINY | fields
    model = multiscale.Model(shape=(8, 8, 1), num_values=4, **fields)
    with pytest.raises(InputError, match=said):
        jax.eval_shape(lambda: init_params(model, KEY))


def test_the_estimate_is_that_of_the_base():
    model = multiscale.Model(shape=(16, 16, 1), num_values=4)
    assert model.estimate.value == "exact"
    assert model.clone(base_model="vae").estimate.value == "weight"


@pytest.mark.slow
def test_memory_of_a_training_step_grows_with_the_pixels_at_most():
    """From 64 to 256 pixels a side what XLA sets aside grows less than the image."""
    sizes = []
    for side in (64, 256):
        fields = multiscale.TINY | dict(tile=16, base_size=8)
        model = multiscale.Model(shape=(side, side, 1), num_values=256, **fields)
        params = jax.eval_shape(lambda m=model: init_params(m, KEY))
        x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.uint8)

        def loss(params, x, model=model):
            return log_prob(model, params, x, None, KEY, train=True)[0].sum()

        memory = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
    assert sizes[1] < 16 * sizes[0]
