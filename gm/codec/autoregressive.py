"""Autoregressive models by range coding: the cached `step` that samples also codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm.codec.coders import QueueReader, QueueWriter
from gm.codec.program import Program


class AutoregressiveCodec:
    """Codes symbol by symbol; of a batch, the same symbol of all examples at once."""

    stack = False
    batch_size = 256

    def __init__(self, program: Program) -> None:
        """Compiles the step with its cache."""
        self.program = program
        size = program.batch_size
        self._start = program.compile(
            lambda model, cond: model.init_cache(size, cond), program.cond
        )

        def step(model, cache, index, previous):
            cache, params = model.step(cache, index, previous)
            return cache, model.with_end(model.symbol_logits(params), index, previous)

        cache, previous = self._start(program.cond), np.zeros(size, np.int32)
        self._step = program.compile(step, cache, np.int32(0), previous, donate=0)

    def _run(self, cond: np.ndarray | None, code: Any) -> None:
        """Calls code(index, logits [B, K]) -> symbols [n] for each symbol in turn."""
        cache = self._start(self.program.pad(cond, self.program.cond))
        # Two of a model's buffers may be one; the step overwrites each.
        cache = jax.tree.map(jnp.copy, cache)
        previous = np.zeros(self.program.batch_size, np.int32)
        for index in range(self.program.model.num_dims):
            cache, logits = self._step(cache, np.int32(index), previous)
            symbols = code(index, np.asarray(logits))
            previous = np.zeros_like(previous)
            previous[: len(symbols)] = symbols

    def encode(
        self, coder: QueueWriter, x: np.ndarray, cond: np.ndarray | None
    ) -> None:
        """Codes integers [n, *shape], n <= B."""
        x = x.reshape(len(x), -1)

        def put(index, logits):
            coder.put(x[:, index], logits[: len(x)])
            return x[:, index]

        self._run(cond, put)

    def decode(
        self, coder: QueueReader, count: int, cond: np.ndarray | None
    ) -> np.ndarray:
        """The next n examples, int32 [n, *shape]."""
        model = self.program.model
        x = np.empty((count, model.num_dims), np.int32)

        def get(index, logits):
            x[:, index] = coder.get(logits[:count])
            return x[:, index]

        self._run(cond, get)
        return x.reshape(count, *model.shape)
