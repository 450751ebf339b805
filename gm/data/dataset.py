"""What every data source returns: integers, split, with an identity.

A split is anything with a length and `batch(indices)`; a training split may instead be
`Fresh`: drawn anew at each step by a pure function of a key inside the jitted step.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gm.spec import CondSpec


class Split(Protocol):
    """A finite set of examples, indexable in any order."""

    @property
    def in_memory(self) -> bool:
        """False: `batch` reads from disk, so training streams it."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns (x [n, *shape] integers, cond [n, ...] or None)."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Examples held in arrays (which may be memory-mapped)."""

    x: np.ndarray  # [N, *shape], uint8 or int32
    cond: np.ndarray | None = None  # [N] int32 classes or [N, size] float32
    in_memory: bool = True

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns (x, cond) of the given examples."""
        return self.x[indices], None if self.cond is None else self.cond[indices]


@dataclasses.dataclass(frozen=True)
class WindowSplit:
    """Every window of a sequence, which is held once: example i starts at symbol i."""

    sequence: np.ndarray  # [T] integers
    length: int
    in_memory: bool = True

    def __len__(self) -> int:
        return len(self.sequence) - self.length + 1

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns (x [n, length], None)."""
        return self.sequence[
            np.asarray(indices)[:, None] + np.arange(self.length)
        ], None


@dataclasses.dataclass(frozen=True)
class Fresh:
    """A distribution to train on directly: every step sees new examples."""

    draw: Callable[[Any, int], tuple[Any, Any]]
    """draw(key, n) -> (x [n, *shape] int32, cond [n, ...] or None); pure, traceable,
    integer arithmetic only, so that it gives the same on every device."""


@dataclasses.dataclass(frozen=True)
class Support:
    """What examples of a known distribution can be: samples are judged by it."""

    facts: Callable[[np.ndarray], dict[str, np.ndarray]]
    """x [N, *shape] -> named conditions, bool [N] each; legal x fulfil all of them."""

    classes: Callable[[np.ndarray], np.ndarray]
    """Legal x -> a coarse class of each, int [N]."""

    class_probs: np.ndarray
    """The true probability of each class, [C]."""

    agrees: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """(x, conditions) -> whether x is nearest to something of this condition, bool [N]."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set at a resolution, ready to train on."""

    name: str
    shape: tuple[int, ...]  # (H, W, C) for images, (L,) for sequences
    num_values: int  # x in {0, ..., num_values - 1}
    unit: str  # what people read: "dim" (bits/dim), "char" or "object"
    train: Split | Fresh
    valid: Split
    test: Split
    cond: CondSpec | None = None
    preprocessing: str = "none"  # everything that was done to the source's integers
    entropy_nats: float | None = None  # the true entropy of an example, where known
    cond_entropy_nats: float | None = None  # the same given the condition
    ordered: bool = False  # text: evaluated in its own order, not sorted by hash
    symbols: str | None = None  # text: symbols[i] is the character of value i
    end: int | None = None  # documents: the value that ends one and fills the rest
    support: Support | None = None  # of a known distribution

    def split(self, name: str) -> Split | Fresh:
        """Returns the split called train, valid or test."""
        if name not in ("train", "valid", "test"):
            raise KeyError(name)
        return getattr(self, name)


def example_digests(split: Split, num_values: int, block: int = 1024) -> list[bytes]:
    """Returns the sha256 of each example's integers.

    The bytes are C order, uint8 where num_values <= 256 and little-endian int32 above,
    so that a digest does not depend on how a source stores its arrays.
    """
    dtype = np.uint8 if num_values <= 256 else np.dtype("<i4")
    digests = []
    for start in range(0, len(split), block):
        x, _ = split.batch(np.arange(start, min(start + block, len(split))))
        x = np.ascontiguousarray(x, dtype)
        digests += [hashlib.sha256(example.tobytes()).digest() for example in x]
    return digests


def identify(dataset: Dataset, split: Split) -> tuple[str, np.ndarray]:
    """Returns (split_sha256, order [N] int64): a split's identity and its fixed order.

    The identity is the sha256 over the sorted sha256 of the examples, and examples are
    evaluated in that order, so that rows and per-example nats pair up whatever the
    order of the source. Text keeps its own order, and its digest respects it.
    """
    digests = example_digests(split, dataset.num_values)
    if dataset.ordered:
        order = list(range(len(digests)))
    else:
        order = sorted(range(len(digests)), key=lambda i: digests[i])
    sha256 = hashlib.sha256(b"".join(digests[i] for i in order)).hexdigest()
    return sha256, np.asarray(order, np.int64)
