"""Outlier scores against hand-computed values, their measures, sets and launcher."""

import io
import json
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launch import launch, one_error, train
from marks import slow
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from gm import data
from gm.audit.subject import parameters
from gm.data.puzzles import draw_pocket_cube, draw_rubiks_cube, invariants, make_illegal
from gm.errors import InputError
from gm.flow import FlowModel
from gm.latent import LatentModel
from gm.likelihood import normal_kl, sum_dims
from gm.model import load_model, log_prob
from gm.outliers import (
    INLIER,
    SCORES,
    Fitted,
    Models,
    choose,
    compare,
    score,
    sets,
    statistics,
)
from gm.outliers.measures import measures, weighted_measures
from gm.outliers.picture import edges
from gm.outliers.scores import dimensions, local_dimension

SHAPE, VALUES = (4, 4, 1), 5


def fitted(name, kind="perturbed", **settings):
    module = load_model(name)
    settings = module.TINY | settings
    model = module.Model(shape=SHAPE, num_values=VALUES, **settings)
    return Fitted(model, parameters(model, kind))


def draw(count, seed=0, high=VALUES):
    return np.random.default_rng(seed).integers(0, high, (count, *SHAPE))


def nats_of(fitted, x):
    value = log_prob(
        fitted.model, fitted.params, jnp.asarray(x), None, jax.random.key(9)
    )
    return -np.asarray(value[0])


@pytest.fixture(scope="module")
def made():
    return fitted("made")


# Measures.


def test_measures_of_perfect_reversed_and_equal_scores():
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 400), rng.normal(30, 1, 300)
    perfect, reversed_ = measures(low, high), measures(high, low)
    assert (perfect["auroc"].value, perfect["auroc"].low) == (1, 1)
    assert (perfect["aupr"].value, perfect["fpr95"].value) == (1, 0)
    assert (reversed_["auroc"].value, reversed_["fpr95"].value) == (0, 1)
    same = measures(low, rng.normal(0, 1, 300))["auroc"]
    assert same.low < 0.5 < same.high
    assert 0.05 < same.high - same.low < 0.15


def test_resampled_measures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, 80).astype(float)  # many ties
    labels = np.repeat([0, 1], [50, 30])
    scores[50:] += 2
    counts = np.stack([np.ones(80, int), rng.integers(0, 4, 80)])
    found = weighted_measures(scores, labels, counts)
    for i, weight in enumerate(counts):
        expected = roc_auc_score(labels, scores, sample_weight=weight)
        assert found["auroc"][i] == pytest.approx(expected)
        expected = average_precision_score(labels, scores, sample_weight=weight)
        assert found["aupr"][i] == pytest.approx(expected)
    shown = {k: v.value for k, v in measures(scores[:50], scores[50:]).items()}
    assert shown == pytest.approx({k: v[0] for k, v in found.items()})


def test_inliers_flagged_where_scores_are_equal():
    tied = np.arange(100.0)  # one of each side at every score
    assert measures(tied, tied)["fpr95"].value == pytest.approx(0.95)


def test_a_score_that_is_not_finite_is_the_most_outlying():
    found = measures(np.array([0.0, 1.0]), np.array([np.inf, np.nan]))
    assert found["auroc"].value == 1


# Scores, by hand.


def test_bins_show_the_inliers_beside_far_outliers():
    rng = np.random.default_rng(0)
    values = {INLIER: rng.normal(size=500), "far": rng.normal(1e6, 1, 500)}
    counts = np.histogram(values[INLIER], edges(values))[0]
    assert (counts > 0).sum() > 10
    near = {INLIER: values[INLIER], "near": values[INLIER] + 1}
    low, high = edges(near)[[0, -1]]
    assert -4 < low < -2
    assert 3 < high < 5


def test_likelihood_scores_by_hand(made):
    other = fitted("made", "large")
    fit, x = draw(12, 1), draw(7, 2)
    models = Models(made, background=other, ensemble=(other,), group_size=3)
    names = ["likelihood", "typicality", "typicality_group", "likelihood_ratio", "waic"]
    found, _ = score(models, fit, {"x": x}, names)
    found = {name: values["x"] for name, values in found.items()}
    nats, other_nats, entropy = nats_of(made, x), nats_of(other, x), nats_of(made, fit)
    entropy = entropy.mean()
    expected = {
        "likelihood": nats,
        "typicality": abs(nats - entropy),
        "typicality_group": abs(nats[:6].reshape(2, 3).mean(1) - entropy),
        "likelihood_ratio": nats - other_nats,
        "waic": (nats + other_nats) / 2 + (nats - other_nats) ** 2 / 2,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4)


