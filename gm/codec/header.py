"""What the header of an archive must be: an archive may come from anyone."""

import math
from typing import Any

import numpy as np

from gm.codec import archive
from gm.data.stream import memory_limit
from gm.errors import InputError

_HEADER: dict[str, Any] = {
    **dict.fromkeys(("codec", "model", "checkpoint", "params_sha256"), str),
    **dict.fromkeys(("program_sha256", "device", "machine", "dtype", "sha256"), str),
    **dict.fromkeys(("batch_size", "seed", "initial_words", "net_bits"), int),
    **dict.fromkeys(("versions", "source"), dict),
    **dict.fromkeys(("shape", "batches"), list),
    "cond": (list, type(None)),
}


def _is_count(value, least=0):
    return type(value) is int and least <= value < 1 << 48


def _check_array(dtype, shape):
    """ValueError for what is no array of numbers that fits in memory."""
    kind = np.dtype(dtype)
    if kind.kind not in "uibf" or not (shape and all(_is_count(n, 1) for n in shape)):
        raise ValueError(f"{dtype} {shape}")
    if kind.itemsize * math.prod(shape) > memory_limit():
        raise ValueError(f"{dtype} {shape} is more than GM_MEMORY_LIMIT_MB")


def _check_header(header: dict[str, Any], body_bytes: int) -> None:
    """ValueError, TypeError or KeyError for a header that `compress` has not written."""
    for name, kind in _HEADER.items():
        if not isinstance(header[name], kind):
            raise ValueError(f"{name} is {header[name]!r:.40}")
    _check_array(header["dtype"], header["shape"])
    counts = [count for count, checksum in header["batches"] if _is_count(checksum)]
    size = header["batch_size"]
    if not all(_is_count(n, 1) and n <= size for n in counts) or not (
        sum(counts) == header["shape"][0] and len(counts) == len(header["batches"])
    ):
        raise ValueError("its batches do not add up")
    # A mesh may fill the one batch of a few examples up.
    if not _is_count(size, 1) or size > header["shape"][0] + (1 << 12):
        raise ValueError(f"batch_size is {size}")
    if not all(_is_count(header[n]) for n in ("seed", "initial_words")):
        raise ValueError("seed or initial_words is no count")
    if header["cond"] is not None:
        dtype, shape, side = header["cond"]
        _check_array(dtype, shape)
        if not _is_count(side) or side > body_bytes or shape[0] != header["shape"][0]:
            raise ValueError("its conditions are not those of its examples")
    source = header["source"]
    if source.get("kind", "array") == "array":
        shape = source.get("shape", header["shape"])
        sized = all(map(_is_count, shape))
        if not sized or math.prod(shape) != math.prod(header["shape"]):
            raise ValueError("its shape is not that of its examples")
    elif source["kind"] == "lines":
        if not isinstance(source["last_ends"], bool):
            raise ValueError(f"its source is {source!r:.40}")
    elif source["kind"] != "text" or not _is_count(source["length"]):
        raise ValueError(f"its source is {source!r:.40}")
    if not str(source.get("key", "x")).isidentifier() or source.get("key") == "file":
        raise ValueError(f"its key is {source['key']!r:.40}")


def unpack(data: bytes, where: str = "the archive") -> tuple[dict[str, Any], bytes]:
    """(header, body) of an archive: sound, and what `compress` could have written.

    Raises:
      InputError: as `archive.unpack`, or a header that would have a reader allocate or
        write what the archive cannot hold.
    """
    header, body = archive.unpack(data, where)
    try:
        _check_header(header, len(body))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        told = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: no gm has written its header ({told})") from None
    return header, body
