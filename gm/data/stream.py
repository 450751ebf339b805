"""Data on disk: a cache of decoded arrays, and streaming where they would not fit."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gm.data.dataset import Split
from gm.errors import InputError
from gm.rundir import cache_dir, open_whole

Batch = tuple[np.ndarray, np.ndarray | None]
Arrays = dict[str, np.ndarray]
_FORMAT = 1  # of the cache: raise it when decoding changes


def memory_limit() -> int:
    """Returns the bytes that a data set may take in memory (GM_MEMORY_LIMIT_MB).

    Raises:
      InputError: the variable is not a positive whole number.
    """
    text = os.environ.get("GM_MEMORY_LIMIT_MB", "2048")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise InputError(f"GM_MEMORY_LIMIT_MB={text}: give a whole number of MB from 1")
    return int(text) << 20


def slug(name: str) -> str:
    """Returns `name` as one harmless file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[-60:]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock of the cache, so that of many processes one prepares `name`."""
    with open(cache_dir("locks") / slug(name), "w") as file:
        # A file system without locks costs only repeated work: writes are atomic.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(
    name: str, key: Any, build: Callable[[], tuple[dict, Arrays]]
) -> tuple[dict, Arrays]:
    """Returns what `build` returned, now or in an earlier run with the same key.

    Args:
      name: of the data set; only makes the folder recognisable.
      key: anything JSON can hold that changes whenever the result would.
      build: returns (facts that JSON can hold, arrays by name); called when there is
        no whole entry. A truncated file counts as none and is written anew.

    Returns:
      (facts, arrays); the arrays are memory-mapped and read-only.

    Raises:
      InputError: the cache cannot be written.
    """
    folder = _entry(name, key)
    found = _read(folder)
    if found is None:
        with locked(folder.name):
            found = _read(folder)  # another process may have been first
            if found is None:
                _write(folder, *build())
                found = _read(folder)
    if found is None:
        raise InputError(f"{folder}: what was just written cannot be read back")
    return found


def lookup(name: str, key: Any) -> tuple[dict, Arrays] | None:
    """Returns what `cached` would find, or None."""
    return _read(_entry(name, key))


def _entry(name: str, key: Any) -> Path:
    text = json.dumps([_FORMAT, name, key], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_dir("arrays", f"{slug(name)}-{digest}")


def _read(folder: Path) -> tuple[dict, Arrays] | None:
    """Returns the entry in `folder`, or None where it is missing or damaged."""
    try:
        entry = json.loads((folder / "entry.json").read_text())
        arrays = {}
        for name, (shape, dtype) in entry["arrays"].items():
            # Memory-mapping fails where the file is shorter than its header says.
            array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if list(array.shape) != shape or array.dtype.str != dtype:
                return None
            arrays[name] = np.asarray(array)
        return entry["facts"], arrays
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write(folder: Path, facts: dict, arrays: Arrays) -> None:
    """Writes an entry; `entry.json` comes last and makes it whole."""
    shapes = {name: (list(a.shape), a.dtype.str) for name, a in arrays.items()}
    text = json.dumps({"facts": facts, "arrays": shapes}).encode()
    try:
        for name, array in arrays.items():
            with open_whole(folder / f"{name}.npy") as file:
                np.save(file, array)
        with open_whole(folder / "entry.json") as file:
            file.write(text)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space "
            "or set GM_CACHE_DIR to another folder"
        ) from error


@dataclasses.dataclass(frozen=True)
class StreamSplit:
    """Examples read from disk at each `batch`, never all at once."""

    read: Callable[[list[int]], Batch]  # positions in the source -> (x, cond)
    positions: np.ndarray  # [N] int64: where in the source each example lies
    in_memory: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices: np.ndarray) -> Batch:
        """Returns (x [n, *shape] uint8, cond [n] or None), read from disk."""
        return self.read(self.positions[indices].tolist())


def batches(
    split: Split,
    indices_of_step: Callable[[int], np.ndarray],
    start_step: int,
    num_steps: int,
    *,
    num_threads: int = 4,
    prefetch: int = 8,
) -> Iterator[Batch]:
    """Yields split.batch(indices_of_step(step)) in the order of the steps.

    Grain's threads read up to `prefetch` batches ahead, so memory holds that many and
    never the split. There is no state: to resume at a step is to start there.

    Args:
      split: anything with `batch`.
      indices_of_step: step -> indices [B]; a pure function, called from threads.
      start_step: the first step.
      num_steps: how many batches to yield.
      num_threads: that read and decode.
      prefetch: batches held ahead of the consumer.
    """
    import grain

    # Grain counts from 0 and drops None, which no batch is.
    steps = grain.MapDataset.range(start_step, start_step + num_steps)
    loaded = steps.map(lambda step: split.batch(indices_of_step(int(step))))
    options = grain.ReadOptions(
        num_threads=min(num_threads, prefetch), prefetch_buffer_size=prefetch
    )
    iterator = iter(loaded.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()  # stops the threads when the consumer leaves early
