import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.data import identify, load
from gm.data.files import encode_text
from gm.data.resize import area_resize
from gm.data.splits import hold_out
from gm.errors import InputError

RNG = np.random.default_rng(0)
PREPARE = Path(__file__).parents[1] / "scripts" / "prepare_data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GM_CACHE_DIR", str(tmp_path / "cache"))


def one_line(call, *parts):
    """Checks that `call` raises one line of InputError with all `parts`."""
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


def save_images(folder, sizes, mode="RGB", names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (width, height) in enumerate(sizes):
        shape = (height, width) if mode == "L" else (height, width, 3)
        x = RNG.integers(0, 256, shape, np.uint8)
        Image.fromarray(x).save(folder / (names[i] if names else f"{i:03d}.png"))


# Splits.


def test_hold_out_is_a_partition_of_fixed_size_whatever_the_order():
    digests = [bytes([i, i // 2]) for i in range(100)]
    parts = hold_out(digests, 2)
    assert [len(p) for p in parts] == [80, 10, 10]
    assert sorted(np.concatenate(parts)) == list(range(100))
    turned = hold_out(digests[::-1], 2)
    for a, b in zip(parts, turned, strict=True):
        assert {digests[i] for i in a} == {digests[99 - i] for i in b}


def test_hold_out_keeps_equal_examples_together():
    digests = [bytes([i // 5]) for i in range(100)]
    parts = [{digests[i] for i in part} for part in hold_out(digests, 2)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    one_line(lambda: hold_out([b"a", b"b"], 2), "2 different examples are too few")


# Folders.


def test_folder_is_cropped_resized_and_split(tmp_path):
    save_images(tmp_path / "x", [(8 + i % 3, 9) for i in range(20)])
    data = load(f"files:{tmp_path}/x", resolution=4)
    assert data.shape == (4, 4, 3)
    assert [len(data.split(s)) for s in ("train", "valid", "test")] == [16, 2, 2]
    assert data.cond is None
    assert "area-averaged to 4x4" in data.preprocessing
    files = sorted((tmp_path / "x").iterdir())
    x = np.concatenate([area_resize(np.asarray(Image.open(f))[None], 4) for f in files])
    got = np.concatenate([data.split(s).x for s in ("train", "valid", "test")])
    assert sorted(map(bytes, got)) == sorted(map(bytes, x))
    again = load(f"files:{tmp_path}/x", resolution=4)
    assert identify(again, again.test)[0] == identify(data, data.test)[0]


def test_folder_holds_out_the_same_images_at_any_resolution(tmp_path):
    save_images(tmp_path / "x", [(8, 8)] * 20, "L")
    low = load(f"files:{tmp_path}/x", resolution=4)
    full = load(f"files:{tmp_path}/x")
    assert full.shape == (8, 8, 1)
    np.testing.assert_array_equal(area_resize(full.test.x, 4), low.test.x)


def test_one_level_of_subfolders_are_classes_and_split_names_are_splits(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            save_images(tmp_path / "x" / part / name, [(4, 4)] * 10)
    data = load(f"files:{tmp_path}/x")
    assert data.cond.names == ("cat", "dog")
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 2, 20)
    assert sorted(data.test.cond) == [0] * 10 + [1] * 10
    save_images(tmp_path / "x" / "train", [(4, 4)])  # no longer one level everywhere
    assert load(f"files:{tmp_path}/x").cond is None


def test_folder_errors(tmp_path):
    one_line(lambda: load(f"files:{tmp_path}/none"), "there is no", "none")
    (tmp_path / "empty").mkdir()
    one_line(lambda: load(f"files:{tmp_path}/empty"), "no images in it")
    save_images(tmp_path / "x", [(8, 8)] * 9 + [(5, 8)])
    one_line(lambda: load(f"files:{tmp_path}/x"), "009.png", "give --resolution")
    one_line(lambda: load(f"files:{tmp_path}/x", resolution=6), "009.png", "smaller")
    broken = tmp_path / "x" / "004.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    one_line(lambda: load(f"files:{tmp_path}/x", resolution=4), broken, "damaged")
    one_line(lambda: load(f"files:{tmp_path}/x/001.png"), "one image; give the folder")


# Arrays.


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"files:{path}"


def test_npz_with_splits_labels_and_names(tmp_path):
    x = RNG.integers(0, 256, (30, 6, 6, 3), np.uint8)
    y = np.arange(30) % 3
    name = save(tmp_path / "a.npz", train=x, test=x[:10], train_labels=y,
                test_labels=y[:10], class_names=np.array(["a", "b", "c"]))  # fmt: skip
    data = load(name)
    assert (len(data.train), len(data.valid), len(data.test)) == (27, 3, 10)
    assert (data.shape, data.num_values) == ((6, 6, 3), 256)
    assert data.cond.names == ("a", "b", "c")
    for image, label in zip(data.train.x, data.train.cond, strict=True):
        (i,) = np.flatnonzero((x == image).all((1, 2, 3)))
        assert y[i] == label
    low = load(name, resolution=3)
    assert low.shape == (3, 3, 3)
    assert low.preprocessing.startswith("area-averaged 6x6 to 3x3")


@pytest.mark.parametrize(
    ("high", "dtype", "num_values", "stored"),
    [
        (1, bool, 2, np.uint8),
        (1, np.int64, 2, np.uint8),
        (16, np.uint8, 256, np.uint8),
        (300, np.int64, 301, np.int32),
    ],
)
def test_num_values_of_an_array(tmp_path, high, dtype, num_values, stored):
    x = RNG.integers(0, high + 1, (40, 12)).astype(dtype)
    x[0, 0] = high
    np.save(tmp_path / "a.npy", x)
    data = load(f"files:{tmp_path}/a.npy")
    assert (data.num_values, data.shape, data.train.x.dtype) == (
        num_values,
        (12,),
        stored,
    )


def test_npz_may_give_num_values_or_packed_bits(tmp_path):
    x = RNG.integers(0, 17, (20, 8, 8), np.uint8)
    data = load(save(tmp_path / "a.npz", images=x, num_values=np.array(17)))
    assert (data.num_values, data.shape) == (17, (8, 8, 1))
    bits = RNG.integers(0, 2, (20, 11), np.uint8)
    packed = np.packbits(bits, axis=1)
    data = load(save(tmp_path / "b.npz", train=packed, valid=packed, test=packed,
                     num_bits=np.array(11)))  # fmt: skip
    np.testing.assert_array_equal(data.test.x, bits)


def test_array_errors(tmp_path):
    x = RNG.integers(0, 256, (20, 4, 4), np.uint8)

    def wrong(*parts, **arrays):
        one_line(lambda: load(save(tmp_path / "a.npz", **arrays)), "a.npz", *parts)

    wrong("float64", x=x / 2)
    wrong("negative", x=x.astype(np.int64) - 300)
    wrong("objects", x=np.array([{}]))
    wrong("keys pixels", pixels=x)
    wrong("shape (20,)", x=x[:, 0, 0])
    wrong("labels", x=x, labels=np.zeros(3, np.int64))
    wrong("num_values is 9", x=x, num_values=np.array(9))
    wrong("different shapes", train=x, test=x[:, :3])
    path = tmp_path / "a.npz"
    save(path, x=x)
    path.write_bytes(path.read_bytes()[:100])
    one_line(lambda: load(f"files:{path}"), path, "damaged")


@pytest.mark.case(20)
def test_headers_that_lie_and_bombs_are_refused(tmp_path, monkeypatch):
    x = np.zeros((20, 4, 4), np.uint8)
    np.save(tmp_path / "a.npy", x)
    lie = (tmp_path / "a.npy").read_bytes().replace(b"(20, 4, 4)", b"(99, 4, 4)")
    (tmp_path / "a.npy").write_bytes(lie)
    one_line(lambda: load(f"files:{tmp_path}/a.npy"), "its header says")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", lie)
    one_line(lambda: load(f"files:{tmp_path}/b.npz"), "its header says")
    monkeypatch.setenv("GM_MEMORY_LIMIT_MB", "1")
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros((2000, 32, 32), np.uint8))
    one_line(lambda: load(f"files:{tmp_path}/c.npz"), "more than GM_MEMORY_LIMIT_MB=1")


# Text.


def test_text_windows(tmp_path):
    text = "".join(RNG.choice(list("abcdé\n"), 1000))
    (tmp_path / "t.txt").write_text(text)
    data = load(f"files:{tmp_path}/t.txt", resolution=20)
    assert (data.symbols, data.num_values, data.unit) == ("\nabcdé", 6, "char")
    assert data.ordered
    assert (len(data.train), len(data.valid), len(data.test)) == (881, 2, 2)

    def decode(row):
        return "".join(data.symbols[i] for i in row)

    x, cond = data.train.batch(np.array([0, 7, 880]))
    assert cond is None
    assert [decode(row) for row in x] == [text[0:20], text[7:27], text[880:900]]
    assert decode(data.valid.x.ravel()) == text[900:940]
    assert decode(data.test.x.ravel()) == text[950:990]
    assert "10 characters of valid, 10 of test" in data.preprocessing
    assert len(data.train.sequence) == 900  # held once, not in 881 copies


def test_text_errors(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("abc" * 10)
    one_line(lambda: load(f"files:{path}"), path, "fewer than a window of 256")
    path.write_text("a" * 9000)
    one_line(lambda: load(f"files:{path}"), path, "one character only")
    path.write_bytes(b"caf\xe9 " * 1000)
    one_line(lambda: load(f"files:{path}"), path, "not UTF-8 at byte 3")


def test_encode_text():
    assert encode_text("cab", "abc", "--prefix").tolist() == [2, 0, 1]
    assert encode_text("", "abc", "--prefix").tolist() == []
    one_line(lambda: encode_text("ab\ncaxb", "\nabc", "--prefix"), "--prefix: 'x'",
             "line 2, column 3")  # fmt: skip


# Photographs and the script.


def test_photos_are_split_by_image_and_lossless():
    pytest.importorskip("skimage")
    data = load("photos", resolution=64)
    assert data.shape == (64, 64, 3)
    import skimage.data

    np.testing.assert_array_equal(data.test.x[0], skimage.data.coffee()[:64, :64])
    assert len(data.test) == (400 // 64) * (600 // 64)
    one_line(lambda: load("photos", resolution=301), "--resolution=301", "1 to 300")


def test_photos_without_scikit_image_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    one_line(lambda: load("photos"), "pip install -e '.[images]'")


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, PREPARE, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_script_turns_a_mosaic_into_an_npz(tmp_path):
    tiles = RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)
    mosaic = tiles.reshape(2, 3, 4, 4, 3).swapaxes(1, 2).reshape(8, 12, 3)
    Image.fromarray(mosaic).save(tmp_path / "m.webp", lossless=True)
    np.savez(tmp_path / "l.npz", y=np.arange(6) % 2, class_names=np.array(["a", "b"]))
    output = tmp_path / "out.npz"
    done = run_script(f"--train={tmp_path}/m.webp", f"--test={tmp_path}/m.webp",
                      "--tile=4", f"--train_labels={tmp_path}/l.npz:y",
                      f"--output={output}",
                      f"--test_labels={tmp_path}/l.npz:y")  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = load(f"files:{output}")
    np.testing.assert_array_equal(data.test.x, tiles)
    assert data.cond.names == ("a", "b")
    done = run_script(f"--train={tmp_path}/m.webp", "--tile=5", f"--output={output}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "do not divide into tiles of 5" in done.stderr
