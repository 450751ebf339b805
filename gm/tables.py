"""Tables of result rows, as text: for a terminal, Markdown, CSV and JSON."""

import csv
import dataclasses
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from gm import paired
from gm.errors import InputError
from gm.gap import plateau
from gm.likelihood import bits
from gm.results import (
    Contender,
    Row,
    Verdict,
    below_floor,
    contenders,
    group_rows,
    in_unit,
    unit_name,
    verdicts,
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with what has to be said below it."""

    title: str
    header: list[str]
    lines: list[list[str]]
    notes: list[str]
    bugs: list[str]  # results that cannot be
    found: list[Contender]  # of the lines
    apart: list[Row]  # not ranked: "apart" says why

    @property
    def example(self) -> Row:
        """One of the rows."""
        return self.found[0].rows[0]


def value_text(row: Row) -> str:
    """The number of a row with its standard error, in its unit."""
    bound = "" if row["estimate"] == "exact" else "<= "
    value = f"{bound}{in_unit(row, row['nats']):.4f}"
    error = row["standard_error_nats"]
    return value if error is None else f"{value} ± {in_unit(row, error):.4f}"


def nats_text(row: Row) -> str:
    """The same in nats."""
    bound = "" if row["estimate"] == "exact" else "<= "
    error = row["standard_error_nats"]
    return f"{bound}{row['nats']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _mean_text(found: Contender) -> str:
    """One value with its standard error, or the mean over seeds with their spread."""
    row = found.rows[0]
    if len(found.rows) == 1:
        return value_text(row)
    bound = "" if row["estimate"] == "exact" else "<= "
    return (
        f"{bound}{in_unit(row, found.nats):.4f} (mean of {len(found.rows)}, "
        f"sd {in_unit(row, found.spread):.4f})"
    )


def _verdict_text(row: Row, verdict: Verdict | None) -> str:
    """The cell 'to the best': the paired difference with its interval, or a tie."""
    if verdict is None:
        return "best"
    d = verdict.difference
    if d is None:
        return verdict.kind
    low, high = in_unit(row, d.low), in_unit(row, d.high)
    value = f"{in_unit(row, d.nats):+.4f} [{low:.4f}, {high:.4f}]"
    return value if verdict.kind == "better" else f"{verdict.kind}, {value}"


def _describe(found: Contender, verdict: Verdict | None) -> dict[str, str]:
    row = found.rows[0]
    draws, floor = row["num_importance_samples"], row["entropy_floor_nats"]
    seconds = [r["train_seconds"] for r in found.rows if r.get("train_seconds")]
    nats = nats_text(row) if len(found.rows) == 1 else f"{found.nats:.3f}"
    return {
        "model": found.label,
        unit_name(row): _mean_text(found),
        "to the best": _verdict_text(row, verdict),
        "nats": nats,
        "above floor": f"{bits(found.nats - floor):+.3f} bits" if floor else "",
        "estimate": row["estimate"] + (f", {draws} draws" if draws > 1 else ""),
        "interval": _interval_text(row),
        "params": f"{row['num_params']:,}",
        "examples seen": f"{row.get('examples_seen', 0):,}",
        "train time": f"{statistics.mean(seconds):.0f} s" if seconds else "",
        "seed": ", ".join(str(r.get("seed", "")) for r in found.rows),
        "checkpoint": str(row.get("checkpoint", "")),
        "run": row.get("run", ""),
    }


def sentence(best: Contender, other: Contender, verdict: Verdict) -> str:
    """What a paired comparison says, in full."""
    row, d = best.rows[0], verdict.difference
    names = f"{other.label} against {best.label}"
    if d is None:
        return f"{names}: not paired, {verdict.reason}."
    per_dim = bits(1.0) / math.prod(row["shape"])

    def said(scale):
        return f"{scale * d.nats:+.4f} [{scale * d.low:.4f}, {scale * d.high:.4f}]"

    kinds = {
        "tie": "a tie",
        "better": f"{best.label} is better"
        + f" ({verdict.reason})" * bool(verdict.reason),
        "open": f"open: {verdict.reason}",
    }
    seeds = f"{d.seeds[0]} and {d.seeds[1]} seeds" + (
        f", spread {bits(d.spread):.4f} bits"
        if max(d.seeds) > 1
        else ", so nothing is known of other seeds"
    )
    return (
        f"{names}: {said(bits(1.0))} bits/example, {said(per_dim)} bits/dim "
        f"({paired.LEVEL:.0%}, paired over {d.num_examples} examples, {seeds}): "
        f"{kinds[verdict.kind]}."
    )


def bug_text(row: Row) -> str:
    """What is said of a result that is below the entropy of its data."""
    below = bits(row["entropy_floor_nats"] - row["nats"])
    return (
        f"BUG: {row['model']} ({row.get('run', '')}) is {below:.3f} bits below the "
        f"entropy of {row['dataset']}, as no distribution can be; do not use this number"
    )


def details(row: Row) -> list[str]:
    """What an evaluation says besides its number: curve, interval, samples."""
    lines = []
    if "bits_per_char" in row:
        bound = "" if row["estimate"] == "exact" else "<= "
        lines.append(f"  {bound}{row['bits_per_char']:.4f} bits/char, ends included")
    for point in row.get("k_curve", []):
        error = in_unit(row, point["standard_error_nats"])
        lines.append(
            f"  k = {point['k']:>5}: <= {in_unit(row, point['nats']):.4f} ± {error:.4f}"
        )
    sides = row.get("interval_nats")
    if sides:
        short = sides["own_sample_shortfall"]
        told = "unchecked: the model has no sample_joint"
        if short is not None:
            moved = in_unit(row, max(0.0, short))
            told = f"lower end moved by {moved:.4f}, as own samples showed"
        lines.append(
            f"  interval {_interval_text(row)} {unit_name(row)} from {sides['groups']} x "
            f"{sides['k']} draws ({told}; effective draws {sides['effective_draws']:.1f} "
            f"of {sides['groups'] * sides['k']} on average)"
        )
    return lines + plateau(row["model"], row)


def _interval_text(row: Row) -> str:
    sides = row.get("interval_nats")
    if not sides:
        return ""
    low, high = (in_unit(row, sides[side]) for side in ("low", "high"))
    return f"[{low:.4f}, {high:.4f}]"


def make_tables(rows: Sequence[Row]) -> list[Table]:
    """One table for every data set and split."""
    tables = []
    for title, ranked, apart in group_rows(rows):
        found = contenders(ranked)
        said = verdicts(found)
        cells = [_describe(c, v) for c, v in zip(found, said, strict=True)]
        used = [n for n in cells[0] if any(c[n] for c in cells)]
        if len(found) == 1:
            used.remove("to the best")
        notes = [
            sentence(found[0], c, v)
            for c, v in zip(found, said, strict=True)
            if v and (len(found) == 2 or v.kind != "better")
        ]
        notes += [text for c in found for text in plateau(c.label, c.rows[0])]
        for row in apart:
            notes.append(
                f"Not ranked: {row['model']} ({row.get('run', '')}), "
                f"{value_text(row)} {unit_name(row)}: {row['apart']}."
            )
        bugs = [bug_text(r) for r in [*ranked, *apart] if below_floor(r)]
        lines = [[c[n] for n in used] for c in cells]
        tables.append(Table(title, used, lines, notes, bugs, found, apart))
    return tables


def pivot(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Models against data sets: (header, lines)."""
    tables = [(title, contenders(ranked)) for title, ranked, _ in group_rows(rows)]
    header = ["model"]
    floors = ["entropy"]
    for title, found in tables:
        row = found[0].rows[0]
        header.append(f"{title.removesuffix(' split')} ({unit_name(row)})")
        floor = row["entropy_floor_nats"]
        floors.append(f"{in_unit(row, floor):.4f}" if floor else "unknown")
    lines = []
    for name in sorted({c.label for _, found in tables for c in found}):
        line = [name]
        for _, found in tables:
            mine = [c for c in found if c.label == name]
            line.append(_mean_text(mine[0]) if mine else "")
        lines.append(line)
    return header, [*lines, floors]


def to_markdown(
    rows: Sequence[Row],
    beside: Callable[[Row], tuple[list[str], list[list[str]]]] | None = None,
) -> str:
    """All tables as Markdown.

    Args:
      rows: what was read.
      beside: gives (header, lines) to show below the table of a row.
    """
    tables = make_tables(rows)
    parts = [markdown(*pivot(rows))] if len(tables) > 1 else []
    for table in tables:
        parts += [f"**{table.title}**", markdown(table.header, table.lines)]
        parts += table.notes + table.bugs
        header, lines = beside(table.example) if beside else ([], [])
        if lines:
            parts.append(markdown(header, lines))
    return "\n\n".join(parts) + "\n"


def to_board(rows: Sequence[Row]) -> str:
    """The exact-gap board as Markdown: bits above the entropy, where it is known.

    Each cell has the training time as its budget; below come the plateaus.
    """
    tables = [
        (ranked[0], contenders(ranked))
        for _, ranked, _ in group_rows([r for r in rows if r["entropy_floor_nats"]])
    ]
    if not tables:
        raise InputError(
            "--format=board: no row here is of data whose entropy is known"
        )
    header = ["model"]
    for row, _ in tables:
        floor = bits(row["entropy_floor_nats"])
        header.append(f"{row['dataset']} (entropy {floor:.4f} bits)")
    lines, notes = [], []
    for name in sorted({c.label for _, found in tables for c in found}):
        line = [name]
        for _, found in tables:
            mine = [c for c in found if c.label == name]
            line.append(_gap_text(mine[0]) if mine else "")
            notes += [
                f"- {c.rows[0]['dataset']}, {text}"
                for c in mine
                if (c.rows[0].get("samples") or {}).get("legal", 1)
                for text in plateau(c.label, c.rows[0])
            ]
        lines.append(line)
    count = sum(len(found) for _, found in tables)
    if len(notes) < count:
        notes.append("- of the others no sample is legal.")
    return f"{markdown(header, lines)}\n\n" + "\n".join(notes) + "\n"


def _gap_text(found: Contender) -> str:
    row = found.rows[0]
    bound = "" if row["estimate"] == "exact" else "<= "
    error = f" ± {bits(row['standard_error_nats'] or 0.0):.3f}"
    if len(found.rows) > 1:
        error = f" (mean of {len(found.rows)}, sd {bits(found.spread):.3f})"
    seconds = statistics.mean(r.get("train_seconds", 0.0) for r in found.rows)
    gap = bits(found.nats - row["entropy_floor_nats"])
    return f"{bound}{gap:+.3f}{error}, {seconds:.0f} s"


def _escape(cell: str) -> str:
    """Without what would end a cell, or be HTML to the reader's browser."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", cell.replace("|", "\\|"))


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table of these cells."""
    escaped = [[_escape(c) for c in line] for line in [header, *lines]]
    body = [escaped[0], ["---"] * len(header), *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


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


def _guard(cell: Any) -> Any:
    # A spreadsheet would run a text that begins so as a formula.
    return "'" + cell if isinstance(cell, str) and cell[:1] in "=+-@" else cell


def to_json(rows: Sequence[Row]) -> str:
    """The tables: ranked rows, rows apart with the reason, and paired verdicts."""
    tables = []
    for title, ranked, apart in group_rows(rows):
        found = contenders(ranked)
        said = [
            {"contender": c.label, "runs": [r.get("run") for r in c.rows]}
            | ({"verdict": "best"} if v is None else {"verdict": v.kind})
            | (dataclasses.asdict(v) if v else {})
            for c, v in zip(found, verdicts(found), strict=True)
        ]
        tables.append(
            {"title": title, "ranked": ranked, "apart": apart, "verdicts": said}
        )
    return json.dumps(tables, indent=1) + "\n"
