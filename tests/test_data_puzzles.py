import itertools
import math
from collections import Counter

import jax
import numpy as np
import pytest

from gm.data import load, puzzles
from gm.errors import InputError

N = 2500  # as many as `load` draws: one compilation serves all
DRAW = {24: puzzles.draw_pocket_cube, 54: puzzles.draw_rubiks_cube}


def quarter_turns(size):
    """Returns {face: order}, from geometry: turning the face makes x into x[order]."""
    cubies, normals = puzzles.sticker_geometry(size)
    where = {(*c, *n): i for i, (c, n) in enumerate(zip(cubies, normals, strict=True))}
    turns = {}
    for name, (normal, _) in puzzles.FACES.items():
        axis = np.array(normal)
        order = np.arange(len(cubies))
        for i, (cubie, normal) in enumerate(zip(cubies, normals, strict=True)):
            if cubie @ axis > 0:  # v -> axis x v + axis (axis . v): 90 degrees
                spin = [np.cross(axis, v) + axis * (v @ axis) for v in (cubie, normal)]
                order[where[(*spin[0], *spin[1])]] = i
        turns[name] = order
    return turns


def solved(size):
    return np.repeat(np.arange(6), size * size)[None]


def scrambles(size, faces, n, num_turns, seed=0):
    rng = np.random.default_rng(seed)
    turns = quarter_turns(size)
    x = solved(size).repeat(n, 0)
    for _ in range(num_turns):
        orders = np.stack([turns[f] for f in rng.choice(list(faces), n)])
        x = np.take_along_axis(x, orders, 1)
    return x


def test_number_of_states_and_entropy():
    assert puzzles.num_states("pocket_cube") == 3_674_160
    assert puzzles.num_states("rubiks_cube") == 43_252_003_274_489_856_000
    assert load("pocket_cube").entropy_nats == math.log(3_674_160)
    assert load("rubiks_cube").entropy_nats / math.log(2) == pytest.approx(
        65.2294, abs=1e-4
    )


def test_quarter_turns_have_order_four_and_known_commutator_order():
    for size in (2, 3):
        turns = quarter_turns(size)
        for order in turns.values():
            assert (order[order][order][order] == np.arange(len(order))).all()
    # R U R' U' has order 6 and R U has order 105 on the 3x3x3 (Joyner 2008).
    r, u = (np.argsort(turns[f]) for f in "RU")
    for word, expected in (((r, u), 105), ((r, u, np.argsort(r), np.argsort(u)), 6)):
        x = start = np.arange(54)
        count = 0
        while count == 0 or (x != start).any():
            for turn in word:
                x = x[turn]
            count += 1
        assert count == expected


@pytest.mark.parametrize(("size", "faces"), [(2, "URF"), (3, "URFDLB")])
def test_face_turns_keep_a_cube_legal(size, faces):
    assert puzzles.is_legal(solved(size)).all()
    x = scrambles(size, faces, 2000, 40)
    assert puzzles.is_legal(x).all()
    assert all(v.all() for v in puzzles.invariants(x).values())


def illegal(x, change):
    """Applies one impossible change to the 3x3x3 states x [N, 54]."""
    cube = puzzles._cube(3)
    y = x.copy()
    if change == "corner_twist":
        y[:, cube.corners[2]] = x[:, np.roll(cube.corners[2], 1)]
    elif change == "edge_flip":
        y[:, cube.edges[5]] = x[:, cube.edges[5][::-1]]
    else:  # parity: swaps two edges, keeping their orientation
        y[:, cube.edges[[3, 7]]] = x[:, cube.edges[[7, 3]]]
    return y


@pytest.mark.parametrize("change", ["corner_twist", "edge_flip", "parity"])
def test_an_impossible_change_is_named(change):
    x = illegal(scrambles(3, "URFDLB", 500, 40), change)
    assert not puzzles.is_legal(x).any()
    for name, value in puzzles.invariants(x).items():
        assert value.all() if name != change else not value.any()


