"""What a report says, gathered from tables and run directories; no HTML here."""

import base64
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gm.commands import evaluate_command, train_command
from gm.config import RunConfig
from gm.errors import InputError
from gm.report import charts
from gm.report.charts import Chart
from gm.report.style import Style, style_of
from gm.results import Contender, Row, unit_name
from gm.rundir import RunDirectory, read_json
from gm.tables import Table, nats_text, value_text
from gm.writer import read_metrics

Beside = Callable[[Row], tuple[list[str], list[list[str]]]]

_LARGEST = 2_000_000  # bytes of a picture that is put into the page
_PICTURES = 6  # of a contender
_TEXT_LINES = 12
_IN_DETAILS = ("run", "seed", "checkpoint", "nats")  # columns that details have in full


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a number comes from: one run."""

    title: str
    facts: list[tuple[str, str]]
    commands: list[str]


@dataclasses.dataclass(frozen=True)
class Picture:
    """What a run drew; an image as a data URI, or lines of text."""

    caption: str
    uri: str = ""
    text: str = ""
    plot: bool = False  # lines and words, which need the width of the page


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender: a line of the table."""

    label: str
    style: Style
    cells: list[str]
    origins: list[Origin]
    pictures: list[Picture]


@dataclasses.dataclass(frozen=True)
class Section:
    """A data set and split."""

    id: str
    title: str
    facts: list[str]
    header: list[str]
    entries: list[Entry]
    notes: list[str]
    bugs: list[str]
    refused: list[tuple[str, str, str]]  # what, its number, why it is not ranked
    published: tuple[list[str], list[list[str]]]
    charts: list[Chart]
    maps: list[Chart]


def section(table: Table, number: int, beside: Beside) -> Section:
    """What a report says of a table.

    Args:
      table: of `gm.tables.make_tables`.
      number: of the section, for the ids of what is in it.
      beside: gives (header, lines) of published numbers of a row's protocol.
    """
    place, row = f"s{number}", table.example
    shown = [i for i, n in enumerate(table.header) if n not in _IN_DETAILS]
    entries = [
        Entry(
            found.label,
            style_of(i),
            [line[c] for c in shown[1:]] + [_flops(found)],
            [origin(r) for r in found.rows],
            _pictures(found),
        )
        for i, (found, line) in enumerate(zip(table.found, table.lines, strict=True))
    ]
    made = (f(table, place) for f in (charts.ranking, charts.curves, charts.k_curves))
    refused = [
        (f"{r['model']} ({r['run']})", f"{value_text(r)} {unit_name(r)}", r["apart"])
        for r in table.apart
    ]
    return Section(
        id=place,
        title=table.title,
        facts=_facts(row),
        header=[table.header[c] for c in shown] + ["train FLOPs"],
        entries=entries,
        notes=[n for n in table.notes if not n.startswith("Not ranked")],
        bugs=table.bugs,
        refused=refused,
        published=beside(row),
        charts=[chart for chart in made if chart],
        maps=charts.bit_maps(table, place, [_map(c.rows[0]) for c in table.found]),
    )


def _facts(row: Row) -> list[str]:
    """What all rows of a table have in common."""
    shape = " x ".join(map(str, row["shape"]))
    return [
        f"{row['num_examples']:,} examples of {shape}, {row['num_values']} values",
        f"split sha256 {row['split_sha256'][:16]}",
        f"conditioning: {row['conditioning']}",
        f"augmentation: {row['augmentation']}",
    ]


def _flops(found: Contender) -> str:
    flops = found.rows[0].get("train_flops")
    return f"{flops:.2g}" if flops else ""


def _map(row: Row) -> np.ndarray | None:
    """Nats of each pixel, where `evaluate --bit_map` wrote them with this row."""
    path = Path(row["file"]).with_suffix(".map.npy")
    if not row.get("bit_map") or not path.exists():
        return None
    try:
        values = np.load(path)
    except (OSError, ValueError, EOFError):
        values = np.empty(0)
    if not values.size or values.ndim > 2 or not np.isfinite(values).all():
        raise InputError(f"{path}: not a map; run `evaluate --bit_map` again")
    return values


def origin(row: Row) -> Origin:
    """The provenance of a row that was read."""
    file = Path(row["run"]) / "config.json"
    commands = []
    if file.exists():
        values = read_json(file)
        config = RunConfig.from_json(values, file)
        # An exported run was trained elsewhere.
        commands.append(
            train_command(config, str(values.get("trained_in", row["run"])))
        )
        if "evaluation_seed" in row:
            commands.append(evaluate_command(row, config))
    named = {
        "nats": nats_text(row),
        "checkpoint": row.get("checkpoint"),
        "seed": row.get("seed"),
        "commit": row.get("commit"),
        "device": row.get("device"),
        "precision": row.get("precision"),
        "split sha256": row["split_sha256"],
        "preprocessing": row.get("preprocessing"),
        "versions": ", ".join(f"{k} {v}" for k, v in row.get("versions", {}).items()),
        "row": row["file"],
    }
    facts = [(k, str(v)) for k, v in named.items() if v not in (None, "")]
    return Origin(row["run"], facts, commands)


def _pictures(found: Contender) -> list[Picture]:
    """What the first of the runs that drew anything drew, the newest first."""
    for row in found.rows:
        run = Path(row["run"])
        files = [p for d in ("samples", "applications") for p in (run / d).glob("*")]
        files = [p for p in files if p.suffix in (".png", ".txt")]
        if files:
            files.sort(key=lambda p: p.stat().st_mtime, reverse=True)
            return [_picture(p, run) for p in files[:_PICTURES]]
    return []


def _picture(path: Path, run: Path) -> Picture:
    caption = str(path.relative_to(run).with_suffix(""))
    if path.stem.startswith("judge"):
        caption += ": samples, and beside them the training images nearest to each"
    if path.suffix == ".txt":
        lines = path.read_text(errors="replace").splitlines()[:_TEXT_LINES]
        return Picture(caption, text="\n".join(line[:500] for line in lines))
    if path.stat().st_size > _LARGEST:
        return Picture(caption, text=f"too large for this page: {path}")
    data = base64.b64encode(path.read_bytes()).decode()
    plot = path.stem.startswith("outliers")
    return Picture(caption, uri=f"data:image/png;base64,{data}", plot=plot)


def unfinished(paths: Sequence[str]) -> list[list[str]]:
    """Runs below the paths without a result row: run, model, data set, step, bits/dim."""
    lines = []
    for path in paths:
        for file in sorted(Path(path).glob("**/config.json")):
            run = file.parent
            if any((run / "results").glob("*.json")):
                continue
            config = RunConfig.from_json(read_json(file), file)
            rows = read_metrics(run / "metrics.jsonl")
            step = rows[-1]["step"] if rows else 0
            valid = [r["valid/bpd"] for r in rows if r.get("valid/bpd")]
            told = f"{valid[-1]:.4f}" if valid else ""
            steps = f"{step:,} of {config.train.num_steps:,}"
            if RunDirectory(run).weights.exists():  # exported, without its metrics
                steps = "exported"
            lines.append([str(run), config.model, config.dataset, steps, told])
    return lines


def script_data(sections: Sequence[Section]) -> str:
    """The charts as JSON that may stand in a script: `<` is written as an escape."""
    found = {c.id: c for s in sections for c in (*s.charts, *s.maps)}
    data = {
        name: {
            "figure": json.loads(chart.figure.to_json()),
            "controls": [list(c.options.values()) for c in chart.controls],
        }
        for name, chart in found.items()
    }
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
