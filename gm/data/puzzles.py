"""Twisty puzzles in a uniformly random solvable state: data of known entropy.

`pocket_cube`: 2x2x2, 24 stickers; one corner is held fixed, so that the 24 ways of
holding a cube count once: 7! 3^6 equiprobable states.
`rubiks_cube`: 3x3x3, 54 stickers with the centres; a state can be solved exactly if
its corner twists sum to 0 mod 3, its edge flips sum to 0 mod 2, and its corner and edge
permutations have the same parity (Joyner 2008, "Adventures in Group Theory"):
8! 3^7 12! 2^11 / 2 equiprobable states.

The stickers are numbered face by face (U R F D L B), row by row as seen from outside,
and a colour is the number of the face that it covers when solved.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.data.dataset import ArraySplit, Dataset, Fresh, Support
from gm.errors import InputError

# Outward normal, and the direction that is up when the face is looked at; x points
# right, y up and z towards the viewer. Right is then up x normal.
FACES = {
    "U": ((0, 1, 0), (0, 0, -1)),
    "R": ((1, 0, 0), (0, 1, 0)),
    "F": ((0, 0, 1), (0, 1, 0)),
    "D": ((0, -1, 0), (0, 0, 1)),
    "L": ((-1, 0, 0), (0, 1, 0)),
    "B": ((0, 0, -1), (0, 1, 0)),
}
SIZES = {"pocket_cube": 2, "rubiks_cube": 3}

# The usual colours of U R F D L B, and what a sticker that is not seen looks like.
_COLOURS = np.array(
    [(240, 240, 240), (185, 30, 40), (0, 140, 75), (250, 210, 0), (245, 120, 20),
     (0, 70, 170), (110, 110, 110)], np.uint8
)  # fmt: skip
_NET = ((0, 1), (1, 2), (1, 1), (2, 1), (1, 0), (1, 3))  # row, column of each face


def sticker_geometry(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each sticker sits: its cubie [L, 3] and its normal [L, 3].

    Cubies have coordinates in {-1, 1} for size 2 and {-1, 0, 1} for size 3.
    """
    steps = np.linspace(-1, 1, size).astype(int)
    cubies, normals = [], []
    for normal, up in np.array(list(FACES.values())):
        right = np.cross(up, normal)
        for row, column in itertools.product(-steps, steps):
            cubies.append(normal + row * up + column * right)
            normals.append(normal)
    return np.array(cubies), np.array(normals)


def _slots(size: int, num_stickers: int) -> np.ndarray:
    """Returns [P, num_stickers]: the stickers of each corner (3), edge (2), centre (1).

    The first sticker of a place defines its orientation; corners then go round the
    same way everywhere, so that a twist means the same in every place. The places go
    from cubie (1, 1, 1) down to (-1, -1, -1), which the pocket cube holds fixed.
    """
    cubies, normals = sticker_geometry(size)
    places: dict[tuple[int, ...], list[int]] = {}
    for sticker, cubie in enumerate(cubies):
        places.setdefault(tuple(cubie), []).append(sticker)
    slots = []
    for _, stickers in sorted(places.items(), reverse=True):
        if len(stickers) == num_stickers:  # U or D first, then F or B
            stickers.sort(key=lambda i: tuple(-abs(normals[i][[1, 2, 0]])))
            if num_stickers == 3 and np.linalg.det(normals[stickers]) < 0:
                stickers[1:] = stickers[:0:-1]
            slots.append(stickers)
    return np.array(slots, int).reshape(-1, num_stickers)


@dataclasses.dataclass(frozen=True)
class _Cube:
    """Lookup tables of a cube, all made from its geometry."""

    faces: np.ndarray  # [L]: the face that a sticker lies on: its colour when solved
    corners: np.ndarray  # [8, 3] stickers
    edges: np.ndarray  # [12, 2] stickers, or [0, 2]
    centres: np.ndarray  # [6] stickers, or [0]

    def arrange(self, corners: Any, edges: Any) -> Any:
        """Puts the colours of corners [n, 8, 3] and edges [n, 12, 2] in place: [n, L].

        Works on NumPy and JAX arrays.
        """
        xp = np if isinstance(corners, np.ndarray) else jnp
        n = len(corners)
        centres = xp.broadcast_to(self.faces[self.centres], (n, len(self.centres)))
        parts = [corners.reshape(n, -1), edges.reshape(n, -1), centres]
        order = np.concatenate(
            [self.corners.ravel(), self.edges.ravel(), self.centres]
        ).argsort()
        return xp.concatenate(parts, axis=1)[:, order]


@functools.cache
def _cube(size: int) -> _Cube:
    faces = np.repeat(np.arange(6, dtype=np.int32), size * size)
    corners, edges, centres = (_slots(size, k) for k in (3, 2, 1))
    return _Cube(faces, corners, edges, centres[:, 0])


