"""The comparisons: which contenders, and the ratio to reach.

A is ours and B what it is held against; a ratio is CPU time of B over that of A. An entry
(file, function, arguments) names a contender of ours.py, peers.py or peers_sampling.py. The
peers' cases need --peers. Gates of None are only reported.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A against B."""

    name: str
    unit: str
    a: tuple[str, str, dict[str, Any]]
    b: tuple[str, str, dict[str, Any]]
    gate: float | None
    rounds: int | None = None  # in place of --rounds, for what takes long

    @property
    def has_peer(self) -> bool:
        """Whether B is of another code base."""
        return self.b[0] != "ours"


def ours(function: str, **arguments: Any) -> tuple[str, str, dict[str, Any]]:
    """A contender of ours.py."""
    return "ours", function, arguments


def theirs(function: str, **arguments: Any) -> tuple[str, str, dict[str, Any]]:
    """A contender of peers.py, or of peers_sampling.py."""
    trains = function.endswith(("_step", "_steps"))
    return "peers" if trains else "peers_sampling", function, arguments


GATED: dict[str, Any] = dict(width=32, depth=5, head_width=32)
MADE: dict[str, Any] = dict(width=500, activation="relu")
GPT: dict[str, Any] = dict(style="gpt2", width=128, depth=4, num_heads=4)
PIXELCNNPP: dict[str, Any] = dict(width=40, num_resnets=1, num_mixtures=10)
SNAIL: dict[str, Any] = dict(width=32, num_blocks=2, num_resnets=2, key_width=4)
GLOW: dict[str, Any] = dict(width=64, depth=4, num_scales=3)
REALNVP: dict[str, Any] = dict(width=117, depth=2, num_couplings=6)
VAE: dict[str, Any] = dict(width=128, num_latents=16)
GREY, BINARY, COLOUR = (28, 28, 1), (28, 28, 1), (32, 32, 3)


def _fused(name: str, gate: float, shape: Any, fields: Any, **sizes: Any) -> Case:
    """Many steps in a dispatch against a call of the same step for each batch."""
    model, num_values = name.split("-")[0], 2 if len(shape) == 1 else 256
    given = dict(
        model=model, shape=shape, num_values=num_values, fields=fields, **sizes
    )
    name = f"{name} against a call per step"
    a, b = ours("train", **given), ours("train_by_calls", **given)
    return Case(name, "step", a, b, gate)


_VECTOR = dict(shape=(64,), batch_size=64, steps=100, dispatches=3)
_IMAGE = dict(batch_size=8, steps=10, dispatches=1)


def _train(model: str, shape: Any, num_values: int, fields: Any, **sizes: Any) -> Any:
    given = dict(model=model, shape=shape, num_values=num_values, fields=fields)
    return ours("train", **given, **sizes)


def _sample(model: str, shape: Any, num_values: int, fields: Any, batch: int) -> Any:
    given = dict(model=model, shape=shape, num_values=num_values, fields=fields)
    return ours("sample", **given, batch_size=batch)


_DEEP = dict(model="transformer", shape=(64,), num_values=64, batch_size=4)
_DEEP_FIELDS = dict(width=64, depth=24)

