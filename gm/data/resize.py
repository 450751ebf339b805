"""The one place where images change size: area averaging, rounded to integers."""

import numpy as np

from gm.errors import InputError


def center_square(x: np.ndarray) -> np.ndarray:
    """Crops [N, H, W, C] to its centred square [N, S, S, C], S = min(H, W)."""
    height, width = x.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[:, top : top + side, left : left + side]


def _overlaps(size: int, resolution: int) -> np.ndarray:
    """Returns [resolution, size]: overlap of output and input pixels, in 1/resolution.

    Output pixel i covers [i size / resolution, (i + 1) size / resolution); every row
    sums to `size`. Integers, so sizes that do not divide are exact too.
    """
    low = np.arange(resolution)[:, None] * size
    cell = np.arange(size)[None, :] * resolution
    overlap = np.minimum(low + size, cell + resolution) - np.maximum(low, cell)
    return np.maximum(overlap, 0).astype(np.int64)


def area_resize(x: np.ndarray, resolution: int) -> np.ndarray:
    """Area-averages images to resolution x resolution, rounding halves up.

    Args:
      x: [N, H, W, C] uint8; cropped to its centred square first.
      resolution: side of the result, at most min(H, W).

    Returns:
      [N, resolution, resolution, C] uint8, by integer arithmetic alone, so that the
      result (and the hash of a split) is the same on every machine.

    Raises:
      InputError: the resolution is larger than the images.
    """
    x = center_square(x)
    side = x.shape[1]
    if resolution == side:
        return x
    if not 1 <= resolution <= side:
        raise InputError(
            f"--resolution={resolution}: the images have a side of {side} pixels; "
            f"give a resolution from 1 to {side}"
        )
    weight = _overlaps(side, resolution)
    out = np.empty((len(x), resolution, resolution, x.shape[3]), np.uint8)
    area = side * side
    for start in range(0, len(x), 512):  # bounds the int64 copies
        block = x[start : start + 512].astype(np.int64)
        rows = np.einsum("rh,nhwc->nrwc", weight, block, optimize=True)
        total = np.einsum("sw,nrwc->nrsc", weight, rows, optimize=True)
        out[start : start + 512] = (2 * total + area) // (2 * area)
    return out
