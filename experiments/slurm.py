"""Cells of a sweep as an array of Slurm jobs, through submitit.

A job that is requeued, preempted or whose node is lost starts again, and its cell
resumes bit for bit. submitit hands cells over in pickles: its folder is the user's own.
"""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments import status
from experiments.cell import Cell, State
from gm.errors import InputError

_LOST_AFTER = 3  # looks at the queue
_DEFAULTS: dict[str, Any] = {"requeue": True, "time": 24 * 60}  # minutes


class Job:
    """What submitit runs: a cell, and what to do where the time is up."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._process: subprocess.Popen | None = None

    def __call__(self) -> str:
        """Runs the cell; RuntimeError where it failed, so that Slurm knows."""

        def started(process):
            self._process = process

        outcome = self.cell(started)
        if outcome.startswith("failed"):
            raise RuntimeError(outcome)
        return outcome

    def checkpoint(self) -> Any:
        """Called before a time-out or a preemption: saves, and goes on in a new job."""
        import submitit

        if self._process is not None:
            self._process.terminate()
            # Not `wait`, within which this handler may have been called: it has a lock.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Job(self.cell))


def _options(pairs: list[str]) -> dict[str, str]:
    """`name=value` of sbatch as a dictionary."""
    options = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not (name.replace("-", "").replace("_", "").isalnum() and sign and value):
            raise InputError(
                f"--slurm={pair}: give an option of sbatch, such as --slurm=partition=gpu"
            )
        options[name.replace("-", "_")] = value
    return options


def _queue(array: str) -> set[int] | None:
    """Which jobs of an array Slurm still has, by number; None: it does not answer."""
    command = ["squeue", "--noheader", "--array", f"--jobs={array}", "--format=%K"]
    done = subprocess.run(command, capture_output=True, text=True)
    # Of an array that ended a while ago Slurm knows nothing any more.
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    words = done.stdout.split()
    # submitit makes no array of a single job; Slurm has no number for that one.
    return {0 if word == "N/A" else int(word) for word in words}


def run(root: Path, cells: list[Cell], jobs: int, pairs: list[str]) -> int:
    """Submits the cells that are not finished, and shows the table until all have ended.

    Args:
      root: of the sweep, which all nodes see.
      cells: to run.
      jobs: how many at a time.
      pairs: `name=value` of sbatch.

    Returns:
      How many cells failed. An interrupt leaves the jobs alone.

    Raises:
      InputError: no Slurm here, or it refuses.
    """
    options = _options(pairs)
    try:
        import submitit
    except ImportError:
        raise InputError(
            "--launcher=slurm: needs submitit; pip install -e '.[slurm]'"
        ) from None
    entered = [(cell, cell.enter()) for cell in cells]
    refused = [cell for cell, told in entered if told and told.startswith("failed")]
    for cell, told in entered:
        if cell in refused:
            print(f"{cell.path.name}: {told}", file=sys.stderr)
    waiting = [cell for cell, told in entered if told is None]
    if waiting:
        folder = root / "slurm"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)  # one that is there may be another's, and fails
            executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=1000)
            executor.update_parameters(
                job_name=root.name,
                array_parallelism=jobs,
                additional_parameters=_DEFAULTS | options,
            )
            with executor.batch():
                array = [executor.submit(Job(cell)) for cell in waiting]
        except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
            told = " ".join(str(error).split())[:200]
            raise InputError(f"--launcher=slurm: not submitted ({told})") from None
        number = array[0].job_id.split("_")[0]
        print(f"Slurm array {number}: {len(waiting)} cells, {jobs} at a time")
        judge = _Judge(number, waiting)
    # Not all below the root: what is not of this sweep might never end.
    shown = [cell.path for cell in cells if cell not in refused]
    states = status.watch(
        shown, judge if waiting else lambda states: states, until_ended=bool(waiting)
    )
    return len(refused) + sum(state.word == "failed" for state in states)


class _Judge:
    """Tells as failed what has left the queue without an end, such as by scancel."""

    def __init__(self, array, cells):
        self._array = array
        self._numbers = {cell.path.name: i for i, cell in enumerate(cells)}
        self._gone = dict.fromkeys(self._numbers, 0)

    def __call__(self, states: list[State]) -> list[State]:
        time.sleep(1)  # a file may come a little later than the end of its job
        queue = _queue(self._array)
        if queue is None:
            return states
        return [self._judged(state, queue) for state in states]

    def _judged(self, state, queue):
        number = self._numbers.get(state.name)
        if number is None or state.word in status.ENDED:
            return state
        missing = number not in queue
        self._gone[state.name] = missing * (self._gone[state.name] + 1)
        if self._gone[state.name] < _LOST_AFTER:
            return state
        told = f"left Slurm's queue unfinished (array {self._array}_{number})"
        return dataclasses.replace(state, word="failed", told=told)
