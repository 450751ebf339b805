"""Completions against posteriors that are enumerated, and what is refused."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launch import SMALL, launch, one_error, train
from PIL import Image

from gm import complete
from gm import model as gm_model
from gm.audit.subject import SPACES, parameters, quick_jit
from gm.bounds import logmeanexp
from gm.complete.masks import count_characters, parse_mask
from gm.errors import InputError
from gm.model import LikelihoodModel, load_model
from gm.spec import Estimate

PIXELS = SPACES["pixels"]  # 2x2 of 3 values
STATES = PIXELS.states()
LAST = np.asarray([[0, 0], [1, 1]], bool)[..., None]  # hidden: after the observed
FIRST, DIAGONAL = ~LAST, np.eye(2, dtype=bool)[..., None]
NUMBER = 43  # of the state that is completed
COUNT = 12_000  # completions: as many exact draws have a total variation of 0.01


def make(name, **fields):
    module = load_model(name)
    fields = module.TINY | fields
    model = module.Model(shape=PIXELS.shape, num_values=PIXELS.num_values, **fields)
    return model, parameters(model, "trained")


def log_probs(model, params, draws):
    """Log P of every state, by the mean of draws where it is an estimate."""

    def find(params, keys):
        return jax.lax.map(
            lambda key: gm_model.log_prob(model, params, STATES, None, key)[0], keys
        )

    keys = jax.random.split(jax.random.key(7), draws)
    return logmeanexp(np.asarray(quick_jit(find)(params, keys), float))


def posterior(log_p, missing):
    """p(x_missing | x_observed) over all states, and log p(x_observed)."""
    same = (STATES[NUMBER] == STATES)[:, ~missing].all(1)
    log_z = np.logaddexp.reduce(log_p[same])
    return np.where(same, np.exp(log_p - log_z), 0), log_z


def total_variation(drawn, probs):
    """Between the frequencies of drawn [M, 2, 2, 1] and the probabilities."""
    numbers = drawn.reshape(len(drawn), -1) @ (3 ** np.arange(4)[::-1])
    frequencies = np.bincount(numbers, minlength=len(probs)) / len(drawn)
    return 0.5 * np.abs(frequencies - probs).sum()


def run(model, params, missing, count=COUNT, **budget):
    budget = complete.Budget(count, **budget)
    x = STATES[NUMBER : NUMBER + 1]
    return complete.complete(model, params, x, None, missing, budget)


def compare(name, missing, draws=1, **budget):
    """(completions, true nats of the hidden symbols, true log p(x_observed))."""
    model, params = make(name)
    log_p = log_probs(model, params, draws)
    probs, log_z = posterior(log_p, missing)
    found = run(model, params, missing, **budget)
    distance, nats = total_variation(found.x[0], probs), log_z - log_p[NUMBER]
    print(name, found.method, found.figures, distance, nats, found.nats)
    assert distance < 0.02
    return found, nats, log_z


def test_what_comes_last_is_completed_exactly():
    found, nats, log_z = compare("made", LAST)
    assert found.exact
    assert found.bound == "exact"
    np.testing.assert_allclose(found.nats, nats, atol=1e-4)
    np.testing.assert_allclose(found.log_observed, log_z, atol=1e-4)


def test_a_particle_filter_completes_what_comes_first():
    found, nats, log_z = compare("made", FIRST, num_particles=64)
    assert not found.exact
    assert found.bound == "lower"
    np.testing.assert_allclose(found.nats, nats, atol=0.01)
    np.testing.assert_allclose(found.log_observed, log_z, atol=0.01)
    assert 1 < found.figures["effective_sample_size"] < 64


def test_few_particles_give_an_unbiased_estimate_of_what_is_observed():
    """The mean over the filters of 2 particles; single ones are far off."""
    model, params = make("made")
    log_p = log_probs(model, params, 1)
    found = run(model, params, FIRST, 4000, num_particles=2)
    nats = posterior(log_p, FIRST)[1] - log_p[NUMBER]
    np.testing.assert_allclose(found.nats, nats, atol=0.03)
    assert found.figures["sd_of_log_p_observed_nats"] > 0.1


def test_independent_symbols_need_one_particle_wherever_they_are():
    model, _ = make("independent")
    method = complete.method_for(model, FIRST, complete.Budget())
    assert method.exact
    assert method.num_particles == 1


@pytest.mark.parametrize(
    ("hidden", "exact"),
    [
        ([3, 4], True),
        ([0, 2], False),
        pytest.param([1, 2, 4], False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["made", "independent"])
def test_documents_end_once_and_not_before_what_is_observed(name, hidden, exact):
    """Of 5 symbols, 0 ends and fills: against the enumerated posterior of a document."""
    module = load_model(name)
    model = module.Model(shape=(5,), num_values=3, end=0, **module.TINY)
    params = parameters(model, "perturbed")
    states = np.asarray(list(itertools.product(range(3), repeat=5)), np.int32)
    log_p = gm_model.log_prob(model, params, states, None, jax.random.key(0))[0]
    log_p = np.asarray(log_p, float)
    x, missing = np.asarray([[2, 1, 2, 1, 0]], np.int32), np.zeros(5, bool)
    missing[hidden] = True
    log_p[(states != x)[:, ~missing].any(1)] = -np.inf
    log_z = np.logaddexp.reduce(log_p)
    budget = complete.Budget(COUNT, num_particles=16)
    found = complete.complete(model, params, x, None, missing, budget)
    assert found.exact == exact
    numbers = found.x[0] @ (3 ** np.arange(5)[::-1])
    frequencies = np.bincount(numbers, minlength=len(states)) / COUNT
    assert 0.5 * np.abs(frequencies - np.exp(log_p - log_z)).sum() < 0.02
    true = log_z - log_p[(states == x).all(1)]
    np.testing.assert_allclose(found.nats, true, atol=0.01 if not exact else 1e-4)


def test_models_of_any_order_take_the_observed_first():
    model, params = make("transformer", any_order=True)
    hidden, seen = np.flatnonzero(DIAGONAL), np.flatnonzero(~DIAGONAL)

    def log_conditional(params, order):
        x = jnp.asarray(STATES.reshape(-1, 4))[:, order]
        orders = jnp.broadcast_to(order, x.shape)
        found = model.apply({"params": params}, x, order=orders, method="conditionals")
        terms = model.apply({"params": params}, found, x, method="symbol_log_prob")
        return terms[:, 2:].sum(1)

    find = quick_jit(log_conditional)
    log_q = logmeanexp(
        np.stack(
            [
                np.asarray(find(params, jnp.asarray([*a, *b])), float)
                for a in itertools.permutations(seen)
                for b in itertools.permutations(hidden)
            ]
        )
    )
    probs, log_z = posterior(log_q, DIAGONAL)
    assert abs(log_z) < 1e-4  # the conditional of each order is a distribution
    found = run(model, params, DIAGONAL)
    assert found.exact
    assert found.bound == "upper"
    assert total_variation(found.x[0], probs) < 0.02
    np.testing.assert_allclose(found.nats, -log_q[NUMBER], atol=0.02)


def test_metropolis_within_gibbs_completes_by_a_vae():
    found, nats, log_z = compare("vae", FIRST, draws=4000, num_steps=50)
    assert found.method == "Metropolis-within-Gibbs"
    assert 0.05 < found.figures["acceptance"] < 1
    np.testing.assert_allclose(found.log_observed, log_z, atol=0.05)
    np.testing.assert_allclose(found.nats, nats, atol=0.2)  # log P(x) has 64 draws


@pytest.mark.slow
def test_annealed_chains_complete_by_a_flow():
    found, nats, log_z = compare(
        "realnvp", FIRST, draws=4000, num_particles=1, num_steps=40
    )
    assert "Hamiltonian" in found.method
    np.testing.assert_allclose(found.log_observed, log_z, atol=0.02)
    np.testing.assert_allclose(found.nats, nats, atol=0.2)


class Noisy(LikelihoodModel):
    """A table over the 81 states, told through noisy weights of mean 1; no sample."""

    estimate = Estimate.WEIGHT

    def setup(self):
        self.table = self.param("table", jax.nn.initializers.normal(1.0), (81,))

    def log_prob(self, x, cond=None, *, train=False):
        number = x.reshape(len(x), -1) @ (3 ** jnp.arange(4)[::-1])
        noise = jax.random.normal(self.make_rng("sample"), (len(x),))
        log_w = jax.nn.log_softmax(self.table)[number] + noise - 0.5
        return log_w, {"all": log_w}


def test_pseudo_marginal_gibbs_is_exact_though_weights_are_noisy():
    model = Noisy(shape=PIXELS.shape, num_values=3)
    params = gm_model.init_params(model, jax.random.key(0))
    log_p = np.asarray(jax.nn.log_softmax(params["table"]), float)
    probs, log_z = posterior(log_p, FIRST)
    found = run(model, params, FIRST, num_steps=20)
    assert found.method == "annealed pseudo-marginal Gibbs"
    assert found.bound == "neither"
    assert total_variation(found.x[0], probs) < 0.02
    np.testing.assert_allclose(found.log_observed, log_z, atol=0.02)
    np.testing.assert_allclose(found.nats, log_z - log_p[NUMBER], atol=0.5)


class Table(LikelihoodModel):
    """A table over 2 symbols of 20 values, with its exact samples."""

    estimate = Estimate.EXACT

    def setup(self):
        self.table = self.param("table", jax.nn.initializers.normal(2.0), (400,))

    def log_prob(self, x, cond=None, *, train=False):
        log_p = jax.nn.log_softmax(self.table)[x[:, 0] * 20 + x[:, 1]]
        return log_p, {"all": log_p}

    def sample(self, num, cond=None, *, temperature=1.0):
        shape = (num,)
        found = jax.random.categorical(self.make_rng("sample"), self.table, shape=shape)
        return jnp.stack([found // 20, found % 20], axis=1)


@pytest.mark.parametrize("sweeps", [1, 20])
def test_pools_of_many_values_give_an_unbiased_estimate_of_what_is_observed(sweeps):
    """Whatever the budget; the completions are exact in its limit."""
    model = Table(shape=(2,), num_values=20)
    params = gm_model.init_params(model, jax.random.key(0))
    log_p = np.asarray(jax.nn.log_softmax(params["table"]), float).reshape(20, 20)[:, 7]
    log_z = np.logaddexp.reduce(log_p)
    x, budget = np.asarray([[3, 7]]), complete.Budget(COUNT, num_steps=sweeps)
    missing = np.asarray([True, False])
    found = complete.complete(model, params, x, None, missing, budget)
    assert found.bound == "lower"
    np.testing.assert_allclose(found.log_observed, log_z, atol=0.05)
    np.testing.assert_allclose(found.nats, log_z - log_p[3], atol=0.05)
    if sweeps == 20:
        frequencies = np.bincount(found.x[0, :, 0], minlength=20) / COUNT
        assert 0.5 * np.abs(frequencies - np.exp(log_p - log_z)).sum() < 0.03


def test_observed_symbols_stay_in_every_example():
    model, params = make("made")
    x = STATES[[5, 60, 33]]
    budget = complete.Budget(2, num_particles=8)
    found = complete.complete(model, params, x, None, DIAGONAL, budget)
    assert found.x.shape == (3, 2, *PIXELS.shape)
    seen = np.broadcast_to(x[:, None], found.x.shape)[:, :, ~DIAGONAL]
    np.testing.assert_array_equal(found.x[:, :, ~DIAGONAL], seen)


# Masks.


def test_masks_hide_what_they_say():
    shape = (4, 6, 3)
    for name, part in {
        "left": np.s_[:, :3],
        "right": np.s_[:, 3:],
        "top": np.s_[:2],
        "bottom": np.s_[2:],
        "box": np.s_[1:3, 1:5],
    }.items():
        expected = np.zeros(shape, bool)
        expected[part] = True
        np.testing.assert_array_equal(parse_mask(name, shape), expected, name)
    assert parse_mask("right", (5,)).tolist() == [False, False, True, True, True]
    random = parse_mask("random:0.25", shape)
    assert random.sum() == 6 * 3
    assert (random.all(2) == random.any(2)).all()
    np.testing.assert_array_equal(random, parse_mask("random:0.25", shape, 0))
    assert (random != parse_mask("random:0.25", shape, 1)).any()


def test_padding_is_no_hidden_character():
    x = np.array([[2, 1, 0, 0, 0], [1, 2, 1, 2, 0], [0, 0, 0, 0, 0]])
    right = np.array([False, False, True, True, True])
    assert count_characters(x, right, 0) == 1 + 3 + 0
    assert count_characters(x, ~right, 0) == 2 + 2 + 1


def test_masks_are_read_from_files(tmp_path):
    hidden = np.zeros((4, 6), bool)
    hidden[1, 2:] = True
    np.save(tmp_path / "mask.npy", hidden)
    Image.fromarray(hidden.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    for name in ("mask.npy", "mask.png"):
        found = parse_mask(str(tmp_path / name), (4, 6, 1))
        np.testing.assert_array_equal(found[..., 0], hidden)


@pytest.mark.parametrize(
    ("mask", "shape", "part"),
    [
        ("random:1.5", (8, 8, 1), "P between 0 and 1"),
        ("random:half", (8, 8, 1), "P between 0 and 1"),
        ("botom", (8, 8, 1), "did you mean bottom?"),
        ("top", (24,), "has left, right and box"),
        ("left", (1, 1, 1), "hides no symbol"),
        ("random:0.99", (2, 2, 1), "hides every symbol"),
        ("{}/other.npy", (8, 8, 1), "is of 3x3, the examples are of 8x8"),
        ("{}/numbers.npy", (2, 2, 1), "save booleans"),
        ("{}/text.png", (8, 8, 1), "neither a .npy nor an image"),
    ],
)
def test_a_bad_mask(mask, shape, part, tmp_path):
    np.save(tmp_path / "other.npy", np.eye(3, dtype=bool))
    np.save(tmp_path / "numbers.npy", np.eye(2))
    (tmp_path / "text.png").write_text("no image")
    mask = mask.format(tmp_path)
    with pytest.raises(InputError) as error:
        parse_mask(mask, shape)
    assert f"--mask={mask}" in str(error.value)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vdm", "vqvae"])
def test_a_model_of_a_bound_alone_is_refused(name):
    module = load_model(name)
    model = module.Model(shape=(8, 8, 1), num_values=17, **module.TINY)
    with pytest.raises(InputError, match="ELBO alone"):
        complete.method_for(model, np.ones((8, 8, 1), bool), complete.Budget())


def test_a_budget_below_one_is_refused():
    model, _ = make("made")
    with pytest.raises(InputError, match="--num_steps=0: give 1 or more"):
        complete.method_for(model, FIRST, complete.Budget(4, num_steps=0))


def test_steps_of_a_chain_that_there_is_not_are_refused():
    model, _ = make("made")
    with pytest.raises(InputError, match="--num_steps=9: .* without a Markov chain"):
        complete.method_for(model, FIRST, complete.Budget(4, num_steps=9))


def test_the_launcher_writes_a_row_and_a_picture(tmp_path):
    path = tmp_path / "run"
    status, _, err = train(path, "--set=width=16", *SMALL)
    assert status == 0, err
    flags = (f"--workdir={path}", "--num_examples=3", "--num_completions=2")
    status, out, err = launch("complete", *flags, "--mask=bottom")
    assert status == 0, err
    assert "32 of 64 symbols hidden" in out
    stem = path / "applications" / "complete-test-bottom-num_completions=2"
    row = json.loads(stem.with_name(f"{stem.name}-num_examples=3.json").read_text())
    assert row["exact_draws"]
    assert (row["estimate"], row["num_importance_samples"]) == ("exact", 1)
    assert row["bits_per_missing_dim"] > 0
    picture = Image.open(stem.with_name(f"{stem.name}-num_examples=3.png"))
    assert picture.width > picture.height  # 4 tiles in each of 3 rows
    one_error(launch("complete", *flags, "--mask=botom"), "--mask=botom", "bottom?")
