import functools
import hashlib
import json
import math

import jax
import numpy as np
import pytest

from gm.data import load, solids
from gm.errors import InputError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@functools.cache
def all_renders(resolution):
    return solids.render_bytes(solids.settings(), resolution)


def some_settings(n, seed=0):
    rows = np.random.default_rng(seed).choice(8192, n, replace=False)
    corners = [0, 7, 4088, 4095, 4096, 4111, 8176, 8191]  # smallest to largest
    return solids.settings()[np.concatenate([rows, corners])]


def ray_traced(setting, resolution, samples=8):
    """Renders one setting by casting rays at a solid in space, in floating point."""
    round_, width, height, depth, angle = (float(v) for v in setting)
    w, h, d = (v / solids.CANVAS / 2 for v in (width, height, depth))
    e = math.radians(angle if round_ else solids.CUBOID_ELEVATION)
    side = resolution * samples
    u = (np.arange(side) + 0.5) / side - 0.5
    right, up = np.meshgrid(u, -u)
    # Rays origin + t direction, as (right, away, height); the camera looks down.
    origin = np.stack([right, up * math.sin(e), up * math.cos(e)])
    direction = np.array([0, math.cos(e), -math.sin(e)])
    with np.errstate(divide="ignore", invalid="ignore"):
        lid_in = (h - origin[2]) / direction[2]
        lid_out = (-h - origin[2]) / direction[2]
        if round_:
            chord = np.sqrt(w * w - origin[0] ** 2)  # nan where the ray passes by
            side_in = (-chord - origin[1]) / direction[1]
            side_out = (chord - origin[1]) / direction[1]
            normal = origin[0] / w, -chord / w
        else:
            a = math.radians(angle)
            axes = np.array([(math.cos(a), math.sin(a)), (-math.sin(a), math.cos(a))])
            start = np.einsum("ij,jrc->irc", axes, origin[:2])
            step = (axes @ direction[:2])[:, None, None]
            half = np.array([w, d])[:, None, None]
            ins, outs = (-half - start) / step, (half - start) / step
            side_in, side_out = ins.max(0), outs.min(0)
            face = -axes[ins.argmax(0)]  # the outward normal of the face that is hit
            normal = face[..., 0], face[..., 1]
        hit = np.maximum(lid_in, side_in) < np.minimum(lid_out, side_out)
    shade = solids.SIDE + normal[0] * solids.LIGHT_RIGHT + normal[1] * solids.LIGHT_AWAY
    grey = np.where(lid_in > side_in, solids.LID, shade)
    grey = np.where(hit, grey, solids.BACKGROUND)
    return grey.reshape(resolution, samples, resolution, samples).mean((1, 3))


@pytest.mark.parametrize("resolution", [8, 21, 64])
def test_render_is_a_solid_seen_by_parallel_rays(resolution):
    table = some_settings(60)
    x = solids.render_bytes(table, resolution)[..., 0].astype(float)
    expected = np.stack([ray_traced(row, resolution) for row in table])
    # What is left is the rays' own sampling of edges, and rounding.
    assert abs(x - expected).mean() < 0.5
    assert abs(x - expected).max() < 32
    assert abs((x - expected).mean()) < 0.1


def test_settings_are_8192_different_ones():
    table = solids.settings()
    assert table.shape == (8192, 5)
    assert len(np.unique(table, axis=0)) == 8192
    assert (table[:, 0] == 1).sum() == 4096
    cuboids = table[table[:, 0] == 0]
    assert [len(set(column)) for column in cuboids.T[1:]] == [8, 8, 8, 8]
    cylinders = table[table[:, 0] == 1]
    assert [len(set(column)) for column in cylinders.T[1:]] == [16, 16, 16, 16]
    assert (cylinders[:, 1] == cylinders[:, 3]).all()


@pytest.mark.parametrize(
    "resolution", [8, 16, pytest.param(32, marks=pytest.mark.slow)]
)
def test_no_two_settings_look_the_same(resolution):
    assert len({x.tobytes() for x in all_renders(resolution)}) == 8192


def test_renders_have_the_bytes_of_every_other_machine():
    digest = hashlib.sha256(all_renders(16).tobytes()).hexdigest()
    assert digest[:16] == "7587b1310058671d"


def test_solids_stay_inside_the_image_without_overflow_up_to_1024():
    table = some_settings(0)
    coarse = solids.render_bytes(table, 64)[..., 0].astype(float)
    fine = solids.render_bytes(table, 1024)[..., 0]
    assert {fine.min(), fine.max()} == {solids.BACKGROUND, solids.LID}
    for edge in (fine[:, 0], fine[:, -1], fine[:, :, 0], fine[:, :, -1]):
        assert (edge == solids.BACKGROUND).all()
    averaged = fine.reshape(len(table), 64, 16, 64, 16).mean((2, 4))
    # A vertical edge is 4 columns a pixel at 64: off by 1/8 of 200 grey levels.
    assert abs(averaged - coarse).max() < 32
    assert abs(averaged - coarse).mean() < 0.5


