"""Measures of samples against cases that can be done by hand."""

import math
import types

import jax
import numpy as np
import pytest

from gm import classify, data, gap, judge, quality
from gm.audit.subject import CLASSES, SPACES, parameters
from gm.data import solids
from gm.data.dataset import ArraySplit
from gm.errors import InputError
from gm.model import load_model, log_prob
from gm.spec import CondSpec


def normal(n, dims, seed=0, shift=0.0, deviation=1.0):
    return shift + deviation * np.random.default_rng(seed).standard_normal((n, dims))


def test_frechet_distance_of_known_gaussians():
    x = normal(400, 3)
    assert quality.frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    # A shift s adds |s|^2; deviations a and b in each of 3 dimensions 3 (a - b)^2.
    moved = quality.frechet_distance(x, x + [3.0, 0.0, 4.0])
    assert moved == pytest.approx(25, rel=1e-9)
    z = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    assert quality.frechet_distance(2 * z, 5 * z) == pytest.approx(27, rel=1e-6)
    turn = np.linalg.qr(normal(3, 3, seed=1))[0]
    y = normal(300, 3, seed=2, deviation=2.0)
    plain = quality.frechet_distance(x, y)
    assert quality.frechet_distance(x @ turn, y @ turn) == pytest.approx(
        plain, rel=1e-6
    )
    assert quality.frechet_distance(y, x) == pytest.approx(plain, rel=1e-6)
    flat = np.concatenate([x, np.zeros_like(x[:, :1])], 1)  # singular covariances
    assert quality.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_precision_and_recall_on_a_line():
    real = np.array([[0.0], [1.0], [2.0], [3.0]])
    # k = 1: radius 1 around each, so [-1, 4] is covered.
    samples = np.array([[3.5], [3.9], [4.5], [9.0]])
    precision, recall = quality.precision_recall(samples, real, k=1)
    assert precision == 0.5
    # Their radii: 0.4, 0.4, 0.6, 4.5. 9 covers from 4.5: no real point is covered.
    assert recall == 0.0
    samples[3] = 7.0  # covers from 4.5
    samples[0] = 2.7  # radius 1.2: covers [1.5, 3.9]
    assert quality.precision_recall(samples, real, k=1) == (0.5, 0.5)
    assert quality.precision_recall(real, real, k=1) == (1, 1)


def test_density_and_coverage_on_a_line():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii 1, 1, 1, 8 at k = 1
    samples = np.array([[0.5], [0.5], [0.5], [-5.0]])
    density, coverage = quality.density_coverage(samples, real, k=1)
    assert density == pytest.approx((2 * 3) / 4)  # 0.5 lies in the first two balls
    assert coverage == 0.5
    x, y = normal(600, 4), normal(600, 4, seed=1)
    density, coverage = quality.density_coverage(x, y)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.03)


def test_mmd_is_that_of_its_definition():
    x, y = normal(5, 2), normal(5, 2, seed=1, shift=1.0)
    points = np.concatenate([x, y])
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]]
    width = np.median(np.square(pairs))

    def k(a, b):
        return math.exp(-((a - b) ** 2).sum() / (2 * width))

    within = sum(k(v[i], v[j]) for v in (x, y) for i in range(5) for j in range(5)
                 if i != j) / 20  # fmt: skip
    between = sum(k(a, b) for a in x for b in y) / 25
    value, p = quality.mmd(x, y, permutations=99)
    assert value == pytest.approx(within - 2 * between, rel=1e-9)
    assert 0 < p <= 1
    with pytest.raises(ValueError, match="as many of both"):
        quality.mmd(x, y[:4])


def test_the_permutation_test_keeps_its_level_and_sees_a_shift():
    values = []
    for seed in range(40):
        x, y = normal(30, 3, seed=2 * seed), normal(30, 3, seed=2 * seed + 1)
        values.append(quality.mmd(x, y, permutations=99, seed=seed)[1])
    assert 4 <= np.sum(np.array(values) <= 0.25) <= 18  # 10 expected, sd 2.7
    assert quality.mmd(x, y + 1.5, permutations=199)[1] == 1 / 200


