"""A user's file in whole and in its own order, as what is compressed needs it."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from gm.data import folder
from gm.data.containers import check_size, read_npz, reading
from gm.data.files import encode_text
from gm.data.texts import END, decode, encode_lines
from gm.errors import InputError
from gm.spec import CondSpec


@dataclasses.dataclass(frozen=True)
class Whole:
    """Examples, and how to write the file again."""

    x: np.ndarray  # [N, *shape] integers, of the file's own type
    cond: np.ndarray | None  # [N] labels of the file's own type, for a run on them
    source: dict[
        str, Any
    ]  # JSON: kind "array", its shape and key; "text", its length; or "lines"


def read_whole(
    path: Path,
    shape: tuple[int, ...],
    cond: CondSpec | None = None,
    symbols: str | None = None,
    end: int | None = None,
) -> Whole:
    """Reads an .npy, an .npz (x or images; labels), a folder of images, or a text.

    All that an array file or a text holds comes back by `write_again`, or is refused
    here. Of a folder it is the pixels, in the order of the paths.

    Args:
      path: the file or folder.
      shape: of the examples of a run: a text is cut into windows of this length (the
        last is filled up), and images in a folder are of this size.
      cond: what the run conditions on: labels are then required.
      symbols: the characters of a run on text.
      end: the value that ends a text, for a run on texts: each line is an example.

    Raises:
      InputError: missing, damaged, nothing that the run could model, or more than it
        models: other arrays, or pixels that would have to be changed.
    """
    if not path.exists():
        raise InputError(f"--input={path}: no such file or folder")
    labels = None
    if path.is_dir():
        _check_images(path, shape)
        x, labels = folder.read_folder(path, None)[1:3]
        source: dict[str, Any] = {"kind": "array", "shape": list(x.shape)}
    elif path.suffix in (".npy", ".npz"):
        key, x, labels = _array(path, cond)
        source = {"kind": "array", "shape": list(x.shape), "key": key}
        if x.ndim == 3 and len(shape) == 3:
            x = x[..., None]
    elif symbols is None:
        raise InputError(
            f"--input={path}: give an .npy, an .npz or a folder of images; the run was "
            "not trained on text"
        )
    else:
        text = _read_text(path)
        if end is None:
            x = _windows(path, text, symbols, shape[0])
            source = {"kind": "text", "length": len(text)}
        else:
            x = _lines(path, text, symbols, shape[0])
            source = {"kind": "lines", "last_ends": text.endswith(END)}
    if cond is None:
        return Whole(x, None, source)
    if labels is None or cond.kind != "class":
        raise InputError(
            f"--input={path}: the run needs its condition ({cond.label}); give an .npz "
            "with x and labels" if cond.kind == "class" else
            f"--input={path}: the run needs its condition ({cond.label}), which a file "
            "cannot give; use --split"
        )  # fmt: skip
    if labels.shape != (len(x),) or labels.min() < 0 or labels.max() >= cond.size:
        raise InputError(
            f"--input={path}: labels {labels.shape} from {labels.min()} to {labels.max()}; "
            f"give one from 0 to {cond.size - 1} for each of the {len(x)} examples"
        )
    return Whole(x, labels, source)


def _check_images(root, shape):
    """Refuses images whose pixels the run could model only if they were changed."""
    from PIL import Image

    if len(shape) != 3:
        raise InputError(f"--input={root}: a folder; the run does not model images")
    mode = "L" if shape[2] == 1 else "RGB"
    right = (f"{shape[1]}x{shape[0]}", mode, 1, False)
    for path in folder.find_images(root)[0]:
        with reading(path, "an image"), Image.open(path) as image:
            size, frames = "x".join(map(str, image.size)), getattr(image, "n_frames", 1)
            rescaled = any(";16" in str(t[3]) or t[0] == "ppm" for t in image.tile)
            more = rescaled or "transparency" in image.info  # PIL would drop either
            found = (size, image.mode, frames, more)
        if found != right:
            raise InputError(
                f"--input={path}: {size} pixels of mode {found[1]}"
                f"{f', {frames} frames' if frames > 1 else ''}"
                f"{', transparent or not of 8 bits' if more else ''}; the run models "
                f"{right[0]} of mode {mode}, and lossless means that no image is resized, "
                "cropped or converted"
            )


def _array(path, cond):
    """(its key, x, labels or None)."""
    columns = read_npz(path)
    key = next((k for k in ("x", "images") if k in columns), None)
    if key is None:
        raise InputError(
            f"--input={path}: has the keys {', '.join(columns)}; give x or images"
        )
    x, labels = columns.pop(key), columns.pop("labels", None) if cond else None
    if columns:
        raise InputError(
            f"--input={path}: holds {', '.join(columns)} beside {key}, which the run does "
            "not model and the archive would lose; leave it out"
        )
    if labels is not None and (labels.dtype.kind not in "ui" or not labels.size):
        raise InputError(f"--input={path}: labels are {labels.dtype} {labels.shape}")
    if x.dtype.kind not in "uib":
        raise InputError(f"--input={path}: {x.dtype} {x.shape}; give integers")
    if not x.size:
        raise InputError(f"--input={path}: {x.shape} is empty: there are no examples")
    return key, np.ascontiguousarray(x), labels


def _read_text(path):
    check_size(path.stat().st_size, path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"--input={path}: not UTF-8 at byte {error.start}") from None
    if not text:
        raise InputError(f"--input={path}: is empty")
    return text


def _windows(path, text, symbols, length):
    """[N, length]; the last window is filled up with value 0."""
    values = encode_text(text, symbols, f"--input={path}")
    x = np.zeros(-(-len(values) // length) * length, np.int32)
    x[: len(values)] = values
    return x.reshape(-1, length)


def _lines(path, text, symbols, length):
    """[N, length]: a line each, and its END, which fills the rest."""
    lines = text.removesuffix(END).split(END)
    longest = max(range(len(lines)), key=lambda i: len(lines[i]))
    if len(lines[longest]) >= length:
        raise InputError(
            f"--input={path}: line {longest + 1} has {len(lines[longest])} characters; "
            f"the run models texts of up to {length - 1}"
        )
    where = f"--input={path}"
    encode_text(text, symbols, where)  # names the line of an unknown character
    return encode_lines(lines, length, symbols, where).astype(np.int32)


def check_suffix(conditional: bool, source: dict[str, Any], suffix: str) -> None:
    """InputError where a file with this suffix could not hold all of an archive."""
    if conditional and source["kind"] == "array" and suffix != ".npz":
        raise InputError(
            f"--output: the archive holds the examples' conditions too, which "
            f"{suffix or 'this file'} would lose; name an .npz"
        )


def write_again(
    x: np.ndarray,
    cond: np.ndarray | None,
    source: dict[str, Any],
    symbols: str | None,
    suffix: str,
) -> bytes:
    """The content of a file with the values, shape and type that `read_whole` found.

    Args:
      x, cond, source: as in `Whole`.
      symbols: the characters of a run on text.
      suffix: ".npz": x and labels; else a text as UTF-8, anything else as an .npy.

    Raises:
      InputError: as `check_suffix`.
    """
    check_suffix(cond is not None, source, suffix)
    if source["kind"] == "lines" and symbols is not None:
        last = END if source["last_ends"] else ""
        return (END.join(decode(x, symbols)) + last).encode()
    if source["kind"] == "text" and symbols is not None:
        values = x.ravel()[: source["length"]].tolist()
        return "".join(symbols[v] for v in values).encode()
    x, buffer = x.reshape(source["shape"]), io.BytesIO()
    if suffix == ".npz":
        columns = {source.get("key", "x"): x}
        np.savez(buffer, **columns | ({} if cond is None else {"labels": cond}))  # type: ignore[arg-type]
    else:
        np.save(buffer, x)
    return buffer.getvalue()
