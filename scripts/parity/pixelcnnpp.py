"""PixelCNN++ against the PyTorch port of its authors' code."""

import contextlib
import sys
import types
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from row import Row, import_from

from gm.model import init_params, log_prob
from gm.models.pixelcnnpp import PixelCNNPP

MIXTURES = 10


def _normed(layer, axes):
    """A weight-normalised layer's weights, moved to [h, w, in, out], as ours."""
    kernel = layer.weight.detach().numpy()
    kernel = kernel.reshape(*kernel.shape, *(1,) * (4 - kernel.ndim)).transpose(axes)
    scale = np.sqrt((kernel**2).sum((0, 1, 2)))
    return {"kernel": kernel, "scale": scale, "bias": layer.bias.detach().numpy()}


def _conv(module):
    return _normed(getattr(module, "conv", None) or module.lin_a, (2, 3, 1, 0))


def _up(module):
    return _normed(module.deconv, (2, 3, 0, 1))


def _stream(theirs, name):
    """One of the two U-nets."""
    layers = [*theirs.up_layers, *theirs.down_layers]
    blocks = [b for layer in layers for b in getattr(layer, f"{name}_stream")]
    found = {}
    for i, block in enumerate(blocks):
        found[f"GatedResnet_{i}"] = {
            "first": _conv(block.conv_input),
            "second": _conv(block.conv_out),
        }
        if block.skip_connection:
            found[f"GatedResnet_{i}"]["beside"] = _conv(block.nin_skip)
    for i, layer in enumerate(getattr(theirs, f"downsize_{name}_stream")):
        found[f"CausalConv_{i}"] = _conv(layer)
    for i, layer in enumerate(getattr(theirs, f"upsize_{name}_stream")):
        found[f"UpConv_{i}"] = _up(layer)
    return found


def _outputs(channels):
    """Where each of our outputs stands among theirs: ours go mixture by mixture."""
    kinds = 3 if channels > 1 else 2  # mean, log scale, coefficient
    rest = np.arange(channels * kinds * MIXTURES).reshape(channels, kinds, MIXTURES)
    rest = MIXTURES + rest.transpose(2, 1, 0).reshape(MIXTURES, -1)
    return np.concatenate([np.arange(MIXTURES)[:, None], rest], axis=1).ravel()


def _row(reference, losses, channels, side, width, resnets):
    torch.manual_seed(0)
    theirs = reference.PixelCNN(
        nr_resnet=resnets,
        nr_filters=width,
        nr_logistic_mix=MIXTURES,
        input_channels=channels,
    ).eval()
    ours = PixelCNNPP(
        shape=(side, side, channels),
        num_values=256,
        width=width,
        num_resnets=resnets,
        num_mixtures=MIXTURES,
    )
    head, order = _conv(theirs.nin_out), _outputs(channels)
    params = {
        "first_u": _conv(theirs.u_init),
        "first_ul": {
            "above": _conv(theirs.ul_init[0]),
            "left": _conv(theirs.ul_init[1]),
        },
        "u": _stream(theirs, "u"),
        "ul": _stream(theirs, "ul"),
        "head": {"out": {k: v[..., order] for k, v in head.items()}},
    }
    template = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    params = jax.tree.map(
        lambda a, b: jnp.asarray(b).reshape(a.shape), template, params
    )
    x = np.random.default_rng(0).integers(0, 256, (4, side, side, channels))
    pixels = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32) * 2 / 255 - 1
    loss = losses.discretized_mix_logistic_loss
    if channels == 1:
        loss = losses.discretized_mix_logistic_loss_1d
    here = unittest.mock.patch.object(torch.Tensor, "cuda", lambda self: self)
    with torch.no_grad(), here, contextlib.redirect_stdout(None):
        out = theirs(pixels)
        nats = [
            -float(loss(p[None], o[None])) for p, o in zip(pixels, out, strict=True)
        ]
    return Row(
        "pixelcnnpp",
        f"{side}x{side}x{channels}, {resnets} block per scale, width {width}",
        np.asarray(nats),
        np.asarray(log_prob(ours, params, jnp.asarray(x), None, jax.random.key(0))[0]),
        sum(p.numel() for p in theirs.parameters()),
        sum(p.size for p in jax.tree.leaves(params)),
        "where a mass is below 1e-5 the reference takes the density times the bin's width, "
        "with which probabilities need not sum to one; ours is exact. At the weights "
        "compared no mass is so small. Both counts include the weight-norm scales."
        if channels == 1
        else "",
    )


def compare(checkout: Path) -> Iterator[Row]:
    """Grey 28 x 28 at the port's small size, and colour 32 x 32."""
    # A line of Python 2, in what is not compared, keeps the module from being read.
    source = (checkout / "utils.py").read_text().replace("print e\n", "print(e)\n")
    losses = types.ModuleType("utils")
    exec(compile(source, "utils.py", "exec"), losses.__dict__)
    sys.modules["utils"] = losses
    reference = import_from(checkout, "model")
    yield _row(reference, losses, channels=1, side=28, width=40, resnets=1)
    yield _row(reference, losses, channels=3, side=32, width=20, resnets=1)
