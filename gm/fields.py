"""The fields of a model class, which are its configuration, read from texts (--set)."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from gm.errors import InputError, did_you_mean

# Given by the data set or the launcher, never by --set.
_GIVEN = ("shape", "num_values", "cond", "precision", "end", "parent", "name")


def fields(cls: type) -> dict[str, dataclasses.Field]:
    """The fields of a model class that --set may change."""
    return {f.name: f for f in dataclasses.fields(cls) if f.name not in _GIVEN}


def _parse(text: str, kind: Any) -> Any:
    """Reads a flag's text as a value of the field's type; ValueError if it is not."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        options = typing.get_args(kind)
        if type(None) in options and text.lower() == "none":
            return None
        kind = next(o for o in options if o is not type(None))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_parse(t, item) for t in text.strip("()").split(",") if t.strip())
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    value = kind(text)
    if kind is float and not math.isfinite(value):
        raise ValueError
    return value


def _negative(value):
    """Whether an integer, or one of several, is below 0: no count or size is."""
    if isinstance(value, tuple):
        return any(map(_negative, value))
    return isinstance(value, int) and value < 0


def parse_settings(cls: type, settings: Mapping[str, str]) -> dict[str, Any]:
    """Checks `--set=field=value` pairs against a model's fields, by name and type.

    Raises:
      InputError: an unknown field (the valid ones are listed) or a value of another
        type.
    """
    valid = fields(cls)
    parsed = {}
    for name, text in settings.items():
        if name not in valid:
            raise InputError(
                f"--set={name}={text}: {cls.__name__} has no field {name}"
                f"{did_you_mean(name, valid)} (fields: {', '.join(valid) or 'none'})"
            )
        kind = valid[name].type
        try:
            parsed[name] = _parse(text, kind)
        except (ValueError, KeyError):
            wanted = getattr(kind, "__name__", str(kind))
            raise InputError(
                f"--set={name}={text}: {name} of {cls.__name__} is of type {wanted}, "
                f"such as {valid[name].default}"
            ) from None
        if _negative(parsed[name]):
            raise InputError(f"--set={name}={text}: give 0 or more")
        if name.endswith("_rate") and not 0 <= parsed[name] < 1:
            raise InputError(f"--set={name}={text}: a rate is from 0 to below 1")
    return parsed
