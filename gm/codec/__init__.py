"""Lossless compression by any trained model whose family gives a codec.

`compress` and `decompress` are all that is needed; the codec is chosen by what the model
can do, not by its class.
"""

from gm.codec.lossless import compress, decompress, read_header

__all__ = ["compress", "decompress", "read_header"]
