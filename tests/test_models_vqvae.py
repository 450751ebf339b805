"""Facts of the vector-quantised autoencoder: its bound, its codes, its training losses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gm.audit.subject import Space, parameters
from gm.likelihood import sum_dims
from gm.model import log_prob
from gm.models.vqvae import TINY, VQVAE, unit

GIVEN = dict(shape=(3,), num_values=3) | TINY | dict(codebook_size=4)


def made():
    model = VQVAE(**GIVEN)
    return model, parameters(model, "perturbed")


def test_bound_is_one_term_of_the_sum_over_all_codes():
    """And the sum, log P(x) = log sum_z p(x|z) p(z), is that of a pmf."""
    model, params = made()
    x = jnp.asarray(Space((3,), 3).states())
    codes = np.asarray(list(itertools.product(range(4), repeat=2)))
    codes = jnp.asarray(codes.reshape(-1, *model.code_shape))

    @jax.jit
    def joint(params):  # [16 codes, 27 x]
        def look(model):
            log_pz = model.prior.log_prob(codes)[0]
            table = model.decode(unit(model.codebook)[codes])  # [16, 3, P]
            log_px_z = [model.symbol_log_prob(table, x_i[None]).sum(-1) for x_i in x]
            return log_pz[:, None] + jnp.stack(log_px_z, axis=1)

        return model.apply({"params": params}, method=look)

    log_pxz = joint(params)
    log_px = jax.nn.logsumexp(log_pxz, axis=0)
    np.testing.assert_allclose(np.exp(log_px).sum(), 1, rtol=1e-5)
    bound, terms = log_prob(model, params, x, None, jax.random.key(0))
    assert set(terms) == {"reconstruction", "prior"}
    assert (bound < log_px).all()
    off = np.abs(log_pxz - bound).min(axis=0)
    np.testing.assert_allclose(off, 0, atol=1e-4)


def test_a_dense_one_of_images_is_that_of_their_pixels_in_a_row():
    image = VQVAE((4, 4, 1), 3, dense=True, **TINY)
    row = VQVAE((16,), 3, **TINY)
    params = parameters(image, "perturbed")
    shapes = [
        jax.tree.map(jnp.shape, p) for p in (params, parameters(row, "perturbed"))
    ]
    assert shapes[0] == shapes[1]
    assert image.code_shape == (1, 1, 2)
    x, key = (
        jax.random.randint(jax.random.key(1), (5, 4, 4, 1), 0, 3),
        jax.random.key(0),
    )
    found = log_prob(image, params, x, None, key)[0]
    expected = log_prob(row, params, x.reshape(5, 16), None, key)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_codes_are_the_nearest():
    model, params = made()
    x = jnp.asarray(Space((3,), 3).states())
    v, codes = model.apply({"params": params}, x, method="encode")
    distance = ((v[..., None, :] - unit(params["codebook"])) ** 2).sum(-1)
    np.testing.assert_array_equal(codes, distance.argmin(-1))
    assert len(np.unique(codes)) > 1


def test_training_adds_the_losses_of_the_codebook():
    model, params = made()
    x, key = jnp.asarray([[0, 2, 1]]), jax.random.key(0)
    bound = log_prob(model, params, x, None, key)[0]
    value, terms = log_prob(model, params, x, None, key, train=True)
    v, codes = model.apply({"params": params}, x, method="encode")
    squared = sum_dims((v - unit(params["codebook"])[codes]) ** 2)
    np.testing.assert_allclose(terms["codebook"], -squared, rtol=1e-5)
    np.testing.assert_allclose(terms["commitment"], -0.25 * squared, rtol=1e-5)
    np.testing.assert_allclose(value, bound - 1.25 * squared, rtol=1e-5)


def test_grid_of_codes_is_that_of_the_paper():
    """8 x 8 x 10 on CIFAR-10 (its section 4.1)."""
    model = VQVAE(shape=(32, 32, 3), num_values=256, max_halvings=2, num_codes=10)
    assert model.code_shape == (8, 8, 10)
