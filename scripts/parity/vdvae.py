"""VDVAE against openai/vdvae."""

import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from row import Row, import_from

from gm.model import init_params
from gm.models.vdvae import VDVAE
from gm.nn.resolutions import SCANNED

BATCH = 2


def compare(checkout: Path) -> Iterator[Row]:
    """The published configuration for CIFAR-10."""
    reference = import_from(checkout, "vae")
    hps = import_from(checkout, "hps")
    h = hps.Hyperparams(
        hps.HPARAMS_REGISTRY["cifar10"],
        # As in its add_vae_arguments and data.py.
        image_size=32,
        image_channels=3,
        bottleneck_multiple=0.25,
        no_bias_above=64,
        num_mixtures=10,
    )
    torch.manual_seed(0)
    theirs = reference.VAE(h)
    with torch.no_grad():
        for weight in theirs.parameters():  # so that layers that start at zero matter
            fan_in = max(weight[0].numel(), 1) if weight.ndim == 4 else 1e4
            weight += 0.1 * torch.randn_like(weight) / math.sqrt(fan_in)
    x = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3))
    log_px, zs = _evaluate(reference, theirs, x)
    ours = VDVAE(
        shape=(32, 32, 3),
        num_values=256,
        width=h.width,
        num_latents=h.zdim,
        encoder_blocks=h.enc_blocks,
        decoder_blocks=h.dec_blocks,
        num_mixtures=h.num_mixtures,
    )
    template = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    params = jax.tree.map(
        lambda a, b: jnp.asarray(b).reshape(a.shape), template, _params(ours, theirs)
    )
    apply = jax.jit(functools.partial(ours.apply, method="log_weight"))
    log_w = apply({"params": params}, jnp.asarray(x), jnp.asarray(zs))[0]
    yield Row(
        "vdvae",
        "32x32x3, cifar10 of hps.py",
        log_px,
        np.asarray(log_w),
        sum(p.numel() for p in theirs.parameters()),
        sum(p.size for p in jax.tree.leaves(params)),
        "one draw of z from q of the reference; its closed-form KL replaced by "
        "log q - log p of that draw, since the closed form makes no importance weight. "
        "It takes the density for the mass of a bin below 1e-5, which is no pmf.",
    )


def _evaluate(reference, theirs, x):
    """Log-weights [B] of the reference, and the z that it drew, [B, all of them]."""
    drawn = []
    generator = torch.Generator().manual_seed(1)

    def draw(mean, log_std):
        eps = torch.randn(mean.shape, generator=generator)
        drawn.append(mean + log_std.exp() * eps)
        return drawn[-1]

    def sampled_kl(mean_q, mean_p, log_std_q, log_std_p):
        q = torch.distributions.Normal(mean_q, log_std_q.exp())
        p = torch.distributions.Normal(mean_p, log_std_p.exp())
        return q.log_prob(drawn[-1]) - p.log_prob(drawn[-1])

    reference.draw_gaussian_diag_samples = draw
    reference.gaussian_analytical_kl = sampled_kl
    v = torch.tensor(x, dtype=torch.float32) / 127.5 - 1
    with torch.no_grad():
        features, stats = theirs.decoder(theirs.encoder(v))
        log_px_z = -theirs.decoder.out_net.nll(features, v) * x[0].size
        kl = sum(s["kl"].double().sum((1, 2, 3)) for s in stats)
    z = [d.permute(0, 2, 3, 1).reshape(len(x), -1) for d in drawn]
    return (log_px_z.double() - kl).numpy(), torch.cat(z, 1).numpy()


def _array(tensor):
    return tensor.detach().numpy()


def _layer(conv):
    return {
        "kernel": _array(conv.weight.permute(2, 3, 1, 0)),
        "bias": _array(conv.bias),
    }


def _bottleneck(block):
    layers = [_layer(c) for c in (block.c1, block.c2, block.c3, block.c4)]
    # Ours are counted by kind: convolutions of size 1 are dense layers.
    count = {"Dense": itertools.count(), "Conv": itertools.count()}
    kinds = ["Dense" if v["kernel"].shape[0] == 1 else "Conv" for v in layers]
    return {f"{k}_{next(count[k])}": v for k, v in zip(kinds, layers, strict=True)}


def _top_down(block):
    return {
        "prior": _bottleneck(block.prior),
        "posterior": _bottleneck(block.enc),
        "project": _layer(block.z_proj),
        "residual": _bottleneck(block.resnet),
    }


def _squeezed(tree):
    """Kernels of size 1 as those of dense layers."""
    return jax.tree.map(
        lambda a: a[0, 0] if a.ndim == 4 and a.shape[:2] == (1, 1) else a, tree
    )


def _runs(name, runs, blocks):
    """Parameters by run; those of a loop are stacked."""
    blocks, params = list(blocks), {}
    for i, run in enumerate(runs):
        part, blocks = blocks[: run.count], blocks[run.count :]
        trees = [_squeezed(block) for block in part]
        if run.count >= SCANNED:
            trees = [jax.tree.map(lambda *a: np.stack(a), *trees)]
        params |= {f"{name}_{i}_{j}": tree for j, tree in enumerate(trees)}
    return params


def _head(conv, mixtures, channels=3):
    """Its outputs are weights, then the rest by channel and kind; ours by mixture."""
    per_mixture = [np.arange(mixtures)]
    place = mixtures + np.arange(3 * channels * mixtures).reshape(channels, 3, mixtures)
    for kind in range(3):
        per_mixture += list(place[:, kind])
    order = np.stack(per_mixture, axis=1).ravel()
    layer = _squeezed(_layer(conv))
    return {"kernel": layer["kernel"][:, order], "bias": layer["bias"][order]}


def _params(ours, theirs):
    """The weights of the reference as our tree."""
    down, up = ours.runs
    decoder = theirs.decoder
    starts = {f"start_{b.shape[2]}": _array(b)[0] for b in decoder.bias_xs}
    return {
        "stem": _layer(theirs.encoder.in_conv),
        **_runs("down", down, map(_bottleneck, theirs.encoder.enc_blocks)),
        **_runs("up", up, map(_top_down, decoder.dec_blocks)),
        **{name: b.transpose(1, 2, 0) for name, b in starts.items()},
        "gain": _array(decoder.gain).ravel(),
        "bias": _array(decoder.bias).ravel(),
        "head": _head(decoder.out_net.out_conv, ours.mixtures),
    }
