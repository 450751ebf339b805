"""The catalogue of TensorFlow Datasets, read without TensorFlow.

`prepare.find` says where the records come from. They are decoded once into
memory-mapped arrays in the cache, or streamed where they exceed GM_MEMORY_LIMIT_MB.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gm.data import stream
from gm.data.containers import reading
from gm.data.dataset import ArraySplit, Dataset, Split
from gm.data.files import text_dataset
from gm.data.prepare import find, progress
from gm.data.resize import area_resize
from gm.data.splits import PARTS, complete, describe, hold_out
from gm.errors import InputError
from gm.spec import CondSpec

_BLOCK = 1024  # records decoded at a time


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads a data set of the catalogue by its TFDS name.

    Where the source has no valid split it is held out from train (`splits.hold_out`);
    where it has validation but no test, that is the test split.

    Args:
      name: such as "imagenet_resized/32x32", or "tfds:NAME".
      resolution: side of the images, or length of a window of text (default 256).
      data_dir: folder with raw archives or prepared copies.

    Raises:
      InputError: unknown, not to be had, or damaged; names the file or the command.
    """
    source = find(name, data_dir)
    key = source.key
    if key == "tiny_shakespeare":
        records = _open(name, key, source.folder())
        parts = {p: records.source(p)[0]["text"].decode() for p in PARTS}
        return text_dataset(name, parts, resolution, "first 90/5/5 percent", name)
    cache_key = [source.identity, resolution]
    found = stream.lookup(key, cache_key)
    if found and sum(a.nbytes for a in found[1].values()) > stream.memory_limit():
        found = None
    if found is None:
        records = _open(name, key, source.folder())
        shape = records.shape(resolution)
        num_bytes = math.prod(shape) * sum(records.sizes.values())
        if num_bytes > stream.memory_limit():
            splits, note = _streamed(records, resolution)
            return _dataset(name, key, shape, records.names, splits, note)
        found = stream.cached(key, cache_key, lambda: _decode(records, resolution))
    facts, arrays = found
    splits = {p: ArraySplit(arrays[p], arrays.get(f"{p}_label")) for p in PARTS}
    shape = splits["train"].x.shape[1:]
    return _dataset(name, key, shape, facts["names"], splits, facts["note"])


def _dataset(
    name: str, key: str, shape: tuple, names: Any, splits: Any, note: str
) -> Dataset:
    return Dataset(
        name=name,
        shape=tuple(shape),
        num_values=2 if key == "binarized_mnist" else 256,
        unit="dim",
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        cond=CondSpec("class", len(names), tuple(names)) if names else None,
        preprocessing=note,
    )


def _opened(folder: Path) -> contextlib.AbstractContextManager:
    return reading(folder, "prepared by TFDS", "delete it to have it prepared again")


@dataclasses.dataclass(frozen=True)
class _Records:
    """A prepared copy: what its records hold and where they are."""

    key: str
    builder: Any
    image: str  # the feature that is the example
    names: tuple[str, ...]  # of the classes; none where there is no label
    splits: dict[str, str]  # part -> name of the split in the source
    sizes: dict[str, int]  # part -> number of examples
    note: str

    def source(self, part: str) -> Any:
        """Returns the records of a part, indexable in any order."""
        with _opened(self.builder.data_path):
            return self.builder.as_data_source(split=self.splits[part])

    def shape(self, resolution: int | None) -> tuple[int, ...]:
        """Returns the shape of an example at a resolution."""
        shape = self.builder.info.features[self.image].shape
        if None in shape:
            shape = self.source("train")[0][self.image].shape
        channels = 1 if self.key == "omniglot" else shape[2]
        if resolution is None:
            return (*shape[:2], channels)
        return (resolution, resolution, channels)

    def native(self, records: list[dict]) -> list[np.ndarray]:
        """Returns the images of some records, [H, W, C] uint8 each."""
        images = [record[self.image] for record in records]
        if self.key == "omniglot":  # three equal channels, ink 0 and paper 255
            images = [255 - image[..., :1] for image in images]
        return images

    def arrays(self, records: list[dict], resolution: int | None) -> stream.Batch:
        """Returns (x [n, H, W, C] uint8, labels [n] int32 or None)."""
        images = self.native(records)
        shapes = {image.shape for image in images}
        if resolution is not None:
            blocks = (
                [np.stack(images)] if len(shapes) == 1 else [i[None] for i in images]
            )
            x = np.concatenate([area_resize(block, resolution) for block in blocks])
        elif len(shapes) == 1:
            x = np.stack(images)
        else:
            raise InputError(f"{self.key}: images of several sizes; give --resolution")
        label = [record["label"] for record in records] if self.names else None
        return x, None if label is None else np.asarray(label, np.int32)


