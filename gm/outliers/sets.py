"""Sets of outliers: made from the inlier's test examples, or another data set."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from gm import data
from gm.data import folder
from gm.data.dataset import Dataset, Fresh, Split
from gm.data.puzzles import SIZES, make_illegal
from gm.errors import InputError, did_you_mean


def _constants(x, num_values, rng):
    """Every symbol the same: a grey image of some level."""
    level = rng.integers(0, num_values, len(x))
    return np.broadcast_to(level.reshape(-1, *[1] * (x.ndim - 1)), x.shape).copy()


def _noise(x, num_values, rng):
    return rng.integers(0, num_values, x.shape)


def _shuffled(x, num_values, rng):
    """The pixels of each image (or symbols) in another order; a pixel stays whole."""
    del num_values
    pixels = x.reshape(len(x), -1, x.shape[-1] if x.ndim == 4 else 1)
    order = rng.permuted(np.tile(np.arange(pixels.shape[1]), (len(x), 1)), axis=1)
    return np.take_along_axis(pixels, order[..., None], axis=1).reshape(x.shape)


def _inverted(x, num_values, rng):
    del rng
    return num_values - 1 - x.astype(np.int64)


def _illegal(x, num_values, rng):
    del num_values
    return make_illegal(x, rng)


MADE: dict[str, Callable[..., np.ndarray]] = {
    "constants": _constants,
    "noise": _noise,
    "shuffled": _shuffled,
    "inverted": _inverted,
    "illegal": _illegal,
}


def take(split: Split | Fresh, count: int, seed: int = 0) -> np.ndarray:
    """At most `count` different examples of a split, x [N, *shape]."""
    rng = np.random.default_rng(seed)
    if isinstance(split, Fresh):
        draw = jax.jit(split.draw, static_argnums=1)
        return np.asarray(draw(jax.random.key(seed), count)[0])
    return split.batch(rng.permutation(len(split))[:count])[0]


def to_levels(x: np.ndarray, num_values: int, wanted: int) -> np.ndarray:
    """The nearest of `wanted` levels for images of `num_values`, black and white kept."""
    if num_values == wanted:
        return x
    return np.rint(x.astype(np.float64) * (wanted - 1) / (num_values - 1)).astype(int)


def side(shape: tuple[int, ...]) -> int | None:
    """The --resolution at which other data are read: the side of square images."""
    return shape[0] if len(shape) == 3 and shape[0] == shape[1] else None


def outliers(
    name: str, inlier: Dataset, x: np.ndarray, *, data_dir: str | None, seed: int = 0
) -> np.ndarray:
    """As many outliers as there are inliers, or fewer where the source has fewer.

    Args:
      name: one of MADE, the name of a data set (its test split), or files:PATH (all).
      inlier: the inlier's data set, for shape and number of values.
      x: test examples of it [N, *shape].
      data_dir: where other data sets lie.
      seed: of what is random.

    Returns:
      integers [M, *shape].

    Raises:
      InputError: no such set, or one of another shape; names the flag.
    """
    flag = f"--outliers={name}"
    if name == "illegal" and inlier.name not in SIZES:
        raise InputError(f"{flag}: {inlier.name} is no puzzle ({', '.join(SIZES)})")
    if name == inlier.name:
        raise InputError(f"{flag}: is the inlier's own data; give another set")
    if name in MADE:
        return MADE[name](x, inlier.num_values, np.random.default_rng(seed))
    if name not in data.DATASETS and not name.startswith(("files:", "tfds:")):
        known = [*MADE, *data.DATASETS]
        raise InputError(
            f"{flag}: unknown{did_you_mean(name, known)} "
            f"(one of {', '.join(MADE)}, a data set, tfds:NAME, files:PATH)"
        )
    image, listed = len(inlier.shape) == 3, data.DATASETS.get(name)
    resolution = inlier.shape[0] if inlier.ordered else side(inlier.shape)
    if listed and image and "x" not in listed.shape:
        resolution = None  # sequences, refused below for their shape
    try:
        found = data.load(name, resolution=resolution, data_dir=data_dir)
        found = data.encode_like(found, inlier.symbols)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
    same_values = found.num_values == inlier.num_values
    if found.shape != inlier.shape or not (same_values or image):
        raise InputError(
            f"{flag}: its examples are {_size(found)}, those of {inlier.name} "
            f"{_size(inlier)}; give a set of the same shape"
        )
    splits = ("train", "valid", "test") if name.startswith("files:") else ("test",)
    parts = [take(found.split(part), len(x), seed) for part in splits]
    every = np.concatenate(parts)
    order = np.random.default_rng(seed).permutation(len(every))[: len(x)]
    return to_levels(every[order], found.num_values, inlier.num_values)


def _size(dataset: Dataset) -> str:
    return f"{'x'.join(map(str, dataset.shape))} of {dataset.num_values} values"


def labels(names: Sequence[str]) -> dict[str, str]:
    """Sets' names in tables: of a path its last part, where no other ends in the same."""

    def short(name):
        path = name.removeprefix("files:")
        return name if path == name else f"files:{Path(path).name}"

    counts = Counter(map(short, dict.fromkeys(names)))
    return {name: short(name) if counts[short(name)] == 1 else name for name in names}


def read_images(root: str, inlier: Dataset) -> tuple[list[Path], np.ndarray]:
    """The images under a folder as a model of `inlier` takes them: (paths, x).

    They are cropped to the centred square and area-averaged to its resolution.

    Raises:
      InputError: no folder, no images, or images that cannot be of that shape.
    """
    flag, shape = f"--rank={root}", inlier.shape
    if len(shape) != 3:
        raise InputError(f"{flag}: {inlier.name} has no images, so no folder is ranked")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise InputError(f"{flag}: no such folder; give a folder of images")
    try:
        paths = folder.find_images(path)[0]
        x = folder.read_folder(path, side(shape))[1]
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
    if x.shape[1:] != shape:
        raise InputError(
            f"{flag}: its images are {'x'.join(map(str, x.shape[1:]))}, those of "
            f"{inlier.name} {'x'.join(map(str, shape))}; give a folder of such images"
        )
    return paths, to_levels(x, 256, inlier.num_values)
