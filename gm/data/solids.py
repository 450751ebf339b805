"""`solids`: cuboids and cylinders from integer parameters, at any resolution.

8192 equiprobable settings: 4096 cuboids (8 widths x 8 heights x 8 depths x 8 azimuths)
and 4096 cylinders (16 diameters x 16 heights x 16 elevations of the camera). Where no
two renders are equal an image has 13 bits, of which 3 (azimuth) or 4 (elevation) are
left given the condition; `entropies` counts instead of assuming it.

Both are upright prisms over a convex footprint, seen by an orthographic camera. So an
image column meets the side in one span and the lid in the next: with `near` and `far`
the chord of the footprint behind that column and e the camera's elevation,

  bottom = near sin e - height/2 cos e,   brim = near sin e + height/2 cos e,
  top = far sin e + height/2 cos e.

All of it is int32 arithmetic on a canvas of CANVAS units, so that the bytes are the
same on every device; no intermediate exceeds 2^30 up to a resolution of 1024.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.data.dataset import ArraySplit, Dataset, Fresh, Split
from gm.errors import InputError
from gm.rundir import cache_dir, read_json, write_json
from gm.spec import CondSpec

CANVAS = 2**14  # the image's side, in canvas units
ONE = 2**14  # the fixed-point 1 of sines and unit vectors
# sin of whole degrees 0..90 (no value lies near enough to a half to round differently
# with another libm).
SIN = np.array([round(ONE * math.sin(math.radians(a))) for a in range(91)], np.int32)
CUBOID_ELEVATION = 30  # degrees
# Steps of 10 from 9: no azimuth a has 90 - a on the grid, so that swapping width with
# depth does not mirror one setting's outline into another's.
AZIMUTHS = np.arange(9, 80, 10)  # degrees
ELEVATIONS = np.arange(10, 71, 4)  # degrees

BACKGROUND, LID = 20, 240  # grey levels
# A side with unit normal (right, away), both negative for the left face, has the grey
# SIDE + right LIGHT_RIGHT + away LIGHT_AWAY: half-Lambert, light from the left front.
SIDE, LIGHT_RIGHT, LIGHT_AWAY = 120, -75, -35


@functools.cache
def settings() -> np.ndarray:
    """Returns int32 [8192, 5]: is_cylinder, width, height, depth, angle.

    Lengths are in canvas units (a cylinder's width and depth are its diameter); the
    angle, in degrees, is a cuboid's azimuth or the elevation a cylinder is seen from.
    """
    side = np.arange(3, 11) * CANVAS // 16
    cuboids = np.meshgrid([0], side, side - CANVAS // 16, side, AZIMUTHS, indexing="ij")
    diameter = np.arange(6, 22) * CANVAS // 32
    height = np.arange(3, 19) * CANVAS // 32
    grid = np.meshgrid([1], diameter, height, ELEVATIONS, indexing="ij")
    cylinders = [*grid[:3], grid[1], grid[3]]
    rows = [np.stack([g.ravel() for g in kind], 1) for kind in (cuboids, cylinders)]
    table = np.concatenate(rows).astype(np.int32)
    table.setflags(write=False)
    return table


def dimensions(setting: Any) -> Any:
    """Returns the condition float32 [..., 4] of settings [..., 5].

    is_cylinder, and width, height and depth as fractions of the image's side.
    """
    unit = np.array([1, CANVAS, CANVAS, CANVAS], np.float32)
    return setting[..., :4].astype(np.float32) / unit  # exact: powers of two


def _cuboid_chord(x: Any, setting: Any) -> tuple[Any, Any, Any, Any]:
    """Returns (inside, near, far, shade), each [n, columns], of turned rectangles.

    The corners are N(ear), R(ight), F(ar) = -N and L(eft) = -R.
    """
    sine = jnp.asarray(SIN)[setting[:, 4, None]]
    cosine = jnp.asarray(SIN)[90 - setting[:, 4, None]]
    half_w, half_d = setting[:, 1, None] // 2, setting[:, 3, None] // 2
    w_right, w_away = half_w * cosine // ONE, half_w * sine // ONE
    d_left, d_away = half_d * sine // ONE, half_d * cosine // ONE
    near_x = d_left - w_right
    right_x, far_a = w_right + d_left, w_away + d_away

    def below(x):  # the front edges L-N-R at x, in [-far_a, far_a]
        along = abs(x - near_x)
        rise = along * jnp.where(x < near_x, d_away, w_away)
        return rise // jnp.where(x < near_x, d_left, w_right) - far_a

    inside = abs(x) <= right_x
    x = jnp.clip(x, -right_x, right_x)
    left = SIDE - (cosine * LIGHT_RIGHT + sine * LIGHT_AWAY) // ONE
    right = SIDE + (sine * LIGHT_RIGHT - cosine * LIGHT_AWAY) // ONE
    # The back edges L-F-R are the front ones turned by 180 degrees.
    return inside, below(x), -below(-x), jnp.where(x < near_x, left, right)


def _isqrt(v: Any) -> Any:
    """Returns floor(sqrt(v)) of integers in {0, ..., 2^26 - 1}, bit by bit."""
    root = jnp.zeros_like(v)
    for bit in range(12, -1, -1):
        larger = root + 2**bit
        root = jnp.where(larger * larger <= v, larger, root)
    return root


def _cylinder_chord(x: Any, setting: Any) -> tuple[Any, Any, Any, Any]:
    """Returns (inside, near, far, shade), each [n, columns], of circles."""
    radius = setting[:, 1, None] // 2
    half = _isqrt(jnp.maximum(radius * radius - x * x, 0))
    shade = SIDE + (x * LIGHT_RIGHT - half * LIGHT_AWAY) // radius
    return abs(x) <= radius, -half, half, shade


@functools.partial(jax.jit, static_argnames="resolution")
def render(setting: Any, resolution: int) -> jax.Array:
    """Renders settings int32 [n, 5] to grey levels int32 [n, R, R, 1].

    Exact in height; in width each pixel averages columns, about 256 to an image but at
    least 2 to a pixel.
    """
    samples = max(2, 256 // resolution)
    i = jnp.arange(resolution * samples, dtype=jnp.int32)
    x = (2 * i + 1) * CANVAS // (2 * resolution * samples) - CANVAS // 2
    round_ = setting[:, 0, None] == 1
    inside, near, far, shade = (
        jnp.where(round_, a, b)
        for a, b in zip(
            _cylinder_chord(x, setting), _cuboid_chord(x, setting), strict=True
        )
    )
    elevation = jnp.where(round_, setting[:, 4, None], CUBOID_ELEVATION)
    sine, cosine = jnp.asarray(SIN)[elevation], jnp.asarray(SIN)[90 - elevation]
    half_height = setting[:, 2, None] // 2 * cosine // ONE
    middle, lid = CANVAS // 2 - near * sine // ONE, (far - near) * sine // ONE
    # Distances from the image's top to the top, brim and bottom of the solid.
    brim, bottom = middle - half_height, middle + half_height
    top = brim - lid

    def filled(y):  # of pixel row j the part above y, in 1 / CANVAS; [n, R, columns]
        row = jnp.arange(resolution, dtype=jnp.int32)[:, None] * CANVAS
        return jnp.clip(y[:, None] * resolution - row, 0, CANVAS)

    light = filled(top) * (BACKGROUND - LID)
    light += filled(brim) * (LID - shade[:, None])
    light += filled(bottom) * (shade[:, None] - BACKGROUND)
    light = jnp.where(inside[:, None], light, 0)
    light = light.reshape(*light.shape[:2], resolution, samples)
    light = light.sum(3, dtype=jnp.int32)
    area = CANVAS * samples
    return (BACKGROUND + (light + area // 2) // area)[..., None]


def render_bytes(setting: np.ndarray, resolution: int) -> np.ndarray:
    """Renders settings [n, 5] to uint8 [n, R, R, 1] on the host, a block at a time."""
    block = _block(resolution)
    out = np.empty((len(setting), resolution, resolution, 1), np.uint8)
    for start in range(0, len(setting), block):
        rows = setting[start : start + block]
        padded = np.resize(rows, (block, rows.shape[1]))  # one shape, one compilation
        out[start : start + block] = np.asarray(render(padded, resolution))[: len(rows)]
    return out


def _block(resolution: int) -> int:
    """Returns how many images to render at once: about 4 million pixels."""
    return max(4, min(1024, 2**22 // resolution**2))


def _entropy(labels: list[bytes]) -> float:
    """Returns the entropy in nats of a label drawn uniformly from the list."""
    counts = np.array(list(collections.Counter(labels).values()))
    return math.log(len(labels)) - float(counts @ np.log(counts)) / len(labels)


def _count_images(resolution: int) -> dict[str, float]:
    """Renders and hashes all settings; see `entropies`."""
    table, block = settings(), _block(resolution)
    images: list[bytes] = []
    for start in range(0, len(table), block):
        x = render_bytes(table[start : start + block], resolution)
        images += [hashlib.sha256(image.tobytes()).digest() for image in x]
    conditions = [row.tobytes() for row in dimensions(table)]
    joint = [image + cond for image, cond in zip(images, conditions, strict=True)]
    return {
        "num_images": len(set(images)),
        "entropy_nats": _entropy(images),
        "cond_entropy_nats": _entropy(joint) - _entropy(conditions),
    }


def entropies(resolution: int) -> dict[str, float]:
    """Returns num_images, entropy_nats = H(image), cond_entropy_nats = H(image | cond).

    From the histogram of all renders at this resolution, so they are right also if
    different settings look the same. The count is kept in the cache by a hash of this
    file, since it takes minutes at 1024.
    """
    version = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:16]
    with contextlib.suppress(InputError):  # damaged, or not there yet
        return read_json(cache_dir("solids") / f"{resolution}-{version}.json")
    if resolution > 128:
        print(
            f"solids: counting the distinct ones of {len(settings())} images at "
            f"resolution {resolution}, once",
            file=sys.stderr,
        )
    found = _count_images(resolution)
    with contextlib.suppress(InputError):  # a folder that cannot be written: no cache
        write_json(cache_dir("solids") / f"{resolution}-{version}.json", found)
    return found


@dataclasses.dataclass(frozen=True)
class RenderedSplit:
    """Fixed settings, rendered when asked for: at 1024 the pixels would fill 2 GB."""

    settings: np.ndarray  # [N, 5] int32
    resolution: int
    in_memory: bool = True  # nothing is read from disk

    def __len__(self) -> int:
        return len(self.settings)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (x uint8 [n, R, R, 1], cond float32 [n, 4])."""
        chosen = self.settings[indices]
        return render_bytes(chosen, self.resolution), dimensions(chosen)


def draw(
    key: Any,
    n: int,
    resolution: int,
    images: np.ndarray | None = None,
    table: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws uniform settings: images int32 [n, R, R, 1], conditions float32 [n, 4].

    Args:
      key: PRNG key.
      n: how many, static.
      resolution: R, static.
      images: uint8 [S, R, R, 1], the renders of all settings, to be gathered from;
        None: renders those that are drawn.
      table: int32 [S, 5], the settings; None: all of them.
    """
    table = settings() if table is None else table
    index = jax.random.randint(key, (n,), 0, len(table), jnp.int32)
    chosen = jnp.asarray(table)[index]
    if images is None:
        return render(chosen, resolution), dimensions(chosen)
    return jnp.asarray(images)[index].astype(jnp.int32), dimensions(chosen)


def held_out() -> np.ndarray:
    """Which settings `solids_heldout` keeps from training, bool [8192].

    A tenth of the combinations of kind, width, height and depth, at random: with all
    their angles 768 settings. Each single length still occurs in training.
    """
    combinations, number = np.unique(settings()[:, :4], axis=0, return_inverse=True)
    count = len(combinations)
    chosen = np.random.default_rng(0).permutation(count)[: count // 10]
    return np.isin(number.ravel(), chosen)


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads `solids` at a resolution of 8 to 1024 (16); training draws anew.

    The fixed splits are different settings, in random order. Training draws from all
    settings, those of the fixed splits among them: what is learnt is the distribution.
    With `solids_heldout` it draws from the settings that `held_out` leaves, as does the
    valid split; test has those that are held out.
    """
    from gm.data.solids_support import make_support

    del data_dir  # nothing is read
    resolution = 16 if resolution is None else resolution
    if not 8 <= resolution <= 1024:
        raise InputError(
            f"--resolution={resolution}: {name} are rendered at 8 to 1024 pixels a side"
        )
    table = settings()
    order = np.random.default_rng(0).permutation(len(table))

    def fixed(rows: np.ndarray) -> Split:
        split = RenderedSplit(table[rows], resolution)
        if resolution > 128:
            return split
        return ArraySplit(*split.batch(np.arange(len(split))))

    # Batches of 64 on a CPU: gathered 0.3 ms; rendered 2 ms at 16, 3 ms at 32. Above,
    # the table would weigh more (33 MB at 64) than rendering does in a training step.
    kept = ~held_out() if name == "solids_heldout" else np.ones(len(table), bool)
    known = table[kept]
    images = render_bytes(known, resolution) if resolution <= 32 else None
    valid, test = order[:500], order[500:2500]
    if not kept.all():
        valid, test = order[kept[order]][:500], order[~kept[order]]
    bounds = dimensions(table)
    found = entropies(resolution)
    return Dataset(
        name=name,
        shape=(resolution, resolution, 1),
        num_values=256,
        unit="object",
        train=Fresh(
            functools.partial(draw, resolution=resolution, images=images, table=known)
        ),
        valid=fixed(valid),
        test=fixed(test),
        cond=CondSpec(
            "real",
            4,
            ("is_cylinder", "width", "height", "depth"),
            low=tuple(bounds.min(0).tolist()),
            high=tuple(bounds.max(0).tolist()),
        ),
        # Of what is held out, training is told nothing that the floors would be of.
        entropy_nats=found["entropy_nats"] if kept.all() else None,
        cond_entropy_nats=found["cond_entropy_nats"] if kept.all() else None,
        support=make_support(resolution) if resolution <= 128 else None,
    )
