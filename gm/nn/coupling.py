"""What coupling flows share: which entries a coupling keeps, and its network.

Images: at each scale checkerboard couplings, a squeeze, channel couplings, and half of the
channels are factored out (Dinh et al. 2017, section 3.6). Sequences and vectors:
couplings over fixed random halves.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gm.nn.conditioning import per_position
from gm.nn.convolution import Conv, num_halvings


def plan(shape: tuple[int, ...], max_halvings: int | None = None) -> list[str]:
    """What happens to an example, in order: kinds of couplings, squeezes and splits.

    max_halvings: squeezes at most; None: while two pixels a side are left.
    """
    if len(shape) == 1:
        return ["half"]
    steps = []
    scales = num_halvings(shape, smallest=2)
    if max_halvings is not None:
        scales = min(scales, max_halvings)
    for scale in range(scales):
        steps += ["checkerboard", "squeeze", "channel"]
        if scale < scales - 1:
            steps += ["split"]
    return [*steps, "checkerboard"]


def kinds(
    shape: tuple[int, ...], num_couplings: int, max_halvings: int | None = None
) -> list[tuple[str, int]]:
    """Kind and parity of each coupling in order, `num_couplings` of each kind in `plan`."""
    steps = plan(shape, max_halvings)
    found = [kind for kind in steps if kind not in ("squeeze", "split")]
    return [(kind, i) for kind in found for i in range(num_couplings)]


def arrange(
    shape: tuple[int, ...], couplings: Sequence[Any], max_halvings: int | None = None
) -> list[Any]:
    """`plan` with couplings, which are as `kinds` says, in the places of their kinds."""
    steps: list[Any] = []
    rest = list(couplings)
    count = len(rest) // len(kinds(shape, 1, max_halvings))
    for kind in plan(shape, max_halvings):
        if kind in ("squeeze", "split"):
            steps.append(kind)
        else:
            steps, rest = steps + rest[:count], rest[count:]
    return steps


def mask(kind: str, parity: int, shape: tuple[int, ...]) -> np.ndarray:
    """The mask m of a coupling, float32, broadcastable to `shape`.

    "checkerboard": over the pixels of [H, W, C]; "channel": the first or last half of
    the channels; "half": a random half of [L], fixed by the pair number parity // 2.
    """
    if kind == "checkerboard":
        cells = np.indices(shape[:2]).sum(0) % 2
        return (cells == parity % 2).astype(np.float32)[..., None]
    channels = np.arange(shape[-1])
    if kind == "half":
        channels = np.random.default_rng(parity // 2).permutation(channels)
    first = channels < shape[-1] // 2
    return (first if parity % 2 == 0 else ~first).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a step acts on an example that is kept flat, in raster order."""

    kind: str  # of coupling; or "split": what is not kept is factored out
    where: np.ndarray  # [*shape of its input]: which of the D entries each is
    mask: np.ndarray  # float32 [*shape of its input]: 1 where it is kept

    @property
    def changed(self) -> np.ndarray:
        """int64 [n]: the entries that are not kept."""
        return self.where[self.mask == 0]

    def gather(self, h: jax.Array) -> jax.Array:
        """[B, D] -> [B, *shape of its input]."""
        return h[:, self.where]

    def scatter(self, h: jax.Array, num_dims: int) -> jax.Array:
        """[B, *shape of its input] -> [B, D], 0 elsewhere."""
        flat = h.reshape(h.shape[0], -1)
        out = jnp.zeros((h.shape[0], num_dims), h.dtype)
        return out.at[:, self.where.ravel()].set(flat)

    def entries(self, kept: bool, num_dims: int) -> np.ndarray:
        """Bool [D]: the entries that the step keeps, or those that it changes."""
        out = np.zeros(num_dims, bool)
        out[self.where[self.mask == kept]] = True
        return out


def _layouts(
    shape: tuple[int, ...], max_halvings: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Each step of `plan` with the entries [*shape] that it sees, then ("end", ...)."""
    where = np.arange(int(np.prod(shape))).reshape(shape)
    for kind in plan(shape, max_halvings):
        if kind == "squeeze":  # as space_to_depth
            height, width, channels = where.shape
            where = where.reshape(height // 2, 2, width // 2, 2, channels)
            where = where.transpose(0, 2, 1, 3, 4)
            where = where.reshape(height // 2, width // 2, -1)
        else:
            yield kind, where
        if kind == "split":
            where = where[..., : where.shape[-1] // 2]
    yield "end", where


def places(
    shape: tuple[int, ...], num_couplings: int, max_halvings: int | None = None
) -> list[Place]:
    """Couplings, `num_couplings` of each kind, and splits in order.

    The last place, of kind "split", keeps nothing: it is all that was not split off.
    """
    found = []
    for kind, where in _layouts(shape, max_halvings):
        if kind == "end":
            found.append(Place("split", where, np.zeros(where.shape, np.float32)))
        elif kind == "split":
            found.append(_place(kind, "channel", 0, where))
        else:
            found += [_place(kind, kind, i, where) for i in range(num_couplings)]
    return found


def _place(kind, rule, parity, where):
    kept = np.broadcast_to(mask(rule, parity, where.shape), where.shape)
    return Place(kind, where, kept)


class Conditioner(nn.Module):
    """A residual network from a masked input: convolutional or dense."""

    features: int  # outputs per pixel, or in all for vectors
    width: int
    depth: int
    convolutional: bool
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, y: jax.Array, cond: jax.Array, train: bool) -> jax.Array:
        """Y [B, H, W, C] or [B, L], cond embedded -> [..., features]."""

        def layer(features, **kwargs):
            if self.convolutional:
                return Conv(features, dtype=self.dtype, **kwargs)
            return nn.Dense(features, dtype=self.dtype, **kwargs)

        if self.convolutional:
            cond = per_position(cond, y.shape[1:3])
        h = layer(self.width)(y) + cond
        for _ in range(self.depth):
            branch = layer(self.width)(nn.silu(h))
            branch = nn.Dropout(self.dropout_rate, deterministic=not train)(branch)
            h = h + layer(self.width, kernel_init=nn.initializers.zeros)(
                nn.silu(branch)
            )
        return layer(self.features, kernel_init=nn.initializers.zeros)(nn.silu(h))
