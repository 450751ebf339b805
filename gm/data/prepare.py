"""Finding a data set of the catalogue on disk, or preparing it as array_record.

It is taken from the first of: a copy that TFDS prepared or raw original archives, in
data_dir; a prepared copy in TFDS_DATA_DIR, ~/tensorflow_datasets or the cache; TFDS's
own download, which needs TensorFlow. Archives become a prepared copy in the cache.
Nothing is ever written to data_dir.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gm.data import archives, stream
from gm.data.containers import reading
from gm.errors import InputError, did_you_mean


def progress(total: int, what: str) -> Iterator[int]:
    """Yields 0, 1, ..., total - 1, with a progress line on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    return iter(track(range(total), description=what, console=console, transient=True))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set was found."""

    key: str  # its TFDS name
    identity: Any  # changes whenever its bytes do
    folder: Callable[[], Path]  # the prepared copy, made if need be


def find(name: str, data_dir: str | None, root: Path | None = None) -> Source:
    """Finds a data set; `root` is where a prepared copy is to be made, if need be.

    Raises:
      InputError: a bad name or data_dir, or nothing found and no way to get it.
    """
    key = name.removeprefix("tfds:")
    if not re.fullmatch(r"[a-z0-9_]+(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?", key):
        raise InputError(
            f"--dataset={name}: give tfds:NAME or tfds:NAME/CONFIG, such as tfds:kmnist"
        )
    made = root or stream.cache_dir("tfds")
    roots = [Path("~/tensorflow_datasets").expanduser(), made]
    if root is not None:
        roots = [root]
    elif os.environ.get("TFDS_DATA_DIR"):
        roots.insert(0, Path(os.environ["TFDS_DATA_DIR"]).expanduser())
    given = None
    if data_dir is not None:
        given = Path(data_dir).expanduser()
        if not given.is_dir():
            raise InputError(f"--data_dir={data_dir}: not a folder")
        prepared = _prepared(given, key)
        found = archives.find(key, given)
        if found and not prepared:
            archive, paths = found
            identity = archives.fingerprint(key, paths)[:16]
            copy = made / _own(key) / identity / "1.0.0"
            return Source(
                key,
                identity,
                lambda: copy if copy.is_dir() else _convert(key, archive, paths, copy),
            )
        roots.insert(0, given)
    for place in roots:
        if folder := _prepared(place, key):
            return _copy(key, folder)
        if folder := _converted(place, key):
            return Source(key, folder.parent.name, lambda f=folder: f)  # type: ignore
    return _copy(key, _download(name, key, given, made))


def _copy(key: str, folder: Path) -> Source:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return Source(key, stats, lambda: folder)


def _own(key: str) -> str:
    """Returns the TFDS name of our own preparation of a data set."""
    return f"gm_{stream.slug(key).lower()}"


def _prepared(root: Path, key: str) -> Path | None:
    """Returns the newest array_record version that TFDS prepared in `root`, if any."""
    versions = {}
    for path in (root / key).glob("*/dataset_info.json"):
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name):
            with reading(path, "written by TFDS"):
                if json.loads(path.read_text()).get("fileFormat") == "array_record":
                    version = tuple(map(int, path.parent.name.split(".")))
                    versions[version] = path.parent
    return versions[max(versions)] if versions else None


def _converted(root: Path, key: str) -> Path | None:
    """Returns our own preparation in `root`, if any."""
    found = sorted(
        p.parent for p in (root / _own(key)).glob("*/1.0.0/dataset_info.json")
    )
    if len(found) > 1:
        raise InputError(
            f"--dataset={key}: prepared from several sources: "
            f"{', '.join(map(str, found))}; give --data_dir=FOLDER OF THE ARCHIVES, or "
            "delete all but one"
        )
    return found[0] if found else None


def _convert(
    key: str, archive: archives.Archive, paths: dict[str, Path], copy: Path
) -> Path:
    """Prepares archives with a builder of ours; copy = ROOT/gm_NAME/IDENTITY/1.0.0."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = _own(key)
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=copy.parent.name)]

        def _info(self):
            f = tfds.features
            columns = raw.splits["train"]
            features: dict[str, Any] = {}
            if "text" in columns:
                features["text"] = f.Text()
            else:
                # Bytes: TFDS's Image encodes with TensorFlow.
                shape = columns["image"].shape[1:]
                features["image"] = f.Tensor(
                    shape=shape, dtype=np.uint8, encoding=f.Encoding.BYTES
                )
            if "label" in columns:
                features["label"] = f.ClassLabel(names=list(raw.names))
            return tfds.core.DatasetInfo(
                builder=self,
                features=f.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(note=raw.note),
            )

        def _split_generators(self, dl_manager):
            return {k: self._generate_examples(k) for k in raw.splits}

        def _generate_examples(self, split):
            columns = raw.splits[split]
            size = len(next(iter(columns.values())))
            for i in progress(size, f"preparing {key} {split}"):
                yield i, {k: column[i] for k, column in columns.items()}

    with stream.locked(_own(key)):
        if not copy.is_dir():  # another process may have been first
            raw = archive.read(paths)
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints there
                builder = Builder(
                    data_dir=str(copy.parents[2]), file_format="array_record"
                )
                builder.download_and_prepare()
    return copy


