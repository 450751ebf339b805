"""NICE against pytorch-generative."""

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from row import Row, import_from

from gm.model import init_params
from gm.models.nice import NICE

DIMS, BINS = 784, 256


def compare(checkout: Path) -> Iterator[Row]:
    """784 entries, 4 couplings of 5 hidden layers of 1000 units, logistic prior."""
    reference = import_from(
        checkout,
        "pytorch_generative.models.flow.nice",
        bare=("pytorch_generative", "pytorch_generative.models"),
    )
    torch.manual_seed(0)
    theirs = reference.NICE(DIMS)
    with torch.no_grad():
        theirs.scaling.log_scale.normal_(0, 0.1)
    ours = NICE(shape=(28, 28, 1), num_values=BINS, preprocessing="identity")
    params = {}
    for index, block in enumerate(theirs.net):
        linear = [m for m in block.net if isinstance(m, torch.nn.Linear)]
        layers = [
            {"kernel": m.weight.detach().numpy().T, "bias": m.bias.detach().numpy()}
            for m in linear
        ]
        # It sees values in [0, 1], we twice that less one: half of what is kept, plus a
        # half, and twice what is added.
        first, last = layers[0], layers[-1]
        first["bias"] = first["bias"] + first["kernel"].sum(0) / 2
        first["kernel"] = first["kernel"] / 2
        layers[-1] = {name: 2 * value for name, value in last.items()}
        names = [f"Dense_{i}" for i in range(len(layers))]
        params[f"couplings_{index}"] = dict(zip(names, layers, strict=True))
    # z = h' exp(s) there, of h' = (h + 1) / 2; the shift by a half is undone below.
    log_gain = theirs.scaling.log_scale.detach().numpy().ravel() - math.log(2)
    halves = (
        np.arange(DIMS).reshape(2, -1).T.ravel()
    )  # theirs first and last, ours even
    params["scaling"] = {"log_gain": log_gain[halves]}
    yield _row(theirs, ours, params, halves)


def _row(theirs, ours, params, halves):
    template = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    params = jax.tree.map(
        lambda a, b: jnp.asarray(b).reshape(a.shape), template, params
    )
    rng = np.random.default_rng(0)
    x = rng.integers(0, BINS, (16, DIMS))
    v = np.float32((x + rng.random(x.shape)) / BINS)
    with torch.no_grad():
        z, log_det = theirs(torch.tensor(v.reshape(16, 1, 28, 28)))
        softplus = torch.nn.functional.softplus
        log_p = -(softplus(z) + softplus(-z)).sum((1, 2, 3))
    y = jnp.asarray((2 * v - 1)[:, halves].reshape(16, 28, 28, 1))

    class Same(NICE):
        """With a prior around what 0 is mapped to there."""

        def log_base(self, z: jax.Array) -> jax.Array:
            return super().log_base(z + jnp.exp(params["scaling"]["log_gain"]))

    same = Same(shape=ours.shape, num_values=BINS, preprocessing="identity")
    nats = same.apply({"params": params}, None, y, method="log_weight")[0]
    return Row(
        "nice",
        "28x28 of 256 values, 4 couplings of 5 layers of 1000",
        (log_p + log_det - math.log(BINS) * DIMS).numpy(),
        np.asarray(nats),
        sum(p.numel() for p in theirs.parameters()),
        sum(p.size for p in jax.tree.leaves(params)),
        "it splits into halves, we (and the paper) into odd and even entries: permuted "
        "here; it sees [0, 1], we [-1, 1). Its samples are drawn from a normal also where "
        "it was trained with the logistic prior.",
    )
