"""Flags that were tried, with what they gave.

`train --preset=NAME` sets these flags; those given on the command line win. A preset
named DATASET/MODEL is also what `sweep --presets` uses for that cell. `obtained` is what
a run of the preset printed for the test split, and where; another run should come near.
"""

from typing import Any

from gm.errors import InputError, did_you_mean

_CPU = "2 cores of an AMD EPYC"

PRESETS: dict[str, dict[str, Any]] = {}


def find(name: str) -> dict[str, Any]:
    """Returns a preset; InputError lists the names."""
    if name not in PRESETS:
        raise InputError(
            f"--preset={name}: unknown{did_you_mean(name, PRESETS)} "
            f"(one of {', '.join(PRESETS)})"
        )
    return PRESETS[name]