def test_integer_square_root_is_exact():
    roots = np.r_[np.arange(200), 5376, 8191]
    for v in (roots**2, roots**2 + 2 * roots, np.maximum(roots**2 - 1, 0)):
        v = v.astype(np.int32)
        expected = [math.isqrt(i) for i in v.tolist()]
        np.testing.assert_array_equal(solids._isqrt(v), expected)


@pytest.mark.parametrize(  # gathered, rendered
    "resolution", [16, pytest.param(40, marks=pytest.mark.slow)]
)
def test_draws_are_uniform_renders_with_their_dimensions(resolution):
    data = load("solids", resolution=resolution)
    draw = jax.jit(data.train.draw, static_argnums=1)
    x, cond = draw(jax.random.key(1), 512)
    assert x.shape == (512, *data.shape) == (512, resolution, resolution, 1)
    assert x.dtype == np.int32
    assert cond.dtype == np.float32
    np.testing.assert_array_equal(x, draw(jax.random.key(1), 512)[0])
    assert (x != draw(jax.random.key(2), 512)[0]).any()
    index = {image.tobytes(): i for i, image in enumerate(all_renders(resolution))}
    drawn = [index[image.tobytes()] for image in np.asarray(x, np.uint8)]
    np.testing.assert_array_equal(cond, solids.dimensions(solids.settings()[drawn]))
    for low in range(0, 8192, 1024):  # 64 expected in each
        assert 30 < sum(low <= i < low + 1024 for i in drawn) < 100


def test_condition_is_in_its_bounds_and_splits_are_disjoint():
    data = load("solids")
    assert data.shape == (16, 16, 1)
    assert data.cond.names == ("is_cylinder", "width", "height", "depth")
    seen = set()
    for split, n in ((data.valid, 500), (data.test, 2000)):
        x, cond = split.batch(np.arange(len(split)))
        assert x.shape == (n, 16, 16, 1)
        assert x.dtype == np.uint8
        assert cond.shape == (n, 4)
        assert cond.dtype == np.float32
        assert (cond >= data.cond.low).all()
        assert (cond <= data.cond.high).all()
        seen |= {image.tobytes() for image in x}
    assert len(seen) == 2500
    assert data.entropy_nats == pytest.approx(13 * math.log(2))
    assert data.cond_entropy_nats == pytest.approx(3.5 * math.log(2))


def test_large_splits_are_rendered_when_asked_for(monkeypatch):
    monkeypatch.setattr(
        solids, "_count_images", lambda _: dict(entropy_nats=9.0, cond_entropy_nats=2.0)
    )
    data = load("solids", resolution=200)
    assert isinstance(data.test, solids.RenderedSplit)
    x, cond = data.test.batch(np.array([1999, 0, 7]))
    assert x.shape == (3, 200, 200, 1)
    small, same = load("solids").test.batch(np.array([1999, 0, 7]))
    np.testing.assert_array_equal(cond, same)
    assert abs(x.mean((1, 2)) - small.mean((1, 2))).max() < 1


def test_entropy_counts_images_that_coincide(monkeypatch):
    def blank(setting, resolution):  # all cuboids look the same
        kind = setting[:, 0].astype(np.uint8)
        return np.broadcast_to(kind[:, None, None, None], (len(kind), 8, 8, 1))

    monkeypatch.setattr(solids, "render_bytes", blank)
    found = solids.entropies(8)
    assert found["num_images"] == 2
    assert found["entropy_nats"] == pytest.approx(math.log(2))
    assert found["cond_entropy_nats"] == pytest.approx(0, abs=1e-9)


def test_entropies_are_cached(cache_folder, monkeypatch):
    first = solids.entropies(8)
    (path,) = (cache_folder / "solids").iterdir()
    assert json.loads(path.read_text()) == first
    count = solids._count_images
    monkeypatch.setattr(solids, "_count_images", None)
    assert solids.entropies(8) == first
    monkeypatch.setattr(solids, "_count_images", count)
    path.write_text("{")
    assert solids.entropies(8) == first
    assert json.loads(path.read_text()) == first
    monkeypatch.setenv("GM_CACHE_DIR", str(path / "not-a-folder"))
    assert solids.entropies(8) == first


@pytest.mark.parametrize("resolution", [7, 1025])
def test_resolution_out_of_range_is_refused(resolution):
    with pytest.raises(InputError, match=f"^--resolution={resolution}: solids .* 1024"):
        load("solids", resolution=resolution)


@pytest.mark.slow
def test_no_two_settings_look_the_same_at_128():
    found = solids._count_images(128)
    assert found["num_images"] == 8192
