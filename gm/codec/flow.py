"""Flows by local bits-back coding (Ho et al. 2019) on a grid.

Encoding pops the dequantisation noise, takes the point through the layers and pushes
where it ends by N(0, 1). A layer is elementwise given the rest of the point, which both
ends know exactly, and the network runs on that alone. For a layer y -> z of slope J,

  pop z ~ N(f(y), (sigma J)^2),    push y ~ N(f^-1(z), sigma^2),

costs -log J net. For an affine layer the noise may be uniform and the slope a ratio
R / S of integers, which makes the step exact (Zhang et al. 2021, iFlow):

  pop r ~ U{0..R-1},    z, q = divmod(R y + r, S),    push q ~ U{0..S-1}.
"""

import numpy as np

from gm.codec.coders import Stack
from gm.codec.program import Program
from gm.flow import CodingLayer

_GRID = 22  # log2 of the grid points per unit
_CELLS = 20  # log2 of the cells that [0, 1] is cut into before the layers
_SIGMA = 2.0**8  # of the local noise, in grid points
_RATIO_BITS = 14  # of a slope
_FAR = 1 << 45  # grid points: beyond, integers would overflow


class FlowCodec:
    """Local bits-back through `coding_layers`."""

    stack = True
    batch_size = 32

    def __init__(self, program: Program, *, exact_affine: bool = True) -> None:
        """Compiles the network of each layer; `exact_affine=False`: normal noise only."""
        self.program, self.exact_affine = program, exact_affine
        model = program.model
        self._h = np.zeros((program.batch_size, model.num_dims), np.float32)
        self._layers: list[CodingLayer] = model.coding_layers()
        self._context = [
            program.compile(layer.context, self._h, program.cond)
            for layer in self._layers
        ]
        # Cells of equal mass under the dequantisation, uniform on the model's reals.
        self._per_value = max((1 << _CELLS) // model.num_values, 1)
        count = model.num_values * self._per_value
        edges = model.coding_map(np.arange(count + 1) / count)
        self._edges = np.rint(np.ldexp(edges, _GRID)).astype(np.int64)

    @property
    def num_bits(self) -> int:
        """Bits that an example takes from the stack before it gives any, about."""
        return (_GRID + 2 + _RATIO_BITS) * self.program.model.num_dims

    def _parameters(self, index, h, cond):
        """The layer's parameters float64 [n, active] from the rest of h."""
        rest = np.where(self._layers[index].active, 0, h)
        rest = np.ldexp(rest.astype(np.float64), -_GRID).astype(np.float32)
        batch = self.program.pad(rest, self._h)
        cond = self.program.pad(cond, self.program.cond)
        found = self._context[index](batch, cond)
        active = self._layers[index].active
        params = [np.asarray(a, np.float64)[: len(h), active] for a in found]
        if not all(np.isfinite(p).all() for p in params):
            raise ValueError(f"layer {index} has parameters that are not finite")
        return params

    def encode(self, stack: Stack, x: np.ndarray, cond: np.ndarray | None) -> None:
        """Pushes integers [n, *shape], n <= B."""
        h = self._dequantize(stack, x.reshape(len(x), -1).astype(np.int64))
        for index, layer in enumerate(self._layers):
            params = self._parameters(index, h, cond)
            move = self._move(layer)
            for i in range(len(h)):  # one by one, to borrow few bits at a time
                row = [p[i] for p in params]
                h[i, layer.active] = move(stack, layer, h[i, layer.active], row)
            if np.abs(h).max() >= _FAR:
                raise ValueError("coordinates under the flow are too large")
        one = np.full(h.size, 2.0**_GRID)
        stack.push_normal(h.ravel(), np.zeros(h.size), one, narrow=False)

    def decode(self, stack: Stack, count: int, cond: np.ndarray | None) -> np.ndarray:
        """Pops n examples, int32 [n, *shape]."""
        model = self.program.model
        size = count * model.num_dims
        h = stack.pop_normal(np.zeros(size), np.full(size, 2.0**_GRID), narrow=False)
        h = h.reshape(count, -1)
        for index, layer in reversed(list(enumerate(self._layers))):
            params = self._parameters(index, h, cond)
            move = self._move(layer, back=True)
            for i in reversed(range(count)):
                row = [p[i] for p in params]
                h[i, layer.active] = move(stack, layer, h[i, layer.active], row)
        return self._quantize(stack, h).reshape(count, *model.shape).astype(np.int32)

    def _move(self, layer, back=False):
        if self.exact_affine and layer.is_affine:
            return _affine_back if back else _affine
        return _local_back if back else _local

    def _dequantize(self, stack, x):
        """Pops a point of the cell of x: a mass within it, then a place in its range."""
        shape = x.shape
        x = x.ravel() * self._per_value
        x = x + stack.pop_uniform(np.full(x.size, self._per_value))
        low, size = self._edges[x], self._edges[x + 1] - self._edges[x]
        return (low + stack.pop_uniform(size)).reshape(shape)

    def _quantize(self, stack, h):
        shape, h = h.shape, h.ravel()
        cell = np.searchsorted(self._edges, h, side="right") - 1
        cell = np.clip(cell, 0, len(self._edges) - 2)
        low, size = self._edges[cell], self._edges[cell + 1] - self._edges[cell]
        stack.push_uniform(h - low, size)
        x, within = np.divmod(cell, self._per_value)
        stack.push_uniform(within, np.full(within.size, self._per_value))
        return x.reshape(shape)


def _ratio(params):
    """The slope as R / 2^s, and the shift in grid points."""
    log_scale, shift = params
    scale = np.exp(log_scale)
    s = np.clip(_RATIO_BITS - np.frexp(scale)[1], 0, 23).astype(np.int64)
    r = np.clip(np.rint(np.ldexp(scale, s)), 1, 1 << _RATIO_BITS).astype(np.int64)
    shift = np.clip(np.ldexp(shift, _GRID), -_FAR, _FAR)
    return r, s, np.rint(shift).astype(np.int64)


def _affine(stack, layer, y, params):
    """Takes y to z through an affine layer, exactly."""
    r, s, shift = _ratio(params)
    w = y * r + stack.pop_uniform(r)
    stack.push_uniform(w & ((1 << s) - 1), 1 << s)
    return (w >> s) + shift


def _affine_back(stack, layer, z, params):
    r, s, shift = _ratio(params)
    w = ((z - shift) << s) + stack.pop_uniform(1 << s)
    y = w // r
    stack.push_uniform(w - y * r, r)
    return y


def _local(stack, layer, y, params):
    """Takes y to z through any elementwise layer."""
    sd = _SIGMA * layer.slope(np.ldexp(y.astype(np.float64), -_GRID), *params)
    z = stack.pop_normal(_image(layer.forward, y, params), sd, narrow=True)
    noise = np.full(y.shape, _SIGMA)
    stack.push_normal(y, _image(layer.inverse, z, params), noise, narrow=False)
    return z


def _local_back(stack, layer, z, params):
    noise = np.full(z.shape, _SIGMA)
    y = stack.pop_normal(_image(layer.inverse, z, params), noise, narrow=False)
    sd = _SIGMA * layer.slope(np.ldexp(y.astype(np.float64), -_GRID), *params)
    stack.push_normal(z, _image(layer.forward, y, params), sd, narrow=True)
    return y


def _image(function, y, params):
    """A map of reals, on the grid."""
    return np.ldexp(function(np.ldexp(y.astype(np.float64), -_GRID), *params), _GRID)
