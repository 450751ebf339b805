"""Image-to-image translation: tasks, image conditions, bits of the whole, domains."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gm import data, gap, translate, unpaired
from gm.audit.subject import Space, parameters, quick_jit
from gm.config import RunConfig
from gm.data import tasks
from gm.data.translated import find_task
from gm.errors import InputError
from gm.model import load_model, log_prob
from gm.nn.conditioning import per_position, per_symbol, resample
from gm.rundir import read_json
from gm.spec import CondSpec
from gm.trained import describe, rebuild_model
from tests.launch import SMALL, launch, one_error, train

COLOUR, GREY = (8, 8, 3), (8, 8, 1)


def images(shape, num_values, count=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, num_values, (count, *shape)).astype(np.uint8)


# Tasks.


@pytest.mark.parametrize(
    ("name", "shape", "num_values"),
    [
        ("colorize", COLOUR, 256),
        ("superres:4", COLOUR, 256),
        ("inpaint:left", GREY, 17),
        ("inpaint", (7, 6, 1), 17),
        ("edges:4", COLOUR, 256),
        ("style:5", COLOUR, 256),
        ("denoise", GREY, 17),
    ],
)
def test_a_task_gives_the_same_in_numpy_and_in_the_step(name, shape, num_values):
    task = tasks.make(name.split(":"), shape, num_values)
    y = images(shape, num_values)
    s = task.apply(y)
    assert s.shape == (len(y), *task.shape)
    assert s.min() >= 0
    assert s.max() < task.num_values
    assert len(np.unique(s)) > 2
    traced = quick_jit(task.apply)(jnp.asarray(y, jnp.int32))
    np.testing.assert_array_equal(s, traced)
    np.testing.assert_array_equal(s[2:3], task.apply(y[2:3]))  # of its image alone


def test_tasks_against_their_definitions():
    y = images(COLOUR, 256).astype(int)

    def apply(name):
        return tasks.make(name.split(":"), COLOUR, 256).apply(y)

    r, g, b = (y[..., c] for c in range(3))
    np.testing.assert_array_equal(apply("colorize")[..., 0], (r + 2 * g + b) // 4)
    block = y[1, 2:4, 6:8, 0]
    assert apply("superres:2")[1, 1, 3, 0] == int(np.floor(block.mean()))
    hidden = apply("inpaint:right") == 0
    assert hidden[:, :, 4:].all()
    np.testing.assert_array_equal(apply("inpaint:right")[:, :, :4], y[:, :, :4])
    assert (apply("inpaint")[:, 2:6, 2:6] == 0).all()  # a box of a quarter
    assert (apply("inpaint") > 0).sum() > 5 * 48 * 3 * 0.9
    np.testing.assert_array_equal(apply("style"), y // 64)  # four tones


def test_edges_are_those_of_sobel():
    from scipy.ndimage import sobel

    y = images(GREY, 17, 1)
    task = tasks.make(["edges", "5"], GREY, 17)
    grey = y[0, ..., 0].astype(int)
    size = sum(abs(sobel(grey, axis, mode="nearest")) for axis in (0, 1))
    np.testing.assert_array_equal(task.apply(y)[0, ..., 0], np.minimum(size // 16, 4))
    assert (task.apply(np.full((1, *GREY), 9)) == 0).all()


def test_noise_is_a_function_of_the_image_and_spread_evenly():
    task = tasks.make(["denoise", "3"], GREY, 100)
    y = np.full((400, *GREY), 50) + np.arange(400)[:, None, None, None] % 2
    y[:, 0, 0, 0] = np.arange(400) % 100
    noise = (task.apply(y) - y)[:, 1:]
    assert noise.min() == -3
    assert noise.max() == 3
    counts = np.bincount(noise.ravel() + 3)
    assert abs(counts / counts.mean() - 1).max() < 0.06
    assert (noise[0] != noise[2]).any()
    np.testing.assert_array_equal(noise[0], noise[200])  # equal images
    assert not task.checkable


# Data sets.


def test_sources_are_those_of_the_images_in_every_split():
    pairs, alone = (
        data.load(f"{k}:superres:2:digits") for k in ("translate", "source")
    )
    digits = data.load("digits")
    assert pairs.shape == digits.shape
    assert (alone.shape, alone.cond) == ((4, 4, 1), None)
    assert pairs.cond.label == "image:superres:2,4x4x1"
    for part in ("train", "valid", "test"):
        y, s = pairs.split(part).batch(np.arange(20))
        np.testing.assert_array_equal(y, digits.split(part).batch(np.arange(20))[0])
        np.testing.assert_array_equal(s, find_task(pairs).apply(y))
        np.testing.assert_array_equal(s, alone.split(part).batch(np.arange(20))[0])
    # The same bytes as without sources: their rows compare.
    same = [data.identify(d, d.test)[0] for d in (pairs, digits)]
    assert same[0] == same[1]


@pytest.mark.slow
def test_images_that_are_drawn_in_the_step_have_sources_too():
    name = "superres:2:solids"
    pairs = data.load(f"translate:{name}", resolution=8)
    alone = data.load(f"source:{name}", resolution=8)
    key = jax.random.key(1)
    y, s = jax.jit(pairs.train.draw, static_argnums=1)(key, 8)
    np.testing.assert_array_equal(s, find_task(pairs).apply(np.asarray(y)))
    np.testing.assert_array_equal(s, alone.train.draw(key, 8)[0])
    assert alone.unit == "object"


def write_images(folder, names, size, value):
    folder.mkdir()
    for i, name in enumerate(names):
        x = np.full((size, size, 3), value + i, np.uint8)
        Image.fromarray(x).save(folder / f"{name}.png")


def test_solids_are_judged_given_a_source_too():
    dataset = data.load("translate:superres:2:solids", resolution=8)
    x, source = dataset.test.batch(np.arange(3))
    found = gap.judge_samples(x, dataset, source)
    assert found["legal"] == 1
    assert "agrees" not in found  # a source is no dimensions


def test_pairs_from_two_folders_go_by_name(tmp_path):
    names = [f"{i:02d}" for i in range(20)]
    write_images(tmp_path / "a", names, 4, 0)
    write_images(tmp_path / "b", names, 8, 100)
    where = f"folders:{tmp_path / 'a'},{tmp_path / 'b'}"
    pairs, alone = data.load(f"translate:{where}"), data.load(f"source:{where}")
    for part in ("train", "valid", "test"):
        y, s = pairs.split(part).batch(np.arange(len(pairs.split(part))))
        assert s.shape[1:] == pairs.cond.shape == (4, 4, 3)
        np.testing.assert_array_equal(s[:, 0, 0], y[:, 0, 0] - 100)
        np.testing.assert_array_equal(s, alone.split(part).batch(np.arange(len(s)))[0])
    (tmp_path / "a" / "07.png").rename(tmp_path / "a" / "seven.png")
    with pytest.raises(InputError, match="a/seven has none in .*/b; both folders need"):
        data.load(f"translate:{where}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("translate:colourize:digits", "did you mean colorize?"),
        ("translate:colorize:digits", "needs images in colour"),
        ("translate:superres:3:digits", "3 does not divide 8x8"),
        ("translate:superres:digits", "give superres:N"),
        ("translate:inpaint:middle:digits", "one of left, right"),
        ("translate:denoise:40:digits", "noise of up to 40 on 17 values"),
        ("translate:edges:8:digits", "8 levels, of which 7 can occur"),
        ("translate:superres:2:sayings", "takes images"),
        ("translate:superres:2", "no data set; give translate:TASK:NAME"),
        ("translate:superres:2:digit", "did you mean digits?"),
        ("translate:folders:/nowhere,/else", "no folder /nowhere"),
        ("translate:folders:/", "two are needed"),
        ("domains:sayings", "give solids, or a data set of images"),
    ],
)
def test_a_bad_name_is_one_line(name, message):
    with pytest.raises(InputError) as error:
        data.load(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Images as conditions.


def test_a_map_lies_over_the_grid():
    h = jnp.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(resample(h, (2, 4))[:, 0, 1], h[:, :2, 1].mean(1))
    np.testing.assert_allclose(resample(h, (8, 4))[:, 5, 1], h[:, 2, 1])
    np.testing.assert_allclose(resample(h, (8, 2))[1, 7, 1], h[1, 3, 2:].mean(0))
    with pytest.raises(ValueError, match="neither divides"):
        resample(h, (3, 4))
    assert per_position(h[:, 0, 0], (5, 5)).shape == (2, 1, 1, 3)
    each = per_symbol(h, (4, 4, 2))
    np.testing.assert_allclose(each[1, 2 * (4 * 3 + 1) + 1], h[1, 3, 1])


def conditional(name, **settings):
    """A tiny model of 8x8 images given images of 4x4, perturbed, and a batch."""
    cond = CondSpec("image", 16, ("half",), shape=(4, 4, 1), num_values=4)
    module = load_model(name)
    model = module.Model(GREY, 4, cond, **(module.TINY | settings))
    x, s = images(GREY, 4, 2).astype(np.int32), images((4, 4, 1), 4, 2, seed=1)
    return model, parameters(model, "perturbed"), x, s


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pixelcnn", {}),
        ("transformer", {}),
        pytest.param("pixelcnnpp", {"num_scales": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_cache_sees_the_same_condition(name, settings):
    model, params, x, s = conditional(name, **settings)

    def both(params, s):
        def call(method, *args):
            return model.apply({"params": params}, *args, method=method)

        flat = jnp.asarray(x).reshape(2, -1)

        def body(carry, i):
            cache, out = call("step", *carry[:1], i, carry[1])
            return (cache, flat[:, i]), out

        start = (call("init_cache", 2, s), jnp.zeros(2, jnp.int32))
        steps = jax.lax.scan(body, start, jnp.arange(64))[1]
        return call("conditionals", flat, s), jnp.moveaxis(steps, 0, 1)

    both = quick_jit(both)
    whole, steps = both(params, s)
    np.testing.assert_allclose(whole, steps, atol=1e-5)
    # The last coarse pixel tells the first pixel little or nothing, the last one much.
    other = s.copy()
    other[:, 3, 3] = 3 - other[:, 3, 3]
    moved = np.abs(both(params, other)[0] - whole).max(2)
    assert (moved[:, -1] > 1e-4).all()


@pytest.mark.slow
def test_every_model_takes_an_image_as_its_condition(model_name):
    model, params, x, s = conditional(model_name)
    key = jax.random.key(0)

    def value(params, s):
        return log_prob(model, params, x, s, key)[0]

    gradient = quick_jit(jax.grad(lambda p: value(p, s).mean()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, f"{name} gets no gradient"
    both = quick_jit(value)
    assert (np.abs(both(params, s) - both(params, 3 - s)) > 1e-5).all()


def test_a_model_is_rebuilt_from_what_the_run_kept():
    dataset = data.load("translate:superres:2:digits")
    kept = json.loads(json.dumps(describe(dataset, True)))
    config = RunConfig("made", dataset.name, conditional=True)
    assert rebuild_model(config, kept).cond == dataset.cond
    # Classes are kept as they were before images could be conditions.
    classes = describe(data.load("digits"), True)["cond"]
    assert set(classes) == {"kind", "size", "names", "low", "high"}


# Bits of the whole.


def test_source_and_image_are_a_distribution_but_for_the_leaked_mass():
    space = Space((2, 2, 1), 3)
    task = tasks.make(["superres", "2"], space.shape, 3)
    cond = CondSpec("image", 1, ("superres:2",), shape=task.shape, num_values=3)
    module = load_model("made")
    model = module.Model(space.shape, 3, cond, **module.TINY)
    source = load_model("independent").Model(task.shape, 3, width=4)
    params, source_params = (parameters(m, "large") for m in (model, source))
    y, key = space.states(), jax.random.key(0)
    s = task.apply(y)
    value = quick_jit(log_prob, "model")
    log_py = np.asarray(value(model, params, y, s, key)[0], np.float64)
    log_ps = np.asarray(value(source, source_params, s, None, key)[0], np.float64)
    total = np.exp(log_ps + log_py).sum()

    levels = np.arange(3).reshape(3, 1, 1, 1)
    leaked = translate.leaked_mass(model, params, task, levels)
    ps = np.exp(np.asarray(value(source, source_params, levels, None, key)[0]))
    assert total <= 1 + 1e-5
    assert 0.05 < ps @ leaked < 0.95
    np.testing.assert_allclose(total, 1 - ps @ leaked, rtol=1e-5)
    # Draws say the same of the mass that is kept.
    drawn = translate.outputs(model, params, np.repeat(levels, 50, 0), count=20)
    rate = translate.consistency(task, drawn, np.repeat(levels, 50, 0))
    assert abs(rate["images"] - (1 - leaked.mean())) < 4 * 0.5 / np.sqrt(3000)
    assert rate["num_draws"] == 3000


def test_errors_consistency_and_neighbours_by_hand():
    task = tasks.make(["superres", "2"], (2, 2, 1), 9)
    y = np.full((2, 2, 2, 1), 4)
    y_hat = np.stack([y, y + 1])
    y_hat[1, 1] = y[1]
    assert translate.errors(y_hat, y) == {
        "mean_error": 0.25,
        "best_error": 0.0,
        "diversity": 0.5,
    }
    rate = translate.consistency(task, y_hat, task.apply(y))
    assert (rate["pixels"], rate["images"]) == (0.75, 0.75)
    pairs = data.load("translate:inpaint:left:digits").train
    y, s = pairs.batch(np.arange(5))
    np.testing.assert_array_equal(translate.nearest(pairs, s), y)


# Domains.


def test_domains_know_their_partners():
    for name in ("domains:digits", "domains:solids"):
        dataset = data.load(name, resolution=8)
        for part in ("train", "valid", "test"):
            split = dataset.split(part)
            x, label = split.batch(np.arange(len(split)))
            partners = split.partners()
            np.testing.assert_array_equal(label[partners], 1 - label)
            np.testing.assert_array_equal(partners[partners], np.arange(len(split)))
            if name == "domains:digits":
                np.testing.assert_array_equal(x[partners], 16 - x)
    x = np.concatenate([dataset.split(p).x for p in ("train", "valid", "test")])
    assert len(np.unique(x.reshape(len(x), -1), axis=0)) == len(x) == 2048


def test_a_flow_translates_and_comes_back():
    dataset = data.load("domains:digits")
    module = load_model("nice")
    model = module.Model(GREY, 17, dataset.cond, **module.TINY)
    x, domain = dataset.test.batch(np.arange(0, 794, 97))
    params = parameters(model, "perturbed")
    moved, cycle = unpaired.translate(model, params, x, domain, batch_size=4)
    assert moved.shape == x.shape
    assert moved.min() >= 0
    assert moved.max() < 17
    assert (moved != x).any()
    assert cycle.max() < 1e-3


def test_an_image_for_which_the_inverse_overflows_is_black_and_told(monkeypatch):
    def overflowing(model, params, y, domain):
        return y.at[1, 0, 0].set(jnp.nan), y.at[2, 3, 3].set(jnp.nan)

    monkeypatch.setattr(unpaired, "_translate", overflowing)
    model = load_model("nice").Model(GREY, 17)
    x = np.full((3, *GREY), 5)
    moved, cycle = unpaired.translate(model, None, x, np.zeros(3), batch_size=3)
    np.testing.assert_array_equal(moved[[0, 2]], x[[0, 2]])
    assert (moved[1] == 0).all()
    assert np.isinf(cycle[1]).all()
    assert np.isinf(cycle[2]).sum() == 1
    assert (cycle[0] == 0).all()


def test_translations_are_judged_by_their_partners():
    x = images(GREY, 17, 30).astype(int)
    others = images(GREY, 17, 50, seed=1).astype(int)
    among = np.concatenate([others, 16 - x])
    found = unpaired.judge(x, 16 - x, 16 - x, among)
    assert (found["match_rate"], found["mean_error"]) == (1, 0)
    assert found["match_rate_of_copies"] < 0.5
    assert found["match_rate_of_chance"] == 1 / 80
    wrong = unpaired.judge(x, np.roll(16 - x, 1, 0), 16 - x, among)
    assert wrong["match_rate"] == 0
    # Nearest of all there are, not of the partners of the images that are judged.
    assert unpaired.judge(x, others[:30], 16 - x, 16 - x)["match_rate"] < 0.2
    nearer = np.concatenate([16 - x, others])
    assert unpaired.judge(x, others[:30], 16 - x, nearer)["match_rate"] == 0


def test_what_cannot_translate_unpaired_is_told():
    cond = CondSpec("class", 2)
    made = load_model("made").Model(GREY, 17, cond)
    with pytest.raises(InputError, match="MADE is no flow"):
        unpaired.check_flow(made)
    with pytest.raises(InputError, match="condition is none; train with --conditional"):
        unpaired.check_flow(load_model("nice").Model(GREY, 17))


# The launcher.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on pairs and one on their sources, both evaluated."""
    folder, args = tmp_path_factory.mktemp("runs"), ("--set=width=16", *SMALL)
    for kind, more in (("translate", ["--conditional"]), ("source", [])):
        outcome = train(
            folder / kind,
            *args,
            *more,
            "--evaluate=test",
            dataset=f"{kind}:superres:2:digits",
        )
        assert outcome[0] == 0, outcome[2]
    return folder


