"""A lossless pyramid of integer images, and windows of its levels.

A level is halved by keeping every other row and column, x[::2, ::2]. That is the first of
its four phases; the other three are what the coarser level lacks (Reed et al. 2017).
Nothing is averaged, so every symbol stays in its alphabet, and levels of any size are
halved: of odd sizes some phases lack their last row or column.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Row and column of each phase in a block of 2 x 2, in the order of becoming known.
PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))

Size = tuple[int, int]


def sizes(height: int, width: int, largest: int) -> list[Size]:
    """(H, W) of the levels, the image first, until no side is above `largest`."""
    found = [(height, width)]
    while max(found[-1]) > largest:
        found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
    return found


def split(x: jax.Array) -> jax.Array:
    """Phases of a level: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4, C].

    Where there is no pixel they are 0; `inside` says where.
    """
    pads = [(0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)]
    x = jnp.pad(x, pads)
    return jnp.stack([x[:, a::2, b::2] for a, b in PHASES], axis=3)


def join(phases: jax.Array, size: Size) -> jax.Array:
    """The inverse of `split`: [B, h, w, 4, C] -> [B, *size, C]."""
    batch, height, width, _, channels = phases.shape
    x = jnp.zeros((batch, 2 * height, 2 * width, channels), phases.dtype)
    for i, (a, b) in enumerate(PHASES):
        x = x.at[:, a::2, b::2].set(phases[:, :, :, i])
    return x[:, : size[0], : size[1]]


def inside(size: Size) -> np.ndarray:
    """Which entries of the phases of a level are pixels: bool [h, w, 4]."""
    rows, columns = (np.arange(-(-side // 2))[:, None] * 2 for side in size)
    a, b = np.array(PHASES).T
    return ((rows + a) < size[0])[:, None] & ((columns + b) < size[1])[None]


def num_windows(size: Size, tile: Size) -> int:
    """How many windows of tile [h, w] cover a level of that size."""
    return -(-size[0] // tile[0]) * -(-size[1] // tile[1])


def windows(x: jax.Array, number: jax.Array, tile: Size, border: Size) -> jax.Array:
    """Cuts windows, each with what lies around it; outside the level that is 0.

    Args:
      x: [B or 1, h, w, ...].
      number: int32 [n, B], which windows of each example, of `num_windows`, in raster
        order.
      tile: height and width of a window.
      border: rows above and below it, columns beside it.

    Returns:
      [n, B, tile + 2 border, ...].
    """
    sides = zip(x.shape[1:3], tile, border, strict=True)
    pads = [(b, b + -side % t) for side, t, b in sides]
    padded = jnp.pad(x, [(0, 0), *pads, *[(0, 0)] * (x.ndim - 3)])
    per_row = -(-x.shape[2] // tile[1])
    places = (number // per_row, number % per_row)
    rows, columns = (
        (place * t)[..., None] + jnp.arange(t + 2 * b)
        for place, t, b in zip(places, tile, border, strict=True)
    )
    example = jnp.arange(len(x))[:, None, None]
    return padded[example, rows[..., :, None], columns[..., None, :]]
