"""A run directory: one owner at a time, one configuration, files written whole."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gm.errors import InputError, did_you_mean


def cache_dir(*parts: str) -> Path:
    """A folder of the cache ($GM_CACHE_DIR, else ~/.cache/gm), made if need be.

    Raises:
      InputError: it cannot be made.
    """
    root = Path(os.environ.get("GM_CACHE_DIR") or "~/.cache/gm").expanduser()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"GM_CACHE_DIR={root}: cannot be made ({error.strerror}); "
            "set GM_CACHE_DIR to a folder that can be written"
        ) from None
    return path


def nearest_run(path: Path) -> str:
    """'; did you mean X?' for the run beside it whose name is nearest, else ''."""
    runs = [str(file.parent) for file in path.parent.glob("*/config.json")]
    return did_you_mean(str(path), runs)


@contextlib.contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to write that gets its name when it is whole and on disk, or never.

    Its directory is created where it is missing. What `open` and `write` raise is raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # By chance, since hosts that share a disk have processes of equal number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part.

    Raises:
      InputError: it cannot be written.
    """
    try:
        with open_whole(path) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole; a NaN is an error, since JSON has none."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_whole(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """Reads JSON; InputError where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:  # of nesting without end
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def _no_link(path: str, flags: int) -> int:
    """Opens a file, but none that a symbolic link leads to."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _locked(file: Any, seconds: float = 2.0) -> bool:
    """Locks a file; False where another process keeps it locked.

    A process that was asked to end may still be saving, and one that looks whether the
    run is in use holds the lock for a moment.
    """
    limit = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > limit:
                return False
            time.sleep(0.05)
        else:
            return True


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its inner dictionaries as `settings.width` and so on."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{k}": v for k, v in value.items()}
        else:
            flat[name] = value
    return flat


class RunDirectory:
    """The directory of one run. Create with `open_for_training` or `open_to_read`."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock: Any = None

    @property
    def checkpoints(self) -> Path:
        """Where Orbax alone writes."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """In a directory that `export` wrote: the parameters, in place of checkpoints."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """Result rows and per-example nats."""
        return self.path / "results"

    @property
    def applications(self) -> Path:
        """What was done with the trained model: a row and a picture each."""
        return self.path / "applications"

    @classmethod
    def open_for_training(cls, path: str | os.PathLike) -> "RunDirectory":
        """Creates and locks the directory, and proves that it can be written.

        Raises:
          InputError: in use by another process, or read-only, or full; or exported.
        """
        run = cls(path)
        try:
            if run.weights.exists():
                raise InputError(
                    f"--workdir={path}: an exported run, which is not trained on; give "
                    f"another directory, with --init_from={path}"
                )
            run.path.mkdir(parents=True, exist_ok=True)
            lock = open(run.path / "LOCK", "a+", opener=_no_link, errors="replace")
            if not _locked(lock):
                lock.seek(0)
                told = "".join(filter(str.isprintable, lock.read(200)))
                owner = told or "another process"
                raise InputError(
                    f"--workdir={path}: in use by {owner}; wait for it or give another"
                )
            lock.seek(0)
            lock.truncate()
            lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
        except OSError as error:
            raise InputError(
                f"--workdir={path}: cannot be written ({error.strerror}); "
                "give a directory on a writable disk with free space"
            ) from None
        run._lock = lock  # released when the process ends, however it ends
        return run

    @classmethod
    def open_to_read(
        cls, path: str | os.PathLike, flag: str = "workdir"
    ) -> "RunDirectory":
        """Opens a trained run; InputError, naming the flag, where there is none."""
        run = cls(path)
        if not (run.path / "config.json").is_file():
            raise InputError(
                f"--{flag}={path}: no run here (config.json is missing); "
                "give the --workdir of a `train` that was started"
                f"{nearest_run(run.path)}"
            )
        return run

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def config(self) -> dict[str, Any]:
        """Everything needed to rebuild the run; InputError where it is none."""
        values = read_json(self.path / "config.json")
        if not isinstance(values, dict):
            raise InputError(f"{self.path / 'config.json'}: not that of a run")
        return values

    def claim(
        self,
        config: Mapping[str, Any],
        may_change: Iterable[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the configuration, or checks that it is that of the run here.

        Args:
          config: JSON values.
          may_change: fields that may differ on resuming; the new value is kept.
          defaults: of fields that a run of an older version may not have.

        Raises:
          InputError: another configuration; the fields and both values are named.
        """
        path = self.path / "config.json"
        config = json.loads(json.dumps(config, allow_nan=False))
        if path.exists():
            old = _fields({**(defaults or {}), **self.config()})
            new = _fields(config)
            names = [
                n
                for n in sorted(set(old) | set(new))
                if old.get(n) != new.get(n) and n not in may_change
            ]
            if names:
                told = ", ".join(
                    f"{n} is {new.get(n)!r}, was {old.get(n)!r}" for n in names
                )
                raise InputError(
                    f"--workdir={self.path}: holds a run of another configuration: "
                    f"{told}; give the same flags or another --workdir"
                )
        write_json(path, config)
