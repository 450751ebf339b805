"""Known entropies: what models of known quality score, and what a plateau means."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import data, evaluate, gap, results, tables
from gm.data import puzzles
from gm.data.dataset import ArraySplit
from gm.likelihood import bits, categorical_log_prob, sum_dims
from gm.model import LikelihoodModel
from gm.spec import Estimate


class Oracle(LikelihoodModel):
    """Uniform over the legal cubes."""

    estimate = Estimate.EXACT
    name_of_data: str = "pocket_cube"

    def log_prob(self, x, cond=None, *, train=False):
        def legal(x):
            return puzzles.is_legal(x.reshape(-1, x.shape[-1])).reshape(x.shape[:-1])

        shape = jax.ShapeDtypeStruct(x.shape[:1], bool)
        ok = jax.pure_callback(legal, shape, x, vmap_method="expand_dims")
        value = -math.log(puzzles.num_states(self.name_of_data))
        log_px = jnp.where(ok, value, -jnp.inf)
        return log_px, {"all": log_px}

    def sample(self, num_samples, cond=None, *, temperature=1.0):
        draw = getattr(puzzles, f"draw_{self.name_of_data}")
        return draw(self.make_rng("sample"), num_samples)[0]


class Independent(LikelihoodModel):
    """Independent stickers: a table per position."""

    estimate = Estimate.EXACT

    def setup(self):
        self.table = self.param(
            "table", nn.initializers.zeros, (*self.shape, self.num_values)
        )

    def log_prob(self, x, cond=None, *, train=False):
        logits = jnp.broadcast_to(self.table, (x.shape[0], *self.table.shape))
        log_px = sum_dims(categorical_log_prob(logits, x))
        return log_px, {"symbols": log_px}


@pytest.mark.parametrize("name", puzzles.SIZES)
def test_an_oracle_has_a_gap_of_zero(name):
    dataset = data.load(name)
    model = Oracle(shape=dataset.shape, num_values=6, name_of_data=name)
    row, _ = evaluate.evaluate(model, {}, dataset, "test", batch_size=500)
    assert f"{bits(row['nats'] - row['entropy_floor_nats']):.3f}" in ("0.000", "-0.000")
    row = row | {"model": "oracle", "samples": None}
    assert not results.below_floor(row)
    row["samples"] = gap.check_samples(model, {}, dataset, None, count=1000)
    assert row["samples"]["legal"] == 1
    assert row["samples"]["distinct"] > 990
    assert row["samples"]["uniformity_p"] > 1e-3
    [text] = gap.plateau("oracle", row)
    assert "all learnt" in text
    assert "corner_twist 100%" in text


def test_independent_stickers_score_the_computed_figure():
    """Centres known, 48 stickers uniform over 6 colours: 48 log2 6 = 124.08 bits."""
    dataset = data.load("rubiks_cube")
    model = Independent(shape=dataset.shape, num_values=6)
    # The maximum likelihood: every sticker's own frequencies, which are uniform by
    # symmetry, but for the six centres.
    table = np.zeros((54, 6), np.float32)
    for place in puzzles._cube(3).centres:
        table[place, puzzles._cube(3).faces[place]] = 100.0
    params = {"table": jnp.asarray(table)}
    row, _ = evaluate.evaluate(model, params, dataset, "test", batch_size=500)
    assert row["bits_per_object"] == pytest.approx(48 * math.log2(6), abs=1e-3)
    above = bits(row["nats"] - row["entropy_floor_nats"])
    assert f"{above:.2f}" == "58.85"
    # The frequencies themselves agree that no better table exists.
    x, _ = puzzles.draw_rubiks_cube(jax.random.key(1), 20_000)
    counts = np.stack([np.bincount(c, minlength=6) for c in np.asarray(x).T]) / 20_000
    log_counts = np.log2(counts, where=counts > 0, out=np.zeros_like(counts))
    marginals = -(counts * log_counts).sum()
    assert marginals == pytest.approx(48 * math.log2(6), abs=0.02)


def test_the_staircase_of_both_cubes():
    heights = [round(h, 3) for h, _ in gap.staircase("rubiks_cube")]
    assert heights == [0, 1, 1, 1.585, 2, 2.585, 2.585, 3.585]
    assert [n for _, n in gap.staircase("pocket_cube")] == [(), ("corner_twist",)]


def cubes(missing, count, rng):
    """Cubes that keep every invariant but those named: uniform over what is left."""
    x = np.asarray(
        puzzles.draw_rubiks_cube(jax.random.key(int(rng.integers(99))), count)[0]
    )
    x = x.copy()
    cube = puzzles._cube(3)
    hit = rng.random((3, count))
    if "corner_twist" in missing:  # turn the first corner in place
        turns = (3 * hit[0]).astype(int)
        for turn in (1, 2):
            rows = np.ix_(turns == turn, cube.corners[0])
            x[rows] = np.roll(x[rows], turn, axis=1)
    if "edge_flip" in missing:
        rows = np.ix_(hit[1] < 0.5, cube.edges[0])
        x[rows] = x[rows][:, ::-1]
    if "parity" in missing:  # swap two edges
        rows = np.ix_(hit[2] < 0.5, cube.edges[:2].ravel())
        x[rows] = x[rows][:, [2, 3, 0, 1]]
    return x


@pytest.mark.parametrize("missing", [m for _, m in gap.staircase("rubiks_cube")])
def test_a_plateau_is_named_and_samples_tell_equal_stairs_apart(missing):
    rng = np.random.default_rng(0)
    x = cubes(missing, 3000, rng)
    facts = {k: float(v.mean()) for k, v in puzzles.invariants(x).items()}
    height = dict((n, h) for h, n in gap.staircase("rubiks_cube"))[missing]
    floor = 65.2294 * math.log(2)
    row = {
        "dataset": "rubiks_cube",
        "entropy_floor_nats": floor,
        "nats": floor + (height + 0.03) * math.log(2),
        "samples": {
            "count": 3000,
            "legal": float(puzzles.is_legal(x).mean()),
            "facts": facts,
            "distinct": 1,
            "distinct_true": 1,
            "uniformity_p": None,
        },
    }
    [text] = gap.plateau("m", row)
    names = " and ".join(n.replace("_", " ") for n in missing)
    assert (
        f"+{height:.3f}: {names + ' not learnt' if missing else 'all learnt'}" in text
    )


def test_samples_of_other_known_distributions_are_judged():
    for name, classes in (("solids", 32), ("sayings", 7)):
        dataset = data.load(name, resolution=8 if name == "solids" else None)
        x, _ = dataset.test.batch(np.arange(1000))
        assert len(dataset.support.class_probs) == classes
        assert dataset.support.class_probs.sum() == pytest.approx(1)
        assert all(f.all() for f in dataset.support.facts(x).values())
        broken = x.astype(int)
        broken[:, 0] = (broken[:, 0] + 1) % dataset.num_values
        assert not any(f.any() for f in dataset.support.facts(broken).values())
        assert gap._uniformity(dataset.support, x) > 1e-3
        again = x[np.zeros(len(x), int)]  # one and the same, a thousand times
        assert gap._uniformity(dataset.support, again) < 1e-6


def test_a_result_below_the_floor_is_reported_as_a_bug():
    dataset = data.load("pocket_cube")
    row = {
        **{"model": "cheat", "run": "runs/cheat", "dataset": dataset.name},
        **{"entropy_floor_nats": dataset.entropy_nats, "standard_error_nats": 0.02},
        **{"nats": dataset.entropy_nats - 0.1},
    }
    assert results.below_floor(row)
    assert tables.bug_text(row).startswith(
        "BUG: cheat (runs/cheat) is 0.144 bits below"
    )
    assert not results.below_floor(row | {"nats": dataset.entropy_nats - 0.05})
    assert not results.below_floor(row | {"entropy_floor_nats": None})
    assert isinstance(dataset.test, ArraySplit)


def test_legal_is_what_all_facts_hold_of():
    facts = {
        "cubies": np.array([1, 1, 1, 0], bool),
        "twist": np.array([1, 0, 1, 1], bool),
    }
    found = gap.legality(facts)
    assert found == {"legal": 0.5, "facts": {"cubies": 0.75, "twist": 0.75}}
    said = "50.0% of samples can occur (cubies 75.0%, twist 75.0%)"
    assert gap.legality_text(found, "samples") == said
