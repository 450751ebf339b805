"""Integer flows by range coding: the map is a bijection of integers, so no bits come back.

Steps are shifts, z <- z + shift(the rest of z) mod K on some entries, and entries that are
factored out, by their pmf given the entries that go on. What a step computes comes from
one compiled function that both ends use on the same integers.
"""

import numpy as np

from gm.codec.coders import QueueReader, QueueWriter
from gm.codec.program import Program


class IntegerFlowCodec:
    """Codes what each step factors out, from the last step to the first."""

    stack = False
    batch_size = 100

    def __init__(self, program: Program) -> None:
        """Compiles one function for each step."""
        self.program = program
        model, size = program.model, program.batch_size
        self._z = np.zeros((size, model.num_dims), np.int32)
        self._steps: list[tuple[str, np.ndarray]] = model.coding_steps()
        names = {"shift": "coding_shift", "base": "coding_logits"}
        self._functions = [
            program.compile(
                lambda m, z, c, i=i, n=names[kind]: getattr(m, n)(i, z, c),
                self._z,
                program.cond,
            )
            for i, (kind, _) in enumerate(self._steps)
        ]

    def _run(self, index, z, cond):
        """What a step computes from z [n, D], of which it sees what it does not touch."""
        seen = z.copy()
        seen[:, self._steps[index][1]] = 0
        batch = self.program.pad(seen, self._z)
        cond = self.program.pad(cond, self.program.cond)
        return np.asarray(self._functions[index](batch, cond))[: len(z)]

    def encode(
        self, coder: QueueWriter, x: np.ndarray, cond: np.ndarray | None
    ) -> None:
        """Codes integers [n, *shape], n <= B."""
        num_values = self.program.model.num_values
        z = x.reshape(len(x), -1).astype(np.int32)
        found = []
        for index, (kind, entries) in enumerate(self._steps):
            out = self._run(index, z, cond)
            if kind == "shift":
                z = (z + out) % num_values
            else:
                found.append((z[:, entries].ravel(), out.reshape(-1, num_values)))
        for symbols, logits in reversed(found):
            coder.put(symbols, logits)

    def decode(
        self, coder: QueueReader, count: int, cond: np.ndarray | None
    ) -> np.ndarray:
        """The next n examples, int32 [n, *shape]."""
        model = self.program.model
        z = np.zeros((count, model.num_dims), np.int32)
        for index, (kind, entries) in reversed(list(enumerate(self._steps))):
            out = self._run(index, z, cond)
            if kind == "shift":
                z = (z - out) % model.num_values
            else:
                symbols = coder.get(out.reshape(-1, model.num_values))
                z[:, entries] = symbols.reshape(count, -1)
        return z.reshape(count, *model.shape)
