import gzip
import hashlib
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.data import archives, identify, load, stream
from gm.data.resize import area_resize
from gm.errors import InputError

RNG = np.random.default_rng(0)
# Of the whole test split, as a stock preparation of TFDS with TensorFlow gives it.
TEST_SHA256 = {
    "mnist": "e2842441ab1468bab7eeaa886875a3a7662245f3768610c4b4ca84d7ac309c70",
    "fashion_mnist": "f966ad9a453e7d5ef297476fd4939780e707ce15a852b67597069832263d31bd",
}
IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@pytest.fixture(autouse=True)
def sandbox(tmp_path, monkeypatch):
    """A cache of its own, and nothing prepared elsewhere; no known checksums."""
    monkeypatch.setenv("GM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(archives, "SHA256", {})


@pytest.fixture
def raw_dir():
    """The folder of real archives, shared by those who have one."""
    folder = os.environ.get("GM_DATA_DIR")
    if not folder:
        pytest.skip("GM_DATA_DIR (the folder with raw archives) is not set")
    return Path(folder)


def one_line(call, *parts):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


def write_idx(path, x):
    header = b"\0\0\x08" + bytes([x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape)
    path.write_bytes(gzip.compress(header + x.tobytes(), mtime=0))


@pytest.fixture
def mnist(tmp_path):
    """Small archives under MNIST's names: 60 and 20 images of 28x28."""
    folder = tmp_path / "raw" / "mnist"
    folder.mkdir(parents=True)
    arrays = []
    for n in (60, 20):
        arrays += [
            RNG.integers(0, 256, (n, 28, 28), np.uint8),
            RNG.integers(0, 10, n, np.uint8),
        ]
    for name, x in zip(IDX, arrays, strict=True):
        write_idx(folder / f"{name}-ubyte.gz", x)
    return folder, arrays


def test_idx_archives_give_their_images_and_labels(mnist, monkeypatch):
    folder, (train, _, test, labels) = mnist
    data = load("mnist", data_dir=str(folder.parent))
    assert (data.shape, data.num_values, data.unit) == ((28, 28, 1), 256, "dim")
    assert (len(data.train), len(data.valid), len(data.test)) == (54, 6, 20)
    assert data.cond.names == tuple("0123456789")
    known = {x.tobytes(): y for x, y in zip(test, labels, strict=True)}
    x, cond = data.test.batch(np.arange(20))
    assert cond.dtype == np.int32
    assert [known[i.tobytes()] for i in x] == list(cond)
    both = np.concatenate([data.train.x, data.valid.x])
    assert sorted(map(bytes, both)) == sorted(map(bytes, train))
    # Again: from the cache alone, without TFDS.
    monkeypatch.setattr("gm.data.tfds._open", None)
    again = load("mnist", data_dir=str(folder))  # the folder itself will do, too
    assert identify(again, again.train)[0] == identify(data, data.train)[0]


def test_resolution_is_area_averaged_and_keeps_the_split(mnist):
    folder, _ = mnist
    full = load("mnist", data_dir=str(folder.parent))
    low = load("mnist", resolution=14, data_dir=str(folder.parent))
    assert "area-averaged 28x28 to 14x14" in low.preprocessing
    np.testing.assert_array_equal(low.valid.x, area_resize(full.valid.x, 14))
    one_line(lambda: load("mnist", resolution=29, data_dir=str(folder.parent)),
             "--resolution=29", "from 1 to 28")  # fmt: skip


def test_changed_archives_change_the_data(mnist):
    folder, (train, _, test, _) = mnist
    before = load("mnist", data_dir=str(folder))
    write_idx(folder / "t10k-images-idx3-ubyte.gz", 255 - test)
    after = load("mnist", data_dir=str(folder))
    assert identify(before, before.test)[0] != identify(after, after.test)[0]
    # Without data_dir it is ambiguous which of the two copies is meant.
    one_line(lambda: load("mnist"), "several sources", "--data_dir")


def test_prepared_copy_is_found_without_the_archives(mnist):
    folder, _ = mnist
    before = load("mnist", data_dir=str(folder))
    for path in folder.iterdir():
        path.unlink()
    after = load("mnist")
    assert identify(before, before.test)[0] == identify(after, after.test)[0]


def test_larger_than_the_limit_is_streamed_with_the_same_examples(mnist, monkeypatch):
    folder, _ = mnist
    here = load("mnist", data_dir=str(folder), resolution=14)
    monkeypatch.setattr(stream, "memory_limit", lambda: 1000)
    data = load("mnist", data_dir=str(folder), resolution=14)
    assert not data.train.in_memory
    assert (len(data.train), len(data.valid), len(data.test)) == (54, 6, 20)
    assert identify(data, data.test)[0] == identify(here, here.test)[0]
    x, cond = data.train.batch(np.array([3, 3, 0]))
    np.testing.assert_array_equal(x[0], x[1])
    assert x.shape == (3, 14, 14, 1)
    assert cond.shape == (3,)
    read = list(stream.batches(data.train, lambda step: np.array([step, 53]), 4, 3))
    for step, (got, _) in enumerate(read, 4):
        np.testing.assert_array_equal(got, data.train.batch(np.array([step, 53]))[0])


@pytest.mark.parametrize("where", ["header", "middle", "end", "garbage", "swapped"])
def test_damaged_idx_is_one_line_with_the_file(mnist, where):
    folder, _ = mnist
    path = folder / "t10k-images-idx3-ubyte.gz"
    data = path.read_bytes()
    if where == "swapped":
        path.write_bytes((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
        path = folder / "t10k-labels-idx1-ubyte.gz"
        path.write_bytes(data)
    else:
        path.write_bytes({
            "header": data[:5],
            "middle": data[: len(data) // 2],
            "end": data[:-9],
            "garbage": b"<html>404 Not Found</html>",
        }[where])  # fmt: skip
    folders = str(folder.parent)
    one_line(lambda: load("mnist", data_dir=folders), folder)


def test_known_sha256_is_checked_before_reading(mnist, monkeypatch):
    folder, _ = mnist
    name = "t10k-images-idx3-ubyte.gz"
    monkeypatch.setattr(archives, "SHA256", {"mnist": {name: (1648877, "8d422c7b")}})
    one_line(lambda: load("mnist", data_dir=str(folder)), folder / name, "1648877",
             "8d422c7b", "fetch it again")  # fmt: skip


def test_missing_archives_are_named(mnist):
    folder, _ = mnist
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    one_line(
        lambda: load("mnist", data_dir=str(folder.parent)),
        "but not t10k-labels-idx1-ubyte.gz; give --data_dir=DIR with",
        "in DIR or DIR/mnist (with pip",  # the same for a launcher and prepare_data
    )
    one_line(lambda: load("mnist", data_dir="/none"), "--data_dir=/none: not a folder")


@pytest.mark.parametrize("name", ["tfds:../x", "tfds:mnist/..", "tfds:", "tfds:Mnist"])
def test_bad_names_are_refused(name):
    one_line(lambda: load(name), f"--dataset={name}", "give tfds:NAME")


def test_unknown_name_suggests_a_near_one():
    one_line(lambda: load("tfds:kmnst"), "not in the TFDS catalogue", "kmnist?")


def test_stock_data_set_without_tensorflow_says_how(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    one_line(
        lambda: load("imagenet_resized/32x32"),
        "Imagenet32_train_npz.zip, Imagenet32_val_npz.zip",
        "in DIR or DIR/imagenet_resized after pip install -e '.[tf]'",
    )


def test_checksums_are_those_of_tfds(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.undo()
    for name, files in archives.SHA256.items():
        known = {u.filename: u for u in tfds.builder_cls(name).url_infos.values()}
        for file, (size, sha256) in files.items():
            assert known[file].size == size
            assert known[file].checksum.startswith(sha256)


def test_amat(tmp_path):
    x = {}
    for part, n in (("train", 12), ("valid", 4), ("test", 5)):
        x[part] = RNG.integers(0, 2, (n, 784), np.uint8)
        text = "".join(" ".join(map(str, row)) + "\n" for row in x[part])
        (tmp_path / f"binarized_mnist_{part}.amat").write_text(text)
    data = load("binarized_mnist", data_dir=str(tmp_path))
    assert (data.num_values, data.cond, data.preprocessing) == (
        2,
        None,
        "splits as given",
    )
    for part, rows in x.items():
        assert sorted(map(bytes, data.split(part).x)) == sorted(map(bytes, rows))
    path = tmp_path / "binarized_mnist_test.amat"
    path.write_text(path.read_text()[:-100])
    one_line(
        lambda: load("binarized_mnist", data_dir=str(tmp_path)), path, "784 digits"
    )


def write_cifar(path, folder, files, meta):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {**files, **meta}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_binaries(tmp_path, name):
    label_bytes = 1 if name == "cifar10" else 2
    records = RNG.integers(0, 256, (24, label_bytes + 3072), np.uint8)
    records[:, :label_bytes] %= 3
    blocks = [r.tobytes() for r in np.split(records, 6)]
    path = tmp_path / f"cifar-{name[5:]}-binary.tar.gz"
    if name == "cifar10":
        files = {f"data_batch_{i}.bin": blocks[i - 1] for i in range(1, 6)}
        files["test_batch.bin"] = blocks[5]
        meta, folder = (
            {"batches.meta.txt": b"cat\ndog\nowl\n\n"},
            "cifar-10-batches-bin",
        )
    else:
        files = {"train.bin": b"".join(blocks[:5]), "test.bin": blocks[5]}
        meta, folder = {"fine_label_names.txt": b"cat\ndog\nowl\n"}, "cifar-100-binary"
    write_cifar(path, folder, files, meta)
    data = load(name, data_dir=str(tmp_path))
    assert (data.shape, data.cond.names) == ((32, 32, 3), ("cat", "dog", "owl"))
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 2, 4)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    known = {
        i.tobytes(): r[label_bytes - 1] for i, r in zip(images, records, strict=True)
    }
    for x, y in zip(data.test.x, data.test.cond, strict=True):
        assert known[x.tobytes()] == y
    path.write_bytes(path.read_bytes()[:-2000])
    one_line(lambda: load(name, data_dir=str(tmp_path)), path, "truncated")
    files.popitem()
    write_cifar(path, folder, files, meta)
    one_line(lambda: load(name, data_dir=str(tmp_path)), path, "lacks")


def test_svhn_and_omniglot(tmp_path):
    import scipy.io

    x = RNG.integers(0, 256, (32, 32, 3, 20), np.uint8)
    y = np.arange(20, dtype=np.uint8)[:, None] % 10 + 1
    for part in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": y})
    data = load("svhn_cropped", data_dir=str(tmp_path))
    known = {x[..., i].tobytes(): y[i, 0] % 10 for i in range(20)}
    assert all(
        known[a.tobytes()] == b
        for a, b in zip(data.test.x, data.test.cond, strict=True)
    )
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(tmp_path / f"images_{part}.zip", "w") as archive:
            for i in range(10):
                file = io.BytesIO()
                ink = np.zeros((105, 105), bool)
                ink[i : i + 20, 40:60] = True
                Image.fromarray(~ink).save(file, "PNG")
                archive.writestr(f"images_{part}/Greek/c/{i}.png", file.getvalue())
    data = load("omniglot", data_dir=str(tmp_path))
    assert (data.shape, data.cond) == ((105, 105, 1), None)
    assert sorted(np.unique(data.test.x)) == [0, 255]
    assert data.test.x.mean() == pytest.approx(255 * 400 / 105**2)
    assert load("omniglot", resolution=28, data_dir=str(tmp_path)).shape == (28, 28, 1)


def test_tiny_shakespeare(tmp_path):
    text = "".join(RNG.choice(list("to be\n"), 2000))
    (tmp_path / "input.txt").write_text(text)
    data = load("tiny_shakespeare", resolution=30, data_dir=str(tmp_path))
    assert (data.symbols, data.shape, data.unit) == ("\n beot", (30,), "char")
    assert (len(data.train), len(data.valid), len(data.test)) == (1771, 3, 3)
    test = "".join(data.symbols[i] for i in data.test.x.ravel())
    assert test == text[1900:1990]
    (tmp_path / "input.txt").write_bytes(b"\xff" * 3000)
    one_line(lambda: load("tiny_shakespeare", data_dir=str(tmp_path)), "input.txt")


# With the real archives.


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_test_split_has_the_identity_of_a_stock_preparation(raw_dir, name):
    data = load(name, data_dir=str(raw_dir))
    assert (len(data.train), len(data.valid), len(data.test)) == (54000, 6000, 10000)
    assert identify(data, data.test)[0] == TEST_SHA256[name]


def test_real_packed_bits_are_the_original_amat(raw_dir, monkeypatch):
    path = raw_dir / "binarized_mnist" / "binarized_mnist.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    monkeypatch.undo()
    (archive,) = [a for a in archives.ARCHIVES["binarized_mnist"] if len(a.files) == 1]
    raw = archive.read({path.name: path})
    for part, split in (("valid", "validation"), ("test", "test")):
        x = raw.splits[split]["image"].reshape(-1, 784)
        lines = np.full((len(x), 784, 2), 32, np.uint8)
        lines[..., 0] = x + 48
        lines[:, -1, 1] = 10
        _, known = archives.SHA256["binarized_mnist"][f"binarized_mnist_{part}.amat"]
        assert hashlib.sha256(lines.tobytes()).hexdigest().startswith(known)


def test_real_tiny_shakespeare_has_65_symbols(raw_dir):
    data = load("tiny_shakespeare", data_dir=str(raw_dir))
    assert data.num_values == 65
    assert (len(data.valid), len(data.test)) == (217, 217)
    assert "218 characters of valid, 218 of test" in data.preprocessing
