"""Equal layers in a loop, or one by one: the same numbers, gradients and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.audit.subject import parameters, quick_jit
from gm.config import TrainConfig
from gm.model import init_params, load_model, log_prob
from gm.nn import attention
from gm.train import make_optimizer

KEY = jax.random.key(0)
MODELS = [
    ("transformer", dict(width=8, depth=3, num_heads=2)),
    ("tarflow", dict(width=8, depth=3, num_blocks=2, num_heads=2, patch_size=1)),
    ("jet", dict(width=8, depth=3, num_couplings=2, num_heads=2, patch_size=1)),
]


def make(name, **fields):
    return load_model(name).Model(shape=(2, 4, 1), num_values=5, **fields)


def value_and_gradient(model, params, **options):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 5, (3, *model.shape)))

    def loss(params):
        return log_prob(model, params, x, None, KEY, **options)[0].mean()

    return quick_jit(jax.value_and_grad(loss))(params)


def unlooped(params, axis):
    """The parameters of looped layers, at `axis`, as those of layers one by one."""
    found = {}
    for name, inner in params.items():
        if name.startswith(("blocks", "Looped")) and list(inner) == ["block"]:
            prefix = "blocks" if name == "blocks" else "Block"
            for i in range(jax.tree.leaves(inner)[0].shape[axis]):
                found[f"{prefix}_{i}"] = jax.tree.map(
                    lambda p, i=i: jnp.take(p, i, axis), inner["block"]
                )
        else:
            found[name] = unlooped(inner, axis) if isinstance(inner, dict) else inner
    return found


@pytest.mark.parametrize(("name", "fields"), MODELS)
def test_a_loop_over_layers_changes_no_number(name, fields):
    one_by_one = make(name, **fields, scan_layers=False)
    looped = make(name, **fields, scan_layers=True)
    axis = 0 if name == "transformer" else 1  # flows are loops over their layers, too
    params = parameters(looped, "perturbed")
    apart = unlooped(params, axis)
    shapes = jax.tree.map(jnp.shape, parameters(one_by_one, "initial"))
    assert jax.tree.map(jnp.shape, apart) == shapes
    value, grads = value_and_gradient(looped, params)
    found = value, unlooped(grads, axis)
    expected = value_and_gradient(one_by_one, apart)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
        found,
        expected,
    )


@pytest.mark.parametrize("name", ["transformer", "tarflow"])
def test_looped_layers_draw_what_layers_one_by_one_draw(name):
    fields = dict(MODELS)[name]
    one_by_one = make(name, **fields, scan_layers=False)
    looped = make(name, **fields, scan_layers=True)
    params = parameters(looped, "perturbed")
    apart = unlooped(params, 0 if name == "transformer" else 1)

    def draw(model, params):
        options = {"rngs": {"sample": KEY}, "method": "sample"}
        return jax.jit(lambda p: model.apply({"params": p}, 20, **options))(params)

    same = draw(looped, params) == draw(one_by_one, apart)
    assert same.mean() > 0.98  # but for what rounding decides


def test_looped_layers_are_initialised_differently_and_their_gains_do_not_decay():
    model = make("transformer", width=8, depth=3, num_heads=2, scan_layers=True)
    params = parameters(model, "initial")
    kernel = params["blocks"]["block"]["attention"]["qkv"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])
    config = TrainConfig(weight_decay=0.5, warmup_steps=0)
    optimizer = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, ok=True)
    assert np.any(updates["blocks"]["block"]["attention"]["qkv"]["kernel"])
    assert not np.any(updates["blocks"]["block"]["attention"]["norm_q"]["scale"])


def test_layers_are_looped_from_eight_on():
    """Below, the program is what it was; from 8 on it holds one layer, not 8."""

    def products(depth, scan_layers):
        fields = dict(width=8, depth=depth, num_heads=2, scan_layers=scan_layers)
        model = make("transformer", **fields)
        params = jax.eval_shape(lambda: init_params(model, KEY))
        x = jax.ShapeDtypeStruct((2, *model.shape), jnp.int32)
        lowered = jax.jit(lambda p, x: log_prob(model, p, x, None, KEY)).lower(
            params, x
        )
        return lowered.as_text().count("stablehlo.dot_general")

    assert products(7, None) == products(7, False)
    assert products(8, None) == products(8, True) == products(9, True)
    assert products(8, False) - products(7, False) == 7  # of a layer


def test_looped_layers_drop_out_differently():
    fields = dict(width=8, depth=3, num_heads=2, dropout_rate=0.5, scan_layers=True)
    model = make("transformer", **fields)
    params = parameters(model, "perturbed")
    kept, _ = value_and_gradient(model, params)
    dropped, grads = value_and_gradient(model, params, train=True)
    assert kept != dropped
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "name",
    ["glow", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tarflow", "jet"))],
)
def test_recomputing_layers_changes_no_number(name):
    fields = load_model(name).TINY
    plain, saving = make(name, **fields), make(name, **fields, remat=True)
    params = parameters(plain, "perturbed")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
        value_and_gradient(saving, params),
        value_and_gradient(plain, params),
    )


@pytest.mark.parametrize("causal", [True, False])
def test_on_a_gpu_attention_goes_to_cudnn(monkeypatch, causal):
    """In half precision, with the same meaning: here XLA stands in for cuDNN."""
    q, k, v = jax.random.normal(KEY, (3, 2, 4, 6, 8), jnp.bfloat16)
    expected = attention.attend_to_all(q, k, v, causal)
    asked, plain = [], jax.nn.dot_product_attention

    def stand_in(*args, implementation, **options):
        asked.append(implementation)
        return plain(*args, **options)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    found = attention.attend_to_all(q, k, v, causal)
    assert asked == ["cudnn"]
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(expected, np.float32), atol=0.05
    )
    attention.attend_to_all(*(t.astype(jnp.float32) for t in (q, k, v)), causal)
    assert asked == ["cudnn"]  # it has no kernel for float32
