"""Checkpoints are never silently wrong; updates that are not finite never count."""

import shutil
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launch import flip_bit

from gm.checkpoint import Checkpoints, flatten, state_digest
from gm.config import TrainConfig
from gm.data.dataset import ArraySplit, Dataset
from gm.data.order import permutation
from gm.errors import InputError
from gm.feed import make_feed
from gm.fit import MAX_NONFINITE, Trainer
from gm.model import LikelihoodModel
from gm.rundir import RunDirectory
from gm.sharding import make_mesh
from gm.spec import Estimate
from gm.writer import Metrics, read_metrics

META = {"step": 2, "valid_nats": 1.25}


def tree(seed=0):
    """Every kind of leaf that a state has."""
    x = np.random.default_rng(seed).normal(size=(3, 40))
    return {
        "params": {"kernel": jnp.asarray(x, jnp.float32), "b": jnp.ones(3)},
        "half": jnp.asarray(x, jnp.bfloat16),
        "key": jax.random.key(seed),
        "step": jnp.asarray(seed, jnp.int32),
    }


def restore(directory, like):
    """(step, tree, meta) or None, as a run that starts again finds it."""
    store = Checkpoints(directory)
    try:
        return store.restore(like)
    finally:
        store.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 and 2; do not change them."""
    directory = tmp_path_factory.mktemp("saved")
    store = Checkpoints(directory)
    for step in (1, 2):
        store.save(step, tree(step), META)
    store.close()
    return directory


def test_restores_what_was_saved(saved):
    step, found, meta = restore(saved, jax.eval_shape(tree))
    assert step == 2
    assert state_digest(found) == state_digest(tree(2))
    assert {k: meta[k] for k in META} == META
    assert found["half"].dtype == jnp.bfloat16


def damages(path):
    """Copies of one file's bytes, each damaged."""
    data = path.read_bytes()
    yield data[: len(data) // 2]
    yield b""
    yield None  # deleted
    for where in np.linspace(0, len(data) - 1, 7).astype(int) if data else ():
        flipped = bytearray(data)
        flipped[where] ^= 4
        yield bytes(flipped)


@pytest.mark.case(7)
def test_damage_to_any_file_is_never_silent(saved, tmp_path, record_property):
    like = jax.eval_shape(tree)
    names = sorted(
        p.relative_to(saved) for p in (saved / "2").rglob("*") if p.is_file()
    )
    assert len(names) > 5
    outcomes = []
    for name in names:
        for number, damaged in enumerate(damages(saved / name)):
            copy = shutil.copytree(saved, tmp_path / "copy")
            (copy / name).unlink()
            if damaged is not None:
                (copy / name).write_bytes(damaged)
            step, found, meta = restore(copy, like)
            assert step in (1, 2)
            assert state_digest(found) == state_digest(tree(step)), (name, number)
            assert {k: meta[k] for k in META} == META, (name, number)
            assert (copy / "corrupt-2").exists() == (step == 1)
            outcomes.append(step)
            shutil.rmtree(copy)
    fell_back = outcomes.count(1)
    # The damage did hit something; how many files nobody reads differs from save to save.
    assert fell_back > len(outcomes) / 8
    told = f"{len(names)} files, {len(outcomes)} damages: {fell_back} fell back a step"
    record_property("figure", f"{told}, the others changed nothing; 0 silently wrong")


def test_what_was_moved_aside_before_is_kept(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    for _ in range(2):
        for file in (copy / "2" / "meta").iterdir():
            flip_bit(file)
        assert restore(copy, jax.eval_shape(tree))[0] == 1
        shutil.copytree(saved / "2", copy / "2")
    assert {p.name for p in copy.glob("corrupt*")} == {"corrupt-2", "corrupt-2-1"}


@pytest.mark.case(8)
def test_a_step_of_another_name_is_not_believed(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    shutil.copytree(copy / "1", copy / "30")
    step, found, _ = restore(copy, jax.eval_shape(tree))
    assert step == 2
    assert state_digest(found) == state_digest(tree(2))
    assert {p.name for p in copy.iterdir()} == {"1", "2", "corrupt-30"}


@pytest.mark.case(8)
def test_none_is_sound(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "8").symlink_to("/etc")
    assert restore(tmp_path, jax.eval_shape(tree)) is None
    assert (tmp_path / "corrupt-8").is_symlink()


@pytest.mark.case(11)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t | {"half": t["half"].astype(jnp.float32)}, "half is bfloat16"),
        (lambda t: t | {"key": jnp.zeros((3, 2))}, r"key is uint32\(2,\)"),
        (lambda t: t | {"params": {"kernel": jnp.ones((4, 40))}}, "params"),
        (lambda t: t | {"more": jnp.ones(1)}, "more is missing in the checkpoint"),
    ],
)
def test_other_types_shapes_and_names_are_refused(change, told, saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    with pytest.raises(InputError, match=told):
        restore(copy, change(tree()))
    assert {p.name for p in copy.iterdir()} == {"1", "2"}  # nothing moved


def test_flatten_of_shapes_is_that_of_arrays():
    shapes = flatten(jax.eval_shape(tree))
    arrays = flatten(tree())
    assert {k: (v.shape, v.dtype) for k, v in shapes.items()} == {
        k: (v.shape, v.dtype) for k, v in arrays.items()
    }


@pytest.mark.case(17)
def test_a_torn_last_line_is_dropped_and_a_torn_middle_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "a": 1.0}\n{"step": 10, "a": 2.0}\n{"step": 1')
    metrics = Metrics(path, resume_step=5)
    metrics.write(10, {"a": float("nan")})
    metrics.close()
    assert read_metrics(path) == [{"step": 5, "a": 1.0}, {"step": 10, "a": None}]
    for bad in (b'{"step": 5, "a"', b'{"st\xe5p": 5}', b'{"step": 1e999}', b"[5]"):
        path.write_bytes(bad + b'\n{"step": 10, "a": 2.0}\n')
        with pytest.raises(InputError, match="line 1 is not a row"):
            read_metrics(path)
    path.write_bytes(b"[" * 100_000 + b'\n{"step": 10, "a": 2.0}\n')
    with pytest.raises(InputError, match="line 1 is not a row"):
        read_metrics(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_metrics(tmp_path)


# Updates that are not finite.


class Table(LikelihoodModel):
    """Independent symbols; training meets NaN where the last value comes first."""

    estimate: ClassVar[Estimate] = Estimate.EXACT

    def setup(self):
        shape = (*self.shape, self.num_values)
        self.logits = self.param("logits", nn.initializers.zeros, shape)

    def log_prob(self, x, cond=None, *, train=False):
        log_p = jnp.where(jax.nn.one_hot(x, self.num_values), self.logits, 0).sum(
            (1, 2)
        )
        log_p -= jax.nn.logsumexp(self.logits, -1).sum()
        bad = train & (x[:, 0] == self.num_values - 1)
        log_p = jnp.where(bad, jnp.nan, log_p)
        return log_p, {"table": log_p}


SIZE, BATCH, BAD_STEP = 800, 8, 6


def trainer(path, policy, bad=(), **options):
    """A trainer for 10 steps, whose example number b is bad for b in `bad`."""
    x = np.random.default_rng(0).integers(0, 3, (SIZE, 4), np.uint8)
    clean = ArraySplit(x[:20].copy())
    x[list(bad), 0] = 3
    data = Dataset("bad", (4,), 4, "dim", ArraySplit(x), clean, clean)
    values = {"num_steps": 10, "batch_size": BATCH, "steps_per_dispatch": 2}
    values |= {"log_every": 2, "valid_every": 4, "save_every": 2}
    config = TrainConfig(**values | {"on_nonfinite": policy} | options)
    run = RunDirectory.open_for_training(path)
    return Trainer(Table((4,), 4), data, config, run)


def bad_example():
    """The first example of step BAD_STEP, which a rolled-back run does not meet."""
    index = permutation(0, 0, SIZE)[BAD_STEP * BATCH]
    assert index not in permutation(1 << 32, 0, SIZE)[: 10 * BATCH]
    return index


def finite(state):
    return all(np.isfinite(v).all() for v in map(np.asarray, flatten(state).values()))


@pytest.mark.case(13)
def test_abort_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    first = trainer(tmp_path, "abort", [bad_example()])
    with pytest.raises(InputError) as error:
        first.fit()
    first.close()
    first.run.close()
    assert f"step {BAD_STEP}: not finite (train/bpd is nan" in str(error.value)
    assert "last good checkpoint is step 6" in str(error.value)
    again = trainer(tmp_path, "abort", [bad_example()])
    assert again.step == 6
    assert finite(again.state)
    again.close()


@pytest.mark.case(13)
def test_skip_leaves_the_update_out_and_counts_it(tmp_path):
    skipping = trainer(tmp_path, "skip", [bad_example()])
    assert skipping.fit()
    skipping.close()
    assert int(skipping.state.step) == 10
    assert int(skipping.state.skipped) == 1
    assert finite(skipping.state)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["train/skipped"] for r in rows] == [0, 0, 0, 1, 1]
    assert all(np.isfinite(r["train/bpd"]) for r in rows)


@pytest.mark.case(13)
def test_skip_gives_up_where_nothing_is_finite(tmp_path):
    skipping = trainer(tmp_path, "skip", range(SIZE), num_steps=20)
    with pytest.raises(InputError, match=f"{MAX_NONFINITE} updates in a row"):
        skipping.fit()
    skipping.close()
    assert finite(skipping.state)


@pytest.mark.case(13)
def test_rollback_takes_other_batches(tmp_path):
    rolling = trainer(tmp_path, "rollback", [bad_example()])
    assert rolling.fit()
    rolling.close()
    assert int(rolling.state.rollbacks) == 1
    assert int(rolling.state.step) == 10
    assert int(rolling.state.skipped) == 0
    assert finite(rolling.state)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows] == [2, 4, 6, 8, 10]


@pytest.mark.case(13)
def test_rollback_gives_up(tmp_path):
    rolling = trainer(tmp_path, "rollback", range(SIZE))
    with pytest.raises(InputError, match="step 0: not finite.*good checkpoint is none"):
        rolling.fit()
    rolling.close()


def test_the_order_depends_on_seed_and_rollbacks():
    x = ArraySplit(np.zeros((SIZE, 4), np.uint8))
    data = Dataset("x", (4,), 4, "dim", x, x, x)

    def indices(seed, rollbacks):
        config = TrainConfig(seed=seed, batch_size=BATCH)
        feed = make_feed(data, config, False, make_mesh(), rollbacks)
        return np.asarray(feed.xs(3, 2)).tolist()

    assert indices(0, 0) == indices(0, 0)
    assert len({str(indices(s, r)) for s in (0, 1) for r in (0, 1)}) == 4
