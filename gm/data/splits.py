"""The one rule by which examples are held out where a source has no such split."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from gm.data.dataset import ArraySplit
from gm.errors import InputError

PARTS = ("train", "valid", "test")


def hold_out(digests: Sequence[bytes], num_parts: int) -> list[np.ndarray]:
    """Splits examples into the rest and `num_parts` held-out parts.

    Each part takes min(10000, 10 %) of the examples, at least one, in the order of a
    fixed hash of their digests: whatever the order of the source and the machine, the
    same examples are held out, and equal ones stay together.

    Args:
      digests: of the examples, [N].
      num_parts: how many parts to hold out.

    Returns:
      [rest, part_1, ...]: sorted int64 indices.

    Raises:
      InputError: too few different examples.
    """
    groups: dict[bytes, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    size = max(1, min(10_000, len(digests) // 10))
    parts: list[list[int]] = [[]]
    for digest in sorted(groups, key=lambda d: hashlib.sha256(b"gm" + d).digest()):
        if len(parts[-1]) >= size and len(parts) <= num_parts:
            parts.append([])
        parts[-1] += groups[digest]
    if len(parts) <= num_parts:
        raise InputError(
            f"{len(groups)} different examples are too few to hold out {num_parts} "
            "parts; give more, or give the splits"
        )
    order = [parts[-1], *parts[:-1]]
    return [np.sort(np.asarray(part, np.int64)) for part in order]


def complete(
    given: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    digests: Sequence[bytes],
    where: str,
) -> tuple[dict[str, ArraySplit], str]:
    """Returns the three splits, and a note that says how they came about.

    Args:
      given: (x, cond) of train, and of valid and test where the source has them; what
        is missing is held out from train.
      digests: of the examples of train.
      where: file or folder to name in errors.

    Raises:
      InputError: no train, or too few examples.
    """
    missing = [part for part in PARTS if part not in given]
    if "train" in missing:
        raise InputError(f"{where}: has {', '.join(given)} but no train")
    splits = {part: ArraySplit(*columns) for part, columns in given.items()}
    if not missing:
        return splits, "splits as given"
    try:
        indices = hold_out(digests, len(missing))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    train = splits["train"]
    for part, index in zip(("train", *missing), indices, strict=True):
        splits[part] = ArraySplit(*train.batch(index))
    return splits, describe(missing, indices, "bytes")


def describe(missing: Sequence[str], indices: Sequence[np.ndarray], what: str) -> str:
    """Returns, for `preprocessing`, what `hold_out` held out by a hash of `what`."""
    total = sum(map(len, indices))
    sizes = [f"{k} {len(i)}" for k, i in zip(missing, indices[1:], strict=True)]
    return f"held out of train by a hash of the {what}: {', '.join(sizes)} of {total}"
