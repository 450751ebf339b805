"""The interactive charts of a report, as Plotly has them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from gm.likelihood import bits
from gm.plots import learning_curve, shown_top
from gm.report.style import plain, short, style_of
from gm.results import Contender, Row, in_unit, unit_name
from gm.tables import Table


@dataclasses.dataclass(frozen=True)
class Control:
    """A choice that changes a chart: for each option what `Plotly.update` is given."""

    label: str
    options: dict[str, list[dict[str, Any]]]  # the first is how the chart begins


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart, and the same in words and as a table for who does not see it."""

    id: str
    title: str
    summary: str
    figure: go.Figure
    header: list[str]
    lines: list[list[str]]
    controls: list[Control] = dataclasses.field(default_factory=list)
    group: int | None = None  # of one contender alone


def _figure(height: int, x: str, y: str) -> go.Figure:
    """Transparent and without colours of its own: the page's style has them."""
    axis: dict[str, Any] = dict(zeroline=False, automargin=True)
    return go.Figure(
        layout=dict(
            template=go.layout.Template(),
            height=height,
            margin=dict(l=10, r=10, t=30, b=10),
            modebar=dict(bgcolor="rgba(0,0,0,0)", color="#77828f"),
            font=dict(family="system-ui, sans-serif", size=13),
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            hoverlabel=dict(bgcolor="#ffffff", font=dict(color="#14171c")),
            hovermode="closest",
            showlegend=False,  # the page's own legend works by keyboard, in all figures
            xaxis=dict(title=x, **axis),
            yaxis=dict(title=y, **axis),
        )
    )


def _said(text: str) -> dict[str, Any]:
    """What a point says when it is pointed at; the name is never read as a template."""
    return dict(hovertemplate=f"{text}<extra>%{{fullData.name}}</extra>")


def _seed(found: Contender, row: Row) -> str:
    """The name of a run among those of a contender."""
    return f"{found.label}, seed {row.get('seed', '?')}"


def _floor(figure: go.Figure, row: Row, axis: str) -> None:
    """Draws the entropy where it is known."""
    floor = row["entropy_floor_nats"]
    if floor is not None:
        add = figure.add_vline if axis == "x" else figure.add_hline
        line = dict(dash="dash", color="#77828f")
        at = in_unit(row, floor)
        add(at, line=line, label=dict(text="entropy"))
        if axis == "x":  # room beside the line: the names stand at the axis' end
            room = dict(size=30, opacity=0)
            figure.add_scatter(x=[at], y=[0], marker=room, hoverinfo="skip")


def ranking(table: Table, place: str) -> Chart:
    """Bits of every contender with two standard errors, and of every seed."""
    row, count = table.example, len(table.found)
    unit = plain(unit_name(row))
    figure = _figure(90 + 26 * max(count, 2), f"{unit}, ± 2 standard errors", "")
    lines = []
    for i, found in enumerate(table.found):
        first, look = found.rows[0], style_of(i)
        value = in_unit(row, found.nats)
        error = 2 * in_unit(row, found.standard_error)
        bound = "" if first["estimate"] == "exact" else "≤ "
        shared: dict[str, Any] = dict(legendgroup=str(i), name=plain(found.label))
        sides = first.get("interval_nats")
        if sides:
            ends = [in_unit(row, sides[side]) for side in ("low", "high")]
            figure.add_scatter(
                x=ends,
                y=[i, i],
                mode="lines+markers",  # an axis leaves room for markers alone
                marker=dict(color=look.color, size=1),
                line=dict(color=look.color, width=9),
                opacity=0.35,
                **shared,
                **_said("bounds from both sides: %{x:.4f}"),
            )
        if len(found.rows) > 1:
            figure.add_scatter(
                x=[in_unit(row, r["nats"]) for r in found.rows],
                y=[i] * len(found.rows),
                mode="markers",
                marker=dict(color=look.color, size=6, symbol="line-ns-open"),
                text=[f"seed {r.get('seed', '?')}" for r in found.rows],
                **shared,
                **_said("%{text}: %{x:.4f}"),
            )
        figure.add_scatter(
            x=[value],
            y=[i],
            error_x=dict(array=[error], color=look.color),
            marker=dict(color=look.color, size=9, symbol=look.symbol),
            mode="markers",
            **shared,
            **_said(f"{bound}%{{x:.4f}} ± {error:.4f} {unit}"),
        )
        lines.append([found.label, f"{bound}{value:.4f}", f"{error:.4f}"])
    _floor(figure, row, "x")
    labels = [c.label for c in table.found]
    names, narrow = ([short(name, most) for name in labels] for most in (28, 14))
    figure.update_layout(meta=dict(narrow=narrow))  # for a phone
    figure.update_yaxes(
        tickvals=list(range(count)), ticktext=names, range=[count - 0.5, -0.5]
    )
    best = table.found[0]
    summary = (
        f"Best is {best.label} with {in_unit(row, best.nats):.4f} {unit}, of {count}."
    )
    header = ["model", unit, "2 standard errors"]
    return Chart(
        f"{place}-ranking", "Bits, with errors", summary, figure, header, lines
    )


