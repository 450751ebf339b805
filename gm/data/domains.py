"""`domains:NAME`: two kinds of images with a label each, to translate without pairs.

`domains:solids` has cuboids and cylinders of the same width and height, and of the same
depth as width, each kind seen from one direction; `domains:NAME` the images of any other
data set and their negatives. Nothing tells a model which images of the two kinds belong
together, but the splits know, so that a translation can be judged.
"""

import dataclasses

import numpy as np

from gm.data.dataset import ArraySplit, Dataset
from gm.data.splits import PARTS
from gm.errors import InputError
from gm.spec import CondSpec

_AZIMUTH, _ELEVATION = 39, 30  # degrees, from which cuboids and cylinders are seen


@dataclasses.dataclass(frozen=True)
class DomainSplit(ArraySplit):
    """The first half is of domain 0, the second of domain 1, in the same order."""

    def partners(self) -> np.ndarray:
        """int64 [N]: which example is what each becomes in the other domain."""
        return np.roll(np.arange(len(self)), len(self) // 2)


def _pair(first: np.ndarray, second: np.ndarray) -> DomainSplit:
    labels = np.repeat(np.arange(2, dtype=np.int32), len(first))
    return DomainSplit(np.concatenate([first, second]), labels)


def _solids(resolution: int | None) -> tuple[Dataset, dict[str, DomainSplit]]:
    """1024 sizes: 724, 100 and 200 of them in train, valid and test."""
    from gm.data import solids

    base = solids.load("solids", resolution=resolution)
    width = np.arange(12, 44) * solids.CANVAS // 64
    height = np.arange(6, 38) * solids.CANVAS // 64
    w, h = (g.ravel() for g in np.meshgrid(width, height, indexing="ij"))
    views = [np.full_like(w, a) for a in (_AZIMUTH, _ELEVATION)]
    cuboids, cylinders = (
        np.stack([np.full_like(w, kind), w, h, w, view], 1).astype(np.int32)
        for kind, view in enumerate(views)
    )
    order = np.random.default_rng(0).permutation(len(w))
    chosen = np.split(order, [100, 300])
    rows = dict(zip(("valid", "test", "train"), chosen, strict=True))
    side = base.shape[0]
    return base, {
        part: _pair(
            solids.render_bytes(cuboids[rows[part]], side),
            solids.render_bytes(cylinders[rows[part]], side),
        )
        for part in PARTS
    }


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads `domains:NAME`.

    Args:
      name: NAME is solids, or any data set of images that fits in memory.
      resolution, data_dir: as for NAME.

    Raises:
      InputError: an unknown data set, or one whose images have no negatives.
    """
    inner = name.partition(":")[2]
    names = ("cuboid", "cylinder")
    if inner == "solids":
        base, splits = _solids(resolution)
    else:
        from gm import data

        base = data.load(inner, resolution=resolution, data_dir=data_dir)
        names, splits = ("image", "negative"), {}
        for part in PARTS:
            split = base.split(part)
            held = not isinstance(split, data.Fresh) and split.in_memory
            if len(base.shape) != 3 or not held or isinstance(split, data.Fresh):
                raise InputError(
                    f"--dataset={name}: give solids, or a data set of images in memory"
                )
            x = split.batch(np.arange(len(split)))[0]
            splits[part] = _pair(x, (base.num_values - 1 - x).astype(x.dtype))
    return Dataset(
        name=name,
        shape=base.shape,
        num_values=base.num_values,
        unit="dim",
        preprocessing=base.preprocessing,
        cond=CondSpec("class", 2, names),
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
    )
