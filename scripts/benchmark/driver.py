"""Two contenders, each in a process of its own, on one core, in turn A B B A."""

import contextlib
import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MAX_MISMATCH = 0.01  # of the parameters, relative

Entry = tuple[str, str, dict[str, Any]]


def work(text: str) -> None:
    """Builds the contender that `text` (JSON) names; a turn for every line on stdin."""
    file, function, arguments = json.loads(text)
    if "peers" in arguments:
        arguments["peers"] = Path(arguments["peers"])
    made = getattr(importlib.import_module(file), function)(**arguments)

    def turn():
        cpu, wall = time.process_time(), time.perf_counter()
        made.turn()
        spent = time.process_time() - cpu, time.perf_counter() - wall
        return [seconds / made.units for seconds in spent]

    turn(), turn()  # compiles, then fills caches
    about = dataclasses.asdict(dataclasses.replace(made, turn=None))
    print("ready " + json.dumps(about), flush=True)
    for _ in sys.stdin:
        print("turn " + json.dumps(turn()), flush=True)


class Worker:
    """A contender's process."""

    def __init__(self, python: str, entry: Entry, core: int | None):
        """Starts it on a core, or with an accelerator on all; it warms up."""
        from gm.rundir import cache_dir

        environment = {"JAX_COMPILATION_CACHE_DIR": str(cache_dir("xla"))}
        if core is not None:
            platform = os.environ.get("JAX_PLATFORMS", "cpu")
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            environment |= {"JAX_PLATFORMS": platform}
        cores = os.sched_getaffinity(0) if core is None else {core}
        self.entry = entry
        self.about: dict[str, Any] = {}  # of the contender; known once it is ready
        self.process = subprocess.Popen(
            [python, str(HERE), "--worker", json.dumps(entry)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # XLA sizes its thread pool by the affinity.
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            env=os.environ | environment,
        )

    def ready(self, patience: float | None = None) -> "Worker":
        """Waits until it is warm, so many seconds at most.

        Raises:
          SystemExit: it failed, or was ended since it took longer.
        """
        alarm = threading.Timer(patience, self.process.kill) if patience else None
        if alarm:
            alarm.start()
        try:
            self.about = self._answer("ready")
        finally:
            if alarm:
                alarm.cancel()
        return self

    def _answer(self, word):
        for line in self.process.stdout:  # a contender may print, too
            if line.startswith(word + " "):
                return json.loads(line[len(word) :])
        raise SystemExit(f"error: {self.entry[:2]}: the process failed")

    def turn(self) -> list[float]:
        """CPU and wall seconds of a unit."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer("turn")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        """Ends it, if it has not ended; at once, if something failed."""
        if failure:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def same_params(*workers: Worker) -> list[int]:
    """The numbers of parameters, 0 where there are none.

    Raises:
      SystemExit: they differ by more than MAX_MISMATCH.
    """
    counts = [worker.about["params"] for worker in workers]
    known = [count for count in counts if count]
    if known and max(known) / min(known) - 1 > MAX_MISMATCH:
        told = " against ".join(f"{count:,}" for count in counts)
        raise SystemExit(f"error: {workers[0].entry[1:]}: {told} parameters")
    return counts


def _ratios(rounds, clock):
    """B over A in each round, by CPU (0) or wall (1) time."""
    found = []
    for turns in rounds:
        total = {name: sum(t[clock] for n, t in turns if n == name) for name in "AB"}
        found.append(total["B"] / total["A"])
    return found


def compare(
    a: tuple[str, Entry], b: tuple[str, Entry], rounds: int, core: int
) -> dict[str, Any]:
    """Measures A against B.

    Args:
      a, b: the Python to run it with, and the contender.
      rounds: of A B B A.
      core: to pin both to.

    Returns:
      medians over the rounds of seconds per unit and of ratios, their spread, and what
      the contenders say of themselves.

    Raises:
      SystemExit: a process failed, or their numbers of parameters differ.
    """
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as opened:
        for name, (python, entry) in (("A", a), ("B", b)):
            worker = opened.enter_context(Worker(python, entry, core))
            workers[name] = worker.ready()  # before the other starts on that core
        counts = same_params(workers["A"], workers["B"])
        seen = [[(n, workers[n].turn()) for n in "ABBA"] for _ in range(rounds)]
    result: dict[str, Any] = {"params": counts}
    for name in "AB":
        turns = [t for turns in seen for n, t in turns if n == name]
        result[name.lower()] = {
            "cpu_seconds": statistics.median(t[0] for t in turns),
            "wall_seconds": statistics.median(t[1] for t in turns),
            "flops": workers[name].about["flops"],
            "notes": workers[name].about["notes"],
        }
    for clock, name in enumerate(("ratio", "wall_ratio")):
        found = _ratios(seen, clock)
        result[name] = statistics.median(found)
        result[f"{name}_spread"] = [min(found), max(found)]
    return result


def peak(python: str, core: int) -> float:
    """FLOP per CPU second of a matrix product in float32 by XLA, on that core."""
    with Worker(python, ("ours", "matmul", {}), core) as worker:
        worker.ready()
        seconds = min(worker.turn()[0] for _ in range(5))
    return worker.about["flops"] / seconds
