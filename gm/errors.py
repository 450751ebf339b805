"""The one exception for a user's mistake."""

import dataclasses
import difflib
import numbers
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Bad input: one line that names the flag or file, the value, and what would be right.

    The launchers print the message and exit with status 2, without a traceback.
    """


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the nearest valid name, else ''."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_whole(least: int, **values: Any) -> None:
    """InputError for one of these numbers that is not whole, or below `least`."""
    for name, value in values.items():
        if not isinstance(value, numbers.Integral):
            raise InputError(f"--{name}={value}: give a whole number from {least}")
        if value < least:
            raise InputError(f"--{name}={value}: give {least} or more")


def check_seed(seed: Any) -> None:
    """InputError for what JAX makes no key of."""
    if not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < 2**31:
        raise InputError(f"--seed={seed}: give 0 to {2**31 - 1}")


def check_positive(model: Any, *names: str) -> None:
    """InputError for one of these fields of a dataclass that is not above 0, nor None."""
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name in names and value is not None and not value > 0:
            wanted = "1 or more" if field.type is int else "a number above 0"
            raise InputError(f"--set={field.name}={value}: give {wanted}")
