"""Raw original archives: their names, their sha256, and how to read them.

Nothing is unpacked to disk: members are read one by one, after a check of their size.
"""

import dataclasses
import functools
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gm.data.containers import (
    check_size,
    read_amat,
    read_idx,
    read_mosaic,
    read_npz,
    reading,
)
from gm.errors import InputError

Columns = dict[str, np.ndarray]  # "image" [N, H, W, C] uint8 and "label" [N], or "text"


@dataclasses.dataclass(frozen=True)
class Raw:
    """What an archive holds."""

    splits: dict[str, Columns]  # by TFDS's names: train, validation, test
    names: tuple[str, ...] = ()  # of the classes
    note: str = ""  # what a reader of a result must know


@dataclasses.dataclass(frozen=True)
class Archive:
    """The files that together are a data set, and how to read them."""

    files: tuple[str, ...]
    read: Callable[[dict[str, Path]], Raw]


def _columns(x: np.ndarray, y: np.ndarray, num_classes: int, path: Path) -> Columns:
    if len(x) != len(y) or not len(x) or y.max() >= num_classes:
        raise InputError(
            f"{path}: {len(y)} labels for {len(x)} images, or a label that is not in "
            f"0..{num_classes - 1}; fetch images and labels of one source"
        )
    return {"image": x, "label": y.astype(np.int64)}


def _idx(paths: dict[str, Path], *, names: tuple[str, ...]) -> Raw:
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        x = read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])
        where = paths[f"{prefix}-labels-idx1-ubyte.gz"]
        splits[split] = _columns(x[..., None], read_idx(where), len(names), where)
    return Raw(splits, names)


def _amat(paths: dict[str, Path]) -> Raw:
    parts = (("train", "train"), ("valid", "validation"), ("test", "test"))
    return Raw({
        split: {"image": read_amat(paths[f"binarized_mnist_{part}.amat"])}
        for part, split in parts
    })  # fmt: skip


def _packed_bits(paths: dict[str, Path]) -> Raw:
    path = paths["binarized_mnist.npz"]
    arrays = read_npz(path)
    with reading(path, "packed bits under the keys train, valid and test"):
        bits = {k: np.unpackbits(arrays[k], axis=1) for k in ("train", "valid", "test")}
        x = {k: v.reshape(-1, 28, 28, 1) for k, v in bits.items()}
    return Raw({
        "train": {"image": x["train"]},
        "validation": {"image": x["valid"]},
        "test": {"image": x["test"]},
    })  # fmt: skip


def _cifar(
    paths: dict[str, Path],
    *,
    folder: str,
    train: tuple[str, ...],
    test: str,
    meta: str,
    label_bytes: int,
) -> Raw:
    """Reads CIFAR's binary records: label bytes (the last one counts), then CHW."""
    (path,) = paths.values()
    wanted = {f"{folder}/{name}" for name in (*train, test, meta)}
    contents = {}
    with reading(path, "CIFAR's binary .tar.gz"), tarfile.open(path, "r|gz") as tar:
        for member in tar:  # in one pass: seeking back would decompress again
            if member.name in wanted and member.isfile():
                check_size(member.size, path)
                contents[member.name] = tar.extractfile(member).read()  # type: ignore
        for name in wanted - set(contents):
            raise InputError(f"{path}: lacks {name}; use the 'binary version'")
        names = tuple(contents[f"{folder}/{meta}"].decode().split())

        def columns(files: tuple[str, ...]) -> Columns:
            data = b"".join(contents[f"{folder}/{name}"] for name in files)
            records = np.frombuffer(data, np.uint8).reshape(-1, label_bytes + 3072)
            x = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return _columns(x, records[:, label_bytes - 1], len(names), path)

        return Raw({"train": columns(train), "test": columns((test,))}, names)


_MOSAICS = tuple(f"train_{i}.webp" for i in range(1, 6))


def _cifar_mosaics(paths: dict[str, Path]) -> Raw:
    where = paths["labels.npz"]
    labels = read_npz(where)
    with reading(where, "labels with the keys train_labels, test_labels, class_names"):
        names = tuple(str(name) for name in labels["class_names"])
        splits, copies = {}, []
        for split, files in (("train", _MOSAICS), ("test", ("test.webp",))):
            x = np.concatenate([read_mosaic(paths[f], 32) for f in files])
            splits[split] = _columns(x, labels[f"{split}_labels"], len(names), where)
            if f"{split}_exact" in labels:
                copies.append(f"{int((~labels[f'{split}_exact']).sum())} {split}")
    note = f"{' and '.join(copies)} images are decoded JPEG copies of the originals"
    return Raw(splits, names, note if copies else "")