SUITES: dict[str, list[Case]] = {
    "step": [
        Case(
            "made 784-500, batch 64",
            "step",
            _train("made", BINARY, 2, MADE, batch_size=64, steps=20),
            theirs("made_step", batch_size=64),
            1.2,
        ),
        Case(
            "glow 32x32x3, 3 x 4 steps, width 64, batch 8",
            "step",
            _train("glow", COLOUR, 256, GLOW, batch_size=8, steps=2),
            theirs("glow_step", batch_size=8),
            1.3,
        ),
        Case(
            "pixelcnn 28x28, 5 gated layers, width 32, batch 8",
            "step",
            _train("pixelcnn", BINARY, 2, GATED, batch_size=8, steps=2),
            theirs("gated_step", batch_size=8),
            0.8,
        ),
        Case(
            "pixelcnnpp 28x28, width 40, batch 16",
            "step",
            _train("pixelcnnpp", GREY, 256, PIXELCNNPP, batch_size=16, steps=1),
            theirs("pixelcnnpp_step", batch_size=16),
            0.8,
        ),
        Case(
            "transformer 784 tokens, 4 layers, width 128, batch 1",
            "step",
            _train("transformer", (784,), 256, GPT, batch_size=1, steps=2),
            theirs("gpt_step", batch_size=1),
            0.8,
        ),
    ],
    "fused": [
        # Mostly arithmetic, which both do alike; then mostly dispatch.
        _fused("vae-64-wide", 2.0, fields=VAE, **_VECTOR),
        _fused("made-64-wide", 2.0, fields=dict(width=500), **_VECTOR),
        _fused("vae-64", 2.0, fields=dict(width=32, num_latents=16), **_VECTOR),
        _fused("made-64", 2.0, fields=dict(width=64), **_VECTOR),
        # Convolutions, which XLA:CPU may run 25 times slower inside a loop.
        _fused("vae-28x28", 0.95, (28, 28, 1), dict(width=16), **_IMAGE),
        _fused("realnvp-16x16", 0.95, (16, 16, 1), dict(width=16), **_IMAGE),
        Case(
            "vae 64-128-16, batch 64, against a PyTorch loop",
            "step",
            _train("vae", (64,), 2, VAE, batch_size=64, steps=100),
            theirs("vae_steps", width=128, num_latents=16, batch_size=64, steps=100),
            4.0,
        ),
        Case(
            "realnvp 64, 6 layers, batch 64",
            "step",
            _train("realnvp", (64,), 256, REALNVP, batch_size=64, steps=100),
            theirs("realnvp_steps", batch_size=64, steps=100),
            3.0,
        ),
    ],
    "sampling": [
        Case(
            "pixelcnn 28x28, batch 16",
            "image",
            _sample("pixelcnn", BINARY, 2, GATED, 16),
            theirs("gated_sample", side=28, batch_size=16),
            500,
            3,
        ),
        Case(
            "pixelcnn 64x64, batch 16",
            "image",
            _sample("pixelcnn", (64, 64, 1), 2, GATED, 16),
            theirs("gated_sample", side=64, batch_size=16),
            2000,
            3,
        ),
        Case(
            "made 784-500, batch 16",
            "image",
            _sample("made", BINARY, 2, MADE, 16),
            theirs("made_sample", batch_size=16),
            100,
            3,
        ),
        Case(
            "transformer 784 tokens, batch 4",
            "image",
            _sample("transformer", (784,), 256, GPT, 4),
            theirs("gpt_sample", batch_size=4),
            40,
            3,
        ),
        Case(
            "pixelcnnpp 28x28, width 40, batch 16",
            "image",
            _sample("pixelcnnpp", GREY, 256, PIXELCNNPP, 16),
            theirs("pixelcnnpp_sample", batch_size=16),
            100,
            3,
        ),
        Case(
            "pixelsnail 28x28, batch 16",
            "image",
            _sample("pixelsnail", BINARY, 2, SNAIL, 16),
            theirs("snail_sample", batch_size=16),
            100,
            3,
        ),
        Case(
            "maf 256, all entries at once against one by one",
            "image",
            ours("sample_flow", model="maf", shape=(256,), inversion="jacobi"),
            ours("sample_flow", model="maf", shape=(256,), inversion="sequential"),
            None,
        ),
        Case(
            "tarflow 16x16x3, all patches at once against one by one",
            "image",
            ours("sample_flow", model="tarflow", shape=(16, 16, 3), inversion="jacobi"),
            ours(
                "sample_flow",
                model="tarflow",
                shape=(16, 16, 3),
                inversion="sequential",
            ),
            None,
        ),
    ],
    "likelihood": [
        Case(
            "mixture of 10 logistics, 16x32x32x3, value and gradient",
            "call",
            ours("mixture_loss"),
            theirs("mixture_loss"),
            0.8,
        ),
        Case(
            "softmax over 256, 16x32x32x3, value and gradient",
            "call",
            ours("softmax_loss"),
            theirs("softmax_loss"),
            1.5,
        ),
    ],
    "compile": [
        Case(
            "transformer of 24 layers, in a loop against one by one",
            "compilation",
            ours("compile_step", **_DEEP, fields=_DEEP_FIELDS | dict(scan_layers=True)),
            ours(
                "compile_step", **_DEEP, fields=_DEEP_FIELDS | dict(scan_layers=False)
            ),
            2.0,
            1,
        ),
    ],
}