def num_states(name: str) -> int:
    """Returns the number of states that draws of `name` are uniform over."""
    if name == "pocket_cube":
        return math.factorial(7) * 3**6
    return math.factorial(8) * 3**7 * math.factorial(12) * 2**11 // 2


def _colours(home: Any, cubie: Any, turn: Any) -> Any:
    """Returns what is seen where cubie [n, P], turned by turn [n, P], sits: [n, P, k].

    home [P, k]: colours of the solved cubies; sticker j of a cubie moves to j + turn.
    """
    k = home.shape[1]
    return home[cubie[..., None], (np.arange(k) - turn[..., None]) % k]


def _parity(permutation: Any) -> Any:
    """Returns [n]: the number of inversions of permutation [n, P], mod 2."""
    later = np.triu(np.ones((permutation.shape[1],) * 2, bool), 1)
    inverted = permutation[:, :, None] > permutation[:, None, :]
    return (inverted & later).sum((1, 2)) % 2


def _shuffle(key: Any, n: int, count: int) -> jax.Array:
    """Returns n random permutations [n, count]; ties (2e-8 a draw) keep the order."""
    return jnp.argsort(jax.random.bits(key, (n, count), jnp.uint32), axis=1)


def _turns(key: Any, n: int, count: int, k: int) -> jax.Array:
    """Returns turns [n, count] in {0, ..., k - 1}, uniform given a sum of 0 mod k."""
    free = jax.random.randint(key, (n, count - 1), 0, k, jnp.int32)
    return jnp.concatenate([free, -free.sum(1, keepdims=True) % k], axis=1)


def draw_pocket_cube(key: Any, n: int) -> tuple[jax.Array, None]:
    """Draws uniform pocket cubes: int32 [n, 24], and no condition."""
    cube = _cube(2)
    keys = jax.random.split(key)
    fixed = ((0, 0), (0, 1))  # the eighth corner stays
    cubie = jnp.pad(_shuffle(keys[0], n, 7), fixed, constant_values=7)
    twist = jnp.pad(_turns(keys[1], n, 7, 3), fixed)
    corners = _colours(jnp.asarray(cube.faces[cube.corners]), cubie, twist)
    return cube.arrange(corners, jnp.zeros((n, 0), jnp.int32)), None


def draw_rubiks_cube(key: Any, n: int) -> tuple[jax.Array, None]:
    """Draws uniform solvable 3x3x3 cubes: int32 [n, 54], and no condition."""
    cube = _cube(3)
    keys = jax.random.split(key, 4)
    corner, edge = _shuffle(keys[0], n, 8), _shuffle(keys[1], n, 12)
    # Swapping two edges pairs the odd with the even: same parity, still uniform.
    odd = _parity(corner) != _parity(edge)
    swap = np.r_[1, 0, 2:12]
    edge = jnp.where(odd[:, None], edge[:, swap], edge)
    twist, flip = _turns(keys[2], n, 8, 3), _turns(keys[3], n, 12, 2)
    corners = _colours(jnp.asarray(cube.faces[cube.corners]), corner, twist)
    edges = _colours(jnp.asarray(cube.faces[cube.edges]), edge, flip)
    return cube.arrange(corners, edges), None


