"""`files:PATH`: a folder of images, an integer array or a text file of your own.

Also what every source of text shares: `text_dataset` and `encode_text`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.data.containers import check_size, read_npz
from gm.data.dataset import ArraySplit, Dataset, WindowSplit
from gm.data.folder import SUFFIXES, load_folder
from gm.data.resize import area_resize
from gm.data.splits import PARTS, complete
from gm.errors import InputError
from gm.spec import CondSpec


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads `files:PATH`.

    A folder: its images, each cropped to the centred square and area-averaged. An .npz
    or .npy: integers [N, H, W, C], [N, H, W] or [N, L]. Any other file: UTF-8 text, in
    windows. PATH is taken from the current folder, else from data_dir.

    Args:
      name: "files:PATH".
      resolution: side of the images, or length of a window of text (default 256).
      data_dir: where else PATH may lie.

    Raises:
      InputError: nothing there, or something that cannot be a data set; names the file.
    """
    given = name.removeprefix("files:")
    path = Path(given).expanduser()
    if data_dir is not None and not path.exists():
        path = Path(data_dir).expanduser() / path
    if not given or not path.exists():
        raise InputError(
            f"--dataset={name}: there is no {given or 'path'}; give files:PATH of a "
            "folder of images, an .npz or .npy of integers, or a text file"
        )
    if path.is_dir():
        return load_folder(name, path, resolution)
    if path.suffix in (".npz", ".npy"):
        return _load_array(name, path, resolution)
    if path.suffix.lower() in SUFFIXES:
        raise InputError(f"{path}: one image; give the folder with the images")
    check_size(path.stat().st_size, path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 at byte {error.start}; convert it with iconv -t UTF-8, "
            "or give an .npz, .npy or a folder of images"
        ) from error
    i, j = len(text) * 90 // 100, len(text) * 95 // 100
    parts = {"train": text[:i], "valid": text[i:j], "test": text[j:]}
    return text_dataset(name, parts, resolution, "first 90/5/5 percent", str(path))


def encode_text(text: str, symbols: str, where: str) -> np.ndarray:
    """Returns the index in `symbols` of each character of `text`, int64 [len(text)].

    Raises:
      InputError: a character is not in `symbols`; names `where`, the line and column.
    """
    codes, alphabet = (
        np.frombuffer(s.encode("utf-32-le", "surrogatepass"), "<u4")
        for s in (text, symbols)
    )
    order = np.argsort(alphabet)
    found = np.searchsorted(alphabet[order], codes).clip(max=len(order) - 1)
    unknown = np.flatnonzero(alphabet[order][found] != codes)
    if unknown.size:
        at = int(unknown[0])
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise InputError(
            f"{where}: {text[at]!r} in line {line}, column {column} is not one of the "
            f"{len(symbols)} characters of the data set: {json.dumps(symbols)}"
        )
    return order[found]


def text_dataset(
    name: str, parts: Mapping[str, str], resolution: int | None, rule: str, where: str
) -> Dataset:
    """Returns text as windows of `resolution` characters (default 256).

    Train windows start at every character; valid and test windows do not overlap, and
    what is left at the end, shorter than a window, is left out.

    Args:
      name: of the data set.
      parts: the text of train, valid and test.
      resolution: length of a window.
      rule: how the text was divided, for `preprocessing`.
      where: file or flag to name in errors.

    Raises:
      InputError: a part is shorter than a window, or there is only one character.
    """
    length = resolution or 256
    symbols = "".join(sorted(set().union(*parts.values())))
    for part in PARTS:
        if len(parts[part]) < length:
            raise InputError(
                f"{where}: its {part} part has {len(parts[part])} characters, fewer "
                f"than a window of {length}; give a longer text or less --resolution"
            )
    if len(symbols) < 2:
        raise InputError(f"{where}: holds one character only, {symbols!r}")
    dtype = np.uint8 if len(symbols) <= 256 else np.int32
    values = {k: encode_text(v, symbols, where).astype(dtype) for k, v in parts.items()}
    left = {k: len(values[k]) % length for k in ("valid", "test")}
    whole = {k: values[k][: len(values[k]) - left[k]].reshape(-1, length) for k in left}
    return Dataset(
        name=name,
        shape=(length,),
        num_values=len(symbols),
        unit="char",
        train=WindowSplit(values["train"], length),
        valid=ArraySplit(whole["valid"]),
        test=ArraySplit(whole["test"]),
        preprocessing=(
            f"{rule}; windows of {length}, from every start in train, without overlap "
            "in valid and test; left out at the end: "
            f"{left['valid']} characters of valid, {left['test']} of test"
        ),
        ordered=True,
        symbols=symbols,
    )


