"""The table of data sets, and `load`.

Each entry says what a data set is and where its bytes come from; its loader, named by
import path, is imported only when the data set is asked for.
"""

import dataclasses
import importlib

import numpy as np

from gm.data.dataset import ArraySplit, Dataset, Fresh, Split, WindowSplit, identify
from gm.errors import InputError, did_you_mean

__all__ = [
    "ArraySplit",
    "DATASETS",
    "Dataset",
    "Entry",
    "Fresh",
    "Split",
    "WindowSplit",
    "encode_like",
    "identify",
    "load",
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table: what is known of a data set before it is loaded."""

    shape: str  # as text, "R" standing for --resolution
    num_values: int
    splits: str  # number of examples in train / valid / test
    cond: str  # what it can be conditioned on
    entropy: str  # true bits per object, where they are known
    source: str
    loader: str  # "module:function", called with (name, resolution=, data_dir=)


_TFDS = "gm.data.tfds:load"


DATASETS = {
    # Embedded: no download, no file.
    "digits": Entry(
        "8x8x1",
        17,
        "1200 / 200 / 397",
        "class:10",
        "",
        "scikit-learn",
        "gm.data.digits:load",
    ),
    # Of known entropy: rendered, drawn or spelled out by a program.
    "pocket_cube": Entry(
        "24",
        6,
        "fresh / 500 / 2000",
        "",
        "log2(7! 3^6) = 21.81",
        "2x2x2 cube, one corner fixed",
        "gm.data.puzzles:load",
    ),
    "rubiks_cube": Entry(
        "54",
        6,
        "fresh / 500 / 2000",
        "",
        "log2(8! 3^7 12! 2^10) = 65.23",
        "3x3x3 cube",
        "gm.data.puzzles:load",
    ),
    "solids": Entry(
        "RxRx1",
        256,
        "fresh / 500 / 2000",
        "real:4",
        "log2(8192) = 13",
        "cuboids and cylinders, R = 8..1024 (16)",
        "gm.data.solids:load",
    ),
    "solids_heldout": Entry(
        "RxRx1",
        256,
        "fresh / 500 / 784",
        "real:4",
        "",
        "solids; test is of dimensions that training lacks",
        "gm.data.solids:load",
    ),
    "sayings": Entry(
        "108",
        28,
        "20000 / 500 / 2000",
        "",
        "14.22",
        "proverbs from a grammar",
        "gm.data.sayings:load",
    ),
    # From files: raw archives in --data_dir, or prepared by TensorFlow Datasets.
    # A valid split that the source lacks is held out of train: 10 %, at most 10000.
    "mnist": Entry(
        "28x28x1",
        256,
        "54000 / 6000 / 10000",
        "class:10",
        "",
        "4 idx .gz, or TFDS",
        _TFDS,
    ),
    "binarized_mnist": Entry(
        "28x28x1", 2, "50000 / 10000 / 10000", "", "", "3 .amat, or TFDS; static", _TFDS
    ),
    "fashion_mnist": Entry(
        "28x28x1",
        256,
        "54000 / 6000 / 10000",
        "class:10",
        "",
        "4 idx .gz, or TFDS",
        _TFDS,
    ),
    "omniglot": Entry(
        "105x105x1",
        256,
        "17352 / 1928 / 13180",
        "",
        "",
        "2 zip, or TFDS; use R = 28",
        _TFDS,
    ),
    "cifar10": Entry(
        "32x32x3",
        256,
        "45000 / 5000 / 10000",
        "class:10",
        "",
        "binary tar.gz, or TFDS",
        _TFDS,
    ),
    "cifar100": Entry(
        "32x32x3",
        256,
        "45000 / 5000 / 10000",
        "class:100",
        "",
        "binary tar.gz, or TFDS",
        _TFDS,
    ),
    "svhn_cropped": Entry(
        "32x32x3", 256, "65932 / 7325 / 26032", "class:10", "", "2 .mat, or TFDS", _TFDS
    ),
    "imagenet_resized/32x32": Entry(
        "32x32x3",
        256,
        "1271167 / 10000 / 50000",
        "class:1000",
        "",
        "TFDS: Chrabaszcz et al.",
        _TFDS,
    ),
    "imagenet_resized/64x64": Entry(
        "64x64x3",
        256,
        "1271167 / 10000 / 50000",
        "class:1000",
        "",
        "TFDS: Chrabaszcz et al.",
        _TFDS,
    ),
    "downsampled_imagenet/32x32": Entry(
        "32x32x3",
        256,
        "1271149 / 10000 / 49999",
        "",
        "",
        "TFDS: van den Oord et al.",
        _TFDS,
    ),
    "downsampled_imagenet/64x64": Entry(
        "64x64x3",
        256,
        "1271149 / 10000 / 49999",
        "",
        "",
        "TFDS: van den Oord et al.",
        _TFDS,
    ),
    "celeb_a": Entry(
        "218x178x3",
        256,
        "162770 / 19867 / 19962",
        "",
        "",
        "TFDS; use R = 32 or 64",
        _TFDS,
    ),
    "tiny_shakespeare": Entry(
        "R",
        65,
        "1003854 / 55770 / 55770 characters",
        "",
        "",
        "text file, or TFDS; R = 256",
        _TFDS,
    ),
    "photos": Entry(
        "RxRx3",
        256,
        "1202 / 126 / 216 (R = 32)",
        "",
        "",
        "scikit-image",
        "gm.data.photos:load",
    ),
}

# Data sets that a name after the colon completes.
PREFIXES = {
    "files": "gm.data.files:load",  # files:PATH, your own
    "texts": "gm.data.texts:load",  # texts:PATH, documents that end
    "tfds": _TFDS,  # tfds:NAME, of TensorFlow Datasets
    "translate": "gm.data.translated:load",  # translate:TASK:NAME, images and sources
    "source": "gm.data.translated:load",  # source:TASK:NAME, the sources alone
    "domains": "gm.data.domains:load",  # domains:NAME, two kinds of images
}


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads a data set by its name in DATASETS, or one of PREFIXES.

    Args:
      name: which data set.
      resolution: side of the images (area-averaged down to it); for text, the length
        of a window. None: the data set's own.
      data_dir: where raw archives or prepared data sets lie.

    Raises:
      InputError: unknown name, bad resolution, or data that cannot be had; the message
        says what would be right.
    """
    if resolution is not None and resolution < 1:
        raise InputError(
            f"--resolution={resolution}: give a whole number of pixels from 1"
        )
    prefix = name.partition(":")[0] if ":" in name else None
    if prefix in PREFIXES:
        path = PREFIXES[prefix]
    elif name in DATASETS:
        path = DATASETS[name].loader
    else:
        raise InputError(
            f"--dataset={name}: unknown{did_you_mean(name, DATASETS)} "
            f"(one of {', '.join(DATASETS)}, tfds:NAME, files:PATH, texts:PATH, "
            "translate:TASK:NAME, source:TASK:NAME, domains:NAME)"
        )
    module, function = path.split(":")
    return getattr(importlib.import_module(module), function)(
        name, resolution=resolution, data_dir=data_dir
    )


def encode_like(dataset: Dataset, symbols: str | None) -> Dataset:
    """Renumbers the characters of a text as another text has them.

    Args:
      dataset: text; anything else is returned as it is.
      symbols: `Dataset.symbols` of the other text, on which a model was trained.

    Raises:
      InputError: a character that is not in `symbols` (the first is named, with its
        line and column), or `symbols` is None.
    """
    if dataset.symbols is None or dataset.symbols == symbols:
        return dataset
    if symbols is None:
        raise InputError(
            f"--dataset={dataset.name}: a text; the run was not trained on text"
        )
    from gm.data.files import encode_text

    own = dataset.symbols
    dtype = np.uint8 if len(symbols) <= 256 else np.int32

    def renumber(part):
        split = dataset.split(part)
        old = split.sequence if isinstance(split, WindowSplit) else split.x
        text = "".join(own[v] for v in old.ravel().tolist())
        where = f"--dataset={dataset.name}, {part} part"
        values = encode_text(text, symbols, where).astype(dtype).reshape(old.shape)
        if isinstance(split, WindowSplit):
            return WindowSplit(values, split.length)
        return ArraySplit(values)

    return dataclasses.replace(
        dataset,
        num_values=len(symbols),
        symbols=symbols,
        end=None if dataset.end is None else symbols.find(own[dataset.end]),
        train=renumber("train"),
        valid=renumber("valid"),
        test=renumber("test"),
    )
