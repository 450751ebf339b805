"""The step, the order of the data, the loop."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gm import data, sharding
from gm.config import TrainConfig
from gm.data.dataset import ArraySplit, Dataset, Fresh, WindowSplit
from gm.data.order import batch_indices
from gm.errors import InputError
from gm.feed import Feed, ReadAhead, check_feed, make_feed
from gm.fit import Trainer
from gm.model import build
from gm.rundir import RunDirectory
from gm.train import (
    _flip,
    _mutate,
    init_state,
    learning_rate_schedule,
    make_optimizer,
    train_step,
    train_steps,
)
from gm.writer import read_metrics


@pytest.mark.case(14)
@given(
    num_examples=st.integers(1, 50),
    batch_size=st.integers(1, 50),
    step=st.integers(0, 30),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=200, deadline=None)
def test_every_epoch_is_a_permutation(num_examples, batch_size, step, seed):
    count = step + 60
    stream = batch_indices(seed, num_examples, batch_size, 0, count).ravel()
    whole = len(stream) // num_examples * num_examples
    for epoch in stream[:whole].reshape(-1, num_examples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))
    later = batch_indices(seed, num_examples, batch_size, step, 2)
    begin = step * batch_size
    np.testing.assert_array_equal(later.ravel(), stream[begin : begin + later.size])


def test_data_order_is_pinned():
    """A resumed run must see the same order under every version of NumPy."""
    first = batch_indices(7, 1000, 8, 0)[0].tolist()
    assert first == [940, 238, 591, 590, 722, 26, 179, 295]


def tiny(dataset="digits", **config):
    dataset = data.load(dataset)
    model = build("made", dataset, {"width": 8})
    config = TrainConfig(**(dict(num_steps=20, batch_size=8, warmup_steps=0) | config))
    return model, dataset, config, make_optimizer(config)


def test_fused_steps_equal_single_steps():
    model, dataset, config, optimizer = tiny(clip_norm=0.1)
    feed = make_feed(dataset, config, False, sharding.make_mesh())
    state = init_state(model, optimizer, 0)
    fused, metrics = train_steps(
        model, optimizer, config, feed.draw, state, feed.data, feed.xs(0, 5)
    )
    state = init_state(model, optimizer, 0)
    step = jax.jit(functools.partial(train_step, model, optimizer, config))
    for number in range(5):
        index = batch_indices(config.seed, len(dataset.train), 8, number)[0]
        x, _ = dataset.train.batch(index)
        state, single = step(state, (jnp.asarray(x), None))
        np.testing.assert_allclose(
            metrics["train/bpd"][number], single["train/bpd"], rtol=1e-5
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        fused.params,
        state.params,
    )


def test_accumulated_gradient_equals_that_of_the_whole_batch():
    model, dataset, config, optimizer = tiny(learning_rate=0.1)
    x, _ = dataset.train.batch(np.arange(8))
    state = init_state(model, optimizer, 0)
    whole, a = train_step(model, optimizer, config, state, (jnp.asarray(x), None))
    parts = TrainConfig(num_steps=20, batch_size=8, accumulate=4)
    split, b = train_step(model, optimizer, parts, state, (jnp.asarray(x), None))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4)
    assert (
        optax.tree.norm(jax.tree.map(jnp.subtract, whole.params, split.params)) < 1e-3
    )


def test_optimizer_is_optax_adamw():
    """Clipped and not; with a bias, which does not decay; and the same state."""
    config = TrainConfig(clip_norm=1.0, weight_decay=0.1, num_steps=10, warmup_steps=2)
    expected = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            learning_rate_schedule(config),
            weight_decay=0.1,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
    ours = make_optimizer(config)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    state, other = ours.init(params), expected.init(params)
    for size in (0.01, 100.0, 0.1):
        grads = jax.tree.map(
            lambda p, s=size: jnp.asarray(s * rng.normal(size=p.shape), "f4"), params
        )
        updates, state = ours.update(grads, state, params, ok=True)
        wanted, other = expected.update(grads, other, params)
        assert jax.tree.structure(state) == jax.tree.structure(other)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            (updates, state),
            (wanted, other),
        )
    _, kept = ours.update(grads, state, params, ok=False)
    jax.tree.map(np.testing.assert_array_equal, kept, state)


def test_schedule_warms_up_and_ends_at_zero():
    rate = learning_rate_schedule(
        TrainConfig(num_steps=100, warmup_steps=10, learning_rate=1.0)
    )
    assert 0 < rate(0) < 0.2
    assert rate(10) == pytest.approx(1.0)
    assert rate(100) == pytest.approx(0.0, abs=1e-6)
    constant = TrainConfig(num_steps=100, warmup_steps=10, schedule="constant")
    assert learning_rate_schedule(constant)(90) == pytest.approx(1e-3)


def test_fresh_data_differ_at_every_step_and_with_the_seed():
    _, dataset, config, _ = tiny("pocket_cube")
    assert isinstance(dataset.train, Fresh)
    mesh = sharding.make_mesh()
    feed = make_feed(dataset, config, False, mesh)
    again = make_feed(dataset, config, False, mesh)
    other = make_feed(dataset, TrainConfig(batch_size=8, seed=1), False, mesh)
    a, b = feed.draw(feed.data, 0)[0], feed.draw(feed.data, 1)[0]
    assert (a != b).any()
    np.testing.assert_array_equal(a, again.draw(again.data, 0)[0])
    assert (a != other.draw(other.data, 0)[0]).any()


def test_windows_are_gathered_from_one_sequence():
    sequence = np.arange(100, dtype=np.uint8)
    split = WindowSplit(sequence, 10)
    dataset = Dataset("t", (10,), 100, "char", split, split, split)
    config = TrainConfig(batch_size=4)
    feed = make_feed(dataset, config, False, sharding.make_mesh())
    x, _ = feed.draw(feed.data, feed.xs(0, 1)[0])
    assert feed.data.size == 100
    np.testing.assert_array_equal(x, split.batch(batch_indices(0, 91, 4, 0)[0])[0])


def test_streamed_batches_equal_resident_ones():
    class OnDisk(ArraySplit):
        @property
        def in_memory(self):
            return False

        def __init__(self, x):
            object.__setattr__(self, "x", x)
            object.__setattr__(self, "cond", None)

    x = np.arange(60, dtype=np.uint8).reshape(20, 3)
    config = TrainConfig(batch_size=4, num_steps=12)
    seen = []
    for split in (ArraySplit(x), OnDisk(x)):
        dataset = Dataset("t", (3,), 60, "dim", split, split, split)
        feed = make_feed(dataset, config, False, sharding.make_mesh())
        chunks = [feed.xs(step, 4) for step in (4, 8)]  # as after resuming at step 4
        take = [jax.tree.map(lambda a, i=i: a[i], c) for c in chunks for i in range(4)]
        seen.append([feed.draw(feed.data, t)[0] for t in take])
    np.testing.assert_array_equal(seen[0], seen[1])


def test_batches_are_read_while_the_device_works():
    """What was prepared is taken; anything else is asked for, and the wait is counted."""
    began, let_go = [], threading.Event()

    def xs(step, count):
        began.append(step)
        if step == 4:
            let_go.wait(10)
        return np.arange(step, step + count)

    ahead = ReadAhead(Feed(None, lambda data, x: x, xs))
    np.testing.assert_array_equal(ahead.take(0, 4), np.arange(4))
    ahead.prepare(4, 4)  # returns, though nothing can be read yet
    let_go.set()
    np.testing.assert_array_equal(ahead.take(4, 4), np.arange(4, 8))
    ahead.prepare(8, 4)
    np.testing.assert_array_equal(ahead.take(6, 2), [6, 7])  # as after a rollback
    assert began == [0, 4, 8, 6]
    assert ahead.waited > 0
    ahead.close()


def test_best_by_validation_is_kept_beside_the_latest(tmp_path):
    model, dataset, config, _ = tiny(
        num_steps=60, valid_every=20, save_every=20, log_every=20, learning_rate=0.02
    )
    run = RunDirectory.open_for_training(tmp_path / "run")
    trainer = Trainer(model, dataset, config, run)
    assert trainer.fit()
    rows = [r for r in read_metrics(run.metrics) if "valid/bpd" in r]
    assert [r["step"] for r in rows] == [20, 40, 60]
    assert all(r["time/examples_per_second"] > 0 for r in rows)
    best = min(rows, key=lambda r: r["valid/bpd"])
    step, _, meta = trainer.best.restore()
    assert step == best["step"]
    assert meta["valid_nats"] == trainer.best_nats
    assert meta["train_flops"] == trainer.flops * step > 0
    assert trainer.latest.steps() == [20, 40, 60]
    trainer.close()


def test_an_earlier_run_is_shown_beside_a_validation(tmp_path, capsys):
    model, dataset, config, _ = tiny(num_steps=4, valid_every=2, steps_per_dispatch=2)
    run = RunDirectory.open_for_training(tmp_path / "run")
    trainer = Trainer(model, dataset, config, run, recorded={2: 1.25, 3: 9.0})
    trainer.fit()
    trainer.close()
    shown = capsys.readouterr().err
    assert shown.count("(recorded: 1.2500)") == 1
    assert "9.0" not in shown


def test_split_smaller_than_a_batch_is_refused():
    _, dataset, _, _ = tiny()
    config = TrainConfig(batch_size=5000)
    with pytest.raises(InputError, match="--batch_size=5000.*1200 examples"):
        make_feed(dataset, config, False, sharding.make_mesh())


def test_flips_are_drawn_per_image_and_change_nothing_else():
    x = jnp.arange(2 * 3 * 4).reshape(1, 2, 3, 4).repeat(400, 0)
    flipped = _flip(jax.random.key(0), x)
    mirrored = np.asarray((flipped == x[:, :, ::-1]).all((1, 2, 3)))
    same = np.asarray((flipped == x).all((1, 2, 3)))
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_mutations_are_uniform_draws_at_their_rate():
    x = jnp.full((100, 60), 3, jnp.uint8)
    mutated = np.asarray(_mutate(jax.random.key(0), x, 0.3, 4))
    assert mutated.dtype == np.uint8
    # A symbol that is drawn anew is the same in one case of four.
    assert abs((mutated != 3).mean() - 0.3 * 3 / 4) < 0.02
    for value in (0, 1, 2):
        assert abs((mutated == value).mean() - 0.3 / 4) < 0.015


def test_the_step_sees_mutated_symbols():
    model, dataset, config, _ = tiny(learning_rate=0.05, schedule="constant")
    step = jax.jit(train_step, static_argnums=(0, 1, 2))
    x = jnp.zeros((8, *dataset.shape), jnp.uint8)
    bpd = {}
    for augmentation in ("none", "mutate:0.5"):
        config = dataclasses.replace(config, augmentation=augmentation)
        optimizer = make_optimizer(config)
        state = init_state(model, optimizer, 0)
        for _ in range(60):
            state, metrics = step(model, optimizer, config, state, (x, None))
        bpd[augmentation] = float(metrics["train/bpd"])
    # Half of the symbols are noise over 17 values.
    assert bpd["mutate:0.5"] > bpd["none"] + 1


@pytest.mark.parametrize("text", ["mutate", "mutate:", "mutate:x", "mutate:1", "turn"])
def test_an_augmentation_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=f"--augmentation={text}: .* mutate:RATE"):
        TrainConfig(augmentation=text).check()
    TrainConfig(augmentation="mutate:0.2").check()
    check_feed(data.load("pocket_cube"), TrainConfig(augmentation="mutate:0.2"))


def test_flips_of_what_is_no_image_are_refused():
    config = TrainConfig(augmentation="flip")
    check_feed(data.load("digits"), config)
    with pytest.raises(InputError, match="--augmentation=flip: pocket_cube has no"):
        check_feed(data.load("pocket_cube"), config)
    with pytest.raises(InputError, match="--augmentation=turn: give none or flip"):
        TrainConfig(augmentation="turn").check()
