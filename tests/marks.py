"""Marks of parametrised tests."""

import pytest


def slow(*values):
    """A case that `scripts/test --all` alone runs."""
    return pytest.param(*values, marks=pytest.mark.slow)
