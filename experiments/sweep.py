r"""Trains and evaluates models x data sets x resolutions x seeds x settings.

  python -m experiments.sweep --models=made,vae --datasets=digits,pocket_cube \
      --seeds=0,1 --set=made.width=256,512 --workdir=runs/sweep --jobs=2
  python -m experiments.sweep --status --workdir=runs/sweep
  python -m experiments.sweep --launcher=slurm --slurm=partition=gpu --models=made,vae \
      --seeds=0,1 --workdir=/shared/sweep --jobs=8

Commas in --set separate the values to sweep; `model.field=...` is for that model alone.
Finished cells are skipped, started ones resumed; a failing cell does not stop the others.
Run, training and mesh have the flags that `train` has. With --launcher=slurm the cells are
an array of Slurm jobs; --status tells from anywhere how far they are.
"""

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from absl import flags

from experiments import launcher
from experiments.cell import Cell, cell_name, find_cells, printable
from gm.errors import InputError, check_whole, did_you_mean

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "models",
    ["made", "transformer", "realnvp", "vae"],
    "names of models, or import paths of your own files",
)
flags.DEFINE_list("datasets", ["digits"], "data sets, as --dataset of `train`")
flags.DEFINE_list("resolutions", [], "sides of the images; empty: each set's own")
flags.DEFINE_list("seeds", ["0"], "in place of --seed of `train`: a run for each")
flags.DEFINE_string("workdir", None, "directory that holds a run directory per cell")
flags.DEFINE_bool(
    "presets", False, "start from preset DATASET/MODEL where there is one"
)
flags.DEFINE_bool("dry_run", False, "print the cells, parameters, FLOPs and memory")
flags.DEFINE_integer("jobs", 1, "cells at a time; the cores are shared out among them")
flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "where the cells run")
flags.DEFINE_multi_string(
    "slurm", [], "option=value of sbatch, such as partition=gpu; may be repeated"
)
flags.DEFINE_bool("status", False, "show how far the cells of --workdir are")
flags.DEFINE_enum("evaluate", "test", ["train", "valid", "test"], "split to evaluate")
flags.DEFINE_integer("num_importance_samples", 1, "for models that are bounds")
launcher.define_run_flags()
launcher.define_train_flags()
launcher.define_mesh_flags()
flags.adopt_module_key_flags(launcher)

_AXES = ("models", "datasets", "resolutions", "seeds")
_OWN = (*_AXES, "presets", "dry_run", "jobs", "launcher", "slurm", "status")
_BY_CELL = ("workdir", "resolution", "seed", "set")


def _passed_on() -> list[str]:
    """Flags of `train` that were given on this command line."""
    names = [
        f.name
        for f in FLAGS.flags_by_module_dict()[sys.argv[0]]
        if f.present and f.name not in (*_OWN, *_BY_CELL)
    ]
    shared = FLAGS.flags_by_module_dict().get("experiments.launcher", [])
    names += [f.name for f in shared if f.present and f.name not in _BY_CELL]
    return [f"--{name}={FLAGS[name].value}" for name in dict.fromkeys(names)]


def _choices(models: list[str]) -> dict[str, list[dict[str, str]]]:
    """For each model the settings to try: the product of its --set values."""
    axes: dict[str, dict[str, list[str]]] = {model: {} for model in models}
    for field, values in launcher.parse_set(FLAGS.set).items():
        owner, dot, name = field.rpartition(".")
        if dot and owner not in models:
            raise InputError(
                f"--set={field}={values}: {owner} is not in --models"
                f"{did_you_mean(owner, models)}"
            )
        for model in [owner] if dot else models:
            axes[model][name] = values.split(",")
    return {
        model: [
            dict(zip(named, combo, strict=True))
            for combo in itertools.product(*named.values())
        ]
        for model, named in axes.items()
    }


