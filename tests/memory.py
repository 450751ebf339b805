"""Trains for a dispatch and prints, as JSON, the memory that `gm.plan` foretold and the
peak that Linux measured.

  python tests/memory.py MODEL SIDE BATCH_SIZE FIELDS
"""

import ctypes
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np

from gm import sharding
from gm.config import TrainConfig
from gm.data.dataset import ArraySplit, Dataset
from gm.model import build
from gm.plan import _as_given, compile_steps, peak_bytes
from gm.train import init_state, make_optimizer, train_steps


def resident(key):
    text = Path("/proc/self/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith(key)]
    return 1024 * int(line.split()[1])


def forget():
    """Gives free memory back, and starts to measure the peak anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def main(name, side, batch_size, fields):
    shape = (int(side), int(side), 3)
    x = np.zeros((1, *shape), np.uint8)
    split = ArraySplit(x)
    dataset = Dataset("zeros", shape, 256, "dim", split, split, split)
    model = build(name, dataset, json.loads(fields))
    config = TrainConfig(batch_size=int(batch_size), steps_per_dispatch=2)
    mesh = sharding.make_mesh()
    _, compiled, _ = compile_steps(model, config, mesh)
    planned = peak_bytes(compiled)
    optimizer = make_optimizer(config)
    init = functools.partial(init_state, model, optimizer, 0)
    batches = np.zeros((2, config.batch_size, *shape), np.uint8)
    # Once, so that all is compiled and every thread has its stack.
    args = (model, optimizer, config, _as_given)

    def run():
        state = sharding.initialize(mesh, init)
        given = sharding.split(mesh, (batches, None), axis=1)
        jax.block_until_ready(train_steps(*args, state, None, given, mesh=mesh))

    run()
    forget()
    before = resident("VmRSS")
    run()
    print(json.dumps({"planned": planned, "measured": resident("VmHWM") - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
