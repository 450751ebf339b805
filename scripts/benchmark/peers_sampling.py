"""Samplers and losses of other code bases, in PyTorch; see peers.py.

The references run the whole network for every pixel.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contender import LOSS_SHAPE, MIXTURES, NUM_VALUES, SEED, Contender
from peers import gated, gpt, made, num_weights, pixelcnnpp, pytorch_generative
from row import import_from
from torch import nn
from torch.nn import functional


def _pixels(
    module: nn.Module,
    step: Callable[[], Any],
    batch_size: int,
    of: int,
    count: int = 2,
) -> Contender:
    """`count` pixels of an image of `of`, which all cost the same."""
    module.eval()

    def turn():
        with torch.no_grad():
            for _ in range(count):
                step()

    notes = {"pixels timed": f"{count} of {of}"}
    return Contender(turn, batch_size * count / of, num_weights(module), notes=notes)


def _pytorch_generative_sample(module, side, batch_size):
    """A pixel as in its AutoregressiveModel.sample."""
    x = -torch.ones(batch_size, 1, side, side)

    def step():
        out = module.forward(x)[:, :, side // 2, side // 2]
        torch.distributions.Bernoulli(logits=out).sample()

    return _pixels(module, step, batch_size, side**2)


def gated_sample(peers: Path, side: int, batch_size: int) -> Contender:
    """EugenHotaj/pytorch-generative."""
    return _pytorch_generative_sample(gated(peers), side, batch_size)


def snail_sample(peers: Path, batch_size: int) -> Contender:
    """EugenHotaj/pytorch-generative."""
    reference = pytorch_generative(peers, "pixel_snail")
    module = reference.PixelSNAIL(
        n_channels=SNAIL_WIDTH,
        n_pixel_snail_blocks=2,
        n_residual_blocks=2,
        attention_key_channels=4,
        attention_value_channels=SNAIL_WIDTH // 2,
    )
    return _pytorch_generative_sample(module, 28, batch_size)


SNAIL_WIDTH = 51  # as many weights as ours of width 32, to 1 %


def made_sample(peers: Path, batch_size: int) -> Contender:
    """EugenHotaj/pytorch-generative: whole images, in its own loop."""
    module = made(peers).eval()
    x = -torch.ones(batch_size, 1, 28, 28)
    return Contender(lambda: module.sample(None, x), batch_size, num_weights(module))


def pixelcnnpp_sample(peers: Path, batch_size: int) -> Contender:
    """pclucas14/pixel-cnn-pp: a pixel as in the `sample` of its main.py."""
    module, losses = pixelcnnpp(peers)
    x = torch.zeros(batch_size, 1, 28, 28)

    def step():
        with contextlib.redirect_stdout(None):
            out = module(x, sample=True)
            losses.sample_from_discretized_mix_logistic_1d(out, MIXTURES)

    return _pixels(module, step, batch_size, 784, 1)


def gpt_sample(peers: Path, batch_size: int) -> Contender:
    """karpathy/nanoGPT: a token of `generate` at five lengths, by Simpson's rule."""
    module = gpt(peers).eval()
    lengths, weights = (1, 196, 392, 588, 783), (1, 4, 2, 4, 1)
    rows = [torch.zeros(batch_size, n, dtype=torch.long) for n in lengths]
    # A turn takes a token at each of 12 places: 784 / 12 of it is an image.
    places = [r for r, w in zip(rows, weights, strict=True) for _ in range(w)]

    def turn():
        for row in places:
            module.generate(row, 1)

    notes = {"tokens timed": f"{len(places)} of 784, by Simpson's rule"}
    return Contender(
        turn, batch_size * len(places) / 784, num_weights(module), notes=notes
    )


# Losses.


def _loss(function, size):
    rng = np.random.default_rng(SEED)
    out = torch.tensor(
        rng.standard_normal((*LOSS_SHAPE[:3], size)), dtype=torch.float32
    )
    x = torch.tensor(rng.integers(0, NUM_VALUES, LOSS_SHAPE))
    out.requires_grad_()

    def turn():
        out.grad = None
        function(out, x).backward()

    return turn


def mixture_loss(peers: Path) -> Contender:
    """openai/vdvae."""
    helpers = import_from(peers / "vdvae", "vae_helpers")
    size = MIXTURES * (3 * LOSS_SHAPE[3] + 1)

    def loss(out, x):
        v = x.float() * (2 / (NUM_VALUES - 1)) - 1
        return helpers.discretized_mix_logistic_loss(v, out).mean()

    from errors import largest_error

    def log_mass(mean, log_scale, x):
        # One component, and three channels that are alike: it is a mean over them.
        zeros = torch.zeros(len(x))
        channel = [torch.tensor(mean), torch.tensor(log_scale), zeros]
        out = torch.stack([zeros, *channel * 3], -1)[:, None, None]  # [N, 1, 1, 10]
        v = torch.tensor(x, dtype=torch.float32) * (2 / (NUM_VALUES - 1)) - 1
        v = v[:, None, None, None].expand(-1, 1, 1, 3)
        return -helpers.discretized_mix_logistic_loss(v, out).numpy()

    notes = {"largest error, nats": largest_error(log_mass)}
    return Contender(_loss(loss, size), notes=notes)


def softmax_loss(peers: Path) -> Contender:
    """torch.nn.functional.cross_entropy."""

    def loss(out, x):
        return functional.cross_entropy(out.reshape(-1, NUM_VALUES), x.reshape(-1))

    return Contender(_loss(loss, NUM_VALUES * LOSS_SHAPE[3]))