def test_complexity_is_bits_above_the_shortest_file(made):
    x = np.concatenate([draw(2), np.zeros((1, *SHAPE), int)])
    found, _ = score(Models(made), x, {"x": x}, ["complexity"])
    for i, image in enumerate(x.astype(np.uint8)):
        sizes = [len(zlib.compress(image.tobytes(), 9))]
        for name, options in {
            "PNG": dict(optimize=True),
            "WebP": dict(lossless=True, quality=100, method=4),
        }.items():
            file = io.BytesIO()
            Image.fromarray(image[..., 0]).save(file, name, **options)
            sizes.append(len(file.getvalue()))
        expected = nats_of(made, x[i : i + 1])[0] / np.log(2) - 8 * min(sizes)
        assert found["complexity"]["x"][i] == pytest.approx(expected, abs=1e-3)


def test_gradient_norm_of_an_example(made):
    x = draw(3)

    def log_px(params):
        return log_prob(made.model, params, x[1:2], None, jax.random.key(0))[0][0]

    gradient = jax.tree.leaves(jax.grad(log_px)(made.params))
    expected = np.sqrt(sum(float((g**2).sum()) for g in gradient))
    found = statistics.gradient_norms(made.model, made.params, x)
    assert found[1] == pytest.approx(expected, rel=1e-4)


class Blind(LatentModel):
    """A model whose p(x|z) is the same for all z, so that the best q is the prior."""

    latent_dims = 3

    def infer(self, x, cond=None, *, train=False):
        mean = jnp.stack([x.reshape(len(x), -1)[:, i] for i in range(3)], 1) / 4.0
        return mean, jnp.full(mean.shape, -0.3)

    def generate(self, z, cond=None, *, train=False):
        return z

    def log_px_z(self, params, x):
        return jnp.full(len(x), -5.0)


def test_likelihood_regret_of_a_known_optimum():
    model, x = Blind(shape=SHAPE, num_values=VALUES), draw(5)
    found = statistics.likelihood_regrets(model, {}, x, num_steps=200)
    mean, log_std = model.infer(jnp.asarray(x))
    expected = np.asarray(sum_dims(normal_kl(mean, log_std)))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_likelihood_regret_is_never_negative():
    vae = fitted("vae")
    found, _ = score(Models(vae), draw(4), {"x": draw(6)}, ["likelihood_regret"])
    regret = found["likelihood_regret"]["x"]
    assert (regret >= 0).all()
    assert regret.max() > 0


class Linear(FlowModel):
    """Z = A y, where the map back stretches three directions and squeezes the others."""

    def forward(self, y, cond=None, *, train=False):
        z = y.reshape(len(y), -1) @ jnp.asarray(self.matrix())
        return z, jnp.full(len(y), float(np.linalg.slogdet(self.matrix())[1]))

    @staticmethod
    def matrix():
        rng = np.random.default_rng(0)
        left, right = (np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2))
        return (left * np.repeat([0.5, 1e3], [3, 13]) @ right).astype(np.float32)


def test_lid_of_a_linear_flow_of_known_rank():
    model = Linear(shape=SHAPE, num_values=VALUES)
    found = statistics.singular_values(model, {}, draw(3))
    np.testing.assert_allclose(found[:, :3], 2, rtol=1e-3)
    np.testing.assert_allclose(found[:, 3:], 1e-3, rtol=1e-2)
    np.testing.assert_array_equal(dimensions(found, 0.05), 3)


def test_local_dimension_of_a_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 10))
    assert local_dimension(plane) == pytest.approx(3, abs=0.3)


def test_lid_flags_the_unlikely_and_the_thin():
    flow = fitted("nice")
    fit = draw(40)
    found, _ = score(Models(flow), fit, {"fit": fit, "x": draw(10, 3)}, ["lid"])
    for values in found["lid"].values():
        assert ((values >= 0) & (values <= 1)).all()
    assert found["lid"]["fit"].mean() > 0.5  # the larger of two uniform parts


# Fitting.


