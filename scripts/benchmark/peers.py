"""Contenders of other code bases, in PyTorch: their own models, in a loop over steps.

Every function gets the folder with the checkouts. Optimisers are PyTorch's, with its
defaults but for a learning rate of 1e-4; data are random and resident. Without a precision
that is all, on one thread, and the loss is not read. With one, on a GPU, the model is
compiled, updates are fused, and the loss is read once a turn, after its last step.
"""

import contextlib
import functools
import sys
import types
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contender import Contender
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parents[1] / "parity"))
from row import import_from  # noqa: E402

torch.set_num_threads(1)
torch.manual_seed(0)


def num_weights(module: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in module.parameters())


def _training(
    module: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    batch_size: int,
    steps: int = 1,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    precision: str | None = None,
) -> Contender:
    """Steps of an optimiser on batches of x; with a precision, compiled and on a GPU."""
    if precision:
        return _on_gpu(module, loss, x, batch_size, steps, optimizer, precision)
    module.train()
    updates, number = optimizer(module.parameters(), lr=1e-4), 0

    def step():
        nonlocal number
        start = number * batch_size % (len(x) - batch_size + 1)
        number += 1
        updates.zero_grad()
        loss(x[start : start + batch_size]).backward()
        updates.step()

    def turn():
        for _ in range(steps):
            step()

    with FlopCounterMode(display=False) as counter:
        step()
    return Contender(turn, steps, num_weights(module), counter.get_total_flops())


def _on_gpu(
    module: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    batch_size: int,
    steps: int,
    optimizer: Callable[..., torch.optim.Optimizer],
    precision: str,
) -> Contender:
    """The same with torch.compile, products in TF32 or autocast to bfloat16."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.set_default_device("cuda")
    module.to("cuda").train()
    module.compile()
    x = x.to("cuda")
    updates, number = optimizer(module.parameters(), lr=1e-4, fused=True), 0
    half = precision == "bfloat16"
    notes: dict[str, Any] = {}

    def turn():
        nonlocal number
        for _ in range(steps):
            start = number * batch_size % (len(x) - batch_size + 1)
            number += 1
            updates.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                value = loss(x[start : start + batch_size])
            value.backward()
            updates.step()
        notes["loss"] = float(value)  # waits
        notes["peak memory, GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)

    return Contender(turn, steps, num_weights(module), notes=notes)


def _random(shape: tuple[int, ...], num_values: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.integers(0, num_values, shape), dtype=torch.float32)


def _bernoulli(module):
    def loss(x):
        logits = module(x).reshape(len(x), -1)
        both = logits, x.reshape(len(x), -1)
        return functional.binary_cross_entropy_with_logits(
            *both, reduction="sum"
        ) / len(x)

    return loss


def pytorch_generative(peers: Path, name: str) -> Any:
    """A module of its autoregressive models."""
    return import_from(
        peers / "pytorch-generative",
        f"pytorch_generative.models.autoregressive.{name}",
        bare=("pytorch_generative",),
    )


def gated(peers: Path) -> Any:
    """Its gated PixelCNN, of 5 layers."""
    reference = pytorch_generative(peers, "gated_pixel_cnn")
    return reference.GatedPixelCNN(n_gated=5, gated_channels=32, head_channels=32)


def made(peers: Path) -> Any:
    """Its MADE, 784-500."""
    return pytorch_generative(peers, "made").MADE(784, [500])


def made_step(peers: Path, batch_size: int) -> Contender:
    """EugenHotaj/pytorch-generative."""
    module = made(peers)
    x = _random((1024, 1, 28, 28), 2)
    return _training(module, _bernoulli(module), x, batch_size, 5)


def gated_step(peers: Path, batch_size: int) -> Contender:
    """EugenHotaj/pytorch-generative."""
    module = gated(peers)
    return _training(
        module, _bernoulli(module), _random((64, 1, 28, 28), 2), batch_size
    )


def glow_step(
    peers: Path,
    batch_size: int,
    width: int = 64,
    depth: int = 4,
    steps: int = 1,
    precision: str | None = None,
) -> Contender:
    """rosinality/glow-pytorch, whose width is not an argument."""
    reference = import_from(peers / "glow-pytorch", "model")
    reference.AffineCoupling = functools.partial(
        reference.AffineCoupling, filter_size=width
    )
    module = reference.Glow(3, depth, 3, affine=True, conv_lu=True)
    x = (_random((64, 3, 32, 32), 256) + 0.5) / 256 - 0.5
    with torch.no_grad():
        module(x[:batch_size])  # its actnorm starts from data

    def loss(x):
        log_p, log_det, _ = module(x + torch.rand_like(x) / 256)
        return -(log_p + log_det).mean() / x[0].numel()

    return _training(module, loss, x, batch_size, steps, precision=precision)


def pixelcnnpp(
    peers: Path, width: int = 40, num_resnets: int = 1, channels: int = 1
) -> Any:
    """(The network, its losses), without a line of Python 2."""
    checkout = peers / "pixel-cnn-pp"
    source = (checkout / "utils.py").read_text().replace("print e\n", "print(e)\n")
    losses = types.ModuleType("utils")
    exec(compile(source, "utils.py", "exec"), losses.__dict__)
    sys.modules["utils"] = losses
    reference = import_from(checkout, "model")
    with contextlib.redirect_stdout(None):
        module = reference.PixelCNN(
            nr_resnet=num_resnets,
            nr_filters=width,
            nr_logistic_mix=10,
            input_channels=channels,
        )
    if not torch.cuda.is_available():
        unittest.mock.patch.object(torch.Tensor, "cuda", lambda self: self).start()
    return module, losses


def pixelcnnpp_step(peers: Path, batch_size: int) -> Contender:
    """pclucas14/pixel-cnn-pp."""
    module, losses = pixelcnnpp(peers)
    x = _random((64, 1, 28, 28), 256) * 2 / 255 - 1

    def loss(x):
        with contextlib.redirect_stdout(None):
            return losses.discretized_mix_logistic_loss_1d(x, module(x)) / len(x)

    return _training(module, loss, x, batch_size)


def pixelcnnpp_colour_step(
    peers: Path,
    batch_size: int,
    width: int,
    num_resnets: int,
    steps: int,
    precision: str,
) -> Contender:
    """pclucas14/pixel-cnn-pp, 32x32x3."""
    module, losses = pixelcnnpp(peers, width, num_resnets, 3)
    x = _random((256, 3, 32, 32), 256) * 2 / 255 - 1

    def loss(x):
        out = module(x).float()
        return losses.discretized_mix_logistic_loss(x, out) / len(x)

    return _training(module, loss, x, batch_size, steps, precision=precision)


def gpt(
    peers: Path, length: int = 784, width: int = 128, depth: int = 4, num_heads: int = 4
) -> Any:
    """A model of `length` tokens of 256 values."""
    reference = import_from(peers / "nanoGPT", "model")
    config = reference.GPTConfig(
        block_size=length,
        vocab_size=256,
        n_layer=depth,
        n_head=num_heads,
        n_embd=width,
        bias=False,
    )
    with contextlib.redirect_stdout(None):
        return reference.GPT(config)


def gpt_step(
    peers: Path,
    batch_size: int,
    length: int = 784,
    width: int = 128,
    depth: int = 4,
    num_heads: int = 4,
    steps: int = 1,
    precision: str | None = None,
) -> Contender:
    """karpathy/nanoGPT, by its AdamW."""
    module = gpt(peers, length, width, depth, num_heads)
    x = _random((256 if precision else 64, length + 1), 256).long()

    def loss(x):
        return module(x[:, :-1], x[:, 1:].contiguous())[1]

    updates = torch.optim.AdamW
    return _training(module, loss, x, batch_size, steps, updates, precision)


class _Residual(nn.Module):
    """As the dense block of gm's VAE."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h):
        return h + self.second(functional.silu(self.first(self.norm(h))))


