"""Likelihood-based generative models in JAX: train, evaluate, compare.

The public names for use from Python:

  load(path)     reads a run directory, as `train` or `export` wrote it -> Run
  Run            log_prob, bits_per_dim, sample, complete, compress, decompress, rows
  load_data(name)  integers, split: train, valid and test -> gm.data.Dataset
  InputError     what is raised for a mistake of the caller's, in one line

  import gm
  run = gm.load("runs/vae")
  x = run.sample(16)                      # integers [16, *run.shape]
  nats = run.log_prob(x)                  # float64 [16]
  seen = run.complete(x, "bottom").x      # integers [16, 4, *run.shape]
  assert (run.decompress(run.compress(x))[0] == x).all()

Importing `gm` is cheap: JAX is imported with the first of these names that is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gm.data import load as load_data
    from gm.errors import InputError
    from gm.run import Run, load

__all__ = ["InputError", "Run", "load", "load_data"]
__version__ = "0.1.0"

_WHERE = {
    "InputError": ("gm.errors", "InputError"),
    "Run": ("gm.run", "Run"),
    "load": ("gm.run", "load"),
    "load_data": ("gm.data", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gm' has no attribute {name!r}")
    module, own = _WHERE[name]
    return getattr(importlib.import_module(module), own)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