@pytest.mark.parametrize(
    "name",
    ["vae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("made", "nice"))],
)
def test_no_outlier_is_seen_in_fitting(name):
    models, fit, inliers = Models(fitted(name)), draw(30, 1), draw(25, 2)
    both = [
        compare(models, fit, inliers, {"x": x}).scores
        for x in (draw(25, 3), draw(25, 4, high=2))
    ]
    assert len(both[0]) > 5
    for found, other in zip(*(run.items() for run in both), strict=True):
        np.testing.assert_array_equal(found[1]["inlier"], other[1]["inlier"])


def test_inliers_are_no_outliers_by_any_score(made):
    found = compare(Models(made), draw(200, 1), draw(200, 2), {"same": draw(200, 3)})
    for name, row in found.measures.items():
        auroc = row["same"]["auroc"]
        assert auroc.low < 0.5 < auroc.high or abs(auroc.value - 0.5) < 0.08, name
    assert "no Gaussian q(z|x)" in found.left_out["likelihood_regret"]
    assert set(found.left_out) == {
        "likelihood_ratio",
        "waic",
        "likelihood_regret",
        "lid",
    }


def test_what_is_not_finite_is_most_outlying_and_fits_no_score(monkeypatch):
    seen = draw(60, 1)

    def lost(model, params, x, draws=1):
        nats = x.sum((1, 2, 3)).astype(float)
        return np.where(x[:, 0, 0, 0] == 0, np.inf, nats), {}

    def norms(model, params, x):
        return x.std((1, 2, 3)) + 1

    monkeypatch.setattr(statistics, "log_likelihoods", lost)
    monkeypatch.setattr(statistics, "gradient_norms", norms)
    names = ["typicality", "dose", "dose_svm"]
    found, _ = score(Models(fitted("independent")), seen, {"x": seen}, names)
    for values in found.values():
        np.testing.assert_array_equal(np.isfinite(values["x"]), seen[:, 0, 0, 0] > 0)
    none = np.zeros_like(seen)  # no one is left to fit a score on
    left_out = score(Models(fitted("independent")), none, {"x": seen})[1]
    assert "finite" in left_out["typicality"]
    assert "finite" in left_out["dose"]
    with pytest.raises(InputError, match="--scores=dose: fewer than two"):
        score(Models(fitted("independent")), none, {"x": seen}, ["dose"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("lid", "--scores=lid: MADE is no flow"),
        ("likelihood_regret", "has no Gaussian q"),
        ("likelihood_ratio", "no --background run"),
        ("waic", "no --ensemble runs"),
        ("complexty", "did you mean complexity?"),
    ],
)
def test_a_score_that_cannot_be_had(made, name, parts):
    with pytest.raises(InputError) as error:
        choose(Models(made), [name])
    assert parts in str(error.value)
    assert "\n" not in str(error.value)


# Sets.


def test_outliers_made_of_test_examples():
    digits = data.load("digits")
    x = sets.take(digits.test, 50)
    made = {
        name: sets.outliers(name, digits, x, data_dir=None)
        for name in ("constants", "noise", "shuffled", "inverted")
    }
    for name, values in made.items():
        assert values.shape == x.shape, name
        assert values.min() >= 0 and values.max() < digits.num_values, name  # noqa: PT018
    assert (made["constants"] == made["constants"][:, :1, :1]).all()
    assert len(np.unique(made["constants"])) > 10
    np.testing.assert_array_equal(
        np.sort(made["shuffled"].reshape(50, -1)), np.sort(x.reshape(50, -1))
    )
    assert (made["shuffled"] != x).any((1, 2, 3)).all()
    np.testing.assert_array_equal(16 - made["inverted"], x)


@pytest.mark.parametrize("draw", [draw_pocket_cube, draw_rubiks_cube])
def test_illegal_cubes_have_all_pieces_and_one_that_is_turned(draw):
    x = np.asarray(draw(jax.random.key(0), 200)[0])
    facts = invariants(make_illegal(x, np.random.default_rng(0)))
    assert facts["cubies"].all()
    wrong = sum((~ok).astype(int) for ok in facts.values())
    np.testing.assert_array_equal(wrong, 1)
    if "edge_flip" in facts:
        assert 60 < (~facts["edge_flip"]).sum() < 140


def test_paths_that_end_alike_are_told_apart():
    names = ["noise", "files:a/x", "files:b/x", "files:c/y", "noise"]
    shown = ["noise", "files:a/x", "files:b/x", "files:y"]
    assert list(sets.labels(names).values()) == shown


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nois", "did you mean noise?"),
        ("illegal", "digits is no puzzle"),
        ("digits", "is the inlier's own data"),
        ("pocket_cube", "its examples are 24 of 6 values, those of digits 8x8x1 of 17"),
        ("files:nowhere", "there is no nowhere"),
    ],
)
def test_a_set_that_cannot_be_had(name, part):
    digits = data.load("digits")
    with pytest.raises(InputError) as error:
        sets.outliers(name, digits, sets.take(digits.test, 5), data_dir=None)
    assert str(error.value).startswith(f"--outliers={name}: ")
    assert part in str(error.value)


