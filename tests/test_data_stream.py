import json
import stat
import threading
import time

import numpy as np
import pytest

from gm.data import stream
from gm.data.dataset import ArraySplit
from gm.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def indices_of_step(step):
    return np.random.default_rng([7, step]).integers(0, 500, 16)


@pytest.fixture
def split():
    x = np.arange(500 * 4, dtype=np.int32).reshape(500, 4)
    return ArraySplit(x, np.arange(500, dtype=np.int32))


@pytest.mark.parametrize("start", [0, 37])
def test_batches_equal_direct_indexing(split, start):
    got = list(stream.batches(split, indices_of_step, start, 25))
    assert len(got) == 25
    for step, (x, cond) in enumerate(got, start):
        expected = split.batch(indices_of_step(step))
        np.testing.assert_array_equal(x, expected[0])
        np.testing.assert_array_equal(cond, expected[1])


def test_batches_without_condition(split):
    assert next(stream.batches(ArraySplit(split.x), indices_of_step, 0, 1))[1] is None


class Counting:
    """A split of a million examples that holds none and counts what was read."""

    in_memory = False

    def __init__(self):
        self.batches = 0
        self.lock = threading.Lock()

    def __len__(self):
        return 10**6

    def batch(self, indices):
        with self.lock:
            self.batches += 1
        return np.asarray(indices), None


def test_batches_read_only_so_far_ahead_and_stop():
    split = Counting()
    before = threading.active_count()
    batches = stream.batches(split, indices_of_step, 0, 10**5, prefetch=4)
    for _ in range(10):
        next(batches)
    assert split.batches <= 10 + 4 + 1
    batches.close()
    deadline = time.time() + 10
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert split.batches <= 10 + 4 + 1


def test_an_error_in_a_thread_reaches_the_consumer():
    def read(indices):
        raise InputError("shard-3: damaged")

    split = stream.StreamSplit(read, np.arange(500))
    with pytest.raises(InputError, match="shard-3"):
        next(stream.batches(split, indices_of_step, 0, 5))


def test_stream_split_maps_indices_to_positions():
    split = stream.StreamSplit(lambda p: (np.array(p), None), np.array([5, 3, 9]))
    assert len(split) == 3
    assert not split.in_memory
    assert split.batch(np.array([2, 0, 0]))[0].tolist() == [9, 5, 5]


def build(calls):
    def make():
        calls.append(1)
        return {"note": "n"}, {"train": np.arange(6, dtype=np.uint8).reshape(2, 3)}

    return make


def test_cache_decodes_once_and_is_private(cache):
    calls = []
    for _ in range(2):
        facts, arrays = stream.cached("a/b", [1], build(calls))
        assert facts == {"note": "n"}
        np.testing.assert_array_equal(arrays["train"], [[0, 1, 2], [3, 4, 5]])
    assert calls == [1]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert not arrays["train"].flags.writeable
    assert not list(cache.rglob(".*"))  # no temporary files are left


def test_cache_key_changes_the_entry():
    calls = []
    stream.cached("a", [1], build(calls))
    stream.cached("a", [2], build(calls))
    assert len(calls) == 2


@pytest.mark.parametrize("what", ["array", "entry", "missing"])
def test_damaged_cache_is_rebuilt(cache, what):
    calls = []
    stream.cached("a", 1, build(calls))
    (array,) = cache.rglob("train.npy")
    entry = array.with_name("entry.json")
    if what == "array":
        array.write_bytes(array.read_bytes()[:-2])
    elif what == "entry":
        entry.write_text(entry.read_text()[:-5])
    else:
        array.unlink()
    _, arrays = stream.cached("a", 1, build(calls))
    assert len(calls) == 2
    assert arrays["train"].sum() == 15
    json.loads(entry.read_text())


def test_bad_settings_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("GM_MEMORY_LIMIT_MB", "lots")
    with pytest.raises(InputError, match="GM_MEMORY_LIMIT_MB=lots"):
        stream.memory_limit()
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("GM_CACHE_DIR", str(file / "x"))
    with pytest.raises(InputError, match="GM_CACHE_DIR="):
        stream.cache_dir()
