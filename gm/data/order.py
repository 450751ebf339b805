"""The order of training examples: a pure function of (seed, step), no iterator state."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of one epoch, int64 [N]: Philox keyed by (seed, epoch)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(num_examples)


def batch_indices(
    seed: int, num_examples: int, batch_size: int, step: int, num_steps: int = 1
) -> np.ndarray:
    """Which examples steps `step`, `step + 1`, ... see: int32 [num_steps, batch_size].

    Batches follow each other through the epochs' permutations without dropping a rest:
    position p of the stream is example `permutation(seed, p // N)[p % N]`.
    """
    positions = np.arange(step * batch_size, (step + num_steps) * batch_size)
    epochs, places = np.divmod(positions, num_examples)
    indices = np.empty(len(positions), np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order = permutation(seed, int(epoch), num_examples)
        indices[here] = order[places[here]]
    return indices.reshape(num_steps, batch_size)