class _VAE(nn.Module):
    """The VAE that one writes in PyTorch, with as many weights as gm's."""

    def __init__(self, dims, width, num_latents):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(2 * dims, width), _Residual(width), nn.SiLU()
        )
        self.posterior = nn.Linear(width, 2 * num_latents)
        self.decode = nn.Sequential(
            nn.Linear(num_latents, width),
            _Residual(width),
            nn.SiLU(),
            nn.Linear(width, dims),
        )

    def loss(self, x):
        one_hot = torch.stack([1 - x, x], -1).flatten(1)
        mean, log_std = self.posterior(self.encode(one_hot)).chunk(2, -1)
        log_std = log_std.clamp(-7, 5)
        eps = torch.randn_like(mean)
        z = mean + log_std.exp() * eps
        logits = self.decode(z)
        log_px_z = -functional.binary_cross_entropy_with_logits(
            logits, x, reduction="none"
        ).sum(-1)
        minus_kl = (-0.5 * z**2 + 0.5 * eps**2 + log_std).sum(-1)
        return -(log_px_z + minus_kl).mean()


def vae_steps(
    peers: Path, width: int, num_latents: int, batch_size: int, steps: int
) -> Contender:
    """A plain loop; no checkout is needed."""
    module = _VAE(64, width, num_latents)
    x = _random((4096, 64), 2)
    return _training(module, module.loss, x, batch_size, steps)


def realnvp_steps(peers: Path, batch_size: int, steps: int) -> Contender:
    """bayesiains/nflows."""
    reference = import_from(
        peers / "nflows",
        "nflows.flows.realnvp",
        absent=("UMNN", "matplotlib"),
        bare=("nflows.flows",),
    )
    module = reference.SimpleRealNVP(64, 128, num_layers=6, num_blocks_per_layer=2)
    x = _random((4096, 64), 256) / 128 - 1

    def loss(x):
        return -module.log_prob(x).mean()

    return _training(module, loss, x, batch_size, steps)
