"""Runs launchers as a user would, for the tests of bad input and of resuming."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]
# Small, with a save and a validation every few steps.
SMALL = (
    "--num_steps=20",
    "--steps_per_dispatch=5",
    "--log_every=5",
    "--valid_every=10",
    "--save_every=5",
)
# Real archives would be found where a test is about missing ones.
ENV = {k: v for k, v in os.environ.items() if k != "GM_DATA_DIR"}
ENV["JAX_PLATFORMS"] = "cpu"


def start(launcher, *args, **options):
    """Starts `python -m experiments.LAUNCHER ARGS`; stderr and stdout in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{launcher}", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=options.pop("cwd", REPO),
        env=ENV | options.pop("env", {}),
        **options,
    )


def launch(launcher, *args, **options):
    """Runs to the end; returns (exit status, stdout, stderr)."""
    process = start(launcher, *args, **options)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()  # where it takes too long; else it has ended
    return process.returncode, out, err


def one_error(outcome, *parts, alone=True):
    """Checks for one `error:` line with all parts, and a status other than 0."""
    status, _, err = outcome
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    if alone:
        assert lines == errors
    for part in parts:
        assert str(part) in errors[0], errors[0]
    assert status == 2
    print(errors[0])
    return errors[0]


def train(workdir, *args, model="made", dataset="digits", **options):
    """Trains a tiny MADE on digits unless told otherwise."""
    args = (f"--model={model}", f"--dataset={dataset}", f"--workdir={workdir}", *args)
    return launch("train", *args, **options)


def flip_bit(path, where=0.5, bit=2):
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int((len(data) - 1) * where)] ^= 1 << bit
    path.write_bytes(data)


def largest_file(directory):
    """The file that holds most of the arrays."""
    files = [p for p in directory.rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)
