"""Entropy coding of integer arrays: a queue (range coding) and a stack (ANS).

A stack gives bits back: popping a symbol draws it from a distribution with the bits that
lie on the stack, and pushing it again restores them (Townsend et al. 2019). Both coders
are constriction's, with probabilities of 24 bits: every symbol costs at most 24 bits.

Network outputs are cast to float64 and turned into probabilities by numpy here, alike at
both ends.
"""

from collections.abc import Iterator

import constriction
import numpy as np

_stream = constriction.stream
_CATEGORICAL = _stream.model.Categorical(perfect=False)
_UNIFORM = _stream.model.Uniform()
_CELLS = 1 << 22  # of a table at a time, 32 MB in float64

# A normal variable on a grid is coded as a bin of 1/32 to 1/16 sd and its place within:
# an alphabet has to stay far below 2^24 symbols, since each gets at least that mass.
_BINS_PER_SD = 4  # log2 of the smallest number
# What is popped stays within 8 sd: a wider alphabet would draw absurd values, as each
# bin has mass 2^-24. What is pushed may lie anywhere; the end bins are escapes.
_NARROW, _WIDE = 8 << _BINS_PER_SD + 1, 1 << 10
_FAR = 1 << 46  # in size, of what can be coded as a normal variable
_NORMALS = {n: _stream.model.QuantizedGaussian(-n, n) for n in (_NARROW, _WIDE)}


def _tables(logits: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Unnormalised probabilities float64 [n, K], some rows at a time."""
    rows = max(_CELLS // logits.shape[1], 1)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        table = np.asarray(logits[part], np.float64)
        yield part, np.exp(table - table.max(axis=1, keepdims=True))


class QueueWriter:
    """Symbols in, words out; read in the same order by `QueueReader`."""

    def __init__(self) -> None:
        self._coder = _stream.queue.RangeEncoder()

    def put(self, x: np.ndarray, logits: np.ndarray) -> None:
        """Codes integers [n] by softmax(logits), logits [n, K]."""
        x = np.ascontiguousarray(x, np.int32)
        for part, table in _tables(logits):
            self._coder.encode(x[part], _CATEGORICAL, table)

    @property
    def num_bits(self) -> int:
        """How many bits were written, in whole words."""
        return self._coder.num_bits()

    def words(self) -> np.ndarray:
        """uint32 [W]: all that was put so far."""
        return self._coder.get_compressed()


class QueueReader:
    """The inverse of `QueueWriter`."""

    def __init__(self, words: np.ndarray) -> None:
        self._coder = _stream.queue.RangeDecoder(words)

    def get(self, logits: np.ndarray) -> np.ndarray:
        """The next integers, int32 [n], by softmax(logits), logits [n, K]."""
        parts = [self._coder.decode(_CATEGORICAL, t) for _, t in _tables(logits)]
        return np.concatenate(parts)


class Stack:
    """Last in, first out. All of an array is pushed or popped at once."""

    def __init__(self, words: np.ndarray, *, seal: bool = False) -> None:
        """A stack of words, uint32 [W]; `seal` where they are any random bits."""
        self._coder = _stream.stack.AnsCoder(words, seal=seal)

    @property
    def num_bits(self) -> int:
        """How many bits lie on the stack."""
        return self._coder.num_valid_bits()

    def words(self, *, unseal: bool = False) -> np.ndarray:
        """uint32 [W]; `unseal` gives what a sealed stack began with."""
        return self._coder.get_compressed(unseal=unseal)

    def push(self, x: np.ndarray, logits: np.ndarray) -> None:
        """Pushes integers [n] by softmax(logits), logits [n, K]."""
        x = np.ascontiguousarray(x, np.int32)
        rows = max(_CELLS // logits.shape[1], 1)
        for start in reversed(range(0, len(x), rows)):
            [(_, table)] = _tables(logits[start : start + rows])
            self._coder.encode_reverse(x[start : start + rows], _CATEGORICAL, table)

    def pop(self, logits: np.ndarray) -> np.ndarray:
        """Pops integers, int32 [n], by softmax(logits), logits [n, K]."""
        parts = [self._coder.decode(_CATEGORICAL, t) for _, t in _tables(logits)]
        return np.concatenate(parts)

    def push_uniform(self, x: np.ndarray, size: np.ndarray) -> None:
        """Pushes integers [n], each from {0, ..., size - 1}, size [n] below 2^24."""
        some = size > 1  # one value takes no bits, and constriction refuses it
        x, size = x[some].astype(np.int32), size[some].astype(np.int32)
        if len(x):
            self._coder.encode_reverse(x, _UNIFORM, size)

    def pop_uniform(self, size: np.ndarray) -> np.ndarray:
        """Pops integers int64 [n], each from {0, ..., size - 1}."""
        x = np.zeros(len(size), np.int64)
        some = size > 1
        if some.any():
            x[some] = self._coder.decode(_UNIFORM, size[some].astype(np.int32))
        return x

    def _bins(self, mean, sd):
        """How a normal variable is cut: (origin, log2 of a bin, mean, sd in bins)."""
        if not (np.abs(mean) < _FAR).all() or not (sd < _FAR).all():
            raise ValueError("a normal variable with a mean or sd that is not finite")
        sd = np.maximum(sd, 1 / 16)
        shift = np.clip(np.frexp(sd)[1] - 1 - _BINS_PER_SD, 0, 23)
        origin = np.floor(mean).astype(np.int64)
        size = np.ldexp(1.0, shift)
        centre = (mean - origin - (size - 1) / 2) / size
        return origin, shift, centre, sd / size

    def push_normal(
        self, x: np.ndarray, mean: np.ndarray, sd: np.ndarray, *, narrow: bool
    ) -> None:
        """Pushes integers [n] by N(mean, sd^2), all int64 or float64 [n].

        Args:
          x: any integers below 2^46 in size; if `narrow`, what `pop_normal` gave.
          mean, sd: float64 [n].
          narrow: whether the alphabet ends at 8 sd or more.
        """
        origin, shift, centre, sd = self._bins(mean, sd)
        if (np.abs(x) >= _FAR).any():
            raise ValueError("a number too large to be coded")
        cell = (x - origin) >> shift
        self.push_uniform((x - origin) - (cell << shift), 1 << shift)
        end = _NARROW if narrow else _WIDE
        if not narrow:
            self._push_words(np.abs(cell[np.abs(cell) >= end]))
            cell = np.clip(cell, -end, end)
        self._coder.encode_reverse(cell.astype(np.int32), _NORMALS[end], centre, sd)

    def pop_normal(
        self, mean: np.ndarray, sd: np.ndarray, *, narrow: bool
    ) -> np.ndarray:
        """Pops integers int64 [n] by N(mean, sd^2): the inverse of `push_normal`."""
        origin, shift, centre, sd = self._bins(mean, sd)
        end = _NARROW if narrow else _WIDE
        cell = self._coder.decode(_NORMALS[end], centre, sd).astype(np.int64)
        if not narrow:
            far = np.abs(cell) >= end
            cell[far] = np.sign(cell[far]) * self._pop_words(far.sum())
        return origin + (cell << shift) + self.pop_uniform(1 << shift)

    def _push_words(self, x):
        """Pushes integers of 48 bits without a model."""
        for bits in (0, 16, 32):
            self.push_uniform((x >> bits) & 0xFFFF, np.full(len(x), 1 << 16))

    def _pop_words(self, count):
        parts = [self.pop_uniform(np.full(count, 1 << 16)) << b for b in (32, 16, 0)]
        return sum(parts)
