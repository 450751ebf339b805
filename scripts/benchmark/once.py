"""What is measured once, in processes of its own: start-up, input and memory."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def _python(code: str, core: int, **environment: str) -> dict:
    """Runs code that prints JSON last, pinned, and returns that with CPU seconds."""
    pinned = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"} | environment
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=pinned,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    after = os.times()
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds = after.children_user - before.children_user
    seconds += after.children_system - before.children_system
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"cpu_seconds": seconds}


_FIRST_STEP = """
import json, time
begin = time.process_time()
import jax
from gm import data, sharding
from gm.config import TrainConfig
from gm.feed import make_feed
from gm.model import build
from gm.train import init_state, make_optimizer, train_steps
dataset = data.load("digits")
model = build("transformer", dataset, dict(width=64, depth={depth}))
config = TrainConfig(batch_size=16)
optimizer = make_optimizer(config)
feed = make_feed(dataset, config, False, sharding.make_mesh())
state = jax.jit(lambda: init_state(model, optimizer, 0))()
values = train_steps(model, optimizer, config, feed.draw, state, feed.data, feed.xs(0, 4))
jax.block_until_ready(values)
print(json.dumps(dict(seconds=time.process_time() - begin)))
"""


def startup(core: int, depth: int) -> dict:
    """From the start of Python to the end of the first dispatch; again, with the cache."""
    with tempfile.TemporaryDirectory() as folder:
        keep = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        code = _FIRST_STEP.format(depth=depth)
        first, second = (_python(code, core, **keep) for _ in range(2))
    share = second["cpu_seconds"] / first["cpu_seconds"]
    return {
        "first_seconds": first["cpu_seconds"],
        "second_seconds": second["cpu_seconds"],
        "value": share,
        "unit": "of the first start's CPU time",
        "gate": 0.3,
        "reached": share <= 0.3,
    }


_INPUT = """
import json, tempfile
from pathlib import Path
import numpy as np
from gm import data
from gm.config import TrainConfig
from gm.data.dataset import ArraySplit, Dataset
from gm.data.stream import StreamSplit
from gm.fit import Trainer
from gm.model import build
from gm.rundir import RunDirectory
rng = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "x.npy"
    np.save(path, rng.integers(0, 256, (20000, 32, 32, 3), np.uint8))
    stored = np.load(path, mmap_mode="r")
    small = ArraySplit(np.asarray(stored[:200]))
    read = lambda at: (np.asarray(stored[np.asarray(at)]), None)
    train = {{
        "streamed": StreamSplit(read, np.arange(20000)),
        "resident": ArraySplit(np.asarray(stored[:4000])),
    }}["{kind}"]
    dataset = Dataset("random", (32, 32, 3), 256, "dim", train, small, small)
    model = build("glow", dataset, dict(width=32, depth=2, num_scales=2))
    config = TrainConfig(
        num_steps=120, batch_size=32, steps_per_dispatch=10, log_every=10,
        valid_every=1000, save_every=1000, num_valid_examples=50,
    )
    run = RunDirectory.open_for_training(Path(folder) / "run")
    trainer = Trainer(model, dataset, config, run)
    trainer.fit()
    rows = [r for r in trainer.metrics.rows if r["step"] > 20]
    trainer.close()
waits = sorted(r["time/data_wait"] for r in rows)
print(json.dumps(dict(wait=waits[len(waits) // 2], most=waits[-1])))
"""


def inputs(core: int, kind: str) -> dict:
    """Share of the time of a dispatch that is spent waiting for its batches."""
    found = _python(_INPUT.format(kind=kind), core)
    return {
        "value": found["wait"],
        "most": found["most"],
        "unit": "of the time of a dispatch, median",
        "gate": 0.02,
        "reached": found["wait"] <= 0.02,
    }


_MEMORY = """
import json
import jax
import jax.numpy as jnp
from gm.model import init_params, load_model, log_prob
model = load_model("{model}").Model(shape={shape}, num_values=256, **{fields})
params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
x = jax.ShapeDtypeStruct(({batch}, *{shape}), jnp.uint8)
def loss(params, x):
    return log_prob(model, params, x, None, jax.random.key(0), train=True)[0].mean()
memory = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
print(json.dumps(dict(megabytes=memory.temp_size_in_bytes / 1e6)))
"""


def memory(core: int, model: str, shape: Any, fields: dict) -> dict:
    """Temporary memory of a gradient, as XLA has planned it."""
    given = dict(model=model, shape=shape, fields=fields, batch=BATCH)
    found = _python(_MEMORY.format(**given), core)
    return {
        "value": found["megabytes"],
        "unit": "MB of temporary memory of a gradient",
        "gate": None,
        "reached": True,
    }


BATCH = 4
_LADDER = dict(width=16, depth=2)
_GLOW = dict(width=32, depth=16, num_scales=2)
_DEEP = dict(width=64, depth=24)
_MEMORIES: list[tuple[str, str, tuple[int, ...], dict]] = [
    *(
        (f"multiscale, {side} pixels a side", "multiscale", (side, side, 1), _LADDER)
        for side in (32, 64, 128, 256, 512, 1024)
    ),
    *(
        ("glow 64x64x3, 2 x 16 steps", "glow", (64, 64, 3), _GLOW | {"remat": saves})
        for saves in (False, True)
    ),
    *(
        (
            "transformer of 24 layers",
            "transformer",
            (256,),
            _DEEP | {"scan_layers": s},
        )
        for s in (False, True)
    ),
]


# Suite -> {name: what measures it on a core}.
ONCE: dict[str, dict[str, Callable[[int], dict]]] = {
    "compile": {
        "second start with the cache, transformer of 12 layers": functools.partial(
            startup, depth=12
        )
    },
    "input": {
        f"data wait, {kind}, glow of 32x32x3, batch 32": functools.partial(
            inputs, kind=kind
        )
        for kind in ("resident", "streamed")
    },
    "memory": {
        f"{name}, batch {BATCH}, {fields}": functools.partial(
            memory, model=model, shape=shape, fields=fields
        )
        for name, model, shape, fields in _MEMORIES
    },
}