def test_a_copier_is_told_from_a_generaliser():
    train, test, fresh = (normal(300, 2, seed=s) for s in range(3))
    found = quality.memorisation(train[:100], test, train)
    assert (found["copies"], found["copies_test"]) == (1, 0)
    assert found["nearer_than_test"] == 1
    assert found["nearest_train"] == 0
    found = quality.memorisation(fresh, test, train)
    error = found["nearer_than_test_standard_error"]
    assert found["nearer_than_test"] == pytest.approx(0.5, abs=4 * error)
    assert 0.01 < error < 0.05
    distance, which = quality.nearest(train[[7, 3]] + 1e-9, train)
    assert list(which) == [7, 3]
    assert distance.max() < 1e-8


def test_calibration_error_by_hand():
    # Bin of 0.95: 2 of 4 right; bin of 0.5: 1 of 2 right.
    confidence = np.array([0.95] * 4 + [0.5] * 2)
    correct = np.array([1, 1, 0, 0, 1, 0], bool)
    wanted = (4 * abs(0.5 - 0.95) + 2 * abs(0.5 - 0.5)) / 6
    assert classify.calibration_error(confidence, correct) == pytest.approx(wanted)
    assert classify.calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_the_bayes_classifier_is_the_enumerated_posterior():
    space = SPACES["sequence"]
    module = load_model("independent")
    model = module.Model(shape=(4,), num_values=3, cond=CLASSES, **module.TINY)
    params = parameters(model, "large")
    states = space.states()
    classes = np.arange(3, dtype=np.int32)
    log_px = classify.cond_log_probs(model, params, states, classes, batch_size=50)
    joint = np.exp(log_px) * [0.5, 0.3, 0.2]  # p(x, c)
    assert joint.sum() == pytest.approx(1, abs=1e-5)
    posterior = joint / joint.sum(1, keepdims=True)
    labels = np.arange(len(states)) % 3
    log_pc = np.log([0.5, 0.3, 0.2])
    found = classify.bayes_classifier(log_px, labels, log_pc)
    rows = np.arange(len(states))
    assert found["accuracy"] == np.mean(posterior.argmax(1) == labels)
    gain = np.log2(np.exp(log_px)[rows, labels] / joint.sum(1))
    assert found["bits_gained"] == pytest.approx(gain.mean(), abs=1e-5)
    wanted = -np.log(joint.sum(1)).mean()
    assert found["nats_marginal"] == pytest.approx(wanted, abs=1e-5)
    ece = classify.calibration_error(posterior.max(1), posterior.argmax(1) == labels)
    assert found["calibration_error"] == pytest.approx(ece, abs=1e-6)


def test_bits_that_dimensions_tell_are_against_the_mean_of_the_others():
    spec = CondSpec("real", 2, ("width", "height"), (0.0, 0.0), (1.0, 1.0))
    module = load_model("independent")
    model = module.Model(shape=(4,), num_values=3, cond=spec, **module.TINY)
    params = parameters(model, "large")
    x = SPACES["sequence"].states()[:20].astype(np.int32)
    points = np.array([[0.1, 0.9], [0.5, 0.2], [0.8, 0.7]], np.float32)
    cond = points[np.arange(20) % 3]
    nothing = types.SimpleNamespace(support=None, symbols=None, name="made up")
    sets = judge.Sets(x, x, x, cond, None, None, None)
    found = judge.judge(model, params, nothing, sets, num_bayes=15)["bayes"]
    p = np.empty((15, 3))
    for i, point in enumerate(points):
        given = np.tile(point, (15, 1))
        p[:, i] = np.exp(log_prob(model, params, x[:15], given, jax.random.key(0))[0])
    gain = np.log2(p[np.arange(15), np.arange(15) % 3] / p.mean(1))  # five of each
    assert found["bits_gained"] == pytest.approx(gain.mean(), abs=1e-4)
    assert found["bits_of_condition"] == pytest.approx(math.log2(3))
    assert abs(gain).max() > 0.1
    told = (found["count"], found["num_conditions"], found["bits_gained_bound"])
    assert told == (15, 3, "exact")


