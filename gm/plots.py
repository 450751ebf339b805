"""Learning curves and bits as PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm.results import Row, group_rows, in_unit, unit_name
from gm.rundir import write_whole
from gm.writer import read_metrics


def _figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    import io

    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    write_whole(path, buffer.getvalue())
    return path


def _label(row: Row, rows: Sequence[Row]) -> str:
    same = [r for r in rows if r["model"] == row["model"]]
    if len(same) == 1:
        return row["model"]
    names = [Path(r["run"]).name for r in same]
    own = Path(row["run"]).name
    return f"{row['model']} ({own if names.count(own) == 1 else row['run']})"


def learning_curve(row: Row) -> list[dict[str, float]]:
    """What the run of a row measured on its validation split as it was trained.

    Returns:
      points of step, seconds and flops up to there, and bits in the row's unit.
    """
    metrics = read_metrics(Path(row["run"]) / "metrics.jsonl")
    scale = math.prod(row["shape"]) if row["unit"] == "object" else 1
    flops = row.get("train_flops", 0.0) / max(row.get("step", 0), 1)
    return [
        {
            "step": m["step"],
            "seconds": m.get("time/seconds") or 0.0,
            "flops": flops * m["step"],
            "bits": m["valid/bpd"] * scale,
        }
        for m in metrics
        if m.get("valid/bpd")
    ]


def shown_top(values: Sequence[float]) -> float | None:
    """Where an axis of learning curves ends: at where models end, and how they got there.

    Early values are far off. None for values that are all the same.
    """
    ordered = sorted(values)
    top = ordered[int(0.9 * (len(ordered) - 1))]
    return top + 0.3 * (top - ordered[0]) if top > ordered[0] else None


def _learning_curves(title: str, ranked: Sequence[Row], path: Path) -> Path | None:
    curves = [(_label(row, ranked), learning_curve(row)) for row in ranked]
    curves = [(label, points) for label, points in curves if points]
    if not curves:
        return None
    figure, axes = _figure()
    for label, points in curves:
        steps, values = ([p[name] for p in points] for name in ("step", "bits"))
        axes.plot(steps, values, label=label, marker=".", markersize=4)
    floor = ranked[0]["entropy_floor_nats"]
    if floor:
        axes.axhline(in_unit(ranked[0], floor), color="black", ls="--", label="entropy")
    axes.set_ylim(top=shown_top([p["bits"] for _, points in curves for p in points]))
    axes.set(xlabel="step", ylabel=f"validation {unit_name(ranked[0])}", title=title)
    axes.legend(frameon=False)
    return _save(figure, path)


def _bits(title: str, ranked: Sequence[Row], path: Path) -> Path:
    figure, axes = _figure()
    values = [in_unit(r, r["nats"]) for r in ranked]
    errors = [2 * in_unit(r, r["standard_error_nats"] or 0.0) for r in ranked]
    labels = [
        _label(r, ranked) + ("" if r["estimate"] == "exact" else " (bound)")
        for r in ranked
    ]
    places = range(len(ranked))
    axes.errorbar(values, places, xerr=errors, fmt="o", capsize=3)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    floor = ranked[0]["entropy_floor_nats"]
    if floor:
        axes.axvline(in_unit(ranked[0], floor), color="black", ls="--", label="entropy")
        axes.legend(frameon=False)
    axes.set(xlabel=f"{unit_name(ranked[0])}, ± 2 standard errors", title=title)
    return _save(figure, path)


def _k_curves(title: str, ranked: Sequence[Row], path: Path) -> Path | None:
    """Bits against importance samples, with exact models as levels."""
    if not any(r.get("k_curve") for r in ranked):
        return None
    figure, axes = _figure()
    for i, row in enumerate(ranked):
        color, label = f"C{i}", _label(row, ranked)
        if row["estimate"] == "exact":
            level = in_unit(row, row["nats"])
            axes.axhline(level, ls="--", lw=1, color=color, label=f"{label} (exact)")
        points = row.get("k_curve", [])
        values = [in_unit(row, p["nats"]) for p in points]
        if points:
            ks = [p["k"] for p in points]
            axes.plot(ks, values, marker=".", color=color, label=label)
        sides = row.get("interval_nats")
        if sides:
            low, high = (in_unit(row, sides[side]) for side in ("low", "high"))
            axes.axhspan(low, high, color=color, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="importance samples k (band: bounds from both sides)",
        ylabel=unit_name(ranked[0]),
        title=title,
    )
    axes.legend(framealpha=0.9, edgecolor="none")
    return _save(figure, path)


def write_plots(rows: Sequence[Row], directory: str) -> list[Path]:
    """Writes two or three PNGs per table into a directory and returns their paths."""
    out = Path(directory)
    paths = []
    for title, ranked, _ in group_rows(rows):
        stem = "".join(c if c.isalnum() else "_" for c in title)
        made = (
            _learning_curves(title, ranked, out / f"{stem}_curves.png"),
            _bits(title, ranked, out / f"{stem}_bits.png"),
            _k_curves(title, ranked, out / f"{stem}_k_curves.png"),
        )
        paths += [path for path in made if path]
    return paths
