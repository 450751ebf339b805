"""A cell of a sweep: a run directory, the arguments of `train`, and how far it is.

`cell.json` holds the arguments and how the cell ended. All else that is told of a cell
is read from its run directory, so that it can be asked from any machine that sees it.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import outcome
from gm.errors import InputError
from gm.rundir import read_json, write_json

# What `train` returns where it was asked to stop and has saved, or was at its very start.
STOPPED = (83, 130, -signal.SIGTERM)


def _read_record(path: Path) -> dict[str, Any]:
    """What a cell's cell.json says; InputError where it is not that of a cell."""
    record = read_json(path / "cell.json")
    if not isinstance(record, dict) or not (
        isinstance(record.get("args"), list) and "done" in record
    ):
        raise InputError(f"{path / 'cell.json'}: not written by a sweep; move it away")
    return record


def printable(text: str) -> str:
    """The text with ? for what could move a terminal's cursor, or change its title."""
    return "".join(c if c.isprintable() else "?" for c in text)


def cell_name(parts: list[str]) -> str:
    """The name of a cell's directory: no path, and not too long for a file system."""
    name = "_".join(outcome.safe_name(p).strip(".") for p in parts)
    if len(name.encode()) > 200:
        name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


@dataclasses.dataclass(frozen=True)
class State:
    """How far a cell is."""

    name: str
    word: str  # queued, running, stopped, done or failed
    told: str = ""  # bits/dim, or why it failed
    seconds_left: float | None = None


def _die_with_parent():
    # Else a killed sweep would leave its cells behind, and their runs locked.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run; calling it trains and evaluates in a process of its own, or resumes."""

    path: Path
    args: tuple[str, ...]

    def enter(self) -> str | None:
        """Notes the cell as queued; returns why it need not or cannot be run, or None.

        Raises:
          InputError: the directory cannot be written.
        """
        if (self.path / "cell.json").exists():
            before = _read_record(self.path)
            changed = set(map(str, before["args"])) ^ set(self.args)
            if changed:
                return (
                    f"failed: {self.path} holds a run of other flags: "
                    f"{', '.join(sorted(changed))}"
                )
            if before["done"]:
                return "skipped: finished before"
        self._note()
        return None

    def _note(self, *, done=False, failed=""):
        values: dict[str, Any] = {"args": list(self.args), "done": done}
        write_json(self.path / "cell.json", values | {"failed": failed})

    def __call__(
        self, started: Callable[[subprocess.Popen], None] = lambda process: None
    ) -> str:
        """Runs to the end.

        Args:
          started: called with the process, which saves where it is terminated.

        Returns:
          The outcome; it begins with done, skipped, stopped or failed.
        """
        ended = self.enter()
        if ended is not None:
            return ended
        command = [sys.executable, "-m", "experiments.train"]
        command += [f"--workdir={self.path}", *self.args]
        with open(self.path / "log.txt", "a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
            started(process)
            status = process.wait()
        if status == 0:
            self._note(done=True)
            return "done"
        lines = (self.path / "log.txt").read_text(errors="replace").split("\n")
        tail = next((line for line in lines[::-1] if line.strip()), "")
        if status in STOPPED:
            return f"stopped: {tail}"
        reason = f"status {status}: {tail}"
        # Refused, since another sweep ran it meanwhile? Then that one's word holds.
        if not _read_record(self.path)["done"]:
            self._note(failed=reason)
        return f"failed with {reason}"


def _is_locked(path):
    """Whether a process trains there; the lock is asked for, and given back at once."""
    with contextlib.suppress(OSError), open(path / "LOCK") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _bits(path):
    """The result row's bits/dim, if there is a sound row."""
    for result in sorted((path / "results").glob("*.json")):
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError):
            row = read_json(result)
            bound = "" if row["estimate"] == "exact" else "<= "
            return f"{bound}{row['bits_per_dim']:.4f} bits/dim ({result.stem})"
    return ""


def _progress(path):
    """(what is told, seconds left) of a cell that has begun to train.

    A damaged file is told of, since it must not hide the other cells.
    """
    from gm.writer import read_metrics

    config = path / "config.json"
    try:
        rows = read_metrics(path / "metrics.jsonl")
        if not (rows and config.exists()):
            return "compiling or reading", None
        total, last = read_json(config)["num_steps"], rows[-1]
        left = (total - last["step"]) * last["time/seconds"] / last["step"]
        found = [row["valid/bpd"] for row in rows if row.get("valid/bpd") is not None]
        bits = found[-1] if found else last.get("train/bpd")
        told = f"step {last['step']} of {total}"
        told += f", {bits:.4f} bits/dim" if bits is not None else ""
    except InputError as error:
        return str(error), None
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return "metrics.jsonl or config.json is damaged", None
    return told, left if math.isfinite(left) else None


def read_state(path: Path) -> State:
    """How far the cell at a path is; a damaged one must not hide the others."""
    try:
        record = _read_record(path)
    except InputError as error:
        return State(path.name, "failed", str(error))
    if record["done"]:
        return State(path.name, "done", _bits(path))
    if _is_locked(path):
        return State(path.name, "running", *_progress(path))
    if record.get("failed"):
        return State(path.name, "failed", str(record["failed"]))
    if (path / "metrics.jsonl").exists():
        return State(path.name, "stopped", _progress(path)[0])
    return State(path.name, "queued")


def find_cells(root: Path) -> list[Path]:
    """The cells of a sweep by name; InputError where there are none."""
    found = sorted(record.parent for record in root.glob("*/cell.json"))
    if not found:
        raise InputError(f"--workdir={root}: no sweep here (no cell.json below it)")
    return found