def test_class_frequencies():
    log_pc = classify.log_class_frequencies(np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(np.exp(log_pc), [3 / 6, 1 / 6, 2 / 6])


def test_the_classifier_learns_digits_and_is_the_same_again():
    digits = data.load("digits")
    x, labels = digits.train.batch(np.arange(len(digits.train)))
    fitted = classify.fit_classifier(x, labels, 17)
    test, wanted = digits.test.batch(np.arange(len(digits.test)))
    guess, features = fitted(test)
    assert np.mean(guess == wanted) > 0.93
    assert features.shape == (397, 64)
    np.testing.assert_array_equal(
        fitted.network.predict(test.reshape(397, -1) / 16), guess
    )
    few = [classify.fit_classifier(x[:99], labels[:99], 17, seed=s) for s in (1, 1, 2)]
    assert few[0].digest == few[1].digest != few[2].digest


@pytest.mark.parametrize("labels", [[0] * 29 + [1], [0] * 30, range(3)])
def test_a_class_of_one_example_is_learnt_too(labels):
    x = np.random.default_rng(0).integers(0, 17, (len(labels), 4, 4, 1))
    classes, features = classify.fit_classifier(x, np.asarray(labels), 17)(x)
    assert set(classes) <= set(labels)
    assert np.isfinite(features).all()


# Solids.


def test_a_render_agrees_with_its_own_dimensions_alone():
    support = data.load("solids", resolution=8).support
    rows = np.random.default_rng(0).permutation(8192)[:200]
    table = solids.settings()[rows]
    x, cond = solids.render_bytes(table, 8), solids.dimensions(table)
    assert support.agrees(x, cond).all()
    noisy = np.clip(
        x.astype(int) + np.random.default_rng(1).integers(-1, 2, x.shape), 0, 255
    )
    assert support.agrees(noisy, cond).mean() > 0.8
    other = solids.dimensions(solids.settings()[(rows + 4096) % 8192])
    assert not support.agrees(x, other).any()  # a cylinder is no cuboid
    found = gap.judge_samples(x, data.load("solids", resolution=8), cond)
    assert (found["agrees"], found["legal"]) == (1, 1)


def test_held_out_dimensions_are_in_test_alone():
    import jax

    held = data.load("solids_heldout", resolution=8)
    known, hidden = (
        {row.tobytes() for row in split.batch(np.arange(len(split)))[1]}
        for split in (held.valid, held.test)
    )
    _, drawn = held.train.draw(jax.random.key(0), 4000)
    known |= {row.tobytes() for row in np.asarray(drawn)}
    assert len(hidden) == 76
    assert not known & hidden
    assert held.entropy_nats is None
    # Every length on its own occurs in training, for cuboids and cylinders.
    everything = np.asarray(drawn)
    for column in (1, 2, 3):
        seen = {tuple(r) for r in everything[:, [0, column]].tolist()}
        asked = held.test.batch(np.arange(len(held.test)))[1][:, [0, column]]
        assert {tuple(r) for r in asked.tolist()} <= seen


# The whole.


def test_too_few_examples_are_refused():
    digits = data.load("digits")
    with pytest.raises(InputError, match="--num_samples=5: give 10 to"):
        judge.gather(None, None, digits, digits.test, 5)
    few = ArraySplit(digits.test.x[:5], digits.test.cond[:5])
    with pytest.raises(InputError, match="too few"):
        judge.gather(None, None, digits, few, 50)


def test_the_true_distribution_is_judged_like_its_floor():
    """Test images in the place of samples; a blurred copy is seen to be none."""
    digits = data.load("digits")
    x, labels = digits.test.batch(np.arange(397))
    train, known = digits.train.batch(np.arange(len(digits.train)))
    half = judge.Sets(
        x[:190], x[190:380], train[:190], labels[:190], labels[190:380], train, known
    )
    row = judge.judge(_Shape, None, digits, half)
    pixels = row["features"]["pca_64"]
    same, floor = pixels["samples"], pixels["floor"]
    assert same["frechet_distance"] == pytest.approx(floor["frechet_distance"], rel=0.3)
    assert same["mmd2_p"] > 0.01
    assert row["classifier"]["accuracy_samples"] > 0.9
    assert row["memorisation"]["nearer_than_test"] == pytest.approx(0.5, abs=0.13)
    picture = judge.picture(half, 17)
    assert picture.width > picture.height


class _Shape:
    shape, cond = (8, 8, 1), None
