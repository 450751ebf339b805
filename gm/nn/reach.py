"""Which pixels a causal network can see, by following its kernels.

seen, bool [h, w, N]: which of the N pixels of the image each feature depends on.
"""

import numpy as np

# Kernels that move what is seen down by a row and right by a column.
ABOVE, LEFT = np.array([[1], [0]]), np.array([[1, 0]])


def image(height: int, width: int) -> np.ndarray:
    """Each pixel sees itself: [H, W, H W]."""
    return np.eye(height * width, dtype=bool).reshape(height, width, -1)


def conv(
    seen: np.ndarray, kernel: np.ndarray, right: int = 0, stride: int = 1
) -> np.ndarray:
    """Through a `View.conv` whose kernel is non-zero where `kernel` [h, w] is."""
    rows, columns = kernel.shape
    height, width = seen.shape[:2]
    padded = np.pad(seen, ((rows - 1, 0), (columns - 1 - right, right), (0, 0)))
    out = np.zeros((height // stride, width // stride, seen.shape[2]), bool)
    for a, b in np.argwhere(kernel):
        out |= padded[a : a + height : stride, b : b + width : stride]
    return out


def up(seen: np.ndarray, right: int = 0) -> np.ndarray:
    """Through a `View.up`: odd columns see the coarse pixel to the right, if `right`."""
    fine = seen.repeat(2, axis=0).repeat(2, axis=1)
    if right:
        fine[:, 1:-1:2] |= fine[:, 2::2]
    return fine


def symbols(seen: np.ndarray, channels: int) -> np.ndarray:
    """Bool [D, D] of the image's symbols; a symbol sees those before it in its pixel."""
    pixels = seen.reshape(-1, seen.shape[2])
    pixels = pixels | np.eye(len(pixels), dtype=bool)
    table = pixels.repeat(channels, axis=0).repeat(channels, axis=1)
    return table & np.tri(len(table), k=-1, dtype=bool)