def _svhn(paths: dict[str, Path]) -> Raw:
    import scipy.io

    splits = {}
    for split in ("train", "test"):
        path = paths[f"{split}_32x32.mat"]
        check_size(path.stat().st_size, path)
        with reading(path, "a MATLAB file with X [32, 32, 3, N] and y"):
            data = scipy.io.loadmat(path)
            x = np.ascontiguousarray(np.moveaxis(data["X"], -1, 0), np.uint8)
            y = data["y"].reshape(-1) % 10  # the digit 0 is stored as 10
        splits[split] = _columns(x, y, 10, path)
    return Raw(splits, tuple("0123456789"))


def _omniglot(paths: dict[str, Path]) -> Raw:
    from PIL import Image

    splits = {}
    for split, part in (("train", "background"), ("test", "evaluation")):
        path = paths[f"images_{part}.zip"]
        images = []
        with reading(path, "a zip of PNG images"), zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda i: i.filename):
                if info.filename.endswith(".png"):
                    check_size(info.file_size, path)
                    with Image.open(io.BytesIO(archive.read(info))) as image:
                        images.append(np.asarray(image.convert("L"))[..., None])
            splits[split] = {"image": np.stack(images)}
    return Raw(splits)


def _text(paths: dict[str, Path]) -> Raw:
    (path,) = paths.values()
    check_size(path.stat().st_size, path)
    with reading(path, "UTF-8 text"):
        text = path.read_bytes().decode()
    i = int(len(text) * 0.9)  # the rounding of TFDS
    j = i + int((len(text) - i) * 0.5)
    parts = {"train": text[:i], "validation": text[i:j], "test": text[j:]}
    return Raw({k: {"text": np.array([v], object)} for k, v in parts.items()})


_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
            "Sneaker", "Bag", "Ankle boot")  # fmt: skip
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "mnist": (Archive(_IDX_FILES, functools.partial(_idx, names=tuple("0123456789"))),),
    "fashion_mnist": (Archive(_IDX_FILES, functools.partial(_idx, names=_FASHION)),),
    "kmnist": (Archive(_IDX_FILES, functools.partial(_idx, names=_KUZUSHIJI)),),
    "binarized_mnist": (
        Archive(
            tuple(f"binarized_mnist_{p}.amat" for p in ("train", "valid", "test")),
            _amat,
        ),
        Archive(("binarized_mnist.npz",), _packed_bits),
    ),
    "cifar10": (
        Archive(
            ("cifar-10-binary.tar.gz",),
            functools.partial(
                _cifar,
                folder="cifar-10-batches-bin",
                train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
                test="test_batch.bin",
                meta="batches.meta.txt",
                label_bytes=1,
            ),
        ),
        Archive((*_MOSAICS, "test.webp", "labels.npz"), _cifar_mosaics),
    ),
    "cifar100": (
        Archive(
            ("cifar-100-binary.tar.gz",),
            functools.partial(
                _cifar,
                folder="cifar-100-binary",
                train=("train.bin",),
                test="test.bin",
                meta="fine_label_names.txt",
                label_bytes=2,
            ),
        ),
    ),
    "svhn_cropped": (Archive(("train_32x32.mat", "test_32x32.mat"), _svhn),),
    "omniglot": (
        Archive(("images_background.zip", "images_evaluation.zip"), _omniglot),
    ),
    "tiny_shakespeare": (Archive(("input.txt",), _text),),
}

# Archives that only TensorFlow Datasets itself prepares (with TensorFlow installed).
STOCK_FILES = {
    "imagenet_resized/32x32": ("Imagenet32_train_npz.zip", "Imagenet32_val_npz.zip"),
    "imagenet_resized/64x64": (
        "Imagenet64_train_part1_npz.zip",
        "Imagenet64_train_part2_npz.zip",
        "Imagenet64_val_npz.zip",
    ),
    "downsampled_imagenet/32x32": ("train_32x32.tar", "valid_32x32.tar"),
    "downsampled_imagenet/64x64": ("train_64x64.tar", "valid_64x64.tar"),
    "celeb_a": (
        "img_align_celeba.zip",
        "list_eval_partition.txt",
        "list_attr_celeba.txt",
        "list_landmarks_align_celeba.txt",
        "identity_CelebA.txt",
    ),
}

