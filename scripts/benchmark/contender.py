"""What is measured: work that can be repeated. Standard library alone, for any Python."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class Contender:
    """Work that a process of its own takes turns at.

    turn: does the work and waits for its end.
    units: how much a turn is: steps, or images (a part of one, where a whole image would
      take minutes and its cost is the same everywhere).
    params: number of parameters, which contenders must have in common; 0: none.
    flops: of a unit; 0: not known.
    notes: other figures, such as an error.
    """

    turn: Callable[[], Any]
    units: float = 1.0
    params: int = 0
    flops: float = 0.0
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


# Of the losses: shape of the images, values, components; and the seed of both's inputs.
LOSS_SHAPE, NUM_VALUES, MIXTURES, SEED = (16, 32, 32, 3), 256, 10, 0