def _recognise(
    x: np.ndarray, slots: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the cubie and its turn in each place, both [N, P], and whether all exist.

    The last, [N]: every place holds a cubie of the puzzle, and none occurs twice.
    """
    count, k = slots.shape
    digits = 6 ** np.arange(k)
    cubie, turn = np.divmod(np.arange(count * k)[:, None], k)  # [P k, 1]
    seen = _colours(faces[slots], cubie, turn)[:, 0]  # [P k, k]
    table = np.full(6**k, -1)
    table[seen @ digits] = np.arange(count * k)
    found = table[x[:, slots].astype(int) @ digits]  # [N, P]
    cubies = found // k  # -1 where there is no such cubie
    each_once = (np.sort(cubies, axis=1) == np.arange(count)).all(1)
    return cubies, found % k, each_once


def invariants(stickers: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a solvable cube has to fulfil, each as bool [N].

    cubies: each cubie of the puzzle occurs exactly once, and the centres (the fixed
      corner of a pocket cube) are where they belong.
    corner_twist, and for the 3x3x3 also edge_flip and parity: the three invariants of
      the turns; False where `cubies` is, since they are undefined there.

    Args:
      stickers: integers [N, 24] or [N, 54] in {0, ..., 5}.
    """
    x = np.asarray(stickers)
    cube = _cube({24: 2, 54: 3}[x.shape[1]])
    corner, twist, cubies = _recognise(x, cube.corners, cube.faces)
    twist_sums = twist.sum(1) % 3 == 0
    if x.shape[1] == 24:
        cubies &= (corner[:, 7] == 7) & (twist[:, 7] == 0)
        return {"cubies": cubies, "corner_twist": cubies & twist_sums}
    edge, flip, edges = _recognise(x, cube.edges, cube.faces)
    cubies &= edges & (x[:, cube.centres] == cube.faces[cube.centres]).all(1)
    return {
        "cubies": cubies,
        "corner_twist": cubies & twist_sums,
        "edge_flip": cubies & (flip.sum(1) % 2 == 0),
        "parity": cubies & (_parity(corner) == _parity(edge)),
    }


def is_legal(stickers: np.ndarray) -> np.ndarray:
    """Returns bool [N]: whether face turns can solve stickers [N, 24] or [N, 54]."""
    return np.all(list(invariants(stickers).values()), axis=0)


def make_illegal(stickers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Legal cubes with one piece turned in its place, which no face turn can do.

    One corner that is not held fixed is twisted, or, in half of the 3x3x3, one edge is
    flipped.

    Args:
      stickers: integers [N, 24] or [N, 54].
      rng: draws the piece and the direction.
    """
    x = np.asarray(stickers)
    cube, rows = _cube({24: 2, 54: 3}[x.shape[1]]), np.arange(len(x))[:, None]
    corner = rng.integers(7 if x.shape[1] == 24 else 8, size=len(x))
    turn = rng.integers(1, 3, size=(len(x), 1))
    places = cube.corners[corner]  # [N, 3]
    twisted = x.copy()
    rolled = np.take_along_axis(places, (np.arange(3) + turn) % 3, axis=1)
    twisted[rows, places] = x[rows, rolled]
    if not len(cube.edges):
        return twisted
    places = cube.edges[rng.integers(len(cube.edges), size=len(x))]  # [N, 2]
    flipped = x.copy()
    flipped[rows, places] = x[rows, places[:, ::-1]]
    return np.where(rng.random((len(x), 1)) < 0.5, twisted, flipped)


def first_corner(stickers: np.ndarray) -> np.ndarray:
    """Returns which cubie, in which turn, sits in the first corner: int [N].

    All 3 x (number of corners that move) are equally likely in legal cubes.
    """
    x = np.asarray(stickers)
    cube = _cube({24: 2, 54: 3}[x.shape[1]])
    corner, twist, _ = _recognise(x, cube.corners, cube.faces)
    return corner[:, 0] * 3 + twist[:, 0]


def nets(stickers: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
    """Draws cubes unfolded: U above, L F R B in a row, D below.

    Args:
      stickers: integers [N, 24] or [N, 54].
      hidden: bool of that shape (or one that broadcasts): stickers drawn grey.

    Returns:
      uint8 [N, H, W, 3], black where there is no cube; a sticker takes 8x8 pixels.
    """
    x = np.asarray(stickers)
    x = np.where(False if hidden is None else hidden, 6, x)
    size = {24: 2, 54: 3}[x.shape[1]]
    side = 8 * size + 2
    images = np.zeros((len(x), 3 * side, 4 * side, 3), np.uint8)
    for face, (down, across) in enumerate(_NET):
        for sticker in range(size**2):
            row, column = divmod(sticker, size)
            top, left = down * side + 8 * row + 1, across * side + 8 * column + 1
            colour = _COLOURS[x[:, face * size**2 + sticker]]  # [N, 3]
            images[:, top : top + 7, left : left + 7] = colour[:, None, None]
    return images


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads `pocket_cube` or `rubiks_cube`: training draws anew at every step.

    The fixed splits are draws too, so that a training step may meet a test example:
    what is learnt is the distribution, whose entropy is known, and no sample of it.
    """
    del data_dir  # nothing is read
    if resolution is not None:
        raise InputError(
            f"--resolution={resolution}: {name} has no resolution; leave the flag out"
        )
    draw = {"pocket_cube": draw_pocket_cube, "rubiks_cube": draw_rubiks_cube}[name]

    # The generator is named: a run may choose another as JAX's default.
    key = jax.random.key(0, impl="threefry2x32")
    x = np.asarray(jax.jit(draw, static_argnums=1)(key, 2500)[0], np.uint8)
    corners = 3 * (7 if name == "pocket_cube" else 8)
    return Dataset(
        name=name,
        shape=(6 * SIZES[name] ** 2,),
        num_values=6,
        unit="object",
        train=Fresh(draw),
        valid=ArraySplit(x[:500]),
        test=ArraySplit(x[500:]),
        entropy_nats=math.log(num_states(name)),
        support=Support(invariants, first_corner, np.full(corners, 1 / corners)),
    )
