"""What is compared with a reference implementation."""

import dataclasses

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
