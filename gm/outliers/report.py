"""A comparison as text and as JSON values."""

import dataclasses
from typing import Any

import numpy as np

from gm.outliers import Comparison
from gm.outliers.measures import NAMES
from gm.tables import markdown


def tables(found: Comparison) -> list[str]:
    """A Markdown table for each measure: a row per score, a column per outlier set."""
    wheres = list(dict.fromkeys(s for row in found.measures.values() for s in row))
    text = []
    for measure, what in NAMES.items():
        lines = [
            [name, *(str(row[s][measure]) if s in row else "-" for s in wheres)]
            for name, row in found.measures.items()
        ]
        text.append(f"{what} [95 % interval]\n\n{markdown(['score', *wheres], lines)}")
    return text


def to_row(found: Comparison) -> dict[str, Any]:
    """The measures, what was left out and why, and how many scores are not finite."""
    return {
        "left_out": found.left_out,
        "measures": {
            name: {
                where: {m: dataclasses.asdict(value) for m, value in row.items()}
                for where, row in rows.items()
            }
            for name, rows in found.measures.items()
        },
        "num_not_finite": {
            name: {s: int((~np.isfinite(v)).sum()) for s, v in values.items()}
            for name, values in found.scores.items()
        },
    }
