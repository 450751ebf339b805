"""Event files, for those who watch with TensorBoard: scalars, samples, hyperparameters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from gm import generate
from gm.data.dataset import Dataset
from gm.errors import InputError
from gm.model import LikelihoodModel
from gm.writer import image_grid

_SAMPLES = 16


class Events:
    """The event files of a run."""

    def __init__(self, directory: Path, resume_step: int):
        """Opens a file; TensorBoard leaves out what older ones have after that step.

        Raises:
          InputError: the directory cannot be written.
        """
        purge = resume_step + 1 if resume_step else None
        # Files are named after the second: the hyperparameters' own would overwrite this
        # one, in a run of less than a second, but for the suffix.
        try:
            self._writer = SummaryWriter(
                str(directory), purge_step=purge, filename_suffix=".run"
            )
        except OSError as error:
            raise InputError(
                f"--tensorboard: {directory}: cannot be written ({error.strerror})"
            ) from None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row, as `Metrics.write` does."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def samples(
        self, step: int, model: LikelihoodModel, params: Any, dataset: Dataset
    ) -> None:
        """Draws samples with one noise for every step, under conditions of the data."""
        numbers = np.arange(_SAMPLES) % len(dataset.valid)
        cond = dataset.valid.batch(numbers)[1] if model.cond is not None else None
        x = generate.draw(model, params, _SAMPLES, cond)
        if len(model.shape) == 3:
            grid = np.asarray(image_grid(x, model.num_values).convert("RGB"))
            self._writer.add_image("samples", grid, step, dataformats="HWC")
            return
        lines = generate.as_lines(x, dataset.symbols, dataset.unit)
        text = "\n".join(f"    {line}" for line in lines)  # Markdown: as it is
        self._writer.add_text("samples", text, step)

    def hyperparameters(
        self, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Adds what the run was, with its last validation."""
        flat = dict(config) | dict(config.get("settings", {}))
        plain = {
            k: v if isinstance(v, int | float | str) else str(v)
            for k, v in flat.items()
            if not isinstance(v, dict)
        }
        valid = [r["valid/bpd"] for r in rows if r.get("valid/bpd") is not None]
        metrics = {"hparam/valid_bpd": valid[-1]} if valid else {}
        self._writer.add_hparams(plain, metrics, name=".")

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
