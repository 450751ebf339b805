"""The networks of a codec: one compiled function and one shape for both ends.

A probability that differs in its last bit decodes to another symbol, so an encoder may
not use the parallel pass where the decoder has to go step by step: both run the same
executables on the same padded batches.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gm import sharding
from gm.model import LikelihoodModel, example


class Program:
    """Compiles functions of a model and keeps the digest of what was compiled.

    On a mesh the devices share each batch. Another mesh is another program.
    """

    def __init__(
        self,
        model: LikelihoodModel,
        params: Any,
        batch_size: int,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        self.model, self.batch_size, self._mesh = model, batch_size, mesh
        self.x, self.cond = jax.device_get(example(model, batch_size))
        placed = sharding.place(mesh, params) if mesh else jax.device_put(params)
        self._variables = {"params": placed}
        self._hash = hashlib.sha256()

    def compile(
        self, function: Callable, *args: Any, donate: int | None = None
    ) -> Callable:
        """Compiles function(model, *args), bound to the parameters.

        Args:
          function: of a bound module and arrays.
          args: arrays, or their shapes and types; the compiled function takes no others.
          donate: which of `args` the result may overwrite.
        """

        def apply(variables, *args):
            variables = sharding.gather(self._mesh, variables)
            return self.model.apply(variables, *args, method=function)

        donated = () if donate is None else (donate + 1,)
        laid_out: dict[str, Any] = {}
        if self._mesh is not None:
            given = sharding.layout(self._mesh, self._variables)
            shapes = jax.eval_shape(apply, self._variables, *args)
            laid_out["in_shardings"] = (given, *map(self._by_rows, args))
            laid_out["out_shardings"] = self._by_rows(shapes)
        jitted = jax.jit(apply, donate_argnums=donated, **laid_out)
        lowered = jitted.lower(self._variables, *args)
        # The program's text, not its name: a change of the model's code is noticed.
        self._hash.update(lowered.as_text().encode())
        compiled = lowered.compile()
        return lambda *args: compiled(self._variables, *args)

    def _by_rows(self, tree):
        """Shardings: split is what has a row for each example."""

        def of(leaf):
            rows = leaf.shape[:1] == (self.batch_size,)
            return sharding.rows(self._mesh) if rows else sharding.whole(self._mesh)

        return jax.tree.map(of, tree)

    def digest(self) -> str:
        """sha256 of everything compiled so far, in that order."""
        return self._hash.hexdigest()

    def pad(self, rows: np.ndarray | None, like: np.ndarray | None) -> Any:
        """Fills a batch [B, ...] up with zeros, in the shape and type of `like`."""
        if rows is None or like is None:
            return None
        batch = np.zeros_like(like)
        batch[: len(rows)] = rows
        return batch
