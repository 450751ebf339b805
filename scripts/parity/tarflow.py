"""TarFlow against Apple's."""

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
from gm.models.tarflow import TarFlow
from gm.spec import CondSpec

SIZE, CHANNELS, PATCH, WIDTH, BLOCKS, DEPTH, HEAD = 16, 3, 4, 128, 3, 2, 64

NOTE = (
    "log density of the same points of [-1, 1]. The reference has a position in each block "
    "for the last patch, of which nothing follows, and an embedding of the classes in each "
    "block, here made equal; ours has one, and if volume preserving a scale and shift per "
    "channel, here at none."
)


def compare(checkout: Path) -> Iterator[Row]:
    """16x16x3, patches of 4: affine with classes, affine, and volume preserving."""
    reference = import_from(checkout, "transformer_flow")
    for num_classes, affine in ((5, True), (0, True), (0, False)):
        yield _row(reference, num_classes, affine)


def _row(reference, num_classes, affine):
    torch.manual_seed(0)
    theirs = reference.Model(
        CHANNELS, SIZE, PATCH, WIDTH, BLOCKS, DEPTH, affine, num_classes
    )
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.add_(0.02 * torch.randn_like(p))
            if name.endswith("class_embed"):  # ours is shared by the blocks
                p.copy_(theirs.blocks[0].class_embed)
    ours = TarFlow(
        shape=(SIZE, SIZE, CHANNELS),
        num_values=256,
        cond=CondSpec("class", num_classes) if num_classes else None,
        preprocessing="identity",
        patch_size=PATCH,
        width=WIDTH,
        num_blocks=BLOCKS,
        depth=DEPTH,
        num_heads=WIDTH // HEAD,
        volume_preserving=not affine,
        log_scale_bound=None,
    )
    params = _params(theirs, num_classes, affine)
    expected = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: a.shape, expected)

    rng = np.random.default_rng(0)
    y = rng.uniform(-1, 1, (8, SIZE, SIZE, CHANNELS)).astype(np.float32)
    label = rng.integers(0, num_classes, 8) if num_classes else None
    given = None if label is None else jnp.asarray(label)
    z, log_det = ours.apply({"params": params}, y, given, method="forward")
    log_base = ours.apply({"params": params}, z, method="log_base")
    with torch.no_grad():
        images = torch.tensor(y).permute(0, 3, 1, 2)
        label = None if label is None else torch.tensor(label)
        latent, _, mean_log_det = theirs(images, label)
    dims = y[0].size
    log_p = -0.5 * (latent**2 + math.log(2 * math.pi)).sum((1, 2))
    log_p += dims * mean_log_det  # theirs is a mean over dimensions
    return Row(
        "tarflow",
        f"16x16x3, patches of 4, {BLOCKS} blocks of {DEPTH} layers, "
        + ("affine" if affine else "volume preserving")
        + (f", {num_classes} classes" if num_classes else ""),
        log_p.numpy(),
        np.asarray(log_base + log_det),
        sum(p.numel() for p in theirs.parameters()),
        sum(p.size for p in jax.tree.leaves(params)),
        NOTE if num_classes else "",
    )


def _dense(layer, inputs=None, outputs=None):
    """Kernel and bias, the entries of a patch in our order where given."""
    kernel, bias = layer.weight.detach().numpy().T, layer.bias.detach().numpy()
    kernel = kernel if inputs is None else kernel[inputs]
    if outputs is not None:
        kernel, bias = kernel[:, outputs], bias[outputs]
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}


def _norm(layer):
    scale, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}


def _patch_order():
    """For each entry of our patches, its index in theirs, which are channels first."""
    # Ours: squeezes of 2 x 2, the later one outermost.
    where = np.arange(PATCH**2 * CHANNELS).reshape(CHANNELS, PATCH, PATCH)
    where = where.transpose(1, 2, 0)
    while where.shape[0] > 1:
        h, w, c = where.shape
        where = where.reshape(h // 2, 2, w // 2, 2, c).transpose(0, 2, 1, 3, 4)
        where = where.reshape(h // 2, w // 2, 4 * c)
    return where.ravel()


def _block(block: Any, index: int, affine: bool) -> dict[str, Any]:
    """The parameters of a block; ours sees the patches in the order that it is given."""
    order = _patch_order()
    outputs = np.concatenate([order, order + len(order)]) if affine else order
    places = block.pos_embed.detach().numpy()[:: -1 if index % 2 else 1][:-1]
    params: dict[str, Any] = {
        "enter": _dense(block.proj_in, inputs=order),
        "leave": _dense(block.proj_out, outputs=outputs),
        "places": jnp.asarray(places.copy()),
    }
    for i, layer in enumerate(block.attn_blocks):
        attention, mlp = layer.attention, layer.mlp
        params[f"blocks_{i}"] = {
            "attention": {"qkv": _dense(attention.qkv), "out": _dense(attention.proj)},
            "LayerNorm_0": _norm(attention.norm),
            "LayerNorm_1": _norm(mlp.norm),
            "up": _dense(mlp.main[0]),
            "down": _dense(mlp.main[2]),
        }
    return params


def _params(theirs: Any, num_classes: int, affine: bool) -> dict[str, Any]:
    blocks = [_block(b, i, affine) for i, b in enumerate(theirs.blocks)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    params: dict[str, Any] = {"blocks": {"layer": stacked}}
    if num_classes:
        table = theirs.blocks[0].class_embed.detach().numpy()[:, 0]
        params["embedding"] = {"Embed_0": {"embedding": jnp.asarray(table)}}
    if not affine:
        zeros = jnp.zeros(PATCH**2 * CHANNELS)
        params["scale"] = {"log_gain": zeros, "shift": zeros}
    return params