@pytest.mark.parametrize("size", [2, 3])
def test_a_drawn_net_has_the_colour_of_each_sticker_where_it_belongs(size):
    whole = puzzles.nets(solved(size))
    side = whole.shape[1] // 3
    assert whole.shape[1:] == (3 * side, 4 * side, 3)
    for face, (row, column) in {"U": (0, 1), "F": (1, 1), "D": (2, 1)}.items():
        tile = whole[0, row * side : (row + 1) * side, column * side :][:, :side]
        colours = {tuple(c) for c in tile.reshape(-1, 3)} - {(0, 0, 0)}
        assert colours == {tuple(puzzles._COLOURS["URFDLB".index(face)])}
    # Turning F moves the lower row of U: what lies next to F in the net, and no more.
    turned = puzzles.nets(solved(size)[:, quarter_turns(size)["F"]])[0]
    above = turned[: side - 9, side : 2 * side]
    assert (above == whole[0, : side - 9, side : 2 * side]).all()
    edge = {tuple(c) for c in turned[side - 6, side : 2 * side]} - {(0, 0, 0)}
    assert edge <= {tuple(puzzles._COLOURS[i]) for i in (1, 4)}  # of R or of L
    assert len(edge) == 1
    unseen = puzzles.nets(solved(size), np.ones(6 * size**2, bool))
    assert {tuple(c) for c in unseen.reshape(-1, 3)} == {
        (0, 0, 0),
        tuple(puzzles._COLOURS[6]),
    }


def test_a_wrong_sticker_is_named():
    for size, faces in ((2, "URF"), (3, "URFDLB")):
        x = scrambles(size, faces, 500, 40)
        sticker = np.random.default_rng(0).integers(0, x.shape[1], 500)
        x[np.arange(500), sticker] = (x[np.arange(500), sticker] + 1) % 6
        assert not puzzles.is_legal(x).any()
        assert not puzzles.invariants(x)["cubies"].any()
    # A whole turn of the pocket cube moves the fixed corner: the same cube, held
    # another way, is no state of ours.
    held = solved(2)[:, quarter_turns(2)["L"]]
    assert not puzzles.invariants(held)["cubies"].any()


@pytest.mark.parametrize("name", ["pocket_cube", "rubiks_cube"])
def test_draws_are_legal_deterministic_and_the_fixed_splits(name):
    data = load(name)
    draw = data.train.draw
    jitted = jax.jit(draw, static_argnums=1)
    x, cond = jitted(jax.random.key(3), N)
    assert cond is None
    assert x.dtype == np.int32
    assert x.shape == (N, *data.shape)
    np.testing.assert_array_equal(x, jitted(jax.random.key(3), N)[0])
    assert (x != jitted(jax.random.key(4), N)[0]).any()
    assert puzzles.is_legal(np.asarray(x)).all()
    for split, n in ((data.valid, 500), (data.test, 2000)):
        y, _ = split.batch(np.arange(n))
        assert y.shape == (len(split), *data.shape) == (n, *data.shape)
        assert y.dtype == np.uint8
        assert puzzles.is_legal(y).all()
        assert len(np.unique(y, axis=0)) > n - 5  # draws may coincide
    assert (data.valid.x != data.test.x[:500]).any()


def chi_square(counts):
    """Returns how many standard deviations the statistic lies above its mean."""
    expected = counts.sum(axis=-1, keepdims=True) / counts.shape[-1]
    statistic = ((counts - expected) ** 2 / expected).sum()
    dof = counts.size - counts.shape[0]
    return (statistic - dof) / math.sqrt(2 * dof)


