"""Paired differences: ties, Holm's correction, and whether intervals cover."""

import numpy as np
import pytest

from gm import paired


def runs(rng, base, effect, num_seeds, seed_sd):
    """Nats of runs of one model: examples, the model's effect, seeds, run noise."""
    return [
        base + effect + seed_sd * rng.standard_normal() + rng.standard_normal(len(base))
        for _ in range(num_seeds)
    ]


@pytest.mark.parametrize(
    ("seeds_a", "seeds_b", "seed_sd"),
    [(1, 1, 0.0), (3, 3, 0.0), (3, 3, 0.3), (3, 3, 3.0), (5, 3, 1.0), (4, 1, 0.5)],
)
def test_interval_covers_with_example_noise_and_seed_noise(
    seeds_a, seeds_b, seed_sd, monkeypatch
):
    monkeypatch.setattr(paired, "_RESAMPLES", 2000)
    rng = np.random.default_rng(0)
    trials, covered = 500, 0
    for trial in range(trials):
        base = 20 * rng.standard_normal(100)
        effect = -1 + 2 * rng.standard_normal(100)  # the true difference is -1
        a = runs(rng, base, effect, seeds_a, seed_sd)
        b = runs(rng, base, 0.0, seeds_b, seed_sd)
        found = paired.difference(a, b, seed=trial)
        covered += found.low <= -1 <= found.high
    assert covered / trials >= 0.93


def test_a_run_against_itself_is_a_tie():
    nats = [np.random.default_rng(0).normal(90, 20, 400)]
    found = paired.difference(nats, nats)
    assert (found.nats, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_pairing_sees_what_unpaired_errors_hide():
    rng = np.random.default_rng(0)
    a = rng.normal(90, 20, 1000)  # standard error 0.6
    found = paired.difference([a + rng.normal(0.3, 1, 1000)], [a])
    assert found.low > 0
    assert found.p_value < 0.001
    back = paired.difference([a], [a + 0.3])
    assert back.high < 0


def test_the_spread_of_seeds_makes_a_tie():
    rng = np.random.default_rng(0)
    base = rng.normal(90, 20, 1000)
    a = [base + shift for shift in (0.0, 2.0, 4.0)]
    b = [base + shift for shift in (1.0, 3.5, 5.0)]
    found = paired.difference(a, b)
    assert found.low < 0 < found.high
    assert found.spread == pytest.approx(np.std([1, 3.5, 5], ddof=1))
    # The same means from single runs would look like a difference.
    assert paired.difference(a[:1], b[:1]).high < 0


def test_holm():
    assert paired.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx(
        [0.04, 0.09, 0.09, 0.5]
    )
    assert paired.holm([]) == []
