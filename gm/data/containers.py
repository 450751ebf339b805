"""Readers of files that come from elsewhere; they trust no byte.

Nothing is unpickled, and no reader allocates more than the bytes that a checked header
and GM_MEMORY_LIMIT_MB allow.
"""

import contextlib
import gzip
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from gm.data.stream import memory_limit
from gm.errors import InputError


@contextlib.contextmanager
def reading(path: Path, right: str, then: str = "fetch it again") -> Iterator[None]:
    """Turns whatever a decoder raises on a damaged file into one InputError line.

    Args:
      path: the file or folder, for the message.
      right: what it should be.
      then: what the user can do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: damaged, truncated or not {right} ({what}); {then}"
        ) from error


def check_size(num_bytes: int, path: Path) -> None:
    """Checks that so many bytes may be held in memory.

    Raises:
      InputError: they may not.
    """
    if not 0 <= num_bytes <= memory_limit():
        raise InputError(
            f"{path}: says that it holds {num_bytes >> 20} MB, more than "
            f"GM_MEMORY_LIMIT_MB={memory_limit() >> 20}"
        )


def read_idx(path: Path) -> np.ndarray:
    """Returns the uint8 array of a gzipped idx file (MNIST's format).

    Raises:
      InputError: damaged or truncated, or another kind of file.
    """
    right = "a gzipped idx file of bytes"
    with reading(path, right), gzip.open(path) as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
            raise InputError(f"{path}: not {right}; its first bytes are {magic.hex()}")
        shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        size = math.prod(shape)
        check_size(size, path)
        data = file.read(size + 1)
        if len(data) != size:
            raise InputError(f"{path}: not the {size} bytes that its header announces")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_amat(path: Path) -> np.ndarray:
    """Returns [N, 28, 28, 1] of 0 and 1 from Larochelle's text format.

    Raises:
      InputError: not lines of 784 digits 0 or 1 with single spaces between.
    """
    check_size(path.stat().st_size, path)
    with reading(path, "an .amat text file"):
        data = np.frombuffer(path.read_bytes(), np.uint8)
    right = f"{path}: not lines of 784 digits 0 or 1 (truncated or another file)"
    if not data.size or data.size % 1568:
        raise InputError(right)
    lines = data.reshape(-1, 784, 2)
    x = lines[..., 0] - np.uint8(48)
    if x.max() > 1 or (lines[:, :-1, 1] != 32).any() or (lines[:, -1, 1] != 10).any():
        raise InputError(right)
    return x.reshape(-1, 28, 28, 1)


def _check_header(file: IO[bytes], size: int, where: str) -> None:
    """Checks that the .npy header in `file` announces just `size` bytes in all."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InputError(f"{where}: holds Python objects, which are not read; "
                         "save an integer array")  # fmt: skip
    if file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise InputError(f"{where}: its header says {dtype} {shape}, its size differs")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz, or {"x": array} of an .npy (memory-mapped).

    Raises:
      InputError: damaged, holds objects, or is larger unpacked than the memory limit.
    """
    if path.suffix == ".npy":
        with reading(path, "an .npy file"):
            with open(path, "rb") as file:
                _check_header(file, path.stat().st_size, str(path))
            return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
    with reading(path, "an .npz file"):
        with zipfile.ZipFile(path) as archive:
            check_size(sum(i.file_size for i in archive.infolist()), path)
            for info in archive.infolist():
                with archive.open(info) as file:
                    _check_header(file, info.file_size, f"{path}:{info.filename}")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}


def read_mosaic(path: Path, tile: int) -> np.ndarray:
    """Returns the [N, tile, tile, 3] tiles of one image, row by row.

    Raises:
      InputError: not an image, or its sides are no multiples of `tile`.
    """
    from PIL import Image

    with reading(path, "an image"), Image.open(path) as image:
        width, height = image.size
        if width % tile or height % tile:
            raise InputError(
                f"{path}: {width}x{height} pixels do not divide into tiles of {tile}"
            )
        x = np.asarray(image.convert("RGB"))
    x = x.reshape(height // tile, tile, width // tile, tile, 3).swapaxes(1, 2)
    return x.reshape(-1, tile, tile, 3)
