"""`digits`: scikit-learn's 8 x 8 handwritten digits, 17 grey levels."""

import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gm.data.dataset import ArraySplit, Dataset
from gm.data.resize import area_resize
from gm.errors import InputError
from gm.spec import CondSpec

_SIZES = (1200, 200)  # train and valid; the other 397 are the test split


def _read() -> np.ndarray:
    """Returns the file's rows [1797, 65]: 64 pixels and a label."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise InputError(
            "--dataset=digits: needs scikit-learn; pip install scikit-learn"
        )
    # Read as a file: importing scikit-learn takes two seconds.
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as lines:
            rows = np.loadtxt(lines, delimiter=",").astype(np.int32)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); reinstall scikit-learn"
        ) from None
    return rows


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads 1200 / 200 / 397 images in the fixed order of their hashes.

    The order of the sorted sha256 of the images mixes classes and writers, and equal
    images are neighbours in it, so that none is in two splits (asserted).
    """
    rows = _read()
    x = rows[:, :64].astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = rows[:, 64]
    preprocessing = "none"
    if resolution not in (None, 8):
        x = area_resize(x, resolution)
        preprocessing = f"area-averaged 8x8 to {resolution}x{resolution}"
    digests = [hashlib.sha256(image).hexdigest() for image in rows[:, :64].astype("u1")]
    order = np.asarray(sorted(range(len(x)), key=lambda i: digests[i]))
    cuts = []
    for size in np.cumsum(_SIZES):
        while digests[order[size]] == digests[order[size - 1]]:
            size += 1
        cuts.append(size)
    train, valid, test = (
        ArraySplit(x[part], labels[part]) for part in np.split(order, cuts)
    )
    return Dataset(
        name=name,
        shape=x.shape[1:],
        num_values=17,
        unit="dim",
        train=train,
        valid=valid,
        test=test,
        cond=CondSpec("class", 10, tuple("0123456789")),
        preprocessing=preprocessing,
    )
