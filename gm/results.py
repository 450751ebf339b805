"""Result rows: reading them, which may be ranked together, and tables of them."""

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gm.errors import InputError
from gm.likelihood import bits
from gm.rundir import read_json

Row = dict[str, Any]

# Rows are ranked together only where all of these are equal.
COMPARABLE = (
    "split_sha256",
    "num_values",
    "shape",
    "conditioning",
    "unit",
)
_NEEDED = (
    *COMPARABLE,
    *("model", "dataset", "split", "nats", "standard_error_nats", "estimate"),
    *("num_importance_samples", "entropy_floor_nats", "num_params"),
)


def read_rows(paths: Iterable[str]) -> list[Row]:
    """Reads the result rows under run directories or directories of them.

    Raises:
      InputError: a path without any row.
    """
    files: dict[Path, Path] = {}  # a run that is named twice counts once
    for path in paths:
        found = sorted(Path(path).glob("**/results/*.json"))
        if not found:
            raise InputError(
                f"{path}: no results/*.json below it; run `evaluate` first"
            )
        for file in found:
            files.setdefault(file.resolve(), file)
    rows = []
    for file in files.values():
        row = read_json(file)
        missing = [n for n in _NEEDED if not isinstance(row, dict) or n not in row]
        if missing:
            raise InputError(f"{file}: not a result row ({', '.join(missing)} missing)")
        rows.append(row | {"run": str(file.parent.parent)})
    return rows


def differing_fields(a: Row, b: Row) -> list[str]:
    """Names of the fields that forbid ranking two rows together.

    With them the preprocessing where it differs, since it may be why the bytes do.
    """
    names = [name for name in COMPARABLE if a.get(name) != b.get(name)]
    if names and a.get("preprocessing") != b.get("preprocessing"):
        names.append("preprocessing")
    return names


def group_rows(rows: Sequence[Row]) -> list[tuple[str, list[Row], list[Row]]]:
    """Sorts rows into tables.

    Returns:
      (title, ranked, apart) for every data set and split: `ranked` has the best first,
      and each row of `apart` says in "apart" which fields keep it from being ranked.
    """
    tables = []
    titles = sorted({(r["dataset"], r["split"]) for r in rows})
    for dataset, split in titles:
        here = [r for r in rows if (r["dataset"], r["split"]) == (dataset, split)]
        keys = Counter(json.dumps([r.get(n) for n in COMPARABLE]) for r in here)
        most = max(keys, key=lambda k: keys[k])
        ranked, apart = [], []
        for row in here:
            if json.dumps([row.get(n) for n in COMPARABLE]) == most:
                ranked.append(row)
            else:
                apart.append(row)
        ranked.sort(key=lambda r: r["nats"])
        apart = [
            r
            | {
                "apart": ", ".join(
                    f"{n} is {_short(r.get(n))}, not {_short(ranked[0].get(n))}"
                    for n in differing_fields(r, ranked[0])
                )
            }
            for r in sorted(apart, key=lambda r: r["nats"])
        ]
        tables.append((f"{dataset}, {split} split", ranked, apart))
    return tables


def _short(value):
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text


def unit_name(row: Row) -> str:
    """What people read of this row: 'bits/dim', 'bits/char' or 'bits/object'."""
    return f"bits/{row['unit']}"


def in_unit(row: Row, nats: float) -> float:
    """Nats per example in the row's unit."""
    return bits(nats) if row["unit"] == "object" else bits(nats) / _num_dims(row)


def _num_dims(row):
    count = 1
    for size in row["shape"]:
        count *= size
    return count