def cells() -> dict[str, list[str]]:
    """{name of a cell's directory: arguments of `train`}.

    Raises:
      InputError: an unknown model, data set, field or value, before anything runs.
    """
    from experiments import presets
    from gm import data
    from gm.fields import parse_settings
    from gm.model import load_model
    from gm.sharding import parse_mesh

    for one, several in (("seed", "seeds"), ("resolution", "resolutions")):
        if FLAGS[one].present:
            raise InputError(f"--{one}={FLAGS[one].value}: a sweep has --{several}")
    for name in ("models", "datasets", "seeds"):
        if not FLAGS[name].value:
            raise InputError(f"--{name}=: give at least one")

    named: dict[str, list[str]] = {}
    choices = _choices(FLAGS.models)
    for model in FLAGS.models:
        cls = load_model(model).Model
        for settings in choices[model]:
            parse_settings(cls, settings)
    for name in FLAGS.datasets:
        if name not in data.DATASETS and not name.startswith(
            ("tfds:", "files:", "texts:")
        ):
            data.load(name)  # raises, with the nearest name
    resolutions = FLAGS.resolutions or [None]
    product = itertools.product(FLAGS.datasets, resolutions, FLAGS.models, FLAGS.seeds)
    for flag, numbers in (("seeds", FLAGS.seeds), ("resolutions", FLAGS.resolutions)):
        for number in numbers:
            if not (number.isdecimal() and int(number[:20]) < 2**31):
                raise InputError(
                    f"--{flag}={number}: not a whole number from 0 to {2**31 - 1}"
                )
    if FLAGS.mesh is not None:
        parse_mesh(FLAGS.mesh)
    for dataset, resolution, model, seed in product:
        for settings in choices[model]:
            parts = [dataset + (f"-{resolution}" if resolution else ""), model]
            parts += [f"{k}={v}" for k, v in settings.items()] + [f"s{seed}"]
            args = [f"--model={model}", f"--dataset={dataset}", f"--seed={seed}"]
            args += [f"--resolution={resolution}"] if resolution else []
            args += [f"--set={k}={v}" for k, v in settings.items()]
            if FLAGS.presets and f"{dataset}/{model}" in presets.PRESETS:
                args.append(f"--preset={dataset}/{model}")
            given = _passed_on()
            if not any(a.startswith("--evaluate=") for a in given):
                args.append(f"--evaluate={FLAGS.evaluate}")
            name = cell_name(parts)
            if named.setdefault(name, args + given) != args + given:
                raise InputError(
                    f"two cells would share the directory {name}; give them "
                    "a --workdir each"
                )
    return named


def _run_all(cells: list[Cell]) -> int:
    """Runs the cells, some at a time; returns how many failed or were left unfinished."""
    waiting = list(cells)
    count, done, lock = len(cells), 0, threading.Lock()
    failed: list[str] = []
    stopped: list[str] = []
    jobs = min(FLAGS.jobs, count)
    running: list[subprocess.Popen] = []
    stopping = threading.Event()

    def started(process):
        running.append(process)
        if stopping.is_set():  # since before it was in the list
            process.terminate()

    def stop(number, frame):
        stopping.set()
        waiting.clear()
        for process in list(running):  # each saves, and is resumed by the next sweep
            process.terminate()

    signal.signal(signal.SIGTERM, stop)

    def work(slot):
        nonlocal done
        if jobs > 1 and hasattr(os, "sched_setaffinity"):
            # Of this thread, and so of the processes that it starts.
            share = sorted(os.sched_getaffinity(0))[slot::jobs]
            os.sched_setaffinity(0, share or os.sched_getaffinity(0))
        while True:
            with lock:
                if not waiting:
                    return
                cell = waiting.pop(0)
            begin = time.monotonic()
            try:
                told = cell(started)
            except (InputError, OSError) as error:
                told = f"failed: {error}"
            with lock:
                done += 1
                seconds = time.monotonic() - begin
                print(
                    f"[{done}/{count}] {cell.path.name}: {printable(told)} "
                    f"({seconds:.0f} s)",
                    flush=True,
                )
                for word, names in (("failed", failed), ("stopped", stopped)):
                    if told.startswith(word):
                        names.append(cell.path.name)

    # Not Thread.join: where Ctrl-C interrupts it, Python 3.11 and 3.12 take the thread for
    # ended, and the cells would still be saving when the same command is given again.
    pool = ThreadPoolExecutor(jobs)
    workers = [pool.submit(work, slot) for slot in range(jobs)]
    try:
        for worker in workers:
            worker.result()
    except KeyboardInterrupt:
        # A terminal interrupted the cells too; twice is as good as once.
        stop(None, None)
        for worker in workers:
            worker.result()
        _tell_how_to_go_on()
        raise
    if stopped or done < count:
        _tell_how_to_go_on()
    if failed:
        print(
            f"{len(failed)} of {count} cells failed: {', '.join(failed)}; "
            f"see log.txt in each under {FLAGS.workdir}",
            file=sys.stderr,
        )
    return len(failed) + len(stopped) + count - done


