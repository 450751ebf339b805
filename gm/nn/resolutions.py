"""Networks over several resolutions, written as runs of equal blocks (Child 2021)."""

import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.errors import InputError

SCANNED = 8  # equal blocks in a row, from which on they are compiled once, in a loop


class Run(NamedTuple):
    """Equal blocks in a row."""

    resolution: int
    count: int  # type: ignore[assignment]
    pool: int = 1  # after the block (encoder)
    mix: int | None = None  # resolution whose features are added before (decoder)

    def apply(
        self, call: Callable[..., Any], blocks: Any, carry: Any, xs: Any
    ) -> tuple[Any, Any]:
        """Runs call(block, carry, x) -> (carry, y) for each x of xs.

        Args:
          call: what is done with one block.
          blocks: a list of `count` modules; of one, to be stacked, from SCANNED on.
          carry: goes from block to block.
          xs: a pytree of arrays [count, ...].

        Returns:
          the last carry; the y, [count, ...].
        """
        if self.count < SCANNED:
            ys = []
            for i in range(self.count):
                carry, y = call(blocks[i], carry, jax.tree.map(lambda a, i=i: a[i], xs))
                ys.append(y)
            return carry, jax.tree.map(lambda *a: jnp.stack(a), *ys)
        axes: Any = {"params": 0}
        rngs: Any = {"params": True, "dropout": True}
        loop = nn.scan(call, variable_axes=axes, split_rngs=rngs, length=self.count)
        return loop(blocks[0], carry, xs)


def parse_runs(field: str, text: str) -> list[Run]:
    """Reads `32x11,32d2,16x6` or `1x1,4m1,4x2`; InputError for anything else."""
    runs = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:([xdm])([1-9]\d*))?", item.strip())
        kind = match[2] if match else None
        if not match or kind == ("m" if field == "encoder_blocks" else "d"):
            like = "32x11,32d2,16x6" if field == "encoder_blocks" else "1x1,4m1,4x2"
            raise InputError(f"--set={field}={text}: {item!r}; give such as {like}")
        number = int(match[3] or 1)
        if kind == "d":
            runs.append(Run(int(match[1]), 1, pool=number))
        elif kind == "m":
            runs.append(Run(int(match[1]), 1, mix=number))
        else:
            runs.append(Run(int(match[1]), number))
    return runs


def runs_text(runs: list[Run]) -> str:
    """The inverse of `parse_runs`."""

    def of(run):
        mark, number = ("d", run.pool) if run.pool > 1 else ("x", run.count)
        mark, number = ("m", run.mix) if run.mix else (mark, number)
        return f"{run.resolution}{mark}{number}"

    return ",".join(map(of, runs))


Grid = Callable[[int], tuple[int, int]]  # resolution -> (H, W)


def default_blocks(height: int, depth: int, grid: Grid) -> tuple[str, str]:
    """Halves down to at most 8 or an odd side, then goes to 1: `depth` blocks at each."""
    sides = [height]
    while sides[-1] > 8 and _divides(grid, sides[-1], sides[-1] // 2):
        sides.append(sides[-1] // 2)
    sides += [1] if sides[-1] > 1 else []
    down, up = [], [f"1x{depth}"]
    for fine, coarse in itertools.pairwise(sides):
        down += [f"{fine}x{depth - 1}"] * (depth > 1) + [f"{fine}d{fine // coarse}"]
    for coarse, fine in itertools.pairwise(reversed(sides)):
        up += [f"{fine}m{coarse}"] + [f"{fine}x{depth - 1}"] * (depth > 1)
    return ",".join([*down, f"1x{depth}"]), ",".join(up)


def _divides(grid, fine, coarse):
    """Whether each pixel of the coarse resolution is a block of the fine one's."""
    pairs = zip(grid(fine), grid(coarse), strict=True)
    return fine % coarse == 0 and not any(a % b for a, b in pairs)


def check_runs(
    down: list[Run],
    up: list[Run],
    grid: Grid,
    height: int,
) -> None:
    """InputError if the runs of an encoder and a decoder do not fit together.

    Args:
      down: of the encoder, from the height of the image on.
      up: of the decoder, which ends there.
      grid: resolution -> (H, W).
      height: of the image.
    """
    fit = default_blocks(height, 1, grid)
    told_down = f"--set=encoder_blocks={runs_text(down)}"
    side, found = height, {height}
    for run in down:
        low = side // run.pool
        divides = side % run.pool == 0 and _divides(grid, side, max(low, 1))
        if run.resolution != side or not divides:
            raise InputError(
                f"{told_down}: {run.resolution} does not follow, or cannot be pooled by "
                f"{run.pool}, where the resolution is {side} (an image of height "
                f"{height}); give such as {fit[0]}"
            )
        side = low
        found.add(side)
    told_up = f"--set=decoder_blocks={runs_text(up)}"
    seen: set[int] = set()
    for run in up:
        fits = run.mix is None or (run.mix in seen and run.resolution % run.mix == 0)
        if run.resolution not in found or not fits:
            raise InputError(
                f"{told_down} {told_up}: {run.resolution}, or what is mixed in there, "
                f"is not at hand (the encoder has {sorted(found)}); give such as {fit[0]} "
                f"and {fit[1]}"
            )
        seen.add(run.resolution)
    if up[-1].resolution != height:
        raise InputError(
            f"{told_up}: ends at resolution {up[-1].resolution}, the image's is {height}; "
            f"give such as {fit[1]}"
        )


def pool(h: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Means over blocks: [B, H, W, C] -> [B, *grid, C]."""
    b, height, width, c = h.shape
    h = h.reshape(b, grid[0], height // grid[0], grid[1], width // grid[1], c)
    return h.mean((2, 4))


def repeat(h: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Nearest neighbours: [B, H, W, C] -> [B, *grid, C]."""
    for axis in (0, 1):
        h = jnp.repeat(h, grid[axis] // h.shape[axis + 1], axis=axis + 1)
    return h
