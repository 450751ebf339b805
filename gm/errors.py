"""The one exception for a user's mistake."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: one line that names the flag or file, the value, and what would be right.

    The launchers print the message and exit with status 2, without a traceback.
    """


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the nearest valid name, else ''."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {near[0]}?" if near else ""