_AXES = {"step": "steps", "seconds": "wall time (s)", "flops": "training FLOPs"}


def curves(table: Table, place: str) -> Chart | None:
    """Validation bits against steps, wall time or training FLOPs; None without any."""
    row = table.example
    unit = plain(unit_name(row))
    figure = _figure(430, _AXES["step"], f"validation {unit}")
    lines, found_points = [], []
    for i, found in enumerate(table.found):
        look = style_of(i)
        for own in found.rows:
            points = learning_curve(own)
            if not points:
                continue
            found_points.append(points)
            figure.add_scatter(
                x=[p["step"] for p in points],
                y=[p["bits"] for p in points],
                legendgroup=str(i),
                name=plain(_seed(found, own)),
                mode="lines+markers",
                line=dict(color=look.color, dash=look.dash),
                marker=dict(symbol=look.symbol, size=6),
                customdata=[[p["step"], p["seconds"], p["flops"]] for p in points],
                **_said(
                    f"%{{y:.4f}} {unit}<br>step %{{customdata[0]:,}}"
                    "<br>%{customdata[1]:,.0f} s<br>%{customdata[2]:.3g} FLOPs"
                ),
            )
            lines += [_curve_line(_seed(found, own), p) for p in points]
    if not found_points:
        return None
    _floor(figure, row, "y")
    values = [p["bits"] for points in found_points for p in points]
    low, top = min(values), shown_top(values)
    every: dict[str, Any] = {"yaxis.type": "linear", "yaxis.autorange": True}
    window = every
    if top is not None:
        margin = 0.05 * (top - low)
        window = {"yaxis.autorange": False, "yaxis.range": [low - margin, top]}
        window |= {"yaxis.type": "linear"}
        figure.update_yaxes(range=window["yaxis.range"])
    controls = [
        Control(
            "against",
            {
                label: [
                    {"x": [[p[name] for p in points] for points in found_points]},
                    {"xaxis.title.text": label, "xaxis.autorange": True},
                ]
                for name, label in _AXES.items()
            },
        ),
        _scale("x"),
        Control(
            "y axis",
            {
                "where models end": [{}, window],
                "all": [{}, every],
                "logarithmic": [{}, {"yaxis.type": "log", "yaxis.autorange": True}],
            },
        ),
    ]
    summary = f"{len(found_points)} runs; lowest is {low:.4f} validation {unit}."
    return Chart(
        f"{place}-curves",
        "Learning curves",
        summary,
        figure,
        ["run", "step", "seconds", "FLOPs", unit],
        lines,
        controls,
    )


def _curve_line(name: str, point: dict[str, float]) -> list[str]:
    return [
        name,
        f"{point['step']:,}",
        f"{point['seconds']:,.0f}",
        f"{point['flops']:.3g}",
        f"{point['bits']:.4f}",
    ]


def _scale(axis: str) -> Control:
    return Control(
        f"{axis} axis",
        {
            word: [{}, {f"{axis}axis.type": kind, f"{axis}axis.autorange": True}]
            for word, kind in {"linear": "linear", "logarithmic": "log"}.items()
        },
    )


