"""What is compared with a reference implementation, and how one is imported."""

import dataclasses
import importlib.util
import sys
import types
import unittest.mock
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """A randomly initialised network of the reference, and ours with its weights."""

    model: str  # a file of gm/models
    configuration: str  # such as "28x28x1, 5 layers, width 32"
    reference: np.ndarray  # float [B]: log-likelihoods in nats that the reference gives
    ours: np.ndarray  # float [B]
    reference_params: int  # number of trained parameters
    our_params: int
    note: str = ""  # where the reference is wrong, or counts otherwise, and why


def import_from(
    checkout: Path, name: str, absent: tuple[str, ...] = (), bare: tuple[str, ...] = ()
) -> types.ModuleType:
    """Imports a module of a checkout, without what is not compared.

    Args:
      checkout: its folder, put on sys.path.
      name: of the module.
      absent: modules that are imported there but not used; stood in for if not installed.
      bare: packages of the checkout whose __init__ is not run, since it imports more.
    """
    for module in absent:
        if importlib.util.find_spec(module.split(".")[0]) is None:
            sys.modules[module] = unittest.mock.MagicMock()
    for package in bare:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(checkout / package.replace(".", "/"))]
    sys.path.insert(0, str(checkout))
    return importlib.import_module(name)
