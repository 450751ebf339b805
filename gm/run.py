"""A trained run, used from Python: `gm.load`.

Arrays in and out are NumPy's; x is always integers [N, *shape], nats are float64 [N].
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from gm import generate, trained
from gm.codec import compress, decompress
from gm.complete import Budget, Completions, complete, parse_mask
from gm.config import RunConfig
from gm.data.dataset import ArraySplit
from gm.errors import InputError, check_whole
from gm.evaluate import evaluate_nats
from gm.likelihood import bits
from gm.model import LikelihoodModel, check_conditions, check_examples
from gm.results import Row, read_rows


def _arrays(x: Any, cond: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Both as arrays: lists will do."""
    return np.asarray(x), None if cond is None else np.asarray(cond)


class Run:
    """A trained run: what `load` returns."""

    def __init__(self, found: trained.Trained):
        """Of what `gm.trained.load` read."""
        self._found = found

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        config = self.config
        return f"Run({config.model} of {config.dataset}, {shape}, {self.checkpoint})"

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._found.run.path

    @property
    def config(self) -> RunConfig:
        """What was trained on what, and how."""
        return self._found.config

    @property
    def checkpoint(self) -> str:
        """Which parameters these are, such as "best, step 500"."""
        return self._found.checkpoint

    @property
    def model(self) -> LikelihoodModel:
        """The Flax module; its methods take {"params": run.params}."""
        return self._found.model

    @property
    def params(self) -> Any:
        """The averaged parameters: a pytree of arrays."""
        return self._found.params

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example: (H, W, C) or (L,)."""
        return self.model.shape

    @property
    def num_values(self) -> int:
        """Symbols are 0 to num_values - 1."""
        return self.model.num_values

    def rows(self) -> list[Row]:
        """Its result rows, as `evaluate` wrote them; [] before that."""
        return read_rows([str(self.path)], may_be_empty=True)

    def log_prob(
        self,
        x: np.ndarray,
        cond: np.ndarray | None = None,
        *,
        num_importance_samples: int = 1,
        batch_size: int = 100,
        seed: int = 0,
    ) -> np.ndarray:
        """Log P(x) of each example, or a bound: see `run.model.estimate`.

        Args:
          x: integers [N, *shape].
          cond: [N, ...] for a conditional run.
          num_importance_samples: draws of each example, for a tighter bound.
          batch_size: examples at a time.
          seed: of the noise.

        Returns:
          nats, float64 [N].

        Raises:
          InputError: examples that the model has no probability for, or more than one
            draw of an ELBO.
        """
        x, cond = _arrays(x, cond)
        check_examples(self.model, x, cond, "scored")
        nats, _ = evaluate_nats(
            self.model,
            self.params,
            ArraySplit(x, cond),
            np.arange(len(x)),
            num_importance_samples=num_importance_samples,
            batch_size=batch_size,
            seed=seed,
        )
        return -nats

    def bits_per_dim(
        self, x: np.ndarray, cond: np.ndarray | None = None, **options: int
    ) -> float:
        """The mean over examples, of what `log_prob` gives for these arguments."""
        nats = -self.log_prob(x, cond, **options).mean()
        return bits(float(nats)) / self.model.num_dims

    def sample(
        self,
        num_samples: int,
        cond: np.ndarray | None = None,
        *,
        batch_size: int = 250,
        seed: int = 0,
        **options: float,
    ) -> np.ndarray:
        """Draws examples, int32 [num_samples, *shape].

        Args:
          num_samples: N.
          cond: [N, ...] for a conditional run.
          batch_size: samples at a time.
          seed: sample i is a function of the seed, i and the condition alone.
          options: of the model: temperature, top_p or guidance, which leave the model.

        Raises:
          InputError: a condition is missing, or an option that the model has not, or of
            a value that cannot be.
        """
        check_whole(1, num_samples=num_samples)
        _, cond = _arrays((), cond)
        check_conditions(self.model, cond, num_samples)
        generate.check_options(self.model, options)
        given: dict[str, Any] = dict(batch_size=batch_size, seed=seed, **options)
        return generate.draw(self.model, self.params, num_samples, cond, **given)

    def complete(
        self,
        x: np.ndarray,
        mask: str | np.ndarray,
        cond: np.ndarray | None = None,
        *,
        num_completions: int = 4,
        seed: int = 0,
    ) -> Completions:
        """Draws what is hidden given what is seen, by the most exact method there is.

        Args:
          x: integers [N, *shape]; the hidden symbols serve the nats alone.
          mask: what is hidden: bool [*shape], or such as "bottom" or "random:0.5".
          cond: [N, ...] for a conditional run.
          num_completions: M, of each example.
          seed: of the noise.

        Returns:
          Completions: integers x [N, M, *shape], the method, and its nats.

        Raises:
          InputError: a model or a mask with which that cannot be done.
        """
        x, cond = _arrays(x, cond)
        check_examples(self.model, x, cond, "completed")
        if isinstance(mask, str):
            mask = parse_mask(mask, self.shape, seed)
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != self.shape:
            raise InputError(
                f"mask: {mask.dtype} {mask.shape}; give bool {self.shape}, True: hidden"
            )
        budget = Budget(num_completions=num_completions)
        return complete(self.model, self.params, x, cond, mask, budget, seed=seed)

    def compress(self, x: np.ndarray, cond: np.ndarray | None = None) -> bytes:
        """An archive of the examples, as short as the model finds them likely.

        Raises:
          InputError: a model without a codec, or examples that it does not allow.
        """
        return compress(self._found, *_arrays(x, cond))

    def decompress(self, archive: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        """(x, cond) of an archive, exactly as they were.

        Raises:
          InputError: a damaged archive, or one of another run, version or device.
        """
        return decompress(self._found, archive)


def load(path: str | os.PathLike, checkpoint: str | int = "best") -> Run:
    """Reads a run directory, or what `experiments.export` made of one.

    Args:
      path: the --workdir of a training run.
      checkpoint: "best" by validation, "latest", or a step number that was kept.

    Raises:
      InputError: no run there, or no sound checkpoint.
    """
    return Run(trained.load(path, str(checkpoint)))