def test_translate_writes_a_row_a_picture_and_the_bits_of_the_whole(runs):
    args = (f"--workdir={runs / 'translate'}", f"--source_run={runs / 'source'}")
    status, out, err = launch("translate", *args, "--num_examples=5")
    assert status == 0, err
    assert "bits(source) + bits(image | source)" in out
    row = read_json(runs / "translate/applications/translate-test-num_examples=5.json")
    evaluated = read_json(runs / "translate/results/test.json")
    assert row["conditional_bits"]["bits_per_dim"] == evaluated["bits_per_dim"]
    assert row["consistency"]["num_draws"] == 20
    assert row["leaked_mass"]["mean"] == 1 - row["consistency"]["images"]
    assert row["outputs"]["best_error"] < row["outputs"]["mean_error"]
    picture = runs / "translate/applications/translate-test-num_examples=5.png"
    with Image.open(picture) as image:
        assert image.width > image.height  # 6 columns, 5 rows
    # Per image the two parts belong to the same image, whatever the order of the rows.
    whole = np.load(runs / "translate/results/whole-test.nats.npy")
    total = np.zeros(397)
    for kind in ("translate", "source"):
        dataset = data.load(f"{kind}:superres:2:digits")
        order = data.identify(dataset, dataset.test)[1]
        total[order] += np.load(runs / kind / "results/test.nats.npy")
    digits = data.load("digits")
    sha256, order = data.identify(digits, digits.test)
    np.testing.assert_allclose(whole, total[order])
    row = read_json(runs / "translate/results/whole-test.json")
    assert (row["dataset"], row["split_sha256"]) == ("digits", sha256)
    assert (row["conditioning"], row["estimate"]) == ("none", "exact")
    np.testing.assert_allclose(row["nats"], total.mean())


