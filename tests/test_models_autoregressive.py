"""What is special to one model: closed forms, brute force, parameter counts."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

from gm import audit
from gm.audit.subject import parameters
from gm.bounds import logmeanexp
from gm.errors import InputError
from gm.model import init_params, load_model, log_prob
from gm.models import made, transformer
from gm.spec import CondSpec

CLASSES = CondSpec("class", 3)


def make(name, shape, num_values, cond=None, **fields):
    """A model, and parameters of standard deviation 1: (model, {"params": ...})."""
    model = load_model(name).Model(
        shape=shape, num_values=num_values, cond=cond, **fields
    )
    leaves, tree = jax.tree.flatten(init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(1)
    leaves = [jnp.asarray(rng.standard_normal(v.shape), jnp.float32) for v in leaves]
    return model, {"params": jax.tree.unflatten(tree, leaves)}


def states(num_values, dims):
    grid = list(itertools.product(range(num_values), repeat=dims))
    return jnp.asarray(grid, jnp.int32)


def nats(model, bound, x, cond=None, **options):
    return log_prob(model, bound["params"], x, cond, jax.random.key(0), **options)[0]


def test_made_without_hidden_layers_is_logistic_regression():
    """FVSBN: logit of x_d = b_d + sum_{j<d} W_jd v_j, with v = 2x - 1."""
    model, bound = make("made", (6,), 2, depth=0)
    head = bound["params"]["head"]
    weights, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    x = np.asarray(states(2, 6))
    log_px = np.zeros(len(x))
    for d in range(6):
        logit = bias[d] + (2 * x[:, :d] - 1) @ weights[:d, d]
        log_px -= np.logaddexp(0, np.where(x[:, d], -logit, logit))
    np.testing.assert_allclose(nats(model, bound, x), log_px, rtol=1e-4)


@pytest.mark.parametrize("num_values", [2, 3])
@pytest.mark.parametrize("cond", [None, CLASSES])
def test_nade_equals_a_loop_over_its_equations(num_values, cond):
    model, bound = make("nade", (5,), num_values, cond, width=7)
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), bound["params"])
    x = np.asarray(states(num_values, 5))
    classes = np.arange(len(x)) % 3
    inputs = np.eye(num_values)[x] if num_values > 2 else 2.0 * x[..., None] - 1
    a = np.tile(p["encoder_bias"], (len(x), 1))
    if cond is not None:
        a += p["embed"]["Embed_0"]["embedding"][classes]
    log_px = np.zeros(len(x))
    for d in range(5):
        h = 1 / (1 + np.exp(-a))
        out = h @ p["decoder"][d] + p["decoder_bias"][d]
        if num_values == 2:
            out = np.concatenate([0 * out, out], axis=1)
        log_p = out - np.logaddexp.reduce(out, axis=1, keepdims=True)
        log_px += log_p[np.arange(len(x)), x[:, d]]
        a += inputs[:, d] @ p["encoder"][d]
    given = None if cond is None else jnp.asarray(classes)
    np.testing.assert_allclose(nats(model, bound, x, given), log_px, rtol=1e-4)


def test_nade_of_any_number_of_symbols_has_all_conditionals():
    """Chunks of sqrt(D) leave a rest for most D."""
    for dims in (1, 3, 7):
        model, bound = make("nade", (dims,), 2, width=4)
        total = np.exp(np.asarray(nats(model, bound, states(2, dims)), np.float64))
        assert abs(total.sum() - 1) < 1e-5


@pytest.mark.parametrize(
    "num_values", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 40))]
)
@pytest.mark.parametrize("name", ["mixture", "gtm"])
def test_mixture_is_the_product_of_its_conditionals(name, num_values):
    """The posterior over components, one symbol at a time, gives the same log P(x)."""
    model, bound = make(name, (6,), num_values, CLASSES, num_components=4)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, num_values, (20, 6)), jnp.int32)
    cond = jnp.asarray(rng.integers(0, 3, 20))
    params = model.apply(bound, x, cond, method="conditionals")
    symbols = model.apply(bound, params, x, method="symbol_log_prob")
    np.testing.assert_allclose(
        symbols.sum(1), nats(model, bound, x, cond), rtol=1e-4, atol=1e-3
    )


DRAWN = ["made", "mixture", "gtm", "independent", "nade", "pixelcnnpp", "transformer"]


@pytest.mark.parametrize(
    "name", [n if n in ("made", "mixture") else slow(n) for n in DRAWN]
)
def test_symbols_are_drawn_from_their_distribution(name):
    """Of 40 values: mixtures of logistics are drawn without their table."""
    model, bound = make(name, (4,), 40)
    x = jnp.asarray([[3, 0, 39, 20]])
    params = model.apply(bound, x, method="conditionals")[0, 2]
    p = jax.nn.softmax(model.apply(bound, params, method="symbol_logits"))
    count = 20_000
    given = (jax.random.key(0), jnp.tile(params, (count, 1)))
    drawn = model.apply(bound, *given, method="symbol_sample")
    share = np.bincount(drawn, minlength=40) / count
    z = (share - p) / np.sqrt(np.maximum(p * (1 - p), 1e-4) / count)
    assert np.abs(z).max() < 5
    assert abs(p - 1 / 40).max() > 0.01  # not so even that anything would do


def test_mixture_of_one_component_is_independent():
    mixture, bound = make("mixture", (5,), 4, num_components=1)
    independent = load_model("independent").Model(shape=(5,), num_values=4)
    params = bound["params"]
    table = {"params": {"table": params["shared"] + params["own"][0]}}
    x = states(4, 5)
    np.testing.assert_allclose(
        nats(mixture, bound, x), nats(independent, table, x), rtol=1e-5
    )


def test_gtm_is_the_mean_over_its_curve():
    """Of the points one by one, as distributions of independent symbols."""
    model, bound = make("gtm", (5,), 3, CLASSES, num_components=16, width=8)
    x = states(3, 5)
    classes = jnp.arange(len(x)) % 3
    table = model.apply(bound, classes, method="components")  # [B, 16, 5, 3]
    assert table.shape == (len(x), 16, 5, 3)
    log_p = jax.nn.log_softmax(table)
    each = jnp.take_along_axis(log_p, x[:, None, :, None], -1)[..., 0].sum(-1)
    prior = model.apply(bound, classes, method="_log_prior")
    expected = jax.nn.logsumexp(prior + each, axis=1)
    np.testing.assert_allclose(nats(model, bound, x, classes), expected, rtol=1e-5)
    # Neighbours on the curve are alike: steps are short beside what it spans.
    steps = jnp.linalg.norm(jnp.diff(table, axis=1), axis=(2, 3))
    span = jnp.linalg.norm(table - table[:, :1], axis=(2, 3)).max(1)
    assert (steps.mean(1) < span / 2).all()


def test_mixture_components_separate():
    """Two patterns need two components: gradients from a random start find them."""
    model = load_model("mixture").Model(shape=(8,), num_values=2, num_components=4)
    params = init_params(model, jax.random.key(0))
    x = jnp.asarray([[0] * 8, [1] * 8] * 2, jnp.int32)

    @jax.jit
    def fit(params):
        def loss(p):
            return -log_prob(model, p, x, None, jax.random.key(0))[0].mean()

        def body(p, _):
            return jax.tree.map(lambda v, g: v - 0.5 * g, p, jax.grad(loss)(p)), None

        params = jax.lax.scan(body, params, length=500)[0]
        return loss(params)

    assert fit(params) < math.log(2) + 0.1  # independent symbols: 8 log 2


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_ensemble_is_the_mean_over_its_members(depth):
    model, bound = make(
        "made_ensemble", (4,), 3, width=9, depth=depth, num_orders=3, num_masks=2
    )
    x = states(3, 4)

    def member(which):
        params = model.apply(bound, x, None, which, method="parameters")
        return model.apply(bound, params, x, method="symbol_log_prob").sum(1)

    members = jnp.stack([member(r) for r in range(6)])
    for log_p in members:  # each is a distribution by itself
        assert abs(np.exp(np.asarray(log_p, np.float64)).sum() - 1) < 1e-5
    np.testing.assert_allclose(nats(model, bound, x), logmeanexp(members), rtol=1e-4)
    # A training step sees one of them.
    trained = nats(model, bound, x, train=True)
    assert min(np.abs(trained - m).max() for m in members) < 1e-3


def test_ensemble_members_see_what_their_order_allows():
    model, bound = make("made_ensemble", (5,), 2, width=64, num_orders=3)
    places, _ = model.degrees()
    assert len({tuple(p) for p in places}) == 3
    x = jnp.zeros((1, 5), jnp.int32)
    for r, place in enumerate(places):
        out = [
            model.apply(bound, v, None, r, method="parameters")[0, :, 0]
            for v in [x, *(x.at[0, j].set(1) for j in range(5))]
        ]
        moved = np.abs(np.stack(out[1:]) - out[0]) > 0  # [symbol, output]
        np.testing.assert_array_equal(moved, place[:, None] < place[None, :])


@pytest.mark.parametrize("depth", [0, 2])
def test_ensemble_samples_follow_its_likelihood(depth):
    model, bound = make(
        "made_ensemble", (3,), 2, CLASSES, width=6, depth=depth, num_orders=4
    )
    count = 20_000
    cond = jnp.full(count, 1)
    key = {"sample": jax.random.key(3)}
    draw = jax.jit(lambda: model.apply(bound, count, cond, rngs=key, method="sample"))
    drawn = np.asarray(draw()) @ [4, 2, 1]
    observed = np.bincount(drawn, minlength=8)
    log_p = nats(model, bound, states(2, 3), jnp.full(8, 1))
    expected = count * np.exp(np.asarray(log_p, np.float64))
    assert ((observed - expected) ** 2 / expected).sum() < 30  # 7 degrees: p = 1e-4


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        (dict(any_order=True), "normalisation"),
        (dict(any_order=True), "bounds"),
        (dict(any_order=True), "sampler"),
        (dict(any_order=True, evaluation_order="raster"), "normalisation"),
        (dict(any_order=True), "cache"),
        (dict(style="gpt2"), "cache"),
        (dict(style="gpt2"), "normalisation"),
    ],
)
def test_other_transformers_pass_the_audit(fields, check):
    fields = transformer.TINY | fields
    verdict = audit.check_model(transformer.Model, fields, check, audit.QUICK)
    assert verdict.status == "pass", verdict.figure


def test_any_order_transformer_is_a_mixture_of_all_orders():
    """3 symbols, 6 orders: their mean sums to one, and draws estimate it."""
    fields = dict(width=8, depth=1, num_heads=1, any_order=True)
    model = transformer.Model(shape=(3,), num_values=2, **fields)
    params = parameters(model, "perturbed")
    states = jnp.asarray(list(itertools.product(range(2), repeat=3)))

    def given(order):
        place = jnp.tile(jnp.asarray(order), (8, 1))
        args = (states[:, jnp.asarray(order)], None)
        out = model.apply({"params": params}, *args, order=place, method="conditionals")
        return model.symbol_log_prob(out, args[0]).sum(1)

    every = jnp.stack([given(s) for s in itertools.permutations(range(3))])
    assert np.ptp(np.asarray(every), axis=0).max() > 0.01  # the order matters
    np.testing.assert_allclose(jnp.exp(every).sum(1), 1, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.vmap(lambda k: log_prob(model, params, states, None, k)[0])(keys)
    error = draws.std(0) / math.sqrt(len(keys))
    assert (abs(draws.mean(0) - every.mean(0)) < 5 * error + 1e-5).all()  # the bound


def test_prefix_of_a_random_order_is_held():
    model = transformer.Model(
        shape=(5,), num_values=3, **transformer.TINY, any_order=True
    )
    params = parameters(model, "perturbed")
    prefix = jnp.asarray([[2, 0], [1, 1]])
    x = model.apply(
        {"params": params},
        2,
        prefix=prefix,
        rngs={"sample": jax.random.key(0)},
        method="sample",
    )
    np.testing.assert_array_equal(x[:, :2], prefix)


def test_every_norm_of_a_gpt2_has_the_same_epsilon():
    model, params = make("transformer", (4,), 3, style="gpt2", **transformer.TINY)
    assert model.apply(params, method=lambda bound: bound.norm.epsilon) == 1e-5


def test_a_step_of_a_mixture_looks_at_the_components_of_one_symbol():
    model, params = make("mixture", (50,), 3, num_components=4)

    def step(params):
        given = jnp.zeros((2, 4)), jnp.int32(1), jnp.zeros(2, jnp.int32)
        return model.apply(params, *given, method="step")

    made_of = [
        v.aval.size for e in jax.make_jaxpr(step)(params).eqns for v in e.outvars
    ]
    assert max(made_of) < 4 * 50


def test_transformer_refuses_what_gpt2_lacks():
    model = transformer.Model(shape=(4,), num_values=3, style="gpt2", any_order=True)
    with pytest.raises(InputError, match="it has no any_order"):
        init_params(model, jax.random.key(0))


def test_made_of_few_units_says_what_it_does_not_see():
    """5 units for 12 symbols: some degrees are missing, and audited so."""
    narrow = made.TINY | dict(width=5)
    field = made.Model(shape=(12,), num_values=2, **narrow).receptive_field
    assert (np.tri(12, k=-1, dtype=bool) & ~field).sum() > 0
    assert not np.triu(field).any()
    verdict = audit.check_model(made.Model, narrow, "receptive_field", audit.QUICK)
    assert verdict.status == "pass", verdict.figure
