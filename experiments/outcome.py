"""How the launchers name and write what an application of a trained run gave."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags


def write_picture(path: Path, picture: Any) -> None:
    """Writes a PIL image as PNG, whole or not at all."""
    import io

    from gm.rundir import write_whole

    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def write_application(
    found: Any, name: str, row: dict[str, Any], picture: Any = None
) -> str:
    """Writes RUN/applications/NAME.json and .png; returns their path without the ending.

    Args:
      found: the run, a `Trained`.
      name: of `stem`: what was done; every flag that changes the outcome is in it.
      row: JSON values; model, data set, checkpoint and provenance are added.
      picture: a PIL image, or None.
    """
    from gm.evaluate import provenance
    from gm.rundir import write_json

    path = found.run.applications / name
    about = {"model": found.config.model, "dataset": found.config.dataset}
    about |= {"settings": found.config.settings, "checkpoint": found.checkpoint}
    if picture is not None:
        write_picture(path.with_name(f"{path.name}.png"), picture)
    write_json(path.with_name(f"{path.name}.json"), about | row | provenance())
    return str(path)


def safe_name(text: str) -> str:
    """The text with what a file name should not hold as _; a long one ends in a hash."""
    name = "".join(c if c.isalnum() or c in "-_=." else "_" for c in text)
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:180].decode(errors='ignore')}-{_digest(text)}"


def short_name(value: str) -> str:
    """A path by its last part and a hash of the whole, what is none as it is."""
    if os.sep not in value or not os.path.exists(value):
        return value
    return f"{os.path.basename(value.rstrip(os.sep))}-{_digest(value)}"


def stem(start: str, names: Sequence[str]) -> str:
    """The name of an outcome: its start, and the flags that differ from their defaults."""
    parts = [start]
    for name in names:
        value = flags.FLAGS[name].value
        if value != flags.FLAGS[name].default:
            values = value if isinstance(value, list) else [value]
            parts.append(f"{name}=" + ",".join(short_name(str(v)) for v in values))
    return safe_name("-".join(parts))


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]
