"""A folder of images as a data set."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gm.data import stream
from gm.data.containers import check_size, reading
from gm.data.dataset import ArraySplit, Dataset
from gm.data.resize import area_resize
from gm.data.splits import PARTS, complete
from gm.errors import InputError
from gm.spec import CondSpec

_SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid",
                  "validation": "valid", "test": "test"}  # fmt: skip
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
             ".pgm")  # fmt: skip


def _headers(paths: Sequence[Path], resolution: int | None) -> tuple[str, set]:
    """Returns the mode for all images (L or RGB) and the set of their sizes."""
    from PIL import Image

    modes, sizes = set(), set()
    for path in paths:
        with reading(path, "an image"), Image.open(path) as image:
            mode, size = image.mode, image.size
        if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
            raise InputError(f"{path}: mode {mode}; save it with 8 bits per channel")
        if resolution is not None and min(size) < resolution:
            raise InputError(
                f"{path}: {size[0]}x{size[1]} pixels, smaller than "
                f"--resolution={resolution}; leave it out or lower the resolution"
            )
        modes.add(mode)
        sizes.add(size)
        if resolution is None and len(sizes) > 1:
            raise InputError(
                f"{path}: {size[0]}x{size[1]} pixels, unlike the images before it; "
                "give --resolution"
            )
    return "L" if modes <= {"1", "L", "LA"} else "RGB", sizes


def find_images(
    root: Path,
) -> tuple[list[Path], np.ndarray, list[str], np.ndarray | None]:
    """Returns (paths, part of each, class names, label of each or None)."""
    paths = sorted(
        p for p in root.rglob("*")
        if p.suffix.lower() in SUFFIXES and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(root).parts)
    )  # fmt: skip
    if not paths:
        raise InputError(f"{root}: no images in it ({', '.join(SUFFIXES)})")
    inner = [p.relative_to(root).parts[:-1] for p in paths]
    parts = ["train"] * len(paths)
    if all(f and f[0] in _SPLIT_FOLDERS for f in inner):
        parts = [_SPLIT_FOLDERS[f[0]] for f in inner]
        inner = [f[1:] for f in inner]
    classes = sorted({f[0] for f in inner if f})
    if len(classes) < 2 or any(len(f) != 1 for f in inner):
        return paths, np.array(parts), [], None
    label = np.array([classes.index(f[0]) for f in inner], np.int32)
    return paths, np.array(parts), classes, label


def read_folder(
    root: Path, resolution: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[str], np.ndarray]:
    """Reads all images under a folder, in the order of their paths.

    Args:
      root: the folder.
      resolution: side to area-average the centred squares to; None: images as they
        are, all of one size.

    Returns:
      (part of each, x [N, H, W, 1 or 3] uint8, labels int32 [N] or None, names of the
      classes, sha256 of each image as it was [N, 32] uint8).

    Raises:
      InputError: as `load_folder`.
    """
    paths, parts, classes, label = find_images(root)
    mode, sizes = _headers(paths, resolution)
    width, height = next(iter(sizes))
    shape = (resolution, resolution) if resolution else (height, width)
    channels = 1 if mode == "L" else 3
    where = f"{root}: {len(paths)} images of {shape[0]}x{shape[1]}x{channels}"
    check_size(len(paths) * shape[0] * shape[1] * channels, Path(where))

    def build() -> tuple[dict, stream.Arrays]:
        x = np.empty((len(paths), *shape, channels), np.uint8)
        digests = np.empty((len(paths), 32), np.uint8)
        for i, path in enumerate(paths):
            with reading(path, "an image"):
                pixels = _pixels(path, mode)
            digests[i] = np.frombuffer(
                hashlib.sha256(pixels.tobytes()).digest(), np.uint8
            )
            x[i] = area_resize(pixels, resolution)[0] if resolution else pixels[0]
        return {}, {"x": x, "digests": digests}

    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    arrays = stream.cached(str(root.name), [stats, mode, resolution], build)[1]
    return parts, arrays["x"], label, classes, arrays["digests"]


def load_folder(name: str, root: Path, resolution: int | None) -> Dataset:
    """Loads all images under a folder, decoded once into the cache.

    Subfolders called train, valid (val, validation) and test are splits. If below them
    all images lie in exactly one level of subfolders, these are the classes. Images are
    grey if all files are, else RGB.

    Args:
      name: for the data set.
      root: the folder.
      resolution: side to area-average the centred squares to; None: images as they
        are, all of one size.

    Raises:
      InputError: no images, a broken one, one that is too small, or different sizes
        without a resolution; names the file.
    """
    parts, x, label, classes, all_digests = read_folder(root, resolution)
    images = ArraySplit(x, label)
    given = {
        part: images.batch(np.flatnonzero(parts == part))
        for part in PARTS
        if part in parts
    }
    chosen = np.flatnonzero(parts == "train")
    digests = [all_digests[i].tobytes() for i in chosen]
    splits, note = complete(given, digests, str(root))
    resized = f"centred squares, area-averaged to {resolution}x{resolution}; "
    return Dataset(
        name=name,
        shape=x.shape[1:],
        num_values=256,
        unit="dim",
        cond=CondSpec("class", len(classes), tuple(classes)) if classes else None,
        preprocessing=(resized if resolution else "") + note,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
    )


def _pixels(path: Path, mode: str) -> np.ndarray:
    """Returns one image as [1, H, W, 1 or 3] uint8."""
    from PIL import Image

    with Image.open(path) as image:
        x = np.asarray(image.convert(mode))  # drops alpha
    return x[None, ..., None] if mode == "L" else x[None]
