"""Facts of single models of the latent-variable family."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from experiments.presets import PRESETS
from gm.codec.lossless import codec_class
from gm.errors import InputError
from gm.model import init_params, log_prob
from gm.models.pixelvae import PixelVAE
from gm.models.vae import VAE
from gm.models.vdvae import VDVAE
from gm.nn.resolutions import SCANNED, default_blocks

SHAPE = dict(shape=(4,), num_values=3)


def num_params(model):
    template = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(template))


def perturbed(model):
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape), params)


def test_importance_weighted_objective_is_the_log_mean_of_the_weights():
    k = 5
    model = VAE(**SHAPE, width=8, num_latents=3, num_train_samples=k)
    params, x = perturbed(model), jnp.array([[0, 1, 2, 0], [2, 2, 1, 1]])
    key = jax.random.key(1)
    objective, terms = log_prob(model, params, x, None, key, train=True)
    np.testing.assert_allclose(sum(terms.values()), objective, rtol=1e-5)
    # The same draws of z, one at a time.
    apply = functools.partial(model.apply, {"params": params})
    mean, log_std = apply(x, method="infer")
    sample_key, _ = jax.random.split(key)
    drawn = apply(rngs={"sample": sample_key}, method=lambda m: m.make_rng("sample"))
    eps = jax.random.normal(drawn, (2 * k, 3)).reshape(2, k, 3)
    log_w = [
        apply(x, mean + jnp.exp(log_std) * eps[:, i], method="log_weight")[0]
        for i in range(k)
    ]
    assert np.ptp(log_w, axis=0).min() > 0.1
    np.testing.assert_allclose(
        objective, logsumexp(jnp.stack(log_w), axis=0) - np.log(k), rtol=1e-5
    )
    # Evaluation is of one draw, as without the objective.
    plain = VAE(**SHAPE, width=8, num_latents=3)
    one, other = (log_prob(m, params, x, None, key)[0] for m in (model, plain))
    np.testing.assert_array_equal(one, other)


def test_importance_weighted_objective_needs_a_draw():
    model = VAE(**SHAPE, width=8, num_train_samples=0)
    with pytest.raises(InputError, match="num_train_samples=0: give 1 or more"):
        init_params(model, jax.random.key(0))


def test_a_dense_vae_of_images_is_that_of_their_pixels_in_a_row():
    image = VAE((8, 8, 1), 2, width=6, num_latents=3, dense=True)
    row = VAE((64,), 2, width=6, num_latents=3)
    params = init_params(image, jax.random.key(0))
    shapes = [
        jax.tree.map(jnp.shape, p)
        for p in (params, init_params(row, jax.random.key(0)))
    ]
    assert shapes[0] == shapes[1]
    x = jax.random.bernoulli(jax.random.key(1), 0.3, (5, 8, 8, 1)).astype(jnp.int32)
    key = jax.random.key(2)
    found = log_prob(image, params, x, None, key)[0]
    expected = log_prob(row, params, x.reshape(5, 64), None, key)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 0])
def test_pixelvae_decoder_sees_the_symbols_before_and_z(depth):
    sizes = dict(width=8, num_latents=2, decoder_width=32, decoder_depth=depth)
    model = PixelVAE(**SHAPE, **sizes)
    params = perturbed(model)

    @jax.jit
    def conditionals(x, z):
        def read(m):
            return m.symbols.conditionals(x, m.generate(z).reshape(len(x), -1))

        return model.apply({"params": params}, method=read)[0]

    x, z = np.zeros((1, 4), np.int32), jnp.zeros((1, 2))
    before = conditionals(x, z)
    for d in range(4):
        changed = x.copy()
        changed[0, d] = 1
        moved = np.abs(conditionals(changed, z) - before).max(-1) > 1e-7
        np.testing.assert_array_equal(moved, np.arange(4) > d)
    assert (np.abs(conditionals(x, z + 1) - before).max(-1) > 1e-7).all()


def test_models_without_a_codec_say_so():
    for cls in (PixelVAE, VDVAE):
        with pytest.raises(InputError, match=f"{cls.__name__} cannot be a codec"):
            codec_class(cls(**SHAPE))


def test_vdvae_has_the_parameters_of_the_reference():
    fields = PRESETS["cifar10/vdvae"]["flags"]["set"]
    model = VDVAE(shape=(32, 32, 3), num_values=256, **fields)
    assert num_params(model) == 39_145_700  # openai/vdvae, hps.py: cifar10


@pytest.mark.slow
def test_vdvae_in_a_loop_is_vdvae_unrolled():
    blocks = dict(
        encoder_blocks=f"4x{SCANNED},4d4", decoder_blocks=f"1,4m1,4x{SCANNED}"
    )
    model = VDVAE(**SHAPE, width=8, num_latents=1, **blocks)
    params = perturbed(model)
    stacked, single = params["up_2_0"], "4," * (SCANNED - 1) + "4"
    blocks = dict(encoder_blocks=single + ",4d4", decoder_blocks="1,4m1," + single)
    unrolled = VDVAE(**SHAPE, width=8, num_latents=1, **blocks)
    flat = {k: v for k, v in params.items() if not k.startswith(("up_2", "down"))}
    for i in range(SCANNED):
        flat[f"up_{i + 2}_0"] = jax.tree.map(lambda a, i=i: a[i], stacked)
        flat[f"down_{i}_0"] = jax.tree.map(lambda a, i=i: a[i], params["down_0_0"])
    flat[f"down_{SCANNED}_0"] = params["down_1_0"]
    x, key = jnp.array([[0, 1, 2, 0], [2, 2, 1, 1]]), jax.random.key(1)
    np.testing.assert_allclose(
        log_prob(model, params, x, None, key)[0],
        log_prob(unrolled, flat, x, None, key)[0],
        rtol=1e-5,
    )


def test_vdvae_log_weight_is_of_the_z_that_it_is_given():
    model = VDVAE(**SHAPE, width=8, num_latents=2, depth=1)
    params, x = perturbed(model), jnp.array([[0, 1, 2, 0], [2, 2, 1, 1]])
    rng = np.random.default_rng(3)
    z = jnp.asarray(rng.standard_normal((2, model.latent_dims)), jnp.float32)
    apply = functools.partial(model.apply, {"params": params})
    log_w, terms = apply(x, z, method="log_weight")
    log_px_z = apply(apply(z, method="generate"), x, method="log_px_z")
    np.testing.assert_allclose(terms["reconstruction"], log_px_z, rtol=1e-5)
    np.testing.assert_allclose(log_w, log_px_z + terms["minus_kl"], rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("encoder_blocks", "8x2,8m4", "'8m4'; give such as"),
        ("encoder_blocks", "16x2,16d2", "encoder_blocks=16x2,16d2: 16 does not follow"),
        ("encoder_blocks", "8d3", "cannot be pooled by 3"),
        ("decoder_blocks", "1x1,8m1,8d2", "'8d2'; give such as"),
        ("decoder_blocks", "1x1,8m4", "8, or what is mixed in there"),
        ("decoder_blocks", "2x1,8m2", "is not at hand"),
        ("decoder_blocks", "1x1", "^--set=decoder_blocks=1x1: ends at resolution 1"),
        ("encoder_blocks", "8", "blocks=8x1 --set=decoder_blocks=1x2,8m1,8x1: 1, or"),
    ],
)
def test_vdvae_refuses_blocks_that_do_not_fit(field, text, says):
    model = VDVAE(shape=(8, 8, 1), num_values=4, **{field: text})
    with pytest.raises(InputError, match=says):
        init_params(model, jax.random.key(0))


def test_vdvae_default_blocks_end_at_one():
    def square(resolution):
        return resolution, resolution

    assert default_blocks(8, 1, square) == ("8d8,1x1", "1x1,8m1")
    assert default_blocks(28, 2, square)[0] == "28x1,28d2,14x1,14d2,7x1,7d7,1x2"


@pytest.mark.parametrize("shape", [(16, 5, 1), (5, 13, 1), (9, 40, 2), (1, 9, 1)])
def test_vdvae_fits_images_that_are_not_square(shape):
    num_params(VDVAE(shape=shape, num_values=3, width=4, depth=1, num_latents=1))