def _integers(x: np.ndarray, where: str) -> np.ndarray:
    """Checks that an array can be data; returns it with a channel axis for images."""
    if x.dtype.kind not in "uib":
        raise InputError(
            f"{where}: {x.dtype} values; models are of integers, so store the original "
            "integers (uint8 0..255 for images)"
        )
    if x.ndim not in (2, 3, 4) or not x.size:
        raise InputError(
            f"{where}: shape {x.shape}; give [N, H, W, C], [N, H, W] or [N, L]"
        )
    if x.dtype.kind == "i" and x.min() < 0:
        raise InputError(
            f"{where}: negative values (down to {x.min()}); shift them to 0"
        )
    if x.max() >= 2**31:
        raise InputError(f"{where}: values up to {x.max()}; the largest is 2147483647")
    return x[..., None] if x.ndim == 3 else x


def _unpack(x: np.ndarray, size: int, where: str) -> np.ndarray:
    """Returns [N, size] of 0 and 1 from bits packed eight to a byte."""
    if x.dtype != np.uint8 or x.ndim != 2 or size < 1 or x.shape[1] != -(-size // 8):
        raise InputError(f"{where}: {x.dtype} {x.shape} does not hold {size} bits each")
    return np.unpackbits(x, axis=1)[:, :size]


def _examples(columns: Mapping[str, np.ndarray], path: Path) -> tuple[dict, int]:
    """Returns ({part: uint8 or int32 array}, num_values)."""
    given = {part: columns[part] for part in PARTS if part in columns}
    if not given:
        key = next((k for k in ("x", "images") if k in columns), None)
        if key is None:
            raise InputError(
                f"{path}: has the keys {', '.join(columns)}; give train, valid and "
                "test, or x or images"
            )
        given = {"train": columns[key]}
    if "num_bits" in columns:
        size = int(columns["num_bits"].reshape(-1)[0])
        given = {part: _unpack(x, size, f"{path}:{part}") for part, x in given.items()}
    given = {part: _integers(x, f"{path}:{part}") for part, x in given.items()}
    if len({x.shape[1:] for x in given.values()}) > 1:
        raise InputError(f"{path}: the splits have examples of different shapes")
    high = max(int(x.max()) for x in given.values())
    num_values = 2 if high < 2 else 256 if high < 256 else high + 1
    if "num_values" in columns:
        num_values = int(columns["num_values"].reshape(-1)[0])
        if not max(high, 1) < num_values <= 2**31:
            raise InputError(
                f"{path}: num_values is {num_values}, but values go up to {high}"
            )
    if num_values > 2**16:  # float32 would soon no longer tell neighbours apart
        raise InputError(
            f"{path}: {num_values} values; give integers from 0 to {2**16 - 1}"
        )
    dtype = np.uint8 if num_values <= 256 else np.int32
    return {k: x.astype(dtype, copy=False) for k, x in given.items()}, num_values


def _labels(columns: Mapping[str, np.ndarray], given: Mapping, where: str) -> Any:
    """Returns ({part: labels [N] int32}, CondSpec), or ({}, None) without labels."""
    keys = {k: f"{k}_labels" if f"{k}_labels" in columns else "labels" for k in given}
    if not set(keys.values()) <= set(columns):
        return {}, None
    labels = {part: columns[key] for part, key in keys.items()}
    for part, label in labels.items():
        if (
            label.dtype.kind not in "ui"
            or label.shape != (len(given[part]),)
            or label.min() < 0
        ):
            raise InputError(
                f"{where}: the labels of {part} are {label.dtype} {label.shape}; give "
                f"integers from 0, one for each of the {len(given[part])} examples"
            )
    size = 1 + max(int(label.max()) for label in labels.values())
    names = tuple(str(name) for name in columns.get("class_names", ()))
    size = max(size, len(names))
    return (
        {part: label.astype(np.int32) for part, label in labels.items()},
        CondSpec("class", size, names if len(names) == size else ()),
    )


def _load_array(name: str, path: Path, resolution: int | None) -> Dataset:
    """Loads an .npz with train, valid, test (or x, or images), or an .npy.

    Optional arrays of the .npz: labels or train_labels etc.; class_names; num_bits, for
    examples packed eight bits to a byte; num_values, else it is 2 where all are 0 or 1,
    256 where all are below 256, and the largest + 1 otherwise.
    """
    columns = read_npz(path)
    given, num_values = _examples(columns, path)
    labels, cond = _labels(columns, given, str(path))
    digests = [hashlib.sha256(x.tobytes()).digest() for x in given.get("train", ())]
    shape = next(iter(given.values())).shape[1:]
    notes = []
    if resolution is not None and shape[:2] != (resolution, resolution):
        if len(shape) != 3 or num_values > 256:
            raise InputError(
                f"--resolution={resolution}: {path} holds {shape} of {num_values} "
                "values; only images of at most 256 values are resized"
            )
        given = {part: area_resize(x, resolution) for part, x in given.items()}
        notes = [f"area-averaged {shape[0]}x{shape[1]} to {resolution}x{resolution}"]
    parts = {part: (x, labels.get(part)) for part, x in given.items()}
    splits, note = complete(parts, digests, str(path))
    return Dataset(
        name=name,
        shape=next(iter(given.values())).shape[1:],
        num_values=num_values,
        unit="dim",
        cond=cond,
        preprocessing="; ".join([*notes, note]),
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
    )
