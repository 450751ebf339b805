"""The file: a header that says what is needed to decode, and blocks with checksums.

  magic [8] | length of the header, uint32 | sha256 of the header [32] | header | body

Integers are little-endian; the header is JSON, deflated. It holds the length, the sha256
and the CRC-32 of every 64 KiB of the body, so its own sha256 vouches for all of the file.
"""

import hashlib
import json
import struct
import zlib
from typing import Any

from gm.errors import InputError

# As PNG's: a transfer that rewrites line ends, or cuts the 8th bit, shows at once. The
# last byte is the version of this layout.
MAGIC = b"\x89GM\r\n\x1a\n\x01"
BLOCK = 1 << 16
_MAX_HEADER = 1 << 28  # bytes inflated: the checksums of an archive of a terabyte
_HEAD = struct.Struct("<8sI32s")


def _checksums(body: bytes) -> list[int]:
    return [zlib.crc32(body[i : i + BLOCK]) for i in range(0, len(body), BLOCK)]


def inflate(data: bytes, most: int) -> bytes:
    """The inverse of zlib.compress; ValueError for damage or more than `most` bytes."""
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(out) > most or not inflater.eof or inflater.unused_data:
        raise ValueError(f"not {most} bytes at most")
    return out


def pack(header: dict[str, Any], body: bytes) -> bytes:
    """The bytes of an archive; `header` is of JSON values."""
    header = header | {
        "body_bytes": len(body),
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "body_crc32": _checksums(body),
    }
    text = zlib.compress(json.dumps(header, allow_nan=False).encode(), 9)
    return _HEAD.pack(MAGIC, len(text), hashlib.sha256(text).digest()) + text + body


def unpack(data: bytes, where: str = "the archive") -> tuple[dict[str, Any], bytes]:
    """(header, body) of an archive, every byte of it checked.

    Args:
      data: the whole file.
      where: its name, for the message.

    Raises:
      InputError: not an archive, another version of the layout, truncated or changed.
    """
    if data[:7] != MAGIC[:7]:
        raise InputError(f"{where}: not an archive of gm (its first bytes differ)")
    if len(data) < _HEAD.size:
        raise InputError(f"{where}: truncated, {len(data)} bytes; copy it again")
    magic, length, digest = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise InputError(
            f"{where}: its layout is number {magic[7]}, this gm reads {MAGIC[7]}"
        )
    text = data[_HEAD.size : _HEAD.size + length]
    if hashlib.sha256(text).digest() != digest:
        raise InputError(
            f"{where}: its header is damaged or truncated (the checksum differs); "
            "copy it again"
        )
    try:
        header = json.loads(inflate(text, _MAX_HEADER))
        told = header["body_bytes"], header["body_sha256"], header["body_crc32"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{where}: no gm has written its header") from None
    body = data[_HEAD.size + length :]
    body_bytes, body_sha256, checksums = told
    if len(body) != body_bytes:
        raise InputError(
            f"{where}: {len(data)} bytes in place of "
            f"{len(data) - len(body) + body_bytes}; copy it again"
        )
    own = _checksums(body)
    if not isinstance(checksums, list) or len(checksums) != len(own):
        raise InputError(f"{where}: no gm has written its header")
    pairs = zip(own, checksums, strict=True)
    bad = [i for i, (found, told) in enumerate(pairs) if found != told]
    if bad or hashlib.sha256(body).hexdigest() != body_sha256:
        which = f"block {bad[0] + 1} of {len(own)}" if bad else "body"
        raise InputError(
            f"{where}: damaged, the checksum of {which} differs; copy it again"
        )
    return header, body
