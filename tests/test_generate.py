"""Samples as they are asked for: conditions, prompts, nucleus, guidance, documents."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launch import SMALL, launch, one_error, train

from gm import generate
from gm import train as training
from gm.audit.subject import CLASSES, REALS, SPACES, parameters, quick_jit
from gm.autoregressive import nucleus
from gm.config import TrainConfig
from gm.errors import InputError
from gm.model import load_model
from gm.nn import conditioning
from gm.spec import CondSpec

OPTIONAL = dataclasses.replace(CLASSES, optional=True)
TEN = CondSpec("class", 3, ("cat", "dog", "7"))


def make(name, cond=None, shape=(4,), num_values=3, **settings):
    module = load_model(name)
    model = module.Model(
        shape=shape, num_values=num_values, cond=cond, **{**module.TINY, **settings}
    )
    return model, parameters(model, "large")


def draw(model, params, count, cond=None, **options):
    return generate.draw(model, params, count, cond, **options)


# Noise.


def test_neighbours_and_the_batch_size_change_no_sample():
    model, params = make("made", CLASSES)
    cond = np.arange(7, dtype=np.int32) % 3
    whole = draw(model, params, 7, cond)
    np.testing.assert_array_equal(draw(model, params, 7, cond, batch_size=3), whole)
    assert (draw(model, params, 7, cond, seed=1) != whole).any()
    same = draw(model, params, 7, cond * 0, numbers=np.zeros(7, np.int32))
    assert (same == same[0]).all()


# Nucleus.


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-6, [1]), (0.5, [1]), (0.51, [1, 3]), (0.9, [1, 3, 0]), (0.96, [0, 1, 2, 3])],
)
def test_a_nucleus_is_the_fewest_values_of_that_mass(top_p, kept):
    logits = jnp.log(jnp.asarray([[0.15, 0.5, 0.05, 0.3], [0.3, 0.05, 0.5, 0.15]])) + 3
    cut = np.asarray(nucleus(logits, top_p))
    assert set(np.flatnonzero(np.isfinite(cut[0]))) == set(kept)
    assert np.isfinite(cut[1]).sum() == len(kept)
    np.testing.assert_array_equal(cut[np.isfinite(cut)], logits[np.isfinite(cut)])


def test_no_symbol_is_drawn_outside_the_nucleus():
    model, params = make("independent", shape=(3,), num_values=6)
    table = np.asarray(params["table"])
    allowed = np.isfinite(nucleus(jnp.asarray(table), 0.6))
    assert 0 < allowed.sum() < allowed.size
    x = draw(model, params, 500, top_p=0.6)
    seen = np.zeros_like(allowed)
    for place in range(3):
        seen[place, x[:, place]] = True
    np.testing.assert_array_equal(seen, allowed)
    np.testing.assert_array_equal(
        draw(model, params, 50, top_p=1.0), draw(model, params, 50)
    )


# Guidance.


@pytest.mark.parametrize(
    "name",
    [
        "made",
        "tarflow",
        "vdm",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("transformer", "pixelcnn")),
    ],
)
def test_guidance_of_no_weight_is_plain_sampling_and_of_some_is_not(name):
    settings = dict(any_order=True) if name == "transformer" else {}
    model, params = make(name, OPTIONAL, **settings)
    cond = np.arange(24, dtype=np.int32) % 3
    plain = draw(model, params, 24, cond)
    same = draw(model, params, 24, cond, guidance=1e-7)
    assert (plain == same).mean() > 0.98  # the two networks are run as one of 2 N rows
    assert (draw(model, params, 24, cond, guidance=4.0) != plain).any()


def test_guided_symbols_have_the_probabilities_of_the_formula():
    model, params = make("independent", OPTIONAL, shape=(1,))

    def logits(cond):
        bound = {"params": params}, 1, jnp.asarray([cond])
        return model.apply(*bound, method="init_cache")[0, 0]

    given, none = logits(1), logits(OPTIONAL.size)
    wanted = jax.nn.softmax(none + 2.5 * (given - none))
    x = draw(model, params, 4000, np.full(4000, 1, np.int32), guidance=1.5)
    found = np.bincount(x[:, 0], minlength=3) / 4000
    np.testing.assert_allclose(found, wanted, atol=4 * 0.5 / np.sqrt(4000))
    assert np.abs(jax.nn.softmax(given) - wanted).max() > 0.05


@pytest.mark.parametrize("cond", [CLASSES, None])
def test_guidance_needs_training_without_the_condition(cond):
    model, params = make("made", cond)
    given = None if cond is None else np.zeros(2, np.int32)
    with pytest.raises(InputError, match="cond_drop_rate=0.1"):
        draw(model, params, 2, given, guidance=1.0)


@pytest.mark.parametrize("spec", [CLASSES, REALS])
def test_conditions_are_dropped_at_the_rate(spec):
    shape = (4000,) if spec.kind == "class" else (4000, spec.size)
    cond = jnp.ones(shape, jnp.int32 if spec.kind == "class" else jnp.float32)
    dropped = conditioning.drop(jax.random.key(0), spec, cond, 0.2)
    absent = conditioning.is_none(spec, dropped)
    assert abs(absent.mean() - 0.2) < 0.03
    np.testing.assert_array_equal(dropped[~absent], cond[~absent])
    assert conditioning.is_none(spec, conditioning.none_like(spec, cond)).all()


@pytest.mark.parametrize("spec", [CLASSES, REALS])
def test_a_step_trains_the_embedding_of_no_condition(spec):
    model, params = make("independent", dataclasses.replace(spec, optional=True))
    plain, _ = make("independent", spec)
    assert jax.tree.leaves(parameters(plain, "large"))  # without `none`
    config = TrainConfig(cond_drop_rate=0.5, warmup_steps=0)
    optimizer = training.make_optimizer(config)
    state = training.init_state(model, optimizer, 0)
    x, cond = dataclasses.replace(SPACES["sequence"], cond=spec).batch(32)
    step = quick_jit(training.train_step, "model", "optimizer", "config")
    after, metrics = step(model, optimizer, config, state, (x, cond))

    def none(state):
        [leaf] = [
            v
            for k, v in jax.tree_util.tree_leaves_with_path(state.params)
            if "none" in jax.tree_util.keystr(k)
        ]
        return np.asarray(leaf)

    assert np.isfinite(metrics["train/bpd"])
    assert np.isfinite(none(after)).all()
    # Its gradient passes through a layer that starts at zero or not: some step on.
    for _ in range(2):
        after, _ = step(model, optimizer, config, after, (x, cond))
    assert (none(after) != none(state)).any()


# Conditions as they are written.


def test_classes_by_name_and_number():
    [(a, b), (c, d)] = generate.parse_conditions(TEN, "dog; 0")
    assert (a, b, c, d) == (1, 1, 0, 0)
    assert generate.parse_conditions(TEN, "7")[0][0] == 2  # a name comes first


def test_coordinates_in_order_by_name_and_between():
    spec = CondSpec("real", 3, ("round", "w", "h"), (0.0, 0.1, 0.1), (1.0, 0.9, 0.9))
    for text in ("0,0.25,0.5", "w=4/16, h=1/2", "h=0.5,round=0,w=.25"):
        [(first, last)] = generate.parse_conditions(spec, text)
        np.testing.assert_array_equal(first, np.float32([0, 0.25, 0.5]))
        assert first is last
    rows = generate.parse_conditions(spec, "w=0.2,h=0.2..w=0.6,h=0.2;1,.5,.5")
    cond, numbers = generate.lay_out(rows, 3)
    np.testing.assert_allclose(cond[:3, 1], [0.2, 0.4, 0.6], atol=1e-6)
    np.testing.assert_array_equal(cond[3:], [[1, 0.5, 0.5]] * 3)
    assert list(numbers) == [0, 0, 0, 0, 1, 2]  # one noise on the way


SOLIDS = CondSpec("real", 2, ("width", "height"), (0.1, 0.1), (0.9, 0.9))


@pytest.mark.parametrize(
    ("spec", "text", "parts"),
    [
        (TEN, "cow", ("'cow' is no class", "cat, dog, 7")),
        (TEN, "cat;3", ("'3' is no class",)),
        (TEN, "9" * 5000, ("is no class",)),
        (TEN, "cat..dog", ("nothing between two classes", "by ;")),
        (SOLIDS, "0.5", ("give 2 numbers", "width (0.1 to 0.9)")),
        (SOLIDS, "widht=0.5,height=0.5", ("'widht'", "did you mean width?")),
        (SOLIDS, "width=0.5", ("height is missing", "height (0.1 to 0.9)")),
        (SOLIDS, "width=.5,width=.5", ("width is given twice",)),
        (SOLIDS, "width=2,height=0.5", ("width is 2", "0.1 to 0.9")),
        (SOLIDS, "nan,0.5", ("'nan' is no number",)),
        (SOLIDS, "1/0,0.5", ("'1/0' is no number",)),
        (SOLIDS, "1e99999999,0.5", ("'1e99999999' is no number",)),
        (SOLIDS, ".2,.2..,.3", ("is no number",)),
        (SOLIDS, ".2,.2...3,.3..4,.4", ("",)),
    ],
)
def test_a_wrong_condition_is_one_line(spec, text, parts):
    with pytest.raises(InputError) as caught:
        generate.parse_conditions(spec, text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--cond={text}: ")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "part"),
    [("bad", "'d' is not one of the 4"), ("abab", "give less"), ("a\n", "would end")],
)
def test_a_wrong_prompt_is_one_line(prompt, part):
    with pytest.raises(InputError, match=part):
        generate.encode_prompt(prompt, "\nabc", 4, 0)


# The launcher.


def test_a_text_run_is_prompted(tmp_path):
    lines = [f"the {w} {i}\n" for w in ("cat", "dog") for i in range(40)]
    (tmp_path / "q.txt").write_text("".join(lines))
    run = tmp_path / "run"
    args = ("--set=width=16", "--batch_size=8", "--evaluate=test", *SMALL)
    status, out, err = train(run, *args, dataset=f"texts:{tmp_path / 'q.txt'}")
    assert status == 0, err
    assert "bits/char, ends included" in out
    args = (f"--workdir={run}", "--num_samples=5", "--batch_size=2")
    status, out, err = launch("sample", *args, "--prompt=the ", "--top_p=0.9")
    assert status == 0, err
    assert "not of the model itself: top_p 0.9" in out
    [path] = (run / "samples").glob("*top_p=0.9-prompt=the*.txt")
    written = path.read_text().splitlines()
    assert len(written) == 5
    assert all(line.startswith("the ") and len(line) <= 10 for line in written)
    full = sum(len(line) == 10 for line in written)
    assert (f"{full} of 5 texts fill all the 10 characters" in out) == (full > 0)
    one_error(launch("sample", *args, "--prompt=thé"), "'é'", "characters of the run")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "digits"
    args = ("--set=width=16", "--conditional", "--cond_drop_rate=0.2", *SMALL)
    status, _, err = train(path, *args)
    assert status == 0, err
    return path


def test_conditions_have_a_row_each(digits_run):
    args = (f"--workdir={digits_run}", "--num_samples=6")
    status, out, err = launch("sample", *args, "--cond=3;5", "--guidance=2")
    assert status == 0, err
    assert "not of the model itself: guidance 2" in out
    [path] = (digits_run / "samples").glob("*guidance=2*cond=3_5.png")
    from PIL import Image

    with Image.open(path) as image:
        assert image.width / image.height == pytest.approx(28 / 19)  # 3 columns, 2 rows


def test_a_run_is_judged(digits_run):
    args = (f"--workdir={digits_run}", "--num_samples=40", "--num_bayes=20")
    status, out, err = launch("judge", *args)
    assert status == 0, err
    for part in ("| pca_64 |", "| classifier |", "as a classifier of 20 (exact"):
        assert part in out
    row = json.loads(
        (digits_run / "applications" / "judge-test-n=40-num_bayes=20.json").read_text()
    )
    assert row["classifier"]["accuracy_real"] > 0.8
    features = row["features"]["classifier"]
    floor, own = (features[k]["frechet_distance"] for k in ("floor", "samples"))
    assert floor < own  # 20 steps make no digits
    assert (digits_run / "applications" / "judge-test-n=40-num_bayes=20.png").exists()


def test_one_example_is_too_few_for_a_standard_error():
    outcome = launch("judge", "--workdir=none", "--num_bayes=1")
    one_error(outcome, "--num_bayes=1", "2 or more")