# The launcher.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "digits"
    args = ("--set=width=16", "--num_steps=100", "--valid_every=100")
    quick = ("--learning_rate=0.03", "--warmup_steps=0", "--ema_decay=0.9")
    status, _, err = train(path, *args, *quick)
    assert status == 0, err
    return path


def test_one_command_compares(run):
    args = ("--num_examples=60", "--outliers=noise,constants")
    status, out, err = launch("outliers", f"--inlier={run}", *args)
    assert status == 0, err
    assert "| score | noise | constants |" in out
    assert "lid: left out, MADE is no flow" in out
    (path,) = (run / "applications").glob("outliers*.json")
    row: dict[str, Any] = json.loads(path.read_text())
    assert row["sizes"] == {"fit": 60, "inlier": 60, "noise": 60, "constants": 60}
    assert row["measures"]["likelihood"]["noise"]["auroc"]["value"] > 0.9
    assert (row["estimate"], row["fit_split"]) == ("exact", "train")
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.width > 500
    assert "AUPR" in path.with_suffix(".md").read_text()


def test_a_group_larger_than_the_set_is_refused():
    args = ("--inlier=none", "--scores=typicality_group", "--num_examples=5")
    one_error(launch("outliers", *args), "--group_size=10", "--num_examples=10")


def test_a_group_larger_than_a_set_is_refused(run, tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (8, 8, 8, 1), np.uint8)
    np.save(tmp_path / "few.npy", x)
    args = ("--num_examples=50", f"--outliers=files:{tmp_path}/few.npy")
    outcome = launch("outliers", f"--inlier={run}", "--scores=typicality_group", *args)
    one_error(outcome, "--group_size=10", "files:few.npy has", "examples")


def test_a_folder_is_ranked(run, tmp_path):
    digits = data.load("digits")
    x = digits.test.batch(np.arange(9))[0]
    x[4] = 16 - x[4]  # in no digit is the border bright
    for i, image in enumerate(x):
        levels = (image[..., 0].astype(int) * 255 // 16).astype(np.uint8)
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
    np.testing.assert_array_equal(sets.read_images(str(tmp_path), digits)[1], x)
    args = ("--num_examples=50", "--scores=likelihood")
    status, out, err = launch(
        "outliers", f"--inlier={run}", f"--rank={tmp_path}", *args
    )
    assert status == 0, err
    (path,) = (run / "applications").glob("rank=*.json")
    row = json.loads(path.read_text())
    ranked = [entry["likelihood"] for entry in row["ranking"]]
    assert (len(ranked), ranked) == (9, sorted(ranked, reverse=True))
    assert row["ranking"][0]["path"] == "4.png"
    assert "4.png" in out.splitlines()[1]
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.width >= 3 * 9


def test_help_names_the_scores():
    text = launch("outliers", "--help")[1]
    listed = re.search(r"--scores: of\s(.*?);", text, re.DOTALL)[1]
    assert re.split(r",\s+", listed) == list(SCORES)


def test_a_folder_without_images(run, tmp_path):
    outcome = launch("outliers", f"--inlier={run}", f"--rank={tmp_path}")
    one_error(outcome, f"--rank={tmp_path}", "no images in it")


def test_a_background_of_unchanged_examples_is_refused(run):
    args = (f"--inlier={run}", f"--background={run}", "--outliers=noise")
    one_error(launch("outliers", *args), f"--background={run}", "--augmentation=mutate")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--ensemble={run} --outliers=noise", "is the --inlier itself"),
        slow("--background=none", "--background=none: no run here"),
        slow("--reverse={run}", "trained on the inlier's own data, digits"),
        slow("--rank={run} --outliers=noise", "leave it or --outliers, --reverse out"),
    ],
)
def test_another_run_that_cannot_serve_is_refused(run, flags, part):
    args = flags.format(run=run).split()
    one_error(launch("outliers", f"--inlier={run}", *args), part)
