"""The gated PixelCNN against pytorch-generative."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from row import Row, import_from

from gm.model import init_params, log_prob
from gm.models.pixelcnn import PixelCNN, VerticalLayer
from gm.nn.views import Whole

LAYERS, WIDTH = 5, 32


class Late(VerticalLayer):
    """A row's convolution reaches the next layer a row later."""

    def handed_on(self, view: Whole, tall: jax.Array) -> jax.Array:
        """The row before."""
        return view.delay(tall)


class Same(PixelCNN):
    """With the vertical stack of the reference."""

    vertical_layer = Late


def _conv(layer):
    """A convolution's weights [out, in, h, w] as ours."""
    kernel = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
    return {"kernel": kernel, "bias": layer.bias.detach().numpy()}


def _layers(theirs, last):
    """A layer's two stacks; what the reference's last layer leaves idle adds nothing."""
    own, residual = _conv(theirs._vstack_1x1), _conv(theirs._hstack_residual)
    if last:
        own["bias"] = np.repeat(np.float32([0, -1e4]), WIDTH)  # a closed gate
        residual = jax.tree.map(np.zeros_like, residual)
    vertical = {
        "wide": _conv(theirs._vstack_1xN),
        "tall": _conv(theirs._vstack_Nx1),
        "link": _conv(theirs._link),
        "own": own,
    }
    horizontal = {
        "row": _conv(theirs._hstack_1xN),
        "residual": residual,
        "skip": _conv(theirs._hstack_skip),
    }
    return vertical, horizontal


def compare(checkout: Path) -> Iterator[Row]:
    """28 x 28 binary pixels, 5 layers of width 32."""
    reference = import_from(
        checkout,
        "pytorch_generative.models.autoregressive.gated_pixel_cnn",
        bare=("pytorch_generative",),
    )
    torch.manual_seed(0)
    theirs = reference.GatedPixelCNN(
        n_gated=LAYERS, gated_channels=WIDTH, head_channels=WIDTH
    )
    ours = Same(
        shape=(28, 28, 1), num_values=2, width=WIDTH, depth=LAYERS, head_width=WIDTH
    )
    params = {}
    layers = [theirs._input, *theirs._gated_layers]
    for i, layer in enumerate(layers):
        found = _layers(layer, i == LAYERS)
        params[f"vertical_{i}"], params[f"horizontal_{i}"] = found
    for name, layer in (("hidden_0", theirs._head[1]), ("out_0", theirs._head[3])):
        dense = _conv(layer)
        params.setdefault("head", {})[name] = dense | {"kernel": dense["kernel"][0, 0]}
    template = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    params = jax.tree.map(
        lambda a, b: jnp.asarray(b).reshape(a.shape), template, params
    )
    x = np.random.default_rng(0).integers(0, 2, (16, 28, 28, 1))
    pixels = torch.tensor(x.reshape(16, 1, 28, 28), dtype=torch.float32)
    with torch.no_grad():
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            theirs(pixels), pixels, reduction="none"
        )
    yield Row(
        "pixelcnn",
        "28x28x1, 5 gated layers, width 32",
        -loss.sum((1, 2, 3)).numpy(),
        np.asarray(log_prob(ours, params, jnp.asarray(x), None, jax.random.key(0))[0]),
        sum(p.numel() for p in theirs.parameters()),
        sum(p.size for p in jax.tree.leaves(params)),
        "in the reference's vertical stack each layer shifts down by a row, and of its own "
        "row sees one pixel: in the row above, pixels more than 3 to the right are out of "
        "reach whatever the depth (2016b shifts only where the horizontal stack reads). "
        "Compared with ours doing the same. What its last layer would hand on to a next "
        "one, 3,168 weights, is read by nothing; ours adds it to the skip connections, "
        "here zero.",
    )
