"""Variational diffusion models against the authors' code, in JAX as ours."""

import contextlib
import math
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from row import Row, import_from

from gm.model import init_params, log_prob
from gm.models.vdm import VDM

SHAPE, BATCH, WIDTH, DEPTH = (8, 8, 3), 4, 128, 32
GAMMA = (-13.3, 5.0)


def compare(checkout: Path) -> Iterator[Row]:
    """The network of CIFAR-10, on smaller images."""
    reference = import_from(checkout, "model_vdm", absent=("chex",))
    config = reference.VDMConfig(
        vocab_size=256,
        sample_softmax=False,
        antithetic_time_sampling=True,
        with_fourier_features=True,
        with_attention=False,
        gamma_type="learnable_scalar",
        gamma_min=GAMMA[0],
        gamma_max=GAMMA[1],
        sm_n_timesteps=0,
        sm_n_embd=WIDTH,
        sm_n_layer=DEPTH,
        sm_pdrop=0.0,
    )
    theirs = reference.VDM(config)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 256, (BATCH, *SHAPE)))
    keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: theirs.init(keys, x, jnp.zeros(BATCH)))["params"]
    their_params = jax.tree.map_with_path(lambda p, s: _weights(rng, p, s), shapes)
    ours = VDM(
        SHAPE, 256, width=WIDTH, depth=DEPTH, gamma_min=GAMMA[0], gamma_max=GAMMA[1]
    )
    template = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    params = jax.tree.map(
        lambda a, b: jnp.asarray(b).reshape(a.shape), template, _ours(their_params)
    )
    noise = rng.standard_normal((2, BATCH, math.prod(SHAPE))).astype(np.float32)

    with _given(noise):
        out = theirs.apply(
            {"params": their_params},
            x,
            jnp.zeros(BATCH),
            rngs={"sample": keys["sample"]},
        )
    loss = out.loss_recon + out.loss_klz + out.loss_diff
    centred = [
        unittest.mock.patch(f"gm.{module}.scale", _centres)
        for module in ("models.vdm", "nn.diffusion")
    ]
    with _given(noise), centred[0], centred[1]:
        log_px = log_prob(ours, params, x, None, jax.random.key(0), train=True)[0]
    yield Row(
        "vdm",
        f"{'x'.join(map(str, SHAPE))}, {DEPTH} blocks, width {WIDTH}",
        -np.asarray(loss),
        np.asarray(log_px),
        sum(p.size for p in jax.tree.leaves(their_params)),
        sum(p.size for p in jax.tree.leaves(params)),
        "the reference has values at (2x + 1)/K - 1, ours at 2x/(K - 1) - 1: compared at "
        "those of the reference. Its 512 further parameters weigh a condition that is "
        "always 0. Both were given the same noise and times.",
    )


def _weights(rng, path, shape):
    """Random weights under which every layer matters, also those that start at 0."""
    name = path[-1].key
    if name in ("w", "b"):  # of the schedule
        return jnp.full(shape.shape, GAMMA[1] - GAMMA[0] if name == "w" else GAMMA[0])
    fan_in = math.prod(shape.shape[:-1]) if name == "kernel" else 100
    drawn = rng.standard_normal(shape.shape) / math.sqrt(fan_in)
    return jnp.asarray(drawn + (name == "scale"), jnp.float32)


@contextlib.contextmanager
def _given(noise):
    """Draws of the size of a batch are the noise of z_0, then that of z_t; t from 0.3."""
    rest, normal = list(noise), jax.random.normal
    examples = ((BATCH, *SHAPE), (BATCH, math.prod(SHAPE)))

    def draw(key, shape=(), *args, **kwargs):
        if shape in examples:
            return jnp.asarray(rest.pop(0)).reshape(shape)
        return normal(key, shape, *args, **kwargs)

    with (
        unittest.mock.patch("jax.random.normal", draw),
        unittest.mock.patch("jax.random.uniform", return_value=jnp.float32(0.3)),
    ):
        yield


def _centres(x, num_values):
    return (2 * x.astype(jnp.float32) + 1) / num_values - 1


def _ours(params):
    """Our parameters of theirs."""
    score, gamma = params["score_model"], params["gamma"]

    def block(p):
        named = {
            "Conv_0": p["conv1"],
            "Conv_1": p["conv2"],
            "Dense_0": p["cond_proj"],
            "GroupNorm_0": p["GroupNorm_0"],
            "GroupNorm_1": p["GroupNorm_1"],
        }
        return named | ({"shortcut": p["nin_shortcut"]} if "nin_shortcut" in p else {})

    def blocks(*names):
        return jax.tree.map(lambda *a: jnp.stack(a), *(block(score[n]) for n in names))

    first = score["dense0"]  # its last input is the condition, always 0
    attention = score["mid.attn_1"]
    qkv = [attention[n] for n in "qkv"]
    down = [f"down.block_{i}" for i in range(DEPTH)]
    network = {
        "Dense_0": {"kernel": first["kernel"][:-1], "bias": first["bias"]},
        "Dense_1": score["dense1"],
        "stem": _stem(score["conv_in"]),
        "down": blocks(*down, "mid.block_1"),
        "attention": {
            "GroupNorm_0": attention["GroupNorm_0"],
            "qkv": jax.tree.map(lambda *a: jnp.concatenate(a, -1), *qkv),
            "out": attention["proj_out"],
        },
        "middle": block(score["mid.block_2"]),
        "up": blocks(*(f"up.block_{i}" for i in range(DEPTH + 1))),
        "GroupNorm_0": score["GroupNorm_0"],
        "head": score["conv_out"],
    }
    span = jnp.log(jnp.expm1(jnp.abs(gamma["w"])))
    return {"network": network, "schedule": {"start": gamma["b"], "span": span}}


def _stem(p):
    """The first convolution, whose inputs are in another order and phase.

    Theirs: z, then sin and cos of a = 128 pi z and 2a for each channel; ours by frequency,
    of a - pi/2 and 2a - pi.
    """
    z, sin, cos = jnp.split(p["kernel"], [3, 9], axis=2)
    (sin_1, sin_2), (cos_1, cos_2) = ((a[:, :, ::2], a[:, :, 1::2]) for a in (sin, cos))
    ours = [z, -cos_1, -sin_2, sin_1, -cos_2]
    return {"kernel": jnp.concatenate(ours, axis=2), "bias": p["bias"]}