def describe(row: Row) -> dict[str, str]:
    """The cells of a table's line, as text."""
    bound = "" if row["estimate"] == "exact" else "<= "
    error = row["standard_error_nats"]
    value = f"{bound}{in_unit(row, row['nats']):.4f}"
    if error is not None:
        value += f" ± {in_unit(row, error):.4f}"
    nats = f"{bound}{row['nats']:.3f}" + (
        f" ± {error:.3f}" if error is not None else ""
    )
    draws = row["num_importance_samples"]
    floor = row["entropy_floor_nats"]
    seconds = row.get("train_seconds")
    return {
        "model": row["model"],
        unit_name(row): value,
        "nats": nats,
        "above floor": f"{bits(row['nats'] - floor):+.3f} bits" if floor else "",
        "estimate": row["estimate"] + (f", {draws} draws" if draws > 1 else ""),
        "params": f"{row['num_params']:,}",
        "examples seen": f"{row.get('examples_seen', 0):,}",
        "train time": f"{seconds:.0f} s" if seconds is not None else "",
        "seed": str(row.get("seed", "")),
        "checkpoint": str(row.get("checkpoint", "")),
        "run": row.get("run", ""),
    }


def pivot(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Models against data sets: (header, lines).

    Runs that differ only in their seed share a cell: their mean and standard deviation.
    """
    tables = [(title, ranked) for title, ranked, _ in group_rows(rows) if ranked]
    header = ["model"]
    for title, ranked in tables:
        header.append(f"{title.removesuffix(' split')} ({unit_name(ranked[0])})")
    # Settings tell runs of a model apart only where a table has several of them.
    several = {
        r["model"]
        for _, ranked in tables
        for r in ranked
        if len({_settings(o) for o in ranked if o["model"] == r["model"]}) > 1
    }

    def label(row):
        return row["model"] + (f" {_settings(row)}" if row["model"] in several else "")

    lines = []
    for name in sorted({label(r) for r in rows}):
        line = [name]
        for _, ranked in tables:
            mine = [r for r in ranked if label(r) == name]
            line.append(_cell(mine) if mine else "")
        lines.append(line)
    floors = ["entropy"]
    for _, ranked in tables:
        floor = ranked[0]["entropy_floor_nats"]
        floors.append(f"{in_unit(ranked[0], floor):.4f}" if floor else "unknown")
    return header, [*lines, floors]


def _settings(row):
    """What besides the seed tells runs of a model apart."""
    settings = row.get("settings", {}) | {"checkpoint": str(row.get("checkpoint"))[:4]}
    return " ".join(f"{k}={v}" for k, v in settings.items())


def _cell(rows):
    """One value with its standard error, or the mean over seeds with their spread."""
    if len(rows) == 1:
        return describe(rows[0])[unit_name(rows[0])]
    bound = "" if rows[0]["estimate"] == "exact" else "<= "
    values = [in_unit(r, r["nats"]) for r in rows]
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return f"{bound}{mean:.4f} (mean of {len(rows)}, sd {spread:.4f})"


def to_markdown(rows: Sequence[Row]) -> str:
    """All tables as Markdown."""
    parts = []

    def table(header, lines):
        escaped = [[c.replace("|", "\\|") for c in line] for line in [header, *lines]]
        rule = ["---"] * len(header)
        body = [escaped[0], rule, *escaped[1:]]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in body))

    tables = group_rows(rows)
    if len(tables) > 1:
        table(*pivot(rows))
    for title, ranked, apart in tables:
        parts.append(f"**{title}**")
        lines = [list(describe(r).values()) for r in ranked]
        table(list(describe(ranked[0])), lines)
        for row in apart:
            cells = describe(row)
            parts.append(
                f"Not ranked: {cells['model']} ({cells['run']}), "
                f"{cells[unit_name(row)]} {unit_name(row)}: {row['apart']}."
            )
    return "\n\n".join(parts) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """One line per row with every field; nested values as JSON."""
    names = list(dict.fromkeys(n for row in rows for n in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = [row.get(n) for n in names]
        writer.writerow(
            [_guard(json.dumps(c) if isinstance(c, dict | list) else c) for c in cells]
        )
    return out.getvalue()


def _guard(cell):
    # A spreadsheet would run a text that begins so as a formula.
    return "'" + cell if isinstance(cell, str) and cell[:1] in "=+-@" else cell


def to_json(rows: Sequence[Row]) -> str:
    """The tables: ranked rows, and rows apart with the reason."""
    tables = [
        {"title": title, "ranked": ranked, "apart": apart}
        for title, ranked, apart in group_rows(rows)
    ]
    return json.dumps(tables, indent=1) + "\n"
