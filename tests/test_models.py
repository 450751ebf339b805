"""The contract: what every model must fulfil, whatever its family."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import checkpoint
from gm import model as gm_model
from gm.autoregressive import AutoregressiveModel
from gm.config import TrainConfig
from gm.data.dataset import ArraySplit
from gm.evaluate import evaluate_nats, example_log_prob
from gm.flow import FlowModel
from gm.model import init_params, load_model, log_prob
from gm.spec import CondSpec, Estimate
from gm.train import init_state, make_optimizer, train_step

CLASSES = CondSpec("class", 3)
REALS = CondSpec("real", 2, ("a", "b"), (0.0, -1.0), (1.0, 5.0))
# name: shape, number of values, condition
SPECS = {
    "image": ((8, 8, 1), 4, None),
    "colour": ((4, 4, 3), 256, CLASSES),
    "vector": ((6,), 3, REALS),
    "binary": ((9,), 2, None),
}


@functools.cache
def make(name, spec):
    """A tiny model with parameters that are neither initial nor special."""
    module = load_model(name)
    shape, num_values, cond = SPECS[spec] if isinstance(spec, str) else spec
    model = module.Model(shape=shape, num_values=num_values, cond=cond, **module.TINY)
    params = init_params(model, jax.random.key(0))
    # Zero-initialised layers hide leaks and dead parameters.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return model, jax.tree.unflatten(tree, leaves)


def batch(model, size=4, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.integers(0, model.num_values, (size, *model.shape)), jnp.int32)
    if model.cond is None:
        return x, None
    if model.cond.kind == "class":
        return x, jnp.asarray(rng.integers(0, model.cond.size, size), jnp.int32)
    return x, jnp.asarray(rng.random((size, model.cond.size)), jnp.float32)


@functools.cache
def jitted():
    return jax.jit(log_prob, static_argnames=("model", "train"))


@pytest.mark.parametrize("spec", SPECS)
def test_log_prob_is_finite_nats_and_the_sum_of_its_terms(model_name, spec):
    model, params = make(model_name, spec)
    log_px, terms = jitted()(model, params, *batch(model), jax.random.key(2))
    assert log_px.shape == (4,)
    assert log_px.dtype == jnp.float32
    assert np.isfinite(log_px).all()
    total = sum(terms.values())
    np.testing.assert_allclose(total, log_px, rtol=1e-5, atol=1e-3)
    assert isinstance(model.estimate, Estimate)


def test_jit_equals_eager(model_name):
    model, params = make(model_name, "vector")
    args = (model, params, *batch(model), jax.random.key(2))
    np.testing.assert_allclose(jitted()(*args)[0], log_prob(*args)[0], rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_every_parameter_gets_a_gradient(model_name, spec):
    model, params = make(model_name, spec)
    x, cond = batch(model, 16)

    @jax.jit
    def grad(params):
        def loss(p):
            return log_prob(model, p, x, cond, jax.random.key(2))[0].mean()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(grad(params)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, f"{name} gets no gradient"


@pytest.mark.parametrize("spec", SPECS)
def test_value_does_not_depend_on_neighbours(model_name, spec):
    model, params = make(model_name, spec)
    x, cond = batch(model)
    others = batch(model, seed=1)[0].at[0].set(x[0])
    key = jax.random.key(2)
    a = jitted()(model, params, x, cond, key, train=False)[0][0]
    b = jitted()(model, params, others, cond, key, train=False)[0][0]
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_evaluated_value_does_not_depend_on_batch_size(model_name):
    model, params = make(model_name, "vector")
    x, cond = batch(model, 10)
    split = ArraySplit(np.asarray(x), np.asarray(cond))
    order = np.arange(10)
    a, _ = evaluate_nats(model, params, split, order, batch_size=3)
    b, _ = evaluate_nats(model, params, split, order, batch_size=10)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert len(np.unique(a)) == 10  # every example has its own value


@pytest.mark.parametrize("spec", SPECS)
def test_samples_are_in_range_and_keys_matter(model_name, spec):
    model, params = make(model_name, spec)
    _, cond = batch(model)

    @jax.jit
    def draw(key):
        rngs = {"sample": key}
        return model.apply({"params": params}, 4, cond, rngs=rngs, method="sample")

    a, b = draw(jax.random.key(0)), draw(jax.random.key(1))
    assert a.shape == (4, *model.shape)
    assert jnp.issubdtype(a.dtype, jnp.integer)
    assert a.min() >= 0
    assert a.max() < model.num_values
    assert (a != b).any()
    assert len(np.unique(a, axis=0)) > 1
    np.testing.assert_array_equal(a, draw(jax.random.key(0)))


@pytest.mark.parametrize("shape", [(2, 2, 1), (4,)])
@pytest.mark.parametrize("cond_spec", [None, CLASSES, REALS])
def test_probabilities_sum_to_one(model_name, shape, cond_spec):
    """Two-sided for EXACT (1e-5) and WEIGHT (4 standard errors); <= 1 for ELBO."""
    values = 3
    model, params = make(model_name, (shape, values, cond_spec))
    states = np.asarray(list(itertools.product(range(values), repeat=math.prod(shape))))
    x = jnp.asarray(states.reshape(-1, *shape), jnp.int32)  # 81 states
    cond = None
    if cond_spec is not None:
        one = batch(model, 1)[1]
        cond = jnp.repeat(one, len(x), axis=0)
    if model.estimate is Estimate.EXACT:
        log_px, _ = log_prob(model, params, x, cond, jax.random.key(0))
        total = np.exp(np.asarray(log_px, np.float64)).sum()
        assert abs(total - 1) < 1e-5
        return

    @jax.jit
    def sums(key):  # one draw of the noise: sum over the states
        log_px, _ = log_prob(model, params, x, cond, key)
        return jnp.exp(log_px).sum(), log_px

    draws = 2000
    totals, log_px = jax.lax.map(sums, jax.random.split(jax.random.key(3), draws))
    totals = np.asarray(totals, np.float64)
    error = totals.std(ddof=1) / math.sqrt(draws)
    if model.estimate is Estimate.WEIGHT:
        assert error < 0.05, "the check has no power"
        assert abs(totals.mean() - 1) < 4 * error
    else:
        bound = np.exp(np.asarray(log_px, np.float64).mean(0)).sum()
        assert bound <= 1 + 4 * error


def test_fifty_steps_lower_the_bits(model_name):
    module = load_model(model_name)
    model = module.Model(shape=(4, 4, 1), num_values=4, **module.TINY)
    config = TrainConfig(num_steps=50, learning_rate=1e-2, warmup_steps=5)
    optimizer = make_optimizer(config)
    state = init_state(model, optimizer, 0)
    pattern = np.indices((4, 4)).sum(0)[..., None] % 4
    rng = np.random.default_rng(0)
    x = (pattern + rng.integers(0, 2, (64, 4, 4, 1))) % 4
    data = (jnp.asarray(x, jnp.int32), None)
    step = jax.jit(functools.partial(train_step, model, optimizer, config))
    bpd = []
    for _ in range(50):
        state, metrics = step(state, data)
        bpd.append(float(metrics["train/bpd"]))
    assert np.mean(bpd[-5:]) < np.mean(bpd[:5]) - 0.05
    assert int(state.skipped) == 0


def test_saved_and_restored_parameters_give_the_same_number(model_name, tmp_path):
    model, params = make(model_name, "vector")
    x, cond = batch(model)
    key = jax.random.key(2)
    before = jitted()(model, params, x, cond, key)[0]
    store = checkpoint.Checkpoints(tmp_path / "store")
    store.save(1, {"params": params}, {})
    store.wait()
    _, tree, _ = store.restore(jax.eval_shape(lambda: {"params": params}))
    store.close()
    after = jitted()(model, tree["params"], x, cond, key)[0]
    np.testing.assert_array_equal(before, after)


def test_condition_matters_and_is_required(model_name):
    model, params = make(model_name, "vector")
    x, cond = batch(model)
    key = jax.random.key(2)
    a = jitted()(model, params, x, cond, key)[0]
    b = jitted()(model, params, x, cond + 0.3, key)[0]
    assert (np.abs(a - b) > 1e-6).all()
    with pytest.raises(ValueError, match="needs its condition"):
        log_prob(model, params, x, None, key)


def test_importance_weights_tighten_the_bound(model_name):
    model, params = make(model_name, "vector")
    if model.estimate is not Estimate.WEIGHT:
        pytest.skip("only estimates that are weights have importance samples")
    x, cond = batch(model, 32)
    args = (model, params, x, cond, jnp.arange(32), jax.random.key(0))
    one = np.mean(
        [example_log_prob(*args[:-1], jax.random.key(k))[0] for k in range(8)]
    )
    many = float(example_log_prob(*args, 64)[0].mean())
    assert many > one


def test_bfloat16_network_keeps_a_float32_likelihood(model_name):
    module = load_model(model_name)
    model, params = make(model_name, "image")
    low = module.Model(
        shape=(8, 8, 1), num_values=4, precision="bfloat16", **module.TINY
    )
    x, _ = batch(model)
    a = jitted()(model, params, x, None, jax.random.key(2))[0]
    b = jitted()(low, params, x, None, jax.random.key(2))[0]
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0.03)
    grads = jax.grad(lambda p: log_prob(low, p, x, None, jax.random.key(2))[0].sum())
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads(params)))


# Autoregressive models.


def autoregressive(model_name, spec):
    model, params = make(model_name, spec)
    if not isinstance(model, AutoregressiveModel):
        pytest.skip("not autoregressive")
    return model, params


@pytest.mark.parametrize("spec", SPECS)
def test_conditionals_are_causal_and_use_what_they_may(model_name, spec):
    model, params = autoregressive(model_name, spec)
    x, cond = batch(model, 2)
    dims = model.num_dims
    x = x.reshape(2, dims)

    @jax.jit
    def conditionals(x):
        return model.apply({"params": params}, x, cond, method="conditionals")

    before = conditionals(x)
    used = 0
    positions = range(dims) if dims <= 16 else range(0, dims, 17)
    for d in positions:
        changed = x.at[:, d].set((x[:, d] + 1) % model.num_values)
        difference = np.abs(conditionals(changed) - before).max(axis=(0, 2))
        assert (difference[: d + 1] == 0).all(), f"output <= {d} sees symbol {d}"
        used += (difference[d + 1 :] > 0).sum()
    allowed = sum(dims - 1 - d for d in positions)
    assert used >= 0.95 * allowed, "a blind spot"


@pytest.mark.parametrize("spec", SPECS)
def test_cached_step_equals_the_parallel_pass(model_name, spec):
    model, params = autoregressive(model_name, spec)
    x, cond = batch(model, 2)
    x = x.reshape(2, -1)
    bound = {"params": params}

    @jax.jit
    def steps(x):
        def body(carry, index):
            cache, previous = carry
            cache, out = model.apply(bound, cache, index, previous, method="step")
            return (cache, x[:, index]), out

        # A first symbol that is not zero: at index 0 it has to be ignored.
        start = (model.apply(bound, 2, cond, method="init_cache"), x[:, 0] * 0 + 1)
        return jax.lax.scan(body, start, jnp.arange(model.num_dims))[1]

    parallel = jax.jit(lambda x: model.apply(bound, x, cond, method="conditionals"))(x)
    np.testing.assert_allclose(steps(x).swapaxes(0, 1), parallel, rtol=1e-3, atol=2e-4)


def test_the_first_symbol_depends_on_the_condition(model_name):
    model, params = autoregressive(model_name, "vector")
    x, cond = batch(model, 2)
    bound = {"params": params}
    a, b = (
        model.apply(bound, x, c, method="conditionals")[:, 0]
        for c in (cond, cond + 0.3)
    )
    assert (np.abs(a - b).max(axis=-1) > 0).all()


def test_cached_samples_equal_full_recomputation(model_name):
    model, params = autoregressive(model_name, "image")
    bound = {"params": params}
    key = jax.random.key(5)
    x = model.apply(bound, 3, rngs={"sample": key}, method="sample").reshape(3, -1)

    @jax.jit
    def symbol(x, d, key):  # the same noise as the cached sampler, the whole network
        params = model.apply(bound, x, method="conditionals")[:, d]
        logits = model.apply(bound, params, method="symbol_logits")
        return jax.random.categorical(jax.random.fold_in(key, d), logits)

    key = model.apply({}, rngs={"sample": key}, method=lambda m: m.make_rng("sample"))
    full = jnp.zeros((3, model.num_dims), jnp.int32)
    for d in range(model.num_dims):
        full = full.at[:, d].set(symbol(full, d, key))
    np.testing.assert_array_equal(x, full)


def test_made_has_the_parameters_of_the_paper():
    """784-500 on binary pixels: 784 500 + 500 + 500 784 + 784."""
    model = load_model("made").Model(shape=(28, 28, 1), num_values=2, width=500)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)) == 785_284


def test_prefix_is_held(model_name):
    model, params = autoregressive(model_name, "image")
    prefix = jnp.asarray([[1, 2, 3], [3, 0, 1]])
    x = model.apply(
        {"params": params},
        2,
        prefix=prefix,
        rngs={"sample": jax.random.key(0)},
        method="sample",
    ).reshape(2, -1)
    np.testing.assert_array_equal(x[:, :3], prefix)
    assert (x[:, 3:] != 1).any()


# Flows.


def flow(model_name, spec):
    model, params = make(model_name, spec)
    if not isinstance(model, FlowModel):
        pytest.skip("not a flow")
    return model, {"params": params}


@pytest.mark.parametrize(
    "spec", [((8, 8, 1), 4, None), "vector", ((6, 6, 2), 4, CLASSES)]
)
@pytest.mark.parametrize("scale", [0.9, 0.999])  # inside, and at the edge of the data
def test_inverse_undoes_forward(model_name, spec, scale):
    model, bound = flow(model_name, spec)
    _, cond = batch(model)
    y = jax.random.uniform(jax.random.key(0), (4, *model.shape), minval=-1, maxval=1)
    y = y * scale
    z, _ = model.apply(bound, y, cond, method="forward")
    assert z.shape == (4, model.num_dims)
    back = model.apply(bound, z, cond, method="inverse")
    np.testing.assert_allclose(back, y, atol=1e-4)


@pytest.mark.parametrize("spec", ["image", "vector"])
def test_log_det_equals_autodiff(model_name, spec):
    model, bound = flow(model_name, spec)
    _, cond = batch(model, 1)
    y = jax.random.uniform(jax.random.key(0), (1, *model.shape), minval=-1, maxval=1)

    def forward(y):
        return model.apply(bound, y[None], cond, method="forward")[0][0]

    jacobian = jax.jacrev(forward)(y[0]).reshape(model.num_dims, model.num_dims)
    _, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    _, log_det = model.apply(bound, y, cond, method="forward")
    np.testing.assert_allclose(log_det[0], expected, rtol=1e-4, atol=1e-3)


def test_module_is_hashable_and_fields_are_its_config(model_name):
    model, _ = make(model_name, "image")
    assert hash(model) == hash(model.clone())
    assert not {"shape", "num_values", "cond"} & set(gm_model.fields(type(model)))