def _tell_how_to_go_on():
    again = shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]])
    print(
        "stopped; the same command skips finished cells and resumes started ones:\n"
        f"  {again}",
        file=sys.stderr,
    )


def _dry_run(named: dict[str, list[str]]) -> int:
    """Prints every cell with parameters, FLOPs per step and peak memory from XLA.

    Returns how many cells cannot be run.
    """

    def ask(name):
        command = [sys.executable, "-m", "experiments.train", "--dry_run", *named[name]]
        return subprocess.run(
            [*command, f"--workdir={Path(FLAGS.workdir) / name}"],
            capture_output=True,
            text=True,
        )

    failed = 0
    asked: dict[tuple[str, ...], Future] = {}
    print("cell, parameters, GFLOP per step, peak memory (MB)")
    with ThreadPoolExecutor(FLAGS.jobs) as pool:
        # A seed changes none of it, so that cells of several are asked once.
        alike = {
            name: tuple(arg for arg in args if not arg.startswith("--seed="))
            for name, args in named.items()
        }
        for name, key in alike.items():
            if key not in asked:
                asked[key] = pool.submit(ask, name)
        for name, key in alike.items():
            done = asked[key].result()
            failed += done.returncode != 0
            lines = done.stderr.strip().splitlines() or ["killed"]
            print(f"{name}: {done.stdout.strip() or lines[-1]}", flush=True)
    return failed


def main(argv: list[str]) -> int:
    """Runs the sweep; the status says whether any cell failed."""
    launcher.refuse_arguments(argv)
    if not FLAGS.workdir:
        raise InputError("--workdir is required: a directory for the cells")
    if FLAGS.status:
        from experiments import status

        states = status.watch(find_cells(Path(FLAGS.workdir)))
        return 1 if any(state.word == "failed" for state in states) else 0
    check_whole(1, jobs=FLAGS.jobs)
    if FLAGS.slurm and FLAGS.launcher != "slurm":
        raise InputError(f"--slurm={FLAGS.slurm[0]}: give --launcher=slurm too")
    launcher.train_config()
    named = cells()
    if FLAGS.dry_run:
        return 1 if _dry_run(named) else 0
    root = Path(FLAGS.workdir).absolute()
    todo = [Cell(root / name, tuple(args)) for name, args in named.items()]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--workdir={FLAGS.workdir}: cannot be written ({error.strerror})"
        ) from None
    if FLAGS.launcher == "slurm":
        from experiments import slurm

        return 1 if slurm.run(root, todo, FLAGS.jobs, FLAGS.slurm) else 0
    for cell in todo:  # so that --status knows of all from the beginning
        with contextlib.suppress(InputError):
            cell.enter()
    return 1 if _run_all(todo) else 0


if __name__ == "__main__":
    launcher.run(main)
