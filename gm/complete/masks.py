"""Which symbols of an example are hidden: named regions, random symbols, or a file."""

from pathlib import Path

import numpy as np

from gm.data.containers import read_npz
from gm.errors import InputError, did_you_mean

_SIDES = {"left": 1, "right": 1, "top": 0, "bottom": 0}  # and the axis that is halved
NAMES = (*_SIDES, "box", "random:P", "FILE")


def parse_mask(text: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Reads --mask.

    Args:
      text: "left", "right", "top" or "bottom": that half; "box": the middle half of each
        axis; "random:P": a fraction P of the pixels, chosen by the seed; else the path of
        a .npy (bool, True: hidden) or an image (white: hidden), of the examples' shape.
      shape: (H, W, C), whose pixels are hidden with all their channels (but a .npy may
        tell channels apart), or (L,), which has a left and a right.
      seed: of the random pixels.

    Returns:
      bool [*shape], True: hidden.

    Raises:
      InputError: no such mask, one of another shape, or one that hides nothing or all.
    """
    grid = shape[:2] if len(shape) == 3 else shape
    if text in _SIDES or text == "box":
        hidden = _region(text, grid)
    elif text.startswith("random:"):
        hidden = _random(text, grid, seed)
    else:
        hidden = _read(text, shape)
    if hidden.shape != shape:
        hidden = np.broadcast_to(hidden[..., None], shape)
    if not hidden.any() or hidden.all():
        what = "every symbol" if hidden.all() else "no symbol"
        raise InputError(
            f"--mask={text}: hides {what} of {_size(shape)}; hide some and show some"
        )
    return np.array(hidden)


def count_characters(x: np.ndarray, missing: np.ndarray, end: int) -> int:
    """Hidden symbols of documents [N, L] up to their ends: what follows is padding."""
    upto = np.arange(x.shape[1]) <= np.argmax(x == end, axis=1)[:, None]
    return int((upto & missing).sum())


def _size(shape):
    return "x".join(map(str, shape))


def _region(name, grid):
    hidden = np.zeros(grid, bool)
    if name == "box":
        hidden[tuple(slice(n // 4, n - n // 4) for n in grid)] = True
        return hidden
    axis = _SIDES[name] if len(grid) == 2 else 0
    if len(grid) == 1 and name in ("top", "bottom"):
        raise InputError(
            f"--mask={name}: a sequence of {grid[0]} symbols has left, right and box"
        )
    first = np.arange(grid[axis]) < grid[axis] // 2
    part = first if name in ("left", "top") else ~first
    return np.broadcast_to(part if axis == len(grid) - 1 else part[:, None], grid)


def _random(text, grid, seed):
    """Exactly that fraction, rounded, so that a small example is not hidden whole."""
    try:
        fraction = float(text.removeprefix("random:"))
    except ValueError:
        fraction = -1.0
    if not 0 < fraction < 1:
        raise InputError(f"--mask={text}: give random:P with P between 0 and 1")
    size = int(np.prod(grid))
    chosen = np.random.default_rng(seed).permutation(size) < round(fraction * size)
    return chosen.reshape(grid)


def _read(text, shape):
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputError(
            f"--mask={text}: no such mask{did_you_mean(text, NAMES)} and no such file "
            f"(one of {', '.join(NAMES)})"
        )
    try:
        if path.suffix == ".npy":
            hidden = read_npz(path)["x"]
        else:
            from PIL import Image

            hidden = np.asarray(Image.open(path).convert("L")) >= 128
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        what = " ".join(str(error).split())[:120]
        raise InputError(
            f"--mask={text}: neither a .npy nor an image ({what})"
        ) from None
    if len(shape) == 1 and hidden.shape == (1, *shape):
        hidden = hidden[0]  # an image of a sequence
    if hidden.shape not in (shape, shape[:2]):
        wanted = _size(shape[:2])
        raise InputError(
            f"--mask={text}: is of {_size(hidden.shape)}, the examples are of {wanted}"
        )
    if hidden.dtype != bool:
        raise InputError(
            f"--mask={text}: holds {hidden.dtype}; save booleans, True where hidden"
        )
    return hidden