def _advice(key: str, files: list[str]) -> str:
    """Returns which archives would do, and where."""
    known = archives.ARCHIVES.get(key, ())
    wanted = [", ".join(archive.files) for archive in known]
    wanted = wanted or [", ".join(archives.STOCK_FILES.get(key, sorted(files)))]
    how = (
        f"give --data_dir=DIR with {' or '.join(wanted)} in DIR or DIR/"
        f"{key.split('/')[0]}"
    )
    if known:
        return f"{how} (with pip install -e '.[tf]' TFDS can also download it)"
    return f"{how} after pip install -e '.[tf]', as TensorFlow has to prepare it"


def _download(name: str, key: str, data_dir: Path | None, root: Path) -> Path:
    """Lets TFDS download and prepare a data set (which needs TensorFlow).

    Raises:
      InputError: it cannot; says which archives would do, and where.
    """
    import tensorflow_datasets as tfds

    base = key.split("/")[0]
    try:
        urls = tfds.builder_cls(base).url_infos
    except Exception as error:
        near = did_you_mean(base, tfds.list_builders(with_community_datasets=False))
        raise InputError(
            f"--dataset={name}: not in the TFDS catalogue{near}"
        ) from error
    how = _advice(key, [url.filename for url in urls.values()])
    if importlib.util.find_spec("tensorflow") is None:
        lacking = archives.lacking(key, data_dir) if data_dir else ""
        raise InputError(f"--dataset={name}: not found{lacking}; {how}")
    folders = [data_dir / base, data_dir] if data_dir else []
    manual = [
        f for f in folders if any((f / u.filename).is_file() for u in urls.values())
    ]
    # A folder of its own, as mnist, fashion_mnist and kmnist share file names.
    downloads = root / "downloads" / stream.slug(key)
    config = tfds.download.DownloadConfig(
        manual_dir=str(manual[0]) if manual else None,
        extract_dir=str(downloads / "extracted"),
        try_download_gcs=False,
    )
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # or it would take all its memory
        with stream.locked(key), contextlib.redirect_stdout(sys.stderr):
            builder = tfds.builder(key, data_dir=str(root), file_format="array_record")
            builder.download_and_prepare(
                download_dir=str(downloads), download_config=config
            )
    except Exception as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"--dataset={name}: TFDS could not prepare it ({what}); {how}"
        ) from error
    return Path(builder.data_dir)


def prepare(name: str, data_dir: str | None, output: str | None) -> Path:
    """Prepares a data set as array_record; returns the folder of the prepared copy.

    Args:
      name: its name in the catalogue.
      data_dir: folder with raw archives, if they are there.
      output: where the copy goes; None: the cache.

    Raises:
      InputError: see `load`.
    """
    return find(name, data_dir, Path(output) if output else None).folder()
