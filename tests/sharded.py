"""Run with 8 virtual devices: trains a model on several meshes, and prints as JSON the
bits/dim of every step, and what part of the parameters lies on one device.

  python tests/sharded.py STEPS MODEL...
"""

import functools
import json
import sys

import jax
import numpy as np

from gm import data, sharding
from gm.config import TrainConfig
from gm.evaluate import evaluate_nats
from gm.feed import make_feed
from gm.generate import draw
from gm.model import build, load_model
from gm.train import init_state, make_optimizer, train_steps

# Each part of a batch has noise of its own: those that accumulate are one another's like.
ACCUMULATED = {"accumulate": 2, "remat": True}
MESHES = {
    "data:1": {},
    "data:8": {},
    "fsdp:8": {},
    "data:4,fsdp:2": {},
    "data:1 accumulated": ACCUMULATED,
    "data:2,fsdp:2 accumulated": ACCUMULATED,
}
sharding._SMALL = 8  # so that tiny models are split too


def train(model, dataset, text, steps, **options):
    mesh = sharding.make_mesh(sharding.parse_mesh(text))
    config = TrainConfig(
        num_steps=100, batch_size=16, warmup_steps=0, clip_norm=10.0, **options
    )
    optimizer = make_optimizer(config)
    init = functools.partial(init_state, model, optimizer, 0)
    state = sharding.initialize(mesh, init)
    feed = make_feed(dataset, config, False, mesh)
    args = (model, optimizer, config, feed.draw)
    state, values = train_steps(*args, state, feed.data, feed.xs(0, steps), mesh=mesh)
    again = sharding.layout(mesh, state)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert a.sharding.is_equivalent_to(b, a.ndim), (a.sharding, b)
    here = sum(p.addressable_shards[0].data.size for p in jax.tree.leaves(state.params))
    whole = sum(p.size for p in jax.tree.leaves(state.params))
    return mesh, state, values["train/bpd"].tolist(), here / whole


def check_rows():
    """Of 1, 2, 4 or 8 processes each reads its rows, and all of them every row once."""
    for text in ("data:8", "data:4,fsdp:2"):
        mesh = sharding.make_mesh(sharding.parse_mesh(text))
        for count in (1, 2, 4, 8):
            groups = np.split(np.asarray(jax.devices()), count)
            parts = [sharding.own_rows(mesh, 24, group) for group in groups]
            assert np.concatenate(parts).tolist() == list(range(24))


def main(steps, names):
    check_rows()
    dataset = data.load("digits")
    for name in names:
        model = build(name, dataset, load_model(name).TINY)
        found = {}
        for text, options in MESHES.items():
            if steps < 10 and text not in ("data:1", "data:4,fsdp:2"):
                continue
            mesh, *told = train(model, dataset, text.split()[0], steps, **options)
            state, bpd, share = told
            entry = {"bpd": bpd, "share": share}
            if text in ("data:1", "data:4,fsdp:2"):
                order = np.arange(20)
                params = jax.device_get(found.get("params", state.ema_params))
                found.setdefault("params", params)
                split = dataset.valid
                nats, _ = evaluate_nats(model, params, split, order, mesh=mesh)
                entry["nats"] = nats.tolist()
                if steps < 10:
                    entry["x"] = draw(model, params, 5, mesh=mesh).tolist()
            found[text] = entry
        del found["params"]
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
