"""`translate:TASK:NAME`: images y of a data set, each with its source s as the condition.

`source:TASK:NAME` is the data set of the sources: a model of it gives P(s), one of the
other P(y | s). TASK is one of gm/data/tasks.py, or folders:PATH_A,PATH_B, two folders of
your own with images of the same names, of which A holds the sources.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gm.data import tasks
from gm.data.dataset import ArraySplit, Dataset, Fresh, Split
from gm.data.folder import find_images, read_folder
from gm.data.splits import PARTS, complete
from gm.errors import InputError
from gm.spec import CondSpec

_BLOCK = 1024  # images whose source is made at a time


@dataclasses.dataclass(frozen=True)
class TranslatedSplit:
    """Images with their sources, or the sources alone, of the examples of a split."""

    images: Split
    task: tasks.Task
    source: bool  # the sources alone

    @property
    def in_memory(self) -> bool:
        """As the images are."""
        return self.images.in_memory

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns (y, s), or (s, None)."""
        y, _ = self.images.batch(indices)
        dtype = np.uint8 if self.task.num_values <= 256 else np.int32
        s = np.empty((len(y), *self.task.shape), dtype)
        for start in range(0, len(y), _BLOCK):
            part = slice(start, start + _BLOCK)
            s[part] = self.task.apply(np.asarray(y[part]))
        return (s, None) if self.source else (y, s)


def _split(images: Any, task: tasks.Task, source: bool) -> Any:
    """The same of a split, or of images that are drawn in the step."""
    if not isinstance(images, Fresh):
        return TranslatedSplit(images, task, source)

    def draw(key, n):
        y, _ = images.draw(key, n)
        s = task.apply(y)
        return (s, None) if source else (y, s)

    return Fresh(draw)


def find_task(dataset: Dataset) -> tasks.Task | None:
    """The task of a `translate:` or `source:` data set; None of pairs of folders."""
    return getattr(dataset.test, "task", None)


def images_name(name: str) -> str:
    """NAME of translate:TASK:NAME; pairs of folders are called as they are."""
    text = name.partition(":")[2]
    return name if text.startswith("folders:") else tasks.parse(text)[1]


def load(
    name: str, *, resolution: int | None = None, data_dir: str | None = None
) -> Dataset:
    """Loads `translate:TASK:NAME` or `source:TASK:NAME`.

    Args:
      name: NAME is any data set of images.
      resolution: of the images y.
      data_dir: as for NAME.

    Raises:
      InputError: an unknown task or data set, or images that the task cannot take.
    """
    kind, _, text = name.partition(":")
    if text.startswith("folders:"):
        return _load_folders(name, text.removeprefix("folders:"), resolution)
    from gm import data

    words, images = tasks.parse(text)
    base = data.load(images, resolution=resolution, data_dir=data_dir)
    task, source = tasks.make(words, base.shape, base.num_values), kind == "source"
    parts = {part: _split(base.split(part), task, source) for part in PARTS}
    if source:
        made = "; ".join(n for n in (base.preprocessing, task.name) if n != "none")
        return Dataset(name, task.shape, task.num_values, base.unit, **parts,
                       preprocessing=made)  # fmt: skip
    support = base.support and dataclasses.replace(base.support, agrees=None)
    return dataclasses.replace(
        base,
        name=name,
        cond=_spec(task),
        cond_entropy_nats=None,
        support=support,  # what agrees with dimensions cannot be asked of a source
        **parts,
    )


def _spec(task: tasks.Task) -> CondSpec:
    size = int(np.prod(task.shape))
    return CondSpec(
        "image", size, (task.name,), shape=task.shape, num_values=task.num_values
    )


def _load_folders(name: str, text: str, resolution: int | None) -> Dataset:
    """Loads pairs of images from two folders; what is held out goes by hashes of y."""
    paths = [Path(p).expanduser() for p in text.split(",")]
    if len(paths) != 2 or not all(p.is_dir() for p in paths):
        gone = [str(p) for p in paths if not p.is_dir()]
        why = f"no folder {gone[0]}" if gone and len(paths) == 2 else "two are needed"
        raise InputError(f"--dataset={name}: {why}; give folders:PATH_A,PATH_B")
    stems = [
        [p.relative_to(root).with_suffix("") for p in find_images(root)[0]]
        for root in paths
    ]
    for one, other in ((0, 1), (1, 0)):
        alone = set(stems[one]) - set(stems[other])
        twice = [stem for stem, n in Counter(stems[one]).items() if n > 1]
        for stem in [*sorted(alone), *twice][:1]:
            lacks = f"has none in {paths[other]}" if alone else "is there twice"
            raise InputError(
                f"--dataset={name}: {paths[one] / stem} {lacks}; "
                "both folders need images of the same names"
            )
    (_, s, *_), (parts, y, _, _, digests) = (read_folder(p, resolution) for p in paths)
    place = {stem: i for i, stem in enumerate(stems[0])}
    s = s[[place[stem] for stem in stems[1]]]
    for a, b in zip(s.shape[1:3], y.shape[1:3], strict=True):
        if a % b and b % a:
            raise InputError(
                f"--dataset={name}: images of {s.shape[1:3]} and {y.shape[1:3]} pixels, "
                "of which neither divides the other; give --resolution"
            )
    given = {
        part: (y[parts == part], s[parts == part]) for part in PARTS if part in parts
    }
    train = [digests[i].tobytes() for i in np.flatnonzero(parts == "train")]
    splits, note = complete(given, train, str(paths[1]))
    if resolution:
        note = f"centred squares, area-averaged to {resolution}x{resolution}; {note}"
    spec: CondSpec | None = _spec(tasks.Task("folders", lambda y: y, s.shape[1:], 256))
    if name.startswith("source:"):
        splits = {
            part: ArraySplit(np.asarray(split.cond)) for part, split in splits.items()
        }
        y, spec = s, None
    return Dataset(
        name=name,
        shape=y.shape[1:],
        num_values=256,
        unit="dim",
        preprocessing=note,
        cond=spec,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
    )
