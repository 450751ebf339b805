"""Turns mosaics, arrays and folders of images into one .npz that `files:` reads."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gm.data.containers import read_mosaic, read_npz
from gm.data.folder import load_folder
from gm.data.splits import PARTS
from gm.errors import InputError
from gm.rundir import open_whole


def to_npz(
    files: Mapping[str, Sequence[str]],
    labels: Mapping[str, str],
    output: str | None,
    *,
    tile: int | None = None,
    resolution: int | None = None,
) -> Path:
    """Writes the examples of each part, one file after another, with their labels.

    Args:
      files: part -> mosaics (with `tile`), FILE.npy, FILE.npz:KEY or folders.
      labels: part -> FILE.npy or FILE.npz:KEY; `class_names` beside KEY is kept.
      output: the .npz to write.
      tile: side of the tiles of a mosaic, in pixels.
      resolution: side to which the images of a folder are area-averaged.

    Returns:
      The path of the .npz.

    Raises:
      InputError: a missing or damaged file, or one that needs another flag.
    """
    if not output or not output.endswith(".npz"):
        raise InputError(f"--output={output or ''}: give the .npz file to write")
    columns: dict[str, np.ndarray] = {}
    for part in [p for p in PARTS if p in files]:
        blocks = []
        for i, file in enumerate(files[part], 1):
            print(f"{part}: {file} ({i} of {len(files[part])})", file=sys.stderr)
            blocks.append(_examples(file, tile, resolution))
        if len({block.shape[1:] for block in blocks}) > 1:
            raise InputError(f"--{part}: the files hold examples of different shapes")
        columns[part] = np.concatenate(blocks)
    for part, file in labels.items():
        arrays, key = _arrays(file)
        columns[f"{part}_labels"] = arrays[key]
        if len(arrays[key]) != len(columns[part]):
            raise InputError(
                f"--{part}_labels={file}: {len(arrays[key])} labels for "
                f"{len(columns[part])} examples"
            )
        if "class_names" in arrays:
            columns["class_names"] = arrays["class_names"]
    path = Path(output)
    try:
        with open_whole(path) as whole:
            np.savez_compressed(whole, **columns)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"--output={output}: {error.strerror}") from error
    return path


def _arrays(file: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of FILE.npy or FILE.npz:KEY and the key that was asked for."""
    name, _, key = file.partition(".npz:")
    path = Path(f"{name}.npz") if key else Path(file)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path}: give FILE.npy or FILE.npz:KEY")
    arrays = read_npz(path)
    key = key or "x"
    if key not in arrays:
        raise InputError(f"{path}: has no {key}; give FILE.npz:KEY, KEY one of "
                         f"{', '.join(arrays)}")  # fmt: skip
    return arrays, key


def _examples(file: str, tile: int | None, resolution: int | None) -> np.ndarray:
    """Returns the examples of one file or folder, [N, ...]."""
    if Path(file).is_dir():
        data = load_folder(file, Path(file), resolution)
        splits = [getattr(data, part) for part in PARTS]
        return np.concatenate([split.x for split in splits])
    if ".np" not in file:
        if tile is None:
            raise InputError(f"{file}: give --tile=PIXELS for a mosaic")
        if not Path(file).is_file():
            raise InputError(f"{file}: no such file")
        return read_mosaic(Path(file), tile)
    arrays, key = _arrays(file)
    return arrays[key]
