"""What a run writes for people: metrics.jsonl, progress, pictures."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gm.errors import InputError
from gm.rundir import write_whole


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a torn last line (the writer was killed) is left out."""
    if not path.exists():
        return []
    rows = []
    try:
        lines = path.read_bytes().splitlines()  # a flipped bit may be no text
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            if number < len(lines) - 1:
                raise InputError(
                    f"{path}: line {number + 1} is not a row with a step"
                ) from None
    if not all(isinstance(v, int | float | None) for r in rows for v in r.values()):
        raise InputError(f"{path}: is damaged: a row has what is no number")
    return rows


class Metrics:
    """Appends rows {"step": ..., name: number} to metrics.jsonl.

    Names under `time/` depend on the machine; all others are a pure function of the
    configuration, so that a run that was killed and resumed has the same rows.
    """

    def __init__(self, path: Path, resume_step: int, *, writable: bool = True):
        """Opens the file; rows after the step that is resumed from are dropped.

        Not writable: rows are kept in memory alone, since another process writes them.
        """
        rows = [r for r in read_metrics(path) if r["step"] <= resume_step]
        text = "".join(json.dumps(r) + "\n" for r in rows)
        if writable:
            write_whole(path, text.encode())
        self.rows = rows
        self._file = open(path if writable else os.devnull, "a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row; a number that is not finite is written as null."""
        row: dict[str, Any] = {"step": step}
        for name, value in values.items():
            value = float(value)
            row[name] = value if np.isfinite(value) else None
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None
        self.rows.append(row)

    def _failed(self, error):
        return InputError(f"{self._file.name}: cannot be written ({error.strerror})")

    def close(self) -> None:
        """Closes the file."""
        try:
            self._file.close()  # writes what is still buffered
        except OSError as error:
            raise self._failed(error) from None


def _clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )


class Progress:
    """One line that is rewritten on a terminal, plain lines in a pipe."""

    def __init__(self, label: str, total: int, start: int = 0, shown: bool = True):
        self.label, self.total, self._start, self._silent = (
            label,
            total,
            start,
            not shown,
        )
        self._terminal = sys.stderr.isatty()
        self._begin = time.monotonic()
        self._shown = 0.0

    def update(self, done: int, text: str, *, line: bool = False) -> None:
        """Shows progress; in a pipe only where `line` asks for it."""
        now = time.monotonic()
        due = line or (self._terminal and now - self._shown > 0.2)
        if self._silent or not due:
            return
        self._shown = now
        speed = (done - self._start) / max(now - self._begin, 1e-9)
        left = _clock((self.total - done) / speed) if speed > 0 else "?"
        out = f"{self.label}: {done}/{self.total}, {text}, {left} left"
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(f"\r\x1b[K{out[: width - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(out, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._terminal and self._shown:
            print(file=sys.stderr)


def image_grid(x: np.ndarray, num_values: int, columns: int | None = None) -> Any:
    """Tiles images [N, H, W, C] of integers into one PIL image, with a 1-pixel frame."""
    from PIL import Image

    count, height, width, channels = x.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    grey = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128)
    levels = x.astype(np.int64) * 255 // (num_values - 1)
    for i in range(count):
        top = (i // columns) * (height + 1) + 1
        left = (i % columns) * (width + 1) + 1
        grey[top : top + height, left : left + width] = levels[i]
    image = Image.fromarray(np.squeeze(grey.astype(np.uint8)))
    zoom = max(1, 1024 // max(image.size))  # small images are seen enlarged
    return image.resize((image.width * zoom, image.height * zoom), Image.NEAREST)