def test_outputs_of_another_temperature_are_told_and_say_nothing_of_the_model(runs):
    run = runs / "translate"
    args = (f"--workdir={run}", "--num_examples=3", "--temperature=0.5")
    status, out, err = launch("translate", *args)
    assert status == 0, err
    assert "not of the model itself: temperature 0.5" in out
    (path,) = (run / "applications").glob("*temperature=0.5.json")
    row = read_json(path)
    assert row["leaked_mass"] is None
    assert row["consistency"]["num_draws"] == 12


def test_an_unconditional_run_is_refused(runs):
    outcome = launch("translate", f"--workdir={runs / 'source'}")
    one_error(outcome, runs / "source", "unconditional", "--conditional")


def test_a_source_run_of_other_data_is_refused_before_anything_is_written(runs):
    run = runs / "translate"
    args = (f"--workdir={run}", f"--source_run={run}", "--num_examples=7")
    outcome = launch("translate", *args)
    one_error(outcome, f"--source_run={run}", "give a run on source:superres:2:digits")
    assert not list(run.glob("applications/*num_examples=7*"))


def test_flags_of_pairs_are_refused_where_there_are_none():
    outcome = launch("translate", "--workdir=none", "--unpaired", "--temperature=0.5")
    one_error(outcome, "--temperature: is for pairs; leave it or --unpaired out")