def k_curves(table: Table, place: str) -> Chart | None:
    """Bits against importance samples, exact models as levels; None without any."""
    row = table.example
    unit = plain(unit_name(row))
    with_curve = [r for c in table.found for r in c.rows if r.get("k_curve")]
    if not with_curve:
        return None
    most = max(p["k"] for r in with_curve for p in r["k_curve"])
    figure = _figure(380, "importance samples k", unit)
    lines = []
    for i, found in enumerate(table.found):
        look = style_of(i)
        for own in found.rows:
            shared: dict[str, Any] = dict(
                legendgroup=str(i), name=plain(_seed(found, own))
            )
            line = dict(color=look.color, dash=look.dash)
            if own["estimate"] == "exact":
                level = in_unit(row, own["nats"])
                figure.add_scatter(
                    x=[1, most],
                    y=[level, level],
                    mode="lines",
                    line=line,
                    opacity=0.6,
                    **shared,
                    **_said("exact: %{y:.4f}"),
                )
            points = own.get("k_curve", [])
            values = [in_unit(row, p["nats"]) for p in points]
            errors = [2 * in_unit(row, p["standard_error_nats"]) for p in points]
            if points:
                figure.add_scatter(
                    x=[p["k"] for p in points],
                    y=values,
                    error_y=dict(array=errors, color=look.color, thickness=1),
                    mode="lines+markers",
                    line=line,
                    marker=dict(symbol=look.symbol, size=7),
                    **shared,
                    **_said(f"k = %{{x}}: ≤ %{{y:.4f}} {unit}"),
                )
            lines += [
                [_seed(found, own), f"{p['k']}", f"≤ {v:.4f}", f"{e:.4f}"]
                for p, v, e in zip(points, values, errors, strict=True)
            ]
    figure.update_xaxes(type="log", dtick=float(np.log10(2)), tickformat="d")
    summary = f"{len(with_curve)} bounds, with up to {most} importance samples."
    header = ["run", "k", unit, "2 standard errors"]
    return Chart(
        f"{place}-k",
        "Bounds against importance samples",
        summary,
        figure,
        header,
        lines,
    )


def bit_maps(
    table: Table, place: str, maps: Sequence[np.ndarray | None]
) -> list[Chart]:
    """Where each contender pays: mean bits of every pixel, in one scale of colours.

    Args:
      table: its contenders.
      place: begins the id of each figure.
      maps: nats [H, W] or [L] of each contender; None where there is no map.
    """
    in_bits = [None if m is None else bits(1.0) * np.atleast_2d(m) for m in maps]
    top = max((m.max() for m in in_bits if m is not None), default=0.0)
    figures = []
    for i, (found, values) in enumerate(zip(table.found, in_bits, strict=True)):
        if values is None:
            continue
        what = found.rows[0]["bit_map"]
        height, width = values.shape
        figure = _figure(100 if height == 1 else 270, "", "")
        figure.add_heatmap(
            z=np.round(values, 5),
            zmin=0,
            zmax=top,
            colorscale="Viridis",
            colorbar=dict(thickness=10, outlinewidth=0),
            name=plain(found.label),
            hovertemplate="row %{y}, column %{x}: %{z:.3f} bits<extra></extra>",
        )
        hidden: dict[str, Any] = dict(showticklabels=False, showgrid=False, ticks="")
        figure.update_xaxes(**hidden, constrain="domain")
        figure.update_yaxes(**hidden, constrain="domain", autorange="reversed")
        if height > 1:
            figure.update_yaxes(scaleanchor="x")
        note = "" if what == "symbols" else f" ({what} alone)"
        row, column = np.unravel_index(values.argmax(), values.shape)
        summary = (
            f"Mean bits of each pixel, {height} x {width}: {values.sum():.2f} in all, "
            f"most at row {row}, column {column}: {values.max():.3f}."
        )
        figures.append(
            Chart(
                f"{place}-map-{i}",
                f"{found.label}{note}",
                summary,
                figure,
                ["row", *map(str, range(width))],
                [[str(y), *(f"{v:.3f}" for v in r)] for y, r in enumerate(values)],
                group=i,
            )
        )
    return figures