@pytest.mark.parametrize("length", [24, 54])
def test_draws_are_uniform_in_place_and_orientation(length):
    draw = jax.jit(DRAW[length], static_argnums=1)
    keys = jax.random.split(jax.random.key(0), 16)
    x = np.concatenate([draw(key, N)[0] for key in keys])
    cube = puzzles._cube({24: 2, 54: 3}[length])
    for slots, k in ((cube.corners, 3), (cube.edges, 2)):
        if len(slots) == 0:
            continue
        cubie, turn, _ = puzzles._recognise(x, slots, cube.faces)
        free = 7 if length == 24 else len(slots)
        state = (cubie * k + turn)[:, :free]  # which cubie, and how turned
        counts = np.stack([np.bincount(s, minlength=free * k) for s in state.T])
        assert abs(chi_square(counts)) < 4
        # Pairs of places, and turns of pairs: no hidden dependence.
        pair = np.bincount(turn[:, 0] * k + turn[:, 1], minlength=k * k)
        assert abs(chi_square(pair[None])) < 4
        pairs = Counter(zip(cubie[:, 0], cubie[:, 1], strict=True))
        assert len(pairs) == free * (free - 1)
        assert abs(chi_square(np.array([list(pairs.values())]))) < 4
    if length == 54:  # both parities of the corners, each half of the time
        corner, _, _ = puzzles._recognise(x, cube.corners, cube.faces)
        odd = puzzles._parity(corner).mean()
        assert abs(odd - 0.5) < 4 * 0.5 / math.sqrt(len(x))


def encode(x):
    """Returns int64 [N]: base 6 over the stickers but the fixed corner's three."""
    free = np.setdiff1d(np.arange(24), puzzles._cube(2).corners[7])
    code = np.zeros(len(x), np.int64)
    for i in free:
        code = code * 6 + x[:, i]
    return code


def absent(code, visited):
    at = np.minimum(np.searchsorted(visited, code), len(visited) - 1)
    return visited[at] != code


def every_pocket_cube(block=84):
    """Yields them all, uint8 [<= 729 block, 24] at a time."""
    cube = puzzles._cube(2)
    home = cube.faces[cube.corners].astype(np.uint8)
    free = np.array(list(itertools.product(range(3), repeat=6)))
    twist = np.c_[free, -free.sum(1) % 3, np.zeros(len(free), int)]  # [729, 8]
    permutations = np.array([(*p, 7) for p in itertools.permutations(range(7))])
    for start in range(0, len(permutations), block):
        cubie = permutations[start : start + block]
        corners = puzzles._colours(
            home, np.repeat(cubie, len(twist), 0), np.tile(twist, (len(cubie), 1))
        )
        yield cube.arrange(corners, np.zeros((len(corners), 0), np.uint8))


def test_pocket_cube_states_are_closed_under_turns():
    block = next(every_pocket_cube())
    assert puzzles.is_legal(block).all()
    turns = quarter_turns(2)
    for face in "URF":  # the faces that leave the fixed corner alone
        assert puzzles.is_legal(block[:, turns[face]]).all()


def test_pocket_cube_breadth_first_search_finds_the_enumerated_states():
    quarter = [quarter_turns(2)[face] for face in "URF"]
    turns = quarter + [np.argsort(turn) for turn in quarter]
    layer = solved(2).astype(np.uint8)
    visited, sizes = encode(layer), [1]
    while len(layer):
        reached = np.concatenate([layer[:, turn] for turn in turns])
        code, first = np.unique(encode(reached), return_index=True)
        new = absent(code, visited)
        layer = reached[first[new]]
        visited = np.sort(np.concatenate([visited, code[new]]))
        sizes.append(len(layer))
    # Published counts in quarter turns: the last of 14 layers has 276 states.
    assert sizes[:6] == [1, 6, 27, 120, 534, 2256]
    assert sizes[14:] == [276, 0]
    drawn = np.concatenate([encode(x) for x in every_pocket_cube()])
    np.testing.assert_array_equal(np.sort(drawn), visited)
    assert len(visited) == puzzles.num_states("pocket_cube")


@pytest.mark.parametrize("name", ["pocket_cube", "rubiks_cube"])
def test_resolution_is_refused(name):
    with pytest.raises(InputError, match=f"^--resolution=16: {name} has no resolution"):
        load(name, resolution=16)
