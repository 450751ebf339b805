"""What general compressors make of the same integers: the figures to beat."""

import io
import lzma
import math
import zlib

import numpy as np


def baseline_bits(x: np.ndarray, num_values: int) -> dict[str, float]:
    """Bits that each compressor needs for all of x.

    zlib and lzma take the examples' bytes as one file, in order, a symbol in as few
    bytes as hold any of the values. PNG and lossless WebP write one file per image, as
    is usual, and one sheet that shows all; grey or RGB images alone.

    Args:
      x: [N, *shape] integers.
      num_values: K.

    Returns:
      {"PNG": bits, ...}.
    """
    small = x.astype(np.uint8 if num_values <= 256 else np.uint16)
    raw = small.tobytes()
    found = {}
    if num_values <= 256 and x.ndim == 4 and x.shape[-1] in (1, 3):
        sheet = _sheet(small)
        for name in ("PNG", "WebP"):
            found[name] = sum(_image_bits(image, name, num_values) for image in small)
            if max(sheet.shape) < 1 << 14:  # WebP's largest side
                found[f"{name}, one sheet"] = _image_bits(sheet, name, num_values)
    found["zlib"] = 8 * len(zlib.compress(raw, 9))
    found["lzma"] = 8 * len(lzma.compress(raw, preset=9))
    return found


def example_bits(x: np.ndarray, num_values: int) -> np.ndarray:
    """Bits of each example as a file of its own, by the shortest of the compressors.

    zlib, and for grey or RGB images PNG and lossless WebP.

    Args:
      x: [N, *shape] integers.
      num_values: K.

    Returns:
      float64 [N].
    """
    small = x.astype(np.uint8 if num_values <= 256 else np.uint16)
    found = [[8 * len(zlib.compress(example.tobytes(), 9)) for example in small]]
    if num_values <= 256 and x.ndim == 4 and x.shape[-1] in (1, 3):
        for name in ("PNG", "WebP"):
            found.append([_image_bits(image, name, num_values) for image in small])
    return np.min(found, axis=0).astype(np.float64)


def _image_bits(image, name, num_values):
    """Bits of one [H, W, C] image as a file."""
    from PIL import Image

    if image.shape[-1] == 1:
        image = image[..., 0]
    if num_values == 2:
        image = image * np.uint8(255)
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    if name == "PNG":
        picture = picture.convert("1") if num_values == 2 else picture
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "WebP", lossless=True, quality=100, method=4)
    return 8 * len(buffer.getvalue())


def _sheet(x):
    """All images [N, H, W, C] side by side in about a square, [H', W', C]."""
    count, height, width, channels = x.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = x
    cells = cells.reshape(rows, columns, height, width, channels)
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
