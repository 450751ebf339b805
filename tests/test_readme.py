"""What README.md shows of the code is what the code says."""

from pathlib import Path

from experiments import models
from gm.tables import markdown

README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_models_is_up_to_date():
    """If not: python -m experiments.models | scripts/into_readme models."""
    assert markdown(*models.table()) in README.read_text()


def test_the_table_of_presets_is_up_to_date():
    """If not: python -m experiments.models --quality | scripts/into_readme quality."""
    assert markdown(*models.quality()) in README.read_text()