def _open(name: str, key: str, folder: Path) -> _Records:
    """Opens a prepared copy.

    Raises:
      InputError: damaged, without one image of 8 bits, or without a train split.
    """
    import tensorflow_datasets as tfds

    with _opened(folder):
        builder = tfds.builder_from_directory(str(folder))
        features = dict(builder.info.features.items())
    images = [
        k
        for k, f in features.items()
        if isinstance(f, tfds.features.Image | tfds.features.Tensor)
        and len(f.shape) == 3
        and f.np_dtype == np.uint8
    ]
    text = "text" in features
    if not text and len(images) != 1 and "image" not in images:
        raise InputError(
            f"--dataset={name}: has {len(images)} features that are 8-bit images "
            f"({', '.join(features)}); it must have one, or one called image"
        )
    label = features.get("label")
    known = isinstance(label, tfds.features.ClassLabel) and key != "omniglot"
    sizes = {k: split.num_examples for k, split in builder.info.splits.items()}
    splits = {p: s for p, s in zip(PARTS, ("train", "validation", "test"), strict=True)
              if sizes.get(s)}  # fmt: skip
    notes = [(builder.info.metadata or {}).get("note", "")]
    if "train" not in splits:
        raise InputError(f"--dataset={name}: no train split, only {', '.join(sizes)}")
    if "test" not in splits and "valid" in splits:
        splits["test"] = splits.pop("valid")
        notes.append("test is the source's validation split")
    if key == "omniglot":  # its test characters do not occur in train: no condition
        notes.append("one of three equal channels, ink 255 on 0")
    return _Records(
        key=key,
        builder=builder,
        image="text" if text else "image" if "image" in images else images[0],
        names=tuple(label.names) if known and label else (),
        splits=splits,
        sizes={part: sizes[split] for part, split in splits.items()},
        note="; ".join(filter(None, notes)),
    )


def _note(records: _Records, resolution: int | None, rule: str) -> str:
    shape = records.builder.info.features[records.image].shape[:2]
    size = "x".join(map(str, shape)) if None not in shape else "centred squares"
    resized = resolution is not None and shape != (resolution, resolution)
    how = f"area-averaged {size} to {resolution}x{resolution}" if resized else ""
    return "; ".join(filter(None, [records.note, how, rule]))


def _decode(records: _Records, resolution: int | None) -> tuple[dict, stream.Arrays]:
    """Returns (facts, arrays) of all splits, for the cache."""
    given, digests = {}, []
    with _opened(records.builder.data_path):
        for part, size in records.sizes.items():
            source = records.source(part)
            x = np.empty((size, *records.shape(resolution)), np.uint8)
            label = np.empty(size, np.int32) if records.names else None
            for block in progress(-(-size // _BLOCK), f"decoding {records.key} {part}"):
                at = slice(block * _BLOCK, min((block + 1) * _BLOCK, size))
                read = source.__getitems__(list(range(at.start, at.stop)))
                x[at], y = records.arrays(read, resolution)
                if label is not None and y is not None:
                    label[at] = y
                if part == "train":  # of the native images: the same at any resolution
                    digests += [hashlib.sha256(i.tobytes()).digest()
                                for i in records.native(read)]  # fmt: skip
            given[part] = (x, label)
    splits, rule = complete(given, digests, records.key)
    arrays = {part: split.x for part, split in splits.items()}
    if records.names:
        arrays |= {f"{part}_label": split.cond for part, split in splits.items()}
    return {"names": records.names, "note": _note(records, resolution, rule)}, arrays


def _streamed(
    records: _Records, resolution: int | None
) -> tuple[dict[str, Split], str]:
    """Returns splits that read from disk; held-out examples are chosen by position."""
    positions = {part: np.arange(size) for part, size in records.sizes.items()}
    missing = [part for part in PARTS if part not in positions]
    rule = "splits as given"
    if missing:
        size = records.sizes["train"]
        parts = hold_out([i.to_bytes(8, "little") for i in range(size)], len(missing))
        positions |= dict(zip(("train", *missing), parts, strict=True))
        rule = describe(missing, parts, "position")

    def reader(part: str) -> Callable[[list[int]], stream.Batch]:
        source = records.source(part if part in records.splits else "train")

        def read(indices: list[int]) -> stream.Batch:
            with _opened(records.builder.data_path):
                return records.arrays(source.__getitems__(indices), resolution)

        return read

    return (
        {part: stream.StreamSplit(reader(part), positions[part]) for part in PARTS},
        _note(records, resolution, rule),
    )
