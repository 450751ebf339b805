"""Which pixel costs how much: the parts add up to what the evaluator gives."""

import jax
import numpy as np
import pytest

from gm import data
from gm.bit_map import bit_map
from gm.data.dataset import ArraySplit
from gm.evaluate import evaluate_nats
from gm.model import build, init_params, load_model


def tiny(name, **settings):
    digits = data.load("digits")
    model = build(name, digits, load_model(name).TINY | settings)
    return model, init_params(model, jax.random.key(0)), ArraySplit(digits.test.x[:23])


@pytest.mark.parametrize("name", ["made", "pixelcnn", "mixture"])
def test_pixels_of_an_autoregressive_model_add_up(name):
    model, params, split = tiny(name)
    found = bit_map(model, params, split, batch_size=10)
    if name == "mixture":  # it does not go symbol by symbol
        assert found is None
        return
    what, pixels = found
    nats, _ = evaluate_nats(model, params, split, np.arange(23))
    assert what == "symbols"
    assert pixels.shape == (8, 8)
    assert pixels.sum() == pytest.approx(nats.mean(), rel=1e-5)


def test_pixels_of_a_decoder_add_up_to_its_reconstruction():
    model, params, split = tiny("vae")
    what, pixels = bit_map(model, params, split, batch_size=10)
    _, terms = evaluate_nats(model, params, split, np.arange(23))
    assert what == "reconstruction"
    # Other noise: near, not equal.
    assert pixels.sum() == pytest.approx(-terms["reconstruction"], rel=0.05)


@pytest.mark.parametrize(
    "name", ["realnvp", pytest.param("vqvae", marks=pytest.mark.slow)]
)
def test_models_that_do_not_tell_pixels_apart(name):
    assert bit_map(*tiny(name)) is None
