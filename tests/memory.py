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
from gm.plan import compile_steps, peak_bytes
from gm.train import init_state, make_optimizer


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
    init = functools.partial(init_state, model, make_optimizer(config), 0)
    where = sharding.layout(mesh, jax.eval_shape(init))
    start = jax.jit(init, out_shardings=where).lower().compile()
    batches = np.zeros((2, config.batch_size, *shape), np.uint8)
    given = sharding.split(mesh, (batches, None), axis=1)
    # All is compiled, and nothing has been run that could leave memory behind.
    forget()
    before = resident("VmRSS")
    jax.block_until_ready(compiled(start(), None, given))
    measured = resident("VmHWM") - before
    print(json.dumps({"planned": peak_bytes(compiled), "measured": measured}))


if __name__ == "__main__":
    main(*sys.argv[1:])
