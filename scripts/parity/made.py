"""MADE against pytorch-generative."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from row import Row, import_from

from gm.model import init_params, log_prob
from gm.models.made import MADE

DIMS, WIDTH = 784, 500


def compare(checkout: Path) -> Iterator[Row]:
    """784-500 on binary pixels."""
    reference = import_from(
        checkout,
        "pytorch_generative.models.autoregressive.made",
        bare=("pytorch_generative",),
    )
    torch.manual_seed(0)
    theirs = reference.MADE(DIMS, [WIDTH])
    masks, order = theirs._sample_masks()
    connected = np.random.RandomState(0)  # as in _sample_masks, which hides the degrees
    assert (connected.permutation(DIMS) == order).all()
    hidden = connected.randint(0, DIMS - 1, size=WIDTH)

    class Same(MADE):
        """With the order and the degrees that the reference has drawn."""

        def degrees(self):
            return order[None] + 1, [hidden[None] + 1]

    ours = Same(shape=(28, 28, 1), num_values=2, width=WIDTH, activation="relu")
    first, last = (m for m in theirs.modules() if isinstance(m, reference.MaskedLinear))

    def kernel(layer, mask):
        return (layer.weight * mask).detach().numpy().T

    encoder = kernel(first, masks[0])
    params = {
        # Our inputs are -1 and 1, theirs 0 and 1.
        "layers_0": {
            "kernel": encoder / 2,
            "bias": first.bias.detach().numpy() + encoder.sum(0) / 2,
        },
        "head": {"kernel": kernel(last, masks[1]), "bias": last.bias.detach().numpy()},
    }
    template = jax.eval_shape(lambda: init_params(ours, jax.random.key(0)))
    params = jax.tree.map(
        lambda a, b: jnp.asarray(b).reshape(a.shape), template, params
    )
    x = np.random.default_rng(0).integers(0, 2, (16, 28, 28, 1))
    with torch.no_grad():
        logits = theirs(torch.tensor(x.reshape(16, 1, 28, 28), dtype=torch.float32))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.reshape(16, -1),
            torch.tensor(x.reshape(16, -1), dtype=torch.float32),
            reduction="none",
        )
    yield Row(
        "made",
        "784-500, one random mask",
        -loss.sum(1).numpy(),
        np.asarray(log_prob(ours, params, jnp.asarray(x), None, jax.random.key(0))[0]),
        sum(p.numel() for p in theirs.parameters()),
        sum(p.size for p in jax.tree.leaves(params)),
        "the reference draws new masks at every call, also for each symbol of a sample, "
        "and multiplies its weights by them in place: with more than one mask the "
        "weights that any mask cuts are lost. Compared with one mask.",
    )
