"""`photos`: patches of the lossless photographs that scikit-image carries.

Real photographs without a download, at any resolution up to 300. A few images only: a
sanity set, not a benchmark. Patches of one image are alike, so the split is by image.
"""

import importlib.util
from pathlib import Path

import numpy as np

from gm.data.containers import reading
from gm.data.dataset import ArraySplit, Dataset
from gm.errors import InputError

# The RGB images stored as PNG; the two motorcycles are one scene, so in one split.
_IMAGES = {
    "train": ("astronaut", "ihc", "motorcycle_left", "motorcycle_right"),
    "valid": ("chelsea",),
    "test": ("coffee",),
}
_MAX_RESOLUTION = 300  # the shorter side of chelsea


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads non-overlapping RGB patches of resolution x resolution (default 32).

    Args:
      name: "photos".
      resolution: side of a patch, from 1 to 300.
      data_dir: not used.

    Raises:
      InputError: scikit-image is missing, or the resolution is too large.
    """
    side = resolution or 32
    if side > _MAX_RESOLUTION:
        raise InputError(
            f"--resolution={side}: the smallest photograph of {name} has a side of "
            f"{_MAX_RESOLUTION} pixels; give a resolution from 1 to {_MAX_RESOLUTION}"
        )
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise InputError(
            f"--dataset={name}: needs scikit-image: pip install -e '.[images]'"
        )
    folder = Path(spec.origin).parent / "data"
    splits = {
        part: ArraySplit(
            np.concatenate(
                [_patches(folder / f"{image}.png", side) for image in images]
            )
        )
        for part, images in _IMAGES.items()
    }
    return Dataset(
        name=name,
        shape=(side, side, 3),
        num_values=256,
        unit="dim",
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        preprocessing=f"patches of {side}x{side} without overlap, split by image",
    )


def _patches(path: Path, side: int) -> np.ndarray:
    """Returns [N, side, side, 3] uint8: the whole patches, from the top left corner."""
    from PIL import Image

    with reading(path, "a PNG image of scikit-image"), Image.open(path) as image:
        x = np.asarray(image.convert("RGB"))
    rows, columns = x.shape[0] // side, x.shape[1] // side
    x = x[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return x.swapaxes(1, 2).reshape(-1, side, side, 3)
