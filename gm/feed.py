"""How a data set reaches the training step.

In every case the batch of a step is a pure function of (seed, step), so a resumed run
needs no iterator state.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from gm import sharding
from gm.config import TrainConfig
from gm.data.dataset import Dataset, Fresh, Split, WindowSplit
from gm.data.order import batch_indices
from gm.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """Where batches come from: `draw(data, x)` inside the step, `xs` from the host."""

    data: Any  # on the device(s)
    draw: Callable[[Any, Any], tuple[jax.Array, jax.Array | None]]
    xs: Callable[[int, int], Any]  # (first step, how many) -> leading axis of steps


class ReadAhead:
    """Takes the batches of dispatches from a feed, each while the one before it runs."""

    def __init__(self, feed: Feed):
        self.feed = feed
        self.waited = 0.0  # seconds that `take` took, in all
        # One thread: a feed that streams reads in order.
        self._thread = ThreadPoolExecutor(1, "gm-feed")
        self._next: tuple[tuple[int, int], Future] | None = None

    def prepare(self, step: int, count: int) -> None:
        """Begins to get the batches of `count` steps from `step` on."""
        self._next = (step, count), self._thread.submit(self.feed.xs, step, count)

    def take(self, step: int, count: int) -> Any:
        """`xs` of the feed: what was prepared, if it was for these steps."""
        begin = time.monotonic()
        if self._next is None or self._next[0] != (step, count):
            self.prepare(step, count)
        assert self._next is not None
        xs = self._next[1].result()
        self.waited += time.monotonic() - begin
        return xs

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)


def check_feed(
    dataset: Dataset, config: TrainConfig, mesh: jax.sharding.Mesh | None = None
) -> None:
    """Raises InputError for flags that the train split or the devices do not allow."""
    size, mesh = config.batch_size, mesh or sharding.make_mesh()
    parts = config.accumulate if mesh.size > 1 else 1
    sharding.check_batch_size(mesh, size, "batch_size", parts)
    source = dataset.train
    if not isinstance(source, Fresh) and size > len(source):
        raise InputError(
            f"--batch_size={size}: the train split of {dataset.name} has only "
            f"{len(source)} examples; give at most that"
        )
    if config.augmentation == "flip" and len(dataset.shape) != 3:
        raise InputError(
            f"--augmentation={config.augmentation}: {dataset.name} has no images; "
            "give none"
        )
    if config.augmentation != "none" and dataset.cond and dataset.cond.kind == "image":
        raise InputError(
            f"--augmentation={config.augmentation}: {dataset.name} has images as "
            "conditions, which would not be mirrored; give none"
        )


def make_feed(
    dataset: Dataset,
    config: TrainConfig,
    conditional: bool,
    mesh: jax.sharding.Mesh,
    rollbacks: int = 0,
) -> Feed:
    """Chooses how a data set reaches the step.

    Fresh data are drawn inside the step from a key; arrays lie on the device and are
    gathered there by index; what does not fit in memory is streamed, and so is all that
    several processes read, each its own rows.

    Raises:
      InputError: a train split smaller than a batch.
    """
    source, size = dataset.train, config.batch_size
    check_feed(dataset, config, mesh)
    # A rollback must not meet the same batches again.
    seed = config.seed + (rollbacks << 32)
    if isinstance(source, Fresh):

        def draw_fresh(key, step):
            x, cond = source.draw(jax.random.fold_in(key, step), size)
            return x, cond if conditional else None

        key = jax.random.fold_in(jax.random.key(config.seed), 2 + rollbacks)
        return Feed(
            sharding.replicate(mesh, key), draw_fresh, lambda s, n: np.arange(s, s + n)
        )

    def indices(step, count=1):
        return batch_indices(seed, len(source), size, step, count)

    if source.in_memory and jax.process_count() == 1:
        data, gather = _resident(source, conditional)
        return Feed(
            sharding.replicate(mesh, data),
            gather,
            lambda s, n: sharding.split(mesh, indices(s, n), axis=1),
        )
    return _stream_feed(source, indices, config, conditional, mesh)


def _resident(
    source: Split, conditional: bool
) -> tuple[Any, Callable[[Any, Any], Any]]:
    """The arrays of a split, and how a batch is gathered from them by index."""
    if isinstance(source, WindowSplit):
        offsets = np.arange(source.length)
        return source.sequence, lambda data, i: (data[i[:, None] + offsets], None)
    x, cond = source.batch(np.arange(len(source)))
    data = (x, cond if conditional else None)
    return data, lambda data, i: jax.tree.map(lambda a: a[i], data)


def _stream_feed(
    source: Split,
    indices: Callable[..., np.ndarray],
    config: TrainConfig,
    conditional: bool,
    mesh: jax.sharding.Mesh,
) -> Feed:
    """Batches read ahead by background threads."""
    from gm.data import stream

    rows = sharding.own_rows(mesh, config.batch_size)
    batches: Iterator | None = None
    position = -1

    def xs(step, count):
        nonlocal batches, position
        if batches is None or step != position:
            batches = stream.batches(
                source, lambda s: indices(s)[0, rows], step, config.num_steps - step
            )
        parts = [next(batches) for _ in range(count)]
        position = step + count
        x = np.stack([x for x, _ in parts])
        cond = np.stack([c for _, c in parts]) if conditional else None
        return sharding.assemble(mesh, (x, cond), config.batch_size, axis=1)

    return Feed(None, lambda data, batch: batch, xs)
