"""Published numbers that a row may be read beside, from published.json.

"checked" says whether the number was read in the paper or its authors' repository; where
it was not, the number is recalled or second-hand and is marked so wherever it is shown.
"""

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def _file() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("published.json").read_text())


def same_protocol(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the published numbers of a row's data set, split and conditioning.

    None where the row is of a part of the test split, of another resolution, or of
    bytes that differ from the ones the protocol names.
    """
    protocol = _file()["protocols"].get(row["dataset"])
    if protocol is None or row["split"] != "test":
        return []
    if any(row[name] != value for name, value in protocol.items()):
        return []
    return [
        entry
        for entry in _file()["numbers"]
        if entry["dataset"] == row["dataset"]
        and all(entry[n] == row[n] for n in ("conditioning", "augmentation"))
    ]


def target(dataset: str, model: str) -> str:
    """The lowest published number of a model on a data set, such as "2.92 bits/dim".

    A trailing `?` says that it was not checked in its paper.

    Raises:
      KeyError: there is none of that name.
    """
    found = [
        e for e in _file()["numbers"] if e["dataset"] == dataset and e["model"] == model
    ]
    if not found:
        raise KeyError(f"published.json has no {model} on {dataset}")
    best = min(found, key=lambda e: e["number"])
    doubt = "" if best["checked"] else "?"
    return f"{best['number']:g}{doubt} {best['unit']} ({model})"


def lines(row: dict[str, Any]) -> list[list[str]]:
    """What a table shows of them, the best first: see HEADER."""
    return [
        [
            entry["model"],
            f"{entry['number']:g} {entry['unit']}",
            entry["estimate"],
            "checked" if entry["checked"] else "NOT CHECKED in its paper",
            entry["source"],
        ]
        for entry in sorted(same_protocol(row), key=lambda e: e["number"])
    ]


HEADER = ["published model", "number", "estimate", "checked", "source"]
