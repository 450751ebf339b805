"""Glow against rosinality's."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from row import Row, import_from

from gm.model import init_params
from gm.models.glow import Glow
from gm.nn.invertible import rotation

DEPTH, SCALES, WIDTH, SIDE = 4, 3, 64, 32
BINS = 32  # 5 bits per channel, the reference's default


def _numpy(tensor):
    return tensor.detach().numpy()


def _kernel(weight):
    """[O, I, h, w] -> [h, w, I, O]."""
    return _numpy(weight).transpose(2, 3, 1, 0)


def _zero_conv(layer):
    return {
        "kernel": _kernel(layer.conv.weight),
        "bias": _numpy(layer.conv.bias),
        "log_scale": _numpy(layer.scale).ravel(),
    }


class Reorder:
    """Our order of the channels after a squeeze -> the reference's.

    The reference has the channel outermost, then the row and column in a 2 x 2 block; we
    have the row and column outermost.
    """

    def __call__(self, h: jax.Array, cond: Any, *, train: bool = False) -> Any:
        """[B, H, W, C] -> the same, reordered, and log_det [B] = 0."""
        order = np.arange(h.shape[-1]).reshape(2, 2, -1).transpose(2, 0, 1).ravel()
        return h[..., order], jnp.zeros(h.shape[0])


class Same(Glow):
    """With the reference's order of channels."""

    def steps(self) -> list[Any]:
        """A fixed permutation after each squeeze."""
        steps = []
        for step in super().steps():
            steps += [step, Reorder()] if step == "squeeze" else [step]
        return steps


def _step(flow):
    lower, upper, log_s = (_numpy(getattr(flow.invconv, f"w_{n}")) for n in "lus")
    log_gain = np.log(_numpy(flow.actnorm.scale).ravel())
    first, second, last = (flow.coupling.net[i] for i in (0, 2, 4))
    return {
        "actnorm": {
            "log_gain": log_gain,
            "shift": np.exp(log_gain) * _numpy(flow.actnorm.loc).ravel(),
        },
        "conv": {"lower": lower, "upper": upper, "log_s": log_s},
        "coupling": {
            "Conv_0": {"kernel": _kernel(first.weight), "bias": _numpy(first.bias)},
            "Conv_1": {"kernel": _kernel(second.weight), "bias": _numpy(second.bias)},
            "ZeroConv_0": _zero_conv(last),
        },
    }


def _params(theirs):
    """The reference's weights as ours."""
    params = {}
    for scale, block in enumerate(theirs.blocks):
        steps = [_step(flow) for flow in block.flows]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
        params[f"flows_{scale}"] = {"layer": stacked}
        params[f"priors_{scale}"] = {"ZeroConv_0": _zero_conv(block.prior)}
    # It sees y / 2, in [-0.5, 0.5); we see y.
    first = params["flows_0"]["layer"]["actnorm"]["log_gain"]
    first[0] -= math.log(2)
    return params


def _perturb(theirs, generator):
    """Moves all weights, also those that start at zero; W from our rotations, with P."""
    with torch.no_grad():
        for block in theirs.blocks:
            for flow in block.flows:
                flow.actnorm.initialized.fill_(1)  # not from a batch
                conv = flow.invconv
                names = ("w_p", "w_l", "w_u", "w_s", "s_sign")
                parts = rotation(conv.w_s.numel())
                for name, part in zip(names, parts, strict=True):
                    getattr(conv, name).copy_(torch.tensor(part))
        for weight in theirs.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)


def compare(checkout: Path) -> Iterator[Row]:
    """Three scales of four steps, 32x32x3 of 32 values, both kinds of coupling."""
    reference = import_from(checkout, "model")
    # The width is not among Glow's arguments there.
    reference.AffineCoupling = functools.partial(
        reference.AffineCoupling, filter_size=WIDTH
    )
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 the reference draws from it
    generator = torch.Generator().manual_seed(0)
    for affine in (True, False):
        theirs = reference.Glow(3, DEPTH, SCALES, affine=affine)
        _perturb(theirs, generator)
        yield _row(theirs, affine)


def _row(theirs, affine):
    ours = Same(
        shape=(SIDE, SIDE, 3),
        num_values=BINS,
        preprocessing="identity",
        width=WIDTH,
        depth=DEPTH,
        num_scales=SCALES,
        affine=affine,
    )
    template = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    params = jax.tree.map(
        lambda a, b: jnp.asarray(b).reshape(a.shape), template, _params(theirs)
    )
    rng = np.random.default_rng(0)
    x = rng.integers(0, BINS, (8, SIDE, SIDE, 3))
    y = np.float32((x + rng.random(x.shape)) * (2 / BINS) - 1)
    with torch.no_grad():
        log_p, log_det, _ = theirs(torch.tensor(y.transpose(0, 3, 1, 2)) / 2)
    ours_nats = jax.jit(
        lambda p, y: ours.apply({"params": p}, None, y, method="log_weight")[0]
    )
    kind = "affine" if affine else "additive"
    return Row(
        "glow",
        f"32x32x3 of {BINS} values, {SCALES} x {DEPTH} steps, width {WIDTH}, {kind}",
        (log_p + log_det - math.log(BINS) * x[0].size).numpy(),
        np.asarray(ours_nats(params, jnp.asarray(y))),
        sum(p.numel() for p in theirs.parameters()),
        sum(p.size for p in jax.tree.leaves(params)),
        "the same dequantised values for both, in [-0.5, 0.5) there and [-1, 1) here; the "
        "1x1 convolutions start from our P, signs and rotation; its squeeze orders "
        "channels otherwise. Its training sees 5 bits per channel by default: its "
        "bits/dim are not those of 8-bit images.",
    )