# Size in bytes and first 128 bits of the sha256 of the originals, as TFDS has them.
SHA256: dict[str, dict[str, tuple[int, str]]] = {
    "mnist": {
        "t10k-images-idx3-ubyte.gz": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e3"),
        "t10k-labels-idx1-ubyte.gz": (4542, "f7ae60f92e00ec6debd23a6088c31dbd"),
        "train-images-idx3-ubyte.gz": (9912422, "440fcabf73cc546fa21475e81ea37026"),
        "train-labels-idx1-ubyte.gz": (28881, "3552534a0a558bbed6aed32b30c495cc"),
    },
    "fashion_mnist": {
        "t10k-images-idx3-ubyte.gz": (4422102, "346e55b948d973a97e58d2351dde16a4"),
        "t10k-labels-idx1-ubyte.gz": (5148, "67da17c76eaffca5446c3361aaab5c3c"),
        "train-images-idx3-ubyte.gz": (26421880, "3aede38d61863908ad78613f6a32ed27"),
        "train-labels-idx1-ubyte.gz": (29515, "a04f17134ac03560a47e3764e11b92fc"),
    },
    "kmnist": {
        "t10k-images-idx3-ubyte.gz": (3041136, "edd7a857845ad6bb1d0ba43fe7e794d1"),
        "t10k-labels-idx1-ubyte.gz": (5120, "20bb9a0ef54c7db3efc55a92eef5582c"),
        "train-images-idx3-ubyte.gz": (18165135, "51467d22d8cc72929e2a028a0428f208"),
        "train-labels-idx1-ubyte.gz": (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef9"),
    },
    "binarized_mnist": {
        "binarized_mnist_test.amat": (15680000, "e6687bfea3f820c174f33b7865140b2a"),
        "binarized_mnist_train.amat": (78400000, "ad693b29f94c14277b095f5238ddefbb"),
        "binarized_mnist_valid.amat": (15680000, "1de3d397c40fe8eeb33dafd4099a1f66"),
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d6"),
    },
    "cifar100": {
        "cifar-100-binary.tar.gz": (168513733, "58a81ae192c23a4be8b1804d68e518ed"),
    },
    "svhn_cropped": {
        "test_32x32.mat": (64275384, "cdce80dfb2a2c4c6160906d0bd7c68ec"),
        "train_32x32.mat": (182040794, "435e94d69a87fde4fd4d7f3dd208dfc3"),
    },
    "omniglot": {
        "images_background.zip": (9464212, "ad41ab679c8b5d90b271ef46be6987cc"),
        "images_evaluation.zip": (6462886, "1f61a8f3366785b057fc117d9228e78a"),
    },
    "tiny_shakespeare": {
        "input.txt": (1115394, "86c4e6aa9db7c042ec79f339dcb96d42"),
    },
}


def find(name: str, data_dir: Path) -> tuple[Archive, dict[str, Path]] | None:
    """Returns the archives of a data set and their paths, or None where there are none.

    Looked for, in this order: data_dir/NAME/, data_dir/, data_dir/*/NAME/.
    """
    for folder in (data_dir / name, data_dir, *sorted(data_dir.glob(f"*/{name}"))):
        for archive in ARCHIVES.get(name, ()):
            paths = {file: folder / file for file in archive.files}
            if all(path.is_file() for path in paths.values()):
                return archive, paths
    return None


def lacking(name: str, data_dir: Path) -> str:
    """Returns '; A is there but not B' where only some of the archives were found."""
    for folder in (data_dir / name, *sorted(data_dir.glob(f"*/{name}"))):
        for archive in ARCHIVES.get(name, ()):
            there = [f for f in archive.files if (folder / f).is_file()]
            if there:
                gone = [f for f in archive.files if f not in there]
                return f"; {folder} holds {', '.join(there)} but not {', '.join(gone)}"
    return ""


def fingerprint(name: str, paths: dict[str, Path]) -> str:
    """Returns a sha256 over the contents of the archives.

    Raises:
      InputError: one of them is not the original that SHA256 knows.
    """
    total = hashlib.sha256()
    for file, path in sorted(paths.items()):
        try:
            with open(path, "rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        size, known = SHA256.get(name, {}).get(file, (0, ""))
        if not found.startswith(known):
            raise InputError(
                f"{path}: damaged, or not that of {name}: {path.stat().st_size} "
                f"bytes with sha256 {found[:12]}, not {size} bytes with {known[:12]}; "
                "fetch it again"
            )
        total.update(f"{file} {found}\n".encode())
    return total.hexdigest()
